//! [`RequestUrl`]: the URL that a file is fetched from, whose query may contain a secret.

use std::fmt;

use url::Url;

/// A URL to fetch. Its query is never printed: presigned URLs have a signature there.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestUrl(Url);

impl RequestUrl {
    #[must_use]
    pub(crate) fn new(url: Url) -> Self {
        Self(url)
    }

    /// Returns the URL with its query, to be sent to a server.
    #[must_use]
    pub fn reveal(&self) -> &Url {
        &self.0
    }

    /// Returns the URL without its query.
    #[must_use]
    pub fn without_query(&self) -> Url {
        let mut url = self.0.clone();
        url.set_query(None);
        url
    }
}

impl fmt::Debug for RequestUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.without_query().as_str())
    }
}

/// Returns the first parameter in the query of `url` that contains a secret, judging by its name. `None`: no such
/// parameter.
///
/// Covers presigned URLs (AWS, Google, Azure, Alibaba, Tencent, `CloudFront`) and the usual names of tokens.
pub(crate) fn secret_parameter(url: &Url) -> Option<String> {
    const NAMES: [&str; 12] =
        ["sig", "se", "sas", "key", "auth", "jwt", "hmac", "pass", "pwd", "policy", "code", "key-pair-id"];
    const PARTS: [&str; 12] = [
        "signature",
        "token",
        "secret",
        "passw",
        "credential",
        "authoriz",
        "accesskey",
        "access_key",
        "access-key",
        "accessid",
        "apikey",
        "session",
    ];
    const PREFIXES: [&str; 7] = ["x-amz-", "x-goog-", "x-oss-", "x-obs-", "x-ms-", "api_key", "api-key"];
    let is_secret = |name: &str| {
        let name = name.to_ascii_lowercase();
        NAMES.contains(&&*name)
            || PARTS.iter().any(|part| name.contains(part))
            || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    url.query_pairs().map(|(name, _)| name.into_owned()).find(|name| is_secret(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_presigned_urls_are_secrets() {
        for name in [
            "sig",
            "SIG",
            "Signature",
            "X-Amz-Signature",
            "x-amz-expires",
            "X%2DAmz-Credential",
            "X-Goog-Signature",
            "token",
            "access_token",
            "private_token",
            "job_token",
            "AWSAccessKeyId",
            "OSSAccessKeyId",
            "GoogleAccessId",
            "q-signature",
            "Key-Pair-Id",
            "Policy",
            "api_key",
            "apikey",
            "password",
            "passwd",
            "client_secret",
        ] {
            let url = Url::parse(&format!("https://h/a?x=1&{name}=v")).unwrap();
            assert!(secret_parameter(&url).is_some(), "{name}");
        }
        for query in
            ["", "?", "?x=1", "?version=1&arch=amd64", "?raw=true", "?download", "?sigma=1", "?ref=v1"]
        {
            let url = Url::parse(&format!("https://h/token/sig{query}")).unwrap();
            assert_eq!(secret_parameter(&url), None, "{query}");
        }
    }

    #[test]
    fn the_query_is_not_printed() {
        let url = RequestUrl::new(Url::parse("https://h/a?sig=SECRET").unwrap());
        assert_eq!(format!("{url:?}"), "https://h/a");
        assert_eq!(url.without_query().as_str(), "https://h/a");
        assert_eq!(url.reveal().query(), Some("sig=SECRET"));
    }
}
