//! Generated parts of the documentation are current.

use std::fs;
use std::path::Path;

/// Compares `expected` with a page, or with what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` of it.
/// With `UPDATE_DOCS` in the environment it writes the page instead.
pub(crate) fn assert_current(page: &str, section: Option<&str>, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let updated = match section {
        None => expected.to_owned(),
        Some(name) => {
            let begin = format!("<!-- begin {name} -->\n");
            let end = format!("<!-- end {name} -->\n");
            let (head, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no `{begin}`"));
            let (_, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no `{end}`"));
            format!("{head}{begin}{expected}{end}{tail}")
        }
    };
    if text == updated {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, updated).unwrap();
        return;
    }
    panic!("{page} is stale: run `UPDATE_DOCS=1 cargo test --test house` and review the difference");
}
