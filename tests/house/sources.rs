//! The crate's source files as text: their module paths, and which file imports which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// One file below `src`, without its tests.
pub(crate) struct Source {
    /// Path below `src`, such as `bundle/read/reader.rs`.
    pub path: String,
    /// Module path, such as `["bundle", "read", "reader"]`; `bin/…` for the programs.
    pub module: Vec<String>,
    /// The text up to its `mod tests`.
    pub text: String,
    /// `text` without comments and without what string literals hold.
    pub code: String,
}

/// Returns all source files except test modules, sorted by path.
pub(crate) fn all() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = files(&root).into_iter().filter(|path| !path.ends_with("tests.rs")).map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
        let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let module = path.strip_suffix(".rs").unwrap().split('/').map(str::to_owned).collect();
        let code = without_comments_and_strings(&text);
        Source { path, module, text, code }
    });
    sources.collect()
}

/// Returns the Rust files below `directory`, sorted by path.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    collect(directory, &mut paths);
    paths.sort();
    paths
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Returns which files each file imports, by path.
pub(crate) fn imports(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let modules: BTreeMap<&[String], &str> =
        sources.iter().map(|source| (&source.module[..], source.path.as_str())).collect();
    let mut imports = BTreeMap::new();
    for source in sources {
        let targets = references(source, &modules).into_iter().filter_map(|path| {
            // The longest prefix that is a file: what follows are items in it.
            (1..=path.len()).rev().find_map(|len| modules.get(&path[..len]).copied())
        });
        imports.insert(&*source.path, targets.filter(|target| *target != source.path).collect());
    }
    imports
}

/// Returns the absolute paths that a file names: in `use` declarations, inline, and below its own child modules.
fn references(source: &Source, modules: &BTreeMap<&[String], &str>) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut rest = &source.code[..];
    while let Some(at) = rest.find("use ") {
        let starts_line = rest[..at].rsplit('\n').next().unwrap();
        let declaration = &rest[at + 4..];
        rest = declaration;
        if starts_line.trim().is_empty() || starts_line.trim().starts_with("pub") {
            let tree = declaration.split(';').next().unwrap();
            flatten(tree, &mut Vec::new(), &mut |path| found.extend(absolute(source, path, modules)));
        }
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    for token in
        source.code.split(|c| !word(c)).filter(|token| token.contains("::") && !token.ends_with("::"))
    {
        let path: Vec<String> = token.split("::").map(str::to_owned).collect();
        found.extend(absolute(source, &path, modules));
    }
    found
}

/// Calls `found` with each path of a `use` tree.
fn flatten(tree: &str, prefix: &mut Vec<String>, found: &mut impl FnMut(&[String])) {
    let tree = tree.trim();
    let (path, group) = match tree.split_once('{') {
        Some((path, group)) => (path, Some(group.trim_end().strip_suffix('}').unwrap())),
        None => (tree.split(" as ").next().unwrap(), None),
    };
    let len = prefix.len();
    prefix.extend(
        path.split("::").map(str::trim).filter(|name| !name.is_empty() && *name != "self").map(Into::into),
    );
    match group {
        None => found(prefix),
        Some(group) => {
            let (mut depth, mut start) = (0, 0);
            for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        if !group[start..at].trim().is_empty() {
                            flatten(&group[start..at], prefix, found);
                        }
                        start = at + 1;
                    }
                    _ => {}
                }
            }
        }
    }
    prefix.truncate(len);
}

/// Returns the path from the crate's root, if `path` leads into this crate.
fn absolute(source: &Source, path: &[String], modules: &BTreeMap<&[String], &str>) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" | "airbundle" => Some(rest.to_vec()),
        "self" => Some([&source.module, rest].concat()),
        "super" => {
            let parent = &source.module[..source.module.len().saturating_sub(1)];
            Some([parent, rest].concat())
        }
        child => {
            let path = [&source.module[..], &[child.to_owned()]].concat();
            (modules.contains_key(&path[..]) && source.code.contains(&format!("mod {child};")))
                .then(|| [&path, rest].concat())
        }
    }
}

fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => while chars.next_if(|c| *c != '\n').is_some() {},
            '"' => {
                // A raw string ends at its quote, as no raw string here holds one that would not.
                code.push('"');
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                code.push('"');
            }
            '\'' => {
                code.push(c);
                // A character literal, not a lifetime.
                let mut ahead = chars.clone();
                match (ahead.next(), ahead.next(), ahead.next()) {
                    (Some('\\'), Some(escaped), _) => {
                        let _ = (chars.next(), chars.next());
                        if escaped == 'u' || escaped == 'x' {
                            while chars.next_if(|c| *c != '\'').is_some() {}
                        }
                        chars.next();
                    }
                    (Some(_), Some('\''), _) => {
                        let _ = (chars.next(), chars.next());
                    }
                    _ => {}
                }
            }
            c => code.push(c),
        }
    }
    code
}

/// A use of a pattern that is allowed: the file, a part of what matches, and the reason.
pub(crate) type Exception = (&'static str, &'static str, &'static str);

/// Fails if a line of one of `sources` matches `pattern` and is not one of `exceptions`, or if one of these does not
/// occur. `advice` is for the message.
#[track_caller]
pub(crate) fn assert_unused(sources: &[Source], pattern: &str, exceptions: &[Exception], advice: &str) {
    let pattern = Regex::new(pattern).unwrap();
    let mut found = Vec::new();
    let mut used = vec![false; exceptions.len()];
    for source in sources {
        for (line, number) in source.code.lines().zip(1..) {
            for matched in pattern.find_iter(line) {
                let exception = exceptions
                    .iter()
                    .position(|(path, word, _)| source.path == *path && matched.as_str().contains(word));
                match exception {
                    Some(exception) => used[exception] = true,
                    None => found.push(format!("{}:{number}: {}", source.path, line.trim())),
                }
            }
        }
    }
    assert!(found.is_empty(), "{advice}:\n{}", found.join("\n"));
    let unused: Vec<_> = exceptions.iter().zip(used).filter(|(_, used)| !used).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
