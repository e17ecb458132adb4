//! Ansible's and Python's filters, tests, functions and methods, as far as Kubespray uses them.
//!
//! Unknown ones are an error that names them, if a value needs them.

#![expect(clippy::needless_pass_by_value, reason = "the template engine hands arguments over by value")]

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use regex::{Regex, RegexBuilder};

use crate::commands::lists::version;

/// Functions available to templates.
const GLOBALS: [&str; 8] = ["lookup", "query", "q", "undef", "range", "dict", "namespace", "omit"];

/// Maximum depth of nested lists for `flatten`.
const FLATTEN_LIMIT: usize = 64;

/// True if `name` is a function of the template language.
pub(crate) fn is_global(name: &str) -> bool {
    GLOBALS.contains(&name)
}

/// True if Ansible treats `value` as true: strings such as `yes`, `on` and `1` included.
pub(crate) fn is_truthy(value: &Value) -> bool {
    match value.as_str() {
        Some(text) => {
            matches!(text.trim().to_ascii_lowercase().as_str(), "yes" | "on" | "1" | "true" | "y" | "t")
        }
        None => value.is_true(),
    }
}

/// Adds filters, tests, functions and methods, also under their long names `ansible.builtin.…`.
pub(crate) fn add_to(environment: &mut Environment<'static>) {
    add_filters(environment);
    add_tests(environment);
    environment.add_function("lookup", lookup);
    environment.add_function("query", query);
    environment.add_function("q", query);
    environment.add_function("undef", |_: Rest<Value>| Value::UNDEFINED);
    environment.set_unknown_method_callback(method);
}

macro_rules! add {
    ($environment:ident.$add:ident: $($name:literal => $function:expr),* $(,)?) => {
        $(
            $environment.$add($name, $function);
            $environment.$add(concat!("ansible.builtin.", $name), $function);
        )*
    };
}

fn add_filters(environment: &mut Environment<'static>) {
    add!(environment.add_filter:
        "basename" => |path: String| path.rsplit('/').next().unwrap_or_default().to_owned(),
        "bool" => |value: &Value| is_truthy(value),
        "combine" => combine,
        "dict2items" => dict2items,
        "difference" => |first: Value, second: Value| sets(&first, &second, |in_first, in_second| in_first && !in_second),
        "dirname" => |path: String| path.rsplit_once('/').map_or_else(String::new, |(directory, _)| directory.to_owned()),
        "flatten" => |value: Value| flatten(&value, 0),
        "intersect" => |first: Value, second: Value| sets(&first, &second, |in_first, in_second| in_first && in_second),
        "items2dict" => items2dict,
        "mandatory" => mandatory,
        "quote" => |text: String| format!("'{}'", text.replace('\'', "'\"'\"'")),
        "regex_escape" => |text: String| regex::escape(&text),
        "regex_findall" => regex_findall,
        "regex_replace" => regex_replace,
        "regex_search" => regex_search,
        "replace" => |text: Value, from: String, to: String| text.to_string().replace(&from, &to),
        "split" => split,
        "splitext" => |path: String| match path.rfind('.').filter(|dot| *dot > path.rfind('/').map_or(0, |at| at + 1)) {
            Some(dot) => vec![path[..dot].to_owned(), path[dot..].to_owned()],
            None => vec![path, String::new()],
        },
        "string" => |value: &Value| value.to_string(),
        "ternary" => ternary,
        "union" => |first: Value, second: Value| sets(&first, &second, |in_first, in_second| in_first || in_second),
        "version" => is_version,
        "version_compare" => is_version,
    );
}

fn add_tests(environment: &mut Environment<'static>) {
    add!(environment.add_test:
        "all" => |value: Value| Ok::<_, Error>(value.try_iter()?.all(|item| is_truthy(&item))),
        "any" => |value: Value| Ok::<_, Error>(value.try_iter()?.any(|item| is_truthy(&item))),
        "contains" => |value: Value, item: Value| Ok::<_, Error>(value.try_iter()?.any(|other| other == item)),
        "falsy" => |value: &Value| !value.is_true(),
        "match" => |text: String, pattern: String, kwargs: Kwargs| is_match(&text, &format!("^(?:{pattern})"), &kwargs),
        "regex" => |text: String, pattern: String, kwargs: Kwargs| is_match(&text, &pattern, &kwargs),
        "search" => |text: String, pattern: String, kwargs: Kwargs| is_match(&text, &pattern, &kwargs),
        "subset" => |value: Value, of: Value| is_subset(&value, &of),
        "superset" => |value: Value, of: Value| is_subset(&of, &value),
        "truthy" => |value: &Value| value.is_true(),
        "version" => is_version,
        "version_compare" => is_version,
    );
}

