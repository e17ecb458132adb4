//! [`Secret`] and [`Login`]: values that must not appear in output.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;

/// Introduces the server's own message in an error.
pub(crate) const SERVER_MESSAGE: &str = "; server message: \"";

/// A password or a token that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    #[must_use]
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the plain text, to be sent to a server.
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

/// Authenticates a user to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// User name and password.
    Password(String, Secret),
    /// An identity token, which a token server exchanges for an access token (OAuth 2: refresh token).
    Identity(Secret),
    /// An access token.
    Token(Secret),
}

/// A credential and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    /// The credential.
    pub credential: Credential,
    /// File, helper or option that contains the credential, for messages.
    pub source: String,
}

impl Login {
    /// Removes the secret from `text`, in every encoding in which a server may echo it.
    #[must_use]
    pub(crate) fn scrub(&self, text: &str) -> String {
        const PART: usize = 8;
        let (Credential::Password(_, secret) | Credential::Identity(secret) | Credential::Token(secret)) =
            &self.credential;
        let secret = secret.reveal();
        let mut forms = vec![secret.to_owned(), STANDARD.encode(secret), form_urlencoded(secret)];
        if let Credential::Password(user, password) = &self.credential {
            forms.push(basic(user, password));
        }
        forms.retain(|form| !form.is_empty());
        // The longest first: one form may be the suffix of another.
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        let mut text = forms.iter().fold(text.to_owned(), |text, form| text.replace(form, "…"));
        // The server's message is truncated, and the secret in it may be, too.
        if let Some(at) = text.find(SERVER_MESSAGE) {
            let has = |part: &[u8]| text.as_bytes()[at..].windows(part.len()).any(|window| window == part);
            if forms.iter().any(|form| form.as_bytes().windows(PART).any(has)) {
                text.truncate(at);
            }
        }
        text
    }
}

/// Returns the credentials of `Authorization: Basic` (RFC 7617).
#[must_use]
pub(crate) fn basic(user: &str, password: &Secret) -> String {
    STANDARD.encode(format!("{user}:{}", password.reveal()))
}

/// Returns a URL without credentials and without its query, where storage services put their signatures.
#[must_use]
pub(crate) fn redacted(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for a URL that cannot have credentials.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.to_string()
}

fn form_urlencoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
