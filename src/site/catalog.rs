//! [`Page`]: the catalog of a site, an HTML page with search.
//!
//! A single HTML file with inline style and script. Its content security policy allows these two and no
//! request. The script adds search and copy buttons; everything else works without it. Text of a bundle is shown with
//! hidden characters as escape sequences.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::base::text::escape;
use crate::base::units::human_bytes;
use crate::oci::digest::Digest;
use crate::site::record::{Record, RecordedBundle, RecordedFile, RecordedImage};

const GENERATOR: &str = "airbundle";
const STYLE: &str = include_str!("catalog/style.css");
const SCRIPT: &str = include_str!("catalog/script.js");

/// The characters of a path that are percent-encoded: all but the unreserved ones (RFC 3986, section 2.3) and
/// `/`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A kind of client, and its configuration for a site.
#[derive(Debug, Clone)]
pub struct Client {
    /// The name of the program.
    pub name: &'static str,
    /// The generated file or directory, relative to the directory of the configuration.
    pub file: &'static str,
    /// The destination of the file: two lines.
    pub place: &'static str,
    /// The content.
    pub text: String,
}

/// The catalog of a site. Links are relative to the root of the files, where the page must be.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// The contents of the site.
    pub record: &'a Record,
    /// Host and port of the registry: `hub.kubespray.local:5000`.
    pub registry: &'a str,
    /// The configuration of its clients.
    pub clients: &'a [Client],
}

