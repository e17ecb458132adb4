//! The complete bundle through `verify`: assembled with correct digests and checksums, then damaged.
//!
//! The input describes documents, blobs and edits. Edits of documents come before their digests are computed, and edits
//! of the archive before its frames are encoded, so that both reach the parsers behind these checks.

mod assembly;
mod form;
mod recipe;

use std::fs::File;
use std::io::{Cursor, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::base::event::Silent;
use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::BundleReader;
use crate::commands::verify::quick::quick;
use crate::commands::verify::{Verdict, verify};
use crate::fuzzing::bundle::form::Form;
use crate::fuzzing::bundle::recipe::Recipe;
use crate::fuzzing::input::Input;
use crate::signature::policy::Policy;

/// A complete bundle, as a stream and as a file.
pub fn bundle(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = Form::read(&mut input);
    let recipe = Recipe::read(&mut input);
    let archive = assembly::archive(&recipe, &mut input);
    let mut bundle = form.encode(&archive);
    let intact = bundle.clone();
    let changes = damage(&mut bundle, &mut input);

    let stream = verify(BundleReader::stream(Cursor::new(bundle.clone()), &Policy::none()), &Silent);
    let file = with_file(&bundle, |reader| verify(reader, &Silent));
    let structure =
        with_file(&bundle, |reader| quick(reader, &Silent).map(|verdict| verdict.expect("a file")));
    if archive.is_regular && form.is_regular() && bundle == intact {
        for (verdict, what) in [(&stream, "a stream"), (&file, "a file"), (&structure, "the structure")] {
            let verdict = verdict.as_ref().unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert_eq!(verdict.worst(), None, "{what}: {verdict:?}");
        }
    }
    if archive.is_regular
        && form.is_regular()
        && form.is_recoverable()
        && changes <= 1
        && bundle.len() == intact.len()
    {
        let verdict = file.as_ref().unwrap_or_else(|error| panic!("not repaired: {error:?}"));
        assert_eq!(verdict.worst(), None, "not repaired: {verdict:?}");
    }
    if let (Ok(stream), Ok(file)) = (&stream, &file) {
        assert_eq!(stream.identity, file.identity);
        assert_eq!((stream.blobs, stream.bytes), (file.blobs, file.bytes));
        if is_intact(file) {
            assert!(is_intact(stream), "as a file, it is intact, as a stream, it is not: {stream:?}");
        }
    }
}

fn is_intact(verdict: &Verdict) -> bool {
    verdict.worst().is_none() && verdict.repaired.is_empty()
}

/// Opens the bundle as a file without a name, which is never on a disk.
fn with_file<T>(
    bytes: &[u8],
    read: impl FnOnce(BundleReader) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let file = memfd_create("bundle", MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(file);
    file.write_all(bytes).expect("memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let volumes = discover::find(&[path])?;
    read(BundleReader::from_volumes(volumes, &Policy::none())?)
}

/// Damages a bundle. Returns the number of bytes that were changed at their place; other damage changes its length.
fn damage(bundle: &mut Vec<u8>, input: &mut Input<'_>) -> usize {
    let mut changes = 0;
    for _ in 0..input.byte() % 8 {
        let (kind, start) = (input.byte(), input.below(bundle.len()));
        let end = (start + input.number()).min(bundle.len());
        match kind % 6 {
            0 | 1 => {
                if let Some(byte) = bundle.get_mut(start) {
                    *byte ^= input.byte();
                    changes += 1;
                }
            }
            2 => {
                bundle[start..end].fill(0);
                changes += end - start;
            }
            3 => bundle.truncate(start),
            4 => drop(bundle.drain(start..end)),
            _ => {
                let part = bundle[start..end].to_vec();
                let at = input.below(bundle.len() + 1);
                bundle.splice(at..at, part);
            }
        }
    }
    changes
}
