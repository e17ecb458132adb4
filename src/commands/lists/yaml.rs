//! YAML 1.1 as Ansible reads it, with line numbers.
//!
//! `yes` is a boolean and `0755` an octal number; `!vault` and `!unsafe` are supported; the last of equal
//! keys wins.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

/// Maximum number of nodes of a file, with aliases expanded. Kubespray's largest has 5,000.
const NODE_LIMIT: usize = 1 << 20;
/// Maximum nesting depth.
const DEPTH_LIMIT: usize = 64;

/// A value and its line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// From 1.
    pub(crate) line: usize,
    pub(crate) value: Yaml,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Yaml {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A string, possibly a template.
    Text(String),
    /// `!unsafe`: a string that is never a template.
    Raw(String),
    /// `!vault`: encrypted.
    Vault,
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// A parsed variable file.
#[derive(Debug, Default)]
pub(crate) struct YamlDocument {
    /// In file order.
    pub(crate) variables: Vec<(String, Node)>,
    /// Duplicate keys, with the line of the last occurrence, whose value is used.
    pub(crate) repeated: Vec<(String, usize)>,
}

/// A syntax error or an unsupported construct.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct YamlError {
    /// From 1.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl YamlError {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// Parses a variable file: one document with a mapping. An empty file has no variables.
pub(crate) fn parse(text: &str) -> Result<YamlDocument, YamlError> {
    let builder = build(text)?;
    let Some(root) = builder.root else { return Ok(YamlDocument::default()) };
    let entries = match root.value {
        Yaml::Map(entries) => entries,
        Yaml::Null => Vec::new(),
        _ => return Err(YamlError::new(root.line, "expected variables, `name: value`")),
    };
    let mut variables = Vec::new();
    for (key, node) in entries {
        match key.value {
            Yaml::Text(name) | Yaml::Raw(name) => variables.push((name, node)),
            _ => return Err(YamlError::new(key.line, "expected a string as name of a variable")),
        }
    }
    Ok(YamlDocument { variables, repeated: builder.repeated })
}

/// Parses a file of tasks: one document with a list. Returns an empty list for any other value.
pub(crate) fn parse_tasks(text: &str) -> Result<Vec<Node>, YamlError> {
    match build(text)?.root {
        Some(Node { value: Yaml::List(nodes), .. }) => Ok(nodes),
        _ => Ok(Vec::new()),
    }
}

fn build(text: &str) -> Result<Builder, YamlError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        let (event, span) =
            event.map_err(|error| YamlError::new(error.marker().line(), error.info().to_owned()))?;
        builder.event(event, span.start.line())?;
    }
    Ok(builder)
}

/// Builds nodes from parser events.
#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    repeated: Vec<(String, usize)>,
}

/// A list or mapping that is not closed yet.
struct Open {
    line: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    /// The entries, and the key of the next value.
    Map(Vec<(Node, Node)>, Option<Node>),
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), YamlError> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(YamlError::new(line, "expected one document: a second one begins here"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref(), line)?;
                self.add(Node { line, value }, anchor)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.add(Node { line, ..node }, 0),
                None => Err(YamlError::new(line, "recursive alias")),
            },
            Event::SequenceStart(anchor, _) => self.open(line, anchor, Content::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.open(line, anchor, Content::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.open.pop().expect("the parser closes what it has opened; please report");
                let value = match open.content {
                    Content::List(nodes) => Yaml::List(nodes),
                    Content::Map(entries, _) => Yaml::Map(self.unique_entries(entries)?),
                };
                self.add(Node { line: open.line, value }, open.anchor)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, line: usize, anchor: usize, content: Content) -> Result<(), YamlError> {
        if self.open.len() >= DEPTH_LIMIT {
            return Err(YamlError::new(line, format!("nested more than {DEPTH_LIMIT} levels deep")));
        }
        self.open.push(Open { line, anchor, content });
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        self.nodes += weight(&node);
        if self.nodes > NODE_LIMIT {
            return Err(YamlError::new(node.line, format!("more than {NODE_LIMIT} nodes")));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(nodes)) => nodes.push(node),
            Some(Content::Map(entries, key)) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push((key, node)),
            },
        }
        Ok(())
    }

    /// Returns the entries with unique keys, each at its first position with its last value; `<<` adds
    /// missing keys.
    fn unique_entries(&mut self, entries: Vec<(Node, Node)>) -> Result<Vec<(Node, Node)>, YamlError> {
        let mut unique: Vec<(Node, Node)> = Vec::with_capacity(entries.len());
        let mut indexes: HashMap<String, usize> = HashMap::with_capacity(entries.len());
        let mut merged = Vec::new();
        for (key, node) in entries {
            let Some(name) = key.value.key() else {
                return Err(YamlError::new(key.line, "a key must be a string, a number or a boolean"));
            };
            if name == "<<" {
                merged.push(node);
            } else if let Some(&index) = indexes.get(&name) {
                self.repeated.push((name, key.line));
                unique[index].1 = node;
            } else {
                indexes.insert(name, unique.len());
                unique.push((key, node));
            }
        }
        for node in merged {
            let maps = match node.value {
                Yaml::Map(entries) => vec![entries],
                Yaml::List(nodes) => nodes.into_iter().filter_map(|node| node.value.into_map()).collect(),
                _ => return Err(YamlError::new(node.line, "`<<` must be a mapping")),
            };
            for (key, node) in maps.into_iter().flatten() {
                let name = key.value.key().expect("a mapping has only scalar keys; please report");
                if let std::collections::hash_map::Entry::Vacant(entry) = indexes.entry(name) {
                    entry.insert(unique.len());
                    unique.push((key, node));
                }
            }
        }
        Ok(unique)
    }
}

