//! A seeded source of packets, good ones and bad ones of every kind.

use std::net::Ipv4Addr;

use super::generator6::{KINDS6, is_excepted6};
use super::packets::{ICMP, Ip, OURS, PEER, TCP, UDP, arp, ethernet, icmp, mend_header};

/// A frame, and what it is.
pub struct Packet {
    pub what: &'static str,
    pub frame: Vec<u8>,
}

/// The source.
pub struct Generator {
    state: u64,
}

/// The longest frame, with two VLAN tags and without a check sequence: what is longer the card does not take.
const MAX_FRAME: usize = 1522;

/// A kind of packets.
pub type Kind = (&'static str, fn(&mut Generator) -> Vec<Vec<u8>>);

/// All kinds. A kind makes one frame, or several that belong together.
const KINDS: [Kind; 20] = [
    ("a datagram", Generator::datagram),
    ("a datagram to many", Generator::broadcast),
    ("a datagram with a wrong length", Generator::wrong_length),
    (
        "a datagram with a wrong checksum",
        Generator::wrong_checksum,
    ),
    ("a datagram without a checksum", Generator::no_checksum),
    ("a wrong IP header", Generator::wrong_header),
    ("IP options", Generator::options),
    ("fragments", Generator::fragments),
    ("broken fragments", Generator::broken_fragments),
    ("a short life", Generator::short_life),
    ("odd addresses", Generator::odd_addresses),
    ("a VLAN tag", Generator::tagged),
    ("another station", Generator::other_station),
    ("an ICMP message", Generator::message),
    ("an ICMP error", Generator::error),
    ("an unknown protocol", Generator::unknown_protocol),
    ("a segment", Generator::segment),
    ("a short frame", Generator::short),
    ("ARP", Generator::arp),
    ("something damaged", Generator::damaged),
];

/// Whether the hosts are known to differ, and for a reason. (Behind up to two VLAN tags; some are left out in vain.)
fn is_excepted(frame: &[u8]) -> bool {
    (0..=2).any(|tags| {
        let packet = frame.get(14 + 4 * tags..).unwrap_or_default();
        is_excepted6(packet)
            || is_of_linux_alone(packet)
            || is_source_routed_wrongly(packet)
            || is_labelled(packet)
    })
}

/// PIM and UDP-Lite, and errors about such: Linux has them, our guest has not and says so.
fn is_of_linux_alone(packet: &[u8]) -> bool {
    let quoted = header_len(packet) + 8;
    [9, quoted + 9]
        .iter()
        .any(|&at| matches!(packet.get(at), Some(103 | 136)))
}

fn header_len(packet: &[u8]) -> usize {
    packet
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4)
}

/// The octets of a header's options.
fn options(packet: &[u8]) -> &[u8] {
    packet.get(20..header_len(packet)).unwrap_or_default()
}

/// A security label (CIPSO): Linux refuses those that it has no rules for, our guest knows none.
fn is_labelled(packet: &[u8]) -> bool {
    options(packet).contains(&134)
}

/// A source route before other options: if one of those is wrong, Linux says so by the way that the route names. Our
/// guest goes no such ways.
fn is_source_routed_wrongly(packet: &[u8]) -> bool {
    let options = options(packet);
    let route = options.iter().position(|kind| [131, 137].contains(kind));
    route.is_some_and(|at| {
        let len = options.get(at + 1).copied().unwrap_or_default();
        let rest = options.get(at + usize::from(len)..).unwrap_or_default();
        rest.iter().any(|octet| *octet > 1)
    })
}

impl Generator {
    /// The source whose packets the seed determines.
    pub fn new(seed: u64) -> Self {
        Generator {
            // Never 0, which would stay 0.
            state: seed.wrapping_mul(2) | 1,
        }
    }

