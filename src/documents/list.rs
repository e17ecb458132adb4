//! [`Lists`]: the entries of `files.list` and `images.list`, parsed and merged.
//!
//! Each line is one entry: a URL is a file, anything else an image reference. The output of Kubespray's
//! `generate_list.sh` is valid; checksums and platforms can follow an entry.
//!
//! ```text
//! # a comment
//! https://dl.k8s.io/release/v1.29.5/bin/linux/amd64/kubelet sha256:261d…
//! registry.k8s.io/pause:3.9 platform=linux/amd64,linux/arm64
//! ```

use std::collections::HashMap;
use std::collections::hash_map;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::base::path::{self, PathError, RelPath};
use crate::oci::digest::{self, Digest};
use crate::oci::platform::{ParsePlatformError, Platform};
use crate::oci::reference::{Reference, ReferenceError};

/// Maximum size of a list in bytes. Kubespray's lists have 5 kB.
pub const MAX_LIST: u64 = 16 << 20;

/// File names of the lists in a directory.
pub const NAMES: [&str; 2] = ["files.list", "images.list"];

/// The entries of one or more lists, in their order, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Files, fetched by URL. No two paths collide.
    pub files: Vec<FileEntry>,
    /// Images, pulled from registries.
    pub images: Vec<ImageEntry>,
}

/// An entry for a file, fetched by URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// `http` or `https`, without credentials and fragment.
    pub url: Url,
    /// The path on the site: [`wget_path`] of the URL.
    pub path: RelPath,
    /// The expected checksum. `None`: the list has none.
    pub checksum: Option<Checksum>,
    /// The line of the first occurrence.
    pub origin: ListPosition,
}

/// An entry for an image, pulled from a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// The image reference, with a tag or digest.
    pub reference: Reference,
    /// The platforms of the entry. Empty: not specified.
    pub platforms: Vec<Platform>,
    /// The line of the first occurrence.
    pub origin: ListPosition,
}

/// A line of a list, displayed as `images.list:12`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPosition {
    /// The path of the list, as passed by the user.
    pub list: PathBuf,
    /// The line number, from 1.
    pub line: usize,
}

impl fmt::Display for ListPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.list.display(), self.line)
    }
}

/// A checksum, displayed as `sha256:` or `sha512:` and lower-case hex digits. Upper-case digits parse, too:
/// some publishers write them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// 32 bytes.
    Sha256(Digest),
    /// 64 bytes.
    Sha512([u8; 64]),
}

/// An error while parsing a [`Checksum`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `sha256:` and 64 hex digits, or `sha512:` and 128")]
pub struct ParseChecksumError;

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "{digest}"),
            Self::Sha512(bytes) => write!(f, "sha512:{}", digest::to_hex(bytes)),
        }
    }
}

impl FromStr for Checksum {
    type Err = ParseChecksumError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(ParseChecksumError)?;
        let hex = hex.to_ascii_lowercase();
        match algorithm {
            "sha256" => Digest::from_hex(&hex).ok().map(Self::Sha256),
            "sha512" => digest::parse_hex(&hex).map(Self::Sha512),
            _ => None,
        }
        .ok_or(ParseChecksumError)
    }
}

/// An invalid line of a list, displayed as `images.list:12:5: expected …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListProblem {
    /// The path of the list, as passed by the user.
    pub list: PathBuf,
    /// The line number, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The problem, and what is expected instead.
    pub message: String,
}

impl fmt::Display for ListProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.list.display(), self.line, self.column, self.message)
    }
}

/// An error while reading lists.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// A list or a directory cannot be read.
    #[error("cannot read list `{}`", path.display())]
    Read {
        /// The path of the list.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A list is larger than [`MAX_LIST`] bytes.
    #[error("cannot read list `{}`: larger than {MAX_LIST} bytes", path.display())]
    TooLarge {
        /// The path of the list.
        path: PathBuf,
    },
    /// A directory without any list.
    #[error("no `files.list` or `images.list` in directory `{}`", path.display())]
    NoList {
        /// The path of the directory.
        path: PathBuf,
    },
    /// Invalid lines: all of all lists.
    #[error("{}", lines(.0))]
    Problems(Vec<ListProblem>),
    /// The lists have no entries.
    #[error("the lists are empty: no file and no image")]
    Empty,
}

