//! [`Policy`]: the keys that must have signed a bundle, and the verification of its signatures.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::signature::{KeyId, PublicKey, Signature};

/// The keys that a host trusts. Without keys, bundles are accepted without verification.
#[derive(Debug, Clone)]
pub struct Policy {
    keys: Vec<PublicKey>,
    revoked: BTreeSet<KeyId>,
    /// Number of different keys that must have signed.
    required: usize,
}

/// The reasons why keys make no policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Signatures are required, and there is no key to verify them.
    #[error("cannot require signatures: this host has no trusted keys")]
    NoKeys,
    /// All keys are revoked.
    #[error("all trusted keys are revoked")]
    Revoked,
    /// More signatures are required than there are keys.
    #[error("{required} signatures are required, but only {keys} different keys are trusted and not revoked")]
    TooFewKeys {
        /// Number of required signatures.
        required: usize,
        /// Number of different keys.
        keys: usize,
    },
}

/// A signature that is not verified yet, and its name in error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSignature {
    /// The name, such as `its signature`.
    pub name: String,
    /// The text of the signature.
    pub bytes: Vec<u8>,
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
    /// The IDs of the other trusted keys that signed the bundle.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    #[serde(rename = "others", skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<KeyId>,
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.trusted { "which is trusted" } else { "not verified: no trusted key" };
        write!(f, "signed by key {}, {state}", self.key)?;
        self.others.iter().try_for_each(|key| write!(f, ", and by trusted key {key}"))
    }
}

/// An error while verifying the signatures of a bundle.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// No signature.
    #[error("the bundle is not signed, and this host accepts only signed bundles: nothing was used")]
    Unsigned,
    /// A signature of an untrusted key.
    #[error("the bundle is signed by key {0}, which is not trusted on this host: nothing was used")]
    Unknown(KeyId),
    /// A signature of a revoked key.
    #[error("the bundle is signed by key {0}, which is revoked on this host: nothing was used")]
    Revoked(KeyId),
    /// A signature that names a trusted key and does not match.
    #[error(
        "signature verification failed: {0} names trusted key {1} but does not match this `index.json`: nothing was used"
    )]
    Wrong(String, KeyId),
    /// A signature that does not cover the hash of the content.
    #[error(
        "{0} has the older form of minisign (before 0.10, or `-l`), which is not accepted: sign again with `minisign -S -H`, \
         or with `airbundle sign`; nothing was used"
    )]
    Legacy(String),
    /// Not parsable as a signature.
    #[error("{0} is corrupt, or not a minisign signature: nothing was used")]
    Damaged(String),
    /// Fewer trusted keys have signed than required.
    #[error(
        "{required} signatures of different trusted keys are required, the bundle has {valid}: nothing was used"
    )]
    TooFew {
        /// Number of required signatures.
        required: usize,
        /// Number of trusted keys with a valid signature.
        valid: usize,
    },
}

impl Policy {
    /// Returns the policy of a host without trusted keys: nothing is verified.
    #[must_use]
    pub fn none() -> Self {
        Self { keys: Vec::new(), revoked: BTreeSet::new(), required: 1 }
    }

    /// Requires signatures by `required` different ones of `keys`, which are not `revoked`. Without keys and
    /// requirements, the policy is [`Policy::none`].
    pub fn new(
        keys: Vec<PublicKey>,
        revoked: BTreeSet<KeyId>,
        required: Option<usize>,
    ) -> Result<Self, PolicyError> {
        if keys.is_empty() {
            return if required.is_some() { Err(PolicyError::NoKeys) } else { Ok(Self::none()) };
        }
        let required = required.unwrap_or(1).max(1);
        let usable: BTreeSet<&[u8]> =
            keys.iter().filter(|key| !revoked.contains(&key.id)).map(|key| &key.material[..]).collect();
        match usable.len() {
            0 => Err(PolicyError::Revoked),
            len if len < required => Err(PolicyError::TooFewKeys { required, keys: len }),
            _ => Ok(Self { keys, revoked, required }),
        }
    }

    /// True if a bundle must be signed.
    #[must_use]
    pub fn is_enforced(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Verifies `content` with `signatures`. Returns the signer, and the signatures of trusted keys, one of each
    /// key. Without trusted keys, nothing is verified: returns the first signature as untrusted, and all that can
    /// be parsed.
    pub fn check(
        &self,
        content: &[u8],
        signatures: Vec<NamedSignature>,
    ) -> Result<(Option<Signed>, Vec<NamedSignature>), SignatureError> {
        let (mut signers, mut signed, mut failed) = (BTreeSet::new(), None::<Signed>, None);
        let mut accepted = Vec::new();
        for named in signatures {
            let signature = Signature::parse(&named.bytes);
            if !self.is_enforced() {
                let Some(Signature { key, .. }) = signature else { continue };
                signed.get_or_insert(Signed { key, trusted: false, comment: None, others: Vec::new() });
                accepted.push(named);
                continue;
            }
            match self.verify(content, &named.name, signature) {
                Ok((key, comment)) if signers.insert(&key.material[..]) => {
                    if let Some(signed) = &mut signed {
                        signed.others.push(key.id);
                    } else {
                        let (key, comment) = (key.id, Some(comment));
                        signed = Some(Signed { key, trusted: true, comment, others: Vec::new() });
                    }
                    accepted.push(named);
                }
                Ok(_) => {}
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        match (signers.len(), failed) {
            _ if !self.is_enforced() => Ok((signed, accepted)),
            (valid, _) if valid >= self.required => Ok((signed, accepted)),
            (0, failed) => Err(failed.unwrap_or(SignatureError::Unsigned)),
            (valid, _) => Err(SignatureError::TooFew { required: self.required, valid }),
        }
    }

    /// Returns the trusted key that made the signature, and its trusted comment.
    fn verify(
        &self,
        content: &[u8],
        name: &str,
        signature: Option<Signature>,
    ) -> Result<(&PublicKey, String), SignatureError> {
        let Signature { parsed: signature, key: id, is_legacy } =
            signature.ok_or_else(|| SignatureError::Damaged(name.to_owned()))?;
        let mut keys = self.keys.iter().filter(|key| key.id == id).peekable();
        if keys.peek().is_none() {
            return Err(SignatureError::Unknown(id));
        }
        if self.revoked.contains(&id) {
            return Err(SignatureError::Revoked(id));
        }
        // A 64-byte signature of this form could be passed off as one of another text.
        if is_legacy {
            return Err(SignatureError::Legacy(name.to_owned()));
        }
        let key = keys.find(|key| key.key.verify(content, &signature, false).is_ok());
        let key = key.ok_or_else(|| SignatureError::Wrong(name.to_owned(), id))?;
        Ok((key, signature.trusted_comment().to_owned()))
    }
}
