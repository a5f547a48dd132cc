//! RPS and RFS: packets that go up on other CPUs than the one that took them from the ring.

use std::rc::Rc;
use std::time::Duration;

use nic_guest::net::stats::{CpuStats, RxDrop};
use nic_guest::net::{Errno, Fd, Machine};
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::{OURS, udp_between};
use crate::common::world::{Guest, MAC, Setup, World, assert_balanced, settle};
use crate::{PORT, peer, read_all, udp_socket};

/// One receive queue, whose interrupts CPU 0 has, and `cpus` CPUs.
fn guest(cpus: usize) -> (Guest, Rc<World>) {
    let mut setup = Setup::default();
    setup.config.cpus = cpus;
    setup.boot()
}

/// A socket whose queue does not fill up here.
fn roomy_socket(kernel: &mut Guest) -> Fd {
    let fd = udp_socket(kernel, PORT);
    kernel.set_rcvbuf(fd, 1 << 20).unwrap();
    fd
}

fn receive(world: &World, from: u16, count: usize) {
    for n in 0..count {
        world.receive(&udp_between(from, (MAC, OURS, PORT), &[n as u8]));
    }
}

fn processed(kernel: &Guest) -> Vec<u64> {
    let stats = kernel.stats();
    stats.cpus.iter().map(|cpu| cpu.processed).collect()
}

#[test]
fn flows_are_spread_over_the_cpus_that_a_queue_has() {
    let (mut kernel, world) = guest(4);
    let fd = roomy_socket(&mut kernel);
    receive(&world, 1, 10);
    settle(&mut kernel);
    assert_eq!(processed(&kernel), [10, 0, 0, 0]);
    kernel.set_rps_cpus(0, &[1, 2, 3]).unwrap();
    for from in 1..=64 {
        receive(&world, from, 2);
    }
    settle(&mut kernel);
    let counts = processed(&kernel);
    assert_eq!((counts[0], counts[1..].iter().sum::<u64>()), (10, 128));
    assert!(
        counts[1..]
            .iter()
            .all(|&count| count >= 20 && count % 2 == 0),
        "{counts:?}"
    );
    // One interrupt for all packets of a poll, not for each.
    let stats = kernel.stats();
    let ipis: Vec<u64> = stats.cpus.iter().map(|cpu| cpu.received_rps).collect();
    assert!(
        ipis[0] == 0 && ipis[1..].iter().all(|&count| (1..=4).contains(&count)),
        "{ipis:?}"
    );
    assert_eq!(read_all(&mut kernel, fd).len(), 138);
    kernel.set_rps_cpus(0, &[]).unwrap();
    receive(&world, 1, 10);
    settle(&mut kernel);
    assert_eq!(processed(&kernel)[0], 20);
    assert_balanced(&kernel);
    for (queue, cpus, error) in [(1, &[0][..], Errno::ENOENT), (0, &[4], Errno::EINVAL)] {
        assert_eq!(kernel.set_rps_cpus(queue, cpus), Err(error));
    }
    assert_eq!(kernel.set_rps_flow_cnt(1, 8), Err(Errno::ENOENT));
    assert_eq!(kernel.set_rps_flow_cnt(0, 1 << 20), Err(Errno::EINVAL));
}

#[test]
fn a_flow_keeps_its_order() {
    let (mut kernel, world) = guest(4);
    let fd = roomy_socket(&mut kernel);
    kernel.set_rps_cpus(0, &[0, 1, 2, 3]).unwrap();
    for from in 1..=8 {
        receive(&world, from, 20);
    }
    settle(&mut kernel);
    let mut next = [0; 9];
    let mut buf = [0; 8];
    while let Ok(received) = kernel.recvfrom(fd, &mut buf) {
        let place = &mut next[usize::from(received.from.port())];
        assert_eq!(buf[0], *place);
        *place += 1;
    }
    assert_eq!(next, [0, 20, 20, 20, 20, 20, 20, 20, 20]);
}

