//! The MAC's statistics: every size, kind of address, checksum and control frame.

use etherparse::PacketBuilder;

use super::*;
use crate::counters::Bin;
use crate::counters::names::{ETHTOOL, RFC};
use crate::frame::Fcs;
use crate::parse::Transport;
use crate::pause;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// A card for jumbo frames with the address [`OWN`], its filter in use.
fn jumbo() -> Card {
    let mut card = card(|c| {
        c.mac = MacAddress(OWN);
        c.mtu = 9000;
        c.fifo = 1 << 20;
    });
    card.filter.active = true;
    card
}

/// A datagram that takes `octets` on the line, to `address`.
fn datagram(address: [u8; 6], octets: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], address)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1, 2);
    let mut bytes = Vec::new();
    let payload = vec![0x5a; octets - 46];
    builder.write(&mut bytes, &payload).unwrap();
    bytes
}

/// What `name` counts.
fn named(card: &Card, name: &str) -> u64 {
    let mut names = ETHTOOL.iter().chain(RFC);
    let found = names.find(|known| known.name == name);
    found
        .unwrap_or_else(|| panic!("{name}"))
        .count(&card.counters())
}

#[test]
fn every_bin_is_reached_from_its_first_octet_to_its_last_in_both_directions() {
    for (number, &bin) in Bin::ALL.iter().enumerate() {
        let next = Bin::ALL.get(number + 1);
        let last = next.map_or(9018, |next| next.first() - 1);
        // Those that need but a glance, and others.
        for address in [OWN, [0xff; 6]] {
            let (mut card, mut host) = (jumbo(), Recorder::default());
            for (now, octets) in [(1_000_000, bin.first()), (2_000_000, last)] {
                let frame = datagram(address, octets);
                let taken = arrive(
                    &mut card,
                    &mut host,
                    Nanos(now),
                    std::slice::from_ref(&frame),
                );
                assert_eq!(taken, 1);
                host.to_send.push_back((frame, Checksum::Unknown));
            }
            card.receive(Nanos(3_000_000), &mut Vec::new(), &mut host);
            let mut out = Vec::new();
            card.transmit(Nanos(3_000_000), &mut out, &mut host);
            assert_eq!((host.delivered.len(), out.len()), (2, 2));
            card.pool.give_all(out);
            assert_balanced(&card);
            let counters = card.counters();
            let octets = (bin.first() + last) as u64;
            for (sizes, all) in [
                (counters.rx_sizes, counters.rx_octets),
                (counters.tx_sizes, counters.tx_octets),
            ] {
                assert_eq!(
                    (sizes.get(bin), sizes.total(), all),
                    (2, 2, octets),
                    "{bin:?}"
                );
            }
        }
    }
}

#[test]
fn a_damaged_frame_has_its_bin_and_those_that_are_too_short_or_too_long_have_none() {
    let mut card = card(|_| {});
    let mut burst = Vec::new();
    for (octets, damage) in [
        (64, 1),
        (200, 1),
        (200, 0),
        (63, 0),
        (63, 1),
        (1519, 0),
        (1519, 1),
    ] {
        let mut bytes = broadcast(octets - FCS);
        bytes.extend(fcs(&bytes.clone()));
        bytes[20] ^= damage;
        let mut frame = card.pool.take();
        assert!(frame.fill(&bytes));
        frame.fcs = Fcs::Present;
        burst.push(frame);
    }
    let mut odd = card.pool.take();
    assert!(odd.fill(&[0xff; 300]));
    odd.fcs = Fcs::Dribbled;
    burst.push(odd);
    card.receive(Nanos(1_000_000), &mut burst, &mut Recorder::default());
    assert_balanced(&card);
    let counters = card.counters();
    assert_eq!(counters.rx_sizes.total(), 4);
    for (name, count) in [
        ("etherStatsPkts", 8),
        (
            "etherStatsOctets",
            64 + 200 + 200 + 63 + 63 + 1519 + 1519 + 300,
        ),
        ("etherStatsPkts64Octets", 1),
        ("etherStatsPkts128to255Octets", 2),
        ("etherStatsPkts256to511Octets", 1),
        ("etherStatsCRCAlignErrors", 3),
        ("etherStatsUndersizePkts", 1),
        ("etherStatsFragments", 1),
        ("etherStatsOversizePkts", 1),
        ("etherStatsJabbers", 1),
        ("etherStatsBroadcastPkts", 1),
        ("dot3StatsFCSErrors", 2),
        ("dot3StatsAlignmentErrors", 1),
        ("dot3StatsFrameTooLongs", 2),
        ("ifInErrors", 5),
        ("ifHCInOctets", 200),
        ("eth-mac-FramesReceivedOK", 1),
        ("eth-mac-OctetsReceivedOK", 182),
    ] {
        assert_eq!(named(&card, name), count, "{name}");
    }
}

