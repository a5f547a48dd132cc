# DPDK from a cached Debian of its own, and testpmd processes that are talked to.
#
# The packages are unpacked as those of the guests are (root.bash), into a directory beside theirs: nothing is installed.
# shellcheck shell=bash

# shellcheck source=root.bash
source "$lib/root.bash"

# coreutils is there for its stdbuf: testpmd would keep what it says until it ends.
readonly dpdk_packages=(base-files dpdk-dev coreutils)
# The drivers that are loaded: of the hundreds that DPDK has, some complain on machines without their hardware.
readonly dpdk_drivers=(bus_vdev mempool_ring net_virtio net_vhost net_tap)

# Set by ensure_dpdk: its root, the command that testpmd is, and DPDK's version.
dpdk_root=
testpmd=()
dpdk_version=

build_dpdk() {
    local building started=$SECONDS archive
    say "setting up DPDK of Debian $suite in $dpdk_root (once: about 70 MB to fetch, half a minute)"
    building=$(mktemp -d "$cache/building-XXXXXX")
    at_exit rm -rf "$building"
    mkdir "$building/root"
    (
        set -e
        prepare_apt "$building/apt"
        private_apt "$building/apt" install -y --download-only "${dpdk_packages[@]}"
        for archive in "$building"/apt/cache/archives/{base-files_*,*}.deb; do dpkg-deb -x "$archive" "$building/root"; done
        cp "$building"/apt/cache/archives/dpdk-dev_*.deb "$building/root/dpdk-dev.deb"
        rm -rf "$building"/root/usr/{include,share/{doc,man,locale,info,lintian}}
        find "$building/root" -name '*.a' -delete
    ) 2>"$building/log" || {
        tail -n 40 "$building/log" >&2
        die "$EXIT_CANNOT_RUN" "could not set up $dpdk_root; the last lines of apt are above"
    }
    chmod 755 "$building/root"
    mv -T "$building/root" "$dpdk_root"
    rm -rf "$building"
    say "DPDK is ready: $(du -sh "$dpdk_root" | cut -f 1), $((SECONDS - started)) s"
}

# ensure_dpdk: after it, testpmd is the command, up to the options that are DPDK's own.
ensure_dpdk() {
    local pmds driver
    [[ $(dpkg --print-architecture 2>/dev/null) == amd64 ]] ||
        die "$EXIT_CANNOT_RUN" "DPDK is taken from Debian's packages: that needs a Debian or Ubuntu host on x86-64 (apt-get, dpkg-deb)"
    dpdk_root=$cache/dpdk-$(printf '%s\n' "$suite" "${dpdk_packages[@]}" "$(declare -f build_dpdk)" | hash_of)
    if [[ ! -d $dpdk_root ]]; then
        lock_cache
        [[ -d $dpdk_root ]] || build_dpdk
        unlock_cache
    fi
    dpdk_version=$(dpkg-deb -f "$dpdk_root/dpdk-dev.deb" Version)
    testpmd=(env _STDBUF_O=L "$dpdk_root/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$dpdk_root/$arch_lib"
        --preload "$dpdk_root/usr/libexec/coreutils/libstdbuf.so" "$dpdk_root/usr/bin/dpdk-testpmd")
    pmds=$(echo "$dpdk_root/$arch_lib"/dpdk/pmds-*)
    # Where the host has the same DPDK, its drivers are found by themselves, and must not be there twice.
    [[ ! -d ${pmds#"$dpdk_root"} ]] || return 0
    for driver in "${dpdk_drivers[@]}"; do testpmd+=(-d "$pmds/librte_$driver.so"); done
}
