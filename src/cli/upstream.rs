//! The network options of all verbs that fetch.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use reqwest::Url;

use crate::base::fs;
use crate::cli::credentials::CredentialsArgs;
use crate::cli::exit::{Code, Failure};
use crate::documents::list::Lists;
use crate::fetch::mirrors::Mirrors;
use crate::fetch::upstream::Upstream;
use crate::net::limits::Limits;
use crate::net::reach::{Internal, InternalHost};
use crate::net::tls::TlsTrust;
use crate::oci::reference::canonical_host;

/// Maximum size of a file with certificates or mirrors, in bytes.
const FILE_LIMIT: u64 = 16 << 20;

/// The network options of the command line.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct UpstreamArgs {
    /// Number of parallel connections, 1 to 256
    #[arg(long, short, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Maximum number of parallel connections to one host [default: same as --jobs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs_per_host: Option<u16>,
    /// Retries for transient failures
    #[arg(long, default_value_t = 4, value_name = "N")]
    retries: u32,
    /// Allow plain HTTP and unverified certificates for HOST; can be repeated
    ///
    /// HOST is a registry or mirror.
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    insecure_registry: Vec<String>,
    /// Fetch HOST's files and images from URL instead; URL's path is prepended
    ///
    /// Can be repeated. If a mirror does not have an entry, the next mirror of the same HOST and then HOST
    /// itself are used.
    #[arg(long, value_name = "HOST[/PATH]=URL", value_parser = parse_mirror)]
    mirror: Vec<(String, Url)>,
    /// Fetch only from mirrors, never from the original host
    #[arg(long)]
    mirrors_only: bool,
    /// Read mirrors from this registries.conf too [default: `$CONTAINERS_REGISTRIES_CONF`]
    ///
    /// The format is containers-registries.conf(5).
    #[arg(long, value_name = "FILE")]
    registries_conf: Option<PathBuf>,
    /// Allow redirects and other references to this internal HOST; can be repeated
    ///
    /// HOST is a host name, HOST:PORT, an address, or a network such as 10.0.0.0/8. Hosts in lists and
    /// mirrors need no permission. A registry at an internal address may refer to other internal hosts.
    #[arg(long, value_name = "HOST")]
    allow_internal: Vec<InternalHost>,
    /// Accept web pages, and files of another format than their name says
    ///
    /// Applies to files without a checksum. By default, they are refused: login pages and error pages arrive in
    /// place of files.
    #[arg(long)]
    allow_html: bool,
    /// Trust the CA certificates in this PEM file too; can be repeated
    #[arg(long, value_name = "FILE")]
    ca_file: Vec<PathBuf>,
    /// Client certificate and key for HOST (PEM); can be repeated
    ///
    /// Without KEY, the file CERT contains both.
    #[arg(long, value_name = "HOST=CERT[,KEY]", value_parser = parse_client_cert)]
    client_cert: Vec<(String, PathBuf, PathBuf)>,
    /// Timeout for establishing a connection
    ///
    /// TIME is a number with the unit ms, s, m or h; without a unit, seconds.
    #[arg(long, default_value = "20s", value_name = "TIME", value_parser = parse_time)]
    connect_timeout: Duration,
    /// Drop connections that are idle, or slower than 1 KiB/s, for this long
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_time)]
    idle_timeout: Duration,
    /// Abort if fetching takes longer than this [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    #[command(flatten)]
    credentials: CredentialsArgs,
}

impl UpstreamArgs {
    /// Reads the files that the options name, with credentials for the hosts of `lists`.
    pub(crate) fn upstream_for(mut self, lists: &Lists) -> Result<Upstream, Failure> {
        let credentials = std::mem::take(&mut self.credentials);
        let upstream = self.upstream()?;
        let credentials = Arc::new(credentials.credentials(&upstream, lists)?);
        Ok(Upstream { credentials, ..upstream })
    }

    fn upstream(self) -> Result<Upstream, Failure> {
        Ok(Upstream {
            mirrors: self.mirrors()?,
            trust: self.tls_trust()?,
            insecure: self.insecure_registry,
            internal: Internal(self.allow_internal),
            allow_html: self.allow_html,
            requires_length: false,
            jobs: self.jobs.into(),
            jobs_per_host: self.jobs_per_host.map(Into::into),
            tries: self.retries.saturating_add(1),
            limits: Limits { connect: self.connect_timeout, idle: self.idle_timeout, total: self.timeout },
            ..Upstream::default()
        })
    }

