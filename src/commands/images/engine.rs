//! [`Engine`]: docker, podman and containerd, driven through their command-line clients.
//!
//! The clients know where their daemons listen.

use std::io::{self, Read};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::thread;

use crate::base::child;
use crate::base::ownership::ForeignFile;
use crate::commands::images::archive::{Archive, Consumer};
use crate::commands::images::blobs::{Blobs, CopyError};
use crate::commands::images::site_image::{SiteImage, SiteImageError};
use crate::oci::platform::Platform;

/// Maximum number of bytes kept of a client's stdout or stderr; the end is kept.
const OUTPUT_LIMIT: usize = 2 << 10;

/// A container engine of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Engine {
    Docker,
    Podman,
    Containerd {
        /// The containerd namespace of the images; Kubernetes uses `k8s.io`.
        namespace: String,
    },
}

/// An engine that responded.
#[derive(Debug)]
pub(crate) struct ConnectedEngine {
    engine: Engine,
    consumer: Consumer,
}

/// The reason why an engine does not have an image.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The client is not installed.
    #[error(
        "cannot run `{0}`: command not found in PATH: install it, or choose another engine with `--load` \
         (docker, podman, containerd)"
    )]
    Missing(&'static str),
    /// Another user could have changed the client, which root would run.
    #[error("cannot run `{0}` as root")]
    Foreign(&'static str, #[source] ForeignFile),
    /// The client cannot be started.
    #[error("cannot run `{0}`")]
    Start(&'static str, #[source] io::Error),
    /// The daemon does not respond.
    #[error(
        "{engine} does not respond: start it, or run this command as a user with access to it \
         (`{client}`: {stderr})"
    )]
    NoResponse { engine: &'static str, client: &'static str, stderr: String },
    /// The client failed to load an image.
    #[error("{engine} cannot load `{image}`{hint} (`{client}`: {status}: {stderr})")]
    Refused {
        engine: &'static str,
        client: &'static str,
        image: String,
        status: ExitStatus,
        stderr: String,
        /// The probable cause; can be empty.
        hint: &'static str,
    },
    /// The image is corrupt; the engine did not load it.
    #[error(transparent)]
    Image(#[from] SiteImageError),
}

impl Engine {
    /// Returns the name of the engine in messages.
    #[must_use]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd { .. } => "containerd",
        }
    }

    /// Checks that the client is installed and its daemon responds.
    pub(crate) fn connect(&self) -> Result<ConnectedEngine, EngineError> {
        let mut command = self.command()?;
        let command = match self {
            // Prints the image store, and only if the daemon responds.
            Self::Docker => command.args(["info", "--format", "{{.ServerVersion}} {{.DriverStatus}}"]),
            Self::Podman => command.args(["version", "--format", "{{.Client.Version}}"]),
            Self::Containerd { .. } => command.arg("version"),
        };
        let Output { status, stdout, stderr } =
            run(command, drop).map_err(|error| self.start_error(error))?;
        // Docker 24 to 26 exit with 0 even without a daemon; the server version is then empty.
        if !status.success() || stdout.starts_with(char::is_whitespace) {
            return Err(EngineError::NoResponse { engine: self.name(), client: self.client(), stderr });
        }
        let consumer = match self {
            Self::Docker => {
                Consumer::Docker { containerd_store: stdout.contains("io.containerd.snapshotter") }
            }
            Self::Podman => Consumer::Podman,
            Self::Containerd { .. } => Consumer::Containerd,
        };
        Ok(ConnectedEngine { engine: self.clone(), consumer })
    }

    fn client(&self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd { .. } => "ctr",
        }
    }

    fn command(&self) -> Result<Command, EngineError> {
        let client = self.client();
        let mut command = child::command(client).map_err(|error| EngineError::Foreign(client, error))?;
        if let Self::Containerd { namespace } = self {
            command.args(["--connect-timeout", "5s", "--namespace", namespace]);
        }
        Ok(command)
    }

    fn start_error(&self, error: io::Error) -> EngineError {
        match error.kind() {
            io::ErrorKind::NotFound => EngineError::Missing(self.client()),
            _ => EngineError::Start(self.client(), error),
        }
    }
}

impl ConnectedEngine {
    /// Returns the kind of archive that the engine accepts.
    #[must_use]
    pub(crate) fn consumer(&self) -> Consumer {
        self.consumer
    }

