//! Tests of the documents of a bundle.

use serde_json::Value;

use super::*;
use crate::base::hostile::{assert_unchanged, mutations};

fn sample() -> Index {
    Index {
        files: Some((Digest::of(b"files"), 700)),
        images: vec![IndexedImage {
            reference: "registry.k8s.io/pause:3.9".parse().unwrap(),
            media_type: MediaType::known(OCI_INDEX),
            digest: Digest::of(b"index"),
            size: 12,
            omitted: [Digest::of(b"a"), Digest::of(b"b")].into(),
            platforms: Vec::new(),
            is_made: false,
        }],
        about: BundleInfo {
            title: Some("Kubespray v2.25.0".parse().unwrap()),
            created: Some("2026-11-23T20:00:00Z".parse().unwrap()),
            guide: Some("# Next steps\n".into()),
            ..BundleInfo::default()
        },
        external: BTreeSet::new(),
    }
}

fn with(from: &str, to: &str) -> String {
    let text = String::from_utf8(sample().to_json()).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    text.replace(from, to)
}

fn file_set() -> FileSet {
    let file = |path: &str| IndexedFile {
        path: path.parse().unwrap(),
        url: format!("https://{path}").parse().unwrap(),
        digest: Digest::of(path.as_bytes()),
        size: 3,
    };
    FileSet { files: vec![file("dl.k8s.io/kubelet"), file("get.helm.sh/helm.tar.gz")] }
}

#[test]
fn hostile_text_in_any_string_is_refused_or_unchanged() {
    let mut index = sample();
    index.external = [Digest::of(b"a")].into();
    index.images[0].platforms = vec![Platform::linux_amd64()];
    index.images[0].is_made = true;
    let document = serde_json::from_slice(&index.to_json()).unwrap();
    for (_, mutated) in mutations(&document) {
        if let Ok(parsed) = Index::parse(mutated.to_string().as_bytes()) {
            let mut parsed: Value = serde_json::from_slice(&parsed.to_json()).unwrap();
            // These are written from the content, not copied.
            parsed["annotations"]["dev.airbundle.format"] = Value::Null;
            parsed["mediaType"] = Value::Null;
            parsed["annotations"]["dev.airbundle.requires"] = Value::Null;
            parsed["manifests"][1]["annotations"]["io.containerd.image.name"] = Value::Null;
            for key in ["dev.airbundle.omitted", "dev.airbundle.platforms", "dev.airbundle.elsewhere"] {
                // White space between digests and platforms is not part of them.
                parsed["manifests"][1]["annotations"][key] = Value::Null;
                parsed["annotations"][key] = Value::Null;
            }
            assert_unchanged(&mutated, &parsed, &["dev.airbundle.guide"]);
        }
    }
    let set = file_set();
    let document = serde_json::from_slice(&set.to_json()).unwrap();
    for (_, mutated) in mutations(&document) {
        if let Ok(parsed) = FileSet::parse(mutated.to_string().as_bytes()) {
            let parsed: Value = serde_json::from_slice(&parsed.to_json()).unwrap();
            let files = parsed["layers"].as_array().unwrap().iter();
            let files: Value = files.map(|file| file["annotations"].clone()).collect();
            assert_unchanged(&mutated, &files, &[]);
        }
    }
}

#[test]
fn an_index_round_trips() {
    assert_eq!(Index::parse(&sample().to_json()).unwrap(), sample());
    assert_eq!(Index::parse(&Index::default().to_json()).unwrap(), Index::default());
}

#[test]
fn annotations_for_the_lock_round_trip_and_require_version_1_1() {
    assert!(with("\"dev.airbundle.format\":\"1.0\"", "").len() < sample().to_json().len());
    for (platforms, is_made, annotation) in [
        (
            &["linux/arm64/v8", "linux/amd64"][..],
            false,
            "\"dev.airbundle.platforms\":\"linux/arm64/v8 linux/amd64\"",
        ),
        (&[], true, "\"dev.airbundle.made\":\"true\""),
    ] {
        let mut index = sample();
        index.images[0].platforms = platforms.iter().map(|text| text.parse().unwrap()).collect();
        index.images[0].is_made = is_made;
        let text = String::from_utf8(index.to_json()).unwrap();
        assert!(text.contains(annotation) && text.contains("\"dev.airbundle.format\":\"1.1\""), "{text}");
        assert_eq!(Index::parse(text.as_bytes()).unwrap(), index);
    }
}

