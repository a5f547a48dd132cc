//! No packet costs the kernel an allocation, received or sent, once its caches are filled.
//!
//! A test binary of its own, for its allocator counts. Only the kernel's own calls are counted, not those
//! of the device that it meets here.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use common::packets::{
    OURS, PEER, PEER_MAC, arp_request, echo_request, ip_with, udp, udp_between, udp_to,
};
use common::world::{FEATURES, Guest, MAC, Setup, World};
use etherparse::Ipv4Header;
use nic_guest::net::file::MSG_MORE;
use nic_guest::net::{Errno, Fd, Ifindex, Protocol, SockType};
use nic_guest::virtio_net::features as f;

/// The system's allocator, how often each thread called it, and for how many bytes.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // While a thread ends its counters may be gone, and nobody looks at them.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
    let _ = BYTES.try_with(|all| all.set(all.get() + bytes));
}

// SAFETY: every call is passed on to the system's allocator as it is; the counter is a plain cell of
// the thread's and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0);
        // SAFETY: as above; `memory` is the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator while `work` ran.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

/// A guest whose mappings nobody checks: the checker allocates.
fn boot_as(setup: Setup) -> (Guest, Rc<World>) {
    let (kernel, world) = setup.boot();
    world.memory().dma_debug().disable();
    (kernel, world)
}

fn boot() -> (Guest, Rc<World>) {
    boot_as(Setup::default())
}

const PORT: u16 = 7000;
const BURST: usize = 90;

/// Receives a burst and reads it, sends another, and lets the device be done with it.
fn exchange(kernel: &mut Guest, world: &World, fd: Fd) -> u64 {
    for n in 0..BURST {
        world.receive(&udp(PORT, &n.to_be_bytes()));
    }
    let mut buf = [0; 64];
    let mut calls = allocations(|| {
        while kernel.step().unwrap() {}
        for _ in 0..BURST {
            assert_eq!(kernel.recvfrom(fd, &mut buf).unwrap().len, 8);
        }
        assert_eq!(kernel.recvfrom(fd, &mut buf), Err(Errno::EAGAIN));
        let to = SocketAddrV4::new(PEER.into(), 9);
        for _ in 0..BURST {
            kernel.sendto(fd, &buf, Some(to)).unwrap();
        }
    });
    assert_eq!(world.transmit(0, 1000), BURST);
    world.take_sent();
    calls += allocations(|| while kernel.step().unwrap() {});
    assert_eq!(kernel.dev.sq[0].vq.outstanding(), 0);
    calls
}

#[test]
fn no_packet_costs_an_allocation() {
    let (mut kernel, world) = boot();
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    kernel.bind(fd, any).unwrap();
    world.receive(&arp_request(OURS));
    while kernel.step().unwrap() {}
    world.hold.set(true);
    world.transmit(0, 1);
    world.take_sent();
    let first = exchange(&mut kernel, &world, fd);
    assert!(first > 0, "caches are filled as they are needed");
    exchange(&mut kernel, &world, fd);
    for round in 0..10 {
        assert_eq!(exchange(&mut kernel, &world, fd), 0, "round {round}");
    }
}

#[test]
fn nor_does_one_of_many_queues_with_its_hash() {
    let mut setup = Setup {
        features: FEATURES | f::RSS | f::HASH_REPORT,
        pairs: 4,
        ..Setup::default()
    };
    // Two transmit queues a CPU, between which the flow decides.
    setup.config.cpus = 2;
    let (mut kernel, world) = boot_as(setup);
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    kernel.bind(fd, any).unwrap();
    world.receive(&arp_request(OURS));
    while kernel.step().unwrap() {}
    let mut buf = [0; 8];
    for round in 0..10 {
        for from in 0..32 {
            world.receive_steered(&udp_between(from, (MAC, OURS, PORT), &[0; 8]));
        }
        let calls = allocations(|| {
            while kernel.step().unwrap() {}
            while kernel.recvfrom(fd, &mut buf).is_ok() {}
        });
        // The device allocates, too, so it waits.
        world.hold.set(true);
        let to = SocketAddrV4::new(PEER.into(), 9);
        let sent = allocations(|| {
            for cpu in [0, 1, 0, 1] {
                kernel.sched_setaffinity(cpu).unwrap();
                kernel.sendto(fd, &buf, Some(to)).unwrap();
            }
        });
        world.hold.set(false);
        let on: usize = (0..4).map(|pair| world.transmit(pair, 100)).sum();
        assert_eq!(on, 4, "round {round}");
        world.take_sent();
        let done = allocations(|| while kernel.step().unwrap() {});
        if round > 1 {
            assert_eq!((calls, sent, done), (0, 0, 0), "round {round}");
        }
    }
}

