//! [`Evaluator`]: lazy evaluation of variables whose values are Jinja templates, as Ansible does.
//!
//! A value that is one `{{ expression }}` keeps the expression's type; any other template is text, which is
//! parsed again if it looks like a list or a mapping. Undefined values propagate until they are used, so
//! that `default` also applies to a variable whose own value needs an undefined one.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};

use crate::commands::lists::ansible;
use crate::commands::lists::error::{EvalError, Reason};
use crate::commands::lists::yaml::{Node, Yaml};

/// Maximum depth of nested evaluations. Kubespray's longest chain has about ten.
const DEPTH_LIMIT: usize = 50;

/// Maximum number of instructions of one template, and of the data that it creates, in units of 64 bytes.
const FUEL: u64 = 50_000;

/// Maximum total size of all evaluated texts in bytes. The values of a release have about a megabyte.
const TEXT_LIMIT: usize = 64 << 20;

/// Maximum depth of nested lists in a value.
const NESTING_LIMIT: usize = 64;

/// Maximum number of items in the nested lists of a value.
const ITEM_LIMIT: usize = 100_000;

/// A variable and the file that sets it.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub(crate) node: Node,
    pub(crate) file: Arc<Path>,
}

/// The variables of one host, and their evaluated values.
pub(crate) struct Evaluator {
    variables: HashMap<String, Variable>,
    environment: Environment<'static>,
    /// Handed to lazy values, which evaluate their items on access.
    this: Weak<Evaluator>,
    state: Mutex<State>,
}

/// Running evaluations and cached results.
#[derive(Default)]
struct State {
    /// The running evaluations, the outermost first.
    frames: Vec<Frame>,
    known: HashMap<String, Result<Value, EvalError>>,
    /// Total size of all evaluated texts in bytes.
    text: usize,
    /// An error other than an undefined value, which is propagated through the templates that need the
    /// value.
    failure: Option<EvalError>,
}

/// A running evaluation.
struct Frame {
    /// The path of the value, such as `downloads.etcd.url`.
    path: String,
    /// The last undefined value that was accessed: the cause if the evaluation fails.
    missing: Option<EvalError>,
}

