//! [`HostRecord`]: what this host remembers of a configuration, so that it does not believe another one.
//!
//! A configuration decides what clients trust and what root runs, and it can come on a disk from another host. The
//! record is outside of the site, in a directory that only the user can write to: it has the digests of the files that
//! the next run believes, as this host wrote them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::directory::Directory;
use crate::base::fs::FsError;
use crate::base::json::pretty;
use crate::conf::setup::is_root;
use crate::oci::digest::{Digest, Hasher};

/// The saved settings.
pub(crate) const SETTINGS: &str = "settings.json";
/// The list of the generated files.
pub(crate) const LIST: &str = ".generated.json";
/// The certificate of the site's CA.
pub(crate) const CA_CERTIFICATE: &str = "ca/ca.crt";
/// The user of the site and its password.
pub(crate) const HTPASSWD: &str = "htpasswd";
/// The file that a run locks.
pub(crate) const LOCK: &str = ".lock";

/// The files that a run believes, and without which it would decide otherwise.
const BELIEVED: [&str; 4] = [SETTINGS, LIST, CA_CERTIFICATE, HTPASSWD];

/// The state directory of root, as in the Filesystem Hierarchy Standard.
const ROOT_STATE: &str = "/var/lib";
/// The directory of the program in the state directory, and the directory of the records in it.
const PROGRAM: &str = "airbundle";
const RECORDS: &str = "configurations";
/// Maximum size of a record in bytes.
const LIMIT: u64 = 1 << 20;
/// Maximum size of a file of a configuration in bytes.
const FILE_LIMIT: u64 = 1 << 30;

/// The reason why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum HostRecordError {
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// This host did not write the configuration, or does not remember it.
    #[error(
        "`{}` is not known to be from this host: its settings, its CA and its edited files would decide what clients \
         trust and what runs here: look at them and use `--adopt-conf`, or choose another directory with `--conf DIR`, \
         or move it away", .0.display()
    )]
    Unknown(PathBuf),
    /// A file has changed since the last run on this host, or is missing.
    #[error(
        "`{}` is missing or not as this host wrote it: it decides what clients trust and what runs here: look at it \
         and the other files of the configuration and use `--adopt-conf`, or choose another directory with \
         `--conf DIR`, or move the configuration away", .0.display()
    )]
    Changed(PathBuf),
}

/// The digests that each file can have. There are two of a file while a run replaces it. `None`: it is missing.
type Digests = BTreeMap<String, BTreeSet<Option<Digest>>>;

/// A record; see the module.
pub(crate) struct HostRecord {
    saved: Saved,
    /// `None`: the host has no place for records.
    state: Option<PathBuf>,
    /// The last error of writing the record.
    failed: Option<FsError>,
    /// True if the configuration is empty, although the host remembers one.
    is_lost: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// The path of the configuration, without symlinks.
    conf: String,
    digests: Digests,
}

impl HostRecord {
    /// Opens the record of a configuration. Fails if the configuration has files and the record does not have their
    /// digests, unless `adopt`.
    pub(crate) fn open(conf: &Directory, adopt: bool) -> Result<Self, HostRecordError> {
        Self::open_in(state_directory(), conf, adopt)
    }

    fn open_in(state: Option<PathBuf>, conf: &Directory, adopt: bool) -> Result<Self, HostRecordError> {
        let digests = digests(conf)?;
        let saved = state.as_deref().and_then(|state| read(state, conf.path()));
        let is_empty = is_empty(conf)?;
        if !adopt && !is_empty {
            let saved = saved.as_ref().ok_or_else(|| HostRecordError::Unknown(conf.path().to_owned()))?;
            for (name, digest) in &digests {
                if !saved.get(name).is_some_and(|known| digest.is_subset(known)) {
                    return Err(HostRecordError::Changed(conf.path().join(name)));
                }
            }
        }
        let is_lost = is_empty && saved.is_some_and(|saved| saved.values().flatten().any(Option::is_some));
        let saved = Saved { conf: conf.path().to_string_lossy().into_owned(), digests };
        let mut record = Self { saved, state, failed: None, is_lost };
        record.save();
        Ok(record)
    }

