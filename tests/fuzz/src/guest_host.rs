//! What a host may have beside the sockets of a [`Bed`]: streams, raw and packet sockets, several devices, forwarding; and
//! frames that are sound enough to get there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use nic_guest::net::{Errno, Fd, Ifindex, Ipv6Sysctl, KernelConfig, Protocol, SockType};

use super::guest::Bed;
use super::input::Input;
use super::packet::{MAC, checksum};

/// The VLAN that the host may have.
const VLAN: u8 = 5;
/// Its IPv6 address.
const OURS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The port of its listener, and of its datagram socket.
const PORT: u16 = 7;

/// A host, as an octet of the input says.
pub(crate) struct Host {
    parts: u8,
    listener: Option<Fd>,
    streams: Vec<Fd>,
    raw: Vec<Fd>,
    tap: Option<Fd>,
    datagrams: Option<Fd>,
    over_ipv6: Fd,
}

/// How the kernel of a host is set.
pub(crate) fn config(parts: u8) -> KernelConfig {
    KernelConfig {
        ip_forward: parts & 1 != 0,
        ipv6: Ipv6Sysctl {
            addr: Some((OURS6, 64)),
            gateway: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
            ..Ipv6Sysctl::default()
        },
        ..KernelConfig::default()
    }
}

impl Host {
    /// Has the kernel have what the bits of `parts` name.
    ///
    /// # Panics
    /// When the kernel refuses what it must not.
    pub(crate) fn new(bed: &mut Bed, parts: u8) -> Self {
        let kernel = &mut bed.kernel;
        let over_ipv6 = kernel.socket6(SockType::Dgram, Protocol::Udp);
        let over_ipv6 = over_ipv6.expect("the kernel has room for a socket");
        let own = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT, 0, 0);
        kernel.bind6(over_ipv6, own).expect("a free port");
        let mut host = Host {
            over_ipv6,
            parts,
            listener: None,
            streams: Vec::new(),
            raw: Vec::new(),
            tap: None,
            datagrams: None,
        };
        if parts != 0 {
            host.furnish(bed).expect("the kernel has room for all");
        }
        host
    }

    fn has(&self, bit: u8) -> bool {
        self.parts >> bit & 1 == 1
    }

    fn furnish(&mut self, bed: &mut Bed) -> Result<(), Errno> {
        let kernel = &mut bed.kernel;
        let any = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let datagrams = kernel.socket(SockType::Dgram, Protocol::Udp)?;
        kernel.bind(datagrams, any(PORT + 1))?;
        kernel.set_broadcast(datagrams, true)?;
        self.datagrams = Some(datagrams);
        if self.has(1) {
            let listener = kernel.socket(SockType::Stream, Protocol::Tcp)?;
            kernel.bind(listener, any(PORT))?;
            kernel.listen(listener, 4)?;
            self.listener = Some(listener);
        }
        if self.has(2) {
            for protocol in [1, 6, 17] {
                let raw = kernel.socket(SockType::Raw, Protocol::Raw(protocol))?;
                self.raw.push(raw);
            }
        }
        if self.has(3) {
            self.tap = Some(kernel.packet_socket(None)?);
        }
        let mut ports = vec![Ifindex::ETH0];
        if self.has(4) {
            let dummy = kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1])?;
            kernel.inet_addr_add(dummy, Ipv4Addr::new(10, 78, 0, 1), 24)?;
            kernel.dev_set_mtu(dummy, 600)?;
            ports.push(dummy);
        }
        if self.has(5) {
            let vlan = kernel.vlan_add("eth0.5", Ifindex::ETH0, VLAN.into())?;
            kernel.inet_addr_add(vlan, Ipv4Addr::new(10, 79, 0, 1), 24)?;
            kernel.dev_set_mtu(vlan, 600)?;
            kernel.neigh_add(Ipv4Addr::new(10, 79, 0, 9), [2, 0, 0, 0, 0, 9])?;
            ports.push(vlan);
        }
        if self.has(6) {
            let bridge = kernel.br_add_bridge("br0")?;
            kernel.inet_addr_add(bridge, Ipv4Addr::new(10, 80, 0, 1), 24)?;
            // Both the device and its VLAN, or the software's alone.
            let first = usize::from(self.has(7) && ports.len() > 1);
            for &port in &ports[first..] {
                kernel.br_add_if(bridge, port)?;
            }
        } else if self.has(7) {
            kernel.set_udp_gro(datagrams, true)?;
        }
        Ok(())
    }

    /// What a process does with the IPv6 socket; each call may fail.
    pub(crate) fn process6(&mut self, bed: &mut Bed, input: &mut Input<'_>) {
        let mut buffer = [0; 4096];
        let _ = bed.kernel.recvfrom6(self.over_ipv6, &mut buffer);
        let (script, len) = (input.u8(), usize::from(input.below(3000)));
        if script & 3 == 0 {
            // Mostly by eth0; else by no device, another, or one that there may not be.
            let scope = 2 ^ u32::from(script >> 2 & 3);
            let to = SocketAddrV6::new(address6(input), PORT, 0, scope);
            if script & 0x80 != 0 {
                let _ = bed.kernel.connect6(self.over_ipv6, to);
            }
            let _ = bed.kernel.sendto6(self.over_ipv6, &buffer[..len], Some(to));
        }
        if script & 0x70 == 0x70 {
            bed.device.advance(u64::from(input.u16()) * 1_000_000);
        }
    }

    /// What processes of it do; each call may fail.
    pub(crate) fn process(&mut self, bed: &mut Bed, input: &mut Input<'_>) {
        let (script, which) = (input.below(16), usize::from(input.u8()));
        let octets = input.octets(200);
        let to = SocketAddrV4::new(address(input), u16::from(input.u8()));
        let mut buffer = [0; 4096];
        let kernel = &mut bed.kernel;
        let stream = self.streams.get(which % self.streams.len().max(1)).copied();
        let raw = self.raw.get(which % 3).copied();
        match (script, stream, raw) {
            (0, ..) => {
                let accepted = self.listener.map(|listener| kernel.accept(listener));
                self.streams
                    .extend(accepted.and_then(Result::ok).map(|(fd, _)| fd));
            }
            (1, ..) if self.streams.len() < 8 => {
                if let Ok(fd) = kernel.socket(SockType::Stream, Protocol::Tcp) {
                    let _ = kernel.connect(fd, to);
                    self.streams.push(fd);
                }
            }
            (2 | 3, Some(fd), _) => {
                let _ = kernel.write(fd, &octets.repeat(1 + which % 32));
            }
            (4, Some(fd), _) => {
                let _ = kernel.recvfrom(fd, &mut buffer);
            }
            (5, Some(fd), _) => {
                let _ = kernel.close(fd);
                self.streams.retain(|&other| other != fd);
            }
            (6, _, Some(fd)) => {
                let _ = kernel.set_hdrincl(fd, which & 4 != 0);
                let _ = kernel.sendto(fd, octets, Some(to));
            }
            (7 | 8, _, Some(fd)) => {
                let _ = kernel.recvfrom(fd, &mut buffer);
            }
            (9, ..) => {
                let _ = self.tap.map(|tap| kernel.packet_recvmsg(tap, &mut buffer));
            }
            (10 | 11, ..) => {
                let sent = |fd| kernel.sendto(fd, &octets.repeat(1 + which % 16), Some(to));
                let _ = self.datagrams.map(sent);
            }
            (12, ..) => {
                let received = |fd| kernel.recvfrom(fd, &mut buffer);
                let _ = self.datagrams.map(received);
            }
            (13, ..) => {
                let group = Ipv4Addr::new(239, 0, 0, which as u8 & 3);
                let join = |fd| kernel.ip_mc_join_group(fd, group, Some(Ifindex::ETH0));
                let _ = self.datagrams.map(join);
            }
            (14, ..) => {
                let _ = kernel.neigh_add(*to.ip(), [2, 0, 0, 0, 0, which as u8]);
            }
            _ => {
                bed.device.advance(u64::from(input.u16()) * 1_000_000);
                let _ = bed.kernel.wait(std::time::Duration::ZERO);
            }
        }
    }
}