impl Evaluator {
    pub(crate) fn new(variables: HashMap<String, Variable>) -> Arc<Self> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // Ansible's own settings.
        let syntax = SyntaxConfig::builder().trim_blocks(true).keep_trailing_newline(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the default ones; please report"));
        environment.set_debug(false);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        ansible::add_to(&mut environment);
        Arc::new_cyclic(|this| Self { variables, environment, this: this.clone(), state: Mutex::default() })
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&Variable> {
        self.variables.get(name)
    }

    /// Evaluates a variable.
    pub(crate) fn value(&self, name: &str) -> Result<Value, EvalError> {
        let Some(variable) = self.variables.get(name) else {
            return Err(EvalError::undefined(name, Reason::Undefined(format!("`{name}` is undefined"))));
        };
        if let Some(known) = self.state().known.get(name) {
            return known.clone();
        }
        let result = self.node(name, &variable.node, &variable.file);
        // A failure caused by a running evaluation may succeed later.
        if self.state().frames.is_empty() || result.is_ok() {
            self.state().known.insert(name.to_owned(), result.clone());
        }
        result
    }

    /// Evaluates a value at `path` in `file`.
    pub(crate) fn node(&self, path: &str, node: &Node, file: &Arc<Path>) -> Result<Value, EvalError> {
        let error = |reason| EvalError::new(path, file, node.line, reason);
        {
            let mut state = self.state();
            if let Some(start) = state.frames.iter().position(|frame| frame.path == path) {
                let around = state.frames[start..].iter().map(|frame| frame.path.clone()).collect();
                return Err(error(Reason::Cycle(around)));
            }
            if state.frames.len() >= DEPTH_LIMIT {
                return Err(error(Reason::Deep));
            }
            state.frames.push(Frame { path: path.to_owned(), missing: None });
        }
        let result = self.evaluate(path, node, file);
        let frame = self.state().frames.pop().expect("it was pushed above; please report");
        result.map_err(|failed| match failed {
            ValueError::Own(reason) => error(reason),
            ValueError::Inner(inner) => inner.needed_by(path),
            // The undefined value is more precise than the engine's message.
            ValueError::Undefined(message) => match frame.missing {
                Some(missing) if missing.has_position() => missing.needed_by(path),
                Some(missing) => error(*missing.reason),
                None => error(Reason::Undefined(message)),
            },
        })
    }

    /// Evaluates a text that is not a variable, such as a line of a role's template.
    pub(crate) fn text(
        &self,
        what: &str,
        text: &str,
        line: usize,
        file: &Arc<Path>,
    ) -> Result<Value, EvalError> {
        self.node(what, &Node { line, value: Yaml::Text(text.to_owned()) }, file)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held; please report")
    }

    fn evaluate(&self, path: &str, node: &Node, file: &Arc<Path>) -> Result<Value, ValueError> {
        Ok(match &node.value {
            Yaml::Null => Value::from(()),
            Yaml::Bool(value) => Value::from(*value),
            Yaml::Int(number) => Value::from(*number),
            Yaml::Float(number) => Value::from(*number),
            Yaml::Raw(text) => Value::from(text.as_str()),
            Yaml::Vault => return Err(ValueError::Own(Reason::Vault)),
            Yaml::Text(text) if !is_template(text) => Value::from(text.as_str()),
            Yaml::Text(text) => self.template(text)?,
            Yaml::List(nodes) => {
                let values = nodes.iter().zip(0..).map(|(node, index)| {
                    self.node(&format!("{path}[{index}]"), node, file).map_err(ValueError::Inner)
                });
                Value::from(values.collect::<Result<Vec<_>, _>>()?)
            }
            Yaml::Map(entries) => Value::from_object(Mapping {
                evaluator: self.this.clone(),
                path: path.to_owned(),
                file: file.clone(),
                entries: entries.clone(),
            }),
        })
    }

    fn template(&self, text: &str) -> Result<Value, ValueError> {
        let text = doubled_backslashes(text);
        let scope = Value::from_object(Scope(self.this.clone()));
        let result = match single_expression(&text) {
            Some(expression) => {
                self.environment.compile_expression(expression).and_then(|expression| expression.eval(scope))
            }
            None => self.environment.render_str(&text, scope).map(|text| self.literal(text)),
        };
        if let Some(inner) = self.state().failure.take() {
            return Err(ValueError::Inner(inner));
        }
        match result {
            Ok(value) if value.is_undefined() => {
                Err(ValueError::Undefined("the value is undefined".to_owned()))
            }
            Ok(value) => match self.check_size(&value) {
                Some(reason) => Err(ValueError::Own(Reason::Template(reason))),
                None => Ok(value),
            },
            Err(error) if error.kind() == ErrorKind::UndefinedError => {
                Err(ValueError::Undefined(message(&error)))
            }
            Err(error) => Err(ValueError::Own(Reason::Template(message(&error)))),
        }
    }

    /// Returns why a value is too large. `None`: it is not.
    fn check_size(&self, value: &Value) -> Option<String> {
        let (mut items, mut text) = (0, 0);
        if !measure(value, 0, &mut items, &mut text) {
            return Some(format!(
                "the value has more than {ITEM_LIMIT} items, or lists nested more than {NESTING_LIMIT} levels deep"
            ));
        }
        let mut state = self.state();
        state.text = state.text.saturating_add(text);
        (state.text > TEXT_LIMIT).then(|| format!("the values have more than {TEXT_LIMIT} bytes"))
    }

    /// Parses text that looks like a list, mapping or boolean. Python literals are valid Jinja; names are
    /// undefined.
    fn literal(&self, text: String) -> Value {
        let is_candidate = text.starts_with(['[', '{']) || matches!(text.as_str(), "True" | "False");
        let parse = || self.environment.compile_expression(text.trim_end()).ok()?.eval(()).ok();
        let is_literal =
            |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Bool);
        let literal = if is_candidate { parse().filter(is_literal) } else { None };
        literal.unwrap_or_else(|| Value::from(text))
    }

    /// Records the undefined value that the running evaluation accessed.
    fn missing(&self, error: EvalError) {
        if let Some(frame) = self.state().frames.last_mut() {
            frame.missing = Some(error);
        }
    }

    /// Converts a result for a template: undefined becomes `None`; any other error makes the template fail.
    fn hand_out(&self, result: Result<Value, EvalError>) -> Option<Value> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.is_undefined() => {
                self.missing(error);
                None
            }
            Err(error) => {
                self.state().failure.get_or_insert(error);
                Some(Value::from(minijinja::Error::new(ErrorKind::InvalidOperation, "a value failed")))
            }
        }
    }
}

