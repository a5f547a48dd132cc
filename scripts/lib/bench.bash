# What the benchmarks have in common: options, programs, processes on CPUs that are talked to, waits that end.
# shellcheck shell=bash

# one_of OPTION VALUE CHOICE...
one_of() {
    local option=$1 value=$2 choice
    shift 2
    for choice; do [[ $value != "$choice" ]] || return 0; done
    usage_error "$option '$value' is none of: $*"
}

# number_in OPTION VALUE LEAST MOST
number_in() {
    if ! [[ $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then usage_error "$1 '$2' is no number from $3 to $4"; fi
}

# seconds_over_zero OPTION VALUE
seconds_over_zero() {
    [[ $2 =~ ^[0-9]{1,4}(\.[0-9]{1,3})?$ && $2 =~ [1-9] ]] || usage_error "$1 '$2' is no number of seconds like 3 or 0.5"
}

check_nice() {
    [[ $nice =~ ^(-?[0-9]|-?1[0-9]|-20)$ ]] || usage_error "--nice '$nice' is no number from -20 to 19"
    ((nice >= 0 || EUID == 0)) || usage_error "--nice $nice takes root"
}

# The CPUs that we may run on: as taskset takes them, and one a line.
allowed_list() { sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status; }

allowed_cpus() {
    local list part
    IFS=, read -ra list < <(allowed_list)
    for part in "${list[@]}"; do seq "${part%-*}" "${part#*-}"; done
}

# choose_cpus: checks `cpus`, or chooses them; sets driver_cpu and device_cpu.
choose_cpus() {
    local allowed cpu
    mapfile -t allowed < <(allowed_cpus)
    if [[ -z $cpus ]]; then
        ((${#allowed[@]} > 1)) || die "$EXIT_CANNOT_RUN" "two CPUs are needed, and we may use ${#allowed[@]}"
        cpus=${allowed[0]},${allowed[1]}
    fi
    [[ $cpus =~ ^([0-9]+),([0-9]+)$ ]] || usage_error "--cpus '$cpus' is no pair like 0,1"
    driver_cpu=${BASH_REMATCH[1]} device_cpu=${BASH_REMATCH[2]}
    [[ $driver_cpu != "$device_cpu" ]] || usage_error "--cpus '$cpus': each side needs a CPU of its own"
    for cpu in "$driver_cpu" "$device_cpu"; do
        [[ " ${allowed[*]} " == *" $cpu "* ]] || usage_error "--cpus '$cpus': we may run on ${allowed[*]}"
    done
}

# build PACKAGE KIND NAME: builds a program.
build() {
    command -v cargo >/dev/null || die "$EXIT_CANNOT_RUN" "no cargo to build $3 with: install Rust first"
    say "building $3 (some minutes the first time)"
    (cd "$repository" && cargo build --quiet --locked --release --package "$1" "--$2" "$3") >&2 || die "$EXIT_CANNOT_RUN" "$3 does not build"
}

readonly built=${CARGO_TARGET_DIR:-$repository/target}/release

build_nic() {
    nic=${VHOST_USER_NIC:-$built/vhost-user-nic}
    [[ -n ${VHOST_USER_NIC:-} ]] || build nic-backend bin vhost-user-nic
    [[ -x $nic ]] || die "$EXIT_CANNOT_RUN" "no program at $nic: set VHOST_USER_NIC to one, or to nothing"
}

build_latency() {
    latency_program=$built/examples/cache-line-latency
    build nic-testbed example cache-line-latency
}

make_run_directory() {
    run=$(mktemp -d "${TMPDIR:-/tmp}/nic-bench-XXXXXX")
    at_exit rm -rf "$run"
    at_exit end_all
    : >"$run/samples"
    # Where DPDK puts what it would else leave in /var/run.
    export RUNTIME_DIRECTORY=$run XDG_RUNTIME_DIR=$run
}

# Processes by name: their ids, and descriptors that lead to their standard input.
declare -A pids=() inputs=()

# start NAME CPUS COMMAND...: on those CPUs, with a log, and an input for `tell`; it dies with us.
start() {
    local name=$1 cpus=$2 input
    shift 2
    rm -f "$run/$name.in"
    mkfifo "$run/$name.in"
    exec {input}<>"$run/$name.in"
    inputs[$name]=$input
    : >"$run/$name.log"
    setpriv --pdeathsig KILL -- taskset -c "$cpus" "$@" <"$run/$name.in" >"$run/$name.log" 2>&1 {input}>&- &
    pids[$name]=$!
}

# set_priority: ours, and so that of all that we start. Where the kernel weighs sessions against each other first (autogroups), the
# session gets it, too, for as long as we run.
set_priority() {
    local group=/proc/$$/autogroup before
    ((nice)) || return 0
    renice -n "$nice" -p $$ >/dev/null
    [[ -w $group ]] || return 0
    before=$(sed 's/.*nice //' "$group")
    at_exit restore_group "$group" "$before"
    echo "$nice" >"$group"
}

restore_group() { echo "$2" >"$1"; }

end_all() { end_processes "${!pids[@]}"; }

# end_processes NAME...: politely, then not.
end_processes() {
    local name pid patience=$((EPOCHSECONDS + 5))
    for name; do
        pid=${pids[$name]:-}
        [[ -n $pid ]] || continue
        kill -TERM "$pid" 2>/dev/null || true
        while kill -0 "$pid" 2>/dev/null; do
            ((EPOCHSECONDS < patience)) || kill -KILL "$pid" 2>/dev/null || true
            sleep 0.02
        done
        reap "$name" || true
    done
}

# reap NAME: forgets a process that has ended, with its status; what it said is kept where that was asked for.
reap() {
    local status=0 input=${inputs[$1]}
    wait "${pids[$1]}" 2>/dev/null || status=$?
    exec {input}>&-
    unset "pids[$1]" "inputs[$1]"
    [[ -z ${keep:-} ]] || { mkdir -p "$keep" && cat "$run/$1.log" >>"$keep/$1.log"; }
    return "$status"
}

ended() { ! kill -0 "${pids[$1]}" 2>/dev/null; }

# fail WORDS...: with the last words of all processes.
fail() {
    local log
    for log in "$run"/*.log; do
        [[ -s $log ]] || continue
        echo "--- ${log##*/} ---" >&2
        tail -n 30 "$log" >&2
        echo >&2
    done
    die 1 "$*; what the processes said last is above"
}

# await_words NAME OFFSET PATTERN SECONDS: until the log has the pattern after OFFSET octets.
await_words() {
    local name=$1 offset=$2 pattern=$3 patience=$((EPOCHSECONDS + $4 + 1))
    until tail -c "+$((offset + 1))" "$run/$name.log" | grep -qE -- "$pattern"; do
        kill -0 "${pids[$name]}" 2>/dev/null || fail "the $name ended"
        ((EPOCHSECONDS < patience)) || fail "the $name did not say '$pattern' in $4 s"
        sleep 0.02
    done
}

# await SECONDS TROUBLE COMMAND...: until the command succeeds.
await() {
    local patience=$((EPOCHSECONDS + $1 + 1)) trouble="$2 after $1 s"
    shift 2
    until "$@"; do
        ((EPOCHSECONDS < patience)) || fail "$trouble"
        sleep 0.05
    done
}

await_socket() { await 10 "no socket of the device" test -S "$run/socket"; }

tell() { echo "$2" >&"${inputs[$1]}"; }

# ask NAME COMMAND END [TIMES]: `answer` is what it says to the command, up to that pattern.
ask() {
    local name=$1 offset patience=$((EPOCHSECONDS + 6))
    offset=$(stat -c %s "$run/$name.log")
    tell "$name" "$2"
    until answer=$(tail -c "+$((offset + 1))" "$run/$name.log") && (($(grep -cE -- "$3" <<<"$answer") >= ${4:-1})); do
        kill -0 "${pids[$name]}" 2>/dev/null || fail "the $name ended"
        ((EPOCHSECONDS < patience)) || fail "no answer of the $name to '$2' in 5 s"
        sleep 0.005
    done
}

# note_cpu_time NAME...: appends to `busy` what time it is, and the clock ticks that all threads of each have had.
note_cpu_time() {
    local name stat fields
    busy+=" $EPOCHREALTIME"
    for name; do
        read -r stat <"/proc/${pids[$name]}/stat"
        read -ra fields <<<"${stat##*) }"
        busy+=" $((fields[11] + fields[12]))"
    done
}

# start_perf NAME: records the device for as long as a sample takes; end_perf waits for it.
recorder=
start_perf() {
    mkdir -p "$perf"
    perf record --quiet --output "$perf/$1.data" --freq 2000 --pid "${pids[device]}" -- sleep "$seconds" >"$run/perf.log" 2>&1 &
    recorder=$!
}

end_perf() {
    [[ -z $recorder ]] || wait "$recorder" || fail "perf does not work here"
    recorder=
}

# write_json: every sample and what led to it, to `json`.
write_json() {
    # shellcheck disable=SC2016 # jq's variables
    jq -n --slurpfile samples "$run/samples" --slurpfile summary "$run/summary" --arg dpdk "${dpdk_version:-}" --arg nic "$("$nic" --version)" \
        --arg cpu "$(lscpu | sed -n 's/^Model name: *//p')" --arg kernel "$(uname -r)" --arg options "$options" \
        '{command: $options, $nic, $dpdk, $cpu, $kernel, summary: $summary[0], $samples}' >"$json"
    say "every sample is in $json"
}
