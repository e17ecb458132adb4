//! k0s: a part of the configuration of its containerd, which makes it read `/etc/containerd/certs.d`.

/// The generated file.
pub(crate) const FILE: &str = "clients/k0s/airbundle.toml";

/// The destination of the file.
pub(crate) const PLACE: &str = "Copy it to `/etc/k0s/containerd.d/airbundle.toml` on every node, and the directory \
                                `containerd/certs.d` to `/etc/containerd/certs.d`; then restart k0s.\nIt merges the file \
                                into the configuration of its containerd (k0s 1.27 and later).";

/// The content. Of the two plugins, containerd 1 has the first one, and containerd 2 the second one.
pub(crate) const DROP_IN: &str = "\
# Made by `unbundle site`.
version = 2

[plugins.\"io.containerd.grpc.v1.cri\".registry]
config_path = \"/etc/containerd/certs.d\"
";
