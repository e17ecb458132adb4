//! Documents that arrive a byte now and then: manifests, tokens, configs and error messages.

use std::time::{Duration, Instant};

use crate::pack_job::PackJob;
use crate::support::fake::{Content, Fake, Reply};
use crate::support::image::{Compression, Format, Image, Layer};

/// A long token or error message.
fn long_json(key: &str) -> Vec<u8> {
    format!("{{\"{key}\":\"{}\"}}", "x".repeat(1000)).into_bytes()
}

#[test]
fn documents_obey_the_idle_limit_and_the_minimum_rate() {
    let image = Image::new(Format::Oci, "linux/amd64", &[Layer::random(1, 1000, Compression::Gzip)]);
    let config = image.config().expect("a config").digest.clone();
    for (what, part, words) in [
        ("a manifest", "/manifests/".to_owned(), &["stalled", "--idle-timeout", "/manifests/1"][..]),
        ("a config", format!("/blobs/{config}"), &["stalled", "--idle-timeout"]),
        ("a token", "/token".to_owned(), &["stalled", "--idle-timeout", "/token"]),
        ("an error message", "/manifests/".to_owned(), &["404 Not Found"]),
    ] {
        let mut content = Content::default();
        content.image("team/app:1", &image);
        let registry = Fake::start(content, move |seen, reply| {
            let reply = match what {
                "a token" if seen.path.starts_with("/token") => Reply::ok(&long_json("token")),
                "a token" if seen.path.starts_with("/v2/team") => {
                    let host = seen.header("host").expect("a host");
                    let challenge = format!("Bearer realm=\"http://{host}/token\"");
                    return Reply::status(401).with("www-authenticate", &challenge);
                }
                "an error message" if seen.path.contains(&part) => {
                    Reply { body: long_json("errors"), ..Reply::status(404) }
                }
                _ if seen.path == "/v2/" => Reply::ok(b"{}"),
                _ => reply,
            };
            // 10 bytes a second, and never idle.
            let is_slow = seen.path.contains(&part);
            if is_slow { Reply { pause: Duration::from_millis(100), step: 1, ..reply } } else { reply }
        });
        let job = PackJob::new(&format!("{}/team/app:1\n", registry.addr()));
        let begin = Instant::now();
        job.fails(&["--retries", "0", "--idle-timeout", "1s"], 4, words);
        let time = begin.elapsed();
        assert!(time < Duration::from_secs(15), "{what}: {time:?}");
        assert!(time > Duration::from_millis(900), "{what}: {time:?}");
    }
}
