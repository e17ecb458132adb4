//! `offline.yml`: Kubespray variables to download all files and images from the site.

mod hosts;
mod locations;
mod release;

use std::collections::{BTreeMap, BTreeSet};

use crate::conf::kubespray::hosts::{FILE_HOSTS, IMAGE_HOSTS};
use crate::conf::kubespray::release::{Release, version_in};
use crate::conf::quote::Text;
use crate::conf::quote::ansible::{self, Ansible};
use crate::conf::setup::{Setup, Tls};
use crate::conf::template::fill;
use crate::conf::trust::{containerd_ca, last_source};
use crate::oci::reference::DEFAULT_PREFIX;

const HEADER: &str = "\
# Kubespray variables to download all files and images from this site. Made by `unbundle site`, which keeps local edits.
# Copy this file to inventory/<cluster>/group_vars/all/offline.yml.
";
const TRUST: &str = "# Every node must trust the CA of the site: run conf/trust.sh on each node first.\n";
const PASSWORD: &str = "\
# The password is in the environment of ansible-playbook; a variable of Ansible Vault works too.
# Before Ansible 2.17, a password in a URL can have only letters, digits and ._~-
";
const PACKAGES: &str =
    "# Packages of the operating system are not included: the nodes need a package repository.\n";

const UNKNOWN: &str = "\n# This version of `unbundle` does not know the Kubespray release of this site, and cannot say what is missing.\n";

/// User and password in the URL of the file server.
const LOGIN: &str = "{{ airbundle_user }}:{{ airbundle_password | urlencode | replace('/', '%2F') }}@";