fn lines(problems: &[ListProblem]) -> String {
    problems.iter().map(ListProblem::to_string).collect::<Vec<_>>().join("\n")
}

impl Lists {
    /// Reads lists; a directory is replaced by the [`NAMES`] in it. Problems of all lists are collected, so
    /// that one run reports all of them.
    pub fn read(paths: &[PathBuf]) -> Result<Self, ListError> {
        let mut lists = Self::default();
        let mut problems = Vec::new();
        for path in paths {
            for list in lists_at(path)? {
                let bytes = read_bounded(&list)?;
                let mut of_list = Vec::new();
                let text = readable_text(&list, &bytes, &mut of_list);
                lists.parse_into(&list, &text, &mut of_list);
                of_list.sort_by_key(|problem| (problem.line, problem.column));
                problems.append(&mut of_list);
            }
        }
        if !problems.is_empty() {
            return Err(ListError::Problems(problems));
        }
        if lists.files.is_empty() && lists.images.is_empty() {
            return Err(ListError::Empty);
        }
        Ok(lists)
    }

    /// Adds the entries of `text`, the content of `list`. Duplicates are merged: a checksum is kept,
    /// platforms are united, and an image without platforms means all platforms. A line with a problem adds
    /// no entry; problems are appended in line order.
    pub fn parse_into(&mut self, list: &Path, text: &str, problems: &mut Vec<ListProblem>) {
        let mut of_text = Vec::new();
        let mut files = Vec::new();
        let mut images = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, number) in text.split('\n').zip(1..) {
            let origin = ListPosition { list: list.to_owned(), line: number };
            match parse_line(line.strip_suffix('\r').unwrap_or(line), &origin) {
                Ok(None) => {}
                Ok(Some(ListEntry::File(file, column))) => files.push((file, column)),
                Ok(Some(ListEntry::Image(image))) => images.push(image),
                Err(faults) => of_text.extend(faults.into_iter().map(|fault| fault.at(&origin))),
            }
        }
        self.add_files(files, &mut of_text);
        self.add_images(images);
        of_text.sort_by_key(|problem| (problem.line, problem.column));
        problems.append(&mut of_text);
    }

    fn add_files(&mut self, files: Vec<(FileEntry, usize)>, problems: &mut Vec<ListProblem>) {
        let mut known: HashMap<_, _> = self.files.iter().map(|file| file.url.clone()).zip(0..).collect();
        let before = self.files.len();
        let mut columns = Vec::new();
        for (file, column) in files {
            match known.entry(file.url.clone()) {
                hash_map::Entry::Vacant(entry) => {
                    entry.insert(self.files.len());
                    self.files.push(file);
                    columns.push(column);
                }
                hash_map::Entry::Occupied(entry) => {
                    let first = &mut self.files[*entry.get()];
                    if first.checksum.is_none() {
                        first.checksum = file.checksum;
                    } else if file.checksum.is_some() && file.checksum != first.checksum {
                        let message = format!(
                            "checksum conflict: the URL has a different checksum at {}",
                            first.origin
                        );
                        problems.push(Fault { column, message }.at(&file.origin));
                    }
                }
            }
        }

        let mut collisions = path::collisions(&self.files.iter().map(|file| &file.path).collect::<Vec<_>>());
        collisions.sort_unstable_by_key(|&(first, second)| (second, first));
        collisions.dedup_by_key(|&mut (_, second)| second);
        // From the end, so that the other indices stay valid.
        for (first, second) in collisions.into_iter().rev() {
            let (file, other) = (self.files.remove(second), &self.files[first]);
            let message = if file.path == other.path {
                format!("the path `{}` is already used by another URL at {}", file.path, other.origin)
            } else {
                format!("the path `{}` collides with `{}` at {}", file.path, other.path, other.origin)
            };
            let column = second.checked_sub(before).map_or(1, |index| columns[index]);
            problems.push(Fault { column, message }.at(&file.origin));
        }
    }

    fn add_images(&mut self, images: Vec<ImageEntry>) {
        let mut known: HashMap<_, _> =
            self.images.iter().map(|image| image.reference.clone()).zip(0..).collect();
        for image in images {
            match known.entry(image.reference.clone()) {
                hash_map::Entry::Vacant(entry) => {
                    entry.insert(self.images.len());
                    self.images.push(image);
                }
                hash_map::Entry::Occupied(entry) => {
                    let first = &mut self.images[*entry.get()].platforms;
                    if image.platforms.is_empty() {
                        first.clear();
                    } else if !first.is_empty() {
                        unite(first, image.platforms);
                    }
                }
            }
        }
    }
}

