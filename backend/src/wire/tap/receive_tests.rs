//! What the card finds in received packets, and what it makes of them, against a real kernel.
//!
//! Segments that it has merged go with the header that the driver would have into a TAP device; the kernel cuts them again for a second one, which
//! takes none that are merged: what comes out is what came in, octet for octet. And packets good and bad go to a kernel that has to verify
//! checksums itself: what it drops is what the card finds wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader, VlanId};
use nic_device::features::Features;
use nic_device::header::{LEGACY_HEADER, NetHeader};
use nic_model::chance;
use nic_model::checksum;
use nic_model::frame::Frame;
use nic_model::host::Recorder;
use nic_model::port::{Port, PortConfig};
use nic_model::queues::Queues;
use nic_model::rsc::Takes;
use zerocopy::IntoBytes;

use super::super_frame_tests::bridge;
use super::tests::{in_namespace, open, shell};
use super::*;

/// In `scripts/test long` as many as one would believe.
fn packets() -> usize {
    match std::env::var_os("LONG") {
        Some(_) => 100_000,
        None => 4_000,
    }
}

/// Chance, in numbers as they are used here.
struct Random(chance::Random);

impl Random {
    fn new(seed: u64) -> Self {
        Random(chance::Random::new(seed, 0))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    /// In `percent` of a hundred cases.
    fn in_some(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a driver would be given of a frame: the header that tells of merged segments, the one that tells where checksums are, octets.
type Given = (NetHeader, NetHeader, Vec<u8>);

fn given(frame: &Frame) -> Given {
    let header = |features| NetHeader::received(frame, 1, features);
    let plain = Features::all() - Features::RSC_EXT;
    let (told, plain) = (header(Features::all()), header(plain));
    (told, plain, frame.bytes().to_vec())
}

/// A card without rings.
struct Bare {
    port: Port,
    queues: Queues,
    driver: Recorder<Given>,
    now: Nanos,
}

impl Bare {
    fn new() -> Self {
        let config = PortConfig {
            lro: true,
            fifo: 1 << 20,
            ..PortConfig::default()
        };
        let mut port = Port::new(&config);
        port.rsc.accept(Takes {
            ipv4: true,
            ipv6: true,
            ecn: true,
        });
        Bare {
            port,
            queues: Queues::new(&config),
            driver: Recorder::keeping(given),
            now: Nanos(0),
        }
    }

    /// What becomes of a burst.
    fn receive(&mut self, burst: &[Vec<u8>]) -> Vec<Given> {
        let mut frames = Vec::new();
        for bytes in burst {
            let mut frame = self.port.pool.take();
            assert!(frame.fill(bytes));
            frame.arrival = self.now;
            frames.push(frame);
        }
        // Then all of it has arrived.
        for _ in 0..2 {
            let (queues, driver) = (&mut self.queues, &mut self.driver);
            queues.receive(&mut self.port, self.now, &mut frames, driver);
            self.now += Duration::from_secs(1);
        }
        let counters = self.port.counters(self.queues.counters());
        assert_eq!(counters.receive_balance(0), 0);
        assert!(counters.statistics_agree());
        assert_eq!((counters.drops.total(), self.port.pool.lent()), (0, 0));
        let given = self.driver.delivered.drain(..);
        given.map(|(_, given)| given).collect()
    }
}

/// A stream of TCP, or what looks like one.
struct Stream {
    /// In its source address.
    number: u8,
    ipv6: bool,
    vlan: Option<u16>,
    identification: u16,
    tcp: TcpHeader,
    ttl: u8,
    dscp_ecn: u8,
    size: usize,
}

impl Stream {
    fn new(number: u8, random: &mut Random) -> Self {
        let mut tcp = TcpHeader::new(
            1024 + random.below(60_000) as u16,
            80,
            random.below(1 << 31) as u32 * 2,
            random.below(500) as u16,
        );
        tcp.ack = true;
        // Some wrap.
        if random.in_some(20) {
            tcp.sequence_number |= 0xffff_0000;
        }
        let options = vec![1; 4 * random.below(11)];
        tcp.set_options_raw(&options).expect("not too many");
        Stream {
            number,
            ipv6: random.in_some(50),
            vlan: random.in_some(25).then(|| 1 + random.below(4_000) as u16),
            identification: random.below(1 << 16) as u16
                | if random.in_some(50) { 0xff00 } else { 0 },
            tcp,
            ttl: 64,
            dscp_ecn: 0,
            size: 8 + random.below(1_350),
        }
    }

    /// The next packet, mostly one that follows on the last.
    fn packet(&mut self, random: &mut Random) -> Vec<u8> {
        let mut tcp = self.tcp.clone();
        let mut len = self.size;
        match random.below(40) {
            0 | 1 => len = random.below(self.size),
            2 => len = 1 + random.below(1_380),
            3 => self.tcp.acknowledgment_number += 1,
            4 => self.tcp.window_size ^= 1,
            5 => self.ttl ^= 1,
            6 => self.dscp_ecn ^= 3,
            7 => self.identification = random.below(1 << 16) as u16,
            8 => tcp.urg = true,
            9 => tcp.fin = true,
            10 | 11 => tcp.psh = true,
            12 => tcp.cwr = true,
            13 => self.tcp.ece ^= true,
            // A gap, and one again.
            14 => tcp.sequence_number = tcp.sequence_number.wrapping_add(1),
            15 => tcp.sequence_number = tcp.sequence_number.wrapping_sub(len as u32),
            _ => {}
        }
        let payload: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
        self.tcp.sequence_number = tcp.sequence_number.wrapping_add(len as u32);
        let is_datagram = random.in_some(2);
        let mut bytes = Vec::new();
        let packet = self.headers();
        let written = if is_datagram {
            packet.udp(tcp.source_port, 80).write(&mut bytes, &payload)
        } else {
            packet.tcp_header(tcp).write(&mut bytes, &payload)
        };
        written.expect("it is not too long");
        let network = if self.vlan.is_some() { 18 } else { 14 };
        match random.below(60) {
            // The checksum of the payload, and of IPv4's header; padding behind; a fragment.
            0 => *bytes.last_mut().expect("there is one") ^= 1,
            1 if !self.ipv6 => bytes[network + 8] ^= 2,
            2 => bytes.extend([0xee; 6]),
            3 if !self.ipv6 => {
                let header = Ipv4Header::from_slice(&bytes[network..]).expect("one");
                let mut header = header.0;
                header.more_fragments = true;
                header.header_checksum = header.calc_header_checksum();
                bytes[network..network + 20].copy_from_slice(&header.to_bytes());
            }
            _ => {}
        }
        bytes
    }

    fn headers(&mut self) -> etherparse::PacketBuilderStep<IpHeaders> {
        let ether = PacketBuilder::ethernet2([2, 0, 0, 0, 1, self.number], [2, 0, 0, 0, 0, 1]);
        let ip = if self.ipv6 {
            let header = Ipv6Header {
                source: [0xfd; 16],
                destination: [0xfc; 16],
                hop_limit: self.ttl,
                traffic_class: self.dscp_ecn,
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        } else {
            let header = Ipv4Header::new(0, self.ttl, IpNumber::TCP, [10, 9, 8, 7], [10, 9, 8, 6]);
            let mut header = header.expect("no payload is not too long");
            header.identification = self.identification;
            header.ecn = etherparse::IpEcn::try_new(self.dscp_ecn).expect("two bits");
            self.identification = self.identification.wrapping_add(1);
            IpHeaders::Ipv4(header, Default::default())
        };
        match self.vlan {
            Some(id) => {
                let id = VlanId::try_new(id).expect("it is one");
                ether.single_vlan(id).ip(ip)
            }
            None => ether.ip(ip),
        }
    }
}

/// Packets by stream, each stream's in order. Datagrams and fragments between its segments, which have no ports, are others.
#[derive(Default)]
struct Streams(BTreeMap<(u8, u8, u8), Vec<Vec<u8>>>);

impl Streams {
    fn add(&mut self, bytes: Vec<u8>) {
        let network = network(&bytes);
        let kind = match bytes[network] >> 4 {
            4 => (bytes[11], bytes[network + 9], bytes[network + 6] & 0x20),
            _ => (bytes[11], bytes[network + 6], 0),
        };
        self.0.entry(kind).or_default().push(bytes);
    }

    fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

/// Where the network header begins.
fn network(bytes: &[u8]) -> usize {
    if bytes[12..14] == [0x81, 0] { 18 } else { 14 }
}

/// Looks at the fields of the header of merged segments, as it is and as it is with RSC_EXT. Returns how many it stands for.
fn look_at_header(told: &NetHeader, header: &NetHeader, bytes: &[u8]) -> usize {
    let network = network(bytes);
    let (kind, transport) = match bytes[network] >> 4 {
        4 => (1, network + 20),
        _ => (4, network + 40),
    };
    let headers = transport + usize::from(bytes[transport + 12] >> 4) * 4;
    let ecn = if bytes[transport + 13] & 0x80 != 0 {
        0x80
    } else {
        0
    };
    // NEEDS_CSUM, where it begins and is; and how many there are.
    let place = (
        header.flags,
        header.csum_start.get(),
        header.csum_offset.get(),
    );
    assert_eq!(place, (1, transport as u16, 16));
    let size = usize::from(header.gso_size.get());
    let segments = (bytes.len() - headers).div_ceil(size);
    assert!(segments > 1);
    let count = (told.flags, told.csum_start.get(), told.csum_offset.get());
    assert_eq!(count, (1 | 4, segments as u16, 0));
    for header in [told, header] {
        let fields = (header.gso_type, header.gso_size.get(), header.hdr_len.get());
        assert_eq!(fields, (kind | ecn, size as u16, headers as u16));
    }
    segments
}

#[test]
fn linux_cuts_what_was_merged_into_what_came() {
    in_namespace(|| {
        let Some((from, mut to)) = bridge(1) else {
            return;
        };
        let (mut card, mut random) = (Bare::new(), Random::new(1));
        let mut pool = crate::wire::testing::pool(1500);
        let (mut came, mut merged, mut wholes) = (0, 0, 0);
        while came < packets() {
            // Streams begin anew now and then, and the host takes other things.
            let mut streams: Vec<_> = (0..1 + random.below(6) as u8)
                .map(|number| Stream::new(number, &mut random))
                .collect();
            card.port.rsc.switch(Takes {
                ipv4: !random.in_some(10),
                ipv6: !random.in_some(10),
                ecn: !random.in_some(20),
            });
            for _ in 0..8 {
                let (mut expected, mut got) = (Streams::default(), Streams::default());
                let mut burst = Vec::new();
                for _ in 0..1 + random.below(60) {
                    let number = random.below(streams.len());
                    // They come in trains.
                    for _ in 0..1 + random.below(6) {
                        burst.push(streams[number].packet(&mut random));
                    }
                }
                burst.truncate(nic_model::BURST);
                burst.iter().cloned().for_each(|bytes| expected.add(bytes));
                for (told, header, bytes) in card.receive(&burst) {
                    if header.gso_type == 0 {
                        assert_eq!(told.as_bytes(), header.as_bytes());
                        assert_eq!((header.gso_size.get(), header.hdr_len.get()), (0, 0));
                        assert!(header.flags == 0 || header.flags == 2);
                    } else {
                        merged += look_at_header(&told, &header, &bytes);
                        wholes += 1;
                    }
                    let packet = [&header.as_bytes()[..LEGACY_HEADER], &bytes].concat();
                    (&from.queues[0]).write_all(&packet).expect("a packet");
                }
                came += burst.len();
                let mut frames = Vec::new();
                let end = Instant::now() + Duration::from_secs(10);
                while got.count() < burst.len() && Instant::now() < end {
                    to.receive(Nanos(0), 64, &mut pool, &mut frames);
                    for frame in frames.drain(..) {
                        got.add(frame.bytes().to_vec());
                        pool.give(frame);
                    }
                }
                for (stream, expected) in &expected.0 {
                    let got = got.0.get(stream).map_or(&[][..], Vec::as_slice);
                    for (at, expected) in expected.iter().enumerate() {
                        let got = got.get(at);
                        assert_eq!(got, Some(expected), "packet {at} of {stream:?}");
                    }
                    assert_eq!(got.len(), expected.len(), "{stream:?}");
                }
            }
        }
        println!("{came} packets came, {merged} of them in {wholes} merged ones");
        assert!(merged > came / 4, "{merged} of {came}");
    });
}

const OWN: [u8; 4] = [10, 9, 8, 6];
const OWN_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];
const PORT: u16 = 9;

/// A kernel in software, with sockets.
struct Kernel {
    tap: Tap,
    sockets: [UdpSocket; 2],
    before: [u64; 6],
}

/// What a kernel does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// A socket has it, or, of TCP, nobody listens.
    Taken,
    /// The checksum of IPv4's header, of TCP, of UDP is wrong.
    BadIp,
    BadTcp,
    BadUdp,
    /// It is dropped for what else its headers say.
    Other,
}

impl Kernel {
    fn new() -> Option<Self> {
        let mut tap = open("verifies", 1500)?;
        tap.link_changed(Nanos(0), true);
        let made = shell(
            "ip link set verifies address 02:00:00:00:00:02
            ip address add 10.9.8.6/24 dev verifies
            ip -6 address add fd00::6/64 dev verifies nodad",
        );
        if !made {
            eprintln!("not tested: the device takes no addresses");
            return None;
        }
        let socket = |ip: std::net::IpAddr| {
            let socket = UdpSocket::bind((ip, PORT)).expect("a socket");
            socket.set_nonblocking(true).expect("a socket");
            socket
        };
        let sockets = [socket(OWN.into()), socket(Ipv6Addr::from(OWN_V6).into())];
        let before = Self::counts();
        Some(Kernel {
            tap,
            sockets,
            before,
        })
    }

    /// Resets sent, wrong checksums of IPv4's header, of TCP, of UDP over each version, and packets of IPv4 that are dropped for what else
    /// their headers say.
    fn counts() -> [u64; 6] {
        let read = |name: &str| {
            let path = format!("/proc/thread-self/net/{name}");
            fs::read_to_string(path).expect("the kernel's counts")
        };
        let column = |text: &str, group: &str, name: &str| -> u64 {
            let lines = text.lines().filter(|line| line.starts_with(group));
            let [names, counts] = lines.collect::<Vec<_>>()[..] else {
                panic!("no {group}");
            };
            let mut both = names.split_whitespace().zip(counts.split_whitespace());
            let found = both.find(|(column, _)| *column == name);
            found.expect(name).1.parse().expect("a number")
        };
        let (snmp, netstat, snmp6) = (read("snmp"), read("netstat"), read("snmp6"));
        let mut six = snmp6.lines().map(str::split_whitespace);
        let six = six.find_map(|mut words| {
            (words.next() == Some("Udp6InCsumErrors")).then(|| words.next())?
        });
        let bad_ip = column(&netstat, "IpExt:", "InCsumErrors");
        let other = column(&snmp, "Ip:", "InHdrErrors") - bad_ip
            + column(&snmp, "Ip:", "InAddrErrors")
            + column(&snmp, "Ip:", "InUnknownProtos")
            + column(&netstat, "IpExt:", "InTruncatedPkts");
        [
            column(&snmp, "Tcp:", "OutRsts"),
            bad_ip,
            column(&snmp, "Tcp:", "InCsumErrors"),
            column(&snmp, "Udp:", "InCsumErrors"),
            six.expect("a count").parse().expect("a number"),
            other,
        ]
    }

    /// What becomes of a packet that nobody has verified.
    fn judge(&mut self, bytes: &[u8]) -> Outcome {
        let packet = [&[0; LEGACY_HEADER], bytes].concat();
        (&self.tap.queues[0]).write_all(&packet).expect("a packet");
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let mut room = [0; 2048];
            let taken = self.sockets.iter();
            let taken = taken
                .filter(|socket| socket.recv(&mut room).is_ok())
                .count();
            let now = Self::counts();
            let grown = std::array::from_fn(|at| now[at] - self.before[at]);
            self.before = now;
            match (taken, grown) {
                (0, [0, 0, 0, 0, 0, 0]) => assert!(Instant::now() < end, "lost: {bytes:x?}"),
                (1, [0, 0, 0, 0, 0, 0]) | (0, [1, 0, 0, 0, 0, 0]) => return Outcome::Taken,
                (0, [0, 1, 0, 0, 0, 0]) => return Outcome::BadIp,
                (0, [0, 0, 1, 0, 0, 0]) => return Outcome::BadTcp,
                (0, [0, 0, 0, 1, 0, 0] | [0, 0, 0, 0, 1, 0]) => return Outcome::BadUdp,
                (0, [0, 0, 0, 0, 0, 1]) => return Outcome::Other,
                more => panic!("{more:?}: {bytes:x?}"),
            }
        }
    }
}

/// A packet to the kernel, good or not.
fn packet(random: &mut Random) -> Vec<u8> {
    let (ipv6, tcp) = (random.in_some(50), random.in_some(50));
    let extended = random.in_some(15);
    let ether = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 2]);
    let packet = if ipv6 {
        let mut source = OWN_V6;
        source[15] = 7;
        ether.ipv6(source, OWN_V6, 64)
    } else {
        ether.ipv4([10, 9, 8, 7], OWN, 64)
    };
    let payload: Vec<u8> = (0..random.below(1_400))
        .map(|_| random.below(256) as u8)
        .collect();
    let (mut bytes, from) = (Vec::new(), 1024 + random.below(60_000) as u16);
    if tcp {
        let segment = packet.tcp(from, 80, random.below(1 << 31) as u32, 500);
        segment.ack(1).write(&mut bytes, &payload)
    } else {
        packet.udp(from, PORT).write(&mut bytes, &payload)
    }
    .expect("it is not too long");
    let mut transport = if ipv6 { 54 } else { 34 };
    if extended && ipv6 {
        // Destination options that are none.
        let next = std::mem::replace(&mut bytes[20], 60);
        bytes.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
        let len = (bytes.len() - 54) as u16;
        bytes[18..20].copy_from_slice(&len.to_be_bytes());
        transport += 8;
    } else if extended {
        bytes.splice(34..34, [1, 1, 1, 0]);
        bytes[14] = 0x46;
        let len = (bytes.len() - 14) as u16;
        bytes[16..18].copy_from_slice(&len.to_be_bytes());
        bytes[24..26].fill(0);
        let sum = !checksum::sum(&bytes[14..38], 0);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        transport += 4;
    }
    let data = transport + if tcp { 20 } else { 8 };
    let other = |random: &mut Random, octet: &mut u8| *octet ^= 1 + random.below(255) as u8;
    match random.below(16) {
        0 | 1 if bytes.len() > data => {
            let at = data + random.below(bytes.len() - data);
            other(random, &mut bytes[at]);
        }
        // Of TCP all but what is said of its length and what it is, of UDP the sender.
        2 | 3 => {
            let fields: &[usize] = match tcp {
                true => &[0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16, 17, 18, 19],
                false => &[0, 1, 6, 7],
            };
            let at = transport + fields[random.below(fields.len())];
            other(random, &mut bytes[at]);
        }
        // Any of the header, its length and the packet's among them.
        4 | 5 if !ipv6 => {
            let at = 14 + random.below(20);
            other(random, &mut bytes[at]);
        }
        // Both.
        6 if !ipv6 && bytes.len() > data => {
            other(random, &mut bytes[22]);
            other(random, &mut bytes[data]);
        }
        // The sum does not see these: words change places, or are the other zero.
        7 if bytes.len() >= data + 4 => {
            let (one, two) = bytes[data..data + 4].split_at_mut(2);
            one.swap_with_slice(two);
        }
        // None, which UDP over IPv4 may have.
        8 => {
            let field = transport + if tcp { 16 } else { 6 };
            bytes[field..field + 2].fill(0);
        }
        // UDP has less than IP says.
        9 if !tcp && bytes.len() > data + 2 => {
            let len = (bytes.len() - transport - 1 - random.below(2)) as u16;
            bytes[transport + 4..transport + 6].copy_from_slice(&len.to_be_bytes());
        }
        // Padding, which does not count.
        10 => bytes.extend([0x99; 5]),
        _ => {}
    }
    bytes
}

