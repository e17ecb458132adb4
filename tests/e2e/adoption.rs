//! A configuration that is not from this host: nothing of it is believed unless the user adopts it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::process::Command;

use serde_json::{Value, json};

use crate::program::{run, unbundle, unbundle_command};
use crate::site::Site;

/// A site from another host, at another path, with the configuration of that host.
fn carried() -> Site {
    let (origin, site) = (Site::full(), Site::empty());
    origin.configure(&[]).ok();
    let copied = Command::new("cp").arg("-a").arg(origin.path()).arg(site.path()).status().expect("start cp");
    assert!(copied.success());
    site
}

#[test]
fn a_carried_configuration_is_not_used_until_it_is_adopted() {
    let site = carried();
    let secret = site.directory.path().join("host.key");
    let openssl = "openssl req -x509 -newkey rsa:2048 -nodes -keyout host.key -out host.crt -days 9 -subj /CN=hub.site.test";
    let made = Command::new("sh").args(["-c", openssl]).current_dir(site.directory.path()).output().unwrap();
    assert!(made.status.success());
    let key = fs::read_to_string(&secret).unwrap();
    let file = site.conf("settings.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let certificate = site.directory.path().join("host.crt");
    settings["tls"] = json!({ "files": [certificate, secret] });
    settings["host"] = json!("github.com");
    fs::write(&file, settings.to_string()).unwrap();
    fs::write(site.conf("site"), "#!/bin/sh\ntouch \"${0%/*}/../../ran\"\n").unwrap();
    fs::set_permissions(site.conf("site"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = site.path().display().to_string();
    let before = crate::support::tree::Tree::of(&site.path());
    for options in [&[][..], &["--start"], &["--tls", "off", "--start"]] {
        let words = ["conf` is not known to be from this host", "--adopt-conf", "--conf DIR", "move it away"];
        let args = [&["site", &*path][..], options].concat();
        unbundle(args).failed(6, &words);
    }
    assert_eq!(crate::support::tree::Tree::of(&site.path()).difference(&before), Vec::<String>::new());
    // Adopted settings name no file of this host.
    fs::remove_file(site.conf("tls/server.key")).unwrap();
    unbundle(["site", &path, "--adopt-conf"]).failed(12, &["`--tls CERT,KEY`"]);
    assert!(!site.conf("tls/server.key").exists());
    for entry in walkdir::WalkDir::new(site.path().join("conf")) {
        let entry = entry.unwrap();
        let text = if entry.file_type().is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        assert!(!String::from_utf8_lossy(&text).contains(key.trim()), "{}", entry.path().display());
    }
    // Edited files of an adopted configuration run, and a warning says so.
    let finished = unbundle(["site", &path, "--tls", "off", "--start"]).ok();
    let words = "warning: ";
    let line =
        finished.stdout.lines().find(|line| line.contains("conf/site was edited, and is used")).unwrap();
    assert!(line.starts_with(words) && line.contains("conf/site.new"), "{finished:#?}");
    assert!(site.directory.path().join("ran").exists());
    let summary = unbundle(["site", &path, "--start", "--json"]).ok().json();
    assert!(summary["warnings"].to_string().contains("conf/site was edited, and is used"), "{summary}");
    assert_eq!(unbundle(["site", &path, "--json"]).ok().json()["warnings"], json!([]));
}

#[test]
fn a_configuration_directory_that_another_user_made_gets_no_keys_until_it_is_adopted() {
    let site = Site::full();
    let (path, conf) = (site.path(), site.path().join("conf"));
    fs::create_dir(&conf).unwrap();
    chown(&conf, Some(65534), Some(65534)).unwrap();
    unbundle(["site".as_ref(), path.as_os_str()])
        .failed(6, &["conf`", "belongs to another user (UID 65534)"]);
    assert!(!conf.join("ca").exists() && !conf.join("settings.json").exists());
    unbundle(["site".as_ref(), path.as_os_str(), "--adopt-conf".as_ref()]).ok();
}

#[test]
fn a_configuration_of_this_host_is_used_without_options_at_its_path_only() {
    let site = Site::full();
    site.configure(&[]).ok();
    for _ in 0..2 {
        let again = unbundle(["site".into(), site.path()]).ok();
        assert!(again.stdout.contains("up to date"), "{again:#?}");
    }
    let other = site.directory.path().join("other");
    fs::rename(site.path(), &other).unwrap();
    unbundle(["site".as_ref(), other.as_os_str()]).failed(6, &["other/conf` is not known", "--adopt-conf"]);
    fs::rename(&other, site.path()).unwrap();
    unbundle(["site".into(), site.path()]).ok();
    // Another user remembers their own configurations only, and the environment decides nothing for root.
    let state = site.directory.path().join("state");
    let mut command = unbundle_command();
    command.arg("site").arg(site.path()).env("XDG_STATE_HOME", &state).env("HOME", "/nonexistent");
    run(&mut command).ok();
    assert!(!state.exists());
    let another = Site::full();
    let prepared =
        Command::new("chown").args(["-R", "65534"]).arg(another.directory.path()).status().unwrap();
    assert!(prepared.success());
    let as_nobody = |state: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_unbundle")]);
        command.args(another.args(&[])).env_remove("XDG_STATE_HOME").env("HOME", state);
        run(&mut command)
    };
    let home = another.directory.path().display().to_string();
    let first = as_nobody("/nonexistent").ok();
    assert!(first.stdout.contains("the next run requires `--adopt-conf`"), "{first:#?}");
    as_nobody(&home).failed(6, &["--adopt-conf"]);
    fs::remove_dir_all(another.path().join("conf")).unwrap();
    let first = as_nobody(&home).ok();
    assert!(!first.stdout.contains("--adopt-conf"), "{first:#?}");
    as_nobody(&home).ok();
    unbundle(["site".into(), another.path()]).failed(6, &["is not known"]);
}

#[test]
fn another_disk_at_a_remembered_path_is_not_known() {
    let site = Site::full();
    site.configure(&["--tls", "off"]).ok();
    let path = site.path().display().to_string();
    // A disk that has a script, and none of the files that the host remembers.
    fs::remove_dir_all(site.conf("")).unwrap();
    fs::create_dir(site.conf("")).unwrap();
    fs::write(site.conf("site"), "#!/bin/sh\ntouch \"${0%/*}/../../ran\"\n").unwrap();
    fs::set_permissions(site.conf("site"), fs::Permissions::from_mode(0o755)).unwrap();
    for options in [&[][..], &["--start"]] {
        let args = [&["site", &*path][..], options].concat();
        unbundle(args).failed(6, &["is missing or not as this host wrote it", "--adopt-conf"]);
    }
    assert!(!site.directory.path().join("ran").exists());
    // A disk without a configuration: a warning says that the previous one is gone.
    fs::remove_dir_all(site.conf("")).unwrap();
    let finished = site.configure(&[]).ok();
    assert!(finished.stdout.contains("although this host remembers a configuration there"), "{finished:#?}");
    let finished = site.configure(&[]).ok();
    assert!(!finished.stdout.contains("although this host remembers"), "{finished:#?}");
}

#[test]
fn links_and_special_files_in_the_storage_are_refused() {
    let site = Site::full();
    site.configure(&["--tls", "off"]).ok();
    let storage = site.path().join("registry");
    let blob = walkdir::WalkDir::new(&storage).into_iter().filter_map(Result::ok);
    let blob = blob.map(walkdir::DirEntry::into_path).find(|path| path.ends_with("data")).unwrap();
    fs::remove_file(&blob).unwrap();
    symlink(site.conf("settings.json"), &blob).unwrap();
    let name = blob.to_str().unwrap();
    unbundle(["site".into(), site.path()]).failed(6, &[name, "is a symlink or a special file"]);
    site.run_on_host(&format!(
        r#"
check() {{ sed -n 's/^ExecStartPre=+//p' "$CONF/systemd/$1.service" | sed 's/\$\$/$/g' | tail -n 1 >/run/check; sh /run/check; }}
if $CONF/site start 2>/run/said; then exit 1; fi
grep -q 'refused: {name} is a symlink' /run/said
if check airbundle-registry 2>/run/said; then exit 1; fi
grep -q 'special file: {name}' /run/said
rm {name}
check airbundle-registry"#
    ));
}

#[test]
fn a_log_or_pid_file_that_is_a_link_is_replaced() {
    let site = Site::full();
    let prepared = Command::new("chown").args(["-R", "65534"]).arg(site.directory.path()).status().unwrap();
    assert!(prepared.success());
    let victim = site.directory.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o666)).unwrap();
    let home = site.directory.path().display().to_string();
    let as_nobody = |program: &str, args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]).args(args);
        run(command.env_remove("XDG_STATE_HOME").env("HOME", &home).env("SITE_ENGINE", "nginx"))
    };
    let args = site.args(&["--tls", "off"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    as_nobody(env!("CARGO_BIN_EXE_unbundle"), &args).ok();
    let run_directory = site.conf("run");
    for name in ["log", "nginx.pid"] {
        symlink(&victim, run_directory.join(name)).unwrap();
    }
    let script = site.conf("site").display().to_string();
    as_nobody(&script, &["start"]).ok();
    as_nobody(&script, &["stop"]).ok();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    fs::remove_dir_all(&run_directory).unwrap();
    symlink(site.directory.path(), &run_directory).unwrap();
    as_nobody(&script, &["start"]).failed(1, &["refused: other users can change", "it is a symlink"]);
}

#[test]
fn a_certificate_is_copied_with_its_own_key_and_nothing_else() {
    let site = Site::full();
    let at = |name: &str| site.directory.path().join(name).display().to_string();
    let script = "
openssl req -x509 -newkey rsa:2048 -nodes -keyout a.key -out a.crt -days 9 -subj /CN=a -addext subjectAltName=DNS:hub.site.test
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout b.key -out b.crt -days 9 -subj /CN=b
openssl pkey -in a.key -traditional -out rsa.key
openssl pkey -in b.key -traditional -out ec.key
openssl genpkey -algorithm ed448 -out ed448.key
cat a.key a.crt b.crt >combined.pem
mkfifo fifo
ln -s combined.pem link.pem";
    let made = Command::new("sh").args(["-ec", script]).current_dir(site.directory.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let tls = |certificate: &str, key: &str| {
        let pair = format!("{},{}", at(certificate), at(key));
        site.configure(&["--tls", &pair])
    };
    tls("a.crt", "ec.key").failed(12, &["ec.key` does not match the certificate"]);
    tls("a.crt", "b.key").failed(12, &["does not match the certificate"]);
    tls("a.crt", "ed448.key").failed(12, &["unsupported private key", "RSA", "Ed25519"]);
    tls("fifo", "a.key").failed(6, &["fifo", "it is not a regular file"]);
    assert!(!site.conf("tls/server.key").exists());
    tls("b.crt", "ec.key").ok();
    tls("a.crt", "rsa.key").ok();
    tls("link.pem", "combined.pem").ok();
    let labels = |name: &str| -> Vec<String> {
        let text = site.read(name);
        text.lines().filter(|line| line.starts_with("-----BEGIN")).map(str::to_owned).collect()
    };
    assert_eq!(labels("tls/server.crt"), ["-----BEGIN CERTIFICATE-----"; 2]);
    assert_eq!(labels("tls/server.key"), ["-----BEGIN PRIVATE KEY-----"]);
    assert!(
        site.read("settings.json").contains("\"files\"") && !site.read("settings.json").contains("combined")
    );
}

#[test]
fn the_password_file_has_one_user_and_one_name() {
    let site = Site::full();
    site.configure_user(&["--user", "carla"]).ok();
    let file = site.conf("htpasswd");
    let line = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("thief:x\n{line}carlas:x\n")).unwrap();
    site.configure(&[]).failed(6, &["conf/htpasswd` is missing or not as this host wrote it"]);
    site.configure(&["--adopt-conf"]).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), line);
    fs::write(&file, "thief:x\n").unwrap();
    site.configure(&["--adopt-conf"]).failed(6, &["no password of the user `carla`", "--user carla"]);
    site.configure_user(&["--user", "carla"]).ok();
    // A hard link to a file of the system.
    let shadow = site.directory.path().join("shadow");
    fs::rename(&file, &shadow).unwrap();
    fs::hard_link(&shadow, &file).unwrap();
    fs::set_permissions(&shadow, fs::Permissions::from_mode(0o600)).unwrap();
    site.configure(&[]).failed(6, &["conf/htpasswd", "it has 2 hard links"]);
    assert_eq!(fs::metadata(&shadow).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_page_in_place_of_the_catalog_has_its_policy_unless_the_user_wants_it() {
    let site = Site::full();
    let page = site.path().join("files/index.html");
    let policy = || site.read("nginx.conf").contains("script-src 'sha256-");
    fs::write(&page, "<script>alert(1)</script>").unwrap();
    site.configure(&[]).ok();
    assert!(policy() && fs::read_to_string(&page).unwrap().contains("alert"));
    site.configure(&["--own-index-page"]).ok();
    assert!(!policy());
    let path = site.path().display().to_string();
    unbundle(["site", &path]).ok();
    assert!(!policy());
    site.configure(&["--no-own-index-page"]).ok();
    assert!(policy() && fs::read_to_string(&page).unwrap().contains("alert"));
    // Nothing is read from a page that never ends.
    fs::remove_file(&page).unwrap();
    symlink("/dev/zero", &page).unwrap();
    site.configure(&[])
        .failed(6, &["cannot write the catalog page", "the configuration is complete", "index.html"]);
    site.configure(&["--own-index-page"]).ok();
    site.configure(&["--no-own-index-page"]).failed(6, &["cannot write the catalog page"]);
    fs::remove_file(&page).unwrap();
    fs::File::create(&page).unwrap().set_len(1 << 40).unwrap();
    site.configure(&[]).ok();
}
