//! Front-ends that break the protocol. Each is refused, the process lives, and the next one is served.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nic_device::features::Features;
use nic_guest::memory::GuestMemory;
use nic_guest::ring::VIRTQ_DESC_F_NEXT;
use nic_guest::ring::raw::{Descriptor, RawRing};
use nic_guest::transport::Transport;
use nic_guest::transport::message::{
    Connection, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, VRING_NOFD, connect, encode, header,
    memory_region, memory_table, single_region, vring_addr, vring_state,
};
use nic_guest::transport::vhost_user::{VhostUser, VhostUserOptions};
use nic_guest::virtio_net::VirtnetInfo;
use nic_testbed::check::messages::{self, Fds, Hostile, Known, SIZE, forbidden, region};
use nix::sys::eventfd::EventFd;
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use crate::support::{
    PATIENCE, TestNic, exchange, numbered_frame, offered, wait_until, without_super_frames,
};

mod garbage;

/// What is refused of a NIC with one pair, before anybody acts on it.
fn cases(fds: &Fds) -> Vec<Hostile> {
    let known = Known {
        features: offered(1).bits(),
        protocol: PROTOCOL,
        no_ring: 3,
    };
    messages::cases(fds, &known)
}

const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::CONFIG)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS);

pub fn dial(socket: &std::path::Path) -> Connection {
    let stream = connect(socket, PATIENCE).expect("a connection");
    Connection::new(stream, PATIENCE).expect("a timeout")
}

/// A front-end that has said who it is, without asking for answers.
fn greet(nic: &TestNic) -> Connection {
    let front = dial(&nic.socket());
    front.tell(Req::SET_OWNER, &[], &[]).expect("it reads");
    front.ask_u64(Req::GET_FEATURES).expect("an answer");
    front
        .ask_u64(Req::GET_PROTOCOL_FEATURES)
        .expect("an answer");
    front
        .tell(
            Req::SET_PROTOCOL_FEATURES,
            &PROTOCOL.bits().to_ne_bytes(),
            &[],
        )
        .expect("it reads");
    front
}

/// A guest whose front-end asks for answers.
pub fn guest(nic: &TestNic) -> VirtnetInfo<VhostUser> {
    let options = VhostUserOptions {
        protocol_features: PROTOCOL | Protocol::REPLY_ACK,
        ..VhostUserOptions::default()
    };
    let memory = GuestMemory::new(8 << 20).expect("memory");
    let transport = VhostUser::connect_with(&nic.socket(), memory, &options).expect("a connection");
    VirtnetInfo::probe(transport, &without_super_frames()).expect("a device")
}

pub fn assert_works(guest: &mut VirtnetInfo<VhostUser>, why: &str) {
    let frames: Vec<_> = (0..20).map(|n| numbered_frame(n, 100)).collect();
    assert!(exchange(guest, &frames) == frames, "no frames after {why}");
}

#[test]
fn what_is_refused_ends_the_connection_and_only_that() {
    let (nic, fds) = (TestNic::new("loopback"), Fds::default());
    for Hostile {
        name,
        request,
        flags,
        payload,
        fds,
        ..
    } in cases(&fds)
    {
        let refused = nic.status().refused_messages;
        let front = greet(&nic);
        front
            .send(request, flags, &payload, &fds)
            .expect("it reads");
        assert!(front.closes_within(PATIENCE), "still there after {name}");
        assert_eq!(
            nic.status().refused_messages,
            refused + 1,
            "not counted: {name}"
        );
        assert_works(&mut guest(&nic), &name);
    }
}

#[test]
fn who_asks_for_answers_is_told_and_goes_on_as_before() {
    let (nic, fds) = (TestNic::new("loopback"), Fds::default());
    let mut guest = guest(&nic);
    let mut refused = 0;
    for Hostile {
        name,
        request,
        flags,
        payload,
        fds,
        ..
    } in cases(&fds).into_iter().filter(|case| !case.ends())
    {
        let raw = guest.transport.raw();
        raw.send(request, flags | FLAG_NEED_REPLY, &payload, &fds)
            .expect("it reads");
        let answer = raw
            .recv()
            .unwrap_or_else(|error| panic!("no answer to {name}: {error}"));
        assert_eq!(
            (answer.request, answer.flags),
            (request, FLAG_VERSION | FLAG_REPLY),
            "{name}"
        );
        assert_ne!(answer.u64().expect("a number"), 0, "{name}");
        refused += 1;
        assert_eq!(
            nic.status().refused_messages,
            refused,
            "not counted: {name}"
        );
        assert_works(&mut guest, &name);
    }
    assert_eq!(nic.status().connections, 1);
}

