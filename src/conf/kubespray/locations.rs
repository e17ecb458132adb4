//! Variables of Kubespray for locations outside of the hosts that have a variable of their own.

use crate::conf::kubespray::hosts::{FILE_HOSTS, IMAGE_HOSTS};
use crate::conf::kubespray::release::Release;
use crate::conf::quote::Text;
use crate::conf::quote::ansible::{self, Ansible, Jinja};
use crate::conf::setup::Setup;
use crate::conf::template::fill;
use crate::oci::reference::DEFAULT_PREFIX;

const UNSET_FILE: &str = "# @NAME@: this site has no such file\n";
const UNSET_IMAGE: &str = "# @NAME@: this site has no such image\n";

/// The directory of Cilium's charts on the site.
const CILIUM_CHARTS: &str = "helm.cilium.io";
/// Without this, Cilium's chart names images by the digests of their upstream indexes, which a site with fewer platforms
/// has all the same, and a private registry may not.
const CILIUM: &str = "
cilium_install_extra_flags: \"--repository {{ files_repo }}/helm.cilium.io\"
cilium_extra_values:
  image: { useDigest: false }
  envoy: { image: { useDigest: false } }
  operator: { image: { useDigest: false } }
  certgen: { image: { useDigest: false } }
  preflight: { image: { useDigest: false } }
  hubble:
    relay: { image: { useDigest: false } }
    ui:
      backend: { image: { useDigest: false } }
      frontend: { image: { useDigest: false } }
  clustermesh: { apiserver: { image: { useDigest: false } } }
";

/// Returns the variables of a release whose files or images are on the site, and a comment for each other one.
pub(super) fn variables(setup: &Setup, release: &Release) -> Text<Ansible> {
    let mut text = Text::new();
    for (name, value) in &release.locations {
        let is_of_host = FILE_HOSTS.iter().chain(&IMAGE_HOSTS).any(|(variable, _)| variable == name);
        if is_of_host {
            continue;
        }
        let (location, unset) = match value.strip_prefix("https://") {
            Some(path) => (file(setup, path), UNSET_FILE),
            None => (image(setup, value), UNSET_IMAGE),
        };
        let name = ("NAME", Text::fixed(name));
        text.push(&match location {
            Some(location) => fill("@NAME@: @VALUE@\n", &[name, ("VALUE", ansible::template(&location))]),
            None => fill(unset, &[name]),
        });
    }
    text
}

/// Returns the location of a file on the site. `path` is its URL without scheme, possibly with expressions.
fn file(setup: &Setup, path: &'static str) -> Option<Text<Jinja>> {
    let start = format!("{DEFAULT_PREFIX}/{}", path.split("{{").next().unwrap_or_default());
    has_file(setup, &start).then(|| {
        let mut location = Text::fixed("{{ files_repo }}/");
        location.push_fixed(path);
        location
    })
}

/// Returns the repository on the site of an image, or of several below it.
fn image(setup: &Setup, name: &'static str) -> Option<Text<Jinja>> {
    let full = match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None if name.contains('.') => name.to_owned(),
        None => format!("docker.io/library/{name}"),
    };
    let (host, path) = full.split_once('/').unwrap_or((&full, ""));
    let (_, prefix) = setup.prefixes().into_iter().find(|(other, _)| other == host)?;
    let is_below =
        |reference: &str| reference.strip_prefix(&full).is_some_and(|rest| rest.starts_with(['/', ':', '@']));
    setup.record.images.iter().find(|image| is_below(image.reference.as_str()))?;
    let mut location = Text::fixed("{{ registry_host }}");
    for part in [prefix.as_str(), path] {
        if !part.is_empty() {
            location.push_fixed("/");
            location.push(&ansible::part(part));
        }
    }
    Some(location)
}

/// Returns the variables for Cilium's chart, if the site has it.
pub(super) fn cilium(setup: &Setup) -> Text<Ansible> {
    let directory = format!("{DEFAULT_PREFIX}/{CILIUM_CHARTS}/");
    Text::fixed(if has_file(setup, &directory) { CILIUM } else { "" })
}

/// True if the site has a file whose path begins with `start`.
pub(super) fn has_file(setup: &Setup, start: &str) -> bool {
    setup.record.files.iter().any(|file| file.path.as_str().starts_with(start))
}
