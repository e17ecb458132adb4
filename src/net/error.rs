//! [`FetchError`]: why something could not be fetched, whether it may pass, and what to do.

use std::time::Duration;

use crate::net::credentials::CredentialsError;
use crate::oci::digest::Digest;
use crate::oci::manifest::ManifestError;

/// Why `object` could not be fetched. The object is named as the list names it, with the URL that was asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch `{object}`: {problem}")]
pub(crate) struct FetchError {
    /// What was to be fetched.
    pub object: String,
    /// What went wrong.
    #[source]
    pub source: Option<reqwest::Error>,
    /// The same for a person.
    pub problem: FetchProblem,
}

/// What went wrong with a transfer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchProblem {
    /// No answer: no such host, nobody listens, a broken or silent connection.
    #[error("no answer from {0} (tried {1}×)")]
    Network(String, u32),
    /// A body that comes so slowly that it does not seem to come at all.
    #[error("{0} sends almost nothing any more (tried {1}×; see `--idle-timeout`)")]
    Stalled(String, u32),
    /// No connection, for a reason that will not pass: a certificate, a proxy.
    #[error("no answer from {url}: {what}")]
    Unreachable {
        /// The URL that was asked.
        url: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The time is over.
    #[error("not done in the {} s of `--timeout`", .0.as_secs_f64())]
    Late(Duration),
    /// Nowhere to ask.
    #[error("{0}")]
    NoEndpoint(NoEndpoint),
    /// Nothing from any place.
    #[error("none of {} places gives it: {}", reasons.len(), reasons.join("; "))]
    AllFailed {
        /// Why each of them does not.
        reasons: Vec<String>,
        /// Whether the last one has sent wrong bytes.
        is_mismatch: bool,
        /// What status it has answered with.
        status: Option<u16>,
    },
    /// An answer that says no.
    #[error("{url} answered {status}{hint}")]
    Status {
        /// The URL that was asked.
        url: String,
        /// The status code.
        status: u16,
        /// What that means and what to do.
        hint: String,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The bytes are not the ones that were asked for.
    #[error("its {what} is {found}, and {expected} was expected (from {url})")]
    Mismatch {
        /// `sha256`, `sha512` or `size`.
        what: &'static str,
        /// What came.
        found: String,
        /// What the list, the manifest or the registry said.
        expected: String,
        /// Where it came from.
        url: String,
    },
    /// An answer that makes no sense.
    #[error("{url} answered {what}")]
    Protocol {
        /// The URL that was asked.
        url: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// The registry asks for a token from a place where no token must be asked for.
    #[error("its registry sends for a token to {0}, which is not a place that it may send to")]
    Realm(String),
    /// The credentials for its registry cannot be had, or must not be sent.
    #[error("{0}")]
    Credentials(Box<CredentialsError>),
    /// A manifest that no site could serve.
    #[error("the manifest {digest}: {error}")]
    Manifest {
        /// Its digest.
        digest: Digest,
        /// Why it is refused.
        error: ManifestError,
    },
    /// More manifests than a bundle may have.
    #[error(
        "with its manifests, those of all images have more than the {0} bytes that a bundle may have: split the \
         lists, and pack a bundle of each part"
    )]
    Limit(u64),
    /// A layer that lies outside the registry, where it must not be looked for.
    #[error(
        "its layer {layer} lies outside its registry, and {url} is not a place that a registry may send to: {why}"
    )]
    Foreign {
        /// The layer.
        layer: Digest,
        /// Where the manifest says that it is.
        url: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// A platform that the image does not have.
    #[error("it has no {wanted}; it has {available}")]
    Platform {
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
}

impl FetchError {
    /// A problem with `object`.
    pub(crate) fn new(object: impl Into<String>, problem: FetchProblem) -> Self {
        Self { object: object.into(), source: None, problem }
    }

    /// The status of an answer that said no.
    #[must_use]
    pub(crate) fn status(&self) -> Option<u16> {
        match self.problem {
            FetchProblem::Status { status, .. } => Some(status),
            FetchProblem::AllFailed { status, .. } => status,
            _ => None,
        }
    }

    /// Takes out of what a server has said what it must not have repeated.
    pub(crate) fn scrub(&mut self, scrub: impl Fn(&str) -> String) {
        if let FetchProblem::Status { url, hint: text, .. } | FetchProblem::Protocol { url, what: text } =
            &mut self.problem
        {
            (*url, *text) = (scrub(url), scrub(text));
        }
    }

    /// The same, if other places failed before, for these reasons.
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

    /// The problem and its innermost cause, which says most.
    #[must_use]
    pub(crate) fn reason(&self) -> String {
        match &self.source {
            Some(source) => format!("{}: {}", self.problem, root_cause(source)),
            None => self.problem.to_string(),
        }
    }

    /// Notes how often it was tried.
    #[must_use]
    pub(crate) fn tried(mut self, times: u32) -> Self {
        if let FetchProblem::Network(_, count) | FetchProblem::Stalled(_, count) = &mut self.problem {
            *count = times;
        }
        self
    }

    /// Whether another place may well have what this one does not give.
    #[must_use]
    pub(crate) fn is_of_place(&self) -> bool {
        match &self.problem {
            FetchProblem::Network(..)
            | FetchProblem::Stalled(..)
            | FetchProblem::Unreachable { .. }
            | FetchProblem::Status { .. }
            | FetchProblem::Mismatch { .. }
            | FetchProblem::Protocol { .. }
            | FetchProblem::Realm(_) => true,
            FetchProblem::Late(_)
            | FetchProblem::Credentials(_)
            | FetchProblem::Foreign { .. }
            | FetchProblem::NoEndpoint(_)
            | FetchProblem::AllFailed { .. }
            | FetchProblem::Manifest { .. }
            | FetchProblem::Limit(_)
            | FetchProblem::Platform { .. } => false,
        }
    }

    /// Whether the place will not give anything else either.
    #[must_use]
    pub(crate) fn is_of_server(&self) -> bool {
        match &self.problem {
            FetchProblem::Network(..) | FetchProblem::Stalled(..) | FetchProblem::Unreachable { .. } => true,
            FetchProblem::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Whether the same request may well succeed later.
    #[must_use]
    pub(crate) fn may_pass(&self) -> bool {
        match &self.problem {
            FetchProblem::Network(..) | FetchProblem::Stalled(..) => true,
            FetchProblem::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether the bytes were wrong, and not the way to them.
    #[must_use]
    pub(crate) fn is_mismatch(&self) -> bool {
        matches!(
            self.problem,
            FetchProblem::Mismatch { .. } | FetchProblem::AllFailed { is_mismatch: true, .. }
        )
    }
}

/// The innermost cause of an error, which says most.
#[must_use]
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoEndpoint {
    /// A rule forbids it.
    #[error("`blocked = true` of `{0}` in the file of mirrors forbids it")]
    Blocked(String),
    /// No mirror has it.
    #[error("no mirror is named for it, and `--mirrors-only` is given")]
    NoMirror,
}