#[test]
fn nor_does_one_that_is_merged() {
    let (mut kernel, world) = boot();
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    kernel.bind(fd, any).unwrap();
    kernel.set_udp_gro(fd, true).unwrap();
    let mut buf = [0; 65_536];
    for round in 0..10 {
        // Datagrams that may not be fragmented have one identification, so that they are merged in pairs.
        for n in 0..BURST {
            world.receive(&udp(PORT, &n.to_be_bytes()));
        }
        let calls = allocations(|| {
            while kernel.step().unwrap() {}
            while kernel.recvfrom(fd, &mut buf).is_ok() {}
        });
        assert!(kernel.stats().gro_merged > 40 * round, "round {round}");
        if round > 1 {
            assert_eq!(calls, 0, "round {round}");
        }
    }
}

/// A connection to itself, so that both ends are the kernel's.
#[test]
fn nor_does_a_segment() {
    let (mut kernel, _) = boot();
    let listener = kernel.socket(SockType::Stream, Protocol::Tcp).unwrap();
    let here = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);
    kernel.bind(listener, here).unwrap();
    kernel.listen(listener, 1).unwrap();
    let fd = kernel.socket(SockType::Stream, Protocol::Tcp).unwrap();
    assert_eq!(kernel.connect(fd, here), Err(Errno::EINPROGRESS));
    while kernel.step().unwrap() {}
    let (other, _) = kernel.accept(listener).unwrap();
    // Whole segments: the end of one that is not would wait for an acknowledgement.
    const LEN: usize = 10 * 1460;
    let mut buf = [0; LEN];
    for round in 0..20 {
        let calls = allocations(|| {
            assert_eq!(kernel.sendto(fd, &buf, None), Ok(LEN));
            while kernel.step().unwrap() {}
            let mut got = 0;
            while let Ok(received) = kernel.recvfrom(other, &mut buf) {
                got += received.len;
                while kernel.step().unwrap() {}
            }
            assert_eq!(got, LEN);
        });
        if round > 2 {
            assert_eq!(calls, 0, "round {round}");
        }
    }
}

#[test]
fn no_answer_costs_an_allocation() {
    let (mut kernel, world) = boot();
    world.receive(&arp_request(OURS));
    while kernel.step().unwrap() {}
    world.hold.set(true);
    for round in 0..10 {
        for frame in [
            echo_request(1, 2, &[7; 100]),
            udp(4444, b"closed"),
            arp_request(OURS),
        ] {
            world.receive(&frame);
        }
        let calls = allocations(|| while kernel.step().unwrap() {});
        world.transmit(0, 1000);
        world.take_sent();
        let done = allocations(|| while kernel.step().unwrap() {});
        if round > 1 {
            assert_eq!((calls, done), (0, 0), "round {round}");
        }
    }
}

