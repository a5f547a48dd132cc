//! Frames that stand for several segments between driver and device: what the driver makes of headers, of
//! good ones and of lies, and what it tells the device.

mod common;

use std::time::Duration;

use common::in_process::InProcess;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::gso::{
    SKB_GSO_DODGY, SKB_GSO_TCP_ECN, SKB_GSO_TCPV4, SKB_GSO_TCPV6, SKB_GSO_UDP, SKB_GSO_UDP_L4,
    SkbSharedInfo, super_frame,
};
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::rx::RxMode;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use proptest::prelude::*;

type Nic = VirtnetInfo<InProcess>;

const BASE: u64 = f::VERSION_1 | f::MAC | f::STATUS | f::CSUM | f::GUEST_CSUM;
const GUEST: u64 =
    f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_ECN | f::GUEST_UFO | f::GUEST_USO4 | f::GUEST_USO6;
const HOST: u64 = f::HOST_TSO4 | f::HOST_TSO6 | f::HOST_ECN | f::HOST_USO;

/// `gso_type` in a header.
const TCPV4: u8 = 1;
const UDP: u8 = 3;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

fn nic(features: u64) -> Nic {
    let options = ProbeOptions {
        queue_size: 64,
        ctrl_timeout: Duration::from_millis(1),
        ..ProbeOptions::default()
    }
    .with(f::RING_PACKED);
    VirtnetInfo::probe(InProcess::new(BASE | features), &options).unwrap()
}

/// A frame of `payload` bytes behind Ethernet, IPv4 or IPv6, and TCP with 12 bytes of options, or UDP.
fn frame(v6: bool, tcp: bool, payload: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload).map(|at| (at % 251) as u8).collect();
    let mut frame = Vec::new();
    let ether = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if v6 {
        ether.ipv6([1; 16], [2; 16], 64)
    } else {
        ether.ipv4([10, 77, 0, 1], [10, 77, 0, 2], 64)
    };
    if tcp {
        let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let tcp = ip.tcp(5000, 80, 7, 1000).options_raw(&options).unwrap();
        tcp.write(&mut frame, &payload).unwrap();
    } else {
        ip.udp(9000, 7000).write(&mut frame, &payload).unwrap();
    }
    frame
}

/// The device delivers a frame in as many buffers of `chunk` bytes as that takes.
fn deliver(nic: &mut Nic, hdr: VirtioNetHdr, frame: &[u8], chunk: usize) {
    let count = (12 + frame.len()).div_ceil(chunk) as u16;
    let hdr = VirtioNetHdr {
        num_buffers: count,
        ..hdr
    };
    let bytes = [&hdr.to_bytes()[..12], frame].concat();
    for piece in bytes.chunks(chunk) {
        nic.transport.receive(0, piece, piece.len() as u32);
    }
}

/// What the driver makes of all that was delivered.
fn received(nic: &mut Nic) -> Vec<(Vec<u8>, SkbSharedInfo)> {
    let mut frames = Vec::new();
    nic.poll(0, 64, |frame| {
        frames.push((frame.to_vec(), frame.shared_info()));
    })
    .unwrap();
    frames
}

fn info(gso_type: u32, gso_size: u16, gso_segs: u16) -> SkbSharedInfo {
    SkbSharedInfo {
        gso_type: gso_type | SKB_GSO_DODGY,
        gso_size,
        gso_segs,
    }
}

#[test]
fn super_frames_arrive_in_buffers_of_every_kind() {
    // Version 6, TCP; csum_start and offset; type; what is known of the segments.
    let cases = [
        (false, true, 34, 16, TCPV4, SKB_GSO_TCPV4),
        (
            false,
            true,
            34,
            16,
            TCPV4 | ECN,
            SKB_GSO_TCPV4 | SKB_GSO_TCP_ECN,
        ),
        (true, true, 54, 16, TCPV6, SKB_GSO_TCPV6),
        (false, false, 34, 6, UDP_L4, SKB_GSO_UDP_L4),
        (true, false, 54, 6, UDP_L4, SKB_GSO_UDP_L4),
    ];
    for buffers in [0, f::MRG_RXBUF] {
        for ring in [0, f::INDIRECT_DESC, f::RING_PACKED | f::INDIRECT_DESC] {
            let mut nic = nic(GUEST | buffers | ring);
            for (v6, tcp, start, offset, gso_type, want) in cases {
                let frame = frame(v6, tcp, 60_001);
                let headers = frame.len() - 60_001;
                let hdr = VirtioNetHdr::needs_csum(start, offset);
                let hdr = hdr.with_gso(gso_type, 1000, headers as u16);
                let chunk = if buffers == 0 { usize::MAX } else { 1536 };
                deliver(&mut nic, hdr, &frame, chunk);
                let got = received(&mut nic);
                assert_eq!(got, [(frame, info(want, 1000, 61))], "{gso_type:#x}");
            }
            assert_eq!(nic.rq[0].stats.drops, 0);
        }
    }
}

