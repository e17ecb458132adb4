//! The documentation is current: generated parts, links, and quoted messages.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::sources;

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

/// Every page that a user reads, relative to the project.
fn pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let docs = docs.map(|path| format!("docs/{}", path.file_name().unwrap().to_str().unwrap()));
    let mut pages: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bundle-format.md"]
            .map(str::to_owned)
            .into_iter()
            .chain(docs)
            .collect();
    pages.sort();
    pages
}

fn read(page: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap()
}

#[test]
fn the_readme_fits_on_a_page() {
    assert!(read("README.md").len() <= 8192);
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") || link.contains('\n') {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let directory = Path::new(&page).parent().unwrap();
            let target = if file.is_empty() { Path::new(&page).to_owned() } else { directory.join(file) };
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&target);
            let has_anchor =
                || anchor.is_empty() || anchors(&fs::read_to_string(&path).unwrap()).contains(anchor);
            if !path.exists() || !has_anchor() {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The anchors that a page's headings get.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let letters = heading.to_lowercase().replace(' ', "-");
        letters.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_message_quoted_in_troubleshooting_is_one_that_the_programs_print() {
    // Texts of the operating system, and the placeholder for a position in a list.
    // Also texts that are joined from parts.
    const OTHERS: &[&str] = &[
        "No space left on device",
        "LIST:LINE:COLUMN",
        "returned 404 Not Found",
        "returned 401 Unauthorized",
        "returned 403 Forbidden",
        "is not a site: it has no `site.json",
    ];
    let printed = printed();
    let page = read("docs/troubleshooting.md");
    let mut unknown = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split(" | ").next().unwrap().trim_start_matches("| ");
        let quoted: Vec<&str> = if cell.contains("``") {
            cell.split("``").skip(1).step_by(2).collect()
        } else {
            cell.split('`').skip(1).step_by(2).collect()
        };
        for message in quoted {
            for fragment in message
                .split('…')
                .map(|part| part.trim_matches([' ', '`', ':']))
                .filter(|part| part.len() > 3)
            {
                if !printed.contains(fragment) && !OTHERS.contains(&fragment) {
                    unknown.push(format!("`{fragment}` of: {message}"));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
}

/// The text of all string literals of the programs, with continued lines joined.
fn printed() -> String {
    let mut text = String::new();
    for source in sources::all() {
        let mut joined = String::new();
        for line in source.text.lines() {
            if let Some(continued) = line.trim_end().strip_suffix('\\') {
                joined.push_str(continued.trim_start());
            } else {
                joined.push_str(line.trim_start());
                joined.push('\n');
            }
        }
        text.push_str(&joined.replace("\\\"", "\""));
    }
    text
}

#[test]
fn every_test_named_in_the_threat_model_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    for directory in ["src", "tests"] {
        for path in sources::files(&root.join(directory)) {
            code += &fs::read_to_string(path).unwrap();
        }
    }
    let page = read("docs/security.md");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| actor"));
    let mut wrong = Vec::new();
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let tests: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        let missing: Vec<_> = tests.iter().filter(|test| !code.contains(&format!("fn {test}("))).collect();
        if tests.is_empty() || !missing.is_empty() {
            wrong.push(format!("{missing:?} of: {row}"));
        }
    }
    assert!(wrong.is_empty(), "no such test, or no test:\n{}", wrong.join("\n"));
}
