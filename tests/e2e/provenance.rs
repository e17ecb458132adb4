//! Provenance: the lock that a bundle carries, the listing, and SBOMs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::program::{airbundle, airbundle_command, run, unbundle, unbundle_command};
use crate::serve::{directory, world, write_list};

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn digest_hex(digest: &Value) -> &str {
    digest.as_str().and_then(|text| text.strip_prefix("sha256:")).expect("a digest")
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no array: {value}"))
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no string: {value}"))
}

/// Returns the output of `airbundle` for a bundle on stdin of which it reads only the beginning.
fn from_stdin(bundle: &Path, args: &[&str]) -> String {
    let bundle = fs::File::open(bundle).expect("open the bundle");
    run(unbundle_command().args(args).stdin(bundle)).ok().stdout
}

/// Returns the version that `index.json` states.
fn stated_version(bundle: &Path) -> String {
    let output =
        Command::new("tar").args(["--zstd", "-xOf", text(bundle), "index.json"]).output().expect("run tar");
    let index: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    string(&index["annotations"]["dev.airbundle.format"]).to_owned()
}

#[test]
fn lock_extracted_from_a_bundle_packs_the_same_bundle() {
    let world = world();
    let directory = directory();
    let index = world
        .upstream
        .images()
        .iter()
        .find(|entry| entry.image.platforms().len() > 1)
        .expect("a multi-platform image");
    // Platforms by list entry, by option, one that the image does not have, and all.
    let lists: [(&[&str], String); 3] = [
        (&["--platform", "linux/amd64"], world.upstream.images_list() + &world.upstream.files_list()),
        (&["--platform", "linux/arm64,linux/amd64"], format!("{} platform=linux/amd64\n", index.reference)),
        (&[], world.upstream.images_list() + &world.upstream.files_list()),
    ];
    for (number, (options, lines)) in lists.iter().enumerate() {
        let name = |name: &str| directory.path().join(format!("{number}-{name}"));
        let (list, lock) = (name("all.list"), name("lock.json"));
        fs::write(&list, lines).expect("write a list");
        let (bundle, again) = (name("one.tar.zst"), name("two.tar.zst"));
        world.pack(&list, &bundle, &[*options, &["--write-lock", text(&lock)]].concat()).ok();
        let expected = fs::read_to_string(&lock).expect("read the lock");
        assert_eq!(expected.contains("\"platforms\""), !options.is_empty());
        // The lists of the world have an image with tag and digest.
        assert_eq!(stated_version(&bundle), if number == 1 { "1.1" } else { "1.3" });

        let result = unbundle(["ls", "--lock", text(&bundle)]).ok();
        assert!(result.stdout == expected && result.stderr.is_empty(), "{number}: another lock");
        assert!(from_stdin(&bundle, &["ls", "--lock", "-"]) == expected, "{number}: from a pipe");
        // The bundle is packed from the lock that the bundle carries, not from the written file.
        let printed_lock = name("told.json");
        fs::write(&printed_lock, &result.stdout).expect("write the lock");
        world.pack(&printed_lock, &again, &[]).ok();
        assert!(
            fs::read(&bundle).expect("read the file") == fs::read(&again).expect("read the file"),
            "{number}: another bundle"
        );
        // `diff` finds no difference between them.
        let same = airbundle(["diff", text(&lock), text(&bundle)]).ok();
        assert_eq!(same.stdout, "no difference\n");
    }
    unbundle(["ls", "--lock", "--json", "x"]).failed(2, &["--lock", "--json"]);
}

