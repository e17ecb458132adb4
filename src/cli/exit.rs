//! Exit codes: the one list, the same in the README.

use crate::base::error_chain::chain;
use crate::base::units::human_bytes;
use crate::bundle::format::index::IndexError;
use crate::bundle::read::discover::DiscoverError;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::problem::DamageKind;
use crate::commands::cat::CatError;
use crate::commands::image::error::ImageError;
use crate::commands::images::LoadError;
use crate::commands::images::engine::EngineError;
use crate::commands::images::site_image::{BlobError, SiteImageError};
use crate::commands::prune::error::PruneError;
use crate::commands::unpack::error::{MissingBlob, UnpackError};
use crate::documents::lock::LockError;
use crate::signature::SignatureError;
use crate::site::record::RecordError;

#[cfg(feature = "net")]
use crate::commands::lists::KubesprayError;

/// How many blobs that a site lacks are told to a person, …
const LACKING: usize = 20;
/// … and how many of those who need one.
const LACKING_OWNERS: usize = 5;

/// How a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// All is done.
    Success = 0,
    /// The command line is wrong (clap's code).
    Usage = 2,
    /// A list is wrong, or what it is made from.
    List = 3,
    /// Something cannot be fetched.
    Fetch = 4,
    /// Something was fetched and is not what a list, manifest or registry says.
    Mismatch = 5,
    /// The file system here says no: not there, not writable, full.
    File = 6,
    /// The bundle is damaged, or the site is.
    Damaged = 7,
    /// The input is no bundle, or one that this version does not read.
    NotABundle = 8,
    /// Another process is writing there.
    Busy = 9,
    /// There is not enough room; nothing was written.
    Space = 10,
    /// A container engine is missing, does not answer, or has not taken an image.
    Engine = 11,
    /// The site cannot be served: its certificate, a server that does not start.
    Serve = 12,
    /// What was locked is no longer what its names mean upstream.
    Moved = 13,
    /// The bundle is not signed, and has to be.
    Unsigned = 14,
    /// The bundle is signed by somebody who is not trusted, or its signature is wrong.
    Signer = 15,
    /// Something is not there that belongs to the bundle: a volume, its end, or what a site should have had.
    Incomplete = 16,
    /// The medium gives errors when the bundle is read.
    Unreadable = 17,
    /// A command that was to be run on the way has failed.
    Command = 18,
}

/// Why a program ends with another code than success.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub code: Code,
    /// What is told, one line each.
    pub messages: Vec<String>,
}

impl Failure {
    /// A failure with one message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, messages: vec![message.into()] }
    }
}

#[cfg(feature = "net")]
impl From<KubesprayError> for Failure {
    fn from(error: KubesprayError) -> Self {
        let code = if matches!(error, KubesprayError::Fs(_)) { Code::File } else { Code::List };
        let messages = match error {
            KubesprayError::Eval { errors, unpinned } => {
                let hint = "for a file without checksum: set a version that has one, or the variable of its checksum, \
                            or take it as it comes with --allow-unpinned";
                let hint = unpinned.then(|| hint.to_owned());
                errors.iter().map(ToString::to_string).chain(hint).collect()
            }
            KubesprayError::Entries(entries) => entries,
            error => vec![chain(&error)],
        };
        Self { code, messages }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::new(read_code(&error), chain(&error))
    }
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        let code = match &error {
            UnpackError::Read(error) => read_code(error),
            UnpackError::Damaged { source, .. } => source.trouble.into(),
            UnpackError::Changed(_) => Code::Damaged,
            UnpackError::Incomplete { .. } => Code::Incomplete,
            UnpackError::Fs(_) => Code::File,
            UnpackError::Busy(_) => Code::Busy,
            UnpackError::Names(_) | UnpackError::Select(_) => Code::Usage,
            UnpackError::Space { .. } | UnpackError::Inodes { .. } => Code::Space,
        };
        let mut failure = Self::new(code, chain(&error));
        if let UnpackError::Incomplete { missing, .. } = &error {
            failure.messages.extend(lacking(missing));
        }
        failure
    }
}

