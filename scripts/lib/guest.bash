# Boots a guest on vhost-user sockets and runs one command in it: what QEMU, User-mode Linux and cloud-hypervisor have in common.
#
# A front-end's script sets `about` (its help) and defines
#   vmm_option NAME VALUE   takes an option of its own: sets `taken` to 1 (a flag) or 2; false when it does not know NAME
#   vmm_check               refuses options that do not go together, before anything is started
#   vmm_prepare             sets `vmm` (the command), `transport` and `share_mount` (see guest-init) for the boot in directory `boot`,
#                           and starts whatever else it needs with start_helper
# and calls guest_main "$@". In `boot` there are the fifos ctl.in ctl.out out err in tty.in tty.out, `initramfs`, `share`, and a link
# nicN to each socket: short names without odd characters, whatever the user's are.
# shellcheck shell=bash

# shellcheck source=common.bash
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"
# shellcheck source=root.bash
source "$lib/root.bash"

sockets=() command=()
memory=256M timeout='' boot_timeout=60 boots=1 mtu='' share='' console='' address=1 input=none

shared_help() {
    cat <<'HELP'

Options of every guest:
  --mem SIZE          the guest's memory (256M)
  --timeout SECONDS   for boot and COMMAND together (120; 0: no limit, as by default when COMMAND has the terminal)
  --boot-timeout SECONDS   a guest that is not up by then is started once more; a COMMAND never is (60)
  --mtu N             the MTU of every ethN
  --no-address        ethN is up, but has no address
  --share DIR         the host's DIR is the guest's /share
  --stdin             COMMAND reads our standard input (else it has none)
  --console FILE      keep what the guest's kernel says (else it is shown only when something fails)
  --help

SOCKET is a vhost-user socket that a backend listens on; the first is the guest's eth0, 10.77.0.2/24, the next eth1, 10.77.1.2/24,
and so on. COMMAND runs as root in a small Debian in memory, with ip, tc, ss, bridge, ethtool, ping, iperf3, socat, tcpdump, bash and
busybox; its arguments, output and errors come through unchanged. On a terminal, COMMAND has the terminal: `-- sh` is a shell.

Exit status: COMMAND's (128 + N when signal N ended it); 124 when the time was up; 125 when the guest could not run COMMAND;
2 for bad usage. The first run fetches Debian packages into ~/.cache/vhost-user-nic (a minute).
HELP
}

