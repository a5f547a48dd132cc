//! The guest's TCP and the partner's, through the card in virtual time, over a line that is sound or is not.

use std::net::{Ipv4Addr, Shutdown, SocketAddrV4};
use std::time::Duration;

use nic_guest::net::{Errno, Fd, Kernel, KernelConfig, Machine, Protocol, SockType};
use nic_guest::virtio_net::ProbeOptions;
use nic_testbed::in_process::{InProcess, World};
use nic_testbed::trace::COST;

use crate::faults::inject;
use crate::support::{virtual_guest, virtual_guest_with, without_super_frames};

type Host = Kernel<InProcess, World>;

const ECHO: u16 = 7;
const DISCARD: u16 = 9;

fn host(options: &ProbeOptions) -> Host {
    let guest = virtual_guest_with("partner", options, |_| {});
    let world = guest.transport.world();
    // A CPU that the line is faster than, so that a poll finds several frames.
    let config = KernelConfig {
        cost: COST,
        ..KernelConfig::default()
    };
    Kernel::new(guest, world, config)
}

/// Goes on until `done`, at most for so many seconds.
fn until(kernel: &mut Host, seconds: u64, mut done: impl FnMut(&mut Host) -> bool) {
    let end = Machine::now(&kernel.machine) + seconds * 1_000_000_000;
    while !done(kernel) {
        let now = Machine::now(&kernel.machine);
        assert!(now < end, "it took too long");
        while kernel.step().expect("sound rings") {}
        let due = kernel
            .next_timer()
            .map_or(u64::MAX, |due| due.saturating_sub(now));
        let pause = Duration::from_nanos(due.min(1_000_000));
        kernel.wait(pause).expect("the card is there");
    }
}

fn connect(kernel: &mut Host, port: u16) -> Fd {
    let fd = kernel
        .socket(SockType::Stream, Protocol::Tcp)
        .expect("a socket");
    let to = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), port);
    assert_eq!(kernel.connect(fd, to), Err(Errno::EINPROGRESS));
    until(kernel, 60, |kernel| kernel.poll_writable(fd) == Ok(true));
    fd
}

fn data(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at * 7 + at / 255) as u8)
        .collect()
}

/// As much as there is room for.
fn send(kernel: &mut Host, fd: Fd, rest: &[u8]) -> usize {
    match kernel.sendto(fd, rest, None) {
        Ok(len) => len,
        Err(error) => {
            assert_eq!(error, Errno::EAGAIN);
            0
        }
    }
}

/// Has the partner send back `len` octets and close.
fn echo(kernel: &mut Host, len: usize) {
    let fd = connect(kernel, ECHO);
    let all = data(len);
    let (mut sent, mut got, mut buffer) = (0, Vec::<u8>::new(), vec![0; 20_000]);
    until(kernel, 600, |kernel| {
        while sent < len {
            let more = send(kernel, fd, &all[sent..]);
            sent += more;
            if more == 0 {
                break;
            }
            if sent == len {
                kernel
                    .shutdown(fd, Shutdown::Write)
                    .expect("it is connected");
            }
        }
        loop {
            match kernel.recvfrom(fd, &mut buffer) {
                Ok(received) if received.len == 0 => return true,
                Ok(received) => got.extend(&buffer[..received.len]),
                Err(error) => {
                    assert_eq!(error, Errno::EAGAIN);
                    return false;
                }
            }
        }
    });
    assert!(got == all, "{} of {len} octets came back", got.len());
    kernel.close(fd).expect("it is open");
}

#[test]
fn the_partner_sends_back_what_it_is_sent() {
    for options in [ProbeOptions::default(), without_super_frames()] {
        let mut kernel = host(&options);
        echo(&mut kernel, 2 << 20);
        let stats = kernel.stats();
        assert_eq!(stats.snmp.tcp_retrans_segs, 0);
        assert!(stats.gro_merged > 100, "{}", stats.gro_merged);
        assert_eq!(stats.rx_dropped() + stats.tx_dropped(), 0, "{stats:#?}");
    }
}

#[test]
fn the_partner_takes_what_it_throws_away_and_refuses_what_nobody_serves() {
    let mut kernel = host(&ProbeOptions::default());
    let (fd, all) = (connect(&mut kernel, DISCARD), data(1 << 20));
    let mut sent = 0;
    until(&mut kernel, 60, |kernel| {
        sent += send(kernel, fd, &all[sent..]);
        sent == all.len()
    });
    kernel
        .shutdown(fd, Shutdown::Write)
        .expect("it is connected");
    // It closes once it has read all.
    until(&mut kernel, 60, |kernel| kernel.poll(fd) == Ok(true));
    assert_eq!(kernel.recvfrom(fd, &mut [0; 10]).expect("the end").len, 0);
    let refused = connect(&mut kernel, 10);
    let error = kernel
        .recvfrom(refused, &mut [0; 10])
        .expect_err("nobody is there");
    assert_eq!(error, Errno::ECONNREFUSED);
}

#[test]
fn a_bad_line_changes_nothing_but_the_time() {
    for spec in [
        "drop=0.02",
        "duplicate=0.05",
        "truncate=0.02",
        "ber=1e-6",
        "reorder=0.1/3",
        "delay=100us±50us",
        "flap=20ms/3ms",
        "slow-used=50us",
        "drop=0.01,duplicate=0.01,reorder=0.02/3,ber=1e-7",
    ] {
        let guest = virtual_guest("partner", |_| {});
        let world = guest.transport.world();
        let mut kernel = Kernel::new(guest, world, KernelConfig::default());
        inject(&kernel.dev.transport, &format!("{spec},seed=3"));
        echo(&mut kernel, 200_000);
        let (came, ended) = kernel.stats().rx_balance();
        assert_eq!(came, ended, "{spec}");
        let again = kernel.stats().snmp.tcp_retrans_segs;
        assert!(
            again > 0 || !spec.starts_with("drop"),
            "{spec}: nothing was lost"
        );
    }
}
