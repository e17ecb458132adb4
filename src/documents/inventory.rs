//! [`Inventory`]: what a site really has, as a document that travels back to where its next bundle is packed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;

/// The version of the document that this program writes, and the only one that it reads.
pub(crate) const INVENTORY_VERSION: u32 = 1;

/// What a site has; see the module. Names have no place in it: a blob is the same wherever it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Inventory {
    /// The version of this document; it says that it is one, too.
    #[serde(rename = "airbundleInventory")]
    pub version: u32,
    /// The blobs in the registry's storage, with their sizes in bytes.
    pub blobs: BTreeMap<Digest, u64>,
    /// The files, likewise.
    pub files: BTreeMap<Digest, u64>,
}

/// Why a text is no inventory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    /// No JSON, or not the members that there must be.
    #[error("it is no inventory that this program reads")]
    Syntax(#[from] serde_json::Error),
    /// Of another version.
    #[error(
        "it is an inventory of version {0}, and this program reads version {INVENTORY_VERSION}: use a newer one"
    )]
    Version(u32),
}

impl Inventory {
    /// The inventory of a site that has this.
    #[must_use]
    pub(crate) fn new(blobs: BTreeMap<Digest, u64>, files: BTreeMap<Digest, u64>) -> Self {
        Self { version: INVENTORY_VERSION, blobs, files }
    }

    /// Reads an inventory.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, InventoryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            airbundle_inventory: u32,
        }
        let Version { airbundle_inventory: version } = serde_json::from_slice(bytes)?;
        if version != INVENTORY_VERSION {
            return Err(InventoryError::Version(version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Whether this JSON means to be an inventory, of whatever version.
    #[must_use]
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        let value = serde_json::from_slice::<serde_json::Value>(bytes);
        value.is_ok_and(|value| value.get("airbundleInventory").is_some())
    }

    /// The document: the same content gives the same bytes.
    #[must_use]
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain structs become JSON; please report");
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_reads_as_it_was_written_and_another_version_is_refused_by_name() {
        let blobs = [(Digest::of(b"b"), 1), (Digest::of(b"a"), 1 << 40)].into();
        let inventory = Inventory::new(blobs, [(Digest::of(b"file"), 4)].into());
        let text = String::from_utf8(inventory.to_json()).unwrap();
        assert_eq!(Inventory::parse(text.as_bytes()).unwrap(), inventory);
        assert!(Inventory::is_one(text.as_bytes()) && !Inventory::is_one(b"{\"airbundleLock\": 1}"));
        let newer = text.replace("\"airbundleInventory\": 1", "\"airbundleInventory\": 2");
        assert!(Inventory::is_one(newer.as_bytes()));
        let error = Inventory::parse(newer.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains("reads version 1"), "{error}");
        for bad in ["", "{}", &text.replace("sha256:", "sha512:"), &text.replace(": 4", ": -4")] {
            assert!(matches!(Inventory::parse(bad.as_bytes()), Err(InventoryError::Syntax(_))), "{bad}");
        }
    }
}
