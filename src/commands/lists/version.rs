//! Version comparison with the semantics of Ansible's `version` test.

use std::cmp::Ordering;

/// A component of a version.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Number(u64),
    Text(&'a str),
}

/// Compares two versions. `None`: a number meets text, which Ansible refuses to compare.
pub(crate) fn compare(first: &str, second: &str) -> Option<Ordering> {
    let (first, second) = (parts(first), parts(second));
    for (first, second) in first.iter().zip(&second) {
        let order = match (first, second) {
            (Part::Number(first), Part::Number(second)) => first.cmp(second),
            (Part::Text(first), Part::Text(second)) => first.cmp(second),
            _ => return None,
        };
        if order.is_ne() {
            return Some(order);
        }
    }
    Some(first.len().cmp(&second.len()))
}

/// Returns up to `limit` versions of `all` with the longest common prefix with `requested`, in their order.
pub(crate) fn nearest(requested: &str, all: &[String], limit: usize) -> Vec<String> {
    let requested_parts = parts(requested);
    let in_common = |other: &String| {
        requested_parts.iter().zip(&parts(other)).take_while(|(first, second)| first == second).count()
    };
    let mut ranked: Vec<_> = all.iter().enumerate().collect();
    ranked.sort_by_key(|(index, other)| (usize::MAX - in_common(other), *index));
    ranked.truncate(limit);
    ranked.sort_by_key(|(index, _)| *index);
    ranked.into_iter().map(|(_, other)| other.clone()).collect()
}

fn parts(version: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = version;
    while let Some(first) = rest.chars().next() {
        let is_same: fn(char) -> bool = if first.is_ascii_digit() {
            |char| char.is_ascii_digit()
        } else if first.is_ascii_lowercase() {
            |char| char.is_ascii_lowercase()
        } else if first == '.' {
            rest = &rest[1..];
            continue;
        } else {
            |char| !char.is_ascii_digit() && !char.is_ascii_lowercase() && char != '.'
        };
        let end = rest.find(|char| !is_same(char)).unwrap_or(rest.len());
        let (part, behind) = rest.split_at(end);
        parts.push(part.parse().map_or(Part::Text(part), Part::Number));
        rest = behind;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_part_by_part() {
        for (first, second, order) in [
            ("v1.29.0", "v1.29.0", Some(Ordering::Equal)),
            ("v1.9.10", "v1.29.0", Some(Ordering::Less)),
            ("1.35.0", "1.36", Some(Ordering::Less)),
            ("1.36.0", "1.36", Some(Ordering::Greater)),
            ("3.6.10", "3.6.9", Some(Ordering::Greater)),
            ("1.7.0-rc1", "1.7.0", Some(Ordering::Greater)),
            ("20240305", "20240306.0", Some(Ordering::Less)),
            ("v1.29", "1.29", None),
            ("", "1", Some(Ordering::Less)),
        ] {
            assert_eq!(compare(first, second), order, "{first} {second}");
        }
    }

    #[test]
    fn the_nearest_versions_share_the_longest_prefix() {
        let all = ["1.30.1", "1.30.0", "1.29.5", "1.29.4", "1.28.9"].map(str::to_owned);
        assert_eq!(nearest("1.29.9", &all, 2), ["1.29.5", "1.29.4"]);
        assert_eq!(nearest("2.0", &all, 1), ["1.30.1"]);
    }
}
