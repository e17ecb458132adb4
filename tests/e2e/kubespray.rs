//! `airbundle lists kubespray` on small trees with the layouts of its releases (tests/kubespray), and on real
//! checkouts if there are any.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::program::{Finished, airbundle};
use crate::serve::directory;

/// Returns the checkout with the layout of this release.
fn checkout(layout: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubespray").join(layout)
}

fn lists(source: &Path, output: &Path, options: &[&str]) -> Finished {
    let source = source.to_str().expect("a UTF-8 path");
    let output = output.to_str().expect("a UTF-8 path");
    airbundle([&["lists", "kubespray", "--source", source, "-o", output], options].concat())
}

/// Returns the lines of a list that are not comments.
fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a list");
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

fn first_words(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split(' ').next().unwrap_or_default()).collect()
}

/// Output of a run: the first words of `files.list`, and `images.list`.
struct Run {
    directory: TempDir,
    finished: Finished,
}

impl Run {
    fn new(layout: &str, options: &[&str]) -> Self {
        Self::of(&checkout(layout), options)
    }

    fn of(source: &Path, options: &[&str]) -> Self {
        let directory = directory();
        let finished = lists(source, directory.path(), options);
        Self { directory, finished }
    }

    #[track_caller]
    fn ok(self) -> Self {
        Self { directory: self.directory, finished: self.finished.ok() }
    }

    fn files(&self) -> Vec<String> {
        lines(&self.directory.path().join("files.list"))
    }

    fn images(&self) -> Vec<String> {
        lines(&self.directory.path().join("images.list"))
    }

    #[track_caller]
    fn warned(&self, words: &[&str]) {
        let is_printed =
            self.finished.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(is_printed, "no line with {words:?} in {}", self.finished.stderr);
    }

    fn silent(&self) {
        assert_eq!(self.finished.stderr, "");
    }
}

/// A copy of a checkout with these changes.
fn changed(layout: &str, changes: &[(&str, &str, &str)]) -> TempDir {
    let copy = directory();
    for entry in walkdir::WalkDir::new(checkout(layout)) {
        let entry = entry.expect("an entry of the fixture");
        let to = copy
            .path()
            .join(entry.path().strip_prefix(checkout(layout)).expect("the path is below the root"));
        if entry.file_type().is_dir() {
            fs::create_dir_all(&to).expect("a directory");
        } else {
            fs::copy(entry.path(), &to).expect("a copy");
        }
    }
    for (file, from, to) in changes {
        let path = copy.path().join(file);
        let text = fs::read_to_string(&path).expect("an entry of the fixture");
        assert!(text.contains(from), "no `{from}` in {file}");
        fs::write(path, text.replace(from, to)).expect("a changed entry");
    }
    copy
}

