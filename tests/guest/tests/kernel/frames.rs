//! Any frame whatever: it ends in one counter, and nothing panics.

use nic_guest::net::stats::RxDrop;
use nic_guest::virtio_net::header::VirtioNetHdr;
use proptest::prelude::*;

use crate::common::packets::{
    OURS, arp_reply, arp_request, echo_reply, echo_request, ethernet, icmp, ip, ip_with, udp,
    udp_to,
};
use crate::common::world::{Guest, MAC, World, assert_balanced, boot, settle};
use crate::{PORT, peer, udp_socket};
use nic_guest::net::{Fd, Protocol, SockType};

/// Good frames of every kind that the stack knows.
fn seeds() -> Vec<Vec<u8>> {
    use etherparse::{Icmpv4Type, IpNumber, Ipv4Header};
    let quoted = &udp_to(MAC, OURS, 9, b"quoted")[14..];
    let unreachable = etherparse::icmpv4::DestUnreachableHeader::Port;
    let fragment = Ipv4Header {
        more_fragments: true,
        ..Ipv4Header::new(16, 64, IpNumber::UDP, [10, 77, 0, 1], OURS).unwrap()
    };
    vec![
        udp(PORT, b"payload"),
        udp(4444, &[3; 700]),
        udp_to([0xff; 6], [255; 4], PORT, b"all"),
        echo_request(1, 2, b"ping"),
        echo_reply(32_768, 2, b"pong"),
        icmp(&Icmpv4Type::DestinationUnreachable(unreachable), quoted),
        arp_request(OURS),
        arp_reply([10, 77, 0, 1]),
        ip(6, &[0; 40]),
        ip_with(fragment, &[0; 16]),
        ethernet(MAC, 0x86dd),
    ]
}

/// A kernel with sockets of each kind.
fn guest() -> (Guest, std::rc::Rc<World>, [Fd; 3]) {
    let (mut kernel, world) = boot();
    let bound = udp_socket(&mut kernel, PORT);
    let connected = udp_socket(&mut kernel, 7001);
    kernel.connect(connected, peer(9)).unwrap();
    let ping = kernel.socket(SockType::Dgram, Protocol::Icmp).unwrap();
    kernel
        .sendto(ping, &[8, 0, 0, 0, 0, 0, 0, 0], Some(peer(0)))
        .unwrap();
    (kernel, world, [bound, connected, ping])
}

fn take_in(frames: &[(VirtioNetHdr, Vec<u8>)]) {
    let (mut kernel, world, sockets) = guest();
    let mut buf = [0; 100];
    for (hdr, frame) in frames {
        world.schedule_with(0, 0, *hdr, frame);
        settle(&mut kernel);
        for fd in sockets {
            let _ = kernel.recvfrom(fd, &mut buf);
        }
    }
    assert_balanced(&kernel);
    assert_eq!(world.missed.get(), 0);
}

#[derive(Debug, Clone)]
enum Change {
    Byte(usize, u8),
    Cut(usize),
    Grow(usize),
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let change = prop_oneof![
        6 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => any::<usize>().prop_map(Change::Cut),
        1 => (0..200usize).prop_map(Change::Grow),
    ];
    let count = seeds().len();
    (0..count, prop::collection::vec(change, 0..5)).prop_map(|(seed, changes)| {
        let mut frame = seeds().swap_remove(seed);
        for change in changes {
            match change {
                // Mostly in the headers.
                Change::Byte(at, byte) => {
                    let at = at % frame.len().min(60);
                    frame[at] = byte;
                }
                Change::Cut(at) => frame.truncate(14 + at % frame.len()),
                Change::Grow(by) => frame.extend(std::iter::repeat_n(0x5a, by)),
            }
        }
        frame
    })
}

/// Mends the sums of a mutated packet, so that the layers above see it too.
fn mended(mut frame: Vec<u8>) -> Vec<u8> {
    let sum = |bytes: &[u8]| {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    };
    let hdr_len = frame.get(14).map_or(0, |byte| usize::from(byte & 0xf) * 4);
    if hdr_len >= 20 && frame.len() >= 14 + hdr_len {
        frame[24..26].fill(0);
        let check = sum(&frame[14..14 + hdr_len]);
        frame[24..26].copy_from_slice(&check);
        let transport = 14 + hdr_len;
        if frame[23] == 1 && frame.len() >= transport + 4 {
            frame[transport + 2..transport + 4].fill(0);
            let check = sum(&frame[transport..]);
            frame[transport + 2..transport + 4].copy_from_slice(&check);
        }
    }
    frame
}

fn header() -> impl Strategy<Value = VirtioNetHdr> {
    let lying = (any::<u8>(), any::<u8>(), any::<[u16; 4]>()).prop_map(
        |(flags, gso_type, [hdr_len, gso_size, csum_start, csum_offset])| VirtioNetHdr {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
            ..VirtioNetHdr::default()
        },
    );
    let valid = VirtioNetHdr {
        flags: 2,
        ..VirtioNetHdr::default()
    };
    prop_oneof![
        4 => Just(VirtioNetHdr::default()),
        2 => Just(valid),
        2 => (0..60u16, 0..20u16).prop_map(|(start, offset)| VirtioNetHdr::needs_csum(start, offset)),
        1 => lying,
    ]
}

proptest! {
    #[test]
    fn random_frames_are_accounted_for(
        frames in prop::collection::vec((header(), prop::collection::vec(any::<u8>(), 0..200)), 1..20)
    ) {
        take_in(&frames);
    }

    #[test]
    fn mutated_frames_are_accounted_for(
        frames in prop::collection::vec((header(), mutated(), any::<bool>()), 1..40)
    ) {
        let frames: Vec<_> = frames
            .into_iter()
            .map(|(hdr, frame, mend)| (hdr, if mend { mended(frame) } else { frame }))
            .collect();
        take_in(&frames);
    }
}

#[test]
fn frames_of_every_kind_end_where_they_should() {
    let (mut kernel, world, _) = guest();
    for frame in seeds() {
        world.receive(&frame);
    }
    settle(&mut kernel);
    let stats = kernel.stats();
    let dropped: Vec<_> = stats.drops().filter(|(_, count)| *count > 0).collect();
    assert_eq!(
        dropped,
        [
            ("UnhandledProto", 1),
            ("IpReasmFails", 1),
            ("IpInUnknownProtos", 1),
            ("UdpNoPorts", 1)
        ]
    );
    assert_eq!((stats.queued, stats.consumed), (3, 4));
    assert_eq!(stats.rx_drop(RxDrop::IpReasmFails), 1);
    assert_balanced(&kernel);
}
