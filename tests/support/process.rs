//! [`Daemon`]: a server process that ends with its owner.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Timeout for the first response of a server, and for its end. Generous, because the machine may be busy
/// with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server process. Gets SIGTERM when this is dropped, and also if the test process dies without dropping
/// anything (a `static`, a `kill -9`): a watcher holds the read end of a pipe and acts when it closes.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    lifeline: Option<ChildStdin>,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with stdout and stderr redirected to the file `log`.
    pub fn spawn<S: AsRef<OsStr>>(command: impl IntoIterator<Item = S>, log: &Path) -> Self {
        const WATCH: &str =
            r#"exec 3<&0 </dev/null; (cat <&3; kill -TERM $$) >/dev/null 2>&1 & exec "$@" 3<&-"#;
        let command: Vec<_> = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let name = command[0].to_string_lossy().into_owned();
        let output = File::create(log).unwrap_or_else(|error| panic!("create {}: {error}", log.display()));
        let mut child = Command::new("sh")
            .args(["-c", WATCH, "sh"])
            .args(&command)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("duplicate the log's descriptor"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let lifeline = child.stdin.take();
        Self { name, child, lifeline, log: log.to_owned() }
    }

    /// Polls `ready` with the log until it returns a value. If the process ends first, returns the log as an
    /// error. Panics on a timeout.
    pub fn wait_for<T>(&mut self, mut ready: impl FnMut(&str) -> Option<T>) -> Result<T, String> {
        let start = Instant::now();
        loop {
            if let Some(answer) = ready(&self.log()) {
                return Ok(answer);
            }
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                return Err(format!("{} ended with {status}; its log:\n{}", self.name, self.log()));
            }
            assert!(start.elapsed() < PATIENCE, "{} does not come up; its log:\n{}", self.name, self.log());
            sleep(Duration::from_millis(10));
        }
    }

    /// Returns the process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Ends the process and waits for it.
    pub fn stop(&mut self) {
        if self.lifeline.take().is_none() {
            return;
        }
        let start = Instant::now();
        while !matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
            if start.elapsed() > PATIENCE {
                self.child.kill().ok();
            }
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Appends a command line to that of a program that runs it, such as timeout(1), with its environment.
pub fn append_command(wrapper: &mut Command, command: &Command) {
    wrapper.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapper.env(name, value),
            None => wrapper.env_remove(name),
        };
    }
}

/// Runs `command` to its end. Panics with the command line and its output if it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// Runs `command` to its end and returns its stdout as text. Panics like [`run`].
pub fn stdout_of(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout)
        .unwrap_or_else(|error| panic!("{command:?} printed no UTF-8: {error}"))
}
