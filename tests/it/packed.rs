//! Packed rings over vhost-user, message by message, on a ring that is written by hand: where they begin and go on.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nic_device::features::Features;
use nic_guest::memory::{GuestMemory, GuestSlice};
use nic_guest::transport::message::{
    Connection, connect, memory_region, memory_table, vring_addr, vring_state,
};
use nix::sys::eventfd::EventFd;
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use crate::support::{PATIENCE, TestNic, numbered_frame, wait_until};

/// The transmit queue.
const QUEUE: u32 = 1;
/// No power of two.
const SIZE: u16 = 3;

struct FrontEnd<'a> {
    nic: &'a TestNic,
    front: Connection,
    memory: Arc<GuestMemory>,
    /// The descriptors, and behind them both event suppression structures.
    ring: GuestSlice,
    packet: GuestSlice,
    kick: EventFd,
    sent: u16,
}

impl<'a> FrontEnd<'a> {
    fn new(nic: &'a TestNic) -> Self {
        let memory = GuestMemory::new(1 << 20).expect("memory");
        let stream = connect(&nic.socket(), PATIENCE).expect("a connection");
        let front = FrontEnd {
            nic,
            front: Connection::new(stream, PATIENCE).expect("a timeout"),
            ring: memory.allocate(4096, 16).expect("room"),
            packet: memory.allocate(4096, 64).expect("room"),
            memory,
            kick: EventFd::new().expect("an eventfd"),
            sent: 0,
        };
        front.ring.fill(0, 4096, 0);
        front.packet.write(12, &numbered_frame(7, 60));
        front.say(Req::SET_OWNER, &[], &[]);
        front.front.ask_u64(Req::GET_FEATURES).expect("an answer");
        let asked = front.front.ask_u64(Req::GET_PROTOCOL_FEATURES);
        asked.expect("an answer");
        let protocol = Protocol::MQ.bits();
        front.say(Req::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
        front
    }

    fn say(&self, request: Req, payload: &[u8], fds: &[RawFd]) {
        self.front.tell(request, payload, fds).expect("it reads");
    }

    fn accept(&self, features: Features) {
        let features = features | Features::VERSION_1 | Features::PROTOCOL_FEATURES;
        self.say(Req::SET_FEATURES, &features.bits().to_ne_bytes(), &[]);
    }

    fn give_memory(&self) {
        let regions = self.memory.regions();
        let body = memory_table(&[memory_region(&regions[0], regions[0].host_addr)]);
        self.say(Req::SET_MEM_TABLE, &body, &[regions[0].fd]);
    }

    fn place(&self) {
        let descriptors = self.ring.guest_addr();
        let events = descriptors + 1024;
        let [desc, driver, device] = [descriptors, events, events + 4]
            .map(|addr| self.memory.host_addr(addr).expect("it is mapped"));
        let body = vring_addr(QUEUE, 0, desc, device, driver, 0);
        self.say(Req::SET_VRING_ADDR, &body, &[]);
    }

    fn begin_at(&self, base: u32) {
        self.say(Req::SET_VRING_BASE, &vring_state(QUEUE, base), &[]);
    }

    fn start(&self) {
        let kick = self.kick.as_raw_fd();
        self.say(
            Req::SET_VRING_KICK,
            &u64::from(QUEUE).to_ne_bytes(),
            &[kick],
        );
        self.say(Req::SET_VRING_ENABLE, &vring_state(QUEUE, 1), &[]);
        // What comes before that is discarded.
        self.settle();
    }

    /// Where the ring stops.
    fn stop(&self) -> u32 {
        self.base_of(QUEUE)
    }

    fn base_of(&self, queue: u32) -> u32 {
        self.say(Req::GET_VRING_BASE, &vring_state(queue, 0), &[]);
        let answer = self.front.recv_reply(Req::GET_VRING_BASE);
        let payload = answer.expect("an answer").payload;
        assert_eq!(payload[..4], queue.to_ne_bytes());
        u32::from_ne_bytes(payload[4..].try_into().expect("eight octets"))
    }

    /// Another queue's answer says that all before was dealt with.
    fn settle(&self) {
        self.base_of(0);
    }

    /// Sends a packet in the next descriptor.
    fn send(&mut self) {
        let counted = || self.nic.status().nic.port.counters.tx_frames;
        let before = counted();
        let slot = 16 * usize::from(self.sent % SIZE);
        let (available, used) = if (self.sent / SIZE).is_multiple_of(2) {
            (0x80u16, 0x8080)
        } else {
            (0x8000, 0)
        };
        self.ring
            .write(slot, &self.packet.guest_addr().to_le_bytes());
        self.ring.write(slot + 8, &72u32.to_le_bytes());
        self.ring.write(slot + 12, &self.sent.to_le_bytes());
        fence(Ordering::SeqCst);
        self.ring.write(slot + 14, &available.to_le_bytes());
        fence(Ordering::SeqCst);
        self.kick.write(1).expect("room");
        wait_until("the packet to be used", || {
            self.ring.read_u16(slot + 14) == used
        });
        assert_eq!(self.ring.read_u16(slot + 12), self.sent);
        wait_until("the packet to be sent", || counted() == before + 1);
        self.sent += 1;
    }
}

#[test]
fn a_packed_ring_goes_on_where_it_stopped() {
    for events in [Features::empty(), Features::EVENT_IDX | Features::IN_ORDER] {
        let nic = TestNic::new("none");
        let mut front = FrontEnd::new(&nic);
        front.accept(Features::RING_PACKED | events);
        front.give_memory();
        front.say(Req::SET_VRING_NUM, &vring_state(QUEUE, SIZE.into()), &[]);
        // As QEMU says it.
        front.begin_at(0x8000_8000);
        front.place();
        front.start();
        for _ in 0..4 {
            front.send();
        }
        assert_eq!(front.stop(), 0x0001_0001, "in the second round");
        // As DPDK says it.
        front.begin_at(0x0001);
        front.place();
        front.start();
        front.send();
        // While it runs, it knows itself where it stands.
        front.place();
        front.settle();
        front.send();
        front.give_memory();
        front.settle();
        front.send();
        front.accept(Features::RING_PACKED);
        front.settle();
        front.send();
        assert_eq!(front.stop(), 0x8002_8002, "in the third round");
        assert_eq!(front.stop(), 0x8002_8002, "it was stopped");
        assert_eq!(nic.status().refused_messages, 0);
    }
}

#[test]
fn a_packed_ring_begins_anew_with_a_new_driver() {
    let nic = TestNic::new("none");
    for _ in 0..2 {
        let mut front = FrontEnd::new(&nic);
        // The features come last: until then, it would be a split ring.
        front.give_memory();
        front.say(Req::SET_VRING_NUM, &vring_state(QUEUE, 4), &[]);
        front.place();
        front.start();
        front.accept(Features::RING_PACKED);
        front.settle();
        front.send();
        assert_eq!(front.stop(), 0x8001_8001);
    }
}

#[test]
fn a_base_of_zero_is_a_new_ring_or_an_even_round() {
    let nic = TestNic::new("none");
    let mut front = FrontEnd::new(&nic);
    front.accept(Features::RING_PACKED);
    front.give_memory();
    front.say(Req::SET_VRING_NUM, &vring_state(QUEUE, SIZE.into()), &[]);
    // As User-mode Linux says it.
    front.begin_at(0);
    front.place();
    front.start();
    for _ in 0..SIZE {
        front.send();
    }
    assert_eq!(front.stop(), 0, "the second round begins");
    front.begin_at(0);
    front.start();
    for _ in 0..SIZE {
        front.send();
    }
    assert_eq!(front.stop(), 0x8000_8000);
}

#[test]
fn a_base_beyond_the_ring_is_not_used() {
    let nic = TestNic::new("none");
    let mut front = FrontEnd::new(&nic);
    front.accept(Features::RING_PACKED);
    front.give_memory();
    front.say(Req::SET_VRING_NUM, &vring_state(QUEUE, SIZE.into()), &[]);
    front.begin_at(0x8003);
    front.place();
    front.start();
    front.settle();
    assert!(nic.status().nic.rings[QUEUE as usize].is_none());
    front.stop();
    front.begin_at(0x8000);
    front.start();
    front.send();
}
