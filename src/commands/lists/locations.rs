//! Variables with locations outside of the hosts that have a variable of their own, such as `argocd_install_url`.

use std::collections::BTreeSet;

use crate::commands::lists::additions::full_name;
use crate::commands::lists::checkout::Checkout;
use crate::commands::lists::generated::{GeneratedLists, Location};
use crate::commands::lists::roles::Role;
use crate::commands::lists::yaml::Yaml;

/// Returns the variables of all roles with the location of an entry of `lists`, by name: `…_url` whose value begins with
/// a host, and `…_repo` whose value is no template.
pub(crate) fn find(checkout: &Checkout, roles: &[Role], lists: &GeneratedLists) -> Vec<Location> {
    let of_roles = roles.iter().flat_map(|role| role.variables.iter());
    let mut found = BTreeSet::new();
    for (name, variable) in checkout.roles.iter().chain(of_roles) {
        let Yaml::Text(value) = &variable.node.value else { continue };
        let is_used = match name.rsplit('_').next() {
            Some("url") => is_url_of_file(value, lists),
            Some("repo") => is_repository_of_image(value, lists),
            _ => false,
        };
        if is_used {
            found.insert(Location { name: name.clone(), value: value.clone() });
        }
    }
    found.into_iter().collect()
}

/// True if a file has a URL of this form, up to the first expression.
fn is_url_of_file(url: &str, lists: &GeneratedLists) -> bool {
    let start = url.split("{{").next().unwrap_or_default();
    let has_path = start.strip_prefix("https://").is_some_and(|rest| rest.contains('/'));
    has_path && lists.files.iter().any(|file| file.url.starts_with(start))
}

/// True if an image has this repository, or one below it.
fn is_repository_of_image(repository: &str, lists: &GeneratedLists) -> bool {
    if repository.is_empty() || repository.contains("{{") {
        return false;
    }
    let tagged = full_name(format!("{repository}:tag"));
    let name = tagged.trim_end_matches(":tag");
    let is_in = |image: &String| {
        image.strip_prefix(name).is_some_and(|rest| rest.starts_with([':', '@', '/']))
            || image.strip_prefix(repository).is_some_and(|rest| rest.starts_with('/'))
    };
    lists.images.iter().any(is_in)
}
