//! CycloneDX 1.6 (ECMA-424) as JSON.

use serde::Serialize;

use crate::commands::sbom::contents::{BomContents, Item, ItemKind, TOOL, VERSION};

const BUNDLE: &str = "bundle";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(rename = "$schema")]
    schema: &'static str,
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: Metadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
    compositions: [Composition; 1],
}

#[derive(Serialize)]
struct Metadata {
    timestamp: String,
    tools: Tools,
    component: Component,
}

#[derive(Serialize)]
struct Tools {
    components: [Tool; 1],
}

#[derive(Serialize)]
struct Tool {
    r#type: &'static str,
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
struct Component {
    r#type: &'static str,
    #[serde(rename = "mime-type", skip_serializing_if = "Option::is_none")]
    mime_type: Option<String>,
    #[serde(rename = "bom-ref")]
    bom_ref: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
    #[serde(rename = "externalReferences", skip_serializing_if = "Vec::is_empty")]
    external_references: Vec<ExternalReference>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    components: Vec<Component>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

#[derive(Serialize)]
struct Hash {
    alg: &'static str,
    content: String,
}

#[derive(Serialize)]
struct ExternalReference {
    r#type: &'static str,
    url: String,
}

#[derive(Serialize)]
struct Property {
    name: &'static str,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    r#ref: String,
    depends_on: Vec<String>,
}

#[derive(Serialize)]
struct Composition {
    aggregate: &'static str,
    assemblies: [&'static str; 1],
}

pub(super) fn document(inventory: &BomContents) -> Document {
    let parts = || inventory.images.iter().chain(&inventory.files);
    // The bundle is all of these, and an index what it names: the graph that tools draw.
    let of_bundle = Dependency { r#ref: BUNDLE.to_owned(), depends_on: parts().map(bom_ref).collect() };
    let of_indexes = parts().filter(|part| !part.children.is_empty()).map(|part| Dependency {
        r#ref: bom_ref(part),
        depends_on: part.children.iter().map(|child| nested_ref(part, child)).collect(),
    });
    Document {
        schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
        bom_format: "CycloneDX",
        spec_version: "1.6",
        serial_number: format!("urn:uuid:{}", inventory.uuid("cyclonedx")),
        version: 1,
        metadata: Metadata {
            timestamp: inventory.created.clone(),
            tools: Tools { components: [Tool { r#type: "application", name: TOOL, version: VERSION }] },
            component: bundle(inventory),
        },
        components: parts().map(|part| component(part, bom_ref(part))).collect(),
        dependencies: std::iter::once(of_bundle).chain(of_indexes).collect(),
        // All that there is in it is named here.
        compositions: [Composition { aggregate: "complete", assemblies: [BUNDLE] }],
    }
}

fn bundle(inventory: &BomContents) -> Component {
    Component {
        r#type: "file",
        mime_type: Some("application/zstd".to_owned()),
        bom_ref: BUNDLE.to_owned(),
        name: inventory.name.clone(),
        version: Some(inventory.identity.to_string()),
        hashes: Vec::new(),
        purl: None,
        external_references: Vec::new(),
        components: Vec::new(),
        properties: Vec::new(),
    }
}

fn component(part: &Item, bom_ref: String) -> Component {
    let properties = std::iter::once(Property { name: "airbundle:size", value: part.size.to_string() });
    let platforms = part.platforms.iter();
    let platforms =
        platforms.map(|platform| Property { name: "airbundle:platform", value: platform.clone() });
    let source = (!part.source.is_empty()).then(|| part.source.clone());
    Component {
        r#type: match part.kind {
            ItemKind::Container => "container",
            ItemKind::Artifact => "data",
            ItemKind::File => "file",
        },
        mime_type: is_mime_type(&part.media_type).then(|| part.media_type.clone()),
        bom_ref,
        name: part.name.clone(),
        version: part.version.clone(),
        hashes: vec![Hash { alg: "SHA-256", content: part.digest.hex() }],
        purl: Some(part.purl.clone()),
        external_references: source
            .map(|url| ExternalReference { r#type: "distribution", url })
            .into_iter()
            .collect(),
        components: part.children.iter().map(|child| component(child, nested_ref(part, child))).collect(),
        properties: properties.chain(platforms).collect(),
    }
}

fn bom_ref(part: &Item) -> String {
    let kind = if part.kind == ItemKind::File { "file" } else { "image" };
    format!("{kind}-{}", part.id)
}

/// Of a manifest in an index: another index may have it, too, and nothing may stand in a document twice.
fn nested_ref(parent: &Item, child: &Item) -> String {
    format!("{}-{}", bom_ref(parent), child.id)
}

/// What CycloneDX takes as one.
fn is_mime_type(text: &str) -> bool {
    let is_part = |part: &str| {
        let is_fine = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'+' | b'.');
        !part.is_empty() && part.bytes().all(is_fine)
    };
    text.split_once('/').is_some_and(|(kind, of)| is_part(kind) && is_part(of))
}
