//! Documents: what is printed, parsed and printed again is equal.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use crate::base::json::pretty;
use crate::base::path::{RelPath, find_collision};
use crate::bundle::format::index::{BundleInfo, FileSet, Index, IndexedFile, IndexedImage};
use crate::bundle::format::release::Release;
use crate::documents::inventory::Inventory;
use crate::documents::list::{Checksum, Lists};
use crate::documents::lock::{Diff, LOCK_VERSION, Lock, LockedBlob, LockedFile, LockedImage, LockedManifest};
use crate::oci::digest::Digest;
use crate::oci::manifest::MANIFEST_TYPES;
use crate::oci::media_type::MediaType;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::oci::template::RepositoryTemplate;
use crate::properties::values::cases;
use crate::properties::values::{
    digest, digests, media_type, path, platform, reference, reference_parts, reference_text, size,
};
use crate::site::record::{Record, RecordedBundle, RecordedFile, RecordedImage, RecordedManifest};

/// A file of a list: the URL, the path if the list names it, and the checksum.
type ListedFile = (String, Option<String>, Option<Digest>);

/// A manifest of a lock: type, digest, size, platform, and the digests and sizes of its blobs.
type Child = (MediaType, Digest, u64, Option<Platform>, Vec<(Digest, u64)>);

fn listed_file() -> impl Strategy<Value = ListedFile> {
    let url = r"https?://[a-z]{1,5}\.example(:[1-9][0-9]{0,3})?(/[a-z0-9.~_-]{0,5}[a-z]){1,3}";
    (url, option::of(r"[a-z]{1,3}/[a-z0-9]{1,8}"), option::of(digest()))
}

fn manifest_type() -> impl Strategy<Value = MediaType> {
    (0..MANIFEST_TYPES.len()).prop_map(|number| MediaType::known(MANIFEST_TYPES[number]))
}

fn indexed_image() -> impl Strategy<Value = IndexedImage> {
    let platforms = vec(platform(), 0..3);
    let values = (reference(), manifest_type(), digest(), size(), digests(), platforms, any::<bool>());
    values.prop_map(|(reference, media_type, digest, size, omitted, platforms, is_made)| IndexedImage {
        digest: reference.digest().unwrap_or(digest),
        reference,
        media_type,
        size,
        omitted,
        platforms,
        is_made,
    })
}

fn about() -> impl Strategy<Value = BundleInfo> {
    let release = option::of((r"[a-z0-9]{1,5}([._-][a-z0-9]{1,5}){0,2}", 1..1_u64 << 53));
    let time = || option::of(r"20[0-9]{2}-0[1-9]-[12][0-8]T[01][0-9]:[0-5][0-9]:[0-5][0-9]Z");
    let values = (option::of(r"\PC{0,20}"), time(), option::of(r"[a-z \n#é]{0,40}"), release, time());
    values.prop_map(|(title, created, guide, release, expires)| BundleInfo {
        title: title.and_then(|title| title.parse().ok()),
        created: created.map(|time| time.parse().expect("a valid time")),
        guide,
        release: release.map(|(name, sequence)| Release {
            name: name.parse().expect("a valid name"),
            sequence: sequence.to_string().parse().expect("a valid number"),
        }),
        expires: expires.map(|time| time.parse().expect("a valid time")),
    })
}

fn child() -> impl Strategy<Value = Child> {
    (media_type(), digest(), size(), option::of(platform()), vec((digest(), size()), 0..3))
}

fn locked(child: Child) -> LockedManifest {
    let (media_type, digest, size, platform, blobs) = child;
    let blobs = blobs.into_iter().map(|(digest, size)| LockedBlob { digest, size }).collect();
    LockedManifest { media_type, digest, size, platform, blobs, content: None }
}

