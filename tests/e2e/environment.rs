//! The environment of the programs' children has no secret of theirs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use tempfile::tempdir;

use crate::program::{airbundle_command, run, unbundle_command};
use crate::serve::world;
use crate::site::Site;

const SECRETS: [&str; 4] =
    ["AIRBUNDLE_PASSPHRASE", "AIRBUNDLE_PASSWORD", "UNBUNDLE_PASSWORD", "AIRBUNDLE_FUTURE_TOKEN"];

fn with_secrets(command: &mut Command) -> &mut Command {
    command.envs(SECRETS.map(|name| (name, "hush-4711"))).env("GH_TOKEN", "for-gh")
}

/// Asserts that the dump of an environment has no secret, and everything else.
#[track_caller]
pub fn assert_without_secrets(dump: &str) {
    assert!(!dump.contains("hush-4711"), "{dump}");
    assert!(dump.contains("GH_TOKEN=for-gh\n") && dump.contains("PATH="), "{dump}");
}

#[test]
fn the_command_for_volumes_gets_no_secret() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("out.tar.zst");
    let command = format!("env >{}/env", directory.path().display());
    let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let mut pack = airbundle_command();
    pack.arg("pack").arg(&world().lists).arg("-o").arg(&output).args(world().upstream.mirror_args());
    let pack = with_secrets(&mut pack).env("UNBUNDLE_TRUSTED_KEY", key);
    run(pack.args(["--volume-size", "100MiB", "--on-volume", &command])).ok();
    let dump = fs::read_to_string(directory.path().join("env")).unwrap();
    assert_without_secrets(&dump);
    assert!(dump.contains("AIRBUNDLE_VOLUME="), "{dump}");
    // Not a secret: a child that is `unbundle` must require the same signatures.
    assert!(dump.contains(&format!("UNBUNDLE_TRUSTED_KEY={key}\n")), "{dump}");
}

#[test]
fn engines_and_scripts_get_no_secret_but_the_password_for_clients() {
    let site = Site::full();
    let at = |name: &str| site.directory.path().join(name);
    fs::write(at("docker"), format!("#!/bin/sh\nenv >{}\nexit 1\n", at("env").display())).unwrap();
    fs::set_permissions(at("docker"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut load = unbundle_command();
    load.arg("images").arg(site.path()).args(["pause:3.9", "--load", "docker"]);
    load.env("PATH", format!("{}:/usr/bin:/bin", site.directory.path().display()));
    run(with_secrets(&mut load)).failed(11, &["does not respond"]);
    let dump = fs::read_to_string(at("env")).unwrap();
    assert_without_secrets(&dump);

    site.configure(&[]).ok();
    for (script, option) in [("site", "--start"), ("trust.sh", "--apply")] {
        fs::write(site.conf(script), format!("env >{}\n", at("env").display())).unwrap();
        let mut command = unbundle_command();
        run(with_secrets(command.arg("site").arg(site.path()).arg(option))).ok();
        let dump = fs::read_to_string(at("env")).unwrap();
        assert_without_secrets(&dump.replace("AIRBUNDLE_PASSWORD=hush-4711\n", ""));
        assert_eq!(dump.contains("AIRBUNDLE_PASSWORD="), script == "trust.sh", "{dump}");
    }
}