fn fault(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `lookup('vars', NAME)` and `lookup('env', NAME)`. Other lookups read outside the variables and are
/// refused.
fn lookup(state: &mut State, kind: String, names: Rest<String>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut values = Vec::new();
    for name in names.iter() {
        values.push(match kind.trim_start_matches("ansible.builtin.") {
            "vars" => match state.lookup(name) {
                Some(value) => value,
                None => kwargs.get::<Option<Value>>("default")?.ok_or_else(|| {
                    Error::new(ErrorKind::UndefinedError, format!("lookup: `{name}` is undefined"))
                })?,
            },
            // Lists must not depend on the local environment.
            "env" => Value::from(""),
            _ => return Err(fault(format!("unknown lookup `{kind}`"))),
        });
    }
    Ok(if values.len() == 1 { values.remove(0) } else { Value::from(values) })
}

/// [`lookup`] that always returns a list.
fn query(state: &mut State, kind: String, names: Rest<String>, kwargs: Kwargs) -> Result<Value, Error> {
    let one = names.len() == 1;
    let value = lookup(state, kind, names, kwargs)?;
    Ok(if one { Value::from(vec![value]) } else { value })
}

/// Methods of Python's `str`, `dict` and `list`.
fn method(_: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let result = match value.as_str() {
        Some(text) => text_method(text, method, args)?,
        None if value.kind() == ValueKind::Map => map_method(value, method, args)?,
        None => None,
    };
    result.ok_or_else(|| Error::from(ErrorKind::UnknownMethod))
}

/// `None`: unknown method.
fn text_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let arg = |index: usize| args.get(index).map(Value::to_string);
    let is_stripped = |char: char| arg(0).map_or(char.is_whitespace(), |chars| chars.contains(char));
    Ok(Some(match method {
        "split" => Value::from(split(Value::from(text), arg(0))?),
        "startswith" => Value::from(arg(0).is_some_and(|start| text.starts_with(&start))),
        "endswith" => Value::from(arg(0).is_some_and(|end| text.ends_with(&end))),
        "find" => {
            let at = arg(0).and_then(|part| text.find(&part));
            at.map_or_else(|| Value::from(-1), |at| Value::from(text[..at].chars().count()))
        }
        "lower" => Value::from(text.to_lowercase()),
        "upper" => Value::from(text.to_uppercase()),
        "strip" => Value::from(text.trim_matches(is_stripped)),
        "lstrip" => Value::from(text.trim_start_matches(is_stripped)),
        "rstrip" => Value::from(text.trim_end_matches(is_stripped)),
        "removeprefix" => Value::from(arg(0).and_then(|start| text.strip_prefix(&start)).unwrap_or(text)),
        "removesuffix" => Value::from(arg(0).and_then(|end| text.strip_suffix(&end)).unwrap_or(text)),
        "replace" => Value::from(text.replace(&arg(0).unwrap_or_default(), &arg(1).unwrap_or_default())),
        "join" => {
            let parts = args.first().cloned().unwrap_or_default().try_iter()?;
            Value::from(parts.map(|part| part.to_string()).collect::<Vec<_>>().join(text))
        }
        _ => return Ok(None),
    }))
}

/// `None`: unknown method.
fn map_method(map: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let keys: Vec<Value> = map.try_iter()?.collect();
    Ok(Some(match method {
        "keys" => Value::from(keys),
        "values" => Value::from(keys.iter().map(|key| map.get_item(key)).collect::<Result<Vec<_>, _>>()?),
        "items" => {
            let pair = |key: &Value| Ok(Value::from(vec![key.clone(), map.get_item(key)?]));
            Value::from(keys.iter().map(pair).collect::<Result<Vec<_>, Error>>()?)
        }
        "get" => {
            let value = map.get_item(args.first().unwrap_or(&Value::UNDEFINED))?;
            let default = || args.get(1).cloned().unwrap_or_else(|| Value::from(()));
            if value.is_undefined() { default() } else { value }
        }
        _ => return Ok(None),
    }))
}

/// Splits at `separator`; without one at white space, as Python does.
fn split(value: Value, separator: Option<String>) -> Result<Vec<String>, Error> {
    let text = value.to_string();
    match separator.as_deref() {
        None => Ok(text.split_whitespace().map(str::to_owned).collect()),
        Some("") => Err(fault("split: the separator is empty")),
        Some(separator) => Ok(text.split(separator).map(str::to_owned).collect()),
    }
}

