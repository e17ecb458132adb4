#!/bin/sh
# Runs the site: the file server and the registry. Made by `unbundle site`, which keeps local edits.
#
#   site start     start both servers, wait until they respond, print the URLs
#   site stop      stop both servers
#   site status    print the state of both servers; exit status 0 if both respond
#   site logs      print the server logs
#
# The engine is the first that is available of: docker with compose, docker, podman, nginx.
# Set SITE_ENGINE=compose|docker|podman|nginx to choose one.
set -u

name=@NAME@
site=@SITE@
conf=@CONF@
files=@FILES@
registry=@REGISTRY@
host=@HOST@
files_port=@FILES_PORT@
registry_port=@REGISTRY_PORT@
scheme=@SCHEME@
# The address of the servers on this host, and what precedes the ports of containers.
address=@ADDRESS@
published=@PUBLISHED@
container_config=@CONTAINER_CONFIG@
user=@USER@
own_ca=@OWN_CA@
# The digests by which an engine can know an image of the site.
nginx_image=@NGINX_IMAGE@
nginx_ids=@NGINX_IDS@
# The entry point of the official image runs its arguments.
nginx_word=@NGINX_WORD@
registry_image=@REGISTRY_IMAGE@
registry_ids=@REGISTRY_IDS@
container_user=@CONTAINER_USER@
unbundle=@UNBUNDLE@
server_user=@SERVER_USER@

# No program that this script runs needs a password.
unset AIRBUNDLE_PASSWORD AIRBUNDLE_PASSPHRASE

fail() {
    echo "site: $*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Directory for the PID file and the log. Root runs programs of the system only.
system_path=/usr/sbin:/usr/bin:/sbin:/bin
if [ "$(PATH=$system_path && id -u)" = 0 ]; then
    is_root=yes
    PATH=$system_path
    export PATH
    run="/run/$name"
else
    is_root=
    run="$conf/run"
fi
pid="$run/nginx.pid"

# ---- Ownership -----------------------------------------------------------------------------------------------------

# Adds a path and all directories above it to `paths`.
add_path() {
    path=$1
    while [ -n "$path" ]; do
        paths="$paths $path"
        path=${path%/*}
    done
}

# Adds a path, and the file to which its symlinks lead.
add_file() {
    add_path "$1"
    target=$(readlink -f "$1") || target=
    [ -e "$target" ] || fail "cannot find $1"
    [ "$target" = "$1" ] || add_path "$target"
}

# True if only root can add programs to a directory. The sticky bit does not keep other users from that.
is_of_root() {
    paths=
    add_file "$1"
    # shellcheck disable=SC2086
    changeable=$(
        find -H "$1" -prune \( ! -user 0 -o -perm -020 -o -perm -002 \) -print &&
            find $paths -prune \( ! -user 0 -o ! -type l ! \( -type d -perm -1000 \) \( -perm -020 -o -perm -002 \) \) -print
    ) || return 1
    [ -z "$changeable" ]
}

# Extends `PATH` by the directories for programs of the administrator and of snap that only root can change.
extend_path() {
    local_path=
    for directory in /usr/local/sbin /usr/local/bin /snap/bin; do
        [ -d "$directory" ] || continue
        if ! is_of_root "$directory"; then
            echo "site: programs in $directory are not used, because other users can change it" >&2
        elif [ "$directory" = /snap/bin ]; then
            PATH="$PATH:$directory"
        else
            local_path="$local_path$directory:"
        fi
    done
    PATH="$local_path$PATH"
    export PATH
}

# Fails if another user can change what root would run: the configuration, programs, and the directories above them. In
# a directory with the sticky bit, other users cannot replace what root owns.
check_ownership() {
    for directory in /usr/sbin /usr/bin /sbin /bin; do
        is_of_root "$directory" || fail "refused: other users can change $directory: run \`chown root $directory && chmod go-w $directory\`"
    done
    extend_path
    paths=/
    add_file "$conf"
    for program in docker docker-compose podman nginx /usr/sbin/nginx curl wget openssl ss unbundle "$unbundle"; do
        file=$(command -v "$program") || continue
        add_file "$file"
    done
    links=$(find "$conf" -type l) || fail "cannot read $conf"
    for link in $links; do
        add_file "$link"
    done
    # shellcheck disable=SC2086
    changeable=$(
        find $paths -prune \( ! -user 0 -o ! -type l ! \( -type d -perm -1000 \) \( -perm -020 -o -perm -002 \) \) -print &&
            find "$conf" \( ! -user 0 -o ! -type l \( -perm -020 -o -perm -002 \) \) -print
    ) || fail "cannot examine the owners of $conf"
    [ -n "$changeable" ] || return 0
    changeable=$(echo "$changeable" | head -n 1)
    fail "refused: root would run what another user can change:
  $(ls -ld "$changeable")
  Check the content of $changeable, then run \`chown root $changeable && chmod go-w $changeable\`"
}

# Lets a group read the password hashes, and no other user.
share_with_group() {
    if ! chgrp "$1" "$conf/htpasswd" || ! chmod 640 "$conf/htpasswd"; then
        fail "nginx cannot read $conf/htpasswd: see above"
    fi
}

# Lets the group of nginx read the password hashes. $1 is the PID of its main process. On this host, root starts it as
# the user that `run_nginx` sets.
share_htpasswd() {
    [ -n "$user" ] && [ -n "${1:-}" ] || return 0
    if [ -n "$is_root" ] && [ "$engine" = nginx ] && group=$(server_group); then
        share_with_group "$group"
        return
    fi
    # shellcheck disable=SC2013 # These paths have no spaces.
    for status in $(grep -ls "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status); do
        owner=$(sed -n 's/^Uid:[[:space:]]*\([0-9]*\).*/\1/p' "$status" 2>/dev/null)
        group=$(sed -n 's/^Gid:[[:space:]]*\([0-9]*\).*/\1/p' "$status" 2>/dev/null)
        if [ -z "$group" ] || [ "$owner" = "$(id -u)" ]; then
            continue
        elif [ -n "$is_root" ]; then
            share_with_group "$group"
        elif [ -z "$(find "$conf/htpasswd" -perm -004)" ]; then
            chmod 644 "$conf/htpasswd" || fail "nginx cannot read $conf/htpasswd: see above"
            echo "site: all users of this host can read $conf/htpasswd, because nginx runs as another user" >&2
        fi
        return
    done
}

# Prints the PID of the main process of nginx.
nginx_pid() {
    case $engine in
    compose) docker inspect -f '{{.State.Pid}}' "$(compose ps -q nginx)" ;;
    docker | podman) "$engine" inspect -f '{{.State.Pid}}' "$name" ;;
    nginx) nginx_runs && echo "$number" ;;
    esac
}

