//! Several queues of a TAP device: flows over them, and devices that were made for other numbers of queues.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::link::Link;
use super::tests::{count, in_namespace, open_queues, shell};
use super::*;
use crate::wire::testing::{CARD, frame, pool};

const QUEUES: u16 = 4;
const FLOWS: usize = 24;
/// Of the kernel, of us, and the first port of each.
const KERNEL: ([u8; 4], u16) = ([10, 9, 8, 1], 5000);
const CARDS: ([u8; 4], u16) = ([10, 9, 8, 2], 6000);

/// A TAP device with several queues whose neighbour we are.
fn network() -> Option<Tap> {
    let tap = open_queues("tap", 1500, QUEUES)?;
    let made = shell(
        "ip link set tap address 02:00:00:00:00:01
        ip addr add 10.9.8.1/24 dev tap
        ip neigh add 10.9.8.2 lladdr 52:54:00:01:02:03 dev tap",
    );
    assert!(made, "it has an address");
    Some(tap)
}

/// The kernel's ends of the flows.
fn sockets() -> Vec<UdpSocket> {
    let socket = |flow| {
        let port = |first| first + flow as u16;
        let socket = UdpSocket::bind((std::net::Ipv4Addr::from(KERNEL.0), port(KERNEL.1)))
            .expect("the port is free");
        socket
            .connect((std::net::Ipv4Addr::from(CARDS.0), port(CARDS.1)))
            .expect("there is a route");
        socket.set_nonblocking(true).expect("it can be");
        socket
    };
    (0..FLOWS).map(socket).collect()
}

/// Our datagram `number` of a flow.
fn datagram(pool: &mut Pool, flow: usize, number: u32) -> Frame {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(CARD.0, [2, 0, 0, 0, 0, 1])
        .ipv4(CARDS.0, KERNEL.0, 64)
        .udp(CARDS.1 + flow as u16, KERNEL.1 + flow as u16)
        .write(&mut bytes, &number.to_be_bytes())
        .expect("it is not too long");
    frame(pool, 0, &bytes)
}

/// Which flow a frame belongs to and its number, unless it is something of the kernel's own.
fn read(frame: &Frame) -> Option<(usize, u32)> {
    let packet = SlicedPacket::from_ethernet(frame.bytes()).expect("it makes sense");
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        return None;
    };
    let flow = udp.destination_port().checked_sub(CARDS.1)?;
    let number = udp.payload().first_chunk()?;
    (usize::from(flow) < FLOWS).then_some((flow.into(), u32::from_be_bytes(*number)))
}

/// What each flow has had, in order.
#[derive(Default)]
struct Seen([u32; FLOWS]);

impl Seen {
    fn next(&mut self, (flow, number): (usize, u32)) {
        assert_eq!(number, self.0[flow], "flow {flow} is out of order");
        self.0[flow] += 1;
    }
}

#[test]
fn flows_keep_their_order_both_ways_and_none_is_lost() {
    const EACH: u32 = 400;
    in_namespace(|| {
        let Some(mut tap) = network() else { return };
        let (mut pool, sockets) = (pool(1500), sockets());
        tap.link_changed(Nanos(0), true);
        let (mut sent, mut answered) = ([0; FLOWS], [0; FLOWS]);
        let (mut to_us, mut to_kernel) = (Seen::default(), Seen::default());
        let mut queue_of = [None; FLOWS];
        let (mut frames, mut answers) = (Vec::new(), Vec::new());
        let end = Instant::now() + Duration::from_secs(60);
        let all = [EACH; FLOWS];
        for round in 0.. {
            assert!(Instant::now() < end, "{:?} {:?}", to_us.0, to_kernel.0);
            // The kernel sends faster than we read, so that there is always something that could be overtaken.
            let waiting = sent.iter().sum::<u32>() - to_us.0.iter().sum::<u32>();
            for (flow, socket) in sockets.iter().enumerate() {
                for _ in 0..3 {
                    if waiting < 400 && sent[flow] < EACH {
                        let number: u32 = sent[flow];
                        socket.send(&number.to_be_bytes()).expect("it is sent");
                        sent[flow] += 1;
                    }
                }
            }
            tap.receive(Nanos(1), 1 + round * 7 % 64, &mut pool, &mut frames);
            for frame in frames.drain(..) {
                if let Some((flow, number)) = read(&frame) {
                    to_us.next((flow, number));
                    // What is written must not make the kernel move the flow.
                    let queue = tap.flows.queue_of(frame.bytes());
                    assert_eq!(*queue_of[flow].get_or_insert(queue), queue, "{flow}");
                    answers.push(datagram(&mut pool, flow, answered[flow]));
                    answered[flow] += 1;
                }
                pool.give(frame);
            }
            tap.transmit(Nanos(1), &mut pool, &mut answers);
            for (flow, socket) in sockets.iter().enumerate() {
                let mut payload = [0; 4];
                while socket.recv(&mut payload).is_ok() {
                    to_kernel.next((flow, u32::from_be_bytes(payload)));
                }
            }
            if (to_us.0, to_kernel.0) == (all, all) {
                break;
            }
        }
        let used: BTreeSet<_> = queue_of.into_iter().collect();
        assert_eq!(used.len(), usize::from(QUEUES), "{used:?}");
        assert_eq!((pool.lent(), tap.read_errors, tap.refused), (0, 0, 0));
    });
}

