//! `--complete`: what Kubespray uses and its own `generate_list.sh` omits.
//!
//! Most of it can be derived from the checkout: pairs of `…_image_repo` and `…_image_tag` that no entry of
//! `downloads` uses, entries of `downloads` whose URL is not a `…_download_url`, and the images named by
//! templates of the roles. The rest is hard-coded here: the downloads of Cilium's chart and Argo CD's
//! manifest. Known dependencies that are not found are reported by name.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::commands::lists::checkout::{Checkout, RoleVariables, Variables};
use crate::commands::lists::downloads::{Download, File, Host, downloads, fail_on_errors, non_empty};
use crate::commands::lists::error::KubesprayError;
use crate::commands::lists::generated::GeneratedLists;
use crate::commands::lists::options::ListOptions;
use crate::commands::lists::roles::{Chart, Role};
use crate::commands::lists::template::Evaluator;
use crate::commands::lists::{ansible, version};
use crate::oci::reference::Reference;

/// Known dependencies of add-ons: the variable that enables the add-on, a substring of the list entry, and
/// its description.
const ADD_ONS: [(&str, &str, &str); 8] = [
    ("argocd_enabled", "/argo-cd/", "Argo CD's install.yaml"),
    ("argocd_enabled", "/argoproj/argocd:", "the image of Argo CD"),
    ("ingress_nginx_enabled", "/kube-webhook-certgen:", "kube-webhook-certgen of ingress-nginx"),
    ("cinder_csi_enabled", "/openstack-cloud-controller-manager:", "the cloud controller of OpenStack"),
    ("azure_csi_enabled", "/oss/kubernetes-csi/", "the CSI images of Azure"),
    ("gcp_pd_csi_enabled", "/gcp-compute-persistent-disk-csi-driver:", "the CSI driver of Google Cloud"),
    ("vsphere_csi_enabled", "vsphere/", "the CSI and cloud controller images of vSphere"),
    ("upcloud_csi_enabled", "upcloud", "the CSI images of UpCloud"),
];

/// The first Cilium release that Kubespray installs with its Helm chart.
const CILIUM_BY_CHART: &str = "1.17";

const CILIUM_VALUES: &str = "roles/network_plugin/cilium/templates/values.yaml.j2";

const CILIUM_ROLE: &str = "roles/network_plugin/cilium";

const ARGOCD_ROLE: &str = "roles/kubernetes-apps/argocd";

/// Adds missing files and images to `lists`.
pub(crate) fn add(
    checkout: &Checkout,
    roles: &[Role],
    options: &ListOptions,
    lists: &mut GeneratedLists,
    warnings: &mut Vec<String>,
) -> Result<(), KubesprayError> {
    let completed = completed_repositories(checkout, roles)?;
    for architecture in &options.architectures {
        let evaluate = |role: &RoleVariables| Evaluator::new(checkout.variables(architecture.fact(), role));
        let base = evaluate(&RoleVariables::default());
        let mut add = Additions {
            base: &base,
            options,
            completed: &completed,
            disabled: BTreeSet::new(),
            lists,
            warnings,
        };
        add.downloads()?;
        if !options.enabled_only {
            add.pairs(&base, &checkout.roles.defaults);
        }
        for role in roles {
            let evaluator = evaluate(&role.variables);
            if options.enabled_only && !role.is_enabled(&evaluator) {
                continue;
            }
            let own: Variables = role.variables.iter().cloned().collect();
            add.pairs(&evaluator, &own);
            add.urls(&evaluator, &own);
            for (path, text) in checkout.templates(&role.directory)? {
                add.template(&evaluator, &path, &text);
            }
        }
        add.cilium(checkout);
        let argocd = roles.iter().find(|role| role.directory == Path::new(ARGOCD_ROLE));
        add.argocd(&argocd.map_or_else(|| base.clone(), |role| evaluate(&role.variables)))?;
        add.warn_of_missing();
    }
    Ok(())
}

struct Additions<'a> {
    base: &'a Arc<Evaluator>,
    options: &'a ListOptions,
    /// Variables of repositories to which a template appends the rest of the name.
    completed: &'a BTreeSet<String>,
    /// Images of `downloads` that are disabled by these variables.
    disabled: BTreeSet<String>,
    lists: &'a mut GeneratedLists,
    warnings: &'a mut Vec<String>,
}

