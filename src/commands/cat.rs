//! One object out of a bundle: a bundle in, bytes out.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::base::buffer::Slice;
use crate::base::fs::{self, FsError};
use crate::bundle::format::layout::Blob;
use crate::bundle::format::{INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT};
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::oci::digest::{Digest, Hasher};
use crate::oci::reference::Reference;

/// Where the bytes go.
pub(crate) enum Output<'a> {
    /// Into a file, which has its name when all of them are right.
    File(&'a Path),
    /// To somebody who reads them as they come, and gets the last ones when all of them are right.
    Stream(&'a mut dyn Write),
}

/// Why an object is not written.
#[derive(Debug, thiserror::Error)]
pub enum CatError {
    /// There is none.
    #[error(
        "the bundle has no `{0}`: `unbundle ls` shows the references of its images and the paths of its files, and every blob \
         goes by its digest"
    )]
    Nothing(String),
    /// It belongs to the bundle, and is not in it.
    #[error("`{0}` is left out of this delta, and is on the site that it was packed for")]
    Elsewhere(String),
    /// It cannot be read.
    #[error("`{name}` is not whole")]
    Read {
        /// How it was asked for.
        name: String,
        /// What is wrong.
        #[source]
        source: ReadError,
    },
    /// The file system says no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Who reads the bytes does not take them.
    #[error("cannot write to stdout")]
    Stream(#[source] io::Error),
}

/// What somebody has asked for.
enum Object {
    /// A blob of the bundle.
    Blob(Blob),
    /// What is known already.
    Bytes(Vec<u8>),
}

/// Writes the object `name`: a blob by its digest, a file by its path, the manifest of an image by its reference, or one of
/// the two documents at the front. `reader` has read `contents`.
pub(crate) fn cat(
    reader: &mut BundleReader,
    contents: &Contents,
    name: &str,
    output: Output,
) -> Result<(), CatError> {
    let object = find(contents, name).ok_or_else(|| CatError::Nothing(name.to_owned()))?;
    if let Object::Blob(blob) = &object
        && contents.layout.external.contains(blob)
    {
        return Err(CatError::Elsewhere(name.to_owned()));
    }
    match output {
        Output::Stream(stream) => write(reader, contents, name, object, stream, CatError::Stream),
        Output::File(path) => {
            let partial = fs::partial(path);
            let file = File::create(&partial).map_err(FsError::at("create", &partial))?;
            let at = |error| FsError::at("write", &partial)(error).into();
            let written = write(reader, contents, name, object, &mut &file, at);
            let synced = written.and_then(|()| file.sync_all().map_err(at));
            let renamed = synced.and_then(|()| Ok(fs::rename_durably(&partial, path)?));
            if renamed.is_err() {
                let _ = std::fs::remove_file(&partial); // it already failed, and says why
            }
            renamed
        }
    }
}

fn find(contents: &Contents, name: &str) -> Option<Object> {
    let layout = &contents.layout;
    if let Ok(digest) = name.parse::<Digest>() {
        if digest == contents.identity {
            return Some(Object::Bytes(contents.index.clone()));
        }
        return by_digest(contents, digest);
    }
    if let Some(file) = layout.files.iter().find(|file| file.path.to_string() == name) {
        return Some(Object::Blob(Blob { digest: file.digest, size: file.size }));
    }
    let reference = name.parse::<Reference>().ok();
    if let Some(image) =
        layout.images.iter().find(|image| Some(&image.indexed.reference) == reference.as_ref())
    {
        return by_digest(contents, image.indexed.digest);
    }
    match name {
        INDEX_JSON => Some(Object::Bytes(contents.index.clone())),
        OCI_LAYOUT => Some(Object::Bytes(OCI_LAYOUT_CONTENT.to_vec())),
        _ => None,
    }
}

fn by_digest(contents: &Contents, digest: Digest) -> Option<Object> {
    let known = contents.manifests.get(&digest).map(|bytes| Object::Bytes(bytes.clone()));
    let blob =
        || contents.layout.blobs.iter().chain(&contents.layout.external).find(|blob| blob.digest == digest);
    known.or_else(|| blob().map(|blob| Object::Blob(*blob)))
}

fn write(
    reader: &mut BundleReader,
    contents: &Contents,
    name: &str,
    object: Object,
    stream: &mut dyn Write,
    failed: impl Fn(io::Error) -> CatError,
) -> Result<(), CatError> {
    let wanted = match object {
        Object::Bytes(bytes) => {
            stream.write_all(&bytes).map_err(&failed)?;
            None
        }
        Object::Blob(blob) => Some(blob),
    };
    let damaged = |source| CatError::Read { name: name.to_owned(), source };
    reader.narrow(contents.layout.ranges(|digest| wanted.is_some_and(|wanted| wanted.digest == digest)));
    let mut is_done = wanted.is_none();
    for blob in &contents.layout.blobs {
        // Who writes into a pipe would take it for a failure if it were closed before its end.
        if is_done && (reader.can_stop() || reader.is_lost()) {
            break;
        }
        if is_done || wanted.is_some_and(|wanted| wanted.digest != blob.digest) {
            let skipped = reader.skip(blob);
            if !is_done && reader.is_lost() {
                skipped.map_err(damaged)?;
            }
            continue;
        }
        is_done = true;
        let mut hasher = Hasher::new();
        let mut held: Option<Slice> = None;
        reader
            .blob::<Failed>(blob, |slice| {
                hasher.update(&slice);
                match held.replace(slice) {
                    Some(before) => stream.write_all(&before).map_err(|error| Failed::Write(failed(error))),
                    None => Ok(()),
                }
            })
            .map_err(|error| match error {
                Failed::Read(error) => damaged(error),
                Failed::Write(error) => error,
            })?;
        if hasher.finish() != blob.digest {
            return Err(damaged(ReadError::Digest(blob.digest)));
        }
        held.map_or(Ok(()), |last| stream.write_all(&last)).map_err(&failed)?;
    }
    if !reader.can_stop() && !reader.is_lost() {
        let _ = reader.end(); // what is behind it does not matter here
    }
    Ok(())
}

enum Failed {
    Read(ReadError),
    Write(CatError),
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}
