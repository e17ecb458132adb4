//! [`Title`] and [`Timestamp`]: the name and the time of a bundle, as its packer specified them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::base::text::is_control;
use crate::oci::parsed_text::{parsed_text, quoted};

/// Maximum length of a title in bytes.
const MAX_TITLE: usize = 4096;

/// The title of a bundle: one line of any script, without control characters, line and paragraph separators and
/// bidirectional controls. Joiners and variation selectors are accepted, because emoji and several scripts need
/// them. At most [`MAX_TITLE`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Title(String);

/// A date and time (RFC 3339, section 5.6), in the form in which it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(String);

/// A text that is not a valid [`Title`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid title `{}`: expected one line without control characters, at most {MAX_TITLE} bytes", quoted(.0))]
pub struct TitleError(String);

/// A text that is not a valid [`Timestamp`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid time `{}`: expected RFC 3339, such as `2026-11-23T20:00:00Z`", quoted(.0))]
pub struct TimestampError(String);

parsed_text!(Title, |text| text.len() <= MAX_TITLE && !text.contains(is_control), TitleError);
parsed_text!(
    Timestamp,
    |text| text.len() <= 64 && text.is_ascii() && OffsetDateTime::parse(text, &Rfc3339).is_ok(),
    TimestampError
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_line_without_controls() {
        for text in ["", "Kubespray v2.25.0", "ünïcode 漢字 🏳️‍🌈", "می‌خواهم"] {
            assert_eq!(&*text.parse::<Title>().unwrap(), text);
        }
        for text in ["a\nb", "a\x1b[2Jb", "\u{202e}a", "a\u{2028}b", "\u{9b}31m", "\u{7f}", &"x".repeat(4097)]
        {
            assert!(text.parse::<Title>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_time_has_the_form_of_rfc_3339() {
        for text in ["2026-11-23T20:00:00Z", "2026-11-23T20:00:00.25+02:00"] {
            assert_eq!(&*text.parse::<Timestamp>().unwrap(), text);
        }
        for text in ["", "yesterday", "2026-11-23", "2026-11-23T20:00:00Z\n", "2026-13-23T20:00:00Z"] {
            assert!(text.parse::<Timestamp>().is_err(), "{text:?}");
        }
    }
}
