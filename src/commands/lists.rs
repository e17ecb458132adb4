//! Lists of a Kubespray release's downloads, evaluated from its own variables.
//!
//! The result equals the output of that release's `contrib/offline/generate_list.sh`: files are the
//! `…_download_url` variables of its roles, in order; images are `repo` and `tag` of each entry of
//! `downloads`, in order, and the four that kubeadm starts. Checksums pinned by Kubespray and variables set
//! by the user are added. Ansible is not needed: the variables are YAML and their values Jinja.

mod additions;
mod ansible;
mod checkout;
mod dependencies;
mod downloads;
mod error;
pub(crate) mod generated;
mod locations;
pub(crate) mod options;
mod roles;
pub(crate) mod template;
mod version;
pub(crate) mod yaml;

use std::collections::HashSet;

use crate::commands::lists::checkout::{Checkout, RoleVariables};
use crate::commands::lists::downloads::{Host, fail_on_errors};
use crate::commands::lists::generated::GeneratedLists;
use crate::commands::lists::options::ListOptions;
use crate::commands::lists::roles::roles;
use crate::commands::lists::template::Evaluator;

pub(crate) use crate::commands::lists::error::KubesprayError;

/// Generates lists; calls `warn` for each warning.
pub(crate) fn generate(
    options: &ListOptions,
    warn: &mut dyn FnMut(String),
) -> Result<GeneratedLists, KubesprayError> {
    let checkout = Checkout::read(&options.source, &options.vars, options.keep_mirrors, warn)?;
    let release = options.release.clone().or_else(|| checkout.release.clone());
    let mut lists = GeneratedLists { release, ..GeneratedLists::default() };
    // Architectures have most warnings in common.
    let mut seen = HashSet::new();
    let mut warn_once = |warnings: Vec<String>| {
        warnings.into_iter().filter(|warning| seen.insert(warning.clone())).for_each(&mut *warn);
    };
    let (mut errors, mut is_unpinned) = (Vec::new(), false);
    for architecture in &options.architectures {
        let variables = checkout.variables(architecture.fact(), &RoleVariables::default());
        let mut host = Host::new(Evaluator::new(variables), options);
        let (files, images) = host.lists(&checkout);
        for file in files {
            lists.add_file(file, &mut host.warnings);
        }
        for image in images {
            lists.add_image(image);
        }
        warn_once(host.warnings);
        is_unpinned |= host.is_unpinned;
        errors.append(&mut host.errors);
    }
    fail_on_errors(errors, is_unpinned)?;
    let roles = roles(&checkout)?;
    if options.complete {
        let mut warnings = Vec::new();
        let (files, images) = (lists.files.len(), lists.images.len());
        additions::add(&checkout, &roles, options, &mut lists, &mut warnings)?;
        lists.added_files = lists.files.len() - files;
        lists.added_images = lists.images.len() - images;
        warn_once(warnings);
    }
    warn_once(additions::installed_by_roles(&checkout, &roles, options));
    lists.locations = locations::find(&checkout, &roles, &lists);
    lists.check()?;
    Ok(lists)
}
