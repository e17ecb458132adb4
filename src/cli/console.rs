//! The only access to stdout, stderr and the terminal: [`Text`] for people, JSON for programs, and raw bytes.
//!
//! Text contains names, paths and messages from bundles, registries and other programs. No other file writes
//! to the standard streams (`tests/house`), and no text gets here unless it was made of lines, which are
//! escaped. Therefore no byte from outside can move the cursor, hide text, or begin a line of its own.

use std::fmt::{self, Display, Write as _};
use std::io::{self, BufWriter, IsTerminal as _, Write};

use crate::base::text::{escape, escape_json, is_hidden};

/// Escaped lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Text(String);

impl Text {
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Creates a text of one line.
    #[must_use]
    pub(crate) fn of(line: impl Display) -> Self {
        let mut text = Self::new();
        text.line(line);
        text
    }

    /// Adds a line. All control characters and invisible characters in it are escaped, line breaks included.
    pub(crate) fn line(&mut self, line: impl Display) {
        self.0.push_str(&escape(&line.to_string()));
        self.0.push('\n');
    }

    /// Adds the lines of another text.
    pub(crate) fn append(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }
}

impl Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes text to stdout.
pub(crate) fn print(text: &Text) -> io::Result<()> {
    io::stdout().write_all(text.0.as_bytes())
}

/// Writes JSON to stdout.
pub(crate) fn print_json(json: &str) -> io::Result<()> {
    io::stdout().write_all(escape_json(json).as_bytes())
}

/// Writes the help or the version of the program to stdout, in color on a terminal.
pub(crate) fn print_help(help: &clap::Error) -> io::Result<()> {
    help.print()?;
    io::stdout().flush()
}

/// Writes JSON to stdout while it is made. Each call has complete characters, as those of `serde_json` have.
pub(crate) struct JsonStdout(BufWriter<io::Stdout>);

impl JsonStdout {
    pub(crate) fn new() -> Self {
        Self(BufWriter::new(io::stdout()))
    }
}

impl Write for JsonStdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        self.0.write_all(escape_json(text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes text to stderr with one call, so that lines of other processes do not get in between. Failures are
/// ignored: stderr may be closed or its disk full, and the exit code still tells the result.
pub(crate) fn report(text: &Text) {
    let _ = io::stderr().write_all(text.0.as_bytes());
}

/// Prompts on stderr and waits for Enter. Returns false at the end of stdin.
pub(crate) fn prompt(question: impl Display) -> bool {
    let question = format!("\n{} ", escape(&question.to_string()));
    let _ = io::stderr().write_all(question.as_bytes());
    io::stdin().read_line(&mut String::new()).is_ok_and(|read| read > 0)
}

/// Prompts on the terminal for a password, which is not echoed.
pub(crate) fn prompt_password(question: impl Display) -> io::Result<String> {
    rpassword::prompt_password(format!("{} ", escape(&question.to_string())))
}

#[must_use]
pub(crate) fn is_stdout_terminal() -> bool {
    io::stdout().is_terminal()
}

#[must_use]
pub(crate) fn is_stderr_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Returns stdout for the bytes of an object: unchanged for a file or a pipe, escaped for a terminal.
pub(crate) fn object_writer() -> Box<dyn Write> {
    let stdout = io::stdout().lock();
    if stdout.is_terminal() { Box::new(Escaping::new(stdout)) } else { Box::new(stdout) }
}

/// Writes bytes as text for a terminal. Line breaks and tabs stay, other control characters and invisible
/// characters are escaped, and bytes that are not UTF-8 become `\x…`.
struct Escaping<W> {
    out: W,
    /// The bytes of a character that is not complete yet.
    start: Vec<u8>,
}

impl<W: Write> Escaping<W> {
    fn new(out: W) -> Self {
        Self { out, start: Vec::new() }
    }
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len();
        let bytes = [&std::mem::take(&mut self.start), bytes].concat();
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            for c in chunk.valid().chars() {
                if is_hidden(c) && !matches!(c, '\n' | '\t') {
                    text.extend(c.escape_default());
                } else {
                    text.push(c);
                }
            }
            let invalid = chunk.invalid();
            let is_incomplete = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if chunks.peek().is_none() && is_incomplete {
                self.start = invalid.to_vec();
            } else {
                push_bytes(&mut text, invalid);
            }
        }
        self.out.write_all(text.as_bytes())?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut text = String::new();
        push_bytes(&mut text, &std::mem::take(&mut self.start));
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "\\x{byte:02x}"); // into memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_begin_a_line_or_reach_the_terminal() {
        let mut text = Text::of(format_args!("image {}", "a\nerror: forged\r\x1b[2J\u{202e}"));
        text.line("next\tline");
        assert_eq!(text.to_string(), "image a\\nerror: forged\\r\\u{1b}[2J\\u{202e}\nnext\\tline\n");
    }

    #[test]
    fn an_object_on_a_terminal_is_text() {
        let bytes = "a\tb\r\n\x1b]0;title\x07 ü漢🙂\u{9b}31m\u{202e}\u{2028}".as_bytes();
        let bytes = [bytes, b"\xff\xe6\xbc.\x00", b"\xf0\x9f"].concat();
        let expected = "a\tb\\r\n\\u{1b}]0;title\\u{7} ü漢🙂\\u{9b}31m\\u{202e}\\u{2028}\\xff\\xe6\\xbc.\\u{0}\\xf0\\x9f";
        for size in 1..=bytes.len() {
            let mut writer = Escaping::new(Vec::new());
            for part in bytes.chunks(size) {
                writer.write_all(part).unwrap();
            }
            writer.flush().unwrap();
            assert_eq!(String::from_utf8(writer.out).unwrap(), expected, "{size}");
        }
    }
}
