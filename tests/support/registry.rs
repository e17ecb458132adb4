//! [`Registry`]: Debian's `docker-registry` on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use ureq::Agent;
use ureq::http::Response;

use super::image::Image;
use super::process::{self, Daemon};
use super::web::Request;
use super::{Bytes, sha256};

/// A registry that stores its content in a directory. Ends when dropped; the content stays.
#[derive(Debug)]
pub struct Registry {
    // Declared before the directory, so that the process ends before its files are removed.
    daemon: Daemon,
    addr: String,
    config: PathBuf,
    agent: Agent,
    _directory: TempDir,
}

impl Registry {
    /// Serves a storage directory (`/var/lib/registry` in a container), which may be empty. Allows pushes and
    /// deletes; caches nothing in memory, so that it serves what is on the disk.
    pub fn start(storage: &Path) -> Self {
        Self::start_with(storage, "delete:\n    enabled: true")
    }

    /// Serves an existing storage directory read-only.
    pub fn serve(storage: &Path) -> Self {
        Self::start_with(storage, "maintenance:\n    readonly:\n      enabled: true")
    }

    /// Like [`Registry::serve`], with an in-memory cache of blob descriptors as in Debian's configuration.
    pub fn serve_with_cache(storage: &Path) -> Self {
        let options =
            "maintenance:\n    readonly:\n      enabled: true\n  cache:\n    blobdescriptor: inmemory";
        Self::start_with(storage, options)
    }

    fn start_with(storage: &Path, options: &str) -> Self {
        fs::create_dir_all(storage).unwrap_or_else(|error| panic!("create {}: {error}", storage.display()));
        let storage =
            storage.canonicalize().unwrap_or_else(|error| panic!("serve {}: {error}", storage.display()));
        let directory = TempDir::new().expect("create a temporary directory");
        let config = directory.path().join("config.yml");
        fs::write(&config, configuration(&storage, options)).expect("write config.yml");
        let command = ["docker-registry".as_ref(), "serve".as_ref(), config.as_os_str()];
        let mut daemon = Daemon::spawn(command, &directory.path().join("log"));
        let addr = daemon.wait_for(address).unwrap_or_else(|log| panic!("{log}"));
        let agent = Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        Self { daemon, addr, config, agent, _directory: directory }
    }

