//! Exit codes, and [`Failure`]: the messages and the exit code of a verb that fails.

use std::error::Error;
use std::fmt;
use std::io;

use crate::base::error_chain::chain;
use crate::base::fs::{FsError, is_full};
use crate::bundle::format::index::IndexError;
use crate::bundle::read::discover_error::DiscoverError;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::problem::DamageKind;
use crate::cli::console::Text;
use crate::documents::lock::LockError;
use crate::signature::policy::SignatureError;
use crate::site::record::RecordError;
use crate::site::roots::RootsError;
use crate::site::signed_index::SignedIndexError;

/// The exit codes of both programs. `docs/cli.md` is generated from this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(clap::ValueEnum))]
#[repr(u8)]
pub enum Code {
    /// Success
    Success = 0,
    /// The command line is invalid, or the trusted keys of the host
    Usage = 2,
    /// A list or lock is invalid, or the checkout that lists are made from
    List = 3,
    /// Something cannot be fetched
    Fetch = 4,
    /// Fetched content does not match its list, manifest or registry
    Mismatch = 5,
    /// Local I/O error: not found, permission denied, disk full
    File = 6,
    /// The bundle or the site is corrupt
    Damaged = 7,
    /// The input is not a bundle, or its format version is not supported
    NotABundle = 8,
    /// Another process is writing to the output
    Busy = 9,
    /// Not enough disk space or inodes; nothing was written
    Space = 10,
    /// A container engine is missing, does not respond, or rejected an image
    Engine = 11,
    /// The site cannot be served: invalid certificate, or a server that does not start
    Serve = 12,
    /// Upstream content no longer matches the lock (`lock --check`)
    Moved = 13,
    /// The bundle is not signed, but trusted keys are configured
    Unsigned = 14,
    /// The bundle's signature is invalid, or its key is not trusted
    Signer = 15,
    /// The bundle or the site is incomplete: a volume, the end of the bundle, or the base of a delta is
    /// missing
    Incomplete = 16,
    /// The media returns read errors
    Unreadable = 17,
    /// The command of `--on-volume` failed
    Command = 18,
    /// The bundle is older than one of the same name on the site, or has expired
    Outdated = 19,
}

/// The exit code of a verb that fails, and what it prints to stderr.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    /// Error messages. Each is printed on a line of its own.
    pub messages: Vec<String>,
    /// Advice for the user, printed after the messages. `None`: no advice.
    pub hint: Option<String>,
}

