//! Super-frames between the card and a real kernel, which knows how to cut them, too.
//!
//! Two TAP devices are ports of one bridge, in a network namespace of the test's. What goes into the first as a super-frame comes
//! out of the second, which takes none, as the segments that the kernel made.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, VlanId};
use nic_model::frame::{Gso, Segmentation};
use nic_model::mac::Mac;
use nic_model::segment::{self, Cut};

use super::tests::{in_namespace, open_queues, shell};
use super::*;
use crate::wire::testing::pool;

const MTU: u16 = 1500;
const CWR: u8 = 0x80;
const ALL_FLAGS: u8 = !0x06; // neither SYN nor RST

/// The two devices on a bridge, each with that many queues; the second takes no super-frames.
pub(super) fn bridge(queues: u16) -> Option<(Tap, Tap)> {
    let open = |name| open_queues(name, MTU, queues);
    let (mut from, mut to) = (open("from")?, open("to")?);
    let made = shell(
        "ip link add bridge type bridge mcast_snooping 0
        for device in bridge from to; do echo 1 > /proc/sys/net/ipv6/conf/$device/disable_ipv6; done
        ip link set from master bridge; ip link set to master bridge; ip link set bridge up
        # A firewall for bridges would drop wrong headers, and take padding away.
        for filter in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $filter ] || echo 0 > $filter; done",
    );
    if !made {
        eprintln!("not tested: this kernel has no bridge");
        return None;
    }
    attach::set_offloads(&to.queues[0], false);
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
    /// The sender's port.
    port: u16,
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
    let of_udp = matches!(shape.kind, Segmentation::Udp | Segmentation::Fragments);
    if of_udp {
        packet.udp(shape.port, 4321).write(&mut bytes, &payload)
    } else {
        let options = vec![1; 4 * shape.options];
        let tcp = packet.tcp(shape.port, 4321, shape.sequence, 500);
        let tcp = tcp.options_raw(&options).expect("they are not too many");
        tcp.write(&mut bytes, &payload)
    }
    .expect("it is not too long");
    let mut network = if shape.vlan.is_some() { 18 } else { 14 };
    if !of_udp {
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
    // A long run has as many as one would believe.
    let rounds = if std::env::var_os("LONG").is_some() {
        100_000
    } else {
        240
    };
    for round in 0..rounds {
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
            port: 1024 + random(60_000) as u16,
        });
    }
    shapes
}

/// Datagrams that are to leave as fragments.
fn datagrams() -> Vec<Shape> {
    let of_udp = shapes()
        .into_iter()
        .filter(|shape| shape.kind == Segmentation::Udp);
    let usual = of_udp.filter(|shape| !shape.extended);
    let mut datagrams: Vec<_> = usual
        .map(|shape| Shape {
            kind: Segmentation::Fragments,
            // More would be dropped by the second device's queue.
            payload: shape.payload.min(400 * usize::from(shape.size / 8 * 8 + 8)),
            size: shape.size / 8 * 8 + 8,
            ..shape
        })
        .collect();
    // One that is as long as can be, and the longest fragments.
    for ipv6 in [false, true] {
        let shape = datagrams.iter().find(|shape| shape.ipv6 == ipv6);
        datagrams.push(Shape {
            size: if ipv6 { 1448 } else { 1480 },
            payload: 65_507,
            vlan: None,
            ..*shape.expect("there are some")
        });
    }
    datagrams
}

#[test]
fn segments_are_those_that_linux_makes() {
    in_namespace(|| segments_are_the_kernels(1, &shapes()));
}

#[test]
fn fragments_are_those_that_linux_makes() {
    in_namespace(|| segments_are_the_kernels(1, &datagrams()));
}

#[test]
fn segments_keep_their_order_on_any_queue() {
    in_namespace(|| segments_are_the_kernels(4, &shapes()));
}

/// Clears what the kernel makes up: the identification of fragments of IPv6. Returns it.
fn take_identification(shape: &Shape, fragment: &mut [u8]) -> Vec<u8> {
    if shape.kind != Segmentation::Fragments || !shape.ipv6 {
        return Vec::new();
    }
    let at = if shape.vlan.is_some() { 62 } else { 58 };
    let identification = fragment[at..at + 4].to_vec();
    fragment[at..at + 4].fill(0);
    identification
}

fn segments_are_the_kernels(queues: u16, shapes: &[Shape]) {
    let Some((mut from, mut to)) = bridge(queues) else {
        return;
    };
    let mut pool = pool(MTU);
    let mac = Mac::new(MTU);
    let mut segments = 0;
    for shape in shapes {
        let mut frame = super_frame(&mut pool, shape);
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
        let mut identifications = BTreeSet::new();
        for (index, (mut theirs, mut ours)) in theirs.into_iter().zip(ours).enumerate() {
            identifications.insert(take_identification(shape, &mut theirs));
            take_identification(shape, &mut ours);
            assert_eq!(theirs, ours, "{index}: {shape:?}");
        }
        assert_eq!(identifications.len(), 1, "{shape:?}");
    }
    assert_eq!(pool.lent(), 0);
    println!("{segments} segments are the kernel's");
    assert!(segments > 2_000, "{segments}");
}

#[test]
fn super_frames_pass_whole_from_a_kernel_that_leaves_them_to_the_card() {
    in_namespace(|| super_frames_pass_whole(1));
}

#[test]
fn super_frames_pass_whole_over_any_queue() {
    in_namespace(|| super_frames_pass_whole(4));
}

fn super_frames_pass_whole(queues: u16) {
    let Some((mut from, mut to)) = bridge(queues) else {
        return;
    };
    attach::set_offloads(&to.queues[0], true);
    let mut pool = pool(MTU);
    let mac = Mac::new(MTU);
    let mut whole = 0;
    let (mut written, mut read) = (BTreeSet::new(), BTreeSet::new());
    for shape in shapes().into_iter().filter(|shape| !shape.extended) {
        let mut frame = super_frame(&mut pool, &shape);
        mac.prepare_super(&mut frame).expect("it is one");
        let (sent, gso, checksum) = (frame.bytes().to_vec(), frame.gso, frame.checksum);
        written.insert(from.flows.queue_of(&sent));
        from.transmit(Nanos(0), &mut pool, &mut vec![frame]);
        let mut frames = Vec::new();
        let end = Instant::now() + Duration::from_secs(10);
        while frames.is_empty() && Instant::now() < end {
            to.receive(Nanos(3), 1, &mut pool, &mut frames);
        }
        let mut came = frames.pop().expect("it comes");
        assert!(came.is_super(), "{shape:?}");
        assert_eq!(came.bytes(), sent, "{shape:?}");
        read.insert(to.flows.queue_of(&sent));
        segment::admit(&mut came, &mac).expect("it is one");
        assert_eq!((came.gso, came.checksum), (gso, checksum));
        assert_eq!(came.arrival, Nanos(3));
        whole += 1;
        pool.give(came);
    }
    assert_eq!((from.sent_super, to.received_super), (whole, whole));
    assert_eq!(pool.lent(), 0);
    let all: BTreeSet<_> = (0..usize::from(queues)).collect();
    assert_eq!((&written, &read), (&all, &all));
}
