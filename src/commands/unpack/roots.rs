//! [`Roots`]: the locked directories that one run of `unpack` writes to.

use std::path::Path;
use std::sync::Arc;

use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::bundle::format::layout::Layout;
use crate::commands::unpack::error::UnpackError;
use crate::commands::unpack::options::UnpackOptions;
use crate::site::commit::distinct;
use crate::site::root::{Root, Staging, Stagings};
use crate::site::signed_index;
use crate::site::storage::GC_GUARD;

pub(super) struct Roots {
    pub(super) all: Vec<Root>,
    /// The index in `all` of the root of files. `None`: the selection has no files, and the directory is not
    /// created.
    pub(super) files: Option<usize>,
    /// The index in `all` of the root of the registry's storage. `None`: the selection has no images.
    pub(super) registry: Option<usize>,
    /// The directory of the documents of all bundles.
    pub(super) bundles: Root,
    /// The staging directory of the site: holds its lock, and the record until it is renamed.
    pub(super) site: Arc<Staging>,
}

impl Roots {
    pub(super) fn open(options: &UnpackOptions, layout: &Layout) -> Result<Self, UnpackError> {
        let mut stagings = Stagings::default();
        let site = stagings.open(&options.site)?;
        let bundles = signed_index::open(&options.site, &mut stagings)?;
        let mut roots = Self { all: Vec::new(), files: None, registry: None, bundles, site };
        if !layout.files.is_empty() {
            roots.files = Some(roots.add(options, options.files.as_deref(), "files", &mut stagings)?);
        }
        if !layout.images.is_empty() {
            let directory = options.registry.as_deref();
            roots.registry = Some(roots.add(options, directory, "registry", &mut stagings)?);
        }
        Ok(roots)
    }

    /// Opens `directory`, by default the directory `name` of the site, and returns its index.
    fn add(
        &mut self,
        options: &UnpackOptions,
        directory: Option<&Path>,
        name: &str,
        stagings: &mut Stagings,
    ) -> Result<usize, UnpackError> {
        self.all.push(match directory {
            Some(path) => Root::open(path, path, stagings)?,
            None => Root::open(&options.site.join(name), &options.site, stagings)?,
        });
        Ok(self.all.len() - 1)
    }

    /// Returns the root of the registry's storage. `None`: the selection has no images.
    pub(super) fn files(&self) -> Option<&Root> {
        self.files.map(|number| &self.all[number])
    }

    pub(super) fn registry(&self) -> Option<&Root> {
        self.registry.map(|index| &self.all[index])
    }

    pub(super) fn stagings(&self) -> Vec<&Arc<Staging>> {
        distinct(&self.all)
    }

    /// Writes all cached data of the file systems to disk.
    pub(super) fn sync(&self) -> Result<(), FsError> {
        self.stagings().into_iter().try_for_each(|staging| staging.sync())
    }

    pub(super) fn create_gc_guard(&self) -> Result<(), FsError> {
        self.registry().map_or(Ok(()), |root| root.touch(&gc_guard_path()))
    }

    pub(super) fn remove_gc_guard(&self) -> Result<(), FsError> {
        self.registry().map_or(Ok(()), |root| root.remove_with_directory(&gc_guard_path()))
    }
}

fn gc_guard_path() -> RelPath {
    RelPath::parse(GC_GUARD).expect("a plain path")
}
