//! `unbundle site`: from a site on the disk to one that is served.

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
use crate::commands::site::{Changes, ConfError, Configured, configure};
use crate::conf::setup::{Setup, Tls};
use crate::conf::tls::{Issued, TlsError, day};
use crate::conf::trust::hosts_line;

/// Write what makes the site run: nginx, registry, compose, systemd, TLS, clients, Kubespray
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, clippy::struct_field_names, reason = "each is an option of its own")]
pub(crate) struct Site {
    /// The directory of the site
    site: PathBuf,
    /// Write it here instead of SITE/conf: for a site on a disk that cannot be written
    #[arg(long, value_name = "DIR")]
    conf: Option<PathBuf>,
    /// The name by which clients know this host [default: hub.kubespray.local]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Its address [default: the one it would send from]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// Serve the files on this port [default: 8080]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    files_port: Option<u16>,
    /// Serve the images on this port [default: 5000]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    registry_port: Option<u16>,
    /// Take a certificate of the site's own authority (auto), this one (PEM files), or none (off) [default: auto]
    #[arg(long, value_name = "auto|CERT,KEY|off", value_parser = parse_tls)]
    tls: Option<Tls>,
    /// Let only this user read; the password comes from stdin, or is asked for
    #[arg(long, value_name = "NAME", conflicts_with = "no_user")]
    user: Option<String>,
    /// Let everybody read again
    #[arg(long)]
    no_user: bool,
    /// Make this host a client of the site: /etc/hosts, its certificate authority, containerd and podman
    #[arg(long)]
    apply: bool,
    /// Start the site
    #[arg(long)]
    start: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Site {
    /// Writes, and does what else is asked for.
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
        let configured = configure(&self.site, self.conf.as_deref(), changes)?;
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

/// From a terminal, unseen; otherwise the first line of stdin.
fn password(user: &str) -> Result<String, Failure> {
    let wrong =
        |error: std::io::Error| Failure::new(Code::Usage, format!("cannot read the password: {error}"));
    if std::io::stdin().is_terminal() {
        return rpassword::prompt_password(format!("Password of {user}: ")).map_err(wrong);
    }
    let mut text = String::new();
    std::io::stdin().take(1024).read_to_string(&mut text).map_err(wrong)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn command(path: &Path, arguments: &[&str], password: Option<String>) -> Result<(), Failure> {
    let mut command = Command::new("sh");
    command.arg(path).args(arguments);
    if let Some(password) = password {
        command.env("AIRBUNDLE_PASSWORD", password);
    }
    let status = command.status().map_err(FsError::at("run", path));
    let status = status.map_err(|error| Failure::new(Code::File, chain(&error)))?;
    if status.success() {
        return Ok(());
    }
    let line = [path.to_string_lossy().as_ref()]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect::<Vec<_>>()
        .join(" ");
    Err(Failure::new(Code::Serve, format!("`{line}` has failed: see above")))
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
        writeln!(text, "{conf}: all there and as it should be")
    } else {
        writeln!(text, "{conf}: {} written", written.len())
    };
    for name in kept {
        let _ = writeln!(text, "kept: {conf}/{name} was edited; what it would be now is {conf}/{name}.new");
    }
    if let Err(error) = page {
        let _ = writeln!(
            text,
            "the page {} is not there: {}",
            setup.files.join("index.html").display(),
            chain(error)
        );
    }
    let _ = match issued {
        Issued::Off => writeln!(text, "certificate: none; clients speak plain http"),
        Issued::Kept { until } => writeln!(text, "certificate: good until {}", day(*until)),
        Issued::New { why, until, new_ca } => {
            let tell = if *new_ca { "; clients have to be told of the authority" } else { "" };
            writeln!(text, "certificate: a new one, as {why}; good until {}{tell}", day(*until))
        }
        Issued::Provided { until, names_host } => {
            let name = if *names_host {
                String::new()
            } else {
                format!("; it does not name {}", setup.settings.host)
            };
            writeln!(text, "certificate: yours, good until {}{name}", day(*until))
        }
    };
    let _ = match &setup.settings.user {
        Some(user) => writeln!(text, "user: {user}"),
        None => writeln!(text, "user: none; everybody who reaches this host may read (--user NAME)"),
    };
    let _ = writeln!(text, "files: {}/  registry: {}", setup.files_url(), setup.registry_url());
    if !start {
        let _ = writeln!(text, "\nto start it:       {conf}/site start");
    }
    if !apply {
        let _ = writeln!(
            text,
            "on every client:   sh trust.sh   (a copy of {conf}/trust.sh; --apply: this host)"
        );
        text += &by_hand(setup);
    }
    let _ = writeln!(text, "for Kubespray:     {conf}/kubespray/offline.yml");
    text
}

/// What `trust.sh` does, for those who would rather do it themselves.
fn by_hand(setup: &Setup) -> String {
    let registry = setup.registry_host();
    let conf = setup.conf.display();
    let mut text = format!("  or by hand:\n    echo '{}' >> /etc/hosts\n", hosts_line(setup));
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

fn summary(configured: &Configured) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary<'a> {
        conf: &'a Path,
        written: &'a [String],
        kept: &'a [String],
        files: String,
        registry: String,
        user: Option<&'a str>,
        certificate_until: Option<String>,
    }
    let Configured { setup, written, kept, issued, .. } = configured;
    json(&Summary {
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
