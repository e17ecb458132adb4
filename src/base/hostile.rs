//! `mutations`: documents with hostile text in each of their strings, for tests of parsers.

use serde_json::Value;

use crate::base::text::is_control;

/// Texts that some parser, shell or terminal interprets.
const TEXTS: [&str; 26] = [
    "",
    " ",
    "\n",
    "\0",
    "a\nb: {{ lookup('pipe', 'id') }}",
    "v1\nkube_image_repo: \"x\"\n#",
    "\r\nSet-Cookie: x",
    "\u{1b}[2J\u{1b}]0;x\u{7}",
    "\u{9b}31m",
    "\u{7f}",
    "\u{85}",
    "\u{2028}x\u{2029}",
    "\u{202e}gnp.exe",
    "\u{2066}x\u{2069}",
    "a\u{200f}b",
    "../../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "x\nEND\ntouch proof\ncat >/dev/null <<'END'\n/pause",
    "a\" x;\n} # ",
    "'; touch proof; '",
    "$(touch proof)`touch proof`",
    "<script>alert(1)</script>\n",
    "javascript:alert(1)\n",
    "%0a%0d\u{0}",
    "\u{feff}\u{fffe}\u{10ffff}\n",
];

/// Returns `document` with each text in place of each string, and appended to and put before it, each with the JSON
/// pointer of the string.
pub(crate) fn mutations(document: &Value) -> Vec<(String, Value)> {
    let mut pointers = Vec::new();
    collect(document, String::new(), &mut pointers);
    let mut mutations = Vec::new();
    for pointer in pointers {
        let original = document.pointer(&pointer).and_then(Value::as_str).unwrap_or_default();
        for text in TEXTS {
            for hostile in [text.to_owned(), format!("{original}{text}"), format!("{text}{original}")] {
                let mut mutated = document.clone();
                *mutated.pointer_mut(&pointer).expect("a pointer to a string") = hostile.into();
                mutations.push((pointer.clone(), mutated));
            }
        }
    }
    mutations
}

/// Panics if `parsed`, the serialized result of a parser, has a string that `document` does not have, or one with
/// control characters. Strings whose pointer contains one of `opaque` can have any.
pub(crate) fn assert_unchanged(document: &Value, parsed: &Value, opaque: &[&str]) {
    let strings = |value: &Value| {
        let mut pointers = Vec::new();
        collect(value, String::new(), &mut pointers);
        pointers
    };
    let texts: Vec<&str> =
        strings(document).iter().filter_map(|pointer| document.pointer(pointer)?.as_str()).collect();
    for pointer in strings(parsed) {
        let text = parsed.pointer(&pointer).and_then(Value::as_str).unwrap_or_default();
        assert!(texts.contains(&text), "{pointer}: {text:?} is not in {document}");
        let is_opaque = opaque.iter().any(|part| pointer.contains(part));
        assert!(is_opaque || !text.contains(is_control), "{pointer}: {text:?}");
    }
}

/// Adds the JSON pointers of all strings in `value`.
fn collect(value: &Value, pointer: String, pointers: &mut Vec<String>) {
    match value {
        Value::String(_) => pointers.push(pointer),
        Value::Array(all) => {
            for (number, value) in all.iter().enumerate() {
                collect(value, format!("{pointer}/{number}"), pointers);
            }
        }
        Value::Object(members) => {
            for (name, value) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{pointer}/{name}"), pointers);
            }
        }
        _ => {}
    }
}
