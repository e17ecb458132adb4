//! Tests of the plan of a bundle.

use super::*;
use crate::fetch::mirrored::Endpoints;
use crate::fetch::resolve::ResolvedImage;
use crate::fetch::upstream::Upstream;

use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};

#[test]
fn documents_that_a_reader_would_refuse_are_refused_before_anything_is_written() {
    const LIMIT: usize = 64 << 20;
    for (index, files, manifests, refused) in [
        (1000, None, 0, None),
        (1000, Some(LIMIT / 2), LIMIT as u64 / 2, None),
        (LIMIT + 1, None, 0, Some("`index.json` of too many bytes, more than the limit of 67108864")),
        (1000, Some(1), LIMIT as u64, Some("manifests of too many bytes, more than the limit of 67108864")),
        (LIMIT / 2, Some(LIMIT / 2), 0, Some("`index.json` and a list of files")),
    ] {
        match (checked_header_space(index, files, manifests), refused) {
            (Ok(space), None) => assert_eq!(space, header_space(index, files)),
            (Err(error), Some(words)) => {
                let text = error.to_string();
                assert!(text.contains(words) && text.contains("split the lists"), "{text}");
            }
            (result, _) => panic!("{index} {files:?} {manifests}: {result:?}"),
        }
    }
}

#[test]
fn images_with_more_manifests_than_a_reader_visits_are_refused() {
    let upstream = Upstream::default();
    let registry = Endpoints::new(&upstream).registry("quay.io");
    let mut manifests = HashMap::new();
    let mut keep = |json: serde_json::Value| {
        let bytes = json.to_string().into_bytes();
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        manifests.insert(digest, bytes);
        (digest, size)
    };
    let config = serde_json::json!({"mediaType": "a/b", "digest": Digest::of(EMPTY_CONFIG), "size": 2});
    let children: Vec<_> = (0..1050)
        .map(|n| {
            let (digest, size) =
                keep(serde_json::json!({"schemaVersion": 2, "n": n, "config": config, "layers": []}));
            serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size})
        })
        .collect();
    let (digest, size) = keep(serde_json::json!({"schemaVersion": 2, "manifests": children}));
    let images = (0..1000).map(|n| ResolvedImage {
        indexed: IndexedImage {
            reference: format!("quay.io/a/b:{n}").parse().unwrap(),
            media_type: OCI_INDEX.parse().unwrap(),
            digest,
            size,
            omitted: BTreeSet::new(),
            platforms: Vec::new(),
            is_made: false,
        },
        registry: registry.clone(),
    });
    let resolved = Resolved { images: images.collect(), manifests, ..Resolved::default() };
    let Err(error) = BundlePlan::new(resolved, BundleInfo::default(), &SiteContents::default()) else {
        panic!("the plan was accepted")
    };
    let text = error.to_string();
    assert!(text.contains("more than the limit of 1048576") && text.contains("split the lists"), "{text}");
}

/// Adds an image with this layer to `resolved`.
fn add_image(resolved: &mut Resolved, reference: &str, layer: Digest) {
    let upstream = Upstream::default();
    let config = serde_json::json!({"mediaType": "a/b", "digest": Digest::of(EMPTY_CONFIG), "size": 2});
    let layers = serde_json::json!([{"mediaType": "a/b", "digest": layer, "size": 7}]);
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
    let manifest = manifest.to_string().into_bytes();
    let reference: crate::oci::reference::Reference = reference.parse().unwrap();
    resolved.images.push(ResolvedImage {
        registry: Endpoints::new(&upstream).registry(reference.host()),
        indexed: IndexedImage {
            reference,
            media_type: OCI_MANIFEST.parse().unwrap(),
            digest: Digest::of(&manifest),
            size: manifest.len() as u64,
            omitted: BTreeSet::new(),
            platforms: Vec::new(),
            is_made: false,
        },
    });
    resolved.manifests.insert(Digest::of(&manifest), manifest);
}

fn add_file(resolved: &mut Resolved, line: &str) {
    let (mut lists, mut problems) = (crate::documents::list::Lists::default(), Vec::new());
    lists.parse_into(std::path::Path::new("files.list"), line, &mut problems);
    assert_eq!(problems, []);
    let etag = Some("\"1\"".to_owned());
    let remote = RemoteFile {
        endpoints: Vec::new(),
        size: Some(7),
        ranges: true,
        etag,
        modified: None,
        content: None,
        check: None,
    };
    resolved.files.push((lists.files.remove(0), remote));
}

