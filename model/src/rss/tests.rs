mod hashing;
mod steering;

use super::*;
use etherparse::PacketBuilder;

/// The key that Microsoft verifies receive-side scaling with.
const KEY: [u8; MAX_KEY] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

fn everything() -> HashConfig {
    HashConfig::new(HashTypes::ALL.bits(), &KEY).unwrap()
}

/// A frame of TCP over IPv4.
fn tcp4(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(source.0, destination.0, 64)
        .tcp(source.1, destination.1, 1, 1)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

/// The frame of TCP over IPv4 of the conversation with the number `n`, and the one that answers it.
fn conversation(n: u32) -> (Vec<u8>, Vec<u8>) {
    let [a, b, c, d] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
    let (client, server) = (([10, 1, a, b], 1024 + n as u16), ([10, 2, c, d], 443));
    (tcp4(client, server), tcp4(server, client))
}

impl Rss {
    /// Whether both know the same of where flows went last.
    pub(crate) fn remembers_the_same_as(&self, other: &Rss) -> bool {
        self.mode == other.mode && self.slots == other.slots
    }
}
