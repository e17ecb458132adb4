//! [`KubesprayError`]: why lists cannot be generated from a checkout.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::fs::FsError;
use crate::commands::lists::version;

/// Maximum number of existing keys in an error message.
const NEAREST: usize = 5;

/// An error while generating lists.
#[derive(Debug, thiserror::Error)]
pub enum KubesprayError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A file of the checkout that is not read.
    #[error("cannot use `{}`: it {reason}", path.display())]
    Refused {
        /// Relative to the checkout.
        path: PathBuf,
        /// The reason, with its verb.
        reason: &'static str,
    },
    /// Not a checkout of Kubespray, or of a release with an unsupported layout.
    #[error("`{}` is not a checkout of a supported Kubespray release: {missing}", path.display())]
    NoCheckout {
        path: PathBuf,
        /// The missing file, directory or variable.
        missing: String,
    },
    /// An invalid variable file.
    #[error("{}:{line}: {message}", file.display())]
    Yaml {
        file: PathBuf,
        /// The line number, from 1.
        line: usize,
        message: String,
    },
    /// Variables that cannot be evaluated, without duplicates.
    #[error("{}", lines(.errors))]
    Eval {
        errors: Vec<EvalError>,
        /// True if the only errors are missing checksums.
        unpinned: bool,
    },
    /// Evaluated values that are not valid list entries.
    #[error("{}", .0.join("\n"))]
    Entries(Vec<String>),
}

fn lines(errors: &[EvalError]) -> String {
    errors.iter().map(EvalError::to_string).collect::<Vec<_>>().join("\n")
}

/// A variable that cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError {
    /// The variable, such as `kubelet_download_url` or `downloads.etcd.url`.
    pub variable: String,
    /// The file and line of its definition. `None`: not defined.
    pub position: Option<(Arc<Path>, usize)>,
    pub reason: Box<Reason>,
    /// The variables that need it, the nearest first.
    pub needed_by: Vec<String>,
}

/// The cause of an [`EvalError`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It needs an undefined value.
    Undefined(String),
    /// It needs a key that a mapping lacks.
    NoKey {
        map: String,
        key: String,
        /// The existing keys.
        keys: Vec<String>,
    },
    /// It depends on itself, through these variables.
    Cycle(Vec<String>),
    /// The chain of dependencies is longer than the limit.
    Deep,
    /// A template error, or an unsupported feature.
    Template(String),
    /// It is encrypted with ansible-vault.
    Vault,
    /// Its value has an unexpected type or form.
    Unfit { found: String, expected: &'static str },
}

impl EvalError {
    pub(crate) fn new(variable: &str, file: &Arc<Path>, line: usize, reason: Reason) -> Self {
        Self {
            variable: variable.to_owned(),
            position: Some((file.clone(), line)),
            reason: Box::new(reason),
            needed_by: Vec::new(),
        }
    }

    /// Returns an error about an undefined variable.
    pub(crate) fn undefined(variable: &str, reason: Reason) -> Self {
        Self {
            variable: variable.to_owned(),
            position: None,
            reason: Box::new(reason),
            needed_by: Vec::new(),
        }
    }

    pub(crate) fn needed_by(mut self, variable: &str) -> Self {
        self.needed_by.push(variable.to_owned());
        self
    }

    /// True if Jinja's `default` filter catches the error.
    pub(crate) fn is_undefined(&self) -> bool {
        matches!(*self.reason, Reason::Undefined(_) | Reason::NoKey { .. })
    }

    /// True if both have the same cause, regardless of the variables that need it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&*self.reason, &*other.reason) {
            (Reason::Cycle(first), Reason::Cycle(second)) => {
                first.len() == second.len() && first.iter().all(|name| second.contains(name))
            }
            (first, second) => {
                (&self.variable, &self.position, first) == (&other.variable, &other.position, second)
            }
        }
    }

    /// True if the definition is known.
    pub(crate) fn has_position(&self) -> bool {
        self.position.is_some()
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.position {
            write!(f, "{}:{line}: ", file.display())?;
            write!(f, "`{}`: ", self.variable)?;
        }
        write!(f, "{}", self.reason)?;
        if !self.needed_by.is_empty() {
            let names: Vec<_> = self.needed_by.iter().map(|name| format!("`{name}`")).collect();
            write!(f, " (needed by {})", names.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undefined(message) | Self::Template(message) => f.write_str(message),
            Self::NoKey { map, key, keys } => {
                let nearest = version::nearest(key, keys, NEAREST).join("`, `");
                match keys.len() {
                    0 => write!(f, "`{map}` has no `{key}`: it is empty"),
                    1..=NEAREST => write!(f, "`{map}` has no `{key}`; it has `{nearest}`"),
                    more => {
                        write!(f, "`{map}` has no `{key}`; it has `{nearest}` and {} others", more - NEAREST)
                    }
                }
            }
            Self::Cycle(around) => write!(f, "it depends on itself: `{}`", around.join("` → `")),
            Self::Deep => f.write_str("the chain of dependencies between variables is too long"),
            Self::Vault => f.write_str(
                "it is encrypted with ansible-vault: put the variables that downloads need into a plain-text file",
            ),
            Self::Unfit { found, expected } => write!(f, "it is `{found}`: expected {expected}"),
        }
    }
}