#[test]
fn a_backlog_is_bounded_and_its_cpu_counts_what_it_lost() {
    let mut setup = Setup::default();
    (setup.config.cpus, setup.config.netdev_max_backlog) = (2, 10);
    let (mut kernel, world) = setup.boot();
    udp_socket(&mut kernel, PORT);
    kernel.set_rps_cpus(0, &[1]).unwrap();
    receive(&world, 1, 60);
    settle(&mut kernel);
    let stats = kernel.stats();
    let CpuStats {
        dropped, processed, ..
    } = stats.cpus[1];
    assert_eq!((dropped, processed), (49, 11));
    assert_eq!(stats.rx_drop(RxDrop::CpuBacklog), 49);
    assert_balanced(&kernel);
}

/// A connected socket, so that its flow is known.
fn connected(kernel: &mut Guest, world: &World) -> Fd {
    let fd = udp_socket(kernel, PORT);
    kernel.connect(fd, peer(9)).unwrap();
    kernel.set_rps_sock_flow_entries(1000).unwrap();
    kernel.set_rps_flow_cnt(0, 1000).unwrap();
    receive(world, 9, 1);
    settle(kernel);
    fd
}

#[test]
fn packets_go_where_their_socket_is_read() {
    let (mut kernel, world) = guest(4);
    let fd = connected(&mut kernel, &world);
    for cpu in [2, 3, 0, 1] {
        kernel.sched_setaffinity(cpu).unwrap();
        assert_eq!(read_all(&mut kernel, fd).len(), 1);
        let before = processed(&kernel)[cpu];
        receive(&world, 9, 1);
        settle(&mut kernel);
        assert_eq!(processed(&kernel)[cpu], before + 1, "{cpu}");
    }
    // Whoever is not connected goes where he came.
    let other = udp_socket(&mut kernel, PORT + 1);
    world.receive(&udp_between(7, (MAC, OURS, PORT + 1), b"x"));
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, other).len(), 1);
    let before = processed(&kernel)[0];
    world.receive(&udp_between(7, (MAC, OURS, PORT + 1), b"x"));
    settle(&mut kernel);
    assert_eq!(processed(&kernel)[0], before + 1);
    kernel.set_rps_sock_flow_entries(0).unwrap();
    let before = processed(&kernel)[0];
    receive(&world, 9, 1);
    settle(&mut kernel);
    assert_eq!(processed(&kernel)[0], before + 1);
    assert_balanced(&kernel);
}

#[test]
fn a_flow_moves_only_when_nothing_of_it_waits_elsewhere() {
    let mut setup = Setup {
        pairs: 4,
        ..Setup::default()
    };
    (setup.config.cpus, setup.config.netdev_max_backlog) = (4, 5000);
    setup.config.cost.packet = Duration::from_micros(150);
    let (mut kernel, world) = setup.boot();
    let fd = udp_socket(&mut kernel, PORT);
    kernel.connect(fd, peer(9)).unwrap();
    kernel.set_rps_sock_flow_entries(1000).unwrap();
    kernel.set_rps_flow_cnt(1, 1000).unwrap();
    let receive = |queue: u16, from: u16, count: u8| {
        for n in 0..count {
            let frame = udp_between(from, (MAC, OURS, PORT), &[n]);
            world.schedule_with(world.now(), 2 * queue, VirtioNetHdr::default(), &frame);
        }
    };
    receive(1, 9, 1);
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, fd).len(), 1, "on CPU 0");
    // CPUs 2 and 3 give CPU 0 more than it does in a step, of flows that nobody reads.
    for queue in [2, 3] {
        kernel.set_rps_cpus(queue, &[0]).unwrap();
        receive(queue as u16, 8, 200);
    }
    kernel.step().unwrap();
    receive(1, 9, 10);
    kernel.step().unwrap();
    // While they wait behind the others the socket is read elsewhere.
    kernel.sched_setaffinity(3).unwrap();
    assert_eq!(kernel.recvfrom(fd, &mut [0; 8]), Err(Errno::EAGAIN));
    let before = processed(&kernel)[3];
    receive(1, 9, 5);
    kernel.step().unwrap();
    assert_eq!(
        processed(&kernel)[3],
        before,
        "it would overtake the others"
    );
    settle(&mut kernel);
    let numbers: Vec<u8> = read_all(&mut kernel, fd).iter().map(|d| d[0]).collect();
    assert!(
        numbers.iter().copied().eq((0..10).chain(0..5)),
        "{numbers:?}"
    );
    receive(1, 9, 5);
    settle(&mut kernel);
    assert_eq!(processed(&kernel)[3], before + 5);
}
