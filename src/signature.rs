//! Signatures in the form of minisign: who vouches for a bundle, and whom this host believes.
//!
//! What is signed is `index.json`, byte for byte. Its digest is the identity of the bundle and it names everything else
//! by digest, so this one check makes all that is checked against it trusted.

#[cfg(feature = "net")]
pub(crate) mod signing;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// The longest signature that is read, in bytes.
pub(crate) const SIGNATURE_LIMIT: usize = 4 << 10;

/// What a file with a key or a signature begins with, and lines before it.
const COMMENT: &str = "untrusted comment:";
/// Two letters for the algorithm, before the number of the key.
const ALGORITHM_LEN: usize = 2;

/// The number that a key has, and that its signatures bear, as minisign prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KeyId(#[cfg_attr(test, schemars(with = "String"))] [u8; 8]);

impl KeyId {
    /// The one in a line of base64 that begins with an algorithm.
    fn of(line: &str) -> Option<Self> {
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

/// Why a text is no public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is something else.
    #[error("it is no public key of minisign")]
    Syntax,
    /// It is what must not leave the machine that signs.
    #[error("it is a secret key, and the public one is wanted: its name ends in .pub")]
    Secret,
    /// There is nothing.
    #[error("there is no key in it")]
    Empty,
}

/// A key that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: minisign_verify::PublicKey,
    id: KeyId,
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// The one line of base64 that is a key.
    fn from_str(line: &str) -> Result<Self, KeyError> {
        let id = KeyId::of(line).ok_or(KeyError::Syntax)?;
        match minisign_verify::PublicKey::from_base64(line) {
            Ok(key) => Ok(Self { key, id }),
            // Much longer than a public one.
            Err(_) if line.len() > 100 && line.starts_with("RW") => Err(KeyError::Secret),
            Err(_) => Err(KeyError::Syntax),
        }
    }
}

impl PublicKey {
    /// All keys in a file: each may have the comment before it that minisign writes. Lines that begin with `#` are for
    /// people.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, KeyError> {
        let lines = text.lines().map(str::trim);
        let keys =
            lines.filter(|line| !(line.is_empty() || line.starts_with(COMMENT) || line.starts_with('#')));
        let keys = keys.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
    }

    /// The number of the key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// A signature that nobody has checked.
#[derive(Clone)]
pub(crate) struct Signature {
    signature: minisign_verify::Signature,
    key: KeyId,
}

impl Signature {
    /// Reads what `minisign` writes; nothing if it is something else.
    #[must_use]
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= SIGNATURE_LIMIT)?;
        let key = KeyId::of(text.lines().nth(1)?)?;
        Some(Self { signature: minisign_verify::Signature::decode(text).ok()?, key })
    }
}

/// Whom this host believes, and a signature that lies beside the bundle.
#[derive(Default)]
pub struct Trust {
    /// The keys; with none, everything is taken.
    pub keys: Vec<PublicKey>,
    /// The signature beside the bundle, and what its file is called.
    pub beside: Option<(String, Vec<u8>)>,
}

/// Who has signed a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Signed {
    /// The key that it is said to be.
    pub key: KeyId,
    /// Whether that is so, and the key is one that is trusted.
    pub trusted: bool,
    /// What is signed with it, for people; only if it is trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.trusted { "which is trusted" } else { "not checked: no trusted key" };
        write!(f, "signed by key {}, {state}", self.key)
    }
}

/// Why a bundle is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Nobody has signed it.
    #[error("the bundle is not signed, and this host takes signed ones only: nothing of it was used")]
    Unsigned,
    /// Somebody else has.
    #[error("the bundle is signed by {0}, which is not trusted here: nothing of it was used")]
    Unknown(String),
    /// One that is trusted is said to have signed it, and has not.
    #[error(
        "{0} is not one of this `index.json`, although it bears the number of trusted key {1}: nothing of the bundle was used"
    )]
    Wrong(String, KeyId),
    /// There is something in its place.
    #[error("{0} is damaged, or no signature of minisign: nothing of the bundle was used")]
    Damaged(String),
}

impl Trust {
    /// Checks who has signed `index`, of which `inside` is the signature in the bundle. With no key that is trusted,
    /// nothing is checked.
    pub fn check(&self, index: &[u8], inside: Option<&[u8]>) -> Result<Option<Signed>, SignatureError> {
        let inside = inside.map(|bytes| ("its signature".to_owned(), bytes));
        let beside = self.beside.iter().map(|(name, bytes)| (format!("the signature `{name}`"), &bytes[..]));
        let mut found = Vec::new();
        for (name, bytes) in inside.into_iter().chain(beside) {
            found.push((name, Signature::parse(bytes)));
        }
        if self.keys.is_empty() {
            let signature = found.into_iter().find_map(|(_, signature)| signature);
            return Ok(signature.map(|signature| Signed {
                key: signature.key,
                trusted: false,
                comment: None,
            }));
        }
        let mut failed = None;
        for (name, signature) in found {
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

    /// An error says whether one of the keys has the number of the signature's.
    fn verify(&self, index: &[u8], signature: &Signature) -> Result<Signed, bool> {
        let mut keys = self.keys.iter().filter(|key| key.id == signature.key).peekable();
        let is_known = keys.peek().is_some();
        // Never the old form without hash: in it, a signature of 64 bytes can be passed off as one of another text.
        let is_right = keys.any(|key| key.key.verify(index, &signature.signature, false).is_ok());
        let comment = || signature.signature.trusted_comment().to_owned();
        if is_right {
            return Ok(Signed { key: signature.key, trusted: true, comment: Some(comment()) });
        }
        Err(is_known)
    }
}
