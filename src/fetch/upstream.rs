//! [`Upstream`]: where things are fetched from, and how.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use reqwest::Url;

use crate::fetch::credentials::Credentials;
use crate::list::Lists;
use crate::reference::canonical_host;

/// Where things are fetched from, and how. Hosts are as [`canonical_host`] has them.
#[derive(Debug, Clone, Default)]
pub struct Upstream {
    /// URLs that stand for hosts, of files and images alike.
    pub mirrors: HashMap<String, Url>,
    /// Hosts of registries or of their mirrors without a certificate, or with one that nobody knows.
    pub insecure: Vec<String>,
    /// How many connections at once.
    pub jobs: usize,
    /// How often a request is sent in all, while it fails in ways that may pass.
    pub tries: u32,
    /// What the user is known by, and where.
    pub credentials: Arc<Credentials>,
}

impl Upstream {
    /// Whether `insecure`, a host with or without a port, is where the images of `host` are pulled from.
    #[must_use]
    pub fn is_place_of(&self, insecure: &str, host: &str) -> bool {
        let Some(mirror) = self.mirrors.get(host) else { return insecure == host };
        let (Some(there), Some(port)) = (mirror.host_str(), mirror.port_or_known_default()) else {
            return false;
        };
        insecure == canonical_host(there) || insecure == format!("{there}:{port}")
    }

    /// A warning for each host that was named and that nothing of the lists has to do with: most likely a typo.
    #[must_use]
    pub fn unused(&self, lists: &Lists) -> Vec<String> {
        let registries: BTreeSet<&str> = lists.images.iter().map(|entry| entry.reference.host()).collect();
        let of_files: BTreeSet<String> = lists.files.iter().flat_map(|entry| names(&entry.url)).collect();
        let mirrors: BTreeSet<&String> = self.mirrors.keys().collect();
        let mirrors = mirrors
            .into_iter()
            .filter(|host| !registries.contains(host.as_str()) && !of_files.contains(*host))
            .map(|host| format!("`--mirror {host}=…` is not used: no list names this host"));
        let insecure: BTreeSet<&String> = self.insecure.iter().collect();
        let insecure = insecure
            .into_iter()
            .filter(|host| !registries.iter().any(|registry| self.is_place_of(host, registry)))
            .map(|host| format!("`--insecure-registry {host}` is not used: no image comes from this host"));
        mirrors.chain(insecure).collect()
    }
}

/// The names under which there may be a mirror for the host of a URL: with the port, if there is one, before
/// without.
#[must_use]
pub fn names(url: &Url) -> Vec<String> {
    let host = url.host_str().map(canonical_host);
    let with_port = host.iter().zip(url.port()).map(|(host, port)| format!("{host}:{port}")).next();
    with_port.into_iter().chain(host).collect()
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
        let url = |url: &str| url.parse::<Url>().unwrap();
        let harbor = url("https://harbor.example:8443/m");
        let named = ["quay.io", "docker.io", "m.example", "dl.k8s.io", "f.example", "f.example:8443"];
        let mut upstream = Upstream {
            mirrors: named.map(|host| (host.to_owned(), harbor.clone())).into(),
            insecure: ["harbor.example", "harbor.example:8443", "r.example:5000"].map(str::to_owned).into(),
            ..Upstream::default()
        };
        assert_eq!(upstream.unused(&lists), [""; 0]);
        for host in ["qay.io", "r.example", "dl.k8s.io:443"] {
            upstream.mirrors.insert(host.to_owned(), harbor.clone());
        }
        let insecure = ["harbor.example:443", "quay.io", "quay.io", "dl.k8s.io", "r.example"];
        upstream.insecure = insecure.map(str::to_owned).into();
        let warnings = upstream.unused(&lists);
        let hosts: Vec<_> = warnings.iter().map(|text| text.split([' ', '=', '`']).nth(2).unwrap()).collect();
        let expected = ["dl.k8s.io:443", "qay.io", "r.example"];
        let insecure = ["dl.k8s.io", "harbor.example:443", "quay.io", "r.example"];
        assert_eq!(hosts, [&expected[..], &insecure].concat(), "{warnings:#?}");
    }
}
