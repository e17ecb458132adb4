//! Clients that pull from a registry or a web server: skopeo, podman, docker, containerd's `ctr`, and curl.
//!
//! Each call returns the client's stdout, or panics with the command line and its output.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::{self, Daemon, stdout_of};

/// Runs `skopeo ARGS`. Plain HTTP needs `--tls-verify=false`, or `--src-tls-verify=false` for a copy.
pub fn skopeo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    stdout_of(Command::new("skopeo").args(args))
}

/// Returns the raw manifest of `docker://REFERENCE`, over plain HTTP.
pub fn skopeo_raw_manifest(reference: &str) -> Vec<u8> {
    let reference = format!("docker://{reference}");
    process::run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &reference])).stdout
}

/// Copies `docker://REFERENCE` with all its platforms, unchanged, over plain HTTP into skopeo's `dir:`
/// format: `manifest.json`, `<hex>.manifest.json` for the children, `<hex>` for configs and layers. skopeo
/// verifies every digest.
pub fn skopeo_pull(reference: &str, directory: &Path) {
    fs::create_dir_all(directory).unwrap_or_else(|error| panic!("create {}: {error}", directory.display()));
    let [source, target] = [format!("docker://{reference}"), format!("dir:{}", directory.display())];
    skopeo(["copy", "--quiet", "--all", "--preserve-digests", "--src-tls-verify=false", &source, &target]);
}

/// Runs `curl -sSf ARGS`: an error status is a failure.
pub fn curl<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Vec<u8> {
    process::run(Command::new("curl").args(["-sSf", "--noproxy", "*"]).args(args)).stdout
}

/// podman with a store of its own.
#[derive(Debug)]
pub struct Podman {
    directory: TempDir,
}

impl Podman {
    /// Creates an empty store, which is removed when this is dropped.
    pub fn new() -> Self {
        Self { directory: TempDir::new().expect("create a temporary directory") }
    }

    /// Returns the file that makes any podman use this store, for `CONTAINERS_STORAGE_CONF`.
    pub fn storage_conf(&self) -> PathBuf {
        let [root, run_root, file] =
            ["root", "run", "storage.conf"].map(|name| self.directory.path().join(name));
        let [root, run_root] = [root.display(), run_root.display()];
        let text = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{root}\"\nrunroot = \"{run_root}\"\n");
        fs::write(&file, text).expect("write storage.conf");
        file
    }

    /// Runs `podman ARGS` on this store.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let [root, run_root] = ["root", "run"].map(|name| self.directory.path().join(name));
        let mut podman = Command::new("podman");
        // vfs and cgroupfs, because overlay mounts and systemd may be unavailable.
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--root"]).arg(root);
        stdout_of(podman.arg("--runroot").arg(run_root).args(args))
    }

    /// Pulls `REFERENCE` over plain HTTP for this machine's platform. Returns the image's ID: the digest of
    /// its config.
    pub fn pull(&self, reference: &str) -> String {
        let id = self.run(["pull", "--quiet", "--tls-verify=false", reference]);
        format!("sha256:{}", id.trim())
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

/// A docker daemon with a store, a socket and a containerd of its own, which leaves the machine's network
/// settings alone. Needs root. Ends when dropped.
#[derive(Debug)]
pub struct Dockerd {
    // Declared before the directory, so that the process ends before its files are removed.
    daemon: Daemon,
    directory: TempDir,
}

impl Dockerd {
    /// Starts one that pulls and loads. Its containers have no network.
    pub fn start() -> Self {
        Self::start_with(&[], "vfs", &["--bridge=none", "--iptables=false"], "{}")
    }

    /// Starts one that also runs containers, in a network namespace of its own: published ports are reachable
    /// only through [`Dockerd::inside`].
    pub fn start_apart() -> Self {
        const LOOPBACK: &str = r#"ip link set lo up && exec "$@""#;
        let apart = ["unshare", "--net", "--mount", "sh", "-c", LOOPBACK, "sh"];
        Self::start_with(&apart, "vfs", &["--iptables=false", "--ip6tables=false"], "{}")
    }

    /// Starts one with the containerd image store, which keeps digests. Needs Docker 26.
    pub fn start_with_containerd_store() -> Self {
        let configuration = r#"{ "features": { "containerd-snapshotter": true } }"#;
        Self::start_with(&[], "native", &["--bridge=none", "--iptables=false"], configuration)
    }

    /// Starts one with the command prefix `before`, this storage driver, these options, and this
    /// configuration in place of the machine's.
    fn start_with(before: &[&str], driver: &str, options: &[&str], configuration: &str) -> Self {
        let directory = TempDir::new().expect("create a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let socket = path("docker.sock");
        let driver = format!("--storage-driver={driver}");
        let words = before.iter().copied().chain(["dockerd", &*driver]).chain(options.iter().copied());
        let mut command: Vec<PathBuf> = words.map(PathBuf::from).collect();
        for (option, value) in [
            ("--data-root", "data"),
            ("--exec-root", "exec"),
            ("--pidfile", "pid"),
            ("--config-file", "daemon.json"),
        ] {
            command.extend([option.into(), path(value)]);
        }
        fs::write(path("daemon.json"), configuration).expect("write daemon.json");
        command.extend(["--host".into(), format!("unix://{}", socket.display()).into()]);
        let mut daemon = Daemon::spawn(command, &path("log"));
        daemon
            .wait_for(|log| log.contains("API listen on").then_some(()))
            .unwrap_or_else(|log| panic!("{log}"));
        Self { daemon, directory }
    }

    /// Returns a command for `program` in the network namespace of this daemon.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.daemon.pid())).arg("--").arg(program);
        command
    }

    /// Returns the value of `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.directory.path().join("docker.sock").display())
    }

    /// Returns the value of `CONTAINERD_ADDRESS`.
    pub fn containerd(&self) -> PathBuf {
        self.directory.path().join("exec/containerd/containerd.sock")
    }

    /// Returns the major version.
    pub fn version(&self) -> u32 {
        let version = self.run(["version", "--format", "{{.Server.Version}}"]);
        version.split('.').next().and_then(|number| number.parse().ok()).expect("a version of docker")
    }

    /// Runs `docker ARGS` with this daemon.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let host = self.host();
        let config = self.directory.path().join("client");
        stdout_of(Command::new("docker").arg("--config").arg(config).args(["--host", &host]).args(args))
    }

    /// Pulls `REFERENCE` for this machine's platform (docker allows plain HTTP on loopback). Returns the
    /// image's ID: the digest of its config.
    pub fn pull(&self, reference: &str) -> String {
        self.run(["pull", "--quiet", reference]);
        self.run(["image", "inspect", "--format", "{{.Id}}", reference]).trim().to_owned()
    }

    /// Runs `ctr ARGS` with this daemon's containerd, which Kubernetes nodes pull with.
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        stdout_of(
            Command::new("ctr")
                .arg("--address")
                .arg(self.containerd())
                .args(["--namespace", "k8s.io"])
                .args(args),
        )
    }

    /// Pulls `REFERENCE` over plain HTTP with containerd for this machine's platform.
    pub fn ctr_pull(&self, reference: &str) {
        self.ctr(["images", "pull", "--plain-http", "--snapshotter", "native", reference]);
    }

    /// Returns the daemon's log so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}
