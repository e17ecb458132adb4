//! [`PrivateKey`]: the private key of the user in a PEM file, compared with its certificate.

use rcgen::KeyPair;

/// The first block of a PEM file (RFC 7468) that is a private key.
pub(crate) struct PrivateKey<'a> {
    /// The block with its first and its last line.
    pub(crate) pem: String,
    label: &'a str,
}

/// A block of a PEM file: its label, and its text from the first to the last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block<'a> {
    pub(crate) label: &'a str,
    pub(crate) text: &'a str,
}

/// `AlgorithmIdentifier` in DER of each kind of key that has a format of its own: RSA (RFC 8017, appendix A.1), and
/// ECDSA with P-256 and P-384 (RFC 5915).
const RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
const CURVES: [&[u8]; 2] = [
    b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
    b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22",
];

impl<'a> PrivateKey<'a> {
    /// Finds the private key in a file. `None`: there is none.
    pub(crate) fn find(text: &'a str) -> Option<Self> {
        let block = blocks(text).find(|block| block.label.ends_with("PRIVATE KEY"))?;
        Some(Self { pem: format!("{}\n", block.text), label: block.label })
    }

    /// True if a password is needed to read the key.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.pem.contains("ENCRYPTED")
    }

    /// Returns the public key of the key: the content of `subjectPublicKey` in a certificate. `None`: the kind of key
    /// is not supported.
    pub(crate) fn public_key(&self) -> Option<Vec<u8>> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.pem.as_bytes()).ok()?;
        let key = &pem.contents;
        let pair = match self.label {
            "PRIVATE KEY" => KeyPair::try_from(&**key).ok(),
            "RSA PRIVATE KEY" => KeyPair::try_from(pkcs8(RSA, key)).ok(),
            "EC PRIVATE KEY" => CURVES.iter().find_map(|curve| KeyPair::try_from(pkcs8(curve, key)).ok()),
            _ => None,
        };
        Some(pair?.public_key_raw().to_vec())
    }
}

/// Returns the blocks of a PEM file. Text between them is skipped, as is a block without an end.
pub(crate) fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.find("-----BEGIN ")?..];
            let (label, _) = rest["-----BEGIN ".len()..].split_once("-----")?;
            let end = format!("-----END {label}-----");
            let (begin, body) = rest.split_at("-----BEGIN ".len());
            let next = body.find("-----BEGIN ").unwrap_or(body.len());
            match body[..next].find(&end) {
                Some(at) => {
                    let (text, remaining) = rest.split_at(begin.len() + at + end.len());
                    rest = remaining;
                    return Some(Block { label, text });
                }
                None => rest = body,
            }
        }
    })
}

/// Returns a key in the format PKCS #8 (RFC 5208).
fn pkcs8(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let version = [0x02, 1, 0];
    der(0x30, &[&version, algorithm, &der(0x04, key)].concat())
}

/// Returns a value in DER: tag, length and content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut value = vec![tag];
    if content.len() >= 0x80 {
        value.push(0x80 | u8::try_from(significant.len()).expect("at most 8"));
    }
    value.extend(significant);
    value.extend(content);
    value
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::conf::certificate::Certificate;

    fn openssl(args: &str) -> String {
        let output = Command::new("openssl").args(args.split(' ')).output().expect("start openssl");
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_public_key_of_every_supported_kind_is_that_of_its_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name).display().to_string();
        for (name, options) in [
            ("rsa", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048"),
            ("p256", "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"),
            ("p384", "-algorithm EC -pkeyopt ec_paramgen_curve:P-384"),
            ("ed25519", "-algorithm ED25519"),
        ] {
            let key = file(name);
            openssl(&format!("genpkey {options} -out {key}"));
            let certificate = openssl(&format!("req -x509 -new -key {key} -subj /CN=a -days 9"));
            let expected = Certificate::parse(&certificate).unwrap().public_key;
            let mut formats = vec![std::fs::read_to_string(&key).unwrap()];
            if name != "ed25519" {
                formats.push(openssl(&format!("pkey -in {key} -traditional")));
                assert!(!formats[1].contains("BEGIN PRIVATE KEY"));
            }
            for text in formats {
                let text = format!("{certificate}-----BEGIN PRIVATE KEY-----\n{text}text\n");
                let key = PrivateKey::find(&text).unwrap();
                assert!(!key.is_encrypted() && key.pem.lines().count() > 2);
                assert_eq!(key.public_key().as_ref(), Some(&expected), "{}", key.pem);
            }
        }
        for unsupported in ["-algorithm RSA -pkeyopt rsa_keygen_bits:1024", "-algorithm ED448"] {
            let text = openssl(&format!("genpkey {unsupported}"));
            assert_eq!(PrivateKey::find(&text).unwrap().public_key(), None, "{unsupported}");
        }
    }

    #[test]
    fn blocks_are_separated_from_other_text() {
        let text = "a\n-----BEGIN A-----\n1\n-----END A-----\nb\n-----BEGIN B-----\n-----BEGIN A-----\n2\n-----END A-----\n-----BEGIN C";
        let found: Vec<_> =
            blocks(text).map(|block| (block.label, block.text.lines().nth(1).unwrap())).collect();
        assert_eq!(found, [("A", "1"), ("A", "2")]);
    }
}
