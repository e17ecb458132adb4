# Functions that the other scripts share: messages and the installation of dependencies. Source it with bash from the
# root directory of the repository.
# shellcheck shell=bash
# shellcheck disable=SC2034 # used by the caller

# Servers, clients and tools for the tests, the demo and the benchmarks.
servers_and_clients=(
    ansible-core apache2-utils containerd curl docker-compose docker-registry docker.io e2fsprogs exfat-fuse exfatprogs
    iproute2 iptables minisign nginx ntfs-3g openssl podman python3 python3-venv python3-yaml skopeo strace systemd
    tinyproxy xfsprogs zstd
)
# Build dependencies besides Rust.
build_tools=(build-essential ca-certificates pkg-config)

note() {
    printf '\n==> %s\n' "$*"
}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Installs missing Debian packages. Debian starts a service when it installs it, so this function stops the services
# that it installed. It does not stop services that were installed before.
install_packages() {
    local package service missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    note "Installing ${missing[*]}"
    ((EUID == 0)) || fail "cannot install packages: permission denied. Run as root, or install: ${missing[*]}"
    command -v apt-get >/dev/null || fail "cannot install packages: apt-get not found. Install the equivalent of: ${missing[*]}"
    apt-get -qq update </dev/null
    # Since Debian 13, the Docker client is a separate package.
    if [[ " ${missing[*]} " == *' docker.io '* ]] && available docker-cli 0; then
        missing+=(docker-cli)
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" </dev/null >/dev/null
    for package in "${missing[@]}"; do
        case $package in
            docker.io) service=docker ;;
            docker-registry | nginx | containerd | tinyproxy) service=$package ;;
            *) continue ;;
        esac
        if [[ -d /run/systemd/system ]]; then
            systemctl stop "$service.socket" "$service.service" 2>/dev/null || true
        else
            service "$service" stop >/dev/null 2>&1 || true
        fi
    done
}

# True if apt has the package in at least this version.
available() {
    local candidate
    candidate=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p')
    [[ -n $candidate && $candidate != '(none)' ]] && dpkg --compare-versions "$candidate" ge "$2"
}

# Installs cargo, rustfmt and clippy if cargo is missing. `rustc` of Debian is too old, so this uses `rustc-web`
# (updated for web browsers) if it is recent enough, or `rustup`.
install_rust() {
    local needed
    needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    PATH=$PATH:$HOME/.cargo/bin
    command -v cargo >/dev/null && return
    command -v apt-get >/dev/null && apt-get -qq update </dev/null
    if available rustc-web "$needed"; then
        install_packages cargo-web rustc-web rustfmt-web rust-web-clippy
    elif available rustup 1; then
        install_packages rustup
        rustup default stable
    else
        fail "cargo not found, and apt has no Rust $needed or newer. Install Rust with https://rustup.rs"
    fi
}

# Prints two unused TCP ports on loopback, on one line. Both are bound at the same time, so that they differ.
free_ports() {
    python3 -c 'import socket
a, b = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
print(a.getsockname()[1], b.getsockname()[1])'
}

# Prints the names, rotated by the number of the round: each name is first, and last, equally often.
turn() { # round names...
    local by=$(($1 % ($# - 1)))
    shift
    echo "${@:by+1}" "${@:1:by}"
}
