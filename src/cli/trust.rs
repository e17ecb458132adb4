//! The trusted keys of a host: `--trusted-key`, the environment, or files in `/etc/airbundle`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::Args;

use crate::cli::exit::{Code, Failure};
use crate::cli::host_keys::{self, HostKeys};
use crate::cli::roots::RootArgs;
use crate::oci::template::RepositoryTemplate;
use crate::signature::PublicKey;
use crate::signature::policy::{Policy, PolicyError};
use crate::site::roots::NamedRoots;
use crate::site::verified::SitePolicy;

/// The environment variable with a public key, or the path of one.
const VARIABLE: &str = "UNBUNDLE_TRUSTED_KEY";

/// The signature options of every verb that reads a bundle.
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
    /// Require signatures by N different trusted keys [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    require_signatures: Option<u16>,
}

/// The signature options of every verb that reads a site.
#[derive(Debug, Args)]
pub(super) struct SiteTrustArgs {
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    names: SiteNameArgs,
}

/// The names that the record of a site cannot set by itself: directories and repositories.
#[derive(Debug, Args)]
pub(super) struct SiteNameArgs {
    #[command(flatten)]
    roots: RootArgs,
    /// With trusted keys: repository names of the site, as in `unpack`; can be repeated [default: k8s/{host}/{repository}]
    ///
    /// No signature covers the names, so that `site.json` alone cannot name others.
    #[arg(long, value_name = "TEMPLATE")]
    repository_template: Vec<RepositoryTemplate>,
}

impl TrustArgs {
    /// Returns the policy with the keys of the command line, else of the environment, else of the host.
    pub(super) fn policy(&self) -> Result<Policy, Failure> {
        let variable = std::env::var_os(VARIABLE).filter(|key| !key.is_empty());
        let sources = match (&self.trusted_key[..], variable) {
            ([], variable) => variable.into_iter().collect(),
            (keys, _) => keys.to_vec(),
        };
        let mut keys = Vec::new();
        for source in &sources {
            keys.extend(read(source)?);
        }
        // Revoked keys are revoked wherever a key comes from.
        let host = Path::new(host_keys::DIRECTORY);
        let host = if sources.is_empty() || host_keys::has_revocations(host) {
            HostKeys::read(host)?.unwrap_or_default()
        } else {
            HostKeys::default()
        };
        if sources.is_empty() {
            keys = host.keys;
        }
        let required = self.require_signatures.map(usize::from);
        Policy::new(keys, host.revoked, required).map_err(|error| {
            let failure = Failure::of(Code::Usage, &error);
            match error {
                PolicyError::NoKeys => failure.with_hint("name the keys with `--trusted-key`"),
                PolicyError::Revoked | PolicyError::TooFewKeys { .. } => failure,
            }
        })
    }
}

impl SiteTrustArgs {
    pub(super) fn policy(&self) -> Result<SitePolicy, Failure> {
        Ok(self.names.policy(self.trust.policy()?))
    }
}

impl SiteNameArgs {
    pub(super) fn roots(&self) -> NamedRoots {
        self.roots.named()
    }

    pub(super) fn policy(&self, signatures: Policy) -> SitePolicy {
        let mut templates = self.repository_template.clone();
        if templates.is_empty() {
            templates.push(RepositoryTemplate::default());
        }
        SitePolicy { signatures, templates, roots: self.roots() }
    }
}

/// Reads a key, or a file with keys.
fn read(source: &OsStr) -> Result<Vec<PublicKey>, Failure> {
    if let Some(key) = source.to_str().and_then(|text| text.trim().parse().ok()) {
        return Ok(vec![key]);
    }
    let path = Path::new(source);
    host_keys::read_file(path).map_err(|failure| {
        // The user may have meant a key.
        if path.exists() { failure } else { failure.with_hint("this is neither a public key nor a file") }
    })
}
