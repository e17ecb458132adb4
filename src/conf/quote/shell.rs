//! POSIX shell: values are single-quoted words.

use super::Text;

/// The language of `site` and `trust.sh`.
pub(crate) enum Shell {}

/// Returns a word with the value `text`. NUL, which a shell cannot store, becomes U+FFFD.
#[must_use]
pub(crate) fn word(text: &str) -> Text<Shell> {
    Text::quoted(format!("'{}'", text.replace('\0', "\u{fffd}").replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_word_as_it_was() {
        let nasty = [
            "",
            "'",
            "''\\",
            "$(touch x)`id`\"${IFS}",
            "a\nEND\nb\n",
            "\u{202e}\r\t*?[~!#",
            "-n",
            "\u{1}\u{7f}",
        ];
        let words: Vec<_> = nasty.iter().map(|text| word(text)).collect();
        let script = format!("printf '%s\\0' {}", Text::join(words, " ").as_str());
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().split_terminator('\0').collect::<Vec<_>>(),
            nasty
        );
        assert_eq!(word("a\0b").as_str(), "'a\u{fffd}b'");
    }
}