fn is_version(
    value: Value,
    other: Value,
    operator: Option<String>,
    _: Rest<Value>,
    kwargs: Kwargs,
) -> Result<bool, Error> {
    // The schemes differ only for versions that are not numbers and dots.
    kwargs.get::<Option<Value>>("version_type")?;
    kwargs.get::<Option<Value>>("strict")?;
    let operator = match operator {
        None => kwargs.get::<Option<String>>("operator")?.unwrap_or_else(|| "==".to_owned()),
        Some(operator) => operator,
    };
    let (value, other) = (value.to_string(), other.to_string());
    let order = version::compare(&value, &other)
        .ok_or_else(|| fault(format!("cannot compare the versions `{value}` and `{other}`")))?;
    Ok(match operator.as_str() {
        "==" | "=" | "eq" => order.is_eq(),
        "!=" | "<>" | "ne" => order.is_ne(),
        "<" | "lt" => order == Ordering::Less,
        "<=" | "le" => order.is_le(),
        ">" | "gt" => order == Ordering::Greater,
        ">=" | "ge" => order.is_ge(),
        _ => return Err(fault(format!("version: unknown operator `{operator}`"))),
    })
}

fn pattern(pattern: &str, kwargs: &Kwargs) -> Result<Regex, Error> {
    let ignore_case = kwargs.get::<Option<bool>>("ignorecase")?.unwrap_or(false);
    let multi_line = kwargs.get::<Option<bool>>("multiline")?.unwrap_or(false);
    RegexBuilder::new(pattern)
        .case_insensitive(ignore_case)
        .multi_line(multi_line)
        .build()
        .map_err(|_| fault(format!("invalid regular expression `{pattern}`")))
}

fn is_match(text: &str, regex: &str, kwargs: &Kwargs) -> Result<bool, Error> {
    Ok(pattern(regex, kwargs)?.is_match(text))
}

fn regex_replace(value: Value, regex: String, by: Option<String>, kwargs: Kwargs) -> Result<String, Error> {
    let count = kwargs.get::<Option<usize>>("count")?.unwrap_or(0);
    let by = by.unwrap_or_default();
    let regex = pattern(&regex, &kwargs)?;
    Ok(regex
        .replacen(&value.to_string(), count, |captures: &regex::Captures<'_>| expand(&by, captures))
        .into_owned())
}

/// Expands a replacement in Python's syntax: `\1` and `\g<name>` are groups.
fn expand(by: &str, captures: &regex::Captures<'_>) -> String {
    let mut text = String::new();
    let mut rest = by;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        let named = behind.strip_prefix("g<").and_then(|name| name.split_once('>'));
        let digits = behind.bytes().take_while(u8::is_ascii_digit).take(2).count();
        let group = |name: &str| match name.parse::<usize>() {
            Ok(number) => captures.get(number),
            Err(_) => captures.name(name),
        };
        if let Some((name, behind)) = named {
            text.push_str(group(name).map_or("", |group| group.as_str()));
            rest = behind;
        } else if digits > 0 {
            text.push_str(group(&behind[..digits]).map_or("", |group| group.as_str()));
            rest = &behind[digits..];
        } else if let Some(behind) = behind.strip_prefix('\\') {
            text.push('\\');
            rest = behind;
        } else {
            text.push('\\');
            rest = behind;
        }
    }
    text.push_str(rest);
    text
}

/// Returns the match, or the groups named after the expression. None if there is no match.
fn regex_search(value: Value, regex: String, groups: Rest<String>, kwargs: Kwargs) -> Result<Value, Error> {
    let text = value.to_string();
    let regex = pattern(&regex, &kwargs)?;
    let Some(captures) = regex.captures(&text) else { return Ok(Value::from(())) };
    if groups.is_empty() {
        return Ok(Value::from(&captures[0]));
    }
    Ok(Value::from(groups.iter().map(|group| expand(group, &captures)).collect::<Vec<_>>()))
}

fn regex_findall(value: Value, regex: String, kwargs: Kwargs) -> Result<Value, Error> {
    let text = value.to_string();
    let regex = pattern(&regex, &kwargs)?;
    let group = |captures: &regex::Captures<'_>, index| {
        captures.get(index).map_or("", |group| group.as_str()).to_owned()
    };
    let matches = regex.captures_iter(&text).map(|captures| match captures.len() {
        1 => Value::from(group(&captures, 0)),
        2 => Value::from(group(&captures, 1)),
        more => Value::from((1..more).map(|index| group(&captures, index)).collect::<Vec<_>>()),
    });
    Ok(Value::from(matches.collect::<Vec<_>>()))
}

fn ternary(value: &Value, yes: Value, no: Value, none: Option<Value>) -> Value {
    match none {
        Some(none) if value.is_none() => none,
        _ if value.is_true() => yes,
        _ => no,
    }
}

