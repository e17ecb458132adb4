//! The names of volumes and of the list beside them.

/// The list of volumes that lies beside them, as `sha256sum` writes and reads it.
pub(crate) const SUMS: &str = "SHA256SUMS";

/// The highest number that a volume has.
pub(crate) const VOLUME_LIMIT: u32 = 1 << 16;

/// The name of the volume `number` of `bundle`.
#[must_use]
pub(crate) fn volume_name(bundle: &str, number: u32) -> String {
    format!("{bundle}.{number:03}")
}

/// The bundle and the number in the name of a volume; nothing if it is none.
#[must_use]
pub(crate) fn parse_volume_name(name: &str) -> Option<(&str, u32)> {
    let (bundle, digits) = name.rsplit_once('.')?;
    let number = digits.parse().ok().filter(|number| (1..=VOLUME_LIMIT).contains(number))?;
    (!bundle.is_empty() && volume_name(bundle, number) == name).then_some((bundle, number))
}
