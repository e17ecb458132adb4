//! [`ArtifactKind`]: cosign artifacts and referrers of images, and their tags.
//!
//! cosign stores signatures, attestations and SBOMs under tags. Referrers are manifests with the image as
//! their subject (OCI distribution-spec, "Listing Referrers"). In a bundle, each is an image with a tag, so
//! that registries without the referrers API can serve it.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

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

/// The members of a descriptor in the index of referrers. Other members are ignored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Referrer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
}

/// Parses a page of the list of referrers.
pub(crate) fn parse_page(bytes: &[u8]) -> Result<Vec<Referrer>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Page {
        manifests: Vec<Referrer>,
    }
    serde_json::from_slice(bytes).map(|page: Page| page.manifests)
}

/// Returns an index of `referrers`, sorted and without duplicates. `None`: one of them violates the grammar of
/// media types or digests. Annotations are opaque, and serialized as JSON.
#[must_use]
pub(crate) fn index_of(referrers: &[Referrer]) -> Option<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index {
        schema_version: u32,
        media_type: &'static str,
        manifests: Vec<Referrer>,
    }
    let mut manifests = referrers.iter().map(Referrer::checked).collect::<Option<Vec<_>>>()?;
    manifests.sort_by(|a, b| a.digest.cmp(&b.digest));
    manifests.dedup_by(|a, b| a.digest == b.digest);
    let index = Index { schema_version: 2, media_type: OCI_INDEX, manifests };
    Some(serde_json::to_vec(&index).expect("plain structs become JSON; please report"))
}

impl Referrer {
    /// `None`: it violates the grammar.
    fn checked(&self) -> Option<Self> {
        let kind = self.artifact_type.clone().filter(|kind| !kind.is_empty());
        let is_valid = self.media_type.parse::<MediaType>().is_ok()
            && self.digest.parse::<Digest>().is_ok()
            && kind.as_ref().is_none_or(|kind| kind.parse::<MediaType>().is_ok());
        is_valid.then(|| Self { artifact_type: kind, ..self.clone() })
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
            let page = json!({"manifests": all}).to_string();
            let all = parse_page(page.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(index_of(&all).unwrap()).unwrap(), expected.concat());
        }
        let with = |key: &str, value: &str| {
            let mut changed = first.clone();
            changed[key] = value.into();
            index_of(&[serde_json::from_value(changed).unwrap()])
        };
        assert!(with("artifactType", "").is_some());
        for page in
            ["[]", "{}", r#"{"manifests":{}}"#, r#"{"manifests":[{}]}"#, r#"{"manifests":[{"size":1}]}"#]
        {
            assert!(parse_page(page.as_bytes()).is_err(), "{page}");
        }
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
