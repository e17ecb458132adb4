//! Child processes: the commands that the programs run, without secrets in their environment.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::base::ownership::{self, ForeignFile};

/// The shell that POSIX systems have.
const SHELL: &str = "/bin/sh";

/// The prefixes of the environment variables of both programs. Some of these variables are secrets.
const PREFIXES: [&str; 2] = ["AIRBUNDLE_", "UNBUNDLE_"];

/// The variables that children inherit although they have such a prefix: a child that is `unbundle` must
/// require the same signatures.
const PUBLIC: [&str; 1] = ["UNBUNDLE_TRUSTED_KEY"];

/// The search path of execvp(3) without `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Returns a command for `program`, which is looked up in `PATH`. If root runs it, a program that another
/// user can change is an error.
pub(crate) fn command(program: &str) -> Result<Command, ForeignFile> {
    if !rustix::process::geteuid().is_root() {
        return Ok(without_secrets(program));
    }
    let Some(path) = find(program, &env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())) else {
        return Ok(without_secrets(program)); // starting it fails: not found
    };
    ownership::check(&path)?;
    Ok(without_secrets(path))
}

/// Returns a command for the shell.
pub(crate) fn shell() -> Command {
    without_secrets(SHELL)
}

fn without_secrets(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os().filter(|(name, _)| is_secret(name)) {
        command.env_remove(name);
    }
    command
}

fn is_secret(name: &OsString) -> bool {
    let has_prefix = |prefix: &&str| name.as_bytes().starts_with(prefix.as_bytes());
    PREFIXES.iter().any(has_prefix) && !PUBLIC.iter().any(|public| name == public)
}

/// Returns the absolute path of the executable that `PATH` finds.
fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    let candidates = env::split_paths(path).filter_map(|directory| {
        // An empty entry is the working directory.
        std::path::absolute(if directory.as_os_str().is_empty() { ".".into() } else { directory }).ok()
    });
    candidates.map(|directory| directory.join(program)).find(|candidate| {
        candidate
            .metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

/// Starts this program again, in the same process, with its arguments and with a variable in its environment. Returns only
/// if that fails.
pub(crate) fn restart(variable: &str, value: &str) -> io::Error {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    Command::new("/proc/self/exe").arg0(name).args(arguments).env(variable, value).exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_both_programs_are_secret_except_the_trusted_key() {
        for (name, secret) in [
            ("AIRBUNDLE_PASSPHRASE", true),
            ("AIRBUNDLE_PASSWORD", true),
            ("UNBUNDLE_PASSWORD", true),
            ("UNBUNDLE_ANYTHING_ELSE", true),
            ("UNBUNDLE_TRUSTED_KEY", false),
            ("GH_TOKEN", false),
            ("PATH", false),
            ("MY_AIRBUNDLE_PASSWORD", false),
        ] {
            assert_eq!(is_secret(&name.into()), secret, "{name}");
        }
    }

    #[test]
    fn the_first_executable_in_path_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (name, mode) in [("one/tool", 0o644), ("two/tool", 0o755), ("three/tool", 0o755)] {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "").unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = env::join_paths(["one", "two", "three", "missing"].map(at)).unwrap();
        assert_eq!(find("tool", &path), Some(at("two/tool")));
        assert_eq!(find("other", &path), None);
    }
}
