//! [`Netrc`]: user names and passwords for web servers (`~/.netrc` or `$NETRC`), as in curl.

use std::path::PathBuf;

use reqwest::Url;

use crate::base::fs::is_missing;
use crate::net::secret::{Credential, Login, Secret};

/// A netrc file, read on demand.
#[derive(Debug)]
pub(crate) struct Netrc {
    path: PathBuf,
    /// True if the user names it, so that it has to exist.
    required: bool,
}

/// A netrc file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read credentials in `{}`: {source}", path.display())]
pub(crate) struct NetrcError {
    path: PathBuf,
    source: std::io::Error,
}

impl Netrc {
    #[must_use]
    pub(crate) fn new(path: PathBuf, required: bool) -> Self {
        Self { path, required }
    }

    /// Returns the user name and password for the host of `url`.
    pub(crate) fn find(&self, url: &Url) -> Result<Option<Login>, NetrcError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if is_missing(&error) && !self.required => return Ok(None),
            Err(source) => return Err(NetrcError { path: self.path.clone(), source }),
        };
        let credential = credential(&text, url.host_str().unwrap_or_default());
        Ok(credential.map(|credential| Login { credential, source: format!("`{}`", self.path.display()) }))
    }
}

/// Returns the user name and password for `host` in the text of a file.
pub(crate) fn credential(text: &str, host: &str) -> Option<Credential> {
    let entry = entries(text).into_iter().find(|entry| entry.machine.eq_ignore_ascii_case(host))?;
    Some(Credential::Password(entry.login, Secret::new(entry.password)))
}

#[derive(Default)]
struct NetrcEntry {
    machine: String,
    login: String,
    password: String,
}

/// Returns the entries that name a machine, in order. Ignores `default`: lists can contain any host, and the
/// password must not be sent to all of them.
fn entries(text: &str) -> Vec<NetrcEntry> {
    let mut entries: Vec<NetrcEntry> = Vec::new();
    let mut in_machine = false;
    let mut words = Words { rest: text, at_line_start: true };
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" => {
                entries
                    .push(NetrcEntry { machine: words.next().unwrap_or_default(), ..NetrcEntry::default() });
                in_machine = true;
            }
            "default" => in_machine = false,
            "macdef" => words.skip_macro(),
            "login" | "password" | "account" => {
                let value = words.next().unwrap_or_default();
                match (word.as_str(), entries.last_mut().filter(|_| in_machine)) {
                    ("login", Some(entry)) => entry.login = value,
                    ("password", Some(entry)) => entry.password = value,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    entries
}

/// Splits text at white space, with quotes and comments as in curl.
struct Words<'a> {
    rest: &'a str,
    /// True if `rest` starts a line.
    at_line_start: bool,
}

impl Words<'_> {
    /// Skips to the empty line that ends a macro.
    fn skip_macro(&mut self) {
        self.rest = self.rest.split_once("\n\n").map_or("", |(_, rest)| rest);
        self.at_line_start = true;
    }
}

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let text = self.rest.trim_start();
            let is_first = self.at_line_start || self.rest[..self.rest.len() - text.len()].contains('\n');
            self.at_line_start = false;
            self.rest = text;
            // A `#` within a line can be part of a password.
            let Some(comment) = text.strip_prefix('#').filter(|_| is_first) else { break };
            self.rest = comment.find('\n').map_or("", |end| &comment[end..]);
        }
        let Some(quoted) = self.rest.strip_prefix('"') else {
            let end = self.rest.find(char::is_whitespace).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return (!word.is_empty()).then(|| word.to_owned());
        };
        let mut word = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next() {
                None | Some('"') => break,
                Some('\\') => word.push(match chars.next() {
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    other => other.unwrap_or('\\'),
                }),
                Some(other) => word.push(other),
            }
        }
        self.rest = chars.as_str();
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netrc_is_parsed_as_curl_does() {
        let text = "# comment\nmachine a.example login me password #1\nmacdef init\nmachine macro.example\n\n\
                    machine b.example\n\tlogin \"my self\"\n\tpassword \"a\\\"b c\" account x\n\
                    default login any password thing\nmachine c.example password alone";
        let found = entries(text);
        let found: Vec<_> =
            found.iter().map(|entry| [&*entry.machine, &*entry.login, &*entry.password]).collect();
        let expected =
            [["a.example", "me", "#1"], ["b.example", "my self", "a\"b c"], ["c.example", "", "alone"]];
        assert_eq!(found, expected);
    }
}
