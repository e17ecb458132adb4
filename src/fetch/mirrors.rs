//! [`Mirrors`]: mirror rules from the command line and from a containers-registries.conf(5).
//!
//! The file is version 2 of the format that podman, skopeo and CRI-O read. It covers all hosts in one file,
//! keeps the order of mirrors, and its prefixes also match file URLs. (containerd's hosts.toml is a directory
//! per host and has no prefixes.)

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::net::endpoint::Endpoint;
use crate::net::error::NoEndpoint;
use crate::oci::reference::canonical_host;

/// Mirror rules. The one with the longest matching prefix applies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mirrors {
    rules: Vec<Rule>,
    /// True if only mirrors are used, never the host itself.
    pub only: bool,
}

/// The mirrors of all names that begin with `prefix`.
#[derive(Debug, Clone)]
struct Rule {
    /// `host`, `host:port`, either with a path, or `*.` and one of these.
    prefix: String,
    mirrors: Vec<Mirror>,
    /// The endpoint after all mirrors. `None`: the name itself.
    origin: Option<Location>,
    /// True if the name itself, as an endpoint, is insecure.
    insecure: bool,
    blocked: bool,
    /// True if the rule is from the command line, where an unused rule is probably a typo.
    is_argument: bool,
}

#[derive(Debug, Clone)]
struct Mirror {
    location: Location,
    serves: Serves,
}

/// The replacement of a prefix.
#[derive(Debug, Clone)]
struct Location {
    /// `https` or `http`. `None`: detected.
    scheme: Option<&'static str>,
    /// `host/path`, without a trailing slash.
    text: String,
    insecure: bool,
}

/// The requests that a mirror is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Serves {
    #[default]
    All,
    /// Requests by digest, which cannot return another version.
    DigestOnly,
    TagOnly,
}

/// Why a mirrors file is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MirrorsError {
    /// Not TOML, or not the expected format.
    #[error("not a valid containers-registries.conf (version 2): {0}")]
    Syntax(String),
    /// An invalid value.
    #[error("`[[registry]]` number {0}: {1}")]
    Value(usize, String),
}

impl Mirrors {
    /// Adds a mirror of `prefix` after the existing ones. `location` is `host/path`.
    pub(crate) fn add(&mut self, prefix: &str, scheme: &'static str, location: &str) {
        let location = Location { scheme: Some(scheme), text: trimmed(location), insecure: false };
        let mirror = Mirror { location, serves: Serves::All };
        let prefix = canonical(prefix);
        match self.rules.iter_mut().find(|rule| rule.prefix == prefix && rule.is_argument) {
            Some(rule) => rule.mirrors.push(mirror),
            None => self.rules.push(Rule {
                prefix,
                mirrors: vec![mirror],
                origin: None,
                insecure: false,
                blocked: false,
                is_argument: true,
            }),
        }
    }

