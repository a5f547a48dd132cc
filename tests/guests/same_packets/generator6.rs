//! The kinds of packets of IPv6 that [`Generator`] makes.

use std::net::Ipv6Addr;

use nic_model::port::PortConfig;

use super::generator::{Generator, Kind};
use super::packets::{TCP, UDP, ethernet, neighbour};
use super::packets6::{
    DEST, FRAGMENT, HOP, ICMPV6, Ip6, NONE, OURS6, PEER_LINKLOCAL, PEER6, ROUTING, linklocal,
    solicited_node,
};

/// A kind makes one frame, or several that belong together.
pub const KINDS6: [Kind; 19] = [
    ("a datagram over IPv6", Generator::datagram6),
    ("a datagram to a group", Generator::group6),
    (
        "a datagram over IPv6 with a wrong length",
        Generator::wrong_length6,
    ),
    (
        "a datagram over IPv6 with a wrong checksum",
        Generator::wrong_checksum6,
    ),
    ("a wrong IPv6 header", Generator::wrong_header6),
    ("headers behind the first", Generator::extension_headers),
    ("fragments of IPv6", Generator::fragments6),
    ("broken fragments of IPv6", Generator::broken_fragments6),
    ("a short life over IPv6", Generator::short_life6),
    ("odd IPv6 addresses", Generator::odd_addresses6),
    ("IPv6 for another station", Generator::other_station6),
    ("a message of ICMPv6", Generator::message6),
    ("an error of ICMPv6", Generator::error6),
    ("an unknown next header", Generator::unknown_nexthdr),
    ("a segment over IPv6", Generator::segment6),
    ("a solicitation or an advertisement", Generator::neighbour6),
    (
        "a question, most often as it should be",
        Generator::neighbour6,
    ),
    ("a router's message", Generator::router6),
    ("something damaged of IPv6", Generator::damaged6),
];

/// Whether there is an option among these that says how secret a packet is (RFC 5570).
fn has_calipso(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        let len = match (kind, rest.first()) {
            (7, _) => return true,
            (0, _) => 0,
            (_, len) => 1 + len.map_or(0, |len| usize::from(*len)),
        };
        options = rest.get(len..).unwrap_or_default();
    }
    false
}

/// Whether the hosts are known to differ, and for a reason: PIM and UDP-Lite, which Linux has and our guest has not;
/// questions about groups, which Linux answers some time later; redirects that quote a packet, which Linux looks at though
/// it does not follow them; security labels, which it reads.
pub fn is_excepted6(packet: &[u8]) -> bool {
    if packet.first().is_none_or(|first| first >> 4 != 6) || packet.len() < 40 {
        return false;
    }
    let known = |number: &u8| matches!(number, 103 | 136);
    let (mut next, mut at) = (packet[6], 40);
    while let (HOP | DEST | ROUTING | FRAGMENT, Some([following, len])) =
        (next, packet.get(at..at + 2))
    {
        let len = match next {
            FRAGMENT => 8,
            _ => usize::from(*len) * 8 + 8,
        };
        let options = packet.get(at + 2..at + len).unwrap_or_default();
        if next == HOP && has_calipso(options) {
            return true;
        }
        (next, at) = (*following, at + len);
    }
    let rest = packet.get(at..).unwrap_or_default();
    let quoted = rest.get(8 + 6);
    known(&next)
        || next == ICMPV6 && matches!(rest.first(), Some(130 | 137))
        || next == ICMPV6 && quoted.is_some_and(known)
}

/// The host as its link knows it.
fn own_linklocal() -> Ipv6Addr {
    linklocal(PortConfig::default().mac.0)
}

