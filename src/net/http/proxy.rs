//! The proxy settings of the environment.

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use crate::net::secret::redacted;

/// Hint for a proxy that requires credentials, or rejects them.
pub(crate) const AUTHENTICATION_REQUIRED: &str =
    "proxy authentication required: set `HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT`";

/// True if `NO_PROXY=*` disables all proxies. (For reqwest, `*` matches names and no addresses.)
pub(crate) fn is_disabled() -> bool {
    let value = ["NO_PROXY", "no_proxy"].into_iter().find_map(|name| std::env::var(name).ok());
    value.is_some_and(|value| value.split(',').any(|entry| entry.trim() == "*"))
}

/// Returns the proxy for a URL, without its credentials.
pub(crate) fn proxy_for(url: &Url) -> Option<String> {
    if is_disabled() {
        return None;
    }
    let proxy = Matcher::from_env().intercept(&url.as_str().parse().ok()?)?;
    Some(redacted(&proxy.uri().to_string().parse().ok()?))
}
