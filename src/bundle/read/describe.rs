//! [`describe`]: identity, date and title of a bundle, so that a user can choose between several.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::base::text::escape;
use crate::bundle::format::index::Index;
use crate::bundle::format::{OCI_LAYOUT, OCI_LAYOUT_CONTENT};
use crate::bundle::read::feeder;
use crate::bundle::read::tar_stream::{FrameQueue, TarStream};
use crate::bundle::read::volume_set::VolumeSet;
use crate::oci::digest::Digest;

/// Number of hexadecimal digits of a digest that are shown.
const SHOWN_DIGITS: usize = 12;

/// Returns the path of the first file, and what its documents say about the bundle. No signature is checked.
pub(crate) fn describe(volumes: VolumeSet) -> String {
    let first = volumes.volumes().iter().find_map(|volume| volume.copies.first());
    let mut text = first.map_or_else(String::new, |file| format!("`{}`", file.path.display()));
    let problem = volumes.gaps().first().map(ToString::to_string);
    match index(volumes) {
        Some((digest, index)) => {
            let _ = write!(text, " (identity {}", &digest.hex()[..SHOWN_DIGITS]); // into memory
            if let Some(created) = index.about.created {
                let _ = write!(text, ", packed {created}"); // into memory
            }
            if let Some(title) = &index.about.title {
                let _ = write!(text, ", \"{}\"", escape(&title.to_string())); // into memory
            }
            text.push(')');
        }
        None => text.push_str(" (its listing is missing or corrupt)"),
    }
    if let Some(problem) = problem {
        let _ = write!(text, ": {problem}"); // into memory
    }
    text
}

/// Reads `index.json`. `None`: it cannot be read.
fn index(volumes: VolumeSet) -> Option<(Digest, Index)> {
    let volumes = Arc::new(volumes);
    let source = volumes.clone();
    let messages = feeder::start(move |feeder| feeder.by_volumes(&source));
    let mut stream = TarStream::new(FrameQueue::new(messages, None), Some(volumes));
    stream.document(OCI_LAYOUT, OCI_LAYOUT_CONTENT.len() as u64).ok()?;
    let bytes = stream.index_document().ok()?;
    Some((Digest::of(&bytes), Index::parse(&bytes).ok()?))
}
