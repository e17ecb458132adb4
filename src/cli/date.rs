//! The one date that the environment may give.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::exit::{Code, Failure};

/// When something is said to be made: at `SOURCE_DATE_EPOCH` (reproducible-builds.org), in seconds since 1970, as the clock
/// would make other bytes of the same input.
pub(super) fn source_date() -> Result<Option<OffsetDateTime>, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    // Years that the format has no digits for are no dates.
    let time = time.filter(|time| time.format(&Rfc3339).is_ok());
    let wrong = || {
        Failure::new(
            Code::Usage,
            format!("`SOURCE_DATE_EPOCH` is `{}`: expected seconds since 1970", text.display()),
        )
    };
    time.map(Some).ok_or_else(wrong)
}
