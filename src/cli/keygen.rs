//! `airbundle keygen`: generates signing keys, and opens them for `pack --sign`.

use std::io::{IsTerminal as _, Read as _, stdin};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::base::fs;
use crate::base::output_file::{Access, OutputFile};
use crate::cli::console::{Text, prompt_password};
use crate::cli::exit::{Code, Failure};
use crate::cli::output::print;
use crate::signature::signing::{SecretKeyFile, Signer, generate};

/// The environment variable with the passphrase of the secret key.
const VARIABLE: &str = "AIRBUNDLE_PASSPHRASE";
/// Maximum length of a passphrase, in bytes.
const PASSPHRASE_LIMIT: u64 = 1 << 10;
/// Maximum size of a key file, in bytes.
const KEY_LIMIT: u64 = 64 << 10;

/// Generate a key pair for `airbundle pack --sign` and `unbundle --trusted-key`
#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// Secret key to write; the public key gets the extension .pub
    #[arg(long, short, value_name = "FILE", default_value = "airbundle.key")]
    output: PathBuf,
    /// Do not encrypt the secret key; anyone who can read the file can sign
    #[arg(long, conflicts_with = "passphrase_stdin")]
    no_passphrase: bool,
    /// Read the passphrase from stdin [default: `$AIRBUNDLE_PASSPHRASE`, or a prompt]
    #[arg(long)]
    passphrase_stdin: bool,
}

impl Keygen {
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let public = self.output.with_extension("pub");
        if public == self.output {
            let message = "invalid `--output`: a secret key cannot have the extension `.pub`";
            return Err(Failure::new(Code::Usage, message));
        }
        for path in [&self.output, &public] {
            if path.symlink_metadata().is_ok() {
                let message = format!("cannot create `{}`: file exists", path.display());
                return Err(Failure::new(Code::File, message).with_hint("keys are never overwritten"));
            }
        }
        let passphrase =
            if self.no_passphrase { None } else { Some(passphrase(self.passphrase_stdin, true)?) };
        let key = generate(passphrase);
        OutputFile::write_new(&self.output, Access::Private, key.secret.as_bytes())?;
        OutputFile::write_new(&public, Access::Default, key.public.as_bytes())?;
        let line = key.public.lines().nth(1).unwrap_or_default();
        let secret = self.output.display();
        let mut text =
            Text::of(format_args!("{secret}: secret key; sign with `airbundle pack --sign {secret}`"));
        text.line(format_args!("{}: public key for the sites, as a file or as", public.display()));
        text.line(line);
        print(&text)?;
        Ok(Code::Success)
    }
}

/// Opens the secret key `path`.
pub(super) fn signer(path: &Path, is_on_stdin: bool) -> Result<Signer, Failure> {
    let bytes = fs::read(path, KEY_LIMIT)?;
    let invalid = |error: &dyn std::error::Error| {
        Failure::new(Code::Usage, format!("cannot sign with `{}`: {error}", path.display()))
    };
    let file = SecretKeyFile::new(String::from_utf8_lossy(&bytes).into_owned());
    let is_protected = file.is_protected().map_err(|error| invalid(&error))?;
    let passphrase = if is_protected { Some(passphrase(is_on_stdin, false)?) } else { None };
    file.open(passphrase).map_err(|error| invalid(&error))
}

/// Returns a warning if other users can read the secret key `path`. A key from a pipe has no owner.
pub(super) fn exposure(path: &Path) -> Option<String> {
    let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let (path, uid) = (path.display(), metadata.uid());
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Some(format!(
            "the secret key `{path}` belongs to another user (UID {uid}), who can read and replace it: use a copy that \
             belongs to you"
        ));
    }
    (metadata.mode() & 0o077 != 0)
        .then(|| format!("other users can read or write the secret key `{path}`: run `chmod 600 {path}`"))
}

/// Reads the passphrase from stdin, the environment, or the terminal without echo; twice for a new key.
fn passphrase(is_on_stdin: bool, is_new: bool) -> Result<String, Failure> {
    let failed = |cause: &dyn std::fmt::Display| {
        Failure::new(Code::Usage, format!("cannot read the passphrase: {cause}"))
    };
    let unreadable = |error: std::io::Error| failed(&error);
    let text = if is_on_stdin {
        let mut text = String::new();
        stdin().lock().take(PASSPHRASE_LIMIT).read_to_string(&mut text).map_err(unreadable)?;
        text.lines().next().unwrap_or_default().to_owned()
    } else if let Some(text) = std::env::var_os(VARIABLE) {
        text.into_string().map_err(|_| failed(&format_args!("`{VARIABLE}` is not valid UTF-8")))?
    } else if stdin().is_terminal() {
        let text = prompt_password("Passphrase:").map_err(unreadable)?;
        if is_new && prompt_password("Repeat passphrase:").map_err(unreadable)? != text {
            return Err(failed(&"the two passphrases differ"));
        }
        text
    } else {
        let hint = format!("set {VARIABLE}, or use `--passphrase-stdin`");
        return Err(failed(&"stdin is not a terminal").with_hint(hint));
    };
    if text.is_empty() { Err(failed(&"it is empty")) } else { Ok(text) }
}
