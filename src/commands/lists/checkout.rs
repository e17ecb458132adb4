//! [`Checkout`]: the variables of Kubespray's roles and of a user, read in the order in which Ansible takes them.
//!
//! Releases differ in where a variable stands: in the role `kubespray-defaults`, `kubespray_defaults` or `download`, in
//! its defaults or its vars, in one file or in a directory of them. So all of these are read, and a variable is asked for
//! by its name alone.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::fs as file_calls;
use crate::base::fs::FsError;
use crate::commands::lists::dependencies::dependencies;
use crate::commands::lists::error::KubesprayError;
use crate::commands::lists::template::Variable;
use crate::commands::lists::yaml::{self, Node, Yaml};

/// The roles that say what is downloaded. Of the first two a release has one; the last one's defaults win.
const ROLES: [&str; 3] = ["kubespray-defaults", "kubespray_defaults", "download"];
/// What Ansible takes for a file of variables, with no extension at all, too.
const EXTENSIONS: [&str; 3] = ["yml", "yaml", "json"];
/// The most bytes that a file of variables may have. Kubespray's largest has 134 kB.
const FILE_LIMIT: u64 = 16 << 20;

/// A variable and its name, in the order of the files.
pub(crate) type Variables = Vec<(String, Variable)>;

/// A role that another one depends on, the conditions for it, and the file that says so.
pub(crate) type Dependency = (String, Vec<String>, Arc<Path>);

/// A checkout of Kubespray, and what a user has set.
#[derive(Debug)]
pub(crate) struct Checkout {
    root: PathBuf,
    /// What it says that it is: `v2.31.0`.
    pub(crate) release: Option<String>,
    /// The defaults of the roles.
    pub(crate) defaults: Variables,
    /// What the user has set, without what is not taken.
    user: Variables,
    /// The roles' own variables, which win over the user's.
    constants: Variables,
}

impl Checkout {
    /// Reads the checkout at `root`, and what `user` says about it: files of variables, or directories of them.
    ///
    /// Unless `keep_mirrors`, what says where a site fetches from is left out: lists name what the internet has.
    pub(crate) fn read(
        root: &Path,
        user: &[PathBuf],
        keep_mirrors: bool,
        warn: &mut dyn FnMut(String),
    ) -> Result<Self, KubesprayError> {
        let missing =
            |missing: &str| KubesprayError::NoCheckout { path: root.into(), missing: missing.into() };
        let mut defaults = Vec::new();
        let mut constants = Vec::new();
        let roles: Vec<_> = ROLES.iter().map(|role| Path::new("roles").join(role)).collect();
        if !roles[..2].iter().any(|role| root.join(role).is_dir()) {
            return Err(missing("it has neither `roles/kubespray_defaults` nor `roles/kubespray-defaults`"));
        }
        for role in roles {
            let (of_role, own) = read_role(root, &role)?;
            defaults.extend(of_role);
            constants.extend(own);
        }
        if !defaults.iter().chain(&constants).any(|(name, _)| name == "downloads") {
            return Err(missing("none of its roles sets `downloads`"));
        }
        let known: HashSet<_> = defaults.iter().chain(&constants).map(|(name, _)| name.as_str()).collect();
        let fixed: HashSet<_> = constants.iter().map(|(name, _)| name.as_str()).collect();
        let mut taken = Vec::new();
        for (name, variable) in read_user(user, warn)? {
            let place = format!("{}:{}", variable.file.display(), variable.node.line);
            if fixed.contains(name.as_str()) {
                warn(format!(
                    "{place}: `{name}` has no effect: it is one of Kubespray's role vars, which win"
                ));
            } else if !keep_mirrors && is_location(&name) {
                // Only what has an effect is worth a word.
                if known.contains(name.as_str()) {
                    warn(format!(
                        "{place}: `{name}` is not taken: it says where a site fetches from (--keep-mirrors takes it)"
                    ));
                }
            } else {
                taken.push((name, variable));
            }
        }
        Ok(Self { root: root.to_owned(), release: release(root)?, defaults, user: taken, constants })
    }

    /// All variables of a host of this architecture, as Ansible names it, for the roles that say what is downloaded;
    /// for another role with that role's own.
    pub(crate) fn variables(
        &self,
        architecture: &str,
        role: &(Variables, Variables),
    ) -> HashMap<String, Variable> {
        let (defaults, constants) = role;
        let layers = [&self.defaults, defaults, &self.user, &self.constants, constants];
        let mut all: HashMap<_, _> = layers.into_iter().flatten().cloned().collect();
        all.extend(facts(architecture));
        all
    }

