//! Property tests: no text of a bundle, of `site.json` or of `settings.json` changes the structure of a generated file.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::base::directory::Directory;
use crate::conf::generated::Generated;
use crate::conf::plain_path::PlainPath;
use crate::conf::quote::{Text, ansible, compose, nginx, shell, systemd, toml, yaml};
use crate::conf::setup::{Settings, Setup, Tls};
use crate::conf::{kubespray, registry, script, trust};
use crate::oci::digest::Digest;
use crate::oci::manifest::OCI_MANIFEST;
use crate::site::catalog::Page;
use crate::site::record::{Record, RecordedBundle, RecordedFile, RecordedImage, RecordedManifest};

/// A text that every field accepts.
const BENIGN: &str = "xq";

/// Texts that ended a value, or began a command, in some language.
const NASTY: [&str; 30] = [
    "",
    "\n",
    "x\nEND\ntouch /tmp/proof\ncat <<'END'\n/pause",
    "a\" x;\n} # ",
    "'; touch /tmp/proof; '",
    "'\\''$(touch /tmp/proof)`id`",
    "${IFS}$HOME$$",
    "{{ lookup('pipe', 'id') }}",
    "{% raw %}{# #}{{",
    "!unsafe x",
    "&a *a",
    "a: b\n- c",
    "# comment",
    "\u{2028}\u{2029}\u{85}x: y",
    "\u{feff}",
    "]\n[host.\"x\"]",
    "\"\"\"'''",
    "\\",
    "\\\"",
    "\\x41\\u0041\\n",
    "%n%%i%h",
    "\r\nExecStart=/bin/sh",
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "~^.*$",
    "default",
    "</script><script>alert(1)</script>",
    "\u{202e}\u{200b}\u{1b}[2J",
    "\0\u{7f}\u{9b}\u{10ffff}🙂",
];

/// A sequence of texts: [`NASTY`], then random ones, the same in every run.
struct Texts(u64);

impl Texts {
    fn take(count: usize) -> Vec<String> {
        let mut texts = Self(0x9e37_79b9_7f4a_7c15);
        let random = std::iter::repeat_with(|| texts.next()).take(count);
        NASTY.map(str::to_owned).into_iter().chain(random).collect()
    }

