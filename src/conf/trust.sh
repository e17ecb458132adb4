#!/bin/sh
# Configures this node as a client of the site: adds its host name to /etc/hosts, trusts its CA (certificate authority),
# and sets the site as the source of images for containerd, podman, CRI-O, k3s, RKE2 and k0s. Made by `unbundle site`. Run
# it as root on every node, and re-run it after a change. `--remove` undoes the configuration.
#
#   sh trust.sh [--root DIR] [--remove]
#
# `--root` configures the node image in DIR instead of this host.
# If the site has a user, set AIRBUNDLE_PASSWORD to its password, for the configuration of containerd, k3s and RKE2.
set -eu

host=@HOST@
ip=@IP@
registry=@REGISTRY@
user=@USER@
plain=@PLAIN@
ca=@CA@
podman=@PODMAN@
k3s_registries=@K3S@
rke2_registries=@RKE2@
k0s_drop_in=@K0S@
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

# Distributions of Kubernetes with a containerd of their own.
has_rancher() {
    [ -d "$root/etc/rancher/$1" ] || [ -d "$root/var/lib/rancher/$1" ]
}
has_k0s() {
    [ -d "$root/etc/k0s" ] || [ -d "$root/var/lib/k0s" ]
}

# True if a program reads its files below /etc on this node. Kubespray installs containerd later on a node without any
# distribution; k0s is made to read the same files.
is_for() { # containerd, containers or docker
    [ "$action" != --remove ] || return 0
    [ ! -d "$root/etc/$1" ] || return 0
    [ "$1" != containerd ] || ! has_k0s || return 0
    ! has_rancher k3s && ! has_rancher rke2 && ! has_k0s
}

if grep -qs '^ID="*talos' "$root/etc/os-release"; then
    log "Talos reads none of these files: apply conf/clients/talos to its machine configuration" >&2
    exit 1
fi

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
        ! is_for "$client" || printf '%s' "$ca" | put "$root/etc/$client/certs.d/$registry/ca.crt"
    done
    for distribution in k3s rke2; do
        ! has_rancher "$distribution" || printf '%s' "$ca" | put "$root/etc/rancher/$distribution/airbundle.crt"
    done
fi
if [ -n "$plain" ]; then
    log "the site uses plain HTTP: docker needs \"insecure-registries\": [\"$registry\"] in /etc/docker/daemon.json"
fi

! is_for containers || printf '%s' "$podman" | put "$root/etc/containers/registries.conf.d/50-airbundle.conf"

# Writes the registries.yaml of k3s or RKE2, which ends with the settings of the site.
put_registries() { # distribution, content
    mode=644
    (umask 077 && printf '%s' "$2" >"$scratch/registries.yaml")
    if [ -n "$user" ] && [ -n "$password" ]; then
        mode=600
        quoted=$(printf '%s' "$password" | sed "s/'/''/g")
        printf "    auth:\n      username: '%s'\n      password: '%s'\n" "$user" "$quoted" >>"$scratch/registries.yaml"
    fi
    put "$root/etc/rancher/$1/registries.yaml" "$mode" <"$scratch/registries.yaml"
    rm "$scratch/registries.yaml"
    [ "$action" = --remove ] || log "$1 reads it when it starts: restart it. Its option disable-default-registry-endpoint makes the site the only source"
}
! has_rancher k3s || put_registries k3s "$k3s_registries"
! has_rancher rke2 || put_registries rke2 "$rke2_registries"
if has_k0s; then
    printf '%s' "$k0s_drop_in" | put "$root/etc/k0s/containerd.d/airbundle.toml"
    [ "$action" = --remove ] || log "k0s reads it when it starts: restart it"
fi

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
if is_for containerd; then
@HOSTS_TOMLS@
fi

# Prints `ok` if a configuration of containerd makes it read the files above, and `mirrors` if it has settings that exclude
# them. Each version of the configuration has another name for the section.
describe_config() {
    awk '
        FNR == 1 { version = 1; section = "" }
        { sub(/^[ \t]+/, "") }
        /^#/ { next }
        /^version[ \t]*=/ { version = $0; gsub(/[^0-9]/, "", version) }
        /^\[/ {
            section = $0
            sub(/#.*/, "", section)
            gsub(/[][ \t"\047]/, "", section)
            if (section ~ /\.registry\.mirrors/) mirrors = 1
        }
        /^(registry\.)?config_path[ \t]*=/ {
            full = section
            if ($0 ~ /^registry/) full = section ".registry"
            wanted = "plugins.cri.registry"
            if (version == 2) wanted = "plugins.io.containerd.grpc.v1.cri.registry"
            if (version >= 3) wanted = "plugins.io.containerd.cri.v1.images.registry"
            if (full == wanted && index($0, "/etc/containerd/certs.d")) ok = 1
        }
        END { printf "%s%s", ok ? "ok " : "", mirrors ? "mirrors" : "" }
    ' "$@"
}

config="$root/etc/containerd/config.toml"
if [ "$action" != --remove ] && [ -f "$config" ] && command -v awk >/dev/null; then
    set -- "$config"
    for part in "$root"/etc/containerd/conf.d/*.toml; do
        [ ! -f "$part" ] || set -- "$@" "$part"
    done
    section='plugins."io.containerd.grpc.v1.cri".registry'
    ! grep -Eq '^[[:space:]]*version[[:space:]]*=[[:space:]]*[3-9]' "$config" || section="plugins.'io.containerd.cri.v1.images'.registry"
    case $(describe_config "$@") in
    'ok ') ;;
    *mirrors) log "containerd does not read the hosts.toml files: in $config, remove the registry.mirrors sections, set config_path = \"/etc/containerd/certs.d\" in [$section], and restart containerd" ;;
    *) log "containerd does not read the hosts.toml files: in $config, set config_path = \"/etc/containerd/certs.d\" in [$section], and restart containerd" ;;
    esac
fi

if [ -n "$user" ] && [ -z "$password" ] && [ "$action" != --remove ]; then
    log "the site requires the user $user: set AIRBUNDLE_PASSWORD for containerd; for docker and podman, run \`login $registry\`"
fi
