//! [`RepositoryName`] and [`Tag`]: names in a registry, without its host.

use crate::oci::parsed_text::{parsed_text, quoted};
use crate::oci::reference::{MAX_NAME, MAX_TAG, is_repository_name, is_tag};

/// The name of a repository in a registry (OCI distribution-spec, "Pulling manifests"), such as
/// `k8s/registry.k8s.io/pause`. At most [`MAX_NAME`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);

/// A tag (OCI distribution-spec, "Pulling manifests"). At most [`MAX_TAG`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

/// A text that is not a valid [`RepositoryName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid repository `{}`: expected at most {MAX_NAME} lower-case letters and digits, separated by `/`, `.`, `_`, \
     `__` or dashes", quoted(.0)
)]
pub struct RepositoryNameError(String);

/// A text that is not a valid [`Tag`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid tag `{}`: expected at most {MAX_TAG} of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`",
    quoted(.0)
)]
pub struct TagError(String);

parsed_text!(RepositoryName, is_repository_name, RepositoryNameError);
parsed_text!(Tag, is_tag, TagError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_and_a_tag_have_only_characters_of_the_specification() {
        for name in ["a", "k8s/registry.k8s.io/pause", "a__b/c-d", "localhost_5000/x"] {
            assert_eq!(&*name.parse::<RepositoryName>().unwrap(), name);
        }
        for name in ["", "A", "/a", "a/", "a//b", "../a", "a/../b", "a\n", "a b", "a\" x;\n} # ", "ü"] {
            assert!(name.parse::<RepositoryName>().is_err(), "{name:?}");
        }
        assert!("a".repeat(256).parse::<RepositoryName>().is_err());
        for tag in ["v1.2", "_x", "sha256-ab.sig", "A"] {
            assert_eq!(&*tag.parse::<Tag>().unwrap(), tag);
        }
        for tag in ["", ".a", "-a", "a/b", "a:b", "a\n", "ü", &"a".repeat(129)] {
            assert!(tag.parse::<Tag>().is_err(), "{tag:?}");
        }
    }
}