impl Additions<'_> {
    /// Adds files of `downloads` that are in no `…_download_url` variable.
    fn downloads(&mut self) -> Result<(), KubesprayError> {
        let mut host = Host::new(self.base.clone(), self.options);
        let entries = downloads(self.base)
            .map_err(|error| KubesprayError::Eval { errors: vec![error], unpinned: false })?;
        if self.options.enabled_only {
            // Enabled entries are already listed.
            self.disabled = entries.iter().filter_map(|download| host.image(download)).collect();
            return Ok(());
        }
        for download in entries.iter().filter(|download| download.fields.contains_key("url")) {
            self.download(&mut host, download);
        }
        self.warnings.append(&mut host.warnings);
        fail_on_errors(host.errors, host.is_unpinned)
    }

    fn download(&mut self, host: &mut Host<'_>, download: &Download<'_>) {
        let evaluator = host.evaluator().clone();
        let Some(url) = host.ok(download.text(&evaluator, "url")).flatten() else { return };
        if !self.lists.files.iter().any(|file| file.url == url) {
            let checksum = host.checksum(download);
            self.lists.files.push(File { url, checksum });
        }
    }

    /// Adds images of variable pairs, one for the repository and one for the tag.
    fn pairs(&mut self, evaluator: &Evaluator, variables: &Variables) {
        let names: BTreeSet<_> = variables.iter().map(|(name, _)| name.as_str()).collect();
        for (repo, _) in variables {
            let Some(stem) = repo.strip_suffix("_repo") else { continue };
            let tag = format!("{stem}_tag");
            if !names.contains(tag.as_str()) || self.completed.contains(repo) {
                continue;
            }
            let text = |name: &str| non_empty(&evaluator.value(name).ok()?);
            if let (Some(repo), Some(tag)) = (text(repo), text(&tag)) {
                self.image(&format!("{repo}:{tag}"));
            }
        }
    }

    /// Adds files that other roles download.
    fn urls(&mut self, evaluator: &Evaluator, variables: &Variables) {
        for (name, variable) in variables.iter().filter(|(name, _)| name.ends_with("download_url")) {
            match evaluator.value(name) {
                Ok(value) => self.lists.files.extend(non_empty(&value).and_then(|url| {
                    let is_new = !self.lists.files.iter().any(|file| file.url == url);
                    is_new.then_some(File { url, checksum: None })
                })),
                Err(error) => self.warnings.push(format!(
                    "{}:{}: file omitted: {error}",
                    variable.file.display(),
                    variable.node.line
                )),
            }
        }
    }

    /// Adds images in a role's template: `image: …`, regardless of conditions.
    fn template(&mut self, evaluator: &Evaluator, path: &Arc<Path>, text: &str) {
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim_start().trim_start_matches("- ").trim_start();
            let Some(value) = line.strip_prefix("image:").map(unquoted).filter(|value| !value.is_empty())
            else {
                continue;
            };
            match evaluator.text("image", value, number, path) {
                Ok(value) => {
                    let image = full_name(value.to_string());
                    if is_image(&image) {
                        self.image(&image);
                    } else {
                        self.warnings.push(format!(
                            "{}:{number}: `{image}` omitted: not an image reference with a host and a tag",
                            path.display()
                        ));
                    }
                }
                Err(error) => self.warnings.push(format!("image omitted: {error}")),
            }
        }
    }

    /// Adds Cilium's chart and its operator image.
    fn cilium(&mut self, checkout: &Checkout) {
        if let Some(cilium) = Cilium::find(self.base, checkout, self.options) {
            self.image(&cilium.operator);
            self.file(&cilium.url());
        }
    }

    /// Adds Argo CD's manifest and image, in the version of its role and in that of `downloads`, which differ in some
    /// releases: one is downloaded to all nodes, the other one is installed.
    fn argocd(&mut self, role: &Arc<Evaluator>) -> Result<(), KubesprayError> {
        let is_enabled = role.value("argocd_enabled").is_ok_and(|value| ansible::is_truthy(&value));
        if self.options.enabled_only && !is_enabled {
            return Ok(());
        }
        let mut tags = BTreeSet::new();
        for evaluator in [self.base, role] {
            let text = |name: &str| non_empty(&evaluator.value(name).ok()?);
            let Some(argocd) = text("argocd_version") else { continue };
            let tag = format!("v{}", argocd.trim_start_matches('v'));
            let listed = downloads(evaluator)
                .map_err(|error| KubesprayError::Eval { errors: vec![error], unpinned: false })?;
            let is_argocd = |download: &&Download<'_>| {
                download
                    .text(evaluator, "url")
                    .is_ok_and(|url| url.is_some_and(|url| url.contains("/argo-cd/")))
            };
            if let Some(download) = listed.iter().find(is_argocd) {
                let mut host = Host::new(evaluator.clone(), self.options);
                self.download(&mut host, download);
                self.warnings
                    .extend(host.errors.iter().map(|error| format!("{error}: listed without a checksum")));
            } else if !self.lists.files.iter().any(|file| file.url.contains(&format!("/argo-cd/{tag}/"))) {
                self.file(&format!(
                    "https://raw.githubusercontent.com/argoproj/argo-cd/{tag}/manifests/install.yaml"
                ));
            }
            self.image(&format!("quay.io/argoproj/argocd:{tag}"));
            tags.insert(tag);
        }
        for tag in tags {
            self.warnings.push(format!(
                "images of dex and redis omitted: only the install.yaml of Argo CD {tag} names their tags"
            ));
        }
        Ok(())
    }

    fn warn_of_missing(&mut self) {
        for (enabled, substring, description) in ADD_ONS {
            let Ok(value) = self.base.value(enabled) else { continue };
            if self.options.enabled_only && !ansible::is_truthy(&value) {
                continue;
            }
            let in_files = self.lists.files.iter().any(|file| file.url.contains(substring));
            if !in_files && !self.lists.images.iter().any(|image| image.contains(substring)) {
                self.warnings.push(format!("not found in this checkout: {description} (`{enabled}`)"));
            }
        }
    }

    /// Adds an image. Version 0 means that none exists for this Kubernetes version.
    fn image(&mut self, image: &str) {
        let is_absent = image.ends_with(":0") || image.ends_with(":v0");
        if is_image(image) && !is_absent && !self.disabled.contains(image) {
            self.lists.add_image(image.to_owned());
        }
    }

    fn file(&mut self, url: &str) {
        self.lists.add_file(File { url: url.to_owned(), checksum: None }, self.warnings);
    }
}

