//! [`Lists`]: the entries of `files.list` and `images.list`, parsed and merged.
//!
//! Each line is one entry: a URL is a file, anything else an image reference. The output of Kubespray's
//! `generate_list.sh` is valid; checksums and platforms can follow an entry.
//!
//! ```text
//! # a comment
//! https://dl.k8s.io/release/v1.29.5/bin/linux/amd64/kubelet sha256:261d…
//! https://bucket.example/kubelet?X-Amz-Signature=0f3a… name=dl.example/kubelet
//! registry.k8s.io/pause:3.9 platform=linux/amd64,linux/arm64
//! ```

use std::collections::HashMap;
use std::collections::hash_map;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

use crate::base::path::{self, RelPath};
use crate::base::source_url::SourceUrl;
use crate::base::text::is_conflict_mark;
use crate::documents::request_url::{RequestUrl, secret_parameter};
use crate::oci::digest::{self, Digest};
use crate::oci::parsed_text::quoted;
use crate::oci::platform::{ParsePlatformError, Platform};
use crate::oci::reference::{Reference, ReferenceError};

/// Maximum size of a list in bytes. Kubespray's lists have 5 kB.
pub const MAX_LIST: u64 = 16 << 20;

/// The key of the attribute with the path of a file.
const NAME: &str = "name=";

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
    /// The URL that bundles, locks and messages contain: `http` or `https`, without credentials and fragment.
    /// Without its query if the list names the path.
    pub url: Url,
    /// The URL to fetch.
    pub request_url: RequestUrl,
    /// The path on the site: the one that the list names, otherwise [`SourceUrl::wget_path`].
    pub path: RelPath,
    /// The expected checksum. `None`: the list has none.
    pub checksum: Option<Checksum>,
    /// The line of the first occurrence.
    pub origin: ListPosition,
}

impl FileEntry {
    /// True if the list names the path, so that it is not that of the URL.
    #[must_use]
    pub fn is_named(&self) -> bool {
        source_url(&self.url).other_path(&self.path).is_some()
    }

    /// Returns the name of the entry in messages, which is unique in its lists and contains no secret.
    #[must_use]
    pub fn name(&self) -> String {
        source_url(&self.url).entry_name(&self.path)
    }
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
        let key = |file: &FileEntry| (file.request_url.clone(), file.path.clone());
        let mut known: HashMap<_, _> = self.files.iter().map(key).zip(0..).collect();
        let before = self.files.len();
        let mut columns = Vec::new();
        for (file, column) in files {
            match known.entry(key(&file)) {
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

/// Returns a URL of a list as the bundle states it.
pub(crate) fn source_url(url: &Url) -> SourceUrl {
    url.as_str().parse().expect("a URL of a list is a source URL; please report")
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
    if is_conflict_mark(first.text) {
        return Err(vec![first.fault_at(0, format!("unresolved conflict of git: `{}`", first.text))]);
    }
    if scheme_len(first.text).is_some() {
        let (names, checksums): (Vec<Field>, Vec<Field>) =
            attributes.iter().partition(|field| field.text.starts_with(NAME));
        let url = parse_url(*first).map_err(|fault| vec![fault])?;
        let name = at_most_one(&names, parse_name)?;
        let checksum = at_most_one(&checksums, parse_checksum)?;
        let (url, request_url, path) = paths(*first, url, name).map_err(|fault| vec![fault])?;
        let file = FileEntry { url, request_url, path, checksum, origin: origin.clone() };
        Ok(Some(ListEntry::File(file, first.column)))
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

fn parse_url(field: Field) -> Result<Url, Fault> {
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
    Ok(url)
}

/// Returns the URL for bundles and messages, the URL to fetch, and the path of a file. A query that may contain a
/// secret needs a `name`: without one, bundles and locks contain the query, and the path does, too.
fn paths(field: Field, url: Url, name: Option<RelPath>) -> Result<(Url, RequestUrl, RelPath), Fault> {
    let request_url = RequestUrl::new(url.clone());
    let url = if name.is_some() { request_url.without_query() } else { url };
    if let Some(parameter) = secret_parameter(&url) {
        let reason = "a secret would be in the bundle: add `name=PATH`, the path of the file on the site";
        return Err(field.fault(format!("the query contains `{}`, {reason}", quoted(&parameter))));
    }
    let source: SourceUrl = url.as_str().parse().map_err(|_| field.fault("invalid URL: too long"))?;
    if let Some(path) = name {
        return Ok((url, request_url, path));
    }
    let hint = if url.query().is_some() { "; add `name=PATH`, the path of the file on the site" } else { "" };
    let path = source
        .wget_path()
        .map_err(|error| field.fault(format!("the URL has no valid file name: {error}{hint}")))?;
    Ok((url, request_url, path))
}

fn parse_name(field: Field) -> Result<RelPath, Fault> {
    let path = &field.text[NAME.len()..];
    RelPath::parse(path).map_err(|error| field.fault_at(NAME.len(), format!("invalid path: {error}")))
}

fn parse_checksum(field: Field) -> Result<Checksum, Fault> {
    field.text.parse().map_err(|error: ParseChecksumError| match field.text.split_once(':') {
        Some(("sha256", _)) => field.fault_at(7, "expected 64 hex digits after `sha256:`"),
        Some(("sha512", _)) => field.fault_at(7, "expected 128 hex digits after `sha512:`"),
        _ => field.fault(format!("unknown attribute of a file: {error}; or `name=` and a path")),
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
mod tests;
