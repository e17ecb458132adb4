//! [`PlainPath`]: an absolute path that every generated file can contain.
//!
//! nginx cannot escape `$`, and volumes of compose and docker cannot escape `:`. Therefore other characters are refused
//! once, instead of quoted in each file.

use std::ops::Deref;
use std::path::{Path, PathBuf};

/// An absolute path of letters, digits and `._+@/-`, which nginx, compose, systemd and shells read literally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainPath(String);

impl PlainPath {
    /// Parses a path. Returns it as the error if it is relative or has other characters.
    pub fn new(path: PathBuf) -> Result<Self, PathBuf> {
        match path.to_str() {
            Some(text) if path.is_absolute() && is_plain(text) => Ok(Self(text.to_owned())),
            _ => Err(path),
        }
    }

    /// A path of this program.
    #[must_use]
    pub(crate) fn fixed(path: &'static str) -> Self {
        Self::new(path.into()).expect("fixed paths are plain; please report")
    }

    /// Appends a path of this program.
    #[must_use]
    pub(crate) fn child(&self, path: &'static str) -> Self {
        Self::new(self.join(path)).expect("fixed paths are plain; please report")
    }

    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for PlainPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl AsRef<Path> for PlainPath {
    fn as_ref(&self) -> &Path {
        self
    }
}

fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "._+@/-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_of_harmless_characters_are_plain() {
        for (path, is_plain) in [
            ("/srv/site_1+a@b-c.d", true),
            ("/", true),
            ("srv", false),
            ("/a b", false),
            ("/a$b", false),
            ("/a\n", false),
            ("/ü", false),
        ] {
            assert_eq!(PlainPath::new(path.into()).is_ok(), is_plain, "{path}");
        }
    }
}