    fn number(&mut self, below: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn next(&mut self) -> String {
        let length = self.number(12);
        (0..length).map(|_| self.char()).collect()
    }

    fn char(&mut self) -> char {
        const SPECIAL: &str = "\"'\\$`{}%#;:\n\r\t \0&*!|><?@[](),=-~^/.\u{85}\u{2028}\u{202e}\u{feff}ax1";
        let specials: Vec<char> = SPECIAL.chars().collect();
        if self.number(4) > 0 {
            let at = self.number(specials.len() as u64);
            return specials[usize::try_from(at).unwrap()];
        }
        let code = self.number(0x11_0000);
        char::from_u32(u32::try_from(code).unwrap()).unwrap_or('\u{fffd}')
    }
}

#[cfg(feature = "net")]
fn yaml_scalars(document: &str) -> Vec<String> {
    use saphyr_parser::{Event, Parser};
    let events = Parser::new_from_str(document)
        .map(|event| event.unwrap_or_else(|error| panic!("{error}: {document}")).0);
    events
        .filter_map(|event| if let Event::Scalar(text, ..) = event { Some(text.into_owned()) } else { None })
        .collect()
}

/// Returns the value of a token in double quotes, in which `\` escapes what `unescape` knows.
fn unquoted(token: &str, unescape: impl Fn(&mut std::str::Chars<'_>) -> String) -> String {
    let inner =
        token.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_else(|| panic!("{token}"));
    let (mut chars, mut value) = (inner.chars(), String::new());
    while let Some(c) = chars.next() {
        assert_ne!(c, '"', "{token}");
        if c == '\\' { value += &unescape(&mut chars) } else { value.push(c) }
    }
    value
}

#[test]
fn every_language_reads_a_quoted_text_as_it_was() {
    let texts = Texts::take(3000);
    let without_nul = |text: &String| text.replace('\0', "\u{fffd}");

    #[cfg(feature = "net")]
    {
        fn list<L>(items: impl Iterator<Item = Text<L>>) -> String {
            items.map(|item| format!("- {}\n", item.as_str())).collect()
        }
        assert_eq!(yaml_scalars(&list(texts.iter().map(|text| yaml::string(text)))), texts);
        assert_eq!(yaml_scalars(&list(texts.iter().map(|text| ansible::string(text)))), texts);
        let with_dollars: Vec<_> = texts.iter().map(|text| text.replace('$', "$$")).collect();
        assert_eq!(yaml_scalars(&list(texts.iter().map(|text| compose::string(text)))), with_dollars);

        let items = Text::join(texts.iter().map(|text| toml::string(text)), ",\n");
        let table: BTreeMap<String, Vec<String>> =
            ::toml::from_str(&format!("a = [{}]", items.as_str())).unwrap();
        assert_eq!(table["a"], texts);
    }

    let words = Text::join(texts.iter().map(|text| shell::word(text)), " ");
    let script = tempfile::NamedTempFile::new().unwrap();
    let body = format!("for word in {}; do printf '%s\\0' \"$word\"; done", words.as_str());
    std::fs::write(script.path(), body).unwrap();
    let output = Command::new("sh").arg(script.path()).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let read: Vec<_> = output.split_terminator('\0').collect();
    assert_eq!(read, texts.iter().map(without_nul).collect::<Vec<_>>());

    for text in &texts {
        let read = unquoted(systemd::word(text).as_str(), |chars| match chars.next() {
            Some('x') => {
                let hex: String = chars.take(2).collect();
                char::from(u8::from_str_radix(&hex, 16).unwrap()).into()
            }
            Some(c @ ('"' | '\\')) => c.into(),
            other => panic!("{other:?}"),
        });
        assert!(!systemd::word(text).as_str().contains(['\n', '\r']));
        assert_eq!(read.replace("%%", "%"), without_nul(text));
        assert_eq!(read.matches('%').count(), 2 * text.matches('%').count());
        let read = unquoted(nginx::map_key(text).as_str(), |chars| match chars.next() {
            Some(c @ ('"' | '\\')) => c.into(),
            other => panic!("{other:?}"),
        });
        assert_eq!(read, format!("\\{}", without_nul(text)));
        unquoted(nginx::exact_map_key(text).as_str(), |chars| match chars.next() {
            Some(c @ ('"' | '\\')) => c.into(),
            other => panic!("{other:?}"),
        });
    }
}

/// A field of `site.json` or `settings.json`, as a function that sets it.
type Field = (&'static str, fn(&mut Setup, &str));

const FIELDS: [Field; 13] = [
    ("host", |setup, text| text.clone_into(&mut setup.settings.host)),
    ("user", |setup, text| setup.settings.user = Some(text.to_owned())),
    ("ca", |setup, text| setup.ca = Some(text.to_owned())),
    ("bundle title", |setup, text| setup.record.bundles[1].title = Some(text.to_owned())),
    ("bundle date", |setup, text| setup.record.bundles[1].created = Some(text.to_owned())),
    ("reference", |setup, text| text.clone_into(&mut setup.record.images[1].reference)),
    ("repository", |setup, text| setup.record.images[1].repositories = [text.to_owned()].into()),
    ("tag", |setup, text| setup.record.images[1].tag = Some(text.to_owned())),
    ("platform", |setup, text| setup.record.images[1].platforms = vec![text.to_owned()]),
    ("media type", |setup, text| text.clone_into(&mut setup.record.images[1].manifests[0].media_type)),
    ("retired media type", |setup, text| text.clone_into(&mut setup.record.retired[0].media_type)),
    ("file path", |setup, text| text.clone_into(&mut setup.record.files[1].path)),
    ("file URL", |setup, text| text.clone_into(&mut setup.record.files[1].url)),
];

fn setup(directory: &std::path::Path) -> Setup {
    let mut record = Record::new("files".into(), "registry".into());
    let bundle = |name: &[u8]| RecordedBundle {
        identity: Digest::of(name),
        title: Some("A title".to_owned()),
        created: Some("2026-01-01T00:00:00Z".to_owned()),
        partial: false,
    };
    let manifest =
        |name: &[u8]| RecordedManifest { digest: Digest::of(name), media_type: OCI_MANIFEST.into() };
    let image = |reference: &str, repository: &str| RecordedImage {
        reference: format!("{reference}:v1"),
        repositories: [repository.to_owned()].into(),
        tag: Some("v1".to_owned()),
        platforms: vec!["linux/amd64".to_owned()],
        size: 1,
        manifests: vec![manifest(reference.as_bytes())],
    };
    let file = |name: &str| RecordedFile {
        path: format!("k8s/{name}"),
        url: format!("https://{name}"),
        size: 1,
        digest: Digest::of(name.as_bytes()),
    };
    record.bundles = vec![bundle(b"a"), bundle(b"b"), bundle(b"c")];
    record.images = vec![
        image("docker.io/library/nginx", "k8s/docker.io/library/nginx"),
        image("quay.io/a/b", "k8s/quay.io/a/b"),
    ];
    record.files = vec![file("dl.k8s.io/a"), file("get.helm.sh/b")];
    record.retired = vec![manifest(b"retired")];
    let path = |name: &str| PlainPath::new(directory.join(name)).unwrap();
    let settings = Settings {
        host: "hub.example".to_owned(),
        ip: [10, 0, 0, 1].into(),
        files_port: 8080,
        registry_port: 5000,
        tls: Tls::Auto,
        user: Some("carla".to_owned()),
        hsts: true,
    };
    Setup {
        site: path("site"),
        files: path("site/files"),
        registry: path("site/registry"),
        conf: path("conf"),
        settings,
        record,
        ca: Some("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned()),
    }
}

/// Returns the generated files by name, each without the content of its quoted values. Fails if a parser refuses one.
fn structure(setup: &Setup, hostile: &str) -> BTreeMap<String, String> {
    let scratch = tempfile::tempdir().unwrap();
    let directory = Directory::open(scratch.path()).unwrap();
    let mut generated = Generated::open(&directory).unwrap();
    crate::conf::nginx::generate(setup, &mut generated);
    registry::generate(setup, &mut generated);
    generated.put("compose.yaml", crate::conf::compose::file(setup).as_bytes(), 0o644);
    crate::conf::systemd::generate(setup, &mut generated);
    trust::generate(setup, &mut generated);
    generated.put("kubespray/offline.yml", kubespray::offline(setup).as_bytes(), 0o644);
    generated.put("site", script::script(setup).as_bytes(), 0o755);
    let html = Page { record: &setup.record, registry: &setup.registry_host() }.html();
    let mut all = BTreeMap::from([("index.html".to_owned(), tags(&html))]);
    for (name, content) in generated.contents() {
        let is_safe = |part: &str| !part.is_empty() && !part.starts_with('.');
        assert!(name.split('/').all(is_safe), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "._:[]/-".contains(c)), "{name}");
        let text = std::str::from_utf8(content).unwrap();
        let skeleton = match name.rsplit(['/', '.']).next().unwrap() {
            "json" => {
                serde_json::from_str::<serde_json::Value>(text).unwrap();
                without_quoted(text, '"')
            }
            "sh" | "site" => without_quoted(text, '\''),
            // The certificate is copied as it is.
            "crt" => String::new(),
            _ => without_quoted(text, '"'),
        };
        #[cfg(feature = "net")]
        match name.rsplit('.').next().unwrap() {
            "yml" | "yaml" => drop(yaml_scalars(text)),
            "toml" => drop(::toml::from_str::<::toml::Table>(text).unwrap()),
            "conf" if name.starts_with("podman") => drop(::toml::from_str::<::toml::Table>(text).unwrap()),
            _ => {}
        }
        let name = if hostile.is_empty() { name.to_owned() } else { name.replace(hostile, "VALUE") };
        all.insert(name, skeleton.replace("!unsafe ", ""));
    }
    all
}

/// Returns `text` without what is between quotes, in which `\` escapes the next character if they are double.
fn without_quoted(text: &str, quote: char) -> String {
    let (mut chars, mut rest) = (text.chars(), String::new());
    while let Some(c) = chars.next() {
        match c {
            // A comment of this program can have an apostrophe, and a word in double quotes, too.
            '#' if rest.is_empty() || rest.ends_with(['\n', ' ']) => {
                rest.push(c);
                rest.extend(chars.by_ref().take_while(|c| *c != '\n'));
                rest.push('\n');
            }
            '\\' if quote == '\'' => rest.extend([Some(c), chars.next()].into_iter().flatten()),
            '"' if quote == '\'' => {
                rest.push(c);
                while let Some(c) = chars.next() {
                    rest.push(c);
                    match c {
                        '\\' => rest.extend(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            c if c == quote => {
                while let Some(c) = chars.next() {
                    if c == quote {
                        break;
                    }
                    if c == '\\' && quote == '"' {
                        chars.next();
                    }
                }
                rest.push(quote);
            }
            c => rest.push(c),
        }
    }
    // `'\''` is one word.
    rest.replace("'\\'", "")
}

/// Returns the tags of an HTML page, without the values of their attributes. `wbr` depends on the number of slashes.
fn tags(html: &str) -> String {
    let html = html.replace("<wbr>", "");
    let tags = html.split('<').skip(1).map(|part| part.split('>').next().unwrap());
    tags.map(|tag| without_quoted(tag, '"') + "\n").collect()
}

#[test]
fn no_field_changes_the_structure_of_a_generated_file() {
    let directory = tempfile::tempdir().unwrap();
    let texts = Texts::take(150);
    for (field, set) in FIELDS {
        let of = |text: &str| {
            let mut setup = setup(directory.path());
            set(&mut setup, text);
            structure(&setup, text)
        };
        let with = of(BENIGN);
        // The text is omitted, because it is not a name that a client could request.
        let mut expected: BTreeMap<&str, BTreeSet<Option<String>>> = BTreeMap::new();
        let without = of("\u{1}");
        let default = structure(&setup(directory.path()), "");
        for variant in [&with, &without, &default] {
            for name in [&with, &without, &default].into_iter().flat_map(|variant| variant.keys()) {
                expected.entry(name).or_default().insert(variant.get(name).cloned());
            }
        }
        for text in &texts {
            for (name, skeleton) in of(text) {
                let expected = expected.get(&*name).unwrap_or_else(|| panic!("{field}: {text:?}: {name}"));
                assert!(expected.contains(&Some(skeleton.clone())), "{field}: {text:?}: {name}:\n{skeleton}");
            }
        }
    }
}

#[test]
fn a_comment_has_no_foreign_text() {
    let directory = tempfile::tempdir().unwrap();
    let marker = "marker-of-a-field";
    let mut setup = setup(directory.path());
    for (field, set) in FIELDS {
        if !["reference", "media type"].contains(&field) {
            set(&mut setup, marker);
        }
    }
    for (name, text) in structure(&setup, "") {
        assert!(!text.contains(marker), "{name}:\n{text}");
    }
}
