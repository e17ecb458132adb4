//! The catalog page, served by nginx and rendered by a browser.

use std::fs;

use airbundle::documents::list::Lists;
use airbundle::oci::digest::Digest;
use airbundle::oci::manifest::OCI_INDEX;
use airbundle::oci::media_type::MediaType;
use airbundle::oci::template::RepositoryTemplate;
use airbundle::site::catalog::Page;
use airbundle::site::record::{Record, RecordedBundle, RecordedFile, RecordedImage, RecordedManifest};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::browser::Browser;
use crate::support::web::Web;

const FILES: &str = include_str!("../../manifests/kubespray-v2.25.0/files.list");
const IMAGES: &str = include_str!("../../manifests/kubespray-v2.25.0/images.list");
const REGISTRY: &str = "hub.kubespray.local:5000";

const ESCAPE: &str = "\u{e00c}";
const CONTROL: &str = "\u{e009}";

/// A browser that shows the catalog page of a site.
struct CatalogPage {
    browser: Browser,
    web: Web,
    _directory: TempDir,
}

impl CatalogPage {
    fn new(record: &Record) -> Self {
        let directory = TempDir::new().unwrap();
        for file in &record.files {
            let path = directory.path().join(&file.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file.url.as_str()).unwrap();
        }
        fs::write(
            directory.path().join("index.html"),
            Page { record, registry: REGISTRY, clients: &[] }.html(),
        )
        .unwrap();
        let (browser, web) = (Browser::start(), Web::start(directory.path()));
        browser.open(&web.url(""));
        Self { browser, web, _directory: directory }
    }

    /// Returns the visible row headers of the section `name`.
    fn rows(&self, name: &str) -> Vec<String> {
        let script = "[...document.querySelectorAll('#NAME tbody th')].filter((th) => th.checkVisibility())";
        let rows =
            self.browser.run(&format!("return {}.map((th) => th.innerText)", script.replace("NAME", name)));
        serde_json::from_value(rows).unwrap()
    }

    /// Returns the counts that the page displays.
    fn counts(&self) -> Value {
        self.browser.run("return document.querySelector('nav').innerText.replace(/\\s+/g, ' ')")
    }

    /// Returns the text that Ctrl-V pastes.
    fn pasted(&self) -> Value {
        self.browser.type_into("#search", &format!("{CONTROL}av"));
        let pasted = self.browser.run("return document.getElementById('search').value");
        self.browser.type_into("#search", ESCAPE);
        pasted
    }
}

/// A site record with everything Kubespray v2.25.0 needs.
fn kubespray() -> Record {
    let (mut lists, mut problems) = (Lists::default(), Vec::new());
    lists.parse_into("files.list".as_ref(), FILES, &mut problems);
    lists.parse_into("images.list".as_ref(), IMAGES, &mut problems);
    assert_eq!(problems, []);
    let mut record = Record::new("files".into(), "registry".into());
    record.bundles.push(RecordedBundle {
        identity: Digest::of(b"bundle"),
        title: Some("Kubespray v2.25.0".parse().unwrap()),
        created: Some("2024-06-01T12:34:56Z".parse().unwrap()),
        partial: false,
    });
    for entry in &lists.images {
        let repository = RepositoryTemplate::default().apply(&entry.reference).unwrap();
        record.images.push(image(&entry.reference.to_string(), &repository, entry.reference.tag()));
    }
    for entry in &lists.files {
        record.files.push(file(&format!("k8s/{}", entry.path), entry.url.as_str()));
    }
    record
}

fn image(reference: &str, repository: &str, tag: Option<&str>) -> RecordedImage {
    let digest = Digest::of(reference.as_bytes());
    RecordedImage {
        reference: reference.parse().unwrap(),
        repositories: [repository.parse().unwrap()].into(),
        tag: tag.map(|tag| tag.parse().unwrap()),
        platforms: vec!["linux/amd64".parse().unwrap()],
        size: 12_345_678,
        manifests: vec![RecordedManifest { digest, media_type: MediaType::known(OCI_INDEX) }],
    }
}

