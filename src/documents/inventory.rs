//! [`Inventory`]: the blobs and files a site has, as a document for the next `pack --base`.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::base::json::{pretty, without_byte_order_mark};
use crate::base::units::MAX_SIZE;
use crate::oci::digest::Digest;

/// The document version that is written, and the only one that is read.
pub(crate) const INVENTORY_VERSION: u32 = 1;

/// The contents of a site, by digest. Paths and names are omitted: a blob is the same under any of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Inventory {
    /// The document version; the member also identifies the document.
    #[serde(rename = "airbundleInventory")]
    pub version: u32,
    /// The blobs in the registry storage, with their sizes in bytes.
    pub blobs: BTreeMap<Digest, u64>,
    /// The files, with their sizes in bytes.
    pub files: BTreeMap<Digest, u64>,
}

/// An error while parsing an inventory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    /// Invalid JSON, or members are missing or malformed.
    #[error("not a valid inventory")]
    Syntax(#[from] serde_json::Error),
    /// A size that no blob can have.
    #[error("invalid size {1} of `{0}`: expected at most {MAX_SIZE} bytes")]
    Size(Digest, u64),
    /// The document has another version.
    #[error("inventory version {0} is not supported (supported: {INVENTORY_VERSION}): use a newer program")]
    Version(u32),
}

impl Inventory {
    #[must_use]
    pub(crate) fn new(blobs: BTreeMap<Digest, u64>, files: BTreeMap<Digest, u64>) -> Self {
        Self { version: INVENTORY_VERSION, blobs, files }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, InventoryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            airbundle_inventory: u32,
        }
        let bytes = without_byte_order_mark(bytes);
        let Version { airbundle_inventory: version } = serde_json::from_slice(bytes)?;
        if version != INVENTORY_VERSION {
            return Err(InventoryError::Version(version));
        }
        let inventory: Self = serde_json::from_slice(bytes)?;
        match inventory.blobs.iter().chain(&inventory.files).find(|(_, size)| **size > MAX_SIZE) {
            Some((digest, size)) => Err(InventoryError::Size(*digest, *size)),
            None => Ok(inventory),
        }
    }

    /// True if `bytes` are an inventory of any version.
    #[must_use]
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Marker {
            #[serde(rename = "airbundleInventory")]
            _version: IgnoredAny,
        }
        let bytes = without_byte_order_mark(bytes);
        // A struct would also be read from an array.
        bytes.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<Marker>(bytes).is_ok()
    }

    /// Returns the document as pretty-printed JSON; equal contents have equal bytes.
    #[must_use]
    pub(crate) fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_round_trips_and_other_versions_are_refused() {
        let blobs = [(Digest::of(b"b"), 1), (Digest::of(b"a"), 1 << 40)].into();
        let inventory = Inventory::new(blobs, [(Digest::of(b"file"), 4)].into());
        let text = String::from_utf8(inventory.to_json()).unwrap();
        assert_eq!(Inventory::parse(text.as_bytes()).unwrap(), inventory);
        assert!(Inventory::is_one(text.as_bytes()) && !Inventory::is_one(b"{\"airbundleLock\": 1}"));
        let newer = text.replace("\"airbundleInventory\": 1", "\"airbundleInventory\": 2");
        assert!(Inventory::is_one(newer.as_bytes()) && !Inventory::is_one(b"[1]"));
        let error = Inventory::parse(newer.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains("supported: 1"), "{error}");
        for bad in ["", "{}", &text.replace("sha256:", "sha512:"), &text.replace(": 4", ": -4")] {
            assert!(matches!(Inventory::parse(bad.as_bytes()), Err(InventoryError::Syntax(_))), "{bad}");
        }
    }
}