    /// Adds the rules of a file. A rule from the command line takes precedence over one for the same prefix.
    pub(crate) fn add_file(&mut self, text: &str) -> Result<(), MirrorsError> {
        let document: Document = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            MirrorsError::Syntax(format!("{line}{}", error.message()))
        })?;
        if document.registries.is_some() {
            let what = "`[registries.…]` is version 1 of the format";
            return Err(MirrorsError::Syntax(what.into()));
        }
        for (number, registry) in document.registry.into_iter().enumerate() {
            let rule = registry.rule().map_err(|what| MirrorsError::Value(number + 1, what))?;
            if self.rules.iter().any(|other| !other.is_argument && other.prefix == rule.prefix) {
                let what = format!("duplicate entry for `{}`", rule.prefix);
                return Err(MirrorsError::Value(number + 1, what));
            }
            self.rules.push(rule);
        }
        Ok(())
    }

    /// Returns the endpoints of `path` on `host`, in order: the mirrors, then the origin. `scheme` is that of
    /// a file's URL, for which a rule for a host applies to all its ports. `pinned`: the digest is known.
    pub(crate) fn endpoints(
        &self,
        scheme: Option<&'static str>,
        host: &str,
        path: &str,
        pinned: bool,
    ) -> Result<Vec<Endpoint>, NoEndpoint> {
        let name = format!("{}/{path}", canonical_host(host));
        let without_port = host.rsplit_once(':').filter(|_| scheme.is_some() && !host.ends_with(']'));
        let without_port = without_port.map(|(host, _)| format!("{}/{path}", canonical_host(host)));
        let origin = Endpoint {
            scheme,
            host: host.to_owned(),
            path: path.to_owned(),
            insecure: false,
            is_mirror: false,
        };
        let rule = self.rule(&name).or_else(|| self.rule(without_port.as_ref()?));
        let Some((rule, rest)) = rule else {
            return if self.only { Err(NoEndpoint::NoMirror) } else { Ok(vec![origin]) };
        };
        if rule.blocked {
            return Err(NoEndpoint::Blocked(rule.prefix.clone()));
        }
        let serves = |mirror: &&Mirror| match mirror.serves {
            Serves::All => true,
            Serves::DigestOnly => pinned,
            Serves::TagOnly => !pinned,
        };
        let mut endpoints: Vec<_> =
            rule.mirrors.iter().filter(serves).map(|mirror| mirror.location.endpoint(rest, true)).collect();
        if !self.only {
            endpoints.push(match &rule.origin {
                Some(location) => location.endpoint(rest, false),
                None => Endpoint { insecure: rule.insecure, ..origin },
            });
        }
        if endpoints.is_empty() { Err(NoEndpoint::NoMirror) } else { Ok(endpoints) }
    }

    /// Returns the prefixes from the command line that match none of `names` (`host/path`).
    pub(crate) fn unused<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a str> {
        let arguments = self.rules.iter().filter(|rule| rule.is_argument);
        let unused = arguments.filter(|rule| !names.iter().any(|name| rest(&rule.prefix, name).is_some()));
        unused.map(|rule| rule.prefix.as_str())
    }

    /// Returns the rule for a name, and the rest of the name after the prefix.
    fn rule<'a>(&self, name: &'a str) -> Option<(&Rule, &'a str)> {
        let rules = self.rules.iter().filter_map(|rule| Some((rule, rest(&rule.prefix, name)?)));
        rules.max_by_key(|(rule, _)| (rule.prefix.len(), rule.is_argument))
    }
}

impl Location {
    fn endpoint(&self, rest: &str, is_mirror: bool) -> Endpoint {
        let name = format!("{}{rest}", self.text);
        let (host, path) = name.split_once('/').unwrap_or((&name, ""));
        let (host, path) = (host.to_owned(), path.to_owned());
        Endpoint { scheme: self.scheme, host, path, insecure: self.insecure, is_mirror }
    }
}

/// Returns the rest of `name` after `prefix`, with its leading slash. `None`: the prefix does not match.
fn rest<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    let rest = match prefix.strip_prefix('*') {
        None => name.strip_prefix(prefix),
        Some(suffix) => {
            let at = name.find(suffix).filter(|at| *at > 0 && !name[..*at].contains('/'))?;
            Some(&name[at + suffix.len()..])
        }
    }?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn trimmed(text: &str) -> String {
    text.trim_end_matches('/').to_owned()
}

fn canonical(prefix: &str) -> String {
    let prefix = trimmed(prefix);
    match prefix.split_once('/') {
        Some((host, path)) => format!("{}/{path}", canonical_host(host)),
        None => canonical_host(&prefix),
    }
}