/// Returns the path at which `wget -x` saves `url`: the host, a port other than the scheme's default, and
/// the path. Escapes are decoded, except `%2F`; empty components are dropped; a directory becomes
/// `index.html`; a query stays in the name.
///
/// Fails if the decoded path is not a valid [`RelPath`].
pub fn wget_path(url: &Url) -> Result<RelPath, PathError> {
    // wget drops the brackets of IPv6 addresses.
    let mut path = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    if let Some(port) = url.port() {
        path.extend([":", &port.to_string()]);
    }
    let (directories, name) = url.path().rsplit_once('/').unwrap_or(("", url.path()));
    for component in directories.split('/').filter(|component| !component.is_empty()) {
        path.extend(["/", &decode(component)?]);
    }
    let name = if name.is_empty() { "index.html".to_owned() } else { decode(name)? };
    path.extend(["/", &name]);
    if let Some(query) = url.query() {
        path.extend(["?", &decode(query)?]);
    }
    RelPath::parse(&path)
}

/// Decodes the escapes of one component; a `/` becomes `%2F`.
fn decode(component: &str) -> Result<String, PathError> {
    let decoded = percent_decode_str(component).decode_utf8().map_err(|_| PathError::NotUtf8)?;
    Ok(decoded.replace('/', "%2F"))
}

/// Returns `path` itself, or the lists in it if it is a directory.
fn lists_at(path: &Path) -> Result<Vec<PathBuf>, ListError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut lists = Vec::new();
    for list in NAMES.map(|name| path.join(name)) {
        match list.try_exists() {
            Ok(true) => lists.push(list),
            Ok(false) => {}
            Err(source) => return Err(ListError::Read { path: list, source }),
        }
    }
    if lists.is_empty() { Err(ListError::NoList { path: path.to_owned() }) } else { Ok(lists) }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ListError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_LIST + 1).read_to_end(&mut bytes))
        .map_err(|source| ListError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_LIST {
        return Err(ListError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Returns the lines that are UTF-8; other lines are problems and become empty, so that line numbers stay
/// valid.
fn readable_text(list: &Path, bytes: &[u8], problems: &mut Vec<ListProblem>) -> String {
    let mut problem = |line, column, message: &str| {
        problems.push(ListProblem { list: list.to_owned(), line, column, message: message.to_owned() });
    };
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        // Windows PowerShell's `>` writes UTF-16. Reported once, not for every line.
        problem(1, 1, "the list is UTF-16: save it as UTF-8");
        return String::new();
    }
    let mut text = String::with_capacity(bytes.len());
    for (line, number) in bytes.split_inclusive(|b| *b == b'\n').zip(1..) {
        match str::from_utf8(line) {
            Ok(line) => text.push_str(line),
            Err(error) => {
                let valid = String::from_utf8_lossy(&line[..error.valid_up_to()]);
                problem(number, valid.chars().count() + 1, "the line is not UTF-8");
                text.push('\n');
            }
        }
    }
    text
}

/// A parsed line.
enum ListEntry {
    /// The second field is the column of the URL, for conflicts between lines.
    File(FileEntry, usize),
    Image(ImageEntry),
}

/// A problem without its position in the list.
struct Fault {
    column: usize,
    message: String,
}

impl Fault {
    fn at(self, origin: &ListPosition) -> ListProblem {
        ListProblem {
            list: origin.list.clone(),
            line: origin.line,
            column: self.column,
            message: self.message,
        }
    }
}

/// A whitespace-separated word of a line.
#[derive(Clone, Copy)]
struct Field<'a> {
    /// In characters, from 1.
    column: usize,
    text: &'a str,
}

impl Field<'_> {
    fn fault(self, message: impl Into<String>) -> Fault {
        self.fault_at(0, message)
    }

    /// Returns a fault `offset` bytes into the field.
    fn fault_at(self, offset: usize, message: impl Into<String>) -> Fault {
        Fault { column: self.column + self.text[..offset].chars().count(), message: message.into() }
    }
}

