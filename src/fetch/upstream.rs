//! [`Upstream`]: where things are fetched from, and how.

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
use crate::net::tls::TlsTrust;
use crate::oci::reference::canonical_host;

/// Where things are fetched from, and how. Hosts are as [`canonical_host`] has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Upstream {
    /// What stands in for hosts, of files and images alike.
    pub mirrors: Mirrors,
    /// Hosts of registries or of their mirrors without a certificate, or with one that nobody knows.
    pub insecure: Vec<String>,
    /// Whose certificates are taken, and our own.
    pub trust: TlsTrust,
    /// How many connections at once.
    pub jobs: usize,
    /// How many of them to one host; nothing: all.
    pub jobs_per_host: Option<usize>,
    /// How often a request is sent in all, while it fails in ways that may pass.
    pub tries: u32,
    /// What the user is known by, and where.
    pub credentials: Arc<Credentials>,
    /// How long things may take.
    pub limits: Limits,
}

impl Upstream {
    /// Returns an HTTP client with these settings. Its total time limit starts now.
    #[must_use]
    pub(crate) fn http(&self) -> Http {
        Http::new(self.trust.clone(), self.limits, self.tries)
    }

    /// How many connections to one host there may be at once.
    #[must_use]
    pub(crate) fn jobs_per_host(&self) -> usize {
        self.jobs_per_host.unwrap_or(self.jobs).max(1)
    }

    /// Whether `--insecure-registry` names this place of images: a mirror with or without its port, any other as
    /// references have it.
    #[must_use]
    pub(crate) fn is_insecure(&self, spot: &Endpoint) -> bool {
        self.insecure.iter().any(|insecure| names_spot(insecure, spot))
    }

    /// A warning for each host that was named and that nothing of the lists has to do with: most likely a typo.
    #[must_use]
    pub(crate) fn unused(&self, lists: &Lists) -> Vec<String> {
        let images = lists.images.iter().map(|entry| {
            let reference = &entry.reference;
            (reference.host(), reference.repository(), reference.digest().is_some())
        });
        let images: BTreeSet<_> = images.collect();
        let of_images = images.iter().map(|(host, repository, _)| format!("{host}/{repository}"));
        let of_files = lists.files.iter().flat_map(|entry| {
            let path = entry.url.path();
            names(&entry.url).into_iter().map(move |host| format!("{host}{path}"))
        });
        let all: Vec<String> = of_images.chain(of_files).collect();
        let mirrors: BTreeSet<&str> = self.mirrors.unused(&all).collect();
        let mirrors = mirrors
            .into_iter()
            .map(|prefix| format!("`--mirror {prefix}=…` is not used: no list names {}", what(prefix)));
        let spots: Vec<Endpoint> = images
            .iter()
            .flat_map(|(host, repository, _)| {
                // The manifest may be asked for by its tag, all below it has a digest.
                [false, true].map(|pinned| self.mirrors.spots(None, host, repository, pinned))
            })
            .flat_map(Result::unwrap_or_default)
            .collect();
        let insecure: BTreeSet<&String> = self.insecure.iter().collect();
        let insecure = insecure
            .into_iter()
            .filter(|host| !spots.iter().any(|spot| names_spot(host, spot)))
            .map(|host| format!("`--insecure-registry {host}` is not used: no image comes from this host"));
        mirrors.chain(insecure).collect()
    }
}

fn what(prefix: &str) -> &'static str {
    if prefix.contains('/') { "anything that begins so" } else { "this host" }
}

/// Whether `insecure`, a host with or without a port, is this place.
fn names_spot(insecure: &str, spot: &Endpoint) -> bool {
    if insecure == canonical_host(&spot.host) {
        return true;
    }
    if !spot.is_mirror {
        return false;
    }
    let url = Url::parse(&format!("{}://{}/", spot.scheme.unwrap_or("https"), spot.host)).ok();
    let parts = url.as_ref().and_then(|url| url.host_str().zip(url.port_or_known_default()));
    parts.is_some_and(|(host, port)| insecure == canonical_host(host) || insecure == format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_nothing_of_the_lists_has_to_do_with_are_warned_of_once() {
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
