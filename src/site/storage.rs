//! The storage of Docker Distribution (`registry:2`, `registry:3`, driver `filesystem`): paths, and their
//! write order.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::path::RelPath;
use crate::bundle::format::layout::{Blob, BundledImage, Layout};
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::reference::Reference;
use crate::oci::repository::RepositoryName;
use crate::oci::template::{RepositoryTemplate, TemplateError};

/// The parent of `blobs` and `repositories`, relative to the root (`/var/lib/registry` in a container).
pub(crate) const BASE: &str = "docker/registry/v2";

/// The GC guard: a file below `blobs` that makes `garbage-collect` fail before it deletes anything, and does
/// not affect the running registry. GC deletes blobs without a revision, and revisions are written after the
/// blobs.
pub(crate) const GC_GUARD: &str = "docker/registry/v2/blobs/unbundle-in-progress/data";

/// The link files, by stage: a stage is written after the one before it is on the disk. A link file contains
/// a digest, without a newline.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// Layers, configs, and manifests that an index refers to.
    pub inner: BTreeMap<RelPath, Digest>,
    /// Manifests and indexes that a reference resolves to.
    pub roots: BTreeMap<RelPath, Digest>,
    /// Present and former digests of tags.
    pub history: BTreeMap<RelPath, Digest>,
    /// Current digests of tags.
    pub tags: BTreeMap<RelPath, Digest>,
    /// Directories that must exist, even if empty.
    pub directories: BTreeSet<RelPath>,
}

/// The reasons why repository templates cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The result is not a valid repository name.
    #[error("cannot apply the repository template to `{0}`")]
    Template(String, #[source] TemplateError),
    /// Two different images get the same name.
    #[error(
        "`{first}` and `{second}` are different images and would both be `{name}` on the site: use a \
         `--repository-template` with distinct names"
    )]
    Collision {
        /// Repository and tag.
        name: String,
        /// A reference.
        first: String,
        /// The other reference.
        second: String,
    },
}

/// Returns the path of a blob, relative to the root.
#[must_use]
pub(crate) fn blob_path(digest: Digest) -> RelPath {
    let hex = digest.hex();
    path(&format!("{BASE}/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

/// Returns the repositories of an image of `layout`. An alias that is the name of another image of the bundle is not used.
pub(crate) fn repositories(
    image: &Reference,
    layout: &Layout,
    templates: &[RepositoryTemplate],
) -> Result<BTreeSet<RepositoryName>, NamesError> {
    let mut names = BTreeSet::new();
    for template in templates {
        let name = template.apply(image).map_err(|error| NamesError::Template(image.to_string(), error))?;
        names.insert(name);
        let Some(alias) = template.alias(image) else { continue };
        let is_taken = |other: &BundledImage| template.apply(&other.indexed.reference).as_ref() == Ok(&alias);
        if !layout.images.iter().any(is_taken) {
            names.insert(alias);
        }
    }
    Ok(names)
}

impl Links {
    /// Returns the links of all images of `layout`, in the repositories that `templates` name.
    pub(crate) fn new(layout: &Layout, templates: &[RepositoryTemplate]) -> Result<Self, NamesError> {
        let mut links = Self::default();
        let mut names: BTreeMap<String, (Digest, String)> = BTreeMap::new();
        for image in &layout.images {
            let reference = &image.indexed.reference;
            let root = image.indexed.digest;
            for repository in repositories(reference, layout, templates)? {
                if let Some(tag) = reference.tag() {
                    let name = format!("{repository}:{tag}");
                    let (digest, first) =
                        names.entry(name.clone()).or_insert_with(|| (root, reference.to_string()));
                    if *digest != root {
                        let (first, second) = (first.clone(), reference.to_string());
                        return Err(NamesError::Collision { name, first, second });
                    }
                }
                links.add_image(&repository, reference.tag(), root, layout, &image.manifests);
            }
        }
        Ok(links)
    }

    /// Returns the stages in write order.
    #[must_use]
    pub(crate) fn stages(&self) -> [&BTreeMap<RelPath, Digest>; 4] {
        [&self.inner, &self.roots, &self.history, &self.tags]
    }

    /// Returns repository and tag of all tags.
    pub(crate) fn tag_names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tags.keys().filter_map(|path| {
            let path = path.as_str().strip_prefix(BASE)?.strip_prefix("/repositories/")?;
            path.strip_suffix("/current/link")?.rsplit_once("/_manifests/tags/")
        })
    }

    fn add_image(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        root: Digest,
        layout: &Layout,
        manifests: &[Blob],
    ) {
        let base = format!("{BASE}/repositories/{repository}");
        let link =
            |parent: &str, digest: Digest| path(&format!("{base}/{parent}/sha256/{}/link", digest.hex()));
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
        for directory in ["_layers", "_uploads", "_manifests/tags"] {
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
    RelPath::parse(text).expect("digests, repository names and tags are valid path components; please report")
}
