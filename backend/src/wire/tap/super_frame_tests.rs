//! Super-frames between the card and a real kernel, which knows how to cut them, too.
//!
//! Two TAP devices are ports of one bridge, in a network namespace of the test's. What goes into the first as a super-frame comes
//! out of the second, which takes none, as the segments that the kernel made.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, VlanId};
use nic_model::frame::{Gso, Segmentation};
use nic_model::mac::Mac;
use nic_model::segment::{self, Cut};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::wire::testing::pool;

const MTU: u16 = 1500;
const CWR: u8 = 0x80;
const ALL_FLAGS: u8 = !0x06; // neither SYN nor RST

/// Runs `test` in a network namespace of its own, where that is possible.
fn in_namespace(test: fn()) {
    let thread = thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(reason) => eprintln!("not tested: no network namespace: {reason}"),
    });
    thread.join().expect("the test passes");
}

fn shell(script: &str) -> bool {
    let status = Command::new("sh").args(["-ec", script]).status();
    status.expect("there is a shell").success()
}

/// The two devices on a bridge; the second takes no super-frames.
fn bridge() -> Option<(Tap, Tap)> {
    let open = |name| match Tap::open(name, MTU) {
        Err(reason @ (TapError::NoDriver | TapError::NoAccess | TapError::NotPermitted)) => {
            eprintln!("not tested: {reason}");
            None
        }
        opened => Some(opened.expect("it opens")),
    };
    let (mut from, mut to) = (open("from")?, open("to")?);
    let made = shell(
        "ip link add bridge type bridge mcast_snooping 0
        for device in bridge from to; do echo 1 > /proc/sys/net/ipv6/conf/$device/disable_ipv6; done
        ip link set from master bridge; ip link set to master bridge; ip link set bridge up",
    );
    if !made {
        eprintln!("not tested: this kernel has no bridge");
        return None;
    }
    to.set_offloads(false);
    from.link_changed(Nanos(0), true);
    to.link_changed(Nanos(0), true);
    Some((from, to))
}

/// What a super-frame is to be.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kind: Segmentation,
    ipv6: bool,
    vlan: Option<u16>,
    /// Words of TCP's options.
    options: usize,
    flags: u8,
    identification: u16,
    sequence: u32,
    size: u16,
    payload: usize,
    /// Whether a destination options header is before TCP's or UDP's.
    extended: bool,
}

fn super_frame(pool: &mut Pool, shape: &Shape) -> Frame {
    let ether = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = if shape.ipv6 {
        let header = Ipv6Header {
            source: [0xfd; 16],
            destination: [0xfc; 16],
            hop_limit: 64,
            ..Default::default()
        };
        IpHeaders::Ipv6(header, Default::default())
    } else {
        let header = Ipv4Header::new(0, 64, IpNumber::TCP, [10, 9, 8, 7], [10, 9, 8, 6]);
        let mut header = header.expect("no payload is not too long");
        header.identification = shape.identification;
        IpHeaders::Ipv4(header, Default::default())
    };
    let packet = match shape.vlan {
        Some(id) => ether
            .single_vlan(VlanId::try_new(id).expect("it is one"))
            .ip(ip),
        None => ether.ip(ip),
    };
    let payload: Vec<u8> = (0..shape.payload)
        .map(|at| (at * at / 7 + at + usize::from(shape.identification)) as u8)
        .collect();
    let mut bytes = Vec::new();
    if shape.kind == Segmentation::Udp {
        packet.udp(1234, 4321).write(&mut bytes, &payload)
    } else {
        let options = vec![1; 4 * shape.options];
        let tcp = packet.tcp(1234, 4321, shape.sequence, 500);
        let tcp = tcp.options_raw(&options).expect("they are not too many");
        tcp.write(&mut bytes, &payload)
    }
    .expect("it is not too long");
    let mut network = if shape.vlan.is_some() { 18 } else { 14 };
    if shape.kind != Segmentation::Udp {
        let transport = network + if shape.ipv6 { 40 } else { 20 };
        bytes[transport + 13] = shape.flags;
    }
    if shape.extended {
        let next = std::mem::replace(&mut bytes[network + 6], 60);
        network += 40;
        bytes.splice(network..network, [next, 0, 1, 4, 0, 0, 0, 0]);
        let len = bytes.len() - network;
        bytes[network - 36..network - 34].copy_from_slice(&(len as u16).to_be_bytes());
    }
    let mut frame = pool.take_big();
    assert!(frame.fill(&bytes));
    frame.gso = Gso {
        kind: shape.kind,
        headers: 0,
        size: shape.size,
    };
    segment::leave_checksum(&mut frame);
    frame
}