impl Page<'_> {
    /// Renders the page. The same record and registry result in the same bytes.
    #[must_use]
    pub fn html(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                (self.head())
                body {
                    (self.header())
                    (self.bar())
                    main {
                        (self.images())
                        (self.files())
                    }
                    (self.clients())
                    footer {
                        p {
                            code { "unbundle" }
                            " verified the digests of all images and files when it unpacked them. This page loads "
                            "nothing from other servers."
                        }
                    }
                }
            }
        };
        page.into_string()
    }

    /// True if `html` is the catalog of any site.
    #[must_use]
    pub fn is(html: &str) -> bool {
        html.contains(&format!(r#"<meta name="generator" content="{GENERATOR}">"#))
    }

    fn head(&self) -> Markup {
        html! {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(security_policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content=(GENERATOR);
                title { (self.title()) " · Catalog" }
                // Otherwise browsers request `/favicon.ico`.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }

    fn title(&self) -> Cow<'_, str> {
        match &self.record.bundles[..] {
            [RecordedBundle { title: Some(title), .. }] => escape(title),
            _ => "Images and files".into(),
        }
    }

    fn header(&self) -> Markup {
        let Record { bundles, .. } = self.record;
        html! {
            header {
                p.eyebrow { "Catalog" }
                h1 { (self.title()) }
                @if let [bundle] = &bundles[..] {
                    (facts(bundle))
                } @else {
                    ol.bundles reversed aria-label="Bundles" {
                        @for bundle in bundles.iter().rev() {
                            li {
                                h2 { (escape(bundle.title.as_deref().unwrap_or("Untitled bundle"))) }
                                (facts(bundle))
                            }
                        }
                    }
                }
            }
        }
    }

    /// The sticky bar: search, links to the sections, and counts, which the script updates.
    fn bar(&self) -> Markup {
        let Record { images, files, .. } = self.record;
        html! {
            div.bar {
                div.search role="search" hidden {
                    label.unseen for="search" { "Search images and files" }
                    input #search type="search" placeholder="Search images and files" autocomplete="off"
                        autocapitalize="off" spellcheck="false";
                }
                nav aria-label="Sections" {
                    p { a href="#images" { "Images" } " " span.count { (images.len()) } }
                    p { a href="#files" { "Files" } " " span.count { (files.len()) } }
                    @if !self.clients.is_empty() { p { a href="#clients" { "Clients" } } }
                }
            }
        }
    }

    fn images(&self) -> Markup {
        html! {
            section #images aria-labelledby="images-heading" {
                h2 #images-heading { "Images" }
                @if self.record.images.is_empty() {
                    p.note { "This site has no images." }
                } @else {
                    p.note {
                        "In the registry " code { (escape(self.registry)) } ". " code { "podman" } ", " code { "nerdctl" } " and "
                        code { "crictl" } " pull in the same way as " code { "docker" } ". Sizes include shared layers."
                    }
                    table.images role="table" aria-labelledby="images-heading" {
                        thead role="rowgroup" {
                            tr role="row" {
                                th role="columnheader" scope="col" { "Image" }
                                th role="columnheader" scope="col" { "Pull command" }
                                th role="columnheader" scope="col" { "Platforms" }
                                th role="columnheader" scope="col" { "Size" }
                                th role="columnheader" scope="col" { "Digest" }
                            }
                        }
                        tbody role="rowgroup" {
                            @for image in &self.record.images { (self.image(image)) }
                        }
                    }
                    p.none hidden { "No image matches." }
                }
            }
        }
    }

    fn image(&self, image: &RecordedImage) -> Markup {
        let reference = &*escape(image.reference.as_str());
        // Digests and tags contain no `/`.
        let name_at = reference.rfind('/').map_or(0, |slash| slash + 1);
        let (path, name) = reference.split_at(name_at);
        let (name, version) = name.split_at(name.find(['@', ':']).unwrap_or(name.len()));
        html! {
            tr role="row" {
                th role="rowheader" scope="row" {
                    span.path { (path) } b { (name) }
                    span.version .digest[version.starts_with('@')] { (version) }
                }
                td.pull role="cell" {
                    @for repository in &image.repositories {
                        @if let Some(name) = self.pull_name(repository, image) {
                            p { code data-copy={ "the pull command of " (reference) } { "docker pull " (breakable(&escape(&name))) } }
                        }
                    }
                }
                td.platforms role="cell" {
                    @for platform in &image.platforms { span { (platform) } " " }
                    @if image.platforms.is_empty() { span { "artifact" } }
                }
                td.size role="cell" { (size(image.size)) }
                td role="cell" {
                    @if let Some(digest) = image.digest() { (digest_text(&digest.to_string(), "digest", reference)) }
                }
            }
        }
    }

    /// Returns the reference of an image in a repository of this site. `None`: no tag and no recorded digest.
    fn pull_name(&self, repository: &str, image: &RecordedImage) -> Option<String> {
        let Self { registry, .. } = self;
        match &image.tag {
            Some(tag) => Some(format!("{registry}/{repository}:{tag}")),
            None => Some(format!("{registry}/{repository}@{}", image.digest()?)),
        }
    }

    fn files(&self) -> Markup {
        html! {
            section #files aria-labelledby="files-heading" {
                h2 #files-heading { "Files" }
                @if self.record.files.is_empty() {
                    p.note { "This site has no files." }
                } @else {
                    p.note { "The URL below a file name is its source." }
                    table.files role="table" aria-labelledby="files-heading" {
                        thead role="rowgroup" {
                            tr role="row" {
                                th role="columnheader" scope="col" { "File" }
                                th role="columnheader" scope="col" { "Source" }
                                th role="columnheader" scope="col" { "Size" }
                                th role="columnheader" scope="col" { "SHA-256" }
                            }
                        }
                        tbody role="rowgroup" {
                            @for file in &self.record.files { (self::file(file)) }
                        }
                    }
                    p.none hidden { "No file matches." }
                }
            }
        }
    }

    fn clients(&self) -> Markup {
        html! {
            @if !self.clients.is_empty() {
                aside #clients aria-labelledby="clients-heading" {
                    h2 #clients-heading { "Clients" }
                    p.note {
                        code { "trust.sh" } " configures a node completely. These files are for nodes where it cannot run; they are in the "
                        "directory of the site's configuration."
                    }
                    @for Client { name, file, place, text } in self.clients {
                        details {
                            summary { (name) " " code { (file) } }
                            @for line in place.lines() { p { (with_code(line)) } }
                            pre { code data-copy={ "the configuration of " (name) } { (escape_lines(text)) } }
                        }
                    }
                }
            }
        }
    }
}