# ---- Engines -------------------------------------------------------------------------------------------------------

compose() {
    # Otherwise the file has defaults.
    [ -z "${nginx_id:-}" ] || export SITE_NGINX_IMAGE="$nginx_id"
    [ -z "${registry_id:-}" ] || export SITE_REGISTRY_IMAGE="$registry_id"
    if docker compose version >/dev/null 2>&1; then
        docker compose -p "$name" -f "$conf/compose.yaml" "$@"
    else
        docker-compose -p "$name" -f "$conf/compose.yaml" "$@"
    fi
}

# True if an engine is installed and its daemon, if any, responds. (Some versions of `docker info` succeed without one.)
engine_responds() {
    has "$1" || return 1
    case $1 in
    docker) [ -n "$(docker version --format '{{.Server.Version}}' 2>/dev/null)" ] ;;
    podman) podman info >/dev/null 2>&1 ;;
    esac
}

has_compose() {
    engine_responds docker && { docker compose version >/dev/null 2>&1 || has docker-compose; }
}

has_nginx() {
    has nginx || [ -x /usr/sbin/nginx ]
}

can_use() {
    case $1 in
    compose) has_compose ;;
    docker | podman) engine_responds "$1" ;;
    nginx) has_nginx ;;
    esac
}

# Sets `engine`. If the site is running, this is the engine that runs it.
choose_engine() {
    requested=${SITE_ENGINE:-}
    case $requested in
    '' | compose | docker | podman | nginx) ;;
    *) fail "invalid SITE_ENGINE '$requested': expected compose, docker, podman or nginx" ;;
    esac
    for engine in compose docker podman nginx; do
        if can_use "$engine" && runs; then
            [ -z "$requested" ] || [ "$requested" = "$engine" ] || [ "$1" != start ] ||
                fail "the site is already running with $engine: run \`$0 stop\` first"
            return
        fi
    done
    engine=$requested
    case $engine in
    compose) has_compose || fail 'docker with compose is not installed or not running: start it (systemctl start docker), or unset SITE_ENGINE' ;;
    docker | podman)
        has "$engine" || fail "$engine: command not found"
        engine_responds "$engine" || fail "$engine does not respond: is it running?"
        ;;
    nginx) has_nginx || fail 'nginx: command not found' ;;
    '')
        # A container engine also needs the image of nginx.
        for engine in compose docker podman; do
            client=$engine
            [ "$engine" != compose ] || client=docker
            if can_use "$engine" && has_nginx_image "$client"; then
                return
            fi
        done
        engine=nginx
        has_nginx || fail 'cannot serve the site: requires docker or podman with an nginx image in the site, or nginx.
  Pack docker.io/library/nginx and docker.io/library/registry into the bundle, or install nginx.'
        ;;
    esac
}

