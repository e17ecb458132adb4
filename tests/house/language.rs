//! What people read uses the field's terms: words that paraphrase what has a name are refused.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// A word that is refused, what to write instead, and text around it that makes it right.
struct Rule {
    word: &'static str,
    instead: &'static str,
    except: &'static [&'static str],
}

const fn rule(word: &'static str, instead: &'static str) -> Rule {
    Rule { word, instead, except: &[] }
}

const RULES: &[Rule] = &[
    rule(r"folders?", "directory"),
    rule(r"mend(s|ed|ing)?", "repair"),
    Rule { word: r"whole", instead: "intact, complete, all of", except: &[r"as a whole"] },
    rule(r"sound", "intact, verified"),
    rule(r"undisturbed", "uninterrupted"),
    rule(r"says? no", "fails, refuses"),
    rule(r"of no use", "invalid, unusable"),
    rule(r"(comes?|came) across", "(state the fact)"),
    rule(r"attached things", "referrers and cosign artifacts"),
    rule(r"a person|people at the site", "user, operator"),
    rule(r"stands? twice", "is stored twice"),
    rule(r"head room|room for the head", "reserved header space"),
    rule(r"(nobody|somebody|anybody|whoever)", "(name the actor)"),
    Rule { word: r"sticks?", instead: "USB drive, media", except: &[r"sticky"] },
    rule(r"medium", "media, volume"),
    rule(r"has (it|them) not", "does not have"),
    rule(r"as long as nobody", "unless"),
    rule(r"unpack(s|ed|ing)? over", "re-run"),
    rule(r"(goes|went|go|going) on", "resume, continue"),
    rule(r"fences?", "GC guard"),
    Rule { word: r"(the|site's|own|private) authorit(y|ies)", instead: "CA", except: &[] },
    Rule { word: r"left out|leaves? out|leaving out", instead: "omit", except: &[] },
    Rule {
        word: r"elsewhere",
        instead: "external",
        // The annotation of the format.
        except: &[r"dev\.airbundle\.elsewhere"],
    },
    rule(r"(asks?|asked|asking)", "request, prompt"),
    rule(r"symbolic links?", "symlink"),
    rule(r"hardlinks?", "hard link"),
    rule(r"[0-9] %", "5% without a space"),
];

/// Words at the beginning of a comment that hide its subject.
const OPENINGS: &str = r"^(What|Whether|How|Where|Who|Says|Of|With which)\b";

/// Lines that may break a rule: the end of the path, a part of the line, and the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("tests/house/language.rs", "", "the rules themselves"),
    ("src/bundle/format/index/tests.rs", "elsewhere\\", "the annotation, cut at an escape"),
    ("src/cli/listing.rs", "elsewhere", "a member of `--json`"),
    ("src/commands/unpack.rs", "mended", "a member of `--json`"),
    ("src/commands/unpack/summary.rs", "mended", "a member of `--json`"),
    ("src/commands/verify.rs", "mended", "a member of `--json`"),
    ("docs/cli.md", "`mended`", "a member of `--json`"),
    ("docs/cli.md", "`elsewhere`", "a member of `--json`"),
    ("src/plan/bundle_plan.rs", "elsewhere {}", "part of a fingerprint that partial bundles on disk have"),
    ("src/cli/size.rs", "5 %", "a text that is refused"),
    ("CHANGELOG.md", "Keep a Changelog", "a name"),
];

#[test]
fn prose_uses_the_terms_of_the_field() {
    let rules: Vec<(Regex, &Rule)> = RULES
        .iter()
        .map(|rule| (Regex::new(&format!(r"(?i)(^|[^\w.`$-])({})($|[^\w-])", rule.word)).unwrap(), rule))
        .collect();
    let mut found = Vec::new();
    for (path, number, text) in prose() {
        for (word, rule) in &rules {
            let Some(captures) = word.captures(&text) else { continue };
            if rule.except.iter().any(|except| Regex::new(except).unwrap().is_match(&text))
                || is_exception(&path, &text)
            {
                continue;
            }
            let instead = rule.instead;
            found.push(format!("{path}:{number}: `{}` (instead: {instead}): {}", &captures[2], text.trim()));
        }
    }
    assert!(found.is_empty(), "{} lines:\n{}", found.len(), found.join("\n"));
}

#[test]
fn comments_open_with_a_noun_or_a_verb() {
    let opening = Regex::new(OPENINGS).unwrap();
    let mut found = Vec::new();
    for path in files(&["src", "tests"], &["rs"]) {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        let mut is_first = true;
        for (line, number) in text.lines().zip(1..) {
            let comment = comment_of(line.trim_start());
            if let Some(comment) = comment.filter(|comment| is_first && opening.is_match(comment))
                && !is_exception(&path, line)
                && !comment.ends_with('?')
            {
                found.push(format!("{path}:{number}: {comment}"));
            }
            // A paragraph begins after a line that is no comment, or an empty one.
            is_first = comment.is_none_or(str::is_empty);
        }
    }
    assert!(found.is_empty(), "{} comments:\n{}", found.len(), found.join("\n"));
}

fn is_exception(path: &str, text: &str) -> bool {
    EXCEPTIONS.iter().any(|(end, part, _)| path.ends_with(end) && text.contains(part))
}

/// Returns the text of a line that is a comment and nothing else.
fn comment_of(line: &str) -> Option<&str> {
    let text = line.strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim())
}

/// Returns every line that a person reads: path, line number, text.
fn prose() -> Vec<(String, usize, String)> {
    let mut lines = Vec::new();
    let pages = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bundle-format.md"].map(str::to_owned);
    let others = files(
        &["docs", "scripts", ".ci", ".github", "src", "manifests"],
        &["md", "sh", "yml", "css", "js", "conf", ""],
    );
    for path in pages.into_iter().chain(others) {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        lines.extend(text.lines().zip(1..).map(|(line, number)| (path.clone(), number, line.to_owned())));
    }
    for path in files(&["src", "tests"], &["rs"]) {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        let has_strings = path.starts_with("src");
        for (line, number) in text.lines().zip(1..) {
            if let Some(comment) = comment_of(line.trim_start()) {
                lines.push((path.clone(), number, comment.to_owned()));
            } else if has_strings {
                let strings = line.split('"').skip(1).step_by(2);
                lines.extend(strings.map(|string| (path.clone(), number, string.to_owned())));
            }
        }
    }
    lines
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the files below `directories` with one of `extensions`, relative to the project. An empty extension stands for
/// files without one.
fn files(directories: &[&str], extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut next: Vec<PathBuf> = directories.iter().map(|directory| root().join(directory)).collect();
    while let Some(path) = next.pop() {
        if path.is_dir() {
            next.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if extensions.contains(&path.extension().map_or("", |extension| extension.to_str().unwrap())) {
            found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
    found.sort();
    found
}
