//! File names of volumes and of their checksum list.

/// Checksum list in the directory of the volumes, in the format of `sha256sum`.
pub(crate) const SUMS: &str = "SHA256SUMS";

/// Maximum number of a volume.
pub(crate) const VOLUME_LIMIT: u32 = 1 << 16;

/// Returns the file name of volume `number` of `bundle`.
#[must_use]
pub(crate) fn volume_name(bundle: &str, number: u32) -> String {
    format!("{bundle}.{number:03}")
}

/// Splits the file name of a volume into the name of the bundle and the number. `None` if it is not one.
#[must_use]
pub(crate) fn parse_volume_name(name: &str) -> Option<(&str, u32)> {
    let (bundle, digits) = name.rsplit_once('.')?;
    let number = digits.parse().ok().filter(|number| (1..=VOLUME_LIMIT).contains(number))?;
    (!bundle.is_empty() && volume_name(bundle, number) == name).then_some((bundle, number))
}
