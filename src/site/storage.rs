//! The storage of Docker Distribution (`registry:2`, `registry:3`, driver `filesystem`): which file stands where
//! under its root, and in which order they may appear.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::path::RelPath;
use crate::bundle::format::layout::Layout;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::template::{RepositoryTemplate, TemplateError};

/// Where everything is, below the root that is mounted as `/var/lib/registry`.
pub(crate) const BASE: &str = "docker/registry/v2";

/// A file below `blobs` that makes `garbage-collect` stop before it deletes anything, while the registry serves
/// on: it deletes what no revision names, and revisions come last.
pub(crate) const GC_GUARD: &str = "docker/registry/v2/blobs/unbundle-in-progress/data";

/// The files that name blobs, in the order in which they may appear: each stage only when the one before it is
/// on the disk. A link file holds a digest, without a newline.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// Layers and configs of repositories, and the manifests that an index names.
    pub inner: BTreeMap<RelPath, Digest>,
    /// The manifests that a reference names.
    pub roots: BTreeMap<RelPath, Digest>,
    /// What each tag has ever been.
    pub history: BTreeMap<RelPath, Digest>,
    /// What each tag is.
    pub tags: BTreeMap<RelPath, Digest>,
    /// Directories that are there even when empty.
    pub directories: BTreeSet<RelPath>,
}

/// Why images cannot have the names that the templates give them.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// A template makes no valid name of a reference.
    #[error("`{0}` cannot have the name that the template gives it")]
    Template(String, #[source] TemplateError),
    /// Two images, one name.
    #[error(
        "`{first}` and `{second}` would both be `{name}` on the site and are not the same: use a \
         `--repository-template` that keeps them apart"
    )]
    Collision {
        /// The name.
        name: String,
        /// The one image.
        first: String,
        /// The other.
        second: String,
    },
}

/// Where the bytes of a blob are.
#[must_use]
pub(crate) fn blob_path(digest: Digest) -> RelPath {
    let hex = digest.hex();
    path(&format!("{BASE}/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

impl Links {
    /// The links for all images of `layout`, named by each of `templates`.
    pub(crate) fn new(layout: &Layout, templates: &[RepositoryTemplate]) -> Result<Self, NamesError> {
        let mut links = Self::default();
        let mut names: BTreeMap<String, (Digest, String)> = BTreeMap::new();
        for image in &layout.images {
            let reference = &image.indexed.reference;
            let root = image.indexed.digest;
            for template in templates {
                let repository = template
                    .apply(reference)
                    .map_err(|error| NamesError::Template(reference.to_string(), error))?;
                if let Some(tag) = reference.tag() {
                    let name = format!("{repository}:{tag}");
                    let (digest, first) =
                        names.entry(name.clone()).or_insert_with(|| (root, reference.to_string()));
                    if *digest != root {
                        let (first, second) = (first.clone(), reference.to_string());
                        return Err(NamesError::Collision { name, first, second });
                    }
                }
                links.image(&repository, reference.tag(), root, layout, &image.manifests);
            }
        }
        Ok(links)
    }

    /// The stages, in the order in which they may appear.
    #[must_use]
    pub(crate) fn stages(&self) -> [&BTreeMap<RelPath, Digest>; 4] {
        [&self.inner, &self.roots, &self.history, &self.tags]
    }

    fn image(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        root: Digest,
        layout: &Layout,
        manifests: &[crate::bundle::format::layout::Blob],
    ) {
        let base = format!("{BASE}/repositories/{repository}");
        let link =
            |place: &str, digest: Digest| path(&format!("{base}/{place}/sha256/{}/link", digest.hex()));
        for manifest in manifests {
            let revision = link("_manifests/revisions", manifest.digest);
            if manifest.digest == root {
                self.roots.insert(revision, root);
            } else {
                self.inner.insert(revision, manifest.digest);
            }
            if let Some(Manifest::Image { config, layers }) = layout.parsed.get(&manifest.digest) {
                for blob in std::iter::once(config).chain(layers) {
                    self.inner.insert(link("_layers", blob.digest), blob.digest);
                }
            }
        }
        for directory in ["_layers", "_uploads"] {
            self.directories.insert(path(&format!("{base}/{directory}")));
        }
        if let Some(tag) = tag {
            let tag = format!("_manifests/tags/{tag}");
            self.history.insert(link(&format!("{tag}/index"), root), root);
            self.tags.insert(path(&format!("{base}/{tag}/current/link")), root);
        }
    }
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).expect("digests, repository names and tags make paths; please report")
}