has_nginx_image() {
    [ -n "$nginx_ids" ] || "$1" image inspect "$nginx_image" >/dev/null 2>&1
}

# Prints the ID of an image of the site in the engine: the first digest that the engine knows.
find_image() { # engine, digests
    for digest in $2; do
        if "$1" image inspect "$digest" >/dev/null 2>&1; then
            echo "$digest"
            return
        fi
    done
    return 1
}

# Sets `id` to the ID of an image, and loads the image if the engine lacks it. An image of the same name that is not the
# one of the site is not used.
load_image() { # engine, image, digests
    id=
    [ -n "$2" ] || return 0
    if [ -z "$3" ]; then
        id=$2
        if "$1" image inspect "$2" >/dev/null 2>&1; then return; fi
    elif id=$(find_image "$1" "$3"); then
        return
    fi
    if has "$unbundle"; then
        program=$unbundle
    elif has unbundle; then
        program=unbundle
    else
        fail "cannot load $2 into $1: unbundle: command not found"
    fi
    echo "site: loading $2"
    "$program" images "$site" "$2" --load "$1" || fail "cannot load $2 into $1"
    id=$(find_image "$1" "$3") || fail "$1 does not list $2 under a digest of the site: run \`unbundle site $site\`"
}

load_images() {
    load_image "$1" "$nginx_image" "$nginx_ids"
    nginx_id=$id
    load_image "$1" "$registry_image" "$registry_ids"
    registry_id=$id
}

# Prints the group that nginx runs as if root starts it: by default, it has the name of the user.
server_group() {
    own=$(sed -n 's/^[[:space:]]*user[[:space:]]\{1,\}\([^;]*\);.*/\1/p' "$conf/nginx.conf" | head -n 1)
    # shellcheck disable=SC2086
    set -- ${own:-$server_user}
    [ -n "${1:-}" ] && echo "${2:-$1}"
}

# Creates the directory of the PID file and the log. A carried disk can have links and other files in it.
prepare_run() {
    [ -L "$run" ] || mkdir -p "$run" || fail "cannot create $run"
    [ -n "$(find "$run" -prune -type d -user "$(id -u)" ! -perm -002)" ] ||
        fail "refused: other users can change $run, or it is a symlink: remove it"
    rm -f "$run/log" || fail "cannot remove $run/log"
    runs || rm -f "$pid" || fail "cannot remove $pid"
}

# Fails if the storage contains links or special files: a registry would follow them out of it.
check_storage() {
    [ -d "$registry" ] || return 0
    found=$(find "$registry/" ! -type f ! -type d) || fail "cannot read $registry"
    [ -z "$found" ] || fail "refused: $(echo "$found" | head -n 1) is a symlink or a special file, which a registry would follow: remove it"
}

# Runs nginx on this host. (Before 1.19.5 it has no `-e`, and writes early errors to its default log.)
run_nginx() {
    program=nginx
    [ ! -x /usr/sbin/nginx ] || program=/usr/sbin/nginx
    if "$program" -h 2>&1 | grep -q '^  -e '; then
        set -- -e stderr "$@"
    fi
    globals="pid $pid;"
    # Without this, it runs as `nobody`, like other programs.
    if [ -n "$is_root" ] && [ -n "$server_user" ] && ! grep -q '^[[:space:]]*user[[:space:]]' "$conf/nginx.conf"; then
        globals="$globals user $server_user;"
    fi
    "$program" "$@" -c "$conf/nginx.conf" -g "$globals"
}

