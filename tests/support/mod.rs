//! Real servers, clients and content for tests: Debian's `docker-registry` and nginx on loopback, skopeo,
//! podman, docker and curl, and images of every kind made in memory from Debian packages.
//!
//! A test target includes it with `#[path = "../support/mod.rs"] mod support;`. Everything panics with the
//! details (command, exit status, log) instead of returning an error.
#![allow(dead_code, unreachable_pub, reason = "every test target uses another part of this")]

pub mod bases;
pub mod browser;
pub mod clients;
pub mod fake;
pub mod image;
pub mod mount;
pub mod nginx;
pub mod package;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod storage;
pub mod tls;
pub mod tree;
pub mod upstream;
pub mod web;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sha2::{Digest as _, Sha256, Sha512};

/// Calls `work` for each item, in one thread more than there are processors, because work waits for the disk.
pub fn for_each<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let jobs = thread::available_parallelism().map_or(2, usize::from) + 1;
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Content, cheap to share between images, files and expectations.
pub type Bytes = Arc<[u8]>;

/// Returns `sha256:<hex>` of `bytes`. Independent of the library's own `Digest`, which is under test.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Returns `sha512:<hex>` of `bytes`.
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("write to a string");
        text
    })
}

/// Returns `size` incompressible bytes, deterministic by `seed` (splitmix64).
pub fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
