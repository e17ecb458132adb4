//! Parts of the bundle format: frames, the seek table and the documents.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Cursor;

use crate::bundle::format::index::{FileSet, Index};
use crate::bundle::format::label::Label;
use crate::bundle::format::layout::Layout;
use crate::bundle::format::manifest_walk::ManifestWalk;
use crate::bundle::format::seek_table::{self as table, FrameEntry};
use crate::bundle::format::skippable::{SEEK_TABLE_MAGIC, VOLUME_MAGIC};
use crate::bundle::format::{BLOCK, FRAME_SIZE, frame, padded, skippable};
use crate::bundle::read::frame_reader::{self, Frame, FrameReader};
use crate::documents::lock::Lock;
use crate::fuzzing::input::Input;
use crate::fuzzing::laws::document_prints_what_it_parses;
use crate::oci::manifest::{MANIFEST_TYPES, Manifest, config_platform};

/// Frames: as they are, assembled from blocks with a correct checksum, and encoded from content.
pub fn frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.byte() % 4 {
        0 => {
            assert_decodes(&frame::store(input.rest()), input.rest());
        }
        1 => {
            let level = 1 + i32::from(input.byte() % 4);
            // Long enough for several blocks, and for content that is stored.
            let content = input.rest().repeat(1 + usize::from(input.byte()));
            assert_decodes(&frame::encode(&content, level), &content);
        }
        2 => {
            let (frame, content) = assembled(&mut input);
            if let Some(decoded) = read_all(&[&frame, input.rest()].concat()).first() {
                assert!(decoded.is_none() || *decoded == Some(content), "other content");
            }
        }
        _ => drop(read_all(input.rest())),
    }
}

fn assert_decodes(frame: &[u8], content: &[u8]) {
    assert!(frame.len() <= frame::stored_len(content.len()));
    assert!(read_all(frame) == [Some(content.to_vec())]);
}

/// Returns a frame of raw and RLE blocks with any header, and its content if that is valid.
fn assembled(input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
    let (descriptor, mut blocks, mut content) = (input.byte() | 0b100, Vec::new(), Vec::new());
    for _ in 0..=input.byte() % 8 {
        let (kind, len, is_last) = (input.byte(), input.below(1 << 18), input.byte() == 0);
        let header =
            u32::try_from(len).expect("below 2^18") << 3 | u32::from(kind % 4) << 1 | u32::from(is_last);
        blocks.extend_from_slice(&header.to_le_bytes()[..3]);
        match kind % 4 {
            0 => {
                let raw = input.bytes(len);
                content.extend_from_slice(raw);
                blocks.extend_from_slice(raw);
            }
            1 => {
                let byte = input.byte();
                content.resize(content.len() + len, byte);
                blocks.push(byte);
            }
            _ => blocks.extend_from_slice(input.bytes(len)),
        }
        if is_last {
            break;
        }
    }
    let mut frame = frame::MAGIC.to_le_bytes().to_vec();
    frame.push(descriptor);
    let size = (content.len() as u64).wrapping_add(input.byte().into());
    if let Ok(header) = frame::Header::parse(descriptor) {
        let window = header.rest - header.size_field;
        frame.extend_from_slice(input.bytes(window));
        let size = if header.size_field == 2 { size.wrapping_sub(256) } else { size };
        frame.extend_from_slice(&size.to_le_bytes()[..header.size_field]);
    }
    frame.extend_from_slice(&blocks);
    frame.extend_from_slice(&frame::checksum(&content));
    (frame, content)
}

/// Reads frames like a reader of bundles, and compares them with zstd. Returns the content of each; `None`: it is corrupt.
fn read_all(bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
    let buffers = frame_reader::buffers();
    let mut reader = FrameReader::new(bytes, 0, &buffers);
    let mut contents = Vec::new();
    loop {
        let start = usize::try_from(reader.offset()).expect("in memory");
        let Ok(Some(frame)) = reader.next_frame() else { return contents };
        let end = usize::try_from(reader.offset()).expect("in memory");
        let (encoded, size) = (&bytes[start..end], frame.content_size());
        assert!(size <= FRAME_SIZE);
        let Frame::Data(data) = frame else { continue };
        let content = data.decode(&buffers).ok().map(|content| content.to_vec());
        assert!(content.as_ref().is_none_or(|content| content.len() == size));
        // zstd accepts no other content, and no frame that the reader refuses after it has read the blocks.
        let expected = zstd::bulk::decompress(encoded, size).ok().filter(|content| content.len() == size);
        assert!(content == expected, "zstd decodes {}", encoded.escape_ascii());
        let number = |len: usize| u32::try_from(len).expect("at most FRAME_SIZE and its overhead");
        let entry = FrameEntry { compressed: number(encoded.len()), decompressed: number(size) };
        if encoded.len() <= frame::stored_len(size) {
            assert!(frame::is_header_of(&encoded[..frame::HEADER_LEN.min(encoded.len())], entry));
        }
        contents.push(content);
    }
}

