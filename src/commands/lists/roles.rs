//! [`Role`]: the roles of a checkout and the conditions under which they run.

use std::path::Path;
use std::sync::Arc;

use crate::commands::lists::ansible;
use crate::commands::lists::checkout::{Checkout, RoleVariables};
use crate::commands::lists::error::KubesprayError;
use crate::commands::lists::template::{Evaluator, is_template};

/// A role other than the download roles.
pub(crate) struct Role {
    pub(crate) directory: std::path::PathBuf,
    pub(crate) variables: RoleVariables,
    /// For each role that depends on this one, the conditions and the file that declares them. Empty: no
    /// dependent role.
    pub(crate) conditions: Vec<(Vec<String>, Arc<Path>)>,
}

pub(crate) fn roles(checkout: &Checkout) -> Result<Vec<Role>, KubesprayError> {
    let directories = checkout.other_roles()?;
    let mut roles = Vec::new();
    for directory in &directories {
        let (directory, variables) = (directory.clone(), checkout.role(directory)?);
        roles.push(Role { directory, variables, conditions: Vec::new() });
    }
    for directory in &directories {
        for (name, conditions, file) in checkout.dependencies(directory)? {
            let target = Path::new("roles").join(name);
            if let Some(role) = roles.iter_mut().find(|role| role.directory == target) {
                role.conditions.push((conditions, file));
            }
        }
    }
    Ok(roles)
}

impl Role {
    /// True if a dependent role includes this one with these variables. Conditions that cannot be evaluated
    /// count as true: they may test facts of hosts, which are unknown here.
    pub(crate) fn is_enabled(&self, evaluator: &Evaluator) -> bool {
        let holds = |condition: &String, file: &Arc<Path>| {
            let text =
                if is_template(condition) { condition.clone() } else { format!("{{{{ {condition} }}}}") };
            evaluator.text("when", &text, 1, file).map_or(true, |value| ansible::is_truthy(&value))
        };
        self.conditions.is_empty()
            || self.conditions.iter().any(|(all, file)| all.iter().all(|condition| holds(condition, file)))
    }
}
