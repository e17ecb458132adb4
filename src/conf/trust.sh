#!/bin/sh
# Configures this node as a client of the site: adds its host name to /etc/hosts, trusts its CA (certificate authority),
# and sets the site as a mirror for containerd, podman and CRI-O. Made by `unbundle site`. Run it as root on every node,
# and re-run it after a change. `--remove` undoes the configuration.
#
#   sh trust.sh [--root DIR] [--remove]
#
# `--root` configures the node image in DIR instead of this host.
# If the site has a user, set AIRBUNDLE_PASSWORD to its password, for the configuration of containerd.
set -eu

host=@HOST@
ip=@IP@
registry=@REGISTRY@
user=@USER@
plain=@PLAIN@
ca=@CA@
podman=@PODMAN@
# No program that this script runs needs the password.
password=${AIRBUNDLE_PASSWORD:-}
unset AIRBUNDLE_PASSWORD

usage() {
    echo "usage: sh trust.sh [--root DIR] [--remove]" >&2
    exit 2
}
action=
root=
while [ "$#" -gt 0 ]; do
    case $1 in
    --remove) action=$1 ;;
    --root)
        [ -n "${2:-}" ] || usage
        root=$(cd "$2" >/dev/null && pwd -P) || exit 1
        # The root directory of this host.
        root=${root%/}
        shift
        ;;
    *) usage ;;
    esac
    shift
done
if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
    echo "trust.sh: cannot write to /etc: permission denied. Run as root" >&2
    exit 1
fi

log() {
    printf 'trust.sh: %s\n' "$*"
}

# The name becomes part of file names and of a line of /etc/hosts.
case $host in
'' | -* | .* | *[!a-z0-9.-]*)
    log "invalid host name: $host" >&2
    exit 2
    ;;
esac

# With --root, fails if a path leads out of that directory, or if another user could make it do so.
check_path() {
    [ -n "$root" ] || return 0
    checked=$1
    while :; do
        if [ -L "$checked" ] || [ -e "$checked" ]; then
            found=$(find "$checked" -prune \( ! -type f ! -type d -o -type f -links +1 -o ! -user 0 ! -user "$(id -u)" -o -perm -020 -o -perm -002 \) -print) || exit 1
            if [ -n "$found" ]; then
                log "refused: $found is not a regular file with one name or a directory, or another user can change it" >&2
                exit 1
            fi
        fi
        [ "$checked" != "$root" ] || return 0
        checked=${checked%/*}
    done
}

# Temporary files, which other users can neither read nor create first.
check_path "$root/etc"
mkdir -p "$root/etc"
scratch=$(mktemp -d "$root/etc/.airbundle.XXXXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

is_ours() {
    grep -q 'Made by .unbundle site.' "$1" 2>/dev/null
}

# Writes stdin to a file. With --remove, removes the file. A file that this script did not write is renamed first, and
# restored on removal.
put() {
    mark=".before-airbundle"
    check_path "$1"
    check_path "$1$mark"
    if [ "$action" = --remove ]; then
        cat >/dev/null
        if is_ours "$1"; then
            rm -f "$1"
            [ ! -e "$1$mark" ] || mv "$1$mark" "$1"
        fi
        return
    fi
    mkdir -p "$(dirname "$1")"
    if [ -e "$1" ] && ! is_ours "$1"; then
        # The first one is the original.
        number=2
        while [ -e "$1$mark" ] || [ -L "$1$mark" ]; do
            mark=".before-airbundle.$number"
            number=$((number + 1))
        done
        mv "$1" "$1$mark"
        log "renamed existing $1 to $1$mark"
    fi
    # In the directory of the file, so that it is replaced atomically.
    new=$(mktemp -d "$(dirname "$1")/.airbundle.XXXXXXXX") || exit 1
    (umask 077 && cat >"$new/file")
    chmod "${2:-644}" "$new/file"
    mv "$new/file" "$1"
    rmdir "$new"
    log "wrote $1"
}

# The host name. Replaces only a line that this script added.
hosts="$root/etc/hosts"
check_path "$hosts"
touch "$hosts"
host_pattern=$(printf '%s' "$host" | sed 's/[.]/[.]/g')
case $host in
*[!0-9.]*) ;;
*) host_is_address=yes ;;
esac
if [ -n "${host_is_address:-}" ]; then
    log "$host is an IP address: $hosts is not changed"
elif grep -v '# airbundle$' "$hosts" | grep -Eq "^[^#]*[[:space:]]$host_pattern([[:space:]]|\$)" && [ "$action" != --remove ]; then
    log "$hosts already contains $host: not changed"
else
    # Not `mv`, because the file is a mount point in a container.
    kept=$(grep -v "[[:space:]]$host_pattern # airbundle\$" "$hosts" || true)
    {
        [ -z "$kept" ] || printf '%s\n' "$kept"
        [ "$action" = --remove ] || printf '%s %s # airbundle\n' "$ip" "$host"
    } >"$scratch/hosts"
    cat "$scratch/hosts" >"$hosts"
    log "$hosts: $ip $host"
fi

# The CA certificate, for the system trust store (curl, Ansible, containerd, CRI-O) and for docker and podman.
if [ -n "$ca" ]; then
    name="airbundle-$host.crt"
    if [ -d "$root/usr/local/share/ca-certificates" ]; then
        printf '%s' "$ca" | put "$root/usr/local/share/ca-certificates/$name"
        update='update-ca-certificates'
    elif [ -d "$root/etc/pki/ca-trust/source/anchors" ]; then
        printf '%s' "$ca" | put "$root/etc/pki/ca-trust/source/anchors/$name"
        update='update-ca-trust extract'
    elif [ -d "$root/etc/pki/trust/anchors" ]; then
        printf '%s' "$ca" | put "$root/etc/pki/trust/anchors/$name"
        update='update-ca-certificates'
    else
        update=
        log "no system trust store found: add $root/etc/docker/certs.d/$registry/ca.crt to it manually"
    fi
    if [ -n "$update" ] && [ -z "$root" ]; then
        $update >/dev/null 2>&1 || log "\`$update\` failed: run it manually"
    fi
    for client in docker containers containerd; do
        printf '%s' "$ca" | put "$root/etc/$client/certs.d/$registry/ca.crt"
    done
fi
if [ -n "$plain" ]; then
    log "the site uses plain HTTP: docker needs \"insecure-registries\": [\"$registry\"] in /etc/docker/daemon.json"
fi

printf '%s' "$podman" | put "$root/etc/containers/registries.conf.d/50-airbundle.conf"

# Writes the hosts.toml of a registry: its name, the name of the table of HTTP headers, and the content. containerd reads
# these files if its configuration has config_path = "/etc/containerd/certs.d".
put_hosts_toml() {
    mode=644
    (umask 077 && printf '%s' "$3" >"$scratch/hosts.toml")
    if [ -n "$user" ] && [ -n "$password" ]; then
        mode=600
        secret=$(printf '%s:%s' "$user" "$password" | base64 | tr -d '\n')
        printf '%s\n    authorization = "Basic %s"\n' "$2" "$secret" >>"$scratch/hosts.toml"
    fi
    put "$root/etc/containerd/certs.d/$1/hosts.toml" "$mode" <"$scratch/hosts.toml"
    rm "$scratch/hosts.toml"
}
@HOSTS_TOMLS@
if [ -n "$user" ] && [ -z "$password" ] && [ "$action" != --remove ]; then
    log "the site requires the user $user: set AIRBUNDLE_PASSWORD for containerd; for docker and podman, run \`login $registry\`"
fi
