//! [`ArtifactKind`]: cosign artifacts and referrers of images, and their tags.
//!
//! cosign stores signatures, attestations and SBOMs under tags. Referrers are manifests with the image as
//! their subject (OCI distribution-spec, "Listing Referrers"). In a bundle, each is an image with a tag, so
//! that registries without the referrers API can serve it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use clap::ValueEnum;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::oci::digest::Digest;
use crate::oci::manifest::OCI_INDEX;
use crate::oci::media_type::MediaType;

/// Maximum depth of referrers of referrers.
pub(crate) const DEPTH_LIMIT: usize = 4;

/// Held while a page is parsed.
static PARSER: Mutex<()> = Mutex::new(());

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

/// A descriptor in the index of referrers: its digest, and its JSON. As text, it takes a fraction of the memory
/// that its annotations would take as strings.
#[derive(Debug, Clone)]
pub(crate) struct Referrer {
    digest: Digest,
    json: Box<RawValue>,
}

/// The members of a [`Referrer`], in order. Other members are ignored. Annotations are opaque, and sorted.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    media_type: MediaType,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "empty_as_none", skip_serializing_if = "Option::is_none")]
    artifact_type: Option<MediaType>,
}

/// Parses a page of the list of referrers. Fails if one of them violates the grammar of media types or digests.
pub(crate) fn parse_page(bytes: &[u8]) -> Result<Vec<Referrer>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Page {
        manifests: Vec<Referrer>,
    }
    // One at a time: the annotations of one descriptor can take many times the size of its page.
    let _one = PARSER.lock().unwrap_or_else(PoisonError::into_inner);
    serde_json::from_slice(bytes).map(|page: Page| page.manifests)
}

/// Returns an index of `referrers`, sorted and without duplicates.
#[must_use]
pub(crate) fn index_of(mut referrers: Vec<Referrer>) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index {
        schema_version: u32,
        media_type: &'static str,
        manifests: Vec<Box<RawValue>>,
    }
    referrers.sort_by_key(|referrer| referrer.digest);
    referrers.dedup_by_key(|referrer| referrer.digest);
    let manifests = referrers.into_iter().map(|referrer| referrer.json).collect();
    let index = Index { schema_version: 2, media_type: OCI_INDEX, manifests };
    serde_json::to_vec(&index).expect("plain structs become JSON; please report")
}

impl<'de> Deserialize<'de> for Referrer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = Members::deserialize(deserializer)?;
        let json = to_raw_value(&members).expect("plain structs become JSON; please report");
        Ok(Self { digest: members.digest, json })
    }
}

/// Some registries send an empty artifact type for none.
fn empty_as_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MediaType>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
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
            let page = json!({"manifests": all}).to_string();
            let all = parse_page(page.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(index_of(all)).unwrap(), expected.concat());
        }
        let with = |key: &str, value: &str| {
            let mut changed = first.clone();
            changed[key] = value.into();
            parse_page(json!({"manifests": [changed]}).to_string().as_bytes())
        };
        assert!(with("artifactType", "").is_ok());
        for page in
            ["[]", "{}", r#"{"manifests":{}}"#, r#"{"manifests":[{}]}"#, r#"{"manifests":[{"size":1}]}"#]
        {
            assert!(parse_page(page.as_bytes()).is_err(), "{page}");
        }
        for (key, value) in [("mediaType", "a/b\n"), ("digest", "sha256:1"), ("artifactType", "\u{202e}/x")] {
            assert!(with(key, value).is_err(), "{key}");
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
