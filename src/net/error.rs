//! [`FetchError`]: why a transfer failed, and whether a retry or another source can help.

use std::fmt;
use std::time::Duration;

use crate::net::credentials::error::CredentialsError;
use crate::net::pace::{Refusal, RefusalKind};
use crate::oci::digest::Digest;
use crate::oci::manifest::ManifestError;
use crate::oci::platform::PlatformError;

/// Why a server cannot be connected to by HTTPS: what it sends is not TLS.
pub(crate) const PLAIN_HTTP: &str = "server does not speak TLS, but probably plain HTTP: use `--insecure-registry` for a registry or mirror, or an \
     http:// URL";

/// Maximum delay before a retry. If the server requests a longer one, the request fails.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(120);

/// A list entry or image that could not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch `{object}`: {problem}")]
pub(crate) struct FetchError {
    /// Name of the entry, as the list has it.
    pub object: String,
    /// The cause as the HTTP client reports it.
    #[source]
    pub source: Option<reqwest::Error>,
    /// The problem, with the URL and a hint.
    pub problem: FetchProblem,
}

/// The cause of a failed transfer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchProblem {
    /// Name resolution, connecting or reading failed, or timed out.
    #[error("connection to {url} failed ({})", Attempts(*attempts))]
    Network {
        /// The requested URL.
        url: String,
        /// Number of attempts.
        attempts: u32,
    },
    /// The body arrives too slowly.
    #[error("transfer from {url} stalled ({}; see `--idle-timeout`)", Attempts(*attempts))]
    Stalled {
        /// The requested URL.
        url: String,
        /// Number of attempts.
        attempts: u32,
    },
    /// The connection cannot be established, and a retry does not help: a certificate, or a proxy.
    #[error("cannot connect to {url}: {reason}")]
    Unreachable {
        /// The requested URL.
        url: String,
        /// The reason and a hint.
        reason: String,
    },
    /// Another entry needs the same bytes, and they cannot be fetched.
    #[error("it has the same content as `{cause}`, which cannot be fetched")]
    Shared {
        /// Name of the failed entry.
        cause: String,
    },
    /// The time limit of the run is exceeded.
    #[error("`--timeout` of {} s exceeded", .0.as_secs_f64())]
    TimeLimit(Duration),
    /// No endpoint may be used.
    #[error("{0}")]
    NoEndpoint(NoEndpoint),
    /// Every endpoint failed.
    #[error("not available from any of {} sources: {}", reasons.len(), reasons.join("; "))]
    AllFailed {
        /// The failure of each endpoint, in order.
        reasons: Vec<String>,
        /// True if the last endpoint sent bytes that do not match.
        is_mismatch: bool,
        /// Status code of the last endpoint's response.
        status: Option<u16>,
    },
    /// The response has a status code of failure.
    #[error("{url} returned {status}{hint}")]
    Status {
        /// The requested URL.
        url: String,
        /// The status code.
        status: u16,
        /// The reason phrase, a hint, and the server's message.
        hint: String,
        /// Delay that the server requests before a retry.
        retry_after: Option<Duration>,
    },
    /// A document has no bytes.
    #[error("{url} returned an empty document")]
    Empty {
        /// The requested URL.
        url: String,
    },
    /// The bytes do not match the digest, checksum or size.
    #[error("{kind} mismatch: expected {expected}, got {found} (from {url})")]
    Mismatch {
        /// The compared property.
        kind: MismatchKind,
        /// The value in the list, the lock, the manifest or an earlier response.
        expected: String,
        /// The value of the bytes.
        found: String,
        /// Source of the bytes.
        url: String,
    },
    /// The response violates the protocol or a limit.
    #[error("invalid response from {url}: {reason}")]
    Protocol {
        /// The requested URL.
        url: String,
        /// The violation.
        reason: String,
    },
    /// A path or host does not form a URL.
    #[error("invalid URL `{url}`: {error}")]
    InvalidUrl {
        /// The text.
        url: String,
        /// Why it cannot be parsed.
        error: url::ParseError,
    },
    /// The registry names a token server that it must not name.
    #[error("the registry names the token server {url}, which is not allowed: {reason}")]
    Realm {
        /// The URL of the token server.
        url: String,
        /// Why it is not allowed.
        reason: String,
    },
    /// The token server is down.
    #[error("the token server failed: {reason}")]
    TokenServer {
        /// Why it failed, with its URL.
        reason: String,
    },
    /// A server refers to a host inside the network of this machine.
    #[error("{url} is not allowed: {found}; use `--allow-internal {host}` if this is intended")]
    Internal {
        /// The URL.
        url: String,
        /// Its host.
        host: String,
        /// The address of the host.
        found: String,
    },
    /// The credentials cannot be read, or must not be sent.
    #[error("{0}")]
    Credentials(Box<CredentialsError>),
    /// A manifest is invalid.
    #[error("manifest {digest}: {error}")]
    Manifest {
        /// Digest of the manifest.
        digest: Digest,
        /// Why it is rejected.
        error: ManifestError,
    },
    /// The registry lacks a manifest that an index names.
    #[error("{0}")]
    Child(Box<MissingChild>),
    /// The config of an image is invalid.
    #[error("config {digest}: {error}")]
    Config {
        /// Digest of the config.
        digest: Digest,
        /// Why it is rejected.
        error: PlatformError,
    },
    /// Manifests state different sizes for the same blob.
    #[error(
        "its manifests state {size} bytes for `{digest}`, and those of {other} state {other_size} bytes: one of the \
         images is invalid"
    )]
    Sizes {
        /// Digest of the blob.
        digest: Digest,
        /// A size in the manifests of this image, in bytes.
        size: u64,
        /// The image that contradicts, quoted, or `itself`.
        other: String,
        /// The size in its manifests, in bytes.
        other_size: u64,
    },
    /// The manifests of all images exceed the limit of a bundle.
    #[error("the manifests of all images exceed {0} bytes: split the lists and pack a bundle from each part")]
    Limit(u64),
    /// The URL of an external layer is not allowed.
    #[error("layer {layer} is external, and its URL {url} is not allowed: {reason}")]
    Foreign {
        /// Digest of the layer.
        layer: Digest,
        /// The URL in the manifest.
        url: String,
        /// Why it is not allowed.
        reason: &'static str,
    },
    /// The image lacks a requested platform.
    #[error("no image for platform {wanted}; available: {available}")]
    Platform {
        /// The requested platforms.
        wanted: String,
        /// The platforms of the image.
        available: String,
    },
}