impl Failure {
    /// Creates a failure with one message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, messages: vec![message.into()], hint: None }
    }

    /// Creates a failure from an error and its causes. A full disk has its own code, whatever failed because of it.
    pub(crate) fn of(code: Code, error: &(dyn Error + 'static)) -> Self {
        Self::new(Code::of_cause(error).unwrap_or(code), chain(error))
    }

    /// Creates a failure with one message for each of `errors`. As in [`Self::of`], the cause can determine the code.
    pub(crate) fn all<'a, E: Error + 'static>(code: Code, errors: impl IntoIterator<Item = &'a E>) -> Self {
        let (mut code, mut messages) = (code, Vec::new());
        for error in errors {
            code = Code::of_cause(error).unwrap_or(code);
            messages.push(chain(error));
        }
        Self { code, messages, hint: None }
    }

    /// Adds advice, unless there is some already.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Returns the messages and the hint.
    pub(crate) fn text(&self) -> Text {
        let mut text = Text::new();
        for message in &self.messages {
            text.line(format_args!("error: {message}"));
        }
        if let Some(hint) = &self.hint {
            text.line(format_args!("hint: {hint}"));
        }
        text
    }

    /// Puts `context` and a colon before each message.
    pub(crate) fn context(mut self, context: impl fmt::Display) -> Self {
        for message in &mut self.messages {
            *message = format!("{context}: {message}");
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text().fmt(f)
    }
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        Self::of(Code::of_fs(&error), &error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::of(Code::of_read(&error), &error)
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        Self::of(Code::of_lock(&error), &error)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        let failure = Self::of(Code::of_record(&error), &error);
        match error {
            RecordError::NoIndex(..) | RecordError::Index(..) | RecordError::Uncovered(..) => failure
                .with_hint("unpack the signed bundles of the site again: `unbundle unpack BUNDLE SITE`"),
            _ => failure,
        }
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

impl Code {
    /// Returns the code for a failed file call: that of unreadable media if it was to read.
    pub(crate) fn of_fs(error: &FsError) -> Self {
        if error.is_media_error() && error.is_read() { Self::Unreadable } else { Self::File }
    }

    /// Returns the code for a cause of an error. `None`: the error itself determines the code.
    fn of_cause(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(cause) = next {
            // `source` of an `io::Error` skips the error that it contains.
            let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let has_full = |error: &(dyn Error + Send + Sync + 'static)| Self::of_cause(error).is_some();
            if cause.downcast_ref::<io::Error>().is_some_and(is_full)
                || cause.downcast_ref::<FsError>().is_some_and(FsError::is_full)
                || inner.is_some_and(has_full)
            {
                return Some(Self::File);
            }
            next = cause.source();
        }
        None
    }

    /// Returns the code for a bundle that cannot be read.
    pub(crate) fn of_read(error: &ReadError) -> Self {
        match error {
            ReadError::Fs(error) | ReadError::Discover(DiscoverError::Fs(error)) => {
                if error.is_media_error() { Self::Unreadable } else { Self::File }
            }
            ReadError::Discover(DiscoverError::Several(_) | DiscoverError::NotAVolume(_)) => Self::Usage,
            ReadError::Discover(DiscoverError::Incomplete(_)) | ReadError::Incomplete(_) => Self::Incomplete,
            ReadError::Damaged { source, .. } => source.trouble().into(),
            ReadError::Index(IndexError::Syntax(_)) | ReadError::Unexpected { .. } | ReadError::Digest(_) => {
                Self::Damaged
            }
            ReadError::Signature(error) => Self::of_signature(error),
            ReadError::Expired(_) => Self::Outdated,
            ReadError::Discover(DiscoverError::Nothing(_))
            | ReadError::NotABundle(_)
            | ReadError::Layout(_)
            | ReadError::Index(_) => Self::NotABundle,
        }
    }

    /// Returns the code for a record of a site that cannot be used.
    pub(crate) fn of_record(error: &RecordError) -> Self {
        match error {
            RecordError::Fs(error) | RecordError::Roots(_, RootsError::Fs(error)) => Self::of_fs(error),
            RecordError::Missing(_) => Self::File,
            RecordError::Syntax(..)
            | RecordError::Content(..)
            | RecordError::Roots(..)
            | RecordError::Uncovered(..) => Self::Damaged,
            RecordError::Version(..) => Self::NotABundle,
            RecordError::NoIndex(..) => Self::Unsigned,
            RecordError::Index(_, _, source) => match &**source {
                SignedIndexError::Fs(error) => Self::of_fs(error),
                SignedIndexError::Signature(error) => Self::of_signature(error),
                SignedIndexError::Corrupt(_) => Self::Damaged,
            },
        }
    }

    /// Returns the code for a signature that is not accepted.
    fn of_signature(error: &SignatureError) -> Self {
        if matches!(error, SignatureError::Unsigned) { Self::Unsigned } else { Self::Signer }
    }

    /// Returns the code for a lock that cannot be read.
    pub(crate) fn of_lock(error: &LockError) -> Self {
        if matches!(error, LockError::Version(_)) { Self::NotABundle } else { Self::List }
    }

    /// Returns the code for a blob that cannot be read from a valid bundle.
    pub(crate) fn of_blob(error: &ReadError) -> Self {
        match Self::of_read(error) {
            code @ (Self::Incomplete | Self::Unreadable) => code,
            _ => Self::Damaged,
        }
    }
}

#[cfg(all(test, feature = "net"))]
mod causes;

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn errors_of_media_are_told_from_other_errors_of_files() {
        let code = |errno: Errno| {
            let error = || FsError::at("read", "b.tar.zst")(errno.into());
            let (read, found) = (ReadError::Fs(error()), ReadError::Discover(DiscoverError::Fs(error())));
            assert_eq!(Code::of_read(&read), Code::of_read(&found));
            Code::of_read(&read)
        };
        for (errno, expected) in [
            (Errno::IO, Code::Unreadable),
            (Errno::NOMEDIUM, Code::Unreadable),
            (Errno::ACCESS, Code::File),
            (Errno::NOSPC, Code::File),
        ] {
            assert_eq!(code(errno), expected, "{errno}");
        }
    }

    #[test]
    fn a_failure_prints_its_messages_and_then_its_hint() {
        let messages = vec!["one".to_owned(), "two".to_owned()];
        let failure = Failure { code: Code::Usage, messages, hint: None };
        assert_eq!(failure.to_string(), "error: one\nerror: two\n");
        let failure = failure.context("cannot count").with_hint("first").with_hint("second");
        assert_eq!(failure.to_string(), "error: cannot count: one\nerror: cannot count: two\nhint: first\n");
        let failure = Failure::new(Code::Usage, "a\x1b[2J\nerror: b").with_hint("c\nd");
        assert_eq!(failure.to_string(), "error: a\\u{1b}[2J\\nerror: b\nhint: c\\nd\n");
    }
}
