//! Root runs only what only root can change: scripts, configuration and programs.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use tempfile::TempDir;

use crate::program::{run, unbundle_command};
use crate::serve::{unpack, world};
use crate::site::Site;

/// `refused WORDS COMMAND…`: the command must fail with a message that has the words.
const REFUSED: &str = r#"
refused() {
    words=$1; shift
    if "$@" >"$HOST_COPY.said" 2>&1; then cat "$HOST_COPY.said" >&2; echo "not refused: $words" >&2; exit 1; fi
    grep -qF -- "$words" "$HOST_COPY.said" || { cat "$HOST_COPY.said" >&2; echo "no words: $words" >&2; exit 1; }
}
export SITE_ENGINE=nginx
nobody=65534
"#;

#[test]
fn root_starts_no_configuration_that_another_user_can_change() {
    let site = Site::full();
    site.configure(&[]).ok();
    site.run_on_host(&format!(
        r#"{REFUSED}
$CONF/site start; $CONF/site stop
unit_check() {{ echo set -e >/run/check; sed -n 's/^ExecStartPre=+//p' "$CONF/systemd/$1.service" | sed 's/\$\$/$/g' >>/run/check; sh /run/check; }}
unit_check airbundle-site
for path in "$CONF/nginx.conf" "$CONF/registry-api/manifests.conf" "$CONF/tls/server.key" "$CONF" "$SITE"; do
    chown $nobody "$path"
    refused "chown root $path" $CONF/site start
    for unit in airbundle-site airbundle-files airbundle-registry; do
        refused "$path" unit_check $unit
    done
    chown 0 "$path"
done
for path in "$CONF/compose.yaml" "$CONF/registry-api" "$CONF" "$SITE"; do
    mode=$(stat -c %a "$path")
    for change in g+w o+w; do
        chmod $change "$path"
        refused "chmod go-w $path" $CONF/site start
        refused "$path" unit_check airbundle-site
        chmod "$mode" "$path"
    done
done
# What a link leads to counts.
echo 'worker_processes 1;' >"$HOST_COPY/foreign"; chown $nobody "$HOST_COPY/foreign"
ln -s "$HOST_COPY/foreign" "$CONF/more.conf"
refused "chown root $HOST_COPY/foreign" $CONF/site start
refused "$CONF/more.conf" unit_check airbundle-site
rm "$CONF/more.conf"
# The PID file names another process by now.
sleep 1000 & stale=$!
pid=$(echo /run/airbundle-*)/nginx.pid
for content in $stale $$ -1 "1 2" "$stale; id" ""; do
    echo "$content" >"$pid"
    refused 'not running' $CONF/site status
    $CONF/site stop
done
kill -0 $stale; kill $stale; rm "$pid"
# An edited file of root runs.
echo '# mine' >>"$CONF/nginx.conf"
unit_check airbundle-site
$CONF/site start; $CONF/site status; $CONF/site stop"#
    ));
}

#[test]
fn unbundle_site_runs_no_script_that_another_user_can_change() {
    let site = Site::full();
    site.configure(&[]).ok();
    site.run_on_host(&format!(
        r#"{REFUSED}
for script in site trust.sh; do
    option=--start; [ $script = site ] || option=--apply
    printf '#!/bin/sh\ntouch "$HOST_COPY/ran"\n' >"$CONF/$script"
    chown $nobody "$CONF/$script"
    refused "$CONF/$script\` belongs to user ID $nobody" "$UNBUNDLE" site "$SITE" $option
    # Without these options, it is a warning.
    "$UNBUNDLE" site "$SITE" | grep -F "warning: root cannot start the site" | grep -qF "$CONF/$script"
    chown 0 "$CONF/$script"; chmod 777 "$CONF"
    refused "chmod go-w $CONF" "$UNBUNDLE" site "$SITE" $option
    chmod 755 "$CONF"
    test ! -e "$HOST_COPY/ran"
    # The edit is kept, and root owns it: it runs.
    "$UNBUNDLE" site "$SITE" $option
    rm "$HOST_COPY/ran"
    rm "$CONF/$script"
    "$UNBUNDLE" site "$SITE"
done"#
    ));
}

#[test]
fn the_script_runs_programs_of_the_system_only() {
    let site = Site::full();
    site.configure(&["--tls", "off"]).ok();
    site.run_on_host(&format!(
        r#"{REFUSED}
mkdir "$HOST_COPY/evil"
for program in id curl docker nginx find sed; do
    printf '#!/bin/sh\ntouch "%s/ran"\nexit 1\n' "$HOST_COPY" >"$HOST_COPY/evil/$program"
done
chmod 755 "$HOST_COPY"/evil/*
PATH="$HOST_COPY/evil:$PATH" $CONF/site start
$CONF/site stop
mount -t tmpfs -o mode=755 tmpfs /usr/local/sbin
cp "$HOST_COPY/evil/docker" /usr/local/sbin/docker; chown $nobody /usr/local/sbin/docker
refused "chown root /usr/local/sbin/docker" $CONF/site start
rm /usr/local/sbin/docker
# A directory to which others can add programs is not used.
cp "$HOST_COPY/evil/curl" /usr/local/sbin/curl
for mode in 777 1777; do
    chmod $mode /usr/local/sbin
    $CONF/site start 2>"$HOST_COPY.said"
    grep -q 'programs in /usr/local/sbin are not used' "$HOST_COPY.said"
    $CONF/site stop
done
chmod 755 /usr/local/sbin; rm /usr/local/sbin/curl
mkdir -m 777 "$HOST_COPY/open"; cp "$HOST_COPY/evil/docker" "$HOST_COPY/open"
ln -s "$HOST_COPY/open/docker" /usr/local/sbin/docker
refused "chmod go-w $HOST_COPY/open" $CONF/site start
test ! -e "$HOST_COPY/ran"
# Programs in temporary or foreign directories do not become part of a script.
rm /usr/local/sbin/docker
cp "$UNBUNDLE" "$HOST_COPY/evil/unbundle"
"$HOST_COPY/evil/unbundle" site "$SITE"
if grep -rF "$HOST_COPY/evil" "$CONF"; then exit 1; fi"#
    ));
}

#[test]
fn images_are_loaded_by_no_client_that_another_user_can_change() {
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let site = directory.path().join("site");
    unpack(&world().bundle, &site).ok();
    let client = directory.path().join("docker");
    fs::write(&client, format!("#!/bin/sh\ntouch {}/ran\nexit 1\n", directory.path().display())).unwrap();
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&client, Some(65534), None).unwrap();
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let load = || {
        let mut command = unbundle_command();
        run(command.arg("images").arg(&site).args(["pause:3.9", "--load", "docker"]).env("PATH", &path))
    };
    load().failed(11, &["cannot run `docker` as root", "docker` belongs to user ID 65534", "chown root"]);
    assert!(!directory.path().join("ran").exists());
    chown(&client, Some(0), None).unwrap();
    load().failed(11, &["docker does not respond"]);
    assert!(directory.path().join("ran").exists());
}