// The format of the file.

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Document {
    #[serde(default)]
    registry: Vec<RegistryTable>,
    /// Version 1.
    registries: Option<IgnoredAny>,
    // Ignored: short names, which lists do not have, and credential helpers.
    #[serde(rename = "unqualified-search-registries")]
    _search: Option<IgnoredAny>,
    #[serde(rename = "short-name-mode")]
    _short_names: Option<IgnoredAny>,
    #[serde(rename = "aliases")]
    _aliases: Option<IgnoredAny>,
    #[serde(rename = "credential-helpers")]
    _helpers: Option<IgnoredAny>,
    #[serde(rename = "additional-layer-store-auth-helper")]
    _store_helper: Option<IgnoredAny>,
}

/// One `[[registry]]`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RegistryTable {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorTable>,
}

/// One `[[registry.mirror]]`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct MirrorTable {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Serves>,
}

impl RegistryTable {
    fn rule(self) -> Result<Rule, String> {
        let location = self.location.filter(|text| !text.is_empty());
        let prefix = self.prefix.filter(|text| !text.is_empty());
        let prefix = prefix.or_else(|| location.clone()).ok_or("`prefix` or `location` is missing")?;
        if prefix.contains("://") {
            return Err(has_scheme(&prefix));
        }
        if prefix.contains('*') && (!prefix.starts_with("*.") || prefix[1..].contains('*')) {
            return Err(format!("`{prefix}`: `*` is supported only in a leading `*.`"));
        }
        let by_digest = self.mirror_by_digest_only;
        let mirror = |mirror: MirrorTable| {
            if by_digest && mirror.pull_from_mirror.is_some() {
                return Err(
                    "`mirror-by-digest-only` and `pull-from-mirror` are mutually exclusive".to_owned()
                );
            }
            let serves = if by_digest { Some(Serves::DigestOnly) } else { mirror.pull_from_mirror };
            let location = parse_location(&mirror.location, mirror.insecure)?;
            Ok(Mirror { location, serves: serves.unwrap_or_default() })
        };
        let mirrors = self.mirror.into_iter().map(mirror).collect::<Result<_, _>>()?;
        let origin = location.map(|text| parse_location(&text, self.insecure)).transpose()?;
        let prefix = canonical(&prefix);
        // A location equal to the prefix replaces nothing.
        let origin = origin.filter(|origin| canonical(&origin.text) != prefix);
        let (insecure, blocked) = (self.insecure, self.blocked);
        Ok(Rule { prefix, mirrors, origin, insecure, blocked, is_argument: false })
    }
}

fn parse_location(text: &str, insecure: bool) -> Result<Location, String> {
    if text.contains("://") {
        return Err(has_scheme(text));
    }
    let text = trimmed(text);
    let host = text.split('/').next().unwrap_or_default();
    if host.is_empty() || reqwest::Url::parse(&format!("https://{text}")).is_err() {
        return Err(format!("invalid location `{text}`: expected HOST or HOST/PATH"));
    }
    Ok(Location { scheme: None, text, insecure })
}

