//! [`PackOptions`]: the options of `pack`, and [`Input`]: the entries to pack.

use std::path::PathBuf;

use crate::bundle::format::index::BundleInfo;
use crate::documents::list::Lists;
use crate::documents::lock::Lock;
use crate::fetch::resolve::options::ResolveOptions;
use crate::fetch::upstream::Upstream;
use crate::signature::policy::Policy;
use crate::signature::signing::Signer;

/// The entries to pack.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Entries of lists, which are resolved now.
    Lists(Lists),
    /// Entries that were resolved earlier, and are fetched by digest. The lists are
    /// the [`lists`](crate::documents::lock::Lock::lists) of the lock, with current URLs.
    Lock(Lock, Lists),
}

/// The options of `pack`.
#[derive(Debug)]
pub(crate) struct PackOptions {
    /// The path of the bundle.
    pub output: PathBuf,
    /// The parts of images to include.
    pub images: ResolveOptions,
    /// The zstd compression level, 1 to 22.
    pub level: i32,
    pub upstream: Upstream,
    /// The metadata in `index.json`.
    pub about: BundleInfo,
    /// The path of the lock to write. `None`: no lock.
    pub write_lock: Option<PathBuf>,
    /// Older bundles, from which unchanged blobs are copied.
    pub reuse: Vec<PathBuf>,
    /// Inventories, locks or bundles with the contents of the site, which the bundle omits.
    pub base: Vec<PathBuf>,
    /// The policy for the bundles in `reuse` and `base`.
    pub policy: Policy,
    pub missing: Missing,
    /// The key that signs the bundle. `None`: unsigned.
    pub sign: Option<Signer>,
    /// Maximum size of a volume in bytes. `None`: one file.
    pub volume_size: Option<u64>,
    /// Redundancy in per mille of the protected bytes. `None`: no recovery data.
    pub recovery: Option<u32>,
    /// True if only the structure of a bundle that is up to date is verified.
    pub quick: bool,
    /// A shell command that runs for each finished volume.
    pub on_volume: Option<String>,
}

/// The handling of images and files that cannot be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Stop at the first failure.
    Stop,
    /// Fetch all others, and keep them for the next run.
    KeepGoing,
    /// Pack all others.
    Allow,
}
