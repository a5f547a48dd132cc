//! The trace: what a packet goes through beside the usual way is told by the names that it has in Linux.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use nic_guest::net::sch_api::{FqCodelParams, QdiscKind, TbfParams};
use nic_guest::net::trace::{Stage, Traced};
use nic_guest::net::{Errno, Fd, Kernel, Machine, Protocol, SockType};
use nic_guest::virtio_net::features as f;

use crate::common::packets::{PEER, PEER_MAC, udp, udp_between};
use crate::common::world::{FEATURES, MAC, Nic, Setup, World};
use crate::{PORT, peer};

type Guest = Kernel<Nic, Traced<Rc<World>>>;

/// A guest that is traced, and a bound socket.
fn traced(change: impl FnOnce(&mut Setup)) -> (Guest, Rc<World>, Fd) {
    let mut setup = Setup {
        features: FEATURES & !f::CSUM,
        queue_size: 16,
        ..Setup::default()
    };
    change(&mut setup);
    let (mut kernel, world) = setup.boot_on(|world| Traced::new(Rc::clone(world)));
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    kernel.bind(fd, any).unwrap();
    kernel.neigh_add(PEER.into(), PEER_MAC).unwrap();
    settle(&mut kernel);
    drop(kernel.machine.tracer.take());
    (kernel, world, fd)
}

fn settle(kernel: &mut Guest) {
    while kernel.step().unwrap() {}
}

/// The ways of all stages since the last call: names, from who was not called on.
fn ways(kernel: &Guest) -> BTreeSet<String> {
    fn note(stages: &[Stage], way: &str, ways: &mut BTreeSet<String>) {
        for stage in stages {
            let way = format!("{way}/{}", stage.name);
            note(&stage.calls, &way, ways);
            ways.insert(way);
        }
    }
    let mut all = BTreeSet::new();
    note(&kernel.machine.tracer.take(), "", &mut all);
    all
}

/// Asserts that each of `expected` is the end of a way.
fn assert_seen(kernel: &Guest, expected: &[&str]) {
    let ways = ways(kernel);
    for end in expected {
        assert!(
            ways.iter().any(|way| way.ends_with(end)),
            "{end}: {ways:#?}"
        );
    }
}

#[test]
fn of_queueing_disciplines() {
    let (mut kernel, world, fd) = traced(|setup| {
        setup.config.default_qdisc = QdiscKind::FqCodel(FqCodelParams::default());
        setup.config.bql = true;
    });
    world.hold.set(true);
    for _ in 0..3 {
        kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    }
    assert_seen(
        &kernel,
        &[
            "/__dev_queue_xmit/dev_qdisc_enqueue",
            "/__dev_queue_xmit/__qdisc_run",
        ],
    );
    world.hold.set(false);
    world.transmit(0, 10);
    settle(&mut kernel);
    assert_seen(
        &kernel,
        &["/net_tx_action/__qdisc_run/sch_direct_xmit/validate_xmit_skb_list/validate_xmit_skb"],
    );
    let slow = TbfParams {
        rate: 1000,
        burst: 100,
        limit: 1000,
    };
    kernel.qdisc_replace(None, QdiscKind::Tbf(slow)).unwrap();
    for _ in 0..3 {
        kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    }
    world.advance(kernel.next_timer().unwrap() - world.now());
    settle(&mut kernel);
    assert_seen(
        &kernel,
        &[
            "/hrtimer_interrupt/qdisc_watchdog",
            "/net_tx_action/__qdisc_run",
        ],
    );
}

#[test]
fn of_ways_to_poll() {
    let (mut kernel, world, fd) = traced(|_| ());
    kernel.set_napi_defer_hard_irqs(1, Duration::from_micros(10));
    world.receive(&udp(PORT, b"x"));
    settle(&mut kernel);
    world.advance(10_000);
    settle(&mut kernel);
    assert_seen(
        &kernel,
        &["/hrtimer_interrupt/napi_watchdog/__napi_schedule"],
    );
    kernel.recvfrom(fd, &mut [0; 8]).unwrap();
    kernel.set_busy_poll(fd, 1).unwrap();
    assert_eq!(kernel.recvfrom(fd, &mut [0; 8]), Err(Errno::EAGAIN));
    assert_seen(&kernel, &["/inet_recvmsg/napi_busy_loop/virtnet_poll"]);
    kernel.dev_set_threaded(true);
    world.receive(&udp(PORT, b"x"));
    settle(&mut kernel);
    assert_seen(&kernel, &["/napi_threaded_poll/__napi_poll/virtnet_poll"]);
    let (mut kernel, world, _) = traced(|setup| setup.config.rx_napi = false);
    world.receive(&udp(PORT, b"x"));
    settle(&mut kernel);
    assert_seen(
        &kernel,
        &[
            "/skb_recv_done/virtnet_interrupt_rx/virtnet_receive_done/netif_rx_internal/enqueue_to_backlog",
            "/__napi_poll/process_backlog/__netif_receive_skb",
        ],
    );
}

#[test]
fn of_steering_and_of_files() {
    let (mut kernel, world, fd) = traced(|setup| setup.config.cpus = 2);
    kernel.set_rps_cpus(0, &[1]).unwrap();
    world.receive(&udp_between(9, (MAC, [10, 77, 0, 2], PORT), b"x"));
    settle(&mut kernel);
    kernel.connect(fd, peer(9)).unwrap();
    kernel.read(fd, &mut [0; 8]).unwrap();
    kernel.write(fd, b"x").unwrap();
    assert_seen(
        &kernel,
        &[
            "/netif_receive_skb_list_internal/get_rps_cpu",
            "/netif_receive_skb_list_internal/enqueue_to_backlog",
            "/net_rx_action/net_rps_send_ipi",
            "rps_trigger_softirq",
            "/process_backlog/__netif_receive_skb/__netif_receive_skb_one_core/ip_rcv/ip_rcv_core",
            "/ksys_read/sock_read_iter/sock_recvmsg/inet_recvmsg/udp_recvmsg",
            "/ksys_write/sock_write_iter/sock_sendmsg/inet_sendmsg/udp_sendmsg",
        ],
    );
}
