//! [`Flusher`]: brings what was written to the disk while more is written.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// How many bytes are written between two requests to bring them to the disk, so that the sync at the end
/// finds little left to do.
const FLUSH_STEP: u64 = 64 << 20;

/// A thread that syncs a file; see the module.
pub(crate) struct Flusher {
    unflushed: u64,
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Flusher {
    pub(crate) fn start(file: &File) -> Self {
        let (wake, woken) = channel();
        // Without a second handle everything is left to the sync at the end.
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

    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.unflushed += bytes;
        if self.unflushed >= FLUSH_STEP {
            self.unflushed = 0;
            if let Some(wake) = &self.wake {
                let _ = wake.send(()); // the thread has ended with an error, which `finish` returns
            }
        }
    }

    /// Nothing more is written. What is still to be brought to the disk is, and nobody waits for it.
    pub(crate) fn close(&mut self) {
        if let Some(wake) = self.wake.take() {
            let _ = wake.send(()); // as above
        }
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.wake = None;
        match self.thread.take() {
            Some(thread) => thread.join().expect("the flusher does not panic; please report"),
            None => Ok(()),
        }
    }
}
