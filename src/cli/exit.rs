//! Exit codes: the one list, the same in the README.

use crate::bundle::index::IndexError;
use crate::bundle::reader::ReadError;
use crate::cli::chain;
use crate::image::error::ImageError;
use crate::unpack::UnpackError;

/// How a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// All is done.
    Success = 0,
    /// The command line is wrong (clap's code).
    Usage = 2,
    /// A list is wrong.
    List = 3,
    /// Something cannot be fetched.
    Fetch = 4,
    /// Something was fetched and is not what a list, manifest or registry says.
    Mismatch = 5,
    /// The file system here says no: not there, not writable, full.
    File = 6,
    /// The bundle is damaged.
    Damaged = 7,
    /// The input is no bundle, or one that this version does not read.
    NotABundle = 8,
    /// Another process is writing there.
    Busy = 9,
    /// There is not enough room; nothing was written.
    Space = 10,
    /// The site cannot be served: its certificate, an engine, a port.
    Serve = 11,
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

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::new(read_code(&error), chain(&error))
    }
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        let code = match &error {
            UnpackError::Read(error) => read_code(error),
            UnpackError::Damaged { .. } => Code::Damaged,
            UnpackError::Fs(_) => Code::File,
            UnpackError::Busy(_) => Code::Busy,
            UnpackError::Names(_) => Code::Usage,
            UnpackError::Space { .. } | UnpackError::Inodes { .. } => Code::Space,
        };
        Self::new(code, chain(&error))
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::Read(error) => read_code(error),
            ImageError::Damaged { .. } => Code::Damaged,
            ImageError::Fs(_) => Code::File,
            ImageError::Busy(_) => Code::Busy,
            ImageError::Names(_) | ImageError::Base(_) | ImageError::NoFiles => Code::Usage,
        };
        Self::new(code, chain(&error))
    }
}

fn read_code(error: &ReadError) -> Code {
    match error {
        ReadError::Fs(_) => Code::File,
        ReadError::Index(IndexError::Syntax(_))
        | ReadError::Damaged { .. }
        | ReadError::Unexpected { .. }
        | ReadError::Digest(_) => Code::Damaged,
        ReadError::NotABundle(_) | ReadError::Layout(_) | ReadError::Index(_) => Code::NotABundle,
    }
}
