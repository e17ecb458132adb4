//! [`FileName`]: the name of a generated file, relative to the directory of the configuration.

use std::fmt;

/// A relative path of fixed and parsed components, which cannot leave the directory of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileName(String);

impl FileName {
    /// A name of this program.
    #[must_use]
    pub(crate) fn fixed(name: &'static str) -> Self {
        Self(name.to_owned())
    }

    /// Appends a name of this program.
    #[must_use]
    pub(crate) fn child(self, name: &'static str) -> Self {
        Self(self.0 + "/" + name)
    }

    /// Appends the components of a repository name, or a host with a port. `None`: a component is neither.
    #[must_use]
    pub(crate) fn foreign(self, path: &str) -> Option<Self> {
        path.split('/').all(is_component).then(|| Self(self.0 + "/" + path))
    }

    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_component(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "._:[]-".contains(c);
    (1..=255).contains(&text.len()) && !text.starts_with(['.', '-']) && text.chars().all(is_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_its_directory() {
        let name = |path: &str| FileName::fixed("tags").foreign(path).map(|name| name.child("list").0);
        assert_eq!(name("k8s/quay.io/a__b").as_deref(), Some("tags/k8s/quay.io/a__b/list"));
        assert_eq!(name("[::1]:5000").as_deref(), Some("tags/[::1]:5000/list"));
        for path in [
            "",
            "..",
            "../x",
            "a/../b",
            "/etc",
            "a//b",
            "a/",
            ".unbundle",
            "a b",
            "a\nb",
            "ü",
            &"a".repeat(256),
        ] {
            assert_eq!(name(path), None, "{path}");
        }
    }
}
