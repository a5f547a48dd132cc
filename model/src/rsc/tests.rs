use super::*;
use crate::counters::PortCounters;
use crate::parse::summarise;
use crate::port::{Port, PortConfig};
use crate::segment::Cut;
use crate::time::Nanos;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep, TcpHeader,
    VlanId,
};
use proptest::prelude::*;

const ALL: Takes = Takes {
    ipv4: true,
    ipv6: true,
    ecn: true,
};

fn port(lro: bool) -> Port {
    let mut port = Port::new(&PortConfig {
        lro,
        fifo: 1 << 20,
        ..PortConfig::default()
    });
    port.rsc.accept(ALL);
    port
}

/// One end of a connection, as far as it sends.
#[derive(Clone, Debug)]
struct Sender {
    number: u16,
    ipv6: bool,
    vlan: Option<u16>,
    sequence: u32,
    identification: u16,
    window: u16,
    acknowledged: u32,
    clock: u8,
    ttl: u8,
    /// What it sent last.
    last: Vec<u8>,
}

/// What is unusual about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oddity {
    None,
    Psh,
    Fin,
    Cwr,
    Ece,
    Syn,
    Rst,
    Urg,
    NoAck,
    Window,
    Acknowledgement,
    Clock,
    NoOptions,
    Ttl,
    DontFragment,
    Tos,
    FixedIdentification,
    Lost,
    Again,
    WrongChecksum,
    WrongHeaderChecksum,
    Padded,
    Station,
}

use Oddity as O;

const ODDITIES: [Oddity; 23] = [
    O::None,
    O::Psh,
    O::Fin,
    O::Cwr,
    O::Ece,
    O::Syn,
    O::Rst,
    O::Urg,
    O::NoAck,
    O::Window,
    O::Acknowledgement,
    O::Clock,
    O::NoOptions,
    O::Ttl,
    O::DontFragment,
    O::Tos,
    O::FixedIdentification,
    O::Lost,
    O::Again,
    O::WrongChecksum,
    O::WrongHeaderChecksum,
    O::Padded,
    O::Station,
];

impl Sender {
    fn new(number: u16, ipv6: bool) -> Self {
        Sender {
            number,
            ipv6,
            vlan: None,
            sequence: u32::MAX - 3000,
            identification: 0xfffe,
            window: 500,
            acknowledged: 7,
            clock: 1,
            ttl: 64,
            last: Vec::new(),
        }
    }

