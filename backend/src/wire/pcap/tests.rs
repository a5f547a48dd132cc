use std::collections::HashMap;

use nic_model::counters::Drop as Reason;
use nic_model::frame::{FCS, Fcs};
use nic_model::mac::{self, Mac};
use tempfile::TempDir;

use super::*;
use crate::wire::testing::{frame, pool};

const SECOND: u64 = 1_000_000_000;
/// The link type with the flag that frames end with a check sequence of two 16-bit units.
const ETHERNET_FCS: u32 = 0x2400_0001;

/// Writes numbers in one of both byte orders.
#[derive(Clone, Copy, Debug)]
struct Order {
    big: bool,
}

impl Order {
    fn u32(self, n: u32) -> [u8; 4] {
        match self.big {
            true => n.to_be_bytes(),
            false => n.to_le_bytes(),
        }
    }

    fn u16(self, n: u16) -> [u8; 2] {
        match self.big {
            true => n.to_be_bytes(),
            false => n.to_le_bytes(),
        }
    }
}

/// A record: seconds, fraction, octets, and how many the frame had.
type Record<'a> = (u32, u32, &'a [u8], usize);

fn classic(order: Order, magic: u32, link: u32, records: &[Record<'_>]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(order.u32(magic));
    file.extend(order.u16(2));
    file.extend(order.u16(4));
    for word in [0, 0, 65_535, link] {
        file.extend(order.u32(word));
    }
    for &(seconds, fraction, bytes, original) in records {
        for word in [seconds, fraction, bytes.len() as u32, original as u32] {
            file.extend(order.u32(word));
        }
        file.extend(bytes);
    }
    file
}

const MICROS: u32 = 0xa1b2_c3d4;
const NANOS: u32 = 0xa1b2_3c4d;
const LITTLE: Order = Order { big: false };
const BIG: Order = Order { big: true };

fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    let len = order.u32(body.len() as u32 + 12);
    [&order.u32(kind)[..], &len, &body, &len].concat()
}

fn section(order: Order) -> Vec<u8> {
    let body = [
        &order.u32(0x1a2b_3c4d)[..],
        &order.u16(1),
        &order.u16(0),
        &[0xff; 8],
    ];
    block(order, 0x0a0d_0d0a, &body.concat())
}

/// An interface with options of one octet each, and its snap length.
fn interface(order: Order, link: u16, snaplen: u32, options: &[(u16, u8)]) -> Vec<u8> {
    let mut body = [&order.u16(link)[..], &[0; 2], &order.u32(snaplen)].concat();
    for &(code, value) in options {
        body.extend([order.u16(code), order.u16(1)].concat());
        body.extend([value, 0, 0, 0]);
    }
    if !options.is_empty() {
        body.extend([0; 4]);
    }
    block(order, 1, &body)
}

fn enhanced(order: Order, interface: u32, stamp: u64, bytes: &[u8], original: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for word in [
        interface,
        (stamp >> 32) as u32,
        stamp as u32,
        bytes.len() as u32,
        original as u32,
    ] {
        body.extend(order.u32(word));
    }
    body.extend(bytes);
    block(order, 6, &body)
}

struct Bench {
    directory: TempDir,
    pool: Pool,
}

impl Bench {
    fn new() -> Self {
        Bench {
            directory: TempDir::new().unwrap(),
            pool: pool(1500),
        }
    }

    fn file(&self, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join("in.pcap");
        fs::write(&path, content).unwrap();
        path
    }

    fn open(&self, content: &[u8], pps: u64) -> Replay {
        Replay::open(&self.file(content), None, NonZeroU64::new(pps)).unwrap()
    }

