# DPDK from a cached Debian of its own, and testpmd processes that are talked to.
# shellcheck shell=bash

# shellcheck source=debian.bash
source "$lib/debian.bash"

# The drivers that are loaded: of the hundreds that DPDK has, some complain on machines without their hardware.
readonly dpdk_drivers=(bus_vdev mempool_ring net_virtio net_vhost net_tap)

# Set by ensure_dpdk: its root, the command that testpmd is, and DPDK's version.
dpdk_root=
testpmd=()
dpdk_version=

# ensure_dpdk: after it, testpmd is the command, up to the options that are DPDK's own.
ensure_dpdk() {
    local pmds driver
    # coreutils is there for its stdbuf: testpmd would keep what it says until it ends.
    ensure_debian dpdk DPDK '70 MB to fetch, half a minute' coreutils dpdk-dev
    dpdk_root=$debian_root dpdk_version=$debian_version
    testpmd=(env _STDBUF_O=L "$dpdk_root/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$dpdk_root/$arch_lib"
        --preload "$dpdk_root/usr/libexec/coreutils/libstdbuf.so" "$dpdk_root/usr/bin/dpdk-testpmd")
    pmds=$(echo "$dpdk_root/$arch_lib"/dpdk/pmds-*)
    # Where the host has the same DPDK, its drivers are found by themselves, and must not be there twice.
    [[ ! -d ${pmds#"$dpdk_root"} ]] || return 0
    for driver in "${dpdk_drivers[@]}"; do testpmd+=(-d "$pmds/librte_$driver.so"); done
}