    /// True if the engine has the complete image under the names in the archive. False if that cannot be
    /// determined cheaply.
    #[must_use]
    pub(crate) fn has(&self, image: &SiteImage, archive: &Archive) -> bool {
        let Some(name) = archive.names.first() else { return false };
        let (config, root) = (image.config.digest.to_string(), archive.digest.to_string());
        let Ok(mut command) = self.engine.command() else { return false };
        match self.engine {
            // The containerd image store can have the index without the image. Its ID is that of the manifest.
            Engine::Docker => {
                let has_manifests = self.consumer == (Consumer::Docker { containerd_store: true });
                if has_manifests && archive.has_index {
                    return false;
                }
                let expected = if has_manifests { &root } else { &config };
                stdout_of(command.args(["image", "inspect", "--format", "{{.Id}}", name]))
                    .is_some_and(|id| id.trim() == expected)
            }
            Engine::Podman => {
                let format = "sha256:{{.Id}} {{.RepoDigests}}";
                stdout_of(command.args(["image", "inspect", "--format", format, name]))
                    .is_some_and(|text| text.starts_with(&config) && text.contains(&root))
            }
            Engine::Containerd { .. } => {
                let filters = archive.names.iter().map(|name| format!("name==\"{name}\""));
                stdout_of(command.args(["images", "check"]).args(filters)).is_some_and(|table| {
                    let is_complete =
                        |name: &String| table.lines().any(|line| is_complete_row(line, name, &root));
                    archive.names.iter().all(is_complete)
                })
            }
        }
    }

    /// Loads the archive of `image`, and passes the size of each write to `progress`.
    pub(crate) fn load(
        &self,
        image: &SiteImage,
        archive: &Archive,
        blobs: &Blobs<'_>,
        progress: &dyn Fn(u64),
    ) -> Result<(), EngineError> {
        let mut command = self.engine.command()?;
        match self.engine {
            Engine::Docker | Engine::Podman => command.args(["load", "--quiet"]),
            Engine::Containerd { .. } => {
                command.args(["images", "import"]);
                // By default, ctr also requires compatible platforms, such as linux/386.
                if archive.has_index {
                    command.args(["--platform", &Platform::host().to_string()]);
                }
                command.arg("-")
            }
        };
        let mut written = Ok(());
        let output = run(&mut command, |mut stdin| written = archive.write(blobs, &mut stdin, progress));
        let Output { status, stderr, .. } = output.map_err(|error| self.engine.start_error(error))?;
        let reference = image.reference.to_string();
        match written {
            Err(CopyError::Blob(source)) => Err(SiteImageError::Blob { reference, source }.into()),
            Ok(()) if status.success() => Ok(()),
            // If a write failed, the client stopped reading early: a failure whatever its exit status.
            Ok(()) | Err(CopyError::Output(_)) => Err(EngineError::Refused {
                engine: self.engine.name(),
                client: self.engine.client(),
                image: reference,
                status,
                stderr,
                hint: match self.engine {
                    Engine::Docker if image.has_zstd() => ": its zstd layers require Docker 23 or later",
                    _ => "",
                },
            }),
        }
    }
}

/// Returns the stdout of a client that succeeded.
fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// True if `line` of `ctr images check` shows the image `name` with the digest `root`, complete and unpacked.
/// The columns are REF, TYPE, DIGEST, STATUS, SIZE, UNPACKED.
fn is_complete_row(line: &str, name: &str, root: &str) -> bool {
    let mut columns = line.split_whitespace();
    columns.next() == Some(name)
        && columns.nth(1) == Some(root)
        && columns.next() == Some("complete")
        && columns.next_back() == Some("true")
}

/// The result of a client.
struct Output {
    status: ExitStatus,
    stdout: String,
    /// One line, without warnings.
    stderr: String,
}

/// Runs a client to its end. `feed` writes its stdin, and must close it.
fn run(command: &mut Command, feed: impl FnOnce(ChildStdin)) -> io::Result<Output> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn()?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all three are pipes; please report")
    };
    thread::scope(|scope| {
        // While the client reads stdin, it can write more than a pipe buffers.
        let (stdout, stderr) = (scope.spawn(|| tail(stdout)), scope.spawn(|| tail(stderr)));
        feed(stdin);
        let status = child.wait()?;
        let text = |reader: thread::ScopedJoinHandle<String>| reader.join().expect("reading does not panic");
        Ok(Output { status, stdout: text(stdout), stderr: one_line(&text(stderr)) })
    })
}

/// Reads to the end, and returns the last [`OUTPUT_LIMIT`] bytes.
fn tail(mut reader: impl Read) -> String {
    let (mut end, mut chunk) = (Vec::new(), [0; 4 << 10]);
    while let Ok(len @ 1..) = reader.read(&mut chunk) {
        end.extend_from_slice(&chunk[..len]);
        end.drain(..end.len().saturating_sub(OUTPUT_LIMIT));
    }
    String::from_utf8_lossy(&end).into_owned()
}

/// Joins lines, without empty lines and warnings.
fn one_line(text: &str) -> String {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("level=warning"));
    lines.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_clients_stderr_is_kept_on_one_line() {
        let script = "yes chatter | head -n 20000; yes chatter | head -n 20000 >&2; \
            echo 'time=x level=warning msg=old' >&2; echo 'Error: no' >&2; echo ' * why' >&2; exit 3";
        let output = run(child::shell().args(["-c", script]), drop).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(output.stderr.ends_with("chatter; Error: no; * why"), "{}", output.stderr);
        assert!(output.stderr.len() < 2 * OUTPUT_LIMIT);
    }
}
