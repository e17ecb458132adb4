//! [`CredentialsError`]: why credentials cannot be read, or must not be sent.

use std::path::PathBuf;

use crate::net::netrc::NetrcError;

/// Why credentials cannot be read, or must not be sent. No variant contains a secret, nor text of a file or a
/// helper.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    /// A file exists, or is named by the user, and cannot be read.
    #[error("cannot read credentials in `{}`: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the file system.
        reason: String,
    },
    /// A file is not JSON, or has other members than docker and podman write.
    #[error(
        "cannot parse credentials in `{}`, line {line}, column {column}: not as written by `docker login` or \
         `podman login`",
        path.display()
    )]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, from 1.
        column: usize,
    },
    /// The entry for the registry is invalid.
    #[error("invalid entry for `{key}` in `{}`: not base64 of `USER:PASSWORD`; log in again", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Key of the entry.
        key: String,
    },
    /// A credential helper failed.
    #[error(
        "credential helper `{program}`, named in `{}`, failed: {problem}; check `echo {server} | {program} \
         get`, or remove the helper from the file",
        path.display()
    )]
    Helper {
        /// The program.
        program: String,
        /// The file that names it.
        path: PathBuf,
        /// The server whose credentials were requested.
        server: String,
        /// Why it failed.
        problem: String,
    },
    /// The connection is not encrypted.
    #[error(
        "{credentials} are not sent to {url} over plain HTTP: use HTTPS, or allow it with `--insecure-registry \
         {host}`"
    )]
    PlainHttp {
        /// The credentials and their origin.
        credentials: String,
        /// The URL of the registry or its token server.
        url: String,
        /// Host of the registry.
        host: String,
    },
    /// A registry accepts only passwords, and only a token is available.
    #[error(
        "{url} requires a user name and a password, but {credentials} are a token: log in with a password"
    )]
    NoPassword {
        /// The URL of the registry.
        url: String,
        /// The credentials and their origin.
        credentials: String,
    },
    /// The netrc cannot be read.
    #[error(transparent)]
    Netrc(#[from] NetrcError),
}
