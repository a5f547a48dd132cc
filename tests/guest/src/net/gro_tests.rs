//! What is merged and taken apart again is what came, octet for octet; and what must not be merged is not.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::checksum::{csum_fold, csum_partial};
use super::eth::{ETH_HLEN, eth_header, eth_type_trans};
use super::gro::{GroNode, UdpGro, napi_gro_complete, pseudo};
use super::gso::skb_gso_segment;
use super::netdevice::{NetDevice, NetDeviceOps};
use super::skbuff::{IpSummed, NET_SKB_PAD, Skb, SkbCache};
use super::trace::Span;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const CWR: u8 = 0x80;

/// A segment or datagram.
#[derive(Debug, Clone)]
struct Packet {
    tcp: bool,
    from: u16,
    id: u16,
    df: bool,
    tos: u8,
    ttl: u8,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

fn tcp(seq: u32, len: usize) -> Packet {
    Packet {
        tcp: true,
        from: 9,
        id: 0,
        df: true,
        tos: 0,
        ttl: 64,
        seq,
        ack: 5,
        flags: ACK,
        window: 1000,
        options: Vec::new(),
        payload: (0..len).map(|at| at as u8 ^ seq as u8).collect(),
    }
}

fn udp(id: u16, len: usize) -> Packet {
    let packet = tcp(id.into(), len);
    Packet {
        tcp: false,
        id,
        ..packet
    }
}

impl Packet {
    fn frame(&self) -> Vec<u8> {
        let mut transport = [&self.from.to_be_bytes()[..], &[0x1b, 0x58]].concat();
        let check = if self.tcp {
            transport.extend(self.seq.to_be_bytes());
            transport.extend(self.ack.to_be_bytes());
            transport.extend([(20 + self.options.len() as u8) << 2, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend(&self.options);
            16
        } else {
            transport.extend((8 + self.payload.len() as u16).to_be_bytes());
            transport.extend([0; 2]);
            6
        };
        transport.extend(&self.payload);
        let mut ip = vec![0x45, self.tos];
        ip.extend((20 + transport.len() as u16).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl]);
        ip.extend([if self.tcp { 6 } else { 17 }, 0, 0]);
        ip.extend([10, 77, 0, 1, 10, 77, 0, 2]);
        let sum = csum_fold(csum_partial(&transport, pseudo(&ip, transport.len())));
        let sum = if sum == [0, 0] && !self.tcp {
            [0xff; 2]
        } else {
            sum
        };
        transport[check..check + 2].copy_from_slice(&sum);
        let sum = csum_fold(csum_partial(&ip, 0));
        ip[10..12].copy_from_slice(&sum);
        [&eth_header(MAC, [9; 6], 0x0800)[..], &ip, &transport].concat()
    }
}

fn eth0() -> NetDevice {
    NetDevice::new("eth0", NetDeviceOps::Virtnet, MAC, 1500)
}

/// Sockets that all asked for datagrams in one, or none.
struct All(bool);

impl UdpGro for All {
    fn asked(&self, _: (u32, u16), _: (u32, u16)) -> bool {
        self.0
    }
}

/// What goes up of frames that one poll finds.
fn gro(cache: &mut SkbCache, frames: &[Vec<u8>], wants: bool) -> Vec<Skb> {
    let (mut node, mut up) = (GroNode::default(), Vec::new());
    for frame in frames {
        let mut skb = cache.alloc(NET_SKB_PAD, frame.len());
        skb.put(frame.len()).copy_from_slice(frame);
        eth_type_trans(&mut skb, &eth0());
        let stage = |name| Span::of(None, name, 0);
        let (complete, normal) = node.dev_gro_receive(skb, || 0, &All(wants), stage);
        up.extend(complete.map(|held| napi_gro_complete(held).0));
        up.extend(normal);
    }
    while let Some(held) = node.take_oldest(u64::MAX) {
        up.push(napi_gro_complete(held).0);
    }
    up
}

/// The frames that packets become when they are sent on.
fn sent(cache: &mut SkbCache, packets: Vec<Skb>) -> Vec<Vec<u8>> {
    let mut list = VecDeque::new();
    for mut skb in packets {
        skb.network_header = skb.headroom();
        let hh = *skb.pulled::<ETH_HLEN>().unwrap();
        *skb.push() = hh;
        if skb.gso_size == 0 {
            list.push_back(skb);
        } else {
            assert_eq!(skb.ip_summed, IpSummed::Partial);
            let segs = usize::from(skb.gso_segs);
            let before = list.len();
            assert!(skb_gso_segment(cache, skb, false, &mut list).is_ok());
            assert_eq!(list.len() - before, segs);
        }
    }
    list.iter().map(|skb| skb.data().to_vec()).collect()
}

/// How many frames became how many packets; merged or not, they are the same when they are sent on.
fn merged(packets: &[Packet]) -> usize {
    let frames: Vec<_> = packets.iter().map(Packet::frame).collect();
    let mut cache = SkbCache::default();
    let up = gro(&mut cache, &frames, true);
    let count = up.len();
    let mut out = sent(&mut cache, up);
    let mut frames = frames;
    // Flows may overtake each other.
    out.sort();
    frames.sort();
    assert_eq!(out, frames);
    count
}

fn changed(mut packet: Packet, change: impl FnOnce(&mut Packet)) -> Packet {
    change(&mut packet);
    packet
}

#[test]
fn segments_that_follow_on_each_other_become_one() {
    assert_eq!(merged(&[tcp(0, 100), tcp(100, 100), tcp(200, 60)]), 1);
    let ids: Vec<_> = (0..5)
        .map(|n| {
            changed(tcp(u32::from(n) * 10, 10), |p| {
                p.id = 0xfffe_u16.wrapping_add(n);
            })
        })
        .collect();
    assert_eq!(merged(&ids), 1, "identifications that count");
    let wrapped = [tcp(u32::MAX - 9, 10), tcp(0, 10), tcp(10, 10)];
    assert_eq!(merged(&wrapped), 1, "sequence numbers wrap");
    let flags = [
        changed(tcp(0, 10), |p| p.flags |= CWR),
        tcp(10, 10),
        changed(tcp(20, 10), |p| p.flags |= PSH | FIN),
    ];
    assert_eq!(
        merged(&flags),
        1,
        "CWR in the first, PSH and FIN in the last"
    );
    let other = |seq| changed(tcp(seq, 10), |p| p.from = 10);
    assert_eq!(merged(&[tcp(0, 10), other(0), tcp(10, 10), other(10)]), 2);
}

#[test]
fn what_differs_is_not_merged() {
    type Change = fn(&mut Packet);
    let changes: [(&str, Change); 14] = [
        ("a gap", |p| p.seq += 1),
        ("a repetition", |p| p.seq -= 10),
        ("acknowledgement", |p| p.ack += 1),
        ("window", |p| p.window += 1),
        ("port", |p| p.from += 1),
        ("options", |p| p.options = vec![1, 1, 1, 1]),
        ("type of service", |p| p.tos = 8),
        ("time to live", |p| p.ttl -= 1),
        ("identification", |p| p.id = 7),
        ("may be fragmented", |p| p.df = false),
        ("SYN", |p| p.flags |= SYN),
        ("CWR", |p| p.flags |= CWR),
        ("longer than the first", |p| p.payload.push(0)),
        ("no payload", |p| p.payload.clear()),
    ];
    for (what, change) in changes {
        assert_eq!(
            merged(&[tcp(0, 10), changed(tcp(10, 10), change)]),
            2,
            "{what}"
        );
    }
    assert_eq!(
        merged(&[tcp(0, 10), tcp(10, 9), tcp(19, 9)]),
        2,
        "a short one is the last"
    );
    let pushed = changed(tcp(10, 10), |p| p.flags |= PSH);
    assert_eq!(
        merged(&[tcp(0, 10), pushed, tcp(20, 10)]),
        2,
        "one with PSH is the last"
    );
}

#[test]
fn what_is_broken_goes_up_as_it_is() {
    let mut cache = SkbCache::default();
    let good = [tcp(0, 100).frame(), tcp(100, 100).frame()];
    // A bit anywhere in the second: that both are merged all the same is its Ethernet source, or nothing.
    for at in 14..good[1].len() {
        let mut bad = good.clone();
        bad[1][at] ^= 0x20;
        let up = gro(&mut cache, &bad, true);
        assert_eq!(up.len(), 2, "octet {at}");
    }
    let mut padded = good.clone();
    padded[1].push(0);
    assert_eq!(gro(&mut cache, &padded, true).len(), 2, "padding");
    for len in 14..good[1].len() {
        let mut short = good.clone();
        short[1].truncate(len);
        assert_eq!(gro(&mut cache, &short, true).len(), 2, "{len} octets");
    }
}

#[test]
fn datagrams_are_merged_for_who_asked() {
    let datagrams: Vec<_> = (0..70).map(|id| udp(id, 100)).collect();
    assert_eq!(merged(&datagrams), 2, "64 at most");
    assert_eq!(
        merged(&[udp(0, 100), udp(1, 50), udp(2, 50)]),
        2,
        "a short one is the last"
    );
    assert_eq!(
        merged(&[udp(0, 100), udp(1, 101), udp(2, 101)]),
        2,
        "a longer one is another"
    );
    assert_eq!(
        merged(&[udp(0, 100), udp(1, 0), udp(2, 100)]),
        3,
        "an empty one parts them"
    );
    let frames: Vec<_> = datagrams.iter().map(Packet::frame).collect();
    let mut cache = SkbCache::default();
    assert_eq!(gro(&mut cache, &frames, false).len(), 70, "nobody asked");
    let mut unsummed = frames[..2].to_vec();
    unsummed[1][40..42].fill(0);
    assert_eq!(gro(&mut cache, &unsummed, true).len(), 2, "no checksum");
}

#[test]
fn a_packet_stays_below_64_kib_and_a_list_below_nine() {
    let segments: Vec<_> = (0..100).map(|n| tcp(n * 1448, 1448)).collect();
    assert_eq!(merged(&segments), 3, "45 of 1448 octets are 65,160");
    let flows: Vec<_> = (0..20)
        .map(|n| changed(tcp(0, 10), |p| p.from = n))
        .collect();
    let frames: Vec<_> = flows.iter().map(Packet::frame).collect();
    let (mut node, mut cache) = (GroNode::default(), SkbCache::default());
    for (n, frame) in frames.iter().enumerate() {
        let mut skb = cache.alloc(NET_SKB_PAD, frame.len());
        skb.put(frame.len()).copy_from_slice(frame);
        eth_type_trans(&mut skb, &eth0());
        let stage = |name| Span::of(None, name, 0);
        let (complete, _) = node.dev_gro_receive(skb, || n as u64, &All(true), stage);
        let oldest = complete.map(|held| held.skb.data()[21]);
        assert_eq!(
            oldest,
            n.checked_sub(8).map(|n| n as u8),
            "the oldest makes room"
        );
    }
    assert_eq!(
        std::iter::from_fn(|| node.take_oldest(15)).count(),
        3,
        "older than 15"
    );
    assert_eq!(std::iter::from_fn(|| node.take_oldest(u64::MAX)).count(), 5);
}

prop_compose! {
    /// The next packet of one of three flows, mostly one that follows on.
    fn step()(
        flow in 0..3u16,
        len in prop_oneof![6 => Just(100usize), 1 => 0..200usize],
        flags in prop_oneof![8 => Just(ACK), 1 => Just(ACK | PSH), 1 => any::<u8>()],
        gap in prop_oneof![12 => Just(0u32), 1 => any::<u32>()],
        id in prop_oneof![8 => Just(1u16), 2 => Just(0u16), 1 => any::<u16>()],
        options in prop_oneof![Just(0usize), Just(12)],
        window in prop_oneof![9 => Just(7u16), 1 => any::<u16>()],
    ) -> (u16, usize, u8, u32, u16, usize, u16) {
        (flow, len, flags, gap, id, options, window)
    }
}

proptest! {
    #[test]
    fn what_is_merged_and_taken_apart_is_what_came(steps in prop::collection::vec(step(), 1..60)) {
        let (mut seqs, mut ids) = ([0u32; 3], [0u16; 3]);
        let packets: Vec<_> = steps.into_iter().map(|(flow, len, flags, gap, id, options, window)| {
            let at = usize::from(flow);
            // The last flow is of datagrams, whose identifications always count.
            let tcp_flow = at < 2;
            seqs[at] = seqs[at].wrapping_add(gap);
            ids[at] = ids[at].wrapping_add(if tcp_flow { id } else { 1 });
            let packet = Packet {
                tcp: tcp_flow,
                from: flow,
                id: ids[at],
                flags,
                window,
                options: vec![1; options],
                ..tcp(seqs[at], len)
            };
            seqs[at] = seqs[at].wrapping_add(len as u32);
            packet
        }).collect();
        merged(&packets);
    }
}