/// An error while evaluating one value.
enum ValueError {
    /// The value itself is invalid.
    Own(Reason),
    /// A value it needs is invalid.
    Inner(EvalError),
    /// A value is undefined; with the engine's message.
    Undefined(String),
}

/// Counts the items and the bytes of text of nested lists. Returns false if they are too many or too deep.
/// Mappings are evaluated on access, and are not visited.
fn measure(value: &Value, depth: usize, items: &mut usize, text: &mut usize) -> bool {
    *items += 1;
    *text = text.saturating_add(value.as_str().map_or(0, str::len));
    if *items > ITEM_LIMIT || depth > NESTING_LIMIT {
        return false;
    }
    if value.kind() != ValueKind::Seq {
        return true;
    }
    value.try_iter().is_ok_and(|mut all| all.all(|item| measure(&item, depth + 1, items, text)))
}

fn message(error: &minijinja::Error) -> String {
    let kind = error.kind().to_string();
    error.detail().map_or_else(|| kind.clone(), |detail| format!("{kind}: {detail}"))
}

/// All variables, as the global scope of a template.
struct Scope(Weak<Evaluator>);

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("variables")
    }
}

impl Object for Scope {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let evaluator = self.0.upgrade()?;
        let name = key.as_str()?;
        // Variables shadow functions of the template language.
        if evaluator.variables.contains_key(name) || !ansible::is_global(name) {
            return evaluator.hand_out(evaluator.value(name));
        }
        None
    }
}

/// A mapping whose values are evaluated on access.
struct Mapping {
    evaluator: Weak<Evaluator>,
    path: String,
    file: Arc<Path>,
    entries: Vec<(Node, Node)>,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl Mapping {
    fn keys(&self) -> Vec<Value> {
        let key = |node: &Node| match &node.value {
            Yaml::Int(number) => Value::from(*number),
            Yaml::Float(number) => Value::from(*number),
            Yaml::Bool(value) => Value::from(*value),
            Yaml::Null => Value::from(()),
            other => Value::from(other.key().unwrap_or_default()),
        };
        self.entries.iter().map(|(node, _)| key(node)).collect()
    }
}

impl Object for Mapping {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    /// Compares keys as text: a version such as `1.17` is a number in some files and a string in others.
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let evaluator = self.evaluator.upgrade()?;
        if key.is_undefined() {
            return None; // the undefined key is already recorded
        }
        let name = key.to_string();
        let Some((_, node)) =
            self.entries.iter().find(|(node, _)| node.value.key().is_some_and(|key| key == name))
        else {
            let keys: Vec<_> = self.entries.iter().filter_map(|(node, _)| node.value.key()).collect();
            let reason = Reason::NoKey { map: self.path.clone(), key: name.clone(), keys };
            evaluator.missing(EvalError::undefined(&format!("{}.{name}", self.path), reason));
            return None;
        };
        evaluator.hand_out(evaluator.node(&format!("{}.{name}", self.path), node, &self.file))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.keys())
    }
}

/// True if Ansible treats a text as a template.
pub(crate) fn is_template(text: &str) -> bool {
    ["{{", "{%", "{#"].iter().any(|start| text.contains(start))
}

/// Returns the expression of a text that is exactly one `{{ expression }}`.
fn single_expression(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
    let (mut quote, mut depth) = (None, 0_usize);
    let mut chars = inner.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), _) if char == open => quote = None,
            (None, '\'' | '"') => quote = Some(char),
            (None, '{') => depth += 1,
            // An unmatched `}` ends the expression before the text ends.
            (None, '}') => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    // `{{-` and `-}}` strip surrounding white space; there is none.
    let inner = inner.strip_prefix('-').unwrap_or(inner);
    quote.is_none().then(|| inner.strip_suffix('-').unwrap_or(inner).trim())
}

/// Doubles backslashes in the string literals of expressions, so that `regex_replace('\.', '\1')` works: in
/// Ansible, a backslash in an expression only escapes quotes.
fn doubled_backslashes(text: &str) -> String {
    let mut doubled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        let (before, expression) = rest.split_at(start + 2);
        doubled.push_str(before);
        rest = double_in_expression(expression, &mut doubled);
    }
    doubled.push_str(rest);
    doubled
}