    /// Creates a record that is not saved.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            saved: Saved { conf: String::new(), digests: Digests::new() },
            state: None,
            failed: None,
            is_lost: false,
        }
    }

    /// True if the configuration is empty, although the host remembers one.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Adds the digest of a file that is about to be written, so that an interrupted run can be repeated.
    pub(crate) fn announce(&mut self, name: &str, content: &[u8]) {
        self.expect(name, Some(Digest::of(content)));
    }

    /// Records that a file is about to be removed.
    pub(crate) fn announce_removal(&mut self, name: &str) {
        self.expect(name, None);
    }

    fn expect(&mut self, name: &str, digest: Option<Digest>) {
        if self.saved.digests.entry(name.to_owned()).or_default().insert(digest) {
            self.save();
        }
    }

    /// Completes the record after a run. Fails if it could not be written: the next run then does not know the
    /// configuration.
    pub(crate) fn finish(mut self, conf: &Directory) -> Result<(), FsError> {
        let digests = digests(conf)?;
        if self.saved.digests != digests {
            self.saved.digests = digests;
            self.save();
        }
        self.failed.map_or(Ok(()), Err)
    }

    fn save(&mut self) {
        self.failed = self.try_save().err();
    }

    fn try_save(&self) -> Result<(), FsError> {
        let path = Path::new(&self.saved.conf);
        let Some(state) = &self.state else {
            return Err(FsError::at("remember", path)(io::Error::other("no `HOME` and no `XDG_STATE_HOME`")));
        };
        let program = Directory::create(state)?.create_subdirectory(PROGRAM, 0o700)?;
        program.check_owner()?;
        let records = program.create_subdirectory(RECORDS, 0o700)?;
        records.check_owner()?;
        records.replace(&file_name(path), &pretty(&self.saved), 0o600)
    }
}

/// Returns the directory for state that outlives the program (XDG Base Directory Specification). The environment
/// decides nothing for root. `None`: there is none.
fn state_directory() -> Option<PathBuf> {
    if is_root() {
        return Some(ROOT_STATE.into());
    }
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))
}

fn file_name(conf: &Path) -> String {
    format!("{}.json", Digest::of(conf.as_os_str().as_bytes()).hex())
}

/// Returns the digests in the record of `conf`. `None`: there is no record that only the user can have written.
fn read(state: &Path, conf: &Path) -> Option<Digests> {
    let program = Directory::open(state).ok()?.subdirectory(PROGRAM).ok()?;
    program.check_owner().ok()?;
    let records = program.subdirectory(RECORDS).ok()?;
    records.check_owner().ok()?;
    let saved: Saved = serde_json::from_slice(&records.read(&file_name(conf), LIMIT).ok()??).ok()?;
    (*saved.conf == *conf.to_string_lossy()).then_some(saved.digests)
}

/// Returns the digests of the files that a run believes.
fn digests(conf: &Directory) -> Result<Digests, FsError> {
    let mut digests = Digests::new();
    for name in BELIEVED {
        digests.insert(name.to_owned(), BTreeSet::from([digest(conf, name)?]));
    }
    Ok(digests)
}

/// Returns the digest of a regular file. `None`: it is missing.
pub(crate) fn digest(directory: &Directory, name: &str) -> Result<Option<Digest>, FsError> {
    let Some(file) = directory.open_file(name)? else { return Ok(None) };
    hash(&file).map(Some).map_err(FsError::at("read", directory.path().join(name)))
}

fn hash(file: &File) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let length = io::copy(&mut file.take(FILE_LIMIT + 1), &mut hasher)?;
    if length > FILE_LIMIT { Err(ErrorKind::FileTooLarge.into()) } else { Ok(hasher.finish()) }
}

