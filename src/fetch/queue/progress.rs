//! [`Progress`]: the state of one task.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha512};

use crate::bundle::write::partial::BlobPrefix;
use crate::fetch::queue::task::Task;
use crate::fetch::source::Source;
use crate::oci::digest::{Digest, Hasher};

/// Number of new bytes after which the count of attempts restarts. A server that sends one byte per connection
/// makes no progress.
pub(crate) const PROGRESS: u64 = 64 << 10;

/// The state of one task. Offsets and sizes are in bytes.
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub(crate) struct Progress {
    /// Size of the blob. `None`: unknown.
    pub size: Option<u64>,
    /// True if the blob is fetched by range requests, else as a stream from its beginning.
    pub ranges: bool,
    /// Number of restarts. Pieces of earlier generations are dropped.
    pub generation: u32,
    /// End of the ranges that were assigned to workers.
    pub assigned: u64,
    /// True while a worker reads the blob as a stream.
    pub streaming: bool,
    /// Pieces that arrived and were not consumed, by offset.
    pub arrived: BTreeMap<u64, Arc<Vec<u8>>>,
    /// End of the bytes that were hashed.
    pub hashed: u64,
    /// End of the bytes that were consumed.
    pub consumed: u64,
    /// `None` while a worker hashes.
    pub hashes: Option<Hashes>,
    with_sha512: bool,
    /// True if the consumer has to drop the bytes that it consumed.
    pub restart: bool,
    /// Number of mismatches at the last endpoint.
    pub mismatches: u32,
    /// Index of the current endpoint.
    pub endpoint: usize,
    /// Index of the endpoint at the last restart.
    pub start_endpoint: usize,
    /// Failures of earlier endpoints.
    pub failures: Vec<String>,
    /// Furthest position of a stream.
    pub furthest: u64,
    /// Number of streams that broke without getting much further.
    pub breaks: u32,
    /// The furthest position when `breaks` was reset.
    reset_at: u64,
    /// Digest of the complete blob.
    pub outcome: Option<Digest>,
    /// Bytes of the window that the task uses.
    pub used: u64,
    /// True if the begin of the task was reported.
    pub announced: bool,
}

/// The hashes of the bytes from the beginning.
#[derive(Clone)]
pub(crate) struct Hashes {
    pub sha256: Hasher,
    /// `None`: no sha512 is expected.
    pub sha512: Option<Sha512>,
}

impl Hashes {
    fn new(with_sha512: bool) -> Self {
        Self { sha256: Hasher::new(), sha512: with_sha512.then(Sha512::new) }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }
}

impl Progress {
    pub(crate) fn new(task: &Task) -> Self {
        let (size, ranges) = match &task.source {
            Source::Registry { .. } => (task.size, true),
            // Without a digest and an entity tag, ranges could be of two versions.
            Source::Web(file) => {
                let is_one_version = file.etag.is_some() || task.is_pinned();
                (task.size, file.ranges && is_one_version)
            }
        };
        let with_sha512 = task.sha512.is_some();
        // A blob without ranges and without a digest, or with a smaller size than before, cannot be resumed.
        let is_resumable = |begun: &&BlobPrefix| {
            (ranges || task.is_pinned()) && size.is_none_or(|size| begun.sha256.len() <= size)
        };
        let begun = task.begun.as_ref().filter(is_resumable);
        let hashes = match begun {
            Some(BlobPrefix { sha256, sha512 }) => Hashes { sha256: sha256.clone(), sha512: sha512.clone() },
            None => Hashes::new(with_sha512),
        };
        let resumed = hashes.sha256.len();
        Self {
            size,
            ranges,
            generation: 0,
            assigned: resumed,
            streaming: false,
            arrived: BTreeMap::new(),
            hashed: resumed,
            consumed: resumed,
            hashes: Some(hashes),
            with_sha512,
            restart: begun.is_none() && task.begun.is_some(),
            mismatches: 0,
            endpoint: 0,
            start_endpoint: 0,
            failures: Vec::new(),
            furthest: 0,
            breaks: 0,
            reset_at: 0,
            outcome: None,
            used: 0,
            announced: false,
        }
    }

    /// Returns the first offset that is neither assigned nor available from an earlier run.
    pub(crate) fn next_gap(&self) -> u64 {
        let mut end = self.assigned.max(self.hashed);
        while let Some(piece) = self.arrived.get(&end) {
            end += piece.len() as u64;
        }
        end
    }

    /// Removes the pieces that do not fit together: those that overlap, from runs that divided the blob
    /// differently, and those beyond its size.
    pub(crate) fn retain_fitting(&self, pieces: &mut BTreeMap<u64, Arc<Vec<u8>>>) {
        let mut end = self.hashed;
        pieces.retain(|offset, piece| {
            let piece_end = offset + piece.len() as u64;
            let fits = *offset >= end && !piece.is_empty() && self.size.is_none_or(|size| piece_end <= size);
            end = if fits { piece_end } else { end };
            fits
        });
    }

    /// Moves to the next endpoint, unless another worker has left `from` already. Returns true if it moved.
    pub(crate) fn leave_endpoint(&mut self, from: usize, reason: String) -> bool {
        if self.endpoint != from {
            return false;
        }
        self.endpoint += 1;
        self.failures.push(reason);
        (self.furthest, self.breaks, self.reset_at) = (0, 0, 0);
        true
    }

    /// Records the position of a stream. Returns how much further it is than all streams of the blob before.
    pub(crate) fn record_position(&mut self, position: u64) -> u64 {
        let further = position.saturating_sub(self.furthest);
        self.furthest += further;
        if self.furthest >= self.reset_at + PROGRESS {
            (self.breaks, self.reset_at) = (0, self.furthest);
        }
        further
    }

    /// Forgets the size that the server stated before the transfer.
    pub(crate) fn forget_size(&mut self) {
        (self.size, self.ranges) = (None, false);
    }

    /// Drops all bytes. The caller releases them in the window.
    pub(crate) fn restart(&mut self) {
        self.generation += 1;
        self.start_endpoint = self.endpoint;
        self.restart |= self.consumed > 0;
        self.arrived.clear();
        (self.assigned, self.hashed, self.consumed) = (0, 0, 0);
        self.streaming = false;
        self.announced = false;
        self.hashes = Some(Hashes::new(self.with_sha512));
    }

    /// Drops the bytes that were not hashed. Returns how many bytes of the window the caller has to release.
    pub(crate) fn drop_unhashed(&mut self) -> u64 {
        self.generation += 1;
        self.streaming = false;
        let hashed = self.hashed;
        self.arrived.retain(|offset, _| *offset < hashed);
        let kept = self.arrived.values().map(|piece| piece.len() as u64).sum::<u64>();
        self.used - kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::web::RemoteFile;

    #[test]
    fn only_many_new_bytes_reset_the_count_of_broken_streams() {
        let file = RemoteFile {
            endpoints: Vec::new(),
            size: None,
            ranges: false,
            etag: None,
            modified: None,
            content: None,
            check: None,
        };
        let mut progress = Progress::new(&Task {
            object: String::new(),
            digest: None,
            sha512: None,
            size: None,
            source: Source::Web(file),
            alternatives: Vec::new(),
            begun: None,
            key: None,
        });
        for position in 1..100 {
            progress.breaks += 1;
            assert_eq!(progress.record_position(position), 1);
        }
        assert_eq!((progress.record_position(50), progress.breaks), (0, 99));
        assert_eq!((progress.record_position(PROGRESS), progress.breaks), (PROGRESS - 99, 0));
    }
}
