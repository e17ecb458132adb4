//! [`check_tags`]: every tag of a repository means one image.

use std::collections::HashMap;

use crate::bundle::format::index::IndexedImage;
use crate::oci::digest::Digest;

/// Two images that have the same tag of the same repository. A site can serve only one of them.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{first}` is {first_digest} and `{second}` is {second_digest}: a tag can name one image only; remove one of them, \
     or write its digest without the tag"
)]
pub(crate) struct TagConflict {
    first: String,
    first_digest: Digest,
    second: String,
    second_digest: Digest,
}

/// Fails if a tag names two images, as `a:v1` and `a:v1@sha256:…` do if the tag has moved. The same image under
/// both references is valid.
pub(crate) fn check_tags(images: &[IndexedImage]) -> Result<(), TagConflict> {
    let mut known: HashMap<(&str, &str, &str), &IndexedImage> = HashMap::new();
    for image in images {
        let reference = &image.reference;
        let Some(tag) = reference.tag() else { continue };
        let first = known.entry((reference.host(), reference.repository(), tag)).or_insert(image);
        if first.digest != image.digest {
            return Err(TagConflict {
                first: first.reference.to_string(),
                first_digest: first.digest,
                second: reference.to_string(),
                second_digest: image.digest,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::oci::manifest::OCI_MANIFEST;

    fn image(reference: &str, digest: Digest) -> IndexedImage {
        IndexedImage {
            reference: reference.parse().unwrap(),
            media_type: OCI_MANIFEST.parse().unwrap(),
            digest,
            size: 1,
            omitted: BTreeSet::new(),
            platforms: Vec::new(),
            is_made: false,
        }
    }

    #[test]
    fn a_tag_names_one_image() {
        let (x, y) = (Digest::of(b"x"), Digest::of(b"y"));
        let (at_x, at_y) = (format!("quay.io/a:v1@{x}"), format!("quay.io/a:v1@{y}"));
        let bare_x = format!("quay.io/a@{x}");
        for (one, two) in [
            (("quay.io/a:v1", x), (at_x.as_str(), x)),
            (("quay.io/a:v1", y), (bare_x.as_str(), x)),
            (("quay.io/a:v1", x), ("quay.io/a:V1", y)),
            (("quay.io/a:v1", x), ("quay.io/b:v1", y)),
            (("quay.io/a:v1", x), ("docker.io/library/a:v1", y)),
        ] {
            check_tags(&[image(one.0, one.1), image(two.0, two.1)]).unwrap();
        }
        for (one, two) in
            [(("quay.io/a:v1", y), (at_x.as_str(), x)), ((at_y.as_str(), y), (at_x.as_str(), x))]
        {
            let error = check_tags(&[image(one.0, one.1), image(two.0, two.1)]).unwrap_err().to_string();
            for part in [one.0.to_owned(), two.0.to_owned(), x.to_string(), y.to_string()] {
                assert!(error.contains(&part), "{error}");
            }
        }
    }
}
