//! `htpasswd`: the user of a site and its password (bcrypt), for nginx and registries.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::PathBuf;

use crate::base::directory::Directory;
use crate::base::fs::FsError;
use crate::base::own_file::check;
use crate::conf::host_record::{HTPASSWD, HostRecord};
use crate::conf::setup::{Setup, is_root};

/// Binary logarithm of the number of bcrypt rounds, as in `htpasswd -B`. nginx and the registry hash the
/// password for every request: 2^5 rounds take a few milliseconds; 2^12 would slow down pulls more than the
/// network does.
const COST: u32 = 5;

/// Minimum number of characters of a password.
const MIN_PASSWORD: usize = 8;
/// Maximum length of a password in bytes: bcrypt ignores the rest.
const PASSWORD_LIMIT: usize = 72;

/// The users of nginx in the packages of distributions, in order of preference.
const SERVER_USERS: [&str; 3] = ["nginx", "www-data", "http"];

/// The reason why the user cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A local I/O error.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The password is longer than 72 bytes (bcrypt ignores the rest), or has control characters.
    #[error("invalid password: it must have 1 to 72 bytes and no control characters")]
    Password,
    /// The password is easy to guess.
    #[error("weak password: it has fewer than 8 characters: use a longer one, or `--weak-password`")]
    Weak,
    /// The file has no password of the user.
    #[error("`{}` has no password of the user `{user}`: set it with `--user {user}`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The user.
        user: String,
    },
    /// bcrypt failed.
    #[error("cannot hash the password")]
    Bcrypt(#[from] bcrypt::BcryptError),
}

/// The user that nginx runs as on this host, if root starts it.
pub(crate) struct ServerUser {
    pub(crate) name: &'static str,
    group: u32,
}

impl ServerUser {
    /// Looks the user up in `/etc/passwd`. `None`: no package of nginx is installed.
    pub(crate) fn find() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/etc/passwd").unwrap_or_default())
    }

    fn parse(passwd: &str) -> Option<Self> {
        SERVER_USERS.into_iter().find_map(|name| {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
            Some(Self { name, group: line.split(':').nth(3)?.parse().ok()? })
        })
    }
}

/// Returns an error unless `password` can be used.
pub(crate) fn check_password(password: &str, accept_weak: bool) -> Result<(), UserError> {
    if password.is_empty() || password.len() > PASSWORD_LIMIT || password.chars().any(char::is_control) {
        return Err(UserError::Password);
    }
    if password.chars().count() < MIN_PASSWORD && !accept_weak {
        return Err(UserError::Weak);
    }
    Ok(())
}

/// Maximum size of the file in bytes.
const LIMIT: u64 = 1 << 20;

/// Writes `htpasswd` in `conf` if `user` (name and password) is given. The user of the settings is the only one in
/// it. Removes it if the settings have no user.
pub(crate) fn provide(
    setup: &Setup,
    conf: &Directory,
    user: Option<(String, String)>,
    record: &mut HostRecord,
) -> Result<(), UserError> {
    let Some(name) = &setup.settings.user else {
        record.announce_removal(HTPASSWD);
        return Ok(conf.remove(HTPASSWD)?);
    };
    // `site start` sets the group for the server that it starts.
    let group =
        conf.open_file(HTPASSWD)?.and_then(|file| file.metadata().ok()).map(|metadata| metadata.gid());
    let old = conf.read(HTPASSWD, LIMIT)?.unwrap_or_default();
    let old = String::from_utf8_lossy(&old);
    let line = old.lines().find(|line| line.strip_prefix(&**name).is_some_and(|rest| rest.starts_with(':')));
    let line = match user {
        None => line.map(str::to_owned),
        Some((_, password)) => {
            // A new hash of the same password would differ, because its salt is random.
            let is_same = |line: &&str| bcrypt::verify(&password, &line[name.len() + 1..]).unwrap_or(false);
            let kept = line.filter(is_same).map(str::to_owned);
            let hash = || bcrypt::hash_with_result(&password, COST);
            Some(match kept {
                Some(line) => line,
                None => format!("{name}:{}", hash()?.format_for_version(bcrypt::Version::TwoY)),
            })
        }
    };
    let line =
        line.ok_or_else(|| UserError::Missing { path: conf.path().join(HTPASSWD), user: name.clone() })?;
    let new = format!("{line}\n");
    if new != old {
        record.announce(HTPASSWD, new.as_bytes());
        conf.replace(HTPASSWD, new.as_bytes(), 0o640)?;
    }
    Ok(restrict(conf, group)?)
}

/// Makes the file readable for its owner and for the group of the server only.
fn restrict(conf: &Directory, group: Option<u32>) -> Result<(), FsError> {
    let Some(file) = conf.open_file(HTPASSWD)? else { return Ok(()) };
    let path = conf.path().join(HTPASSWD);
    // Another name of the file could be one of another user, or of the system.
    let metadata = file.metadata().map_err(FsError::at("read", &path))?;
    check(&metadata).map_err(|distrust| FsError::at("use", &path)(distrust.into()))?;
    if is_root() {
        let group = group.filter(|group| *group != 0).or_else(|| ServerUser::find().map(|user| user.group));
        fchown(&file, None, group).map_err(FsError::at("change the group of", &path))?;
    }
    file.set_permissions(Permissions::from_mode(0o640)).map_err(FsError::at("change the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_the_nginx_package_is_found() {
        let find = |passwd: &str| ServerUser::parse(passwd).map(|user| (user.name, user.group));
        let debian =
            "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:34:www-data:/var/www:/usr/sbin/nologin\n";
        assert_eq!(find(debian), Some(("www-data", 34)));
        assert_eq!(find(&format!("{debian}nginx:x:996:993:Nginx:/:/sbin/nologin\n")), Some(("nginx", 993)));
        assert_eq!(find("root:x:0:0::/:/bin/sh\nnginx2:x:1:1::/:/bin/sh\n"), None);
    }

    #[test]
    fn short_passwords_require_the_option() {
        for (password, weak, valid) in [
            ("geheim", false, false),
            ("geheim", true, true),
            ("", true, false),
            ("geheimes", false, true),
            ("g\u{e9}h\u{e9}im", false, false),
            ("geheim\tgeheim", true, false),
            (&*"x".repeat(72), false, true),
            (&*"x".repeat(73), false, false),
        ] {
            assert_eq!(check_password(password, weak).is_ok(), valid, "{password}");
        }
    }
}
