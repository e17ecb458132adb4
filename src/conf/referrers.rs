//! Responses of the referrers API (OCI distribution-spec, "Listing Referrers"), which follow from the manifests of a
//! site.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::base::own_file::read_regular;
use crate::conf::setup::Setup;
use crate::oci::digest::Digest;
use crate::oci::manifest::{MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST};
use crate::site::record::RecordedManifest;
use crate::site::storage::blob_path;

/// The response for a manifest without referrers.
pub(crate) const NONE: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// Maximum size in bytes of the annotations in all responses: hostile manifests could repeat them in many repositories.
const MAX_ANNOTATIONS: usize = 64 << 20;

/// A repository, and the digest of a manifest in it.
type Subject<'a> = (&'a str, Digest);

/// Returns the response for each manifest that has referrers, by repository and digest.
///
/// A referrer whose manifest cannot be read is omitted. Annotations are omitted from the point where they exceed
/// [`MAX_ANNOTATIONS`], and in a response that clients would refuse because of its size.
pub(crate) fn responses(setup: &Setup) -> BTreeMap<Subject<'_>, Vec<u8>> {
    let mut repositories: BTreeMap<Digest, (&RecordedManifest, BTreeSet<&str>)> = BTreeMap::new();
    for image in &setup.record.images {
        for manifest in &image.manifests {
            let (_, names) =
                repositories.entry(manifest.digest).or_insert_with(|| (manifest, BTreeSet::new()));
            names.extend(image.repositories.iter().map(|name| &**name));
        }
    }
    let mut responses: BTreeMap<Subject<'_>, Vec<Referrer>> = BTreeMap::new();
    let mut budget = MAX_ANNOTATIONS;
    for (manifest, names) in repositories.into_values() {
        let Some((subject, mut referrer)) = read(setup, manifest) else { continue };
        match budget.checked_sub(names.len() * referrer.annotations_len()) {
            Some(left) => budget = left,
            None => referrer.annotations = None,
        }
        for name in names {
            responses.entry((name, subject)).or_default().push(referrer.clone());
        }
    }
    responses.into_iter().map(|(subject, referrers)| (subject, index(referrers))).collect()
}

/// A descriptor of a referrer in a response.
#[derive(Serialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

impl Referrer {
    fn annotations_len(&self) -> usize {
        self.annotations.iter().flatten().map(|(key, value)| key.len() + value.len()).sum()
    }
}

/// The members of a manifest that a response states.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    subject: Option<SubjectMembers>,
    artifact_type: Option<String>,
    config: Option<ConfigMembers>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct SubjectMembers {
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMembers {
    media_type: String,
}

/// Reads a manifest of the storage. `None`: it refers to no other manifest.
fn read(setup: &Setup, manifest: &RecordedManifest) -> Option<(Digest, Referrer)> {
    if ![OCI_INDEX, OCI_MANIFEST].contains(&&*manifest.media_type) {
        return None;
    }
    let bytes = read_regular(&setup.registry.join(blob_path(manifest.digest)), MANIFEST_LIMIT).ok()?;
    // Few manifests have a subject: the others need not be parsed.
    bytes.windows(9).find(|window| window == b"\"subject\"")?;
    let Members { subject, artifact_type, config, annotations } = serde_json::from_slice(&bytes).ok()?;
    let referrer = Referrer {
        media_type: manifest.media_type.to_string(),
        digest: manifest.digest,
        size: bytes.len() as u64,
        artifact_type: artifact_type
            .filter(|text| !text.is_empty())
            .or_else(|| config.map(|config| config.media_type)),
        annotations,
    };
    Some((subject?.digest, referrer))
}

/// Returns an index of `referrers`, without their annotations if clients would otherwise refuse its size.
fn index(mut referrers: Vec<Referrer>) -> Vec<u8> {
    let response = |referrers: &[Referrer]| {
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": referrers });
        index.to_string().into_bytes()
    };
    let full = response(&referrers);
    if full.len() as u64 <= MANIFEST_LIMIT {
        return full;
    }
    for referrer in &mut referrers {
        referrer.annotations = None;
    }
    response(&referrers)
}