    /// All frames of `content`, with the link up from instant 1000 on: arrival and octets.
    fn replay(&mut self, content: &[u8], pps: u64) -> Vec<(u64, Vec<u8>)> {
        let mut wire = self.open(content, pps);
        wire.link_changed(Nanos(1000), true);
        let mut frames = Vec::new();
        let mut now = Nanos(1000);
        while let Some(due) = wire.next_deadline() {
            now = now.max(due);
            wire.receive(now, 1, &mut self.pool, &mut frames);
        }
        let seen = frames
            .iter()
            .map(|f| (f.arrival.0, f.bytes().to_vec()))
            .collect();
        self.pool.give_all(frames);
        assert_eq!(self.pool.lent(), 0);
        seen
    }

    fn refused(&self, content: &[u8]) -> String {
        let path = self.file(content);
        let error = Replay::open(&path, None, None).err().expect("an error");
        let error = error.to_string();
        assert!(error.contains("in.pcap"), "{error}");
        error
    }
}

fn counters(wire: &Replay) -> HashMap<&'static str, u64> {
    wire.counters().into_iter().collect()
}

#[test]
fn both_byte_orders_and_resolutions_keep_their_spacing() {
    let (a, b, c) = ([1u8; 60], [2u8; 64], [3u8; 1514]);
    for order in [LITTLE, BIG] {
        for (magic, unit) in [(MICROS, 1000), (NANOS, 1)] {
            let records: [Record<'_>; 3] = [
                (1_700_000_000, 999_999, &a, 60),
                (1_700_000_001, 1, &b, 64),
                (1_700_000_001, 2, &c, 1514),
            ];
            let seen = Bench::new().replay(&classic(order, magic, 1, &records), 0);
            let gap = SECOND + unit - 999_999 * unit;
            let expected = [
                (1000, a.to_vec()),
                (1000 + gap, b.to_vec()),
                (1000 + gap + unit, c.to_vec()),
            ];
            assert_eq!(seen, expected, "{order:?} {magic:x}");
        }
    }
}

#[test]
fn a_rate_replaces_the_spacing() {
    let records: Vec<Record<'_>> = (0..4).map(|i| (i * 100, 0, &[7u8; 60][..], 60)).collect();
    let seen = Bench::new().replay(&classic(LITTLE, MICROS, 1, &records), 3);
    let arrivals: Vec<u64> = seen.iter().map(|(at, _)| *at).collect();
    assert_eq!(arrivals, [1000, 333_334_333, 666_667_666, 1_000_001_000]);
}

#[test]
fn timestamps_that_go_backwards_do_not() {
    let records: [Record<'_>; 4] = [
        (10, 0, &[0; 60], 60),
        (12, 0, &[1; 60], 60),
        (9, 0, &[2; 60], 60),
        (13, 0, &[3; 60], 60),
    ];
    let seen = Bench::new().replay(&classic(LITTLE, NANOS, 1, &records), 0);
    let arrivals: Vec<u64> = seen.iter().map(|(at, _)| (at - 1000) / SECOND).collect();
    assert_eq!(arrivals, [0, 2, 2, 3]);
}

#[test]
fn frames_come_when_they_are_due_and_there_is_room() {
    let mut bench = Bench::new();
    let records: Vec<Record<'_>> = (0..5).map(|i| (0, i * 100, &[7u8; 60][..], 60)).collect();
    let mut wire = bench.open(&classic(LITTLE, NANOS, 1, &records), 0);
    let mut frames = Vec::new();
    wire.receive(Nanos(5_000), 64, &mut bench.pool, &mut frames);
    assert_eq!((frames.len(), wire.next_deadline()), (0, None), "no link");
    wire.link_changed(Nanos(10_000), true);
    assert_eq!(wire.next_deadline(), Some(Nanos(10_000)));
    wire.receive(Nanos(10_250), 2, &mut bench.pool, &mut frames);
    assert_eq!(frames.len(), 2);
    assert_eq!(wire.next_deadline(), Some(Nanos(10_200)));
    wire.receive(Nanos(10_250), 2, &mut bench.pool, &mut frames);
    assert_eq!(frames.len(), 3);
    assert_eq!(wire.next_deadline(), Some(Nanos(10_300)));

    // The link goes and comes: from the first frame again.
    wire.link_changed(Nanos(10_260), false);
    assert_eq!(wire.next_deadline(), None);
    wire.link_changed(Nanos(20_000), true);
    wire.receive(Nanos(30_000), 64, &mut bench.pool, &mut frames);
    let arrivals: Vec<u64> = frames.iter().map(|f| f.arrival.0).collect();
    let expected = [
        10_000, 10_100, 10_200, 20_000, 20_100, 20_200, 20_300, 20_400,
    ];
    assert_eq!(arrivals, expected);
    assert_eq!(wire.next_deadline(), None);
    assert_eq!(bench.pool.lent(), frames.len());
    assert_eq!(counters(&wire)["pcap_replays"], 2);
    assert_eq!(counters(&wire)["pcap_frames"], 8);
}

