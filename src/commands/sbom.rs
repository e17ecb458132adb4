//! Makes SBOMs of bundles: SPDX 2.3 or CycloneDX 1.6, as JSON.
//!
//! The same bundle results in the same bytes. In SPDX, files are packages, since only a package has a
//! download location. An image is one item per manifest; its layers are not listed.

pub(crate) mod contents;
pub(crate) mod cyclonedx;
pub(crate) mod spdx;

use std::collections::BTreeMap;
use std::io::{self, Write};

use time::OffsetDateTime;

use crate::base::json::write_pretty;
use crate::bundle::read::reader::Contents;
use crate::commands::sbom::contents::BomContents;
use crate::oci::digest::Digest;

/// The format of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// SPDX 2.3.
    Spdx,
    /// CycloneDX 1.6.
    CycloneDx,
}

/// Writes the SBOM of a bundle. `configs` are the configs of images without an index, which contain their
/// platforms. `date` is used if the bundle does not contain the time of packing; by default it is 1970-01-01,
/// for reproducible documents.
pub(crate) fn write(
    output: impl Write,
    contents: &Contents,
    configs: &BTreeMap<Digest, Vec<u8>>,
    date: Option<OffsetDateTime>,
    format: Format,
) -> io::Result<()> {
    let contents = BomContents::of(contents, configs, date);
    match format {
        Format::Spdx => write_pretty(output, &spdx::document(&contents)),
        Format::CycloneDx => write_pretty(output, &cyclonedx::document(&contents)),
    }
}

#[cfg(test)]
mod tests {
    use time::format_description::well_known::Rfc3339;

    use super::*;
    use crate::base::source_url::SourceUrl;
    use crate::bundle::format::index::IndexedFile;
    use crate::commands::sbom::contents::of_file;
    use crate::commands::sbom::contents::purl_of_image;
    use crate::commands::sbom::contents::timestamp;
    use crate::oci::platform::Platform;

    #[test]
    fn package_urls_conform_to_the_specification() {
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
        let url = "https://example.org/a%20b?x=1&y={z}";
        let path = "example.org/dir/name+1 ü.tar.gz".parse().unwrap();
        let file = of_file(&IndexedFile { path, url: url.parse().unwrap(), digest, size: 0 });
        assert_eq!(
            file.purl,
            format!(
                "pkg:generic/name%2B1%20%C3%BC.tar.gz?checksum=sha256:{hex}&download_url=https://example.org/a%2520b%3Fx%3D1\
                 %26y%3D%7Bz%7D"
            )
        );
        let without_url =
            IndexedFile { path: "a/b".parse().unwrap(), url: SourceUrl::default(), digest, size: 0 };
        assert_eq!(of_file(&without_url).purl, format!("pkg:generic/b?checksum=sha256:{hex}"));
    }

    #[test]
    fn timestamps_are_in_utc_with_whole_seconds() {
        let time = |text| timestamp(OffsetDateTime::parse(text, &Rfc3339).ok());
        assert_eq!(time("2026-11-23T20:00:00.25+02:00").unwrap(), "2026-11-23T18:00:00Z");
        assert_eq!(time("0000-01-01T00:00:00+02:00"), None);
        assert_eq!(timestamp(None), None);
    }
}
