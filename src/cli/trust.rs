//! The trusted keys of a host: `--trusted-key`, the environment, or files in `/etc/airbundle`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::base::fs::{self, FsError};
use crate::bundle::read::volume_set::VolumeSet;
use crate::cli::exit::{Code, Failure};
use crate::signature::{KeyError, PublicKey, SIGNATURE_LIMIT, Trust};

/// The environment variable with a public key, or the path of one.
const VARIABLE: &str = "UNBUNDLE_TRUSTED_KEY";
const HOST_FILE: &str = "/etc/airbundle/trusted.pub";
const HOST_DIRECTORY: &str = "/etc/airbundle/trusted-keys.d";
/// Maximum size of a file with keys, in bytes.
const KEYS_LIMIT: u64 = 1 << 20;

/// The extension of a detached signature.
const DETACHED: &str = ".minisig";

/// The trusted keys of the command line.
#[derive(Debug, Args)]
pub(super) struct TrustArgs {
    /// Require a signature by this public key; can be repeated
    ///
    /// KEY is a minisign public key or a file with public keys.
    ///
    /// [default: `$UNBUNDLE_TRUSTED_KEY`, else /etc/airbundle/trusted.pub and
    /// /etc/airbundle/trusted-keys.d/*.pub]
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<OsString>,
}

impl TrustArgs {
    /// Returns the trusted keys, for a bundle from a pipe.
    pub(super) fn of_stream(&self) -> Result<Trust, Failure> {
        Ok(Trust { keys: self.keys()?, detached: None })
    }

    /// Returns the trusted keys and the detached signature of `volumes`.
    pub(super) fn of(&self, volumes: &VolumeSet) -> Result<Trust, Failure> {
        let keys = self.keys()?;
        let beside = detached_signature(volumes, !keys.is_empty())?;
        Ok(Trust { keys, detached: beside })
    }

    /// Returns the keys of the command line, else of the environment, else of the host.
    fn keys(&self) -> Result<Vec<PublicKey>, Failure> {
        let variable = std::env::var_os(VARIABLE).filter(|key| !key.is_empty());
        let (sources, is_file) = match (&self.trusted_key[..], variable) {
            ([], Some(key)) => (vec![key], false),
            ([], None) => {
                let files = host_files()?;
                (files.into_iter().map(PathBuf::into_os_string).collect(), true)
            }
            (keys, _) => (keys.to_vec(), false),
        };
        let keys = sources.iter().map(|source| read(source, is_file)).collect::<Result<Vec<_>, _>>()?;
        Ok(keys.into_iter().flatten().collect())
    }
}

/// Reads a key, or a file with keys.
fn read(source: &OsStr, is_file: bool) -> Result<Vec<PublicKey>, Failure> {
    let text = source.to_str().filter(|_| !is_file);
    if let Some(key) = text.and_then(|text| text.trim().parse().ok()) {
        return Ok(vec![key]);
    }
    let path = Path::new(source);
    let bytes = fs::read(path, KEYS_LIMIT).map_err(|error| {
        let failure = Failure::from(error);
        // The user may have meant a key.
        if path.exists() { failure } else { failure.with_hint("this is neither a public key nor a file") }
    })?;
    let keys = std::str::from_utf8(&bytes).map_err(|_| KeyError::Syntax).and_then(PublicKey::parse_all);
    keys.map_err(|error| {
        Failure::new(Code::Usage, format!("cannot read the trusted keys in `{}`: {error}", path.display()))
    })
}

/// Returns the files with trusted keys of this host. An unreadable file is an error, because without trusted
/// keys any bundle would be accepted.
fn host_files() -> Result<Vec<PathBuf>, FsError> {
    let mut files = Vec::new();
    let single = Path::new(HOST_FILE);
    if single.symlink_metadata().is_ok() {
        files.push(single.to_owned());
    }
    let entries = match std::fs::read_dir(HOST_DIRECTORY) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        entries => entries.map_err(FsError::at("read", HOST_DIRECTORY))?,
    };
    for entry in entries {
        let path = entry.map_err(FsError::at("read", HOST_DIRECTORY))?.path();
        if path.extension().is_some_and(|extension| extension == "pub") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Returns the detached signature of a bundle, with its path. If it is not needed, an unreadable file is
/// ignored.
fn detached_signature(volumes: &VolumeSet, is_needed: bool) -> Result<Option<(String, Vec<u8>)>, FsError> {
    let name = format!("{}{DETACHED}", volumes.name());
    let paths = volumes.directories().iter().map(|directory| directory.join(&name));
    let Some(path) = paths.into_iter().find(|path| path.is_file()) else { return Ok(None) };
    match fs::read(&path, SIGNATURE_LIMIT as u64) {
        Err(_) if !is_needed => Ok(None),
        bytes => Ok(Some((path.display().to_string(), bytes?))),
    }
}
