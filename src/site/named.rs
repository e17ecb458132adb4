//! Deserializes the members of a record, with their names in the errors.

use serde::de::{Deserialize, Deserializer, Error};

use crate::base::units::deserialize_size;
use crate::oci::platform::{Platform, deserialize_stated};

/// Defines functions that deserialize a member of any type and put its name before the error.
macro_rules! named {
    ($($function:ident: $name:literal),* $(,)?) => {
        $(
            pub(super) fn $function<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
                deserializer: D,
            ) -> Result<T, D::Error> {
                with_name($name, T::deserialize(deserializer))
            }
        )*
    };
}

named! {
    files_root: "filesRoot",
    registry_root: "registryRoot",
    title: "title",
    created: "created",
    reference: "reference",
    repositories: "repositories",
    tag: "tag",
    media_type: "mediaType",
    path: "path",
    url: "url",
}

pub(super) fn platforms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Platform>, D::Error> {
    with_name("platforms", deserialize_stated(deserializer))
}

pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    with_name("size", deserialize_size(deserializer))
}

fn with_name<T, E: Error>(name: &str, result: Result<T, E>) -> Result<T, E> {
    result.map_err(|error| E::custom(format_args!("`{name}`: {error}")))
}
