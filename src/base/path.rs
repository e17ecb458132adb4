//! [`RelPath`]: a relative path from outside, parsed once into a type that cannot escape its directory.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use unicode_normalization::UnicodeNormalization as _;

/// The most bytes a path may have: below Linux' `PATH_MAX` of 4096, which counts the directory before it, too.
pub(crate) const MAX_PATH: usize = 4000;

/// The most bytes one component may have: `NAME_MAX` of every common file system.
pub(crate) const MAX_COMPONENT: usize = 255;

/// A relative path with `/` that cannot escape: no component is empty, `.` or `..`, nothing is a control
/// character or a backslash. At most [`MAX_PATH`] bytes, and [`MAX_COMPONENT`] in a component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(String);

/// Why a text is no [`RelPath`]. Offsets are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// There is nothing.
    #[error("the path is empty")]
    Empty,
    /// It has more than [`MAX_PATH`] bytes.
    #[error("the path has {len} bytes, more than {MAX_PATH}")]
    TooLong {
        /// How many it has.
        len: usize,
    },
    /// It begins with `/`.
    #[error("the path begins with `/`: expected a relative one")]
    Absolute,
    /// It holds a control character or a backslash, which terminals, or Windows, would not take as a name.
    #[error("the path holds `{}` at byte {offset}", character.escape_default())]
    Character {
        /// What it holds.
        character: char,
        /// Where.
        offset: usize,
    },
    /// `a//b`, or a `/` at the end.
    #[error("the path has an empty component at byte {offset}")]
    EmptyComponent {
        /// Where.
        offset: usize,
    },
    /// A component is `.` or `..`.
    #[error("the path has the component `{component}`")]
    Dots {
        /// Which of the two.
        component: String,
    },
    /// A component has more than [`MAX_COMPONENT`] bytes.
    #[error("the path has a component of {len} bytes, more than {MAX_COMPONENT}")]
    LongComponent {
        /// How many it has.
        len: usize,
    },
    /// The bytes of the path, once decoded, are no UTF-8.
    #[error("the path is not UTF-8")]
    NotUtf8,
}

impl RelPath {
    /// Takes `text` as it is: nothing is normalised, what is not a clean path is refused.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > MAX_PATH {
            return Err(PathError::TooLong { len: text.len() });
        }
        if let Some((offset, character)) = text.char_indices().find(|(_, c)| c.is_control() || *c == '\\') {
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

    /// The path, with `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names between the `/`, at least one.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// `tail` below this path. The length of the whole is not checked again: the file system has the last word.
    #[must_use]
    pub fn join(&self, tail: &Self) -> Self {
        Self(format!("{}/{}", self.0, tail.0))
    }

    /// Equal for two paths that a file system could confuse that ignores case or Unicode normalisation (APFS,
    /// NTFS, ext4 with `casefold`). It errs on the careful side: a few more pairs than any of them confuses.
    #[must_use]
    pub fn collision_key(&self) -> String {
        // Upper case first: it brings together what lower case alone keeps apart (`ſ` and `s`, `ß` and `ss`).
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

impl AsRef<Path> for RelPath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// Two of `paths` that cannot both be files of one directory, in their order: the same path twice, two with one
/// [`RelPath::collision_key`], or one that is a directory of the other (`a` and `a/b`).
pub(crate) fn find_collision<'a>(paths: impl Iterator<Item = &'a RelPath>) -> Option<(RelPath, RelPath)> {
    let paths: Vec<_> = paths.collect();
    let (first, second) = collisions(&paths).into_iter().min_by_key(|&(_, second)| second)?;
    Some((paths[first].clone(), paths[second].clone()))
}

/// Every path that cannot stand beside another, as (the other's index, its own), the smaller index first.
pub(crate) fn collisions(paths: &[&RelPath]) -> Vec<(usize, usize)> {
    // With the separator sorted below every other character, all that lies in a directory follows it at once.
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
    fn a_clean_relative_path_is_taken_as_it_is() {
        for text in ["a", "a/b", "...", "..a/b..", ".hidden", "a b/ü", "::1:8080/x?y=%2F", "a:b", "~", "-"] {
            let path = RelPath::parse(text).unwrap();
            assert_eq!(path.as_str(), text);
            assert_eq!(path.components().collect::<Vec<_>>().join("/"), text);
        }
        RelPath::parse(&"x".repeat(255)).unwrap();
        RelPath::parse(&"x/".repeat(1999)[..3997]).unwrap();
    }

    #[test]
    fn a_path_that_is_not_clean_or_not_relative_is_refused() {
        let long = "x".repeat(256);
        let deep = format!("{}x", "x/".repeat(2000));
        let cases = [
            ("", "the path is empty"),
            ("/a", "the path begins with `/`: expected a relative one"),
            ("/", "the path begins with `/`: expected a relative one"),
            ("..", "the path has the component `..`"),
            ("a/../b", "the path has the component `..`"),
            ("a/.", "the path has the component `.`"),
            ("a//b", "the path has an empty component at byte 2"),
            ("a/", "the path has an empty component at byte 2"),
            ("a\\b", "the path holds `\\\\` at byte 1"),
            ("a\0", "the path holds `\\u{0}` at byte 1"),
            ("ü\n", "the path holds `\\n` at byte 2"),
            ("a\u{7f}", "the path holds `\\u{7f}` at byte 1"),
            ("a\u{9b}", "the path holds `\\u{9b}` at byte 1"),
            (&long, "the path has a component of 256 bytes, more than 255"),
            (&deep, "the path has 4001 bytes, more than 4000"),
        ];
        for (text, error) in cases {
            assert_eq!(RelPath::parse(text).unwrap_err().to_string(), error, "{text:?}");
        }
    }

    #[test]
    fn joining_puts_the_tail_below() {
        let [head, tail] = &paths(&["k8s/a", "b/c"])[..] else { unreachable!() };
        assert_eq!(head.join(tail).as_str(), "k8s/a/b/c");
    }

    #[test]
    fn names_that_differ_only_in_case_or_normalisation_have_one_key() {
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
    fn a_collision_is_one_path_twice_or_one_key_twice_or_a_file_that_is_a_directory() {
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