/// Returns the variables of repositories, `…_repo`, that a template uses as the first part of a name: `{{ …_repo }}/name`.
fn completed_repositories(checkout: &Checkout, roles: &[Role]) -> Result<BTreeSet<String>, KubesprayError> {
    let mut names = BTreeSet::new();
    for role in roles {
        for (_, text) in checkout.templates(&role.directory)? {
            let ends = text.match_indices("}}/").map(|(end, _)| &text[..end]);
            let expressions = ends.filter_map(|text| Some(text.rsplit_once("{{")?.1.trim().to_owned()));
            names.extend(expressions.filter(|name| name.ends_with("_repo")));
        }
    }
    Ok(names)
}

/// Returns a short name as container engines read it: `busybox:1` is `docker.io/library/busybox:1`.
pub(crate) fn full_name(image: String) -> String {
    let (host, path) = image.split_once('/').map_or((None, &*image), |(first, rest)| (Some(first), rest));
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    // `False` and an empty name are results of templates.
    let has_name =
        path.split([':', '@']).next().is_some_and(|name| !name.is_empty() && name.chars().all(is_name));
    match host {
        _ if !has_name || !path.contains([':', '@']) => image,
        None => format!("docker.io/library/{image}"),
        Some(host) if !host.contains(['.', ':']) && host != "localhost" => format!("docker.io/{image}"),
        Some(_) => image,
    }
}

