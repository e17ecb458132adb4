//! `sbom`: what the validators of the formats say.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::pack_job::{OUTPUT, PackJob};
use crate::program::{run, unbundle};
use crate::support::fake::{Content, Fake};
use crate::support::image::{Compression, Format, Image, Layer};

/// Returns the path of a program that `scripts/sbom-validators` installs.
fn validator(name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sbom-validators/bin").join(name);
    assert!(path.exists(), "run scripts/sbom-validators first");
    Command::new(path)
}

#[test]
fn sboms_of_all_hosts_and_urls_pass_the_validators_and_list_the_layers() {
    const HOSTS: [&str; 6] = [
        "registry.k8s.io",
        "registry.corp.internal:5000",
        "10.0.0.7:5000",
        "localhost:5000",
        "xn--bcher-kva.de",
        "[fd00::1]:5000",
    ];
    const PATHS: [&str; 8] = ["a[1].bin", "a^b", "a|b", "{t}", "b%20c", "a%2Fb", "q?x={y}&z=[1]", "%C3%A9"];
    let mut content = Content::default();
    let layers = [
        Layer::random(1, 5000, Compression::Gzip),
        Layer::random(2, 5000, Compression::Gzip),
        Layer::random(1, 5000, Compression::Gzip),
    ];
    content.image("r/a:v1", &Image::new(Format::Oci, "linux/amd64", &layers[..2]));
    let children =
        ["linux/amd64", "linux/arm64"].map(|platform| Image::new(Format::Docker, platform, &layers));
    content.image("r/index:v1", &Image::index(Format::Docker, children.into()));
    let images = HOSTS.iter().map(|host| format!("{host}/r/a:v1\n{host}/r/index:v1\n"));
    let files = HOSTS.iter().flat_map(|host| PATHS.map(|path| format!("https://{host}/{path}\n")));
    let list: String = images.chain(files).collect();
    let fake = Fake::start(content, |seen, reply| {
        let is_file = !seen.path.starts_with("/v2/");
        if is_file { crate::support::fake::Reply::ok(seen.path.as_bytes()) } else { reply }
    });
    let job = PackJob::new(&list);
    let mirrors = HOSTS.map(|host| format!("--mirror={host}=http://{}", fake.addr()));
    let mut options = vec!["--mirrors-only", "--title", "a <b> & \"c\""];
    options.extend(mirrors.iter().map(String::as_str));
    job.pack_with(&options).ok();

    let spdx = job.text("b.spdx.json");
    unbundle(["sbom", &job.text(OUTPUT), "-o", &spdx]).ok();
    run(validator("pyspdxtools").args(["--infile", &spdx])).ok();
    let cyclonedx = job.text("b.cdx.json");
    unbundle(["sbom", &job.text(OUTPUT), "--format", "cyclonedx", "-o", &cyclonedx]).ok();
    let script = "import sys\n\
        from cyclonedx.validation.json import JsonStrictValidator\n\
        from cyclonedx.schema import SchemaVersion\n\
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())\n\
        sys.exit(str(error) if error else 0)";
    run(validator("python").args(["-c", script, &cyclonedx])).ok();

    // A validator that accepts everything would show nothing.
    let text = fs::read_to_string(&spdx).unwrap();
    fs::write(&spdx, text.replace("https://registry.k8s.io/", "https://localhost/")).unwrap();
    assert_ne!(run(validator("pyspdxtools").args(["--infile", &spdx])).code, Some(0));
    let text = fs::read_to_string(&cyclonedx).unwrap();
    fs::write(&cyclonedx, text.replacen("https://", "https:// ", 1)).unwrap();
    assert_ne!(run(validator("python").args(["-c", script, &cyclonedx])).code, Some(0));

    // Each layer once a manifest.
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let components = document["components"].as_array().unwrap();
    let image = components.iter().find(|component| component["name"] == "registry.k8s.io/r/a").unwrap();
    let digests: Vec<_> =
        image["components"].as_array().unwrap().iter().map(|layer| &layer["version"]).collect();
    assert_eq!(digests.len(), 2, "{image:#}");
    let index = components.iter().find(|component| component["name"] == "registry.k8s.io/r/index").unwrap();
    for child in index["components"].as_array().unwrap() {
        assert_eq!(child["components"].as_array().unwrap().len(), 2, "{child:#}");
    }
}
