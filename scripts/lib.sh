# What the other scripts have in common: to say what they do, and to have at hand what they need. To be sourced by bash,
# in the folder of the project.
# shellcheck shell=bash
# shellcheck disable=SC2034 # who sources it uses the lists

# What the tests, the demo and the benchmark run: servers, clients and tools.
servers_and_clients=(
    ansible-core apache2-utils containerd curl docker-compose docker-registry docker.io iproute2 iptables minisign nginx
    openssl podman python3 python3-venv skopeo strace tinyproxy zstd
)
# What building needs besides Rust.
build_tools=(build-essential ca-certificates pkg-config)

note() {
    printf '\n==> %s\n' "$*"
}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Install the Debian packages that are missing. Debian starts a server when it installs it; nothing here needs that, so
# such a server is stopped. One that was there before is left alone: every server of ours has a port of its own.
install_packages() {
    local package service missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    note "Installing ${missing[*]}"
    ((EUID == 0)) || fail "these packages are missing, and only root can install them: ${missing[*]}"
    command -v apt-get >/dev/null || fail "this is no Debian: install by hand what does the work of ${missing[*]}"
    apt-get -qq update </dev/null
    # Its client is a package of its own since Debian 13.
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

# Whether Debian has a package of at least this version.
available() {
    local candidate
    candidate=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p')
    [[ -n $candidate && $candidate != '(none)' ]] && dpkg --compare-versions "$candidate" ge "$2"
}

# Have cargo, rustfmt and clippy. Debian's `rustc` is older than this project needs; its `rustc-web` (which follows what
# browsers need) may do, or its `rustup`.
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
        fail "no Rust here, and Debian has none of version $needed or newer: install it as https://rustup.rs tells"
    fi
}

# A TCP port of loopback that nobody uses.
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Its names in another order in each round of a benchmark: each is the first, and the last, equally often.
turn() { # round names...
    local by=$(($1 % ($# - 1)))
    shift
    echo "${@:by+1}" "${@:1:by}"
}