#[test]
fn delta_yields_the_full_lock_and_lists_all_items() {
    let world = world();
    let directory = directory();
    let name = |name: &str| directory.path().join(name);
    let (delta, lock, full) = (name("delta.tar.zst"), name("lock.json"), name("full.tar.zst"));
    // The site has everything except what one image of the list needs.
    let (last, others) = world.upstream.images().split_last().expect("images");
    let lines: Vec<&str> = others.iter().map(|entry| entry.reference.as_str()).collect();
    let base = world.pack_lines(directory.path(), &lines, &[]);
    let everything = write_list(directory.path(), &[lines, vec![last.reference.as_str()]].concat());
    world.pack(&everything, &delta, &["--base", text(&base), "--write-lock", text(&lock)]).ok();
    let result = unbundle(["ls", "--lock", text(&delta)]).ok().stdout;
    assert!(result == fs::read_to_string(&lock).expect("read the lock"), "another lock");
    world.pack(&everything, &full, &[]).ok();
    assert!(result == unbundle(["ls", "--lock", text(&full)]).ok().stdout, "the lock of less");
    for format in ["spdx", "cyclonedx"] {
        let document = |bundle: &Path| {
            let text = unbundle(["sbom", "--format", format, text(bundle)]).ok().stdout;
            let document: Value = serde_json::from_str(&text).expect("JSON");
            if format == "spdx" {
                assert_spdx(&document);
            } else {
                assert_cyclonedx(&document);
            }
            let parts = array(document.get("packages").unwrap_or(&document["components"]));
            let name = |part: &Value| {
                (part["name"].clone(), part.get("primaryPackagePurpose").unwrap_or(&part["type"]).clone())
            };
            parts.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(document(&delta), document(&full));
    }
}

#[test]
fn volumes_yield_the_lock() {
    let world = world();
    let directory = directory();
    let (bundle, lock) = (directory.path().join("all.tar.zst"), directory.path().join("lock.json"));
    let options = ["--platform", "linux/amd64", "--volume-size", "16MiB", "--write-lock", text(&lock)];
    world.pack(&world.lists, &bundle, &options).ok();
    let result = unbundle(["ls", "--lock", text(directory.path())]).ok();
    assert!(result.stdout == fs::read_to_string(&lock).expect("read the lock"), "another lock");
}

#[test]
fn listing_has_every_manifest_and_blob_of_every_image() {
    let world = world();
    let directory = directory();
    let bundle = directory.path().join("some.tar.zst");
    world.pack(&world.lists, &bundle, &["--platform", "linux/amd64", "--title", "All of it"]).ok();
    let listing = unbundle(["ls", "--json", text(&bundle)]).ok().json();
    assert_eq!(listing["title"], "All of it");
    assert_eq!(array(&listing["images"]).len(), world.upstream.images().len());
    for image in array(&listing["images"]) {
        let reference = string(&image["reference"]);
        let expected = &world.upstream.image(reference).sparse(|child| {
            // Artifacts and attestations are for every platform.
            child.platform.as_deref().is_none_or(|platform| !platform.contains("arm"))
        });
        assert_eq!(array(&image["requestedPlatforms"]), &vec![Value::from("linux/amd64")], "{reference}");
        let all = expected.manifests();
        let known: BTreeMap<_, _> =
            all.iter().map(|(descriptor, bytes)| (descriptor.digest.as_str(), bytes)).collect();
        let manifests = array(&image["manifests"]);
        assert_eq!(manifests[0]["digest"], image["digest"]);
        let mut total = 0;
        let mut counted = BTreeSet::new();
        for manifest in manifests {
            let bytes = known[string(&manifest["digest"])];
            assert_eq!(manifest["size"], bytes.len(), "{reference}");
            let document: Value = serde_json::from_slice(bytes).expect("JSON");
            if let Some(media_type) = document.get("mediaType") {
                assert_eq!(manifest["mediaType"], *media_type, "{reference}");
            }
            let layers = document.get("layers").map(array).into_iter().flatten();
            let named: Vec<&Value> = document.get("config").into_iter().chain(layers).collect();
            let blobs = array(&manifest["blobs"]);
            assert_eq!(blobs.len(), named.len(), "{reference}");
            for (blob, named) in blobs.iter().zip(named) {
                for member in ["mediaType", "digest", "size"] {
                    assert_eq!(blob[member], named[member], "{reference}");
                }
            }
            for blob in blobs.iter().chain([manifest]) {
                if counted.insert(string(&blob["digest"])) {
                    total += blob["size"].as_u64().expect("a number");
                }
            }
        }
        assert_eq!(image["size"], total, "{reference}");
        let platforms: BTreeSet<&str> =
            manifests.iter().filter_map(|manifest| manifest.get("platform")).map(string).collect();
        let result: BTreeSet<&str> = array(&image["platforms"]).iter().map(string).collect();
        assert_eq!(platforms, result, "{reference}");
    }
}

/// Asserts the rules of SPDX 2.3 that JSON readers enforce: members, enumerations, identifiers, and that
/// every relationship has a target (SPDX 2.3, clauses 6, 7 and 11).
fn assert_spdx(document: &Value) {
    assert_eq!(document["spdxVersion"], "SPDX-2.3");
    assert_eq!(document["dataLicense"], "CC0-1.0");
    assert_eq!(document["SPDXID"], "SPDXRef-DOCUMENT");
    assert!(!string(&document["name"]).is_empty());
    let namespace = string(&document["documentNamespace"]);
    assert!(namespace.starts_with("https://") && !namespace.contains(['#', ' ']), "{namespace}");
    assert_date(string(&document["creationInfo"]["created"]));
    for creator in array(&document["creationInfo"]["creators"]) {
        assert!(
            ["Tool: ", "Person: ", "Organization: "].iter().any(|kind| string(creator).starts_with(kind))
        );
    }
    let mut ids = BTreeSet::from(["SPDXRef-DOCUMENT"]);
    for package in array(&document["packages"]) {
        let id = string(&package["SPDXID"]);
        let rest = id.strip_prefix("SPDXRef-").expect("a reference");
        assert!(rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-')), "{id}");
        assert!(ids.insert(id), "{id} is there twice");
        assert!(!string(&package["name"]).is_empty() && !string(&package["downloadLocation"]).is_empty());
        assert_eq!(package["filesAnalyzed"], false);
        let purpose = string(&package["primaryPackagePurpose"]);
        assert!(["ARCHIVE", "CONTAINER", "FILE", "OTHER"].contains(&purpose), "{purpose}");
        for checksum in package.get("checksums").map(array).into_iter().flatten() {
            assert_eq!(checksum["algorithm"], "SHA256");
            let value = string(&checksum["checksumValue"]);
            assert!(value.len() == 64 && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        }
        for reference in package.get("externalRefs").map(array).into_iter().flatten() {
            assert_eq!(
                (&reference["referenceCategory"], &reference["referenceType"]),
                (&"PACKAGE-MANAGER".into(), &"purl".into())
            );
            assert!(!string(&reference["referenceLocator"]).contains([' ', '#']), "{reference}");
        }
    }
    for relationship in array(&document["relationships"]) {
        assert!(["DESCRIBES", "CONTAINS"].contains(&string(&relationship["relationshipType"])));
        for end in ["spdxElementId", "relatedSpdxElement"] {
            assert!(ids.contains(string(&relationship[end])), "{relationship} goes nowhere");
        }
    }
}

/// Asserts the rules of CycloneDX 1.6, likewise.
fn assert_cyclonedx(document: &Value) {
    assert_eq!((&document["bomFormat"], &document["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    assert_eq!(document["version"], 1);
    let uuid = string(&document["serialNumber"]).strip_prefix("urn:uuid:").expect("a UUID");
    let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
    assert!(lengths == [8, 4, 4, 4, 12] && uuid.as_bytes()[14] == b'8', "{uuid}");
    assert_date(string(&document["metadata"]["timestamp"]));
    let mut refs = BTreeSet::new();
    let mut stack = vec![&document["metadata"]["component"]];
    stack.extend(array(&document["components"]));
    while let Some(component) = stack.pop() {
        assert!(["container", "file", "data"].contains(&string(&component["type"])), "{component}");
        assert!(!string(&component["name"]).is_empty());
        assert!(refs.insert(string(&component["bom-ref"])), "{component} is there twice");
        for hash in component.get("hashes").map(array).into_iter().flatten() {
            assert_eq!((&hash["alg"], string(&hash["content"]).len()), (&"SHA-256".into(), 64));
        }
        for reference in component.get("externalReferences").map(array).into_iter().flatten() {
            assert_eq!(reference["type"], "distribution");
        }
        stack.extend(component.get("components").map(array).into_iter().flatten());
    }
    for dependency in array(&document["dependencies"]) {
        let depends = array(&dependency["dependsOn"]);
        for end in depends.iter().chain([&dependency["ref"]]) {
            assert!(refs.contains(string(end)), "{end} is nowhere");
        }
        assert_eq!(depends.iter().map(string).collect::<BTreeSet<_>>().len(), depends.len());
    }
    for composition in array(&document["compositions"]) {
        assert!(array(&composition["assemblies"]).iter().all(|end| refs.contains(string(end))));
    }
}

/// Asserts the format `YYYY-MM-DDThh:mm:ssZ`.
fn assert_date(date: &str) {
    let pattern: String =
        date.chars().map(|character| if character.is_ascii_digit() { '0' } else { character }).collect();
    assert_eq!(pattern, "0000-00-00T00:00:00Z");
}

#[test]
fn spdx_and_cyclonedx_have_source_digest_size_and_platform_of_every_item() {
    let world = world();
    let listing = unbundle(["ls", "--json", text(&world.bundle)]).ok().json();
    let spdx = airbundle(["sbom", text(&world.bundle)]).ok();
    assert_eq!(spdx.stderr, "");
    let spdx: Value = serde_json::from_str(&spdx.stdout).expect("JSON");
    let cyclonedx = airbundle(["sbom", text(&world.bundle), "--format", "cyclonedx"]).ok().stdout;
    let cyclonedx: Value = serde_json::from_str(&cyclonedx).expect("JSON");
    assert_spdx(&spdx);
    assert_cyclonedx(&cyclonedx);

    let packages = array(&spdx["packages"]);
    let components = array(&cyclonedx["components"]);
    let bundle = packages.iter().find(|package| package["SPDXID"] == "SPDXRef-Bundle").expect("the bundle");
    assert_eq!(bundle["versionInfo"], listing["identity"]);
    assert_eq!(cyclonedx["metadata"]["component"]["version"], listing["identity"]);
    let contains: BTreeSet<(&str, &str)> = array(&spdx["relationships"])
        .iter()
        .map(|one| (string(&one["spdxElementId"]), string(&one["relatedSpdxElement"])))
        .collect();
    assert!(contains.contains(&("SPDXRef-DOCUMENT", "SPDXRef-Bundle")));
    // The purl of both, and the members beside it.
    let described = |purl: &str, source: &str, digest: &Value, size: &Value, platforms: &[&str], of: &str| {
        // Two references can have one package URL: by tag, and by the digest that the tag points to.
        let is_it = |package: &&Value| {
            package["externalRefs"][0]["referenceLocator"] == purl
                && contains.contains(&(of, string(&package["SPDXID"])))
        };
        let package = packages.iter().find(is_it).unwrap_or_else(|| panic!("{of} does not contain `{purl}`"));
        assert_eq!(package["downloadLocation"], source);
        assert_eq!(package["checksums"][0]["checksumValue"], digest_hex(digest));
        let comment = string(&package["comment"]);
        assert!(comment.starts_with(&format!("size: {size} bytes; media type: ")), "{comment}");
        let result = comment.split_once("; platform: ").map_or("", |(_, platforms)| platforms);
        assert_eq!(result, platforms.join(", "), "{purl}");
        string(&package["SPDXID"]).to_owned()
    };
    let component = |components: &[Value], purl: &str, source: &str, digest: &Value, size: &Value| {
        let found = components.iter().find(|component| component["purl"] == purl);
        let component = found.unwrap_or_else(|| panic!("no `{purl}`")).clone();
        assert_eq!(component["externalReferences"][0]["url"], source);
        assert_eq!(component["hashes"][0]["content"], digest_hex(digest));
        let property = |name: &str| {
            let properties = array(&component["properties"]).iter().filter(move |of| of["name"] == name);
            properties.map(|property| string(&property["value"]).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(property("airbundle:size"), [size.to_string()]);
        (component.clone(), property("airbundle:platform"))
    };

    for file in array(&listing["files"]) {
        let (url, hex) = (string(&file["url"]), digest_hex(&file["digest"]));
        let name = string(&file["path"]).rsplit('/').next().expect("a name");
        let purl = format!("pkg:generic/{name}?checksum=sha256:{hex}&download_url={url}").replace('+', "%2B");
        described(&purl, url, &file["digest"], &file["size"], &[], "SPDXRef-Bundle");
        let (component, _) = component(components, &purl, url, &file["digest"], &file["size"]);
        assert_eq!(component["type"], "file");
    }
    let mut indexes = 0;
    for image in array(&listing["images"]) {
        let reference = string(&image["reference"]);
        let entry =
            world.upstream.images().iter().find(|entry| entry.reference == reference).expect("the image");
        let repository = entry.name();
        let last = repository.rsplit('/').next().expect("a name");
        let platforms: Vec<&str> = array(&image["platforms"]).iter().map(string).collect();
        let manifests = array(&image["manifests"]);
        let purl = |digest: &Value, platform: Option<&str>, tag: Option<&str>| {
            let arch = platform.and_then(|platform| platform.split('/').nth(1));
            let arch = arch.map(|arch| format!("arch={arch}&")).unwrap_or_default();
            let tag = tag.map(|tag| format!("&tag={tag}")).unwrap_or_default();
            let hex = digest_hex(digest);
            format!("pkg:oci/{last}@sha256:{hex}?{arch}repository_url={repository}{tag}")
        };
        let (host, path) = repository.split_once('/').expect("a host");
        let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let source = |digest: &Value| format!("https://{host}/v2/{path}/manifests/{}", string(digest));
        let own = manifests[0].get("platform").map(string);
        let (digest, size) = (&image["digest"], &image["size"]);
        let root = purl(digest, own, entry.tag());
        let id = described(&root, &source(digest), digest, size, &platforms, "SPDXRef-Bundle");
        let (nested, result) = component(components, &root, &source(digest), digest, size);
        assert_eq!(result, platforms, "{reference}");
        let is_chart = platforms.is_empty();
        assert_eq!(nested["type"], if is_chart { "data" } else { "container" }, "{reference}");
        indexes += usize::from(manifests.len() > 1);
        for manifest in &manifests[1..] {
            let platform = manifest.get("platform").map(string);
            let blobs: u64 = array(&manifest["blobs"]).iter().filter_map(|blob| blob["size"].as_u64()).sum();
            let size = Value::from(blobs + manifest["size"].as_u64().expect("a number"));
            let digest = &manifest["digest"];
            let purl = purl(digest, platform, None);
            let platforms: Vec<&str> = platform.into_iter().collect();
            described(&purl, &source(digest), digest, &size, &platforms, &id);
            let inner = array(&nested["components"]);
            let (_, result) = component(inner, &purl, &source(digest), digest, &size);
            assert_eq!(result, platforms, "{reference}");
        }
    }
    assert!(indexes > 2, "the upstream has images for several platforms");
    assert_eq!(components.len(), array(&listing["images"]).len() + array(&listing["files"]).len());
}

#[test]
fn sbom_is_reproducible_and_dated_only_on_request() {
    let world = world();
    let directory = directory();
    let bundle = text(&world.bundle);
    let created = |document: &str| {
        let document: Value = serde_json::from_str(document).expect("JSON");
        let other = &document["metadata"]["timestamp"];
        string(document["creationInfo"].get("created").unwrap_or(other)).to_owned()
    };
    let mut names = BTreeSet::new();
    for format in ["spdx", "cyclonedx"] {
        let args = ["sbom", "--format", format];
        let document = airbundle([&args[..], &[bundle]].concat()).ok().stdout;
        // Both programs, a file and a pipe, stdout and a file.
        assert!(document == unbundle([&args[..], &[bundle]].concat()).ok().stdout);
        assert!(document == from_stdin(&world.bundle, &[&args[..], &["-"]].concat()));
        let file = directory.path().join(format);
        let written = airbundle([&args[..], &[bundle, "-o", text(&file)]].concat()).ok();
        assert_eq!(written.stdout, "");
        assert!(document == fs::read_to_string(&file).expect("read the file") && document.ends_with("}\n"));
        assert_eq!(created(&document), "1970-01-01T00:00:00Z");
        let of = |mut command: Command, epoch: &str| {
            run(command.env("SOURCE_DATE_EPOCH", epoch).args(args).arg(bundle))
        };
        let dated = of(unbundle_command(), "1700000000").ok().stdout;
        assert_eq!(created(&dated), "2023-11-14T22:13:20Z");
        of(airbundle_command(), "yesterday").failed(2, &["SOURCE_DATE_EPOCH", "yesterday"]);
        for document in [document, dated] {
            let document: Value = serde_json::from_str(&document).expect("JSON");
            let name = document.get("serialNumber").unwrap_or(&document["documentNamespace"]);
            assert!(
                names.insert(name.to_string()),
                "documents that say different things have different names"
            );
        }
    }
    // A date stated by the bundle is used.
    let list = write_list(directory.path(), &[&world.upstream.images()[0].reference]);
    let dated = directory.path().join("dated.tar.zst");
    let mut pack = airbundle_command();
    pack.args(["pack", text(&list), "-o", text(&dated), "--title", "With a date"]);
    run(pack.args(world.upstream.mirror_args()).env("SOURCE_DATE_EPOCH", "1600000000")).ok();
    let mut sbom = unbundle_command();
    let document = run(sbom.args(["sbom", text(&dated)]).env("SOURCE_DATE_EPOCH", "1700000000")).ok().stdout;
    assert_eq!(created(&document), "2020-09-13T12:26:40Z");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!(document["name"], "With a date");
}

#[test]
fn sbom_of_an_invalid_or_untrusted_bundle_fails() {
    let world = world();
    let directory = directory();
    let path = directory.path().join("some");
    fs::write(&path, "something else").expect("write a file");
    unbundle(["sbom", text(&path)]).failed(8, &["not an airbundle bundle"]);
    unbundle(["sbom", text(&directory.path().join("none"))]).failed(6, &["none"]);
    unbundle(["sbom", text(&world.bundle), "--format", "xml"]).failed(2, &["xml"]);
    let output = directory.path().join("no/such/directory/out.json");
    unbundle(["sbom", text(&world.bundle), "-o", text(&output)]).failed(6, &["out.json"]);
    airbundle(["keygen", "--no-passphrase", "-o", text(&directory.path().join("a.key"))]).ok();
    let key = directory.path().join("a.pub");
    let refused =
        unbundle(["sbom", text(&world.bundle), "--trusted-key", text(&key)]).failed(14, &["not signed"]);
    assert_eq!(refused.stdout, "");
}