    /// Sends `payload` octets.
    fn send(&mut self, payload: usize, oddity: Oddity) -> Vec<u8> {
        match oddity {
            O::Again if !self.last.is_empty() => return self.last.clone(),
            O::Window => self.window += 1,
            O::Acknowledgement => self.acknowledged += 1,
            O::Clock => self.clock += 1,
            O::Ttl => self.ttl -= 1,
            O::Lost => self.sequence = self.sequence.wrapping_add(100),
            _ => {}
        }
        let mut tcp = TcpHeader::new(self.number, 80, self.sequence, self.window);
        tcp.acknowledgment_number = self.acknowledged;
        tcp.ack = oddity != O::NoAck;
        tcp.psh = oddity == O::Psh;
        tcp.fin = oddity == O::Fin;
        tcp.cwr = oddity == O::Cwr;
        tcp.ece = oddity == O::Ece;
        tcp.syn = oddity == O::Syn;
        tcp.rst = oddity == O::Rst;
        tcp.urg = oddity == O::Urg;
        if oddity != O::NoOptions {
            let timestamps = [1, 1, 8, 10, 0, 0, 0, self.clock, 0, 0, 0, 9];
            tcp.set_options_raw(&timestamps).expect("few enough");
        }
        let ip = if self.ipv6 {
            let header = Ipv6Header {
                traffic_class: if oddity == O::Tos { 4 } else { 0 },
                flow_label: 77.try_into().expect("20 bits"),
                source: [7; 16],
                destination: [9; 16],
                hop_limit: self.ttl,
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        } else {
            let (from, to) = ([10, 0, 0, 1], [10, 0, 0, 2]);
            let mut header = Ipv4Header::new(0, self.ttl, IpNumber::TCP, from, to).expect("short");
            header.identification = self.identification;
            header.dont_fragment = oddity == O::DontFragment;
            if oddity == O::Tos {
                header.dscp = 1.try_into().expect("6 bits");
            }
            IpHeaders::Ipv4(header, Default::default())
        };
        let source = [2, 0, 0, 0, 0, u8::from(oddity == O::Station)];
        let ether = PacketBuilder::ethernet2(source, PortConfig::default().mac.0);
        let step: PacketBuilderStep<IpHeaders> = match self.vlan {
            Some(id) => ether
                .single_vlan(VlanId::try_new(id).expect("12 bits"))
                .ip(ip),
            None => ether.ip(ip),
        };
        let octet = |at: usize| (at * 7 + usize::from(self.number)) as u8 ^ self.sequence as u8;
        let payload: Vec<u8> = (0..payload).map(octet).collect();
        let mut bytes = Vec::new();
        step.tcp_header(tcp)
            .write(&mut bytes, &payload)
            .expect("short");
        match oddity {
            O::WrongChecksum => *bytes.last_mut().expect("some") ^= 1,
            O::WrongHeaderChecksum if !self.ipv6 => {
                let at = if self.vlan.is_some() { 28 } else { 24 };
                bytes[at] ^= 1;
            }
            O::Padded => bytes.extend([0; 6]),
            _ => {}
        }
        self.sequence = self.sequence.wrapping_add(payload.len() as u32);
        if oddity != O::FixedIdentification {
            self.identification = self.identification.wrapping_add(1);
        }
        self.last.clone_from(&bytes);
        bytes
    }
}

fn frames(port: &mut Port, burst: &[Vec<u8>]) -> Vec<Frame> {
    let frame = |bytes: &Vec<u8>| {
        let mut frame = port.pool.take();
        assert!(frame.fill(bytes));
        frame
    };
    burst.iter().map(frame).collect()
}

/// Receives `burst`; what comes of it.
fn receive(port: &mut Port, burst: &[Vec<u8>]) -> Vec<Frame> {
    let mut frames = frames(port, burst);
    port.receive(Nanos(1_000), &mut frames);
    frames
}

/// What `frame` stands for.
fn segments(frame: &Frame) -> Vec<Vec<u8>> {
    if !frame.is_super() {
        return vec![frame.bytes().to_vec()];
    }
    let cut = Cut::of(frame).expect("it can be cut");
    let mut out = Pool::new(2048).take();
    (0..cut.segments())
        .map(|index| {
            assert!(cut.write(frame, index, &mut out));
            out.bytes().to_vec()
        })
        .collect()
}

/// Which flow a frame is of: its source port.
fn number(bytes: &[u8]) -> u16 {
    get(bytes, usize::from(summarise(bytes).transport_offset))
}

/// In how many segments each frame is that comes of `burst`.
fn merged(port: &mut Port, burst: &[Vec<u8>]) -> Vec<usize> {
    let mut frames = receive(port, burst);
    let counts = frames.iter().map(|frame| segments(frame).len()).collect();
    assert_eq!(frames.iter().flat_map(segments).collect::<Vec<_>>(), burst);
    release(port, &mut frames);
    counts
}

fn release(port: &mut Port, frames: &mut Vec<Frame>) {
    port.release(QueueIndex(0), frames.drain(..));
    assert_eq!(port.pool.lent(), 0);
}

#[test]
fn a_stream_is_one_super_frame() {
    for ipv6 in [false, true] {
        let (mut on, mut off) = (port(true), port(false));
        let mut sender = Sender::new(1, ipv6);
        let mut burst: Vec<_> = (0..9).map(|_| sender.send(1000, O::None)).collect();
        burst.push(sender.send(500, O::Psh));
        let mut whole = receive(&mut on, &burst);
        let mut each = receive(&mut off, &burst);
        assert_eq!((whole.len(), each.len()), (1, 10));
        let last = &each[9];
        let frame = &whole[0];
        assert_eq!(segments(frame), burst);
        assert_eq!(
            (frame.arrival, frame.hash, frame.queue),
            (last.arrival, last.hash, last.queue)
        );
        assert_eq!(
            frame.octets,
            each.iter().map(|frame| frame.octets).sum::<u32>()
        );
        assert_eq!(frame.octets as usize, crate::phy::octets_on_line(frame));
        assert_eq!((frame.gso.size, segment::frames(frame)), (1000, 10));
        let (counters, others) = (on.counters(&[]), off.counters(&[]));
        assert_eq!((counters.rx_merged, others.rx_merged), (9, 0));
        assert_eq!((counters.rx_coalesced, others.rx_coalesced), (9, 0));
        let same = |counters: PortCounters| PortCounters {
            rx_merged: 0,
            rx_coalesced: 0,
            ..counters
        };
        assert_eq!(same(counters.clone()), same(others));
        assert_eq!(counters.receive_balance(1), 0);
        assert_eq!(on.status(&[]).rx_fifo_frames, 1);
        release(&mut on, &mut whole);
        release(&mut off, &mut each);
    }
}

#[test]
fn only_what_can_be_taken_apart_again_is_merged() {
    for ipv6 in [false, true] {
        for oddity in ODDITIES {
            // The odd one is the third of four.
            let mut sender = Sender::new(1, ipv6);
            let kinds = [O::None, O::None, oddity, O::None];
            let burst = kinds.map(|kind| sender.send(300, kind));
            let expected: &[usize] = match oddity {
                O::None => &[4],
                O::FixedIdentification | O::WrongHeaderChecksum if ipv6 => &[4],
                O::DontFragment if ipv6 => &[4],
                O::Psh | O::Fin => &[3, 1],
                // From then on it stays so, or the fourth follows on it.
                O::Lost
                | O::Again
                | O::Window
                | O::Acknowledgement
                | O::Clock
                | O::Ttl
                | O::Cwr => &[2, 2],
                // The fourth has the number that the third should not have had, too.
                O::FixedIdentification => &[3, 1],
                _ => &[2, 1, 1],
            };
            assert_eq!(
                merged(&mut port(true), &burst),
                expected,
                "{oddity:?}, {ipv6}"
            );
        }
    }
}

#[test]
fn the_last_one_may_be_shorter_and_none_longer() {
    let mut sender = Sender::new(1, false);
    let sizes = [100, 100, 99, 100, 101, 101, 1, 1, 0, 1, 1];
    let burst = sizes.map(|size| sender.send(size, O::None));
    assert_eq!(merged(&mut port(true), &burst), [3, 1, 3, 1, 1, 2]);
}

#[test]
fn no_packet_becomes_longer_than_ip_allows() {
    for ipv6 in [false, true] {
        let mut sender = Sender::new(1, ipv6);
        let burst: Vec<_> = (0..64).map(|_| sender.send(1400, O::None)).collect();
        assert_eq!(merged(&mut port(true), &burst), [46, 18], "{ipv6}");
    }
}

#[test]
fn a_checksum_of_all_ones_is_not_what_is_computed() {
    let mut sender = Sender::new(1, false);
    let mut burst = [(); 2].map(|()| sender.send(100, O::None));
    let (payload, field) = (burst[1].len() - 100, 34 + 16);
    put(&mut burst[1], payload, 0);
    put(&mut burst[1], field, 0);
    let mut frame = Pool::new(2048).take();
    assert!(frame.fill(&burst[1]));
    segment::leave_checksum(&mut frame);
    let computed = !checksum::sum(&frame.bytes()[34..], 0);
    put(&mut burst[1], payload, computed);
    assert_eq!(merged(&mut port(true), &burst), [2], "it is zero");
    put(&mut burst[1], field, 0xffff);
    let mut port = port(true);
    assert_eq!(merged(&mut port, &burst), [1, 1]);
    assert_eq!(
        port.counters(&[]).rx_checksums.good(),
        2,
        "it is right, too"
    );
}

#[test]
fn flows_are_merged_next_to_each_other_as_many_as_there_is_room_for() {
    let mut senders: Vec<_> = (1..=CONTEXTS as u16 + 8)
        .map(|number| Sender::new(number, number % 2 == 0))
        .collect();
    let mut burst = Vec::new();
    for _ in 0..3 {
        burst.extend(senders.iter_mut().map(|sender| sender.send(50, O::None)));
    }
    let mut port = port(true);
    let mut frames = receive(&mut port, &burst);
    assert_eq!(
        frames.iter().filter(|frame| frame.is_super()).count(),
        CONTEXTS
    );
    assert_eq!(frames.len(), CONTEXTS + 3 * 8);
    assert!(frames.is_sorted_by_key(|frame| frame.arrival));
    release(&mut port, &mut frames);
}

#[test]
fn without_buffers_frames_stay_as_they_are() {
    let mut port = port(true);
    let taken: Vec<_> = std::iter::from_fn(|| port.pool.take_big_received()).collect();
    let mut sender = Sender::new(1, false);
    let burst = [(); 3].map(|()| sender.send(100, O::None));
    let mut frames = receive(&mut port, &burst);
    assert_eq!(frames.len(), 3);
    port.pool.give_all(taken);
    release(&mut port, &mut frames);
}

#[test]
fn what_the_host_does_not_take_is_not_merged() {
    for (takes, plain, cwr) in [
        (ALL, 2, 2),
        (Takes { ecn: false, ..ALL }, 2, 4),
        (Takes { ipv4: false, ..ALL }, 3, 3),
        (Takes { ipv6: false, ..ALL }, 3, 3),
        (Takes::default(), 4, 4),
    ] {
        for (oddity, expected) in [(O::None, plain), (O::Cwr, cwr)] {
            let mut port = port(true);
            port.rsc.switch(takes);
            let mut senders = [Sender::new(1, false), Sender::new(2, true)];
            let mut burst = Vec::new();
            for kind in [oddity, O::None] {
                burst.extend(senders.iter_mut().map(|sender| sender.send(100, kind)));
            }
            let mut frames = receive(&mut port, &burst);
            assert_eq!(frames.len(), expected, "{takes:?}, {oddity:?}");
            release(&mut port, &mut frames);
        }
    }
}

#[test]
fn what_was_switched_off_stays_off_until_another_host_comes() {
    let mut rsc = Rsc::new(true);
    assert!(!rsc.is_on());
    rsc.accept(ALL);
    assert!(rsc.is_on());
    rsc.switch(Takes::default());
    rsc.accept(ALL);
    assert!(!rsc.is_on(), "the same features again");
    rsc.restore();
    assert!(rsc.is_on());
    rsc.accept(Takes { ipv4: false, ..ALL });
    rsc.switch(Takes::default());
    rsc.accept(ALL);
    assert!(rsc.is_on());
    let mut never = Rsc::new(false);
    never.accept(ALL);
    never.restore();
    assert!(!never.is_on());
}

fn steps() -> impl Strategy<Value = Vec<(usize, usize, Oddity)>> {
    let size = prop_oneof![6 => Just(700usize), 1 => 0..1400usize];
    let oddity = prop_oneof![
        12 => Just(O::None),
        1 => proptest::sample::select(&ODDITIES[..]),
    ];
    proptest::collection::vec((0..4usize, size, oddity), 1..200)
}

proptest! {
    #[test]
    fn taken_apart_again_it_is_what_came(
        steps in steps(), kinds in proptest::collection::vec(any::<(bool, bool)>(), 4), burst in 1..=64usize,
        swaps in proptest::collection::vec(any::<prop::sample::Index>(), 0..4), ecn in any::<bool>(),
    ) {
        let mut senders: Vec<_> = kinds
            .iter()
            .zip(1..)
            .map(|(&(ipv6, tagged), number)| Sender { vlan: tagged.then_some(5), ..Sender::new(number, ipv6) })
            .collect();
        let mut input: Vec<_> = steps
            .iter()
            .map(|&(flow, payload, oddity)| senders[flow].send(payload, oddity))
            .collect();
        // Some overtake others.
        for swap in swaps {
            let at = swap.index(input.len());
            if at > 0 {
                input.swap(at - 1, at);
            }
        }
        let mut port = port(true);
        port.rsc.switch(Takes { ecn, ..ALL });
        let mut output = Vec::new();
        for burst in input.chunks(burst) {
            let mut frames = receive(&mut port, burst);
            prop_assert!(frames.is_sorted_by_key(|frame| frame.arrival));
            let counters = port.counters(&[]);
            prop_assert_eq!(counters.rx_frames - counters.rx_merged, port.status(&[]).rx_fifo_frames as u64);
            output.extend(frames.iter().flat_map(segments));
            release(&mut port, &mut frames);
        }
        for number in 1..=4 {
            let of_flow = |all: &[Vec<u8>]| all.iter().filter(|bytes| self::number(bytes) == number).cloned().collect::<Vec<_>>();
            prop_assert_eq!(of_flow(&output), of_flow(&input));
        }
        prop_assert_eq!(output.len(), input.len());
    }
}
