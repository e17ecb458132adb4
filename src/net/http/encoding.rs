//! Decodes the content encoding of documents (RFC 9110, section 8.4).
//!
//! No request accepts an encoding, but some proxies compress JSON anyway. Files and layers keep the bytes that
//! were sent: many servers derive `Content-Encoding: gzip` from the name of a file that is stored compressed.

use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap};

/// Returns the content encoding of a response, without `identity`. `None`: the bytes are the content.
#[must_use]
pub(crate) fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(CONTENT_ENCODING).iter();
    let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
    let joined = values.collect::<Vec<_>>().join(",");
    let names = joined.split(',').map(str::trim).filter(|name| !matches!(*name, "" | "identity"));
    let names: Vec<_> = names.collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Decodes a document. Returns at most `limit` bytes, so that a small body cannot fill the memory. The error says
/// why it cannot be decoded.
pub(crate) fn decode(encoding: &str, bytes: Vec<u8>, limit: u64) -> Result<Vec<u8>, String> {
    let mut decoded = Vec::new();
    let result = match encoding {
        // A document that is not compressed in spite of the header.
        "gzip" | "x-gzip" if !bytes.starts_with(&[0x1f, 0x8b]) => return Ok(bytes),
        "gzip" | "x-gzip" => MultiGzDecoder::new(&*bytes).take(limit).read_to_end(&mut decoded),
        "deflate" if is_zlib(&bytes) => ZlibDecoder::new(&*bytes).take(limit).read_to_end(&mut decoded),
        // Some servers send the stream without the zlib header that the specification requires.
        "deflate" => DeflateDecoder::new(&*bytes).take(limit).read_to_end(&mut decoded),
        _ => return Err(format!("unsupported `Content-Encoding: {encoding}`, which was not requested")),
    };
    match result {
        Ok(_) => Ok(decoded),
        Err(error) => Err(format!("cannot decode `Content-Encoding: {encoding}`: {error}")),
    }
}

/// True if the bytes begin with a zlib header (RFC 1950, section 2.2).
fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [method, flags, ..]
        if method & 0x0f == 8 && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use reqwest::header::HeaderValue;

    use super::*;

    macro_rules! encoded {
        ($encoder:ident, $bytes:expr) => {{
            let mut encoder = $encoder::new(Vec::new(), Compression::best());
            encoder.write_all($bytes).unwrap();
            encoder.finish().unwrap()
        }};
    }

    #[test]
    fn documents_are_decoded_up_to_the_limit() {
        let json: &[u8] = br#"{"token":"abc"}"#;
        for (encoding, bytes) in [
            ("gzip", encoded!(GzEncoder, json)),
            ("x-gzip", encoded!(GzEncoder, json)),
            ("gzip", json.to_vec()),
            ("deflate", encoded!(ZlibEncoder, json)),
            ("deflate", encoded!(DeflateEncoder, json)),
        ] {
            assert_eq!(decode(encoding, bytes.clone(), 1000).unwrap(), json, "{encoding}");
            let short = decode(encoding, bytes, 5);
            assert!(short.is_ok_and(|bytes| bytes.len() == 5 || bytes == json), "{encoding}");
        }
        let bomb = encoded!(GzEncoder, &vec![0; 50_000_000]);
        assert!(bomb.len() < 60_000);
        assert_eq!(decode("gzip", bomb, 1 << 20).unwrap().len(), 1 << 20);
    }

    #[test]
    fn an_unknown_encoding_is_named() {
        for encoding in ["br", "zstd", "gzip, gzip"] {
            assert!(decode(encoding, b"{}".to_vec(), 10).unwrap_err().contains(encoding));
        }
        let broken = decode("gzip", vec![0x1f, 0x8b, 0xff, 0, 0], 10).unwrap_err();
        assert!(broken.contains("gzip"), "{broken}");
    }

    #[test]
    fn identity_is_no_encoding() {
        for (values, expected) in [
            (&[][..], None),
            (&["identity"], None),
            (&[" GZIP "], Some("gzip")),
            (&["gzip, identity"], Some("gzip")),
            (&["gzip", "br"], Some("gzip, br")),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            assert_eq!(content_encoding(&headers).as_deref(), expected, "{values:?}");
        }
    }
}