#[test]
fn truncated_records_are_skipped_and_counted() {
    let mut bench = Bench::new();
    let records: [Record<'_>; 3] = [
        (0, 5, &[0; 60], 1514),
        (0, 7, &[1; 60], 60),
        (0, 9, &[2; 40], 60),
    ];
    let content = classic(LITTLE, NANOS, 1, &records);
    // The first record gives the time, whether it can be replayed or not.
    assert_eq!(bench.replay(&content, 0), [(1002, vec![1; 60])]);
    let mut wire = bench.open(&content, 0);
    wire.link_changed(Nanos(0), true);
    wire.receive(Nanos(100), 64, &mut bench.pool, &mut Vec::new());
    assert_eq!(counters(&wire)["pcap_truncated"], 2);
}

/// What the MAC says of the frames of a capture with check sequences.
fn verdicts(content: &[u8]) -> Vec<Result<(), Reason>> {
    let mut bench = Bench::new();
    let mut wire = bench.open(content, 0);
    wire.link_changed(Nanos(0), true);
    let mut frames = Vec::new();
    wire.receive(Nanos(SECOND), 64, &mut bench.pool, &mut frames);
    assert!(frames.iter().all(|f| f.fcs == Fcs::Present));
    let mac = Mac::new(1500);
    frames.iter_mut().map(|f| mac.accept(f)).collect()
}

#[test]
fn check_sequences_are_handed_on_whatever_the_length() {
    let mut packets = Vec::new();
    for len in [60, 64, 1518, 1519, 1600, 9000, 40_000] {
        for damage in [0, 1] {
            let mut bytes: Vec<u8> = (0..len - FCS).map(|i| i as u8).collect();
            bytes.extend(mac::fcs(&bytes));
            bytes[20] ^= damage;
            packets.push(bytes);
        }
    }
    let expected = [
        Err(Reason::RxUndersize),
        Err(Reason::RxFragment),
        Ok(()),
        Err(Reason::RxFcs),
        Ok(()),
        Err(Reason::RxFcs),
    ];
    let oversize = [Err(Reason::RxOversize), Err(Reason::RxJabber)];
    let expected: Vec<_> = expected
        .into_iter()
        .chain(oversize.into_iter().cycle().take(8))
        .collect();
    let records: Vec<Record<'_>> = packets.iter().map(|p| (0, 0, &p[..], p.len())).collect();
    assert_eq!(
        verdicts(&classic(BIG, NANOS, ETHERNET_FCS, &records)),
        expected
    );

    for bits in [4, 32] {
        let mut content = section(LITTLE);
        content.extend(interface(LITTLE, 1, 0, &[(13, bits)]));
        for packet in &packets {
            content.extend(enhanced(LITTLE, 0, 0, packet, packet.len()));
        }
        assert_eq!(verdicts(&content), expected);
    }
}

