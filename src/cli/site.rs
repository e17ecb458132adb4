//! `unbundle site`: writes the configuration of the servers and clients of a site.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::base::error_chain::chain;
use crate::base::fs::FsError;
use crate::base::{child, ownership};
use crate::cli::allow_readers;
use crate::cli::console::{Text, prompt_password};
use crate::cli::exit::{Code, Failure};
use crate::cli::output::{print, print_json};
use crate::cli::trust::SiteTrustArgs;
use crate::commands::site::{CaChanges, Changes, ConfError, Configured, configure};
use crate::conf::ca::{CaChange, CaError};
use crate::conf::host_record::HostRecordError;
use crate::conf::setup::{Setup, Tls, is_root};
use crate::conf::tls::{Issued, RENEWAL, TlsError, day};
use crate::conf::trust::hosts_line;
use crate::conf::users::UserError;
use crate::site::record::Record;

/// The script that configures a client.
const TRUST: &str = "trust.sh";
/// The script that starts the servers.
const START: &str = "site";
/// Maximum difference of two clocks that is no sign of a wrong one.
const CLOCK_ERROR: Duration = Duration::days(2);
/// The variable with the password of the site's user, for [`TRUST`].
const PASSWORD: &str = "AIRBUNDLE_PASSWORD";

/// Configure the servers and clients of a site: nginx, registry, TLS, containerd, Kubespray
///
/// Options are stored in the site: the next run uses them as defaults.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, clippy::struct_field_names, reason = "each is an option of its own")]
pub(crate) struct Site {
    /// Site directory
    site: PathBuf,
    /// Configuration directory, e.g. for a read-only site [default: SITE/conf]
    #[arg(long, value_name = "DIR")]
    conf: Option<PathBuf>,
    /// Host name that clients use [default: hub.kubespray.local]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// IP address that clients use [default: address of the default route]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// Port of the file server [default: 8080]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    files_port: Option<u16>,
    /// Port of the registry [default: 5000]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    registry_port: Option<u16>,
    /// Address that the servers listen on [default: all addresses of this host]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "no_bind")]
    bind: Option<IpAddr>,
    /// Listen on all addresses again
    #[arg(long)]
    no_bind: bool,
    /// Certificate: auto (site's CA), PEM files, or off (plain HTTP) [default: auto]
    ///
    /// PEM files are copied; the copies are used until the next change.
    #[arg(long, value_name = "auto|CERT,KEY|off", value_parser = parse_tls)]
    tls: Option<TlsOption>,
    /// Require this user name for reading
    ///
    /// The password is read from stdin. If stdin is a terminal, the command prompts for it.
    #[arg(long, value_name = "NAME", conflicts_with = "no_user")]
    user: Option<String>,
    /// Accept a password of fewer than 8 characters
    #[arg(long, requires = "user")]
    weak_password: bool,
    /// Allow reading without a user name again
    #[arg(long)]
    no_user: bool,
    /// Replace the site's CA; every client must then trust the new one
    #[arg(long)]
    new_ca: bool,
    /// Copy the CA key to a new file
    #[arg(long, value_name = "FILE")]
    export_ca_key: Option<PathBuf>,
    /// Delete the CA key, which only renewing the certificate requires
    #[arg(long)]
    forget_ca_key: bool,
    /// Make browsers use HTTPS for this host from now on (Strict-Transport-Security)
    #[arg(long, conflicts_with = "no_hsts")]
    hsts: bool,
    /// Stop sending Strict-Transport-Security
    #[arg(long)]
    no_hsts: bool,
    /// Keep a page of your own as index.html, in place of the catalog
    #[arg(long, conflicts_with = "no_own_index_page")]
    own_index_page: bool,
    /// Write the catalog as index.html again
    #[arg(long)]
    no_own_index_page: bool,
    /// Let clients request images that the site lacks from the original registries
    ///
    /// By default, the site is the only source, so that a missing image is an error at once where there is no internet.
    #[arg(long, conflicts_with = "no_upstream_fallback")]
    upstream_fallback: bool,
    /// Make the site the only source of its clients again
    #[arg(long)]
    no_upstream_fallback: bool,
    /// Use a configuration that is not from this host, after you looked at it
    ///
    /// Its settings, its CA and its edited files are used from now on. Required once for a configuration that another
    /// host, another user or an earlier version wrote, or that was moved or changed.
    #[arg(long)]
    adopt_conf: bool,
    /// Configure this host as a client: /etc/hosts, CA, containerd, podman
    #[arg(long)]
    apply: bool,
    /// Start the servers
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    trust: SiteTrustArgs,
    /// Print JSON to stdout
    #[arg(long)]
    json: bool,
}