fn has_scheme(text: &str) -> String {
    format!("`{text}` has a scheme: remove it, and set `insecure = true` for plain HTTP")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        unqualified-search-registries = ["docker.io"]
        short-name-mode = "enforcing"
        [[registry]]
        location = "quay.io"
        [[registry.mirror]]
        location = "one.example:5000/quay"
        insecure = true
        [[registry.mirror]]
        location = "two.example"
        [[registry]]
        prefix = "quay.io/secret"
        blocked = true
        [[registry]]
        prefix = "quay.io/moved"
        location = "r.example/to"
        insecure = true
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "pinned.example"
        [[registry]]
        prefix = "*.wild.example"
        [[registry.mirror]]
        location = "w.example/all"
        pull-from-mirror = "tag-only"
        [[registry]]
        prefix = "github.com/org"
        [[registry.mirror]]
        location = "files.example/gh"
        [aliases]
        "a" = "b/c"
    "#;

    fn file() -> Mirrors {
        let mut mirrors = Mirrors::default();
        mirrors.add_file(FILE).unwrap();
        mirrors
    }

    fn endpoints(mirrors: &Mirrors, name: &str, pinned: bool) -> String {
        let (host, path) = name.split_once('/').unwrap();
        match mirrors.endpoints(None, host, path, pinned) {
            Ok(endpoints) => {
                let text = |endpoint: &Endpoint| {
                    let scheme = endpoint.scheme.map(|scheme| format!("{scheme}://")).unwrap_or_default();
                    let insecure = if endpoint.insecure { "!" } else { "" };
                    format!("{insecure}{scheme}{}/{}", endpoint.host, endpoint.path)
                };
                endpoints.iter().map(text).collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_longest_prefix_of_a_file_applies_and_the_origin_is_last() {
        let mirrors = file();
        for (name, pinned, expected) in [
            ("quay.io/a/b", false, "!one.example:5000/quay/a/b two.example/a/b quay.io/a/b"),
            (
                "quay.io/secrets/b",
                false,
                "!one.example:5000/quay/secrets/b two.example/secrets/b quay.io/secrets/b",
            ),
            ("quay.io/moved/b", true, "pinned.example/b !r.example/to/b"),
            ("quay.io/moved/b", false, "!r.example/to/b"),
            ("a.b.wild.example/c", false, "w.example/all/c a.b.wild.example/c"),
            ("a.wild.example/c", true, "a.wild.example/c"),
            ("wild.example/c", false, "wild.example/c"),
            ("x.example/a.wild.example/c", false, "x.example/a.wild.example/c"),
            ("github.com/org/p/x.tar", true, "files.example/gh/p/x.tar github.com/org/p/x.tar"),
            ("github.com/organ/p", true, "github.com/organ/p"),
        ] {
            assert_eq!(endpoints(&mirrors, name, pinned), expected, "{name}");
        }
        assert!(endpoints(&mirrors, "quay.io/secret/x", false).contains("blocked"));
    }

    #[test]
    fn the_command_line_takes_precedence_over_the_file_and_keeps_its_order() {
        let mut mirrors = file();
        mirrors.add("quay.io", "http", "a.example/quay.io/");
        mirrors.add("quay.io", "https", "b.example");
        mirrors.add("index.docker.io/library", "https", "lib.example/x");
        for (name, expected) in [
            ("quay.io/a", "http://a.example/quay.io/a https://b.example/a quay.io/a"),
            ("quay.io/moved/a", "!r.example/to/a"),
            ("docker.io/library/a", "https://lib.example/x/a docker.io/library/a"),
            ("docker.io/a/b", "docker.io/a/b"),
        ] {
            assert_eq!(endpoints(&mirrors, name, false), expected);
        }
        let names = ["quay.io/a".to_owned(), "docker.io/librar/y".to_owned()];
        assert_eq!(mirrors.unused(&names).collect::<Vec<_>>(), ["docker.io/library"]);
        mirrors.only = true;
        assert_eq!(endpoints(&mirrors, "docker.io/library/a", false), "https://lib.example/x/a");
        assert!(endpoints(&mirrors, "docker.io/a/b", false).contains("--mirrors-only"));
    }

    #[test]
    fn an_invalid_file_is_rejected_with_the_location_of_the_error() {
        for (text, words) in [
            ("[registries.search]\nregistries = ['a']", "version 1"),
            ("\n\n[[registry]\n", "line 3"),
            ("[[registry]]\nlocation = 'a'\nlocatoin = 'b'", "locatoin"),
            ("[[registry]]\ninsecure = true", "is missing"),
            ("[[registry]]\nlocation = 'https://a'", "scheme"),
            ("[[registry]]\nprefix = 'a.*.b'", "`*`"),
            ("[[registry]]\nlocation = 'a'\n[[registry]]\nprefix = 'a'", "number 2"),
            ("[[registry]]\nprefix = 'a'\n[[registry.mirror]]\nlocation = ''", "invalid location"),
            (
                "[[registry]]\nprefix = 'a'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'b'\n\
                 pull-from-mirror = 'all'",
                "exclusive",
            ),
        ] {
            let error = Mirrors::default().add_file(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
