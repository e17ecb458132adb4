//! Which image of a site somebody means who types a name.

use std::fmt::Write as _;

use crate::oci::reference::Reference;
use crate::site::record::{Record, RecordedImage};

/// How many candidates an error names.
const CANDIDATES: usize = 8;

/// Why a name stands for no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No image has it.
    #[error("no image of this site is `{name}`{}", or_else(similar))]
    Missing {
        /// The name.
        name: String,
        /// Images that may have been meant.
        similar: Vec<String>,
    },
    /// Several images have it.
    #[error("`{name}` may be {}: write it out", list(candidates))]
    Ambiguous {
        /// The name.
        name: String,
        /// The images.
        candidates: Vec<String>,
    },
}

impl Record {
    /// The image that `name` stands for: its reference, with tag or digest or both; the same as docker's users write
    /// it (`nginx:1.25` is `docker.io/library/nginx:1.25`); or its end from any `/` on, if no other image ends so.
    pub fn find(&self, name: &str) -> Result<&RecordedImage, FindError> {
        let written = |prefix: &str| {
            let wanted = format!("{prefix}{name}");
            self.with_name(move |full| full == wanted)
        };
        let end = format!("/{name}");
        let mut found = written("");
        for prefix in ["docker.io/", "docker.io/library/"] {
            if found.is_empty() {
                found = written(prefix);
            }
        }
        if found.is_empty() {
            found = self.with_name(|full| full.ends_with(&end));
        }
        match found[..] {
            [image] => Ok(image),
            [] => Err(FindError::Missing { name: name.to_owned(), similar: self.similar(name) }),
            _ => {
                let candidates = found.into_iter().map(|image| candidate(image, self)).collect();
                Err(FindError::Ambiguous { name: name.to_owned(), candidates })
            }
        }
    }

    fn with_name(&self, is_it: impl Fn(&str) -> bool) -> Vec<&RecordedImage> {
        self.images.iter().filter(|image| names(image).iter().any(|name| is_it(name))).collect()
    }

    /// Images whose repository ends in the same word, whatever their tags are.
    fn similar(&self, name: &str) -> Vec<String> {
        let word = last_word(name);
        let images = self.images.iter().map(|image| image.reference.as_str());
        images.filter(|reference| last_word(reference) == word).map(str::to_owned).collect()
    }
}

/// All ways to write the name of an image in full.
fn names(image: &RecordedImage) -> Vec<String> {
    let mut names = vec![image.reference.clone()];
    if let (Ok(reference), Some(digest)) = (image.reference.parse::<Reference>(), image.digest()) {
        let repository = format!("{}/{}", reference.host(), reference.repository());
        names.push(format!("{repository}@{digest}"));
        if let Some(tag) = reference.tag() {
            names.push(format!("{repository}:{tag}"));
            names.push(format!("{repository}:{tag}@{digest}"));
        }
    }
    names
}

/// How an image is written so that no other one is meant: two bundles may have brought two images of one reference.
fn candidate(image: &RecordedImage, record: &Record) -> String {
    let same = record.images.iter().filter(|other| other.reference == image.reference).count();
    match image.digest() {
        Some(digest) if same > 1 => format!("{}@{digest}", image.reference),
        _ => image.reference.clone(),
    }
}

fn last_word(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split(':').next().unwrap_or(name)
}

fn or_else(similar: &[String]) -> String {
    match similar {
        [] => ": `unbundle images SITE` lists what there is".to_owned(),
        _ => format!(": there is {}", list(similar)),
    }
}

