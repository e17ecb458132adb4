#!/bin/sh
# Makes this node know and trust the site: its name, its certificate authority, and the site as a mirror for
# containerd, podman and CRI-O. Made by `unbundle site`. Run it as root on every node; again after a change, and with
# `--remove` to take everything back.
#
#   sh trust.sh [--remove]
#
# Where the site has a user, give the password in AIRBUNDLE_PASSWORD, and containerd will use it.
set -eu

host='@HOST@'
ip='@IP@'
registry='@REGISTRY@'
user='@USER@'
plain='@PLAIN@'
# For an image of a node: the folder that stands for `/`.
root=${ROOT:-}

case ${1:-} in
'' | --remove) action=${1:-} ;;
*)
    echo "usage: sh trust.sh [--remove]" >&2
    exit 2
    ;;
esac
if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
    echo "trust.sh: run it as root: it writes below /etc" >&2
    exit 1
fi

said() {
    echo "trust.sh: $*"
}

is_ours() {
    grep -q 'Made by .unbundle site.' "$1" 2>/dev/null
}

# Writes stdin to a file, or removes the file. Files of others are kept beside ours, and come back.
put() {
    mark=".before-airbundle"
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
        mv "$1" "$1$mark"
        said "$1 was there: it is $1$mark now"
    fi
    (umask 077 && cat >"$1.part")
    chmod "${2:-644}" "$1.part"
    mv "$1.part" "$1"
    said "wrote $1"
}

ca() {
    cat <<'END'
@CA@
END
}

has_ca() {
    ca | grep -q 'BEGIN CERTIFICATE'
}

# The name. A line of ours is replaced, one of somebody else's left alone.
hosts="$root/etc/hosts"
mkdir -p "$root/etc"
touch "$hosts"
case $host in
*[!0-9.]*) ;;
*) host_is_address=yes ;;
esac
if [ -n "${host_is_address:-}" ]; then
    said "$host is an address: it needs no line in $hosts"
elif grep -v '# airbundle$' "$hosts" | grep -Eq "^[^#]*[[:space:]]$host([[:space:]]|\$)" && [ "$action" != --remove ]; then
    said "$hosts names $host already: left as it is"
else
    # Not `mv`: in a container the file is a mount.
    kept=$(grep -v "[[:space:]]$host # airbundle\$" "$hosts" || true)
    {
        [ -z "$kept" ] || printf '%s\n' "$kept"
        [ "$action" = --remove ] || printf '%s %s # airbundle\n' "$ip" "$host"
    } >"$hosts.part"
    cat "$hosts.part" >"$hosts"
    rm -f "$hosts.part"
    said "$hosts: $ip $host"
fi

# The certificate authority: for the system (curl, Ansible, containerd, CRI-O) and for docker and podman.
if has_ca; then
    name="airbundle-$host.crt"
    if [ -d "$root/usr/local/share/ca-certificates" ]; then
        ca | put "$root/usr/local/share/ca-certificates/$name"
        update='update-ca-certificates'
    elif [ -d "$root/etc/pki/ca-trust/source/anchors" ]; then
        ca | put "$root/etc/pki/ca-trust/source/anchors/$name"
        update='update-ca-trust extract'
    elif [ -d "$root/etc/pki/trust/anchors" ]; then
        ca | put "$root/etc/pki/trust/anchors/$name"
        update='update-ca-certificates'
    else
        update=
        said "no folder for certificates of the system is known here: add $root/etc/docker/certs.d/$registry/ca.crt by hand"
    fi
    if [ -n "$update" ] && [ -z "$root" ]; then
        $update >/dev/null 2>&1 || said "\`$update\` failed: run it by hand"
    fi
    for folder in docker containers containerd; do
        ca | put "$root/etc/$folder/certs.d/$registry/ca.crt"
    done
fi
if [ -n "$plain" ]; then
    said "the site speaks plain http: docker needs \"insecure-registries\": [\"$registry\"] in /etc/docker/daemon.json"
fi

podman() {
    cat <<'END'
@PODMAN@
END
}
podman | put "$root/etc/containers/registries.conf.d/50-airbundle.conf"

# containerd reads these where its configuration has config_path = "/etc/containerd/certs.d".
put_hosts_toml() {
    mode=644
    (umask 077 && cat >"$root/etc/.airbundle.part")
    if [ -n "$user" ] && [ -n "${AIRBUNDLE_PASSWORD:-}" ]; then
        mode=600
        secret=$(printf '%s:%s' "$user" "$AIRBUNDLE_PASSWORD" | base64 | tr -d '\n')
        header=$(sed -n 's/^\(\[host\."[^"]*"\)\]$/  \1.header]/p' "$root/etc/.airbundle.part")
        printf '%s\n    authorization = "Basic %s"\n' "$header" "$secret" >>"$root/etc/.airbundle.part"
    fi
    put "$root/etc/containerd/certs.d/$1/hosts.toml" "$mode" <"$root/etc/.airbundle.part"
    rm -f "$root/etc/.airbundle.part"
}
@HOSTS_TOMLS@
if [ -n "$user" ] && [ -z "${AIRBUNDLE_PASSWORD:-}" ] && [ "$action" != --remove ]; then
    said "the site has the user $user: with AIRBUNDLE_PASSWORD containerd would use it; docker and podman: login $registry"
fi
