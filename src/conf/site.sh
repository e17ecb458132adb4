#!/bin/sh
# Runs the site: the files and the registry. Made by `unbundle site`, which keeps what you edit here.
#
#   site start     start both, wait until they answer, print the URLs
#   site stop      stop them
#   site status    what runs, and whether it answers; exit 0 only if both answer
#   site logs      what the servers have written
#
# It takes docker with compose, docker, podman or nginx, the first of them that can be used here.
# SITE_ENGINE=compose|docker|podman|nginx makes it take that one.
set -u

name='@NAME@'
site='@SITE@'
conf='@CONF@'
files='@FILES@'
registry='@REGISTRY@'
host='@HOST@'
files_port='@FILES_PORT@'
registry_port='@REGISTRY_PORT@'
scheme='@SCHEME@'
user='@USER@'
own_ca='@OWN_CA@'
hide_ca='@HIDE_CA@'
nginx_image='@NGINX_IMAGE@'
nginx_is_here='@NGINX_IS_HERE@'
registry_image='@REGISTRY_IMAGE@'
unbundle='@UNBUNDLE@'

fail() {
    echo "site: $*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Where a process of this user notes that it runs.
if [ "$(id -u)" = 0 ]; then
    run="/run/$name"
else
    run="$conf/run"
fi
pid="$run/nginx.pid"

# ---- Engines -------------------------------------------------------------------------------------------------------

compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose -p "$name" -f "$conf/compose.yaml" "$@"
    else
        docker-compose -p "$name" -f "$conf/compose.yaml" "$@"
    fi
}

# Whether an engine is here and its daemon, if it has one, answers. (Some versions of `docker info` succeed without.)
runs_engine() {
    has "$1" || return 1
    case $1 in
    docker) [ -n "$(docker version --format '{{.Server.Version}}' 2>/dev/null)" ] ;;
    podman) podman info >/dev/null 2>&1 ;;
    esac
}

has_compose() {
    runs_engine docker && { docker compose version >/dev/null 2>&1 || has docker-compose; }
}

has_nginx() {
    has nginx || [ -x /usr/sbin/nginx ]
}

can_use() {
    case $1 in
    compose) has_compose ;;
    docker | podman) runs_engine "$1" ;;
    nginx) has_nginx ;;
    esac
}

# What runs the site already is what stops it and starts it again.
choose() {
    asked=${SITE_ENGINE:-}
    case $asked in
    '' | compose | docker | podman | nginx) ;;
    *) fail "SITE_ENGINE is '$asked': expected compose, docker, podman or nginx" ;;
    esac
    for engine in compose docker podman nginx; do
        if can_use "$engine" && runs; then
            [ -z "$asked" ] || [ "$asked" = "$engine" ] || [ "$1" != start ] ||
                fail "the site runs with $engine: \`$0 stop\` first"
            return
        fi
    done
    engine=$asked
    case $engine in
    compose) has_compose || fail 'there is no docker with compose that answers: start it (systemctl start docker), or leave SITE_ENGINE away' ;;
    docker | podman)
        has "$engine" || fail "there is no $engine here"
        runs_engine "$engine" || fail "$engine does not answer: is it running?"
        ;;
    nginx) has_nginx || fail 'there is no nginx here' ;;
    '')
        # An engine is of use only with the images of the servers.
        for engine in compose docker podman; do
            client=$engine
            [ "$engine" != compose ] || client=docker
            if can_use "$engine" && images_are_near "$client"; then
                return
            fi
        done
        engine=nginx
        has_nginx || fail 'nothing here can serve the site: it takes docker or podman with an nginx image in the site, or nginx.
  Pack docker.io/library/nginx and docker.io/library/registry with the rest, or install nginx.'
        ;;
    esac
}

images_are_near() {
    [ -n "$nginx_is_here" ] || "$1" image inspect "$nginx_image" >/dev/null 2>&1
}

# Hands the images of the servers to an engine that does not have them.
load() {
    for image in "$nginx_image" "$registry_image"; do
        [ -n "$image" ] || continue
        "$1" image inspect "$image" >/dev/null 2>&1 && continue
        if has "$unbundle"; then
            program=$unbundle
        elif has unbundle; then
            program=unbundle
        else
            fail "$1 does not have $image, and \`unbundle\` is not here to load it from the site"
        fi
        echo "site: loading $image"
        "$program" images "$site" "$image" --load "$1" || fail "cannot load $image"
    done
}

# nginx on this host. (Before 1.19.5 it has no `-e`, and notes in a file of its own what goes wrong early.)
run_nginx() {
    program=nginx
    [ ! -x /usr/sbin/nginx ] || program=/usr/sbin/nginx
    if "$program" -h 2>&1 | grep -q '^  -e '; then
        set -- -e stderr "$@"
    fi
    "$program" "$@" -c "$conf/nginx.conf" -g "pid $pid;"
}

# docker and podman without compose: nginx alone serves both.
contain() {
    restart=unless-stopped
    # What podman starts again after a reboot.
    [ "$1" != podman ] || restart=always
    "$1" run --detach --restart "$restart" --name "$name" \
        --publish "$files_port:$files_port" --publish "$registry_port:$registry_port" \
        --volume "$conf:$conf:ro,z" --volume "$files:$files:ro,z" --volume "$registry:$registry:ro,z" \
        ${hide_ca:+--tmpfs "$conf/ca"} \
        "$nginx_image" nginx -c "$conf/nginx.conf" -g 'daemon off; pid /tmp/nginx.pid;'
}