    fn mirrors(&self) -> Result<Mirrors, Failure> {
        let mut mirrors = Mirrors::default();
        mirrors.only = self.mirrors_only;
        for (host, url) in &self.mirror {
            let scheme = if url.scheme() == "http" { "http" } else { "https" };
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            let location = format!("{}{port}{}", url.host_str().unwrap_or_default(), url.path());
            mirrors.add(host, scheme, &location);
        }
        // The variable of podman and skopeo. Their files in /etc are not read, because the contents of a
        // bundle should not depend on the host.
        let variable = || {
            let path = std::env::var_os("CONTAINERS_REGISTRIES_CONF").filter(|path| !path.is_empty());
            path.map(PathBuf::from)
        };
        if let Some(path) = self.registries_conf.clone().or_else(variable) {
            let text = String::from_utf8(read(&path)?).map_err(|error| invalid(&path, &error))?;
            mirrors.add_file(&text).map_err(|error| invalid(&path, &error))?;
        }
        Ok(mirrors)
    }

    fn tls_trust(&self) -> Result<TlsTrust, Failure> {
        let mut trust = TlsTrust::default();
        for path in &self.ca_file {
            trust.add_authorities(&read(path)?).map_err(|error| invalid(path, &error))?;
        }
        for (host, certificate, key) in &self.client_cert {
            let identity = trust.add_identity(host, &read(certificate)?, &read(key)?);
            identity.map_err(|error| invalid(certificate, &error))?;
        }
        Ok(trust)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    Ok(fs::read(path, FILE_LIMIT)?)
}

fn invalid(path: &Path, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::of(Code::Usage, error).context(format_args!("invalid `{}`", path.display()))
}

fn parse_mirror(text: &str) -> Result<(String, Url), String> {
    let (prefix, url) = text.split_once('=').ok_or("expected HOST=URL")?;
    let (host, path) = prefix.split_once('/').unwrap_or((prefix, ""));
    if path.starts_with('/') {
        return Err(format!("invalid host or path `{prefix}`"));
    }
    let prefix = format!("{}/{path}", parse_host(host)?).trim_end_matches('/').to_owned();
    let url = Url::parse(url).map_err(|error| format!("invalid URL `{url}`: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!("invalid URL `{url}`: expected http:// or https:// and a host"));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("invalid URL: expected only a host and a path".into());
    }
    Ok((prefix, url))
}

fn parse_client_cert(text: &str) -> Result<(String, PathBuf, PathBuf), String> {
    let (host, files) = text.split_once('=').ok_or("expected HOST=CERT,KEY")?;
    let (certificate, key) = files.split_once(',').unwrap_or((files, files));
    if certificate.is_empty() || key.is_empty() {
        return Err("expected HOST=CERT,KEY".into());
    }
    Ok((parse_host(host)?, certificate.into(), key.into()))
}

/// Parses a time greater than zero: `90`, `90s`, `500ms`, `5m`, `2h`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: Option<u64> = number.parse().ok().filter(|number| (1..1 << 40).contains(number));
    let time = match (number, unit) {
        (Some(number), "ms") => Duration::from_millis(number),
        (Some(number), "" | "s") => Duration::from_secs(number),
        (Some(number), "m") => Duration::from_secs(number * 60),
        (Some(number), "h") => Duration::from_secs(number * 3600),
        _ => return Err("expected a number with ms, s, m or h, such as 90s".into()),
    };
    Ok(time)
}

/// Parses a host as in a reference. The syntax is not verified: a host that no list contains causes a
/// warning.
fn parse_host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') {
        return Err(format!("invalid host `{text}`"));
    }
    Ok(canonical_host(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_with_a_unit() {
        for (text, milliseconds) in
            [("90", 90_000), ("90s", 90_000), ("5ms", 5), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "0", "s", "-1", "1d", "1.5s", "1 s", "99999999999999999999"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mirror_is_for_a_host_or_a_part_of_it() {
        let (prefix, url) = parse_mirror("Index.Docker.io/library/=http://h:1/x").unwrap();
        assert_eq!((prefix.as_str(), url.as_str()), ("docker.io/library", "http://h:1/x"));
        for text in
            ["quay.io", "=http://h", "quay.io=h", "quay.io=ftp://h", "quay.io=http://u:p@h", "q=http://h?a"]
        {
            assert!(parse_mirror(text).is_err(), "{text}");
        }
    }
}