/// Of this host, of its networks, or of nobody.
fn address(input: &mut Input<'_>) -> Ipv4Addr {
    let [net, last] = [input.below(5) as u8, input.u8()];
    let last = match last & 7 {
        0 => last >> 4,
        1 => 255,
        2 => 2,
        3 => 1,
        _ => 9,
    };
    match (net, last) {
        (4, last) => Ipv4Addr::new(239, 0, 0, last & 3),
        (net, last) => Ipv4Addr::new(10, 77 + net, 0, last),
    }
}

/// Of this host, of its link, of a group, or of nobody.
fn address6(input: &mut Input<'_>) -> Ipv6Addr {
    let last = u16::from(input.u8());
    let near = |first| Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last & 7);
    match last >> 5 {
        0 => near(0xff02),
        1 => near(0xfe80),
        2 => near(0),
        3 => near(0x2001),
        4 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2),
        _ => near(0xfd00),
    }
}

/// A frame with an IPv6 packet, most often for this host, whose checksum is right: headers in any order, and a datagram, a
/// message of ICMPv6 or of Neighbour Discovery, or a segment behind them.
pub(crate) fn frame6(input: &mut Input<'_>) -> Vec<u8> {
    let (kind, flow) = (input.below(5), input.u8());
    let from = match flow & 3 {
        0 => address6(input),
        _ => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1 + u16::from(flow & 0xc)),
    };
    let to = match input.below(4) {
        0 => address6(input),
        _ => OURS6,
    };
    let len = usize::from(input.below(600));
    let (protocol, check_at, mut payload) = match kind {
        0 | 1 => {
            let mut datagram = vec![0x30, flow, 0, PORT as u8];
            datagram.extend((8 + len as u16).to_be_bytes());
            datagram.extend([0, 0]);
            datagram.resize(8 + len, flow);
            (17, 6, datagram)
        }
        2 => {
            let mut message = vec![133 + input.below(5) as u8, 0, 0, 0, input.u8(), 0, 0, 0];
            message.extend(address6(input).octets());
            message.extend(input.octets(24));
            (58, 2, message)
        }
        3 => {
            let mut message = vec![input.u8() & 0x87, input.u8() & 7, 0, 0];
            message.extend(input.u32().to_be_bytes());
            // What this host may have sent.
            message.extend([0x60, 0, 0, 0, 0, 16, 17, 64]);
            message.extend([OURS6, from].map(|addr| addr.octets()).concat());
            message.extend([0, PORT as u8, 0x30, flow]);
            message.extend(input.octets(60));
            (58, 2, message)
        }
        _ => {
            let mut segment = vec![0x30, flow, 0, PORT as u8];
            segment.extend([
                0,
                0,
                0,
                1,
                0,
                0,
                0,
                2,
                0x50,
                input.u8(),
                0xff,
                0,
                0,
                0,
                0,
                0,
            ]);
            (6, 16, segment)
        }
    };
    let addresses = [from, to].map(|addr| addr.octets()).concat();
    let pseudo = u32::from(!checksum(&addresses, 0)) + u32::from(protocol);
    let sum = checksum(&payload, pseudo + payload.len() as u32);
    store(&mut payload, check_at, sum);
    let mut next: u8 = protocol;
    for _ in 0..input.below(4) {
        let (number, mut header) = match input.below(4) {
            0 => (
                44,
                [&[0, 0, input.u8(), input.u8(), 0, 0, 0][..], &[flow & 7]].concat(),
            ),
            1 => (43, vec![0, 0, input.u8() & 7, input.u8() & 1, 0, 0, 0, 0]),
            which => {
                let mut options = vec![0, 0];
                options.extend(input.octets(14));
                options.resize(options.len().next_multiple_of(8), 0);
                options[1] = (options.len() / 8 - 1) as u8;
                (if which == 2 { 0 } else { 60 }, options)
            }
        };
        header[0] = next;
        next = number;
        payload.splice(0..0, header);
    }
    let mut frame = match to.octets() {
        [0xff, .., a, b, c, d] => [0x33, 0x33, a, b, c, d].to_vec(),
        _ => MAC.to_vec(),
    };
    frame.extend([2, 0, 0, 0, 0, flow & 3, 0x86, 0xdd, 0x60, flow & 0x30, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, if kind == 2 { 255 } else { 64 }]);
    frame.extend(addresses);
    frame.extend(payload);
    frame
}

