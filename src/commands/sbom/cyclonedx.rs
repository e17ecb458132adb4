//! CycloneDX 1.6 (ECMA-424) as JSON.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::base::json::Sequence;
use crate::commands::sbom::contents::{BomContents, Item, ItemKind, TOOL, VERSION};

const BUNDLE: &str = "bundle";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document<C, D> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: Metadata,
    components: C,
    dependencies: D,
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

pub(super) fn document<'a>(contents: &'a BomContents<'a>) -> Document<impl Serialize, impl Serialize> {
    let components = || contents.items().map(|item| component(&item, bom_ref(&item)));
    // The dependency graph: the bundle depends on all items, an index on its manifests, a manifest on its layers.
    let dependencies = || {
        let depends_on = contents.items().map(|item| bom_ref(&item)).collect();
        let nested = contents.items().flat_map(|item| {
            let mut nested = Vec::new();
            add_dependencies(&item, &bom_ref(&item), &mut nested);
            nested
        });
        std::iter::once(Dependency { r#ref: BUNDLE.to_owned(), depends_on }).chain(nested)
    };
    Document {
        schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
        bom_format: "CycloneDX",
        spec_version: "1.6",
        serial_number: format!("urn:uuid:{}", contents.uuid("cyclonedx")),
        version: 1,
        metadata: Metadata {
            timestamp: contents.created.clone(),
            tools: Tools { components: [Tool { r#type: "application", name: TOOL, version: VERSION }] },
            component: bundle(contents),
        },
        components: Sequence(components),
        dependencies: Sequence(dependencies),
        compositions: [Composition { aggregate: "complete", assemblies: [BUNDLE] }],
    }
}

fn bundle(contents: &BomContents) -> Component {
    Component {
        r#type: "file",
        mime_type: Some("application/zstd".to_owned()),
        bom_ref: BUNDLE.to_owned(),
        name: contents.name.clone(),
        version: Some(contents.identity.to_string()),
        hashes: Vec::new(),
        purl: None,
        external_references: Vec::new(),
        components: Vec::new(),
        properties: Vec::new(),
    }
}

fn add_dependencies(item: &Item, bom_ref: &str, all: &mut Vec<Dependency>) {
    if item.children.is_empty() {
        return;
    }
    let nested = || item.children.iter().map(|child| nested_ref(bom_ref, child));
    all.push(Dependency { r#ref: bom_ref.to_owned(), depends_on: nested().collect() });
    item.children.iter().zip(nested()).for_each(|(child, bom_ref)| add_dependencies(child, &bom_ref, all));
}

fn component(item: &Item, bom_ref: String) -> Component {
    let properties = std::iter::once(Property { name: "airbundle:size", value: item.size.to_string() });
    let platforms = item.platforms.iter();
    let platforms =
        platforms.map(|platform| Property { name: "airbundle:platform", value: platform.clone() });
    // Validators do not accept an IPv6 address, although IRIs can have one.
    let is_iri = !item.source.contains("://[");
    let source = (!item.source.is_empty() && is_iri).then(|| iri(&item.source));
    let other = (!is_iri).then(|| Property { name: "airbundle:source", value: item.source.clone() });
    let children = item.children.iter().map(|child| component(child, nested_ref(&bom_ref, child)));
    let components = children.collect();
    Component {
        r#type: match item.kind {
            ItemKind::Container => "container",
            ItemKind::Artifact => "data",
            ItemKind::File | ItemKind::Layer => "file",
        },
        mime_type: is_mime_type(&item.media_type).then(|| item.media_type.clone()),
        bom_ref,
        name: item.name.clone(),
        version: item.version.clone(),
        hashes: vec![Hash { alg: "SHA-256", content: item.digest.hex() }],
        purl: Some(item.purl.clone()).filter(|purl| !purl.is_empty()),
        external_references: source
            .map(|url| ExternalReference { r#type: "distribution", url })
            .into_iter()
            .collect(),
        components,
        properties: properties.chain(platforms).chain(other).collect(),
    }
}

fn bom_ref(item: &Item) -> String {
    let kind = if item.kind == ItemKind::File { "file" } else { "image" };
    format!("{kind}-{}", item.id)
}

/// Returns the reference of a manifest in an index, or of a layer. It includes that of the parent, since references must
/// be unique and several parents can contain the same child.
fn nested_ref(parent: &str, child: &Item) -> String {
    format!("{parent}-{}", child.id)
}

/// Returns a URL with all characters percent-encoded that an IRI cannot have (RFC 3987, section 2.2). Lists may have them
/// in a path. The brackets of an IPv6 address stay.
fn iri(url: &str) -> String {
    const NOT_IN_IRI: &AsciiSet = &CONTROLS
        .add(b' ')
        .add(b'"')
        .add(b'<')
        .add(b'>')
        .add(b'[')
        .add(b'\\')
        .add(b']')
        .add(b'^')
        .add(b'`')
        .add(b'{')
        .add(b'|')
        .add(b'}');
    let authority = url.find("://").map_or(0, |scheme| scheme + 3);
    let path = url[authority..].find(['/', '?']).map_or(url.len(), |at| authority + at);
    format!("{}{}", &url[..path], utf8_percent_encode(&url[path..], NOT_IN_IRI))
}

/// True if `text` conforms to the pattern for MIME types in the CycloneDX schema.
fn is_mime_type(text: &str) -> bool {
    let is_valid = |part: &str| {
        let is_allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'+' | b'.');
        !part.is_empty() && part.bytes().all(is_allowed)
    };
    text.split_once('/').is_some_and(|(kind, subtype)| is_valid(kind) && is_valid(subtype))
}

#[cfg(test)]
mod tests {
    use super::iri;

    #[test]
    fn urls_become_iris() {
        for (url, expected) in [
            ("https://dl.k8s.io/a[1].tgz?x={t}", "https://dl.k8s.io/a%5B1%5D.tgz?x=%7Bt%7D"),
            ("https://[fd00::1]:5000/v2/a^b|c", "https://[fd00::1]:5000/v2/a%5Eb%7Cc"),
            ("https://dl.k8s.io/b%20c", "https://dl.k8s.io/b%20c"),
            ("https://dl.k8s.io", "https://dl.k8s.io"),
        ] {
            assert_eq!(iri(url), expected);
        }
    }
}