    /// The directories of all other roles, from the checkout's root.
    pub(crate) fn other_roles(&self) -> Result<Vec<PathBuf>, KubesprayError> {
        let mut found = Vec::new();
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
                found.push(directory);
            }
        }
        found.sort();
        Ok(found)
    }

    /// The defaults of a role and its own variables.
    pub(crate) fn role(&self, role: &Path) -> Result<(Variables, Variables), KubesprayError> {
        read_role(&self.root, role)
    }

    /// The texts of a role's templates, with their paths from the checkout's root. What is no text is left out.
    pub(crate) fn templates(&self, role: &Path) -> Result<Vec<(Arc<Path>, String)>, KubesprayError> {
        let mut texts = Vec::new();
        for path in files_below(&self.root, &role.join("templates"))? {
            let bytes = file_calls::read(&self.root.join(&path), FILE_LIMIT)?;
            if let Ok(text) = String::from_utf8(bytes) {
                texts.push((Arc::from(path), text));
            }
        }
        Ok(texts)
    }

    /// The roles that a role depends on, the conditions, and the file that says so.
    pub(crate) fn dependencies(&self, role: &Path) -> Result<Vec<Dependency>, KubesprayError> {
        let mut all = Vec::new();
        for path in main_files(&self.root, &role.join("meta"))? {
            // What is no mapping depends on nothing.
            let Ok(Some(fields)) = read_file(&self.root.join(&path), &path, &mut |_| ()) else { continue };
            for (_, variable) in fields.iter().filter(|(name, _)| name == "dependencies") {
                let named = dependencies(&variable.node.value);
                all.extend(
                    named.into_iter().map(|(name, conditions)| (name, conditions, variable.file.clone())),
                );
            }
        }
        Ok(all)
    }

    /// Whether the checkout has this file or directory.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

/// Whether a variable says where something is fetched from, and not what.
fn is_location(name: &str) -> bool {
    name.ends_with("_url") || name.ends_with("_repo")
}

/// What Ansible finds out about a host.
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

/// The release that the checkout's `galaxy.yml` names.
fn release(root: &Path) -> Result<Option<String>, KubesprayError> {
    let path = root.join("galaxy.yml");
    if !path.exists() {
        return Ok(None);
    }
    let bytes = file_calls::read(&path, FILE_LIMIT)?;
    let document = yaml::parse(&String::from_utf8_lossy(&bytes)).unwrap_or_default();
    let version = document.variables.into_iter().find(|(name, _)| name == "version");
    Ok(version
        .and_then(|(_, node)| node.value.key())
        .map(|version| format!("v{}", version.trim_start_matches('v'))))
}

fn read_role(root: &Path, role: &Path) -> Result<(Variables, Variables), KubesprayError> {
    let read = |kind: &str| {
        let mut variables = Vec::new();
        for path in main_files(root, &role.join(kind))? {
            variables.extend(read_file(&root.join(&path), &path, &mut |_| ())?.unwrap_or_default());
        }
        Ok::<_, KubesprayError>(variables)
    };
    Ok((read("defaults")?, read("vars")?))
}

/// The files of a role's `defaults` or `vars`: those of the directory `main`, or one file of that name.
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

/// What the user has set, the last of equal names.
fn read_user(paths: &[PathBuf], warn: &mut dyn FnMut(String)) -> Result<Variables, KubesprayError> {
    let mut variables: Variables = Vec::new();
    let mut places = HashMap::new();
    for path in paths {
        for file in user_files(path)? {
            let Some(read) = read_file(&file, &file, warn)? else {
                warn(format!("{}: is encrypted with ansible-vault, and left out", file.display()));
                continue;
            };
            for (name, variable) in read {
                let place = *places.entry(name.clone()).or_insert(variables.len());
                if place == variables.len() {
                    variables.push((name, variable));
                } else {
                    variables[place].1 = variable;
                }
            }
        }
    }
    Ok(variables)
}

/// The files that a path stands for. In a directory `group_vars`, `all` is for every host and `k8s_cluster` for nearly all;
/// what is for fewer comes later, and wins.
fn user_files(path: &Path) -> Result<Vec<PathBuf>, FsError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let rank = |name: &str| match name.split('.').next() {
        Some("all") => 0,
        Some("k8s_cluster" | "k8s-cluster") => 1,
        _ => 2,
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

/// All files below `directory`, by name, with their paths from `root`. None if it is not there.
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

/// What a directory holds, by name: without hidden and backup files, and without links to directories, which could lead in
/// circles.
fn entries(directory: &Path) -> Result<Vec<(String, bool)>, FsError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(FsError::at("read directory", directory))? {
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

/// The variables of a file, or nothing if all of it is encrypted. `shown` is its name in messages.
fn read_file(
    path: &Path,
    shown: &Path,
    warn: &mut dyn FnMut(String),
) -> Result<Option<Variables>, KubesprayError> {
    let bytes = file_calls::read(path, FILE_LIMIT)?;
    if bytes.starts_with(b"$ANSIBLE_VAULT;") {
        return Ok(None);
    }
    let fault = |line, message| KubesprayError::Yaml { file: shown.to_owned(), line, message };
    let text = String::from_utf8(bytes).map_err(|_| fault(1, "the file is not UTF-8".to_owned()))?;
    let document = yaml::parse(&text).map_err(|error| fault(error.line, error.message))?;
    for (name, line) in document.repeated {
        warn(format!("{}:{line}: `{name}` stands there twice; this one counts", shown.display()));
    }
    let file: Arc<Path> = shown.into();
    let variable = |(name, node)| (name, Variable { node, file: file.clone() });
    Ok(Some(document.variables.into_iter().map(variable).collect()))
}
