//! [`Netrc`]: names and passwords for web servers, as curl, wget and git keep them (`~/.netrc`, or `$NETRC`).

use std::path::PathBuf;

use reqwest::Url;

use crate::base::fs::is_missing;
use crate::net::secret::{Credential, Login, Secret};

/// A netrc, read when it is needed.
#[derive(Debug)]
pub(crate) struct Netrc {
    path: PathBuf,
    /// Whether the user has named it, so that it has to be there.
    required: bool,
}

/// Why a netrc cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the credentials in `{}` cannot be read: {source}", path.display())]
pub(crate) struct NetrcError {
    path: PathBuf,
    source: std::io::Error,
}

impl Netrc {
    /// The file at `path`.
    #[must_use]
    pub(crate) fn new(path: PathBuf, required: bool) -> Self {
        Self { path, required }
    }

    /// Name and password for the host of `url`.
    pub(crate) fn find(&self, url: &Url) -> Result<Option<Login>, NetrcError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if is_missing(&error) && !self.required => return Ok(None),
            Err(source) => return Err(NetrcError { path: self.path.clone(), source }),
        };
        let host = url.host_str().unwrap_or_default();
        let entries = entries(&text);
        let entry = entries.into_iter().find(|entry| entry.machine.eq_ignore_ascii_case(host));
        Ok(entry.map(|entry| Login {
            proof: Credential::Password(entry.login, Secret::new(entry.password)),
            source: format!("`{}`", self.path.display()),
        }))
    }
}

#[derive(Default)]
struct NetrcEntry {
    machine: String,
    login: String,
    password: String,
}

/// The entries for one machine each, in order. What is for all machines (`default`) is for none here: a list may name
/// any host.
fn entries(text: &str) -> Vec<NetrcEntry> {
    let mut entries: Vec<NetrcEntry> = Vec::new();
    let mut in_machine = false;
    let mut words = Words(text, true);
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

/// What white space parts, with quotes and comments as curl has them; and whether it begins here.
struct Words<'a>(&'a str, bool);

impl Words<'_> {
    /// A macro ends at an empty line.
    fn skip_macro(&mut self) {
        self.0 = self.0.split_once("\n\n").map_or("", |(_, rest)| rest);
        self.1 = true;
    }
}

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let text = self.0.trim_start();
            let is_first = self.1 || self.0[..self.0.len() - text.len()].contains('\n');
            self.1 = false;
            self.0 = text;
            // Anywhere else it begins a password.
            let Some(comment) = text.strip_prefix('#').filter(|_| is_first) else { break };
            self.0 = comment.find('\n').map_or("", |end| &comment[end..]);
        }
        let Some(quoted) = self.0.strip_prefix('"') else {
            let end = self.0.find(char::is_whitespace).unwrap_or(self.0.len());
            let (word, rest) = self.0.split_at(end);
            self.0 = rest;
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
        self.0 = chars.as_str();
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netrc_is_read_as_curl_reads_it() {
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
