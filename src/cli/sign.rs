//! `airbundle sign`: signs a finished bundle, or a list of revoked keys.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;

use crate::base::fs;
use crate::base::json::text_of;
use crate::base::output_file::{Access, OutputFile};
use crate::bundle::read::detached::file_name;
use crate::bundle::read::discover;
use crate::bundle::read::error::ReadError;
use crate::bundle::read::reader::BundleReader;
use crate::cli::console::Text;
use crate::cli::date::source_date;
use crate::cli::exit::{Code, Failure};
use crate::cli::host_keys::signature_of;
use crate::cli::keygen::signer;
use crate::cli::progress::Output;
use crate::cli::trust::TrustArgs;
use crate::cli::verify::require_intact;
use crate::commands::verify::verify_rest;
use crate::oci::digest::Digest;
use crate::signature::KeyId;
use crate::signature::policy::Policy;
use crate::signature::revocations::{REVOCATIONS, Revocations};
use crate::signature::signing::Signer;

/// Maximum size of a list of revoked keys, in bytes.
const LIST_LIMIT: u64 = 1 << 20;

/// Sign a finished bundle, or a list of revoked keys
///
/// The signature of a bundle is a file next to it, NAME.KEYID.minisig. The bundle itself does not change. Several
/// keys can sign the same bundle. The bundle is verified first: a damaged one is not signed.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// Bundle file, first volume, or directories with volumes
    #[arg(value_name = "BUNDLE", required_unless_present = "revoke", conflicts_with = "revoke")]
    bundle: Vec<PathBuf>,
    /// Secret key to sign with (`airbundle keygen` or minisign)
    #[arg(long, value_name = "KEY")]
    key: PathBuf,
    /// Read the passphrase of --key from stdin [default: `$AIRBUNDLE_PASSPHRASE`, or a prompt]
    #[arg(long)]
    passphrase_stdin: bool,
    /// With trusted keys: sign a bundle that none of them has signed
    #[arg(long, conflicts_with = "revoke")]
    allow_unsigned: bool,
    /// Add this key ID to a list of revoked keys and sign the list; can be repeated
    ///
    /// The list belongs into /etc/airbundle/trusted-keys.d, together with its signature.
    #[arg(long, value_name = "KEYID")]
    revoke: Vec<KeyId>,
    /// With --revoke: list to write or to extend; its signature gets the extension .minisig in addition
    #[arg(long, short, value_name = "FILE", requires = "revoke", default_value = REVOCATIONS)]
    output: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    out: Output,
}

impl Sign {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let date = source_date()?;
        let signer = signer(&self.key, self.passphrase_stdin)?.at(date.map(OffsetDateTime::unix_timestamp));
        if self.revoke.is_empty() { self.sign_bundle(&signer) } else { self.revoke(&signer) }
    }

    fn sign_bundle(&self, signer: &Signer) -> Result<Code, Failure> {
        let policy = if self.allow_unsigned { Policy::none() } else { self.trust.policy()? };
        let volumes = discover::find(&self.bundle).map_err(ReadError::from)?;
        let directory = volumes.directories().first().cloned().unwrap_or_default();
        let path = directory.join(file_name(volumes.name(), signer.id()));
        OutputFile::check(&path)?;
        let mut reader = BundleReader::from_volumes(volumes, &policy)?;
        let contents = reader.contents().map_err(|error| {
            let is_unsigned = matches!(error, ReadError::Signature(_));
            let failure = Failure::from(error);
            if is_unsigned {
                failure.with_hint("use `--allow-unsigned` to sign it nevertheless")
            } else {
                failure
            }
        })?;
        let verdict = self.out.report(|report| verify_rest(&contents, reader, report))?;
        require_intact(&verdict, &self.bundle[0])?;
        OutputFile::write(&path, Access::Default, &signer.sign(&contents.index))?;
        let signature =
            BundleSignature { file: text_of(&path), key: signer.id(), identity: contents.identity };
        self.out.print(&signature, || {
            let BundleSignature { file, key, identity } = &signature;
            let mut text = Text::of(format_args!("{file}: signature by key {key}"));
            text.line(format_args!("identity {identity}"));
            text
        })?;
        Ok(Code::Success)
    }

    fn revoke(&self, signer: &Signer) -> Result<Code, Failure> {
        let mut list = read(&self.output)?;
        list.0.extend(&self.revoke);
        if list.0.contains(&signer.id()) {
            let message =
                format!("cannot sign `{}` with key {}, which it revokes", self.output.display(), signer.id());
            return Err(Failure::new(Code::Usage, message).with_hint("sign it with another trusted key"));
        }
        let text = list.to_text();
        let signature = signer.sign_file(text.as_bytes(), REVOCATIONS, "airbundle revoked keys");
        let signature_path = signature_of(&self.output);
        // A list without a matching signature is an error on the hosts.
        OutputFile::write(&self.output, Access::Default, text.as_bytes())?;
        OutputFile::write(&signature_path, Access::Default, &signature)?;
        let result = SignedRevocations {
            file: text_of(&self.output),
            signature: text_of(&signature_path),
            key: signer.id(),
            revoked: list.0,
        };
        let mut text =
            Text::of(format_args!("{}: {} revoked keys", self.output.display(), result.revoked.len()));
        text.line(format_args!("{}: signature by key {}", signature_path.display(), signer.id()));
        self.out.print(&result, || text)?;
        Ok(Code::Success)
    }
}

/// The result of signing a bundle.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct BundleSignature {
    /// The file with the signature.
    file: String,
    /// The key ID of the signature.
    key: KeyId,
    /// The identity of the bundle.
    identity: Digest,
}

/// The result of signing a list of revoked keys.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SignedRevocations {
    /// The list.
    file: String,
    /// The file with the signature.
    signature: String,
    /// The key ID of the signature.
    key: KeyId,
    /// The IDs of all revoked keys.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    revoked: BTreeSet<KeyId>,
}

/// Reads a list. A missing file is an empty list.
fn read(path: &Path) -> Result<Revocations, Failure> {
    if path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(Revocations::default());
    }
    Revocations::parse(&fs::read(path, LIST_LIMIT)?).map_err(|error| {
        Failure::of(Code::Usage, &error).context(format_args!("cannot extend `{}`", path.display()))
    })
}
