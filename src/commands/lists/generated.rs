//! [`GeneratedLists`]: generated list entries, and their text.

use std::path::Path;

use crate::commands::lists::downloads::File;
use crate::commands::lists::error::KubesprayError;
use crate::commands::lists::options::KubesprayRelease;
use crate::documents::list::Lists;

/// Generated list entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GeneratedLists {
    /// The Kubespray release. `None`: unknown.
    pub release: Option<KubesprayRelease>,
    /// In order, without duplicate URLs.
    pub files: Vec<File>,
    /// In order, without duplicates.
    pub images: Vec<String>,
    /// Number of trailing files that Kubespray's own script omits.
    pub added_files: usize,
    /// Number of trailing images that Kubespray's own script omits.
    pub added_images: usize,
    /// Variables with the location of a listed file or image that does not follow from a variable of its host.
    pub locations: Vec<Location>,
}

/// A variable with the location of files or images.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    pub name: String,
    /// Its value in the checkout: a URL, possibly a template, or a registry or repository.
    pub value: String,
}

impl GeneratedLists {
    pub(crate) fn add_file(&mut self, file: File, warnings: &mut Vec<String>) {
        let Some(known) = self.files.iter_mut().find(|known| known.url == file.url) else {
            self.files.push(file);
            return;
        };
        match (&known.checksum, &file.checksum) {
            (None, _) => known.checksum = file.checksum,
            (Some(first), Some(second)) if first != second => {
                warnings.push(format!(
                    "{}: has two checksums, {first} and {second}: the first one is used",
                    file.url
                ));
            }
            _ => {}
        }
    }

    pub(crate) fn add_image(&mut self, image: String) {
        if !self.images.contains(&image) {
            self.images.push(image);
        }
    }

    /// Returns the lines of `files.list` without its header.
    #[must_use]
    pub(crate) fn files_text(&self) -> String {
        let line = |file: &File| match &file.checksum {
            Some(checksum) => format!("{} {checksum}", file.url),
            None => file.url.clone(),
        };
        let lines: Vec<_> = self.files.iter().map(line).collect();
        text(&lines, self.added_files)
    }

    /// Returns the lines of `images.list` without its header.
    #[must_use]
    pub(crate) fn images_text(&self) -> String {
        text(&self.images, self.added_images)
    }

    /// Checks that the generated lists can be parsed, so that `pack` does not fail later, and that each entry is
    /// one line.
    pub(crate) fn check(&self) -> Result<(), KubesprayError> {
        let texts = self.files.iter().map(|file| &file.url).chain(&self.images);
        let broken = texts.filter(|text| text.trim() != text.as_str() || text.contains(char::is_control));
        let broken: Vec<_> = broken
            .map(|text| {
                format!("invalid entry `{text}` from Kubespray's variables: it has white space or control characters")
            })
            .collect();
        if !broken.is_empty() {
            return Err(KubesprayError::Entries(broken));
        }
        let mut problems = Vec::new();
        let mut lists = Lists::default();
        for text in [self.files_text(), self.images_text()] {
            lists.parse_into(Path::new("list"), &text, &mut problems);
            if problems.is_empty() {
                continue;
            }
            let messages = problems.iter().map(|problem| {
                let line = text.lines().nth(problem.line - 1).unwrap_or_default();
                format!("invalid entry `{line}` from Kubespray's variables: {}", problem.message)
            });
            return Err(KubesprayError::Entries(messages.collect()));
        }
        Ok(())
    }
}

/// Joins lines, with a comment before the last `added` of them.
fn text(lines: &[String], added: usize) -> String {
    let mut text = String::new();
    for (line, index) in lines.iter().zip(0..) {
        if added > 0 && index + added == lines.len() {
            text.push_str("# What Kubespray uses and its generate_list.sh does not list.\n");
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line() {
        let check = |image: &str| {
            let images = vec![image.to_owned()];
            GeneratedLists { images, ..GeneratedLists::default() }.check()
        };
        assert!(check("quay.io/a/b:1").is_ok());
        for image in
            ["quay.io/a/b:1\nevil.example/a/b:1", "quay.io/a/b:1\n", "quay.io/a/b:1\r", " quay.io/a/b:1"]
        {
            assert!(check(image).is_err(), "{image:?}");
        }
    }
}
