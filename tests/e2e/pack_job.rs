//! [`PackJob`]: a directory with a list and the bundle that `airbundle pack` makes of it.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::{TempDir, tempdir};

use crate::program::{Finished, airbundle_command, run};
use crate::support::fake::Fake;

/// Hosts of the files and images in lists that are packed from a [`Fake`].
pub const FILES: &str = "files.example";
pub const REGISTRY: &str = "registry.example";

pub const LIST: &str = "all.list";
pub const OUTPUT: &str = "out.tar.zst";
pub const PARTIAL: &str = "out.tar.zst.partial";
pub const MANIFESTS: &str = "out.tar.zst.partial.manifests";
pub const VALIDATORS: &str = ".out.tar.zst.validators.json";
pub const SPOOL: &str = "out.tar.zst.partial.spool";

/// A directory with a list and the bundle that is packed from it. Removed when dropped.
#[derive(Debug)]
pub struct PackJob {
    directory: TempDir,
    environment: Vec<(String, String)>,
}

impl PackJob {
    pub fn new(list: &str) -> Self {
        let directory = tempdir().expect("create a temporary directory");
        let job = Self { directory, environment: Vec::new() };
        job.write(LIST, list);
        job
    }

    /// Sets an environment variable for every run.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the path of `name` as a command-line argument.
    pub fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().expect("a temporary path is UTF-8")
    }

    /// Writes the file `name` with its parent directories, and returns its path as a command-line argument.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file has a parent")).expect("create parent directories");
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("write {name}: {error}"));
        self.text(name)
    }

    pub fn output(&self) -> PathBuf {
        self.path(OUTPUT)
    }

    pub fn command<S: AsRef<OsStr>>(&self, options: &[S]) -> Command {
        let mut command = airbundle_command();
        command.args(["pack", &self.text(LIST), "-o", &self.text(OUTPUT)]).args(options);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Writes the lock of the list to `lock.json`.
    pub fn lock_with(&self, options: &[&str]) -> Finished {
        let mut command = airbundle_command();
        run(command.args(["lock", &self.text(LIST), "-o", &self.text("lock.json")]).args(options))
    }

    pub fn pack(&self) -> Finished {
        self.pack_with::<&str>(&[])
    }

    pub fn pack_with<S: AsRef<OsStr>>(&self, options: &[S]) -> Finished {
        run(&mut self.command(options))
    }

    /// Packs and asserts failure with this code and a line with all these words, without an output.
    #[track_caller]
    pub fn fails(&self, options: &[&str], code: i32, words: &[&str]) -> Finished {
        let finished = self.pack_with(options).failed(code, words);
        assert!(!self.output().exists());
        finished
    }

    /// Packs from `fake` without retries.
    pub fn pack_from(&self, fake: &Fake, options: &[&str]) -> Finished {
        self.pack_with(&Self::options_from(fake, options))
    }

    /// Starts packing from `fake` without retries and without output.
    pub fn start_from(&self, fake: &Fake, options: &[&str]) -> Child {
        let mut command = self.command(&Self::options_from(fake, options));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start airbundle")
    }

    /// Returns the options for packing from `fake` without retries.
    pub fn options_from(fake: &Fake, options: &[&str]) -> Vec<String> {
        let options = ["--retries", "0"].into_iter().chain(options.iter().copied());
        options.map(str::to_owned).chain(mirrors_to(fake)).collect()
    }

    /// Returns the bundle, or its volumes concatenated.
    pub fn bundle(&self) -> Vec<u8> {
        if let Ok(bytes) = fs::read(self.output()) {
            return bytes;
        }
        let volumes = self.file_names().into_iter().filter(|name| name.starts_with("out.tar.zst.0"));
        volumes.flat_map(|name| fs::read(self.path(&name)).expect("read a volume")).collect()
    }

    /// Returns the names of all files in the directory, sorted, without what runs keep for the next one besides bundles.
    pub fn file_names(&self) -> Vec<String> {
        let mut names = self.all_file_names();
        names.retain(|name| name != VALIDATORS && name != MANIFESTS);
        names
    }

    /// Returns the names of all files in the directory, sorted.
    pub fn all_file_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).expect("list a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("list a directory").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }
}

/// Returns the options that route all requests for [`FILES`] and [`REGISTRY`] to `fake`.
pub fn mirrors_to(fake: &Fake) -> Vec<String> {
    [&fake.mirror(FILES)[..], &fake.mirror(REGISTRY), &["--mirrors-only".to_owned()]].concat()
}
