//! `Archive`: the tar stream of a bundle, in the order that its documents require.

use crate::bundle::format::index::Index;
use crate::bundle::format::layout::{Layout, blob_name, tar_header};
use crate::bundle::format::manifest_walk::ManifestWalk;
use crate::bundle::format::{BLOCK, FRAME_SIZE, INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT};
use crate::fuzzing::bundle::recipe::Recipe;
use crate::fuzzing::input::Input;
use crate::oci::digest::Digest;

/// Maximum size of a blob that the documents state and the input does not have, in bytes.
const STATED_LIMIT: u64 = 64 << 10;

/// The tar stream, and its division into frames.
pub(super) struct Archive {
    pub(super) stream: Vec<u8>,
    /// The number of bytes in each frame.
    pub(super) cuts: Vec<usize>,
    /// The number of frames that precede the signature: those of the head.
    pub(super) head_frames: usize,
    /// True if a reader has to accept it.
    pub(super) is_regular: bool,
}

/// Assembles the archive, and edits it as the input says.
pub(super) fn archive(recipe: &Recipe, input: &mut Input<'_>) -> Archive {
    let layout = layout(recipe);
    let mut is_regular = layout.is_some() && !recipe.is_edited;
    let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
    if let Some(layout) = &layout {
        for entry in layout.entries() {
            let content = match entry.digest {
                Some(digest) => content(recipe, digest, entry.size),
                None if entry.name == INDEX_JSON => recipe.index.clone(),
                None => OCI_LAYOUT_CONTENT.to_vec(),
            };
            entries.push((entry.name, content));
        }
    } else {
        entries.push((OCI_LAYOUT.to_owned(), OCI_LAYOUT_CONTENT.to_vec()));
        entries.push((INDEX_JSON.to_owned(), recipe.index.clone()));
        let others = recipe.blobs.keys().filter(|digest| !recipe.manifests.contains(digest));
        for digest in recipe.manifests.iter().chain(others) {
            entries.push((blob_name(*digest), recipe.blobs[digest].clone()));
        }
    }
    if input.byte() % 16 == 15 {
        // Another order.
        let (first, second) = (input.below(entries.len()), input.below(entries.len()));
        entries.swap(first, second);
        is_regular &= first == second;
    }
    let mut stream = Vec::new();
    for (name, content) in &entries {
        stream.extend_from_slice(&tar_header(name, content.len() as u64));
        stream.extend_from_slice(content);
        stream.resize(stream.len().next_multiple_of(BLOCK), 0);
    }
    stream.resize(stream.len() + 2 * BLOCK, 0);
    for _ in 0..input.byte().saturating_sub(0xf0) {
        let start = input.below(stream.len());
        for (byte, edited) in stream[start..].iter_mut().zip(input.short()) {
            is_regular &= *byte == *edited;
            *byte = *edited;
        }
    }
    let (cuts, is_exact) = cuts(layout.as_ref(), stream.len());
    let head_frames = 1;
    Archive { is_regular: is_regular && is_exact, stream, cuts, head_frames }
}

/// Returns the content of a blob. One that the input does not have is zeros.
fn content(recipe: &Recipe, digest: Digest, size: u64) -> Vec<u8> {
    let known = recipe.blobs.get(&digest).cloned();
    known.unwrap_or_else(|| vec![0; usize::try_from(size.min(STATED_LIMIT)).expect("small")])
}

fn layout(recipe: &Recipe) -> Option<Layout> {
    let mut walk = ManifestWalk::new(Index::parse(&recipe.index).ok()?).ok()?;
    while let Some(request) = walk.next_manifest().ok()? {
        walk.supply(recipe.blobs.get(&request.blob.digest)?).ok()?;
    }
    walk.finish(recipe.index.len() as u64).ok()
}

/// Returns the sizes of the frames, and true if they are those that the documents require.
fn cuts(layout: Option<&Layout>, len: usize) -> (Vec<usize>, bool) {
    const FRAMES: usize = 1 << 8;
    let expected: Vec<usize> = layout
        .into_iter()
        .flat_map(Layout::cuts)
        .take(FRAMES)
        .map(|len| usize::try_from(len).expect("at most FRAME_SIZE"))
        .collect();
    if expected.iter().sum::<usize>() == len {
        return (expected, true);
    }
    let frames = len.div_ceil(FRAME_SIZE);
    ((0..frames).map(|number| (len - number * FRAME_SIZE).min(FRAME_SIZE)).collect(), false)
}
