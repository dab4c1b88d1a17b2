#!/usr/bin/env bash
# What the tests of sandboxes and of several hosts need from a Debian machine: bubblewrap; Docker's
# engine; debootstrap, which makes the image where no registry can be reached; iproute2, which makes
# hosts of network namespaces. Installs what is missing, by trying it; does nothing when all is
# there. Starts nothing: the tests start an engine of their own, and a machine's own engine is its
# administrator's (`systemctl enable --now docker`).
#
#   scripts/sandbox_host.sh           install what is missing
#   scripts/sandbox_host.sh --check   only say what is missing; exit status 1 when something is
#   scripts/sandbox_host.sh --tests   Chromium too, in which the tests open the report page
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where Debian puts them, and not every user looks

say() { printf 'sandbox_host: %s\n' "$*"; }
fail() {
    printf 'sandbox_host: %s\n' "$@" >&2
    exit 1
}

# Command and the Debian package that brings it.
NEEDED=(bwrap:bubblewrap dockerd:docker.io debootstrap:debootstrap ip:iproute2)

missing_packages() {
    local pair
    for pair in "${NEEDED[@]}"; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done
}

# What no package can bring.
say_what_is_off() {
    if command -v bwrap >/dev/null &&
        ! timeout 10 bwrap --unshare-all --ro-bind / / true 2>/dev/null; then
        say "bubblewrap can't make namespaces here: user namespaces are off, or this is a container"
    fi
    if [ "$(id -u)" -ne 0 ]; then
        say "not root: the tests can't start a Docker engine, nor make hosts of network namespaces," \
            "and skip, saying so;" \
            "DOCKER_HOST names an engine that you may use, 'auto' takes bubblewrap without one"
    fi
    grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null ||
        say "the kernel has no overlay file system: Docker copies the image for every container"
}

main() {
    local packages as_root=()
    [ "${1:-}" != --tests ] || NEEDED+=(chromium:chromium)
    mapfile -t packages < <(missing_packages)
    if [ "${1:-}" = --check ]; then
        [ ${#packages[@]} -eq 0 ] || fail "missing Debian packages: ${packages[*]}"
        say_what_is_off
        return 0
    fi
    if [ ${#packages[@]} -gt 0 ]; then
        command -v apt-get >/dev/null || fail "needs what Debian calls: ${packages[*]}" \
            "there is no apt-get here; install them by your system's means"
        if [ "$(id -u)" -ne 0 ]; then
            sudo -n true 2>/dev/null || fail "needs the Debian packages: ${packages[*]}" \
                "install them with: sudo apt-get install ${packages[*]}"
            as_root=(sudo -n)
        fi
        say "installing Debian packages: ${packages[*]}"
        "${as_root[@]}" apt-get update -qq </dev/null || true # an old list may still do
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive timeout 900 \
            apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >/dev/null ||
            fail "apt-get could not install: ${packages[*]}"
    fi
    say_what_is_off
}

main "$@"
