//! kubeadm: the repository of the images of the control plane.

use crate::conf::generated::MADE;
use crate::conf::quote::Text;
use crate::conf::quote::yaml::{self, Yaml};
use crate::conf::setup::Setup;
use crate::conf::template::fill;

/// The generated file.
pub(crate) const FILE: &str = "clients/kubeadm/cluster.yaml";
/// The destination of the file.
pub(crate) const PLACE: &str = "Merge it into the file of `kubeadm init --config` (for Kubernetes 1.30 and earlier, with \
                                `kubeadm.k8s.io/v1beta3`).\nThe nodes need `trust.sh`, too. Where they have the mirrors, kubeadm works \
                                without this file.";

const CONFIGURATION: &str = "\
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
imageRepository: @REPOSITORY@
dns:
  imageRepository: @DNS@
";

/// Returns the configuration. `None`: the site has no images of Kubernetes.
#[must_use]
pub(crate) fn configuration(setup: &Setup) -> Option<Text<Yaml>> {
    let repository = repository(setup)?;
    let dns = yaml::string(&format!("{repository}/coredns"));
    let mut text = Text::fixed(MADE);
    text.push(&fill(CONFIGURATION, &[("REPOSITORY", yaml::string(&repository)), ("DNS", dns)]));
    Some(text)
}

/// Returns the repository on the site that has what `registry.k8s.io` has.
#[must_use]
pub(crate) fn repository(setup: &Setup) -> Option<String> {
    let (_, prefix) = setup.mirrored_hosts().into_iter().find(|(host, _)| host == "registry.k8s.io")?;
    Some(setup.mirror_name(&prefix))
}
