//! [`Checkout`]: the variables of Kubespray's roles and of the user, in Ansible's precedence.
//!
//! Releases differ in the location of a variable: in the role `kubespray-defaults`, `kubespray_defaults` or
//! `download`, in its defaults or its vars, in one file or in a directory. All of these are read, and
//! variables are looked up by name only.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::fs::{self, FsError};
use crate::commands::lists::dependencies::{Required, dependencies, included};
use crate::commands::lists::error::KubesprayError;
use crate::commands::lists::options::KubesprayRelease;
use crate::commands::lists::template::Variable;
use crate::commands::lists::yaml::{self, Node, Yaml};

/// The roles that define downloads. A release has one of the first two; the defaults of the last one win.
const ROLES: [&str; 3] = ["kubespray-defaults", "kubespray_defaults", "download"];
/// Extensions of variable files; files without an extension are read, too.
const EXTENSIONS: [&str; 3] = ["yml", "yaml", "json"];
/// Maximum size of a variable file in bytes. Kubespray's largest has 134 kB.
const FILE_LIMIT: u64 = 16 << 20;

/// Named variables in file order.
pub(crate) type Variables = Vec<(String, Variable)>;

/// The variables that a role sets.
#[derive(Debug, Default)]
pub(crate) struct RoleVariables {
    /// Overridden by the user's variables.
    pub(crate) defaults: Variables,
    /// Override the user's variables.
    pub(crate) vars: Variables,
}

impl RoleVariables {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(String, Variable)> {
        self.defaults.iter().chain(&self.vars)
    }
}

/// A role that another role requires or includes.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    /// The name of the required role, possibly a template.
    pub(crate) role: String,
    /// The conditions under which it runs.
    pub(crate) conditions: Vec<String>,
    /// The file that requires it.
    pub(crate) file: Arc<Path>,
}

/// A checkout of Kubespray with the user's variables.
#[derive(Debug)]
pub(crate) struct Checkout {
    root: PathBuf,
    /// The release according to `galaxy.yml`, such as `v2.31.0`. `None`: unknown.
    pub(crate) release: Option<KubesprayRelease>,
    /// The variables of the download roles.
    pub(crate) roles: RoleVariables,
    /// The user's variables, without ignored ones.
    user: Variables,
}

impl Checkout {
    /// Reads the checkout at `root` and the user's variables: files, or directories of them.
    ///
    /// Unless `keep_mirrors` is true, user variables that set download locations are ignored: lists name
    /// upstream locations.
    pub(crate) fn read(
        root: &Path,
        user: &[PathBuf],
        keep_mirrors: bool,
        warn: &mut dyn FnMut(String),
    ) -> Result<Self, KubesprayError> {
        let missing =
            |missing: &str| KubesprayError::NoCheckout { path: root.into(), missing: missing.into() };
        let mut variables = RoleVariables::default();
        let roles: Vec<_> = ROLES.iter().map(|role| Path::new("roles").join(role)).collect();
        if !roles[..2].iter().any(|role| root.join(role).is_dir()) {
            return Err(missing("it has neither `roles/kubespray_defaults` nor `roles/kubespray-defaults`"));
        }
        for role in roles {
            let RoleVariables { defaults, vars } = read_role(root, &role)?;
            variables.defaults.extend(defaults);
            variables.vars.extend(vars);
        }
        if !variables.iter().any(|(name, _)| name == "downloads") {
            return Err(missing("none of its roles sets `downloads`"));
        }
        let known: HashSet<_> = variables.iter().map(|(name, _)| name.as_str()).collect();
        let overriding: HashSet<_> = variables.vars.iter().map(|(name, _)| name.as_str()).collect();
        let mut accepted = Vec::new();
        for (name, variable) in read_user(user, warn)? {
            let position = format!("{}:{}", variable.file.display(), variable.node.line);
            if overriding.contains(name.as_str()) {
                warn(format!("{position}: `{name}` has no effect: Kubespray's role vars override it"));
            } else if !keep_mirrors && is_location(&name) {
                // A warning is only useful if the variable has an effect.
                if known.contains(name.as_str()) {
                    warn(format!(
                        "{position}: `{name}` ignored: it sets a download location (--keep-mirrors uses it)"
                    ));
                }
            } else {
                accepted.push((name, variable));
            }
        }
        Ok(Self { root: root.to_owned(), release: release(root, warn)?, roles: variables, user: accepted })
    }