fn file(path: &str, url: &str) -> RecordedFile {
    RecordedFile {
        path: path.parse().unwrap(),
        url: url.parse().unwrap(),
        size: 12_345_678,
        digest: Digest::of(url.as_bytes()),
    }
}

#[test]
fn search_shows_entries_that_match_all_words() {
    let mut record = kubespray();
    record.files.push(file("k8s/f.example/Größe 1#.bin", "https://f.example/1"));
    let page = CatalogPage::new(&record);
    let shown = |query: &str| {
        page.browser.type_into("#search", &format!("{ESCAPE}{query}"));
        (page.rows("images"), page.rows("files"), page.counts())
    };
    assert_eq!(page.counts(), "Images 57 Files 24");

    let (images, files, counts) = shown("CILIUM oper");
    assert_eq!((images, files), (vec!["quay.io/cilium/operator:v1.15.4".to_owned()], vec![]));
    assert_eq!(counts, "Images 1 of 57 Files 0 of 24");
    // By the name on the site, by text that is partly hidden, by link target.
    assert_eq!(shown("5000/k8s/registry.k8s.io/pause").0, ["registry.k8s.io/pause:3.9"]);
    let digest = Digest::of(b"registry.k8s.io/pause:3.9").hex();
    assert_eq!(shown(&digest[48..]).0, ["registry.k8s.io/pause:3.9"]);
    assert_eq!(shown("k8s/f.example/größe 1#").1, ["Größe 1#.bin"]);
    let (images, files, counts) = shown("nowhere");
    assert_eq!((images.len(), files.len(), counts), (0, 0, json!("Images 0 of 57 Files 0 of 24")));
    let nodes = page.browser.run("return document.querySelector('main').innerText");
    for text in ["No image matches.", "No file matches."] {
        assert!(nodes.as_str().unwrap().contains(text), "{nodes}");
    }

    let (images, files, counts) = shown("");
    assert_eq!((images.len(), files.len(), counts), (57, 24, json!("Images 57 Files 24")));
}

#[test]
fn search_works_with_a_thousand_images_and_a_thousand_files() {
    let mut record = Record::new("files".into(), "registry".into());
    for n in 0..1000 {
        record.images.push(image(&format!("r.example/app-{n}:v1"), &format!("team/app-{n}"), Some("v1")));
        record.files.push(file(&format!("k8s/f.example/{n}.bin"), &format!("https://f.example/{n}.bin")));
    }
    let page = CatalogPage::new(&record);
    assert_eq!((page.rows("images").len(), page.rows("files").len()), (1000, 1000));
    page.browser.type_into("#search", "-99");
    assert_eq!(page.counts(), "Images 11 of 1000 Files 0 of 1000");
    page.browser.type_into("#search", &format!("{ESCAPE}/999."));
    assert_eq!((page.rows("images"), page.rows("files")), (vec![], vec!["999.bin".to_owned()]));
}

#[test]
fn copy_buttons_copy_complete_text_over_plain_http() {
    let page = CatalogPage::new(&kubespray());
    let copied = |what: &str| {
        page.browser.click(&format!("button[aria-label='Copy {what}']"));
        let nodes = format!(
            "return [...document.querySelectorAll('[role=status]')].some((e) => e.textContent === 'Copied {what}')"
        );
        page.browser.wait_for(&nodes);
        page.pasted()
    };
    // Loopback is a secure context; a site over plain HTTP is not and has no `navigator.clipboard`.
    for clipboard in ["navigator.clipboard", "undefined"] {
        let shadow = format!("Object.defineProperty(navigator, 'clipboard', {{ value: {clipboard} }})");
        page.browser.open(&page.web.url(""));
        page.browser.run(&shadow);
        let pause = "registry.k8s.io/pause:3.9";
        assert_eq!(
            copied(&format!("the pull command of {pause}")),
            format!("docker pull {REGISTRY}/k8s/{pause}")
        );
        let digest = Digest::of(pause.as_bytes());
        assert_eq!(copied(&format!("the digest of {pause}")), digest.to_string());
        let kubelet = "dl.k8s.io/release/v1.29.5/bin/linux/amd64/kubelet";
        assert_eq!(copied("the link to kubelet"), page.web.url(&format!("k8s/{kubelet}")));
        let sha256 = Digest::of(format!("https://{kubelet}").as_bytes()).hex();
        assert_eq!(copied("the SHA-256 of kubelet"), sha256);
        assert_eq!(copied("the identity of the bundle"), Digest::of(b"bundle").to_string());
    }
}

