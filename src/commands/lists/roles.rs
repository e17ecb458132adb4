//! [`Role`]: the roles of a checkout and what they depend on.

use std::path::Path;
use std::sync::Arc;

use crate::commands::lists::ansible;
use crate::commands::lists::checkout::{Checkout, Variables};
use crate::commands::lists::error::KubesprayError;
use crate::commands::lists::template::{Evaluator, is_template};

/// A role that is not about downloads.
pub(crate) struct Role {
    pub(crate) directory: std::path::PathBuf,
    pub(crate) variables: (Variables, Variables),
    /// The conditions of the roles that depend on it, one list for each, and where they stand. None if none does.
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
    /// Whether some role that depends on this one does so with these variables. What cannot be told is a yes: conditions
    /// ask about hosts, too, and of hosts nothing is known here.
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
