//! `airbundle keygen`: a key to sign bundles with, and where its passphrase comes from.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _, stdin};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::base::error_chain::chain;
use crate::base::fs::{self, FsError};
use crate::cli::exit::{Code, Failure};
use crate::cli::output::print;
use crate::signature::signing::{SecretKeyFile, Signer, generate};

/// The passphrase of the secret key.
const VARIABLE: &str = "AIRBUNDLE_PASSPHRASE";
/// The longest passphrase that is read, in bytes.
const PASSPHRASE_LIMIT: u64 = 1 << 10;
/// The largest file of a key that is read, in bytes.
const KEY_LIMIT: u64 = 64 << 10;

/// Make a key to sign bundles with: a secret one for `pack --sign`, and a public one for `unbundle --trusted-key`
#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// The secret key; beside it, the public one, whose name ends in .pub
    #[arg(long, short, value_name = "FILE", default_value = "airbundle.key")]
    output: PathBuf,
    /// Do not protect the secret key: whoever reads the file can sign
    #[arg(long, conflicts_with = "passphrase_stdin")]
    no_passphrase: bool,
    /// Read the passphrase from stdin [default: `AIRBUNDLE_PASSPHRASE` of the environment, or ask]
    #[arg(long)]
    passphrase_stdin: bool,
}

impl Keygen {
    /// Makes a key.
    pub(crate) fn run(self) -> Result<Code, Failure> {
        let public = self.output.with_extension("pub");
        if public == self.output {
            let message = "`--output` names the secret key, and `.pub` is the end of the public one's name";
            return Err(Failure::new(Code::Usage, message));
        }
        for path in [&self.output, &public] {
            if path.symlink_metadata().is_ok() {
                let message = format!("`{}` is there already: a key is never written over", path.display());
                return Err(Failure::new(Code::File, message));
            }
        }
        let passphrase =
            if self.no_passphrase { None } else { Some(passphrase(self.passphrase_stdin, true)?) };
        let key = generate(passphrase);
        let failed = |error: FsError| Failure::new(Code::File, chain(&error));
        write_secret(&self.output, &key.secret).map_err(failed)?;
        fs::write_durably(&public, key.public.as_bytes()).map_err(failed)?;
        let line = key.public.lines().nth(1).unwrap_or_default();
        print(&format!(
            "{}: keep it secret; sign with `airbundle pack --sign {0}`\n{}: give it to the sites, as a file or as\n{line}\n",
            self.output.display(),
            public.display(),
        ))?;
        Ok(Code::Success)
    }
}

/// Nobody else can read it, at no time.
fn write_secret(path: &Path, text: &str) -> Result<(), FsError> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(FsError::at("create", path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(FsError::at("write", path))?;
    fs::sync_dir(fs::parent(path))
}

/// Opens the secret key `path`.
pub(super) fn signer(path: &Path, is_on_stdin: bool) -> Result<Signer, Failure> {
    let bytes = fs::read(path, KEY_LIMIT).map_err(|error| Failure::new(Code::File, chain(&error)))?;
    let wrong = |error: &dyn std::error::Error| {
        Failure::new(Code::Usage, format!("cannot sign with `{}`: {error}", path.display()))
    };
    let file = SecretKeyFile::new(String::from_utf8_lossy(&bytes).into_owned());
    let is_protected = file.is_protected().map_err(|error| wrong(&error))?;
    let passphrase = if is_protected { Some(passphrase(is_on_stdin, false)?) } else { None };
    file.open(passphrase).map_err(|error| wrong(&error))
}

/// From stdin, from the environment, or from the terminal, unseen: twice for a new key.
fn passphrase(is_on_stdin: bool, is_new: bool) -> Result<String, Failure> {
    let wrong = |message: String| Failure::new(Code::Usage, message);
    let unreadable = |error: std::io::Error| wrong(format!("cannot read the passphrase: {error}"));
    let text = if is_on_stdin {
        let mut text = String::new();
        stdin().lock().take(PASSPHRASE_LIMIT).read_to_string(&mut text).map_err(unreadable)?;
        text.lines().next().unwrap_or_default().to_owned()
    } else if let Some(text) = std::env::var_os(VARIABLE) {
        text.into_string().map_err(|_| wrong(format!("`{VARIABLE}` is no UTF-8")))?
    } else if stdin().is_terminal() {
        let text = rpassword::prompt_password("Passphrase: ").map_err(unreadable)?;
        if is_new && rpassword::prompt_password("Once more: ").map_err(unreadable)? != text {
            return Err(wrong("these are two different passphrases".to_owned()));
        }
        text
    } else {
        let message = format!("the key needs a passphrase: `--passphrase-stdin`, {VARIABLE}, or a terminal");
        return Err(wrong(message));
    };
    if text.is_empty() { Err(wrong("the passphrase is empty".to_owned())) } else { Ok(text) }
}
