//! Packets made and read by etherparse, which shares nothing with the guest's stack.

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherPayloadSlice, Ethernet2Header, Ethernet2Slice,
    Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header, Ipv4Slice, NetSlice, PacketBuilder,
    SlicedPacket, TransportSlice,
};

use super::world::MAC;

pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0x77, 1];
pub const PEER: [u8; 4] = [10, 77, 0, 1];
pub const OURS: [u8; 4] = [10, 77, 0, 2];

/// A datagram from the peer's port 9000 to `port` here.
pub fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    udp_to(MAC, OURS, port, payload)
}

pub fn udp_to(mac: [u8; 6], ip: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
    udp_between(9000, (mac, ip, port), payload)
}

/// A datagram from that port of the peer.
pub fn udp_between(from: u16, to: ([u8; 6], [u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(PEER_MAC, to.0)
        .ipv4(PEER, to.1, 64)
        .udp(from, to.2);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

pub fn echo_request(id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv4(PEER, OURS, 64)
        .icmpv4_echo_request(id, seq);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

pub fn echo_reply(id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv4(PEER, OURS, 64)
        .icmpv4_echo_reply(id, seq);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// An ICMP message with the right checksum.
pub fn icmp(icmp_type: &Icmpv4Type, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv4(PEER, OURS, 64)
        .icmpv4(icmp_type.clone());
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// An IP packet of any protocol.
pub fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv4Header::new(payload.len() as u16, 64, IpNumber(protocol), PEER, OURS).unwrap();
    ip_with(header, payload)
}

/// An IP packet with that header, whose checksum is made right.
pub fn ip_with(mut header: Ipv4Header, payload: &[u8]) -> Vec<u8> {
    header.header_checksum = header.calc_header_checksum();
    let mut frame = ethernet(MAC, 0x0800);
    header.write_raw(&mut frame).unwrap();
    frame.extend(payload);
    frame
}

pub fn ethernet(destination: [u8; 6], ether_type: u16) -> Vec<u8> {
    Ethernet2Header {
        source: PEER_MAC,
        destination,
        ether_type: ether_type.into(),
    }
    .to_bytes()
    .to_vec()
}

/// An ARP packet from the peer.
pub fn arp(
    destination: [u8; 6],
    operation: ArpOperation,
    sender: ([u8; 6], [u8; 4]),
    target: ([u8; 6], [u8; 4]),
) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: sender.0,
        sender_ipv4: sender.1,
        target_mac: target.0,
        target_ipv4: target.1,
    };
    let mut frame = ethernet(destination, 0x0806);
    frame.extend(etherparse::ArpPacket::from(packet).to_bytes());
    frame
}

/// The peer's answer to a question who has its address.
pub fn arp_reply(ip: [u8; 4]) -> Vec<u8> {
    arp(MAC, ArpOperation::REPLY, (PEER_MAC, ip), (MAC, OURS))
}

/// The peer asks who has `target`.
pub fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let broadcast = [0xff; 6];
    let request = ArpOperation::REQUEST;
    arp(broadcast, request, (PEER_MAC, PEER), ([0; 6], target))
}

/// Reads a frame that the guest sent as ARP: destination, and the packet.
pub fn read_arp(frame: &[u8]) -> ([u8; 6], ArpEthIpv4Packet) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Arp(packet)) = sliced.net else {
        panic!("no ARP: {frame:x?}");
    };
    let eth = Ethernet2Slice::from_slice_without_fcs(frame).unwrap();
    assert_eq!(eth.source(), MAC);
    let packet = packet.to_packet().try_eth_ipv4().unwrap();
    (eth.destination(), packet)
}

/// A frame that the guest sent, as IP: the checked header and the payload.
pub struct Ip<'a> {
    pub destination: [u8; 6],
    pub header: Ipv4Header,
    pub payload: &'a [u8],
}

/// Reads a frame that the guest sent as IPv4; the header's checksum is right.
pub fn read_ip(frame: &[u8]) -> Ip<'_> {
    let eth = Ethernet2Slice::from_slice_without_fcs(frame).unwrap();
    assert_eq!(eth.source(), MAC);
    let EtherPayloadSlice { payload, .. } = eth.payload();
    let ip = Ipv4Slice::from_slice(payload).unwrap();
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(header.source, OURS);
    Ip {
        destination: eth.destination(),
        header,
        payload: ip.payload().payload,
    }
}

/// Reads a frame that the guest sent as UDP: destination address, ports, payload. Its checksum is
/// right.
pub fn read_udp(frame: &[u8]) -> ([u8; 4], u16, u16, Vec<u8>) {
    let ip = read_ip(frame);
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("no UDP: {frame:x?}");
    };
    let check = udp
        .to_header()
        .calc_checksum_ipv4(&ip.header, udp.payload())
        .unwrap();
    assert_eq!(udp.checksum(), check, "UDP checksum");
    let ports = (udp.source_port(), udp.destination_port());
    (
        ip.header.destination,
        ports.0,
        ports.1,
        udp.payload().to_vec(),
    )
}

/// Reads a frame that the guest sent as ICMP: message and payload. Its checksum is right.
pub fn read_icmp(frame: &[u8]) -> (Icmpv4Type, Vec<u8>) {
    let ip = read_ip(frame);
    let (header, payload) = Icmpv4Header::from_slice(ip.payload).unwrap();
    assert_eq!(header.checksum, header.icmp_type.calc_checksum(payload));
    (header.icmp_type, payload.to_vec())
}
