//! Packets byte by byte: made with whatever fields, right or wrong, and read as far as hosts may differ.

use std::net::Ipv4Addr;

use nic_model::port::PortConfig;

use super::packets6::FRAGMENT;

/// The host that the packets are for.
pub const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The one that most come from, which is the gateway, too.
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The one that asks whether all that came before was seen to, by an echo request with this identifier.
const ASKER: u8 = 99;
const ASKER_ID: u16 = 0xba11;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ETHERNET: usize = 14;

/// The address of a neighbour's station, by the last octet of its own.
pub fn neighbour(host: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0x77, host]
}

/// The Internet checksum (RFC 1071).
pub fn checksum(octets: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in octets.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&octet| u32::from(octet));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame from the peer's station to the host's.
pub fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let to = PortConfig::default().mac.0;
    [&to[..], &neighbour(1), &ether_type.to_be_bytes(), payload].concat()
}

/// What an IP header says; its length and checksum are right.
#[derive(Clone)]
pub struct Ip {
    pub tos: u8,
    pub id: u16,
    /// Flags, and the offset in eights.
    pub frag_off: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    /// A multiple of four octets.
    pub options: Vec<u8>,
}

impl Ip {
    /// From the peer to the host.
    pub fn new(protocol: u8) -> Self {
        Ip {
            tos: 0,
            id: 1,
            frag_off: 0,
            ttl: 64,
            protocol,
            from: PEER,
            to: OURS,
            options: Vec::new(),
        }
    }

    /// The packet with that payload.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let len = (header_len + payload.len()) as u16;
        let mut packet = vec![0x40 | (header_len / 4) as u8, self.tos];
        packet.extend(len.to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.frag_off.to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(self.from.octets());
        packet.extend(self.to.octets());
        packet.extend(&self.options);
        packet.extend(payload);
        mend_header(&mut packet);
        packet
    }

    /// The frame with it.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(0x0800, &self.packet(payload))
    }

    /// The checksum of what is above, at `at` in `payload`, with the pseudo-header.
    pub fn mend_above(&self, payload: &mut [u8], at: usize) {
        payload[at..at + 2].fill(0);
        let len = (payload.len() as u16).to_be_bytes();
        let (from, to) = (self.from.octets(), self.to.octets());
        let pseudo = [&from[..], &to, &[0, self.protocol], &len, payload].concat();
        let sum = match checksum(&pseudo) {
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// A datagram between ports.
    pub fn udp(&self, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
        let len = (8 + data.len()) as u16;
        let mut datagram = [from, to, len, 0].map(u16::to_be_bytes).concat();
        datagram.extend(data);
        self.mend_above(&mut datagram, 6);
        datagram
    }

    /// A segment; `flags` as in the header's fourteenth octet.
    pub fn tcp(&self, ports: (u16, u16), flags: u8, data: &[u8]) -> Vec<u8> {
        let mut segment = [ports.0, ports.1].map(u16::to_be_bytes).concat();
        segment.extend([0, 0, 1, 0, 0, 0, 2, 0, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
        segment.extend(data);
        self.mend_above(&mut segment, 16);
        segment
    }
}

/// The right checksum of an IP header, as far as it is there.
pub fn mend_header(packet: &mut [u8]) {
    let len = packet
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    if len < 20 || packet.len() < len {
        return;
    }
    packet[10..12].fill(0);
    let sum = checksum(&packet[..len]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A message of ICMP: its type, code, the rest of its header, and what follows.
pub fn icmp(icmp_type: u8, code: u8, rest: u32, data: &[u8]) -> Vec<u8> {
    let mut message = vec![icmp_type, code, 0, 0];
    message.extend(rest.to_be_bytes());
    message.extend(data);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// A packet of ARP from the peer; the operation is 1 for a request.
pub fn arp(operation: u16, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(neighbour(1));
    packet.extend(from.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    packet
}

/// The frame that asks whether all that came before was seen to.
pub fn barrier() -> Vec<u8> {
    let ip = Ip {
        from: Ipv4Addr::new(10, 77, 0, ASKER),
        ..Ip::new(ICMP)
    };
    ip.frame(&icmp(8, 0, u32::from(ASKER_ID) << 16, &[]))
}

/// Whether a frame is the answer to that.
pub fn is_barrier(frame: &[u8]) -> bool {
    let id = ASKER_ID.to_be_bytes();
    frame.first_chunk() == Some(&neighbour(ASKER)) && frame.get(38..40) == Some(&id)
}

/// A frame that a host sent, without what may differ: identification and checksum of the IP header, the times of a
/// timestamp reply. `None` if it says nothing of IPv4, IPv6 or ARP.
pub fn comparable(frame: &[u8]) -> Option<Vec<u8>> {
    let mut frame = frame.to_vec();
    match frame.get(12..ETHERNET)? {
        [8, 6] => return Some(frame),
        [0x86, 0xdd] => {
            if frame.get(ETHERNET + 6) == Some(&FRAGMENT)
                && let Some(id) = frame.get_mut(ETHERNET + 44..ETHERNET + 48)
            {
                id.fill(0);
            }
            return Some(frame);
        }
        [8, 0] if frame.len() >= ETHERNET + 20 => {}
        _ => return None,
    }
    frame[18..20].fill(0);
    frame[24..26].fill(0);
    let above = ETHERNET + usize::from(frame[14] & 15) * 4;
    if frame[23] == ICMP && frame.get(above) == Some(&14) {
        frame[above + 2..above + 4].fill(0);
        frame[above + 12..above + 20].fill(0);
    }
    Some(frame)
}

/// A frame in hexadecimal.
pub fn hex(frame: &[u8]) -> String {
    let octets = frame.iter().map(|octet| format!("{octet:02x}"));
    octets.collect::<Vec<_>>().concat()
}
