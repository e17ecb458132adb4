//! The names under which the site serves images, parsed from its record.

use std::collections::{BTreeMap, BTreeSet};

use crate::oci::reference::{Reference, is_repository_name};
use crate::site::record::{Record, RecordedImage};

/// Returns the tags of each repository. Names that no client can request, because they do not follow the grammar of
/// repositories and tags, are omitted.
#[must_use]
pub(crate) fn tags(record: &Record) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut tags: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for image in &record.images {
        for repository in repositories(image) {
            tags.entry(repository).or_default().extend(tag(image));
        }
    }
    tags
}

/// Returns the repositories of an image.
pub(crate) fn repositories(image: &RecordedImage) -> impl Iterator<Item = &str> {
    image.repositories.iter().map(String::as_str).filter(|name| is_repository_name(name))
}

/// Returns the tag of an image. `None`: it has none.
#[must_use]
pub(crate) fn tag(image: &RecordedImage) -> Option<&str> {
    image.tag.as_deref().filter(|tag| is_tag(tag))
}

fn is_tag(text: &str) -> bool {
    format!("registry.invalid/a:{text}").parse::<Reference>().is_ok_and(|parsed| parsed.tag() == Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_that_clients_can_request_are_published() {
        for (text, expected) in [
            ("v1.0", true),
            ("_A-b.c", true),
            ("", false),
            (".a", false),
            ("a\n", false),
            ("a@sha256:b", false),
            ("a\"b", false),
        ] {
            assert_eq!(is_tag(text), expected, "{text:?}");
        }
    }
}