/// Renders text in which backticks surround code.
fn with_code(text: &str) -> Markup {
    html! {
        @for (number, part) in text.split('`').enumerate() {
            @if number % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Escapes the hidden characters of each line.
fn escape_lines(text: &str) -> String {
    text.lines().map(|line| escape(line).into_owned() + "\n").collect()
}

fn file(file: &RecordedFile) -> Markup {
    let name = &*escape(file.path.components().last().unwrap_or_default());
    html! {
        tr role="row" {
            th role="rowheader" scope="row" {
                a href=(link(file.path.as_str())) data-copy={ "the link to " (name) } { (name) }
            }
            td.source role="cell" { (breakable(&escape(&file.url))) }
            td.size role="cell" { (size(file.size)) }
            td role="cell" { (digest_text(&file.digest.hex(), "SHA-256", name)) }
        }
    }
}

/// Renders text with an optional line break after each `/`.
fn breakable(text: &str) -> Markup {
    html! { @for part in text.split_inclusive('/') { (part) wbr; } }
}

/// Renders the time of packing, the identity and the state of a bundle.
fn facts(bundle: &RecordedBundle) -> Markup {
    html! {
        dl {
            @if let Some(created) = &bundle.created {
                div { dt { "Packed" } dd { time datetime=(escape(created)) { (escape(&date(created))) } } }
            }
            div {
                dt { "Identity" }
                dd { (digest_text(&bundle.identity.to_string(), "identity", "the bundle")) }
            }
            @if bundle.partial {
                div { dt { "Unpacked" } dd { "partially" } }
            }
        }
    }
}

/// Renders a full digest. With a copy button, the style truncates it.
fn digest_text(digest: &str, what: &str, of: &str) -> Markup {
    html! { code.digest title=(digest) data-copy={ "the " (what) " of " (of) } { (digest) } }
}

fn size(bytes: u64) -> Markup {
    html! { span title={ (bytes) " bytes" } { (human_bytes(bytes)) } }
}

/// Formats a date; returns text that is not RFC 3339 unchanged.
fn date(rfc3339: &str) -> String {
    match OffsetDateTime::parse(rfc3339, &Rfc3339).map(|date| date.to_utc()) {
        Ok(date) => format!(
            "{} {} {}, {:02}:{:02} UTC",
            date.day(),
            date.month(),
            date.year(),
            date.hour(),
            date.minute()
        ),
        Err(_) => rfc3339.to_owned(),
    }
}

/// Returns a relative URL. Because of the `./`, the path cannot be parsed as a scheme or host.
fn link(path: &str) -> String {
    format!("./{}", utf8_percent_encode(path, ENCODED))
}

/// Returns the content security policy of the page: the style and the script of this page, the empty icon, and images
/// in the style. A `meta` element cannot forbid frames, so the server adds that and sends the policy, too.
#[must_use]
pub(crate) fn security_policy() -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Digest::of(text.as_bytes()).as_bytes());
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; base-uri 'none'; \
         form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::manifest::OCI_INDEX;
    use crate::oci::media_type::MediaType;
    use crate::oci::platform::Platform;
    use crate::site::record::RecordedManifest;

    const REGISTRY: &str = "hub.example:5000";

    fn record() -> Record {
        Record::new("files".into(), "registry".into())
    }

    fn bundle(title: Option<&str>) -> RecordedBundle {
        let identity = Digest::of(b"bundle");
        RecordedBundle { identity, title: title.map(|it| it.parse().unwrap()), created: None, partial: false }
    }

    fn image(reference: &str, repositories: &[&str], tag: Option<&str>) -> RecordedImage {
        RecordedImage {
            reference: reference.parse().unwrap(),
            repositories: repositories.iter().map(|name| name.parse().unwrap()).collect(),
            tag: tag.map(|tag| tag.parse().unwrap()),
            platforms: vec![Platform::linux_amd64()],
            size: 1,
            manifests: vec![RecordedManifest {
                digest: Digest::of(b"image"),
                media_type: MediaType::known(OCI_INDEX),
            }],
        }
    }

    fn file(path: &str, url: &str) -> RecordedFile {
        RecordedFile {
            path: path.parse().unwrap(),
            url: url.parse().unwrap(),
            size: 1_234_567,
            digest: Digest::of(b"file"),
        }
    }

    fn html(record: &Record) -> String {
        Page { record, registry: REGISTRY, clients: &[] }.html().replace("<wbr>", "")
    }

    /// Returns all texts between `before` and the next `after`.
    fn between<'a>(html: &'a str, before: &str, after: &str) -> Vec<&'a str> {
        html.split(before).skip(1).map(|rest| rest.split(after).next().unwrap()).collect()
    }

    #[test]
    fn text_of_the_record_is_escaped() {
        const HOSTILE: &str = "<i>\"'&amp;</i>\u{200b}";
        let mut record = record();
        record.bundles = vec![bundle(Some(HOSTILE)), bundle(None)];
        let name = HOSTILE.replace("/i", "i");
        record.files = vec![file(&name, "https://h/'&amp;")];
        let html = Page { record: &record, registry: HOSTILE, clients: &[] }.html();
        let plain = html.matches(HOSTILE.split_at(3).0).count() + html.matches(r#""'&amp;"#).count();
        assert_eq!(plain, 0, "{html}");
        assert!(html.matches("&lt;i&gt;&quot;'&amp;amp;").count() > 3, "{html}");
        assert!(!html.contains('\u{200b}') && html.contains("\\u{200b}"), "{html}");
    }

    #[test]
    fn links_percent_encode_file_names() {
        for (path, href) in [
            ("k8s/dl.k8s.io/v1.29.5/kubectl", "./k8s/dl.k8s.io/v1.29.5/kubectl"),
            ("k8s/h/a b#c?d%20~_-.txt", "./k8s/h/a%20b%23c%3Fd%2520~_-.txt"),
            ("k8s/h/ü/<&\"'+;=@:", "./k8s/h/%C3%BC/%3C%26%22%27%2B%3B%3D%40%3A"),
            ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
            ("//other.example/x", ".///other.example/x"),
        ] {
            assert_eq!(link(path), href);
        }
        let mut record = record();
        record.files = vec![file("k8s/h/a b#c", "https://h/a%20b%23c")];
        let html = html(&record);
        assert!(html.contains(r#"href="./k8s/h/a%20b%23c""#), "{html}");
        assert!(html.contains(">a b#c</a>") && html.contains(">https://h/a%20b%23c</td>"), "{html}");
        assert!(html.contains(r#"title="1234567 bytes">1.2 MB<"#), "{html}");
        assert!(html.contains(&format!(">{}</code>", Digest::of(b"file").hex())), "{html}");
    }

    #[test]
    fn every_repository_has_a_pull_command_with_the_tag_or_else_the_digest() {
        let digest = Digest::of(b"image");
        let commands = |image: RecordedImage| -> Vec<String> {
            let mut record = record();
            record.images = vec![image];
            let html = html(&record);
            between(&html, ">docker pull ", "<").into_iter().map(str::to_owned).collect()
        };
        assert_eq!(
            commands(image("quay.io/a/b:v1", &["k8s/quay.io/a/b", "a/b"], Some("v1"))),
            ["hub.example:5000/a/b:v1", "hub.example:5000/k8s/quay.io/a/b:v1"]
        );
        assert_eq!(
            commands(image(&format!("quay.io/a/b@{digest}"), &["a/b"], None)),
            [format!("hub.example:5000/a/b@{digest}")]
        );
        let mut without_digest = image(&format!("quay.io/a/b@{digest}"), &["a/b"], None);
        without_digest.manifests.clear();
        assert!(commands(without_digest).is_empty());
    }

    #[test]
    fn the_page_refers_only_to_files_of_the_site_and_its_own_sections() {
        let mut record = record();
        record.bundles = vec![bundle(Some("https://other.example"))];
        record.images = vec![image("quay.io/a/b:v1", &["a/b"], Some("v1"))];
        record.files = vec![file("k8s/h/a", "https://other.example/a")];
        let html = html(&record);
        let targets: Vec<_> = ["href=\"", "src=\"", "url('"]
            .into_iter()
            .flat_map(|before| between(&html, before, ":"))
            .collect();
        assert!(!targets.is_empty());
        for target in targets {
            assert!(["data", "./", "#"].iter().any(|start| target.starts_with(start)), "{target}");
        }
        for tag in ["@import", "<base", "<form", "<iframe", "<img"] {
            assert!(!html.contains(tag), "{tag}");
        }
        assert_eq!(between(&html, "<link ", ">"), [r#"rel="icon" href="data:,""#]);
    }

    #[test]
    fn the_title_is_that_of_the_only_bundle_and_several_bundles_are_listed_newest_first() {
        let title = |bundles: Vec<RecordedBundle>| {
            let mut record = record();
            record.bundles = bundles;
            let html = html(&record);
            let listed = between(&html, "<li><h2>", "<").into_iter().map(str::to_owned).collect::<Vec<_>>();
            (between(&html, "<h1>", "<")[0].to_owned(), listed.join(", "))
        };
        let none = String::new;
        assert_eq!(title(vec![]), ("Images and files".to_owned(), none()));
        assert_eq!(title(vec![bundle(None)]), ("Images and files".to_owned(), none()));
        assert_eq!(title(vec![bundle(Some("June"))]), ("June".to_owned(), none()));
        assert_eq!(
            title(vec![bundle(Some("June")), bundle(None), bundle(Some("July"))]),
            ("Images and files".to_owned(), "July, Untitled bundle, June".to_owned())
        );
    }

    #[test]
    fn dates_are_shown_in_words_and_in_utc() {
        for (rfc3339, text) in [
            ("2024-06-01T12:34:56Z", "1 June 2024, 12:34 UTC"),
            ("2024-12-31T23:30:00-01:00", "1 January 2025, 00:30 UTC"),
            ("some day", "some day"),
        ] {
            assert_eq!(date(rfc3339), text);
        }
    }
}
