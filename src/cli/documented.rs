//! Parses every command that the documentation shows, as clap does for a user.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};

use crate::cli::airbundle::Airbundle;
use crate::cli::unbundle::Unbundle;

#[test]
fn every_command_in_the_readme_and_the_docs_is_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.push(root.join("README.md"));
    let (mut count, mut refused) = (0, Vec::new());
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for block in text.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()) {
            for line in block.replace("\\\n", " ").lines() {
                let words = words(line);
                let Some(command) = words.first().and_then(|program| command(program)) else { continue };
                count += 1;
                if let Err(error) = command.try_get_matches_from(&words) {
                    refused.push(format!("{}: {line}: {error}", page.display()));
                }
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(count > 40, "only {count} commands were found");
}

fn command(program: &str) -> Option<Command> {
    match program {
        "airbundle" => Some(Airbundle::command()),
        "unbundle" => Some(Unbundle::command()),
        _ => None,
    }
}

/// Splits a line as a shell does, up to a comment, a redirection or the next command.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (c, quote) {
            (c, Some(end)) if c == end => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#' | '|' | '>' | '<' | '&' | ';', None) if word.is_none() => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
