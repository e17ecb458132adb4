//! [`pretty`]: JSON documents in the form in which files have them.

use serde::Serialize;

/// Returns `value` as indented JSON with a final newline; equal values have equal bytes.
pub(crate) fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain structs become JSON; please report");
    bytes.push(b'\n');
    bytes
}
