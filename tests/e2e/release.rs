//! The release workflows yield the contents of a release page.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::program::{Finished, unbundle};
use crate::serve::directory;
use crate::support::bases;
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::random_bytes;
use crate::support::upstream::{Upstream, UpstreamFile, UpstreamImage};

fn script(name: &str, args: &[&str], environment: &[(&str, &str)]) -> Finished {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
    let mut command = Command::new(path);
    command.args(args).envs(environment.iter().copied()).env_remove("SOURCE_DATE_EPOCH").stdin(Stdio::null());
    for variable in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env_remove(variable);
    }
    let output = command.output().unwrap_or_else(|error| panic!("start {name}: {error}"));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn tag_release_has_split_bundles_programs_images_and_checksums() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let images = vec![
        UpstreamImage::new(
            "docker.io/library/nginx:1.25.2-alpine",
            bases::nginx(Format::Docker, "linux/amd64"),
        ),
        UpstreamImage::new(
            "docker.io/library/registry:2.8.1",
            bases::registry(Format::Docker, "linux/amd64"),
        ),
        UpstreamImage::new(
            "registry.k8s.io/pause:3.9",
            Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 3 << 20, Compression::Gzip)]),
        ),
    ];
    let files = vec![UpstreamFile::new("https://dl.k8s.io/kubelet", random_bytes(2, 5000))];
    let upstream = Upstream::start(&path("upstream"), images, files);
    let lists = path("manifests/kubespray-v9.25.0");
    fs::create_dir_all(&lists).unwrap();
    upstream.write_lists(&lists);
    // Items that cannot be packed are omitted by name.
    let mut list = fs::read_to_string(lists.join("images.list")).unwrap();
    list += "quay.io/old/schema1:v1\n";
    fs::write(lists.join("images.list"), list).unwrap();
    fs::write(path("manifests/not-packable.list"), "# why\nquay.io/old/schema1:v1\n").unwrap();

    let text = |name: &str| path(name).display().to_string();
    let (dist, manifests) = (text("dist"), text("manifests"));
    let mut args = vec!["v3-9.25.0", "amd64", &dist];
    let mirrors = upstream.mirror_args();
    args.extend(mirrors.iter().map(String::as_str));
    let environment = [
        ("MANIFESTS", &*manifests),
        ("AIRBUNDLE", env!("CARGO_BIN_EXE_airbundle")),
        ("UNBUNDLE", env!("CARGO_BIN_EXE_unbundle")),
        ("PART_SIZE", "4M"),
    ];
    script("pack-release", &args, &environment).ok();

    let sums = Command::new("sha256sum")
        .args(["--check", "--quiet", "SHA256SUMS-v9.25.0-amd64"])
        .current_dir(&dist)
        .status();
    assert!(sums.expect("start sha256sum").success());
    let name = "kubespray-v9.25.0-amd64";
    for file in [
        &format!("{name}-files-image.tar.001"),
        &format!("{name}-registry-image.tar.002"),
        "unbundle-linux-amd64",
    ] {
        assert!(Path::new(&dist).join(file).exists(), "{file}");
    }
    // As a user does: join the parts and list the contents.
    let joined = path("joined.tar.zst");
    let join = format!("cat '{dist}/{name}.tar.zst'.0* >'{}'", joined.display());
    assert!(Command::new("sh").args(["-c", &join]).status().expect("start sh").success());
    let listing = unbundle(["ls".as_ref(), "--json".as_ref(), joined.as_os_str()]).ok().json();
    assert_eq!(listing["title"], "Kubespray v9.25.0 for linux/amd64, build 3");
    assert_eq!((&listing["name"], &listing["sequence"]), (&name.into(), &3.into()));
    assert_eq!(listing["images"].as_array().map(Vec::len), Some(3));
    assert!(listing["created"].as_str().is_some_and(|created| created.ends_with('Z')), "{listing}");
    let join = format!("cat '{dist}/{name}-registry-image.tar'.0* | tar -xO manifest.json");
    let output = Command::new("sh").args(["-c", &join]).output().expect("start sh");
    assert!(String::from_utf8_lossy(&output.stdout).contains("kubespray-images:v3-v9.25.0"));

    for (args, words) in [
        (["latest", "amd64", &dist], "expected v<BUILD>-<KUBESPRAY>"),
        (["v3-9.25.0", "mips", &dist], "expected amd64 or arm64"),
        (["v3-9.26.0", "amd64", &dist], "Generate the lists of Kubespray v9.26.0 first"),
    ] {
        script("pack-release", &args, &environment).failed(1, &[words]);
    }
    script("build-release", &["v99.0.0", &dist], &[]).failed(1, &["Cargo.toml has version"]);
    script("free-disk", &[], &[("GITHUB_ACTIONS", "")]).ok();
}