fn list(names: &[String]) -> String {
    let mut text = String::new();
    for (number, name) in names.iter().take(CANDIDATES).enumerate() {
        let last = number + 1 == names.len();
        let comma = if number == 0 {
            ""
        } else if last {
            " or "
        } else {
            ", "
        };
        let _ = write!(text, "{comma}`{name}`");
    }
    if names.len() > CANDIDATES {
        let _ = write!(text, ", or one of {} more", names.len() - CANDIDATES);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::oci::digest::Digest;
    use crate::site::record::RecordedManifest;

    fn record(references: &[&str]) -> Record {
        let mut record = Record::new("files".into(), "registry".into());
        record.images = references
            .iter()
            .map(|reference| RecordedImage {
                reference: (*reference).to_owned(),
                repositories: BTreeSet::new(),
                tag: reference.parse::<Reference>().unwrap().tag().map(str::to_owned),
                platforms: Vec::new(),
                size: 0,
                manifests: vec![RecordedManifest {
                    digest: Digest::of(reference.as_bytes()),
                    media_type: String::new(),
                }],
            })
            .collect();
        record
    }

    #[test]
    fn a_name_is_a_reference_or_what_docker_users_write_or_an_end_that_only_one_image_has() {
        let both = format!("quay.io/cilium/cilium:v1.15@{}", Digest::of(b""));
        let record = record(&[
            "docker.io/library/nginx:1.25",
            "docker.io/flannel/flannel:v0.22",
            "quay.io/mirror/nginx:1.25",
            "quay.io/mirror/nginx:1.26",
            &both,
        ]);
        let digest = record.images[0].digest().unwrap();
        for (name, reference) in [
            ("docker.io/library/nginx:1.25", "docker.io/library/nginx:1.25"),
            // Docker's meaning comes before that of an end.
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("library/nginx:1.25", "docker.io/library/nginx:1.25"),
            ("nginx:1.26", "quay.io/mirror/nginx:1.26"),
            ("mirror/nginx:1.25", "quay.io/mirror/nginx:1.25"),
            ("flannel/flannel:v0.22", "docker.io/flannel/flannel:v0.22"),
            ("flannel:v0.22", "docker.io/flannel/flannel:v0.22"),
            (&format!("nginx@{digest}"), "docker.io/library/nginx:1.25"),
            (&format!("docker.io/library/nginx:1.25@{digest}"), "docker.io/library/nginx:1.25"),
            (&both, &both),
            ("quay.io/cilium/cilium:v1.15", &both),
            ("cilium:v1.15", &both),
        ] {
            assert_eq!(record.find(name).map(|image| image.reference.as_str()), Ok(reference), "{name}");
        }
    }

    #[test]
    fn a_name_of_no_image_or_of_several_is_an_error_that_lists_what_may_be_meant() {
        let many: Vec<_> = (0..10).map(|number| format!("quay.io/p{number}/many:1")).collect();
        let mut references = vec!["quay.io/a/app:1", "ghcr.io/b/app:1", "quay.io/x:1"];
        references.extend(many.iter().map(String::as_str));
        let mut record = record(&references);
        record.images.push(record.images[2].clone());
        record.images.last_mut().unwrap().manifests[0].digest = Digest::of(b"other");
        let [first, second] = [Digest::of(b"quay.io/x:1"), Digest::of(b"other")];
        for (name, message) in [
            ("app:1", "`app:1` may be `quay.io/a/app:1` or `ghcr.io/b/app:1`: write it out".to_owned()),
            (
                "app:2",
                "no image of this site is `app:2`: there is `quay.io/a/app:1` or `ghcr.io/b/app:1`"
                    .to_owned(),
            ),
            (
                "pp:1",
                "no image of this site is `pp:1`: `unbundle images SITE` lists what there is".to_owned(),
            ),
            ("", "no image of this site is ``: `unbundle images SITE` lists what there is".to_owned()),
            (
                "quay.io/x:1",
                format!("`quay.io/x:1` may be `quay.io/x:1@{first}` or `quay.io/x:1@{second}`: write it out"),
            ),
        ] {
            assert_eq!(record.find(name).unwrap_err().to_string(), message);
        }
        let many = record.find("many:1").unwrap_err().to_string();
        assert!(many.ends_with("`quay.io/p7/many:1`, or one of 2 more: write it out"), "{many}");
        assert!(record.find(&format!("quay.io/x:1@{second}")).is_ok());
    }
}