# ---- Whether it answers --------------------------------------------------------------------------------------------

# The status of an answer, or nothing.
ask() {
    if has curl; then
        curl --silent --insecure --max-time 5 --noproxy '*' --output /dev/null --write-out '%{http_code}' "$1" 2>/dev/null
    elif has wget; then
        wget --no-proxy --no-check-certificate --tries=1 --timeout=5 -S -O /dev/null "$1" 2>&1 |
            sed -n 's/^ *HTTP\/[0-9.]* \([0-9]*\).*/\1/p' | tail -n 1
    else
        echo unknown
    fi
}

# Whether the server on a port is ours: says what is wrong otherwise.
answers() {
    status=$(ask "$scheme://127.0.0.1:$1$2")
    case $status in
    200 | 401 | unknown) return 0 ;;
    *) return 1 ;;
    esac
}

# Whether anything listens on a port: curl ends with 7 where nothing does.
is_taken() {
    has curl || return 1
    curl --silent --max-time 3 --noproxy '*' --output /dev/null "http://127.0.0.1:$1/" && return 0
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
    nginx) [ -s "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null ;;
    esac
}

wait_until_both_answer() {
    left=60
    until answers "$files_port" /healthz && answers "$registry_port" /v2/; do
        left=$((left - 1))
        if [ "$left" = 0 ] || ! runs; then
            echo "site: it does not answer; what the servers say:" >&2
            logs >&2
            fail "not started: see above"
        fi
        sleep 0.5
    done
    if [ -n "$user" ] && has curl; then
        for url in "$scheme://127.0.0.1:$files_port/" "$scheme://127.0.0.1:$registry_port/v2/"; do
            [ "$(ask "$url")" = 401 ] || fail "$url answers without a password, although the site has a user:
  a configuration that was edited does not have it; compare it with $conf/*.new"
        done
    fi
    # The servers run as users of their own.
    page=$(ask "$scheme://127.0.0.1:$files_port/")
    if [ "$page" = 403 ]; then
        echo "site: the files answer 403: the user of nginx cannot read $files; every folder above it needs \`chmod o+x\`" >&2
        if has getenforce && [ "$(getenforce)" = Enforcing ]; then
            echo "site: or SELinux does not let it: chcon -R -t httpd_sys_content_t $files $registry $conf" >&2
        fi
    fi
}

urls() {
    echo "files:    $scheme://$host:$files_port/"
    echo "registry: $scheme://$host:$registry_port/v2/ (docker pull $host:$registry_port/...)"
    if [ -n "$user" ]; then
        echo "user:     $user"
    else
        echo "user:     none; everybody who reaches this host may read"
    fi
    if [ -n "$own_ca" ]; then
        echo "clients:  run $conf/trust.sh on them"
        if has openssl && ! openssl x509 -checkend 5184000 -noout -in "$conf/tls/server.crt" >/dev/null 2>&1; then
            echo "site: the certificate is near its end: run \`unbundle site $site\`, then stop and start" >&2
        fi
    fi
}

# ---- Verbs ---------------------------------------------------------------------------------------------------------

start() {
    if ! runs; then
        for port in "$files_port" "$registry_port"; do
            if is_taken "$port"; then
                has ss && ss -ltnp "sport = :$port" 2>/dev/null | tail -n +2 >&2
                fail "port $port is taken by another program: stop it, or choose another port with \`unbundle site\`"
            fi
        done
    fi
    case $engine in
    compose)
        load docker
        runs && again=yes
        compose up --detach || fail 'compose could not start the site: see above'
        # What is mounted may have changed without compose noticing.
        [ -z "${again:-}" ] || compose restart || fail 'compose could not restart the site: see above'
        ;;
    docker | podman)
        load "$engine"
        "$engine" rm --force "$name" >/dev/null 2>&1
        contain "$engine" >/dev/null || fail "$engine could not start the site: see above"
        ;;
    nginx)
        mkdir -p "$run" || fail "cannot make $run"
        if runs; then
            run_nginx -t -q || fail 'the configuration is not good, and the old one stays: see above'
            kill -HUP "$(cat "$pid")"
        else
            run_nginx 2>"$run/log" || {
                cat "$run/log" >&2
                fail 'nginx could not start: see above'
            }
        fi
        ;;
    esac
    wait_until_both_answer
    echo "site: running with $engine"
    urls
}

stop() {
    case $engine in
    compose) compose down ;;
    docker | podman) "$engine" rm --force "$name" >/dev/null 2>&1 || true ;;
    nginx)
        if runs; then
            kill -QUIT "$(cat "$pid")"
            left=50
            while runs && [ "$left" -gt 0 ]; do
                left=$((left - 1))
                sleep 0.1
            done
        fi
        ;;
    esac
    ! runs || fail "it still runs with $engine"
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
        if answers "$2" "$3"; then
            echo "$1: answers on port $2"
        else
            echo "$1: does not answer on port $2"
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
    choose "$1"
    "$1"
    ;;
*)
    sed -n '4,11s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
