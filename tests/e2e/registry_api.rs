//! The read-only registry API of nginx alone: tag lists in pages, error codes, and repositories without tags.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::pack_job::{OUTPUT, PackJob};
use crate::program::unbundle;
use crate::support::fake::{Content, Fake};
use crate::support::image::{Compression, Format, Image, Layer};
use crate::support::process::run;
use crate::support::registry::Registry;
use crate::support::sha256;
use crate::support::web::free_port;

/// A site served by nginx alone, as `site start` runs it.
pub(crate) struct NginxSite {
    pub(crate) addr: String,
    script: PathBuf,
}

impl NginxSite {
    pub(crate) fn start(site: &Path) -> Self {
        // nginx's workers run as an unprivileged user.
        let above = site.parent().expect("a parent directory");
        fs::set_permissions(above, fs::Permissions::from_mode(0o755)).expect("open the directory to nginx");
        let [files, registry] = [free_port(), free_port()].map(|port| port.to_string());
        let site_arg = site.to_str().expect("UTF-8");
        let options = ["--host", "localhost", "--ip", "127.0.0.1", "--tls", "off", "--files-port", &files];
        unbundle([&["site", site_arg][..], &options, &["--registry-port", &registry]].concat()).ok();
        let alone = Self { addr: format!("127.0.0.1:{registry}"), script: site.join("conf/site") };
        alone.run("start");
        alone
    }

    /// Requests a path below `/v2/` with curl.
    pub(crate) fn get(&self, path: &str) -> Response {
        let output = Command::new("curl")
            .args(["-sS", "-w", "\n%{http_code} %{content_type}\n%header{link}"])
            .arg(format!("http://{}/v2/{path}", self.addr))
            .output()
            .expect("run curl");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let mut lines = text.rsplitn(3, '\n');
        let [link, status, body] = [(); 3].map(|()| lines.next().unwrap_or_default().to_owned());
        let (status, media_type) = status.split_once(' ').unwrap_or_default();
        Response {
            status: status.parse().unwrap_or_else(|_| panic!("{path}: {text}")),
            media_type: media_type.to_owned(),
            link,
            body,
        }
    }

    fn run(&self, verb: &str) {
        run(Command::new(&self.script).arg(verb).env("SITE_ENGINE", "nginx"));
    }
}

impl Drop for NginxSite {
    fn drop(&mut self) {
        self.run("stop");
    }
}

/// A response of a registry.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) media_type: String,
    pub(crate) link: String,
    pub(crate) body: String,
}

impl Response {
    fn tags(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        let tags = list["tags"].as_array().unwrap_or_else(|| panic!("{self:?}"));
        tags.iter().map(|tag| tag.as_str().expect("a tag").to_owned()).collect()
    }
}

fn image(text: &str) -> Image {
    let layer = Layer::files(&[("motd", text.as_bytes())], Compression::Gzip);
    Image::new(Format::Oci, "linux/amd64", &[layer])
}

/// Packs and unpacks these references, and returns the job, whose site is `site`.
fn site_of(images: &[(String, Image)]) -> PackJob {
    let mut content = Content::default();
    let mut list = String::new();
    for (reference, image) in images {
        // A reference by digest needs a tag in the registry.
        let pushed = reference.split_once('@').map(|(name, _)| format!("{name}:unused"));
        content.image(&format!("reg.example/{}", pushed.as_deref().unwrap_or(reference)), image);
        list.extend(["reg.example/", reference, " platform=linux/amd64\n"]);
    }
    let job = PackJob::new(&list);
    let fake = Fake::honest(content);
    job.pack_with(&fake.mirror("reg.example")).ok();
    unbundle(["unpack", &job.text(OUTPUT), &job.text("site")]).ok();
    job
}

#[test]
fn nginx_serves_tag_lists_in_pages() {
    let tags = ["V1", "a", "b.c", "v1", "v1-2", "v2", "v_3"];
    let images: Vec<_> = tags.iter().map(|tag| (format!("team/app:{tag}"), image(tag))).collect();
    let job = site_of(&images);
    let nginx = NginxSite::start(&job.path("site"));
    let list = "k8s/reg.example/team/app/tags/list";
    let all = nginx.get(list);
    assert_eq!(
        (all.status, &*all.media_type, all.tags()),
        (200, "application/json", tags.map(str::to_owned).to_vec())
    );
    for (query, expected, has_next) in [
        ("n=0", &tags[..0], false),
        ("n=1", &tags[..1], true),
        ("n=2", &tags[..2], true),
        ("n=6", &tags[..6], true),
        ("n=7", &tags[..], false),
        ("n=8", &tags[..], false),
        ("n=50", &tags[..], false),
        ("n=1000", &tags[..], false),
        ("last=a", &tags[2..], false),
        ("last=v1", &tags[4..], false),
        ("last=V1", &tags[1..], false),
        ("last=v_3", &tags[7..], false),
        ("n=2&last=v1", &tags[4..6], true),
        ("n=3&last=v1", &tags[4..], false),
        ("last=v1&n=2", &tags[4..6], true),
    ] {
        let page = nginx.get(&format!("{list}?{query}"));
        assert_eq!((page.status, &*page.media_type), (200, "application/json"), "{query}");
        assert_eq!(page.tags(), expected, "{query}");
        assert_eq!(!page.link.is_empty(), has_next, "{query}: {page:?}");
    }
    // The links lead through all tags, for any size of a page.
    for n in 1..=7 {
        let (mut seen, mut path) = (Vec::new(), format!("{list}?n={n}"));
        loop {
            let page = nginx.get(&path);
            assert!(page.tags().len() <= n, "{page:?}");
            seen.extend(page.tags());
            let Some((next, rest)) = page.link.strip_prefix("</v2/").and_then(|link| link.split_once('>'))
            else {
                break;
            };
            assert_eq!(rest, "; rel=\"next\"");
            next.clone_into(&mut path);
        }
        assert_eq!(seen, tags, "{n}");
    }
    assert_eq!(nginx.get("k8s/reg.example/team/other/tags/list?n=1").status, 404);
}

