//! SPDX 2.3 (ISO/IEC 5962) as JSON.

use std::collections::HashSet;

use serde::Serialize;

use crate::base::json::Sequence;
use crate::commands::sbom::contents::{BomContents, Item, ItemKind, TOOL, VERSION};

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const BUNDLE: &str = "SPDXRef-Bundle";
const UNKNOWN: &str = "NOASSERTION";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names are SPDX's")]
pub(super) struct Document<P, R> {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    document_namespace: String,
    creation_info: CreationInfo,
    packages: P,
    relationships: R,
}

#[derive(Serialize)]
struct CreationInfo {
    created: String,
    creators: [String; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_info: Option<String>,
    download_location: String,
    files_analyzed: bool,
    primary_package_purpose: &'static str,
    license_concluded: &'static str,
    license_declared: &'static str,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<ExternalRef>,
    comment: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checksum {
    algorithm: &'static str,
    checksum_value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names are SPDX's")]
struct ExternalRef {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names are SPDX's")]
struct Relationship {
    spdx_element_id: String,
    relationship_type: &'static str,
    related_spdx_element: String,
}

pub(super) fn document<'a>(contents: &'a BomContents<'a>) -> Document<impl Serialize, impl Serialize> {
    let packages = || {
        let packages = nodes(contents).filter(|node| node.is_new).map(|node| package(&node.item));
        std::iter::once(bundle(contents)).chain(packages)
    };
    let relationships = || {
        let contained = nodes(contents).map(|node| relationship(&node.parent, "CONTAINS", &id(&node.item)));
        std::iter::once(relationship(DOCUMENT, "DESCRIBES", BUNDLE)).chain(contained)
    };
    Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: DOCUMENT,
        name: contents.name.clone(),
        // The form that SPDX recommends for creators without a domain of their own.
        document_namespace: format!("https://spdx.org/spdxdocs/{TOOL}-{}", contents.uuid("spdx")),
        creation_info: CreationInfo {
            created: contents.created.clone(),
            creators: [format!("Tool: {TOOL}-{VERSION}")],
        },
        packages: Sequence(packages),
        relationships: Sequence(relationships),
    }
}

/// An item in its parent.
struct Node {
    /// The ID of the parent.
    parent: String,
    item: Item,
    /// False if another parent contained it before: IDs must be unique.
    is_new: bool,
}

/// Returns all items with their children, each after its parent.
fn nodes<'a>(contents: &'a BomContents<'a>) -> impl Iterator<Item = Node> + 'a {
    let mut items = contents.items();
    let mut rest: Vec<(String, Item)> = Vec::new();
    // The IDs of items are 96 bits.
    let mut seen: HashSet<u128> = HashSet::new();
    std::iter::from_fn(move || {
        let (parent, mut item) = match rest.pop() {
            Some(node) => node,
            None => (BUNDLE.to_owned(), items.next()?),
        };
        let is_new =
            seen.insert(u128::from_str_radix(&item.id, 16).expect("an ID is hexadecimal; please report"));
        let children = std::mem::take(&mut item.children);
        if is_new {
            let id = id(&item);
            rest.extend(children.into_iter().rev().map(|child| (id.clone(), child)));
        }
        Some(Node { parent, item, is_new })
    })
}

fn bundle(contents: &BomContents) -> Package {
    Package {
        id: BUNDLE.to_owned(),
        name: contents.name.clone(),
        version_info: Some(contents.identity.to_string()),
        download_location: UNKNOWN.to_owned(),
        files_analyzed: false,
        primary_package_purpose: "ARCHIVE",
        license_concluded: UNKNOWN,
        license_declared: UNKNOWN,
        copyright_text: UNKNOWN,
        checksums: Vec::new(),
        external_refs: Vec::new(),
        comment: "the version is the digest of index.json: the identity of the bundle".to_owned(),
    }
}

fn package(item: &Item) -> Package {
    let mut comment = format!("size: {} bytes; media type: {}", item.size, item.media_type);
    if !item.platforms.is_empty() {
        comment = format!("{comment}; platform: {}", item.platforms.join(", "));
    }
    let is_location = is_location(&item.source);
    if !is_location && !item.source.is_empty() {
        comment = format!("{comment}; fetched from {}", item.source);
    }
    Package {
        id: id(item),
        name: item.name.clone(),
        version_info: item.version.clone(),
        download_location: if is_location { item.source.clone() } else { UNKNOWN.to_owned() },
        files_analyzed: false,
        primary_package_purpose: match item.kind {
            ItemKind::Container => "CONTAINER",
            ItemKind::Artifact => "OTHER",
            ItemKind::Layer => "ARCHIVE",
            ItemKind::File => "FILE",
        },
        license_concluded: UNKNOWN,
        license_declared: UNKNOWN,
        copyright_text: UNKNOWN,
        checksums: vec![Checksum { algorithm: "SHA256", checksum_value: item.digest.hex() }],
        external_refs: if item.purl.is_empty() {
            Vec::new()
        } else {
            vec![ExternalRef {
                reference_category: "PACKAGE-MANAGER",
                reference_type: "purl",
                reference_locator: item.purl.clone(),
            }]
        },
        comment,
    }
}

/// True if validators of SPDX accept a URL as download location: its host consists of letters and digits with single
/// dots and hyphens between them, and ends in a dot and two to five letters. Addresses and many internal names do not.
fn is_location(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let (host, port) = authority.split_once(':').unwrap_or((authority, "0"));
    let is_port = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let Some((name, last)) = host.rsplit_once('.') else { return false };
    let labels: Vec<&str> = name.split(['-', '.']).collect();
    let is_label = |label: &&str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_port
        && labels.len() <= 101
        && labels.iter().all(is_label)
        && (2..=5).contains(&last.len())
        && last.bytes().all(|byte| byte.is_ascii_alphabetic())
}

fn id(item: &Item) -> String {
    let kind = match item.kind {
        ItemKind::File => "File",
        ItemKind::Layer => "Layer",
        ItemKind::Container | ItemKind::Artifact => "Image",
    };
    format!("SPDXRef-{kind}-{}", item.id)
}

fn relationship(from: &str, relationship_type: &'static str, to: &str) -> Relationship {
    Relationship { spdx_element_id: from.to_owned(), relationship_type, related_spdx_element: to.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::is_location;

    #[test]
    fn locations_are_those_that_validators_accept() {
        for (host, expected) in [
            ("registry.k8s.io", true),
            ("quay.io:5000", true),
            ("my-mirror.example.com", true),
            ("registry.corp.internal:5000", false),
            ("10.0.0.7:5000", false),
            ("localhost:5000", false),
            ("xn--bcher-kva.de", false),
            ("[fd00::1]:5000", false),
            ("a_b.example", false),
            ("quay.io:123456", false),
        ] {
            assert_eq!(is_location(&format!("https://{host}/v2/x")), expected, "{host}");
        }
        assert!(!is_location("") && !is_location("quay.io/x"));
    }
}