fn lock() -> impl Strategy<Value = Lock> {
    let files = vec((0..1000_u32, option::of(path()), digest(), size()), 0..4);
    let content = option::of(r"\PC{0,20}");
    let images = vec((reference(), vec(platform(), 0..3), child(), vec(child(), 0..3), content), 0..4);
    (files, images).prop_map(|(files, images)| {
        let file = |(number, path, digest, size)| {
            let url = format!("https://a.example/{number}").parse().expect("a valid URL");
            LockedFile { url, path, digest, size }
        };
        let image = |(reference, platforms, root, children, content): (Reference, _, Child, Vec<_>, _)| {
            let digest = reference.digest().unwrap_or(root.1);
            let root = LockedManifest { digest, content, ..locked(root) };
            let manifests = std::iter::once(root).chain(children.into_iter().map(locked)).collect();
            LockedImage { reference, platforms, digest, manifests }
        };
        Lock {
            version: LOCK_VERSION,
            files: unique(files.into_iter().map(file), LockedFile::name),
            images: unique(images.into_iter().map(image), |image| image.reference.to_string()),
        }
    })
}

/// Files whose paths do not collide.
fn paths() -> impl Strategy<Value = Vec<RelPath>> {
    vec(path(), 0..5).prop_filter("colliding paths", |paths| find_collision(paths.iter()).is_none())
}

