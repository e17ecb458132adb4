//! Parses sizes and percentages of the command line.

/// Kinds of media, and their maximum size of a volume in bytes.
#[cfg(feature = "net")]
const MEDIA: [(&str, u64); 3] = [
    // Maximum file size of FAT32.
    ("fat32", (4 << 30) - 1),
    // A single-layer DVD+R (4,700,372,992 bytes) minus the overhead of the file system.
    ("dvd", 4480 << 20),
    // Assets of a GitHub release must be smaller than 2 GiB.
    (GITHUB_RELEASE, (2 << 30) - 1),
];

#[cfg(feature = "net")]
const GITHUB_RELEASE: &str = "github-release";

/// Parses a number of bytes: `1900MiB`, `4GB`, `512M`. K, M and G are powers of 1024.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("K", 1 << 10),
        ("M", 1 << 20),
        ("G", 1 << 30),
        ("", 1),
    ];
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (number, factor) = unit.expect("the last unit is empty; please report");
    let number = number.parse::<u64>().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()));
    let size = number.and_then(|number| number.checked_mul(*factor));
    size.filter(|size| *size > 0).ok_or_else(|| "expected a size, such as 512M, 1900MiB or 4GB".into())
}

/// The maximum size of a volume.
#[cfg(feature = "net")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VolumeSize {
    pub(super) bytes: u64,
    /// True if the volumes are published on the page of a release, which changes some file names.
    pub(super) is_for_release: bool,
}

/// Parses the maximum size of a volume: a size, or a kind of media.
#[cfg(feature = "net")]
pub(super) fn parse_volume_size(text: &str) -> Result<VolumeSize, String> {
    if let Some((name, bytes)) = MEDIA.iter().find(|(name, _)| *name == text) {
        return Ok(VolumeSize { bytes: *bytes, is_for_release: *name == GITHUB_RELEASE });
    }
    let bytes = parse_size(text)
        .map_err(|_| "expected a size, such as 1900MiB, or fat32, dvd or github-release".to_owned())?;
    Ok(VolumeSize { bytes, is_for_release: false })
}

/// Returns the file name that the page of a release gives to `name`: other characters than ASCII letters, digits, `.`,
/// `-` and `_` become a period.
#[cfg(feature = "net")]
pub(super) fn release_name(name: &str) -> String {
    let mut safe = String::new();
    for c in name.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => safe.push(c),
            _ if !safe.ends_with('.') => safe.push('.'),
            _ => {}
        }
    }
    safe.trim_matches('.').to_owned()
}

/// Parses a percentage and returns it in thousandths: `5%`, `0.5%`.
#[cfg(feature = "net")]
pub(super) fn parse_percent(text: &str) -> Result<u32, String> {
    let invalid = || "expected a percentage from 0.1% to 100%, such as 5%".to_owned();
    let (integer, fraction) = match text.strip_suffix('%').ok_or_else(invalid)?.split_once('.') {
        Some(parts) => parts,
        None => (text.trim_end_matches('%'), "0"),
    };
    let is_number = |text: &str, limit: usize| {
        (1..=limit).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !is_number(integer, 3) || !is_number(fraction, 1) {
        return Err(invalid());
    }
    let number = |text: &str| text.parse::<u32>().expect("at most three digits; please report");
    Some(number(integer) * 10 + number(fraction))
        .filter(|thousandths| (1..=1000).contains(thousandths))
        .ok_or_else(invalid)
}

#[cfg(all(test, feature = "net"))]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, size) in [
            ("1", 1),
            ("4K", 4096),
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("1900MiB", 1900 << 20),
            ("3KiB", 3072),
            ("2GiB", 2 << 30),
            ("5kB", 5000),
            ("4GB", 4_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(size));
        }
        for wrong in ["", "0", "G", "1g", "1 G", "-1", "+1", "1.5G", "99999999999G", "1mb"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_kind_of_media_has_a_maximum_volume_size() {
        for (text, size) in [
            ("fat32", 4_294_967_295),
            ("github-release", 2_147_483_647),
            ("dvd", 4_697_620_480),
            ("8MiB", 8 << 20),
        ] {
            let is_for_release = text == "github-release";
            assert_eq!(parse_volume_size(text), Ok(VolumeSize { bytes: size, is_for_release }));
        }
        assert!(parse_volume_size("bluray").is_err());
    }

    #[test]
    fn names_of_release_assets_have_no_other_characters() {
        for (name, safe) in [
            ("k8s-1.33_amd64.tar.zst", "k8s-1.33_amd64.tar.zst"),
            ("k8s+cni v1~rc.tar.zst", "k8s.cni.v1.rc.tar.zst"),
            (".hidden ünï (1).tar.zst", "hidden.n.1.tar.zst"),
        ] {
            assert_eq!(release_name(name), safe);
        }
    }

    #[test]
    fn percentages_are_read_in_thousandths() {
        for (text, thousandths) in [("5%", 50), ("0.5%", 5), ("100%", 1000), ("12.5%", 125), ("0.1%", 1)] {
            assert_eq!(parse_percent(text), Ok(thousandths));
        }
        for wrong in ["", "%", "5", "0%", "0.05%", "101%", "-1%", "5 %", "1e1%", ".5%", "5.%", "1000%"] {
            assert!(parse_percent(wrong).is_err(), "{wrong}");
        }
    }
}