#[test]
fn a_packet_may_have_a_check_sequence_of_its_own() {
    let mut bytes = vec![3; 60];
    bytes.extend(mac::fcs(&bytes));
    let mut content = section(LITTLE);
    content.extend(interface(LITTLE, 1, 0, &[]));
    let mut body = Vec::new();
    for word in [0, 0, 0, 64, 64] {
        body.extend(LITTLE.u32(word));
    }
    body.extend(&bytes);
    // epb_flags: the check sequence's length in octets from bit 5 on.
    body.extend([LITTLE.u16(2), LITTLE.u16(4)].concat());
    body.extend(LITTLE.u32(4 << 5));
    body.extend([0; 4]);
    content.extend(block(LITTLE, 6, &body));
    assert_eq!(verdicts(&content), [Ok(())]);
}

#[test]
fn frames_longer_than_a_buffer_are_oversize() {
    let mut bench = Bench::new();
    let bytes = vec![1; 5000];
    let seen = bench.replay(&classic(LITTLE, NANOS, 1, &[(0, 0, &bytes, 5000)]), 0);
    assert_eq!(seen[0].1.len(), bench.pool.buffer_size());
    let mut long = frame(&mut bench.pool, 0, &seen[0].1);
    assert_eq!(Mac::new(1500).accept(&mut long), Err(Reason::RxOversize));
}

#[test]
fn pcapng_has_several_interfaces_with_their_own_clocks() {
    let (a, b, c, d) = ([1; 60], [2; 61], [3; 62], [4; 63]);
    for order in [LITTLE, BIG] {
        let mut content = section(order);
        content.extend(interface(order, 1, 0, &[]));
        content.extend(interface(order, 1, 0, &[(9, 9)]));
        content.extend(interface(order, 1, 0, &[(9, 0x80 | 10)]));
        content.extend(enhanced(order, 0, 2_000_000, &a, 60));
        content.extend(enhanced(order, 1, 2_000_000_007, &b, 61));
        content.extend(enhanced(order, 2, 3 * 1024 + 512, &c, 62));
        content.extend(enhanced(order, 1, 4 * SECOND, &d[..20], 63));
        // Blocks that are no packets are passed over.
        content.extend(block(order, 0x0bad, &[0; 16]));
        // The obsolete packet block: interface and drops in one word, then as above.
        let mut body = [order.u16(1), order.u16(0)].concat();
        let stamp = 5 * SECOND;
        for word in [(stamp >> 32) as u32, stamp as u32, 63, 63] {
            body.extend(order.u32(word));
        }
        body.extend(d);
        content.extend(block(order, 2, &body));
        let seen = Bench::new().replay(&content, 0);
        let expected = [
            (1000, a.to_vec()),
            (1007, b.to_vec()),
            (1000 + SECOND * 3 / 2, c.to_vec()),
            (1000 + SECOND * 3, d.to_vec()),
        ];
        assert_eq!(seen, expected);
    }
}