#[test]
fn the_kernel_answers_on_the_queue_that_a_flow_was_written_to() {
    in_namespace(|| {
        let Some(mut tap) = network() else { return };
        let (mut pool, sockets) = (pool(1500), sockets());
        tap.link_changed(Nanos(0), true);
        let mut frames: Vec<_> = (0..FLOWS)
            .map(|flow| datagram(&mut pool, flow, 0))
            .collect();
        let written: Vec<_> = frames
            .iter()
            .map(|frame| tap.flows.queue_of(frame.bytes()))
            .collect();
        let used: BTreeSet<_> = written.iter().collect();
        assert_eq!(used.len(), usize::from(QUEUES), "{used:?}");
        tap.transmit(Nanos(1), &mut pool, &mut frames);
        for socket in &sockets {
            assert_eq!(socket.recv(&mut [0; 4]).expect("it came"), 4);
            socket.send(&[0; 4]).expect("it is sent");
        }
        let mut seen = Seen::default();
        while seen.0 != [1; FLOWS] {
            tap.receive(Nanos(2), 1, &mut pool, &mut frames);
            let frame = frames.pop().expect("all have come");
            if let Some((flow, number)) = read(&frame) {
                seen.next((flow, number));
                assert_eq!(tap.turns.queue(), Some(written[flow]));
            }
            pool.give(frame);
        }
    });
}

#[test]
fn any_queue_wakes_until_all_are_read() {
    in_namespace(|| {
        let Some(mut tap) = network() else { return };
        let (mut pool, mut frames) = (pool(1500), Vec::new());
        tap.link_changed(Nanos(0), true);
        let is_readable = |tap: &Tap| {
            let fd = tap.readable().expect("it has one");
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).expect("it can be waited for") == 1
        };
        for (flow, socket) in sockets().iter().enumerate() {
            socket.send(&[0; 4]).expect("it is sent");
            let mut came = 0;
            while is_readable(&tap) {
                tap.receive(Nanos(1), 64, &mut pool, &mut frames);
                came += frames.iter().filter_map(read).count();
                pool.give_all(frames.drain(..));
            }
            assert_eq!(came, 1, "{flow}");
        }
    });
}

#[test]
fn what_waited_without_a_link_is_discarded_from_each_queue() {
    in_namespace(|| {
        let Some(mut tap) = network() else { return };
        for socket in sockets() {
            socket.send(&[0; 4]).expect("it is sent");
        }
        tap.link_changed(Nanos(0), true);
        assert!(count(&tap, "tap_stale") >= FLOWS as u64);
        let (mut pool, mut frames) = (pool(1500), Vec::new());
        tap.receive(Nanos(1), 64, &mut pool, &mut frames);
        assert_eq!(frames.iter().filter_map(read).count(), 0);
        assert!(shell("ip link delete tap"));
        assert!(!tap.is_gone());
        tap.receive(Nanos(1), 64, &mut pool, &mut frames);
        assert!(tap.is_gone());
        pool.give_all(frames);
    });
}

/// Attaches to a device that nobody has any more. Another test's child has our descriptors until it starts its own program.
fn again(name: &str, queues: u16) -> Result<Tap, TapError> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match Tap::open(name, 1500, queues) {
            Err(TapError::Busy) if Instant::now() < end => thread::yield_now(),
            opened => return opened,
        }
    }
}

#[test]
fn a_device_is_attached_to_as_what_it_was_made_for() {
    in_namespace(|| {
        if open_queues("probe", 1500, 1).is_none() {
            return;
        }
        assert!(shell(
            "ip tuntap add dev one mode tap
            ip tuntap add dev many mode tap multi_queue
            ip tuntap add dev tun mode tun multi_queue"
        ));
        let refused = Tap::open("one", 1500, 2).expect_err("it has but one queue");
        assert!(matches!(refused, TapError::SingleQueue), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("leave out queues="), "{text}");
        assert!(text.contains("mode tap multi_queue"), "{text}");
        drop(again("one", 1).expect("it is as it was"));

        for queues in [1, 3, MAX_QUEUES] {
            let tap = again("many", queues).expect("it takes any number");
            let attached = queues.into();
            assert_eq!(Link::of("many"), Ok(Link::Multi { attached }));
            // A multi-queue device lets others take a share of the frames.
            for others in [1, 2] {
                let refused = Tap::open("many", 1500, others);
                assert!(matches!(refused, Err(TapError::Busy)), "{refused:?}");
            }
            drop(tap);
        }
        for name in ["lo", "tun"] {
            for queues in [1, 2] {
                let refused = Tap::open(name, 1500, queues);
                assert!(matches!(refused, Err(TapError::NotTap)), "{refused:?}");
            }
        }
    });
}