#[test]
fn frames_to_groups_count_on_the_line_whether_admitted_or_not() {
    let (mut card, mut host) = (jumbo(), Recorder::default());
    let frames = [OWN, OTHER, GROUP, [0xff; 6]].map(|address| datagram(address, 100));
    arrive(&mut card, &mut host, Nanos(1_000_000), &frames);
    for frame in frames {
        host.to_send.push_back((frame, Checksum::Unknown));
    }
    let mut out = Vec::new();
    card.transmit(Nanos(1_000_000), &mut out, &mut host);
    card.pool.give_all(out);
    card.receive(Nanos(2_000_000), &mut Vec::new(), &mut host);
    assert_balanced(&card);
    for (name, count) in [
        ("etherStatsMulticastPkts", 1),
        ("etherStatsBroadcastPkts", 1),
        ("ifHCInUcastPkts", 1),
        ("ifHCInMulticastPkts", 0),
        ("ifHCInBroadcastPkts", 1),
        ("ifHCInOctets", 200),
        ("eth-mac-FramesReceivedOK", 2),
        ("eth-mac-OctetsReceivedOK", 2 * 82),
        ("eth-mac-MulticastFramesReceivedOK", 0),
        ("eth-mac-BroadcastFramesReceivedOK", 1),
        ("ifHCOutUcastPkts", 2),
        ("ifHCOutMulticastPkts", 1),
        ("ifHCOutBroadcastPkts", 1),
        ("eth-mac-FramesTransmittedOK", 4),
        ("eth-mac-OctetsTransmittedOK", 4 * 82),
        ("eth-mac-MulticastFramesXmittedOK", 1),
        ("eth-mac-BroadcastFramesXmittedOK", 1),
    ] {
        assert_eq!(named(&card, name), count, "{name}");
    }
}

#[test]
fn a_wrong_length_is_counted_and_delivered() {
    let (mut card, mut host) = (jumbo(), Recorder::default());
    let lengths: [u16; 3] = [82, 81, 1501];
    let frames = lengths.map(|length| {
        let mut bytes = broadcast(96);
        bytes[12..14].copy_from_slice(&length.to_be_bytes());
        bytes
    });
    arrive(&mut card, &mut host, Nanos(1_000_000), &frames);
    card.receive(Nanos(2_000_000), &mut Vec::new(), &mut host);
    assert_eq!(host.delivered.len(), 3);
    assert_balanced(&card);
    for (name, count) in [
        ("eth-mac-InRangeLengthErrors", 1),
        ("eth-mac-OutOfRangeLengthField", 1),
        ("eth-mac-FramesReceivedOK", 1),
        ("eth-mac-OctetsReceivedOK", 82),
        ("ifHCInBroadcastPkts", 3),
    ] {
        assert_eq!(named(&card, name), count, "{name}");
    }
}

