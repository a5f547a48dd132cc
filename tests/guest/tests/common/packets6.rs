//! Packets of IPv6, made byte by byte.

use std::net::Ipv6Addr;

use etherparse::PacketBuilder;

use super::packets::{PEER_MAC, ethernet};
use super::world::MAC;

pub const OURS6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
pub const LINKLOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The group of solicited nodes that [`OURS6`] is in.
pub const SOLICITED: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);

/// A packet from the peer to this host.
pub fn ip6(next: u8, payload: &[u8]) -> Vec<u8> {
    ip6_between(PEER6, OURS6, 64, next, payload)
}

pub fn ip6_between(from: Ipv6Addr, to: Ipv6Addr, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(MAC, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, hops]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}

/// The Internet checksum with IPv6's pseudo-header.
pub fn checksum6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> [u8; 2] {
    let len = (payload.len() as u32).to_be_bytes();
    let octets = [
        &from.octets()[..],
        &to.octets(),
        &len,
        &[0, 0, 0, next],
        payload,
    ]
    .concat();
    let words = octets.chunks(2).map(|word| {
        let low = word.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([word[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A message of ICMPv6 with the right checksum.
pub fn message6(from: Ipv6Addr, to: Ipv6Addr, head: [u8; 8], rest: &[u8]) -> Vec<u8> {
    let mut message = [&head[..], rest].concat();
    message[2..4].fill(0);
    let sum = checksum6(from, to, 58, &message);
    message[2..4].copy_from_slice(&sum);
    message
}

pub fn echo_request6(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let message = message6(from, to, [128, 0, 0, 0, 0, 7, 0, 1], payload);
    ip6_between(from, to, 64, 58, &message)
}

pub fn udp6(port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv6(PEER6.octets(), OURS6.octets(), 64)
        .udp(9000, port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A solicitation or an advertisement that is as it should be.
pub fn neighbour6(icmp_type: u8, (from, to): (Ipv6Addr, Ipv6Addr), target: Ipv6Addr) -> Vec<u8> {
    let kind = if icmp_type == 135 { 1 } else { 2 };
    let rest = [&target.octets()[..], &[kind, 1], &PEER_MAC].concat();
    let message = message6(from, to, [icmp_type, 0, 0, 0, 0x60, 0, 0, 0], &rest);
    ip6_between(from, to, 255, 58, &message)
}