/// A manifest that an index names and its registry lacks.
#[derive(Debug, thiserror::Error)]
#[error("{name} ({digest}) is not available: {reason}; to omit it, use {option}")]
pub(crate) struct MissingChild {
    /// The platform, or the subject of an attestation.
    pub name: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// The response of the registry.
    pub reason: String,
    /// The options that omit it.
    pub option: &'static str,
}

/// A value that the bytes have to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MismatchKind {
    /// Digest of a manifest or a blob.
    Digest,
    /// Checksum of a file.
    Checksum,
    /// Size in bytes.
    Size,
}

impl fmt::Display for MismatchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Digest => "digest",
            Self::Checksum => "checksum",
            Self::Size => "size",
        })
    }
}

/// Why no endpoint may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoEndpoint {
    /// A rule of the mirrors file blocks the prefix.
    #[error("blocked: `blocked = true` is set for `{0}` in the mirrors file")]
    Blocked(String),
    /// Only mirrors may be used, and none is configured.
    #[error("no mirror configured, and `--mirrors-only` is set")]
    NoMirror,
}

impl FetchError {
    pub(crate) fn new(object: impl Into<String>, problem: FetchProblem) -> Self {
        Self { object: object.into(), source: None, problem }
    }

    /// Returns the status code of the response, if it was one of failure.
    #[must_use]
    pub(crate) fn status(&self) -> Option<u16> {
        match self.problem {
            FetchProblem::Status { status, .. } => Some(status),
            FetchProblem::AllFailed { status, .. } => status,
            _ => None,
        }
    }

    /// Applies `scrub` to all text that a server sent.
    pub(crate) fn scrub(&mut self, scrub: impl Fn(&str) -> String) {
        if let FetchProblem::Status { url, hint: text, .. } | FetchProblem::Protocol { url, reason: text } =
            &mut self.problem
        {
            (*url, *text) = (scrub(url), scrub(text));
        }
    }

    /// Adds the failures of the endpoints that were tried before.
    #[must_use]
    pub(crate) fn after(mut self, mut failures: Vec<String>) -> Self {
        if !failures.is_empty() {
            failures.push(self.reason());
            let (is_mismatch, status) = (self.is_mismatch(), self.status());
            self.problem = FetchProblem::AllFailed { reasons: failures, is_mismatch, status };
            self.source = None;
        }
        self
    }

    /// Returns the problem and its innermost cause.
    #[must_use]
    pub(crate) fn reason(&self) -> String {
        match &self.source {
            Some(source) => format!("{}: {}", self.problem, root_cause(source)),
            None => self.problem.to_string(),
        }
    }

    /// Sets the number of attempts.
    #[must_use]
    pub(crate) fn with_attempts(mut self, count: u32) -> Self {
        if let FetchProblem::Network { attempts, .. } | FetchProblem::Stalled { attempts, .. } =
            &mut self.problem
        {
            *attempts = count;
        }
        self
    }

