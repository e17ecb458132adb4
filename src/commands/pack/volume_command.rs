//! [`VolumeCommand`]: runs the `--on-volume` command for finished volumes while the next ones are written.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::base::child;
use crate::base::event::{Event, Report};
use crate::base::fs::FsError;
use crate::bundle::write::accepted::{Acceptance, AcceptedFile};
use crate::bundle::write::volume_writer::FinishedVolume;

/// An error of the `--on-volume` command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The shell cannot be started.
    #[error("cannot run the `--on-volume` command for `{}`", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// The command failed.
    #[error("the `--on-volume` command failed for `{}` ({status}): run the same command to resume", path.display())]
    Failed {
        /// The volume.
        path: PathBuf,
        /// The exit status of the command.
        status: ExitStatus,
    },
    /// It cannot be recorded that the command has accepted a volume.
    #[error(transparent)]
    Record(#[from] FsError),
}

/// A thread that runs the command for one volume at a time.
pub(crate) struct VolumeCommand {
    sender: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<Result<(), CommandError>>>,
}

/// A file to hand over.
enum Job {
    Volume(FinishedVolume),
    /// Another file of the bundle.
    File(PathBuf),
}

impl VolumeCommand {
    /// Starts the thread. `command` is run by the shell; its `$1` is the path of the volume. Volumes that it accepts are
    /// added to `accepted`.
    pub(crate) fn start(command: String, mut accepted: AcceptedFile) -> Self {
        // Without a buffer, at most two volumes are on the disk: that of the running command and the next
        // one.
        let (sender, receiver) = sync_channel::<Job>(0);
        let thread = std::thread::spawn(move || {
            receiver.iter().try_for_each(|job| run(&command, &job, &mut accepted))
        });
        Self { sender: Some(sender), thread: Some(thread) }
    }

    /// Runs the command for a volume as soon as the previous one is done; returns an error of an earlier call. If an
    /// earlier run of `pack` has handed over the same volume and the command has accepted it, does nothing.
    pub(crate) fn run_for_volume(
        &mut self,
        volume: &FinishedVolume,
        report: &dyn Report,
    ) -> Result<(), CommandError> {
        match volume.acceptance {
            Acceptance::Accepted => return Ok(()),
            Acceptance::Pending => {}
            Acceptance::Changed => {
                let message = format!(
                    "`{}` differs from the volume that the `--on-volume` command has accepted, because content has changed \
                     upstream: it is handed over again; discard the earlier one",
                    volume.path.display()
                );
                report.event(&Event::Warning { message });
            }
        }
        self.send(Job::Volume(volume.clone()))
    }

    /// Runs the command for another file of the bundle, without a digest.
    pub(crate) fn run_for_file(&mut self, path: PathBuf) -> Result<(), CommandError> {
        self.send(Job::File(path))
    }

    fn send(&mut self, job: Job) -> Result<(), CommandError> {
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send(job).is_ok());
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

fn run(command: &str, job: &Job, accepted: &mut AcceptedFile) -> Result<(), CommandError> {
    let (path, digest) = match job {
        Job::Volume(volume) => (volume.path.clone(), volume.digest.hex()),
        Job::File(path) => (path.clone(), String::new()),
    };
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
        Ok(status) if status.success() => match job {
            Job::Volume(volume) => Ok(accepted.add(volume.number, volume.size, volume.digest)?),
            Job::File(_) => Ok(()),
        },
        Ok(status) => Err(CommandError::Failed { path, status }),
        Err(error) => Err(CommandError::Start(path, error)),
    }
}
