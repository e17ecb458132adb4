//! Role dependencies in `meta/main.yml`.

use crate::commands::lists::yaml::Yaml;

/// Returns the required roles with their conditions.
pub(crate) fn dependencies(value: &Yaml) -> Vec<(String, Vec<String>)> {
    let Yaml::List(nodes) = value else { return Vec::new() };
    let text = |value: &Yaml| match value {
        Yaml::Text(text) | Yaml::Raw(text) => Some(text.clone()),
        Yaml::Bool(value) => Some(value.to_string()),
        _ => None,
    };
    let dependency = |value: &Yaml| {
        let Yaml::Map(entries) = value else { return text(value).map(|role| (role, Vec::new())) };
        let field = |name: &str| {
            entries
                .iter()
                .find(|(key, _)| key.value.key().as_deref() == Some(name))
                .map(|(_, node)| &node.value)
        };
        let role = field("role").or_else(|| field("name")).and_then(text)?;
        let conditions = match field("when") {
            Some(Yaml::List(nodes)) => nodes.iter().filter_map(|node| text(&node.value)).collect(),
            Some(value) => text(value).into_iter().collect(),
            None => Vec::new(),
        };
        Some((role, conditions))
    };
    nodes.iter().filter_map(|node| dependency(&node.value)).collect()
}
