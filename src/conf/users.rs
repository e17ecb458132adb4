//! `htpasswd`: the user of a site and its password (bcrypt), for nginx and registries.

use crate::base::directory::Directory;
use crate::base::fs::FsError;
use crate::conf::setup::Setup;

/// Binary logarithm of the number of bcrypt rounds, as in `htpasswd -B`. nginx and the registry hash the
/// password for every request: 2^5 rounds take a few milliseconds; 2^12 would slow down pulls more than the
/// network does.
const COST: u32 = 5;

/// The reason why the user cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The name is empty, longer than 64 bytes, or has other characters.
    #[error("invalid user name `{0}`: use at most 64 letters, digits and `._-`")]
    Name(String),
    /// The password is empty, longer than 72 bytes (bcrypt ignores the rest), or has control characters.
    #[error("invalid password: it must have 1 to 72 bytes and no control characters")]
    Password,
    /// bcrypt failed.
    #[error("cannot hash the password")]
    Bcrypt(#[from] bcrypt::BcryptError),
}

const NAME: &str = "htpasswd";
/// Maximum bytes of the file that are read.
const LIMIT: u64 = 1 << 20;

/// Writes `htpasswd` in `conf` if `user` (name and password) is given. Removes it if the settings have no
/// user.
pub(crate) fn provide(
    setup: &Setup,
    conf: &Directory,
    user: Option<(String, String)>,
) -> Result<(), UserError> {
    let Some((name, password)) = user else {
        if setup.settings.user.is_none() {
            conf.remove(NAME)?;
        }
        return Ok(());
    };
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_valid) {
        return Err(UserError::Name(name));
    }
    if password.is_empty() || password.len() > 72 || password.chars().any(char::is_control) {
        return Err(UserError::Password);
    }
    // A new hash of the same password would differ, because its salt is random.
    let old = conf.read(NAME, LIMIT)?.unwrap_or_default();
    let old = String::from_utf8_lossy(&old);
    let hash = old.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    if hash.is_some_and(|hash| bcrypt::verify(&password, hash).unwrap_or(false)) {
        return Ok(());
    }
    let hash = bcrypt::hash_with_result(&password, COST)?.format_for_version(bcrypt::Version::TwoY);
    conf.replace(NAME, format!("{name}:{hash}\n").as_bytes(), 0o644)?;
    Ok(())
}