fn plan(resolved: Resolved) -> BundlePlan {
    BundlePlan::new(resolved, BundleInfo::default(), &SiteContents::default()).unwrap()
}

/// Digests that a registry could compute from a list of files.
fn guesses(url: &str, sha512: &str) -> Vec<Digest> {
    let bytes: [u8; 64] = crate::oci::digest::parse_hex(sha512).unwrap();
    let texts = [url.to_owned(), format!("stand-in for {url}"), format!("{url} \"1\" Some(7)")];
    texts.iter().map(|text| Digest::of(text.as_bytes())).chain([Digest::of(&bytes)]).collect()
}

#[test]
fn no_layer_takes_the_place_of_a_file() {
    let url = "https://a.example/tool";
    let sha512 = "ab".repeat(64);
    for (line, expected) in [(url.to_owned(), false), (format!("{url} sha512:{sha512}"), true)] {
        let mut resolved = Resolved::default();
        for (number, guess) in guesses(url, &sha512).into_iter().enumerate() {
            add_image(&mut resolved, &format!("evil.example/a/b:{number}"), guess);
        }
        add_file(&mut resolved, &line);
        let plan = plan(resolved);
        let tasks: Vec<&Task> = plan.blobs.iter().filter_map(PlannedBlob::task).collect();
        let of_file: Vec<_> = tasks.iter().filter(|task| task.object == url).collect();
        assert_eq!(of_file.len(), 1);
        assert_eq!((of_file[0].sha512.is_some(), of_file[0].digest), (expected, None));
        let keys: HashSet<_> = tasks.iter().filter_map(|task| task.key).collect();
        assert_eq!(keys.len(), tasks.len());
        assert!(!tasks.iter().any(|task| task.object != url && task.key == of_file[0].key));
    }
}

#[test]
fn a_placeholder_is_unpredictable_and_a_fingerprint_does_not_depend_on_it() {
    let plan = || {
        let mut resolved = Resolved::default();
        add_file(&mut resolved, "https://a.example/tool");
        resolved.files[0].1.etag = None;
        plan(resolved)
    };
    let (first, second) = (plan(), plan());
    assert_ne!(first.blobs[1].blob.digest, second.blobs[1].blob.digest);
    let volumes = VolumeOptions { volume_size: None, recovery: None, set: Digest::of(b"") };
    assert_eq!(first.fingerprint(0, 3, volumes), second.fingerprint(0, 3, volumes));
}

#[test]
fn files_with_one_url_and_different_checksums_are_different_blobs() {
    let mut resolved = Resolved::default();
    for digits in ["ab", "cd"] {
        add_file(&mut resolved, &format!("https://a.example/tool sha512:{}", digits.repeat(64)));
    }
    resolved.files[1].0.path = "other".parse().unwrap();
    let plan = plan(resolved);
    let checked: HashSet<_> = plan.blobs.iter().filter_map(|blob| blob.task()?.sha512).collect();
    assert_eq!(checked.len(), 2);
}

#[test]
fn a_blob_is_fetched_from_the_sources_of_all_its_owners() {
    let mut resolved = Resolved::default();
    let layer = Digest::of(b"content");
    for reference in ["a.example/x:1", "a.example/x:2", "b.example/x:1"] {
        add_image(&mut resolved, reference, layer);
    }
    add_file(&mut resolved, &format!("https://c.example/tool {layer}"));
    let remote = resolved.files[0].1.clone();
    resolved.foreign.insert(layer, vec![remote.clone(), remote]);
    let plan = plan(resolved);
    let task = plan.blobs.iter().find(|blob| blob.blob.digest == layer).unwrap().task().unwrap();
    let sources: String = std::iter::once(&task.source)
        .chain(&task.alternatives)
        .map(|source| match source {
            Source::Web(_) => "web ".to_owned(),
            Source::Registry { registry, .. } => format!("{} ", registry.host()),
        })
        .collect();
    assert_eq!(sources, "web web a.example b.example web ");
    let owners = plan.owners(layer);
    assert_eq!(owners.images.len(), 3);
    assert_eq!(owners.files.len(), 1);
}
