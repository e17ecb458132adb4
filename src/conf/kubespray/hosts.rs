//! The variables of Kubespray that replace the hosts of files and images.

/// Variables with the URL of a file server, and the hosts that they replace.
pub(super) const FILE_HOSTS: [(&str, &str); 4] = [
    ("github_url", "github.com"),
    ("dl_k8s_io_url", "dl.k8s.io"),
    ("storage_googleapis_url", "storage.googleapis.com"),
    ("get_helm_url", "get.helm.sh"),
];
/// Variables with the name of a registry, and the hosts that they replace.
pub(super) const IMAGE_HOSTS: [(&str, &str); 5] = [
    ("kube_image_repo", "registry.k8s.io"),
    ("gcr_image_repo", "gcr.io"),
    ("docker_image_repo", "docker.io"),
    ("quay_image_repo", "quay.io"),
    ("github_image_repo", "ghcr.io"),
];
