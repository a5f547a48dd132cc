//! Frames: octets as they come, or a sound packet that is then spoilt.

use super::input::Input;

/// The card's address.
pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// The Internet checksum of `octets` on top of `sum` (RFC 1071).
pub(crate) fn checksum(octets: &[u8], mut sum: u32) -> u16 {
    // It cannot wrap: no packet is that long. Unchecked, it is done many octets at a time.
    let (pairs, odd) = octets.as_chunks();
    sum = pairs.iter().fold(sum, |sum, &pair| {
        sum.wrapping_add(u16::from_be_bytes(pair).into())
    });
    sum += odd.first().map_or(0, |&last| u32::from(last) << 8);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame with `payload` in an IPv4 packet of `protocol` from host `from`.
pub(crate) fn ipv4(protocol: u8, from: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]].concat();
    frame.extend((20 + payload.len() as u16).to_be_bytes());
    frame.extend([
        0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 77, 0, from, 10, 77, 0, 2,
    ]);
    let sum = checksum(&frame[14..], 0);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A frame of any octets, or a packet of TCP or UDP of up to `most` octets of payload with some of its octets replaced.
#[must_use]
pub fn frame(input: &mut Input<'_>, most: u16) -> Vec<u8> {
    let kind = input.u8();
    if kind & 0xf0 == 0xf0 {
        return input.octets(most.min(0x3ff)).to_vec();
    }
    let (tagged, ipv6, tcp) = (kind & 1 != 0, kind & 2 != 0, kind & 4 != 0);
    let payload = usize::from(input.u16()) % (usize::from(most) + 1);
    let mut frame = Vec::with_capacity(payload + 80);
    frame.extend(match kind & 0x18 {
        0x18 => [0xff; 6],
        0x10 => [1, 0, 0x5e, 0, 0, 1],
        _ => MAC,
    });
    frame.extend([2, 0, 0, 0, 0, 1]);
    if tagged {
        frame.extend([0x81, 0, 0, input.u8()]);
    }
    let network = frame.len() + 2;
    let transport_len = if tcp { 20 } else { 8 } + payload;
    let protocol = if tcp { 6 } else { 17 };
    let flow = input.u8();
    let addresses = if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((transport_len as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        let mut addresses = [0; 32];
        (addresses[0], addresses[15], addresses[16], addresses[31]) = (0xfd, flow, 0xfd, 2);
        frame.extend(addresses);
        32
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + transport_len as u16).to_be_bytes());
        frame.extend([
            0, flow, 0x40, 0, 64, protocol, 0, 0, 10, 77, 0, flow, 10, 77, 0, 2,
        ]);
        let sum = checksum(&frame[network..], 0);
        frame[network + 10..][..2].copy_from_slice(&sum.to_be_bytes());
        8
    };
    let transport = frame.len();
    frame.extend([0x30, flow, 0x00, 0x07]);
    if tcp {
        frame.extend([
            0,
            0,
            0,
            flow,
            0,
            0,
            0,
            0,
            0x50,
            input.u8(),
            0xff,
            0xff,
            0,
            0,
            0,
            0,
        ]);
    } else {
        frame.extend((transport_len as u16).to_be_bytes());
        frame.extend([0, 0]);
    }
    let begin = frame.len();
    let pattern: [u8; 256] = std::array::from_fn(|at| at as u8 ^ flow);
    while frame.len() < begin + payload {
        let left = begin + payload - frame.len();
        frame.extend_from_slice(&pattern[..left.min(pattern.len())]);
    }
    if kind & 0x20 == 0 {
        let pseudo = u32::from(protocol) + transport_len as u32;
        let sum = checksum(&frame[transport - addresses..], pseudo);
        let at = transport + if tcp { 16 } else { 6 };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    if kind & 0xc0 == 0x40 {
        // Some octets are others.
        for _ in 0..input.u8() % 4 {
            let at = usize::from(input.u8()) % frame.len();
            frame[at] = input.u8();
        }
    }
    frame
}