/// Splits a line into fields, up to a comment.
fn fields(line: &str) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    let mut column = 1;
    for text in line.split([' ', '\t']) {
        if text.starts_with('#') {
            break;
        }
        if !text.is_empty() {
            fields.push(Field { column, text });
        }
        column += text.chars().count() + 1;
    }
    fields
}

fn parse_line(line: &str, origin: &ListPosition) -> Result<Option<ListEntry>, Vec<Fault>> {
    let fields = fields(line);
    for field in &fields {
        // Such characters are invisible, are pasted from web pages, and would end up in names.
        if let Some((offset, character)) = field.text.char_indices().find(|(_, c)| is_invisible(*c)) {
            let message = format!("unexpected character U+{:04X}", u32::from(character));
            return Err(vec![field.fault_at(offset, message)]);
        }
    }
    let Some((first, attributes)) = fields.split_first() else { return Ok(None) };
    if scheme_len(first.text).is_some() {
        let (url, path) = parse_url(*first).map_err(|fault| vec![fault])?;
        let checksum = at_most_one(attributes, parse_checksum)?;
        Ok(Some(ListEntry::File(FileEntry { url, path, checksum, origin: origin.clone() }, first.column)))
    } else {
        let reference = parse_reference(*first).map_err(|fault| vec![fault])?;
        let platforms = at_most_one(attributes, parse_platforms)?.unwrap_or_default();
        Ok(Some(ListEntry::Image(ImageEntry { reference, platforms, origin: origin.clone() })))
    }
}

/// True for white space, control characters, bidirectional controls and zero-width characters.
fn is_invisible(c: char) -> bool {
    let formats =
        ['\u{ad}'..='\u{ad}', '\u{200b}'..='\u{200f}', '\u{202a}'..='\u{202e}', '\u{2060}'..='\u{2069}'];
    c.is_control() || c.is_whitespace() || c == '\u{feff}' || formats.iter().any(|range| range.contains(&c))
}

