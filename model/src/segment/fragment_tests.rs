//! Fragments of IP, as a stranger puts them together.

use super::tests::{Shape, super_frame, usual};
use super::*;
use crate::frame::{Frame, Pool};
use etherparse::defrag::IpDefragPool;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

fn datagram(ipv6: bool, size: u16, payload: usize) -> Shape {
    let mut shape = usual(Segmentation::Fragments, size, payload);
    shape.ipv6 = ipv6;
    shape
}

fn fragments(pool: &mut Pool, frame: &Frame) -> Vec<Vec<u8>> {
    let cut = Cut::of(frame).expect("it was admitted");
    (0..cut.segments())
        .map(|index| {
            let mut out = pool.take();
            assert!(cut.write(frame, index, &mut out));
            assert_eq!((out.checksum, out.is_super()), (Checksum::Unknown, false));
            let bytes = out.bytes().to_vec();
            assert_eq!(bytes.len(), cut.segment_len(index));
            pool.give(out);
            bytes
        })
        .collect()
}

/// The datagram that `fragments` are of, with the header of UDP, if they are all.
fn reassemble(fragments: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = None;
    for bytes in fragments {
        assert!(whole.is_none(), "one more than needed");
        let packet = SlicedPacket::from_ethernet(bytes).expect("a packet");
        assert!(packet.is_ip_payload_fragmented());
        assert!(packet.transport.is_none());
        let got = pool.process_sliced_packet(&packet, (), ());
        whole = got.expect("it fits the others");
    }
    whole.map(|whole| whole.payload)
}

proptest! {
    #[test]
    fn fragments_put_together_are_the_datagram(
        ipv6 in any::<bool>(), size in 8u16..1440, payload in 0..30_000usize, vlan in any::<bool>(), id in any::<u16>(),
    ) {
        let size = size.max((payload / 1000) as u16 / 8 * 8 + 8);
        let mut shape = datagram(ipv6, size, payload);
        shape.identification = id;
        shape.vlan = vlan.then_some(9);
        let mut pool = Pool::new(2048);
        let mut frame = super_frame(&mut pool, &shape);
        let len = frame.len();
        prop_assert_eq!(admit(&mut frame, &Mac::new(1500)), Ok(()));
        let count = (8 + payload).div_ceil(usize::from(size / 8 * 8));
        prop_assert_eq!((frame.is_super(), frames(&frame)), (count > 1, count));
        if count > 1 {
            let cut = Cut::of(&frame).unwrap();
            let fragments = fragments(&mut pool, &frame);
            let transport = len - payload - 8;
            prop_assert_eq!(usize::from(frame.gso.headers), transport + 8);
            prop_assert_eq!(frame.gso.size, size / 8 * 8);
            prop_assert_eq!(octets(&frame), fragments.iter().map(Vec::len).sum::<usize>());
            let on_line = fragments.iter().map(|bytes| (bytes.len() + FCS).max(MIN_FRAME)).sum();
            prop_assert_eq!(cut.octets_on_line(), on_line);
            prop_assert_eq!(phy::octets_on_line(&frame), on_line);
            // All that is known of the datagram is that its checksum is right, and its identification.
            let whole = reassemble(&fragments).expect("those are all");
            prop_assert_eq!(&whole[8..], &shape.payload[..]);
            let mut headers = frame.bytes()[..transport].to_vec();
            headers.extend(&whole);
            let packet = SlicedPacket::from_ethernet(&headers).unwrap();
            let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!() };
            let header = udp.to_header();
            let right = match packet.net.as_ref().unwrap() {
                NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()),
                NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                NetSlice::Arp(_) => unreachable!(),
            };
            prop_assert_eq!(header.checksum, right.unwrap());
            for bytes in &fragments {
                let packet = SlicedPacket::from_ethernet(bytes).unwrap();
                if let Some(NetSlice::Ipv4(ip)) = &packet.net {
                    let header = ip.header().to_header();
                    prop_assert_eq!(header.identification, id);
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
            }
        }
        pool.give(frame);
        prop_assert_eq!(pool.lent(), 0);
    }
}

