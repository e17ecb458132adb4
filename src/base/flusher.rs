//! [`Flusher`]: a thread that syncs a file to disk while it is being written.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Bytes between two syncs. The final sync then has at most this much left to write.
const FLUSH_STEP: u64 = 64 << 20;

/// A thread that syncs a file every 64 MiB.
pub(crate) struct Flusher {
    unflushed: u64,
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Flusher {
    pub(crate) fn start(file: &File) -> Self {
        let (wake, woken) = channel();
        // If the handle cannot be duplicated, the final sync does all the work.
        let thread = file.try_clone().ok().map(|file| {
            std::thread::spawn(move || {
                while woken.recv().is_ok() {
                    while woken.try_recv().is_ok() {}
                    file.sync_data()?;
                }
                Ok(())
            })
        });
        Self { unflushed: 0, wake: Some(wake), thread }
    }

    /// Counts `bytes` as written, and starts a sync if enough have accumulated.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.unflushed += bytes;
        if self.unflushed >= FLUSH_STEP {
            self.unflushed = 0;
            if let Some(wake) = &self.wake {
                let _ = wake.send(()); // fails if the thread ended with an error, which `finish` returns
            }
        }
    }

    /// Starts the last sync without waiting for it.
    pub(crate) fn close(&mut self) {
        if let Some(wake) = self.wake.take() {
            let _ = wake.send(()); // as in `wrote`
        }
    }

    /// Waits for the thread and returns its error, if any.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.wake = None;
        match self.thread.take() {
            Some(thread) => thread.join().expect("the flusher does not panic; please report"),
            None => Ok(()),
        }
    }
}
