//! [`RootPath`] and [`NamedRoots`]: the directories of a site, inside it or named by options.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::base::fs::{FsError, resolve};
use crate::base::text::{escape, is_control};
use crate::oci::parsed_text::quoted;

/// The root of the files or of the registry's storage in a record: relative to the site by default, absolute if an
/// option named it. It has no `..` and no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RootPath(PathBuf);

/// The directories that the options `--files` and `--registry` name. `None`: the directory is inside the site.
#[derive(Debug, Clone, Default)]
pub struct NamedRoots {
    /// The root of the files.
    pub files: Option<PathBuf>,
    /// The root of the registry's storage.
    pub registry: Option<PathBuf>,
}

/// A root of a site and its option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootKind {
    Files,
    Registry,
}

/// The reasons why a root in a record is not used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// It is outside the site, and no option names it.
    #[error(
        "`{member}` is `{}`, which is not inside the site: if that is intended, add `{option} {}`",
        shown(root),
        shown(root)
    )]
    Outside {
        /// The member of the record.
        member: &'static str,
        /// The directory.
        root: PathBuf,
        /// The option that allows it.
        option: &'static str,
    },
    /// An option names another directory.
    #[error(
        "`{member}` is `{}`, but `{option}` names `{}`: use `{option} {}`, or remove the record and unpack again",
        shown(root),
        shown(named),
        shown(root)
    )]
    Other {
        /// The member of the record.
        member: &'static str,
        /// The directory.
        root: PathBuf,
        /// The option.
        option: &'static str,
        /// The directory that it names.
        named: PathBuf,
    },
    /// A file call failed.
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl NamedRoots {
    /// Returns the option that `path` needs on a command line, with a space before it. Empty: none.
    #[must_use]
    pub fn arguments(&self) -> String {
        let options = [(RootKind::Files, &self.files), (RootKind::Registry, &self.registry)];
        let named = options.into_iter().filter_map(|(kind, path)| Some((kind, path.as_ref()?)));
        named
            .map(|(kind, path)| format!(" {} {}", kind.option(), path.display()))
            .collect::<Vec<_>>()
            .concat()
    }

    fn get(&self, kind: RootKind) -> Option<&Path> {
        match kind {
            RootKind::Files => self.files.as_deref(),
            RootKind::Registry => self.registry.as_deref(),
        }
    }
}

impl RootPath {
    /// Returns the root for a new record: the directory that the option names, or `default` inside the site.
    pub(crate) fn new(named: Option<&Path>, default: &str) -> Result<Self, FsError> {
        match named {
            Some(path) => std::path::absolute(path).map(Self).map_err(FsError::at("resolve", path)),
            None => Ok(Self(default.into())),
        }
    }

    /// Returns the directory of the site at `site`.
    #[must_use]
    pub(super) fn of_site(&self, site: &Path) -> PathBuf {
        site.join(&self.0)
    }

    /// Fails unless the root is the default directory inside `site`, also after symlinks are followed, or the one
    /// that an option names. (Other directories of a site have keys, or are not complete.)
    pub(super) fn check(&self, kind: RootKind, site: &Path, named: &NamedRoots) -> Result<(), RootsError> {
        let root = self.of_site(site);
        let resolved = resolve(&root)?;
        let (member, option) = (kind.member(), kind.option());
        match named.get(kind) {
            Some(path) if resolve(path)? == resolved => Ok(()),
            Some(path) => Err(RootsError::Other { member, root, option, named: path.to_owned() }),
            None if self.0 == Path::new(kind.default())
                && resolved == resolve(site)?.join(kind.default()) =>
            {
                Ok(())
            }
            None => Err(RootsError::Outside { member, root: resolved, option }),
        }
    }
}

impl From<&str> for RootPath {
    fn from(path: &str) -> Self {
        Self(path.into())
    }
}

impl<'de> Deserialize<'de> for RootPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let path = PathBuf::from(&text);
        let is_normal =
            path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if text.is_empty() || !is_normal || text.contains(is_control) {
            let message = format!("invalid directory `{}`: expected a path without `..`", quoted(&text));
            return Err(serde::de::Error::custom(message));
        }
        Ok(Self(path))
    }
}

impl RootKind {
    fn member(self) -> &'static str {
        match self {
            Self::Files => "filesRoot",
            Self::Registry => "registryRoot",
        }
    }

    /// The directory inside a site, if no option names another one.
    fn default(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Registry => "registry",
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Files => "--files",
            Self::Registry => "--registry",
        }
    }
}

fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> RootPath {
        serde_json::from_value(text.into()).unwrap()
    }

    #[test]
    fn a_root_is_inside_the_site_or_named_by_an_option() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let site = at("site");
        std::fs::create_dir_all(site.join("a")).unwrap();
        std::fs::create_dir_all(at("other")).unwrap();
        std::os::unix::fs::symlink("../other", site.join("out")).unwrap();
        std::os::unix::fs::symlink("../nothing", site.join("dangling")).unwrap();
        let other = at("other").to_str().unwrap().to_owned();
        let check = |text: &str, files: Option<&str>| {
            let named = NamedRoots { files: files.map(PathBuf::from), registry: None };
            root(text).check(RootKind::Files, &site, &named).map_err(|error| error.to_string())
        };
        assert_eq!(check("files", None), Ok(()));
        for outside in [
            "a",
            "files/x",
            "registry",
            "conf/ca",
            ".unbundle",
            "out",
            "out/x",
            &other,
            site.to_str().unwrap(),
            "/",
        ] {
            let error = check(outside, None).unwrap_err();
            assert!(error.contains("`filesRoot` is `/") && error.contains("add `--files /"), "{error}");
        }
        assert!(check("dangling", None).is_err() && check("dangling/x", None).is_err());
        assert_eq!((check(&other, Some(&other)), check("out", Some(&other))), (Ok(()), Ok(())));
        let error = check("files", Some(&other)).unwrap_err();
        assert!(error.contains("but `--files` names `/"), "{error}");
    }

    #[test]
    fn a_root_has_no_parent_components_and_no_control_characters() {
        for text in ["", "..", "../x", "a/../..", "/a/../b", ".", "a\n", "a\u{202e}", "\u{1b}[2J"] {
            let root = serde_json::from_value::<RootPath>(text.into());
            assert!(root.unwrap_err().to_string().starts_with("invalid directory `"), "{text:?}");
        }
        let named = NamedRoots { files: Some("/a".into()), registry: Some("/b".into()) };
        assert_eq!(named.arguments(), " --files /a --registry /b");
        assert_eq!(NamedRoots::default().arguments(), "");
    }
}
