//! Documents that users write or keep: references, lists, locks, the record of a site, and settings.

use std::path::Path;

use crate::base::json::pretty;
use crate::base::path::RelPath;
use crate::base::source_url::SourceUrl;
use crate::base::title::{Timestamp, Title};
use crate::bundle::format::release::{Expiry, ReleaseName, Sequence};
use crate::documents::inventory::Inventory;
use crate::documents::list::{Checksum, FileEntry, ImageEntry, Lists};
use crate::documents::lock::{Diff, Lock};
use crate::fetch::mirrors::Mirrors;
use crate::fuzzing::laws::{document_prints_what_it_parses, prints_what_it_parses, text};
use crate::oci::digest::Digest;
use crate::oci::media_type::MediaType;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::oci::repository::{RepositoryName, Tag};
use crate::oci::template::RepositoryTemplate;
use crate::signature::KeyId;
use crate::site::record::Record;

/// An image reference, and all other texts that are parsed once into a type.
pub fn reference(bytes: &[u8]) {
    let text = text(bytes);
    prints_what_it_parses::<Reference>(text);
    prints_what_it_parses::<RepositoryName>(text);
    prints_what_it_parses::<RepositoryTemplate>(text);
    prints_what_it_parses::<Tag>(text);
    prints_what_it_parses::<Digest>(text);
    prints_what_it_parses::<MediaType>(text);
    prints_what_it_parses::<Platform>(text);
    prints_what_it_parses::<Checksum>(text);
    prints_what_it_parses::<RelPath>(text);
    prints_what_it_parses::<SourceUrl>(text);
    prints_what_it_parses::<Title>(text);
    prints_what_it_parses::<Timestamp>(text);
    prints_what_it_parses::<ReleaseName>(text);
    prints_what_it_parses::<Sequence>(text);
    prints_what_it_parses::<Expiry>(text);
    prints_what_it_parses::<KeyId>(text);
    if let Ok(Some(platform)) = Platform::stated_text(text) {
        assert_eq!(Platform::stated_text(&platform.to_string()).ok().flatten(), Some(platform));
    }
    match text.parse::<Reference>() {
        Ok(reference) => {
            assert!(reference.tag().is_some() || reference.digest().is_some());
            assert!(!reference.host().contains('/'));
            // Its repository on a site is a name of its own, or too long.
            let _ = RepositoryTemplate::default().apply(&reference);
            let _ = RepositoryTemplate::default().alias(&reference);
        }
        Err(error) => assert!(text.is_char_boundary(error.offset()), "{text:?}: {error:?}"),
    }
    if let Ok(url) = text.parse::<SourceUrl>()
        && let Ok(path) = url.wget_path()
    {
        assert_eq!(url.other_path(&path), None);
    }
}

/// A list of files and images.
pub fn list(bytes: &[u8]) {
    let text = text(bytes);
    let lines = text.split('\n').count();
    let (mut lists, mut problems) = (Lists::default(), Vec::new());
    lists.parse_into(Path::new("x.list"), text, &mut problems);
    for problem in &problems {
        assert!((1..=lines).contains(&problem.line) && problem.column > 0, "{problem}");
    }
    assert!(lists.files.len() + lists.images.len() <= lines);
    if !problems.is_empty() {
        return;
    }
    let printed = printed(&lists);
    let mut again = Lists::default();
    again.parse_into(Path::new("x.list"), &printed, &mut problems);
    assert!(problems.is_empty(), "{printed}: {problems:?}");
    let files = |lists: &Lists| lists.files.iter().map(file_line).collect::<Vec<_>>();
    let images = |lists: &Lists| lists.images.iter().map(image_line).collect::<Vec<_>>();
    assert_eq!(files(&again), files(&lists));
    assert_eq!(images(&again), images(&lists));
    let parts = |file: &FileEntry| (file.url.clone(), file.request_url.clone(), file.path.clone());
    assert!(again.files.iter().map(parts).eq(lists.files.iter().map(parts)), "{printed}");
}

fn printed(lists: &Lists) -> String {
    let lines = lists.files.iter().map(file_line).chain(lists.images.iter().map(image_line));
    lines.map(|line| line + "\n").collect()
}

fn file_line(file: &FileEntry) -> String {
    let mut line = file.request_url.reveal().to_string();
    if file.is_named() || file.url != *file.request_url.reveal() {
        line = format!("{line} name={}", file.path);
    }
    line + &file.checksum.as_ref().map(|checksum| format!(" {checksum}")).unwrap_or_default()
}

fn image_line(image: &ImageEntry) -> String {
    let platforms: Vec<_> = image.platforms.iter().map(Platform::to_string).collect();
    let attribute = if platforms.is_empty() { "" } else { " platform=" };
    format!("{}{attribute}{}", image.reference, platforms.join(","))
}

/// A lock or an inventory.
pub fn lock(bytes: &[u8]) {
    if let Ok(inventory) = Inventory::parse(bytes) {
        assert!(Inventory::is_one(bytes));
        document_prints_what_it_parses(&inventory, Inventory::to_json, Inventory::parse);
    }
    let Ok(lock) = Lock::parse(bytes) else { return };
    document_prints_what_it_parses(&lock, Lock::to_json, Lock::parse);
    assert!(i64::try_from(lock.bytes()).is_ok());
    assert!(lock.agrees(&lock).is_ok());
    let diff = Diff::between(&lock, &lock);
    assert!(diff.files.is_empty() && diff.images.is_empty() && diff.added.is_nothing(), "{diff:?}");
}

/// The record of a site.
pub fn record(bytes: &[u8]) {
    let parse = |bytes: &[u8]| Record::parse(Path::new("site.json"), bytes);
    if let Ok(record) = parse(bytes) {
        document_prints_what_it_parses(&record, pretty, parse);
    }
}

/// A containers-registries.conf(5).
pub fn settings(bytes: &[u8]) {
    let mut mirrors = Mirrors::default();
    if mirrors.add_file(text(bytes)).is_err() {
        return;
    }
    for only in [false, true] {
        mirrors.only = only;
        for (scheme, host) in
            [(None, "docker.io"), (None, "a.b:5000"), (Some("https"), "a.b:443"), (Some("http"), "[::1]:80")]
        {
            for pinned in [false, true] {
                let endpoints = mirrors.endpoints(scheme, host, "library/a", pinned);
                for endpoint in endpoints.iter().flatten() {
                    assert!(!endpoint.host.is_empty() && !endpoint.host.contains('/'), "{endpoint:?}");
                    assert!(!only || endpoint.is_mirror);
                }
                assert!(!endpoints.is_ok_and(|endpoints| endpoints.is_empty()));
            }
        }
    }
}
