//! Fetches from registries and web servers, with retries, range requests and fallback to mirrors.

pub(crate) mod content;
pub(crate) mod endpoint;
pub(crate) mod fallback;
pub(crate) mod known;
pub(crate) mod mirrored;
pub(crate) mod mirrors;
pub(crate) mod queue;
pub(crate) mod registry;
pub(crate) mod resolve;
pub(crate) mod source;
pub(crate) mod upstream;
pub(crate) mod web;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

/// Calls `work` with every item on `jobs` threads, and returns the results in the order of the items. Not
/// rayon: the threads wait for the network.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    jobs: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let (sender, results) = channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    sender.send((index, work(item))).expect("the receiver outlives the threads");
                }
            });
        }
        drop(sender);
        let mut results: Vec<_> = results.iter().collect();
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    })
}