/// What a site lacks, a line each; the first few of many.
fn lacking(missing: &[MissingBlob]) -> Vec<String> {
    let line = |blob: &MissingBlob| {
        let state = if blob.damaged { "damaged" } else { "missing" };
        let mut owners: Vec<_> = blob.owners.iter().map(|owner| format!("`{owner}`")).collect();
        let more = owners.len().saturating_sub(LACKING_OWNERS);
        owners.truncate(LACKING_OWNERS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let size = human_bytes(blob.size);
        format!("{state}: {} ({size}), needed by {}{more}", blob.digest, owners.join(", "))
    };
    let mut lines: Vec<String> = missing.iter().take(LACKING).map(line).collect();
    if missing.len() > LACKING {
        lines.push(format!("and {} more: `--json` lists all of them", missing.len() - LACKING));
    }
    lines
}

impl From<PruneError> for Failure {
    fn from(error: PruneError) -> Self {
        let code = match error {
            PruneError::Record(error) => return error.into(),
            PruneError::Fs(_) | PruneError::Odd(_) => Code::File,
            PruneError::Busy(_) => Code::Busy,
            PruneError::Mismatch(_) => Code::Incomplete,
        };
        Self::new(code, chain(&error))
    }
}

impl From<CatError> for Failure {
    fn from(error: CatError) -> Self {
        let code = match &error {
            CatError::Nothing(_) => Code::Usage,
            CatError::Elsewhere(_) => Code::Incomplete,
            CatError::Read { source, .. } => damage_code(source),
            CatError::Fs(_) | CatError::Stream(_) => Code::File,
        };
        Self::new(code, chain(&error))
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        let code = match &error {
            RecordError::Fs(_) | RecordError::Missing(_) => Code::File,
            RecordError::Syntax(..) => Code::Damaged,
            RecordError::Version(..) => Code::NotABundle,
        };
        Self::new(code, chain(&error))
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::Read(error) => read_code(error),
            ImageError::Damaged { source, .. } => damage_code(source),
            ImageError::Delta { .. } => Code::Incomplete,
            ImageError::Fs(_) => Code::File,
            ImageError::Busy(_) => Code::Busy,
            ImageError::Names(_) | ImageError::Base(_) | ImageError::NoFiles => Code::Usage,
        };
        Self::new(code, chain(&error))
    }
}

impl From<Vec<LoadError>> for Failure {
    /// The first error gives the code.
    fn from(errors: Vec<LoadError>) -> Self {
        let image = |error: &SiteImageError| match error {
            SiteImageError::Blob { source: BlobError::Fs(_), .. } => Code::File,
            SiteImageError::Blob { .. } | SiteImageError::Manifest { .. } | SiteImageError::Reference(_) => {
                Code::Damaged
            }
            SiteImageError::Artifact { .. }
            | SiteImageError::Platform { .. }
            | SiteImageError::NoTag { .. } => Code::Usage,
        };
        let code = errors.first().map_or(Code::Success, |error| match error {
            LoadError::Image(error) | LoadError::Engine(EngineError::Damaged(error)) => image(error),
            LoadError::Engine(_) => Code::Engine,
            LoadError::Fs(_) | LoadError::Stdout(..) => Code::File,
            LoadError::OneFile(..) | LoadError::Nothing(_) => Code::Usage,
        });
        Self { code, messages: errors.iter().map(|error| chain(error)).collect() }
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let code = if matches!(error, LockError::Version(_)) { Code::NotABundle } else { Code::List };
        Self::new(code, chain(&error))
    }
}

impl From<DamageKind> for Code {
    fn from(trouble: DamageKind) -> Self {
        match trouble {
            DamageKind::Missing => Self::Incomplete,
            DamageKind::Damaged => Self::Damaged,
            DamageKind::Unreadable => Self::Unreadable,
        }
    }
}

/// What is wrong with a blob that cannot be read.
fn damage_code(error: &ReadError) -> Code {
    match read_code(error) {
        code @ (Code::Incomplete | Code::Unreadable) => code,
        _ => Code::Damaged,
    }
}

pub(super) fn read_code(error: &ReadError) -> Code {
    match error {
        ReadError::Fs(_) | ReadError::Discover(DiscoverError::Fs(_)) => Code::File,
        ReadError::Discover(DiscoverError::Several(_) | DiscoverError::NotAVolume(_)) => Code::Usage,
        ReadError::Incomplete(_) => Code::Incomplete,
        ReadError::Damaged { source, .. } => source.trouble().into(),
        ReadError::Index(IndexError::Syntax(_)) | ReadError::Unexpected { .. } | ReadError::Digest(_) => {
            Code::Damaged
        }
        ReadError::Signature(SignatureError::Unsigned) => Code::Unsigned,
        ReadError::Signature(_) => Code::Signer,
        ReadError::Discover(DiscoverError::Nothing(_))
        | ReadError::NotABundle(_)
        | ReadError::Layout(_)
        | ReadError::Index(_) => Code::NotABundle,
    }
}
