//! Limits of the process: open files, address space, threads, and devices that are full. Needs root, for another user.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use tempfile::TempDir;

use crate::pack_job::{OUTPUT, PackJob, mirrors_to};
use crate::program::{Finished, airbundle_command, run, unbundle, unbundle_command};
use crate::support::fake::{Content, Fake};
use crate::support::process::append_command;
use crate::support::random_bytes;

/// The user ID of a process whose threads are limited. No other process has it.
const USER: &str = "54321";

/// Runs a command of a program under test with `prlimit` options.
fn limited(limits: &[&str], command: &Command) -> Finished {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(limits);
    append_command(&mut prlimit, command);
    run(&mut prlimit)
}

/// The job of one large file, and the server.
fn large() -> (PackJob, Fake) {
    let url = "https://files.example/large";
    let mut content = Content::default();
    content.file(url, random_bytes(1, 48 << 20));
    (PackJob::new(url), Fake::honest(content))
}

#[test]
fn an_address_space_of_256_mib_is_enough() {
    let (job, fake) = large();
    let limits = ["--as=268435456"];
    limited(&limits, &job.command(&mirrors_to(&fake))).ok();
    let mut verify = unbundle_command();
    limited(&limits, verify.args(["verify", &job.text(OUTPUT)])).ok();
    let mut unpack = unbundle_command();
    limited(&limits, unpack.args(["unpack", &job.text(OUTPUT), &job.text("site")])).ok();
    let site = job.path("site/files/k8s/files.example/large");
    assert_eq!(fs::metadata(site).expect("the file").len(), 48 << 20);
}

#[test]
fn threads_that_the_system_refuses_are_an_error_before_anything_is_written() {
    let (job, fake) = large();
    job.pack_with(&mirrors_to(&fake)).ok();
    // The other user can reach neither the directory of the build nor that of the test.
    let place = TempDir::new().expect("create a temporary directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("open the directory");
    let (program, bundle) = (place.path().join("unbundle"), place.path().join("b.tar.zst"));
    fs::copy(env!("CARGO_BIN_EXE_unbundle"), &program).expect("copy the program");
    fs::copy(job.path(OUTPUT), &bundle).expect("copy the bundle");
    let unpack = |processes: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", USER, "--regid", USER, "--clear-groups", "prlimit"])
            .arg(format!("--nproc={processes}"));
        run(command.arg(&program).arg("unpack").arg(&bundle).arg(place.path().join("site")))
    };
    for processes in ["1", "3", "8"] {
        let finished = unpack(processes).failed(6, &["error: cannot start the threads of the program: "]);
        assert!(finished.stderr.contains("hint: raise the limit"), "{finished:#?}");
        assert!(!place.path().join("site").exists(), "{processes}");
    }
    unpack("100").ok();
}

#[test]
fn a_blob_in_many_places_needs_few_open_files() {
    let mut content = Content::default();
    let urls: Vec<String> = (0..300).map(|number| format!("https://files.example/{number}")).collect();
    for url in &urls {
        content.file(url, b"the same".to_vec());
    }
    let fake = Fake::honest(content);
    let job = PackJob::new(&urls.join("\n"));
    job.pack_with(&mirrors_to(&fake)).ok();
    let mut unpack = unbundle_command();
    limited(&["--nofile=48:48"], unpack.args(["unpack", &job.text(OUTPUT), &job.text("site")])).ok();
    for number in 0..300 {
        let path = job.path("site/files/k8s/files.example").join(number.to_string());
        assert_eq!(fs::read(path).expect("a file"), b"the same", "{number}");
    }
    // Each is intact, so nothing is written again.
    let again = unbundle(["unpack", "--json", &job.text(OUTPUT), &job.text("site")]).ok();
    assert_eq!(again.json()["kept"], 300, "{again:#?}");
}

#[test]
fn help_that_cannot_be_printed_is_an_error() {
    for mut command in [airbundle_command(), unbundle_command()] {
        for option in ["--help", "--version"] {
            let full = File::options().write(true).open("/dev/full").expect("open /dev/full");
            let status = command.arg(option).stdout(full).status().expect("start the program");
            assert_eq!(status.code(), Some(6), "{option}");
        }
    }
}
