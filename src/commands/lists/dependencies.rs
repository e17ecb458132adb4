//! Roles that a role requires in `meta/main.yml`, or includes in its tasks.

use crate::commands::lists::yaml::{Node, Yaml};

/// The name of a role, which can be a template, and the conditions under which it runs.
pub(crate) type Required = (String, Vec<String>);

/// Modules that run a role.
const INCLUDES: [&str; 4] =
    ["include_role", "import_role", "ansible.builtin.include_role", "ansible.builtin.import_role"];
/// Members of a block that have tasks.
const BLOCKS: [&str; 3] = ["block", "rescue", "always"];

/// Returns the required roles with their conditions.
pub(crate) fn dependencies(value: &Yaml) -> Vec<Required> {
    let Yaml::List(nodes) = value else { return Vec::new() };
    let dependency = |value: &Yaml| {
        let Yaml::Map(entries) = value else { return text(value).map(|role| (role, Vec::new())) };
        let role = field(entries, "role").or_else(|| field(entries, "name")).and_then(text)?;
        Some((role, conditions(entries)))
    };
    nodes.iter().filter_map(|node| dependency(&node.value)).collect()
}

/// Returns the roles that these tasks include, with the conditions of the tasks and of the blocks around them.
pub(crate) fn included(tasks: &[Node]) -> Vec<Required> {
    let mut all = Vec::new();
    for task in tasks {
        let Yaml::Map(entries) = &task.value else { continue };
        let outer = conditions(entries);
        for tasks in BLOCKS.iter().filter_map(|name| field(entries, name)) {
            let Yaml::List(tasks) = tasks else { continue };
            all.extend(
                included(tasks).into_iter().map(|(role, inner)| (role, [outer.clone(), inner].concat())),
            );
        }
        for arguments in INCLUDES.iter().filter_map(|name| field(entries, name)) {
            let Yaml::Map(arguments) = arguments else { continue };
            all.extend(field(arguments, "name").and_then(text).map(|role| (role, outer.clone())));
        }
    }
    all
}

fn field<'a>(entries: &'a [(Node, Node)], name: &str) -> Option<&'a Yaml> {
    let entry = entries.iter().find(|(key, _)| key.value.key().as_deref() == Some(name));
    entry.map(|(_, node)| &node.value)
}

fn conditions(entries: &[(Node, Node)]) -> Vec<String> {
    match field(entries, "when") {
        Some(Yaml::List(nodes)) => nodes.iter().filter_map(|node| text(&node.value)).collect(),
        Some(value) => text(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn text(value: &Yaml) -> Option<String> {
    match value {
        Yaml::Text(text) | Yaml::Raw(text) => Some(text.clone()),
        Yaml::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::lists::yaml::{parse, parse_tasks};

    fn expected<const N: usize>(all: [(&str, &[&str]); N]) -> Vec<Required> {
        let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        all.map(|(role, conditions)| (role.to_owned(), owned(conditions))).to_vec()
    }

    #[test]
    fn dependencies_are_parsed_with_their_conditions() {
        let text = "dependencies:\n  - plain\n  - role: apps/one\n    when: one_enabled\n  - role: apps/two\n    when:\n      - a\n      - b\n";
        let document = parse(text).unwrap();
        let found = dependencies(&document.variables[0].1.value);
        assert_eq!(
            found,
            expected([("plain", &[]), ("apps/one", &["one_enabled"]), ("apps/two", &["a", "b"])])
        );
    }

    #[test]
    fn included_roles_have_the_conditions_of_their_blocks() {
        let text = "\
- include_role: {name: net/cni}
  when: plugin != 'none'
- name: x
  when: [a]
  block:
    - import_role:
        name: \"net/{{ plugin }}\"
      when: [b, true]
  rescue:
    - ansible.builtin.include_role:
        name: net/rescue
- debug: {msg: x}
- include_role: other
";
        assert_eq!(
            included(&parse_tasks(text).unwrap()),
            expected([
                ("net/cni", &["plugin != 'none'"]),
                ("net/{{ plugin }}", &["a", "b", "true"]),
                ("net/rescue", &["a"]),
            ])
        );
        assert_eq!(parse_tasks("a: 1").unwrap(), []);
    }
}
