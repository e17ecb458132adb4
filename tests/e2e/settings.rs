//! The settings of a site: saved ones are checked like options, and keys and passwords stay where they belong.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use airbundle::oci::digest::Digest;

use crate::program::{Finished, run, unbundle, unbundle_command};
use crate::site::Site;
use crate::support::tree::Tree;

/// Runs `unbundle` with `password` on stdin.
fn with_password(args: &[String], password: &str) -> Finished {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(password.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    run(unbundle_command().args(args).stdin(Stdio::from(file)))
}

#[test]
fn saved_settings_of_a_carried_disk_are_refused_by_file_and_field() {
    let site = Site::full();
    site.configure(&[]).ok();
    let file = site.conf("settings.json");
    let valid: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (field, value) in [
        ("host", json!("hub.test; include /etc/shadow")),
        ("ip", json!("10.0.0.5\n")),
        ("ip", json!("0.0.0.0")),
        ("filesPort", json!(0)),
        ("registryPort", json!(valid["filesPort"])),
        ("registryPort", json!("5000; }")),
        ("tls", json!({ "files": ["../../server.crt"] })),
        ("tls", json!("maybe")),
        ("user", json!("a'; touch /tmp/pwned; '")),
        ("user", json!("carla:x\n")),
    ] {
        let mut settings = valid.clone();
        settings[field] = value.clone();
        fs::write(&file, settings.to_string()).unwrap();
        let before = Tree::of(&site.path());
        unbundle(["site".into(), site.path()]).failed(6, &["conf/settings.json", "--adopt-conf"]);
        let finished = unbundle(["site".into(), site.path(), "--adopt-conf".into()])
            .failed(6, &["conf/settings.json", &format!("invalid `{field}`")]);
        assert!(!finished.stderr.trim_end().contains('\u{1b}'), "{value}");
        assert_eq!(Tree::of(&site.path()).difference(&before), Vec::<String>::new(), "{field}: {value}");
    }
    let mut settings = valid.clone();
    settings["useR"] = json!("carla");
    fs::write(&file, settings.to_string()).unwrap();
    let adopt = || unbundle(["site".into(), site.path(), "--adopt-conf".into()]);
    adopt().failed(6, &["settings.json", "unknown field `useR`"]);
    fs::write(&file, valid.to_string()).unwrap();
    adopt().ok();
}

#[test]
fn the_list_of_generated_files_of_a_carried_disk_names_no_file_outside() {
    let site = Site::full();
    site.configure(&[]).ok();
    let (list, victim) = (site.conf(".generated.json"), site.directory.path().join("victim"));
    fs::write(&victim, "precious").unwrap();
    let mut names: Value = serde_json::from_slice(&fs::read(&list).unwrap()).unwrap();
    let digest = json!([Digest::of(b"precious").to_string()]);
    for name in ["../../victim", "tls/../../../victim", victim.to_str().unwrap()] {
        names[name] = digest.clone();
    }
    fs::write(&list, names.to_string()).unwrap();
    site.configure(&[]).failed(6, &[".generated.json", "not as this host wrote it"]);
    site.configure(&["--adopt-conf"]).ok();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn the_configuration_is_neither_outside_of_the_site_nor_in_what_is_served() {
    let site = Site::full();
    let at = |name: &str| site.directory.path().join(name);
    let site_with = |conf: &Path| {
        let (site, conf) = (site.path().display().to_string(), conf.display().to_string());
        unbundle(["site", &site, "--conf", &conf, "--host", "hub.site.test", "--ip", "127.0.0.1"])
    };
    // A site from another host has a link in place of the default directory.
    fs::create_dir(at("outside")).unwrap();
    symlink(at("outside"), site.conf("").parent().unwrap().join("conf")).unwrap();
    site.configure(&[]).failed(6, &["site/conf` leads to", "outside", "--conf"]);
    assert_eq!(fs::read_dir(at("outside")).unwrap().count(), 0);
    fs::remove_file(site.path().join("conf")).unwrap();
    // Other names of the served directories.
    symlink(site.path().join("files"), at("alias")).unwrap();
    for conf in [
        at("alias/conf"),
        at("alias/new/conf"),
        site.path().join("registry/../files/conf"),
        site.path().join("missing/../registry/conf"),
    ] {
        site_with(&conf).failed(2, &["is served", "--conf"]);
        assert!(!conf.exists(), "{}", conf.display());
    }
    // A link to another directory is fine, and the generated files have its real path.
    symlink(at("outside"), at("conf")).unwrap();
    site_with(&at("conf")).ok();
    let script = fs::read_to_string(at("outside/site")).unwrap();
    assert!(script.contains(&at("outside").display().to_string()), "{script}");
}

#[test]
fn weak_and_exposed_passwords_are_reported() {
    let site = Site::full();
    let user = |options: &[&str], password: &str| {
        with_password(&site.args(&[&["--user", "carla"], options].concat()), password)
    };
    user(&[], "geheim\n").failed(2, &["weak password", "8 characters", "--weak-password"]);
    assert!(!site.conf("htpasswd").exists() && !site.conf("ca").exists());
    user(&["--weak-password"], "geheim\n").ok();
    let finished = user(&[], "geheimnis\n").ok();
    assert!(!finished.stdout.contains("plain HTTP"), "{finished:#?}");
    let mode = || fs::metadata(site.conf("htpasswd")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o640);
    // The mode of an earlier version.
    fs::set_permissions(site.conf("htpasswd"), fs::Permissions::from_mode(0o644)).unwrap();
    unbundle(["site".into(), site.path()]).ok();
    assert_eq!(mode(), 0o640);
    let finished = user(&["--tls", "off"], "geheimnis\n").ok();
    assert!(
        finished
            .stdout
            .contains("warning: the site uses plain HTTP: everyone on the network can read the password"),
        "{finished:#?}"
    );
    let warnings = unbundle(["site".into(), site.path(), "--json".into()]).ok().json();
    assert!(warnings["warnings"][0].as_str().unwrap().contains("plain HTTP"), "{warnings}");
}

#[test]
fn the_group_of_nginx_reads_the_password_hash_and_other_users_do_not() {
    let site = Site::full();
    with_password(&site.args(&["--user", "carla"]), "geheimnis\n").ok();
    site.run_on_host(
        r#"
SITE_ENGINE=nginx $CONF/site start
test "$(curl -sko /dev/null -w '%{http_code}' -u carla:geheimnis "https://127.0.0.1:$FILES/")" = 200
worker=$(grep -l "^PPid:[[:space:]]*$(cat /run/airbundle-*/nginx.pid)$" /proc/[0-9]*/status | head -n 1)
group=$(sed -n 's/^Gid:[[:space:]]*\([0-9]*\).*/\1/p' "$worker")
test "$(stat -c '%u %g %a' "$CONF/htpasswd")" = "0 $group 640"
if setpriv --reuid=4711 --regid=4711 --clear-groups cat "$CONF/htpasswd"; then exit 1; fi
# A group that the server has is kept.
chgrp 4712 "$CONF/htpasswd"
printf 'geheimnis-2\n' | "$UNBUNDLE" site "$SITE" --user carla
test "$(stat -c '%g %a' "$CONF/htpasswd")" = "4712 640"
"#,
    );
    assert_ne!(fs::metadata(site.conf("htpasswd")).unwrap().gid(), 0);
}

#[test]
fn trust_sh_modifies_the_root_directory_of_its_option() {
    let site = Site::full();
    site.configure(&[]).ok();
    site.run_on_host(
        r#"
mkdir -p "$HOST_COPY/node/etc" "$HOST_COPY/variable/etc"
cp /etc/hosts "$HOST_COPY.hosts"
sh $CONF/trust.sh --root "$HOST_COPY/node"
grep -q '^127.0.0.1 hub.site.test # airbundle$' "$HOST_COPY/node/etc/hosts"
test -e "$HOST_COPY/node/etc/containerd/certs.d/quay.io/hosts.toml"
cmp /etc/hosts "$HOST_COPY.hosts"
sh $CONF/trust.sh --remove --root "$HOST_COPY/node"
if grep hub.site.test "$HOST_COPY/node/etc/hosts"; then exit 1; fi
if sh $CONF/trust.sh --root; then exit 1; fi
if sh $CONF/trust.sh --root "$HOST_COPY/missing"; then exit 1; fi
# Nothing leads out of that directory, and an original file is kept.
refused() { if sh $CONF/trust.sh --root "$HOST_COPY/node" 2>"$HOST_COPY.said"; then exit 1; fi; grep -q "refused: $1 is" "$HOST_COPY.said"; }
mkdir "$HOST_COPY/victim"; echo precious >"$HOST_COPY/victim/hosts"
for path in hosts containerd docker/certs.d; do
    rm -rf "$HOST_COPY/node/etc"; mkdir -p "$(dirname "$HOST_COPY/node/etc/$path")"
    ln -s "$HOST_COPY/victim/hosts" "$HOST_COPY/node/etc/$path"
    refused "$HOST_COPY/node/etc/$path"
    rm "$HOST_COPY/node/etc/$path"; ln -s "$HOST_COPY/victim" "$HOST_COPY/node/etc/$path"
    refused "$HOST_COPY/node/etc/$path"
    rm "$HOST_COPY/node/etc/$path"; mkdir "$HOST_COPY/node/etc/$path"; chown 4711 "$HOST_COPY/node/etc/$path"
    refused "$HOST_COPY/node/etc/$path"
done
hosts="$HOST_COPY/node/etc/hosts"
rm -rf "$HOST_COPY/node/etc"; mkdir "$HOST_COPY/node/etc"
mkfifo "$hosts"; refused "$hosts"; rm "$hosts"
mknod "$hosts" c 1 3; refused "$hosts"; rm "$hosts"
ln "$HOST_COPY/victim/hosts" "$hosts"; refused "$hosts"; rm "$hosts"
chmod g+w "$HOST_COPY/node"; refused "$HOST_COPY/node"; chmod g-w "$HOST_COPY/node"
test "$(cat "$HOST_COPY/victim/hosts")" = precious; test "$(ls "$HOST_COPY/victim")" = hosts
rm -rf "$HOST_COPY/node/etc"; mkdir "$HOST_COPY/node/etc"
conf="$HOST_COPY/node/etc/containers/registries.conf.d/50-airbundle.conf"
mkdir -p "$(dirname "$conf")"
for text in original second third; do
    echo $text >"$conf"
    sh $CONF/trust.sh --root "$HOST_COPY/node"
done
test "$(cat "$conf.before-airbundle" "$conf.before-airbundle.2" "$conf.before-airbundle.3" | tr '\n' ' ')" = "original second third "
test -z "$(find "$HOST_COPY/node" -name '.airbundle*' -o -name '*.part')"
sh $CONF/trust.sh --remove --root "$HOST_COPY/node"
test "$(cat "$conf")" = original
# The environment decides nothing.
ROOT="$HOST_COPY/variable" sh $CONF/trust.sh
grep -q 'hub.site.test # airbundle$' /etc/hosts
test -z "$(ls "$HOST_COPY/variable/etc")"
"#,
    );
}
