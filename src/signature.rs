//! Minisign signatures: public keys, verification, and the keys a host trusts.
//!
//! The signed content is `index.json`, byte for byte. Its digest is the identity of the bundle and it
//! references everything else by digest, so one valid signature covers the entire bundle.

pub mod policy;
pub(crate) mod revocations;
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
/// Algorithm identifier of a signature of the content. That of its hash is `ED`.
const LEGACY: &[u8] = b"Ed";
/// Length of the algorithm identifier, which precedes the key ID.
const ALGORITHM_LEN: usize = 2;
/// Number of hexadecimal digits of a key ID.
const KEY_ID_DIGITS: usize = 16;

/// The ID of a key and of its signatures, displayed as minisign does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KeyId(#[cfg_attr(test, schemars(with = "String"))] [u8; 8]);

impl KeyId {
    /// Reads the key ID of a base64 line that begins with an algorithm identifier.
    fn parse(line: &str) -> Option<Self> {
        let bytes = STANDARD.decode(line).ok()?;
        Some(Self(bytes.get(ALGORITHM_LEN..)?.first_chunk().copied()?))
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    /// Parses 16 hexadecimal digits, the text form of a key ID.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() != KEY_ID_DIGITS || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(KeyError::Id);
        }
        let number = u64::from_str_radix(text, 16).map_err(|_| KeyError::Id)?;
        Ok(Self(number.to_le_bytes()))
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
    /// Not a key ID.
    #[error("not a key ID: expected 16 hexadecimal digits")]
    Id,
    /// The file has no key.
    #[error("no key found")]
    Empty,
}

/// A trusted public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: minisign_verify::PublicKey,
    id: KeyId,
    /// The Ed25519 key, which tells keys apart whatever ID they claim.
    material: Vec<u8>,
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// Parses the base64 line of a key.
    fn from_str(line: &str) -> Result<Self, KeyError> {
        let id = KeyId::parse(line).ok_or(KeyError::Syntax)?;
        let material = STANDARD.decode(line).unwrap_or_default().split_off(ALGORITHM_LEN + id.0.len());
        match minisign_verify::PublicKey::from_base64(line) {
            Ok(key) => Ok(Self { key, id, material }),
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

    /// Returns the ID that the key claims.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// A signature that is not verified yet.
#[derive(Clone)]
pub(crate) struct Signature {
    parsed: minisign_verify::Signature,
    key: KeyId,
    /// True if it is of the content, and not of its hash: the form of minisign before 0.10.
    is_legacy: bool,
}

impl Signature {
    /// Parses a minisign signature. `None`: not a signature.
    #[must_use]
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= SIGNATURE_LIMIT)?;
        let line = text.lines().nth(1)?;
        let (key, is_legacy) = (KeyId::parse(line)?, STANDARD.decode(line).ok()?.starts_with(LEGACY));
        Some(Self { parsed: minisign_verify::Signature::decode(text).ok()?, key, is_legacy })
    }
}
