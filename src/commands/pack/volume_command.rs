//! [`VolumeCommand`]: runs the `--on-volume` command for finished volumes while the next ones are written.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::base::child;
use crate::bundle::write::volume_writer::FinishedVolume;

/// An error of the `--on-volume` command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The shell cannot be started.
    #[error("cannot run the `--on-volume` command for `{}`", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// The command failed.
    #[error("the `--on-volume` command failed for `{}` ({status}): the next run writes the volumes again", path.display())]
    Failed {
        /// The volume.
        path: PathBuf,
        /// The exit status of the command.
        status: ExitStatus,
    },
}

/// A thread that runs the command for one volume at a time.
pub(crate) struct VolumeCommand {
    sender: Option<SyncSender<PathAndDigest>>,
    thread: Option<JoinHandle<Result<(), CommandError>>>,
}

type PathAndDigest = (PathBuf, String);

impl VolumeCommand {
    /// Starts the thread. `command` is run by the shell; its `$1` is the path of the volume.
    pub(crate) fn start(command: String) -> Self {
        // Without a buffer, at most two volumes are on the disk: that of the running command and the next
        // one.
        let (sender, receiver) = sync_channel::<PathAndDigest>(0);
        let thread = std::thread::spawn(move || {
            receiver.iter().try_for_each(|(path, digest)| run(&command, path, &digest))
        });
        Self { sender: Some(sender), thread: Some(thread) }
    }

    /// Runs the command for a volume as soon as the previous one is done; returns an error of an earlier run.
    pub(crate) fn run_for_volume(&mut self, volume: &FinishedVolume) -> Result<(), CommandError> {
        self.send(volume.path.clone(), volume.digest.hex())
    }

    /// Runs the command for another file of the bundle, without a digest.
    pub(crate) fn run_for_file(&mut self, path: PathBuf) -> Result<(), CommandError> {
        self.send(path, String::new())
    }

    fn send(&mut self, path: PathBuf, digest: String) -> Result<(), CommandError> {
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send((path, digest)).is_ok());
        // The thread hangs up only if a command failed.
        if sent { Ok(()) } else { self.finish() }
    }

    /// Waits until the command has run for all volumes.
    pub(crate) fn finish(&mut self) -> Result<(), CommandError> {
        self.sender = None;
        match self.thread.take() {
            Some(thread) => thread.join().expect("running a command does not panic; please report"),
            None => Ok(()),
        }
    }
}

fn run(command: &str, path: PathBuf, digest: &str) -> Result<(), CommandError> {
    let status = child::shell()
        .args(["-c", command, "airbundle"])
        .arg(&path)
        .env("AIRBUNDLE_VOLUME", &path)
        .env("AIRBUNDLE_VOLUME_SHA256", digest)
        .stdin(Stdio::null())
        // Stdout is reserved for the summary of `pack`.
        .stdout(io::stderr())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(CommandError::Failed { path, status }),
        Err(error) => Err(CommandError::Start(path, error)),
    }
}
