# Shared by every script here: messages, the cache directory, what to undo at exit.
# shellcheck shell=bash

program=${0##*/}
lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$lib/../.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/vhost-user-nic

# Exit statuses of our own, those of timeout(1) and of container tools, so that they stand apart from COMMAND's.
readonly EXIT_USAGE=2 EXIT_TIMEOUT=124 EXIT_CANNOT_RUN=125

say() { printf '%s: %s\n' "$program" "$*" >&2; }

die() {
    local status=$1
    shift
    say "$@"
    exit "$status"
}

usage_error() { die "$EXIT_USAGE" "$* (see $program --help)"; }

# at_exit COMMAND...: run at exit, the last registered first.
exit_commands=()
at_exit() { exit_commands=("$(printf '%q ' "$@")" "${exit_commands[@]}"); }

run_exit_commands() {
    local status=$? command
    trap '' INT TERM HUP
    for command in "${exit_commands[@]}"; do
        eval "$command" || true
    done
    exit "$status"
}
trap run_exit_commands EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ensure_packages PACKAGE...: installs those that dpkg does not have; where we may not, says which.
ensure_packages() {
    local package missing=()
    for package; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "$EXIT_CANNOT_RUN" "missing Debian packages: ${missing[*]}; run as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    {
        apt-get -q -o DPkg::Lock::Timeout=300 update
        DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}"
    } </dev/null >&2 || die "$EXIT_CANNOT_RUN" "apt-get could not install ${missing[*]}"
}

# Holds the cache for this process until unlock_cache: two first runs at once must not build the same thing.
lock_cache() {
    mkdir -p "$cache"
    exec {cache_lock}>"$cache/lock"
    flock -n "$cache_lock" && return
    say "waiting for another run to finish with $cache"
    flock "$cache_lock"
}

unlock_cache() { exec {cache_lock}>&-; }
