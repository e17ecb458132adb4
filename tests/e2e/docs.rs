//! README.md, docs and bundle-format.md agree with the code.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use airbundle::bundle::format::index::{FileSet, Index};
use airbundle::bundle::format::layout::tar_header;
use airbundle::bundle::format::skippable::SKIPPABLE_LIMIT;
use airbundle::bundle::format::{
    BLOB_LIMIT, FORMAT, FRAME_SIZE, INDEX_LIMIT, MANIFESTS_LIMIT, NAMED_LIMIT, OCI_LAYOUT, OCI_LAYOUT_CONTENT,
};
use airbundle::oci::manifest::MANIFEST_LIMIT;

use crate::program::{airbundle, run, unbundle};
use crate::serve::world;
use crate::support::web::free_port;

const README: &str = include_str!("../../README.md");
const PACK_PAGE: &str = include_str!("../../docs/pack.md");
const FORMAT_PAGE: &str = include_str!("../../bundle-format.md");

/// Returns the code blocks in `page` that are marked as `language`.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let begin = format!("\n```{language}\n");
    page.split(&begin).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

#[test]
fn json_examples_of_the_format_page_round_trip() {
    let [layout, index, files] = &blocks(FORMAT_PAGE, "json")[..] else { panic!("three examples are known") };
    let compact = |text: &str| {
        let mut bytes = Vec::new();
        // Does not parse into a map: the order of members is part of the example.
        let mut in_string = false;
        for byte in text.bytes() {
            in_string ^= byte == b'"';
            if in_string || !byte.is_ascii_whitespace() {
                bytes.push(byte);
            }
        }
        bytes
    };
    assert_eq!(compact(layout), OCI_LAYOUT_CONTENT);
    assert_eq!(Index::parse(index.as_bytes()).unwrap().to_json(), compact(index));
    assert_eq!(FileSet::parse(files.as_bytes()).unwrap().to_json(), compact(files));
}

#[test]
fn format_page_describes_the_written_version() {
    assert!(FORMAT_PAGE.starts_with(&format!("# The bundle format, version {}.{}\n", FORMAT.0, FORMAT.1)));
}

#[test]
fn format_page_tar_header_equals_the_written_one() {
    let blocks = blocks(FORMAT_PAGE, "text");
    let dump = blocks.iter().find(|block| block.contains("6f 63 69")).unwrap();
    let mut header = [0; 512];
    for line in dump.lines() {
        let at: usize = line[..3].trim().parse().unwrap();
        for (byte, digits) in header[at..].iter_mut().zip(line[5..52].split(' ')) {
            *byte = u8::from_str_radix(digits, 16).unwrap();
        }
    }
    assert_eq!(header, tar_header(OCI_LAYOUT, OCI_LAYOUT_CONTENT.len() as u64));
}

#[test]
fn format_page_limits_equal_those_of_the_program() {
    let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
    for (what, limit) in [
        ("frame content", mebibytes(FRAME_SIZE as u64)),
        ("payload of a skippable frame", mebibytes(SKIPPABLE_LIMIT.into())),
        ("`index.json`", mebibytes(INDEX_LIMIT)),
        ("image manifest or index", mebibytes(MANIFEST_LIMIT)),
        ("all manifests", mebibytes(MANIFESTS_LIMIT)),
        ("distinct digests", thousands(BLOB_LIMIT)),
        ("manifests and descriptors of images", thousands(NAMED_LIMIT)),
        ("frames before the seek table", thousands((SKIPPABLE_LIMIT as usize - 9) / 8)),
    ] {
        assert!(FORMAT_PAGE.contains(&format!("\n| {what} | {limit} |")), "{what}: {limit}");
    }
}

/// Formats a number with thousands separators.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap());
    groups.collect::<Vec<_>>().join(",")
}

#[test]
fn the_list_in_the_packing_guide_is_valid() {
    let list =
        blocks(PACK_PAGE, "text").into_iter().find(|block| block.contains("generate_list.sh")).unwrap();
    let mut lists = airbundle::documents::list::Lists::default();
    let mut problems = Vec::new();
    lists.parse_into("docs/pack.md".as_ref(), &list, &mut problems);
    assert_eq!((problems, lists.files.len(), lists.images.len()), (vec![], 2, 3));
}

#[test]
fn quick_start_of_the_readme_runs() {
    let world = world();
    let directory = tempfile::tempdir().expect("make a temporary directory");
    // nginx drops root privileges.
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("change the mode");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let ports = format!("--ip 127.0.0.1 --files-port {} --registry-port {}", free_port(), free_port());
    let quick_start = README.split("## Quick start").nth(1).expect("a quick start");
    let commands = blocks(quick_start, "sh").remove(0);
    for command in commands.lines() {
        let command = command
            .replace("manifests/kubespray-v2.31.0", &world.lists.display().to_string())
            .replace("kubespray.tar.zst", &path("kubespray.tar.zst"))
            .replace("/srv/site", &path("site"))
            .replace("--ip 10.0.0.5", &ports);
        let mut words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        match words.remove(0).as_str() {
            "airbundle" => {
                words.extend(world.upstream.mirror_args());
                airbundle(words).ok();
            }
            "unbundle" => drop(unbundle(words).ok()),
            script => {
                let finished = run(Command::new(script).args(&words).env("SITE_ENGINE", "nginx"));
                run(Command::new(script).arg("stop").env("SITE_ENGINE", "nginx")).ok();
                assert!(finished.ok().stdout.contains("running with nginx"));
            }
        }
    }
    assert_eq!(commands.lines().count(), 5);
}
