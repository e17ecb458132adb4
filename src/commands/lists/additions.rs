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
use crate::commands::lists::roles::roles;
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
    options: &ListOptions,
    lists: &mut GeneratedLists,
    warnings: &mut Vec<String>,
) -> Result<(), KubesprayError> {
    let roles = roles(checkout)?;
    for architecture in &options.architectures {
        let evaluate = |role: &RoleVariables| Evaluator::new(checkout.variables(architecture.fact(), role));
        let base = evaluate(&RoleVariables::default());
        let mut add = Additions { base: &base, options, disabled: BTreeSet::new(), lists, warnings };
        add.downloads()?;
        if !options.enabled_only {
            add.pairs(&base, &checkout.roles.defaults);
        }
        for role in &roles {
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
        add.argocd(&argocd.map_or_else(|| base.clone(), |role| evaluate(&role.variables)));
        add.warn_of_missing();
    }
    Ok(())
}

struct Additions<'a> {
    base: &'a Arc<Evaluator>,
    options: &'a ListOptions,
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
        let Some(url) = host.ok(download.text(self.base, "url")).flatten() else { return };
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
            if !names.contains(tag.as_str()) {
                continue;
            }
            let text = |name: &str| non_empty(&evaluator.value(name).ok()?);
            if let (Some(repo), Some(tag)) = (text(repo), text(&tag)) {
                // Version 0 means that none exists for this Kubernetes version.
                if !matches!(tag.as_str(), "0" | "v0") {
                    self.image(&format!("{repo}:{tag}"));
                }
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
                    let image = value.to_string();
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

    /// Adds Cilium's chart and its operator image, whose name has a suffix in the chart.
    fn cilium(&mut self, checkout: &Checkout) {
        let text = |name: &str| non_empty(&self.base.value(name).ok()?);
        let (Some(repo), Some(tag), Some(cilium)) =
            (text("cilium_operator_image_repo"), text("cilium_operator_image_tag"), text("cilium_version"))
        else {
            return;
        };
        let is_used = !self.options.enabled_only
            || text("kube_network_plugin").is_some_and(|plugin| plugin == "cilium")
            || self.base.value("cilium_deploy_additionally").is_ok_and(|value| ansible::is_truthy(&value));
        let number = cilium.trim_start_matches('v');
        let by_chart = if checkout.has(CILIUM_ROLE) {
            checkout.has(CILIUM_VALUES)
        } else {
            version::compare(number, CILIUM_BY_CHART).is_some_and(std::cmp::Ordering::is_ge)
        };
        if is_used && by_chart {
            self.image(&format!("{repo}-generic:{tag}"));
            self.file(&format!("https://helm.cilium.io/cilium-{number}.tgz"));
        }
    }

    /// Adds Argo CD's manifest, if `downloads` lacks it, and the image of its version.
    fn argocd(&mut self, evaluator: &Evaluator) {
        let text = |name: &str| non_empty(&evaluator.value(name).ok()?);
        let Some(argocd) = text("argocd_version") else { return };
        let is_enabled = evaluator.value("argocd_enabled").is_ok_and(|value| ansible::is_truthy(&value));
        if self.options.enabled_only && !is_enabled {
            return;
        }
        let tag = format!("v{}", argocd.trim_start_matches('v'));
        if !self.lists.files.iter().any(|file| file.url.contains("/argo-cd/")) {
            self.file(&format!(
                "https://raw.githubusercontent.com/argoproj/argo-cd/{tag}/manifests/install.yaml"
            ));
        }
        self.image(&format!("quay.io/argoproj/argocd:{tag}"));
        self.warnings.push(format!(
            "images of dex and redis omitted: only the install.yaml of Argo CD {tag} names their tags"
        ));
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

    fn image(&mut self, image: &str) {
        if is_image(image) && !self.disabled.contains(image) {
            self.lists.add_image(image.to_owned());
        }
    }

    fn file(&mut self, url: &str) {
        self.lists.add_file(File { url: url.to_owned(), checksum: None }, self.warnings);
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
    use crate::commands::lists::dependencies::dependencies;

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

    #[test]
    fn dependencies_are_parsed_with_their_conditions() {
        let text = "dependencies:\n  - plain\n  - role: apps/one\n    when: one_enabled\n  - role: apps/two\n    when:\n      - a\n      - b\n";
        let document = crate::commands::lists::yaml::parse(text).unwrap();
        let found = dependencies(&document.variables[0].1.value);
        let expected = [("plain", vec![]), ("apps/one", vec!["one_enabled"]), ("apps/two", vec!["a", "b"])];
        let expected =
            expected.map(|(role, all)| (role.to_owned(), all.into_iter().map(str::to_owned).collect()));
        assert_eq!(found, expected);
    }
}