/// Bytes that are no message: the front-end is gone, or what follows cannot be told any more.
#[test]
fn half_messages_and_endless_ones_end_the_connection() {
    let nic = TestNic::new("loopback");
    let num = encode(
        Req::SET_VRING_NUM.into(),
        FLAG_VERSION,
        &vring_state(0, 256),
    );
    let mut pieces: Vec<(Vec<u8>, bool)> = (1..num.len())
        .map(|len| (num[..len].to_vec(), false))
        .collect();
    pieces.extend([4097, 1 << 16, u32::MAX].map(|size| {
        (
            header(Req::SET_VRING_NUM.into(), FLAG_VERSION, size).to_vec(),
            true,
        )
    }));
    for (bytes, endless) in pieces {
        let refused = nic.status().refused_messages;
        let front = greet(&nic);
        front.send_bytes(&bytes, &[]).expect("it reads");
        if endless {
            assert!(front.closes_within(PATIENCE));
            assert_eq!(nic.status().refused_messages, refused + 1);
        }
        drop(front);
        assert_works(&mut guest(&nic), "half a message");
    }
}

#[test]
fn a_front_end_that_falls_silent_does_not_hold_up_the_nic() {
    for bytes in [
        &[][..],
        &[5; 5],
        &header(Req::SET_MEM_TABLE.into(), FLAG_VERSION, 40),
    ] {
        let nic = TestNic::new("loopback");
        let front = greet(&nic);
        front.send_bytes(bytes, &[]).expect("it reads");
        let begin = Instant::now();
        drop(nic);
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(front.closes_within(PATIENCE));
    }
}

/// A ring of the second queue with one frame, set up message by message through `say`.
fn send_one_frame(
    nic: &TestNic,
    memory: &Arc<GuestMemory>,
    kick: Option<&EventFd>,
    say: impl Fn(Req, &[u8], &[RawFd]),
) {
    let ring = RawRing::allocate(memory, 8).expect("room");
    let buffer = memory.allocate(4096, 64).expect("room");
    buffer.write(12, &numbered_frame(7, 60));
    ring.set_desc(
        0,
        Descriptor::new(buffer.guest_addr(), 12, VIRTQ_DESC_F_NEXT, 1),
    );
    ring.set_desc(1, Descriptor::new(buffer.guest_addr() + 12, 60, 0, 0));
    let regions = memory.regions();
    let layout = ring.ring().layout();
    let [desc, used, avail] = [layout.desc, layout.used, layout.avail]
        .map(|addr| memory.host_addr(addr).expect("it is mapped"));
    let features = Features::VERSION_1 | Features::PROTOCOL_FEATURES;
    say(Req::SET_FEATURES, &features.bits().to_ne_bytes(), &[]);
    let body = memory_table(&[memory_region(&regions[0], regions[0].host_addr)]);
    say(Req::SET_MEM_TABLE, &body, &[regions[0].fd]);
    say(Req::SET_VRING_NUM, &vring_state(1, 8), &[]);
    say(Req::SET_VRING_BASE, &vring_state(1, 0), &[]);
    say(
        Req::SET_VRING_ADDR,
        &vring_addr(1, 0, desc, used, avail, 0),
        &[],
    );
    match kick {
        Some(kick) => say(
            Req::SET_VRING_KICK,
            &1u64.to_ne_bytes(),
            &[kick.as_raw_fd()],
        ),
        None => say(Req::SET_VRING_KICK, &(1 | VRING_NOFD).to_ne_bytes(), &[]),
    }
    say(Req::SET_VRING_ENABLE, &vring_state(1, 1), &[]);
    // The last message has no answer; another one's says that all were dealt with.
    say(Req::GET_VRING_BASE, &vring_state(0, 0), &[]);
    let sent = nic.status().nic.port.counters.tx_frames;
    ring.make_available(&[0]);
    if let Some(kick) = kick {
        kick.write(1).expect("room");
    }
    wait_until("the frame to be used", || ring.used_idx() == 1);
    wait_until("the frame to be sent", || {
        nic.status().nic.port.counters.tx_frames == sent + 1
    });
}