# Runs docker or podman without compose: one nginx container serves files and images. It is read-only and has no
# capabilities but those to become the user of nginx.
run_container() {
    client=$1
    set -- run --detach --name "$name" --restart unless-stopped
    # After a reboot, podman restarts only containers with this policy.
    [ "$client" != podman ] || set -- "$@" --restart always
    # Root of a container of rootless podman is the user that runs it.
    if [ -n "$container_user" ] && { [ "$client" = docker ] || [ "$(id -u)" = 0 ]; }; then
        set -- "$@" --user "$container_user"
    fi
    "$client" "$@" \
        --pull never --read-only --cap-drop ALL --security-opt no-new-privileges \
        --publish "$published$files_port:$files_port" --publish "$published$registry_port:$registry_port" \
@CONTAINER_OPTIONS@
        "$nginx_id" $nginx_word -c "$container_config" -g 'daemon off; pid /tmp/nginx.pid;'
}

# ---- Health checks -------------------------------------------------------------------------------------------------

# Prints the HTTP status of a URL, or "unknown" without curl and wget.
http_status() {
    if has curl; then
        curl --silent --insecure --max-time 5 --noproxy '*' --output /dev/null --write-out '%{http_code}' "$1" 2>/dev/null
    elif has wget; then
        wget --no-proxy --no-check-certificate --tries=1 --timeout=5 -S -O /dev/null "$1" 2>&1 |
            sed -n 's/^ *HTTP\/[0-9.]* \([0-9]*\).*/\1/p' | tail -n 1
    else
        echo unknown
    fi
}

# True if the server on a port responds to a path.
responds() {
    status=$(http_status "$scheme://$address:$1$2")
    case $status in
    200 | 401 | unknown) return 0 ;;
    *) return 1 ;;
    esac
}

# True if a process listens on a port. (curl exits with 7 if the connection is refused.)
is_port_in_use() {
    has curl || return 1
    curl --silent --max-time 3 --noproxy '*' --output /dev/null "http://$address:$1/" && return 0
    [ $? != 7 ]
}

runs() {
    case $engine in
    compose)
        for container in $(compose ps -q 2>/dev/null); do
            [ "$(docker inspect -f '{{.State.Running}}' "$container" 2>/dev/null)" != true ] || return 0
        done
        return 1
        ;;
    docker | podman) [ "$("$engine" inspect -f '{{.State.Running}}' "$name" 2>/dev/null)" = true ] ;;
    nginx) nginx_runs ;;
    esac
}

# True if the process of the PID file is nginx of this user: the number can belong to another process by now.
nginx_runs() {
    [ -f "$pid" ] && [ -s "$pid" ] || return 1
    number=$(head -c 16 "$pid" 2>/dev/null | head -n 1)
    case $number in
    '' | *[!0-9]*) return 1 ;;
    esac
    kill -0 "$number" 2>/dev/null || return 1
    [ "$(sed -n 's/^Uid:[[:space:]]*\([0-9]*\).*/\1/p' "/proc/$number/status" 2>/dev/null)" = "$(id -u)" ] || return 1
    # After an upgrade of the package, the path ends in " (deleted)".
    program=$(readlink "/proc/$number/exe" 2>/dev/null) || return 1
    program=${program% (deleted)}
    case ${program##*/} in
    *nginx*) return 0 ;;
    *) return 1 ;;
    esac
}

