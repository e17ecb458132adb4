//! [`Package`]: a Debian package as a source of real content.

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process;

/// The packages fetched by `scripts/debs`.
#[derive(Debug, Clone)]
pub struct Packages {
    root: PathBuf,
}

/// One package of one architecture.
#[derive(Debug, Clone)]
pub struct Package {
    deb: PathBuf,
}

impl Packages {
    /// Reads the packages in `$AIRBUNDLE_DEBS`, or in `target/debs` of this project.
    pub fn load() -> Self {
        let root = env::var_os("AIRBUNDLE_DEBS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/debs"), PathBuf::from);
        assert!(root.join("amd64").is_dir(), "no packages in {}: run scripts/debs first", root.display());
        Self { root }
    }

    /// Returns the package `name` for `architecture` (`amd64` or `arm64`).
    pub fn get(&self, architecture: &str, name: &str) -> Package {
        let directory = self.root.join(architecture);
        let prefix = format!("{name}_");
        let deb = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("read a directory").path())
            .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix)))
            .unwrap_or_else(|| panic!("no {name} in {}: run scripts/debs first", directory.display()));
        Package { deb }
    }
}

impl Package {
    /// Returns its content as an uncompressed tar.
    pub fn tar(&self) -> Vec<u8> {
        process::run(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&self.deb)).stdout
    }

    /// Returns a regular file of it, at `path` or, in newer Debian releases, at `usr/path`.
    pub fn file(&self, path: &str) -> Vec<u8> {
        let tar = self.tar();
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut entry = archive
            .entries()
            .expect("read a tar")
            .map(|entry| entry.expect("read a tar"))
            .find(|entry| {
                let found = entry.path().expect("read a tar");
                let found = found.strip_prefix("./").unwrap_or(&found);
                found.strip_prefix("usr").unwrap_or(found) == Path::new(path)
            })
            .unwrap_or_else(|| panic!("no {path} in {}", self.deb.display()));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read a tar");
        bytes
    }

    /// Returns the bytes of the `.deb` file.
    pub fn deb(&self) -> Vec<u8> {
        fs::read(&self.deb).unwrap_or_else(|error| panic!("read {}: {error}", self.deb.display()))
    }
}
