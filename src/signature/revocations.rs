//! [`Revocations`]: the list of the revoked keys of a host, which a trusted key signs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::signature::policy::{NamedSignature, Policy, PolicyError, SignatureError};
use crate::signature::{KeyId, PublicKey};

/// Name of the list, next to the trusted keys. Its signature has the extension `.minisig` in addition.
pub(crate) const REVOCATIONS: &str = "revoked.txt";
/// First line of a list. No other signed document begins with it.
const HEADER: &str = "airbundle revoked keys 1";

/// The IDs of revoked keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Revocations(pub(crate) BTreeSet<KeyId>);

/// The reasons why a list of revoked keys is not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RevocationsError {
    /// The first line is another one.
    #[error("its first line is not `{HEADER}`")]
    Header,
    /// A line is no key ID.
    #[error("line {0} is neither a key ID of 16 hexadecimal digits nor a comment")]
    Line(usize),
    /// No trusted key signed it.
    #[error("it has no valid signature of a trusted key that it does not revoke")]
    Signature(#[source] ListSignatureError),
}

/// The reason why the signature of a list is not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListSignatureError {
    /// There is no signature.
    #[error("it is not signed")]
    Unsigned,
    /// The signature is not by a trusted key.
    #[error("it is signed by key {0}, which is not trusted on this host")]
    Unknown(KeyId),
    /// The list revokes its signer.
    #[error("it is signed by key {0}, which it revokes")]
    Itself(KeyId),
    /// All trusted keys are on the list.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The signature is invalid.
    #[error("its signature does not match")]
    Invalid,
}

impl Revocations {
    /// Parses a list: the header, then one key ID a line. Blank lines and lines that begin with `#` are
    /// skipped.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, RevocationsError> {
        let text = std::str::from_utf8(bytes).map_err(|_| RevocationsError::Header)?;
        let mut lines = text.lines().map(str::trim).zip(1..);
        if lines.next().is_none_or(|(line, _)| line != HEADER) {
            return Err(RevocationsError::Header);
        }
        let ids = lines.filter(|(line, _)| !(line.is_empty() || line.starts_with('#')));
        let ids = ids.map(|(line, number)| line.parse().map_err(|_| RevocationsError::Line(number)));
        Ok(Self(ids.collect::<Result<_, _>>()?))
    }

    /// Parses a list that one of `keys` signed. A key that the list revokes does not count: a thief of the key
    /// could otherwise replace the list that revokes it.
    pub(crate) fn verify(
        bytes: &[u8],
        signature: Option<Vec<u8>>,
        keys: &[PublicKey],
    ) -> Result<Self, RevocationsError> {
        let failed = RevocationsError::Signature;
        let list = Self::parse(bytes)?;
        let policy =
            Policy::new(keys.to_vec(), list.0.clone(), None).map_err(|error| failed(error.into()))?;
        if !policy.is_enforced() {
            return Err(failed(PolicyError::NoKeys.into()));
        }
        let signatures = signature.map(|bytes| NamedSignature { name: REVOCATIONS.to_owned(), bytes });
        policy.check(bytes, signatures.into_iter().collect()).map_err(|error| {
            failed(match error {
                SignatureError::Unsigned => ListSignatureError::Unsigned,
                SignatureError::Unknown(key) => ListSignatureError::Unknown(key),
                SignatureError::Revoked(key) => ListSignatureError::Itself(key),
                _ => ListSignatureError::Invalid,
            })
        })?;
        Ok(list)
    }

    /// Returns the text of the list.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for key in &self.0 {
            let _ = writeln!(text, "{key}");
        }
        text
    }
}
