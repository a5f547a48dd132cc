//! Config space of virtio-net (virtio 1.3, 5.1.4).
//!
//! What enters: bytes, read again until no change came in between. What leaves: fields that the
//! negotiated features cover, each `None` where they do not.

use super::features as f;
use crate::transport::{Transport, TransportError};

/// The link is up.
pub const VIRTIO_NET_S_LINK_UP: u16 = 1;
/// The driver is to announce itself.
pub const VIRTIO_NET_S_ANNOUNCE: u16 = 2;

/// How often a config space that changes under the read is read again.
const ATTEMPTS: usize = 16;

/// Fields of config space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioNetConfig {
    /// MAC address.
    pub mac: Option<[u8; 6]>,
    /// `VIRTIO_NET_S_*`.
    pub status: Option<u16>,
    /// Queue pairs at most.
    pub max_virtqueue_pairs: Option<u16>,
    /// MTU.
    pub mtu: Option<u16>,
    /// Mb/s; `u32::MAX` where unknown.
    pub speed: Option<u32>,
    /// 0 half, 1 full, 0xff unknown.
    pub duplex: Option<u8>,
    /// Longest RSS key.
    pub rss_max_key_size: Option<u8>,
    /// Longest RSS table.
    pub rss_max_indirection_table_length: Option<u16>,
    /// `VIRTIO_NET_RSS_HASH_TYPE_*`.
    pub supported_hash_types: Option<u32>,
    /// `VIRTIO_NET_HASH_TUNNEL_TYPE_*`.
    pub supported_tunnel_types: Option<u32>,
}

/// Bytes of the longest config space that this driver knows.
const MAX_LEN: usize = 28;

/// Whether both ends of a link send at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplex {
    /// One at a time.
    Half,
    /// Both.
    Full,
}

impl VirtioNetConfig {
    /// Bytes of config space that `features` cover.
    #[must_use]
    pub fn len(features: u64) -> usize {
        let fields = [
            (f::HASH_TUNNEL, MAX_LEN),
            (f::RSS | f::HASH_REPORT, 24),
            (f::SPEED_DUPLEX, 17),
            (f::MTU, 12),
            (f::MQ | f::RSS, 10),
            (f::STATUS, 8),
            (f::MAC, 6),
        ];
        fields
            .iter()
            .find(|(bits, _)| features & bits != 0)
            .map_or(0, |&(_, len)| len)
    }

    /// Reads what `features` cover, all of one generation.
    ///
    /// # Errors
    /// When the transport cannot, or config space never rests.
    pub fn read(transport: &mut impl Transport, features: u64) -> Result<Self, TransportError> {
        let mut bytes = [0; MAX_LEN];
        let len = Self::len(features);
        if len == 0 {
            return Ok(Self::default());
        }
        for _ in 0..ATTEMPTS {
            let before = transport.config_generation();
            transport.read_config(0, &mut bytes[..len])?;
            if transport.config_generation() == before {
                return Ok(Self::parse(&bytes, features));
            }
        }
        Err(TransportError::refused(
            "config space",
            "changes all the time",
        ))
    }

    fn parse(bytes: &[u8; MAX_LEN], features: u64) -> Self {
        let has = |bits| features & bits != 0;
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let (rss, hash) = (has(f::RSS), has(f::RSS | f::HASH_REPORT));
        Self {
            mac: bytes.first_chunk().copied().filter(|_| has(f::MAC)),
            status: has(f::STATUS).then(|| word(6)),
            max_virtqueue_pairs: has(f::MQ | f::RSS).then(|| word(8)),
            mtu: has(f::MTU).then(|| word(10)),
            speed: has(f::SPEED_DUPLEX).then(|| long(12)),
            duplex: has(f::SPEED_DUPLEX).then(|| bytes[16]),
            rss_max_key_size: hash.then(|| bytes[17]),
            rss_max_indirection_table_length: rss.then(|| word(18)),
            supported_hash_types: hash.then(|| long(20)),
            supported_tunnel_types: has(f::HASH_TUNNEL).then(|| long(24)),
        }
    }

    /// Speed in Mb/s and duplex of the link, each where the device knows and says what can be
    /// (`virtnet_update_settings`).
    #[must_use]
    pub fn link_settings(&self) -> (Option<u32>, Option<Duplex>) {
        let duplex = match self.duplex {
            Some(0) => Some(Duplex::Half),
            Some(1) => Some(Duplex::Full),
            _ => None,
        };
        let possible = |speed: &u32| *speed <= i32::MAX as u32;
        (self.speed.filter(possible), duplex)
    }

    /// Whether the link is up; without a status it always is.
    #[must_use]
    pub fn link_up(&self) -> bool {
        self.status
            .is_none_or(|status| status & VIRTIO_NET_S_LINK_UP != 0)
    }

    /// Whether the device asks for an announcement.
    #[must_use]
    pub fn announce(&self) -> bool {
        self.status
            .is_some_and(|status| status & VIRTIO_NET_S_ANNOUNCE != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_standard_has_them() {
        let mut bytes = [0; MAX_LEN];
        for (at, byte) in (0..).zip(&mut bytes) {
            *byte = at;
        }
        let all = f::MAC | f::STATUS | f::MQ | f::MTU | f::SPEED_DUPLEX | f::RSS | f::HASH_TUNNEL;
        let config = VirtioNetConfig::parse(&bytes, all);
        assert_eq!(config.mac, Some([0, 1, 2, 3, 4, 5]));
        assert_eq!(config.status, Some(0x0706));
        assert_eq!(config.max_virtqueue_pairs, Some(0x0908));
        assert_eq!(config.mtu, Some(0x0b0a));
        assert_eq!(config.speed, Some(0x0f0e_0d0c));
        assert_eq!(config.duplex, Some(16));
        assert_eq!(config.rss_max_key_size, Some(17));
        assert_eq!(config.rss_max_indirection_table_length, Some(0x1312));
        assert_eq!(config.supported_hash_types, Some(0x1716_1514));
        assert_eq!(config.supported_tunnel_types, Some(0x1b1a_1918));
        assert_eq!(VirtioNetConfig::len(all), 28);
        assert_eq!(VirtioNetConfig::len(all & !f::HASH_TUNNEL), 24);
        assert_eq!(VirtioNetConfig::len(f::STATUS | f::MAC), 8);
        assert_eq!(
            VirtioNetConfig::parse(&bytes, 0),
            VirtioNetConfig::default()
        );
        assert!(VirtioNetConfig::default().link_up());
    }

    #[test]
    fn speed_and_duplex_may_be_unknown() {
        let cases = [
            (1000, 1, (Some(1000), Some(Duplex::Full))),
            (10, 0, (Some(10), Some(Duplex::Half))),
            (u32::MAX, 0xff, (None, None)),
            (0x8000_0000, 2, (None, None)),
        ];
        for (speed, duplex, settings) in cases {
            let config = VirtioNetConfig {
                speed: Some(speed),
                duplex: Some(duplex),
                ..VirtioNetConfig::default()
            };
            assert_eq!(config.link_settings(), settings);
        }
        assert_eq!(VirtioNetConfig::default().link_settings(), (None, None));
    }
}
