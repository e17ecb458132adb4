//! [`Release`] and [`Expiry`]: name, sequence number and expiry date of a bundle ("Releases").

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::bundle::format::annotations::{
    ANNOTATION_EXPIRES, ANNOTATION_NAME, ANNOTATION_SEQUENCE, Annotations,
};

/// Maximum length of a name in bytes.
const NAME_LIMIT: usize = 128;

/// Maximum sequence number: JSON readers in other languages have no larger integers.
const SEQUENCE_LIMIT: u64 = (1 << 53) - 1;

/// The name of a series of bundles. Later bundles of the same series have the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseName(String);

/// The position of a bundle in a series of releases. Later ones have higher numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Name of the series.
    pub name: ReleaseName,
    /// Sequence number, from 1.
    pub sequence: Sequence,
}

/// A sequence number: 1 to 2^53 - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(u64);

/// The time after which a bundle must not be used. UTC, without a fraction of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(OffsetDateTime);

/// An invalid name, number or date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The name has other characters, or is too long.
    #[error(
        "invalid name: expected at most {NAME_LIMIT} characters of a-z, 0-9 and single `.`, `-` or `_` between them"
    )]
    Name,
    /// The sequence number is no number in this range.
    #[error("invalid sequence number: expected a decimal number from 1 to {SEQUENCE_LIMIT}")]
    Sequence,
    /// The date is not in this form.
    #[error("invalid expiry date: expected RFC 3339 without a fraction, such as 2027-01-31T00:00:00Z")]
    Expiry,
    /// A name without a sequence number, or the other way round.
    #[error("only one of `{ANNOTATION_NAME}` and `{ANNOTATION_SEQUENCE}` is present")]
    Half,
}

impl FromStr for ReleaseName {
    type Err = ReleaseError;

    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if text.len() <= NAME_LIMIT && text.split(['.', '-', '_']).all(is_word) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReleaseError::Name)
        }
    }
}

impl fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Sequence {
    type Err = ReleaseError;

    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        // `u64` also parses `+1` and `01`, which would be a second form of the same number.
        let is_canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let number = text.parse().ok().filter(|number| is_canonical && *number <= SEQUENCE_LIMIT);
        number.map(Self).ok_or(ReleaseError::Sequence)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Sequence {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl FromStr for Expiry {
    type Err = ReleaseError;

    /// Parses a time of RFC 3339, with any offset.
    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        let time = OffsetDateTime::parse(text, &Rfc3339).ok().filter(|time| time.nanosecond() == 0);
        let expiry = time.and_then(|time| time.checked_to_offset(UtcOffset::UTC)).map(Self);
        expiry.filter(|expiry| expiry.0.format(&Rfc3339).is_ok()).ok_or(ReleaseError::Expiry)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl Expiry {
    /// True if the clock of this host is past the date.
    #[must_use]
    pub fn is_past(self) -> bool {
        self.0 < OffsetDateTime::now_utc()
    }
}

/// Reads the release and the expiry date from the annotations of `index.json`.
pub(crate) fn read(annotations: &Annotations) -> Result<(Option<Release>, Option<Expiry>), ReleaseError> {
    let release = match (annotations.get(ANNOTATION_NAME), annotations.get(ANNOTATION_SEQUENCE)) {
        (None, None) => None,
        (Some(name), Some(sequence)) => Some(Release { name: name.parse()?, sequence: sequence.parse()? }),
        _ => return Err(ReleaseError::Half),
    };
    let expires = annotations.get(ANNOTATION_EXPIRES).map(|text| {
        let expiry: Expiry = text.parse()?;
        // There is one form for each date.
        if expiry.to_string() == text { Ok(expiry) } else { Err(ReleaseError::Expiry) }
    });
    Ok((release, expires.transpose()?))
}

/// Returns the annotations for `index.json`.
pub(crate) fn annotations(
    release: Option<&Release>,
    expires: Option<Expiry>,
) -> [(&'static str, Option<String>); 3] {
    [
        (ANNOTATION_NAME, release.map(|release| release.name.to_string())),
        (ANNOTATION_SEQUENCE, release.map(|release| release.sequence.to_string())),
        (ANNOTATION_EXPIRES, expires.map(|expires| expires.to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_lower_case_words_and_single_separators() {
        for name in ["a", "kubespray-v2.31.0-amd64", "a_b", "0", &"a".repeat(128)] {
            assert_eq!(name.parse::<ReleaseName>().unwrap().to_string(), name);
        }
        for name in
            ["", "A", "a b", "a--b", "-a", "a.", "a/b", "\u{e4}", "a\n", "a\u{202e}b", &"a".repeat(129)]
        {
            assert_eq!(name.parse::<ReleaseName>(), Err(ReleaseError::Name), "{name}");
        }
    }

    #[test]
    fn a_sequence_number_has_one_form() {
        for number in ["1", "10", "9007199254740991"] {
            assert_eq!(number.parse::<Sequence>().unwrap().to_string(), number);
        }
        for number in ["", "0", "01", "+1", "-1", "1.0", " 1", "9007199254740992", "99999999999999999999"] {
            assert_eq!(number.parse::<Sequence>(), Err(ReleaseError::Sequence), "{number}");
        }
    }

    #[test]
    fn an_expiry_date_becomes_utc() {
        let expiry: Expiry = "2027-01-31T02:00:00+02:00".parse().unwrap();
        assert_eq!(expiry.to_string(), "2027-01-31T00:00:00Z");
        assert!(
            "2001-01-01T00:00:00Z".parse::<Expiry>().unwrap().is_past()
                && !"9000-01-01T00:00:00Z".parse::<Expiry>().unwrap().is_past()
        );
        for date in
            ["", "2027-01-31", "2027-01-31T00:00:00", "2027-01-31T00:00:00.5Z", "2027-02-31T00:00:00Z"]
        {
            assert_eq!(date.parse::<Expiry>(), Err(ReleaseError::Expiry), "{date}");
        }
    }

    #[test]
    fn annotations_round_trip_and_half_a_release_is_an_error() {
        let all = |pairs: &[(&'static str, &str)]| -> Annotations {
            pairs.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
        };
        let pairs = [
            (ANNOTATION_NAME, "a"),
            (ANNOTATION_SEQUENCE, "3"),
            (ANNOTATION_EXPIRES, "2027-01-31T00:00:00Z"),
        ];
        let (release, expires) = read(&all(&pairs)).unwrap();
        let written = annotations(release.as_ref(), expires);
        assert_eq!(
            written.map(|(key, value)| (key, value.unwrap())),
            pairs.map(|(key, value)| (key, value.to_owned()))
        );
        assert_eq!(read(&all(&[])), Ok((None, None)));
        assert_eq!(read(&all(&pairs[..1])), Err(ReleaseError::Half));
        assert_eq!(read(&all(&pairs[1..2])), Err(ReleaseError::Half));
        assert_eq!(
            read(&all(&[(ANNOTATION_EXPIRES, "2027-01-31T01:00:00+01:00")])),
            Err(ReleaseError::Expiry)
        );
    }
}
