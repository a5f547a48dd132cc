//! Flows, for automatic receive steering: a number that the frames of a conversation have in common, in
//! both directions.
//!
//! No standard says how: each end, its address and port, is scrambled by itself and the two are added, so that it does
//! not matter which of them sends. Fragments are known by their addresses alone.

use super::hash::octets;
use crate::parse::{Network, Summary, Transport};

/// The conversation that a frame with the headers `summary` belongs to; `None` if it is not of IP.
#[must_use]
#[inline]
pub fn flow(frame: &[u8], summary: &Summary) -> Option<u32> {
    let network = usize::from(summary.network_offset);
    let (source, destination) = match summary.network {
        Network::Other => return None,
        Network::Ipv4 => {
            let [a, b, c, d, e, f, g, h] = *octets(frame, network + 12)?;
            let address = |octets| u64::from(u32::from_be_bytes(octets));
            (address([a, b, c, d]), address([e, f, g, h]))
        }
        Network::Ipv6 => (
            fold(octets(frame, network + 8)?),
            fold(octets(frame, network + 24)?),
        ),
    };
    let [a, b, c, d] = match summary.transport {
        Transport::None => [0; 4],
        Transport::Tcp | Transport::Udp => *octets(frame, usize::from(summary.transport_offset))?,
    };
    let source = scramble(source ^ u64::from(u16::from_be_bytes([a, b])) << 32);
    let destination = scramble(destination ^ u64::from(u16::from_be_bytes([c, d])) << 32);
    Some((source.wrapping_add(destination) >> 32) as u32)
}

#[inline]
fn fold(address: &[u8; 16]) -> u64 {
    let address = u128::from_be_bytes(*address);
    scramble((address >> 64) as u64) ^ address as u64
}

/// Both halves of a long product, as each bit of a factor reaches one of them. The constants are fractions of pi.
#[inline]
fn scramble(value: u64) -> u64 {
    let product = u128::from(value ^ 0x243f_6a88_85a3_08d3) * u128::from(0x1319_8a2e_0370_7345_u64);
    (product >> 64) as u64 ^ product as u64
}