#[test]
fn page_is_readable_without_javascript() {
    let record = kubespray();
    let page = CatalogPage::new(&record);
    page.browser.command("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
    page.browser.open(&page.web.url(""));
    // `innerText` is the visible text; the style must not cut any of it off.
    let cut =
        "return [...document.querySelectorAll('body *')].filter((e) => e.scrollWidth > e.clientWidth + 1
        && getComputedStyle(e).overflowX !== 'visible' && !e.matches('.unseen')).map((e) => e.outerHTML)";
    assert_eq!(page.browser.run(cut), json!([]));
    let text = page.browser.run("return document.body.innerText");
    let text = text.as_str().unwrap();
    let reads = |part: &str| assert!(text.contains(part), "no `{part}` in {text}");
    for part in ["Kubespray v2.25.0", "1 June 2024, 12:34 UTC", "linux/amd64", "12.3 MB", "57", "23"] {
        reads(part);
    }
    for RecordedImage { reference, repositories, tag, .. } in &record.images {
        reads(reference.as_str());
        reads(&Digest::of(reference.as_str().as_bytes()).to_string());
        let repository = repositories.first().unwrap();
        reads(&format!("docker pull {REGISTRY}/{repository}:{}", tag.as_ref().unwrap()));
    }
    for RecordedFile { path, url, digest, .. } in &record.files {
        reads(path.components().last().unwrap());
        reads(url);
        reads(&digest.hex());
    }
    let useless =
        "return [...document.querySelectorAll('input, button')].filter((e) => e.checkVisibility()).length";
    assert_eq!(page.browser.run(useless), 0);
}

#[test]
fn every_link_leads_to_its_file() {
    let mut record = kubespray();
    let names = [
        "a b",
        "100%",
        "%41",
        "a#b",
        "a?b=c&d",
        "ü ✓ 日本",
        "<i>\"'`",
        "a+b;c,d@e:f=g$h!(i)*[j]{k}|l^m~",
        "...",
    ];
    for (number, name) in names.into_iter().enumerate() {
        let (path, url) = (format!("k8s/odd.example/x:y/{name}"), format!("https://odd.example/{number}"));
        record.files.push(file(&path, &url));
    }
    let page = CatalogPage::new(&record);
    let links =
        page.browser.run("return [...document.querySelectorAll('#files tbody a')].map((a) => a.href)");
    let links = links.as_array().unwrap();
    assert_eq!(links.len(), record.files.len());
    for (link, file) in links.iter().zip(&record.files) {
        let mut answer =
            ureq::get(link.as_str().unwrap()).call().unwrap_or_else(|error| panic!("{link}: {error}"));
        assert_eq!(answer.body_mut().read_to_string().unwrap(), file.url.as_str());
    }
}

#[test]
fn page_makes_no_request_and_its_csp_forbids_any() {
    let mut record = kubespray();
    record.bundles[0].title = Some("<script>window.hostile = 1</script>".parse().unwrap());
    let page = CatalogPage::new(&record);
    let own = page.web.url("");
    let requested = page.browser.requests();
    assert!(requested.iter().all(|url| *url == own || url.starts_with("data:")), "{requested:?}");
    assert!(requested.contains(&own), "{requested:?}");
    let paths: Vec<_> = page.web.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/"]);
    assert_eq!(page.browser.console(), Vec::<Value>::new());

    // The CSP must block injected content even if it stays on this server.
    let tries = "
        const add = (name, attributes) => document.body.append(Object.assign(document.createElement(name), attributes));
        add('script', { textContent: 'window.hostile = 1' });
        add('style', { textContent: 'h1 { color: red }' });
        add('img', { src: 'picture' });
        add('iframe', { src: 'frame' });
        add('link', { rel: 'stylesheet', href: 'style' });
        document.querySelector('h1').setAttribute('onclick', 'window.hostile = 1');
        document.querySelector('h1').click();
        return fetch('fetched').catch(() => getComputedStyle(document.querySelector('h1')).color)";
    let colour = page.browser.run("return getComputedStyle(document.querySelector('h1')).color");
    assert_eq!(page.browser.run(tries), colour);
    assert_eq!(page.browser.run("return window.hostile ?? 'none'"), "none");
    assert_eq!(page.web.requests().len(), 1);
    assert!(page.browser.console().len() >= 6, "the browser tells what it has stopped");
}

