//! YAML, as in `registry.yml`: values are double-quoted scalars.

use super::{Text, double_quoted};

/// The language of a file that its reader does not process further.
pub(crate) enum Yaml {}

/// Returns a scalar with the value `text`.
#[must_use]
pub(crate) fn string(text: &str) -> Text<Yaml> {
    Text::quoted(double_quoted(text))
}
