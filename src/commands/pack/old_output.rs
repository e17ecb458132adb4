//! [`OldOutput`]: the bundle that an earlier run wrote to the same output.
//!
//! If the lists still mean the same, it is verified and kept. Otherwise its blobs are copied.

use std::path::PathBuf;

use sha2::{Digest as _, Sha512};

use crate::base::error_chain::chain;
use crate::base::event::{Event, Report};
use crate::bundle::format::layout::{Blob, Layout};
use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::{BundleReader, Contents};
use crate::bundle::reuse::ReusableBundle;
use crate::bundle::write::parts::volume_path;
use crate::bundle::write::sums::listed;
use crate::bundle::write::volume_writer::VolumeOptions;
use crate::commands::pack::options::PackOptions;
use crate::commands::pack::validators::Validators;
use crate::commands::verify::quick::quick;
use crate::commands::verify::{Verdict, verify};
use crate::documents::list::{Checksum, FileEntry, source_url};
use crate::fetch::web::RemoteFile;
use crate::oci::digest::Digest;
use crate::plan::bundle_plan::CompletePlan;

/// The bundle that an earlier run wrote to the same output; see the module.
pub(super) struct OldOutput {
    /// Its blobs.
    pub(super) bundle: ReusableBundle,
    /// Its only file or first volume.
    path: PathBuf,
    identity: Digest,
    layout: Layout,
    /// The signature that is part of it.
    signature: Option<Vec<u8>>,
    validators: Validators,
}

/// A file of the lists and the content that it had, or may still have.
pub(super) struct OldFile {
    /// Its index in the resolved files.
    pub(super) index: usize,
    pub(super) blob: Blob,
}

impl OldOutput {
    /// Opens the bundle at the output. `None`: nothing is there, or it cannot be used, which is reported.
    ///
    /// A command for each volume may move the new ones to the place of the old ones at any time, so that the old ones
    /// are not used with one.
    pub(super) fn open(options: &PackOptions, report: &dyn Report) -> Option<Self> {
        let first_volume = volume_path(&options.output, 1);
        let in_volumes = first_volume.exists() && (options.volume_size.is_some() || !options.output.exists());
        let path = if in_volumes { first_volume } else { options.output.clone() };
        if options.on_volume.is_some() || !path.exists() {
            return None;
        }
        let opened = Self::open_at(path, options);
        let warn = |error: ReadError| {
            let message = format!("`{}` is not reused: {}", options.output.display(), chain(&error));
            report.event(&Event::Warning { message });
        };
        opened.map_err(warn).ok()
    }

    fn open_at(path: PathBuf, options: &PackOptions) -> Result<Self, ReadError> {
        let volumes = || discover::find(std::slice::from_ref(&path));
        let contents = BundleReader::from_volumes(volumes()?, &options.policy)?.contents()?;
        let Contents { identity, layout, manifests, embedded_signature: signature, .. } = contents;
        let bundle = ReusableBundle::with_contents(&path, volumes()?, &layout, manifests)?;
        let validators = Validators::read(&options.output);
        Ok(Self { bundle, path, identity, layout, signature, validators })
    }

    /// Pins the files whose content is known to be that of the old bundle: by the version that the server states, or by
    /// another checksum. Adds the versions to `validators`.
    pub(super) fn pin_unchanged(&self, files: &mut [(FileEntry, RemoteFile)], validators: &mut Validators) {
        for (entry, remote) in files {
            let Some(old) = self.file(entry) else { continue };
            let is_same = match &entry.checksum {
                None => self.validators.blob(entry, remote) == Some(old),
                Some(Checksum::Sha256(digest)) => *digest == old.digest,
                Some(Checksum::Sha512(expected)) => self.has_sha512(old, expected),
            };
            if is_same {
                if entry.checksum.is_none() {
                    validators.add(entry, remote, old);
                }
                pin(remote, old);
            }
        }
    }

    /// Returns the unpinned files that may have the content of the old bundle.
    pub(super) fn unvalidated(&self, files: &[(FileEntry, RemoteFile)]) -> Vec<OldFile> {
        let candidate = |(index, (entry, remote)): (usize, &(FileEntry, RemoteFile))| {
            let blob = self.file(entry).filter(|_| entry.checksum.is_none() && remote.content.is_none())?;
            remote.size.is_none_or(|size| size == blob.size).then_some(OldFile { index, blob })
        };
        files.iter().enumerate().filter_map(candidate).collect()
    }

    fn file(&self, entry: &FileEntry) -> Option<Blob> {
        let file = self.layout.files.iter().find(|file| file.path == entry.path)?;
        (file.url == source_url(&entry.url)).then_some(Blob { digest: file.digest, size: file.size })
    }

    fn has_sha512(&self, blob: Blob, expected: &[u8; 64]) -> bool {
        let mut hasher = Sha512::new();
        self.bundle.read_parts(blob, |part| hasher.update(part)) && hasher.finalize()[..] == expected[..]
    }

    /// True if `plan` with these options would write the same bytes, as far as the structure of the old bundle tells.
    pub(super) fn is_of(
        &self,
        plan: &CompletePlan<'_>,
        options: &PackOptions,
        volume_options: VolumeOptions,
    ) -> bool {
        let index = plan.head().index;
        let signature = options.sign.as_ref().map(|signer| signer.sign(&index));
        Digest::of(&index) == self.identity
            && signature == self.signature
            && self.has_options(options, volume_options)
            && self.bundle.is_compressed_at(options.level)
    }

    fn has_options(&self, options: &PackOptions, volume_options: VolumeOptions) -> bool {
        let volumes = self.bundle.volumes();
        if options.volume_size.is_some() {
            let listed = listed(&options.output);
            let is_listed = volumes.volumes().iter().all(|volume| listed.contains_key(&volume.name));
            return volumes.id() == Some(volume_options.set) && is_listed;
        }
        let recovery = volumes.recovery(0).map(|recovery| recovery.per_mille());
        !volumes.is_in_volumes() && recovery == options.recovery
    }

    /// Verifies the old bundle, or only its structure.
    pub(super) fn verify(
        &self,
        is_quick: bool,
        options: &PackOptions,
        report: &dyn Report,
    ) -> Result<Verdict, ReadError> {
        let open = || BundleReader::open(&self.path, &options.policy);
        let structure = if is_quick { quick(open()?, report)? } else { None };
        structure.map_or_else(|| verify(open()?, report), Ok)
    }

    pub(super) fn identity(&self) -> Digest {
        self.identity
    }

    /// Returns the blobs, images and files that it has.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// Pins a file to its content.
pub(super) fn pin(remote: &mut RemoteFile, blob: Blob) {
    remote.content = Some(blob);
    remote.size = Some(blob.size);
}
