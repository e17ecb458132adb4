//! [`Blobs`]: the blobs of images, in the registry storage of a site or in a bundle.

use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use crate::base::fs::FsError;
use crate::base::own_file::{open_regular, read_regular};
use crate::bundle::format::layout::Blob;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::commands::cat::{CatError, Output, cat};
use crate::oci::digest::{Digest, Hasher};
use crate::oci::manifest::MANIFEST_LIMIT;
use crate::site::storage::blob_path;

/// Chunk size in bytes of blob copies; two chunks are in memory.
pub(super) const CHUNK: usize = 256 << 10;

/// The source of blobs.
pub(crate) enum Blobs<'a> {
    /// The root directory of a registry storage.
    Storage(&'a Path),
    /// A bundle, which is opened for each blob: its frames are read in order, and images share blobs.
    Bundle { contents: &'a Contents, open: &'a dyn Fn() -> Result<BundleReader, ReadError> },
}

/// A blob that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The content does not match the digest or the size.
    #[error("blob `{}` is corrupt: run `unbundle unpack` to repair it", path.display())]
    Corrupt { path: PathBuf },
    /// No such file.
    #[error("blob `{}` is missing: run `unbundle unpack` to restore it", path.display())]
    Missing { path: PathBuf },
    /// The blob of a bundle is damaged, missing or on another site.
    #[error(transparent)]
    Bundle(Box<CatError>),
    /// Another local I/O error.
    #[error(transparent)]
    Fs(FsError),
}

impl From<CatError> for BlobError {
    fn from(error: CatError) -> Self {
        Self::Bundle(Box::new(error))
    }
}

impl From<FsError> for BlobError {
    fn from(error: FsError) -> Self {
        match error.source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing { path: error.path },
            io::ErrorKind::FileTooLarge => Self::Corrupt { path: error.path },
            _ => Self::Fs(error),
        }
    }
}

/// The reason why a blob is not copied completely.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The blob cannot be read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The output cannot be written.
    #[error("cannot write the archive")]
    Output(#[source] io::Error),
}

impl Blobs<'_> {
    /// Returns the content of a manifest or config.
    pub(crate) fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        match self {
            Self::Storage(root) => {
                let path = root.join(blob_path(digest));
                let bytes = read_regular(&path, MANIFEST_LIMIT)?;
                if Digest::of(&bytes) == digest { Ok(bytes) } else { Err(BlobError::Corrupt { path }) }
            }
            Self::Bundle { contents, .. } => {
                if let Some(bytes) = contents.manifests.get(&digest) {
                    return Ok(bytes.clone());
                }
                let mut bytes = Vec::new();
                self.cat(digest, &mut bytes)?;
                Ok(bytes)
            }
        }
    }

    /// Copies a blob. The last chunk is written only after the digest matches.
    pub(super) fn copy(&self, blob: Blob, output: &mut dyn Write) -> Result<(), CopyError> {
        match self {
            Self::Storage(root) => copy_file(&root.join(blob_path(blob.digest)), blob, output),
            Self::Bundle { .. } => self.cat(blob.digest, output).map_err(|error| match error {
                CatError::Stream(error) => CopyError::Output(error),
                error => CopyError::Blob(error.into()),
            }),
        }
    }

    fn cat(&self, digest: Digest, output: &mut dyn Write) -> Result<(), CatError> {
        let Self::Bundle { open, .. } = self else { unreachable!("only for bundles; please report") };
        let name = digest.to_string();
        let read_error = |source| CatError::Read { name: name.clone(), source };
        let mut reader = open().map_err(read_error)?;
        let contents = reader.contents().map_err(read_error)?;
        cat(&mut reader, &contents, &name, Output::Stream(output))
    }
}

fn copy_file(path: &Path, blob: Blob, output: &mut dyn Write) -> Result<(), CopyError> {
    let mut file = open_regular(path).map_err(BlobError::from)?;
    let corrupt = || BlobError::Corrupt { path: path.to_owned() };
    let mut hasher = Hasher::new();
    let (mut pending, mut chunk) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
    loop {
        chunk.clear();
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk);
        read.map_err(|error| BlobError::from(FsError::at("read", path)(error)))?;
        if chunk.is_empty() {
            break;
        }
        hasher.update(&chunk);
        if hasher.len() > blob.size {
            return Err(corrupt().into());
        }
        output.write_all(&pending).map_err(CopyError::Output)?;
        std::mem::swap(&mut pending, &mut chunk);
    }
    if hasher.len() != blob.size || hasher.finish() != blob.digest {
        return Err(corrupt().into());
    }
    output.write_all(&pending).map_err(CopyError::Output)
}