#[test]
fn linux_drops_what_the_card_finds_wrong_and_nothing_else() {
    in_namespace(|| {
        let Some(mut kernel) = Kernel::new() else {
            return;
        };
        let (mut card, mut random) = (Bare::new(), Random::new(2));
        let mut seen = BTreeMap::new();
        for _ in 0..packets() {
            let bytes = packet(&mut random);
            let before = card.port.counters(&[]).rx_checksums;
            let given = card.receive(std::slice::from_ref(&bytes));
            let after = card.port.counters(&[]).rx_checksums;
            let [(_, header, same)] = &given[..] else {
                panic!("one each: {given:?}");
            };
            assert_eq!(same, &bytes);
            let right = after.good() - before.good() == 1;
            let wrong = after.bad() - before.bad() == 1;
            let wrong_header = after.bad_header() - before.bad_header() == 1;
            // DATA_VALID says what is right, and nothing else.
            assert_eq!(header.flags, if right { 2 } else { 0 });
            let outcome = kernel.judge(&bytes);
            let agree = match outcome {
                Outcome::BadIp => wrong_header,
                // Where UDP has another length than IP the card says nothing.
                Outcome::BadTcp => !wrong_header && wrong,
                Outcome::BadUdp => !wrong_header && !right,
                Outcome::Taken => !wrong_header && !wrong,
                Outcome::Other => !wrong_header,
            };
            assert!(agree, "{outcome:?}: {before:?} {after:?} {bytes:x?}");
            *seen.entry(format!("{outcome:?}")).or_insert(0) += 1;
        }
        println!("{seen:?}");
        assert_eq!(seen.len(), 5);
    });
}