    /// Returns all variables of a host with this architecture (Ansible's name) for a role; the download
    /// roles have none of their own.
    pub(crate) fn variables(&self, architecture: &str, role: &RoleVariables) -> HashMap<String, Variable> {
        let layers = [&self.roles.defaults, &role.defaults, &self.user, &self.roles.vars, &role.vars];
        let mut all: HashMap<_, _> = layers.into_iter().flatten().cloned().collect();
        all.extend(facts(architecture));
        all
    }

    /// Returns the directories of all other roles, relative to the checkout.
    pub(crate) fn other_roles(&self) -> Result<Vec<PathBuf>, KubesprayError> {
        let mut roles = Vec::new();
        let mut directories = vec![PathBuf::from("roles")];
        while let Some(directory) = directories.pop() {
            let mut is_role = false;
            for (name, is_directory) in entries(&self.root.join(&directory))? {
                let is_part = matches!(name.as_str(), "defaults" | "vars" | "templates" | "tasks" | "meta");
                is_role |= is_directory && is_part;
                if is_directory && !is_part {
                    directories.push(directory.join(name));
                }
            }
            if is_role && !ROLES.iter().any(|role| directory == Path::new("roles").join(role)) {
                roles.push(directory);
            }
        }
        roles.sort();
        Ok(roles)
    }

    pub(crate) fn role(&self, role: &Path) -> Result<RoleVariables, KubesprayError> {
        read_role(&self.root, role)
    }

    /// Returns the templates of a role that are UTF-8, with their paths relative to the checkout.
    pub(crate) fn templates(&self, role: &Path) -> Result<Vec<(Arc<Path>, String)>, KubesprayError> {
        let mut texts = Vec::new();
        for path in files_below(&self.root, &role.join("templates"))? {
            let bytes = read_below(&self.root, &path)?;
            if let Ok(text) = String::from_utf8(bytes) {
                texts.push((Arc::from(path), text));
            }
        }
        Ok(texts)
    }