/// IP's options, padded.
fn options(input: &mut Input<'_>) -> Vec<u8> {
    let mut options = match input.below(8) {
        0 => vec![1, 1, 7, 7, 4, 0, 0, 0],
        1 => vec![7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0],
        2 => vec![68, 12, 5, 0],
        3 => vec![148, 4, 0, 0],
        4 => input.octets(40).to_vec(),
        _ => Vec::new(),
    };
    options.resize(options.len().next_multiple_of(4).min(40), 0);
    options
}

fn store(octets: &mut [u8], at: usize, sum: u16) {
    octets[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// An IP header in front of `payload`.
fn ipv4(
    ends: [Ipv4Addr; 2],
    protocol: u8,
    options: &[u8],
    place: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    let hdr_len = 20 + options.len();
    let mut packet = vec![0x40 | (hdr_len / 4) as u8, 0];
    packet.extend(((hdr_len + payload.len()) as u16).to_be_bytes());
    packet.extend(place);
    packet.extend([64, protocol, 0, 0]);
    packet.extend(ends.map(|end| end.octets()).concat());
    packet.extend(options);
    let sum = checksum(&packet, 0);
    store(&mut packet, 10, sum);
    packet.extend(payload);
    packet
}

/// A frame for the host or through it, whose checksums are right. `seen` is what its last segment acknowledged, and the
/// number after it.
pub(crate) fn frame(input: &mut Input<'_>, seen: (u32, u32)) -> Vec<u8> {
    let (kind, flow) = (input.below(4), input.u8());
    let from = Ipv4Addr::new(10, 77, 0, 1 + flow % 4 * 8);
    let to = match input.below(4) {
        0 => address(input),
        _ => Ipv4Addr::new(10, 77, 0, 2),
    };
    let len = usize::from(input.below(1400));
    let data = vec![flow; len];
    let ports = [0x30, flow & 3, 0, PORT as u8 + (flow >> 7)];
    let near = |number: u32, input: &mut Input<'_>| {
        let off = i32::from(input.u8() as i8);
        number.wrapping_add_signed(if off & 1 == 0 { 0 } else { off * 16 })
    };
    let (protocol, check_at, mut payload) = match kind {
        0 => {
            let mut segment = ports.to_vec();
            segment.extend(near(seen.0, input).to_be_bytes());
            segment.extend(near(seen.1, input).to_be_bytes());
            segment.extend([0x50, input.u8(), input.u8(), 0xff, 0, 0, 0, 0]);
            (6, 16, [segment, data].concat())
        }
        1 => {
            let mut datagram = ports.to_vec();
            datagram.extend((8 + len as u16).to_be_bytes());
            datagram.extend([0, 0]);
            (17, 6, [datagram, data].concat())
        }
        2 => {
            let mut message = vec![input.below(16) as u8, input.u8() & 7, 0, 0];
            message.extend(input.u32().to_be_bytes());
            // What this host may have sent.
            let protocol = [6, 17, 1][usize::from(flow % 3)];
            let quoted = [[0, PORT as u8], [0x30, flow & 3]].concat();
            let quoted = [&quoted[..], &seen.1.to_be_bytes()].concat();
            let ends = [Ipv4Addr::new(10, 77, 0, 2), from];
            message.extend(ipv4(ends, protocol, &[], [0; 4], &quoted));
            (1, 2, message)
        }
        _ => (2, 2, [&[0x11, 0, 0, 0][..], input.octets(12)].concat()),
    };
    let pseudo = if matches!(protocol, 6 | 17) {
        let addresses = [from.octets(), to.octets()].concat();
        let sum = !checksum(&addresses, 0);
        u32::from(sum) + u32::from(protocol) + payload.len() as u32
    } else {
        0
    };
    let sum = checksum(&payload, pseudo);
    store(&mut payload, check_at, sum);
    let place = match input.below(4) {
        0 => [0, input.u8() & 7, input.u8() & 0x60, input.u8()],
        1 => [0, input.u8() & 7, 0, 0],
        _ => [0, input.u8(), 0x40, 0],
    };
    let options = options(input);
    let packet = ipv4([from, to], protocol, &options, place, &payload);
    let dest = match to.octets() {
        [239, a, b, c] => [1, 0, 0x5e, a, b, c],
        [.., 255] => [0xff; 6],
        _ if flow & 0x40 != 0 && input.below(8) == 0 => [2, 0, 0, 0, 0, input.u8()],
        _ => MAC,
    };
    let mut frame = [dest, [2, 0, 0, 0, 0, flow & 3]].concat();
    match input.below(8) {
        0 => frame.extend([0x81, 0, 0, VLAN]),
        1 => frame.extend([0x81, 0, 0, input.u8()]),
        _ => {}
    }
    frame.extend([8, 0]);
    frame.extend(packet);
    frame
}
