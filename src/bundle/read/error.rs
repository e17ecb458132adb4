//! [`ReadError`]: an error of reading a bundle.

use tar::EntryType;

use crate::base::error_chain::chain;
use crate::base::fs::FsError;
use crate::bundle::format::index::IndexError;
use crate::bundle::format::layout::LayoutError;
use crate::bundle::format::release::Expiry;
use crate::bundle::read::discover_error::DiscoverError;
use crate::bundle::read::frame_error::FrameError;
use crate::bundle::read::problem::{DamageKind, Position, VolumeProblem};
use crate::oci::digest::Digest;
use crate::signature::policy::SignatureError;

/// An error of reading a bundle.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// No bundle, or more than one, was found.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// Volumes are missing.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Incomplete(Vec<VolumeProblem>),
    /// The input is not a bundle.
    #[error("not an airbundle bundle: {0}")]
    NotABundle(String),
    /// A frame is corrupt, unreadable or missing.
    #[error("cannot read `{object}`{}", location(position, source))]
    Damaged {
        /// Name of the entry.
        object: String,
        /// Start of the frame.
        position: Box<Position>,
        /// The error of the frame.
        #[source]
        source: FrameError,
    },
    /// An entry that does not follow from the documents of the bundle.
    #[error("expected `{expected}`, found {found}: the bundle is corrupt, or was not written by airbundle")]
    Unexpected {
        /// Name of the expected entry.
        expected: String,
        /// Description of the actual entry.
        found: String,
    },
    /// A blob whose content does not match its digest.
    #[error("digest mismatch: the content of `{0}` was changed")]
    Digest(Digest),
    /// An invalid `index.json`.
    #[error("invalid `index.json`")]
    Index(#[from] IndexError),
    /// Invalid manifests.
    #[error("invalid bundle")]
    Layout(#[from] LayoutError),
    /// The signature is missing, invalid or not trusted.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The expiry date is past.
    #[error("the bundle expired at {0}: nothing was used")]
    Expired(Expiry),
}

impl ReadError {
    /// Returns the kind of damage, for errors that occur after the documents were read.
    #[must_use]
    pub fn trouble(&self) -> DamageKind {
        match self {
            Self::Damaged { source, .. } => source.trouble(),
            Self::Incomplete(_) => DamageKind::Missing,
            Self::Fs(_) => DamageKind::Unreadable,
            _ => DamageKind::Damaged,
        }
    }
}

/// The loss of a blob, as a value that can be cloned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unavailable {
    /// Kind of damage.
    pub trouble: DamageKind,
    /// The error and its causes on one line.
    pub problem: String,
}

impl From<&ReadError> for Unavailable {
    fn from(error: &ReadError) -> Self {
        Self { trouble: error.trouble(), problem: chain(error) }
    }
}

/// Returns the position as part of a message. Empty for a missing volume, whose name is in `source`.
fn location(position: &Position, source: &FrameError) -> String {
    match source {
        FrameError::Absent(_) => String::new(),
        _ if position.volume.is_some() => format!(" at {position}"),
        _ => format!(" at {position} of the bundle"),
    }
}

pub(crate) fn unexpected(expected: &str, found: String) -> ReadError {
    ReadError::Unexpected { expected: expected.to_owned(), found }
}

/// Converts an error of reading the first entry: most likely, the input is not a bundle.
pub(crate) fn first_failure(error: ReadError) -> ReadError {
    let reason = match &error {
        ReadError::Damaged { source: FrameError::End, .. } => "it is empty".to_owned(),
        ReadError::Damaged { position, source, .. } if position.offset == 0 => match source {
            FrameError::Magic => "it does not begin with a zstd frame".to_owned(),
            FrameError::Unsupported(_) => source.to_string(),
            _ => return error,
        },
        ReadError::Unexpected { found, .. } => format!("its first entry is {found}"),
        _ => return error,
    };
    ReadError::NotABundle(reason)
}

/// Describes a tar header that is not the expected one, for an error message only.
pub(crate) fn describe_header(header: &[u8]) -> String {
    if header.iter().all(|byte| *byte == 0) {
        return "the end of the archive".into();
    }
    let header = tar::Header::from_byte_slice(header);
    if header.as_ustar().is_none() && header.as_gnu().is_none() {
        return "no tar header".into();
    }
    let name: String = String::from_utf8_lossy(&header.path_bytes()).escape_debug().take(200).collect();
    match header.entry_type() {
        EntryType::Regular => format!("the file `{name}` of {} bytes", header.entry_size().unwrap_or(0)),
        EntryType::Symlink => format!("the symlink `{name}`"),
        EntryType::Link => format!("the hard link `{name}`"),
        EntryType::Directory => format!("the directory `{name}`"),
        EntryType::Fifo => format!("the FIFO `{name}`"),
        EntryType::Char | EntryType::Block => format!("the device `{name}`"),
        EntryType::XHeader | EntryType::XGlobalHeader => "a PAX header".into(),
        EntryType::GNULongName | EntryType::GNULongLink => "a GNU long name".into(),
        other => format!("an entry `{name}` of type {:?}", char::from(other.as_byte())),
    }
}