    /// Returns the roles that a role requires in its `meta` or includes in its tasks.
    pub(crate) fn uses(&self, role: &Path) -> Result<Vec<Use>, KubesprayError> {
        let mut all = Vec::new();
        let mut add = |required: Vec<Required>, file: Arc<Path>| {
            all.extend(required.into_iter().map(|(role, conditions)| Use {
                role,
                conditions,
                file: file.clone(),
            }));
        };
        for path in main_files(&self.root, &role.join("meta"))? {
            // A file that is not a mapping declares no dependencies.
            let parsed = parse_file(read_below(&self.root, &path)?, &path, &mut |_| ());
            let Ok(Some(fields)) = parsed else { continue };
            for (_, variable) in fields.iter().filter(|(name, _)| name == "dependencies") {
                add(dependencies(&variable.node.value), variable.file.clone());
            }
        }
        for path in files_below(&self.root, &role.join("tasks"))? {
            let bytes = read_below(&self.root, &path)?;
            let Ok(tasks) = yaml::parse_tasks(&String::from_utf8_lossy(&bytes)) else { continue };
            add(included(&tasks), path.into());
        }
        Ok(all)
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

/// True if a variable sets the location of a download and not its version.
fn is_location(name: &str) -> bool {
    name.ends_with("_url") || name.ends_with("_repo")
}

/// Returns the Ansible facts of a host.
fn facts(architecture: &str) -> Variables {
    let file: Arc<Path> = Path::new("--arch").into();
    let node = |value| Node { line: 1, value };
    let text = |text: &str| node(Yaml::Text(text.to_owned()));
    let pairs = [("architecture", architecture), ("system", "Linux")];
    let fact = |name: String, node| (name, Variable { node, file: file.clone() });
    let mut facts: Variables =
        pairs.iter().map(|(name, value)| fact(format!("ansible_{name}"), text(value))).collect();
    let map = pairs.iter().map(|(name, value)| (text(name), text(value))).collect();
    facts.push(fact("ansible_facts".to_owned(), node(Yaml::Map(map))));
    facts
}

/// Returns the release in the checkout's `galaxy.yml`.
fn release(root: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<KubesprayRelease>, KubesprayError> {
    let path = root.join("galaxy.yml");
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_below(root, Path::new("galaxy.yml"))?;
    let document = yaml::parse(&String::from_utf8_lossy(&bytes)).unwrap_or_default();
    let version = document.variables.into_iter().find(|(name, _)| name == "version");
    let Some(version) = version.and_then(|(_, node)| node.value.key()) else { return Ok(None) };
    let release = format!("v{}", version.trim_start_matches('v')).parse();
    Ok(release.map_err(|error| warn(format!("galaxy.yml: `version` ignored: {error}"))).ok())
}

fn read_role(root: &Path, role: &Path) -> Result<RoleVariables, KubesprayError> {
    let read = |kind: &str| {
        let mut variables = Vec::new();
        for path in main_files(root, &role.join(kind))? {
            variables.extend(parse_file(read_below(root, &path)?, &path, &mut |_| ())?.unwrap_or_default());
        }
        Ok::<_, KubesprayError>(variables)
    };
    Ok(RoleVariables { defaults: read("defaults")?, vars: read("vars")? })
}

/// Returns the files of a role's `defaults`, `vars` or `meta`: those in the directory `main`, or the file
/// `main`.
fn main_files(root: &Path, directory: &Path) -> Result<Vec<PathBuf>, FsError> {
    let main = directory.join("main");
    if root.join(&main).is_dir() {
        return Ok(files_below(root, &main)?.into_iter().filter(|path| is_variables(path)).collect());
    }
    let mut candidates = vec![main.clone()];
    candidates.extend(EXTENSIONS.iter().map(|extension| main.with_extension(extension)));
    Ok(candidates.into_iter().find(|path| root.join(path).is_file()).into_iter().collect())
}

fn is_variables(path: &Path) -> bool {
    path.extension().is_none_or(|extension| EXTENSIONS.iter().any(|known| extension == *known))
}

/// Reads the user's variables; the last of equal names wins.
fn read_user(paths: &[PathBuf], warn: &mut dyn FnMut(String)) -> Result<Variables, KubesprayError> {
    let mut variables: Variables = Vec::new();
    let mut indexes = HashMap::new();
    for path in paths {
        for file in user_files(path)? {
            let Some(of_file) = parse_file(fs::read(&file, FILE_LIMIT)?, &file, warn)? else {
                warn(format!("{}: ignored: encrypted with ansible-vault", file.display()));
                continue;
            };
            for (name, variable) in of_file {
                let index = *indexes.entry(name.clone()).or_insert(variables.len());
                if index == variables.len() {
                    variables.push((name, variable));
                } else {
                    variables[index].1 = variable;
                }
            }
        }
    }
    Ok(variables)
}

/// Returns the variable files at `path`. In a directory `group_vars`, groups of the cluster's parts win over
/// `k8s_cluster` and other groups, which win over `all`. Those of one depth are merged by name, as Ansible does.
fn user_files(path: &Path) -> Result<Vec<PathBuf>, FsError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let rank = |name: &str| match name.split('.').next() {
        Some("all") => 0,
        // The children of `k8s_cluster` in Kubespray's inventories.
        Some(
            "kube_control_plane" | "kube-master" | "kube_node" | "kube-node" | "calico_rr" | "calico-rr",
        ) => 2,
        _ => 1,
    };
    let mut names = entries(path)?;
    names.sort_by_key(|(name, _)| rank(name));
    let mut files = Vec::new();
    for (name, is_directory) in names {
        let entry = path.join(&name);
        if is_directory {
            files.extend(files_below(Path::new(""), &entry)?.into_iter().filter(|path| is_variables(path)));
        } else if is_variables(&entry) {
            files.push(entry);
        }
    }
    Ok(files)
}

/// Returns all files below `directory`, sorted, with paths relative to `root`. Empty if `directory` is
/// missing.
fn files_below(root: &Path, directory: &Path) -> Result<Vec<PathBuf>, FsError> {
    let mut files = Vec::new();
    if !root.join(directory).is_dir() {
        return Ok(files);
    }
    for (name, is_directory) in entries(&root.join(directory))? {
        let entry = directory.join(name);
        if is_directory { files.extend(files_below(root, &entry)?) } else { files.push(entry) }
    }
    Ok(files)
}

/// Returns the entries of a directory, sorted. Hidden files, backup files and symlinks to directories,
/// which could form cycles, are skipped.
fn entries(directory: &Path) -> Result<Vec<(String, bool)>, FsError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(FsError::at("read directory", directory))? {
        let entry = entry.map_err(FsError::at("read directory", directory))?;
        let kind = entry.file_type().map_err(FsError::at("read directory", directory))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_link_to_directory = kind.is_symlink() && entry.path().is_dir();
        if !name.starts_with('.') && !name.ends_with('~') && !is_link_to_directory {
            names.push((name, kind.is_dir()));
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a file of the checkout: a regular one, and no symlink to another place of this host.
fn read_below(root: &Path, path: &Path) -> Result<Vec<u8>, KubesprayError> {
    let full = root.join(path);
    let refused = |reason| KubesprayError::Refused { path: path.to_owned(), reason };
    let canonical = |path: &Path| std::fs::canonicalize(path).map_err(FsError::at("read", path));
    let target = canonical(&full)?;
    if !target.starts_with(canonical(root)?) {
        return Err(refused("is a symlink that leaves the checkout"));
    }
    if !target.is_file() {
        return Err(refused("is not a regular file"));
    }
    Ok(fs::read(&target, FILE_LIMIT)?)
}

/// Parses the variables of a file. `None`: the file is encrypted. `shown` is its path in messages.
fn parse_file(
    bytes: Vec<u8>,
    shown: &Path,
    warn: &mut dyn FnMut(String),
) -> Result<Option<Variables>, KubesprayError> {
    if bytes.starts_with(b"$ANSIBLE_VAULT;") {
        return Ok(None);
    }
    let fault = |line, message| KubesprayError::Yaml { file: shown.to_owned(), line, message };
    let text = String::from_utf8(bytes).map_err(|_| fault(1, "the file is not UTF-8".to_owned()))?;
    let document = yaml::parse(&text).map_err(|error| fault(error.line, error.message))?;
    for (name, line) in document.repeated {
        warn(format!("{}:{line}: duplicate key `{name}`: the last value is used", shown.display()));
    }
    let file: Arc<Path> = shown.into();
    let variable = |(name, node)| (name, Variable { node, file: file.clone() });
    Ok(Some(document.variables.into_iter().map(variable).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_below_the_checkout_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("checkout");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("file"), "inside").unwrap();
        std::fs::write(directory.path().join("secret"), "outside").unwrap();
        for (target, name) in [
            ("file", "inside"),
            ("../secret", "outside"),
            ("/proc/self/status", "proc"),
            ("/dev/zero", "zero"),
        ] {
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        }
        let socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        for name in ["file", "inside"] {
            assert_eq!(read_below(&root, Path::new(name)).unwrap(), b"inside");
        }
        for name in ["outside", "proc", "zero", "socket"] {
            let error = read_below(&root, Path::new(name)).unwrap_err();
            assert!(matches!(error, KubesprayError::Refused { .. }), "{name}: {error}");
        }
        drop(socket);
    }
}
