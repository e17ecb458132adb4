//! [`RelPath`]: a relative path from outside, parsed once into a type that cannot escape its directory.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_normalization::UnicodeNormalization as _;

use crate::base::text::is_control;
use crate::oci::parsed_text::quoted;

/// Maximum length of a path in bytes. Linux' `PATH_MAX` of 4096 also counts the directory that the path is
/// relative to.
pub(crate) const MAX_PATH: usize = 4000;

/// Maximum length of a component in bytes: `NAME_MAX` of common file systems.
pub(crate) const MAX_COMPONENT: usize = 255;

/// A relative path, separated by `/`, that cannot escape its directory: no component is empty, `.` or `..`,
/// and no character is a control character, a line or paragraph separator, a bidirectional control or a backslash.
/// At most [`MAX_PATH`] bytes, and [`MAX_COMPONENT`] per component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(String);

/// A text that is not a valid [`RelPath`]. Offsets and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The text is empty.
    #[error("the path is empty")]
    Empty,
    /// The path exceeds [`MAX_PATH`].
    #[error("the path has {len} bytes, more than {MAX_PATH}")]
    TooLong {
        /// Actual length.
        len: usize,
    },
    /// The path begins with `/`.
    #[error("the path is absolute: expected a relative path")]
    Absolute,
    /// A control character or a backslash: terminals and parsers interpret the former, Windows the latter.
    #[error("the path contains `{}` at byte {offset}", character.escape_default())]
    Character {
        /// The character.
        character: char,
        /// Position of the character or component.
        offset: usize,
    },
    /// `a//b`, or a trailing `/`.
    #[error("the path has an empty component at byte {offset}")]
    EmptyComponent {
        /// Position of the character or component.
        offset: usize,
    },
    /// A component is `.` or `..`.
    #[error("the path has the component `{component}`")]
    Dots {
        /// `.` or `..`.
        component: String,
    },
    /// A component exceeds [`MAX_COMPONENT`].
    #[error("the path has a component of {len} bytes, more than {MAX_COMPONENT}")]
    LongComponent {
        /// Actual length.
        len: usize,
    },
    /// The decoded path of a URL is not UTF-8.
    #[error("the path is not valid UTF-8")]
    NotUtf8,
}

