//! [`Upstream`]: the settings for fetching.

use std::collections::BTreeSet;
use std::sync::Arc;

use reqwest::Url;

use crate::documents::list::Lists;
use crate::fetch::mirrors::Mirrors;
use crate::net::credentials::Credentials;
use crate::net::endpoint::Endpoint;
use crate::net::host::names;
use crate::net::http::Http;
use crate::net::limits::Limits;
use crate::net::reach::Internal;
use crate::net::tls::TlsTrust;
use crate::oci::reference::canonical_host;

/// The settings for fetching. Hosts are in the form of [`canonical_host`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Upstream {
    /// Mirrors of files and images.
    pub mirrors: Mirrors,
    /// Hosts of registries or mirrors whose certificate is not verified, or that use plain HTTP.
    pub insecure: Vec<String>,
    /// Trusted CAs and client certificates.
    pub trust: TlsTrust,
    /// Maximum number of concurrent connections.
    pub jobs: usize,
    /// Maximum number of concurrent connections to one host. `None`: `jobs`.
    pub jobs_per_host: Option<usize>,
    /// Maximum number of attempts if a request fails with a transient error.
    pub tries: u32,
    /// The user's credentials.
    pub credentials: Arc<Credentials>,
    /// Timeouts.
    pub limits: Limits,
    /// Internal hosts that any server may refer to.
    pub internal: Internal,
    /// True if a file that no checksum pins may be a web page, or of another format than its name says.
    pub allow_html: bool,
    /// True if a file that no checksum pins is an error if nothing states its length.
    pub requires_length: bool,
}

impl Upstream {
    /// Returns an HTTP client with these settings. Its total time limit starts now.
    #[must_use]
    pub(crate) fn http(&self) -> Http {
        Http::new(self.trust.clone(), self.limits, self.tries, self.internal.clone())
    }

    /// Returns the maximum number of concurrent connections to one host.
    #[must_use]
    pub(crate) fn jobs_per_host(&self) -> usize {
        self.jobs_per_host.unwrap_or(self.jobs).max(1)
    }

    /// True if `--insecure-registry` names this endpoint of images: a mirror with or without its port, the
    /// host itself as in references.
    #[must_use]
    pub(crate) fn is_insecure(&self, endpoint: &Endpoint) -> bool {
        self.insecure.iter().any(|insecure| is_host_of(insecure, endpoint))
    }

    /// Returns a warning for each mirror and insecure host that no entry of the lists uses: probably a typo.
    #[must_use]
    pub(crate) fn unused(&self, lists: &Lists) -> Vec<String> {
        let images = lists.images.iter().map(|entry| {
            let reference = &entry.reference;
            (reference.host(), reference.repository(), reference.digest().is_some())
        });
        let images: BTreeSet<_> = images.collect();
        let of_images = images.iter().map(|(host, repository, _)| format!("{host}/{repository}"));
        let of_files = lists.files.iter().flat_map(|entry| {
            let url = entry.request_url.reveal();
            let path = url.path();
            names(url).into_iter().map(move |host| format!("{host}{path}"))
        });
        let all: Vec<String> = of_images.chain(of_files).collect();
        let mirrors: BTreeSet<&str> = self.mirrors.unused(&all).collect();
        let mirrors = mirrors.into_iter().map(|prefix| {
            format!("`--mirror {prefix}=…` is unused: no list entry is {}", location_of(prefix))
        });
        let endpoints: Vec<Endpoint> = images
            .iter()
            .flat_map(|(host, repository, _)| {
                // The manifest may be requested by its tag, and everything below it by digest.
                [false, true].map(|pinned| self.mirrors.endpoints(None, host, repository, pinned))
            })
            .flat_map(Result::unwrap_or_default)
            .collect();
        let insecure: BTreeSet<&String> = self.insecure.iter().collect();
        let insecure = insecure
            .into_iter()
            .filter(|host| !endpoints.iter().any(|endpoint| is_host_of(host, endpoint)))
            .map(|host| format!("`--insecure-registry {host}` is unused: no image is from this host"));
        mirrors.chain(insecure).collect()
    }
}

fn location_of(prefix: &str) -> &'static str {
    if prefix.contains('/') { "below this prefix" } else { "on this host" }
}

/// True if `insecure`, a host with or without a port, is the host of this endpoint.
fn is_host_of(insecure: &str, endpoint: &Endpoint) -> bool {
    if insecure == canonical_host(&endpoint.host) {
        return true;
    }
    if !endpoint.is_mirror {
        return false;
    }
    let url = Url::parse(&format!("{}://{}/", endpoint.scheme.unwrap_or("https"), endpoint.host)).ok();
    let parts = url.as_ref().and_then(|url| url.host_str().zip(url.port_or_known_default()));
    parts.is_some_and(|(host, port)| insecure == canonical_host(host) || insecure == format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unused_host_gets_one_warning() {
        let mut lists = Lists::default();
        let text = "quay.io/a:1\nindex.docker.io/a/b:1\nr.example:5000/a:1\nm.example/a:1\n\
                    https://dl.k8s.io/a\nhttps://f.example:8443/a\n";
        lists.parse_into("all.list".as_ref(), text, &mut Vec::new());
        let named = ["quay.io", "docker.io", "m.example", "dl.k8s.io", "f.example", "f.example:8443"];
        let mut mirrors = Mirrors::default();
        for host in named {
            mirrors.add(host, "https", "harbor.example:8443/m");
        }
        let mut upstream = Upstream {
            mirrors,
            insecure: ["harbor.example", "harbor.example:8443", "r.example:5000"].map(str::to_owned).into(),
            ..Upstream::default()
        };
        assert_eq!(upstream.unused(&lists), [""; 0]);
        for host in ["qay.io", "r.example", "dl.k8s.io:443"] {
            upstream.mirrors.add(host, "https", "harbor.example:8443/m");
        }
        let insecure = ["harbor.example:443", "quay.io", "dl.k8s.io", "dl.k8s.io", "r.example"];
        upstream.insecure = insecure.map(str::to_owned).into();
        let warnings = upstream.unused(&lists);
        let hosts: Vec<_> = warnings.iter().map(|text| text.split([' ', '=', '`']).nth(2).unwrap()).collect();
        let expected = ["dl.k8s.io:443", "qay.io", "r.example"];
        let insecure = ["dl.k8s.io", "harbor.example:443", "r.example"];
        assert_eq!(hosts, [&expected[..], &insecure].concat(), "{warnings:#?}");
    }
}
