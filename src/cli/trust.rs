//! Whom a host believes: `--trusted-key`, the environment, or files in `/etc/airbundle`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::base::error_chain::chain;
use crate::base::fs::{self, FsError};
use crate::bundle::read::volume_set::VolumeSet;
use crate::cli::exit::{Code, Failure};
use crate::signature::{KeyError, PublicKey, SIGNATURE_LIMIT, Trust};

/// One key, or the file of one.
const VARIABLE: &str = "UNBUNDLE_TRUSTED_KEY";
const HOST_FILE: &str = "/etc/airbundle/trusted.pub";
const HOST_FOLDER: &str = "/etc/airbundle/trusted-keys.d";
/// The largest file of keys that is read, in bytes.
const KEYS_LIMIT: u64 = 1 << 20;

/// What is behind the name of a bundle for the signature that lies beside it.
const BESIDE: &str = ".minisig";

/// The keys that the user trusts.
#[derive(Debug, Args)]
pub(super) struct TrustArgs {
    /// Take the bundle only if this key has signed it: a file as minisign has it, or the key itself; may be given several
    /// times [default: `UNBUNDLE_TRUSTED_KEY` of the environment, or the files in /etc/airbundle]
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<OsString>,
}

impl TrustArgs {
    /// Whom this host believes, for a bundle that comes through a pipe.
    pub(super) fn of_stream(&self) -> Result<Trust, Failure> {
        Ok(Trust { keys: self.keys()?, detached: None })
    }

    /// The same for one that lies on `medium`, with the signature that lies beside it.
    pub(super) fn of(&self, medium: &VolumeSet) -> Result<Trust, Failure> {
        let keys = self.keys()?;
        let beside =
            beside(medium, !keys.is_empty()).map_err(|error| Failure::new(Code::File, chain(&error)))?;
        Ok(Trust { keys, detached: beside })
    }

    /// The first place counts that says anything.
    fn keys(&self) -> Result<Vec<PublicKey>, Failure> {
        let given = std::env::var_os(VARIABLE).filter(|key| !key.is_empty());
        let (places, is_host) = match (&self.trusted_key[..], given) {
            ([], Some(key)) => (vec![key], false),
            ([], None) => {
                let files = host_files().map_err(|error| Failure::new(Code::File, chain(&error)))?;
                (files.into_iter().map(PathBuf::into_os_string).collect(), true)
            }
            (keys, _) => (keys.to_vec(), false),
        };
        let keys = places.iter().map(|place| read(place, is_host)).collect::<Result<Vec<_>, _>>()?;
        Ok(keys.into_iter().flatten().collect())
    }
}

/// A key, or a file of keys.
fn read(place: &OsStr, is_file: bool) -> Result<Vec<PublicKey>, Failure> {
    let line = place.to_str().filter(|_| !is_file);
    if let Some(key) = line.and_then(|line| line.trim().parse().ok()) {
        return Ok(vec![key]);
    }
    let path = Path::new(place);
    let bytes = fs::read(path, KEYS_LIMIT).map_err(|error| {
        // Not every text that is no key is meant to be a file.
        let hint = if path.exists() { "" } else { ": it is neither a public key nor a file" };
        Failure::new(Code::File, chain(&error) + hint)
    })?;
    let keys = std::str::from_utf8(&bytes).map_err(|_| KeyError::Syntax).and_then(PublicKey::parse_all);
    keys.map_err(|error| Failure::new(Code::Usage, format!("trusted key `{}`: {error}", path.display())))
}

/// The files of keys that this host has. One that cannot be read is not passed over: without it a host would take
/// everything.
fn host_files() -> Result<Vec<PathBuf>, FsError> {
    let mut files = Vec::new();
    let one = Path::new(HOST_FILE);
    if one.symlink_metadata().is_ok() {
        files.push(one.to_owned());
    }
    let entries = match std::fs::read_dir(HOST_FOLDER) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        entries => entries.map_err(FsError::at("read", HOST_FOLDER))?,
    };
    for entry in entries {
        let path = entry.map_err(FsError::at("read", HOST_FOLDER))?.path();
        if path.extension().is_some_and(|extension| extension == "pub") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The signature that lies beside the bundle, and what its file is called. Where nobody is to check it, nobody needs it.
fn beside(medium: &VolumeSet, is_needed: bool) -> Result<Option<(String, Vec<u8>)>, FsError> {
    let name = format!("{}{BESIDE}", medium.name());
    let paths = medium.directories().iter().map(|directory| directory.join(&name));
    let Some(path) = paths.into_iter().find(|path| path.is_file()) else { return Ok(None) };
    match fs::read(&path, SIGNATURE_LIMIT as u64) {
        Err(_) if !is_needed => Ok(None),
        bytes => Ok(Some((path.display().to_string(), bytes?))),
    }
}