/// The seek table at the end of a bundle, its payload, and the label of a volume.
pub fn seek_table(bytes: &[u8]) {
    for bytes in [bytes, &with_footer(bytes)] {
        let mut input = Cursor::new(bytes);
        let last = table::read_last(&mut input).expect("in memory");
        let complete = table::read(&mut input).expect("in memory");
        if let Some((entries, len)) = last {
            assert!(table::has_footer(&mut input).expect("in memory"));
            let len = usize::try_from(len).expect("in memory");
            assert_eq!(table::encode(&entries), bytes[bytes.len() - len..]);
            if let Some(complete) = complete {
                assert_eq!(complete, entries);
                assert_eq!(table::bundle_len(&entries, len as u64), bytes.len() as u64);
            }
        } else {
            assert_eq!(complete, None);
        }
    }
    if let Some(entries) = table::decode(bytes) {
        assert_eq!(table::encode(&entries), skippable::encode(SEEK_TABLE_MAGIC, bytes));
    }
    if let Some(label) = Label::parse(bytes) {
        let frame = label.to_frame();
        assert!(frame.starts_with(&VOLUME_MAGIC.to_le_bytes()));
        assert_eq!(Label::parse(&frame[8..]), Some(label));
    }
}

/// Returns bytes as a bundle whose seek table describes them, as long as the input has entries.
fn with_footer(bytes: &[u8]) -> Vec<u8> {
    let mut input = Input::new(bytes);
    let mut entries = Vec::new();
    while !input.is_empty() {
        let (compressed, decompressed) = (input.byte().into(), u32::from(input.byte()) << 15);
        entries.push(FrameEntry { compressed, decompressed });
    }
    let len: usize = entries.iter().map(|entry| entry.compressed as usize).sum();
    [vec![0; len], table::encode(&entries)].concat()
}

/// `index.json`, and the manifests that a walk over it requests. A zero byte ends each document.
pub fn index(bytes: &[u8]) {
    let mut documents = bytes.split(|byte| *byte == 0);
    let document = documents.next().unwrap_or_default();
    let Ok(index) = Index::parse(document) else { return };
    document_prints_what_it_parses(&index, Index::to_json, Index::parse);
    for image in &index.images {
        assert!(image.reference.digest().is_none_or(|digest| digest == image.digest), "{}", image.reference);
    }
    // The digests of these documents are not compared: the walk relies on its caller for that.
    let Ok(mut walk) = ManifestWalk::new(index) else { return };
    loop {
        match walk.next_manifest() {
            Ok(Some(_)) => {
                let Some(document) = documents.next() else { return };
                if walk.supply(document).is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(_) => return,
        }
    }
    if let Ok(layout) = walk.finish(document.len() as u64) {
        check_layout(&layout);
    }
}

/// Asserts that the entries, frames and ranges of a layout describe the same tar stream.
fn check_layout(layout: &Layout) {
    const FRAMES: usize = 1 << 10;
    let mut end = 0;
    for entry in layout.entries() {
        assert_eq!(entry.offset, end);
        end += BLOCK as u64 + padded(entry.size);
    }
    let cuts: Vec<u64> = layout.cuts().take(FRAMES).collect();
    assert!(cuts.iter().all(|len| (1..=FRAME_SIZE as u64).contains(len)));
    if cuts.len() < FRAMES {
        assert_eq!(cuts.iter().sum::<u64>(), end + 2 * BLOCK as u64);
    }
    let ranges = layout.ranges(|_| true);
    assert!(ranges.len() <= 1 && ranges.iter().all(|range| range.end == end), "{ranges:?}");
    let sizes = layout.external.iter().map(|blob| blob.size).sum::<u64>() + layout.total_size();
    assert!(sizes <= 1 << 53, "{sizes}");
    for image in &layout.images {
        let types = layout.media_types(image);
        assert!(image.manifests.iter().all(|manifest| types.contains_key(&manifest.digest)));
        let _ = layout.platforms(image, |_| Ok::<_, Infallible>(None));
        let _ = layout.attestations(image);
    }
    let lock = Lock::of(layout, &layout.files, &HashMap::new());
    if let Ok(again) = Lock::parse(&lock.to_json()) {
        assert_eq!(again, lock);
    }
}

/// A manifest, a file set, or the config of an image. The first byte is the number of the media type.
pub fn manifest(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let media_type = MANIFEST_TYPES[usize::from(input.byte()) % MANIFEST_TYPES.len()];
    let bytes = input.rest();
    let manifest = Manifest::parse(media_type, bytes);
    let document = Manifest::parse_document(media_type, bytes);
    if let (Ok(manifest), Ok(typed)) = (&manifest, &document)
        && typed.media_type == media_type
    {
        assert_eq!(*manifest, typed.manifest);
    }
    assert_eq!(document.map(|typed| typed.manifest).is_ok(), Manifest::parse_unannounced(bytes).is_ok());
    if let Ok(files) = FileSet::parse(bytes) {
        document_prints_what_it_parses(&files, FileSet::to_json, FileSet::parse);
    }
    if let Ok(Some(platform)) = config_platform("application/vnd.oci.image.config.v1+json", bytes) {
        let text = platform.to_string();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)), "{text}");
    }
}