#[test]
fn datagrams_of_ipv6_have_identifications_of_their_own() {
    let mut pool = Pool::new(2048);
    let mut identification = |change: u8| {
        let mut shape = datagram(true, 1000, 3000);
        shape.payload[2999] ^= change;
        let frame = super_frame(&mut pool, &shape);
        let all = fragments(&mut pool, &frame);
        let of = |bytes: &Vec<u8>| {
            let packet = SlicedPacket::from_ethernet(bytes).unwrap();
            let Some(NetSlice::Ipv6(ip)) = &packet.net else {
                panic!()
            };
            let extension = ip.extensions().clone().into_iter().next().unwrap();
            let etherparse::Ipv6ExtensionSlice::Fragment(fragment) = extension else {
                panic!()
            };
            fragment.identification()
        };
        assert!(all.iter().all(|bytes| of(bytes) == of(&all[0])));
        of(&all[0])
    };
    assert_ne!(identification(0), identification(1));
    assert_eq!(identification(0), identification(0));
}

#[test]
fn what_is_no_datagram_is_refused() {
    let mut pool = Pool::new(2048);
    let mac = Mac::new(1500);
    let mut check = |shape: &Shape, change: &dyn Fn(&mut Frame)| {
        let mut frame = super_frame(&mut pool, shape);
        change(&mut frame);
        let verdict = admit(&mut frame, &mac);
        pool.give(frame);
        verdict
    };
    let refused = Err(Unfit::Malformed);
    for ipv6 in [false, true] {
        let longest = if ipv6 { 1448 } else { 1480 };
        let shape = datagram(ipv6, longest, 4000);
        let transport = if ipv6 { 54 } else { 34 };
        assert_eq!(check(&shape, &|_| ()), Ok(()));
        for size in [0, 7] {
            assert_eq!(check(&shape, &|frame| frame.gso.size = size), refused);
        }
        // What is not a whole unit does not count.
        assert_eq!(check(&shape, &|frame| frame.gso.size += 7), Ok(()));
        let longer = check(&shape, &|frame| frame.gso.size += 8);
        assert_eq!(longer, Err(Unfit::Oversize));
        assert_eq!(
            check(&datagram(ipv6, 8, 8 * MAX_SEGMENTS - 8), &|_| ()),
            Ok(())
        );
        assert_eq!(
            check(&datagram(ipv6, 8, 8 * MAX_SEGMENTS), &|_| ()),
            refused
        );
        assert_eq!(check(&datagram(ipv6, 8, 65_500), &|_| ()), refused);
        // UDP says another length.
        for change in [1, 0xff] {
            let other = check(&shape, &|frame| {
                frame.bytes_mut()[transport + 5] ^= change;
            });
            assert_eq!(other, refused);
        }
        // A fragment, TCP, and no checksum that is to be completed.
        if !ipv6 {
            assert_eq!(
                check(&shape, &|frame| frame.bytes_mut()[20] |= 0x20),
                refused
            );
        }
        let next = transport - if ipv6 { 34 } else { 11 };
        assert_eq!(check(&shape, &|frame| frame.bytes_mut()[next] = 6), refused);
        assert_eq!(check(&shape, &|f| f.checksum = Checksum::Unknown), refused);
        let tcp = usual(Segmentation::Tcpv4, 1000, 4000);
        let kind = Segmentation::Fragments;
        assert_eq!(check(&tcp, &|frame| frame.gso.kind = kind), refused);
    }
    // Destination options before UDP.
    let extended = |frame: &mut Frame| {
        let mut bytes = frame.bytes().to_vec();
        let next = std::mem::replace(&mut bytes[20], 60);
        bytes.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
        let len = bytes.len() as u16 - 54;
        put(&mut bytes, 18, len);
        assert!(frame.fill(&bytes));
        leave_checksum(frame);
    };
    assert_eq!(check(&datagram(true, 1000, 4000), &extended), refused);
}

#[test]
fn zero_is_not_a_checksum() {
    let mut pool = Pool::new(2048);
    let mut shape = datagram(false, 1000, 3000);
    shape.payload[..2].fill(0);
    let frame = super_frame(&mut pool, &shape);
    let checksum = get(&fragments(&mut pool, &frame)[0], 40);
    shape.payload[..2].copy_from_slice(&checksum.to_be_bytes());
    let frame = super_frame(&mut pool, &shape);
    assert_eq!(get(&fragments(&mut pool, &frame)[0], 40), 0xffff);
}
