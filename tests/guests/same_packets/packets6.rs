//! Packets of IPv6 byte by byte: made with whatever fields, right or wrong.

use std::net::Ipv6Addr;

use super::packets::{checksum, ethernet};

/// The host that the packets are for, and its network's name.
pub const OURS6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
pub const PREFIX_LEN: u8 = 64;
/// The one that most come from, which is the gateway, too; and as its link knows it.
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
pub const PEER_LINKLOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

pub const HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const ICMPV6: u8 = 58;
pub const NONE: u8 = 59;
pub const DEST: u8 = 60;

/// What an IPv6 header says, and what is between it and the payload; its length is right.
#[derive(Clone)]
pub struct Ip6 {
    pub tclass: u8,
    pub hop_limit: u8,
    /// Of the payload.
    pub protocol: u8,
    pub from: Ipv6Addr,
    pub to: Ipv6Addr,
    /// Headers by their numbers; the first octet of each is where the next one's number belongs.
    pub headers: Vec<(u8, Vec<u8>)>,
}

impl Ip6 {
    /// From the peer to the host.
    pub fn new(protocol: u8) -> Self {
        Ip6 {
            tclass: 0,
            hop_limit: 64,
            protocol,
            from: PEER6,
            to: OURS6,
            headers: Vec::new(),
        }
    }

    /// The packet with that payload.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut rest = payload.to_vec();
        let mut next = self.protocol;
        for (number, header) in self.headers.iter().rev() {
            let mut header = header.clone();
            header[0] = next;
            header.append(&mut rest);
            (rest, next) = (header, *number);
        }
        let mut packet = vec![0x60 | self.tclass >> 4, self.tclass << 4, 0, 0];
        packet.extend((rest.len() as u16).to_be_bytes());
        packet.extend([next, self.hop_limit]);
        packet.extend(self.from.octets());
        packet.extend(self.to.octets());
        packet.append(&mut rest);
        packet
    }

    /// The frame with it.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(0x86dd, &self.packet(payload))
    }

    /// The checksum of what is above, at `at` in `payload`, with the pseudo-header.
    pub fn mend_above(&self, payload: &mut [u8], at: usize) {
        payload[at..at + 2].fill(0);
        let len = (payload.len() as u32).to_be_bytes();
        let (from, to) = (self.from.octets(), self.to.octets());
        let pseudo = [&from[..], &to, &len, &[0, 0, 0, self.protocol], payload].concat();
        let sum = match checksum(&pseudo) {
            0 => 0xffff,
            sum => sum,
        };
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// A datagram between ports.
    pub fn udp(&self, (from, to): (u16, u16), data: &[u8]) -> Vec<u8> {
        let len = (8 + data.len()) as u16;
        let mut datagram = [from, to, len, 0].map(u16::to_be_bytes).concat();
        datagram.extend(data);
        self.mend_above(&mut datagram, 6);
        datagram
    }

    /// A message of ICMPv6: its type, code, the rest of its header, and what follows.
    pub fn icmp(&self, icmp_type: u8, code: u8, rest: u32, data: &[u8]) -> Vec<u8> {
        let mut message = vec![icmp_type, code, 0, 0];
        message.extend(rest.to_be_bytes());
        message.extend(data);
        self.mend_above(&mut message, 2);
        message
    }
}

/// The link-local address of a station.
pub fn linklocal([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    octets.into()
}

/// The group of all hosts whose address ends as that one.
pub fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from(b) << 8 | u16::from(c),
    )
}