/// A copy of a checkout with these additional files.
fn with_files(layout: &str, files: &[(&str, &str)]) -> TempDir {
    let copy = changed(layout, &[]);
    for (file, text) in files {
        let path = copy.path().join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    copy
}

/// A file of variables.
fn vars(text: &str) -> (TempDir, String) {
    let directory = directory();
    let path = directory.path().join("vars.yml");
    fs::write(&path, text).expect("a file");
    let path = path.to_str().expect("a UTF-8 path").to_owned();
    (directory, path)
}

const OLD: &str = "roles/kubespray-defaults/defaults/main/main.yml";
const OLD_DOWNLOAD: &str = "roles/kubespray-defaults/defaults/main/download.yml";

#[test]
fn lists_of_an_old_layout_release_hold_its_urls_and_downloads_in_order() {
    let run = Run::new("v2.25", &[]).ok();
    run.silent();
    assert_eq!(
        first_words(&run.files()),
        [
            "https://files.example/release/v1.9.5/linux/amd64/kubelet",
            "https://files.example/etcd/v3.5.1/etcd-v3_5_1-amd64.tar.gz",
            "https://files.example/mesh/v0.7.0/meshctl-amd64",
            "https://files.example/sandbox/20240101/x86_64/run",
        ]
    );
    assert!(run.files().iter().all(|line| line.contains(" sha256:")), "{:?}", run.files());
    assert_eq!(
        run.images(),
        [
            "hub.example/store/etcd:v3.5.1",
            "hub.example/mesh/node:v0.7.0",
            "hub.example/library/proxy:1.25.2-small",
            "registry.example/namer/namer:v1.11.1",
            "registry.example/kube-apiserver:v1.9.5",
            "registry.example/kube-controller-manager:v1.9.5",
            "registry.example/kube-scheduler:v1.9.5",
            "registry.example/kube-proxy:v1.9.5",
        ]
    );
    let text = fs::read_to_string(run.directory.path().join("files.list")).unwrap();
    assert!(
        text.starts_with("# Kubespray v2.25.9, linux/amd64: 4 files, 4 of them with the checksum"),
        "{text}"
    );
}

#[test]
fn lists_of_a_new_layout_release_take_versions_from_the_checksums() {
    let run = Run::new("v2.31", &[]).ok();
    run.warned(&["not listed", "cilium-1.19.3.tgz"]);
    let files = run.files();
    assert_eq!(
        first_words(&files),
        [
            "https://files.example/release/v1.35.4/amd64/kubelet",
            "https://files.example/etcd/v3.6.10/etcd-amd64.tar.gz",
            "https://files.example/tools/v1.35.0/tools-linux-amd64.tar.gz",
            "https://files.example/runner/1.17/runner.amd64",
            "https://files.example/sandbox/20260323.0/x86_64/run",
            "https://files.example/crds/v1.5.1/standard.yaml",
        ]
    );
    assert!(files[4].contains(" sha512:"), "{files:?}");
    assert_eq!(files.iter().filter(|line| line.contains(" sha256:")).count(), 5);
    assert_eq!(
        run.images()[..7],
        [
            "hub.example/store/etcd:v3.6.10",
            "hub.example/cilium/cilium:v1.19.3",
            "hub.example/cilium/operator:v1.19.3",
            "hub.example/mesh/node:v3.31.5",
            "registry.example/namer/namer:v1.12.4",
            "registry.example/kube-apiserver:v1.35.4",
            "registry.example/kube-controller-manager:v1.35.4",
        ]
    );
}

#[test]
fn role_variables_are_read_from_every_layout() {
    // The role `download` overrides the defaults of other roles, role vars override both, and a file may be
    // `main.yaml`.
    let run = Run::new("v2.28", &["--arch", "amd64,arm64"]).ok();
    let files = run.files();
    assert_eq!(files[0].split(' ').next(), Some("https://files.example/v1.32.5/amd64/kubelet"));
    assert!(files[0].contains(" sha256:"));
    assert_eq!(files[1..], ["https://files.example/v1.32.5/arm64/kubelet"], "a pin of 0 is none");
    assert_eq!(run.images()[0], "registry.example/pause:3.10");
}

#[test]
fn lists_of_two_architectures_share_common_entries() {
    let run = Run::new("v2.25", &["--arch", "amd64,arm64"]).ok();
    assert_eq!(run.images(), Run::new("v2.25", &[]).ok().images());
    let (amd64, arm64) = (Run::new("v2.25", &[]).ok(), Run::new("v2.25", &["--arch", "arm64"]).ok());
    let both: Vec<_> = amd64.files().into_iter().chain(arm64.files()).collect();
    assert_eq!(run.files(), both);
    assert!(both.contains(&"https://files.example/sandbox/20240101/aarch64/run".to_owned()), "pinned by 0");
    let crds = Run::new("v2.31", &["--arch", "amd64,arm64"]).ok();
    assert_eq!(crds.files().iter().filter(|line| line.contains("/crds/")).count(), 1);
}

#[test]
fn lists_are_limited_to_enabled_components_on_request() {
    let run = Run::new("v2.25", &["--enabled-only"]).ok();
    assert_eq!(run.files().len(), 3, "{:?}", run.files());
    assert!(run.files().iter().all(|line| !line.contains("sandbox")));
    // etcd runs from a file here, not from an image.
    assert_eq!(run.images().len(), 3 + 4, "{:?}", run.images());

    let (_directory, path) =
        vars("etcd_deployment_type: docker\nnet_plugin: none\nloadbalancer_apiserver: {port: 1}\n");
    let run = Run::new("v2.25", &["--enabled-only", "--vars", &path]).ok();
    assert_eq!(first_words(&run.files()), ["https://files.example/release/v1.9.5/linux/amd64/kubelet"]);
    assert_eq!(
        run.images()[..2],
        ["hub.example/store/etcd:v3.5.1", "registry.example/kube-apiserver:v1.9.5"]
    );

    let (_directory, path) = vars("argocd_enabled: true\n");
    let run = Run::new("v2.31", &["--enabled-only", "--vars", &path]).ok();
    assert!(
        run.files()
            .iter()
            .any(|line| line.starts_with("https://raw.example/argo-cd/v2.14.21/install.yaml sha256:"))
    );
}

#[test]
fn user_versions_and_switches_override_defaults() {
    let (_directory, path) = vars("kube_version: v1.8.9\nmesh_digest_checksum: ".to_owned().as_str());
    let run = Run::new("v2.25", &["--vars", &path]).ok();
    assert!(run.files()[0].contains("/v1.8.9/") && run.files()[1].contains("/v3.4.9/"), "{:?}", run.files());
    assert!(run.images().contains(&"registry.example/namer/namer:v1.10.1".to_owned()));

    let hex = "0123456789abcdef".repeat(4);
    let (_directory, path) = vars(&format!("mesh_digest_checksum: {hex}\n"));
    let run = Run::new("v2.25", &["--vars", &path]).ok();
    assert!(
        run.images().contains(&format!("hub.example/mesh/node:v0.7.0@sha256:{hex}")),
        "{:?}",
        run.images()
    );
}

#[test]
fn group_vars_all_has_the_lowest_precedence() {
    let directory = directory();
    let group_vars = directory.path().join("group_vars");
    for (file, text) in [
        ("all/all.yml", "kube_version: v1.8.9\nmesh_version: v0.1.0\n"),
        ("all/.hidden.yml", "kube_version: [\n"),
        ("all/notes.txt", "no variables\n"),
        ("k8s_cluster/k8s.yml", "kube_version: v1.9.4\n"),
        // It has the depth of `k8s_cluster`, which comes later by its name.
        ("etcd.yml", "kube_version: v1.9.5\nmesh_version: v0.7.0\n"),
        ("zone.yml", "sandbox_version: 20240102\n"),
        // Its parent is `k8s_cluster`.
        ("kube_node.yml", "sandbox_version: 20240101\n"),
    ] {
        let path = group_vars.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let run = Run::new("v2.25", &["--vars", group_vars.to_str().unwrap()]).ok();
    assert!(run.files()[0].contains("/v1.9.4/"), "{:?}", run.files());
    assert!(run.files()[2].contains("/v0.7.0/"), "{:?}", run.files());
    assert!(run.files()[3].contains("/20240101/"), "{:?}", run.files());
}

#[test]
fn mirror_variables_are_ignored_unless_requested() {
    let text = "files_repo: http://mirror\nfiles_url: \"{{ files_repo }}/files\"\nhub_image_repo: mirror:5000\n\
                kubelet_download_url: \"{{ files_repo }}/kubelet\"\nyum_repo: http://mirror/yum\n";
    let (_directory, path) = vars(text);
    let run = Run::new("v2.25", &["--vars", &path]).ok();
    assert_eq!(run.files(), Run::new("v2.25", &[]).ok().files());
    assert_eq!(run.images(), Run::new("v2.25", &[]).ok().images());
    for (line, name) in [(2, "files_url"), (3, "hub_image_repo"), (4, "kubelet_download_url")] {
        run.warned(&[&format!("vars.yml:{line}"), &format!("`{name}`"), "--keep-mirrors"]);
    }
    assert_eq!(
        run.finished.stderr.lines().count(),
        3,
        "what has no effect is worth no word: {}",
        run.finished.stderr
    );

    let run = Run::new("v2.25", &["--vars", &path, "--keep-mirrors"]).ok();
    run.silent();
    assert!(run.files()[0].starts_with("http://mirror/kubelet sha256:"), "{:?}", run.files());
    assert!(run.files()[1].starts_with("http://mirror/files/etcd/"), "{:?}", run.files());
    assert_eq!(run.images()[0], "mirror:5000/store/etcd:v3.5.1");
}

#[test]
fn unused_variables_and_duplicate_definitions_are_reported() {
    let (_directory, path) = vars("kubelet_checksums: {}\nkube_version: 1.35.3\nkube_version: 1.35.4\n");
    let run = Run::new("v2.31", &["--vars", &path]).ok();
    run.warned(&["vars.yml:1", "`kubelet_checksums`", "no effect"]);
    run.warned(&["vars.yml:3", "`kube_version`", "duplicate key"]);
    assert!(run.files()[0].contains("/v1.35.4/"));
}

#[test]
fn unknown_kubespray_version_fails_listing_known_versions() {
    let (_directory, path) = vars("kube_version: v1.9.9\n");
    let run = Run::new("v2.25", &["--vars", &path]);
    let words = [
        "download.yml:",
        "`kubelet_binary_checksum`",
        "`kubelet_checksums.amd64` has no `v1.9.9`",
        "`v1.9.5`",
    ];
    let finished = run.finished.failed(3, &words).failed(3, &["--allow-unpinned"]);
    assert_eq!(finished.stderr.lines().count(), 2, "{}", finished.stderr);
    assert!(fs::read_dir(run.directory.path()).unwrap().next().is_none(), "nothing is written");

    let run = Run::new("v2.25", &["--vars", &path, "--allow-unpinned"]).ok();
    run.warned(&["`kubelet_checksums.amd64` has no `v1.9.9`", "without a checksum"]);
    assert_eq!(run.files()[0], "https://files.example/release/v1.9.9/linux/amd64/kubelet");
    assert!(run.files()[1].contains(" sha256:"));

    // A checksum set by the user works too.
    let hex = "0123456789abcdef".repeat(4);
    let (_directory, path) = vars(&format!("kube_version: v1.9.9\nkubelet_binary_checksum: {hex}\n"));
    assert!(Run::new("v2.25", &["--vars", &path]).ok().files()[0].ends_with(&format!(" sha256:{hex}")));
}

#[test]
fn unresolvable_value_fails_with_file_line_and_name() {
    for (from, to, words) in [
        (
            "mesh_version: \"v0.7.0\"",
            "mesh_version: \"{{ mesh_image_tag }}\"",
            &["download.yml", "it depends on itself", "`mesh_version` → `mesh_image_tag`"][..],
        ),
        (
            "mesh_version: \"v0.7.0\"",
            "mesh_version: \"{{ nowhere }}\"",
            &[
                "download.yml:12",
                "`mesh_version`",
                "`nowhere` is undefined",
                "needed by",
                "`meshctl_download_url`",
            ],
        ),
        (
            "mesh_version: \"v0.7.0\"",
            "mesh_version: \"{{ 'x' | to_klingon }}\"",
            &["download.yml:12", "`mesh_version`", "to_klingon", "unknown filter"],
        ),
        (
            "mesh_version: \"v0.7.0\"",
            "mesh_version: \"{{ lookup('pipe', 'rm') }}\"",
            &["download.yml:12", "`mesh_version`", "unknown lookup `pipe`"],
        ),
        (
            "mesh_version: \"v0.7.0\"",
            "mesh_version: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3030",
            &["download.yml:12", "`mesh_version`", "encrypted with ansible-vault"],
        ),
        (
            "mesh_version: \"v0.7.0\"",
            "mesh_version: \"{{ 'v0' \"",
            &["download.yml:12", "`mesh_version`", "syntax error"],
        ),
        (
            "mesh_version: \"v0.7.0\"",
            "mesh_version: v0 7",
            &["invalid entry `https://files.example/mesh/v0 7"],
        ),
        ("mesh_version: \"v0.7.0\"", "mesh_version: [", &["download.yml:13"]),
        (
            "enabled: true\n    file: true\n    sha256",
            "enabled: true\n    file: true\n    sha512: abc\n    sha255",
            &["downloads.kubelet", "it is `abc`: expected a sha256 or a sha512"],
        ),
    ] {
        let source = changed("v2.25", &[(OLD_DOWNLOAD, from, to)]);
        let finished = Run::of(source.path(), &[]).finished.failed(3, words);
        assert_eq!(finished.stderr.lines().count(), 1, "each fault once: {}", finished.stderr);
    }
}

#[test]
fn variables_that_no_list_needs_are_never_evaluated() {
    let source = changed(
        "v2.25",
        &[
            (
                OLD,
                "net_address:",
                "secret: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  30\nround: \"{{ round }}\"\nnet_address:",
            ),
            (OLD_DOWNLOAD, "container_manager == 'sandboxed'", "nowhere_at_all"),
        ],
    );
    Run::of(source.path(), &[]).ok().silent();
    Run::of(source.path(), &["--enabled-only"]).finished.failed(3, &["`nowhere_at_all` is undefined"]);
}

#[test]
fn lists_begin_with_the_release_and_the_command() {
    let run = Run::new("v2.31", &["--complete"]).ok();
    for name in ["files.list", "images.list"] {
        let text = fs::read_to_string(run.directory.path().join(name)).expect("a list");
        let mut lines = text.lines();
        let first = lines.next().expect("a header");
        assert!(first.starts_with("# Kubespray v2.31.9, linux/amd64: "), "{first}");
        let second = "# Made by airbundle lists kubespray --complete; order as of its generate_list.sh.";
        assert_eq!(lines.next(), Some(second));
    }
}

#[test]
fn directory_that_is_not_a_checkout_is_refused() {
    let empty = directory();
    Run::of(empty.path(), &[]).finished.failed(3, &["is not a checkout", "roles/kubespray_defaults"]);
    let source = changed("v2.25", &[(OLD_DOWNLOAD, "downloads:", "other:")]);
    Run::of(source.path(), &[]).finished.failed(3, &["is not a checkout", "`downloads`"]);
    let source = checkout("v2.25");
    Run::of(&source, &["--vars", "/nowhere/vars.yml"]).finished.failed(6, &["/nowhere/vars.yml"]);
    Run::of(&source, &["--arch", "i386"]).finished.failed(2, &["i386"]);
}

#[test]
fn additions_missing_from_the_kubespray_script_are_listed_on_request() {
    let run = Run::new("v2.25", &["--complete"]).ok();
    let files = run.files();
    assert_eq!(
        files[4..],
        ["https://raw.githubusercontent.com/argoproj/argo-cd/v2.11.0/manifests/install.yaml"],
        "{files:?}"
    );
    assert_eq!(
        run.images()[8..],
        [
            "registry.example/ingress-nginx/kube-webhook-certgen:v1.4.1",
            "mcr.example/oss/kubernetes-csi/csi-attacher:v3.3.0",
            "mcr.example/oss/kubernetes-csi/csi-resizer:v1.3.0",
            "quay.io/argoproj/argocd:v2.11.0",
        ]
    );
    run.warned(&["controller.yml.j2:8", "`item` is undefined"]);
    run.warned(&["dex and redis"]);

    let run = Run::new("v2.31", &["--complete"]).ok();
    let files = run.files();
    assert!(files[6].starts_with("https://raw.example/argo-cd/v2.14.21/install.yaml sha256:"), "{files:?}");
    assert_eq!(files[7..], ["https://helm.cilium.io/cilium-1.19.3.tgz"]);
    let images = run.images();
    for image in [
        "hub.example/cilium/operator-generic:v1.19.3",
        "registry.example/cloud/openstack-cloud-controller-manager:v1.35.0",
        "quay.io/argoproj/argocd:v2.14.21",
    ] {
        assert!(images.contains(&image.to_owned()), "{image}: {images:?}");
    }
    assert!(!images.iter().any(|image| image.contains("/scheduler:")), "a version of 0 is none: {images:?}");
    // A known addition that is missing from the checkout is reported.
    let source = changed(
        "v2.31",
        &[(
            "roles/kubespray_defaults/defaults/main/main.yml",
            "static_build",
            "azure_csi_enabled: false\nstatic_build",
        )],
    );
    Run::of(source.path(), &["--complete"]).ok().warned(&[
        "not found",
        "the CSI images of Azure",
        "azure_csi_enabled",
    ]);
}

#[test]
fn additions_are_limited_to_enabled_components_too() {
    let run = Run::new("v2.31", &["--enabled-only", "--complete"]).ok();
    assert_eq!(run.images(), Run::new("v2.31", &["--enabled-only"]).ok().images());
    let (_directory, path) = vars("kube_network_plugin: cilium\n");
    let run = Run::new("v2.31", &["--enabled-only", "--complete", "--vars", &path]).ok();
    assert!(run.images().contains(&"hub.example/cilium/operator-generic:v1.19.3".to_owned()));
    assert!(run.files().contains(&"https://helm.cilium.io/cilium-1.19.3.tgz".to_owned()));

    let (_directory, path) = vars("azure_csi_enabled: true\nnet_plugin: none\n");
    let off = Run::new("v2.25", &["--enabled-only", "--complete"]).ok();
    assert!(!off.images().iter().any(|image| image.contains("kubernetes-csi")), "{:?}", off.images());
    let on = Run::new("v2.25", &["--enabled-only", "--complete", "--vars", &path]).ok();
    assert!(on.images().iter().any(|image| image.ends_with("csi-attacher:v3.3.0")), "{:?}", on.images());
    // Another role's template names it, and these settings do not use that role.
    assert!(!on.images().iter().any(|image| image.contains("mesh/node")), "{:?}", on.images());
}

#[test]
fn both_versions_of_argocd_are_listed_if_its_role_has_another_one() {
    let source = changed(
        "v2.25",
        &[(OLD, "net_plugin: mesh\n", "net_plugin: mesh\nargocd_version: 2.14.20\nargocd_enabled: true\n")],
    );
    let run = Run::of(source.path(), &["--complete"]).ok();
    let manifest =
        |tag| format!("https://raw.githubusercontent.com/argoproj/argo-cd/{tag}/manifests/install.yaml");
    let files = run.files();
    let images = run.images();
    for tag in ["v2.14.20", "v2.11.0"] {
        assert!(files.contains(&manifest(tag)), "{files:?}");
        assert!(images.contains(&format!("quay.io/argoproj/argocd:{tag}")), "{images:?}");
    }
}

#[test]
fn additions_of_templates_are_images_that_exist() {
    let source = with_files(
        "v2.25",
        &[
            (
                "roles/apps/store/defaults/main.yml",
                "zero_tag: 0\nstore_image_repo: mcr.example/k8s/csi\nstore_image_tag: v1.2\n\
                 helper_image_repo: busybox\nhelper_image_tag: '1.36'\n",
            ),
            (
                "roles/apps/store/templates/store.yml.j2",
                "image: hub.example/none:{{ zero_tag }}\nimage: hub.example/none:v{{ zero_tag }}\n\
                 image: \"{{ store_image_repo }}/disk-csi:{{ store_image_tag }}\"\nimage: busybox:1.35\n\
                 image: rancher/pause:3\nimage: {{ false }}\n",
            ),
        ],
    );
    let run = Run::of(source.path(), &["--complete", "--json"]).ok();
    let images = run.images();
    for image in
        ["mcr.example/k8s/csi/disk-csi:v1.2", "docker.io/library/busybox:1.35", "docker.io/rancher/pause:3"]
    {
        assert!(images.contains(&image.to_owned()), "{image}: {images:?}");
    }
    assert!(!images.iter().any(|image| image.contains("/none:")), "version 0 is none: {images:?}");
    let first_part = "mcr.example/k8s/csi:v1.2".to_owned();
    assert!(!images.contains(&first_part), "templates complete this name: {images:?}");
    // The variables with which a site can set the locations.
    let summary = run.finished.stdout.lines().last().expect("a summary");
    let summary: serde_json::Value = serde_json::from_str(summary).expect("JSON");
    assert_eq!(
        summary["locations"],
        serde_json::json!({
            "azure_image_repo": "mcr.example/oss/kubernetes-csi",
            "helper_image_repo": "busybox",
            "hub_image_repo": "hub.example",
            "kube_image_repo": "registry.example",
            "store_image_repo": "mcr.example/k8s/csi",
        })
    );
}

#[test]
fn charts_that_roles_install_are_always_named() {
    let source = with_files(
        "v2.25",
        &[
            (
                "roles/apps/approver/defaults/main.yml",
                "approver_enabled: false\nkubelet_approver_repository_url: https://charts.example/approver\n\
                 kubelet_approver_chart_version: 1.1.0\n",
            ),
            (
                "roles/apps/meta/main.yml",
                "dependencies:\n  - role: apps/approver\n    when: approver_enabled\n",
            ),
            ("roles/apps/none/defaults/main.yml", "x_chart_version: ''\nx_chart_repository_url: ''\n"),
        ],
    );
    let words =
        ["not listed", "`kubelet-approver` 1.1.0 of https://charts.example/approver", "roles/apps/approver"];
    for options in [&[][..], &["--complete"]] {
        Run::of(source.path(), options).ok().warned(&words);
    }
    Run::of(source.path(), &["--enabled-only"]).ok().silent();
    let (_directory, path) = vars("approver_enabled: true\n");
    Run::of(source.path(), &["--enabled-only", "--vars", &path]).ok().warned(&words);
    // The chart of Cilium can be listed.
    let chart = "https://helm.cilium.io/cilium-1.19.3.tgz";
    Run::new("v2.31", &[]).ok().warned(&["not listed", chart, "--complete"]);
}

#[test]
fn roles_that_tasks_include_count_as_enabled_by_their_conditions() {
    let role = |name: &str| format!("image: hub.example/{name}:1\n");
    let (mesh, cni, multi, extra) = (role("mesh-role"), role("cni"), role("multi"), role("extra"));
    let source = with_files(
        "v2.25",
        &[
            ("roles/network_plugin/mesh/templates/a.j2", &*mesh),
            ("roles/network_plugin/cni/templates/a.j2", &*cni),
            ("roles/network_plugin/multi/templates/a.j2", &*multi),
            ("roles/network_plugin/extra/templates/a.j2", &*extra),
            (
                "roles/network_plugin/tasks/main.yml",
                "- include_role: {name: network_plugin/cni}\n  when: kube_network_plugin != 'none'\n\
                 - include_role:\n    name: \"network_plugin/{{ kube_network_plugin }}\"\n\
                 - block:\n    - import_role: {name: network_plugin/multi}\n  when: multi_enabled | default(false)\n\
                 - include_role: {name: network_plugin/extra}\n  when: item.unknown\n",
            ),
        ],
    );
    let listed = |settings: &str| {
        let (_directory, path) = vars(settings);
        let images = Run::of(source.path(), &["--enabled-only", "--complete", "--vars", &path]).ok().images();
        let names = ["mesh-role", "cni", "multi", "extra"];
        names.into_iter().filter(|name| images.contains(&format!("hub.example/{name}:1"))).collect::<Vec<_>>()
    };
    assert_eq!(listed("x: 1"), ["mesh-role", "cni", "extra"]);
    assert_eq!(listed("net_plugin: none"), ["extra"]);
    assert_eq!(listed("multi_enabled: true\nnet_plugin: other"), ["cni", "multi", "extra"]);
}

#[test]
fn lists_overwrite_old_ones_and_are_reproducible() {
    let directory = directory();
    fs::write(directory.path().join("files.list"), "old\n").unwrap();
    let read = || ["files.list", "images.list"].map(|name| fs::read(directory.path().join(name)).unwrap());
    lists(&checkout("v2.31"), directory.path(), &[]).ok();
    let first = read();
    let json = lists(&checkout("v2.31"), directory.path(), &["--json"]).ok().json();
    assert_eq!(first, read());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    assert_eq!(
        (json["files"].as_u64(), json["pinned"].as_u64(), json["images"].as_u64()),
        (Some(6), Some(6), Some(9))
    );
    assert_eq!((json["event"].as_str(), json["release"].as_str()), (Some("summary"), Some("v2.31.9")));
    assert_eq!(lists(&checkout("v2.31"), directory.path(), &["--quiet"]).ok().stdout, "");
    // The generated lists can be packed.
    let mut read = airbundle::documents::list::Lists::read(&[directory.path().to_owned()]).unwrap();
    assert_eq!((read.files.len(), read.images.len()), (6, 9));
    read.files.clear();
}

/// Uses real releases in the directory `AIRBUNDLE_KUBESPRAY`: for each `vX`, `checkout/` and the output of
/// Kubespray's own script for it, `files.list`, `images.list`, `arm64/…`, and `checksums*.tsv` (URL, TAB, hex
/// digits).
#[test]
#[ignore = "needs real releases of Kubespray: AIRBUNDLE_KUBESPRAY"]
fn lists_equal_those_of_kubespray_and_those_in_manifests() {
    let Some(releases) = std::env::var_os("AIRBUNDLE_KUBESPRAY") else {
        eprintln!("nothing is compared: AIRBUNDLE_KUBESPRAY names no directory");
        return;
    };
    let mut compared = 0;
    for entry in fs::read_dir(releases).expect("the directory") {
        let release = entry.expect("an entry").path();
        if !release.join("checkout").is_dir() {
            continue;
        }
        let name = release.file_name().unwrap().to_str().unwrap().to_owned();
        for (arch, expected) in [("amd64", release.clone()), ("arm64", release.join("arm64"))] {
            let run = Run::of(&release.join("checkout"), &["--arch", arch, "--release", &name]).ok();
            let (files, images) = (run.files(), run.images());
            assert_eq!(first_words(&files), lines(&expected.join("files.list")), "{name} {arch}");
            assert_eq!(images, lines(&expected.join("images.list")), "{name} {arch}");
            let mut pins = Vec::new();
            for (table, algorithm) in [("checksums.tsv", "sha256"), ("checksums-sha512.tsv", "sha512")] {
                let text = fs::read_to_string(expected.join(table)).unwrap_or_default();
                pins.extend(text.lines().filter_map(|line| {
                    let (url, hex) = line.split_once('\t')?;
                    (hex.len() >= 64).then(|| format!("{url} {algorithm}:{hex}"))
                }));
            }
            pins.sort();
            let mut pinned: Vec<_> = files.iter().filter(|line| line.contains(' ')).cloned().collect();
            pinned.sort();
            assert_eq!(pinned, pins, "{name} {arch}");
            let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("manifests/kubespray-{name}"));
            let manifests = if arch == "amd64" { manifests } else { manifests.join(arch) };
            for list in ["files.list", "images.list"] {
                let made = fs::read_to_string(run.directory.path().join(list)).unwrap();
                assert_eq!(made, fs::read_to_string(manifests.join(list)).unwrap(), "{name} {arch} {list}");
            }
            compared += 1;
        }
    }
    assert!(compared >= 2, "{compared} compared");
}
