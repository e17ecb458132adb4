//! [`Taker`]: hands finished volumes to a command, one after the other, while the next ones are written.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::bundle::write::volume_writer::FinishedVolume;

/// Why a volume was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// There is no shell.
    #[error("cannot run the command for `{}`", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// The command says no.
    #[error("the command for `{}` has failed ({status}): what it has taken is written again by the next run", path.display())]
    Failed {
        /// The volume.
        path: PathBuf,
        /// What the command ended with.
        status: ExitStatus,
    },
}

/// A command at work; see the module.
pub(crate) struct Taker {
    sender: Option<SyncSender<PathAndDigest>>,
    thread: Option<JoinHandle<Result<(), CommandError>>>,
}

type PathAndDigest = (PathBuf, String);

impl Taker {
    /// Takes volumes with `command`, a line for the shell whose `$1` is the path of the volume.
    pub(crate) fn start(command: String) -> Self {
        // No volume waits: so there are never more on the disk than the one that is taken and the one behind it.
        let (sender, receiver) = sync_channel::<PathAndDigest>(0);
        let thread = std::thread::spawn(move || {
            receiver.iter().try_for_each(|(path, digest)| run(&command, path, &digest))
        });
        Self { sender: Some(sender), thread: Some(thread) }
    }

    /// Hands a volume over, as soon as the one before it has been taken.
    pub(crate) fn take(&mut self, volume: &FinishedVolume) -> Result<(), CommandError> {
        self.send(volume.path.clone(), volume.digest.hex())
    }

    /// The same with another file that belongs to the bundle.
    pub(crate) fn take_file(&mut self, path: PathBuf) -> Result<(), CommandError> {
        self.send(path, String::new())
    }

    fn send(&mut self, path: PathBuf, digest: String) -> Result<(), CommandError> {
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send((path, digest)).is_ok());
        // It has ended because a command failed.
        if sent { Ok(()) } else { self.finish() }
    }

    /// Waits until all have been taken.
    pub(crate) fn finish(&mut self) -> Result<(), CommandError> {
        self.sender = None;
        match self.thread.take() {
            Some(thread) => thread.join().expect("running a command does not panic; please report"),
            None => Ok(()),
        }
    }
}

fn run(command: &str, path: PathBuf, digest: &str) -> Result<(), CommandError> {
    let status = Command::new("sh")
        .args(["-c", command, "airbundle"])
        .arg(&path)
        .env("AIRBUNDLE_VOLUME", &path)
        .env("AIRBUNDLE_VOLUME_SHA256", digest)
        .stdin(Stdio::null())
        // Stdout is for what `pack` says at its end.
        .stdout(io::stderr())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(CommandError::Failed { path, status }),
        Err(error) => Err(CommandError::Start(path, error)),
    }
}
