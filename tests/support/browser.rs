//! [`Browser`]: Debian's headless Chromium, driven by `chromedriver`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::Daemon;

/// Timeout for actions that a browser performs at once. Generous, because the machine may be busy with other
/// tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one window. Ends when dropped.
#[derive(Debug)]
pub struct Browser {
    /// URL of its `chromedriver` session.
    session: String,
    _daemon: Daemon,
    _directory: TempDir,
}

impl Browser {
    /// Starts a browser that resolves only the local host.
    pub fn start() -> Self {
        let directory = TempDir::new().expect("create a temporary directory");
        let set = |name| format!("{name}={}", directory.path().display());
        let command = ["env", &set("HOME"), &set("TMPDIR"), "chromedriver", "--port=0"];
        let mut daemon = Daemon::spawn(command, &directory.path().join("log"));
        let port = daemon.wait_for(|log| {
            let (_, rest) = log.split_once("started successfully on port ")?;
            Some(rest.split_once('.')?.0.to_owned())
        });
        let driver = format!("http://127.0.0.1:{}/session", port.unwrap_or_else(|log| panic!("{log}")));
        let capabilities = json!({
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            "goog:chromeOptions": { "args": [
                "--headless",
                // With a pipe, the browser ends when chromedriver does, even if that is killed.
                "--remote-debugging-pipe",
                // Neither works for root in a container.
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--no-proxy-server",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ] },
        });
        let answer = post(&driver, &json!({ "capabilities": { "alwaysMatch": capabilities } }));
        let id = answer["sessionId"].as_str().expect("a session has an id");
        Self { session: format!("{driver}/{id}"), _daemon: daemon, _directory: directory }
    }

    /// Opens the page at `url` and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.ask("url", &json!({ "url": url }));
    }

    /// Runs `script`, the body of a function, in the page and returns its result; a promise is awaited.
    pub fn run(&self, script: &str) -> Value {
        self.ask("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until `script` returns true.
    pub fn wait_for(&self, script: &str) {
        let start = Instant::now();
        while self.run(script) != true {
            assert!(start.elapsed() < PATIENCE, "it never came true: {script}");
            sleep(Duration::from_millis(10));
        }
    }

    /// Clicks the first element that matches `selector`.
    pub fn click(&self, selector: &str) {
        self.ask(&format!("element/{}/click", self.element(selector)), &json!({}));
    }

    /// Types into the first element that matches `selector`.
    pub fn type_into(&self, selector: &str, keys: &str) {
        self.ask(&format!("element/{}/value", self.element(selector)), &json!({ "text": keys }));
    }

    /// Runs a command of the Chrome `DevTools` protocol.
    pub fn command(&self, name: &str, parameters: &Value) -> Value {
        self.ask("goog/cdp/execute", &json!({ "cmd": name, "params": parameters }))
    }

    /// Returns role and name of every node that a screen reader gets.
    pub fn accessibility(&self) -> Vec<(String, String)> {
        let tree = self.command("Accessibility.getFullAXTree", &json!({}));
        let nodes = tree["nodes"].as_array().expect("a tree is a list of nodes").iter();
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        nodes
            .filter(|node| node["ignored"] == false)
            .map(|node| (text(&node["role"]), text(&node["name"])))
            .collect()
    }

    /// Returns the console messages since the last call.
    pub fn console(&self) -> Vec<Value> {
        self.log("browser")
    }

    /// Returns the URLs requested since the last call, including those of scheme `data:`.
    pub fn requests(&self) -> Vec<String> {
        let events = self.log("performance").into_iter().map(|entry| {
            let message = entry["message"].as_str().expect("an event is JSON in a JSON string");
            serde_json::from_str::<Value>(message).expect("an event is JSON in a JSON string")["message"]
                .take()
        });
        let requests = events.filter(|event| event["method"] == "Network.requestWillBeSent");
        requests.map(|event| event["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        self.ask("se/log", &json!({ "type": kind })).as_array().expect("a log is a list").clone()
    }

    fn element(&self, selector: &str) -> String {
        let found = self.ask("element", &json!({ "using": "css selector", "value": selector }));
        let (_, id) = found.as_object().and_then(|found| found.iter().next()).expect("an element has an id");
        id.as_str().expect("an element has an id").to_owned()
    }

    fn ask(&self, what: &str, body: &Value) -> Value {
        post(&format!("{}/{what}", self.session), body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // chromedriver removes its profile before the directory is removed.
        ureq::delete(&self.session).call().ok();
    }
}

fn post(url: &str, body: &Value) -> Value {
    let request = ureq::post(url).config().http_status_as_error(false).build();
    let mut response = request.send(body.to_string()).unwrap_or_else(|error| panic!("{url}: {error}"));
    let text = response.body_mut().read_to_string().unwrap_or_else(|error| panic!("{url}: {error}"));
    assert!(response.status().is_success(), "{url} {body}: {text}");
    let mut answer: Value = serde_json::from_str(&text).expect("chromedriver responds with JSON");
    answer["value"].take()
}