/// Appends the expression at the start of `text` to `doubled`. Returns the rest, which begins with `}}`.
fn double_in_expression<'a>(text: &'a str, doubled: &mut String) -> &'a str {
    let (mut quote, mut depth) = (None, 0_usize);
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match quote {
            Some(open) if char == '\\' => {
                let escaped = chars.next().map(|(_, escaped)| escaped);
                doubled.push_str(if escaped == Some(open) { "\\" } else { "\\\\" });
                match escaped {
                    Some('\\') => doubled.push_str("\\\\"),
                    Some(escaped) => doubled.push(escaped),
                    None => {}
                }
                continue;
            }
            Some(open) if char == open => quote = None,
            None if matches!(char, '\'' | '"') => quote = Some(char),
            None if char == '{' => depth += 1,
            None if char == '}' && depth > 0 => depth -= 1,
            None if text[at..].starts_with("}}") => return &text[at..],
            _ => {}
        }
        doubled.push(char);
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::lists::yaml;

    fn evaluator(text: &str) -> Arc<Evaluator> {
        let file: Arc<Path> = Path::new("vars.yml").into();
        let variables = yaml::parse(text).unwrap().variables.into_iter();
        Evaluator::new(variables.map(|(name, node)| (name, Variable { node, file: file.clone() })).collect())
    }

    /// Evaluates the variable `x`.
    fn x(text: &str) -> Result<Value, EvalError> {
        evaluator(text).value("x")
    }

    #[test]
    fn values_evaluate_as_in_ansible() {
        for (text, expected) in [
            ("x: \"{{ a }}\"\na: 1.17", Value::from(1.17)),
            ("x: \"{{ a }}-{{ b }}\"\na: 1.17\nb: yes", Value::from("1.17-True")),
            ("x: \"{{ a == 'b' }}\"\na: b", Value::from(true)),
            (
                "x: >-\n  {%- if a -%}\n  yes\n  {%- else -%}\n  no\n  {%- endif -%}\na: true",
                Value::from("yes"),
            ),
            (
                "x: >-\n  {%- if true -%}\n  {{ a + ['c'] }}\n  {%- endif -%}\na: [b]",
                Value::from(vec!["b", "c"]),
            ),
            ("x: \"{{ a is defined }}\"", Value::from(false)),
            ("x: \"{{ a | default('b') }}\"", Value::from("b")),
            // A variable that needs an undefined one is undefined, too.
            ("x: \"{{ a | d('b') }}\"\na: \"{{ nowhere }}\"", Value::from("b")),
            ("x: \"{{ a | default(None) }}\"", Value::from(())),
            ("x: \"a{{ '-b' if false }}\"", Value::from("a")),
            ("x: \"{{ a['k'].l }}\"\na: {k: {l: \"{{ b }}\"}}\nb: c", Value::from("c")),
            // Numeric keys and strings are interchangeable.
            ("x: \"{{ a['1.17'] }}{{ a[2] }}\"\na: {1.17: b, '2': c}", Value::from("bc")),
            ("x: \"{{ (a | dict2items)[0].key }}\"\na: {z: 1, y: \"{{ nowhere }}\"}", Value::from("z")),
            ("x: \"{{ (a | dict2items)[-1].value }}\"\na: {z: 1, y: 2}", Value::from(2)),
            (
                "x: \"{{ (a.keys() | select('version', '1.10', '<'))[0] }}\"\na: {1.10.2: 1, 1.9.1: 2}",
                Value::from("1.9.1"),
            ),
            ("x: \"{{ (a | split('.'))[:-1] | join('.') }}\"\na: 1.35.4", Value::from("1.35")),
            ("x: \"{{ ((a | split('.'))[1] | int) + 1 }}\"\na: 1.35.4", Value::from(36)),
            ("x: \"{{ a.split('.')[0] }}\"\na: v1.2.3", Value::from("v1")),
            (r#"x: "{{ a | regex_replace('^(v[0-9]+)\\.([0-9]+).*$', '\\1.\\2') }}""#, Value::from("v1.29")),
            ("x: \"{{ a is version('v1.29.0', '>=') }}\"\na: v1.29.5", Value::from(true)),
            ("x: \"{{ lookup('vars', 'a' + '_b') }}\"\na_b: c", Value::from("c")),
            ("x: \"{{ lookup('env', 'HOME') }}\"", Value::from("")),
            ("x: \"{{ a | bool | ternary('b', 'c') }}\"\na: 'no'", Value::from("c")),
            ("x: \"{{ a in ['b'] and 'c' not in d }}\"\na: b\nd: {e: 1}", Value::from(true)),
            (
                "x: \"{{ a | combine({'c': 1}) | ansible.builtin.dict2items | length }}\"\na: {b: 1}",
                Value::from(2),
            ),
            ("x: \"{{ '{{' }} a }}\"", Value::from("{{ a }}")),
            ("x: \"{{ {'a': {'b': 'c'}}['a']['b'] }}\"", Value::from("c")),
            ("x: \"{{ -1 }}\"", Value::from(-1)),
            ("x: \"{{ a }}{{ a }}\"\na: 1", Value::from("11")),
            (
                "x: \"{{ {'a': {'b': 'c'}} | length }}{{ 'x.' | regex_replace('\\\\.', '') }}\"",
                Value::from("1x"),
            ),
            ("x: !unsafe \"{{ a }}\"", Value::from("{{ a }}")),
        ] {
            let text =
                if text.contains("regex_replace") { format!("{text}\na: v1.29.5") } else { text.to_owned() };
            assert_eq!(x(&text).as_ref(), Ok(&expected), "{text}");
        }
    }

    #[test]
    fn errors_name_the_position_and_the_cause() {
        for (text, expected) in [
            ("x: \"{{ a }}\"", "vars.yml:1: `x`: `a` is undefined"),
            ("x: \"{{ a }}\"\na: \"{{ b }}\"", "vars.yml:2: `a`: `b` is undefined (needed by `x`)"),
            ("x: \"{{ a[b] }}\"\na: {c: 1}\nb: d", "vars.yml:1: `x`: `a` has no `d`; it has `c`"),
            ("x: \"{{ a[b] }}\"\na: {c: 1}", "vars.yml:1: `x`: `b` is undefined"),
            ("x: \"{{ x }}\"", "vars.yml:1: `x`: it depends on itself: `x` (needed by `x`)"),
            (
                "x: \"{{ a.b }}\"\na: {b: \"{{ x }}\"}",
                "vars.yml:1: `x`: it depends on itself: `x` → `a.b` (needed by `a.b`, `x`)",
            ),
            (
                "x: \"{{ a | default('b') }}\"\na: \"{{ a }}\"",
                "vars.yml:2: `a`: it depends on itself: `a` (needed by `a`, `x`)",
            ),
            ("x: \"{{ a | ipaddr }}\"\na: b", "vars.yml:1: `x`: unknown filter: filter ipaddr is unknown"),
            (
                "x: \"{{ a is version('v1', '<') }}\"\na: '1'",
                "vars.yml:1: `x`: invalid operation: cannot compare the versions `1` and `v1`",
            ),
        ] {
            assert_eq!(x(text).unwrap_err().to_string(), expected, "{text}");
        }
        let deep = (1..100).fold("x: \"{{ a1 }}\"\n".to_owned(), |text, n| {
            text + &format!("a{n}: \"{{{{ a{} }}}}\"\n", n + 1)
        });
        assert!(x(&deep).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn a_template_that_needs_too_much_time_or_memory_is_an_error() {
        let chain = |length: usize, value: &dyn Fn(usize) -> String| {
            (1..length).fold(String::new(), |text, n| text + &format!("a{n}: \"{}\"\n", value(n - 1)))
        };
        let doubled = chain(40, &|n| format!("{{{{ a{n} }}}}{{{{ a{n} }}}}"));
        let nested = chain(40, &|n| format!("{{{{ [a{n}, a{n}] }}}}"));
        let deep = chain(90, &|n| format!("{{{{ [a{n}] }}}}"));
        for (text, last) in [
            ("x: \"{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}\"".to_owned(), "x"),
            ("x: \"{{ ('a' * 4000000000) | length }}\"".to_owned(), "x"),
            (
                "x: \"{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | flatten }}\""
                    .to_owned(),
                "x",
            ),
            (format!("a0: aaaaaaaa\n{doubled}"), "a39"),
            (format!("a0: b\n{nested}"), "a39"),
            (format!("a0: b\n{deep}"), "a89"),
        ] {
            let variables = crate::commands::lists::yaml::parse(&text).unwrap().variables;
            let file: Arc<Path> = Path::new("x.yml").into();
            let names: Vec<String> = variables.iter().map(|(name, _)| name.clone()).collect();
            let variable = |(name, node)| (name, Variable { node, file: file.clone() });
            let evaluator = Evaluator::new(variables.into_iter().map(variable).collect());
            // In order: each value is known before the next one needs it.
            let results: Vec<_> = names.iter().map(|name| evaluator.value(name).is_ok()).collect();
            assert_eq!(names.last().map(String::as_str), Some(last));
            assert_eq!(results.last(), Some(&false), "{}", &text[..60]);
        }
    }
}
