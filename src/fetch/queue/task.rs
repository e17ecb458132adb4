//! [`Task`]: a blob to fetch, and [`Next`]: the parts in which it is delivered.

use crate::bundle::write::partial::BlobPrefix;
use crate::bundle::write::spool::SpoolKey;
use crate::fetch::source::Source;
use crate::net::error::FetchError;
use crate::oci::digest::Digest;

/// A blob to fetch.
#[derive(Clone)]
pub(crate) struct Task {
    /// The list entry that needs the blob, for messages.
    pub object: String,
    /// Expected digest. `None`: unknown.
    pub digest: Option<Digest>,
    /// Expected sha512. `None`: unknown.
    pub sha512: Option<[u8; 64]>,
    /// Size in bytes. `None`: unknown.
    pub size: Option<u64>,
    /// The registry or web server.
    pub source: Source,
    /// Further sources of the same blob, which are tried in this order. Empty unless the digest is known.
    pub alternatives: Vec<Source>,
    /// The hash state of the bytes that an earlier run wrote.
    pub begun: Option<BlobPrefix>,
    /// Key of the blob's pieces in the spool: its digest, or, if no list pins it, a value that differs for
    /// other files and other versions. `None`: versions cannot be told apart, so nothing is spooled.
    pub key: Option<SpoolKey>,
}

/// A failed task, which ends the queue.
#[derive(Debug)]
pub(crate) struct FailedTask {
    /// Index of the task.
    pub task: usize,
    /// Why it failed.
    pub failure: FetchError,
}

/// The next part of a blob.
pub(crate) enum Next {
    /// The next bytes.
    Piece(Vec<u8>),
    /// The bytes so far are invalid; the blob restarts from its first byte.
    Restart,
    /// The blob is complete and verified, and has this digest and size.
    End(Digest, u64),
}

impl Task {
    /// True if the bytes can be verified.
    pub(crate) fn is_pinned(&self) -> bool {
        self.digest.is_some() || self.sha512.is_some()
    }
}
