//! Templates of generated files: text with `@NAME@` placeholders.

use crate::conf::quote::Text;

/// Replaces each `@NAME@` of `template` whose name is in `values`. A placeholder at the end of a line
/// consumes the newline if its value is empty or ends with one.
#[must_use]
pub(crate) fn fill<L>(template: &'static str, values: &[(&str, Text<L>)]) -> Text<L> {
    let mut text = Text::new();
    let mut rest = template;
    while let Some(at) = rest.find('@') {
        let (before, placeholder) = (&rest[..at], &rest[at + 1..]);
        text.push_fixed(before);
        let value = values.iter().find_map(|(name, value)| {
            let after = placeholder.strip_prefix(name)?.strip_prefix('@')?;
            Some((value, after))
        });
        let Some((value, after)) = value else {
            text.push_fixed("@");
            rest = placeholder;
            continue;
        };
        text.push(value);
        let is_line = value.as_str().is_empty() || value.as_str().ends_with('\n');
        rest = after.strip_prefix('\n').filter(|_| is_line).unwrap_or(after);
    }
    text.push_fixed(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced_once_and_unknown_ones_are_kept() {
        enum Language {}
        for (template, expected) in [
            ("a @A@ b", "a <@B@> b"),
            ("@A@@A@", "<@B@><@B@>"),
            ("@X@ $@ @", "@X@ $@ @"),
            ("x\n@LINES@\ny", "x\n1\n2\ny"),
            ("x\n@NONE@\ny", "x\ny"),
            ("'@NONE@'\n", "''\n"),
            ("@A@\n", "<@B@>\n"),
        ] {
            let values = [("A", "<@B@>"), ("B", "no"), ("LINES", "1\n2\n"), ("NONE", "")];
            let values = values.map(|(name, value)| (name, Text::<Language>::fixed(value)));
            assert_eq!(fill(template, &values).as_str(), expected, "{template}");
        }
    }
}