    /// True if another endpoint may succeed.
    #[must_use]
    pub(crate) fn allows_fallback(&self) -> bool {
        match &self.problem {
            FetchProblem::Network { .. }
            | FetchProblem::Stalled { .. }
            | FetchProblem::Unreachable { .. }
            | FetchProblem::Status { .. }
            | FetchProblem::Manifest { .. }
            | FetchProblem::Empty { .. }
            | FetchProblem::Mismatch { .. }
            | FetchProblem::Protocol { .. }
            | FetchProblem::InvalidUrl { .. }
            | FetchProblem::Realm { .. }
            | FetchProblem::TokenServer { .. }
            | FetchProblem::Internal { .. } => true,
            FetchProblem::TimeLimit(_)
            | FetchProblem::Shared { .. }
            | FetchProblem::Credentials(_)
            | FetchProblem::Foreign { .. }
            | FetchProblem::NoEndpoint(_)
            | FetchProblem::AllFailed { .. }
            | FetchProblem::Child(_)
            | FetchProblem::Config { .. }
            | FetchProblem::Sizes { .. }
            | FetchProblem::Limit(_)
            | FetchProblem::Platform { .. } => false,
        }
    }

    /// True if other requests to the same server will fail as well.
    #[must_use]
    pub(crate) fn is_server_down(&self) -> bool {
        match &self.problem {
            FetchProblem::Network { .. }
            | FetchProblem::Stalled { .. }
            | FetchProblem::Unreachable { .. }
            | FetchProblem::TokenServer { .. } => true,
            FetchProblem::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Returns the error of a token server that was requested as often as allowed. It is not transient: a retry of
    /// the request to the registry would multiply the attempts.
    #[must_use]
    pub(crate) fn of_token_server(self) -> Self {
        if !self.is_transient() {
            return self;
        }
        let reason = self.reason();
        Self::new(self.object, FetchProblem::TokenServer { reason })
    }

    /// True if the server has processed the request: it has responded, and has not refused it.
    #[must_use]
    pub(crate) fn is_response(&self) -> bool {
        match self.problem {
            FetchProblem::Status { .. } => self.refusal().is_none(),
            FetchProblem::Empty { .. }
            | FetchProblem::Mismatch { .. }
            | FetchProblem::Protocol { .. }
            | FetchProblem::Stalled { .. }
            | FetchProblem::TokenServer { .. } => true,
            _ => false,
        }
    }

    /// True if the server responded to HTTPS, but not with TLS.
    #[must_use]
    pub(crate) fn is_plain_http(&self) -> bool {
        matches!(&self.problem, FetchProblem::Unreachable { reason, .. } if reason == PLAIN_HTTP)
    }

    /// True if no server has responded.
    #[must_use]
    pub(crate) fn is_without_response(&self) -> bool {
        matches!(self.problem, FetchProblem::Network { .. } | FetchProblem::Unreachable { .. })
    }

    /// Returns how the server refused the request. `None`: it did not, or the failure has another cause.
    #[must_use]
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match &self.problem {
            FetchProblem::Status { status: 429, retry_after, .. } => {
                Some(Refusal { kind: RefusalKind::Rate, retry_after: *retry_after })
            }
            FetchProblem::Status { status: 503, retry_after, .. } => {
                Some(Refusal { kind: RefusalKind::Busy, retry_after: *retry_after })
            }
            FetchProblem::Network { .. } => {
                let source = self.source.as_ref().filter(|source| !source.is_timeout())?;
                let is_before_response = source.is_connect() || source.is_request();
                is_before_response.then_some(Refusal { kind: RefusalKind::Connection, retry_after: None })
            }
            _ => None,
        }
    }

    /// True if the same request may succeed later.
    #[must_use]
    pub(crate) fn is_transient(&self) -> bool {
        match &self.problem {
            FetchProblem::Network { .. } | FetchProblem::Empty { .. } | FetchProblem::Stalled { .. } => true,
            FetchProblem::Status { status, retry_after, .. } => {
                matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
                    && retry_after.is_none_or(|wait| wait <= MAX_DELAY)
            }
            _ => false,
        }
    }

    /// True if the bytes arrived and do not match.
    #[must_use]
    pub(crate) fn is_mismatch(&self) -> bool {
        matches!(
            self.problem,
            FetchProblem::Mismatch { .. } | FetchProblem::AllFailed { is_mismatch: true, .. }
        )
    }
}

/// Returns the text of the innermost cause of an error.
#[must_use]
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Formats a number of attempts.
struct Attempts(u32);

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attempt{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}
