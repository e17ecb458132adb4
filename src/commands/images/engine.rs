//! [`Engine`]: docker, podman and containerd, driven by their own clients, which know where their daemons are.

use std::io::{self, Read};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::thread;

use crate::commands::images::archive::{Archive, ArchiveError, Taker};
use crate::commands::images::site_image::{SiteImage, SiteImageError};
use crate::oci::platform::Platform;

/// How much of what a client says is kept: its end, in bytes.
const SAID: usize = 2 << 10;

/// A container engine of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// containerd; its images are in namespaces, those of Kubernetes in `k8s.io`.
    Containerd {
        /// The namespace.
        namespace: String,
    },
}

/// An engine that has answered.
#[derive(Debug)]
pub(crate) struct Ready {
    engine: Engine,
    /// What it takes.
    pub taker: Taker,
}

/// Why an engine does not have an image.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Its client is not there.
    #[error(
        "there is no `{0}` in PATH: install it, or choose with `--load` what this machine has \
         (docker, podman, containerd)"
    )]
    Missing(&'static str),
    /// Its client cannot be started.
    #[error("`{0}` cannot be started")]
    Start(&'static str, #[source] io::Error),
    /// It does not answer.
    #[error(
        "{engine} does not answer: start it, or run this as a user who may use it (`{client}` says: {said})"
    )]
    Silent {
        /// Its name.
        engine: &'static str,
        /// Its client.
        client: &'static str,
        /// What that says.
        said: String,
    },
    /// It has not taken an image.
    #[error("{engine} has not taken `{image}`{hint} (`{client}`: {status}: {said})")]
    Refused {
        /// Its name.
        engine: &'static str,
        /// Its client.
        client: &'static str,
        /// The image.
        image: String,
        /// How its client has ended.
        status: ExitStatus,
        /// What that has said.
        said: String,
        /// What may be the reason.
        hint: &'static str,
    },
    /// The image is damaged, and the engine has got nothing that it could have taken for one.
    #[error(transparent)]
    Damaged(#[from] SiteImageError),
}

impl Engine {
    /// What people call it.
    #[must_use]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd { .. } => "containerd",
        }
    }

    /// Asks whether it is there and answers.
    pub(crate) fn ready(self) -> Result<Ready, EngineError> {
        let mut command = self.command();
        let command = match self {
            // The store, and only if the daemon answers.
            Self::Docker => command.args(["info", "--format", "{{.ServerVersion}} {{.DriverStatus}}"]),
            Self::Podman => command.args(["version", "--format", "{{.Client.Version}}"]),
            Self::Containerd { .. } => command.arg("version"),
        };
        let Finished { status, out, said } = run(command, drop).map_err(|error| self.not_started(error))?;
        // Docker 24 to 26 call it a success that there is no daemon to tell its version.
        if !status.success() || out.starts_with(char::is_whitespace) {
            return Err(EngineError::Silent { engine: self.name(), client: self.client(), said });
        }
        let taker = match self {
            Self::Docker => Taker::Docker { keeps_digests: out.contains("io.containerd.snapshotter") },
            Self::Podman => Taker::Podman,
            Self::Containerd { .. } => Taker::Containerd,
        };
        Ok(Ready { engine: self, taker })
    }

    fn client(&self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd { .. } => "ctr",
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.client());
        if let Self::Containerd { namespace } = self {
            command.args(["--connect-timeout", "5s", "--namespace", namespace]);
        }
        command
    }

    fn not_started(&self, error: io::Error) -> EngineError {
        match error.kind() {
            io::ErrorKind::NotFound => EngineError::Missing(self.client()),
            _ => EngineError::Start(self.client(), error),
        }
    }
}