fn shapes() -> Vec<Shape> {
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let mut shapes = Vec::new();
    for round in 0..240 {
        let (kind, ipv6) = match round % 4 {
            0 => (Segmentation::Tcpv4, false),
            1 => (Segmentation::Tcpv6, true),
            2 => (Segmentation::Udp, false),
            _ => (Segmentation::Udp, true),
        };
        let longest = if kind == Segmentation::Udp {
            1400
        } else {
            1380
        };
        let size = match random(4) {
            0 => longest,
            1 => 8 + random(60) as u16,
            _ => 100 + random(u64::from(longest) - 100) as u16,
        };
        // UDP has no more than 128 in Linux.
        let most = (64_000).min(usize::from(size) * 120) as u64;
        shapes.push(Shape {
            kind,
            ipv6,
            vlan: (random(3) == 0).then(|| 1 + random(4000) as u16),
            options: random(11) as usize,
            flags: match random(3) {
                0 => ALL_FLAGS,
                1 => ALL_FLAGS & !CWR,
                _ => 0x10,
            },
            identification: random(0x1_0000) as u16 | if random(2) == 0 { 0xff00 } else { 0 },
            sequence: random(1 << 32) as u32 | if random(2) == 0 { 0xffff_0000 } else { 0 },
            size,
            payload: (u64::from(size) + 1 + random(most - u64::from(size))) as usize,
            extended: ipv6 && random(4) == 0,
        });
    }
    shapes
}

#[test]
fn segments_are_those_that_linux_makes() {
    in_namespace(|| {
        let Some((mut from, mut to)) = bridge() else {
            return;
        };
        let mut pool = pool(MTU);
        let mac = Mac::new(MTU);
        let mut segments = 0;
        for shape in shapes() {
            let mut frame = super_frame(&mut pool, &shape);
            mac.prepare_super(&mut frame)
                .unwrap_or_else(|reason| panic!("{shape:?}: {reason}"));
            let cut = Cut::of(&frame).expect("it was admitted");
            let mut segment = pool.take();
            let ours: Vec<Vec<u8>> = (0..cut.segments())
                .map(|index| {
                    assert!(cut.write(&frame, index, &mut segment));
                    segment.bytes().to_vec()
                })
                .collect();
            pool.give(segment);
            segments += ours.len();
            from.transmit(Nanos(0), &mut pool, &mut vec![frame]);
            let (mut theirs, mut frames) = (Vec::new(), Vec::new());
            let end = Instant::now() + Duration::from_secs(10);
            while theirs.len() < ours.len() && Instant::now() < end {
                to.receive(Nanos(0), 1, &mut pool, &mut frames);
                for frame in frames.drain(..) {
                    assert!(!frame.is_super());
                    theirs.push(frame.bytes().to_vec());
                    pool.give(frame);
                }
            }
            assert_eq!(theirs.len(), ours.len(), "{shape:?}");
            for (index, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
                assert_eq!(theirs, ours, "{index}: {shape:?}");
            }
        }
        assert_eq!(pool.lent(), 0);
        println!("{segments} segments are the kernel's");
        assert!(segments > 5_000, "{segments}");
    });
}

#[test]
fn super_frames_pass_whole_from_a_kernel_that_leaves_them_to_the_card() {
    in_namespace(|| {
        let Some((mut from, mut to)) = bridge() else {
            return;
        };
        to.set_offloads(true);
        let mut pool = pool(MTU);
        let mac = Mac::new(MTU);
        let mut whole = 0;
        for shape in shapes().into_iter().filter(|shape| !shape.extended) {
            let mut frame = super_frame(&mut pool, &shape);
            mac.prepare_super(&mut frame).expect("it is one");
            let (sent, gso, checksum) = (frame.bytes().to_vec(), frame.gso, frame.checksum);
            from.transmit(Nanos(0), &mut pool, &mut vec![frame]);
            let mut frames = Vec::new();
            let end = Instant::now() + Duration::from_secs(10);
            while frames.is_empty() && Instant::now() < end {
                to.receive(Nanos(3), 1, &mut pool, &mut frames);
            }
            let mut came = frames.pop().expect("it comes");
            assert!(came.is_super(), "{shape:?}");
            assert_eq!(came.bytes(), sent, "{shape:?}");
            segment::admit(&mut came, &mac).expect("it is one");
            assert_eq!((came.gso, came.checksum), (gso, checksum));
            assert_eq!(came.arrival, Nanos(3));
            whole += 1;
            pool.give(came);
        }
        assert_eq!((from.sent_super, to.received_super), (whole, whole));
        assert_eq!(pool.lent(), 0);
    });
}