fn at_most_one<T>(
    attributes: &[Field],
    parse: impl Fn(Field) -> Result<T, Fault>,
) -> Result<Option<T>, Vec<Fault>> {
    let mut value = None;
    let mut faults = Vec::new();
    for field in attributes {
        match parse(*field) {
            Ok(_) if value.is_some() => faults.push(field.fault("expected one such attribute, not two")),
            Ok(parsed) => value = Some(parsed),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(value) } else { Err(faults) }
}

/// Returns the length of the leading `http://` or `https://`.
fn scheme_len(text: &str) -> Option<usize> {
    let begins =
        |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    ["http://", "https://"].into_iter().find(|scheme| begins(scheme)).map(str::len)
}

fn parse_url(field: Field) -> Result<(Url, RelPath), Fault> {
    // `Url` would silently accept both of these, as browsers do.
    if let Some(offset) = field.text.find('\\') {
        return Err(field.fault_at(offset, "expected `/` instead of `\\`"));
    }
    if let Some(offset) = scheme_len(field.text).filter(|offset| field.text[*offset..].starts_with('/')) {
        return Err(field.fault_at(offset, "expected a host"));
    }
    let mut url = Url::parse(field.text).map_err(|error| field.fault(format!("invalid URL: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            field.fault("the URL contains a user name or password: credentials do not belong in a list")
        );
    }
    url.set_fragment(None);
    let path =
        wget_path(&url).map_err(|error| field.fault(format!("the URL has no valid file name: {error}")))?;
    Ok((url, path))
}

fn parse_checksum(field: Field) -> Result<Checksum, Fault> {
    field.text.parse().map_err(|error: ParseChecksumError| match field.text.split_once(':') {
        Some(("sha256", _)) => field.fault_at(7, "expected 64 hex digits after `sha256:`"),
        Some(("sha512", _)) => field.fault_at(7, "expected 128 hex digits after `sha512:`"),
        _ => field.fault(format!("unknown attribute of a file: {error}")),
    })
}

fn parse_reference(field: Field) -> Result<Reference, Fault> {
    field.text.parse().map_err(|error: ReferenceError| match error {
        ReferenceError::Scheme { .. } => {
            field.fault("expected `http://` or `https://` for a file, or an image reference without a scheme")
        }
        error => field.fault_at(error.offset(), error.to_string()),
    })
}

fn parse_platforms(field: Field) -> Result<Vec<Platform>, Fault> {
    const KEY: &str = "platform=";
    let values = field.text.strip_prefix(KEY).ok_or_else(|| {
        field.fault("unknown attribute of an image: expected `platform=` and comma-separated platforms")
    })?;
    let mut platforms = Vec::new();
    let mut offset = KEY.len();
    for value in values.split(',') {
        let platform =
            value.parse().map_err(|error: ParsePlatformError| field.fault_at(offset, error.to_string()))?;
        unite(&mut platforms, [platform]);
        offset += value.len() + 1;
    }
    Ok(platforms)
}

fn unite(platforms: &mut Vec<Platform>, more: impl IntoIterator<Item = Platform>) {
    for platform in more {
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn parse(texts: &[(&str, &str)]) -> (Lists, Vec<String>) {
        let mut lists = Lists::default();
        let mut problems = Vec::new();
        for (list, text) in texts {
            lists.parse_into(Path::new(list), text, &mut problems);
        }
        (lists, problems.iter().map(ListProblem::to_string).collect())
    }

    fn manifest(directory: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(directory)
    }

    /// A temporary directory.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("airbundle-list-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            std::fs::write(self.0.join(name), bytes).unwrap();
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_shipped_kubespray_lists_parse_without_problems() {
        for (directory, files, sha256, sha512, images) in [
            ("kubespray-v2.25.0", 23, 23, 0, 57),
            ("kubespray-v2.25.0/arm64", 23, 21, 0, 57),
            ("kubespray-v2.31.0", 24, 22, 2, 48),
            ("kubespray-v2.31.0/arm64", 24, 22, 2, 48),
        ] {
            let lists = Lists::read(&[manifest(directory)]).unwrap();
            let count = |is_counted: fn(&Checksum) -> bool| {
                lists
                    .files
                    .iter()
                    .filter_map(|file| file.checksum.as_ref())
                    .filter(|sum| is_counted(sum))
                    .count()
            };
            assert_eq!((lists.files.len(), lists.images.len()), (files, images), "{directory}");
            assert_eq!(count(|sum| matches!(sum, Checksum::Sha256(_))), sha256, "{directory}");
            assert_eq!(count(|sum| matches!(sum, Checksum::Sha512(_))), sha512, "{directory}");
            assert!(
                lists
                    .images
                    .iter()
                    .all(|image| image.reference.tag().is_some() && image.platforms.is_empty())
            );
        }
    }

    /// These URLs have no port, query, escape or doubled slash.
    #[test]
    fn the_paths_of_the_shipped_lists_are_their_urls_without_the_scheme() {
        for directory in
            ["kubespray-v2.25.0", "kubespray-v2.25.0/arm64", "kubespray-v2.31.0", "kubespray-v2.31.0/arm64"]
        {
            for file in Lists::read(&[manifest(directory)]).unwrap().files {
                assert_eq!(Some(file.path.as_str()), file.url.as_str().strip_prefix("https://"));
            }
        }
    }

    #[test]
    fn the_output_of_generate_list_is_valid_and_keeps_its_names() {
        for directory in ["kubespray-v2.25.0", "kubespray-v2.31.0"] {
            for name in NAMES {
                let shipped = std::fs::read_to_string(manifest(directory).join(name)).unwrap();
                let plain: Vec<_> =
                    shipped.lines().skip(2).filter_map(|line| line.split(' ').next()).collect();
                let (lists, problems) = parse(&[(name, &plain.join("\n"))]);
                assert_eq!(problems, [""; 0]);
                let files = lists.files.iter().map(|file| file.url.to_string());
                let images = lists.images.iter().map(|image| image.reference.to_string());
                assert_eq!(files.chain(images).collect::<Vec<_>>(), plain);
            }
        }
    }

    /// The paths were recorded with GNU Wget 1.21.3.
    #[test]
    fn paths_equal_those_of_wget() {
        for (url, path) in [
            ("http://H.Example.com/a/B?x=y", "h.example.com/a/B?x=y"),
            ("http://h.example.com:8080/a", "h.example.com:8080/a"),
            ("http://h.example.com:80/a", "h.example.com/a"),
            ("https://h.example.com:443/a", "h.example.com/a"),
            ("https://h.example.com:80/a", "h.example.com:80/a"),
            ("http://u:p@h.example.com/a#frag", "h.example.com/a"),
            ("http://h.example.com./a", "h.example.com./a"),
            ("http://[::1]:8080/a", "::1:8080/a"),
            ("http://[::1]/a", "::1/a"),
            ("http://bücher.example/a", "xn--bcher-kva.example/a"),
            ("http://h.example.com/a%2Bb+c", "h.example.com/a+b+c"),
            ("http://h.example.com/a%20b/%C3%A9", "h.example.com/a b/é"),
            ("http://h.example.com/%C5%99/ř", "h.example.com/ř/ř"),
            ("http://h.example.com/a%2Fb", "h.example.com/a%2Fb"),
            ("http://h.example.com/a%2fb", "h.example.com/a%2Fb"),
            ("http://h.example.com/a%252Fb", "h.example.com/a%2Fb"),
            ("http://h.example.com/a%3Fb%23c", "h.example.com/a?b#c"),
            ("http://h.example.com/a%25b%c", "h.example.com/a%b%c"),
            (r#"http://h.example.com/a:b*"<>|{}[]^`~"#, r#"h.example.com/a:b*"<>|{}[]^`~"#),
            ("http://h.example.com/a//b///c", "h.example.com/a/b/c"),
            ("http://h.example.com//a", "h.example.com/a"),
            ("http://h.example.com", "h.example.com/index.html"),
            ("http://h.example.com/a/", "h.example.com/a/index.html"),
            ("http://h.example.com/a//", "h.example.com/a/index.html"),
            ("http://h.example.com?q=1", "h.example.com/index.html?q=1"),
            ("http://h.example.com/a/?q=1", "h.example.com/a/index.html?q=1"),
            ("http://h.example.com/a?", "h.example.com/a?"),
            ("http://h.example.com/a?u=http://x/y", "h.example.com/a?u=http:%2F%2Fx%2Fy"),
            ("http://h.example.com/a?u=x%2fy%20z+%2B?", "h.example.com/a?u=x%2Fy z++?"),
            ("http://h.example.com/a/../b/./c", "h.example.com/b/c"),
            ("http://h.example.com/../b", "h.example.com/b"),
            ("http://h.example.com/a/..", "h.example.com/index.html"),
            ("http://h.example.com/a;b=c/d", "h.example.com/a;b=c/d"),
        ] {
            assert_eq!(wget_path(&Url::parse(url).unwrap()).unwrap().as_str(), path, "{url}");
        }
    }

    #[test]
    fn urls_without_a_valid_file_path_are_refused() {
        for (url, error) in [
            ("http://h/a%00b", PathError::Character { character: '\0', offset: 3 }),
            ("http://h/a%0Ab", PathError::Character { character: '\n', offset: 3 }),
            ("http://h/a%5C..%5Cb", PathError::Character { character: '\\', offset: 3 }),
            ("http://h/%FF", PathError::NotUtf8),
            (&format!("http://h/{}", "x".repeat(256)), PathError::LongComponent { len: 256 }),
        ] {
            assert_eq!(wget_path(&Url::parse(url).unwrap()), Err(error), "{url}");
        }
    }

    #[test]
    fn no_url_escapes_the_directory_of_its_host() {
        for url in [
            "http://h/%2e%2e/%2E./a",
            "http://h/..%2f..%2fa",
            "http://h/%252e%252e/a",
            "http://h/a/../../../b",
        ] {
            let path = wget_path(&Url::parse(url).unwrap()).unwrap();
            assert!(path.as_str().starts_with("h/"), "{path}");
        }
    }

    #[test]
    fn a_list_can_mix_files_images_comments_and_attributes() {
        let text = format!(
            "\u{feff}# nginx:1 in a comment is no image\r\n\
             \r\n \thttps://h/a#part sha256:{HEX}\t# why\r\n\
             HTTP://h/b sha512:{}\r\n\
             \t# more\n\
             quay.io/a:1 platform=linux/amd64,linux/aarch64,linux/amd64 #x\n\
             quay.io/b:1",
            "0F".repeat(64)
        );
        let (lists, problems) = parse(&[("x.list", &text)]);
        assert_eq!(problems, [""; 0]);
        let files: Vec<_> = lists
            .files
            .iter()
            .map(|file| format!("{} {} {}", file.origin, file.url, file.checksum.as_ref().unwrap()))
            .collect();
        let sha512 = "0f".repeat(64);
        assert_eq!(
            files,
            [format!("x.list:3 https://h/a sha256:{HEX}"), format!("x.list:4 http://h/b sha512:{sha512}")]
        );
        let platforms: Vec<_> = lists.images[0].platforms.iter().map(Platform::to_string).collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
        assert!(lists.images[1].platforms.is_empty());
    }

    #[test]
    fn problems_have_a_position_and_name_what_is_expected() {
        let missing_tag = "expected `:` and a tag, or `@` and a digest: an implicit `latest` is not accepted";
        let tag =
            "expected a tag: at most 128 of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`";
        let hub =
            "the host of the registry is missing: write `docker.io/library/nginx:1` if Docker Hub is meant";
        let scheme = "expected `http://` or `https://` for a file, or an image reference without a scheme";
        let user = "the URL contains a user name or password: credentials do not belong in a list";
        let file = "unknown attribute of a file: expected `sha256:` and 64 hex digits, or `sha512:` and 128";
        let image = "unknown attribute of an image: expected `platform=` and comma-separated platforms";
        let platform =
            "expected `os/architecture` or `os/architecture/variant` in lower case, such as `linux/amd64`";
        for (text, position, message) in [
            ("nginx:1", "1:1", hub),
            ("\n\t quay.io/a", "2:12", missing_tag),
            ("quay.io/a:1#x", "1:12", tag),
            ("ftp://h/a", "1:1", scheme),
            ("http://", "1:1", "invalid URL: empty host"),
            ("https:///a", "1:9", "expected a host"),
            ("https://h\\a", "1:10", "expected `/` instead of `\\`"),
            ("https://h:99999/a", "1:1", "invalid URL: invalid port number"),
            ("https://u@h/a", "1:1", user),
            ("https://:p@h/a", "1:1", user),
            ("https://h/a%0a", "1:1", "the URL has no valid file name: the path contains `\n` at byte 3"),
            ("https://h/é\u{a0}b", "1:12", "unexpected character U+00A0"),
            ("https://h/a\rhttps://h/b", "1:12", "unexpected character U+000D"),
            ("quay.io/a:1 \u{1b}[2J", "1:13", "unexpected character U+001B"),
            ("quay.io/a:1 \u{202e}x", "1:13", "unexpected character U+202E"),
            ("https://h/é sha1:00", "1:13", file),
            ("https://h/a platform=linux/amd64", "1:13", file),
            ("https://h/a sha256:00", "1:20", "expected 64 hex digits after `sha256:`"),
            ("https://h/a sha512:00", "1:20", "expected 128 hex digits after `sha512:`"),
            ("quay.io/a:1 sha256:00", "1:13", image),
            ("quay.io/a:1 platform=linux/amd64,arm64", "1:34", platform),
            ("quay.io/a:1 platform=", "1:22", platform),
            ("quay.io/a:1 platform=a/b platform=a/c", "1:26", "expected one such attribute, not two"),
        ] {
            let (lists, problems) = parse(&[("x.list", text)]);
            assert_eq!(problems, [format!("x.list:{position}: {message}")], "{text:?}");
            assert_eq!(lists, Lists::default(), "{text:?}");
        }
    }

    #[test]
    fn duplicate_entries_are_merged() {
        let a =
            format!("https://h/a\nhttps://h/b sha256:{HEX}\nquay.io/a:1 platform=linux/amd64\nquay.io/b:1\n");
        let b = format!(
            "https://H:443/a#x sha256:{HEX}\nhttps://h/b\nquay.io/a:1 platform=linux/arm64,linux/amd64\n"
        );
        let c = "quay.io/b:1 platform=linux/amd64\n\
                 index.docker.io/nginx:1 platform=linux/amd64\ndocker.io/library/nginx:1";
        let (lists, problems) = parse(&[("a.list", &a), ("b.list", &b), ("c.list", c)]);
        assert_eq!(problems, [""; 0]);
        let files: Vec<_> =
            lists.files.iter().map(|file| format!("{} {}", file.origin, file.checksum.is_some())).collect();
        assert_eq!(files, ["a.list:1 true", "a.list:2 true"]);
        let images: Vec<_> = lists
            .images
            .iter()
            .map(|image| format!("{} {} {}", image.origin, image.reference, image.platforms.len()))
            .collect();
        assert_eq!(
            images,
            ["a.list:3 quay.io/a:1 2", "a.list:4 quay.io/b:1 0", "c.list:2 docker.io/library/nginx:1 0"]
        );
    }

    #[test]
    fn conflicts_name_both_lines() {
        let sha512 = "0".repeat(128);
        let a = format!("https://h/a sha256:{HEX}\nhttps://h/dir/x\nhttps://h/a sha512:{sha512}\n");
        let b =
            " http://h/a\nhttps://h/dir\nhttps://h/A\nhttps://h/Dir/x/y\nhttps://h/b\n.h/a:1\nhttps://h/%62";
        let (lists, problems) = parse(&[("a.list", &a), ("b.list", b)]);
        assert_eq!(
            problems,
            [
                "a.list:3:1: checksum conflict: the URL has a different checksum at a.list:1",
                "b.list:1:2: the path `h/a` is already used by another URL at a.list:1",
                "b.list:2:1: the path `h/dir` collides with `h/dir/x` at a.list:2",
                "b.list:3:1: the path `h/A` collides with `h/a` at a.list:1",
                "b.list:4:1: the path `h/Dir/x/y` collides with `h/dir` at b.list:2",
                "b.list:6:1: expected a host: a domain name, an IPv4 address, or an IPv6 address in brackets",
                "b.list:7:1: the path `h/b` is already used by another URL at b.list:5",
            ]
        );
        let paths: Vec<_> = lists.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["h/a", "h/dir/x", "h/b"]);
    }

    #[test]
    fn one_run_reports_all_problems_of_all_lists() {
        let scratch = Scratch::new("problems");
        let utf8 = scratch.write("a.list", b"nginx:1\nquay.io/\xc3\xa9\xff:1 x\nhttps://h/a x");
        let utf16 = scratch.write("b.list", b"\xff\xfeh\0t\0\n\0");
        let error = Lists::read(&[utf8.clone(), utf16.clone()]).unwrap_err();
        let ListError::Problems(problems) = &error else { panic!("{error}") };
        let positions: Vec<_> =
            problems.iter().map(|problem| (&problem.list, problem.line, problem.column)).collect();
        assert_eq!(positions, [(&utf8, 1, 1), (&utf8, 2, 10), (&utf8, 3, 13), (&utf16, 1, 1)]);
        assert_eq!(problems[1].message, "the line is not UTF-8");
        assert_eq!(problems[3].message, "the list is UTF-16: save it as UTF-8");
        assert!(error.to_string().lines().eq(problems.iter().map(ListProblem::to_string)));
    }

    #[test]
    fn a_directory_is_replaced_by_the_lists_in_it() {
        let scratch = Scratch::new("directory");
        let directory = scratch.0.clone();
        let read = || Lists::read(std::slice::from_ref(&directory));
        assert_eq!(
            read().unwrap_err().to_string(),
            format!("no `files.list` or `images.list` in directory `{}`", directory.display())
        );
        scratch.write("images.list", b"# nothing yet\n");
        assert_eq!(read().unwrap_err().to_string(), "the lists are empty: no file and no image");
        scratch.write("images.list", b"quay.io/a:1\n");
        scratch.write("files.list", b"https://h/a\n");
        let lists = read().unwrap();
        assert_eq!(lists.files[0].origin.list, directory.join("files.list"));
        assert_eq!(lists.images[0].origin.list, directory.join("images.list"));
    }

    #[test]
    fn missing_and_oversized_lists_have_their_own_errors() {
        let scratch = Scratch::new("large");
        let missing = Lists::read(&[scratch.0.join("missing.list")]).unwrap_err();
        assert!(matches!(missing, ListError::Read { path, .. } if path.ends_with("missing.list")));
        let large = scratch.write("large.list", b"");
        File::options().write(true).open(&large).unwrap().set_len(MAX_LIST + 1).unwrap();
        assert!(matches!(Lists::read(&[large]), Err(ListError::TooLarge { .. })));
    }
}