const MIRROR: &str = "  - prefix: @PREFIX@
    server: @SERVER@
    mirrors:
      - host: @MIRROR@
        capabilities: [\"pull\", \"resolve\"]
        skip_verify: false
        override_path: @OVERRIDE_PATH@
@OPTIONS@
";
const MIRROR_HEADER: &str = "        header:
          authorization: \"Basic {{ (airbundle_user + ':' + airbundle_password) | b64encode }}\"\n";
const REGISTRY_AUTH: &str = "containerd_registry_auth:
  - registry: @REGISTRY@
    username: \"{{ airbundle_user }}\"
    password: \"{{ airbundle_password }}\"\n";
const CRIO_AUTH: &str = "crio_registry_auth:
  - registry: @REGISTRY@
    username: \"{{ airbundle_user }}\"
    password: \"{{ airbundle_password }}\"\n";
const DOCKER_LOGIN: &str =
    "# With `container_manager: docker`, run `docker login` for the registry on every node first.\n";
const MIRRORS_OF_NODES: &str = "
# This release cannot pass credentials to the mirrors of containerd. Run trust.sh with AIRBUNDLE_PASSWORD on every node
# first: it writes the same files with credentials, and an empty list keeps them.
containerd_registries_mirrors: []\n";
const CTR_LOGIN: &str = "\
# This release pulls with ctr, which accepts credentials only on its command line.
nerdctl_image_pull_command: \"{{ bin_dir }}/ctr -n k8s.io images pull --hosts-dir {{ containerd_cfg_dir }}/certs.d --user \
'{{ airbundle_user }}:{{ airbundle_password }}'\"\n";

const COMPLETE: &str = "\n# Kubespray @VERSION@, @ARCHITECTURE@: all listed files and images are here.\n";
const INCOMPLETE: &str = "
# Kubespray @VERSION@, @ARCHITECTURE@: @MISSING@ of @ALL@ listed files and images are missing. If your settings require one of
# them, add it to the lists and pack again:\n";

/// The platforms that a comment can name.
const PLATFORMS: [&str; 5] = ["linux/amd64", "linux/arm/v7", "linux/arm64", "linux/ppc64le", "linux/s390x"];

/// Returns the content of `offline.yml`.
#[must_use]
pub(crate) fn offline(setup: &Setup) -> Text<Ansible> {
    let coverage = Coverage::of(setup);
    let release = coverage.release(setup);
    let features = Features::of(release);
    let mut text = Text::fixed(HEADER);
    if setup.settings.tls == Tls::Auto {
        text.push_fixed(TRUST);
    }
    text.push_fixed("---\n");
    if let Some(user) = &setup.settings.user {
        text.push_fixed(PASSWORD);
        text.push(&fill("airbundle_user: @USER@\n", &[("USER", ansible::string(user))]));
        text.push_fixed("airbundle_password: \"{{ lookup('env', 'AIRBUNDLE_PASSWORD') }}\"\n\n");
    }
    text.push(&file_variables(setup));
    text.push(&image_variables(setup));
    // The variables of the latest release are a better guess than none.
    let of_release = release.or_else(|| Release::all().last());
    text.push(&of_release.map_or_else(Text::new, |release| locations::variables(setup, release)));
    text.push(&locations::cilium(setup));
    text.push(&containerd_mirrors(setup, features));
    if setup.settings.user.is_some() {
        text.push(&login(setup, features));
    }
    match release {
        Some(release) => {
            text.push(&coverage.missing_entries(release.version));
            text.push(&platforms(setup));
            text.push_fixed(PACKAGES);
        }
        None => text.push_fixed(UNKNOWN),
    }
    text
}

/// The features of the containerd role in a release.
#[derive(Debug, Clone, Copy)]
struct Features {
    /// `ca` of a mirror.
    ca: bool,
    /// `header` of a mirror, with which it sends credentials.
    header: bool,
    /// Images are pulled with `ctr`, which reads credentials only from its command line.
    ctr: bool,
}

impl Features {
    /// `None`: the latest release.
    fn of(release: Option<&Release>) -> Self {
        let is_since = |version| release.is_none_or(|release| release.is_since(version));
        Self { ca: is_since("v2.28.0"), header: is_since("v2.29.0"), ctr: !is_since("v2.28.0") }
    }
}

fn file_variables(setup: &Setup) -> Text<Ansible> {
    let login = if setup.settings.user.is_some() { LOGIN } else { "" };
    let url = fill(
        "@SCHEME@://@LOGIN@@HOST@:@PORT@/k8s",
        &[
            ("SCHEME", Text::fixed(setup.scheme())),
            ("LOGIN", Text::fixed(login)),
            ("HOST", ansible::part(&setup.settings.host)),
            ("PORT", Text::number(setup.settings.files_port)),
        ],
    );
    let mut text = fill("files_repo: @URL@\n", &[("URL", ansible::template(&url))]);
    for (variable, host) in FILE_HOSTS {
        let directory = format!("{DEFAULT_PREFIX}/{host}/");
        let template = if locations::has_file(setup, &directory) {
            "@VARIABLE@: \"{{ files_repo }}/@HOST@\"\n"
        } else {
            "# @VARIABLE@: this site has no files of @HOST@\n"
        };
        text.push(&fill(template, &[("VARIABLE", Text::fixed(variable)), ("HOST", Text::fixed(host))]));
    }
    text
}

fn image_variables(setup: &Setup) -> Text<Ansible> {
    let registry = ansible::string(&setup.registry_host());
    let mut text = fill("\nregistry_host: @REGISTRY@\n", &[("REGISTRY", registry)]);
    let prefixes: BTreeMap<String, String> = setup.prefixes().into_iter().collect();
    for (variable, host) in IMAGE_HOSTS {
        let mut repository = Text::fixed("{{ registry_host }}");
        let is_of_host = |reference: &str| reference.starts_with(&format!("{host}/"));
        let template = if let Some(prefix) = prefixes.get(host) {
            if !prefix.is_empty() {
                repository.push_fixed("/");
                repository.push(&ansible::part(prefix));
            }
            "@VARIABLE@: @REPOSITORY@\n"
        } else if setup.record.images.iter().any(|image| is_of_host(image.reference.as_str())) {
            "# @VARIABLE@ (@HOST@): the repositories of this host have no common prefix: unpack all bundles with one \
             template\n"
        } else {
            "# @VARIABLE@ (@HOST@): this site has no images of this host\n"
        };
        let repository = ansible::template(&repository);
        let values =
            [("VARIABLE", Text::fixed(variable)), ("HOST", Text::fixed(host)), ("REPOSITORY", repository)];
        text.push(&fill(template, &values));
    }
    text
}

/// Returns the registries of containerd on the nodes: the site, and the site as a mirror of the hosts whose
/// images it has, for images that are pulled by their original names.
fn containerd_mirrors(setup: &Setup, features: Features) -> Text<Ansible> {
    let url = setup.registry_url();
    let has_user = setup.settings.user.is_some();
    if has_user && !features.header && !features.ctr {
        return Text::fixed(MIRRORS_OF_NODES);
    }
    let mut options = Text::new();
    if features.ca && setup.settings.tls == Tls::Auto {
        options.push(&fill("        ca: @CA@\n", &[("CA", ansible::string(&containerd_ca(setup)))]));
    }
    if has_user && features.header {
        options.push_fixed(MIRROR_HEADER);
    }
    let entry = |prefix: &str, server: &str, mirror: &str| {
        let override_path = if mirror == url { "false" } else { "true" };
        fill(
            MIRROR,
            &[
                ("PREFIX", ansible::string(prefix)),
                ("SERVER", ansible::string(server)),
                ("MIRROR", ansible::string(mirror)),
                ("OVERRIDE_PATH", Text::fixed(override_path)),
                ("OPTIONS", options.clone()),
            ],
        )
    };
    let mut text = Text::fixed("\ncontainerd_registries_mirrors:\n");
    text.push(&entry(&setup.registry_host(), &url, &url));
    for (host, prefix) in setup.mirrored_hosts() {
        text.push(&entry(&host, &last_source(setup, &host), &setup.mirror_url(&prefix)));
    }
    text
}

/// Returns the credentials of the container engines on the nodes.
fn login(setup: &Setup, features: Features) -> Text<Ansible> {
    let registry = [("REGISTRY", ansible::string(&setup.registry_host()))];
    let mut text = Text::new();
    if features.ctr {
        text.push(&fill(REGISTRY_AUTH, &registry));
        text.push_fixed(CTR_LOGIN);
    }
    text.push(&fill(CRIO_AUTH, &registry));
    text.push_fixed(DOCKER_LOGIN);
    text
}

/// Returns a comment with the platforms of the images, of those that Kubespray supports. Empty: the site has none.
fn platforms(setup: &Setup) -> Text<Ansible> {
    let all: BTreeSet<String> =
        setup.record.images.iter().flat_map(|image| &image.platforms).map(ToString::to_string).collect();
    let is_here = |name: &&str| all.contains(*name);
    let here: Vec<_> = PLATFORMS.into_iter().filter(is_here).map(Text::fixed).collect();
    if here.is_empty() {
        return Text::new();
    }
    fill("# Platforms of the images: @PLATFORMS@.\n", &[("PLATFORMS", Text::join(here, ", "))])
}

/// The URLs and references of a site, to compare with those of a [`Release`].
struct Coverage(BTreeSet<String>);

impl Coverage {
    fn of(setup: &Setup) -> Self {
        // The path decides: Kubespray requests it, and a list can give a file of any URL this path.
        let paths = setup.record.files.iter().filter_map(|file| {
            let path = file.path.as_str().strip_prefix(DEFAULT_PREFIX)?.strip_prefix('/')?;
            Some(format!("https://{path}"))
        });
        Self(paths.chain(setup.record.images.iter().map(|image| image.reference.to_string())).collect())
    }

    fn has(&self, entry: &str) -> bool {
        self.0.contains(entry)
    }

    /// Returns the release of the last bundle whose title names one, or else the release with the most entries on the
    /// site, the last one of several. `None`: a title names an unknown release, or there are no entries.
    fn release(&self, setup: &Setup) -> Option<&'static Release> {
        let mut titles = setup.record.bundles.iter().rev().filter_map(|bundle| bundle.title.as_deref());
        if let Some(version) = titles.find_map(version_in) {
            return Release::all().iter().find(|release| release.version == version);
        }
        let count = |release: &Release| release.entries().filter(|entry| self.has(entry)).count();
        let best = Release::all().iter().max_by_key(|release| count(release));
        best.filter(|release| count(release) > 0)
    }

    /// Returns comments with the entries of a release that the site lacks, for each architecture of the site.
    fn missing_entries(&self, version: &'static str) -> Text<Ansible> {
        let mut text = Text::new();
        for release in Release::all().iter().filter(|release| release.version == version) {
            if !self.has_architecture(release) {
                continue;
            }
            let missing: Vec<_> = release.entries().filter(|entry| !self.has(entry)).collect();
            let template = if missing.is_empty() { COMPLETE } else { INCOMPLETE };
            let number = |count: usize| Text::number(count as u64);
            text.push(&fill(
                template,
                &[
                    ("VERSION", Text::fixed(version)),
                    ("ARCHITECTURE", Text::fixed(release.architecture)),
                    ("MISSING", number(missing.len())),
                    ("ALL", number(release.entries().count())),
                ],
            ));
            for entry in missing {
                text.push(&fill("#   @ENTRY@\n", &[("ENTRY", Text::fixed(entry))]));
            }
        }
        text
    }

    /// True if the site has a file that only this architecture lists: images and some files are for several.
    fn has_architecture(&self, release: &Release) -> bool {
        let others = Release::all().iter().filter(|other| other.architecture != release.architecture);
        let common: BTreeSet<&str> = others.flat_map(|other| &other.files).copied().collect();
        release.files.iter().any(|url| !common.contains(url) && self.has(url))
    }
}
