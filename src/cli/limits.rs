//! Limits of the process: threads, address space and the size of files. A thread that cannot be started would end the
//! program in the middle, and so would the signal for a file that is too large.

use std::io::Error;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use rustix::process::{Resource, getrlimit};

use crate::base::child::restart;
use crate::cli::exit::{Code, Failure};

/// The most threads that a verb runs at once, besides those that compress and decode.
const THREADS: usize = 20;
/// The number of open files that every verb can do with.
const LEAST_FILES: u64 = 32;
/// Address space of the program and its buffers in bytes.
const BASE: u64 = 128 << 20;
/// The least address space, in bytes, in which all threads can be started.
const LEAST: u64 = 96 << 20;
/// Address space for each thread that compresses or decodes, in bytes: its stack and frames.
const PER_THREAD: u64 = 64 << 20;
/// An address space of fewer bytes than this is limited.
const AMPLE: u64 = 8 << 30;
/// Variable of glibc: the number of heaps. Each takes 64 MiB of address space.
const HEAPS: &str = "MALLOC_ARENA_MAX";

/// Raises the limit of open files, and starts the threads that compress and decode: one for each core, or as many as the
/// address space has room for.
///
/// Fails if the system refuses the number of threads that a verb can need, or their address space.
pub(super) fn prepare() -> Result<(), Failure> {
    // If the limit cannot be raised, it stays.
    let files = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: files.maximum, ..files };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < LEAST_FILES) {
        let error = Error::other(format!("{files} files can be open, and {LEAST_FILES} are needed"));
        return Err(Failure::of(Code::File, &error)
            .context("cannot start")
            .with_hint("raise the limit of open files: `ulimit -n`"));
    }

    // Writes beyond RLIMIT_FSIZE then fail with EFBIG, as any other failed write.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)));

    let mut pool = rayon::ThreadPoolBuilder::new();
    let space = [Resource::As, Resource::Data].into_iter().filter_map(|limit| getrlimit(limit).current).min();
    if let Some(space) = space.filter(|space| *space < AMPLE) {
        if space < LEAST {
            return Err(refused(&Error::other(format!("memory is limited to {space} bytes"))));
        }
        limit_heaps();
        let threads = usize::try_from(space.saturating_sub(BASE) / PER_THREAD).unwrap_or(1).max(1);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        pool = pool.num_threads(threads.min(cores));
    }
    pool.build_global().map_err(|error| refused(&error))?;

    // The threads wait for the end of the channel, so that all of them exist at once.
    let (end, waiting) = channel::<()>();
    let waiting = Mutex::new(waiting);
    std::thread::scope(|scope| {
        let wait = || drop(waiting.lock().map(|waiting| waiting.recv()));
        let started =
            (0..THREADS).try_for_each(|_| std::thread::Builder::new().spawn_scoped(scope, wait).map(drop));
        drop(end);
        started.map_err(|error| refused(&error))
    })
}

/// Starts the program again with one heap, unless the number of heaps is set. If that fails, it continues with more.
fn limit_heaps() {
    if cfg!(target_env = "gnu") && std::env::var_os(HEAPS).is_none() {
        let _ = restart(HEAPS, "1"); // it returns only if it fails
    }
}

fn refused(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::of(Code::File, error).context("cannot start the threads of the program").with_hint(
        "raise the limit of processes or of memory (96 MiB are needed at least): `ulimit -u`, `ulimit -v`, `ulimit -d`, or \
         `pids.max` of the cgroup",
    )
}
