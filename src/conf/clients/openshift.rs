//! `OpenShift`: the mirrors for images by digest and by tag, and the CA certificate.

use crate::conf::generated::MADE;
use crate::conf::quote::Text;
use crate::conf::quote::yaml::{self, Yaml};
use crate::conf::setup::Setup;
use crate::conf::template::fill;

/// The generated file.
pub(crate) const FILE: &str = "clients/openshift/mirrors.yaml";
/// The destination of the file.
pub(crate) const PLACE: &str = "Run `oc apply -f` with it; the nodes restart one by one (OpenShift 4.13 and later).\nA login \
                                belongs in the pull secret of the cluster: `oc set data secret/pull-secret -n openshift-config`.";

const MIRRORS: &str = "\
---
apiVersion: config.openshift.io/v1
kind: @KIND@
metadata:
  name: airbundle
spec:
  @FIELD@:
@MIRRORS@
";
const MIRROR: &str = "    - source: @HOST@
      mirrors: [@MIRROR@]
      mirrorSourcePolicy: NeverContactSource
";
const CA: &str = "\
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: airbundle-ca
  namespace: openshift-config
data:
  @REGISTRY@: @CA@
---
apiVersion: config.openshift.io/v1
kind: Image
metadata:
  name: cluster
spec:
  additionalTrustedCA:
    name: airbundle-ca
";

/// Returns the manifests.
#[must_use]
pub(crate) fn manifests(setup: &Setup) -> Text<Yaml> {
    let registry = setup.registry_host();
    let mirrors: Text<Yaml> = setup
        .mirrored_hosts()
        .into_iter()
        .map(|(host, prefix)| {
            let mirror = yaml::string(&setup.mirror_name(&prefix));
            fill(MIRROR, &[("HOST", yaml::string(&host)), ("MIRROR", mirror)])
        })
        .collect();
    let mut text = Text::fixed(MADE);
    for (kind, field) in
        [("ImageDigestMirrorSet", "imageDigestMirrors"), ("ImageTagMirrorSet", "imageTagMirrors")]
    {
        let values =
            [("KIND", Text::fixed(kind)), ("FIELD", Text::fixed(field)), ("MIRRORS", mirrors.clone())];
        text.push(&fill(MIRRORS, &values));
    }
    if let Some(ca) = &setup.ca {
        // The port follows two dots, because a key cannot contain a colon.
        let key = yaml::string(&registry.replace(':', ".."));
        text.push(&fill(CA, &[("REGISTRY", key), ("CA", yaml::string(ca))]));
    }
    text
}