#[test]
fn a_device_that_verified_the_checksum_need_not_say_where_it_is() {
    let mut nic = nic(GUEST | f::MRG_RXBUF);
    for (v6, gso_type, want) in [(false, TCPV4, SKB_GSO_TCPV4), (true, TCPV6, SKB_GSO_TCPV6)] {
        let frame = frame(v6, true, 3000);
        let valid = VirtioNetHdr {
            flags: 2,
            ..VirtioNetHdr::default()
        };
        deliver(&mut nic, valid.with_gso(gso_type, 1448, 66), &frame, 1536);
        assert_eq!(received(&mut nic), [(frame, info(want, 1448, 3))]);
    }
}

#[test]
fn what_is_too_short_to_be_cut_up_is_no_more_than_itself() {
    let mut nic = nic(GUEST | f::MRG_RXBUF);
    let frame = frame(false, true, 88);
    for (gso_size, segs) in [(100, 0), (99, 1), (87, 2)] {
        let hdr = VirtioNetHdr::needs_csum(34, 16).with_gso(TCPV4, gso_size, 66);
        deliver(&mut nic, hdr, &frame, 1536);
        let want = if segs == 0 {
            SkbSharedInfo::default()
        } else {
            info(SKB_GSO_TCPV4, gso_size, segs)
        };
        assert_eq!(received(&mut nic)[0].1, want, "{gso_size}");
    }
    // A fragmented datagram: what is cut up is the IP packet's payload.
    let datagram = self::frame(false, false, 5000);
    let hdr = VirtioNetHdr::needs_csum(34, 6).with_gso(UDP, 1480, 34);
    deliver(&mut nic, hdr, &datagram, 1536);
    assert_eq!(received(&mut nic)[0].1, info(SKB_GSO_UDP, 1480, 4));
}

#[test]
fn big_buffers_hold_the_longest_frame() {
    for ring in [0, f::RING_PACKED] {
        for indirect in [0, f::INDIRECT_DESC] {
            let mut nic = nic(f::GUEST_TSO4 | ring | indirect);
            assert_eq!(nic.rq[0].mode(), RxMode::Big);
            let (id, chain) = nic.transport.take(0).unwrap();
            // Virtio 1.3, 5.1.6.3.1: 65562 bytes, the header included.
            let len: u32 = chain.iter().map(|desc| desc.len).sum();
            assert!(len >= 65_562, "{len}");
            assert_eq!(chain[0].len, 12, "the header by itself");
            assert!(
                chain
                    .iter()
                    .all(|desc| desc.len <= 4096 && desc.flags & 2 != 0)
            );
            nic.transport.put(0, id, 0);
            assert!(received(&mut nic).is_empty());
            assert_eq!(nic.rq[0].stats.length_errors, 1);
            let taken = std::iter::from_fn(|| nic.transport.take(0)).count();
            // That one came back when the ring was refilled.
            assert_eq!(taken, if indirect == 0 { 64 / 18 } else { 64 } - 1);
        }
    }
}

