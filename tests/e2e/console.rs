//! Output: no byte from outside controls the terminal or begins a line, in text and in JSON.

use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::pack_job::PackJob;
use crate::program::{Finished, airbundle, unbundle};
use crate::support::fake::{Content, Fake, Reply};

/// Erases the screen, sets the title, begins a line, reverses the text, and hides a part of it.
const HARMFUL: &str =
    "\u{1b}[2J\u{1b}]0;title\u{7}\nerror: forged\r\u{9b}31m\u{7f}\u{202e}\u{2028}\u{200b}\u{e0041}";

fn is_harmful(c: char) -> bool {
    c != '\n' && (c.is_control() || "\u{202e}\u{2028}\u{200b}\u{e0041}".contains(c))
}

#[track_caller]
fn assert_harmless(finished: &Finished) {
    for text in [&finished.stdout, &finished.stderr] {
        assert!(!text.contains(is_harmful), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("error: forged")), "{text}");
    }
}

#[test]
fn paths_in_errors_are_escaped_by_every_verb() {
    let path = format!("/nonexistent/{HARMFUL}");
    for verb in [
        &["pack", "-o", "/nonexistent/out", &path][..],
        &["lock", "-o", "/nonexistent/out", &path],
        &["diff", &path, &path],
        &["lists", "kubespray", "--source", &path, "-o", "/nonexistent/out"],
        &["sbom", &path],
        &["keygen", "--no-passphrase", "-o", &path],
    ] {
        let finished = airbundle(verb);
        assert_harmless(&finished);
        assert!(finished.code != Some(0) && finished.stderr.contains("/nonexistent/"), "{finished:#?}");
    }
    for verb in [
        &["ls", &path][..],
        &["cat", &path, "index.json"],
        &["sbom", &path],
        &["verify", &path],
        &["verify", "--trusted-key", &path, "/dev/null"],
        &["repair", &path, "-o", "/nonexistent/out"],
        &["unpack", &path, "/nonexistent/site"],
        &["site", &path],
        &["images", &path],
        &["inventory", &path],
        &["prune", &path, "--keep", &path],
    ] {
        let finished = unbundle(verb);
        assert_harmless(&finished);
        assert!(finished.code != Some(0) && !finished.stderr.is_empty(), "{verb:?} {finished:#?}");
    }
}

#[test]
fn messages_of_a_registry_are_escaped_in_text_and_in_json() {
    let body = json!({ "errors": [{ "code": "DENIED", "message": format!("no {HARMFUL}") }] }).to_string();
    let registry = Fake::start(Content::default(), move |seen, _| {
        if seen.path == "/v2/" {
            return Reply::ok(b"{}");
        }
        Reply { body: body.clone().into_bytes(), ..Reply::status(503) }.with("retry-after", "0")
    });
    let job = PackJob::new(&format!("{}/team/app:1\n", registry.addr()));
    let finished =
        job.pack_with(&["--retries", "1"]).failed(4, &["server message: \"no ", "\\u{202e}\\u{2028}"]);
    assert!(finished.stderr.contains("retry: "), "{finished:#?}");
    assert_harmless(&finished);
    let finished = job.pack_with(&["--retries", "1", "--json"]).failed(4, &[]);
    assert_harmless(&finished);
    let retry = finished.stdout.lines().find(|line| line.contains("\"retry\"")).expect("a retry event");
    assert!(retry.contains("\\u202e\\u2028\\u200b\\udb40\\udc41"), "{retry}");
    let retry: Value = serde_json::from_str(retry).expect("JSON");
    let reason = retry["reason"].as_str().expect("a reason");
    assert!(reason.contains("\u{202e}\u{2028}\u{200b}\u{e0041}"), "{reason:?}");
}

#[test]
fn an_object_is_escaped_on_a_terminal_and_unchanged_in_a_pipe() {
    let mut content = Content::default();
    let bytes = format!("one\n{HARMFUL}\ttwo\n");
    content.path("/file", bytes.clone().into_bytes());
    let web = Fake::honest(content);
    let job = PackJob::new(&format!("http://{}/file\n", web.addr()));
    job.pack().ok();
    let (bundle, object) = (job.output(), format!("{}/file", web.addr().replace(':', "_")));
    let listing = unbundle(["ls", "--json", bundle.to_str().expect("UTF-8")]).ok().json();
    let object = listing["files"][0]["path"].as_str().map_or(object, str::to_owned);
    let cat = ["cat", bundle.to_str().expect("UTF-8"), &object];
    assert_eq!(unbundle(cat).ok().stdout, bytes);
    // `script` runs a command on a terminal.
    let command = format!("'{}' cat '{}' '{object}'", env!("CARGO_BIN_EXE_unbundle"), bundle.display());
    let output = Command::new("script").args(["-qec", &command, "/dev/null"]).output().expect("start script");
    let text = String::from_utf8(output.stdout).expect("the terminal shows UTF-8").replace("\r\n", "\n");
    assert!(output.status.success(), "{text}");
    assert!(!text.contains(|c| c != '\t' && is_harmful(c)), "{text:?}");
    assert!(text.starts_with("one\n\\u{1b}[2J") && text.ends_with("\\u{e0041}\ttwo\n"), "{text:?}");
}

#[test]
fn names_of_files_that_are_not_utf_8_are_printed() {
    let name = std::ffi::OsStr::from_bytes(b"/nonexistent/\xff\x1b[2J");
    let finished =
        unbundle([std::ffi::OsStr::new("ls"), name]).failed(6, &["/nonexistent/\u{fffd}\\u{1b}[2J"]);
    assert_harmless(&finished);
}