impl RelPath {
    /// Parses `text` without normalizing it.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > MAX_PATH {
            return Err(PathError::TooLong { len: text.len() });
        }
        if let Some((offset, character)) = text.char_indices().find(|(_, c)| is_control(*c) || *c == '\\') {
            return Err(PathError::Character { character, offset });
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute);
        }
        let mut offset = 0;
        for component in text.split('/') {
            match component {
                "" => return Err(PathError::EmptyComponent { offset }),
                "." | ".." => return Err(PathError::Dots { component: component.to_owned() }),
                _ if component.len() > MAX_COMPONENT => {
                    return Err(PathError::LongComponent { len: component.len() });
                }
                _ => offset += component.len() + 1,
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the path, separated by `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the components, at least one.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns `tail` below this path. The total length is not checked: the file system enforces its own
    /// limit.
    #[must_use]
    pub fn join(&self, tail: &Self) -> Self {
        Self(format!("{}/{}", self.0, tail.0))
    }

    /// True if `directory` is one of the directories above the path.
    #[must_use]
    pub fn is_below(&self, directory: &Self) -> bool {
        self.0.strip_prefix(&directory.0).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Returns a key that is equal for paths that a file system without case or Unicode distinction (APFS,
    /// NTFS, ext4 with `casefold`) can treat as the same path. A few more pairs have equal keys, which is the
    /// safe direction.
    #[must_use]
    pub fn collision_key(&self) -> String {
        // Upper case first: it maps `ſ` to `S` and `ß` to `SS`, which lower case alone would not.
        self.0.nfc().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfc().collect()
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RelPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .map_err(|error| serde::de::Error::custom(format!("invalid path `{}`: {error}", quoted(&text))))
    }
}

impl AsRef<Path> for RelPath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// Returns the first two of `paths` that cannot both be files below one directory: equal paths, paths with an
/// equal [`RelPath::collision_key`], or a path that is a parent of the other (`a` and `a/b`).
pub(crate) fn find_collision<'a>(paths: impl Iterator<Item = &'a RelPath>) -> Option<(RelPath, RelPath)> {
    let paths: Vec<_> = paths.collect();
    let (first, second) = collisions(&paths).into_iter().min_by_key(|&(_, second)| second)?;
    Some((paths[first].clone(), paths[second].clone()))
}

/// Returns the pairs of indexes of paths that collide, the smaller index first.
pub(crate) fn collisions(paths: &[&RelPath]) -> Vec<(usize, usize)> {
    // `\0` sorts before all other characters, so the paths below a directory directly follow the directory.
    let mut keys: Vec<_> = paths
        .iter()
        .enumerate()
        .map(|(index, path)| (path.collision_key().replace('/', "\0"), index))
        .collect();
    keys.sort_unstable();
    let mut found = Vec::new();
    let mut keys = keys.into_iter();
    let Some(mut last) = keys.next() else { return found };
    for next in keys {
        match next.0.strip_prefix(&last.0) {
            Some(tail) if tail.is_empty() || tail.starts_with('\0') => {
                found.push((last.1.min(next.1), last.1.max(next.1)));
            }
            _ => last = next,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Vec<RelPath> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_valid_relative_path_is_kept_unchanged() {
        for text in ["a", "a/b", "...", "..a/b..", ".hidden", "a b/ü", "::1:8080/x?y=%2F", "a:b", "~", "-"] {
            let path = RelPath::parse(text).unwrap();
            assert_eq!(path.as_str(), text);
            assert_eq!(path.components().collect::<Vec<_>>().join("/"), text);
        }
        RelPath::parse(&"x".repeat(255)).unwrap();
        RelPath::parse(&"x/".repeat(1999)[..3997]).unwrap();
    }

    #[test]
    fn an_absolute_or_ambiguous_path_is_an_error() {
        let long = "x".repeat(256);
        let deep = format!("{}x", "x/".repeat(2000));
        let cases = [
            ("", "the path is empty"),
            ("/a", "the path is absolute: expected a relative path"),
            ("/", "the path is absolute: expected a relative path"),
            ("..", "the path has the component `..`"),
            ("a/../b", "the path has the component `..`"),
            ("a/.", "the path has the component `.`"),
            ("a//b", "the path has an empty component at byte 2"),
            ("a/", "the path has an empty component at byte 2"),
            ("a\\b", "the path contains `\\\\` at byte 1"),
            ("a\0", "the path contains `\\u{0}` at byte 1"),
            ("ü\n", "the path contains `\\n` at byte 2"),
            ("a\u{7f}", "the path contains `\\u{7f}` at byte 1"),
            ("a\u{202e}b", "the path contains `\\u{202e}` at byte 1"),
            ("a\u{2028}", "the path contains `\\u{2028}` at byte 1"),
            ("a\u{9b}", "the path contains `\\u{9b}` at byte 1"),
            (&long, "the path has a component of 256 bytes, more than 255"),
            (&deep, "the path has 4001 bytes, more than 4000"),
        ];
        for (text, error) in cases {
            assert_eq!(RelPath::parse(text).unwrap_err().to_string(), error, "{text:?}");
        }
    }

    #[test]
    fn join_appends_the_tail() {
        let [head, tail] = &paths(&["k8s/a", "b/c"])[..] else { unreachable!() };
        assert_eq!(head.join(tail).as_str(), "k8s/a/b/c");
    }

    #[test]
    fn paths_that_differ_only_in_case_or_normalization_have_equal_keys() {
        for (a, b) in [
            ("README/a", "readme/A"),
            ("é", "e\u{301}"),
            ("É", "e\u{301}"),
            ("ß", "SS"),
            ("ſ", "S"),
            ("Σ", "ς"),
        ] {
            let [a, b] = &paths(&[a, b])[..] else { unreachable!() };
            assert_eq!(a.collision_key(), b.collision_key(), "{a} {b}");
        }
        for (a, b) in [("a", "ä"), ("a/b", "a.b"), ("é", "e")] {
            let [a, b] = &paths(&[a, b])[..] else { unreachable!() };
            assert_ne!(a.collision_key(), b.collision_key(), "{a} {b}");
        }
    }

    #[test]
    fn equal_paths_equal_keys_and_parents_collide() {
        for (texts, expected) in [
            ("", None),
            ("a b a.b a-b ab/c", None),
            ("a/b a/c A/d", None),
            ("a b a", Some(("a", "a"))),
            ("a/b/c x a", Some(("a/b/c", "a"))),
            ("a a-b a! a/b", Some(("a", "a/b"))),
            ("Dir/x dir", Some(("Dir/x", "dir"))),
            ("b a a B", Some(("a", "a"))),
        ] {
            let texts: Vec<_> = texts.split_whitespace().collect();
            let paths = paths(&texts);
            let found = find_collision(paths.iter());
            assert_eq!(found.as_ref().map(|(a, b)| (a.as_str(), b.as_str())), expected, "{texts:?}");
        }
    }
}
