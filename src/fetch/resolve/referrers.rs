//! What stands beside an image in its registry and is about it: signatures, attestations, SBOMs, under the tags that
//! cosign gives them, and whatever names the image as its subject (OCI distribution-spec, "Listing Referrers").
//!
//! Each becomes an image of its own, under a tag that a registry without the referrers API serves, too.

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::oci::digest::Digest;
use crate::oci::manifest::OCI_INDEX;

/// How far what is attached to what is attached is followed.
pub(crate) const DEPTH_LIMIT: usize = 4;

/// A kind of what is attached to images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum ArtifactKind {
    /// cosign's signatures: the tag `sha256-….sig`
    Signatures,
    /// cosign's attestations: the tag `sha256-….att`
    Attestations,
    /// cosign's SBOMs: the tag `sha256-….sbom`
    Sboms,
    /// What names the image as its subject: the referrers API, or the tag `sha256-…`
    Referrers,
    /// All of them
    All,
}

impl ArtifactKind {
    /// The ends of the tags that `kinds` have.
    #[must_use]
    pub(crate) fn tags(kinds: &[Self]) -> Vec<&'static str> {
        let all = [(Self::Signatures, ".sig"), (Self::Attestations, ".att"), (Self::Sboms, ".sbom")];
        let is_wanted = |kind| kinds.contains(&kind) || kinds.contains(&Self::All);
        all.into_iter().filter(|(kind, _)| is_wanted(*kind)).map(|(_, end)| end).collect()
    }

    /// Whether they include the referrers.
    #[must_use]
    pub(crate) fn with_referrers(kinds: &[Self]) -> bool {
        kinds.contains(&Self::Referrers) || kinds.contains(&Self::All)
    }
}

/// The tag under which a registry without the referrers API lists them; cosign's tags begin with it.
#[must_use]
pub(crate) fn tag_of(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// A descriptor as the referrers API gives it, as far as an index needs it.
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

/// One index of all `descriptors`, in whichever order and how often they came; nothing for one that is none.
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
            media_type: text("mediaType")?,
            digest: text("digest")?,
            size: value.get("size")?.as_u64()?,
            annotations,
            artifact_type: text("artifactType").filter(|kind| !kind.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_index_of_referrers_is_the_same_in_whichever_order_they_came() {
        let first =
            json!({"size": 3, "mediaType": "a/b", "digest": "sha256:1", "artifactType": "x", "extra": 1});
        let second =
            json!({"mediaType": "a/b", "digest": "sha256:2", "size": 4, "annotations": {"b": "2", "a": "1"}});
        let expected = concat!(
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":["#,
            r#"{"mediaType":"a/b","digest":"sha256:1","size":3,"artifactType":"x"},"#,
            r#"{"mediaType":"a/b","digest":"sha256:2","size":4,"annotations":{"a":"1","b":"2"}}]}"#,
        );
        for all in [vec![&first, &second], vec![&second, &first, &second]] {
            let all: Vec<_> = all.into_iter().cloned().collect();
            assert_eq!(String::from_utf8(index_of(&all).unwrap()).unwrap(), expected);
        }
        assert!(index_of(&[json!({"digest": "sha256:1"})]).is_none());
    }

    #[test]
    fn kinds_have_tags() {
        use ArtifactKind::{All, Referrers, Sboms, Signatures};
        assert_eq!(ArtifactKind::tags(&[Sboms, Signatures]), [".sig", ".sbom"]);
        assert_eq!(ArtifactKind::tags(&[All]), [".sig", ".att", ".sbom"]);
        assert_eq!(
            [&[Referrers], &[All], &[Sboms]].map(|kinds| ArtifactKind::with_referrers(kinds)),
            [true, true, false]
        );
    }
}