#[test]
fn a_long_tag_list_is_served_in_pages_of_a_hundred_or_whole() {
    let image = image("same");
    for count in [130, 450] {
        let tags: Vec<String> = (0..count).map(|number| format!("v{number:04}")).collect();
        let images: Vec<_> = tags.iter().map(|tag| (format!("team/app:{tag}"), image.clone())).collect();
        let job = site_of(&images);
        let nginx = NginxSite::start(&job.path("site"));
        let list = "k8s/reg.example/team/app/tags/list";
        assert_eq!(nginx.get(list).tags(), tags);
        let page = nginx.get(&format!("{list}?n=1000"));
        if count == 130 {
            assert_eq!(page.tags(), tags[..100]);
            assert_eq!(page.link, format!("</v2/{list}?n=1000&last=v0099>; rel=\"next\""));
            assert_eq!(nginx.get(&format!("{list}?n=1000&last=v0099")).tags(), tags[100..]);
        } else {
            assert_eq!(page.tags(), tags);
        }
    }
}

#[test]
fn a_repository_of_digests_has_an_empty_tag_list() {
    let (first, second) = (image("first"), image("second"));
    let by_digest = format!("only/digest@{}", first.root.digest);
    let job = site_of(&[(by_digest, first), ("other/app:1".to_owned(), second)]);
    let registry = Registry::serve(&job.path("site/registry"));
    let nginx = NginxSite::start(&job.path("site"));
    let by_registry = |path: &str| {
        let body = ureq::get(format!("http://{}/v2/{path}", registry.addr())).call().expect(path).into_body();
        let mut json = serde_json::from_reader::<_, Value>(body.into_reader()).expect("JSON");
        // Version 2.8 of the registry has no list for an empty directory.
        if json["tags"].is_null() && json.get("tags").is_some() {
            json["tags"] = json!([]);
        }
        json
    };
    let by_nginx = |path: &str| serde_json::from_str::<Value>(&nginx.get(path).body).expect("JSON");
    for path in ["_catalog", "k8s/reg.example/only/digest/tags/list", "k8s/reg.example/other/app/tags/list"] {
        assert_eq!(by_nginx(path), by_registry(path), "{path}");
    }
    let empty = json!({ "name": "k8s/reg.example/only/digest", "tags": [] });
    assert_eq!(by_nginx("k8s/reg.example/only/digest/tags/list"), empty);
}

#[test]
fn coredns_is_also_where_kubeadm_requests_it() {
    let (coredns, mut content) = (image("coredns"), Content::default());
    content.image("registry.k8s.io/coredns/coredns:v1.11.3", &coredns);
    let job = PackJob::new("registry.k8s.io/coredns/coredns:v1.11.3\n");
    let fake = Fake::honest(content);
    job.pack_with(&fake.mirror("registry.k8s.io")).ok();
    unbundle(["unpack", &job.text(OUTPUT), &job.text("site")]).ok();
    let registry = Registry::serve(&job.path("site/registry"));
    let nginx = NginxSite::start(&job.path("site"));
    for name in ["coredns", "coredns/coredns"] {
        let repository = format!("k8s/registry.k8s.io/{name}");
        registry.assert_serves(&repository, "v1.11.3", &coredns);
        assert_eq!(nginx.get(&format!("{repository}/manifests/v1.11.3")).status, 200, "{name}");
    }
    assert_eq!(unbundle(["unpack", &job.text(OUTPUT), &job.text("site"), "--json"]).ok().code, Some(0));
    unbundle(["prune", &job.text("site"), "--keep", &job.text(OUTPUT), "--yes"]).ok();
    assert_eq!(nginx.get("k8s/registry.k8s.io/coredns/manifests/v1.11.3").status, 200);
}

#[test]
fn errors_of_nginx_name_what_is_missing() {
    let child = image("amd64");
    let other = Image::new(Format::Oci, "linux/arm64", &[Layer::empty()]);
    let index = Image::index(Format::Oci, vec![child, other.clone()]);
    let job = site_of(&[("team/app:1".to_owned(), index)]);
    let nginx = NginxSite::start(&job.path("site"));
    let (known, unknown, none) = ("k8s/reg.example/team/app", "k8s/reg.example/team/none", sha256(b"none"));
    for (path, code) in [
        // The child of a sparse index.
        (format!("{known}/manifests/{}", other.root.digest), "MANIFEST_UNKNOWN"),
        (format!("{known}/manifests/2"), "MANIFEST_UNKNOWN"),
        (format!("{known}/blobs/{none}"), "BLOB_UNKNOWN"),
        (format!("{unknown}/manifests/1"), "NAME_UNKNOWN"),
        (format!("{unknown}/manifests/{none}"), "NAME_UNKNOWN"),
        (format!("{unknown}/blobs/{none}"), "NAME_UNKNOWN"),
        (format!("{unknown}/tags/list"), "NAME_UNKNOWN"),
        (format!("{unknown}/tags/list?n=1"), "NAME_UNKNOWN"),
        (format!("{unknown}/referrers/{none}"), "NAME_UNKNOWN"),
    ] {
        let response = nginx.get(&path);
        assert_eq!((response.status, &*response.media_type), (404, "application/json"), "{path}");
        let error: Value = serde_json::from_str(&response.body).expect("JSON");
        assert_eq!(error["errors"][0]["code"], code, "{path}");
    }
}
