//! [`Tmpfs`]: a file system in memory. Needs root.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::process::run;

/// A file system in memory of its own. Unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs(TempDir);

impl Tmpfs {
    /// Mounts it with these options, e.g. `size=1m`.
    pub fn new(options: &str) -> Self {
        let directory = TempDir::new().expect("create a temporary directory");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(directory.path()));
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Changes its options.
    pub fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.path()));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status(); // a test that fails tells more
    }
}
