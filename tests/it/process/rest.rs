//! What the program takes while it does nothing, and what it takes at all: CPU time, memory, and where its threads run.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nic_backend::control::{Request, ask};
use nic_guest::memory::GuestMemory;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nix::unistd::{SysconfVar, sysconf};

use super::assert_one_line;
use super::child::{Serving, run};
use crate::support::{numbered_frame, wait_until, without_super_frames};

/// A guest of `pairs` queue pairs with rings of `size`, all of them set up.
fn guest(path: &Path, pairs: u16, size: u16) -> VirtnetInfo<VhostUser> {
    let memory = GuestMemory::new(256 << 20).expect("guest memory");
    let transport = VhostUser::connect(path, memory).expect("a connection");
    let options = ProbeOptions {
        queue_pairs: pairs,
        queue_size: size,
        ..without_super_frames()
    };
    VirtnetInfo::probe(transport, &options).expect("a device")
}

/// CPU time that all threads of process `pid` have had, in clock ticks (proc_pid_stat(5): utime and stime).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    // The name, in brackets, may have blanks.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let field = |number: usize| -> u64 {
        let text = fields.split_whitespace().nth(number - 3);
        text.expect("a field").parse().expect("a number")
    };
    field(14) + field(15)
}

/// Nanoseconds that the threads of process `pid` have run (proc_pid_schedstat(5)), finer than ticks.
fn runtime(pid: u32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    tasks
        .map(|task| {
            let path = task.expect("a thread").path().join("schedstat");
            let stat = fs::read_to_string(path).ok()?;
            stat.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum()
}

/// CPU time of process `pid` so far.
fn cpu_time(pid: u32) -> Duration {
    match runtime(pid) {
        Some(ns) => Duration::from_nanos(ns),
        // A kernel without CONFIG_SCHED_INFO.
        None => {
            let rate = sysconf(SysconfVar::CLK_TCK)
                .expect("it says")
                .unwrap_or(100);
            Duration::from_secs(ticks(pid)) / rate as u32
        }
    }
}

#[test]
fn a_card_that_rests_takes_no_cpu_time() {
    for poll in ["never", "adaptive"] {
        for workers in ["1", "4"] {
            let nic = Serving::start(&["--queues", "16", "--workers", workers, "--poll", poll]);
            let mut guest = guest(&nic.socket(), 16, 256);
            // It has had something to do before.
            let frame = numbered_frame(0, 60);
            for pair in 0..16 {
                guest
                    .start_xmit(pair, &frame, &VirtioNetHdr::default())
                    .expect("room");
                guest.flush(pair);
            }
            wait_until("the frames", || {
                let stats = ask(&nic.control(), Request::Stats).expect("an answer");
                stats["port"]["tx_frames"].as_u64() >= Some(16)
            });
            let (begin, before) = (Instant::now(), cpu_time(nic.id()));
            std::thread::sleep(Duration::from_secs(2));
            let (took, after) = (begin.elapsed(), cpu_time(nic.id()));
            let cpu = after - before;
            println!("--poll {poll}, {workers} workers: {cpu:?} of CPU time in {took:?}");
            // 0.1 % of a CPU.
            assert!(
                cpu * 1000 <= took,
                "--poll {poll}, {workers} workers: {cpu:?} in {took:?}"
            );
        }
    }
}

/// Anonymous memory of process `pid` that is resident, in octets (proc_pid_smaps(5)). The guest's memory is shared, and none of it.
fn anonymous(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it lives");
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    1024 * kib.expect("a size").parse::<u64>().expect("a number")
}

#[test]
fn a_card_of_eight_pairs_takes_no_more_than_32_mib() {
    for workers in ["1", "8"] {
        let nic = Serving::start(&[
            "--queues",
            "8",
            "--workers",
            workers,
            "--wire",
            "loopback",
            "--rss",
            "on",
        ]);
        let started = anonymous(nic.id());
        let mut guest = guest(&nic.socket(), 8, 1024);
        let frames: Vec<_> = (0..64).map(|number| numbered_frame(number, 1514)).collect();
        let mut received = 0;
        wait_until("frames of all pairs and back", || {
            for pair in 0..8 {
                for frame in &frames {
                    // A full ring is tried again.
                    if guest
                        .start_xmit(pair, frame, &VirtioNetHdr::default())
                        .is_err()
                    {
                        break;
                    }
                }
                guest.flush(pair);
                guest
                    .poll(pair, 64, |_| received += 1)
                    .expect("a sound ring");
            }
            received >= 20_000
        });
        let octets = anonymous(nic.id());
        println!("{workers} workers: {started} at first, {octets} with traffic");
        assert!(octets <= 32 << 20, "{workers} workers: {octets} octets");
    }
}

/// Where each thread of process `pid` may run, by name.
fn threads(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    tasks
        .map(|task| {
            let path = task.expect("a thread").path();
            let name = fs::read_to_string(path.join("comm")).expect("a name");
            let status = fs::read_to_string(path.join("status")).expect("a status");
            let cpus = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let cpus = cpus.expect("CPUs").trim();
            (name.trim().to_owned(), cpus.to_owned())
        })
        .collect()
}

/// The CPUs that this process may run on.
fn own_cpus() -> Vec<usize> {
    use nix::sched::{CpuSet, sched_getaffinity};
    let mask = sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("a mask");
    (0..CpuSet::count())
        .filter(|&cpu| mask.is_set(cpu) == Ok(true))
        .collect()
}

#[test]
fn threads_run_where_they_are_told_to() {
    let own = own_cpus();
    let (first, last) = (own[0].to_string(), own[own.len() - 1].to_string());
    let on = |nic: &Serving, name: &str| {
        let mut cpus = None;
        // A thread takes its name once it runs.
        wait_until(name, || {
            let mut threads = threads(nic.id()).into_iter();
            cpus = threads.find(|(thread, _)| thread == name);
            cpus.is_some()
        });
        cpus.expect("it was found").1
    };
    let nic = Serving::start(&["--cpus", &last]);
    assert_eq!(on(&nic, "nic-worker"), last);
    let everywhere = on(&nic, "vhost-user-nic");
    assert_eq!(on(&nic, "nic-accept"), everywhere, "it moves no packets");
    let mut both = format!("{last},{first}");
    if first == last {
        both = first.clone();
    }
    let nic = Serving::start(&["--queues", "3", "--workers", "3", "--cpus", &both]);
    assert_eq!(on(&nic, "nic-port"), last);
    for worker in 0..3 {
        assert_eq!(on(&nic, &format!("nic-worker-{worker}")), first);
    }
}

#[test]
fn cpus_that_it_cannot_have_are_bad_usage() {
    let own = own_cpus();
    let last = own[own.len() - 1].to_string();
    for (args, parts) in [
        (&["--cpus", "1023"][..], &["no CPU 1023"][..]),
        (&["--cpus", "many"], &["many", "2-5"]),
        (&["--cpus", "3-1"], &["backwards", "2-5"]),
        (&["--cpus", "0-2"], &["0-2", "too many", "--workers"]),
    ] {
        let serve = ["serve", "--socket", "/nonexistent/nic.sock"];
        let end = run(&[&serve, args].concat());
        assert_eq!(end.code, Some(2), "{args:?}: {}", end.err);
        let line = end.err.lines().next().unwrap_or_default();
        assert_one_line(&end.err, line, parts);
        assert_eq!(end.out, "", "{args:?}");
    }
    // One that whoever starts it keeps it from.
    if let [first, .., _] = own[..] {
        let end = super::child::run_on(
            &last,
            &[
                "serve",
                "--socket",
                "/nonexistent/nic.sock",
                "--cpus",
                &first.to_string(),
            ],
        );
        assert_eq!(end.code, Some(2), "{}", end.err);
        let line = end.err.lines().next().unwrap_or_default();
        let (cpu, allowed) = (format!("CPU {first} is none"), format!("allows {last}"));
        assert_one_line(&end.err, line, &[&cpu, &allowed]);
    }
}

#[test]
fn a_worker_spins_while_that_pays_and_says_so() {
    let nic = Serving::start(&["--poll", "adaptive", "--wire", "generator:pps=40000"]);
    let mut guest = guest(&nic.socket(), 1, 256);
    let count = |name: &str| {
        let stats = ask(&nic.control(), Request::Stats).expect("an answer");
        stats[name].as_u64().expect("a count")
    };
    wait_until("a spin that paid", || {
        guest.poll(0, 64, |_| {}).expect("a sound ring");
        count("worker_spins_paid") > 0
    });
}
