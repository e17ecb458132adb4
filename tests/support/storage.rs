//! A look at the storage of a registry that knows its layout and nothing of the programs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Returns the tags, links and manifests of a storage that name something missing.
pub fn incomplete_images(storage: &Path) -> Vec<String> {
    let repositories = storage.join("repositories");
    let mut incomplete = Vec::new();
    for entry in walkdir::WalkDir::new(&repositories).into_iter().filter_map(Result::ok) {
        if entry.file_name() != "link" {
            continue;
        }
        let path = entry.path();
        let text = fs::read_to_string(path).unwrap_or_default();
        let Some(hex) = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64) else {
            incomplete.push(format!("{} has {text:?}", path.display()));
            continue;
        };
        if !data(storage, hex).is_file() {
            incomplete.push(format!("{} names a missing blob", path.display()));
        } else if path.ends_with("current/link") {
            let repository = path.ancestors().nth(5).expect("a tag is below a repository");
            missing_of_manifest(storage, repository, hex, &mut incomplete);
        }
    }
    incomplete
}

fn missing_of_manifest(storage: &Path, repository: &Path, hex: &str, missing: &mut Vec<String>) {
    let mut need = |place: &str, hex: &str| {
        let link = repository.join(place).join("sha256").join(hex).join("link");
        for path in [link, data(storage, hex)] {
            if !path.is_file() {
                missing.push(format!("a tag needs {}", path.display()));
            }
        }
    };
    need("_manifests/revisions", hex);
    let Ok(bytes) = fs::read(data(storage, hex)) else { return };
    let Ok(manifest) = serde_json::from_slice::<Value>(&bytes) else {
        missing.push(format!("manifest {hex} is not JSON"));
        return;
    };
    let list = |name: &str| manifest[name].as_array().cloned().unwrap_or_default();
    let hex_of = |entry: &Value| entry["digest"].as_str().unwrap_or_default().replacen("sha256:", "", 1);
    for entry in list("layers").iter().chain(manifest.get("config")) {
        need("_layers", &hex_of(entry));
    }
    for entry in list("manifests") {
        missing_of_manifest(storage, repository, &hex_of(&entry), missing);
    }
}

fn data(storage: &Path, hex: &str) -> PathBuf {
    storage.join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
}
