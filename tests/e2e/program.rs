//! The two programs under test.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// Exit code and output of a program.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `airbundle`.
pub fn airbundle<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Finished {
    run(airbundle_command().args(args))
}

/// Runs `unbundle`.
pub fn unbundle<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Finished {
    run(unbundle_command().args(args))
}

/// Runs `unbundle` with the file `input` on stdin.
pub fn unbundle_from<S: AsRef<OsStr>>(input: &Path, args: impl IntoIterator<Item = S>) -> Finished {
    // Through a pipe, because a file on stdin is seekable.
    let mut cat = Command::new("cat").arg(input).stdout(Stdio::piped()).spawn().expect("start cat");
    let pipe = cat.stdout.take().expect("a pipe");
    let finished = run(unbundle_command().args(args).stdin(pipe));
    let status = cat.wait().expect("wait for cat");
    assert!(finished.code != Some(0) || status.success(), "the pipe was not read to its end: {status}");
    finished
}

/// Returns a command for `airbundle` without any environment that would affect it.
pub fn airbundle_command() -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_airbundle"));
    // No credentials of the user who runs the tests.
    for name in ["REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "NETRC", "AIRBUNDLE_PASSPHRASE"] {
        command.env_remove(name);
    }
    command.env("HOME", "/nonexistent").env("XDG_RUNTIME_DIR", "/nonexistent");
    command
}

/// Returns a command for `unbundle`, likewise.
pub fn unbundle_command() -> Command {
    command(env!("CARGO_BIN_EXE_unbundle"))
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env_remove("UNBUNDLE_TRUSTED_KEY");
    command.env_remove("CONTAINERS_REGISTRIES_CONF").env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    command.stdin(Stdio::null());
    command
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Finished {
    let output = command.output().expect("start the program");
    let text = |bytes| String::from_utf8(bytes).expect("the programs print UTF-8");
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Finished {
    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Asserts failure with this code, and that one line of stderr has all these words.
    #[track_caller]
    pub fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let found = self.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no line with {words:?} in {self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }

    /// Returns the last line of stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let line = self.stdout.lines().last().expect("at least one line of output");
        serde_json::from_str(line).expect("JSON in the last line")
    }
}