impl Ready {
    /// Whether the engine has all of the image already, by the names that the archive gives it. Where that is not
    /// cheap to know for sure, it has not.
    #[must_use]
    pub(crate) fn has(&self, image: &SiteImage, archive: &Archive) -> bool {
        let Some(name) = archive.names.first() else { return false };
        let mut command = self.engine.command();
        match self.engine {
            // The containerd image store can have an index and lack the image.
            Engine::Docker if self.taker != (Taker::Docker { keeps_digests: false }) => return false,
            Engine::Docker => command.args(["image", "inspect", "--format", "{{.Id}}", name]),
            Engine::Podman => {
                command.args(["image", "inspect", "--format", "sha256:{{.Id}} {{.RepoDigests}}", name])
            }
            Engine::Containerd { .. } => command
                .args(["images", "check"])
                .args(archive.names.iter().map(|name| format!("name==\"{name}\""))),
        };
        let said = command.stdin(Stdio::null()).output().ok().filter(|output| output.status.success());
        let Some(said) = said.and_then(|output| String::from_utf8(output.stdout).ok()) else { return false };
        match self.engine {
            Engine::Docker => said.trim() == image.config.digest.to_string(),
            Engine::Podman => {
                said.starts_with(&image.config.digest.to_string())
                    && said.contains(&archive.digest.to_string())
            }
            Engine::Containerd { .. } => archive.names.iter().all(|name| {
                said.lines().any(|line| {
                    let mut words = line.split_whitespace();
                    words.next() == Some(name)
                        && words.nth(1) == Some(&archive.digest.to_string())
                        && words.next() == Some("complete")
                        && words.next_back() == Some("true")
                })
            }),
        }
    }

    /// Hands the archive of `image` to the engine; `written` is told after each piece how many bytes it had.
    pub(crate) fn load(
        &self,
        image: &SiteImage,
        archive: &Archive,
        written: &dyn Fn(u64),
    ) -> Result<(), EngineError> {
        let mut command = self.engine.command();
        match self.engine {
            Engine::Docker | Engine::Podman => command.args(["load", "--quiet"]),
            Engine::Containerd { .. } => {
                command.args(["images", "import"]);
                // By default it wants what this machine can run as well, such as linux/386.
                if archive.has_index {
                    command.args(["--platform", &Platform::host().to_string()]);
                }
                command.arg("-")
            }
        };
        let mut handed = Ok(());
        let finished = run(&mut command, |mut stdin| handed = archive.write(&mut stdin, written));
        let Finished { status, said, .. } = finished.map_err(|error| self.engine.not_started(error))?;
        let reference = image.reference.to_string();
        match handed {
            Err(ArchiveError::Blob(source)) => Err(SiteImageError::Blob { reference, source }.into()),
            Ok(()) if status.success() => Ok(()),
            // Where writing has failed the engine has gone before it had all, whatever it calls that.
            Ok(()) | Err(ArchiveError::Output(_)) => Err(EngineError::Refused {
                engine: self.engine.name(),
                client: self.engine.client(),
                image: reference,
                status,
                said,
                hint: match self.engine {
                    Engine::Docker if image.has_zstd() => {
                        ", which has layers in zstd: Docker 23 is the first to know them"
                    }
                    _ => "",
                },
            }),
        }
    }
}

/// How a client has ended and what it has said.
struct Finished {
    status: ExitStatus,
    out: String,
    /// Its complaints, on one line.
    said: String,
}

/// Runs a client to its end. `feed` gets its stdin, which must be gone when it returns.
fn run(command: &mut Command, feed: impl FnOnce(ChildStdin)) -> io::Result<Finished> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn()?;
    let (Some(stdin), Some(out), Some(err)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all three are pipes; please report")
    };
    thread::scope(|scope| {
        // While it reads it may say more than a pipe holds.
        let (out, err) = (scope.spawn(|| tail(out)), scope.spawn(|| tail(err)));
        feed(stdin);
        let status = child.wait()?;
        let said = |reader: thread::ScopedJoinHandle<String>| reader.join().expect("reading does not panic");
        Ok(Finished { status, out: said(out), said: one_line(&said(err)) })
    })
}

/// The end of what there is to read.
fn tail(mut reader: impl Read) -> String {
    let (mut end, mut piece) = (Vec::new(), [0; 4 << 10]);
    while let Ok(len @ 1..) = reader.read(&mut piece) {
        end.extend_from_slice(&piece[..len]);
        end.drain(..end.len().saturating_sub(SAID));
    }
    String::from_utf8_lossy(&end).into_owned()
}

/// Lines of a complaint as one, without warnings of no matter.
fn one_line(text: &str) -> String {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("level=warning"));
    lines.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_client_says_the_end_is_kept_on_one_line() {
        let script = "yes chatter | head -n 20000; yes chatter | head -n 20000 >&2; \
            echo 'time=x level=warning msg=old' >&2; echo 'Error: no' >&2; echo ' * why' >&2; exit 3";
        let finished = run(Command::new("sh").args(["-c", script]), drop).unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert!(finished.said.ends_with("chatter; Error: no; * why"), "{}", finished.said);
        assert!(finished.said.len() < 2 * SAID);
    }
}
