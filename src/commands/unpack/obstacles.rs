//! [`Obstacles`]: files of the site where the bundle has a directory, and directories where it has a file.
//!
//! Between two releases, `host/x` can become `host/x/y`. The older path is in the way, and only the user knows whether it
//! may go.

use std::collections::BTreeSet;

use crate::base::fs::FsError;
use crate::base::path::RelPath;
use crate::base::text::listed;
use crate::bundle::format::layout::Layout;
use crate::commands::unpack::error::UnpackError;
use crate::commands::unpack::roots::Roots;
use crate::oci::reference::DEFAULT_PREFIX;
use crate::site::record::Record;
use crate::site::root::{Obstacle, Root};

/// Maximum number of obstacles that an error names.
const SHOWN: usize = 5;

/// The obstacles of a bundle; see the module.
pub(crate) struct Obstacles(BTreeSet<Obstacle>);

impl Obstacles {
    /// Finds the obstacles of the files of `layout`.
    ///
    /// Fails if there are any, unless `may_replace` and all files in question are recorded: those of others stay.
    pub(super) fn find(
        layout: &Layout,
        record: &Record,
        roots: &Roots,
        may_replace: bool,
    ) -> Result<Self, UnpackError> {
        let Some(root) = roots.files() else { return Ok(Self(BTreeSet::new())) };
        let prefix = RelPath::parse(DEFAULT_PREFIX).expect("a plain path; please report");
        let found = layout.files.iter().filter_map(|file| root.obstacle(&prefix.join(&file.path)));
        let obstacles = Self(found.collect());
        if obstacles.0.is_empty() {
            return Ok(obstacles);
        }
        let shown = |path: &RelPath| format!("`{}`", root.path(path).display());
        if !may_replace {
            let texts = obstacles.0.iter().map(|obstacle| match obstacle {
                Obstacle::File(path) => {
                    format!("{} is a file, and the bundle has a directory there", shown(path))
                }
                Obstacle::Directory(path) => {
                    format!("{} is a directory, and the bundle has a file there", shown(path))
                }
            });
            return Err(UnpackError::Obstacles { problem: listed(texts, SHOWN), is_replaceable: true });
        }
        let recorded: BTreeSet<&RelPath> = record.files.iter().map(|file| &file.path).collect();
        let all = obstacles.files(root)?;
        let mut foreign = all.iter().filter(|path| !recorded.contains(path)).peekable();
        if foreign.peek().is_some() {
            let texts = foreign.map(|path| format!("{} is not of a bundle: move it away", shown(path)));
            return Err(UnpackError::Obstacles { problem: listed(texts, SHOWN), is_replaceable: false });
        }
        Ok(obstacles)
    }

    /// Returns the files in question.
    fn files(&self, root: &Root) -> Result<BTreeSet<RelPath>, FsError> {
        let mut files = BTreeSet::new();
        for obstacle in &self.0 {
            match obstacle {
                Obstacle::File(path) => drop(files.insert(path.clone())),
                Obstacle::Directory(path) => files.extend(root.files_below(path)?),
            }
        }
        Ok(files)
    }

    /// Removes them.
    pub(super) fn remove(&self, roots: &Roots) -> Result<(), FsError> {
        let Some(root) = roots.files() else { return Ok(()) };
        self.0.iter().try_for_each(|obstacle| match obstacle {
            Obstacle::File(path) => root.remove(path),
            Obstacle::Directory(path) => root.remove_all(path),
        })
    }

    /// Removes them from the record.
    pub(super) fn forget(&self, record: &mut Record) {
        let is_gone = |path: &RelPath| {
            self.0.iter().any(|obstacle| match obstacle {
                Obstacle::File(gone) => gone == path,
                Obstacle::Directory(gone) => path.is_below(gone),
            })
        };
        record.files.retain(|file| !is_gone(&file.path));
    }
}
