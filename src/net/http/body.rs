//! Reads bodies of limited size, such as manifests, tokens and error messages.

use std::io::Read;
use std::time::{Duration, Instant};

use reqwest::blocking::Response;

use crate::net::error::{FetchError, FetchProblem};
use crate::net::http::retry::RetryPolicy;
use crate::net::secret::redacted;

/// Maximum time to read a body. For 4 MiB, the limit of a manifest, it is 14 KiB/s.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Reads at most `limit` bytes of a body. Fails if they arrive more slowly than the minimum rate, or
/// take longer than [`TIMEOUT`].
pub(crate) fn read_body(
    object: &str,
    retries: &RetryPolicy,
    mut response: Response,
    limit: u64,
) -> Result<Vec<u8>, FetchError> {
    let url = response.url().clone();
    let (mut rate, begin) = (retries.rate_monitor(), Instant::now());
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while (bytes.len() as u64) < limit {
        let read = response.by_ref().take(limit - bytes.len() as u64).read(&mut buffer);
        match read.map_err(|error| read_error(object, &redacted(&url), error))? {
            0 => break,
            read => {
                bytes.extend_from_slice(&buffer[..read]);
                rate.count(object, &url, read)?;
                if begin.elapsed() > TIMEOUT {
                    let problem = FetchProblem::Stalled { url: redacted(&url), attempts: 1 };
                    return Err(FetchError::new(object, problem));
                }
            }
        }
    }
    Ok(bytes)
}

/// Returns the error for a connection that broke while a body was read.
#[must_use]
pub(crate) fn read_error(object: &str, url: &str, error: std::io::Error) -> FetchError {
    let source = error.into_inner().and_then(|inner| inner.downcast().ok()).map(|inner| *inner);
    let problem = FetchProblem::Network { url: url.to_owned(), attempts: 1 };
    FetchError { source, ..FetchError::new(object, problem) }
}
