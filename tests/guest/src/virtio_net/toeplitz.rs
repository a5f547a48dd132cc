//! The Toeplitz hash of receive-side scaling (virtio 1.3, 5.1.6.4.3).
//!
//! Slow, and so plain that it can be seen to be right: what a device calculates is measured by it. What
//! goes in is a key and the bytes that [`super::hash_input`] takes from a frame.

/// Hashes `input`: each bit of it that is set adds the 32 bits of `key` that begin at its place. A key is
/// followed by zeros, should it be shorter than the input and 4 bytes.
#[must_use]
pub fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], at: usize| {
        let byte = bytes.get(at / 8).copied().unwrap_or(0);
        u32::from(byte >> (7 - at % 8) & 1)
    };
    (0..8 * input.len())
        .filter(|&at| bit(input, at) == 1)
        .map(|at| (at..at + 32).fold(0, |window, at| window << 1 | bit(key, at)))
        .fold(0, |hash, window| hash ^ window)
}

/// The key of Microsoft's verification suite, from which all implementations are tested.
pub const VERIFICATION_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// Microsoft's verification suite: source, destination, hash of the addresses, hash with the ports.
    const VECTORS: [(&str, &str, u32, u32); 8] = [
        (
            "66.9.149.187:2794",
            "161.142.100.80:1766",
            0x323e_8fc2,
            0x51cc_c178,
        ),
        (
            "199.92.111.2:14230",
            "65.69.140.83:4739",
            0xd718_262a,
            0xc626_b0ea,
        ),
        (
            "24.19.198.95:12898",
            "12.22.207.184:38024",
            0xd2d0_a5de,
            0x5c2b_394a,
        ),
        (
            "38.27.205.30:48228",
            "209.142.163.6:2217",
            0x8298_9176,
            0xafc7_327f,
        ),
        (
            "153.39.163.191:44251",
            "202.188.127.2:1303",
            0x5d18_09c5,
            0x10e8_28a2,
        ),
        (
            "[3ffe:2501:200:1fff::7]:2794",
            "[3ffe:2501:200:3::1]:1766",
            0x2cc1_8cd5,
            0x4020_7d3d,
        ),
        (
            "[3ffe:501:8::260:97ff:fe40:efab]:14230",
            "[ff02::1]:4739",
            0x0f0c_461c,
            0xdde5_1bbf,
        ),
        (
            "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251",
            "[fe80::200:f8ff:fe21:67cf]:38024",
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    fn octets(addr: &SocketAddr) -> Vec<u8> {
        match addr {
            SocketAddr::V4(addr) => addr.ip().octets().to_vec(),
            SocketAddr::V6(addr) => addr.ip().octets().to_vec(),
        }
    }

    #[test]
    fn microsofts_vectors_come_out() {
        for (source, destination, addresses, with_ports) in VECTORS {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            let mut input = [octets(&source), octets(&destination)].concat();
            assert_eq!(toeplitz(&VERIFICATION_KEY, &input), addresses, "{source}");
            input.extend(source.port().to_be_bytes());
            input.extend(destination.port().to_be_bytes());
            assert_eq!(toeplitz(&VERIFICATION_KEY, &input), with_ports, "{source}");
        }
    }

    #[test]
    fn it_is_linear_and_a_short_key_ends_in_zeros() {
        let hash = |input: &[u8]| toeplitz(&VERIFICATION_KEY, input);
        assert_eq!(hash(&[]), 0);
        assert_eq!(
            hash(&[0x80]),
            0x6d5a_56da,
            "the first bit takes the key's first 32"
        );
        assert_eq!(hash(&[0x81]), hash(&[0x80]) ^ hash(&[0x01]));
        assert_eq!(toeplitz(&[0xff], &[0x80]), 0xff00_0000);
        assert_eq!(toeplitz(&[0xff], &[0, 0x80]), 0);
    }
}
