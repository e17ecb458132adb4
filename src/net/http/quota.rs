//! [`Quota`]: the number of requests for manifests that a registry allows, as Docker Hub states it.

use std::time::Duration;

use reqwest::header::HeaderMap;

/// Requests for manifests that a registry allows in a period. Docker Hub calls them pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Number of requests in the period. `None`: not stated.
    pub limit: Option<u64>,
    /// Number of further requests.
    pub remaining: u64,
    /// The period. `None`: not stated.
    pub period: Option<Duration>,
}

impl Quota {
    /// Reads `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 76;w=21600`, which are 100 requests in six hours
    /// and 76 that are left. `None`: the second one is missing or invalid.
    #[must_use]
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let header = |name| parse(headers.get(name)?.to_str().ok()?);
        let (remaining, period) = header("ratelimit-remaining")?;
        let limit = header("ratelimit-limit").map(|(limit, _)| limit);
        Some(Self { limit, remaining, period })
    }
}

fn parse(value: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = value.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let seconds = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok());
    Some((number, seconds.map(Duration::from_secs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(limit: Option<&str>, remaining: &str) -> Option<Quota> {
        let mut headers = HeaderMap::new();
        if let Some(limit) = limit {
            headers.insert("ratelimit-limit", limit.parse().unwrap());
        }
        headers.insert("ratelimit-remaining", remaining.parse().unwrap());
        Quota::of(&headers)
    }

    #[test]
    fn headers_of_docker_hub_are_understood() {
        let period = Some(Duration::from_secs(21_600));
        let expected = Quota { limit: Some(100), remaining: 76, period };
        assert_eq!(quota(Some("100;w=21600"), "76;w=21600"), Some(expected));
        assert_eq!(
            quota(None, " 0 ; w=60"),
            Some(Quota { limit: None, remaining: 0, period: Some(Duration::from_secs(60)) })
        );
        assert_eq!(quota(None, "5"), Some(Quota { limit: None, remaining: 5, period: None }));
        assert_eq!(quota(Some("100"), "-1"), None);
        assert_eq!(Quota::of(&HeaderMap::new()), None);
    }
}
