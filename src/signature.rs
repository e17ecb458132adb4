//! Minisign signatures: public keys, verification, and the keys a host trusts.
//!
//! The signed content is `index.json`, byte for byte. Its digest is the identity of the bundle and it
//! references everything else by digest, so one valid signature covers the entire bundle.

#[cfg(feature = "net")]
pub(crate) mod signing;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// Maximum length of a signature in bytes.
pub(crate) const SIGNATURE_LIMIT: usize = 4 << 10;

/// Prefix of the comment line of a key or signature file.
const COMMENT: &str = "untrusted comment:";
/// Length of the algorithm identifier, which precedes the key ID.
const ALGORITHM_LEN: usize = 2;

/// The ID of a key and of its signatures, displayed as minisign does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KeyId(#[cfg_attr(test, schemars(with = "String"))] [u8; 8]);

impl KeyId {
    /// Reads the key ID of a base64 line that begins with an algorithm identifier.
    fn parse(line: &str) -> Option<Self> {
        let bytes = STANDARD.decode(line).ok()?;
        Some(Self(bytes.get(ALGORITHM_LEN..)?.first_chunk().copied()?))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An error while parsing public keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a minisign public key.
    #[error("not a minisign public key")]
    Syntax,
    /// A secret key, which must not leave the machine that signs.
    #[error("a secret key: expected the public key, whose file name ends in .pub")]
    Secret,
    /// The file has no key.
    #[error("no key found")]
    Empty,
}

/// A trusted public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: minisign_verify::PublicKey,
    id: KeyId,
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// Parses the base64 line of a key.
    fn from_str(line: &str) -> Result<Self, KeyError> {
        let id = KeyId::parse(line).ok_or(KeyError::Syntax)?;
        match minisign_verify::PublicKey::from_base64(line) {
            Ok(key) => Ok(Self { key, id }),
            // Secret keys are much longer than public ones.
            Err(_) if line.len() > 100 && line.starts_with("RW") => Err(KeyError::Secret),
            Err(_) => Err(KeyError::Syntax),
        }
    }
}

impl PublicKey {
    /// Parses all keys of a file. Blank lines, minisign's comment lines and lines that begin with `#` are
    /// skipped.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, KeyError> {
        let lines = text.lines().map(str::trim);
        let keys =
            lines.filter(|line| !(line.is_empty() || line.starts_with(COMMENT) || line.starts_with('#')));
        let keys = keys.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
    }

    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// A signature that is not verified yet.
#[derive(Clone)]
pub(crate) struct Signature {
    signature: minisign_verify::Signature,
    key: KeyId,
}

impl Signature {
    /// Parses a minisign signature. `None`: not a signature.
    #[must_use]
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= SIGNATURE_LIMIT)?;
        let key = KeyId::parse(text.lines().nth(1)?)?;
        Some(Self { signature: minisign_verify::Signature::decode(text).ok()?, key })
    }
}

/// The trusted keys of a host, and a detached signature.
#[derive(Default)]
pub struct Trust {
    /// The trusted keys. Empty: bundles are accepted without verification.
    pub keys: Vec<PublicKey>,
    /// The detached signature with its file name, used in addition to the one in the bundle.
    pub detached: Option<(String, Vec<u8>)>,
}

/// The signer of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Signed {
    /// The key ID that the signature names.
    pub key: KeyId,
    /// True if the signature was verified with a trusted key.
    pub trusted: bool,
    /// The trusted comment of the signature. `None`: not verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.trusted { "which is trusted" } else { "not verified: no trusted key" };
        write!(f, "signed by key {}, {state}", self.key)
    }
}

/// An error while verifying the signature of a bundle.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// No signature.
    #[error("the bundle is not signed, and this host accepts only signed bundles: nothing was used")]
    Unsigned,
    /// A signature of an untrusted key.
    #[error("the bundle is signed by {0}, which is not trusted on this host: nothing was used")]
    Unknown(String),
    /// A signature that names a trusted key and does not match.
    #[error(
        "signature verification failed: {0} names trusted key {1} but does not match this `index.json`: nothing was used"
    )]
    Wrong(String, KeyId),
    /// Not parsable as a signature.
    #[error("{0} is corrupt, or not a minisign signature: nothing was used")]
    Damaged(String),
}

impl Trust {
    /// Verifies `index` with the `embedded` or the detached signature. Without trusted keys, nothing is
    /// verified and the first signature is returned as untrusted.
    pub fn check(&self, index: &[u8], embedded: Option<&[u8]>) -> Result<Option<Signed>, SignatureError> {
        let embedded = embedded.map(|bytes| ("its signature".to_owned(), bytes));
        let detached =
            self.detached.iter().map(|(name, bytes)| (format!("the signature `{name}`"), &bytes[..]));
        let mut signatures = Vec::new();
        for (name, bytes) in embedded.into_iter().chain(detached) {
            signatures.push((name, Signature::parse(bytes)));
        }
        if self.keys.is_empty() {
            let signature = signatures.into_iter().find_map(|(_, signature)| signature);
            return Ok(signature.map(|signature| Signed {
                key: signature.key,
                trusted: false,
                comment: None,
            }));
        }
        let mut failed = None;
        for (name, signature) in signatures {
            let error = match signature.map(|signature| (self.verify(index, &signature), signature.key)) {
                Some((Ok(signed), _)) => return Ok(Some(signed)),
                Some((Err(true), key)) => SignatureError::Wrong(name, key),
                Some((Err(false), key)) => SignatureError::Unknown(format!("key {key}")),
                None => SignatureError::Damaged(name),
            };
            failed.get_or_insert(error);
        }
        Err(failed.unwrap_or(SignatureError::Unsigned))
    }

    /// Returns an error that is true if a trusted key has the key ID of the signature.
    fn verify(&self, index: &[u8], signature: &Signature) -> Result<Signed, bool> {
        let mut keys = self.keys.iter().filter(|key| key.id == signature.key).peekable();
        let is_known = keys.peek().is_some();
        // Legacy signatures (not prehashed) are refused: a 64-byte signature could be passed off as one of
        // another text.
        let is_valid = keys.any(|key| key.key.verify(index, &signature.signature, false).is_ok());
        let comment = || signature.signature.trusted_comment().to_owned();
        if is_valid {
            return Ok(Signed { key: signature.key, trusted: true, comment: Some(comment()) });
        }
        Err(is_known)
    }
}