/// Returns warnings that name what roles install themselves, which no list can have or, without `--complete`, does not
/// have.
pub(crate) fn installed_by_roles(checkout: &Checkout, roles: &[Role], options: &ListOptions) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(architecture) = options.architectures.first() else { return warnings };
    for role in roles {
        let evaluator = Evaluator::new(checkout.variables(architecture.fact(), &role.variables));
        if options.enabled_only && !role.is_enabled(&evaluator) {
            continue;
        }
        let text = |name: &str| non_empty(&evaluator.value(name).ok()?);
        for Chart { name, version, repository } in role.charts() {
            let Some(repository) = text(&repository) else { continue };
            warnings.push(format!(
                "not listed: the chart `{name}` {} of {repository}, and its images: {} installs it",
                text(version).unwrap_or_default(),
                role.directory.display()
            ));
        }
    }
    let evaluator = Evaluator::new(checkout.variables(architecture.fact(), &RoleVariables::default()));
    if !options.complete
        && let Some(chart) = Cilium::find(&evaluator, checkout, options)
    {
        warnings.push(format!(
            "not listed: {}, which roles/network_plugin/cilium installs (`--complete` adds it)",
            chart.url()
        ));
    }
    warnings
}

/// Cilium, if Kubespray installs it with its chart.
struct Cilium {
    /// The version, without `v`.
    version: String,
    /// The operator of the chart, whose name has a suffix.
    operator: String,
}

impl Cilium {
    /// `None`: there is no Cilium, or it is installed without a chart.
    fn find(evaluator: &Evaluator, checkout: &Checkout, options: &ListOptions) -> Option<Self> {
        let text = |name: &str| non_empty(&evaluator.value(name).ok()?);
        let (repo, tag) = (text("cilium_operator_image_repo")?, text("cilium_operator_image_tag")?);
        let version = text("cilium_version")?.trim_start_matches('v').to_owned();
        let is_used = !options.enabled_only
            || text("kube_network_plugin").is_some_and(|plugin| plugin == "cilium")
            || evaluator.value("cilium_deploy_additionally").is_ok_and(|value| ansible::is_truthy(&value));
        let by_chart = if checkout.has(CILIUM_ROLE) {
            checkout.has(CILIUM_VALUES)
        } else {
            version::compare(&version, CILIUM_BY_CHART).is_some_and(std::cmp::Ordering::is_ge)
        };
        (is_used && by_chart).then(|| Self { version, operator: format!("{repo}-generic:{tag}") })
    }

    fn url(&self) -> String {
        format!("https://helm.cilium.io/cilium-{}.tgz", self.version)
    }
}

/// True if `text` is an image reference with a host and a tag or digest.
fn is_image(text: &str) -> bool {
    text.parse::<Reference>().is_ok()
}

/// Returns the value after `image:` without quotes and trailing comment.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    let inner = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.split_once(*quote));
    // The expression itself may contain quotes.
    match inner {
        Some((inner, _)) if inner.matches("{{").count() == inner.matches("}}").count() => inner,
        Some(_) => value.trim_matches(['"', '\'']),
        None => value.split(" #").next().unwrap_or(value).trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_an_image_of_docker_hub() {
        for (name, full) in [
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("rancher/pause:3", "docker.io/rancher/pause:3"),
            ("quay.io/a/b:1", "quay.io/a/b:1"),
            ("localhost/a:1", "localhost/a:1"),
            ("registry:5000/a:1", "registry:5000/a:1"),
            ("False", "False"),
            (":1", ":1"),
        ] {
            assert_eq!(full_name(name.to_owned()), full);
        }
    }

    #[test]
    fn quotes_and_comments_of_a_value_are_removed() {
        for (line, value) in [
            (" quay.io/a/b:1", "quay.io/a/b:1"),
            (" \"{{ repo }}:{{ tag }}\"", "{{ repo }}:{{ tag }}"),
            (" '{{ repo }}:1' # why", "{{ repo }}:1"),
            (" {{ repo }}:{{ tag }}  # why", "{{ repo }}:{{ tag }}"),
            (" \"{{ repo if x == \"y\" else other }}:1\"", "{{ repo if x == \"y\" else other }}:1"),
            ("", ""),
        ] {
            assert_eq!(unquoted(line), value, "{line}");
        }
    }
}