impl Yaml {
    /// Returns the text of a scalar, which identifies a key.
    pub(crate) fn key(&self) -> Option<String> {
        match self {
            Self::Text(text) | Self::Raw(text) => Some(text.clone()),
            Self::Int(number) => Some(number.to_string()),
            Self::Float(number) => Some(format!("{number:?}")),
            Self::Bool(value) => Some(if *value { "True" } else { "False" }.to_owned()),
            Self::Null => Some("None".to_owned()),
            Self::Vault | Self::List(_) | Self::Map(_) => None,
        }
    }

    fn into_map(self) -> Option<Vec<(Node, Node)>> {
        if let Self::Map(entries) = self { Some(entries) } else { None }
    }
}

/// Returns the number of nodes, and one more for each 32 bytes of text. The content of a list or mapping is already counted when it is added,
/// except if it is an alias: then it counts again.
fn weight(node: &Node) -> usize {
    match &node.value {
        Yaml::List(nodes) => 1 + nodes.iter().map(weight).sum::<usize>(),
        Yaml::Map(entries) => 1 + entries.iter().map(|(_, node)| 1 + weight(node)).sum::<usize>(),
        Yaml::Text(text) | Yaml::Raw(text) => 1 + text.len() / 32,
        _ => 1,
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, line: usize) -> Result<Yaml, YamlError> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain { plain(text) } else { Yaml::Text(text.to_owned()) });
    };
    match (tag.handle.as_str(), tag.suffix.as_str()) {
        ("!", "vault" | "vault-encrypted") => Ok(Yaml::Vault),
        ("!", "unsafe") => Ok(Yaml::Raw(text.to_owned())),
        // A bare `!` is the tag of a string.
        ("!", "") | ("", "!") => Ok(Yaml::Text(text.to_owned())),
        _ if tag.is_yaml_core_schema() => Ok(match tag.suffix.as_str() {
            "str" => Yaml::Text(text.to_owned()),
            _ => plain(text),
        }),
        _ => Err(YamlError::new(line, format!("unknown tag `{tag}`"))),
    }
}

/// Resolves a plain (unquoted) scalar.
fn plain(text: &str) -> Yaml {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Yaml::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Yaml::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Yaml::Bool(false);
        }
        _ => {}
    }
    if let Some(number) = int(text) {
        return Yaml::Int(number);
    }
    float(text).map_or_else(|| Yaml::Text(text.to_owned()), Yaml::Float)
}

