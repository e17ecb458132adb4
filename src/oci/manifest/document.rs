//! [`Document`]: the members of a manifest or index that are used.
//!
//! Lenient where the programs in the field are: `null` counts as absent, as Go programs write it, and platforms may
//! lack members. All other values are skipped without being stored, since a tree of a document of 4 MiB can take
//! hundreds of megabytes.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Maximum number of URLs of a layer that are kept. A manifest can have a million of them.
pub(super) const URL_LIMIT: usize = 8;

/// A manifest or an index (OCI image-spec, manifest and image-index).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) config: Option<DescriptorMembers>,
    pub(super) layers: Option<Vec<DescriptorMembers>>,
    pub(super) manifests: Option<Vec<DescriptorMembers>>,
    #[serde(rename = "annotations")]
    _annotations: Option<AnyMap>,
}

/// A descriptor (OCI image-spec, descriptor).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DescriptorMembers {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<PlatformMembers>,
    pub(super) annotations: Option<Attestation>,
    pub(super) urls: Option<FirstUrls>,
}

/// The platform of a descriptor.
#[derive(Default, Deserialize)]
pub(super) struct PlatformMembers {
    pub(super) os: Option<String>,
    pub(super) architecture: Option<String>,
    pub(super) variant: Option<String>,
}

/// The annotations of a child of an index that is an attestation.
#[derive(Default, Deserialize)]
pub(super) struct Attestation {
    #[serde(rename = "vnd.docker.reference.type")]
    pub(super) kind: Option<String>,
    #[serde(rename = "vnd.docker.reference.digest")]
    pub(super) subject: Option<String>,
}

/// Members of a document that tell its type.
#[derive(Default)]
pub(super) struct Members {
    /// `mediaType`, if it is a string.
    pub(super) media_type: Option<String>,
    /// `schemaVersion`, if it is a natural number.
    pub(super) schema_version: Option<u64>,
    pub(super) has: Presence,
}

/// The members that a document has and that are not `null`.
#[derive(Default)]
pub(super) struct Presence {
    pub(super) manifests: bool,
    pub(super) layers: bool,
    pub(super) config: bool,
}

impl Presence {
    /// True if the document has members of an index and of an image manifest.
    pub(super) fn both_kinds(&self) -> bool {
        self.manifests && (self.layers || self.config)
    }
}

impl Document {
    /// Fails with the path, line and column of the first invalid value. Fails if a key is duplicated.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, serde_path_to_error::Error<serde_json::Error>> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let mut track = serde_path_to_error::Track::new();
        let document = Self::deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track));
        let result = document.and_then(|document| json.end().map(|()| document));
        result.map_err(|error| serde_path_to_error::Error::new(track.path(), error))
    }
}

impl Members {
    /// The last of duplicate keys wins. A document that is not an object has no members.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            serde_json::from_slice::<IgnoredAny>(bytes)?;
            return Ok(Self::default());
        }
        serde_json::from_slice(bytes)
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "camelCase")]
        enum Key {
            MediaType,
            SchemaVersion,
            Manifests,
            Layers,
            Config,
            #[serde(other)]
            Other,
        }
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some(key) = map.next_key()? {
                    let is_present = match key {
                        Key::MediaType => {
                            members.media_type = map.next_value::<Scalar>()?.text();
                            continue;
                        }
                        Key::SchemaVersion => {
                            members.schema_version = map.next_value::<Scalar>()?.number();
                            continue;
                        }
                        _ => map.next_value::<Option<IgnoredAny>>()?.is_some(),
                    };
                    match key {
                        Key::Manifests => members.has.manifests = is_present,
                        Key::Layers => members.has.layers = is_present,
                        Key::Config => members.has.config = is_present,
                        _ => {}
                    }
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A value of which only a string or a natural number is kept. (Serde's own means to accept any value would keep
/// all of it.)
enum Scalar {
    Text(String),
    Number(u64),
    Other,
}

impl Scalar {
    fn text(self) -> Option<String> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn number(&self) -> Option<u64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar::Number(number))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Scalar, A::Error> {
                IgnoredAny.visit_seq(seq).map(|_| Scalar::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scalar, A::Error> {
                IgnoredAny.visit_map(map).map(|_| Scalar::Other)
            }
        }

        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// An object whose members are ignored. Clients reject annotations that are not an object.
struct AnyMap;

impl<'de> Deserialize<'de> for AnyMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Skipping(PhantomData::<Self>))
    }
}

/// The first [`URL_LIMIT`] URLs of a descriptor.
pub(super) struct FirstUrls(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for FirstUrls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Skipping(PhantomData::<Self>))
    }
}

/// Reads a value and skips the parts that are not kept.
struct Skipping<T>(PhantomData<T>);

impl<'de> Visitor<'de> for Skipping<AnyMap> {
    type Value = AnyMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AnyMap, A::Error> {
        IgnoredAny.visit_map(map).map(|_| AnyMap)
    }
}

impl<'de> Visitor<'de> for Skipping<FirstUrls> {
    type Value = FirstUrls;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of URLs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<FirstUrls, A::Error> {
        let mut urls = Vec::new();
        while urls.len() < URL_LIMIT {
            match seq.next_element()? {
                Some(url) => urls.push(url),
                None => return Ok(FirstUrls(urls)),
            }
        }
        IgnoredAny.visit_seq(seq).map(|_| FirstUrls(urls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_of_a_document_are_read_without_its_other_values() {
        let read = |text: &str| {
            let Members { media_type, schema_version, has } = Members::read(text.as_bytes()).unwrap();
            (media_type, schema_version, [has.manifests, has.layers, has.config])
        };
        let none = (None, None, [false; 3]);
        for text in
            ["{}", " []", "7", r#"{"mediaType":{"":[0]},"schemaVersion":-1}"#, r#"{"schemaVersion":1.0}"#]
        {
            assert_eq!(read(text), none, "{text}");
        }
        let text = r#"{"mediaType":"a","schemaVersion":1,"mediaType":"b","config":null,"layers":[{"":0}],"x":{"mediaType":"c"}}"#;
        assert_eq!(read(text), (Some("b".to_owned()), Some(1), [false, true, false]));
        assert_eq!(read(r#"{"manifests":0}"#), (None, None, [true, false, false]));
        for text in ["", "{", "[1", r#"{"mediaType":"a"} x"#] {
            assert!(Members::read(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_first_urls_of_a_layer_are_kept() {
        for (count, kept) in [(0, 0), (3, 3), (URL_LIMIT, URL_LIMIT), (1000, URL_LIMIT)] {
            let urls = vec![r#""https://a.example/1""#; count].join(",");
            let layer = format!(r#"{{"mediaType":"a/b","digest":"","size":1,"urls":[{urls}]}}"#);
            let document = Document::parse(format!(r#"{{"layers":[{layer}]}}"#).as_bytes()).unwrap();
            assert_eq!(document.layers.unwrap()[0].urls.as_ref().unwrap().0.len(), kept);
        }
    }
}