impl Generator {
    /// A neighbour of whom nobody was told.
    fn stranger(&mut self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, self.below(6) as u16)
    }

    /// A sender: the peer, another neighbour, known or not, one beyond the gateway, or one of the link alone.
    fn sender6(&mut self) -> Ipv6Addr {
        let stranger = self.stranger();
        self.one_of(&[
            stranger,
            PEER6,
            PEER6,
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 7),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5),
            PEER_LINKLOCAL,
        ])
    }

    fn ip6(&mut self, protocol: u8) -> Ip6 {
        let to = self.one_of(&[OURS6, OURS6, OURS6, own_linklocal()]);
        Ip6 {
            tclass: self.one_of(&[0, 0, 0x10, 0xb8, 3]),
            hop_limit: self.one_of(&[1, 2, 64, 255]),
            from: self.sender6(),
            to,
            ..Ip6::new(protocol)
        }
    }

    fn udp6(&mut self, ip: &Ip6) -> Vec<u8> {
        let (ports, data) = (self.ports(), self.data());
        ip.udp(ports, &data)
    }

    fn datagram6(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip6(UDP);
        let datagram = self.udp6(&ip);
        vec![ip.frame(&datagram)]
    }

    /// A group that the host is in, or not.
    fn group(&mut self) -> Ipv6Addr {
        let all = |scope: u16| Ipv6Addr::new(0xff00 | scope, 0, 0, 0, 0, 0, 0, 1);
        self.one_of(&[
            all(2),
            all(2),
            all(1),
            all(0),
            all(5),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
            solicited_node(OURS6),
            solicited_node(own_linklocal()),
            solicited_node(PEER6),
        ])
    }

    /// The frame with a packet for a group, to the group's station.
    fn to_group(ip: &Ip6, payload: &[u8]) -> Vec<u8> {
        let mut frame = ip.frame(payload);
        let [.., a, b, c, d] = ip.to.octets();
        frame[..6].copy_from_slice(&[0x33, 0x33, a, b, c, d]);
        frame
    }

    fn group6(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[UDP, UDP, UDP, ICMPV6, 99]);
        let mut ip = self.ip6(protocol);
        ip.to = self.group();
        let mut payload = match protocol {
            ICMPV6 => ip.icmp(128, 0, 6, b"group"),
            _ => self.udp6(&ip),
        };
        match self.below(8) {
            0 => payload[6] ^= 1,
            1 => payload[6..8].fill(0),
            _ => {}
        }
        vec![Self::to_group(&ip, &payload)]
    }

    fn wrong_length6(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip6(UDP);
        let mut datagram = self.udp6(&ip);
        let len = datagram.len() as u16;
        let any = self.word();
        let wrong = self.one_of(&[0, 7, 8, len - 1, len + 1, any]);
        datagram[4..6].copy_from_slice(&wrong.to_be_bytes());
        if self.below(2) == 0 {
            ip.mend_above(&mut datagram, 6);
        }
        if self.below(4) == 0 {
            datagram.truncate(self.below(9));
        }
        vec![ip.frame(&datagram)]
    }

    fn wrong_checksum6(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip6(UDP);
        let mut datagram = self.udp6(&ip);
        if self.below(3) == 0 {
            datagram[6..8].fill(0);
        } else {
            datagram[6 + self.below(2)] ^= 1 << self.below(8);
        }
        vec![ip.frame(&datagram)]
    }

    fn wrong_header6(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip6(UDP);
        let datagram = self.udp6(&ip);
        let mut packet = ip.packet(&datagram);
        let len = datagram.len() as u16;
        match self.below(4) {
            0 => packet[0] = self.octet(),
            1 => {
                let any = self.word();
                let wrong = self.one_of(&[0, 7, 8, len - 1, len + 1, any]);
                packet[4..6].copy_from_slice(&wrong.to_be_bytes());
            }
            2 => packet.truncate(self.below(49)),
            _ => {
                // Padding, which is no part of it.
                let more = self.below(40);
                packet.extend(self.octets(more));
            }
        }
        vec![ethernet(0x86dd, &packet)]
    }

    /// One option, as it should be or not.
    fn option6(&mut self) -> Vec<u8> {
        let any = self.octets(4);
        let kind = self.one_of(&[0x1e, 0x1e, 0x3e, 0x5e, 0x9e, 0xde]);
        match self.below(9) {
            0 => vec![0; 1 + self.below(8)],
            1 => {
                let len = self.below(8);
                let mut padding = vec![1, len as u8];
                padding.resize(2 + len, 0);
                if self.below(4) == 0 {
                    padding.extend([1, 1, 1]);
                }
                padding
            }
            2 => vec![5, 2, 0, 0],
            3 => vec![5, self.octet(), 0, 0],
            4 => [&[0xc2, 4][..], &any].concat(),
            5 => {
                let len = self.octet();
                [&[kind, len][..], &any].concat()
            }
            6 => [&[49, 4][..], &any].concat(),
            7 => [&[0xc9, 16][..], &PEER6.octets()].concat(),
            _ => [&[kind, 4][..], &any].concat(),
        }
    }

    /// A header of options.
    fn options6(&mut self) -> Vec<u8> {
        let mut header = vec![0, 0];
        for _ in 0..self.one_of(&[0, 1, 1, 2, 3, 10]) {
            header.extend(self.option6());
        }
        let len = header.len().next_multiple_of(8);
        let padding = len - header.len();
        if padding > 1 && self.below(4) > 0 {
            header.extend([1, padding as u8 - 2]);
        }
        header.resize(len, 0);
        header[1] = (len / 8 - 1) as u8;
        if self.below(12) == 0 {
            header[1] = self.octet();
        }
        header
    }

    fn extension(&mut self) -> (u8, Vec<u8>) {
        match self.below(7) {
            0 => (HOP, self.options6()),
            1 | 2 => (DEST, self.options6()),
            3 | 4 => {
                let kind = self.one_of(&[0, 0, 2, 3, 4, 99]);
                let left = self.one_of(&[0, 0, 1, 2]);
                let len = self.one_of(&[0, 2, 2, 4]);
                let mut header = vec![0, len, kind, left];
                header.resize(8 * (usize::from(len) + 1), 0);
                if header.len() >= 24 {
                    header[8..24].copy_from_slice(&PEER6.octets());
                }
                (ROUTING, header)
            }
            5 => {
                let id = self.octets(4);
                (
                    FRAGMENT,
                    [&[0, 0, 0, self.one_of(&[0, 0, 2])][..], &id].concat(),
                )
            }
            _ => {
                let number = self.one_of(&[51, 135, 139, 140, NONE]);
                (number, vec![0, 0, 0, 0, 0, 0, 0, 0])
            }
        }
    }

    fn extension_headers(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[UDP, UDP, ICMPV6, NONE, 99]);
        let mut ip = self.ip6(protocol);
        if self.below(3) == 0 {
            ip.headers.push((HOP, self.options6()));
        }
        for _ in 0..=self.below(3) {
            ip.headers.push(self.extension());
        }
        if self.below(8) == 0 {
            ip.to = self.group();
        }
        let payload = match protocol {
            ICMPV6 => {
                let kind = self.one_of(&[128, 128, 1]);
                ip.icmp(kind, 0, 5, b"behind headers")
            }
            _ => self.udp6(&ip),
        };
        let mut frame = ip.frame(&payload);
        if self.below(8) == 0 {
            let left = 54 + self.below(frame.len() - 54);
            frame.truncate(left);
            let len = (left - 54) as u16;
            frame[18..20].copy_from_slice(&len.to_be_bytes());
        }
        vec![frame]
    }

    /// The fragments of a datagram: offset, octets, whether more follow, and what is before.
    fn parts6(&mut self) -> Vec<(usize, Vec<u8>, bool, Ip6)> {
        let protocol = self.one_of(&[UDP, UDP, ICMPV6]);
        let mut ip = self.ip6(protocol);
        ip.tclass &= !3;
        if self.below(4) == 0 {
            let header = [vec![0, 0, 1, 4], vec![0; 4]].concat();
            ip.headers.push((DEST, header));
        }
        let len = 16 + self.below(400);
        let data = self.octets(len);
        let whole = match protocol {
            UDP => {
                let ports = self.ports();
                ip.udp(ports, &data)
            }
            _ => ip.icmp(128, 0, 7, &data),
        };
        let id = self.octets(4);
        let mut parts = Vec::new();
        let mut at = 0;
        while at < whole.len() {
            let end = (at + 8 * (1 + self.below(20))).min(whole.len());
            let mut ip = ip.clone();
            ip.headers.push((FRAGMENT, [&[0; 4][..], &id].concat()));
            parts.push((at, whole[at..end].to_vec(), end < whole.len(), ip));
            at = end;
        }
        parts
    }

    fn fragment6((offset, data, more, ip): &(usize, Vec<u8>, bool, Ip6)) -> Vec<u8> {
        let mut ip = ip.clone();
        if let Some((_, header)) = ip.headers.last_mut() {
            let field = *offset as u16 | u16::from(*more);
            header[2..4].copy_from_slice(&field.to_be_bytes());
        }
        ip.frame(data)
    }

    fn fragments6(&mut self) -> Vec<Vec<u8>> {
        let mut parts = self.parts6();
        for at in 1..parts.len() {
            let other = self.below(at + 1);
            parts.swap(at, other);
        }
        parts.iter().map(Self::fragment6).collect()
    }

    fn broken_fragments6(&mut self) -> Vec<Vec<u8>> {
        let mut parts = self.parts6();
        let at = self.below(parts.len());
        match self.below(10) {
            0 => drop(parts.remove(at)),
            1 => parts.push(parts[at].clone()),
            2 => parts[at].0 += 8,
            3 => parts[at].0 = parts[at].0.saturating_sub(8),
            4 => parts[at].0 = 0xfff8,
            5 => parts[at].2 ^= true,
            6 => parts[at].1.truncate(self.below(9)),
            7 => parts[at].3.tclass ^= self.below(4) as u8,
            8 => {
                // A fragment of a fragment.
                let again = parts[at].3.headers.last().cloned();
                parts[at].3.headers.extend(again);
            }
            _ => {
                let more = self.octets(9);
                parts[at].1.extend(more);
            }
        }
        parts.iter().map(Self::fragment6).collect()
    }

    fn short_life6(&mut self) -> Vec<Vec<u8>> {
        let to = self.one_of(&[
            OURS6,
            own_linklocal(),
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 3),
            Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1),
        ]);
        let ip = Ip6 {
            hop_limit: self.below(2) as u8,
            to,
            ..self.ip6(UDP)
        };
        let datagram = self.udp6(&ip);
        vec![ip.frame(&datagram)]
    }

    fn address6(&mut self) -> Ipv6Addr {
        let group = self.group();
        self.one_of(&[
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::LOCALHOST,
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a4d, 2),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0x0a4d, 2),
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0),
            OURS6,
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 3),
            Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
            Ipv6Addr::new(0xfe80, 9, 0, 0, 0, 0, 0, 2),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9),
            own_linklocal(),
            group,
        ])
    }

    fn odd_addresses6(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[UDP, UDP, ICMPV6, TCP, 99]);
        let mut ip = self.ip6(protocol);
        let (from, to) = (self.address6(), self.address6());
        match self.below(3) {
            0 => ip.from = from,
            1 => ip.to = to,
            _ => (ip.from, ip.to) = (from, to),
        }
        let payload = match protocol {
            ICMPV6 => ip.icmp(128, 0, 3, b"odd"),
            TCP => self.tcp6(&ip, 2, &[]),
            _ => self.udp6(&ip),
        };
        if ip.to.is_multicast() && self.below(3) > 0 {
            return vec![Self::to_group(&ip, &payload)];
        }
        vec![ip.frame(&payload)]
    }

    fn other_station6(&mut self) -> Vec<Vec<u8>> {
        let mut frame = self.datagram6().remove(0);
        let to = self.one_of(&[
            [2, 9, 9, 9, 9, 9],
            [0xff; 6],
            [0x33, 0x33, 0, 0, 0, 1],
            [1, 0, 0x5e, 0, 0, 1],
            [0; 6],
        ]);
        frame[..6].copy_from_slice(&to);
        vec![frame]
    }

    fn message6(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip6(ICMPV6);
        let (data, any, code) = (self.data(), self.octet(), self.one_of(&[0, 0, 1, 16]));
        let icmp_type = self.one_of(&[128, 128, 128, 129, 131, 132, 139, 140, 143, 160, 161, any]);
        let mut message = ip.icmp(icmp_type, code, 0x0102_0304, &data);
        match self.below(6) {
            0 => message[2] ^= 1 << self.below(8),
            1 => {
                message.truncate(self.below(9));
                if message.len() >= 4 {
                    ip.mend_above(&mut message, 2);
                }
            }
            _ => {}
        }
        vec![ip.frame(&message)]
    }

    fn error6(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[UDP, UDP, UDP, ICMPV6, TCP, 99]);
        let mut sent = Ip6 {
            from: OURS6,
            to: PEER6,
            ..Ip6::new(protocol)
        };
        if self.below(4) == 0 {
            sent.headers.push(self.extension());
        }
        let payload = match protocol {
            ICMPV6 => {
                let kind = self.one_of(&[128, 129]);
                sent.icmp(kind, 0, 9, b"quoted")
            }
            TCP => self.tcp6(&sent, 2, &[]),
            _ => {
                let any = self.ports();
                let (peer, own) = self.one_of(&[any, (9, 7001)]);
                sent.udp((own, peer), b"quoted")
            }
        };
        let mut quoted = sent.packet(&payload);
        match self.below(6) {
            0 => quoted.truncate(self.below(49)),
            1 => {
                let at = self.below(quoted.len());
                quoted[at] = self.octet();
            }
            _ => {}
        }
        let icmp_type = self.one_of(&[1, 1, 1, 2, 3, 4, 5, 100]);
        let code = self.one_of(&[0, 1, 2, 3, 4, 4, 5, 6, 7, 16]);
        let word = self.one_of(&[0, 0, 1280, 1279, 1400, 0x0001_0000]);
        let ip = self.ip6(ICMPV6);
        vec![ip.frame(&ip.icmp(icmp_type, code, word, &quoted))]
    }

    fn unknown_nexthdr(&mut self) -> Vec<Vec<u8>> {
        let protocol = self.one_of(&[1, 2, 4, 41, 47, 50, 51, 89, 99, 132, 253, 255]);
        let (ip, data) = (self.ip6(protocol), self.data());
        vec![ip.frame(&data)]
    }

    fn tcp6(&mut self, ip: &Ip6, flags: u8, data: &[u8]) -> Vec<u8> {
        let ports = [self.word(), self.one_of(&[7000, 80, 0])];
        let mut segment = ports.map(u16::to_be_bytes).concat();
        segment.extend([0, 0, 1, 0, 0, 0, 2, 0, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
        segment.extend(data);
        ip.mend_above(&mut segment, 16);
        segment
    }

    fn segment6(&mut self) -> Vec<Vec<u8>> {
        let ip = self.ip6(TCP);
        let (flags, data) = (self.octet(), self.data());
        let flags = self.one_of(&[2, 4, 16, 18, 20, 1, 0, flags]);
        let mut segment = self.tcp6(&ip, flags, &data);
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

    /// An option of Neighbour Discovery, as it should be or not.
    fn nd_option(&mut self, kind: u8) -> Vec<u8> {
        let other = self.one_of(&[kind, kind, kind, 1, 2, 3, 5, 14, 99]);
        let station = neighbour(self.one_of(&[1, 1, 7, 8]));
        match self.below(12) {
            0 => Vec::new(),
            1 => vec![other, self.one_of(&[0, 2]), 0, 0, 0, 0, 0, 0],
            2 => [&[other, 2][..], &[0; 14]].concat(),
            3 => vec![other, 1, 0],
            _ => [&[other, 1][..], &station].concat(),
        }
    }

    fn neighbour6(&mut self) -> Vec<Vec<u8>> {
        let solicits = self.below(3) > 0;
        let mut ip = self.ip6(ICMPV6);
        ip.hop_limit = self.one_of(&[255, 255, 255, 255, 254]);
        let learnt = self.stranger();
        ip.from = self.one_of(&[
            ip.from,
            learnt,
            learnt,
            PEER_LINKLOCAL,
            Ipv6Addr::UNSPECIFIED,
        ]);
        let odd = self.address6();
        let target = if solicits {
            self.one_of(&[OURS6, OURS6, OURS6, own_linklocal(), odd])
        } else {
            self.one_of(&[learnt, learnt, PEER6, OURS6, odd])
        };
        let group = self.one_of(&[
            solicited_node(target),
            solicited_node(target),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        ]);
        ip.to = self.one_of(&[ip.to, group]);
        let mut data = target.octets().to_vec();
        let kind = if solicits { 1 } else { 2 };
        for _ in 0..self.one_of(&[0, 1, 1, 1, 2]) {
            data.extend(self.nd_option(kind));
        }
        let flags = u32::from(self.octet()) << 24;
        let code = self.one_of(&[0, 0, 0, 0, 0, 0, 0, 1]);
        let icmp_type = if solicits { 135 } else { 136 };
        let mut message = ip.icmp(icmp_type, code, flags, &data);
        match self.below(12) {
            0 => message[2] ^= 1,
            1 => {
                message.truncate(8 + self.below(16));
                ip.mend_above(&mut message, 2);
            }
            2 => ip.headers.push((FRAGMENT, vec![0, 0, 0, 0, 1, 2, 3, 4])),
            _ => {}
        }
        if ip.to.is_multicast() {
            return vec![Self::to_group(&ip, &message)];
        }
        vec![ip.frame(&message)]
    }

    fn router6(&mut self) -> Vec<Vec<u8>> {
        let mut ip = self.ip6(ICMPV6);
        ip.hop_limit = self.one_of(&[255, 255, 255, 64]);
        let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, self.below(4) as u16);
        ip.from = self.one_of(&[ip.from, router, router]);
        let all = |host| Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, host);
        let icmp_type = self.one_of(&[133, 134, 134, 134]);
        ip.to = self.one_of(&[ip.to, all(1), all(2)]);
        let mut data = vec![0; if icmp_type == 134 { 8 } else { 0 }];
        for _ in 0..self.below(3) {
            data.extend(self.nd_option(1));
        }
        let word = u32::from(self.word()) << 16;
        let message = ip.icmp(icmp_type, 0, word, &data);
        if ip.to.is_multicast() {
            return vec![Self::to_group(&ip, &message)];
        }
        vec![ip.frame(&message)]
    }

    /// Any of the others with some octets changed.
    fn damaged6(&mut self) -> Vec<Vec<u8>> {
        let (_, make) = self.one_of(&KINDS6[..KINDS6.len() - 1]);
        let mut frames = make(self);
        for frame in &mut frames {
            for _ in 0..self.below(3) {
                // (Not the addresses: neighbours that are not there would be asked for.)
                let places = [12..22, 54..frame.len().min(90)];
                let place = places[self.below(2)].clone();
                if !place.is_empty() {
                    let at = place.start + self.below(place.len());
                    frame[at] = self.octet();
                }
            }
        }
        frames
    }
}
