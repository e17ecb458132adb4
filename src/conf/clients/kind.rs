//! kind: a cluster whose nodes have the `hosts.toml` files of the site.

use crate::conf::generated::MADE;
use crate::conf::quote::Text;
use crate::conf::quote::yaml::{self, Yaml};
use crate::conf::setup::Setup;
use crate::conf::template::fill;

/// The generated file.
pub(crate) const FILE: &str = "clients/kind/cluster.yaml";
/// The destination of the file.
pub(crate) const PLACE: &str = "Run `kind create cluster --config` with it, on this host or where `containerd/certs.d` is at the same \
                                path.\nThe nodes find the host name of the site in your DNS, or in `/etc/hosts` of each node.";

const CLUSTER: &str = "\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
containerdConfigPatches:
  - |-
    [plugins.\"io.containerd.grpc.v1.cri\".registry]
      config_path = \"/etc/containerd/certs.d\"
nodes:
  - role: control-plane
    extraMounts:
      - hostPath: @DIRECTORY@
        containerPath: /etc/containerd/certs.d
        readOnly: true
";

/// Returns the configuration of a cluster with one node.
#[must_use]
pub(crate) fn cluster(setup: &Setup) -> Text<Yaml> {
    let directory = yaml::string(setup.conf.child("containerd/certs.d").as_str());
    let mut text = Text::fixed(MADE);
    text.push(&fill(CLUSTER, &[("DIRECTORY", directory)]));
    text
}
