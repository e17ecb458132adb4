//! [`Sequences`]: the highest sequence number of each series of bundles that was unpacked into a site.
//!
//! `SITE/bundles/sequences.json` maps names to numbers. It is written before the first blob of a bundle, so that an
//! interrupted run counts, and it does not depend on the keys that the host trusts today: a bundle whose key is revoked
//! later counts, too.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::base::directory::Directory;
use crate::base::fs::FsError;
use crate::base::json::pretty;
use crate::base::path::RelPath;
use crate::bundle::format::release::{Release, ReleaseName, Sequence};
use crate::site::root::Root;
use crate::site::signed_index::{BUNDLES, put};

const FILE: &str = "sequences.json";
/// Maximum size of the file in bytes.
const LIMIT: u64 = 1 << 20;

/// The highest sequence number of each series.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequences(BTreeMap<ReleaseName, Sequence>);

impl Sequences {
    /// Reads the numbers of a site. A new site has none.
    pub(crate) fn read(site: &Path) -> Result<Self, FsError> {
        let path = site.join(BUNDLES);
        let directory = match Directory::open(&path) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            directory => directory?,
        };
        let Some(bytes) = directory.read(FILE, LIMIT)? else { return Ok(Self::default()) };
        Self::parse(&bytes).ok_or_else(|| {
            let cause = "expected names of bundles with their highest sequence numbers; if no newer bundle was \
                         unpacked here, delete the file";
            FsError::at("parse", path.join(FILE))(io::Error::new(io::ErrorKind::InvalidData, cause))
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let numbers: BTreeMap<String, u64> = serde_json::from_slice(bytes).ok()?;
        let parsed = numbers
            .into_iter()
            .map(|(name, number)| Some((name.parse().ok()?, number.to_string().parse().ok()?)));
        parsed.collect::<Option<_>>().map(Self)
    }

    /// Returns the highest number of a series.
    pub(crate) fn highest(&self, name: &ReleaseName) -> Option<Sequence> {
        self.0.get(name).copied()
    }

    /// Writes the number of a bundle to `bundles`, unless there is a higher one. It is on the disk afterwards.
    pub(crate) fn raise(mut self, release: &Release, bundles: &Root) -> Result<(), FsError> {
        if self.highest(&release.name) >= Some(release.sequence) {
            return Ok(());
        }
        self.0.insert(release.name.clone(), release.sequence);
        let text: BTreeMap<_, _> = self.0.iter().map(|(name, number)| (name.to_string(), number)).collect();
        put(bundles, &RelPath::parse(FILE).expect("a plain name"), &pretty(&text))?;
        bundles.staging().sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_names_and_numbers_are_read() {
        let parse = |text: &str| Sequences::parse(text.as_bytes());
        let sequences = parse(r#"{"a": 3, "b-c": 9007199254740991}"#).unwrap();
        assert_eq!(sequences.highest(&"a".parse().unwrap()), Some("3".parse().unwrap()));
        assert_eq!(sequences.highest(&"c".parse().unwrap()), None);
        for text in [
            "",
            "[]",
            r#"{"A": 3}"#,
            r#"{"a": 0}"#,
            r#"{"a": -1}"#,
            r#"{"a": "3"}"#,
            r#"{"a": 9007199254740992}"#,
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
