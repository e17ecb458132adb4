//! The option `--url`: URLs of files that lists or a lock name without their secrets.

use clap::Args;
use url::Url;

use crate::cli::exit::{Code, Failure};
use crate::documents::list::{Checksum, FileEntry, Lists};
use crate::documents::request_url::RequestUrl;

/// The URLs on the command line.
#[derive(Debug, Args)]
pub(crate) struct UrlArgs {
    /// Fetch the file at PATH from URL, e.g. a presigned URL; can be repeated
    ///
    /// PATH is the path of a file on the site, as in `name=PATH`. Neither the bundle nor the lock contains URL.
    // Not parsed by clap, whose errors contain the value.
    #[arg(long, value_name = "PATH=URL")]
    url: Vec<String>,
}

impl UrlArgs {
    /// Sets the URLs to fetch the files of `lists` from.
    pub(crate) fn apply(&self, lists: &mut Lists) -> Result<(), Failure> {
        match self.apply_known(lists)? {
            None => Ok(()),
            Some(path) => {
                let message = format!("invalid `--url {path}=…`: no file has this path");
                Err(Failure::new(Code::Usage, message))
            }
        }
    }

    /// Sets the URLs to fetch the files of `lists` from. Returns the first path that no file has.
    pub(crate) fn apply_known(&self, lists: &mut Lists) -> Result<Option<String>, Failure> {
        let mut unknown = None;
        for value in &self.url {
            let (path, url) = parse(value)?;
            match lists.files.iter_mut().find(|file| file.path.as_str() == path) {
                Some(file) => file.request_url = RequestUrl::new(url),
                None => unknown = unknown.or_else(|| Some(path.to_owned())),
            }
        }
        Ok(unknown)
    }
}

/// Parses `PATH=URL`. Both can contain `=`: the URL begins at its scheme. The error does not contain the URL.
fn parse(value: &str) -> Result<(&str, Url), Failure> {
    let invalid = |path: &str, reason: &str| {
        let message = format!("invalid `--url {path}=…`: {reason}");
        Failure::new(Code::Usage, message).with_hint("expected `--url PATH=URL`")
    };
    let at = ["=https://", "=http://"].iter().filter_map(|start| value.find(start)).min();
    let Some(at) = at.filter(|at| *at > 0) else {
        return Err(invalid("", "expected a path, `=`, and a URL with http:// or https://"));
    };
    let (path, url) = (&value[..at], &value[at + 1..]);
    let mut url = Url::parse(url).map_err(|error| invalid(path, &format!("invalid URL: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(path, "the URL contains a user name or password"));
    }
    url.set_fragment(None);
    Ok((path, url))
}

/// Sets the URLs of `locked`, the entries of a lock, to those in `lists`. Fails if the lists have other entries.
pub(crate) fn refresh_urls(locked: &mut Lists, lists: &Lists) -> Result<(), Failure> {
    let unknown = |name: String, origin: &dyn std::fmt::Display| {
        let message = format!("cannot combine the lock with {origin}: `{name}` is not in the lock");
        Failure::new(Code::List, message).with_hint("make one lock of all lists with `airbundle lock`")
    };
    for entry in &lists.files {
        let Some(file) = locked.files.iter_mut().find(|file| file.path == entry.path) else {
            return Err(unknown(entry.name(), &entry.origin));
        };
        if differ(file, entry) {
            let (name, origin) = (entry.name(), &entry.origin);
            let message =
                format!("cannot combine the lock with {origin}: `{name}` has another checksum in the lock");
            return Err(Failure::new(Code::List, message));
        }
        file.request_url = entry.request_url.clone();
    }
    for entry in &lists.images {
        if !locked.images.iter().any(|image| image.reference == entry.reference) {
            return Err(unknown(entry.reference.to_string(), &entry.origin));
        }
    }
    Ok(())
}

/// True if two entries have different sha256 checksums.
fn differ(one: &FileEntry, other: &FileEntry) -> bool {
    match (&one.checksum, &other.checksum) {
        (Some(Checksum::Sha256(one)), Some(Checksum::Sha256(other))) => one != other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_url_are_separated_by_the_first_equals_sign_before_a_scheme() {
        for (value, path, url) in [
            ("a=https://h/b?c=d", "a", "https://h/b?c=d"),
            ("h/a?x=y=http://h/b?u=https://i/", "h/a?x=y", "http://h/b?u=https://i/"),
        ] {
            let (found, parsed) = parse(value).unwrap();
            assert_eq!((found, parsed.as_str()), (path, url));
        }
        for value in [
            "a",
            "=https://h/?SECRET",
            "a=ftp://h/?SECRET",
            "a=https://u:SECRET@h/",
            "a=https://:99999/?SECRET",
        ] {
            let error = parse(value).unwrap_err().to_string();
            assert!(error.contains("invalid `--url ") && !error.contains("SECRET"), "{error}");
        }
    }
}
