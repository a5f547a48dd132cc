# The cached Debian that guests come from: QEMU, User-mode Linux, a kernel for both, and the programs of the guest.
# shellcheck shell=bash

# shellcheck source=debian.bash
source "$lib/debian.bash"

readonly packages=(
    base-files busybox coreutils
    qemu-system-x86 user-mode-linux
    bash dash ethtool iperf3 iproute2 iputils-ping socat tcpdump
)
# Unpacked without what it depends on: that would be a whole system to install it into.
readonly kernel_package=linux-image-amd64

# What a guest can load; what these depend on is found when the initramfs is made. Those a kernel lacks are left out.
readonly guest_modules=(
    virtio_net 9p 9pnet_virtio vmw_vsock_virtio_transport
    af_packet ipv6 8021q bridge macvlan pktgen tun veth igb
    sch_fq sch_fq_codel sch_htb sch_ingress sch_netem sch_tbf cls_bpf cls_flower cls_matchall cls_u32 act_bpf act_gact act_mirred
)
# Everything else in a guest is busybox. Scripts rely on what some of its programs lack.
readonly guest_programs=(
    bash busybox dash bridge ethtool ip iperf3 ping socat ss tc tcpdump
    dd env head nproc od seq sha256sum sort stat tail tee timeout wc
)

# Set by ensure_guest_files: the root, the initramfs, and the command that runs a program of the root on the host.
root=
initramfs=
loader=()

busybox() { "${loader[@]}" "$root/usr/bin/busybox" "$@"; }

# fetch_packages DIRECTORY: leaves the .deb files in DIRECTORY/cache/archives.
fetch_packages() {
    local directory=$1 kernel
    prepare_apt "$directory"
    private_apt "$directory" install -y --download-only "${packages[@]}"
    kernel=$(private_apt "$directory" install -y --print-uris "$kernel_package" 2>&1 >/dev/null |
        sed -n "s/^'[^']*' \(linux-image-[0-9][^_]*\)_.*/\1/p")
    [[ -n $kernel ]] || die "$EXIT_CANNOT_RUN" "apt resolves $kernel_package to no kernel"
    (cd "$directory/cache/archives" && private_apt "$directory" download "$kernel")
}

# set_interpreter PROGRAM: makes its dynamic linker ./ld.so, a link that is put into the directory it is started in. User-mode Linux
# must be a program by itself: started through ld.so, it finds its heap far from where it expects it.
set_interpreter() {
    local interpreter=/lib64/ld-linux-x86-64.so.2 offset
    offset=$(LC_ALL=C grep -abo -m 1 "$interpreter" "$1" | head -n 1 | cut -d : -f 1)
    { printf ./ld.so && head -c "$((${#interpreter} - 7))" /dev/zero; } | dd of="$1" bs=1 seek="$offset" conv=notrunc status=none
}

fill_root() {
    fetch_packages "$1"
    unpack_debs "$1" "$2"
    set_interpreter "$2/usr/bin/linux.uml"
}

