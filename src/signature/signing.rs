//! [`Signer`]: minisign secret keys, and deterministic signatures.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2b512, Digest as _};
use minisign::{KeyPair, SecretKey, SecretKeyBox};
use ring::signature::Ed25519KeyPair;

use crate::oci::digest::Digest;
use crate::signature::KeyId;

/// Layout of a decoded minisign secret key: key ID, 32-byte seed, 32-byte public key, checksum.
const KEY_ID: std::ops::Range<usize> = 54..62;
const SEED: std::ops::Range<usize> = 62..94;
const PUBLIC: std::ops::Range<usize> = 94..126;
const CHECKSUM: std::ops::Range<usize> = 126..158;

/// An error while reading a secret key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretKeyError {
    /// Not a minisign secret key.
    #[error("not a minisign secret key: {0}")]
    Syntax(String),
    /// A public key.
    #[error("a public key: expected the secret key, whose file name ends in .key")]
    Public,
    #[error("wrong passphrase")]
    Passphrase,
}

/// The text of a secret key file.
pub(crate) struct SecretKeyFile(String);

impl SecretKeyFile {
    #[must_use]
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// True if the key is encrypted with a passphrase.
    pub(crate) fn is_protected(&self) -> Result<bool, SecretKeyError> {
        let line = self.0.lines().nth(1).unwrap_or_default().trim();
        let bytes = STANDARD.decode(line).unwrap_or_default();
        match bytes.len() {
            158 => Ok(bytes[2..4] != [0, 0]),
            42 => Err(SecretKeyError::Public),
            _ => Err(SecretKeyError::Syntax("its second line is not a key".into())),
        }
    }

    /// Decrypts the key with `passphrase`. `None`: the key is not encrypted.
    pub(crate) fn open(self, passphrase: Option<String>) -> Result<Signer, SecretKeyError> {
        let wrong = |error: minisign::PError| SecretKeyError::Syntax(error.to_string());
        let has_passphrase = passphrase.is_some();
        let file = SecretKeyBox::from(self.0);
        let key = match passphrase {
            Some(passphrase) => file.into_secret_key(Some(passphrase)),
            None => match without_checksum(&file) {
                Some(bytes) => SecretKey::from_bytes(&bytes),
                None => file.into_unencrypted_secret_key(),
            },
        };
        let key = key.map_err(|error| match error.kind() {
            minisign::ErrorKind::Verify if has_passphrase => SecretKeyError::Passphrase,
            _ => wrong(error),
        })?;
        Signer::new(&key)
    }
}

/// Returns the bytes of a key without checksum: minisign adds one only to encrypted keys. `Signer::new`
/// checks that seed and public key match.
fn without_checksum(file: &SecretKeyBox) -> Option<Vec<u8>> {
    let text = file.to_string();
    let bytes = STANDARD.decode(text.lines().nth(1)?.trim()).ok()?;
    bytes.get(CHECKSUM)?.iter().all(|byte| *byte == 0).then_some(bytes)
}

/// A generated key pair.
pub(crate) struct GeneratedKeys {
    /// The content of the secret key file.
    pub secret: String,
    /// The content of the public key file.
    pub public: String,
}

/// Generates a key pair; the secret key is encrypted with `passphrase`.
///
/// # Panics
///
/// Panics if the operating system provides no random numbers.
#[must_use]
pub(crate) fn generate(passphrase: Option<String>) -> GeneratedKeys {
    const COMMENT: &str = "airbundle secret key: its holder can sign in your name";
    let pair = match passphrase {
        Some(passphrase) => KeyPair::generate_encrypted_keypair(Some(passphrase)),
        None => KeyPair::generate_unencrypted_keypair(),
    };
    let pair = pair.expect("the system has random numbers; please report");
    let secret = pair.sk.to_box(Some(COMMENT)).expect("a key becomes text; please report");
    let public = pair.pk.to_box().expect("a key becomes text; please report");
    GeneratedKeys { secret: secret.into_string(), public: public.to_string() }
}

/// A secret key that signs bundles.
pub(crate) struct Signer {
    key: Ed25519KeyPair,
    id: [u8; 8],
    /// The timestamp of signatures, in seconds since 1970. `None`: no timestamp.
    time: Option<i64>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    fn new(key: &SecretKey) -> Result<Self, SecretKeyError> {
        let bytes = key.to_bytes();
        let id = bytes[KEY_ID].try_into().expect("eight bytes");
        let key = Ed25519KeyPair::from_seed_and_public_key(&bytes[SEED], &bytes[PUBLIC]);
        let key =
            key.map_err(|_| SecretKeyError::Syntax("its public and secret parts do not match".into()))?;
        Ok(Self { key, id, time: None })
    }

    /// Sets the timestamp of signatures. Without one, the same bundle always has the same signature.
    #[must_use]
    pub(crate) fn at(self, time: Option<i64>) -> Self {
        Self { time, ..self }
    }

    /// Returns the ID of the key.
    #[must_use]
    pub(crate) fn id(&self) -> KeyId {
        KeyId(self.id)
    }

    /// Returns the minisign signature of the `index.json` of a bundle.
    #[must_use]
    pub(crate) fn sign(&self, index: &[u8]) -> Vec<u8> {
        let about = format!("airbundle bundle, identity {}", Digest::of(index));
        self.sign_file(index, "index.json", &about)
    }

    /// Returns the minisign signature of the file `name`. The `minisign` crate randomizes signatures; bundles
    /// must be reproducible, so `ring` signs.
    #[must_use]
    pub(crate) fn sign_file(&self, content: &[u8], name: &str, about: &str) -> Vec<u8> {
        let signature = self.key.sign(&Blake2b512::digest(content));
        let time = self.time.map(|time| format!("timestamp:{time}\t")).unwrap_or_default();
        let comment = format!("{time}file:{name}\thashed\t{about}");
        let all = self.key.sign(&[signature.as_ref(), comment.as_bytes()].concat());
        let line = STANDARD.encode([&b"ED"[..], &self.id, signature.as_ref()].concat());
        let (key, all) = (self.id(), STANDARD.encode(all.as_ref()));
        format!("untrusted comment: signature by airbundle, key {key}\n{line}\ntrusted comment: {comment}\n{all}\n")
            .into_bytes()
    }
}
