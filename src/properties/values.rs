//! Strategies for the values in documents.

use std::collections::BTreeSet;

use proptest::collection::btree_set;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use crate::base::path::RelPath;
use crate::oci::digest::Digest;
use crate::oci::media_type::MediaType;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

const REPOSITORY: &str = r"[a-z0-9]{1,5}((\.|_|__|-{1,3}|/)[a-z0-9]{1,5}){0,3}";
const TAG: &str = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}";

/// Sizes of which a few hundred do not exceed the limit of a document.
pub(super) fn size() -> impl Strategy<Value = u64> {
    prop_oneof![0..10_000_u64, 0..1_u64 << 40]
}

pub(super) fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

pub(super) fn digests() -> impl Strategy<Value = BTreeSet<Digest>> {
    btree_set(digest(), 0..3)
}

/// The parts of a reference: host, repository, tag and digest, of which it has at least one.
pub(super) type ReferenceParts = (String, String, Option<String>, Option<Digest>);

pub(super) fn reference_parts() -> impl Strategy<Value = ReferenceParts> {
    let host = prop_oneof![
        r"[a-z0-9]{1,5}(-[a-z0-9]{1,3})?(\.[a-z0-9]{1,5}){1,2}(:[1-9][0-9]{0,3})?",
        r"localhost(:[1-9][0-9]{0,3})?",
        any::<std::net::Ipv6Addr>().prop_map(|address| format!("[{address}]")),
    ];
    let names = prop_oneof![
        TAG.prop_map(|tag| (Some(tag), None)),
        digest().prop_map(|digest| (None, Some(digest))),
        (TAG, digest()).prop_map(|(tag, digest)| (Some(tag), Some(digest))),
    ];
    (host, REPOSITORY, names).prop_map(|(host, repository, (tag, digest))| (host, repository, tag, digest))
}

/// Returns the text of a reference.
pub(super) fn reference_text((host, repository, tag, digest): &ReferenceParts) -> String {
    let tag = tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
    format!("{host}/{repository}{tag}{digest}")
}

pub(super) fn reference() -> impl Strategy<Value = Reference> {
    reference_parts().prop_map(|parts| reference_text(&parts).parse().expect("a valid reference"))
}

pub(super) fn platform() -> impl Strategy<Value = Platform> {
    let platform =
        (prop_oneof![Just("linux"), Just("windows")], r"[a-z]{2,4}[0-9]{0,2}", option::of(r"v[1-9]"));
    platform.prop_filter_map("not a platform", |(os, architecture, variant)| {
        let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{os}/{architecture}{variant}").parse().ok()
    })
}

pub(super) fn media_type() -> impl Strategy<Value = MediaType> {
    r"application/vnd\.[a-z]{1,8}(\.[a-z0-9]{1,8}){0,2}(\+[a-z]{1,4})?"
        .prop_map(|text| text.parse().expect("a valid media type"))
}

pub(super) fn path() -> impl Strategy<Value = RelPath> {
    let component = prop_oneof![r"[a-z0-9._-]{1,10}", r"\PC{1,6}"];
    proptest::collection::vec(component, 1..4)
        .prop_filter_map("not a path", |components| RelPath::parse(&components.join("/")).ok())
}

/// Returns the configuration of a test with this number of cases. They are the same in each run.
pub(super) fn cases(cases: u32) -> Config {
    let (failure_persistence, rng_seed) = (None, RngSeed::Fixed(17));
    // A case with a site takes a tenth of a second, so that a failing one must not be made smaller for minutes.
    Config { cases, failure_persistence, rng_seed, max_shrink_iters: 100, ..Config::default() }
}
