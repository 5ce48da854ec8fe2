# shellcheck shell=bash
# For sourcing: the engine, the base images, and what the checks of the image and of the compose example share.
#
# No image can be pulled where CI runs, so the bases are made from Debian's packages and this machine's Rust. They are kept for
# a week; everything else that a check makes is taken away at its end.

# Each run's own, so that two never meet.
# shellcheck disable=SC2034
run=adit-ci-$$
scratch=$(mktemp -d)
docker=docker
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1

say() { printf '   %s\n' "$*"; }
fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

# Ends well, but nobody can overlook it, when there is no engine.
need_engine() {
    if command -v docker >/dev/null && docker info >/dev/null 2>&1; then return; fi
    printf '%s\n' '******************************************************************************' \
        '***  NOT TESTED: no Docker engine answers here. The image was not built,   ***' \
        '***  and neither the two ways to run it nor the compose example were tried. ***' \
        '******************************************************************************'
    exit 0
}

need_packages() {
    local missing=() package
    for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A client that can build with BuildKit: of several the first may lack its plugin.
need_buildkit() {
    local client
    printf 'FROM scratch\nCOPY Dockerfile /\n' >"$scratch/Dockerfile"
    for client in $(type -ap docker); do
        if "$client" build --quiet "$scratch" >"$scratch/built" 2>&1; then
            docker=$client
            "$docker" rmi "$(cat "$scratch/built")" >/dev/null
            return
        fi
    done
    fail "no docker client here can build with BuildKit: $(tail -1 "$scratch/built")"
}

have_image() { "$docker" image inspect "$1" >/dev/null 2>&1; }

debian_tar() {
    local mirror=http://deb.debian.org
    mmdebstrap --quiet --variant=minbase --include="ca-certificates$1" bookworm "$2" \
        "deb $mirror/debian bookworm main" "deb $mirror/debian bookworm-updates main" \
        "deb $mirror/debian-security bookworm-security main" || fail "mmdebstrap cannot make the base image"
}

# Sets debian, rust and app to images: what debian:bookworm-slim, rust:1.95-bookworm and busybox are for others.
base_images() {
    local week sysroot applet tar=$scratch/base.tar
    week=$(date +%G-%V)
    sysroot=$(rustc --print sysroot)
    debian=adit-ci/debian:$week
    rust=adit-ci/rust:$(rustc --version | cut -d' ' -f2)-$week
    app=adit-ci/busybox:$week
    if ! have_image "$debian"; then
        debian_tar '' "$tar"
        "$docker" import "$tar" "$debian" >/dev/null
    fi
    if ! have_image "$rust"; then
        debian_tar ,gcc,libc6-dev "$tar"
        tar --append --file "$tar" --owner=0 --group=0 --transform 's,^,./opt/rust/,S' -C "$sysroot" bin lib
        # Whom this machine trusts, should a proxy stand between it and crates.io.
        tar --append --file "$tar" --transform 's,^.*/,./opt/rust/,' --dereference -C / etc/ssl/certs/ca-certificates.crt
        "$docker" import --change 'ENV CARGO_HOME=/usr/local/cargo PATH=/opt/rust/bin:/usr/local/bin:/usr/bin:/bin' \
            --change 'ENV SSL_CERT_FILE=/opt/rust/ca-certificates.crt' "$tar" "$rust" >/dev/null
    fi
    if ! have_image "$app"; then
        debian_tar ,busybox "$tar"
        mkdir -p "$scratch/links"
        for applet in httpd sleep wget; do ln -s /bin/busybox "$scratch/links/$applet"; done
        tar --append --file "$tar" --owner=0 --group=0 --transform 's,^,./usr/local/bin/,S' -C "$scratch/links" httpd sleep wget
        "$docker" import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' "$tar" "$app" >/dev/null
    fi
    rm -f "$tar"
}

# Runs the rest until it succeeds, for so many seconds; says what was waited for if it does not.
until_true() {
    local what=$1 limit=$((SECONDS + $2))
    shift 2
    until "$@" >"$scratch/last" 2>&1; do
        [ "$SECONDS" -lt "$limit" ] || fail "waited in vain for: $what: $(tail -3 "$scratch/last")"
        sleep 0.1
    done
}

# The rest must fail, and what it says must match the pattern.
refused() {
    local what=$1 pattern=$2
    shift 2
    if "$@" >"$scratch/last" 2>&1; then fail "$what succeeded: $(cat "$scratch/last")"; fi
    grep -q -- "$pattern" "$scratch/last" || fail "$what failed for another reason than '$pattern': $(cat "$scratch/last")"
}

# What the log of a container says, matched line by line; all patterns in one line.
logged() {
    local container=$1 pattern lines
    shift
    lines=$("$docker" logs "$container" 2>&1)
    for pattern in "$@"; do lines=$(grep -F -- "$pattern" <<<"$lines") || return 1; done
    [ -n "$lines" ]
}

inspect() { "$docker" inspect --format "$2" "$1"; }
