//! The options that say what the user is known by at registries.

use std::collections::BTreeSet;
use std::io::{Read as _, stdin};
use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::{Code, Failure};
use crate::documents::list::{ImageEntry, Lists};
use crate::fetch::upstream::Upstream;
use crate::net::credentials::{Credentials, GivenLogin};
use crate::net::secret::Secret;
use crate::oci::reference::canonical_host;

/// The longest password that is read, in bytes.
const PASSWORD_LIMIT: u64 = 64 << 10;

/// What the user is known by at registries.
#[derive(Debug, Default, Args)]
pub(crate) struct CredentialsArgs {
    /// Read the credentials for registries from this file alone, as `docker login` or `podman login` write it
    #[arg(long, value_name = "FILE")]
    auth_file: Option<PathBuf>,
    /// Log in with this name, and with the password of `--password-stdin`
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// The registry, or mirror, that `--username` is for: needed where the lists name several
    #[arg(long, value_name = "HOST", requires = "username")]
    registry: Option<String>,
}

impl CredentialsArgs {
    /// Where credentials are looked for. What the command line itself says belongs to one registry, which the lists
    /// may tell.
    pub(crate) fn credentials(self, upstream: &Upstream, lists: &Lists) -> Result<Credentials, Failure> {
        if let Some(path) = &self.auth_file
            && let Err(error) = std::fs::metadata(path)
        {
            return Err(Failure::new(Code::File, format!("cannot read `{}`: {error}", path.display())));
        }
        let given = match self.username {
            Some(user) => {
                let host = bound_to(self.registry, upstream, lists)?;
                Some(GivenLogin { host, user, password: read_password()? })
            }
            None => None,
        };
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Ok(Credentials::new(self.auth_file, given, variable))
    }
}

/// The registry that a password is for. It is never sent to one that was not meant.
fn bound_to(said: Option<String>, upstream: &Upstream, lists: &Lists) -> Result<String, Failure> {
    let hosts: BTreeSet<&str> = lists.images.iter().map(|entry| entry.reference.host()).collect();
    let spots = lists.images.iter().flat_map(|ImageEntry { reference, .. }| {
        let spots =
            |pinned| upstream.mirrors.endpoints(None, reference.host(), reference.repository(), pinned);
        [false, true].into_iter().flat_map(spots).flatten()
    });
    let places: BTreeSet<String> = spots.map(|spot| canonical_host(&spot.host)).collect();
    let all = || places.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let usage = |message: String| Err(Failure::new(Code::Usage, message));
    if let Some(said) = said {
        let said = canonical_host(&said);
        if !places.contains(&said) {
            return usage(format!("`--registry {said}`: the images of the lists come from {}", all()));
        }
        return Ok(said);
    }
    match (hosts.first(), places.first()) {
        (Some(host), Some(place)) if hosts.len() == 1 && places.len() == 1 && host == place => {
            Ok(place.clone())
        }
        (Some(host), Some(_)) if hosts.len() == 1 => usage(format!(
            "the images of `{host}` come from a mirror: say with `--registry HOST` which place `--username` is for ({})",
            all()
        )),
        (Some(_), _) => usage(format!(
            "the lists name {} registries: say with `--registry HOST` which of them `--username` is for ({})",
            hosts.len(),
            all()
        )),
        (None, _) => usage("`--username` is for a registry, and the lists name no image".to_owned()),
    }
}

fn read_password() -> Result<Secret, Failure> {
    let mut password = String::new();
    let read = stdin().lock().take(PASSWORD_LIMIT).read_to_string(&mut password);
    read.map_err(|error| Failure::new(Code::Usage, format!("cannot read the password from stdin: {error}")))?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(Failure::new(
            Code::Usage,
            "`--password-stdin`: there is no password on stdin".to_owned(),
        ));
    }
    Ok(Secret::new(password))
}
