//! [`Role`]: the roles of a checkout and the conditions under which they run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::commands::lists::ansible;
use crate::commands::lists::checkout::{Checkout, RoleVariables, Use};
use crate::commands::lists::error::KubesprayError;
use crate::commands::lists::template::{Evaluator, is_template};

/// A role other than the download roles.
pub(crate) struct Role {
    pub(crate) directory: PathBuf,
    pub(crate) variables: RoleVariables,
    /// The requirements and inclusions of this role in other roles. Empty: there are none.
    uses: Vec<Use>,
}

pub(crate) fn roles(checkout: &Checkout) -> Result<Vec<Role>, KubesprayError> {
    let directories = checkout.other_roles()?;
    let mut roles = Vec::new();
    for directory in &directories {
        let (directory, variables) = (directory.clone(), checkout.role(directory)?);
        roles.push(Role { directory, variables, uses: Vec::new() });
    }
    for directory in &directories {
        for usage in checkout.uses(directory)? {
            for role in roles.iter_mut().filter(|role| can_name(&usage.role, role.name())) {
                role.uses.push(usage.clone());
            }
        }
    }
    Ok(roles)
}

/// True if a name in a task, which can be a template, can be that of `role`.
fn can_name(name: &str, role: &str) -> bool {
    match name.split_once("{{") {
        Some((prefix, _)) => role.starts_with(prefix),
        None => name == role,
    }
}

impl Role {
    /// The name, such as `network_plugin/cilium`.
    fn name(&self) -> &str {
        self.directory.strip_prefix("roles").unwrap_or(&self.directory).to_str().unwrap_or_default()
    }

    /// True if another role requires or includes this one with these variables. Names and conditions that cannot be
    /// evaluated count as true: they may depend on hosts or loops, which are unknown here.
    pub(crate) fn is_enabled(&self, evaluator: &Evaluator) -> bool {
        let evaluate = |text: &str, file: &Arc<Path>| evaluator.text("when", text, 1, file);
        let is_this = |usage: &Use| {
            !is_template(&usage.role)
                || evaluate(&usage.role, &usage.file).map_or(true, |name| name.to_string() == self.name())
        };
        let holds = |condition: &String, usage: &Use| {
            let text =
                if is_template(condition) { condition.clone() } else { format!("{{{{ {condition} }}}}") };
            evaluate(&text, &usage.file).map_or(true, |value| ansible::is_truthy(&value))
        };
        let runs =
            |usage: &Use| is_this(usage) && usage.conditions.iter().all(|condition| holds(condition, usage));
        self.uses.is_empty() || self.uses.iter().any(runs)
    }

    /// Returns the names of the Helm charts that the role installs, with the variables of their version and
    /// repository.
    pub(crate) fn charts(&self) -> Vec<Chart<'_>> {
        let has = |name: &String| self.variables.iter().any(|(other, _)| other == name);
        let chart = |name: &'_ str| {
            let stem = name.strip_suffix("_chart_version")?.to_owned();
            let repository = ["_repository_url", "_chart_repository_url"].map(|end| format!("{stem}{end}"));
            let repository = repository.into_iter().find(has)?;
            Some((stem, repository))
        };
        let all = self.variables.iter().filter_map(|(version, _)| {
            let (stem, repository) = chart(version)?;
            Some(Chart { name: stem.replace('_', "-"), version, repository })
        });
        all.collect()
    }
}

/// A Helm chart of a role.
pub(crate) struct Chart<'a> {
    pub(crate) name: String,
    /// The variable with its version.
    pub(crate) version: &'a str,
    /// The variable with the URL of its repository.
    pub(crate) repository: String,
}
