//! What can go wrong between a checkout and lists.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::fs::FsError;
use crate::commands::lists::version;

/// How many versions an error names.
const NEAREST: usize = 5;

/// Why there are no lists.
#[derive(Debug, thiserror::Error)]
pub enum KubesprayError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The directory is no checkout of Kubespray, or of a release whose shape is not known.
    #[error("`{}` is no checkout of Kubespray, or of a release that is not known: {missing}", path.display())]
    NoCheckout {
        /// The directory.
        path: PathBuf,
        /// What was looked for in it.
        missing: String,
    },
    /// A file of variables is not what it should be.
    #[error("{}:{line}: {message}", file.display())]
    Yaml {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Some variables come to nothing: all of them, each once.
    #[error("{}", lines(.errors))]
    Eval {
        /// Why.
        errors: Vec<EvalError>,
        /// Whether all that some files lack is a checksum.
        unpinned: bool,
    },
    /// The variables come to something that no list can name.
    #[error("{}", .0.join("\n"))]
    Entries(Vec<String>),
}

fn lines(errors: &[EvalError]) -> String {
    errors.iter().map(EvalError::to_string).collect::<Vec<_>>().join("\n")
}

/// Why a variable comes to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError {
    /// The variable, such as `kubelet_download_url` or `downloads.etcd.url`.
    pub variable: String,
    /// Where it is set.
    pub place: Option<(Arc<Path>, usize)>,
    /// What is wrong with it.
    pub reason: Box<Reason>,
    /// What needs it, the nearest first.
    pub needed_by: Vec<String>,
}

/// What is wrong with a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It needs what is not defined.
    Undefined(String),
    /// It needs a key that a mapping does not have.
    NoKey {
        /// The mapping.
        map: String,
        /// The key.
        key: String,
        /// Those that it has.
        keys: Vec<String>,
    },
    /// It needs itself, by way of these.
    Cycle(Vec<String>),
    /// Too many variables need each other in a row.
    Deep,
    /// The template is wrong, or uses what is not known here.
    Template(String),
    /// It is encrypted.
    Vault,
    /// It comes to something else than it should.
    Unfit {
        /// What.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl EvalError {
    pub(crate) fn new(variable: &str, file: &Arc<Path>, line: usize, reason: Reason) -> Self {
        Self {
            variable: variable.to_owned(),
            place: Some((file.clone(), line)),
            reason: Box::new(reason),
            needed_by: Vec::new(),
        }
    }

    /// An error about what is set nowhere.
    pub(crate) fn nowhere(variable: &str, reason: Reason) -> Self {
        Self { variable: variable.to_owned(), place: None, reason: Box::new(reason), needed_by: Vec::new() }
    }

    pub(crate) fn needed_by(mut self, variable: &str) -> Self {
        self.needed_by.push(variable.to_owned());
        self
    }

    /// Whether `default` helps against it.
    pub(crate) fn is_undefined(&self) -> bool {
        matches!(*self.reason, Reason::Undefined(_) | Reason::NoKey { .. })
    }

    /// Whether it is about the same fault as another one, whatever needs it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&*self.reason, &*other.reason) {
            (Reason::Cycle(first), Reason::Cycle(second)) => {
                first.len() == second.len() && first.iter().all(|name| second.contains(name))
            }
            (first, second) => {
                (&self.variable, &self.place, first) == (&other.variable, &other.place, second)
            }
        }
    }

    /// Whether it says where the variable is set.
    pub(crate) fn is_placed(&self) -> bool {
        self.place.is_some()
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.place {
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
                    0 => write!(f, "`{map}` has no `{key}`, and nothing else"),
                    1..=NEAREST => write!(f, "`{map}` has no `{key}`; it has `{nearest}`"),
                    more => {
                        write!(f, "`{map}` has no `{key}`; it has `{nearest}` and {} others", more - NEAREST)
                    }
                }
            }
            Self::Cycle(around) => write!(f, "it needs itself: `{}`", around.join("` → `")),
            Self::Deep => f.write_str("too many variables need each other in a row"),
            Self::Vault => f.write_str(
                "it is encrypted with ansible-vault: put what is needed for downloads into a file in plain text",
            ),
            Self::Unfit { found, expected } => write!(f, "it is `{found}`: expected {expected}"),
        }
    }
}