    /// `127.0.0.1:PORT`.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Uploads everything of `image` unchanged; the root under `tag`, or by digest only.
    pub fn push<'a>(&self, repository: &str, tag: impl Into<Option<&'a str>>, image: &Image) {
        for (digest, bytes) in image.parts() {
            self.push_blob(repository, &digest, &bytes);
        }
        let tag = tag.into();
        for (descriptor, bytes) in image.manifests() {
            let name = tag.filter(|_| descriptor == image.root).unwrap_or(&descriptor.digest);
            let url = self.url(&format!("{repository}/manifests/{name}"));
            let put = self.agent.put(&url).header("content-type", &descriptor.media_type);
            expect(201, &format!("PUT {url}"), put.send(&bytes[..]));
        }
    }

    /// Returns a manifest and its media type by tag or digest. `None`: 404.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Vec<u8>)> {
        let url = self.url(&format!("{repository}/manifests/{reference}"));
        let accept = [
            super::image::DOCKER_MANIFEST,
            super::image::DOCKER_LIST,
            super::image::OCI_MANIFEST,
            super::image::OCI_INDEX,
        ];
        let response = self.agent.get(&url).header("accept", accept.join(", ")).call();
        let response = found(&format!("GET {url}"), response)?;
        let media_type = response.headers()["content-type"].to_str().expect("a media type").to_owned();
        Some((media_type, body(response)))
    }

    /// Returns a config or a layer. `None`: 404.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<Vec<u8>> {
        let url = self.url(&format!("{repository}/blobs/{digest}"));
        found(&format!("GET {url}"), self.agent.get(&url).call()).map(body)
    }

    /// Asserts that everything of `image` is served by digest, and the root by `tag` too, byte for byte.
    pub fn assert_serves<'a>(&self, repository: &str, tag: impl Into<Option<&'a str>>, image: &Image) {
        let equal = |name: &str, found: Option<Vec<u8>>, expected: &Bytes| {
            let found = found.unwrap_or_else(|| panic!("{repository}: no {name}"));
            let [found_digest, expected_digest] = [sha256(&found), sha256(expected)];
            assert!(
                found[..] == expected[..],
                "{repository}: {name} is {found_digest}, not {expected_digest}"
            );
        };
        for (descriptor, bytes) in image.manifests() {
            let (media_type, manifest) = self.manifest(repository, &descriptor.digest).unzip();
            equal(&descriptor.digest, manifest, &bytes);
            assert_eq!(
                media_type.as_ref(),
                Some(&descriptor.media_type),
                "{repository}@{}",
                descriptor.digest
            );
        }
        for (digest, bytes) in image.parts() {
            equal(&digest, self.blob(repository, &digest), &bytes);
        }
        if let Some(tag) = tag.into() {
            equal(tag, self.manifest(repository, tag).map(|(_, manifest)| manifest), &image.manifest);
        }
    }

    /// Runs `docker-registry garbage-collect` with these options (such as `--dry-run`) on this storage.
    /// Returns a line for each blob and manifest that it deletes.
    pub fn garbage_collect(&self, options: &[&str]) -> Vec<String> {
        let output = process::run(
            Command::new("docker-registry").arg("garbage-collect").args(options).arg(&self.config),
        );
        let output = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.contains("blobs marked, "), "garbage-collect did not tell what it did:\n{output}");
        output.lines().filter(|line| line.contains(" eligible for deletion: ")).map(str::to_owned).collect()
    }

    /// Returns every request so far, in order. The last ones may be missing while a client is active.
    pub fn requests(&self) -> Vec<Request> {
        self.daemon.log().lines().filter_map(parse).collect()
    }

    /// Returns the registry's log so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    fn push_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        let url = self.url(&format!("{repository}/blobs/{digest}"));
        if found(&format!("HEAD {url}"), self.agent.head(&url).call()).is_some() {
            return;
        }
        let url = self.url(&format!("{repository}/blobs/uploads/"));
        let response = expect(202, &format!("POST {url}"), self.agent.post(&url).send_empty());
        let location = response.headers()["location"].to_str().expect("a location");
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let put = self.agent.put(&url).header("content-type", "application/octet-stream");
        expect(201, &format!("PUT {url}"), put.send(bytes));
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.addr)
    }
}

type HttpResponse = Response<ureq::Body>;

fn expect(status: u16, what: &str, response: Result<HttpResponse, ureq::Error>) -> HttpResponse {
    let response = response.unwrap_or_else(|error| panic!("{what}: {error}"));
    if response.status() == status {
        return response;
    }
    let status = response.status();
    panic!("{what}: {status} {}", String::from_utf8_lossy(&body(response)));
}

fn found(what: &str, response: Result<HttpResponse, ureq::Error>) -> Option<HttpResponse> {
    match response {
        Ok(response) if response.status() == 404 => None,
        response => Some(expect(200, what, response)),
    }
}

fn body(response: HttpResponse) -> Vec<u8> {
    response.into_body().with_config().limit(u64::MAX).read_to_vec().expect("read a response body")
}

/// Returns the address in the log line that reports that the registry listens.
fn address(log: &str) -> Option<String> {
    let rest = &log[log.find("listening on ")? + "listening on ".len()..];
    let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())?;
    Some(rest[..end].to_owned())
}

/// Parses a line of the access log, which is in Apache's format among other lines.
fn parse(line: &str) -> Option<Request> {
    let (_, rest) = line.strip_prefix("127.0.0.1 - - [")?.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = request.split(' ');
    Some(Request {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        status: rest.split(' ').next()?.parse().ok()?,
        range: None,
    })
}

fn configuration(storage: &Path, options: &str) -> String {
    format!(
        "version: 0.1
log:
  level: info
storage:
  filesystem:
    rootdirectory: {storage}
  {options}
http:
  addr: 127.0.0.1:0
",
        storage = storage.display()
    )
}
