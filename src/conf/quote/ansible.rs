//! YAML of Ansible, which evaluates Jinja expressions in every value without the tag `!unsafe`.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Text, double_quoted};

/// The language of `offline.yml`.
pub(crate) enum Ansible {}

/// Text with Jinja expressions.
pub(crate) enum Jinja {}

/// The characters that [`part`] percent-encodes: all but those of a host, a port and a repository name.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':')
    .remove(b'/')
    .remove(b'[')
    .remove(b']');

/// Returns a scalar with the value `text`, in which Ansible evaluates nothing.
#[must_use]
pub(crate) fn string(text: &str) -> Text<Ansible> {
    let tag = if text.contains(['{', '}']) { "!unsafe " } else { "" };
    Text::quoted(format!("{tag}{}", double_quoted(text)))
}

/// Returns a scalar whose value Ansible evaluates.
#[must_use]
pub(crate) fn template(template: &Text<Jinja>) -> Text<Ansible> {
    Text::quoted(double_quoted(template.as_str()))
}

/// Returns a part of a URL or an image name within a template. `!unsafe` applies to an entire value only, so other
/// characters than those of hosts and repositories are percent-encoded.
#[must_use]
pub(crate) fn part(text: &str) -> Text<Jinja> {
    Text::quoted(utf8_percent_encode(text, ENCODED).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ansible_evaluates_no_foreign_text() {
        for (text, scalar, inline) in [
            ("hub.example:5000/k8s", r#""hub.example:5000/k8s""#, "hub.example:5000/k8s"),
            ("{{ x }}", r#"!unsafe "{{ x }}""#, "%7B%7B%20x%20%7D%7D"),
            ("a{%", r#"!unsafe "a{%""#, "a%7B%25"),
            ("\"\n", r#""\"\u000A""#, "%22%0A"),
        ] {
            assert_eq!(string(text).as_str(), scalar);
            assert_eq!(part(text).as_str(), inline);
        }
    }
}