fn unique<T>(values: impl IntoIterator<Item = T>, key: impl Fn(&T) -> String) -> Vec<T> {
    let mut known = HashSet::new();
    values.into_iter().filter(|value| known.insert(key(value))).collect()
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_reference_has_its_parts_and_prints_them(parts in reference_parts()) {
        let text = reference_text(&parts);
        let reference: Reference = text.parse().unwrap();
        let (host, repository, tag, digest) = &parts;
        prop_assert_eq!(reference.as_str(), &text);
        prop_assert_eq!((reference.host(), reference.repository()), (host.as_str(), repository.as_str()));
        prop_assert_eq!((reference.tag(), reference.digest()), (tag.as_deref(), *digest));
        prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
    }

    #[test]
    fn docker_hub_has_one_name(repository in r"[a-z0-9]{1,8}(/[a-z0-9]{1,8})?", host in 0..3_usize) {
        let host = ["docker.io", "index.docker.io", "Registry-1.Docker.io"][host];
        let reference: Reference = format!("{host}/{repository}:1").parse().unwrap();
        prop_assert_eq!(reference.host(), "docker.io");
        prop_assert!(reference.repository().contains('/') && reference.repository().ends_with(&repository));
        prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
    }

    #[test]
    fn an_index_is_what_it_prints(
        files in option::of((digest(), size())),
        images in vec(indexed_image(), 0..4),
        about in about(),
        external in digests(),
    ) {
        let images = unique(images, |image| image.reference.to_string());
        let index = Index { files, images, about, external };
        let json = index.to_json();
        prop_assert_eq!(&Index::parse(&json).unwrap(), &index);
        prop_assert_eq!(Index::parse(&json).unwrap().to_json(), json);
    }

    #[test]
    fn a_file_set_is_what_it_prints(paths in paths(), digest in digest(), size in size()) {
        let file = |path: RelPath| IndexedFile {
            url: format!("https://a.example/{}", path.as_str().len()).parse().unwrap(),
            path,
            digest,
            size,
        };
        let files = FileSet { files: paths.into_iter().map(file).collect() };
        prop_assert_eq!(FileSet::parse(&files.to_json()).unwrap(), files);
    }

    #[test]
    fn a_lock_is_what_it_prints_and_does_not_differ_from_itself(lock in lock()) {
        let again = Lock::parse(&lock.to_json()).unwrap();
        prop_assert_eq!(&again, &lock);
        prop_assert!(again.agrees(&lock).is_ok());
        let diff = Diff::between(&lock, &again);
        prop_assert!(diff.files.is_empty() && diff.images.is_empty(), "{:?}", diff);
        prop_assert_eq!(diff.kept.bytes, lock.bytes());
    }

    #[test]
    fn an_inventory_is_what_it_prints(
        blobs in btree_map(digest(), size(), 0..5),
        files in btree_map(digest(), size(), 0..5),
    ) {
        let inventory = Inventory::new(blobs, files);
        prop_assert_eq!(Inventory::parse(&inventory.to_json()).unwrap(), inventory);
    }

    #[test]
    fn a_list_has_the_entries_of_its_lines(
        files in vec(listed_file(), 0..5),
        images in vec((reference(), vec(platform(), 0..3)), 0..5),
    ) {
        let images: BTreeMap<String, Vec<Platform>> =
            images.into_iter().map(|(reference, platforms)| (reference.to_string(), platforms)).collect();
        let mut text = String::from("# comment\r\n\n");
        for (url, name, checksum) in &files {
            let name = name.as_ref().map(|name| format!(" name={name}")).unwrap_or_default();
            let checksum = checksum.map(|checksum| format!("\t{checksum}")).unwrap_or_default();
            text += &[url, &name, &checksum, "\n"].concat();
        }
        for (reference, platforms) in &images {
            let platforms: Vec<String> = platforms.iter().map(Platform::to_string).collect();
            let attribute = if platforms.is_empty() { "" } else { " platform=" };
            text += &[reference, attribute, &platforms.join(","), " # comment\n"].concat();
        }
        let (mut lists, mut problems) = (Lists::default(), Vec::new());
        lists.parse_into(Path::new("x.list"), &text, &mut problems);
        // Paths can collide, which is a problem of the list.
        prop_assert!(problems.is_empty() || files.len() > 1, "{:?}", problems);
        if problems.is_empty() && lists.files.len() == files.len() {
            for (file, (url, name, checksum)) in lists.files.iter().zip(&files) {
                prop_assert_eq!(file.request_url.reveal(), &url::Url::parse(url).unwrap());
                prop_assert!(name.as_ref().is_none_or(|name| file.path.as_str() == name));
                prop_assert_eq!(&file.checksum, &checksum.map(Checksum::Sha256));
            }
        }
        prop_assert!(lists.images.iter().map(|image| image.reference.as_str()).eq(images.keys()), "{}", text);
        for (image, platforms) in lists.images.iter().zip(images.values()) {
            prop_assert!(image.platforms.iter().all(|platform| platforms.contains(platform)));
            prop_assert!(platforms.iter().all(|platform| image.platforms.contains(platform)));
        }
        // The entries are a set: a second time, nothing changes.
        if problems.is_empty() {
            let before = lists.clone();
            lists.parse_into(Path::new("y.list"), &text, &mut problems);
            prop_assert_eq!((lists, problems), (before, Vec::new()));
        }
    }

    #[test]
    fn a_record_is_what_it_prints(
        bundles in vec((digest(), option::of(r"[a-zé ]{0,10}"), any::<bool>()), 0..3),
        images in vec((reference(), vec(platform(), 0..2), size(), vec((digest(), media_type()), 0..3)), 0..3),
        files in vec((path(), digest(), size()), 0..3),
        retired in vec((digest(), media_type()), 0..2),
    ) {
        let mut record = Record::new("files".into(), "/srv/registry".into());
        let manifest = |(digest, media_type)| RecordedManifest { digest, media_type };
        let bundle = |(identity, title, partial): (_, Option<String>, _)| {
            let title = title.map(|title| title.parse().unwrap());
            RecordedBundle { identity, title, created: None, partial }
        };
        record.bundles = bundles.into_iter().map(bundle).collect();
        let image = |(reference, platforms, size, manifests): (Reference, _, _, Vec<_>)| RecordedImage {
            repositories: RepositoryTemplate::default().apply(&reference).into_iter().collect(),
            tag: reference.tag().map(|tag| tag.parse().unwrap()),
            reference,
            platforms,
            size,
            manifests: manifests.into_iter().map(manifest).collect(),
        };
        record.images = images.into_iter().map(image).collect();
        let url = || "https://a.example/x".parse().unwrap();
        let file = |(path, digest, size)| RecordedFile { path, url: url(), size, digest };
        record.files = files.into_iter().map(file).collect();
        record.retired = retired.into_iter().map(manifest).collect();
        let json = pretty(&record);
        let again = Record::parse(Path::new("site.json"), &json).unwrap();
        prop_assert_eq!(&pretty(&again), &json);
        prop_assert_eq!(again, record);
    }
}