impl Site {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        allow_readers();
        let user = match &self.user {
            Some(name) => Some(Some((name.clone(), password(name)?))),
            None => self.no_user.then_some(None),
        };
        let (tls, certificate) = match self.tls {
            Some(TlsOption::Auto) => (Some(Tls::Auto), None),
            Some(TlsOption::Files(files)) => (Some(Tls::Files), Some(files)),
            Some(TlsOption::Off) => (Some(Tls::Off), None),
            None => (None, None),
        };
        let changes = Changes {
            host: self.host,
            ip: self.ip,
            files_port: self.files_port,
            registry_port: self.registry_port,
            tls,
            certificate,
            user: user.clone(),
            weak_password: self.weak_password,
            ca: CaChanges {
                new: self.new_ca,
                export_key: self.export_ca_key,
                forget_key: self.forget_ca_key,
            },
            hsts: (self.hsts || self.no_hsts).then_some(self.hsts),
            own_index_page: (self.own_index_page || self.no_own_index_page).then_some(self.own_index_page),
            bind: self.bind.map(Some).or(self.no_bind.then_some(None)),
            upstream_fallback: (self.upstream_fallback || self.no_upstream_fallback)
                .then_some(self.upstream_fallback),
            adopt_conf: self.adopt_conf,
        };
        let configured = configure(&self.site, self.conf.as_deref(), &self.trust.policy()?, changes)?;
        if self.json {
            print_json(&summary(&configured, self.apply || self.start))?;
        } else {
            print(&text(&configured, self.apply, self.start))?;
        }
        let conf = &configured.setup.conf;
        let (trust, start) = (conf.join(TRUST), conf.join(START));
        let scripts = [(self.apply, &trust), (self.start, &start)];
        for (_, script) in scripts.into_iter().filter(|(is_run, _)| *is_run && is_root()) {
            check_ownership(script, &self.site)?;
        }
        if self.apply {
            let password = user.flatten().map(|(_, password)| password.into());
            run(&trust, &[], password.or_else(|| std::env::var_os(PASSWORD)))?;
        }
        if self.start {
            run(&start, &["start"], None)?;
        }
        // The configuration does not need the page, so that its error comes last.
        match &configured.page {
            Ok(()) => Ok(Code::Success),
            Err(error) => Err(page_failure(error)),
        }
    }
}

/// Reads a password from the terminal without echo, or the first line of stdin.
fn password(user: &str) -> Result<String, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(Code::Usage, format!("cannot read the password: {error}"));
    if std::io::stdin().is_terminal() {
        return prompt_password(format_args!("Password for {user}:")).map_err(failed);
    }
    let mut text = String::new();
    std::io::stdin().take(1024).read_to_string(&mut text).map_err(failed)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Returns an error if another user can change `script`, which root is about to run.
fn check_ownership(script: &Path, site: &Path) -> Result<(), Failure> {
    ownership::check(script).map_err(|error| {
        let failure = Failure::new(
            Code::File,
            format!("cannot run `{}` as root: {}", script.display(), chain(&error)),
        );
        failure.with_hint(format!(
            "or write the configuration to a directory that only root can change: `unbundle site {} --conf DIR`",
            site.display()
        ))
    })
}

