//! [`ArtifactKind`]: cosign artifacts and referrers of images, and their tags.
//!
//! cosign stores signatures, attestations and SBOMs under tags. Referrers are manifests with the image as
//! their subject (OCI distribution-spec, "Listing Referrers"). In a bundle, each is an image with a tag, so
//! that registries without the referrers API can serve it.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::oci::digest::Digest;
use crate::oci::manifest::OCI_INDEX;
use crate::oci::media_type::MediaType;

/// Maximum depth of referrers of referrers.
pub(crate) const DEPTH_LIMIT: usize = 4;

/// A kind of artifacts of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum ArtifactKind {
    /// cosign signatures: tag `sha256-….sig`
    Signatures,
    /// cosign attestations: tag `sha256-….att`
    Attestations,
    /// cosign SBOMs: tag `sha256-….sbom`
    Sboms,
    /// Referrers: by the referrers API, or tag `sha256-…`
    Referrers,
    /// All of these
    All,
}

impl ArtifactKind {
    /// Returns the suffixes of the tags of `kinds`.
    #[must_use]
    pub(crate) fn tag_suffixes(kinds: &[Self]) -> Vec<&'static str> {
        let all = [(Self::Signatures, ".sig"), (Self::Attestations, ".att"), (Self::Sboms, ".sbom")];
        let is_wanted = |kind| kinds.contains(&kind) || kinds.contains(&Self::All);
        all.into_iter().filter(|(kind, _)| is_wanted(*kind)).map(|(_, suffix)| suffix).collect()
    }

    /// True if `kinds` include referrers.
    #[must_use]
    pub(crate) fn includes_referrers(kinds: &[Self]) -> bool {
        kinds.contains(&Self::Referrers) || kinds.contains(&Self::All)
    }
}

/// Returns the tag of the list of referrers in a registry without the referrers API. cosign's tags begin with
/// it.
#[must_use]
pub(crate) fn tag_of(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// The members of a descriptor in the index of referrers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Referrer<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<&'a str, &'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
}

/// Returns an index of `descriptors`, sorted and without duplicates. `None`: one of them is not a descriptor, or
/// violates the grammar of media types or digests. Annotations are opaque, and serialized as JSON.
#[must_use]
pub(crate) fn index_of(descriptors: &[Value]) -> Option<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u32,
        media_type: &'a str,
        manifests: Vec<Referrer<'a>>,
    }
    let mut manifests = descriptors.iter().map(Referrer::read).collect::<Option<Vec<_>>>()?;
    let mut seen = BTreeSet::new();
    manifests.sort_by_key(|referrer| referrer.digest);
    manifests.retain(|referrer| seen.insert(referrer.digest));
    let index = Index { schema_version: 2, media_type: OCI_INDEX, manifests };
    Some(serde_json::to_vec(&index).expect("plain structs become JSON; please report"))
}

impl<'a> Referrer<'a> {
    fn read(value: &'a Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let annotations = value.get("annotations").and_then(Value::as_object);
        let annotations = annotations
            .filter(|all| !all.is_empty())
            .map(|all| all.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect());
        Some(Self {
            media_type: text("mediaType").filter(|text| text.parse::<MediaType>().is_ok())?,
            digest: text("digest").filter(|text| text.parse::<Digest>().is_ok())?,
            size: value.get("size")?.as_u64()?,
            annotations,
            artifact_type: match text("artifactType").filter(|kind| !kind.is_empty()) {
                Some(kind) => Some(kind).filter(|kind| kind.parse::<MediaType>().is_ok()).map(Some)?,
                None => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_index_of_referrers_does_not_depend_on_their_order() {
        let [one, two] =
            [b'1', b'2'].map(|digit| format!("sha256:{}", char::from(digit).to_string().repeat(64)));
        let first = json!({"size": 3, "mediaType": "a/b", "digest": one, "artifactType": "x/y", "extra": 1});
        let second =
            json!({"mediaType": "a/b", "digest": two, "size": 4, "annotations": {"b": "2", "a": "1\n"}});
        let expected = [
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#,
            r#"{"mediaType":"a/b","digest":""#,
            &one,
            r#"","size":3,"artifactType":"x/y"},{"mediaType":"a/b","digest":""#,
            &two,
            r#"","size":4,"annotations":{"a":"1\n","b":"2"}}]}"#,
        ];
        for all in [vec![&first, &second], vec![&second, &first, &second]] {
            let all: Vec<_> = all.into_iter().cloned().collect();
            assert_eq!(String::from_utf8(index_of(&all).unwrap()).unwrap(), expected.concat());
        }
        let with = |key: &str, value: &str| {
            let mut changed = first.clone();
            changed[key] = value.into();
            index_of(&[changed])
        };
        assert!(index_of(&[json!({"digest": one})]).is_none() && with("artifactType", "").is_some());
        for (key, value) in [("mediaType", "a/b\n"), ("digest", "sha256:1"), ("artifactType", "\u{202e}/x")] {
            assert!(with(key, value).is_none(), "{key}");
        }
    }

    #[test]
    fn each_kind_has_its_tag_suffix() {
        use ArtifactKind::{All, Referrers, Sboms, Signatures};
        assert_eq!(ArtifactKind::tag_suffixes(&[Sboms, Signatures]), [".sig", ".sbom"]);
        assert_eq!(ArtifactKind::tag_suffixes(&[All]), [".sig", ".att", ".sbom"]);
        assert_eq!(
            [&[Referrers], &[All], &[Sboms]].map(|kinds| ArtifactKind::includes_referrers(kinds)),
            [true, true, false]
        );
    }
}
