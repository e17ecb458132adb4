# The upstream of the benchmarks: docker-registry and nginx on loopback, with 2 GB of blobs. Source it with bash after
# scripts/lib.sh, in the empty directory `$work`. It appends the process IDs of the servers to `pids`; the caller kills
# them.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # set and used by the caller

read -r registry_port web_port < <(free_ports)
registry=127.0.0.1:$registry_port
web=127.0.0.1:$web_port
cat >registry.yml <<CONF
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: "$work/registry"}}
http: {addr: $registry}
CONF
cat >nginx.conf <<CONF
daemon off;
pid "$work/nginx/pid";
error_log "$work/nginx/error.log";
events {}
http {
    access_log off;
    sendfile on;
    client_body_temp_path "$work/nginx/body";
    proxy_temp_path "$work/nginx/proxy";
    fastcgi_temp_path "$work/nginx/fastcgi";
    uwsgi_temp_path "$work/nginx/uwsgi";
    scgi_temp_path "$work/nginx/scgi";
    server { listen $web; root "$work/web"; }
}
CONF
docker-registry serve registry.yml >registry.log 2>&1 &
pids+=($!)
nginx -c "$work/nginx.conf" 2>nginx.log &
pids+=($!)
for _ in $(seq 100); do
    curl -sf "http://$registry/v2/" >/dev/null && break
    sleep 0.1
done

# `noise` does not compress, like gzip layers and archives. `binaries` compresses, like executables.
# `head` closes the pipe early, which must not count as a failure.
noise() { (set +o pipefail; openssl enc -aes-128-ctr -nosalt -K "$(printf '%032x' "$1")" -iv 0 </dev/zero 2>/dev/null | head -c "$2"); }
binaries() { (set +o pipefail; find /usr/lib /usr/bin -type f -size +64k -print0 | sort -z | xargs -0 cat 2>/dev/null | tail -c +"$1" | head -c "$2"); }
digest() { sha256sum "$1" | cut -c1-64; }
push() { # repository file
    local location
    location=$(curl -sS -i -X POST "http://$registry/v2/$1/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -sSf -X PUT -H 'Content-Type: application/octet-stream' -T "$2" "$location&digest=sha256:$(digest "$2")"
}
descriptor() { printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$1" "$(digest "$2")" "$(stat -c %s "$2")"; }

echo "creating the upstream" >&2
: >blobs.urls
printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}' >config
noise 1000 30000000 >base
for image in 1 2 3 4 5 6; do
    repository=registry.k8s.io/image$image
    noise $image $((image * 75000000)) >layer1
    noise $((image + 100)) $((image * 9000000)) >layer2
    layers=
    for blob in config base layer1 layer2; do
        push "$repository" "$blob"
        [ $blob = config ] || layers="$layers${layers:+,}$(descriptor application/vnd.oci.image.layer.v1.tar+gzip $blob)"
        echo "http://$registry/v2/$repository/blobs/sha256:$(digest "$blob")" >>blobs.urls
    done
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
        "$(descriptor application/vnd.oci.image.config.v1+json config)" "$layers" >manifest
    curl -sSf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary @manifest \
        "http://$registry/v2/$repository/manifests/v1"
    echo "registry.k8s.io/image$image:v1" >>images.list
done
rm -f base layer1 layer2 manifest config
mkdir -p web/dl.k8s.io
binaries 1 110000000 >web/dl.k8s.io/kubelet
binaries 110000001 60000000 >web/dl.k8s.io/kubectl
noise 500 180000000 >web/dl.k8s.io/archive.tar.gz
for file in kubelet kubectl archive.tar.gz; do
    echo "https://dl.k8s.io/$file sha256:$(digest web/dl.k8s.io/$file)" >>files.list
    echo "http://$web/dl.k8s.io/$file" >>blobs.urls
done
# Each blob once, as in airbundle. The URL of a file has no digest, and every file is unique.
awk -F 'sha256:' '!seen[$NF]++' blobs.urls >download.urls
upstream=$(($(find web -type f -printf '%s+')$(find registry -name data -printf '%s+')0))