#[test]
fn lies_cost_the_frame_and_are_counted() {
    let mut nic = nic(GUEST & !(f::GUEST_ECN | f::GUEST_UFO) | f::MRG_RXBUF);
    let tcp = VirtioNetHdr::needs_csum(34, 16);
    let udp = VirtioNetHdr::needs_csum(34, 6);
    let none = VirtioNetHdr::default();
    let lies = [
        ("an unknown type", tcp.with_gso(2, 100, 54)),
        ("ECN and nothing else", tcp.with_gso(ECN, 100, 54)),
        ("ECN, not negotiated", tcp.with_gso(TCPV4 | ECN, 100, 54)),
        ("UFO, not negotiated", udp.with_gso(UDP, 100, 42)),
        ("no segment size", tcp.with_gso(TCPV4, 0, 54)),
        ("a kernel's own size", tcp.with_gso(TCPV4, 0xffff, 54)),
        ("TCP with UDP's checksum", udp.with_gso(TCPV4, 100, 54)),
        ("UDP with TCP's checksum", tcp.with_gso(UDP_L4, 100, 42)),
        ("USO without a checksum", none.with_gso(UDP_L4, 100, 42)),
        ("more than 128 datagrams", udp.with_gso(UDP_L4, 1, 42)),
        (
            "a checksum in the IP header",
            VirtioNetHdr::needs_csum(19, 6),
        ),
        (
            "the same with IPv6",
            VirtioNetHdr::needs_csum(39, 16).with_gso(TCPV6, 100, 74),
        ),
        (
            "a checksum behind the end",
            VirtioNetHdr::needs_csum(230, 16),
        ),
        (
            "a TCP header behind the end",
            VirtioNetHdr::needs_csum(230, 2).with_gso(TCPV4, 100, 54),
        ),
    ];
    let frame = frame(false, true, 180);
    assert_eq!(frame.len(), 246);
    for (dropped, (why, hdr)) in (1..).zip(lies) {
        deliver(&mut nic, hdr, &frame, 1536);
        assert!(received(&mut nic).is_empty(), "{why}");
        let stats = nic.rq[0].stats;
        assert_eq!(
            (stats.frame_errors, stats.drops),
            (dropped, dropped),
            "{why}"
        );
    }
    // Nothing that is no more than a header can be cut up.
    let short = &frame[..39];
    deliver(&mut nic, none.with_gso(TCPV4, 100, 54), short, 1536);
    assert!(received(&mut nic).is_empty());
    // And the next frame comes.
    deliver(&mut nic, tcp.with_gso(TCPV4, 100, 66), &frame, 1536);
    assert_eq!(received(&mut nic), [(frame, info(SKB_GSO_TCPV4, 100, 2))]);
    nic.rq[0].try_fill_recv();
    assert_eq!(nic.rq[0].vq.num_free(), 0, "buffers were lost");
}

/// The checksum that the device is to fill in, from `start` on.
fn filled_in(frame: &[u8], start: usize) -> u16 {
    let words = frame[start..].chunks(2);
    let sum = words.fold(0u64, |sum, pair| {
        sum + u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0))
    });
    let folded = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[test]
fn super_frames_are_sent_with_all_that_the_device_has_to_know() {
    for ring in [0, f::RING_PACKED] {
        let mut nic = nic(HOST | ring);
        for (v6, tcp, gso_type) in [
            (false, true, TCPV4),
            (true, true, TCPV6),
            (false, false, UDP_L4),
            (true, false, UDP_L4),
        ] {
            let whole = frame(v6, tcp, 60_000);
            let mut sent = whole.clone();
            let hdr = super_frame(&mut sent, 1400).unwrap();
            nic.start_xmit(0, &sent, &hdr).unwrap();
            nic.flush(0);
            let (id, chain) = nic.transport.take(1).unwrap();
            assert_eq!(chain[0].len as usize, 12 + sent.len());
            let mut bytes = vec![0; chain[0].len as usize];
            nic.transport
                .memory
                .read(chain[0].addr, &mut bytes)
                .unwrap();
            nic.transport.put(1, id, 0);
            let start = if v6 { 54 } else { 34 };
            let (offset, headers) = if tcp { (16, 32) } else { (6, 8) };
            let want = VirtioNetHdr::needs_csum(start, offset);
            let want = want.with_gso(gso_type, 1400, start + headers);
            assert_eq!(bytes[..12], want.to_bytes()[..12]);
            // Pseudo header and all the rest make the checksum that etherparse had put there.
            let right = match SlicedPacket::from_ethernet(&whole).unwrap().transport {
                Some(TransportSlice::Tcp(tcp)) => tcp.checksum(),
                Some(TransportSlice::Udp(udp)) => udp.checksum(),
                _ => panic!("neither TCP nor UDP"),
            };
            assert_eq!(filled_in(&bytes[12..], start.into()), right);
        }
    }
}

