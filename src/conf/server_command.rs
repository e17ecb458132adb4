//! [`of_registry`], [`of_nginx`]: how an image starts its server with a configuration file of ours.
//!
//! Only the commands of `docker.io/library/registry` and `docker.io/library/nginx` are known. Other images start the
//! server in another way and have its files at another path: without an explicit command and configuration, a container
//! would exit, or serve something else.

use serde_json::Value;

use crate::oci::reference::Reference;

/// The names of the program of the registry.
const REGISTRIES: [&str; 2] = ["registry", "docker-registry"];

/// Programs that run the rest of their command line as a child.
const WRAPPERS: [&str; 4] = ["tini", "tini-static", "dumb-init", "catatonit"];

/// The entrypoint of `docker.io/library/registry`, which accepts a configuration file as argument.
const OFFICIAL: &str = "/entrypoint.sh";

/// The configuration files that it has as its command, in versions 2 and 3.
const OFFICIAL_CONFIGS: [&str; 2] = ["/etc/docker/registry/config.yml", "/etc/distribution/config.yml"];

/// The entrypoint of `docker.io/library/nginx`, which runs its arguments.
const OFFICIAL_NGINX: &str = "/docker-entrypoint.sh";

/// The configuration file of `docker.io/library/nginx`, which includes the files of a directory.
const NGINX_CONFIG: &str = "/etc/nginx/nginx.conf";

/// Environment variables that override the configuration file.
const OVERRIDES: [&str; 3] = ["REGISTRY_STORAGE", "REGISTRY_HTTP_ADDR", "REGISTRY_CONFIGURATION_PATH"];

/// True for the official image of `docker.io/library` with this name.
#[must_use]
pub(crate) fn is_official(reference: &Reference, name: &str) -> bool {
    reference.host() == "docker.io" && reference.repository().strip_prefix("library/") == Some(name)
}

/// Returns the entrypoint that starts the registry of an image with this config; its argument is a configuration
/// file. `None`: the image starts it in an unknown way.
#[must_use]
pub(crate) fn of_registry(config: &Value) -> Option<Vec<String>> {
    let (entrypoint, command) = (words(config, "Entrypoint")?, words(config, "Cmd")?);
    let is_known = |config: &str| OFFICIAL_CONFIGS.contains(&config);
    if entrypoint == [OFFICIAL] && matches!(&command[..], [config] if is_known(config)) {
        return Some(entrypoint);
    }
    let mut all = [entrypoint, command].concat();
    let program = program(&all, &REGISTRIES)?;
    all.get(program + 1).is_some_and(|word| word == "serve").then(|| {
        all.truncate(program + 2);
        all
    })
}

/// Returns the program nginx of an image with this config. `None`: the image starts it in an unknown way, or with
/// another configuration than the usual one.
#[must_use]
pub(crate) fn of_nginx(config: &Value) -> Option<String> {
    let all = [words(config, "Entrypoint")?, words(config, "Cmd")?].concat();
    let program = program(&all, &["nginx"])?;
    let mut options = all[program + 1..].iter().skip_while(|word| *word != "-c");
    let is_usual = options.nth(1).is_none_or(|config| config == NGINX_CONFIG);
    is_usual.then(|| all[program].clone())
}

/// Returns the entrypoint or the command in a config. `None`: it is invalid.
fn words(config: &Value, key: &str) -> Option<Vec<String>> {
    match &config["config"][key] {
        Value::Null => Some(Vec::new()),
        Value::Array(words) => words.iter().map(|word| Some(word.as_str()?.to_owned())).collect(),
        _ => None,
    }
}

/// Returns the index of the program in a command line. `None`: it is none of `names`, or started by a shell or script.
fn program(command: &[String], names: &[&str]) -> Option<usize> {
    let program = command.iter().position(|word| names.contains(&base_name(word)))?;
    let is_wrapper = |word: &String| {
        word.starts_with('-') || WRAPPERS.contains(&base_name(word)) || word == OFFICIAL_NGINX
    };
    command[..program].iter().all(is_wrapper).then_some(program)
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
            assert_eq!(of_registry(&config).map(|words| words.join(" ")).as_deref(), expected, "{config}");
        }
        assert_eq!(of_registry(&json!({})), None);
    }

    #[test]
    fn the_command_of_an_nginx_image_is_known_or_the_image_is_not_used() {
        for (entrypoint, command, expected) in [
            (json!(["/docker-entrypoint.sh"]), json!(["nginx", "-g", "daemon off;"]), Some("nginx")),
            (
                json!(["/usr/sbin/nginx"]),
                json!(["-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"]),
                Some("/usr/sbin/nginx"),
            ),
            (json!(["tini", "--", "nginx"]), json!(null), Some("nginx")),
            (json!(["/usr/sbin/nginx"]), json!(["-c", "/opt/nginx.conf"]), None),
            (json!(["/opt/bitnami/scripts/nginx/entrypoint.sh"]), json!(["/run.sh"]), None),
            (json!(["/bin/sh", "-c", "nginx"]), json!(null), None),
            (json!(["/bin/sh", "nginx"]), json!(null), None),
            (json!(["/bin/registry", "serve"]), json!(null), None),
            (json!(null), json!(null), None),
        ] {
            let config = json!({"config": {"Entrypoint": entrypoint, "Cmd": command}});
            assert_eq!(of_nginx(&config).as_deref(), expected, "{config}");
        }
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
