//! Signing, in the form of minisign: its files of keys, and signatures that are the same for the same bundle.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2b512, Digest as _};
use minisign::{KeyPair, SecretKey, SecretKeyBox};
use ring::signature::Ed25519KeyPair;

use crate::oci::digest::Digest;

/// Where the number of the key stands in a secret key of minisign, and behind it the key: 32 bytes that are secret, and
/// 32 of the public key.
const KEY_ID: std::ops::Range<usize> = 54..62;
const SEED: std::ops::Range<usize> = 62..94;
const PUBLIC: std::ops::Range<usize> = 94..126;
const CHECKSUM: std::ops::Range<usize> = 126..158;

/// Why a text is no secret key that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretKeyError {
    /// It is something else.
    #[error("it is no secret key of minisign: {0}")]
    Syntax(String),
    /// The other half of a key.
    #[error("it is a public key, and the secret one is wanted: its name ends in .key")]
    Public,
    /// Another passphrase protects it.
    #[error("the passphrase is wrong")]
    Passphrase,
}

/// A secret key as it stands in its file.
pub(crate) struct SecretKeyFile(String);

impl SecretKeyFile {
    /// The text of a file.
    #[must_use]
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// Whether a passphrase protects it.
    pub(crate) fn is_protected(&self) -> Result<bool, SecretKeyError> {
        let line = self.0.lines().nth(1).unwrap_or_default().trim();
        let bytes = STANDARD.decode(line).unwrap_or_default();
        match bytes.len() {
            158 => Ok(bytes[2..4] != [0, 0]),
            42 => Err(SecretKeyError::Public),
            _ => Err(SecretKeyError::Syntax("its second line is none of a key".into())),
        }
    }

    /// The key, which `passphrase` protects if it is protected.
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
        Signer::of(&key)
    }
}

/// A key that has no checksum: minisign gives one only to keys that a passphrase protects. That its two halves go
/// together is checked with all keys.
fn without_checksum(file: &SecretKeyBox) -> Option<Vec<u8>> {
    let text = file.to_string();
    let bytes = STANDARD.decode(text.lines().nth(1)?.trim()).ok()?;
    bytes.get(CHECKSUM)?.iter().all(|byte| *byte == 0).then_some(bytes)
}

/// What `keygen` writes.
pub(crate) struct Generated {
    /// The secret key, for its file.
    pub secret: String,
    /// The public one, for its file.
    pub public: String,
}

/// Makes a key, which `passphrase` protects.
///
/// # Panics
///
/// If the operating system has no random numbers.
#[must_use]
pub(crate) fn generate(passphrase: Option<String>) -> Generated {
    const COMMENT: &str = "airbundle secret key: whoever has it can sign in your name";
    let pair = match passphrase {
        Some(passphrase) => KeyPair::generate_encrypted_keypair(Some(passphrase)),
        None => KeyPair::generate_unencrypted_keypair(),
    };
    let pair = pair.expect("the system has random numbers; please report");
    let secret = pair.sk.to_box(Some(COMMENT)).expect("a key becomes text; please report");
    let public = pair.pk.to_box().expect("a key becomes text; please report");
    Generated { secret: secret.into_string(), public: public.to_string() }
}

/// Who signs a bundle.
pub(crate) struct Signer {
    key: Ed25519KeyPair,
    id: [u8; 8],
    /// When it is said to be signed, in seconds since 1970.
    time: Option<i64>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    fn of(key: &SecretKey) -> Result<Self, SecretKeyError> {
        let bytes = key.to_bytes();
        let id = bytes[KEY_ID].try_into().expect("eight bytes");
        let key = Ed25519KeyPair::from_seed_and_public_key(&bytes[SEED], &bytes[PUBLIC]);
        let key = key.map_err(|_| SecretKeyError::Syntax("its two halves do not go together".into()))?;
        Ok(Self { key, id, time: None })
    }

    /// With this time in what it signs. Without one, the same bundle has the same signature at any time.
    #[must_use]
    pub(crate) fn at(self, time: Option<i64>) -> Self {
        Self { time, ..self }
    }

    /// The signature of `index`, as minisign writes it. (Its crate mixes random numbers into what it signs, and bundles
    /// of the same lists would have other bytes each time.)
    #[must_use]
    pub(crate) fn sign(&self, index: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(&Blake2b512::digest(index));
        let time = self.time.map(|time| format!("timestamp:{time}\t")).unwrap_or_default();
        let comment =
            format!("{time}file:index.json\thashed\tairbundle bundle, identity {}", Digest::of(index));
        let all = self.key.sign(&[signature.as_ref(), comment.as_bytes()].concat());
        let line = STANDARD.encode([&b"ED"[..], &self.id, signature.as_ref()].concat());
        let (key, all) = (u64::from_le_bytes(self.id), STANDARD.encode(all.as_ref()));
        format!("untrusted comment: signature by airbundle, key {key:016X}\n{line}\ntrusted comment: {comment}\n{all}\n")
            .into_bytes()
    }
}