#[test]
fn a_frame_says_whether_its_congestion_window_was_reduced() {
    let mut cwr = frame(false, true, 3000);
    cwr[47] |= 0x80;
    assert_eq!(super_frame(&mut cwr, 1400).unwrap().gso_type, TCPV4 | ECN);
    // One segment needs no cutting.
    let mut short = frame(false, true, 1400);
    let hdr = super_frame(&mut short, 1400).unwrap();
    assert_eq!((hdr.gso_type, hdr.gso_size, hdr.flags), (0, 0, 1));
    assert_eq!(super_frame(&mut [0; 60], 100), None);
    assert_eq!(super_frame(&mut frame(false, true, 0)[..50], 100), None);
}

const CONTROL: u64 = f::CTRL_VQ | f::MQ | f::CTRL_GUEST_OFFLOADS;

#[test]
fn receive_offloads_are_switched_by_what_stays() {
    let mut nic = nic(GUEST | CONTROL);
    let all = GUEST | f::GUEST_CSUM;
    assert_eq!(nic.guest_offloads(), all);
    nic.set_gro_hw(true).unwrap();
    let commands = |nic: &Nic| -> Vec<(u8, u8, u64)> {
        let seen = nic.transport.commands.take();
        let offloads = seen.iter().filter(|(class, ..)| *class == 5);
        offloads
            .map(|(class, command, data)| {
                let mask = u64::from_le_bytes(data[..].try_into().unwrap());
                (*class, *command, mask)
            })
            .collect()
    };
    assert_eq!(commands(&nic), [], "nothing to change");
    nic.set_gro_hw(false).unwrap();
    assert_eq!(commands(&nic), [(5, 0, f::GUEST_CSUM)]);
    assert_eq!(nic.guest_offloads(), f::GUEST_CSUM);
    nic.transport.refused = vec![(5, 0)];
    assert_eq!(nic.set_gro_hw(true), Err(CtrlError::Refused(1)));
    assert_eq!(nic.guest_offloads(), f::GUEST_CSUM, "as before");
    nic.transport.refused.clear();
    nic.set_gro_hw(true).unwrap();
    assert_eq!(commands(&nic), [(5, 0, all), (5, 0, all)]);
}

#[test]
fn receive_offloads_that_nobody_offered_cannot_be_switched() {
    let mut nic = nic(f::GUEST_TSO4);
    assert_eq!(
        nic.set_gro_hw(false),
        Err(CtrlError::NotNegotiated("CTRL_GUEST_OFFLOADS"))
    );
    assert_eq!(nic.guest_offloads(), f::GUEST_TSO4 | f::GUEST_CSUM);
}

proptest! {
    /// Whatever header comes with whatever frame: it is counted, or its segments are as many as its bytes call for.
    #[test]
    fn any_header_is_borne(
        bytes in any::<[u8; 20]>(),
        kind in 0usize..8,
        payload in 0usize..3000,
        change in proptest::collection::vec((0usize..80, any::<u8>()), 0..3),
    ) {
        let mut frame = frame(kind & 1 != 0, kind & 2 != 0, payload);
        for (at, byte) in change {
            let at = at % frame.len();
            frame[at] = byte;
        }
        let mut hdr = VirtioNetHdr::from_bytes(&bytes, f::VERSION_1);
        if kind & 4 != 0 {
            // Something near the truth.
            let types = [0, TCPV4, UDP, TCPV6, UDP_L4, TCPV4 | ECN];
            hdr.gso_type = types[usize::from(hdr.gso_type) % types.len()];
            hdr.csum_start %= 100;
            hdr.csum_offset %= 20;
            hdr.gso_size %= 2000;
        }
        if hdr.check(frame.len(), BASE | GUEST).is_ok() {
            let info = hdr.shared_info(frame.len(), &frame);
            prop_assert_eq!(info.gso_segs == 0, info.gso_size == 0);
            let most = usize::from(info.gso_segs) * usize::from(info.gso_size);
            prop_assert!(most <= frame.len() + usize::from(info.gso_size));
        }
        let _ = super_frame(&mut frame, hdr.gso_size);
    }
}