fn run(script: &Path, arguments: &[&str], password: Option<OsString>) -> Result<(), Failure> {
    let mut command = child::shell();
    command.arg(script).args(arguments);
    if let Some(password) = password {
        command.env(PASSWORD, password);
    }
    let status = command.status().map_err(FsError::at("run", script))?;
    if status.success() {
        return Ok(());
    }
    let line = [&[script.to_string_lossy().as_ref()], arguments].concat().join(" ");
    let failure = Failure::new(Code::Serve, format!("cannot run `{line}`: {status}"));
    Err(failure.with_hint("see the output above"))
}

fn page_failure(error: &FsError) -> Failure {
    Failure::of(Code::of_fs(error), error)
        .context("cannot write the catalog page; the configuration is complete")
        .with_hint("`--own-index-page` leaves the page out, for example on a read-only disk")
}

/// Returns what the user should know, one sentence each. `is_run`: the configuration is used on this host now.
fn warnings(configured: &Configured, is_run: bool) -> Vec<String> {
    let Configured { setup, issued, ca, kept, is_lost, remembered, .. } = configured;
    let conf = setup.conf.display();
    let mut warnings = Vec::new();
    if is_run {
        let edited =
            |name| format!("{conf}/{name} was edited, and is used: compare it with {conf}/{name}.new");
        warnings.extend(kept.iter().map(edited));
    }
    if *is_lost {
        warnings.push(format!(
            "{conf} was empty, although this host remembers a configuration there: this one is new"
        ));
    }
    if setup.is_tls() {
        warnings.extend(clock_warning(OffsetDateTime::now_utc(), &setup.record));
    }
    if let Err(error) = remembered {
        warnings.push(format!(
            "this host cannot remember the configuration, so the next run requires `--adopt-conf`: {}",
            chain(error)
        ));
    }
    if setup.settings.user.is_some() && !setup.is_tls() {
        warnings.push("the site uses plain HTTP: everyone on the network can read the password".to_owned());
    }
    if let Some(ca) = ca {
        if ca.change == CaChange::Replaced {
            warnings.push(format!(
                "the CA is new: clients reject the site until {conf}/{TRUST} runs on each of them again"
            ));
        }
        if let (false, Issued::Kept { until }) = (ca.has_key, issued)
            && *until - OffsetDateTime::now_utc() < RENEWAL
        {
            warnings.push(format!(
                "the certificate expires on {}, and the CA key was deleted: copy the key back to {conf}/ca/ca.key, or \
                 make a new CA with `--new-ca`",
                day(*until)
            ));
        }
    }
    if is_root()
        && let Err(error) = ownership::check_tree(&setup.conf)
    {
        warnings.push(format!("root cannot start the site, and its units do not start: {}", chain(&error)));
    }
    warnings
}

/// Returns a warning if the clock of this host, from which the expiry of certificates is counted, cannot be right.
fn clock_warning(now: OffsetDateTime, record: &Record) -> Option<String> {
    let created = record.bundles.iter().filter_map(|bundle| bundle.created.as_deref());
    let packed = created.filter_map(|created| OffsetDateTime::parse(created, &Rfc3339).ok()).max();
    let reason = match packed {
        Some(packed) if now < packed - CLOCK_ERROR => {
            format!("before the newest bundle was packed ({})", day(packed))
        }
        _ if !(2026..2100).contains(&now.year()) => "which cannot be right".to_owned(),
        _ => return None,
    };
    Some(format!(
        "the clock of this host shows {}, {reason}: set it and run `unbundle site` again, or clients reject the \
         certificate",
        day(now)
    ))
}