#[test]
fn simple_packets_and_further_sections_are_read() {
    let mut content = section(LITTLE);
    content.extend(interface(LITTLE, 1, 62, &[]));
    content.extend(enhanced(LITTLE, 0, 7, &[1; 60], 60));
    let simple = |original: u32, bytes: &[u8]| {
        block(LITTLE, 3, &[&LITTLE.u32(original)[..], bytes].concat())
    };
    content.extend(simple(61, &[2; 61]));
    content.extend(simple(100, &[3; 62]));
    content.extend(section(BIG));
    content.extend(interface(BIG, 1, 0, &[(9, 9)]));
    content.extend(enhanced(BIG, 0, 8_000, &[4; 60], 60));
    let seen = Bench::new().replay(&content, 0);
    let expected = [
        (1000, vec![1; 60]),
        (1000, vec![2; 61]),
        (2000, vec![4; 60]),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn what_cannot_be_replayed_is_refused_with_a_reason() {
    let bench = Bench::new();
    let packet: [Record<'_>; 1] = [(0, 0, &[0; 60], 60)];
    let cut = &classic(LITTLE, NANOS, 1, &packet)[..50];
    let mut odd = section(LITTLE);
    odd.extend(interface(LITTLE, 1, 0, &[(13, 16)]));
    odd.extend(enhanced(LITTLE, 0, 0, &[0; 60], 60));
    let mut raw = section(LITTLE);
    raw.extend(interface(LITTLE, 101, 0, &[]));
    raw.extend(enhanced(LITTLE, 0, 0, &[0; 60], 60));
    let mut unknown = section(LITTLE);
    unknown.extend(enhanced(LITTLE, 3, 0, &[0; 60], 60));
    for (content, reason) in [
        (&b""[..], "neither pcap nor pcapng"),
        (
            b"hello, world: this is not a capture",
            "neither pcap nor pcapng",
        ),
        (
            &classic(LITTLE, NANOS, 113, &packet),
            "link type is 113, which is not Ethernet",
        ),
        (
            &classic(LITTLE, NANOS, 0x4400_0001, &packet),
            "check sequence of 64 bits",
        ),
        (cut, "ends in the middle of a record"),
        (&odd, "check sequence of 16 bits"),
        (&raw, "link type is 101"),
        (&unknown, "a packet is of interface 3"),
    ] {
        let error = bench.refused(content);
        assert!(error.contains(reason), "{error}");
    }
    let missing = bench.directory.path().join("in.pcap.missing");
    let error = Replay::open(&missing, None, None)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("No such file") && error.contains("check its name"),
        "{error}"
    );
    // Opening a pipe that nobody writes to would never return.
    let pipe = bench.directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [bench.directory.path(), &pipe] {
        let error = Replay::open(path, None, None).err().unwrap();
        assert!(error.to_string().contains("no regular file"), "{error}");
    }
}

#[test]
fn damage_in_the_middle_ends_the_replay_there() {
    let mut bench = Bench::new();
    let records: [Record<'_>; 2] = [(0, 0, &[1; 60], 60), (0, 1, &[2; 60], 60)];
    let content = classic(LITTLE, NANOS, 1, &records);
    let mut wire = bench.open(&content[..content.len() - 1], 0);
    wire.link_changed(Nanos(0), true);
    let mut frames = Vec::new();
    wire.receive(Nanos(10), 64, &mut bench.pool, &mut frames);
    wire.receive(Nanos(20), 64, &mut bench.pool, &mut frames);
    assert_eq!((frames.len(), wire.next_deadline()), (1, None));
    assert_eq!(counters(&wire)["pcap_errors"], 1);
    // A file that is gone by the next link-up is no reason to end the process.
    fs::remove_file(bench.directory.path().join("in.pcap")).unwrap();
    wire.link_changed(Nanos(30), false);
    wire.link_changed(Nanos(40), true);
    wire.receive(Nanos(50), 64, &mut bench.pool, &mut frames);
    assert_eq!((frames.len(), counters(&wire)["pcap_errors"]), (1, 2));
    assert_eq!(bench.pool.lent(), 1);
}

#[test]
fn no_damage_of_one_octet_brings_the_replay_down() {
    let mut bench = Bench::new();
    let records: [Record<'_>; 2] = [(0, 0, &[1; 20], 20), (0, 1, &[2; 20], 20)];
    let mut ng = section(LITTLE);
    ng.extend(interface(LITTLE, 1, 0, &[(9, 9), (13, 32)]));
    ng.extend(enhanced(LITTLE, 0, 5, &[1; 20], 20));
    ng.extend(block(LITTLE, 3, &[&LITTLE.u32(20)[..], &[2; 20]].concat()));
    for content in [classic(BIG, NANOS, ETHERNET_FCS, &records), ng] {
        for at in 0..content.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut content = content.clone();
                content[at] = value;
                let path = bench.file(&content);
                let Ok(mut wire) = Replay::open(&path, None, NonZeroU64::new(1000)) else {
                    continue;
                };
                wire.link_changed(Nanos(0), true);
                let mut frames = Vec::new();
                wire.receive(Nanos(SECOND), 64, &mut bench.pool, &mut frames);
                assert!(frames.len() <= 2);
                bench.pool.give_all(frames);
            }
        }
    }
}

#[test]
fn what_the_card_sends_is_written_and_can_be_replayed() {
    let mut bench = Bench::new();
    let records: [Record<'_>; 1] = [(0, 0, &[1; 60], 60)];
    let input = bench.file(&classic(LITTLE, NANOS, 1, &records));
    let output = bench.directory.path().join("out.pcap");
    let mut wire = Replay::open(&input, Some(&output), None).unwrap();
    wire.link_changed(Nanos(0), true);
    let mut frames = vec![
        frame(&mut bench.pool, 1_000_000_123, &[5; 60]),
        frame(&mut bench.pool, 1_000_000_456, &[6; 1514]),
    ];
    wire.transmit(Nanos(SECOND), &mut bench.pool, &mut frames);
    assert!(frames.is_empty());
    assert_eq!(
        fs::metadata(&output).unwrap().len(),
        24 + 2 * 16 + 1574,
        "flushed"
    );
    frames.push(frame(&mut bench.pool, 2_000_000_000, &[7; 60]));
    wire.transmit(Nanos(SECOND + 1), &mut bench.pool, &mut frames);
    // Not yet in the file, but it will be though nothing more is sent.
    assert_eq!(fs::metadata(&output).unwrap().len(), 24 + 2 * 16 + 1574);
    wire.receive(Nanos(SECOND + 2), 64, &mut bench.pool, &mut frames);
    bench.pool.give_all(frames.drain(..));
    assert_eq!(wire.next_deadline(), Some(Nanos(SECOND + 100_000_000)));
    wire.receive(
        Nanos(SECOND + 100_000_000),
        64,
        &mut bench.pool,
        &mut frames,
    );
    assert_eq!(wire.next_deadline(), None);
    assert_eq!(counters(&wire)["pcap_written"], 3);
    let content = fs::read(&output).unwrap();
    assert_eq!(content.len(), 24 + 3 * 16 + 1634);
    let seen = bench.replay(&content, 0);
    let expected = [
        (1000, vec![5; 60]),
        (1333, vec![6; 1514]),
        (1000 + SECOND - 123, vec![7; 60]),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn the_capture_that_is_replayed_is_not_overwritten() {
    let bench = Bench::new();
    let records: [Record<'_>; 1] = [(0, 0, &[1; 60], 60)];
    let content = classic(LITTLE, NANOS, 1, &records);
    let input = bench.file(&content);
    let same = bench.directory.path().join(".").join("in.pcap");
    let error = Replay::open(&input, Some(&same), None).err().unwrap();
    assert!(error.to_string().contains("name another file"), "{error}");
    assert_eq!(fs::read(&input).unwrap(), content);
    let error = Replay::open(&input, Some(Path::new("/nowhere/out")), None);
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("cannot write /nowhere/out")
    );
}

#[test]
fn a_writer_with_a_fixed_epoch_writes_the_same_file_every_time() {
    let mut bench = Bench::new();
    let path = bench.directory.path().join("out.pcap");
    let epoch = Duration::from_secs(1_000);
    let mut writer = CaptureWriter::with_epoch(&path, epoch).unwrap();
    let mut with_fcs = frame(&mut bench.pool, 9, &[1; 64]);
    with_fcs.fcs = Fcs::Present;
    writer.write(&with_fcs);
    drop(writer);
    let expected = classic(LITTLE, NANOS, 1, &[(1_000, 9, &[1; 60], 60)]);
    let mut written = fs::read(&path).unwrap();
    written[16..20].copy_from_slice(&LITTLE.u32(65_535)); // its snap length is larger
    assert_eq!(written, expected);
}
