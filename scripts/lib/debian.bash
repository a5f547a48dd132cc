# Packages of a Debian of its own, in the cache.
#
# apt resolves and fetches them into a directory of their own, and dpkg-deb unpacks them there: no package
# script is run, nothing of the host's is touched, no privilege is needed. Programs start through that Debian's own ld.so,
# so an older or newer libc on the host does not matter.
# shellcheck shell=bash

# Others may have it already.
! declare -F debian_mirror >/dev/null || return 0

readonly suite=trixie
# QEMU has vhost-user-test-device-pci from 10.2 on: it comes from backports, everything else from the suite itself.
readonly from_backports=(qemu seabios ipxe)
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
readonly arch_lib=usr/lib/x86_64-linux-gnu

hash_of() { sha256sum | cut -c 1-12; }

# need_amd64 WHAT
need_amd64() {
    [[ $(dpkg --print-architecture 2>/dev/null) == amd64 ]] ||
        die "$EXIT_CANNOT_RUN" "$1: from Debian's packages, which needs a Debian or Ubuntu host on x86-64 (apt-get, dpkg-deb)"
}

# The Debian mirror this host uses itself.
debian_mirror() {
    if [[ -n ${DEBIAN_MIRROR:-} ]]; then
        printf '%s\n' "$DEBIAN_MIRROR"
        return
    fi
    # The archive's name is known only for lists that were fetched; where none was, any that is not an extra archive will do.
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$(NF-2) == "main" && $(NF-1) !~ /security|backports|updates/ && (NF == 3 || $1 == "Debian") { print $NF; exit }'
}

# apt with lists, state and cache of its own under DIRECTORY; proxies and the like stay the host's.
private_apt() {
    local directory=$1
    shift
    apt-get -q -o Dir::State="$directory/state" -o Dir::State::status="$directory/status" -o Dir::Cache="$directory/cache" \
        -o Dir::Etc::sourcelist="$directory/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences="$directory/preferences" -o Dir::Etc::preferencesparts=/dev/null \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Install-Recommends=false \
        -o APT::Sandbox::User=root "$@" </dev/null >&2
}

# prepare_apt DIRECTORY: makes DIRECTORY what private_apt works in, with the suite's lists.
prepare_apt() {
    local directory=$1 mirror
    [[ -r $keyring ]] || ensure_packages debian-archive-keyring
    mirror=$(debian_mirror)
    [[ -n $mirror ]] || die "$EXIT_CANNOT_RUN" "apt on this machine names no Debian mirror: set DEBIAN_MIRROR to the URL of one"
    mkdir -p "$directory"/{state/lists/partial,cache/archives/partial}
    : >"$directory/status"
    printf "deb [signed-by=$keyring] $mirror %s main\n" "$suite" "$suite-backports" >"$directory/sources.list"
    printf 'Package: %s\nPin: release n=%s\nPin-Priority: 600\n' \
        "$(printf 'src:%s ' "${from_backports[@]}")" "$suite-backports" >"$directory/preferences"
    private_apt "$directory" update
}

# unpack_debs DIRECTORY ROOT: what private_apt has fetched in DIRECTORY. ROOT/versions says what that is.
unpack_debs() {
    local archive
    # base-files has the links from /bin to /usr/bin and such: it goes first.
    for archive in "$1"/cache/archives/{base-files_*,*}.deb; do dpkg-deb -x "$archive" "$2"; done
    for archive in "$1"/cache/archives/*.deb; do dpkg-deb -W "$archive"; done >"$2/versions"
    rm -rf "$2"/usr/{include,share/{doc,man,locale,info,lintian}}
    find "$2" -name '*.a' -delete
}

# fill_with DIRECTORY ROOT PACKAGE...: ROOT has the packages and what these need.
fill_with() {
    prepare_apt "$1"
    private_apt "$1" install -y --download-only "${@:3}"
    unpack_debs "$1" "$2"
}

# set_up DIRECTORY WHAT COST FILL [ARGUMENT...]: makes DIRECTORY, of the cache, which FILL fills: it is given a directory to work in, that to
# fill, and the arguments.
set_up() {
    local directory=$1 what=$2 building status started=$SECONDS
    say "setting up $what in $directory (once: about $3)"
    building=$(mktemp -d "$cache/building-XXXXXX")
    at_exit rm -rf "$building"
    mkdir "$building/root"
    # Behind || or in an if, the first command that fails would not be the last.
    set +e
    (
        set -e
        "$4" "$building/apt" "$building/root" "${@:5}"
    ) 2>"$building/log"
    status=$?
    set -e
    if ((status)); then
        tail -n 40 "$building/log" >&2
        die "$EXIT_CANNOT_RUN" "could not set up $directory; the last lines of apt are above"
    fi
    chmod 755 "$building/root"
    mv -T "$building/root" "$directory"
    rm -rf "$building"
    say "$what is ready: $(du -sh "$directory" | cut -f 1), $((SECONDS - started)) s"
}

# ensure_debian NAME WHAT COST PACKAGE...: sets debian_root to where the packages are, with what they need, and debian_version to the
# version of the last.
ensure_debian() {
    local name=$1 what=$2 cost=$3
    shift 3
    need_amd64 "$what"
    debian_root=$cache/$name-$(printf '%s\n' "$suite" "$@" "$(declare -f unpack_debs fill_with)" | hash_of)
    if [[ ! -d $debian_root ]]; then
        lock_cache
        [[ -d $debian_root ]] || set_up "$debian_root" "$what of Debian $suite" "$cost" fill_with base-files "$@"
        unlock_cache
    fi
    debian_version=$(awk -v package="${!#}" '$1 == package { print $2 }' "$debian_root/versions")
}
