//! Property tests: no text of a bundle, of `site.json` or of `settings.json` changes the structure of a generated file.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

use crate::base::directory::Directory;
use crate::conf::generated::Generated;
use crate::conf::plain_path::PlainPath;
use crate::conf::quote::{Text, ansible, compose, nginx, shell, systemd, toml, yaml};
use crate::conf::setup::{Settings, Setup, Tls};
use crate::conf::{clients, kubespray, registry, script, trust};
use crate::oci::digest::Digest;
use crate::oci::manifest::OCI_MANIFEST;
use crate::site::catalog::Page;

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
            items.flat_map(|item| ["- ".to_owned(), item.as_str().to_owned(), "\n".to_owned()]).collect()
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

/// A field of `site.json` or of [`Setup`], as a function that sets it.
type Field = (&'static str, fn(&mut Value, &mut Setup, &str));

const FIELDS: [Field; 13] = [
    ("host", |_, setup, text| text.clone_into(&mut setup.settings.host)),
    ("user", |_, setup, text| setup.settings.user = Some(text.to_owned())),
    ("ca", |_, setup, text| setup.ca = Some(text.to_owned())),
    ("bundle title", |record, _, text| record["bundles"][1]["title"] = text.into()),
    ("bundle date", |record, _, text| record["bundles"][1]["created"] = text.into()),
    ("reference", |record, _, text| record["images"][1]["reference"] = text.into()),
    ("repository", |record, _, text| record["images"][1]["repositories"] = json!([text])),
    ("tag", |record, _, text| record["images"][1]["tag"] = text.into()),
    ("platform", |record, _, text| record["images"][1]["platforms"] = json!([text])),
    ("media type", |record, _, text| record["images"][1]["manifests"][0]["mediaType"] = text.into()),
    ("retired media type", |record, _, text| record["retired"][0]["mediaType"] = text.into()),
    ("file path", |record, _, text| record["files"][1]["path"] = text.into()),
    ("file URL", |record, _, text| record["files"][1]["url"] = text.into()),
];

/// Returns the setup of a site with these fields. `None`: its record is refused.
fn setup(directory: &std::path::Path, fields: &[Field], text: &str) -> Option<Setup> {
    let digest = |name: &str| Digest::of(name.as_bytes()).to_string();
    let bundle =
        |name| json!({ "identity": digest(name), "title": "A title", "created": "2026-01-01T00:00:00Z" });
    let manifest = |name: &str| json!({ "digest": digest(name), "mediaType": OCI_MANIFEST });
    let image = |name: &str| {
        json!({
            "reference": format!("{name}:v1"), "repositories": [format!("k8s/{name}")], "tag": "v1",
            "platforms": ["linux/amd64"], "size": 1, "manifests": [manifest(name)],
        })
    };
    let file = |name: &str| json!({ "path": format!("k8s/{name}"), "url": format!("https://{name}"), "size": 1, "digest": digest(name) });
    let mut record = json!({
        "format": 1, "filesRoot": "files", "registryRoot": "registry",
        "bundles": [bundle("a"), bundle("b"), bundle("c")],
        "images": [image("docker.io/library/nginx"), image("quay.io/a/b")],
        "files": [file("dl.k8s.io/a"), file("get.helm.sh/b")],
        "retired": [manifest("retired")],
    });
    let path = |name: &str| PlainPath::new(directory.join(name)).unwrap();
    let settings = Settings {
        host: "hub.example".to_owned(),
        ip: [10, 0, 0, 1].into(),
        files_port: 8080,
        registry_port: 5000,
        tls: Tls::Auto,
        user: Some("carla".to_owned()),
        hsts: true,
        own_index_page: false,
        bind: None,
        upstream_fallback: false,
    };
    let mut setup = Setup {
        site: path("site"),
        files: path("site/files"),
        registry: path("site/registry"),
        conf: path("conf"),
        settings,
        record: serde_json::from_value(record.clone()).unwrap(),
        ca: Some("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned()),
    };
    for (_, set) in fields {
        set(&mut record, &mut setup, text);
    }
    setup.record = serde_json::from_value(record).ok()?;
    Some(setup)
}

/// Returns the names of the generated files, each with its text without the content of quoted values. Fails if a parser refuses one.
fn structure(setup: &Setup) -> BTreeSet<(String, String)> {
    let scratch = tempfile::tempdir().unwrap();
    let directory = Directory::open(scratch.path()).unwrap();
    let mut generated = Generated::open(&directory).unwrap();
    crate::conf::nginx::generate(setup, &mut generated);
    registry::generate(setup, &mut generated);
    generated.put("compose.yaml", crate::conf::compose::file(setup).as_bytes(), 0o644);
    crate::conf::systemd::generate(setup, &mut generated);
    trust::generate(setup, &mut generated);
    let clients = clients::all(setup);
    clients::generate(&clients, &mut generated);
    generated.put("kubespray/offline.yml", kubespray::offline(setup).as_bytes(), 0o644);
    generated.put("site", script::script(setup).as_bytes(), 0o755);
    let html = Page { record: &setup.record, registry: &setup.registry_host(), clients: &clients }.html();
    let mut all = BTreeSet::from([("index.html".to_owned(), tags(&html))]);
    for (name, content) in generated.contents() {
        let is_safe = |part: &str| !part.is_empty() && !part.starts_with('.');
        assert!(name.split('/').all(is_safe), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "._:[]/-".contains(c)), "{name}");
        let text = std::str::from_utf8(content).unwrap();
        let skeleton = match name.rsplit(['/', '.']).next().unwrap() {
            "json" => {
                serde_json::from_str::<Value>(text).unwrap();
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
        // Below these directories, names are those of repositories and hosts.
        let foreign = ["registry-api/tags/", "registry-api/referrers/", "containerd/certs.d/"];
        let name = foreign.into_iter().find(|directory| name.starts_with(directory)).unwrap_or(name);
        // The lines of a map are in the order of the names.
        let mut lines: Vec<&str> = skeleton.lines().collect();
        if name == "registry-api/manifests.conf" {
            lines.sort_unstable();
        }
        all.insert((name.to_owned(), lines.join("\n").replace("!unsafe ", "")));
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
    let texts = Texts::take(20);
    let default = structure(&setup(directory.path(), &[], "").unwrap());
    for field in FIELDS {
        let of = |text: &str| Some(structure(&setup(directory.path(), &[field], text)?));
        // A text that is not a name that a client could request is omitted.
        let variants: Vec<_> =
            [of(BENIGN), of("\u{1}"), Some(default.clone())].into_iter().flatten().collect();
        for text in &texts {
            for file in of(text).into_iter().flatten() {
                let is_known = variants.iter().any(|variant| variant.contains(&file));
                assert!(
                    is_known,
                    "{}: {text:?}: {}:
{}",
                    field.0, file.0, file.1
                );
            }
        }
    }
}

#[test]
fn a_comment_has_no_foreign_text() {
    let directory = tempfile::tempdir().unwrap();
    let marker = "marker-of-a-field";
    let mut accepted = 0;
    for field in FIELDS {
        let Some(setup) = setup(directory.path(), &[field], marker) else { continue };
        for (name, text) in structure(&setup) {
            assert!(!text.contains(marker), "{}: {name}:\n{text}", field.0);
        }
        accepted += 1;
    }
    assert!(accepted >= 6, "{accepted}");
}
