//! `unbundle site`: writes the configuration of the servers and clients of a site.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde::Serialize;

use crate::base::error_chain::chain;
use crate::base::fs::FsError;
use crate::cli::exit::{Code, Failure};
use crate::cli::output::{json, print};
use crate::cli::trust::SiteTrustArgs;
use crate::commands::site::{Changes, ConfError, Configured, configure};
use crate::conf::setup::{Setup, Tls};
use crate::conf::tls::{Issued, TlsError, day};
use crate::conf::trust::hosts_line;

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
    /// Certificate: auto (site's CA), PEM files, or off (plain HTTP) [default: auto]
    #[arg(long, value_name = "auto|CERT,KEY|off", value_parser = parse_tls)]
    tls: Option<Tls>,
    /// Require this user name for reading
    ///
    /// The password is read from stdin. If stdin is a terminal, the command prompts for it.
    #[arg(long, value_name = "NAME", conflicts_with = "no_user")]
    user: Option<String>,
    /// Allow reading without a user name again
    #[arg(long)]
    no_user: bool,
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
        let user = match &self.user {
            Some(name) => Some(Some((name.clone(), password(name)?))),
            None => self.no_user.then_some(None),
        };
        let changes = Changes {
            host: self.host,
            ip: self.ip,
            files_port: self.files_port,
            registry_port: self.registry_port,
            tls: self.tls,
            user: user.clone(),
        };
        let configured = configure(&self.site, self.conf.as_deref(), &self.trust.policy()?, changes)?;
        print(&if self.json { summary(&configured) } else { text(&configured, self.apply, self.start) })?;
        let conf = &configured.setup.conf;
        if self.apply {
            let password = user.flatten().map(|(_, password)| password);
            command(&conf.join("trust.sh"), &[], password)?;
        }
        if self.start {
            command(&conf.join("site"), &["start"], None)?;
        }
        Ok(Code::Success)
    }
}

/// Reads a password from the terminal without echo, or the first line of stdin.
fn password(user: &str) -> Result<String, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(Code::Usage, format!("cannot read the password: {error}"));
    if std::io::stdin().is_terminal() {
        return rpassword::prompt_password(format!("Password for {user}: ")).map_err(failed);
    }
    let mut text = String::new();
    std::io::stdin().take(1024).read_to_string(&mut text).map_err(failed)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn command(path: &Path, arguments: &[&str], password: Option<String>) -> Result<(), Failure> {
    let mut command = Command::new("sh");
    command.arg(path).args(arguments);
    if let Some(password) = password {
        command.env("AIRBUNDLE_PASSWORD", password);
    }
    let status = command.status().map_err(FsError::at("run", path))?;
    if status.success() {
        return Ok(());
    }
    let line = [&[path.to_string_lossy().as_ref()], arguments].concat().join(" ");
    let failure = Failure::new(Code::Serve, format!("cannot run `{line}`: {status}"));
    Err(failure.with_hint("see the output above"))
}

fn text(configured: &Configured, apply: bool, start: bool) -> String {
    let Configured { setup, written, kept, issued, page } = configured;
    let conf = setup.conf.display();
    let mut text = format!(
        "{}: {} files and {} images\n",
        setup.site.display(),
        setup.record.files.len(),
        setup.record.images.len()
    );
    let _ = if written.is_empty() && kept.is_empty() {
        writeln!(text, "{conf}: up to date")
    } else {
        writeln!(text, "{conf}: {} written", written.len())
    };
    for name in kept {
        let _ = writeln!(text, "kept: {conf}/{name} was edited; the generated version is {conf}/{name}.new");
    }
    if let Err(error) = page {
        let page = setup.files.join("index.html");
        let _ = writeln!(text, "warning: cannot write the catalog page {}: {}", page.display(), chain(error));
    }
    let _ = writeln!(text, "certificate: {}", certificate(issued, &setup.settings.host));
    let _ = match &setup.settings.user {
        Some(user) => writeln!(text, "user: {user}"),
        None => writeln!(text, "user: none; reading requires no login (--user NAME)"),
    };
    let _ = writeln!(text, "files: {}/  registry: {}", setup.files_url(), setup.registry_url());
    if !start {
        let _ = writeln!(text, "\nstart the site:    {conf}/site start");
    }
    if !apply {
        let _ = writeln!(
            text,
            "on every client:   sh trust.sh   (a copy of {conf}/trust.sh; on this host: --apply)"
        );
        text += &manual_steps(setup);
    }
    let _ = writeln!(text, "for Kubespray:     {conf}/kubespray/offline.yml");
    text
}

/// Describes the certificate.
fn certificate(issued: &Issued, host: &str) -> String {
    match issued {
        Issued::Off => "none; clients use plain HTTP".to_owned(),
        Issued::Kept { until } => format!("valid until {}", day(*until)),
        Issued::New { why, until, new_ca } => {
            let ca = if *new_ca { "; install the new CA on all clients" } else { "" };
            format!("new, because {why}; valid until {}{ca}", day(*until))
        }
        Issued::Provided { until, names_host } => {
            let warning = if *names_host { String::new() } else { format!("; it does not contain {host}") };
            format!("from --tls, valid until {}{warning}", day(*until))
        }
    }
}

/// Returns the commands of `trust.sh`, for clients that are configured manually.
fn manual_steps(setup: &Setup) -> String {
    let registry = setup.registry_host();
    let conf = setup.conf.display();
    let mut text = format!("  or manually:\n    echo '{}' >> /etc/hosts\n", hosts_line(setup));
    if setup.ca.is_some() {
        let _ = write!(
            text,
            "    install -D {conf}/ca.crt /etc/docker/certs.d/{registry}/ca.crt\n    install -D {conf}/ca.crt \
             /etc/containers/certs.d/{registry}/ca.crt\n    install -D {conf}/ca.crt \
             /etc/containerd/certs.d/{registry}/ca.crt\n    cp {conf}/ca.crt \
             /usr/local/share/ca-certificates/airbundle.crt && update-ca-certificates   # Debian, Ubuntu\n    cp \
             {conf}/ca.crt /etc/pki/ca-trust/source/anchors/airbundle.crt && update-ca-trust            # Red Hat\n"
        );
    }
    let _ = writeln!(text, "    cp -r {conf}/containerd/certs.d /etc/containerd/");
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
}

fn summary(configured: &Configured) -> String {
    let Configured { setup, written, kept, issued, .. } = configured;
    json(&SiteSummary {
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
    })
}

fn parse_tls(text: &str) -> Result<Tls, String> {
    match text {
        "auto" => Ok(Tls::Auto),
        "off" => Ok(Tls::Off),
        _ => match text.split_once(',') {
            Some((certificate, key)) if !certificate.is_empty() && !key.is_empty() => {
                let absolute = |path: &str| std::path::absolute(path).map_err(|error| error.to_string());
                Ok(Tls::Files(absolute(certificate)?, absolute(key)?))
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
            ConfError::Record(_) | ConfError::Fs(_) | ConfError::Settings(..) => Code::File,
            ConfError::Tls(error) => match error {
                TlsError::Fs(_) => Code::File,
                _ => Code::Serve,
            },
            ConfError::Busy(_) => Code::Busy,
            ConfError::User(_)
            | ConfError::Path(_)
            | ConfError::Served(..)
            | ConfError::Address
            | ConfError::Host(_)
            | ConfError::Ports(_) => Code::Usage,
        };
        Self::new(code, chain(&error))
    }
}
