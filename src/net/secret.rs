//! [`Secret`] and [`Login`]: values that must not appear in output, and how a user is known to a server.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A password or a token: nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl Secret {
    /// Takes it out of sight.
    #[must_use]
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, to be sent.
    #[must_use]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What a user is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A name and a password.
    Password(String, Secret),
    /// What a token server gives tokens for (OAuth 2: a refresh token).
    Identity(Secret),
    /// The token itself.
    Token(Secret),
}

/// What a user is known by, and where that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    /// What is sent.
    pub proof: Credential,
    /// Where it was found, for a person.
    pub source: String,
}

impl Login {
    /// `text` without the secret, if a server has put it there.
    #[must_use]
    pub(crate) fn scrub(&self, text: &str) -> String {
        const PART: usize = 8;
        let (Credential::Password(_, secret) | Credential::Identity(secret) | Credential::Token(secret)) =
            &self.proof;
        let secret = secret.reveal();
        let mut forms = vec![secret.to_owned(), STANDARD.encode(secret), form_urlencoded(secret)];
        if let Credential::Password(user, password) = &self.proof {
            forms.push(basic(user, password));
        }
        forms.retain(|form| !form.is_empty());
        // The longest first: one may end as another does.
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        let mut text = forms.iter().fold(text.to_owned(), |text, form| text.replace(form, "…"));
        // What a server says is cut off somewhere, and the secret may be, too.
        if let Some(at) = text.find(IT_SAYS) {
            let has = |part: &[u8]| text.as_bytes()[at..].windows(part.len()).any(|window| window == part);
            if forms.iter().any(|form| form.as_bytes().windows(PART).any(has)) {
                text.truncate(at);
            }
        }
        text
    }
}

pub(crate) fn form_urlencoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Begins what a server says itself, in an error.
pub(crate) const IT_SAYS: &str = "; it says \"";

/// The credentials of `Authorization: Basic` (RFC 7617).
#[must_use]
pub(crate) fn basic(user: &str, password: &Secret) -> String {
    STANDARD.encode(format!("{user}:{}", password.reveal()))
}
