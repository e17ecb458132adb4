//! minikube: a script that starts a cluster with the images of the site.

use crate::conf::clients::kubeadm;
use crate::conf::quote::Text;
use crate::conf::quote::shell::{self, Shell};
use crate::conf::setup::Setup;
use crate::conf::template::fill;

/// The generated file.
pub(crate) const FILE: &str = "clients/minikube/start.sh";
/// The destination of the file.
pub(crate) const PLACE: &str = "Run it in place of `minikube start`; options are passed on.\nIt copies the mirrors to \
                                `~/.minikube/files`, which minikube copies to the node.";

const SCRIPT: &str = r#"#!/bin/sh
# Starts minikube with the images of the site. Made by `unbundle site`.
set -eu
conf=@CONF@
home=${MINIKUBE_HOME:-$HOME/.minikube}
mkdir -p "$home/certs" "$home/files/etc/containerd"
[ ! -e "$conf/ca.crt" ] || cp "$conf/ca.crt" "$home/certs/airbundle.crt"
cp -R "$conf/containerd/certs.d" "$home/files/etc/containerd/"
exec minikube start --container-runtime=containerd --image-repository=@REPOSITORY@ @INSECURE@ "$@"
"#;

/// Returns the script. `None`: the site has no images of Kubernetes.
#[must_use]
pub(crate) fn script(setup: &Setup) -> Option<Text<Shell>> {
    let insecure = if setup.is_tls() {
        Text::new()
    } else {
        shell::word(&format!("--insecure-registry={}", setup.registry_host()))
    };
    Some(fill(
        SCRIPT,
        &[
            ("CONF", shell::word(setup.conf.as_str())),
            ("REPOSITORY", shell::word(&kubeadm::repository(setup)?)),
            ("INSECURE", insecure),
        ],
    ))
}
