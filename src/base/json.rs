//! [`pretty`]: JSON documents in the form in which files have them, and paths as text.

use std::io::{self, Write};
use std::path::Path;

use serde::{Serialize, Serializer};

/// Returns `value` as indented JSON with a final newline; equal values have equal bytes.
pub(crate) fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain structs become JSON; please report");
    bytes.push(b'\n');
    bytes
}

/// Writes `value` as [`pretty`] does.
pub(crate) fn write_pretty(mut output: impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut output, value)?;
    output.write_all(b"\n")?;
    output.flush()
}

/// An array whose elements are made while they are written. The function returns them.
pub(crate) struct Sequence<F>(pub F);

impl<F: Fn() -> I, I: IntoIterator<Item: Serialize>> Serialize for Sequence<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// Returns a document without the byte order mark that some editors write (RFC 8259, section 8.1).
#[must_use]
pub(crate) fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Returns a path for JSON. Bytes that are not UTF-8, which JSON cannot have, become U+FFFD.
#[must_use]
pub(crate) fn text_of(path: &Path) -> String {
    path.display().to_string()
}
