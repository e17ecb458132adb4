//! [`Helpers`]: runs credential helpers (docker-credential-helpers, "Development").

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::base::child;
use crate::base::error_chain::chain;
use crate::net::credentials::auth_file::password_or_identity;
use crate::net::secret::Credential;

/// Prefix of the program names of all helpers.
pub(crate) const HELPER_PREFIX: &str = "docker-credential-";

/// Maximum size in bytes of a helper's output.
const OUTPUT_LIMIT: u64 = 4 << 20;

/// Maximum run time of a helper. Some send requests to a remote service.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum age of a cached response. Some helpers return tokens that expire after an hour, and a run may take
/// longer.
const CACHE_TIME: Duration = Duration::from_secs(300);

/// The name of a helper, and the server whose credential is requested.
type HelperRequest = (String, String);

/// Runs credential helpers and caches their responses.
#[derive(Debug, Default)]
pub(crate) struct Helpers {
    responses: Mutex<HashMap<HelperRequest, (Instant, Option<Credential>)>>,
}

impl Helpers {
    /// Returns the credential that a helper has for `server`. The error says why the helper failed.
    pub(crate) fn get(&self, name: &str, server: &str) -> Result<Option<Credential>, String> {
        // Locked while the helper runs: it may prompt the user, and must do so once only.
        let mut responses =
            self.responses.lock().expect("nothing panics while it runs a helper; please report");
        let key = (name.to_owned(), server.to_owned());
        if let Some((_, credential)) = responses.get(&key).filter(|(when, _)| when.elapsed() < CACHE_TIME) {
            return Ok(credential.clone());
        }
        let credential = run(&format!("{HELPER_PREFIX}{name}"), server)?;
        responses.insert(key, (Instant::now(), credential.clone()));
        Ok(credential)
    }
}

/// Runs a helper. Errors do not contain its output, which could be the secret.
fn run(program: &str, server: &str) -> Result<Option<Credential>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct HelperResponse {
        username: String,
        secret: String,
    }
    if program.contains(['/', '\\']) {
        return Err("its name is a path".to_owned());
    }
    let mut child = spawn(program)?;
    // A helper that does not read stdin fails with its exit status.
    let _ = child.stdin.take().expect("stdin is piped; please report").write_all(server.as_bytes());
    let output = read_output(&mut child);
    let status = child.wait().map_err(|error| format!("cannot wait for it ({error})"))?;
    let output = output?;
    if !status.success() {
        let has_none = String::from_utf8_lossy(&output).contains("credentials not found");
        return if has_none { Ok(None) } else { Err(status.to_string()) };
    }
    let response: HelperResponse = serde_json::from_slice(&output)
        .map_err(|_| "its output is not a user name and a secret".to_owned())?;
    Ok((!response.secret.is_empty()).then(|| password_or_identity(&response.username, &response.secret)))
}

fn spawn(program: &str) -> Result<Child, String> {
    let mut command = child::command(program).map_err(|error| chain(&error))?;
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => "not installed".to_owned(),
        _ => format!("cannot start it ({error})"),
    })
}

/// Reads all output of a helper, and kills the helper if that takes too long.
fn read_output(child: &mut Child) -> Result<Vec<u8>, String> {
    let output = child.stdout.take().expect("stdout is piped; please report");
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.take(OUTPUT_LIMIT).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes)); // fails after the timeout
    });
    let result = receiver.recv_timeout(TIMEOUT);
    if result.is_err() {
        let _ = child.kill(); // fails if it has exited by now
    }
    match result {
        Ok(output) => output.map_err(|error| format!("cannot read its output ({error})")),
        Err(RecvTimeoutError::Timeout) => Err(format!("no output within {} s", TIMEOUT.as_secs())),
        Err(RecvTimeoutError::Disconnected) => Err("cannot read its output".to_owned()),
    }
}
