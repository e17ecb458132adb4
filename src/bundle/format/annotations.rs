//! [`Annotations`]: the annotations of a document of a bundle that have a meaning.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Annotations (OCI image-spec, annotations), sorted, so that the same content results in the same bytes. A parsed
/// document has only those in [`KNOWN`]: millions of others would take many times their size in memory.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Annotations(BTreeMap<&'static str, String>);

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident = $key:literal;)*) => {
        $($(#[$doc])* pub(crate) const $name: &str = $key;)*
        /// The keys that parsing keeps.
        const KNOWN: &[&str] = &[$($name),*];
    };
}

keys! {
    /// Reference of an image.
    REF_NAME = "org.opencontainers.image.ref.name";
    /// The same, for containerd.
    CONTAINERD_NAME = "io.containerd.image.name";
    /// Title of a bundle; path of a file.
    TITLE = "org.opencontainers.image.title";
    /// Time of packing.
    CREATED = "org.opencontainers.image.created";
    /// Version of the format.
    ANNOTATION_FORMAT = "dev.airbundle.format";
    /// Features that a reader needs.
    ANNOTATION_REQUIRES = "dev.airbundle.requires";
    /// Encoding of a blob.
    ANNOTATION_ENCODING = "dev.airbundle.encoding";
    /// Omitted manifests of an index.
    ANNOTATION_OMITTED = "dev.airbundle.omitted";
    /// Requested platforms.
    ANNOTATION_PLATFORMS = "dev.airbundle.platforms";
    /// Present if the packer generated the index of the image.
    ANNOTATION_MADE = "dev.airbundle.made";
    /// Blobs that a delta omits.
    ANNOTATION_EXTERNAL = "dev.airbundle.elsewhere";
    /// Instructions for the operator.
    ANNOTATION_GUIDE = "dev.airbundle.guide";
    /// URL that a file was fetched from.
    ANNOTATION_URL = "dev.airbundle.source-url";
    /// Name of a release.
    ANNOTATION_NAME = "dev.airbundle.name";
    /// Sequence number of a release.
    ANNOTATION_SEQUENCE = "dev.airbundle.sequence";
    /// Time after which a bundle must not be used.
    ANNOTATION_EXPIRES = "dev.airbundle.expires";
}

impl Annotations {
    /// Returns the value of `key`.
    #[must_use]
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// True if there are none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(&'static str, String)> for Annotations {
    fn from_iter<I: IntoIterator<Item = (&'static str, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KnownKeys;

        impl<'de> Visitor<'de> for KnownKeys {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut annotations = BTreeMap::new();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match KNOWN.iter().find(|known| **known == key) {
                        Some(known) => drop(annotations.insert(*known, map.next_value()?)),
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Annotations(annotations))
            }
        }

        deserializer.deserialize_map(KnownKeys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_annotations_of_a_document_are_kept() {
        let text = r#"{"a":"1","dev.airbundle.format":"1.0","b":{"c":[null]},"dev.airbundle.guide":"x\ny"}"#;
        let annotations: Annotations = serde_json::from_str(text).unwrap();
        assert_eq!(annotations.get(ANNOTATION_FORMAT), Some("1.0"));
        assert_eq!(annotations.0.len(), 2);
        let known = r#"{"dev.airbundle.format":"1.0","dev.airbundle.guide":"x\ny"}"#;
        assert_eq!(serde_json::to_string(&annotations).unwrap(), known);
        for text in ["[]", r#"{"dev.airbundle.format":1}"#, r#"{"a":}"#] {
            assert!(serde_json::from_str::<Annotations>(text).is_err(), "{text}");
        }
    }
}
