//! [`GeneratedLists`]: the lists as text.

use std::path::Path;

use crate::commands::lists::downloads::File;
use crate::documents::list::Lists;

pub(crate) use crate::commands::lists::error::KubesprayError;

/// What the lists are to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GeneratedLists {
    /// The release, if it is known.
    pub release: Option<String>,
    /// Files in their order, each URL once.
    pub files: Vec<File>,
    /// Images in their order, each once.
    pub images: Vec<String>,
    /// How many of the files Kubespray's own script does not list. They come last.
    pub added_files: usize,
    /// How many of the images, likewise.
    pub added_images: usize,
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
                    "{}: is pinned twice, as {first} and as {second}: the first is taken",
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

    /// The lines of `files.list`, without its head.
    #[must_use]
    pub(crate) fn files_text(&self) -> String {
        let line = |file: &File| match &file.checksum {
            Some(checksum) => format!("{} {checksum}", file.url),
            None => file.url.clone(),
        };
        let lines: Vec<_> = self.files.iter().map(line).collect();
        text(&lines, self.added_files)
    }

    /// The lines of `images.list`, without its head.
    #[must_use]
    pub(crate) fn images_text(&self) -> String {
        text(&self.images, self.added_images)
    }
}

/// Lines, and before the last `added` of them a word.
pub(crate) fn text(lines: &[String], added: usize) -> String {
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

/// What cannot be in a list is told here and not to who packs.
pub(crate) fn check(made: &GeneratedLists) -> Result<(), KubesprayError> {
    let mut problems = Vec::new();
    let mut lists = Lists::default();
    for text in [made.files_text(), made.images_text()] {
        lists.parse_into(Path::new("list"), &text, &mut problems);
        let told = problems.iter().map(|problem| {
            let line = text.lines().nth(problem.line - 1).unwrap_or_default();
            format!("Kubespray's variables give `{line}`: {}", problem.message)
        });
        let told: Vec<_> = told.collect();
        if !told.is_empty() {
            return Err(KubesprayError::Entries(told));
        }
    }
    Ok(())
}
