//! `SOURCE_DATE_EPOCH`: the date of reproducible output.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::exit::{Code, Failure};

/// Returns the time in `SOURCE_DATE_EPOCH` (reproducible-builds.org), in seconds since 1970. `None`: not set.
/// The clock is never used, because the same input must make the same bytes.
pub(super) fn source_date() -> Result<Option<OffsetDateTime>, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    // RFC 3339 has four digits for the year.
    let time = time.filter(|time| time.format(&Rfc3339).is_ok());
    let wrong = || {
        Failure::new(
            Code::Usage,
            format!("invalid `SOURCE_DATE_EPOCH` `{}`: expected seconds since 1970", text.display()),
        )
    };
    time.map(Some).ok_or_else(wrong)
}
