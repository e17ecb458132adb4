//! [`ReadError`]: why a bundle cannot be read.

use crate::base::fs::FsError;
use crate::bundle::format::index::IndexError;
use crate::bundle::format::layout::LayoutError;
use crate::bundle::read::discover::DiscoverError;
use crate::bundle::read::problem::{DamageKind, FrameError, Position, VolumeProblem};
use crate::oci::digest::Digest;
use crate::signature::SignatureError;

/// Why a bundle cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// There is no bundle where it was looked for, or more than one.
    #[error(transparent)]
    Medium(#[from] DiscoverError),
    /// Volumes are missing.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Incomplete(Vec<VolumeProblem>),
    /// The input is something else.
    #[error("this is no airbundle bundle: {0}")]
    NotABundle(String),
    /// A frame is damaged or missing.
    #[error("`{object}` cannot be read{}", whereabouts(place, source))]
    Damaged {
        /// The entry that was being read.
        object: String,
        /// Where the frame begins.
        place: Box<Position>,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// An entry that the documents of the bundle do not ask for.
    #[error(
        "where `{expected}` belongs, the archive has {found}: it is damaged, or not written by airbundle"
    )]
    Unexpected {
        /// The name of the entry that should be there.
        expected: String,
        /// What is there, described for a person.
        found: String,
    },
    /// A blob with other bytes than its name says.
    #[error("`{0}` is damaged: its bytes do not have this digest")]
    Digest(Digest),
    /// An `index.json` that is refused.
    #[error("`index.json` is refused")]
    Index(#[from] IndexError),
    /// Manifests that are refused.
    #[error("the bundle is refused")]
    Layout(#[from] LayoutError),
    /// Nobody has signed it who is trusted.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl ReadError {
    /// What kind of trouble it is, of a bundle whose documents have been read.
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

/// Why something that the bundle should have cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unavailable {
    /// What kind of trouble it is.
    pub trouble: DamageKind,
    /// What is wrong, for a person.
    pub problem: String,
}

impl From<&ReadError> for Unavailable {
    fn from(error: &ReadError) -> Self {
        let mut problem = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let message = error.to_string();
            if !problem.ends_with(&message) {
                problem = format!("{problem}: {message}");
            }
            cause = error.source();
        }
        Self { trouble: error.trouble(), problem }
    }
}

/// Where damage is, for an error that says then what it is. What is missing is named there.
pub(crate) fn whereabouts(place: &Position, source: &FrameError) -> String {
    match source {
        FrameError::Absent(_) => String::new(),
        _ if place.volume.is_some() => format!(": damage at {place}"),
        _ => format!(": damage at {place} of the bundle"),
    }
}

pub(crate) fn unexpected(expected: &str, found: String) -> ReadError {
    ReadError::Unexpected { expected: expected.to_owned(), found }
}

/// What is wrong with the very first entry is most likely that this is no bundle at all.
pub(crate) fn first_failure(error: ReadError) -> ReadError {
    match error {
        ReadError::Damaged { place, source: FrameError::Magic, .. } if place.offset == 0 => {
            ReadError::NotABundle("it does not begin with a zstd frame".into())
        }
        ReadError::Damaged { source: FrameError::End, .. } => ReadError::NotABundle("it is empty".into()),
        ReadError::Damaged { place, source: FrameError::Unsupported(why), .. } if place.offset == 0 => {
            ReadError::NotABundle(format!("it begins with a zstd frame {why}"))
        }
        ReadError::Unexpected { found, .. } => ReadError::NotABundle(format!("its first entry is {found}")),
        other => other,
    }
}

/// Says what a tar header holds, for an error: nothing of it is ever used.
pub(crate) fn describe(header: &[u8]) -> String {
    let tar = tar::Header::from_byte_slice(header);
    if header.iter().all(|byte| *byte == 0) {
        return "its end".into();
    }
    if tar.as_ustar().is_none() && tar.as_gnu().is_none() {
        return "no tar header".into();
    }
    let name: String = String::from_utf8_lossy(&tar.path_bytes()).escape_debug().take(200).collect();
    match tar.entry_type() {
        kind if kind.is_file() => format!("the file `{name}` of {} bytes", tar.entry_size().unwrap_or(0)),
        kind if kind.is_symlink() => format!("the symlink `{name}`"),
        kind if kind.is_hard_link() => format!("the hard link `{name}`"),
        kind if kind.is_dir() => format!("the directory `{name}`"),
        kind if kind.is_fifo() => format!("the FIFO `{name}`"),
        kind if kind.is_character_special() || kind.is_block_special() => format!("the device `{name}`"),
        kind if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() => "a PAX header".into(),
        kind if kind.is_gnu_longname() || kind.is_gnu_longlink() => "a GNU long name".into(),
        kind => format!("an entry `{name}` of type {:?}", char::from(kind.as_byte())),
    }
}
