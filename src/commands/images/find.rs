//! Looks up an image of a site by the name that a user types.

use std::fmt::Write as _;

use crate::site::record::{Record, RecordedImage};

/// Maximum number of candidates in an error.
const CANDIDATES: usize = 8;

/// The reason why a name does not select an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No image matches.
    #[error("the site has no image `{name}`: {}", suggestion(similar))]
    Missing {
        name: String,
        /// Images with the same last path component.
        similar: Vec<String>,
    },
    /// Several images match.
    #[error("ambiguous image name `{name}`: it matches {}; use the full reference", list(candidates))]
    Ambiguous { name: String, candidates: Vec<String> },
}

impl Record {
    /// Returns the image that `name` selects. In order of precedence, `name` is a full reference (with tag,
    /// digest or both), a short name as docker accepts it (`nginx:1.25` is `docker.io/library/nginx:1.25`),
    /// or the end of a reference after any `/`.
    pub fn find(&self, name: &str) -> Result<&RecordedImage, FindError> {
        let full = ["", "docker.io/", "docker.io/library/"].map(|prefix| format!("{prefix}{name}"));
        let end = format!("/{name}");
        let matches = full
            .iter()
            .map(|full| self.with_name(|candidate| candidate == full))
            .find(|images| !images.is_empty())
            .unwrap_or_else(|| self.with_name(|candidate| candidate.ends_with(&end)));
        match matches[..] {
            [image] => Ok(image),
            [] => Err(FindError::Missing { name: name.to_owned(), similar: self.similar(name) }),
            _ => {
                let candidates = matches.into_iter().map(|image| unambiguous_name(image, self)).collect();
                Err(FindError::Ambiguous { name: name.to_owned(), candidates })
            }
        }
    }

    fn with_name(&self, is_match: impl Fn(&str) -> bool) -> Vec<&RecordedImage> {
        self.images.iter().filter(|image| names(image).iter().any(|name| is_match(name))).collect()
    }

    /// Returns the images with the same last path component, with any tag.
    fn similar(&self, name: &str) -> Vec<String> {
        let component = last_component(name);
        let images = self.images.iter().map(|image| image.reference.as_str());
        images.filter(|reference| last_component(reference) == component).map(str::to_owned).collect()
    }
}

/// Returns all full references of an image.
fn names(image: &RecordedImage) -> Vec<String> {
    let reference = &image.reference;
    let mut names = vec![reference.to_string()];
    if let Some(digest) = image.digest() {
        let repository = reference.name();
        names.push(format!("{repository}@{digest}"));
        if let Some(tag) = reference.tag() {
            names.push(format!("{repository}:{tag}"));
            names.push(format!("{repository}:{tag}@{digest}"));
        }
    }
    names
}

/// Returns a reference that matches only this image. Two bundles can bring two images with one reference.
fn unambiguous_name(image: &RecordedImage, record: &Record) -> String {
    let same = record.images.iter().filter(|other| other.reference == image.reference).count();
    match image.digest() {
        Some(digest) if same > 1 => format!("{}@{digest}", image.reference),
        _ => image.reference.to_string(),
    }
}

fn last_component(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split(':').next().unwrap_or(name)
}

fn suggestion(similar: &[String]) -> String {
    match similar {
        [] => "run `unbundle images SITE` to list the images".to_owned(),
        _ => format!("did you mean {}?", list(similar)),
    }
}

fn list(names: &[String]) -> String {
    let mut text = String::new();
    for (number, name) in names.iter().take(CANDIDATES).enumerate() {
        let separator = match number {
            0 => "",
            _ if number + 1 == names.len() => " or ",
            _ => ", ",
        };
        let _ = write!(text, "{separator}`{name}`");
    }
    if names.len() > CANDIDATES {
        let _ = write!(text, ", or {} more", names.len() - CANDIDATES);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::oci::digest::Digest;
    use crate::oci::manifest::OCI_INDEX;
    use crate::oci::reference::Reference;
    use crate::site::record::RecordedManifest;

    fn record(references: &[&str]) -> Record {
        let mut record = Record::new("files".into(), "registry".into());
        record.images = references
            .iter()
            .map(|reference| RecordedImage {
                reference: reference.parse().unwrap(),
                repositories: BTreeSet::new(),
                tag: reference.parse::<Reference>().unwrap().tag().map(|tag| tag.parse().unwrap()),
                platforms: Vec::new(),
                size: 0,
                manifests: vec![RecordedManifest {
                    digest: Digest::of(reference.as_bytes()),
                    media_type: OCI_INDEX.parse().unwrap(),
                }],
            })
            .collect();
        record
    }

    #[test]
    fn a_name_is_a_full_reference_or_a_docker_short_name_or_an_unambiguous_end() {
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
            // Docker's short name takes precedence over the end of a reference.
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
    fn a_name_of_no_image_or_of_several_is_an_error_that_lists_candidates() {
        let many: Vec<_> = (0..10).map(|number| format!("quay.io/p{number}/many:1")).collect();
        let mut references = vec!["quay.io/a/app:1", "ghcr.io/b/app:1", "quay.io/x:1"];
        references.extend(many.iter().map(String::as_str));
        let mut record = record(&references);
        record.images.push(record.images[2].clone());
        record.images.last_mut().unwrap().manifests[0].digest = Digest::of(b"other");
        let [first, second] = [Digest::of(b"quay.io/x:1"), Digest::of(b"other")];
        for (name, message) in [
            (
                "app:1",
                "ambiguous image name `app:1`: it matches `quay.io/a/app:1` or `ghcr.io/b/app:1`; use the full \
                 reference"
                    .to_owned(),
            ),
            (
                "app:2",
                "the site has no image `app:2`: did you mean `quay.io/a/app:1` or `ghcr.io/b/app:1`?"
                    .to_owned(),
            ),
            (
                "pp:1",
                "the site has no image `pp:1`: run `unbundle images SITE` to list the images".to_owned(),
            ),
            ("", "the site has no image ``: run `unbundle images SITE` to list the images".to_owned()),
            (
                "quay.io/x:1",
                format!(
                    "ambiguous image name `quay.io/x:1`: it matches `quay.io/x:1@{first}` or `quay.io/x:1@{second}`; \
                     use the full reference"
                ),
            ),
        ] {
            assert_eq!(record.find(name).unwrap_err().to_string(), message);
        }
        let many = record.find("many:1").unwrap_err().to_string();
        assert!(many.ends_with("`quay.io/p7/many:1`, or 2 more; use the full reference"), "{many}");
        assert!(record.find(&format!("quay.io/x:1@{second}")).is_ok());
    }
}
