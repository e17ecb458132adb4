//! Signatures, public keys and lists of revoked keys.

use std::sync::LazyLock;

use crate::bundle::read::reader::BundleReader;
use crate::fuzzing::laws::text;
use crate::signature::PublicKey;
use crate::signature::policy::{NamedSignature, Policy};
use crate::signature::revocations::Revocations;

/// A bundle that was signed with a key that no longer exists.
const SIGNED: &[u8] = include_bytes!("../../tests/frozen/1.1-signature.tar.zst");
const KEY: &str = include_str!("../../tests/frozen/1.1-signature.pub");

/// The policy that trusts the key, the signed document, and the signature.
static FROZEN: LazyLock<(Policy, Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let keys = PublicKey::parse_all(KEY).expect("a public key");
    let policy = Policy::new(keys, [].into(), None).expect("a policy");
    let contents = BundleReader::stream(SIGNED, &policy).contents().expect("an intact bundle");
    let signature = contents.embedded_signature.expect("a signed bundle");
    (policy, contents.index, signature)
});

/// A signature of a known document, public keys, and a list of revoked keys.
pub fn signature(bytes: &[u8]) {
    let (policy, document, original) = &*FROZEN;
    let signatures = || vec![NamedSignature { name: "its signature".to_owned(), bytes: bytes.to_vec() }];
    if let Ok((signed, accepted)) = policy.check(document, signatures()) {
        assert!(signed.is_some_and(|signed| signed.trusted) && accepted.len() == 1);
        assert_eq!(signed_lines(bytes), signed_lines(original), "another signature is accepted");
    }
    assert!(policy.check(&document[1..], signatures()).is_err(), "the signature of another document");
    let _ = Policy::none().check(document, signatures());
    if let Ok(keys) = PublicKey::parse_all(text(bytes)) {
        assert!(!keys.is_empty());
    }
    if let Ok(list) = Revocations::parse(bytes) {
        let again = Revocations::parse(list.to_text().as_bytes());
        assert_eq!(again.ok(), Some(list));
    }
}

/// Returns the lines of a signature that are signed or part of it: all but the untrusted comment.
fn signed_lines(bytes: &[u8]) -> Vec<String> {
    let lines = text(bytes).lines().skip(1).take(3);
    lines.map(|line| line.trim().to_owned()).collect()
}
