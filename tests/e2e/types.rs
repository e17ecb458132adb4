//! Values from outside: each is parsed into a type or refused, at `pack`, from a bundle and from a carried site.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::damage::Content;
use crate::pack_job::{PackJob, REGISTRY};
use crate::program::unbundle;
use crate::support::fake::{self, Fake};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::tree::Tree;

/// A variant that ends its line in a file of Ansible.
const VARIANT: &str = "linux/amd64/v1\nkube_image_repo: \"{{ lookup('pipe', 'id') }}\"\n#";
/// The same in an error message.
const ESCAPED: &str = "invalid `variant` of a platform: `v1\\nkube_image_repo: ";

fn image(platform: &str) -> Image {
    Image::new(Format::Oci, platform, &[Layer::files(&[("x", b"y")], Compression::Gzip)])
}

fn bundle_of(image: Image, directory: &Path) -> String {
    let bundle = directory.join("bundle.tar.zst");
    Content { images: vec![("quay.io/team/app:1", image)], files: vec![("dl.io/x", b"text".to_vec())] }
        .write(&bundle);
    bundle.to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn image_with_an_invalid_platform_in_its_config_or_index_is_not_packed() {
    for image in [image(VARIANT), Image::index(Format::Oci, vec![image(VARIANT)])] {
        for options in [&[][..], &["--platform", "linux/amd64"]] {
            let mut content = fake::Content::default();
            content.image(&format!("{REGISTRY}/team/app:1"), &image);
            let registry = Fake::honest(content);
            let job = PackJob::new(&format!("{REGISTRY}/team/app:1\n"));
            job.pack_from(&registry, options).failed(4, &["team/app:1", ESCAPED]);
            assert!(!job.output().exists());
        }
    }
}

#[test]
fn unknown_platforms_count_as_absent() {
    let directory = tempfile::tempdir().expect("create a directory");
    let bundle = bundle_of(image("unknown/unknown"), directory.path());
    let listing = unbundle(["ls", "--json", &bundle]).ok().json();
    assert_eq!(listing["images"][0]["platforms"], json!([]));
    let site = directory.path().join("site");
    unbundle(["unpack", &bundle, site.to_str().expect("a UTF-8 path")]).ok();
}

#[test]
fn bundle_with_an_invalid_platform_is_refused_by_every_verb_that_reads_it() {
    let directory = tempfile::tempdir().expect("create a directory");
    let bundle = bundle_of(image(VARIANT), directory.path());
    let site = directory.path().join("site");
    let site = site.to_str().expect("a UTF-8 path");
    let verbs: [&[&str]; 6] = [
        &["ls", &bundle],
        &["verify", &bundle],
        &["sbom", &bundle],
        &["unpack", &bundle, site],
        &["unpack", &bundle, site, "--keep-going"],
        &["unpack", &bundle, site, "--platform", "linux/amd64"],
    ];
    for verb in verbs {
        let finished = unbundle(verb).failed(8, &["quay.io/team/app:1", ESCAPED]);
        assert!(
            !finished.stderr.contains("\nkube_image_repo") && finished.stdout.is_empty(),
            "{finished:#?}"
        );
    }
    // No tag and no record refers to anything that was written before.
    let names = Tree::of(Path::new(site));
    let tagged = names.files().any(|path| path.ends_with("current/link") || path.ends_with("site.json"));
    assert!(!tagged);
}

#[test]
fn forged_record_is_refused_by_every_verb_that_reads_it() {
    let directory = tempfile::tempdir().expect("create a directory");
    let bundle = bundle_of(image("linux/amd64"), directory.path());
    let site = directory.path().join("site");
    let text = site.to_str().expect("a UTF-8 path");
    unbundle(["unpack", &bundle, text]).ok();
    let record: Value = serde_json::from_slice(&fs::read(site.join("site.json")).unwrap()).unwrap();
    let secret = directory.path().join("secret");
    fs::create_dir(&secret).unwrap();
    std::os::unix::fs::symlink(&secret, site.join("link")).unwrap();
    let outside = secret.to_str().expect("a UTF-8 path");
    let verbs: [&[&str]; 5] = [
        &["images", text],
        &["inventory", text],
        &["prune", text, "--keep", &bundle, "--yes"],
        &["site", text, "--ip", "127.0.0.1"],
        &["unpack", &bundle, text],
    ];
    for (pointer, value, words) in [
        ("/images/0/repositories/0", "x\nEND\ntouch proof\n", &["`repositories`", "`x\\nEND\\ntouch proof"]),
        ("/images/0/repositories/0", "../../../escaped", &["`repositories`", "`../../../escaped`"]),
        ("/images/0/platforms/0", VARIANT, &["`platforms`", ESCAPED]),
        ("/images/0/reference", "quay.io/team/app:1\n", &["`reference`", "expected a tag"]),
        ("/files/0/path", "../../etc/passwd", &["`path`", "`../../etc/passwd`"]),
        ("/files/0/url", "https://a/\u{202e}", &["`url`", "`https://a/\\u{202e}`"]),
        ("/filesRoot", outside, &["`filesRoot`", "add `--files "]),
        ("/filesRoot", "link", &["`filesRoot`", "add `--files "]),
        ("/registryRoot", "../secret", &["`registryRoot`", "without `..`"]),
    ] {
        let mut forged = record.clone();
        *forged.pointer_mut(pointer).expect("the member exists") = value.into();
        fs::write(site.join("site.json"), forged.to_string()).unwrap();
        for verb in verbs {
            unbundle(verb).failed(7, &[&["site.json"][..], words].concat());
        }
        assert!(!site.join("conf").exists() && fs::read_dir(&secret).unwrap().next().is_none());
    }
    // An option that names exactly this directory allows it.
    let mut moved = record.clone();
    moved["filesRoot"] = outside.into();
    fs::write(site.join("site.json"), moved.to_string()).unwrap();
    unbundle(["images", text, "--files", outside]).ok();
    unbundle(["images", text, "--files", text]).failed(7, &["but `--files` names"]);
}
