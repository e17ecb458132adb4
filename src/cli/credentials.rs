//! The options for registry credentials.

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

/// Maximum length of a password, in bytes.
const PASSWORD_LIMIT: u64 = 64 << 10;

/// The registry credentials of the command line.
#[derive(Debug, Default, Args)]
pub(crate) struct CredentialsArgs {
    /// Read registry credentials from this file only
    ///
    /// The file has the format that `docker login` and `podman login` write.
    #[arg(long, value_name = "FILE")]
    auth_file: Option<PathBuf>,
    /// User name for one registry; requires `--password-stdin`
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password of `--username` from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Registry or mirror that `--username` is for; required if the lists use several
    #[arg(long, value_name = "HOST", requires = "username")]
    registry: Option<String>,
}

impl CredentialsArgs {
    /// Returns the credential sources. `--username` is bound to one registry: `--registry`, or the only one
    /// of `lists`.
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

/// Returns the registry that the password is for, so that it is never sent to another one.
fn bound_to(requested: Option<String>, upstream: &Upstream, lists: &Lists) -> Result<String, Failure> {
    let hosts: BTreeSet<&str> = lists.images.iter().map(|entry| entry.reference.host()).collect();
    let endpoints = lists.images.iter().flat_map(|ImageEntry { reference, .. }| {
        let of = |pinned| upstream.mirrors.endpoints(None, reference.host(), reference.repository(), pinned);
        [false, true].into_iter().flat_map(of).flatten()
    });
    let registries: BTreeSet<String> = endpoints.map(|endpoint| canonical_host(&endpoint.host)).collect();
    let all = || registries.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let usage = |message: String| Failure::new(Code::Usage, message);
    let choose = || format!("use `--registry HOST` with one of {}", all());
    if let Some(requested) = requested {
        let requested = canonical_host(&requested);
        return if registries.contains(&requested) {
            Ok(requested)
        } else {
            let message = format!("invalid `--registry {requested}`: no image in the lists comes from it");
            Err(usage(message).with_hint(choose()))
        };
    }
    match (hosts.first(), registries.first()) {
        (Some(host), Some(registry)) if hosts.len() == 1 && registries.len() == 1 && host == registry => {
            Ok(registry.clone())
        }
        (Some(host), Some(_)) if hosts.len() == 1 => {
            let message = format!("cannot use `--username`: the images of `{host}` come from a mirror");
            Err(usage(message).with_hint(choose()))
        }
        (Some(_), _) => {
            let message = format!("cannot use `--username`: the lists name {} registries", hosts.len());
            Err(usage(message).with_hint(choose()))
        }
        (None, _) => Err(usage("cannot use `--username`: the lists contain no image".to_owned())),
    }
}

fn read_password() -> Result<Secret, Failure> {
    let usage = |cause: &dyn std::fmt::Display| {
        Failure::new(Code::Usage, format!("cannot read the password from stdin: {cause}"))
    };
    let mut password = String::new();
    let read = stdin().lock().take(PASSWORD_LIMIT).read_to_string(&mut password);
    read.map_err(|error| usage(&error))?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() { Err(usage(&"it is empty")) } else { Ok(Secret::new(password)) }
}