# index_modules: the modules of both kernels, as module_files[VERSION/NAME].
index_modules() {
    local file version name
    while IFS= read -r file; do
        version=${file#*/modules/}
        name=${file##*/}
        name=${name%%.*}
        module_files[${version%%/*}/${name//-/_}]=$file
    done < <(find "$root/usr/lib/modules" "$root/usr/lib/uml/modules" -name '*.ko*')
}

# add_modules STAGE VERSION: the guest's modules for that kernel, and those they need.
add_modules() {
    local stage=$1 version=$2 name file target needs
    local -A seen=()
    local -a wanted=("${guest_modules[@]}")
    target=$stage/usr/lib/modules/$version
    mkdir -p "$target"
    while ((${#wanted[@]})); do
        name=${wanted[0]//-/_}
        wanted=("${wanted[@]:1}")
        file=${module_files[$version/$name]:-}
        [[ -n $file && -z ${seen[$name]:-} ]] || continue
        seen[$name]=1
        case $file in
            *.xz) busybox unxz -c "$file" ;;
            *) cat "$file" ;;
        esac >"$target/$name.ko"
        needs=$(tr '\0' '\n' <"$target/$name.ko" | sed -n 's/^depends=//p')
        IFS=, read -ra needs <<<"$needs"
        wanted+=("${needs[@]}")
    done
    busybox depmod -b "$stage/usr" "$version"
}

# add_programs STAGE: programs with their libraries, busybox for whatever is not there otherwise.
add_programs() {
    local stage=$1 name file library
    mkdir -p "$stage"/usr/{bin,lib,lib64} "$stage/$arch_lib"
    ln -s usr/bin usr/lib usr/lib64 "$stage"
    ln -s usr/bin "$stage/sbin"
    ln -s bin "$stage/usr/sbin"
    cp -L "$root/usr/lib64/ld-linux-x86-64.so.2" "$stage/usr/lib64"
    for name in "${guest_programs[@]}"; do
        for file in "$root"/usr/{bin,sbin}/"$name"; do
            [[ -e $file ]] || continue
            cp -L "$file" "$stage/usr/bin/$name"
            "${loader[@]}" --list "$file"
        done
    done | sed -n "s|.* => \($root/[^ ]*\) .*|\1|p" | sort -u | while read -r library; do
        cp -L "$library" "$stage/$arch_lib"
    done
    # Loaded when a thread is cancelled, by iperf3 for one; no program says so.
    cp -L "$root/$arch_lib/libgcc_s.so.1" "$stage/$arch_lib"
    ln -s bash "$stage/usr/bin/sh"
    busybox --list | while read -r name; do
        [[ -e $stage/usr/bin/$name ]] || ln -s busybox "$stage/usr/bin/$name"
    done
}

build_initramfs() {
    local stage version
    local -A module_files=()
    say "making the guests' initramfs"
    stage=$(mktemp -d "$cache/building-XXXXXX")
    at_exit rm -rf "$stage"
    mkdir -p "$stage"/{dev,etc,job,proc,root,run,share,sys,tmp,var}
    add_programs "$stage"
    index_modules
    for version in "$root"/usr/lib/modules/* "$root"/usr/lib/uml/modules/*; do
        add_modules "$stage" "${version##*/}"
    done
    cp "$lib/guest-init" "$stage/init"
    # tcpdump gives up being root for a user of its name.
    printf '%s\n' root:x:0:0:root:/root:/bin/sh tcpdump:x:100:100::/:/bin/false >"$stage/etc/passwd"
    printf 'root:x:0:\n' >"$stage/etc/group"
    printf '127.0.0.1 localhost guest\n' >"$stage/etc/hosts"
    cp "$root"/etc/{protocols,services,ethertypes} "$stage/etc" 2>/dev/null || true
    make_cpio "$stage" >"$stage.cpio"
    mv "$stage.cpio" "$initramfs"
    rm -rf "$stage"
    say "initramfs is ready: $(du -h "$initramfs" | cut -f 1)"
}

# make_cpio DIRECTORY: the kernel's initramfs format on stdout; several of them one after the other are one initramfs.
# Not compressed: unpacking it under emulation takes longer than reading it.
make_cpio() { (cd "$1" && find . | busybox cpio --quiet -o -H newc -R 0:0); }

# What others than this file rely on: after it, root, initramfs and loader are set and there.
ensure_guest_files() {
    local recipe
    need_amd64 guests
    recipe=$(printf '%s\n' "$suite" "${from_backports[@]}" "${packages[@]}" "$kernel_package" && declare -f unpack_debs fill_root set_interpreter)
    root=$cache/root-$(hash_of <<<"$recipe")
    initramfs=$cache/initramfs-$({ echo "$root"; cat "$lib/root.bash" "$lib/guest-init"; } | hash_of).cpio
    loader=("$root/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$root/$arch_lib")
    [[ -d $root && -e $initramfs ]] && return
    lock_cache
    [[ -d $root ]] || set_up "$root" "the guests' Debian $suite" '200 MB to fetch, a minute' fill_root
    [[ -e $initramfs ]] || build_initramfs
    unlock_cache
}
