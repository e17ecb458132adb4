//! Text from outside: which characters a terminal or a parser could obey, and how they are shown.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Joins the first `shown` texts, and states the number of the others.
#[must_use]
pub(crate) fn listed(texts: impl IntoIterator<Item = String>, shown: usize) -> String {
    let mut texts: Vec<String> = texts.into_iter().collect();
    let more = texts.len().saturating_sub(shown);
    texts.truncate(shown);
    let joined = texts.join(", ");
    if more == 0 { joined } else { format!("{joined} and {more} more") }
}

/// True for characters that change what the user sees without being seen: control characters (C0, DEL, C1),
/// line and paragraph separators, bidirectional controls, and invisible or deprecated format characters
/// (Unicode 16, general categories Cc, Cf, Zl and Zp). Joiners and variation selectors are not among them: several
/// scripts and emoji need them.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// True for characters that no name and no title may have: control characters, line and paragraph separators, and
/// bidirectional controls. They are hidden, too; the other hidden characters occur in names of several scripts.
#[must_use]
pub fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns `text` with each hidden character as an escape sequence: `\n`, `\u{1b}`. Spaces stay.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_hidden(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// Returns a JSON text with the hidden characters in its strings as `\\uXXXX`, which parsers read as the same
/// value. (Serializers escape the C0 characters only; outside of strings, these are the layout.)
#[must_use]
pub fn escape_json(json: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| c > '\x1f' && is_hidden(c);
    if !json.contains(is_harmful) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        if is_harmful(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}"); // into memory
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Returns ` and 3 more positions`; nothing for 0.
#[must_use]
pub(crate) fn more_positions(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " and 1 more position".to_owned(),
        count => format!(" and {count} more positions"),
    }
}

/// True for the beginning of a line that git writes into a file that it cannot merge.
#[must_use]
pub(crate) fn is_conflict_mark(word: &str) -> bool {
    ["<<<<<<<", "|||||||", "=======", ">>>>>>>"].contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut() {
        let texts = |count: usize| (0..count).map(|number| number.to_string());
        assert_eq!(listed(texts(5), 5), "0, 1, 2, 3, 4");
        assert_eq!(listed(texts(7), 5), "0, 1, 2, 3, 4 and 2 more");
    }

    #[test]
    fn json_without_hidden_characters_has_the_same_value() {
        let value = "a\x1b[2J\n\x7f\u{9b}\u{202e}\u{2028}\u{feff}\u{e0041}\u{1d173} ü 🙂";
        for json in
            [serde_json::to_string(&[value]).unwrap(), serde_json::to_string_pretty(&[value]).unwrap()]
        {
            let escaped = escape_json(&json);
            assert!(
                !escaped.contains(|c| is_hidden(c) && c != '\n') && escaped.contains("ü 🙂"),
                "{escaped}"
            );
            assert_eq!(serde_json::from_str::<[String; 1]>(&escaped).unwrap(), [value]);
        }
    }

    #[test]
    fn a_control_character_is_hidden() {
        let controls = ('\0'..=char::MAX).filter(|c| is_control(*c));
        assert_eq!(controls.clone().find(|c| !is_hidden(*c)), None);
        assert_eq!(controls.count(), 65 + 12 + 2);
        assert!(!is_control('\u{200d}') && !is_control('\u{fe0f}') && is_control('\u{202e}'));
    }

    #[test]
    fn what_cannot_be_seen_is_escaped() {
        for (text, expected) in [
            ("plain text, ünïcode 漢字 🙂", "plain text, ünïcode 漢字 🙂"),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("one\ntwo\r", "one\\ntwo\\r"),
            ("a\u{202e}gnp.exe", "a\\u{202e}gnp.exe"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("a\u{2028}b\u{feff}\u{200b}\u{e0041}", "a\\u{2028}b\\u{feff}\\u{200b}\\u{e0041}"),
        ] {
            assert_eq!(escape(text), expected);
        }
    }
}
