//! [`LayerEntry`]: what a layer of the image is made of, and its form in the layer's tar archive.

use tar::EntryType;

use crate::bundle::format::layout::Blob;
use crate::bundle::format::{BLOCK, padded};

/// The zeros that end a tar archive.
pub(crate) const END: u64 = 2 * BLOCK as u64;

/// One entry of a layer. Paths are relative to the root of the image; everything is root's, of the year 1970, and
/// everybody may read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerEntry {
    /// A directory.
    Directory(String),
    /// A file that was made here, or that is held in memory.
    Bytes(String, Vec<u8>),
    /// A file of the bundle.
    Blob(String, Blob),
    /// Another name of a file before it, the second path.
    Link(String, String),
}

impl LayerEntry {
    /// How many bytes follow the header, before they are padded to whole blocks.
    #[must_use]
    pub(crate) fn content_size(&self) -> u64 {
        match self {
            Self::Directory(_) | Self::Link(..) => 0,
            Self::Bytes(_, bytes) => bytes.len() as u64,
            Self::Blob(_, blob) => blob.size,
        }
    }

    /// How many bytes the archive has of it.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        self.header().len() as u64 + padded(self.content_size())
    }

    /// Its path.
    #[must_use]
    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Directory(path) | Self::Bytes(path, _) | Self::Blob(path, _) | Self::Link(path, _) => path,
        }
    }

    /// What stands before its content: a ustar header, and a PAX header (POSIX `pax`) before that where a path is too
    /// long for it.
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
        let ustar = header.as_ustar_mut().expect("made as one");
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

/// The two parts that a ustar header has for a path: at most 155 and 100 bytes, with a `/` between them.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    // The slash at the end of a directory does not part it.
    let slashes = path.strip_suffix('/').unwrap_or(path).match_indices('/').map(|(at, _)| at);
    let at = slashes.take_while(|at| *at <= 155).last()?;
    let name = &path[at + 1..];
    (name.len() <= 100).then_some((&path[..at], name))
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
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
    fn paths_of_any_length_are_read_as_they_were_written() {
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
