//! [`LayerEntry`]: an entry of a layer, and its tar header.

use tar::EntryType;

use crate::bundle::format::layout::Blob;
use crate::bundle::format::{BLOCK, padded};

/// The zeros that end a tar archive.
pub(crate) const END: u64 = 2 * BLOCK as u64;

/// An entry of a layer. Paths are relative to the root of the image. Owner and group are root, the
/// modification time is 0, and the mode is 0755 for directories and 0644 for files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerEntry {
    Directory(String),
    /// A file: path and content.
    Bytes(String, Vec<u8>),
    /// A file whose content is a blob of the bundle.
    Blob(String, Blob),
    /// A hard link to the second path, which is an earlier entry.
    Link(String, String),
}

impl LayerEntry {
    /// Returns the size of the content in bytes, without padding.
    #[must_use]
    pub(crate) fn content_size(&self) -> u64 {
        match self {
            Self::Directory(_) | Self::Link(..) => 0,
            Self::Bytes(_, bytes) => bytes.len() as u64,
            Self::Blob(_, blob) => blob.size,
        }
    }

    /// Returns the size of the entry in the archive in bytes, with header and padding.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        self.header().len() as u64 + padded(self.content_size())
    }

    #[must_use]
    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Directory(path) | Self::Bytes(path, _) | Self::Blob(path, _) | Self::Link(path, _) => path,
        }
    }

    /// Returns the ustar header. If a path is too long for it, a PAX header (POSIX `pax`) precedes it.
    #[must_use]
    pub(crate) fn header(&self) -> Vec<u8> {
        let (kind, mode) = match self {
            Self::Directory(_) => (EntryType::Directory, 0o755),
            Self::Bytes(..) | Self::Blob(..) => (EntryType::Regular, 0o644),
            Self::Link(..) => (EntryType::Link, 0o644),
        };
        let mut header = header(kind, mode, self.content_size());
        let mut records = Vec::new();
        let path = if kind.is_dir() { format!("{}/", self.path()) } else { self.path().to_owned() };
        let ustar = header.as_ustar_mut().expect("created as ustar; please report");
        if let Some((prefix, name)) = split(&path) {
            ustar.prefix[..prefix.len()].copy_from_slice(prefix.as_bytes());
            ustar.name[..name.len()].copy_from_slice(name.as_bytes());
        } else {
            records.extend(pax_record("path", &path));
        }
        if let Self::Link(_, target) = self {
            match ustar.linkname.get_mut(..target.len()) {
                Some(name) => name.copy_from_slice(target.as_bytes()),
                None => records.extend(pax_record("linkpath", target)),
            }
        }
        header.set_cksum();
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let mut pax = self::header(EntryType::XHeader, 0o644, records.len() as u64);
            pax.set_cksum();
            bytes.extend_from_slice(pax.as_bytes());
            bytes.append(&mut records);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.extend_from_slice(header.as_bytes());
        bytes
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Splits a path into the prefix (at most 155 bytes) and name (at most 100 bytes) of a ustar header. `None`:
/// too long.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    // The name must not be empty.
    let slashes = path.strip_suffix('/').unwrap_or(path).match_indices('/').map(|(at, _)| at);
    let at = slashes.take_while(|at| *at <= 155).last()?;
    let name = &path[at + 1..];
    (name.len() <= 100).then_some((&path[..at], name))
}

/// Returns `<length> <key>=<value>\n`; the length includes its own digits.
fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut len = rest.len() + 1;
    while len != rest.len() + len.to_string().len() {
        len += 1;
    }
    format!("{len}{rest}").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn paths_of_any_length_survive_a_round_trip() {
        let long = |len: usize| format!("{}/{}", "d".repeat(len), "f".repeat(len));
        let deep = ["földer"; 60].join("/");
        for path in ["a", "a/b", &long(49), &long(50), &long(100), &long(120), &long(150), &deep] {
            let entries = [
                LayerEntry::Directory(path.to_owned()),
                LayerEntry::Bytes(format!("{path}/ü"), b"content".to_vec()),
                LayerEntry::Link(format!("{path}/y"), format!("{path}/ü")),
            ];
            let mut archive = Vec::new();
            for entry in &entries {
                let start = archive.len();
                archive.extend(entry.header());
                if let LayerEntry::Bytes(_, bytes) = entry {
                    archive.extend_from_slice(bytes);
                    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
                }
                assert_eq!((archive.len() - start) as u64, entry.size(), "{path}");
            }
            archive.extend([0; 2 * BLOCK]);
            let mut archive = tar::Archive::new(archive.as_slice());
            let mut read = archive.entries().unwrap().map(Result::unwrap);
            let directory = read.next().unwrap();
            assert_eq!(directory.path_bytes(), format!("{path}/").as_bytes());
            assert!(directory.header().entry_type().is_dir());
            let mut file = read.next().unwrap();
            assert_eq!(file.path_bytes(), format!("{path}/ü").as_bytes());
            let mut content = String::new();
            file.read_to_string(&mut content).unwrap();
            assert_eq!(content, "content");
            let link = read.next().unwrap();
            assert_eq!(link.path_bytes(), format!("{path}/y").as_bytes());
            assert_eq!(link.link_name_bytes().unwrap(), format!("{path}/ü").as_bytes());
            assert!(read.next().is_none());
        }
    }
}
