//! What is in a bundle and where it came from, as a document that other tools read: SPDX 2.3 or CycloneDX 1.6.
//!
//! The same bundle gives the same bytes. Files are packages, too: they have a place that they were downloaded from, and SPDX
//! has no other word for that. Layers are not listed; an image is what its manifest says.

pub(crate) mod contents;
pub(crate) mod cyclonedx;
pub(crate) mod spdx;

use std::collections::BTreeMap;

use serde::Serialize;
use time::OffsetDateTime;

use crate::bundle::read::reader::Contents;
use crate::commands::sbom::contents::BomContents;
use crate::oci::digest::Digest;

/// The language of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// SPDX 2.3, JSON.
    Spdx,
    /// CycloneDX 1.6, JSON.
    CycloneDx,
}

/// The document that lists what `contents` hold. `configs` are the configs of images without an index, which alone say what
/// platform they are for. `date` is for a bundle that does not say when it was packed; without one it is the beginning
/// of 1970, as the clock would make other bytes each time.
#[must_use]
pub(crate) fn document(
    contents: &Contents,
    configs: &BTreeMap<Digest, Vec<u8>>,
    date: Option<OffsetDateTime>,
    format: Format,
) -> Vec<u8> {
    let inventory = BomContents::of(contents, configs, date);
    match format {
        Format::Spdx => to_json(&spdx::document(&inventory)),
        Format::CycloneDx => to_json(&cyclonedx::document(&inventory)),
    }
}

fn to_json(document: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(document).expect("plain structs become JSON; please report");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use time::format_description::well_known::Rfc3339;

    use super::*;
    use crate::bundle::format::index::IndexedFile;
    use crate::commands::sbom::contents::of_file;
    use crate::commands::sbom::contents::purl_of_image;
    use crate::commands::sbom::contents::timestamp;
    use crate::oci::platform::Platform;

    #[test]
    fn package_urls_are_those_of_the_specification() {
        let digest = Digest::of(b"");
        let hex = digest.hex();
        let platform: Platform = "linux/arm64/v8".parse().unwrap();
        for (reference, platform, is_root, expected) in [
            (
                "registry.k8s.io/pause:3.9",
                None,
                true,
                format!("pkg:oci/pause@sha256:{hex}?repository_url=registry.k8s.io/pause&tag=3.9"),
            ),
            (
                "localhost:5000/a/b_c:1",
                Some(&platform),
                false,
                format!("pkg:oci/b_c@sha256:{hex}?arch=arm64&repository_url=localhost:5000/a/b_c"),
            ),
        ] {
            let reference = reference.parse().unwrap();
            assert_eq!(purl_of_image(&reference, digest, platform, is_root), expected);
        }
        let url = "https://example.org/a b?x=1&y=ü#z";
        let path = "example.org/dir/name+1 ü.tar.gz".parse().unwrap();
        let file = of_file(&IndexedFile { path, url: url.to_owned(), digest, size: 0 });
        assert_eq!(
            file.purl,
            format!(
                "pkg:generic/name%2B1%20%C3%BC.tar.gz?checksum=sha256:{hex}&download_url=https://example.org/a%20b%3Fx%3D1\
                 %26y%3D%C3%BC%23z"
            )
        );
        let nowhere = IndexedFile { path: "a/b".parse().unwrap(), url: String::new(), digest, size: 0 };
        assert_eq!(of_file(&nowhere).purl, format!("pkg:generic/b?checksum=sha256:{hex}"));
    }

    #[test]
    fn times_are_in_utc_and_have_whole_seconds() {
        let time = |text| timestamp(OffsetDateTime::parse(text, &Rfc3339).ok());
        assert_eq!(time("2026-11-23T20:00:00.25+02:00").unwrap(), "2026-11-23T18:00:00Z");
        assert_eq!(time("0000-01-01T00:00:00+02:00"), None);
        assert_eq!(timestamp(None), None);
    }
}
