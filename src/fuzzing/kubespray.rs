//! The sources of Kubespray lists: variable files and templates.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::commands::lists::template::{Evaluator, Variable};
use crate::commands::lists::yaml::{self as parser, Node};
use crate::fuzzing::laws::text;

/// A variable file, and a file of tasks.
pub fn yaml(bytes: &[u8]) {
    let text = text(bytes);
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    if let Ok(document) = parser::parse(text) {
        for (name, Node { line, .. }) in &document.variables {
            assert!((1..=lines).contains(line), "`{name}` in line {line}");
        }
        let mut names: Vec<&str> = document.variables.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), document.variables.len(), "a name occurs several times");
    }
    let _ = parser::parse_tasks(text);
}

/// The variables of a host, all of which are evaluated.
pub fn template(bytes: &[u8]) {
    /// Maximum size of the result of all variables in bytes, with the additions of the largest one.
    const LIMIT: usize = 128 << 20;
    let Ok(document) = parser::parse(text(bytes)) else { return };
    let file: Arc<Path> = Path::new("x.yml").into();
    let variables: HashMap<String, Variable> = document
        .variables
        .into_iter()
        .map(|(name, node)| (name, Variable { node, file: file.clone() }))
        .collect();
    let mut names: Vec<String> = variables.keys().cloned().collect();
    names.sort();
    let evaluator = Evaluator::new(variables);
    let mut size = 0;
    for name in names {
        if let Ok(value) = evaluator.value(&name) {
            size += value.as_str().map_or(0, str::len);
        }
    }
    assert!(size <= LIMIT, "{size} bytes");
}