fn text(configured: &Configured, apply: bool, start: bool) -> Text {
    let Configured { setup, written, kept, issued, .. } = configured;
    let conf = setup.conf.display();
    let mut text = Text::of(format_args!(
        "{}: {} files and {} images",
        setup.site.display(),
        setup.record.files.len(),
        setup.record.images.len()
    ));
    text.line(if written.is_empty() && kept.is_empty() {
        format!("{conf}: up to date")
    } else {
        format!("{conf}: {} written", written.len())
    });
    for name in kept {
        text.line(format_args!("kept: {conf}/{name} was edited; the generated version is {conf}/{name}.new"));
    }
    for warning in warnings(configured, apply || start) {
        text.line(format_args!("warning: {warning}"));
    }
    let is_first_ca = configured.ca.is_some_and(|ca| ca.change == CaChange::First);
    let certificate = certificate(issued, &setup.settings.host, is_first_ca);
    text.line(format_args!("certificate: {certificate}"));
    match &setup.settings.user {
        Some(user) => text.line(format_args!("user: {user}")),
        None => text.line("user: none; reading requires no login (--user NAME)"),
    }
    text.line(format_args!("files: {}/  registry: {}", setup.files_url(), setup.registry_url()));
    if !start {
        text.line("");
        text.line(format_args!("start the site:    {conf}/site start"));
    }
    if !apply {
        text.line(format_args!(
            "on every client:   sh trust.sh   (a copy of {conf}/trust.sh; on this host: --apply)"
        ));
        text.append(&manual_steps(setup));
    }
    text.line(format_args!("for Kubespray:     {conf}/kubespray/offline.yml"));
    text
}

/// Describes the certificate.
fn certificate(issued: &Issued, host: &str, is_first_ca: bool) -> String {
    match issued {
        Issued::Off => "none; clients use plain HTTP".to_owned(),
        Issued::Kept { until } => format!("valid until {}", day(*until)),
        Issued::New { why, until } => {
            let ca = if is_first_ca { "; install the new CA on all clients" } else { "" };
            format!("new, because {why}; valid until {}{ca}", day(*until))
        }
        Issued::Provided { until, names_host } => {
            let warning = if *names_host { String::new() } else { format!("; it does not contain {host}") };
            format!("from --tls, valid until {}{warning}", day(*until))
        }
    }
}

/// Returns the commands of `trust.sh`, for clients that are configured manually.
fn manual_steps(setup: &Setup) -> Text {
    let registry = setup.registry_host();
    let conf = setup.conf.display();
    let mut text = Text::of("  or manually:");
    text.line(format_args!("    echo '{}' >> /etc/hosts", hosts_line(setup)));
    if setup.ca.is_some() {
        for client in ["docker", "containers", "containerd"] {
            text.line(format_args!("    install -D {conf}/ca.crt /etc/{client}/certs.d/{registry}/ca.crt"));
        }
        text.line(format_args!(
            "    cp {conf}/ca.crt /usr/local/share/ca-certificates/airbundle.crt && update-ca-certificates   # Debian, Ubuntu"
        ));
        text.line(format_args!(
            "    cp {conf}/ca.crt /etc/pki/ca-trust/source/anchors/airbundle.crt && update-ca-trust            # Red Hat"
        ));
    }
    text.line(format_args!("    cp -r {conf}/containerd/certs.d /etc/containerd/"));
    text
}

/// The output of `site --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct SiteSummary<'a> {
    /// Configuration directory.
    conf: &'a Path,
    /// Names of the files that were written.
    written: &'a [String],
    /// Names of edited files that were kept; the generated versions are `NAME.new`.
    kept: &'a [String],
    /// URL of the file server.
    files: String,
    /// URL of the registry.
    registry: String,
    /// User name that reading requires.
    user: Option<&'a str>,
    /// Last day on which the certificate is valid. `null`: no TLS.
    certificate_until: Option<String>,
    /// True if the CA is new, so that every client must trust it.
    new_ca: bool,
    /// Warnings, one sentence each.
    warnings: Vec<String>,
}

