//! TOML, as in `hosts.toml` and the configuration of podman: values and quoted keys are basic strings.

use super::{Text, double_quoted};

/// The language of `hosts.toml`.
pub(crate) enum Toml {}

/// Returns a basic string with the value `text`.
#[must_use]
pub(crate) fn string(text: &str) -> Text<Toml> {
    Text::quoted(double_quoted(text))
}