/// What passes by other devices costs none either: lo, a dummy behind a router, VLANs, a bridge between two of them, and
/// a tap that sees all that.
#[test]
fn nor_does_one_of_devices_of_software() {
    let mut setup = Setup::default();
    setup.config.ip_forward = true;
    let (mut kernel, world) = boot_as(setup);
    let dummy = kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1]).unwrap();
    let behind = [192, 168, 9, 2];
    kernel
        .inet_addr_add(dummy, [192, 168, 9, 1].into(), 24)
        .unwrap();
    let br = kernel.br_add_bridge("br0").unwrap();
    for vlan_id in [10, 20, 30] {
        let name = format!("eth0.{vlan_id}");
        let vlan = kernel.vlan_add(&name, Ifindex::ETH0, vlan_id).unwrap();
        kernel.br_add_if(br, vlan).unwrap();
    }
    let vlan = kernel.vlan_add("eth0.100", Ifindex::ETH0, 100).unwrap();
    kernel
        .inet_addr_add(vlan, [10, 100, 0, 2].into(), 24)
        .unwrap();
    kernel.neigh_add([10, 100, 0, 1].into(), PEER_MAC).unwrap();
    let tap = kernel.packet_socket(None).unwrap();
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    kernel.bind(fd, any).unwrap();
    world.hold.set(true);
    let mut buf = [0; 64];
    for round in 0..10 {
        let mut bridged = udp_to([2, 7, 7, 7, 7, 7], OURS, PORT, b"by");
        bridged.splice(12..12, [0x81, 0, 0, 10]);
        world.receive(&bridged);
        for _ in 0..20 {
            world.receive(&udp_to(MAC, behind, PORT, b"on"));
        }
        let calls = allocations(|| {
            while kernel.step().unwrap() {}
            for to in [[127, 0, 0, 1], [10, 100, 0, 1], behind] {
                let to = SocketAddrV4::new(to.into(), PORT);
                kernel.sendto(fd, &buf, Some(to)).unwrap();
            }
            while kernel.recvfrom(fd, &mut buf).is_ok() {}
            while kernel.packet_recvmsg(tap, &mut buf).is_ok() {}
        });
        // Two ports of the bridge, and the datagram in the VLAN.
        assert_eq!(world.transmit(0, 1000), 3);
        world.take_sent();
        let done = allocations(|| while kernel.step().unwrap() {});
        if round > 1 {
            assert_eq!((calls, done), (0, 0), "round {round}");
        }
    }
    let stats = kernel.stats();
    assert_eq!(
        (stats.forwarded, stats.bridged, stats.netif_rx),
        (200, 10, 10)
    );
}

/// A datagram in two fragments.
fn fragments() -> [Vec<u8>; 2] {
    let whole = udp(PORT, &[7; 1000]);
    let (header, payload) = Ipv4Header::from_slice(&whole[14..]).unwrap();
    [(0..800, true), (800..1008, false)].map(|(range, more)| {
        let mut header = header.clone();
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = (range.start as u16 / 8).try_into().unwrap();
        header.total_len = 20 + range.len() as u16;
        ip_with(header, &payload[range])
    })
}

#[test]
fn nor_do_packets_in_fragments() {
    let (mut kernel, world) = boot();
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    kernel.bind(fd, any).unwrap();
    world.receive(&arp_request(OURS));
    while kernel.step().unwrap() {}
    world.hold.set(true);
    world.transmit(0, 1);
    let (data, mut buf) = ([7; 3000], [0; 2000]);
    let to = SocketAddrV4::new(PEER.into(), 9);
    for round in 0..10 {
        for frame in fragments() {
            world.receive(&frame);
        }
        let calls = allocations(|| {
            while kernel.step().unwrap() {}
            assert_eq!(kernel.recvfrom(fd, &mut buf).unwrap().len, 1000);
            kernel.sendto(fd, &data, Some(to)).unwrap();
        });
        assert_eq!(world.transmit(0, 1000), 3);
        let done = allocations(|| while kernel.step().unwrap() {});
        if round > 1 {
            assert_eq!((calls, done), (0, 0), "round {round}");
        }
    }
}

#[test]
fn a_short_datagram_has_a_short_buffer_though_more_was_to_come() {
    let (mut kernel, _world) = boot();
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let lo = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);
    kernel.bind(fd, lo).unwrap();
    let before = BYTES.get();
    for _ in 0..100 {
        kernel.sendto_flags(fd, b"1", Some(lo), MSG_MORE).unwrap();
        kernel.sendto(fd, b"2", None).unwrap();
        while kernel.step().unwrap() {}
    }
    let pinned = BYTES.get() - before;
    assert!(pinned < 100 * 4096, "{pinned} bytes for 100 datagrams");
    let mut buf = [0; 4];
    for _ in 0..100 {
        assert_eq!(kernel.recvfrom(fd, &mut buf).unwrap().len, 2);
    }
}

#[test]
fn nor_does_what_waits_for_more() {
    let (mut kernel, _world) = boot();
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let lo = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);
    kernel.bind(fd, lo).unwrap();
    let (data, mut buf) = ([7; 700], [0; 9000]);
    for round in 0..10 {
        let calls = allocations(|| {
            for _ in 0..10 {
                kernel.sendto_flags(fd, &data, Some(lo), MSG_MORE).unwrap();
            }
            kernel.sendto(fd, &data, None).unwrap();
            while kernel.step().unwrap() {}
            assert_eq!(kernel.recvfrom(fd, &mut buf).unwrap().len, 7700);
        });
        if round > 1 {
            assert_eq!(calls, 0, "round {round}");
        }
    }
}