/// True if nothing is in the directory but the lock, empty directories, and what a run that failed at its first file left.
fn is_empty(conf: &Directory) -> Result<bool, FsError> {
    for name in conf.names()? {
        let is_unfinished = name.strip_prefix('.').is_some_and(|name| name.strip_suffix(".part").is_some());
        let is_empty_directory = || {
            conf.subdirectory(&name)
                .is_ok_and(|directory| directory.names().is_ok_and(|names| names.is_empty()))
        };
        if name != LOCK && !is_unfinished && !is_empty_directory() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A configuration and a state directory.
    struct Host {
        directory: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["conf", "state"] {
                fs::create_dir(directory.path().join(name)).unwrap();
            }
            Self { directory }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn conf(&self) -> Directory {
            Directory::open(&self.path("conf")).unwrap()
        }

        fn open(&self, adopt: bool) -> Result<HostRecord, String> {
            let record = HostRecord::open_in(Some(self.path("state")), &self.conf(), adopt);
            record.map_err(|error| error.to_string())
        }

        fn run(&self, adopt: bool) -> Result<(), String> {
            let record = self.open(adopt)?;
            record.finish(&self.conf()).map_err(|error| error.source.to_string())
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.path("conf").join(name), content).unwrap();
        }
    }

    #[test]
    fn a_configuration_is_known_as_this_host_wrote_it() {
        let host = Host::new();
        host.write(LOCK, "");
        let mut record = host.open(false).unwrap();
        // An interrupted run.
        record.announce(SETTINGS, b"1");
        host.write("nginx.conf", "generated");
        drop(record);
        host.run(false).unwrap();
        let mut record = host.open(false).unwrap();
        record.announce(SETTINGS, b"1");
        host.write(SETTINGS, "1");
        record.finish(&host.conf()).unwrap();
        host.run(false).unwrap();
        host.write("nginx.conf", "edited");
        host.run(false).unwrap();
        for (name, content) in [(SETTINGS, "2"), (LIST, "{}"), (HTPASSWD, "u:x")] {
            host.write(name, content);
            let error = host.run(false).unwrap_err();
            assert!(
                error.contains(&format!("conf/{name}` is missing or not as this host wrote it")),
                "{error}"
            );
            assert!(error.contains("`--adopt-conf`"), "{error}");
            host.run(true).unwrap();
            host.run(false).unwrap();
        }
        // The configuration of another disk, which lacks these files.
        for name in [SETTINGS, LIST, HTPASSWD] {
            fs::remove_file(host.path("conf").join(name)).unwrap();
            let error = host.run(false).unwrap_err();
            assert!(error.contains(&format!("conf/{name}` is missing")), "{error}");
            // A run that was interrupted after it removed the file.
            let mut record = host.open(true).unwrap();
            host.write(name, "3");
            record.announce(name, b"3");
            record.announce_removal(name);
            fs::remove_file(host.path("conf").join(name)).unwrap();
            host.run(false).unwrap();
            host.write(name, "3");
            host.run(true).unwrap();
        }
        // An empty configuration is a new one.
        assert!(!host.open(false).unwrap().is_lost());
        fs::remove_dir_all(host.path("conf")).unwrap();
        fs::create_dir(host.path("conf")).unwrap();
        let record = host.open(false).unwrap();
        assert!(record.is_lost());
        record.finish(&host.conf()).unwrap();
        assert!(!host.open(false).unwrap().is_lost());
    }

    #[test]
    fn a_configuration_from_another_place_or_host_is_not_known() {
        let host = Host::new();
        host.write("nginx.conf", "carried");
        let error = host.run(false).unwrap_err();
        assert!(error.contains("conf` is not known to be from this host"), "{error}");
        assert!(error.contains("`--adopt-conf`") && error.contains("`--conf DIR`"), "{error}");
        host.run(true).unwrap();
        host.run(false).unwrap();
        fs::rename(host.path("conf"), host.path("moved")).unwrap();
        fs::create_dir(host.path("conf")).unwrap();
        host.run(false).unwrap();
        fs::remove_dir(host.path("conf")).unwrap();
        let moved = Directory::open(&host.path("moved")).unwrap();
        assert!(HostRecord::open_in(Some(host.path("state")), &moved, false).is_err());
        assert!(HostRecord::open_in(None, &moved, false).is_err());
        let record = HostRecord::open_in(None, &moved, true).unwrap();
        assert!(record.finish(&moved).is_err());
    }

    #[test]
    fn records_that_others_could_write_are_not_used() {
        let host = Host::new();
        host.run(false).unwrap();
        host.write("site", "x");
        host.run(false).unwrap();
        let records = host.path("state/airbundle/configurations");
        assert_eq!(records.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        for directory in [records.clone(), host.path("state/airbundle")] {
            let mode = |mode| fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            mode(0o770);
            host.run(false).unwrap_err();
            mode(0o700);
            host.run(false).unwrap();
        }
        fs::rename(&records, host.path("mine")).unwrap();
        symlink(host.path("mine"), &records).unwrap();
        host.run(false).unwrap_err();
        assert_eq!(host.run(true).unwrap_err(), "it is a symlink");
    }
}