#[test]
fn checksums_are_counted_by_what_they_are_of() {
    let (mut card, mut host) = (jumbo(), Recorder::default());
    let mut frames = Vec::new();
    for address in [OWN, [0xff; 6]] {
        let datagram = datagram(address, 100);
        let mut segment = Vec::new();
        PacketBuilder::ethernet2([2; 6], address)
            .ipv6([1; 16], [2; 16], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut segment, &[0x5a; 40])
            .unwrap();
        for good in [datagram, segment] {
            let mut bad = good.clone();
            *bad.last_mut().unwrap() ^= 1;
            frames.extend([good, bad]);
        }
    }
    let mut unused = datagram(OWN, 100);
    unused[40..42].fill(0);
    frames.extend([unused, broadcast(60)]);
    let taken = arrive(&mut card, &mut host, Nanos(1_000_000), &frames);
    assert_eq!(taken, frames.len());
    let partial = Checksum::Partial {
        start: 34,
        offset: 6,
    };
    let mut burst = Vec::new();
    for checksum in [partial, Checksum::Valid, Checksum::Bad] {
        let mut frame = card.pool.take();
        assert!(frame.fill(&datagram(OWN, 100)));
        frame.checksum = checksum;
        burst.push(frame);
    }
    card.receive(Nanos(2_000_000), &mut burst, &mut host);
    card.receive(Nanos(3_000_000), &mut Vec::new(), &mut host);
    assert_balanced(&card);
    let checksums = card.counters().rx_checksums;
    let of = |transport| (checksums.good_of(transport), checksums.bad_of(transport));
    assert_eq!((of(Transport::Tcp), of(Transport::Udp)), ((2, 2), (3, 3)));
    assert_eq!((checksums.good(), checksums.bad()), (5, 5));
    assert_eq!((checksums.none(), checksums.left()), (2, 1));
}

#[test]
fn wrong_checksums_of_headers_are_counted_beside_those_of_what_is_behind_them() {
    let (mut card, mut host) = (jumbo(), Recorder::default());
    let good = datagram(OWN, 100);
    // The time to live is in no pseudo-header.
    let mut header = good.clone();
    header[22] ^= 1;
    let mut both = header.clone();
    *both.last_mut().unwrap() ^= 1;
    let mut unused = header.clone();
    unused[40..42].fill(0);
    // Of a protocol that has no checksum here, and with options.
    let mut other = good.clone();
    other[23] = 132;
    let mut options = good.clone();
    options.splice(34..34, [1, 1, 1, 0]);
    options[14] = 0x46;
    options[17] += 4;
    let sum = checksum::sum(&options[14..38], 0);
    let mut right = options.clone();
    let field = u16::from_be_bytes([right[24], right[25]]);
    let mended = checksum::sum(&(!sum).to_be_bytes(), field.into());
    right[24..26].copy_from_slice(&mended.to_be_bytes());
    let mut group = header.clone();
    group[..6].fill(0xff);
    let mut tagged = header.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    // Of a packet that is longer then than its frame, or shorter than its header.
    let [mut longer, mut shorter] = [good.clone(), good.clone()];
    longer[16] ^= 0x80;
    shorter[17] = 19;
    // What is no header has no checksum: another version, a length that is none, or that is beyond the frame.
    let [mut five, mut short, mut cut] = [good.clone(), good.clone(), good.clone()];
    (five[14], short[14], cut[14]) = (0x55, 0x44, 0x4f);
    cut.truncate(60);
    // Version 6 has none.
    let mut six = Vec::new();
    PacketBuilder::ethernet2([2; 6], OWN)
        .ipv6([1; 16], [2; 16], 64)
        .udp(1, 2)
        .write(&mut six, &[0x5a; 40])
        .unwrap();
    let bad = [header.clone(), both, unused, other, options, group, tagged];
    let bad = bad.into_iter().chain([longer, shorter]);
    let frames: Vec<_> = bad.chain([good, right, six, five, short, cut]).collect();
    assert_eq!(
        arrive(&mut card, &mut host, Nanos(1_000_000), &frames),
        frames.len(),
        "none of it is a drop"
    );
    // Whoever has verified it is believed.
    let mut verified = card.pool.take();
    assert!(verified.fill(&header));
    verified.checksum = Checksum::Valid;
    card.receive(Nanos(2_000_000), &mut vec![verified], &mut host);
    card.receive(Nanos(3_000_000), &mut Vec::new(), &mut host);
    assert_balanced(&card);
    let checksums = card.counters().rx_checksums;
    assert_eq!(checksums.bad_header(), 9);
    // What is behind a header counts as ever.
    assert_eq!(
        (checksums.good(), checksums.bad(), checksums.none()),
        (8, 1, 7)
    );
    assert_eq!(named(&card, "rx_ip_hdr_chksum_err"), 9);
    assert_eq!(named(&card, "rx_tcp_udp_chksum_err"), 1);
}

