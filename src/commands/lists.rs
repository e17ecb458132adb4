//! Lists of what a release of Kubespray downloads, made from its own variables.
//!
//! The result equals what `contrib/offline/generate_list.sh` of that release prints: the files are all variables
//! `…_download_url` of its roles, in their order; the images are `repo` and `tag` of all `downloads`, in their order, and
//! the four that kubeadm starts. To this come the checksums that Kubespray pins, and what a user has set. Ansible is not
//! needed: the variables are YAML, and their values Jinja.

pub(crate) mod additions;
pub(crate) mod ansible;
pub(crate) mod checkout;
pub(crate) mod dependencies;
pub(crate) mod downloads;
pub(crate) mod error;
pub(crate) mod made;
pub(crate) mod options;
pub(crate) mod roles;
pub(crate) mod template;
pub(crate) mod version;
pub(crate) mod yaml;

use std::collections::HashSet;

use crate::commands::lists::checkout::Checkout;
use crate::commands::lists::downloads::{Host, failed};
use crate::commands::lists::made::{GeneratedLists, check};
use crate::commands::lists::options::ListOptions;
use crate::commands::lists::template::Evaluator;

pub(crate) use crate::commands::lists::error::KubesprayError;

/// Makes lists. `warn` is told what is no error and should be known.
pub(crate) fn make(
    options: &ListOptions,
    warn: &mut dyn FnMut(String),
) -> Result<GeneratedLists, KubesprayError> {
    let checkout = Checkout::read(&options.source, &options.vars, options.keep_mirrors, warn)?;
    let mut made = GeneratedLists {
        release: options.release.clone().or_else(|| checkout.release.clone()),
        ..GeneratedLists::default()
    };
    let (mut errors, mut unpinned) = (Vec::new(), false);
    let hosts: Vec<_> = options
        .architectures
        .iter()
        .map(|architecture| {
            let variables = checkout.variables(architecture.fact(), &Default::default());
            Host::new(Evaluator::new(variables), options)
        })
        .collect();
    let mut seen = HashSet::new();
    let mut tell = |warnings: Vec<String>| {
        for warning in warnings {
            // Two architectures have most in common.
            if seen.insert(warning.clone()) {
                warn(warning);
            }
        }
    };
    for mut host in hosts {
        let (files, images) = host.lists(&checkout);
        for file in files {
            made.add_file(file, &mut host.warnings);
        }
        for image in images {
            made.add_image(image);
        }
        tell(host.warnings);
        unpinned |= host.unpinned;
        errors.append(&mut host.errors);
    }
    failed(errors, unpinned)?;
    if options.complete {
        let mut warnings = Vec::new();
        let before = (made.files.len(), made.images.len());
        additions::add(&checkout, options, &mut made, &mut warnings)?;
        made.added_files = made.files.len() - before.0;
        made.added_images = made.images.len() - before.1;
        tell(warnings);
    }
    check(&made)?;
    Ok(made)
}
