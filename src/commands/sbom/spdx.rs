//! SPDX 2.3 (ISO/IEC 5962) as JSON.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::commands::sbom::contents::{BomContents, Item, ItemKind, TOOL, VERSION};

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const BUNDLE: &str = "SPDXRef-Bundle";
const UNKNOWN: &str = "NOASSERTION";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names are SPDX's")]
pub(super) struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    document_namespace: String,
    creation_info: CreationInfo,
    packages: Vec<Package>,
    relationships: Vec<Relationship>,
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

pub(super) fn document(inventory: &BomContents) -> Document {
    let mut packages = vec![bundle(inventory)];
    let mut relationships = vec![relationship(DOCUMENT, "DESCRIBES", BUNDLE)];
    // What a bundle lists twice is described once.
    let mut seen = BTreeSet::new();
    for part in inventory.images.iter().chain(&inventory.files) {
        relationships.push(relationship(BUNDLE, "CONTAINS", &id(part)));
        for child in &part.children {
            relationships.push(relationship(&id(part), "CONTAINS", &id(child)));
        }
        let parts = std::iter::once(part).chain(&part.children);
        packages.extend(parts.filter(|part| seen.insert(id(part))).map(package));
    }
    Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: DOCUMENT,
        name: inventory.name.clone(),
        // The form that SPDX recommends where the creator has no place of their own.
        document_namespace: format!("https://spdx.org/spdxdocs/{TOOL}-{}", inventory.uuid("spdx")),
        creation_info: CreationInfo {
            created: inventory.created.clone(),
            creators: [format!("Tool: {TOOL}-{VERSION}")],
        },
        packages,
        relationships,
    }
}

fn bundle(inventory: &BomContents) -> Package {
    Package {
        id: BUNDLE.to_owned(),
        name: inventory.name.clone(),
        version_info: Some(inventory.identity.to_string()),
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

fn package(part: &Item) -> Package {
    let mut comment = format!("size: {} bytes; media type: {}", part.size, part.media_type);
    if !part.platforms.is_empty() {
        comment = format!("{comment}; platform: {}", part.platforms.join(", "));
    }
    Package {
        id: id(part),
        name: part.name.clone(),
        version_info: part.version.clone(),
        download_location: if part.source.is_empty() { UNKNOWN.to_owned() } else { part.source.clone() },
        files_analyzed: false,
        primary_package_purpose: match part.kind {
            ItemKind::Container => "CONTAINER",
            ItemKind::Artifact => "OTHER",
            ItemKind::File => "FILE",
        },
        license_concluded: UNKNOWN,
        license_declared: UNKNOWN,
        copyright_text: UNKNOWN,
        checksums: vec![Checksum { algorithm: "SHA256", checksum_value: part.digest.hex() }],
        external_refs: vec![ExternalRef {
            reference_category: "PACKAGE-MANAGER",
            reference_type: "purl",
            reference_locator: part.purl.clone(),
        }],
        comment,
    }
}

fn id(part: &Item) -> String {
    let kind = match part.kind {
        ItemKind::File => "File",
        ItemKind::Container | ItemKind::Artifact => "Image",
    };
    format!("SPDXRef-{kind}-{}", part.id)
}

fn relationship(from: &str, relationship_type: &'static str, to: &str) -> Relationship {
    Relationship { spdx_element_id: from.to_owned(), relationship_type, related_spdx_element: to.to_owned() }
}