#[test]
fn page_fits_every_screen_in_light_and_dark_mode() {
    let mut record = kubespray();
    record.bundles[0].title = Some("W".repeat(200).parse().unwrap());
    let long = "long-name".repeat(13);
    let digest = Digest::of(long.as_bytes());
    record.images.push(image(&format!("r.example/{long}@{digest}"), &long, None));
    record.images.push(image(&format!("r.example/{long}:{long}"), &long, Some(&long)));
    record.images[0].platforms = vec!["linux/riscv64".parse().unwrap(); 9];
    record.files.push(file(&format!("k8s/{long}/{long}"), &format!("https://{long}/{long}")));
    let page = CatalogPage::new(&record);
    for width in [320, 390, 800, 801, 1400, 2560] {
        let size = json!({ "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500 });
        page.browser.command("Emulation.setDeviceMetricsOverride", &size);
        let beyond =
            "const { scrollWidth, clientWidth } = document.documentElement; return scrollWidth - clientWidth";
        assert_eq!(page.browser.run(beyond), 0, "{width}");
    }
    let mut pages = Vec::new();
    for scheme in ["light", "dark"] {
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        page.browser.command("Emulation.setEmulatedMedia", &media);
        let weak = page.browser.run(WEAK_CONTRAST);
        assert_eq!(weak, json!([]), "{scheme}: less than 4.5 to 1");
        pages.push(page.browser.run("return getComputedStyle(document.body).backgroundColor"));
    }
    assert_ne!(pages[0], pages[1]);
}

/// Selects the elements whose text has less contrast than WCAG 2.2 level AA requires (1.4.3).
const WEAK_CONTRAST: &str = "
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => parts(colour).slice(0, 3)
        .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const background = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return (parts(colour)[3] ?? 1) === 0 ? background(element.parentElement) : colour;
    };
    const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
    return [...document.querySelectorAll('body *')]
        .filter((e) => e.checkVisibility() && ([...e.childNodes].some(isText) || e.matches('button, input')))
        .filter((e) => {
            const [a, b] = [luminance(getComputedStyle(e).color), luminance(background(e))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
        })
        .map((e) => e.outerHTML)";

#[test]
fn screen_reader_gets_tables_landmarks_and_names() {
    let page = CatalogPage::new(&kubespray());
    // Some browsers drop the role of these elements when their `display` changes.
    let silent =
        "return document.querySelectorAll(':is(table, thead, tbody, tr, th, td):not([role])').length";
    assert_eq!(page.browser.run(silent), 0);
    // The accessibility tree that a screen reader gets.
    let nodes = page.browser.accessibility();
    let count = |role: &str| nodes.iter().filter(|(known, _)| known == role).count();
    for (role, times) in [
        ("banner", 1),
        ("search", 1),
        ("navigation", 1),
        ("main", 1),
        ("contentinfo", 1),
        ("region", 2),
        ("table", 2),
        ("row", 2 + 57 + 23),
        ("rowheader", 57 + 23),
        ("columnheader", 5 + 4),
        ("cell", 57 * 4 + 23 * 3),
    ] {
        assert_eq!(count(role), times, "{role}");
    }
    for expected in [
        ("searchbox", "Search images and files"),
        ("table", "Images"),
        ("table", "Files"),
        ("columnheader", "Pull command"),
        ("link", "kubelet"),
        ("button", "Copy the digest of registry.k8s.io/pause:3.9"),
    ] {
        assert!(nodes.iter().any(|(role, name)| (role.as_str(), name.as_str()) == expected), "{expected:?}");
    }
    assert!(nodes.iter().all(|(role, name)| role != "button" || !name.is_empty()));
}
