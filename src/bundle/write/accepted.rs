//! [`AcceptedVolumes`]: `NAME.partial.accepted`, the volumes that the command of `--on-volume` has accepted.
//!
//! They may be on their way already, such as uploaded or burned, so that the next run must not hand them over again. The
//! file is synced after each volume. It is text: a line with the key of the run, then a line with the number, the size
//! and the digest of each volume. The first invalid line ends it: the volumes after it are handed over again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::base::fs::{self, FsError, read_limited};
use crate::base::own_file::open_or_create;
use crate::oci::digest::Digest;

const MAGIC: &str = "airbundle accepted volumes 1 ";
/// Maximum size of the file in bytes, far more than all volumes of a bundle need.
const LIMIT: u64 = 64 << 20;

/// The volumes that the command accepted in earlier runs, by their number.
#[derive(Debug, Default)]
pub struct AcceptedVolumes(BTreeMap<u32, (u64, Digest)>);

/// True if the command has accepted a volume in an earlier run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It has not.
    Pending,
    /// It has accepted the same bytes.
    Accepted,
    /// It has accepted other bytes under this number.
    Changed,
}

/// The file, to which volumes are appended.
pub(crate) struct AcceptedFile {
    path: PathBuf,
    file: File,
}

/// The content of the file before a run.
#[cfg_attr(not(feature = "net"), expect(dead_code, reason = "only `pack` hands over volumes"))]
pub(crate) struct Opened {
    pub(crate) file: AcceptedFile,
    pub(crate) volumes: AcceptedVolumes,
    /// Number of volumes that were accepted in a run with another key. They are forgotten.
    pub(crate) forgotten: usize,
}

impl AcceptedVolumes {
    /// Returns the number of volumes.
    #[must_use]
    #[cfg(feature = "net")]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn acceptance(&self, number: u32, size: u64, digest: Digest) -> Acceptance {
        match self.0.get(&number) {
            None => Acceptance::Pending,
            Some(known) if *known == (size, digest) => Acceptance::Accepted,
            Some(_) => Acceptance::Changed,
        }
    }
}

#[cfg_attr(not(feature = "net"), expect(dead_code, reason = "only `pack` hands over volumes"))]
impl AcceptedFile {
    /// Opens the file of the unfinished bundle `partial`. `key` identifies the bundle and the command.
    pub(crate) fn open(partial: &Path, key: Digest) -> Result<Opened, FsError> {
        let path = path(partial);
        let mut file = open_or_create(&path)?;
        let at = |action| FsError::at(action, &path);
        let text = read_limited(&file, LIMIT).map_err(at("read"))?;
        let text = String::from_utf8_lossy(&text);
        let (volumes, len) = parse(&text);
        let header = format!("{MAGIC}{}\n", key.hex());
        let (volumes, forgotten, len) = if text.starts_with(&header) {
            (volumes, 0, len as u64)
        } else {
            (BTreeMap::new(), volumes.len(), 0)
        };
        // An incomplete line at the end is removed.
        let prepared = file.set_len(len).and_then(|()| file.seek(SeekFrom::End(0))).and_then(|end| {
            if end == 0 {
                file.write_all(header.as_bytes())?;
            }
            file.sync_all()
        });
        prepared.map_err(at("write"))?;
        fs::sync_dir(fs::parent(&path))?;
        Ok(Opened { file: Self { path, file }, volumes: AcceptedVolumes(volumes), forgotten })
    }

    /// Adds a volume.
    pub(crate) fn add(&mut self, number: u32, size: u64, digest: Digest) -> Result<(), FsError> {
        let line = format!("{number} {size} {}\n", digest.hex());
        let written: io::Result<()> =
            self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(FsError::at("write", &self.path))
    }
}

/// Returns the volumes in the file, of which a later line replaces an earlier one, and the length of its valid lines.
fn parse(text: &str) -> (BTreeMap<u32, (u64, Digest)>, usize) {
    let mut lines = text.split_inclusive('\n');
    let Some(header) = lines.next().filter(|line| line.starts_with(MAGIC) && line.ends_with('\n')) else {
        return (BTreeMap::new(), 0);
    };
    let (mut volumes, mut len) = (BTreeMap::new(), header.len());
    for line in lines {
        let Some((number, volume)) = line.strip_suffix('\n').and_then(parse_line) else { break };
        volumes.insert(number, volume);
        len += line.len();
    }
    (volumes, len)
}

fn parse_line(line: &str) -> Option<(u32, (u64, Digest))> {
    let mut fields = line.split(' ');
    let number = fields.next()?.parse().ok()?;
    let size = fields.next()?.parse().ok()?;
    let digest = Digest::from_hex(fields.next()?).ok()?;
    fields.next().is_none().then_some((number, (size, digest)))
}

/// Returns the path of the file of the unfinished bundle `partial`.
#[must_use]
pub(crate) fn path(partial: &Path) -> PathBuf {
    fs::with_suffix(partial, ".accepted")
}

/// Removes the file of the unfinished bundle `partial`.
#[cfg(feature = "net")]
pub(crate) fn remove(partial: &Path) -> Result<(), FsError> {
    fs::remove_file(&path(partial))
}

#[cfg(all(test, feature = "net"))]
mod tests {
    use super::*;

    fn add(file: &mut AcceptedFile, number: u32, content: &[u8]) {
        file.add(number, content.len() as u64, Digest::of(content)).unwrap();
    }

    fn acceptance(volumes: &AcceptedVolumes, number: u32, content: &[u8]) -> Acceptance {
        volumes.acceptance(number, content.len() as u64, Digest::of(content))
    }

    #[test]
    fn accepted_volumes_are_known_to_the_next_run_with_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("b.partial");
        let open = |key: &str| AcceptedFile::open(&partial, Digest::of(key.as_bytes())).unwrap();
        let mut opened = open("key");
        add(&mut opened.file, 2, b"two");
        add(&mut opened.file, 3, b"three");
        let Opened { volumes, forgotten, .. } = open("key");
        assert_eq!((volumes.len(), forgotten), (2, 0));
        assert_eq!(acceptance(&volumes, 2, b"two"), Acceptance::Accepted);
        assert_eq!(acceptance(&volumes, 3, b"drei"), Acceptance::Changed);
        assert_eq!(acceptance(&volumes, 4, b"four"), Acceptance::Pending);
        let Opened { volumes, forgotten, .. } = open("other key");
        assert_eq!((volumes.len(), forgotten), (0, 2));
        assert_eq!((open("other key").forgotten, open("key").forgotten), (0, 0));
        remove(&partial).unwrap();
        assert!(!path(&partial).exists());
    }

    #[test]
    fn an_incomplete_line_is_not_an_accepted_volume() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("b.partial");
        let key = Digest::of(b"key");
        let mut opened = AcceptedFile::open(&partial, key).unwrap();
        add(&mut opened.file, 2, b"two");
        add(&mut opened.file, 3, b"three");
        let text = std::fs::read(path(&partial)).unwrap();
        for missing in 1..70 {
            std::fs::write(path(&partial), &text[..text.len() - missing]).unwrap();
            let mut opened = AcceptedFile::open(&partial, key).unwrap();
            assert_eq!(acceptance(&opened.volumes, 2, b"two"), Acceptance::Accepted, "{missing}");
            assert_eq!(acceptance(&opened.volumes, 3, b"three"), Acceptance::Pending, "{missing}");
            add(&mut opened.file, 3, b"three");
            assert_eq!(std::fs::read(path(&partial)).unwrap(), text, "{missing}");
        }
    }
}