wait_until_both_respond() {
    left=60
    until responds "$files_port" /healthz && responds "$registry_port" /v2/; do
        left=$((left - 1))
        if [ "$left" = 0 ] || ! runs; then
            echo "site: the servers do not respond; their logs:" >&2
            logs >&2
            fail "cannot start the site: see the logs above"
        fi
        sleep 0.5
    done
    if [ -n "$user" ] && has curl; then
        for url in "$scheme://$address:$files_port/" "$scheme://$address:$registry_port/v2/"; do
            # After a reload, processes with the previous configuration respond for a while.
            left=20
            until [ "$(http_status "$url")" = 401 ] || [ "$left" = 0 ]; do
                left=$((left - 1))
                sleep 0.5
            done
            [ "$left" != 0 ] || fail "$url does not require a password, although the site has a user:
  an edited configuration file lacks the user; compare it with $conf/*.new"
        done
    fi
    # The servers run as another user.
    page=$(http_status "$scheme://$address:$files_port/")
    if [ "$page" = 403 ]; then
        echo "site: the file server returns 403: the user of nginx cannot read $files; every parent directory needs \`chmod o+x\`" >&2
        if has getenforce && [ "$(getenforce)" = Enforcing ]; then
            echo "site: SELinux may also deny access: run \`chcon -R -t httpd_sys_content_t $files $registry $conf\`" >&2
        fi
    fi
}

urls() {
    echo "files:    $scheme://$host:$files_port/"
    echo "registry: $scheme://$host:$registry_port/v2/ (docker pull $host:$registry_port/...)"
    if [ -n "$user" ]; then
        echo "user:     $user"
    else
        echo "user:     none; anyone who can reach this host can read"
    fi
    if [ -n "$own_ca" ]; then
        echo "clients:  run $conf/trust.sh on each client"
        if has openssl && ! openssl x509 -checkend 5184000 -noout -in "$conf/tls/server.crt" >/dev/null 2>&1; then
            echo "site: the server certificate expires in less than 60 days: run \`unbundle site $site\`, then stop and start the site" >&2
        fi
    fi
}

# ---- Verbs ---------------------------------------------------------------------------------------------------------

start() {
    check_storage
    if ! runs; then
        for port in "$files_port" "$registry_port"; do
            if is_port_in_use "$port"; then
                has ss && ss -ltnp "sport = :$port" 2>/dev/null | tail -n +2 >&2
                fail "port $port is already in use: stop the other program, or choose another port with \`unbundle site\`"
            fi
        done
    fi
    case $engine in
    compose)
        load_images docker
        runs && again=yes
        compose up --detach || fail 'compose cannot start the site: see above'
        # compose does not detect changes of mounted files.
        [ -z "${again:-}" ] || compose restart || fail 'compose cannot restart the site: see above'
        ;;
    docker | podman)
        load_images "$engine"
        "$engine" rm --force "$name" >/dev/null 2>&1
        run_container "$engine" >/dev/null || fail "$engine cannot start the site: see above"
        ;;
    nginx)
        prepare_run
        if runs; then
            run_nginx -t -q || fail 'invalid configuration, the previous one stays active: see above'
            kill -HUP "$(nginx_pid)"
        else
            run_nginx 2>"$run/log" || {
                cat "$run/log" >&2
                fail 'nginx cannot start: see above'
            }
        fi
        ;;
    esac
    wait_until_both_respond
    share_htpasswd "$(nginx_pid)"
    echo "site: running with $engine"
    urls
}

stop() {
    case $engine in
    compose) compose down ;;
    docker | podman) "$engine" rm --force "$name" >/dev/null 2>&1 || true ;;
    nginx)
        if runs; then
            kill -QUIT "$(nginx_pid)"
            left=50
            while runs && [ "$left" -gt 0 ]; do
                left=$((left - 1))
                sleep 0.1
            done
        fi
        ;;
    esac
    ! runs || fail "cannot stop the site: still running with $engine"
    echo 'site: stopped'
}

status() {
    if ! runs; then
        echo "site: not running"
        exit 1
    fi
    for server in "files $files_port /healthz" "registry $registry_port /v2/"; do
        # shellcheck disable=SC2086
        set -- $server
        if responds "$2" "$3"; then
            echo "$1: responds on port $2"
        else
            echo "$1: does not respond on port $2"
            bad=yes
        fi
    done
    [ -z "${bad:-}" ] || exit 1
    echo "site: running with $engine"
    urls
}

logs() {
    case $engine in
    compose) compose logs --tail 100 ;;
    docker | podman) "$engine" logs --tail 100 "$name" ;;
    nginx) [ ! -e "$run/log" ] || tail -n 100 "$run/log" ;;
    esac
}

case ${1:-} in
start | stop | status | logs)
    [ -z "$is_root" ] || check_ownership
    choose_engine "$1"
    "$1"
    ;;
*)
    sed -n '4,11s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