    /// At least `count` packets, of all kinds.
    pub fn packets(&mut self, count: usize) -> Vec<Packet> {
        let mut packets = Vec::new();
        while packets.len() < count {
            let (kinds, usual) = if self.below(2) == 0 {
                (&KINDS[..], KINDS[0])
            } else {
                (&KINDS6[..], KINDS6[0])
            };
            // A fifth is as it should be.
            let kind = self.below(kinds.len() * 5 / 4);
            let (what, make) = kinds.get(kind).copied().unwrap_or(usual);
            let fits = |frame: &Vec<u8>| frame.len() <= MAX_FRAME && !is_excepted(frame);
            let frames = make(self).into_iter().filter(fits);
            packets.extend(frames.map(|frame| Packet { what, frame }));
        }
        packets
    }

    /// A number less than `end` (xorshift64*).
    pub fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        number as usize % end
    }

    pub fn octet(&mut self) -> u8 {
        self.below(256) as u8
    }

    pub fn word(&mut self) -> u16 {
        self.below(1 << 16) as u16
    }

    pub fn octets(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.octet()).collect()
    }

    pub fn one_of<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len())]
    }

    /// Data, most often little.
    pub fn data(&mut self) -> Vec<u8> {
        let most = self.one_of(&[1, 20, 100, 1473]);
        let len = self.below(most);
        self.octets(len)
    }

    /// A sender: the peer, another neighbour, or one beyond the gateway.
    fn sender(&mut self) -> Ipv4Addr {
        self.one_of(&[PEER, PEER, [10, 77, 0, 7].into(), [192, 0, 2, 5].into()])
    }

    fn ip(&mut self, protocol: u8) -> Ip {
        Ip {
            tos: self.one_of(&[0, 0, 0x10, 0xb8, 3]),
            id: self.word(),
            ttl: self.one_of(&[1, 2, 64, 255]),
            from: self.sender(),
            ..Ip::new(protocol)
        }
    }

    /// Ports: of sockets, or where nobody listens.
    pub fn ports(&mut self) -> (u16, u16) {
        (
            self.one_of(&[9, 9, 53, 40_000]),
            self.one_of(&[7000, 7001, 7001, 7002, 7003, 1, 0]),
        )
    }

    fn udp(&mut self, ip: &Ip) -> Vec<u8> {
        let ((from, to), data) = (self.ports(), self.data());
        ip.udp(from, to, &data)
    }

    fn datagram(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip(UDP);
        let datagram = self.udp(&ip);
        vec![ip.frame(&datagram)]
    }

    fn broadcast(&mut self) -> Vec<Vec<u8>> {
        let mut ip = self.ip(UDP);
        let (to, station) = self.one_of(&[
            ([255, 255, 255, 255], [0xff; 6]),
            ([10, 77, 0, 255], [0xff; 6]),
            ([224, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]),
            ([239, 1, 2, 3], [1, 0, 0x5e, 1, 2, 3]),
        ]);
        ip.to = to.into();
        let mut datagram = self.udp(&ip);
        if self.below(4) == 0 {
            datagram[6] ^= 1;
        }
        let mut frame = ip.frame(&datagram);
        frame[..6].copy_from_slice(&station);
        vec![frame]
    }

    fn wrong_length(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip(UDP);
        let mut datagram = self.udp(&ip);
        let len = datagram.len() as u16;
        let any = self.word();
        let wrong = self.one_of(&[0, 7, 8, len - 1, len + 1, any]);
        datagram[4..6].copy_from_slice(&wrong.to_be_bytes());
        if self.below(2) == 0 {
            ip.mend_above(&mut datagram, 6);
        }
        vec![ip.frame(&datagram)]
    }

    fn wrong_checksum(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip(UDP);
        let mut datagram = self.udp(&ip);
        datagram[6 + self.below(2)] ^= 1 << self.below(8);
        vec![ip.frame(&datagram)]
    }

    fn no_checksum(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip(UDP);
        let mut datagram = self.udp(&ip);
        datagram[6..8].fill(0);
        vec![ip.frame(&datagram)]
    }

    fn wrong_header(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip(UDP);
        let datagram = self.udp(&ip);
        let mut packet = ip.packet(&datagram);
        let len = packet.len() as u16;
        let kind = self.below(6);
        match kind {
            0 => packet[0] = self.octet(),
            1 => packet[0] = 0x40 | self.below(16) as u8,
            2 => {
                let any = self.word();
                let wrong = self.one_of(&[0, 19, 20, 27, len - 1, len + 1, any]);
                packet[2..4].copy_from_slice(&wrong.to_be_bytes());
            }
            3 => packet[6] |= 0x80,
            4 => packet[10] ^= 1 << self.below(8),
            _ => {
                // Padding, which is no part of it.
                let more = self.below(40);
                packet.extend(self.octets(more));
            }
        }
        if !matches!(kind, 4 | 5) {
            mend_header(&mut packet);
        }
        vec![ethernet(0x0800, &packet)]
    }

    /// One option, as it should be or not.
    fn option(&mut self) -> Vec<u8> {
        let any = self.octets(4);
        let (own, peer) = (OURS.octets(), PEER.octets());
        let kind = self.one_of(&[7, 131, 137]);
        match self.below(10) {
            0 => vec![1; 1 + self.below(5)],
            1 => vec![0],
            // Record route: empty, in use, full.
            2 => {
                let pointer = self.one_of(&[4, 8, 12, 3, 5, 13]);
                [&[7, 11, pointer][..], &peer, &any].concat()
            }
            3 => {
                let pointer = self.one_of(&[4, 8]);
                [&[kind, 7, pointer][..], &own].concat()
            }
            4 => vec![148, 4, 0, 0],
            5 => {
                let len = self.octet();
                [&[kind, len][..], &any].concat()
            }
            6 => [&[130, 11][..], &[0; 9]].concat(),
            7 => {
                let kind = self.octet();
                [&[kind, 6][..], &any].concat()
            }
            // Timestamps that are full already: nobody adds one.
            8 => {
                let flags = self.one_of(&[0x00, 0x10, 0xe0, 0xf0]);
                [&[68, 8, 9, flags][..], &any].concat()
            }
            _ => vec![kind],
        }
    }

    fn options(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[UDP, ICMP]);
        let mut ip = self.ip(protocol);
        for _ in 0..=self.below(2) {
            ip.options.extend(self.option());
        }
        ip.options.truncate(40);
        let len = ip.options.len().next_multiple_of(4);
        ip.options.resize(len, 0);
        let payload = match protocol {
            UDP => self.udp(&ip),
            _ => icmp(8, 0, 5, b"options"),
        };
        vec![ip.frame(&payload)]
    }

    /// The fragments of a datagram, in eights.
    fn parts(&mut self) -> Vec<(usize, Vec<u8>, bool, Ip)> {
        let mut ip = self.ip(UDP);
        ip.tos &= !3;
        let protocol = self.one_of(&[UDP, UDP, ICMP]);
        ip.protocol = protocol;
        let len = 16 + self.below(400);
        let data = self.octets(len);
        let whole = match protocol {
            UDP => {
                let (from, to) = self.ports();
                ip.udp(from, to, &data)
            }
            _ => icmp(8, 0, 7, &data),
        };
        let mut parts = Vec::new();
        let mut at = 0;
        while at < whole.len() {
            let end = (at + 8 * (1 + self.below(20))).min(whole.len());
            parts.push((
                at / 8,
                whole[at..end].to_vec(),
                end < whole.len(),
                ip.clone(),
            ));
            at = end;
        }
        parts
    }

    fn fragment((offset, data, more, ip): &(usize, Vec<u8>, bool, Ip)) -> Vec<u8> {
        let frag_off = *offset as u16 | u16::from(*more) << 13;
        let ip = Ip {
            frag_off,
            ..ip.clone()
        };
        ip.frame(data)
    }

    fn fragments(&mut self) -> Vec<Vec<u8>> {
        let mut parts = self.parts();
        for at in 1..parts.len() {
            let other = self.below(at + 1);
            parts.swap(at, other);
        }
        parts.iter().map(Self::fragment).collect()
    }

    fn broken_fragments(&mut self) -> Vec<Vec<u8>> {
        let mut parts = self.parts();
        let at = self.below(parts.len());
        match self.below(9) {
            0 => drop(parts.remove(at)),
            1 => parts.push((
                parts[at].0,
                parts[at].1.clone(),
                parts[at].2,
                parts[at].3.clone(),
            )),
            2 => parts[at].0 += 1,
            3 => parts[at].0 = parts[at].0.saturating_sub(1),
            4 => parts[at].0 = 8191,
            5 => parts[at].2 ^= true,
            6 => parts[at].1.truncate(self.below(9)),
            7 => parts[at].3.tos ^= self.below(4) as u8,
            _ => {
                let more = self.octets(9);
                parts[at].1.extend(more);
            }
        }
        parts.iter().map(Self::fragment).collect()
    }

    fn short_life(&mut self) -> Vec<Vec<u8>> {
        let to = self.one_of(&[OURS, OURS, [10, 77, 0, 3].into(), [198, 51, 100, 1].into()]);
        let ip = Ip {
            ttl: self.below(2) as u8,
            to,
            ..self.ip(UDP)
        };
        let datagram = self.udp(&ip);
        vec![ip.frame(&datagram)]
    }

    fn address(&mut self) -> Ipv4Addr {
        let any = self.octets(4);
        let addresses = [
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [127, 9, 9, 9],
            [224, 0, 0, 1],
            [224, 0, 0, 251],
            [239, 1, 2, 3],
            [240, 0, 0, 1],
            [255, 255, 255, 255],
            [10, 77, 0, 0],
            [10, 77, 0, 2],
            [10, 77, 0, 3],
            [10, 77, 0, 255],
            [169, 254, 1, 1],
            [192, 0, 2, 7],
            [any[0], any[1], any[2], any[3]],
        ];
        self.one_of(&addresses).into()
    }

    fn odd_addresses(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[UDP, UDP, ICMP, 99]);
        let mut ip = self.ip(protocol);
        let (from, to) = (self.address(), self.address());
        match self.below(3) {
            0 => ip.from = from,
            1 => ip.to = to,
            _ => (ip.from, ip.to) = (from, to),
        }
        let payload = match protocol {
            ICMP => icmp(8, 0, 3, b"odd"),
            _ => self.udp(&ip),
        };
        let mut frame = ip.frame(&payload);
        match self.below(3) {
            0 => frame[..6].fill(0xff),
            1 if ip.to.is_multicast() => {
                let [_, b, c, d] = ip.to.octets();
                frame[..6].copy_from_slice(&[1, 0, 0x5e, b & 0x7f, c, d]);
            }
            _ => {}
        }
        vec![frame]
    }

    fn tagged(&mut self) -> Vec<Vec<u8>> {
        let mut frame = self.datagram().remove(0);
        for _ in 0..=self.below(2) {
            let id = self.one_of(&[0, 0, 5, 4095]);
            let tci = (id | self.below(8) << 13) as u16;
            let kind: u16 = self.one_of(&[0x8100, 0x8100, 0x88a8]);
            let tag = [kind, tci].map(u16::to_be_bytes).concat();
            frame.splice(12..12, tag);
        }
        vec![frame]
    }

    fn other_station(&mut self) -> Vec<Vec<u8>> {
        let mut frame = self.datagram().remove(0);
        let to = self.one_of(&[
            [2, 9, 9, 9, 9, 9],
            [0xff; 6],
            [1, 0, 0x5e, 0, 0, 1],
            [3, 0, 0, 0, 0, 1],
            [0; 6],
        ]);
        frame[..6].copy_from_slice(&to);
        vec![frame]
    }

    fn message(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip(ICMP);
        let (data, any, code) = (self.data(), self.octet(), self.one_of(&[0, 0, 1, 16]));
        let icmp_type = self.one_of(&[8, 8, 0, 13, 13, 14, 15, 17, 18, 9, 10, 42, 43, any]);
        let mut message = icmp(icmp_type, code, 0x0102_0304, &data);
        match self.below(6) {
            0 => message[2] ^= 1 << self.below(8),
            1 => message.truncate(self.below(9)),
            _ => {}
        }
        vec![ip.frame(&message)]
    }

    fn error(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[UDP, UDP, UDP, ICMP, TCP, 99]);
        let sent = Ip {
            from: OURS,
            to: PEER,
            ..Ip::new(protocol)
        };
        let payload = match protocol {
            ICMP => {
                let kind = self.one_of(&[0, 8]);
                icmp(kind, 0, 9, b"quoted")
            }
            TCP => sent.tcp((7000, 9), 2, b""),
            _ => {
                let any = self.ports();
                let (peer, own) = self.one_of(&[any, (9, 7001)]);
                sent.udp(own, peer, b"quoted")
            }
        };
        let mut quoted = sent.packet(&payload);
        match self.below(6) {
            0 => quoted.truncate(self.below(29)),
            1 => {
                let at = self.below(quoted.len());
                quoted[at] = self.octet();
            }
            _ => {}
        }
        let icmp_type = self.one_of(&[3, 3, 3, 11, 12, 4, 5]);
        let code = self.one_of(&[0, 1, 2, 3, 3, 4, 5, 9, 13, 15, 16]);
        let word = self.one_of(&[0, 0, 1400, 0x0500_0000]);
        let ip = self.ip(ICMP);
        vec![ip.frame(&icmp(icmp_type, code, word, &quoted))]
    }

    fn unknown_protocol(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[0, 4, 41, 47, 50, 89, 99, 132, 253, 255]);
        let (ip, data) = (self.ip(protocol), self.data());
        vec![ip.frame(&data)]
    }

    fn segment(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip(TCP);
        let (from, to) = (self.word(), self.one_of(&[7000, 80, 0]));
        let (flags, data) = (self.octet(), self.data());
        let flags = self.one_of(&[2, 4, 16, 18, 20, 1, 0, flags]);
        let mut segment = ip.tcp((from, to), flags, &data);
        match self.below(6) {
            0 => segment[16] ^= 1 << self.below(8),
            1 => segment.truncate(self.below(20)),
            2 => {
                // Options, if any, are at their end at once: in others Linux looks for signatures.
                segment[12] = self.octet();
                segment[20..].fill(0);
                ip.mend_above(&mut segment, 16);
            }
            _ => {}
        }
        vec![ip.frame(&segment)]
    }

    fn short(&mut self) -> Vec<Vec<u8>> {
        let mut frame = match self.below(3) {
            0 => self.message().remove(0),
            1 => self.arp().remove(0),
            _ => self.datagram().remove(0),
        };
        let len = 14 + self.below(46);
        frame.truncate(len);
        vec![frame]
    }

    fn arp(&mut self) -> Vec<Vec<u8>> {
        let operation = self.one_of(&[1, 1, 1, 2, 3]);
        let (from, odd) = (self.sender(), self.address());
        let target = self.one_of(&[OURS, OURS, odd]);
        let mut packet = arp(operation, from, target);
        if self.below(4) == 0 {
            let at = self.below(8);
            packet[at] ^= 1 << self.below(8);
        }
        let mut frame = ethernet(0x0806, &packet);
        if self.below(2) == 0 {
            frame[..6].fill(0xff);
        }
        vec![frame]
    }

    /// Any of the others with some octets changed, so that the header's checksum is right all the same or not.
    fn damaged(&mut self) -> Vec<Vec<u8>> {
        let (_, make) = self.one_of(&KINDS[..KINDS.len() - 1]);
        let mut frames = make(self);
        let mend = self.below(3) > 0;
        for frame in &mut frames {
            for _ in 0..self.below(3) {
                let at = 12 + self.below(frame.len().min(64) - 12);
                frame[at] = self.octet();
            }
            if mend && frame.len() > 34 {
                mend_header(&mut frame[14..]);
            }
        }
        frames
    }
}