fn int(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let parse = |digits: &str, radix| i64::from_str_radix(&digits.replace('_', ""), radix).ok();
    // `_` and a second sign would parse otherwise.
    if !digits.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    let number = if let Some(digits) = digits.strip_prefix("0x") {
        parse(digits, 16)
    } else if let Some(digits) = digits.strip_prefix("0b") {
        parse(digits, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        parse(&digits[1..], 8)
    } else if digits.contains(':') {
        // Base 60: `1:30` is 90.
        let mut parts = digits.split(':');
        let first = parse(parts.next()?, 10)?;
        parts.try_fold(first, |sum, part| {
            let part = parse(part, 10).filter(|part| (0..60).contains(part))?;
            sum.checked_mul(60)?.checked_add(part)
        })
    } else {
        parse(digits, 10)
    }?;
    Some(sign * number)
}

fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    match unsigned {
        ".inf" | ".Inf" | ".INF" => {
            return Some(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
        }
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "+0"));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let (integer, fraction) = mantissa.split_once('.')?;
    let is_float = digits(integer)
        && digits(fraction)
        && !(integer.is_empty() && fraction.is_empty())
        && integer.as_bytes().first().is_none_or(u8::is_ascii_digit)
        && exponent.strip_prefix(['-', '+']).is_some_and(|rest| !rest.is_empty() && digits(rest));
    if is_float { text.replace('_', "").parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Yaml {
        parse(&format!("x: {text}")).unwrap().variables.remove(0).1.value
    }

    #[test]
    fn plain_scalars_resolve_as_in_yaml_1_1() {
        let text = |text: &str| Yaml::Text(text.to_owned());
        for (source, expected) in [
            ("yes", Yaml::Bool(true)),
            ("Off", Yaml::Bool(false)),
            ("'yes'", text("yes")),
            ("~", Yaml::Null),
            ("", Yaml::Null),
            ("20240305", Yaml::Int(20_240_305)),
            ("0755", Yaml::Int(0o755)),
            ("\"0755\"", text("0755")),
            ("0x1f", Yaml::Int(31)),
            ("1_000", Yaml::Int(1000)),
            ("-7", Yaml::Int(-7)),
            ("1:30", Yaml::Int(90)),
            ("1.17", Yaml::Float(1.17)),
            ("1.20", Yaml::Float(1.2)),
            ("1e3", text("1e3")),
            ("1.5e+3", Yaml::Float(1500.0)),
            (".5", Yaml::Float(0.5)),
            (".", text(".")),
            ("1.6.32", text("1.6.32")),
            ("v1.29.5", text("v1.29.5")),
            ("0.8", Yaml::Float(0.8)),
            ("089", text("089")),
            ("2024-03-05", text("2024-03-05")),
            ("sha256:0123", text("sha256:0123")),
            ("99999999999999999999", text("99999999999999999999")),
            ("!!str 17", text("17")),
            ("!unsafe '{{ x }}'", Yaml::Raw("{{ x }}".into())),
            ("!vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  61", Yaml::Vault),
        ] {
            assert_eq!(value(source), expected, "{source}");
        }
    }

    #[test]
    fn nodes_know_their_lines() {
        let document = parse("---\n# a comment\na: 1\nb:\n  c: 2\n  d:\n    - 3\n").unwrap();
        let [(a, first), (b, second)] = &document.variables[..] else { panic!("{document:?}") };
        assert_eq!((a.as_str(), first.line, b.as_str()), ("a", 3, "b"));
        let Yaml::Map(entries) = &second.value else { panic!("{second:?}") };
        assert_eq!(entries.iter().map(|(key, _)| key.line).collect::<Vec<_>>(), [5, 6]);
    }

    #[test]
    fn the_last_of_equal_keys_wins_and_is_reported() {
        let document = parse("a: 1\nb: 2\na: 3\n").unwrap();
        let values: Vec<_> = document.variables.iter().map(|(name, node)| (&name[..], &node.value)).collect();
        assert_eq!(values, [("a", &Yaml::Int(3)), ("b", &Yaml::Int(2))]);
        assert_eq!(document.repeated, [("a".to_owned(), 3)]);
    }

    #[test]
    fn aliases_and_merges_are_expanded() {
        let document = parse("base: &base\n  a: 1\n  b: 2\nmore:\n  <<: *base\n  b: 3\n").unwrap();
        let Yaml::Map(more) = &document.variables[1].1.value else { panic!("{document:?}") };
        let more: Vec<_> = more.iter().map(|(key, node)| (key.value.key().unwrap(), &node.value)).collect();
        assert_eq!(more, [("b".to_owned(), &Yaml::Int(3)), ("a".to_owned(), &Yaml::Int(1))]);
    }

    #[test]
    fn invalid_variable_files_are_refused_with_the_line() {
        let bomb = (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
            text + &format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1)
        });
        let text_bomb = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a, ".repeat(1000));
        let nested = format!("a: {}{}", "[".repeat(70), "]".repeat(70));
        let deep = format!("a: {}", "[".repeat(10_000));
        for (text, line, message) in [
            ("a: 1\nb: [", 2, ""),
            ("a: 1\n---\nb: 2\n", 2, "one document"),
            ("- a\n", 1, "expected variables"),
            ("1: a\n", 1, "name of a variable"),
            ("a: !shell rm\n", 1, "!shell"),
            ("a: &x [*x]\n", 1, ""),
            (&nested, 1, "levels deep"),
            (&bomb, 0, "more than"),
            (&text_bomb, 0, "more than"),
            (&deep, 1, ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.contains(message), "{error:?}");
            assert!(line == 0 || error.line >= line, "{error:?}");
        }
        assert!(parse("").unwrap().variables.is_empty());
        assert!(parse("---\n").unwrap().variables.is_empty());
    }
}