#[test]
fn every_control_frame_has_its_counters() {
    let mut card = card(|c| {
        c.autoneg = true;
        c.fifo = 64 * 1024;
    });
    let mut now = Nanos::ZERO;
    while !card.phy.link() {
        now = card.phy.next_deadline().expect("it negotiates");
        card.change_phy(|phy| phy.advance(now));
    }
    let mut host = Recorder {
        buffers: Some(0),
        ..Recorder::default()
    };
    // One to the group, one to the station itself, and one that says something else.
    let mut control = Vec::new();
    for change in 0..3 {
        let mut frame = card.pool.take();
        pause::write(&mut frame, MacAddress(OTHER), 0);
        let mut bytes = frame.bytes().to_vec();
        card.pool.give(frame);
        match change {
            1 => bytes[..6].copy_from_slice(&card.filter.address().0),
            2 => bytes[15] = 7,
            _ => {}
        }
        control.push(bytes);
    }
    assert_eq!(arrive(&mut card, &mut host, now, &control), 3);
    let mut out = Vec::new();
    while card.counters().tx_xoff == 0 {
        now += Duration::from_millis(1);
        arrive(&mut card, &mut host, now, &vec![broadcast(1000); BURST]);
        card.transmit(now, &mut out, &mut host);
        assert_balanced_but(&card, out.len());
    }
    host.buffers = None;
    now += Duration::from_millis(1);
    card.receive(now, &mut Vec::new(), &mut host);
    card.transmit(now, &mut out, &mut host);
    card.pool.give_all(out);
    assert_balanced(&card);
    let counters = card.counters();
    assert_eq!((counters.tx_xoff, counters.tx_xon), (1, 1));
    assert_eq!((counters.rx_pause, counters.rx_control_unknown), (2, 1));
    for (name, count) in [
        ("eth-ctrl-MACControlFramesTransmitted", 2),
        ("eth-ctrl-MACControlFramesReceived", 3),
        ("eth-ctrl-UnsupportedOpcodesReceived", 1),
        ("tx_pause_frames", 2),
        ("rx_pause_frames", 2),
        ("dot3InPauseFrames", 2),
        ("dot3OutPauseFrames", 2),
        ("dot3ControlInUnknownOpcodes", 1),
        ("etherStatsMulticastPkts", 2),
        ("eth-mac-MulticastFramesReceivedOK", 2),
        ("tx-rmon-etherStatsPkts64to64Octets", 2),
        ("ifHCInMulticastPkts", 0),
    ] {
        assert_eq!(named(&card, name), count, "{name}");
    }
}

/// As [`assert_balanced`], while `out` sent frames have yet to be given back.
fn assert_balanced_but(card: &Card, out: usize) {
    let (counters, waiting) = (card.counters(), card.queues.frames());
    assert_eq!(counters.receive_balance(waiting), 0, "{counters:?}");
    assert!(counters.statistics_agree(), "{counters:?}");
    assert_eq!(card.pool.lent(), waiting + out);
}
