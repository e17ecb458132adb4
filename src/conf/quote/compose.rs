//! YAML of compose, which replaces `$NAME` in every value.

use super::{Text, double_quoted};
use crate::oci::digest::Digest;

/// The language of `compose.yaml`.
pub(crate) enum Compose {}

/// Returns a scalar with the value `text`.
#[must_use]
pub(crate) fn string(text: &str) -> Text<Compose> {
    Text::quoted(double_quoted(&text.replace('$', "$$")))
}

/// Returns a scalar with the value of an environment variable, or else the digest.
#[must_use]
pub(crate) fn variable_or_digest(variable: &'static str, digest: Digest) -> Text<Compose> {
    Text::quoted(double_quoted(&format!("${{{variable}:-{digest}}}")))
}