#[test]
fn messages_may_come_one_octet_at_a_time() {
    let (nic, memory) = (
        TestNic::new("none"),
        GuestMemory::new(1 << 20).expect("memory"),
    );
    let front = greet(&nic);
    let kick = EventFd::new().expect("an eventfd");
    send_one_frame(&nic, &memory, Some(&kick), |req, payload, fds| {
        front
            .send_slowly(&encode(req.into(), FLAG_VERSION, payload), fds)
            .expect("it reads");
        if req == Req::GET_VRING_BASE {
            front.recv_reply(req).expect("an answer");
        }
    });
    assert_eq!(nic.status().refused_messages, 0);
}

#[test]
fn many_messages_may_come_at_once() {
    let (nic, memory) = (
        TestNic::new("none"),
        GuestMemory::new(1 << 20).expect("memory"),
    );
    let front = greet(&nic);
    for _ in 0..200 {
        let one = encode(Req::GET_FEATURES.into(), FLAG_VERSION, &[]);
        front.send_bytes(&one.repeat(10), &[]).expect("it reads");
        for _ in 0..10 {
            front.recv_reply(Req::GET_FEATURES).expect("an answer");
        }
    }
    let kick = EventFd::new().expect("an eventfd");
    send_one_frame(&nic, &memory, Some(&kick), |req, payload, fds| {
        front.tell(req, payload, fds).expect("it reads");
        if req == Req::GET_VRING_BASE {
            front.recv_reply(req).expect("an answer");
        }
    });
}

#[test]
fn a_ring_without_a_kick_is_polled_and_may_be_enabled_before_anything() {
    let (nic, memory) = (
        TestNic::new("none"),
        GuestMemory::new(1 << 20).expect("memory"),
    );
    let front = greet(&nic);
    for index in 0..3 {
        front
            .tell(Req::SET_VRING_ENABLE, &vring_state(index, 1), &[])
            .expect("it reads");
    }
    send_one_frame(&nic, &memory, None, |req, payload, fds| {
        front.tell(req, payload, fds).expect("it reads");
        if req == Req::GET_VRING_BASE {
            front.recv_reply(req).expect("an answer");
        }
    });
    assert_eq!(nic.status().refused_messages, 0);
}

#[test]
fn what_the_state_does_not_allow_is_refused() {
    let (nic, fds) = (TestNic::new("loopback"), Fds::default());
    for number in 0..forbidden(0, 8 << 20, &fds).len() {
        let guest = guest(&nic);
        let start = guest.transport.memory().host_addr(0).expect("it is mapped");
        let Hostile {
            name,
            request,
            payload,
            fds,
            ..
        } = forbidden(start, 8 << 20, &fds).swap_remove(number);
        let raw = guest.transport.raw();
        raw.send(request, FLAG_VERSION | FLAG_NEED_REPLY, &payload, &fds)
            .expect("it reads");
        let answer = raw
            .recv()
            .unwrap_or_else(|error| panic!("no answer to {name}: {error}"));
        assert_ne!(answer.u64().expect("a number"), 0, "{name}");
        drop(guest);
        assert_works(&mut self::guest(&nic), &name);
    }
    // Without memory there is no place for a ring, and no region to take away.
    for (req, payload) in [
        (
            Req::SET_VRING_ADDR,
            vring_addr(0, 0, 0x1000, 0x2000, 0x3000, 0),
        ),
        (Req::REM_MEM_REG, single_region(&region(0, SIZE, 0, 0))),
    ] {
        let front = greet(&nic);
        front.tell(req, &payload, &[]).expect("it reads");
        assert!(front.closes_within(PATIENCE), "{req:?}");
        assert_works(&mut guest(&nic), "a message before memory");
    }
}

/// Answers that nobody gives must not be waited for.
#[test]
fn who_takes_answers_without_asking_for_features_gets_none_and_blocks_nobody() {
    let nic = TestNic::new("loopback");
    let front = dial(&nic.socket());
    front
        .tell(
            Req::SET_PROTOCOL_FEATURES,
            &Protocol::REPLY_ACK.bits().to_ne_bytes(),
            &[],
        )
        .expect("it reads");
    for request in [u32::from(Req::SET_OWNER), 99, 99] {
        // It may be gone already.
        let _ = front.send(request, FLAG_VERSION | FLAG_NEED_REPLY, &[], &[]);
    }
    assert!(front.closes_within(PATIENCE));
    drop(front);
    assert_works(&mut guest(&nic), "answers that nobody gives");
}