fn summary(configured: &Configured, is_run: bool) -> SiteSummary<'_> {
    let Configured { setup, written, kept, issued, .. } = configured;
    SiteSummary {
        conf: &setup.conf,
        written,
        kept,
        files: setup.files_url(),
        registry: setup.registry_url(),
        user: setup.settings.user.as_deref(),
        certificate_until: match issued {
            Issued::Off => None,
            Issued::Kept { until } | Issued::New { until, .. } | Issued::Provided { until, .. } => {
                Some(day(*until))
            }
        },
        new_ca: configured.ca.is_some_and(|ca| ca.change != CaChange::Kept),
        warnings: warnings(configured, is_run),
    }
}

/// The value of `--tls`.
#[derive(Debug, Clone)]
enum TlsOption {
    Auto,
    /// The certificate with its chain, and the private key.
    Files([PathBuf; 2]),
    Off,
}

fn parse_tls(text: &str) -> Result<TlsOption, String> {
    match text {
        "auto" => Ok(TlsOption::Auto),
        "off" => Ok(TlsOption::Off),
        _ => match text.split_once(',') {
            Some((certificate, key)) if !certificate.is_empty() && !key.is_empty() => {
                Ok(TlsOption::Files([certificate, key].map(PathBuf::from)))
            }
            _ => Err("expected auto, off, or CERT,KEY".into()),
        },
    }
}

impl From<ConfError> for Failure {
    fn from(error: ConfError) -> Self {
        let error = match error {
            ConfError::Record(error) => return error.into(),
            error => error,
        };
        let code = match &error {
            ConfError::Record(error) => Code::of_record(error),
            ConfError::Fs(error)
            | ConfError::Unknown(HostRecordError::Fs(error))
            | ConfError::User(UserError::Fs(error))
            | ConfError::Tls(TlsError::Fs(error) | TlsError::Ca(CaError::Fs(error)))
            | ConfError::Ca(CaError::Fs(error)) => Code::of_fs(error),
            ConfError::Unknown(_)
            | ConfError::Storage(_)
            | ConfError::Saved(..)
            | ConfError::Outside(..)
            | ConfError::User(UserError::Missing { .. })
            | ConfError::Ca(CaError::Exists(_) | CaError::NoKey { .. }) => Code::File,
            ConfError::Tls(_) | ConfError::Ca(_) => Code::Serve,
            ConfError::Busy(_) => Code::Busy,
            ConfError::User(_)
            | ConfError::Path(_)
            | ConfError::Served(..)
            | ConfError::ServedKey(..)
            | ConfError::Address
            | ConfError::Setting(_)
            | ConfError::UnusedCa => Code::Usage,
        };
        Self::of(code, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::digest::Digest;
    use crate::site::record::RecordedBundle;

    #[test]
    fn a_clock_that_cannot_be_right_is_a_warning() {
        let time = |text: &str| OffsetDateTime::parse(text, &Rfc3339).unwrap();
        let mut record = Record::new("files".into(), "registry".into());
        for created in [None, Some("2026-06-01T00:00:00Z"), Some("2026-05-01T00:00:00Z")] {
            let created = created.map(|created| created.parse().unwrap());
            record.bundles.push(RecordedBundle {
                identity: Digest::of(b"x"),
                title: None,
                created,
                partial: false,
            });
        }
        for (now, words) in [
            ("2026-05-30T12:00:00Z", None),
            ("2026-07-01T00:00:00Z", None),
            (
                "2026-05-20T00:00:00Z",
                Some("shows 2026-05-20, before the newest bundle was packed (2026-06-01)"),
            ),
            ("1970-01-01T00:00:09Z", Some("shows 1970-01-01, before the newest bundle was packed")),
            ("2106-02-07T00:00:00Z", Some("shows 2106-02-07, which cannot be right: set it")),
        ] {
            let warning = clock_warning(time(now), &record);
            assert_eq!(warning.is_some(), words.is_some(), "{now}: {warning:?}");
            assert!(warning.unwrap_or_default().contains(words.unwrap_or_default()), "{now}");
        }
        record.bundles.clear();
        assert!(clock_warning(time("2012-01-01T00:00:00Z"), &record).is_some());
    }
}