#[test]
fn a_delta_round_trips_and_older_readers_refuse_it() {
    let delta = Index { external: [Digest::of(b"a"), Digest::of(b"b")].into(), ..sample() };
    let text = String::from_utf8(delta.to_json()).unwrap();
    assert_eq!(Index::parse(text.as_bytes()).unwrap(), delta);
    let requires = "\"dev.airbundle.requires\":\"base\"";
    assert!(text.contains(requires) && text.contains("\"dev.airbundle.format\":\"1.1\""), "{text}");
    for (from, to, message) in [
        (requires, "\"dev.airbundle.requires\":\"base other\"", "unsupported feature `other`"),
        (requires, "\"dev.airbundle.requires\":\" \"", "not `base`"),
        (requires, "\"a\":\"b\"", "not `base`"),
        ("elsewhere\":\"sha256:", "elsewhere\":\"sha512:", "invalid annotation `dev.airbundle.elsewhere`"),
    ] {
        let error = Index::parse(text.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn a_release_and_an_expiry_date_round_trip_and_require_version_1_2() {
    let release = Release { name: "kubespray".parse().unwrap(), sequence: "7".parse().unwrap() };
    let expires: Expiry = "2027-01-31T00:00:00Z".parse().unwrap();
    for (release, expires, annotation) in [
        (Some(release), None, "\"dev.airbundle.name\":\"kubespray\",\"dev.airbundle.sequence\":\"7\""),
        (None, Some(expires), "\"dev.airbundle.expires\":\"2027-01-31T00:00:00Z\""),
    ] {
        let about = BundleInfo { release, expires, ..sample().about };
        let index = Index { about, ..sample() };
        let text = String::from_utf8(index.to_json()).unwrap();
        assert!(text.contains(annotation) && text.contains("\"dev.airbundle.format\":\"1.2\""), "{text}");
        assert_eq!(Index::parse(text.as_bytes()).unwrap(), index);
    }
}

#[test]
fn a_newer_minor_version_is_accepted_and_a_newer_major_version_is_an_error() {
    assert!(Index::parse(with("\"1.0\"", "\"1.7\"").as_bytes()).is_ok());
    let error = Index::parse(with("\"1.0\"", "\"2.0\"").as_bytes()).unwrap_err().to_string();
    assert!(error.contains("version `2.0`") && error.contains("newer"), "{error}");
}

#[test]
fn an_invalid_or_unsupported_index_is_an_error() {
    let format = "\"dev.airbundle.format\":\"1.0\"";
    let name = "\"org.opencontainers.image.ref.name\":\"registry.k8s.io/pause:3.9\"";
    for (from, to, message) in [
        (format, "\"a\":\"b\"", "not written by airbundle"),
        (
            format,
            "\"dev.airbundle.format\":\"1.0\",\"dev.airbundle.requires\":\"delta x\"",
            "unsupported feature `delta`",
        ),
        (format, "\"dev.airbundle.format\":\"1\"", "unsupported format version `1`"),
        (format, "\"dev.airbundle.format\":\"+1.0\"", "unsupported format version `+1.0`"),
        ("Kubespray v", "Kubespray\\nv", "invalid annotation `org.opencontainers.image.title`"),
        ("2026-11", "2026-99", "invalid annotation `org.opencontainers.image.created`"),
        (
            "image.name\":\"registry",
            "image.name\":\"x/registry",
            "`io.containerd.image.name` is another name",
        ),
        (name, "\"a\":\"b\"", "missing annotation `org.opencontainers.image.ref.name`"),
        (name, &format!("{name},\"dev.airbundle.encoding\":\"gunzip\""), "encoding `gunzip`"),
        (name, &format!("{name},\"dev.airbundle.platforms\":\"linux\""), "`linux`: "),
        ("pause:3.9\"", "../pause:3.9\"", "`registry.k8s.io/../pause:3.9`"),
        (
            "pause:3.9\"",
            &format!("pause:3.9@{}\"", Digest::of(b"other")),
            "digest mismatch of `registry.k8s.io/pause",
        ),
        ("image.index.v1+json\",\"digest\"", "image.config.v1+json\",\"digest\"", "unsupported media type"),
        ("sha256:", "sha256:x", "malformed"),
        ("\"size\":12", "\"size\":-12", "malformed"),
        ("\"size\":12", "\"size\":99999999999999999999999", "malformed"),
    ] {
        let error = Index::parse(with(from, to).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn a_file_set_round_trips_and_paths_that_escape_or_collide_are_an_error() {
    let set = file_set();
    assert_eq!(FileSet::parse(&set.to_json()).unwrap(), set);
    let text = String::from_utf8(set.to_json()).unwrap();
    for bad in [
        "../../etc/passwd",
        "/etc/passwd",
        "get.helm.sh/helm.tar.gz",
        "get.helm.sh",
        "get.helm.sh/HELM.tar.gz",
        "a//b",
        "a\\u0000b",
    ] {
        let text = text.replace("title\":\"dl.k8s.io/kubelet", &format!("title\":\"{bad}"));
        assert!(FileSet::parse(text.as_bytes()).is_err(), "{bad}");
    }
}