parse_options() {
    local name taken
    while (($#)); do
        name=$1
        case $name in
            --) shift && command=("$@") && break ;;
            --help | -h) echo "$about" && shared_help && exit 0 ;;
            --no-address) address=0 && shift && continue ;;
            --stdin) input=stream && shift && continue ;;
            --*=*) set -- "${name%%=*}" "${name#*=}" "${@:2}" && continue ;;
            -*) ;;
            *) sockets+=("$name") && shift && continue ;;
        esac
        taken=2
        case $name in
            --mem) memory=${2-} ;;
            --timeout) timeout=${2-} ;;
            --boot-timeout) boot_timeout=${2-} ;;
            --mtu) mtu=${2-} ;;
            --share) share=${2-} ;;
            --console) console=${2-} ;;
            *) vmm_option "$name" "${2-}" || usage_error "unknown option $name" ;;
        esac
        (($# >= taken)) || usage_error "$name needs a value"
        shift "$taken"
    done
    ((${#sockets[@]})) || usage_error "which socket? $program SOCKET... -- COMMAND..."
    ((${#command[@]})) || usage_error "which command? $program SOCKET... -- COMMAND..."
    [[ $memory =~ ^[0-9]+[MG]$ ]] || usage_error "--mem '$memory' is no size like 256M"
    [[ -z $timeout$mtu ]] || check_numbers ${timeout:+timeout} ${mtu:+mtu}
    check_numbers boot_timeout
    [[ -z $share || -d $share ]] || usage_error "--share '$share' is no directory"
}

# check_numbers NAME...: the variables of options that are numbers.
check_numbers() {
    local name
    for name; do
        [[ ${!name} =~ ^[0-9]+$ ]] || usage_error "--${name//_/-} '${!name}' is no number"
        ((10#${!name} > 0)) || [[ $name == timeout || $name == config_size ]] || usage_error "--${name//_/-} is at least 1"
    done
}

check_mac() { [[ $1 =~ ^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$ ]] || usage_error "--mac '$1' is no MAC address"; }

# mac_of INDEX: the address of that ethN, counted up from --mac.
mac_of() { printf '%s:%02x\n' "${mac%:*}" $(((16#${mac##*:} + $1) & 255)); }

# COMMAND has the terminal when there is one on both sides, and a time limit then only when asked for.
choose_input() {
    if [[ $input == none && -t 0 && -t 1 ]]; then
        input=terminal
        timeout=${timeout:-0}
    fi
    timeout=${timeout:-120}
}

await_sockets() {
    local socket patience=$((EPOCHSECONDS + 10))
    for socket in "${sockets[@]}"; do
        until [[ -S $socket ]]; do
            ((EPOCHSECONDS < patience)) || die "$EXIT_CANNOT_RUN" "no socket at $socket: start a backend first (vhost-user-nic serve --socket $socket)"
            sleep 0.1
        done
    done
}

# A directory for this run: in memory where there is room for the guest's memory too (User-mode Linux keeps it in a file, and
# containers often have a small /dev/shm), and where programs may be mapped.
make_run_directory() {
    local candidate free need=${memory%[MG]}
    [[ $memory == *M ]] || need=$((need * 1024))
    for candidate in /dev/shm "${TMPDIR:-/tmp}" /var/tmp; do
        free=$(df --output=avail -m "$candidate" 2>/dev/null | tail -n 1) || continue
        ((free > need + 100)) || continue
        run=$(mktemp -d "$candidate/guest-XXXXXX" 2>/dev/null) || continue
        at_exit rm -rf "$run"
        cp /bin/true "$run/true" && "$run/true" 2>/dev/null && return
    done
    die "$EXIT_CANNOT_RUN" "no directory with $((need + 100)) MB free, not mounted noexec, among /dev/shm, ${TMPDIR:-/tmp}, /var/tmp"
}

# quote WORD...: for sh, every byte kept, a space before each.
quote() {
    local word LC_ALL=C
    for word; do printf " '%s'" "${word//\'/\'\\\'\'}"; done
}

# The initramfs of this boot: the common one, and /job after it.
make_initramfs() {
    local rows columns term=${TERM:-linux}
    mkdir -p "$boot/files/job"
    read -r rows columns < <(stty size 2>/dev/null || echo 24 80)
    ((rows)) || rows=24 columns=80
    { printf exec && quote "${command[@]}" && echo; } >"$boot/files/job/command"
    cat >"$boot/files/job/config" <<CONFIG
transport=$transport
nics=${#sockets[@]}
address=$address
mtu=$mtu
share='$share_mount'
input=$input
rows=$rows
columns=$columns
terminal=${term//[!a-zA-Z0-9.+-]/}
CONFIG
    { cat "$initramfs" && make_cpio "$boot/files"; } >"$boot/initramfs"
}

# start_helper COMMAND...: in the background, in a process group of its own, ended by end_boot.
start_helper() {
    setsid "$@" <&"$our_input" &
    groups+=($!)
    disown $!
}

# pump FIFO: the guest's stream to our standard output. Where ours is closed early, the guest's is emptied all the same: it would
# wait for ever. Dies with the front-end, the fifo's only writer.
pump() {
    # shellcheck disable=SC2016 # for the shell that it starts
    start_helper sh -c 'exec <"$0"; cat; exec cat >/dev/null' "$1"
    pumps+=($!)
}

start_boot() {
    local i
    boot=$run/boot$((++tries))
    mkdir "$boot"
    mkfifo "$boot"/{ctl.in,ctl.out,out,err,in,tty.in,tty.out}
    for i in "${!sockets[@]}"; do ln -s "$(realpath -s "${sockets[i]}")" "$boot/nic$i"; done
    [[ -z $share ]] || ln -s "$(realpath "$share")" "$boot/share"
    groups=() pumps=() said=''
    vmm_prepare
    make_initramfs
    if [[ $input == terminal ]]; then
        pump "$boot/tty.out"
    else
        pump "$boot/out"
        pump "$boot/err" >&2
    fi
    # Open in both directions, no end waits for the other to open its own. stdin_hold goes when there is a real writer.
    exec {to_guest}<>"$boot/ctl.in" {from_guest}<>"$boot/ctl.out" {stdin_hold}<>"$boot/in"
    launch &
    vmm_pid=$!
    disown "$vmm_pid"
    groups+=("$vmm_pid")
}

# The front-end itself; it dies with us.
launch() {
    cd "$boot"
    exec {to_guest}>&- {from_guest}>&- {stdin_hold}>&- {our_input}<&- >"$log" 2>&1 </dev/null
    vmm_redirect
    exec setsid setpriv --pdeathsig KILL -- "${vmm[@]}"
}

vmm_redirect() { :; }

# COMMAND's standard input starts with COMMAND: a boot that failed has read none of it.
start_input() {
    local writer
    case $input in
        terminal)
            # shellcheck disable=SC2064 # as it is now
            at_exit stty "$(stty -g)"
            stty raw -echo
            exec {writer}>"$boot/tty.in"
            start_helper cat >&"$writer"
            exec {writer}>&-
            ;;
        stream)
            exec {writer}>"$boot/in"
            if [[ $transport == tty ]]; then
                start_helper sh -c "base64; printf '\\004'" >&"$writer"
            else
                start_helper cat >&"$writer"
            fi
            exec {writer}>&-
            ;;
    esac
    exec {stdin_hold}>&-
}

running() { kill -0 "$1" 2>/dev/null; }

# listen UNTIL: the next line that the guest says, in `heard`: 1 when the front-end is gone, 2 when it is past UNTIL.
listen() {
    local part
    while :; do
        if IFS= read -r -t 0.2 -u "$from_guest" part; then
            heard=$said$part said=''
            return 0
        fi
        said+=$part
        if ! running "$vmm_pid"; then
            # Its last words may have come in between.
            IFS= read -r -t 0.01 -u "$from_guest" part || return 1
            heard=$said$part said=''
            return 0
        fi
        ((EPOCHSECONDS < $1)) || return 2
    done
}

# await_end UNTIL PID...: whether all have ended by then.
await_end() {
    local until=$1 pid
    shift
    for pid; do
        while running "$pid"; do
            ((EPOCHSECONDS < until)) || return 1
            sleep 0.05
        done
    done
}

end_boot() {
    local pid signal
    for signal in TERM KILL; do
        for pid in "${groups[@]}"; do kill -"$signal" -- "-$pid" "$pid" 2>/dev/null || true; done
        # The front-end may close its devices in order; what stays of its group a second later does not.
        [[ $signal == KILL ]] || await_end $((EPOCHSECONDS + 2)) "$vmm_pid" || true
    done
    groups=()
}

# give_up STATUS WORDS...: with what the guest's kernel said.
give_up() {
    local status=$1
    shift
    {
        echo "--- the guest's console ---"
        tr -d '\r' <"$log" | tail -n 80
        echo "---"
    } >&2
    die "$status" "$@"
}

time_is_up() { give_up "$EXIT_TIMEOUT" "not finished after $timeout s (--timeout)${1:+: $1}"; }

# After the last boot: the front-end ends by itself, and all that COMMAND wrote is passed on.
finish_boot() {
    await_end $((EPOCHSECONDS + 10)) "$vmm_pid" || say "the guest does not power off; ended it"
    kill -KILL -- "-$vmm_pid" 2>/dev/null || true
    await_end "$deadline" "${pumps[@]}" || time_is_up "nobody reads our output"
}

# One start of the front-end, through all its --boots; sets `status`. Returns 1, with the reason in `trouble`, when the guest did not
# come up.
run_boot() {
    local boots_left=$boots stage=booting first=1 limit ended
    start_boot
    limit=$((EPOCHSECONDS + boot_timeout))
    while :; do
        ended=0
        listen "$((limit < deadline ? limit : deadline))" || ended=$?
        if ((ended)); then
            trouble='the front-end ended'
            ((ended == 1)) || trouble="nothing from its first process in $boot_timeout s"
            ((ended == 1 || EPOCHSECONDS < deadline)) || time_is_up "the guest was $stage"
            [[ $stage$first == booting1 ]] && return 1
            give_up "$EXIT_CANNOT_RUN" "$trouble while the guest was $stage"
        fi
        case $heard in
            init)
                [[ $stage == booting ]] || give_up "$EXIT_CANNOT_RUN" "the guest started again by itself while it was $stage"
                stage='setting up' limit=$deadline
                ;;
            run)
                stage='running COMMAND'
                ((first)) && start_input
                first=0
                ;;
            error\ *) give_up "$EXIT_CANNOT_RUN" "the guest says: ${heard#error }" ;;
            exit\ *)
                status=${heard#exit }
                if ((status == 0 && --boots_left)); then
                    stage=booting limit=$((EPOCHSECONDS + boot_timeout))
                    echo reboot >&"$to_guest"
                else
                    echo poweroff >&"$to_guest"
                    finish_boot
                    return 0
                fi
                ;;
        esac
    done
}

guest_main() {
    parse_options "$@"
    choose_input
    vmm_check
    ensure_guest_files
    exec {our_input}<&0
    await_sockets
    make_run_directory
    log=${console:-$run/console}
    [[ $log == /* ]] || log=$PWD/$log
    deadline=$((timeout ? EPOCHSECONDS + timeout : 1 << 40))
    tries=0 trouble=''
    at_exit end_boot
    if ! run_boot; then
        say "the guest did not come up: $trouble; starting it once more"
        end_boot
        run_boot || give_up "$EXIT_CANNOT_RUN" "the guest did not come up a second time: $trouble"
    fi
    exit "$status"
}
