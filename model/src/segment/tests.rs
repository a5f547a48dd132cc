use super::*;
use crate::frame::{Frame, Pool};
use etherparse::{IpHeaders, IpNumber};
use etherparse::{
    Ipv4Header, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice, VlanId,
    VlanSlice,
};
use proptest::prelude::*;

/// What a test's super-frame is to be.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: Segmentation,
    pub(crate) ipv6: bool,
    pub(crate) vlan: Option<u16>,
    pub(crate) identification: u16,
    sequence: u32,
    /// Words of TCP's options.
    options: usize,
    pub(crate) flags: u8,
    size: u16,
    pub(crate) payload: Vec<u8>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    (
        (0..4u8, proptest::option::of(1..4095u16), any::<u16>()),
        (any::<u32>(), 0..=10usize, any::<u8>()),
        (1u16..1400, proptest::collection::vec(any::<u8>(), 0..9000)),
    )
        .prop_map(
            |((kind, vlan, identification), (sequence, options, flags), (size, payload))| {
                let (kind, ipv6) = match kind {
                    0 => (Segmentation::Tcpv4, false),
                    1 => (Segmentation::Tcpv6, true),
                    kind => (Segmentation::Udp, kind == 3),
                };
                Shape {
                    kind,
                    ipv6,
                    vlan,
                    identification,
                    sequence,
                    options,
                    flags,
                    size: size.max((payload.len() / MAX_SEGMENTS + 1) as u16),
                    payload,
                }
            },
        )
}

/// The super-frame, as a driver gives it.
pub(crate) fn super_frame(pool: &mut Pool, shape: &Shape) -> Frame {
    let ether = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if shape.ipv6 {
        IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                source: [7; 16],
                destination: [9; 16],
                hop_limit: 64,
                ..Default::default()
            },
            etherparse::Ipv6Extensions::default(),
        )
    } else {
        let mut header =
            Ipv4Header::new(0, 64, IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.identification = shape.identification;
        IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
    };
    let step: PacketBuilderStep<IpHeaders> = match shape.vlan {
        Some(id) => ether.single_vlan(VlanId::try_new(id).unwrap()).ip(ip),
        None => ether.ip(ip),
    };
    let mut bytes = Vec::new();
    if matches!(shape.kind, Segmentation::Udp | Segmentation::Fragments) {
        step.udp(1, 2).write(&mut bytes, &shape.payload).unwrap();
    } else {
        let options = vec![1; 4 * shape.options];
        let tcp = step.tcp(1, 2, shape.sequence, 500).options_raw(&options);
        tcp.unwrap().write(&mut bytes, &shape.payload).unwrap();
    }
    let mut frame = pool.take_big();
    assert!(frame.fill(&bytes));
    if matches!(shape.kind, Segmentation::Tcpv4 | Segmentation::Tcpv6) {
        let transport = bytes.len() - shape.payload.len() - 20 - 4 * shape.options;
        frame.bytes_mut()[transport + TCP_FLAGS] = shape.flags;
    }
    leave_checksum(&mut frame);
    frame.gso = Gso {
        kind: shape.kind,
        headers: 0,
        size: shape.size,
    };
    frame
}

pub(crate) fn usual(kind: Segmentation, size: u16, payload: usize) -> Shape {
    Shape {
        kind,
        ipv6: kind == Segmentation::Tcpv6,
        vlan: None,
        identification: 0xffff,
        sequence: u32::MAX,
        options: 3,
        flags: 0x10,
        size,
        payload: (0..payload).map(|octet| octet as u8).collect(),
    }
}

