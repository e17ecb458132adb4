//! Writes one object of a bundle to stdout or a file.

use std::io::{self, Write};
use std::path::Path;

use crate::base::buffer::Slice;
use crate::base::fs::FsError;
use crate::base::output_file::{Access, OutputFile};
use crate::bundle::format::layout::Blob;
use crate::bundle::format::{INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_CONTENT};
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::oci::digest::{Digest, Hasher};
use crate::oci::reference::Reference;

/// The destination.
pub(crate) enum Output<'a> {
    /// A file, which is renamed to this path after all bytes are verified.
    File(&'a Path),
    /// A stream, which gets the last bytes after all bytes are verified.
    Stream(&'a mut dyn Write),
}

/// The reasons why an object cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CatError {
    /// The bundle has no such object.
    #[error(
        "no such object in the bundle: `{0}`: use a reference or path that `unbundle ls` lists, or a digest"
    )]
    NotFound(String),
    /// A delta omits the object.
    #[error("this delta omits `{0}`: it is on the site for which the delta was packed")]
    External(String),
    /// The object is damaged or missing.
    #[error("cannot read `{name}`")]
    Read {
        /// As requested: a digest, path or reference.
        name: String,
        #[source]
        source: ReadError,
    },
    /// A file call failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// Writing to the stream failed.
    #[error("cannot write to stdout")]
    Stream(#[source] io::Error),
}

enum Object {
    /// A blob that must be read.
    Blob(Blob),
    /// The bytes of a document, which have been read.
    Bytes(Vec<u8>),
}

/// Writes the object `name`: the digest of a blob, the path of a file, the reference of an image (its
/// manifest or index), or `index.json` or `oci-layout`. `reader` must be positioned behind the documents that
/// are `contents`.
pub(crate) fn cat(
    reader: &mut BundleReader,
    contents: &Contents,
    name: &str,
    output: Output,
) -> Result<(), CatError> {
    let object = find(contents, name).ok_or_else(|| CatError::NotFound(name.to_owned()))?;
    if let Object::Blob(blob) = &object
        && contents.layout.external.contains(blob)
    {
        return Err(CatError::External(name.to_owned()));
    }
    match output {
        Output::Stream(stream) => write(reader, contents, name, object, stream, CatError::Stream),
        Output::File(path) => {
            let mut file = OutputFile::create(path, Access::Default)?;
            let at = |error| FsError::at("write", path)(error).into();
            write(reader, contents, name, object, &mut file, at)?;
            Ok(file.finish()?)
        }
    }
}

fn find(contents: &Contents, name: &str) -> Option<Object> {
    let layout = &contents.layout;
    if let Ok(digest) = name.parse::<Digest>() {
        if digest == contents.identity {
            return Some(Object::Bytes(contents.index.clone()));
        }
        return find_digest(contents, digest);
    }
    if let Some(file) = layout.files.iter().find(|file| file.path.to_string() == name) {
        return Some(Object::Blob(Blob { digest: file.digest, size: file.size }));
    }
    let reference = name.parse::<Reference>().ok();
    if let Some(image) =
        layout.images.iter().find(|image| Some(&image.indexed.reference) == reference.as_ref())
    {
        return find_digest(contents, image.indexed.digest);
    }
    match name {
        INDEX_JSON => Some(Object::Bytes(contents.index.clone())),
        OCI_LAYOUT => Some(Object::Bytes(OCI_LAYOUT_CONTENT.to_vec())),
        _ => None,
    }
}

fn find_digest(contents: &Contents, digest: Digest) -> Option<Object> {
    if let Some(bytes) = contents.manifests.get(&digest) {
        return Some(Object::Bytes(bytes.clone()));
    }
    let mut blobs = contents.layout.blobs.iter().chain(&contents.layout.external);
    blobs.find(|blob| blob.digest == digest).map(|blob| Object::Blob(*blob))
}

/// Writes the object, and reads the rest of the bundle if it cannot be closed before its end (a pipe): the
/// writing process would fail with `EPIPE`.
fn write(
    reader: &mut BundleReader,
    contents: &Contents,
    name: &str,
    object: Object,
    stream: &mut dyn Write,
    write_error: impl Fn(io::Error) -> CatError,
) -> Result<(), CatError> {
    let read_error = |source| CatError::Read { name: name.to_owned(), source };
    let mut pending = match object {
        Object::Bytes(bytes) => {
            stream.write_all(&bytes).map_err(&write_error)?;
            None
        }
        Object::Blob(blob) => Some(blob.digest),
    };
    reader.narrow(contents.layout.ranges(|digest| Some(digest) == pending));
    for blob in &contents.layout.blobs {
        if pending.is_none() && (reader.can_stop() || reader.is_lost()) {
            break;
        }
        if pending == Some(blob.digest) {
            write_blob(reader, blob, stream, &read_error, &write_error)?;
            pending = None;
            continue;
        }
        let skipped = reader.skip(blob);
        if pending.is_some() && reader.is_lost() {
            skipped.map_err(read_error)?;
        }
    }
    if !reader.can_stop() && !reader.is_lost() {
        let _ = reader.end(); // the object is written: damage at the end does not matter
    }
    Ok(())
}

/// Writes a blob while it is read, and its last slice after the digest is verified.
fn write_blob(
    reader: &mut BundleReader,
    blob: &Blob,
    stream: &mut dyn Write,
    read_error: &impl Fn(ReadError) -> CatError,
    write_error: &impl Fn(io::Error) -> CatError,
) -> Result<(), CatError> {
    let mut hasher = Hasher::new();
    let mut last: Option<Slice> = None;
    let copied = reader.blob::<CopyError>(blob, |slice| {
        hasher.update(&slice);
        match last.replace(slice) {
            Some(previous) => stream.write_all(&previous).map_err(CopyError::Write),
            None => Ok(()),
        }
    });
    copied.map_err(|error| match error {
        CopyError::Read(error) => read_error(error),
        CopyError::Write(error) => write_error(error),
    })?;
    if hasher.finish() != blob.digest {
        return Err(read_error(ReadError::Digest(blob.digest)));
    }
    last.map_or(Ok(()), |slice| stream.write_all(&slice)).map_err(write_error)
}

enum CopyError {
    Read(ReadError),
    Write(io::Error),
}

impl From<ReadError> for CopyError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}