fn mandatory(value: Value, message: Option<String>) -> Result<Value, Error> {
    if value.is_undefined() {
        let message = message.unwrap_or_else(|| "a mandatory variable is undefined".to_owned());
        return Err(Error::new(ErrorKind::UndefinedError, message));
    }
    Ok(value)
}

/// Returns the entries of a mapping. Values are evaluated lazily.
fn dict2items(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    if value.kind() != ValueKind::Map {
        return Err(fault(format!("dict2items: expected a mapping, got a {}", value.kind())));
    }
    let key_name: Arc<str> = kwargs.get::<Option<String>>("key_name")?.unwrap_or_else(|| "key".into()).into();
    let value_name: Arc<str> =
        kwargs.get::<Option<String>>("value_name")?.unwrap_or_else(|| "value".into()).into();
    let item = |key| {
        let (key_name, value_name) = (key_name.clone(), value_name.clone());
        Value::from_object(Item { map: value.clone(), key, key_name, value_name })
    };
    Ok(Value::from(value.try_iter()?.map(item).collect::<Vec<_>>()))
}

/// An entry of a mapping, with configurable names of its two fields.
struct Item {
    map: Value,
    key: Value,
    key_name: Arc<str>,
    value_name: Arc<str>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the entry `{}`", self.key)
    }
}

impl Object for Item {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            name if name == &*self.key_name => Some(self.key.clone()),
            name if name == &*self.value_name => {
                self.map.get_item(&self.key).ok().filter(|value| !value.is_undefined())
            }
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> minijinja::value::Enumerator {
        let names = [&self.key_name, &self.value_name].map(|name| Value::from(name.to_string()));
        minijinja::value::Enumerator::Values(names.into())
    }
}

fn items2dict(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let key_name = kwargs.get::<Option<String>>("key_name")?.unwrap_or_else(|| "key".into());
    let value_name = kwargs.get::<Option<String>>("value_name")?.unwrap_or_else(|| "value".into());
    let pairs = value.try_iter()?.map(|item| Ok((item.get_attr(&key_name)?, item.get_attr(&value_name)?)));
    Ok(Value::from_pairs(pairs.collect::<Result<Vec<_>, Error>>()?))
}

/// Merges mappings; the last of equal keys wins.
fn combine(first: Value, others: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let recursive = kwargs.get::<Option<bool>>("recursive")?.unwrap_or(false);
    let mut all = vec![first];
    for other in others.iter() {
        match other.kind() {
            ValueKind::Map => all.push(other.clone()),
            ValueKind::Seq => all.extend(other.try_iter()?),
            kind => return Err(fault(format!("combine: expected a mapping, got a {kind}"))),
        }
    }
    let mut combined: Vec<(Value, Value)> = Vec::new();
    for map in all {
        for key in map.try_iter()? {
            let value = map.get_item(&key)?;
            match combined.iter_mut().find(|(other, _)| *other == key) {
                Some((_, old))
                    if recursive && old.kind() == ValueKind::Map && value.kind() == ValueKind::Map =>
                {
                    let kwargs = Kwargs::from_iter([("recursive", Value::from(true))]);
                    *old = combine(old.clone(), Rest(vec![value]), kwargs)?;
                }
                Some((_, old)) => *old = value,
                None => combined.push((key, value)),
            }
        }
    }
    Ok(Value::from_pairs(combined))
}

/// Returns the distinct items of both lists for which `is_kept(in_first, in_second)` is true.
fn sets(first: &Value, second: &Value, is_kept: fn(bool, bool) -> bool) -> Result<Value, Error> {
    let (first, second): (Vec<_>, Vec<_>) = (first.try_iter()?.collect(), second.try_iter()?.collect());
    let mut items = Vec::new();
    for item in first.iter().chain(&second) {
        if is_kept(first.contains(item), second.contains(item)) && !items.contains(item) {
            items.push(item.clone());
        }
    }
    Ok(Value::from(items))
}

fn is_subset(value: &Value, of: &Value) -> Result<bool, Error> {
    let all: Vec<_> = of.try_iter()?.collect();
    Ok(value.try_iter()?.all(|item| all.contains(&item)))
}

fn flatten(value: &Value, depth: usize) -> Result<Vec<Value>, Error> {
    if depth > FLATTEN_LIMIT {
        return Err(fault(format!("flatten: nested more than {FLATTEN_LIMIT} levels deep")));
    }
    let mut flat = Vec::new();
    for item in value.try_iter()? {
        if item.kind() == ValueKind::Seq { flat.extend(flatten(&item, depth + 1)?) } else { flat.push(item) }
    }
    Ok(flat)
}