proptest! {
    #[test]
    fn segments_put_together_are_the_super_frame(shape in shapes()) {
        let mut pool = Pool::new(2048);
        let frame = super_frame(&mut pool, &shape);
        let cut = Cut::of(&frame).unwrap();
        let last = cut.segments() - 1;
        let mut payload = Vec::new();
        let mut on_line = 0;
        for index in 0..=last {
            let mut out = pool.take();
            prop_assert!(cut.write(&frame, index, &mut out));
            let bytes = out.bytes().to_vec();
            on_line += phy::octets_on_line(&out);
            // etherparse's walk checks the lengths.
            let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
            prop_assert_eq!(packet.vlan_ids().first().map(|id| id.value()), shape.vlan);
            prop_assert!(!matches!(packet.vlan(), Some(VlanSlice::DoubleVlan(_))));
            let all = match packet.net.as_ref().unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!(header.identification, shape.identification.wrapping_add(index as u16));
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                    ip.payload().payload.to_vec()
                }
                NetSlice::Ipv6(ip) => ip.payload().payload.to_vec(),
                NetSlice::Arp(_) => unreachable!(),
            };
            let net = packet.net.as_ref().unwrap();
            match packet.transport.as_ref().unwrap() {
                TransportSlice::Tcp(tcp) => {
                    let header = tcp.to_header();
                    let here = match net {
                        NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()),
                        NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()),
                        NetSlice::Arp(_) => unreachable!(),
                    };
                    prop_assert_eq!(header.checksum, here.unwrap());
                    prop_assert_eq!(header.sequence_number, shape.sequence.wrapping_add(payload.len() as u32));
                    let mut flags = shape.flags;
                    if index > 0 { flags &= !CWR }
                    if index < last { flags &= !(FIN | PSH) }
                    prop_assert_eq!(tcp.slice()[TCP_FLAGS], flags);
                    prop_assert_eq!(tcp.slice().len() - tcp.payload().len(), 20 + 4 * shape.options);
                    payload.extend_from_slice(tcp.payload());
                }
                TransportSlice::Udp(udp) => {
                    let header = udp.to_header();
                    let here = match net {
                        NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()),
                        NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                        NetSlice::Arp(_) => unreachable!(),
                    };
                    prop_assert_eq!(header.checksum, here.unwrap());
                    prop_assert_eq!(usize::from(header.length), all.len());
                    payload.extend_from_slice(udp.payload());
                }
                _ => unreachable!(),
            }
            prop_assert_eq!(out.checksum, Checksum::Valid);
            prop_assert!(!out.is_super());
            pool.give(out);
        }
        prop_assert_eq!(&payload, &shape.payload);
        // What the line sees of the super-frame is what it would see of the segments.
        let mut frame = frame;
        admit(&mut frame, &Mac::new(1500)).unwrap();
        prop_assert_eq!(frames(&frame), last + 1);
        prop_assert_eq!(phy::octets_on_line(&frame), on_line);
        prop_assert_eq!(frame.is_super(), last > 0);
    }

    #[test]
    fn any_octets_are_refused_or_cut_within_them(
        shape in shapes(), damage in proptest::collection::vec((0..90usize, any::<u8>()), 0..6), cut_off in 0..200usize,
        size in any::<u16>(), start in 0..80u16, keep in any::<bool>(),
    ) {
        let mut pool = Pool::new(2048);
        let mut frame = super_frame(&mut pool, &shape);
        for (at, octet) in damage {
            if let Some(place) = frame.bytes_mut().get_mut(at) {
                *place = octet;
            }
        }
        let len = frame.len().saturating_sub(cut_off);
        frame.set_len(len);
        frame.gso.size = size;
        if !keep {
            frame.checksum = Checksum::Partial { start, offset: 16 };
        }
        if admit(&mut frame, &Mac::new(1500)).is_ok() && frame.is_super() {
            let cut = Cut::of(&frame).unwrap();
            prop_assert!(cut.segments() <= MAX_SEGMENTS);
            for index in 0..cut.segments() {
                let mut out = pool.take();
                prop_assert!(cut.write(&frame, index, &mut out));
                prop_assert!(out.len() + FCS <= 1518 + 8);
                pool.give(out);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut pool = Pool::new(2048);
    let mac = Mac::new(1500);
    let mut check = |shape: &Shape, change: &dyn Fn(&mut Frame)| {
        let mut frame = super_frame(&mut pool, shape);
        change(&mut frame);
        let verdict = admit(&mut frame, &mac);
        pool.give(frame);
        verdict
    };
    let tcp = usual(Segmentation::Tcpv4, 1448, 4000);
    let udp = usual(Segmentation::Udp, 1472, 4000);
    let refused = Err(Unfit::Malformed);
    assert_eq!(check(&tcp, &|_| ()), Ok(()));
    assert_eq!(check(&udp, &|_| ()), Ok(()));
    assert_eq!(check(&tcp, &|frame| frame.gso.size = 0), refused);
    let kinds = [
        (&tcp, Segmentation::Tcpv6),
        (&tcp, Segmentation::Udp),
        (&udp, Segmentation::Tcpv4),
    ];
    for (shape, kind) in kinds {
        assert_eq!(check(shape, &|frame| frame.gso.kind = kind), refused);
    }
    // A header that is shorter than a header, or longer than the frame.
    for words in [0x40, 0xf0] {
        let short = usual(Segmentation::Tcpv4, 4, 20);
        assert_eq!(check(&short, &|f| f.bytes_mut()[46] = words), refused);
    }
    // Checksums that are elsewhere, or none.
    for (start, offset) in [(34, 6), (14, 16), (65535, 16)] {
        let checksum = Checksum::Partial { start, offset };
        assert_eq!(check(&tcp, &|frame| frame.checksum = checksum), refused);
    }
    assert_eq!(check(&tcp, &|f| f.checksum = Checksum::Unknown), refused);
    // Octets behind the packet, a fragment.
    let longer = |frame: &mut Frame| {
        let len = frame.len();
        frame.set_len(len + 1);
    };
    assert_eq!(check(&tcp, &longer), refused);
    assert_eq!(check(&tcp, &|f| f.bytes_mut()[20] |= 0x20), refused);
    // Segments that are too long, and too many.
    let long = usual(Segmentation::Tcpv4, 1449, 4000);
    assert_eq!(check(&long, &|_| ()), Err(Unfit::Oversize));
    let many = usual(Segmentation::Tcpv4, 1, MAX_SEGMENTS + 1);
    assert_eq!(check(&many, &|_| ()), refused);
}

#[test]
fn a_single_segment_is_an_ordinary_frame() {
    let mut pool = Pool::new(2048);
    for payload in [0, 1, 100] {
        let mut frame = super_frame(&mut pool, &usual(Segmentation::Tcpv6, 100, payload));
        assert_eq!(admit(&mut frame, &Mac::new(1500)), Ok(()));
        assert!(!frame.is_super() && frame.excess == 0);
        assert!(matches!(frame.checksum, Checksum::Partial { .. }));
    }
}

#[test]
fn flags_are_told_of_tcp_only() {
    let mut pool = Pool::new(2048);
    let mut shape = usual(Segmentation::Tcpv4, 100, 500);
    assert!(!reduces_congestion_window(&super_frame(&mut pool, &shape)));
    shape.flags |= CWR;
    let frame = super_frame(&mut pool, &shape);
    assert!(reduces_congestion_window(&frame) && !is_ipv6(&frame));
    let mut shape = usual(Segmentation::Udp, 100, 500);
    shape.payload.fill(0xff);
    assert!(!reduces_congestion_window(&super_frame(&mut pool, &shape)));
    assert!(!is_ipv6(&super_frame(&mut pool, &shape)));
    shape.ipv6 = true;
    assert!(is_ipv6(&super_frame(&mut pool, &shape)));
}
