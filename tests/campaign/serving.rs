//! A site that is served while it is unpacked, pruned and garbage-collected: whatever is served is right and complete.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use ureq::Agent;

use crate::program::{unbundle, unbundle_command};
use crate::report::Report;
use crate::scenario::{badly_ended, run_within};
use crate::support::process::run as run_command;
use crate::support::registry::Registry;
use crate::support::sha256;
use crate::support::storage::incomplete_images;
use crate::support::web::Web;
use crate::world::World;

/// Name of this part.
pub const PART: &str = "served meanwhile";

/// The media types of manifests.
const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";

/// Runs this many rounds of unpack, prune, and garbage collection.
pub fn run(world: &World, rounds: usize, report: &Report) {
    let top = world.cases("served");
    run_command(Command::new("cp").arg("-a").args([&world.path("site-a"), &top]));
    let site = top.join("site");
    let registry = Registry::serve(&site.join("registry"));
    let web = Web::start(&site.join("files"));
    let ends = AtomicBool::new(false);
    let commands = AtomicUsize::new(0);
    let path = |name: &str| world.text(name);
    let at = site.to_str().expect("UTF-8");
    let (a, b) = (path("a.tar.zst"), path("b.tar.zst"));
    let (a, b) = (a.as_str(), b.as_str());
    let files = known_files(&[a, b]);
    thread::scope(|scope| {
        let _end = End(&ends);
        for _ in 0..2 {
            scope.spawn(|| read_images(&registry, &commands, &ends, report));
            scope.spawn(|| read_files(&web, &files, &ends, report));
        }
        for round in 0..rounds {
            for (group, arguments) in [
                ("unpack", vec!["unpack", "-q", b, at]),
                ("prune", vec!["prune", "-q", at, "--keep", b, "--yes"]),
                ("unpack", vec!["unpack", "-q", a, at]),
                ("prune", vec!["prune", "-q", at, "--keep", a, "--yes"]),
            ] {
                // Between the commands: a collection that has begun before one of them does not know what it adds.
                if round % 2 == 1 {
                    registry.garbage_collect(&[]);
                }
                commands.fetch_add(1, Ordering::Relaxed);
                let mut command = unbundle_command();
                let ended = run_within("60", std::process::Stdio::null(), command.args(&arguments));
                let mut violations = badly_ended(&ended);
                if ended.code != 0 {
                    violations.push(format!("exit code {}: {}", ended.code, ended.stderr));
                }
                violations.extend(incomplete_images(&site.join("registry/docker/registry/v2")));
                report.add(PART, group, &format!("round {round}"), ended.code, &violations);
            }
        }
    });
    fs::remove_dir_all(&top).expect("remove a directory");
}

/// Ends the readers when it is dropped, even by a panic.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns the digests that each path may have.
fn known_files(bundles: &[&str]) -> HashMap<String, Vec<String>> {
    let mut files: HashMap<String, Vec<String>> = HashMap::new();
    for bundle in bundles {
        let listed = unbundle(["ls", "--json", bundle]).ok();
        let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
        for file in listed["files"].as_array().expect("files") {
            let text = |name: &str| file[name].as_str().expect("a text").to_owned();
            files.entry(text("path")).or_default().push(text("digest"));
        }
    }
    files
}

/// Pulls all images again and again. What a tag names must be there, unless the tag has been removed meanwhile.
fn read_images(registry: &Registry, commands: &AtomicUsize, ends: &AtomicBool, report: &Report) {
    let tags = ["app:1", "old:1", "new:1"];
    let agent: Agent = Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
    while !ends.load(Ordering::Relaxed) {
        for name in tags {
            let (repository, tag) = name.split_once(':').expect("a tag");
            let repository = format!("k8s/quay.io/team/{repository}");
            let number = commands.load(Ordering::Relaxed);
            let Some(bytes) = get(&agent, registry, &repository, "manifests", tag) else { continue };
            let mut missing = Vec::new();
            pull(&agent, registry, &repository, &bytes, &mut missing);
            // `prune` removes a tag before its blobs, and `unpack` can replace it. Three commands can remove an image and
            // unpack it again.
            let still = get(&agent, registry, &repository, "manifests", tag)
                .is_some_and(|again| again == bytes)
                && commands.load(Ordering::Relaxed) < number + 2;
            report.add(PART, "image pulled", name, 0, if still { &missing } else { &[] });
        }
    }
}

/// Returns what the registry serves. `None`: not found, or cut off because it was removed meanwhile.
fn get(agent: &Agent, registry: &Registry, repository: &str, kind: &str, name: &str) -> Option<Vec<u8>> {
    let url = format!("http://{}/v2/{repository}/{kind}/{name}", registry.addr());
    let mut response = agent.get(&url).header("accept", ACCEPT).call().ok()?;
    (response.status().as_u16() == 200).then(|| response.body_mut().read_to_vec().ok()).flatten()
}

fn pull(agent: &Agent, registry: &Registry, repository: &str, manifest: &[u8], missing: &mut Vec<String>) {
    let Ok(manifest) = serde_json::from_slice::<Value>(manifest) else {
        missing.push("a manifest is not JSON".to_owned());
        return;
    };
    let list = |name: &str| manifest[name].as_array().cloned().unwrap_or_default();
    for child in list("manifests") {
        let digest = child["digest"].as_str().expect("a digest");
        match get(agent, registry, repository, "manifests", digest) {
            Some(bytes) if sha256(&bytes) == digest => pull(agent, registry, repository, &bytes, missing),
            _ => missing.push(format!("{repository} has no manifest {digest}")),
        }
    }
    for blob in list("layers").iter().chain(manifest.get("config")) {
        let digest = blob["digest"].as_str().expect("a digest");
        if get(agent, registry, repository, "blobs", digest).is_none_or(|bytes| sha256(&bytes) != digest) {
            missing.push(format!("{repository} has no blob {digest}"));
        }
    }
}

/// Downloads all files again and again.
fn read_files(web: &Web, files: &HashMap<String, Vec<String>>, ends: &AtomicBool, report: &Report) {
    let agent: Agent = Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
    while !ends.load(Ordering::Relaxed) {
        for (path, digests) in files {
            let mut response = agent.get(&web.url(&format!("k8s/{path}"))).call().expect("a response");
            let status = response.status().as_u16();
            let bytes = response.body_mut().read_to_vec().expect("a body");
            let is_right = status == 404 || status == 200 && digests.contains(&sha256(&bytes));
            let violation = format!("status {status}, {} bytes that no bundle has", bytes.len());
            report.add(
                PART,
                "file downloaded",
                path,
                0,
                if is_right { &[] } else { std::slice::from_ref(&violation) },
            );
        }
    }
}
