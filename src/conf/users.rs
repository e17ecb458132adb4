//! The user of a site, in a file that nginx and registries read (`htpasswd`, bcrypt).

use crate::base::fs::{self, FsError};
use crate::conf::generated::replace;
use crate::conf::setup::Setup;

/// nginx and the registry compute it anew for every request, blobs included: 2^5 rounds take some milliseconds
/// (what `htpasswd -B` does, too), and 2^12 would make a pull wait for it more than for the network.
const COST: u32 = 5;

/// Why there is no user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A name that the file cannot hold.
    #[error("`{0}` is no user name: use letters, digits and `._-`")]
    Name(String),
    /// bcrypt takes 72 bytes and ignores the rest; and nothing is no password.
    #[error("a password has 1 to 72 bytes on one line")]
    Password,
    /// It could not be computed.
    #[error("cannot make a password entry")]
    Bcrypt(#[from] bcrypt::BcryptError),
}

/// Writes `htpasswd` for a user with a new password, leaves the one that is there otherwise, and removes it when
/// nobody has to log in.
pub(crate) fn provide(setup: &Setup, user: Option<(String, String)>) -> Result<(), UserError> {
    let path = setup.conf.join("htpasswd");
    let Some((name, password)) = user else {
        if setup.settings.user.is_none() {
            fs::remove_file(&path)?;
        }
        return Ok(());
    };
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
        return Err(UserError::Name(name));
    }
    if password.is_empty() || password.len() > 72 || password.chars().any(char::is_control) {
        return Err(UserError::Password);
    }
    // The same password again changes nothing.
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let hash = old.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    if hash.is_some_and(|hash| bcrypt::verify(&password, hash).unwrap_or(false)) {
        return Ok(());
    }
    let hash = bcrypt::hash_with_result(&password, COST)?.format_for_version(bcrypt::Version::TwoY);
    replace(&path, format!("{name}:{hash}\n").as_bytes(), 0o644)?;
    Ok(())
}
