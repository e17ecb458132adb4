//! Files with credentials of the user: `auth.json` and `.netrc`.

use reqwest::Url;

use crate::fuzzing::laws::text;
use crate::net::credentials::auth_file::AuthConfig;
use crate::net::netrc;

/// An `auth.json` and a `.netrc`.
pub fn credentials(bytes: &[u8]) {
    let text = text(bytes);
    let _ = netrc::credential(text, "registry.example");
    let Ok(config) = serde_json::from_slice::<AuthConfig>(bytes) else { return };
    for base in ["https://registry.example/", "http://127.0.0.1:5000/", "https://[::1]:5000/"] {
        let base: Url = base.parse().expect("a URL");
        let _ = config.entry(&base, "a/b");
        assert!(config.helper(&base, "a/b").is_none_or(|name| !name.is_empty()));
    }
}
