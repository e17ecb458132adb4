//! [`entrypoint`]: how an image starts Docker Distribution with a configuration file of ours.
//!
//! Only the command of `docker.io/library/registry` is known. Other images start the registry in another way and have
//! their storage at another path: without an explicit command and configuration, a container would exit, or serve an
//! empty storage.

use serde_json::Value;

use crate::oci::reference::Reference;

/// The names of the program.
const PROGRAMS: [&str; 2] = ["registry", "docker-registry"];

/// Programs that run the rest of their command line as a child.
const WRAPPERS: [&str; 4] = ["tini", "tini-static", "dumb-init", "catatonit"];

/// The entrypoint of `docker.io/library/registry`, which accepts a configuration file as argument.
const OFFICIAL: &str = "/entrypoint.sh";

/// The configuration files that it has as its command, in versions 2 and 3.
const OFFICIAL_CONFIGS: [&str; 2] = ["/etc/docker/registry/config.yml", "/etc/distribution/config.yml"];

/// Environment variables that override the configuration file.
const OVERRIDES: [&str; 3] = ["REGISTRY_STORAGE", "REGISTRY_HTTP_ADDR", "REGISTRY_CONFIGURATION_PATH"];

/// True for `docker.io/library/registry`.
#[must_use]
pub(crate) fn is_official(reference: &Reference) -> bool {
    (reference.host(), reference.repository()) == ("docker.io", "library/registry")
}

/// Returns the entrypoint that starts the registry of an image with this config; its argument is a configuration
/// file. `None`: the image starts it in an unknown way.
#[must_use]
pub(crate) fn entrypoint(config: &Value) -> Option<Vec<String>> {
    let words = |key: &str| -> Option<Vec<String>> {
        match &config["config"][key] {
            Value::Null => Some(Vec::new()),
            Value::Array(words) => words.iter().map(|word| Some(word.as_str()?.to_owned())).collect(),
            _ => None,
        }
    };
    let (mut all, command) = (words("Entrypoint")?, words("Cmd")?);
    let is_known = |config: &str| OFFICIAL_CONFIGS.contains(&config);
    if all == [OFFICIAL] && matches!(&command[..], [config] if is_known(config)) {
        return Some(all);
    }
    all.extend(command);
    let program = all.iter().position(|word| PROGRAMS.contains(&base_name(word)))?;
    let is_wrapper = |word: &String| word.starts_with('-') || WRAPPERS.contains(&base_name(word));
    let is_served = all.get(program + 1).is_some_and(|word| word == "serve");
    if !is_served || !all[..program].iter().all(is_wrapper) {
        return None;
    }
    all.truncate(program + 2);
    Some(all)
}

/// True for an environment variable, `NAME=VALUE`, that overrides the configuration file.
#[must_use]
pub(crate) fn is_override(variable: &str) -> bool {
    OVERRIDES.iter().any(|name| variable.starts_with(name))
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_command_of_a_registry_image_is_known_or_the_image_is_not_used() {
        for (entrypoint, command, expected) in [
            (json!(["/entrypoint.sh"]), json!(["/etc/docker/registry/config.yml"]), Some("/entrypoint.sh")),
            (json!(["/entrypoint.sh"]), json!(["/etc/distribution/config.yml"]), Some("/entrypoint.sh")),
            (
                json!(["/usr/bin/docker-registry"]),
                json!(["serve", "/etc/r.yml"]),
                Some("/usr/bin/docker-registry serve"),
            ),
            (json!(["/bin/registry", "serve"]), json!(["/etc/r.yml"]), Some("/bin/registry serve")),
            (json!(null), json!(["registry", "serve", "/etc/r.yml"]), Some("registry serve")),
            (
                json!(["/sbin/tini", "--"]),
                json!(["registry", "serve", "x"]),
                Some("/sbin/tini -- registry serve"),
            ),
            (json!(["/entrypoint.sh"]), json!(["serve"]), None),
            (json!(["/start.sh"]), json!(["/etc/docker/registry/config.yml"]), None),
            (json!(["/bin/sh", "-c", "registry serve /etc/r.yml"]), json!(null), None),
            (json!(["/bin/sh", "registry", "serve"]), json!(null), None),
            (json!(["/bin/registry"]), json!(["garbage-collect", "x"]), None),
            (json!(["/bin/registry"]), json!(null), None),
            (json!("registry serve"), json!(null), None),
            (json!(null), json!(null), None),
        ] {
            let config = json!({"config": {"Entrypoint": entrypoint, "Cmd": command}});
            assert_eq!(
                super::entrypoint(&config).map(|words| words.join(" ")).as_deref(),
                expected,
                "{config}"
            );
        }
        assert_eq!(super::entrypoint(&json!({})), None);
    }

    #[test]
    fn variables_that_move_the_storage_are_overrides() {
        for (variable, expected) in [
            ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/data", true),
            ("REGISTRY_STORAGE=s3", true),
            ("REGISTRY_HTTP_ADDR=:80", true),
            ("REGISTRY_AUTH=htpasswd", false),
            ("PATH=/bin", false),
        ] {
            assert_eq!(is_override(variable), expected, "{variable}");
        }
    }
}
