//! No packet costs the kernel an allocation, received or sent, once its caches are filled.
//!
//! A test binary of its own, for its allocator counts. Only the kernel's own calls are counted, not those
//! of the device that it meets here.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddrV4};

use common::packets::{OURS, PEER, arp_request, echo_request, udp, udp_between};
use common::world::{FEATURES, Guest, MAC, Setup, World, boot};
use nic_guest::net::{Errno, Fd, Protocol, SockType};
use nic_guest::virtio_net::features as f;

/// The system's allocator, and how often each thread called it.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // While a thread ends its counter may be gone, and nobody looks at it.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator as it is; the counter is a plain cell of
// the thread's and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: as above; `memory` is the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
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
    let (mut kernel, world) = setup.boot();
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
