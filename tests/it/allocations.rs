//! No packet costs an allocation: neither in the card, nor in the guest's driver, in any direction.
//!
//! A test binary of its own, for its allocator counts. Card, wire and guest run on the test's own thread, in
//! virtual time.

#[allow(dead_code)] // made for many
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use nic_guest::transport::Transport;
use nic_guest::virtio_net::VirtnetInfo;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_model::port::PortConfig;
use nic_testbed::in_process::InProcess;

use support::{numbered_frame, virtual_guest};

/// The system's allocator, and how often each thread called it.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // While a thread ends its counter may be gone, and nobody looks at it.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator as it is; the counter is a plain cell of the thread's and
// does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // Giving back costs as much as taking.
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

/// Calls of the allocator by each side.
#[derive(Debug, Default, PartialEq)]
struct Calls {
    card: u64,
    guest: u64,
}

/// Frames that the guest sends and receives in each test.
const FRAMES: u64 = 100_000;

/// A guest whose mappings nobody checks: the checker allocates.
fn unchecked_guest(wire: &str, change: impl FnOnce(&mut PortConfig)) -> VirtnetInfo<InProcess> {
    let guest = virtual_guest(wire, change);
    guest.transport.memory().dma_debug().disable();
    guest
}

/// Lets frames pass until `done` says that it is enough: the guest sends bursts of `sent` if there are any, the card
/// and its wire work for 20 us, the guest receives.
fn pass(
    guest: &mut VirtnetInfo<InProcess>,
    sent: &[Vec<u8>],
    done: impl Fn(&VirtnetInfo<InProcess>) -> bool,
) -> Calls {
    let mut calls = Calls::default();
    let mut rounds = 0;
    while !done(guest) {
        calls.guest += allocations(|| {
            for frame in sent {
                // A full ring is tried again in the next round.
                if guest
                    .start_xmit(0, frame, &VirtioNetHdr::default())
                    .is_err()
                {
                    break;
                }
            }
            guest.flush(0);
        });
        let end = guest.transport.now() + Duration::from_micros(20);
        calls.card += allocations(|| guest.transport.run_until(end));
        calls.guest += allocations(|| {
            let poll = guest.poll(0, 64, |frame| assert!(frame.len() >= 42));
            poll.expect("sound rings");
            guest.take_interrupts(0);
        });
        rounds += 1;
        assert!(rounds < FRAMES, "nothing passes");
    }
    calls
}

/// Asserts that after as much again as it takes to warm up, `FRAMES` pass without an allocation.
fn assert_none(wire: &str, sent: &[Vec<u8>], passed: impl Fn(&VirtnetInfo<InProcess>) -> u64) {
    let mut guest = unchecked_guest(wire, |_| {});
    // The pool fills up, and each queue finds its length.
    pass(&mut guest, sent, |guest| passed(guest) >= FRAMES / 10);
    let target = passed(&guest) + FRAMES;
    let calls = pass(&mut guest, sent, |guest| passed(guest) >= target);
    assert_eq!(calls, Calls::default(), "{wire}");
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(Box::new(1))), 2);
    assert_eq!(allocations(|| drop(vec![0; 100])), 2);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn receiving_allocates_nothing() {
    let received = |guest: &VirtnetInfo<InProcess>| guest.stats().0.packets;
    assert_none("generator", &[], received);
    assert_none("generator:pps=1000000,size=1518,flows=100", &[], received);
}

#[test]
fn an_overrun_fifo_allocates_nothing() {
    // The guest takes 64 frames every 20 us; 100 Gb/s bring 2976 in that time.
    let fast = "100G".parse().expect("a speed");
    let mut guest = unchecked_guest("generator", |port| port.speed = fast);
    let dropped = |guest: &VirtnetInfo<InProcess>| {
        let card = guest.transport.card();
        let card = card.borrow();
        card.nic.counters().drops.total()
    };
    pass(&mut guest, &[], |guest| dropped(guest) > FRAMES / 10);
    let calls = pass(&mut guest, &[], |guest| dropped(guest) > FRAMES);
    assert_eq!(calls, Calls::default());
}

#[test]
fn sending_allocates_nothing() {
    let sent = |guest: &VirtnetInfo<InProcess>| guest.stats().1.packets;
    let short: Vec<Vec<u8>> = (0..50).map(|number| numbered_frame(number, 60)).collect();
    let long: Vec<Vec<u8>> = (0..20).map(|number| numbered_frame(number, 1514)).collect();
    for frames in [&short, &long] {
        for wire in ["sink", "none"] {
            assert_none(wire, frames, sent);
        }
    }
}

#[test]
fn a_loopback_allocates_nothing() {
    let frames: Vec<Vec<u8>> = (0..15u32)
        .map(|number| numbered_frame(number, 60 + number as usize * 103))
        .collect();
    assert_none("loopback", &frames, |guest| guest.stats().0.packets);
}

/// A broadcast question for the partner's address.
fn arp_request(from: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(from);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(from);
    frame.extend([10, 77, 0, 2, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1]);
    frame.resize(60, 0);
    frame
}

/// A datagram for one of the partner's services, without a checksum.
fn datagram(from: [u8; 6], port: u16) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0x77, 0x01];
    frame.extend(from);
    frame.extend([8, 0]);
    let header = [
        0x45, 0, 0, 100, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 77, 0, 2, 10, 77, 0, 1,
    ];
    let words = header
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame.extend(&header[..10]);
    frame.extend(sum.to_be_bytes());
    frame.extend(&header[12..]);
    frame.extend([0x30, 0x39]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80, 0, 0]);
    frame.resize(114, 0x42);
    frame
}

#[test]
fn the_partner_allocates_nothing() {
    const ECHO: u16 = 7;
    let mut guest = unchecked_guest("partner", |_| {});
    let mac = guest.mac();
    let received = |guest: &VirtnetInfo<InProcess>| guest.stats().0.packets;
    pass(&mut guest, &[arp_request(mac)], |guest| received(guest) > 0);
    let sent = vec![datagram(mac, ECHO); 10];
    pass(&mut guest, &sent, |guest| received(guest) >= FRAMES / 10);
    let calls = pass(&mut guest, &sent, |guest| received(guest) >= FRAMES);
    assert_eq!(calls, Calls::default());
}

#[test]
fn a_replay_allocates_nothing_while_it_goes_on() {
    let capture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../fixtures/captures/tcp-sack-loss.pcap"
    );
    let mut guest = unchecked_guest(&format!("pcap={capture},pps=100000"), |_| {});
    guest.set_promisc(true).expect("promiscuous mode");
    let received = |guest: &VirtnetInfo<InProcess>| guest.stats().0.packets;
    // The reader's buffer is there once the first frame is. The end of the replay is logged.
    pass(&mut guest, &[], |guest| received(guest) >= 50);
    let calls = pass(&mut guest, &[], |guest| received(guest) >= 290);
    assert_eq!(calls, Calls::default());
}
