//! The configuration space: `struct virtio_net_config` (VIRTIO 1.4, 5.1.4).

use nic_model::phy::Duplex;
use nic_model::port::Port;
use nic_model::rss::{HashTypes, MAX_KEY};
use nic_model::tunnel::TunnelTypes;
use virtio_bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::features::Features;

mod tears;
pub use tears::Tears;

/// The fields; those of features that are not offered are zero, or unknown.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct NetConfig {
    mac: [u8; 6],
    status: U16,
    max_virtqueue_pairs: U16,
    mtu: U16,
    speed: U32,
    duplex: u8,
    rss_max_key_size: u8,
    rss_max_indirection_table_length: U16,
    supported_hash_types: U32,
    supported_tunnel_types: U32,
}

/// `duplex`: one way at a time.
const DUPLEX_HALF: u8 = 0;
/// `duplex`: both ways at once.
const DUPLEX_FULL: u8 = 1;
/// `duplex`: unknown.
const DUPLEX_UNKNOWN: u8 = 0xff;
/// `speed`: unknown.
const SPEED_UNKNOWN: u32 = 0xffff_ffff;

/// The space's octets `offset..offset + size`. What lies beyond its fields reads as zero.
#[must_use]
pub fn read(port: &Port, offered: Features, offset: usize, size: usize) -> Vec<u8> {
    let offers = |features| offered.intersects(features);
    let of = |feature, value| if offers(feature) { value } else { 0 };
    // A link that is down has neither.
    let (speed, duplex) = if offers(Features::SPEED_DUPLEX) && port.phy.link() {
        let duplex = match port.phy.duplex() {
            Duplex::Half => DUPLEX_HALF,
            Duplex::Full => DUPLEX_FULL,
        };
        (port.phy.speed().mbps(), duplex)
    } else {
        (SPEED_UNKNOWN, DUPLEX_UNKNOWN)
    };
    let tunnels = if offers(Features::HASH_TUNNEL) {
        TunnelTypes::ALL
    } else {
        TunnelTypes::default()
    };
    let hash = Features::RSS | Features::HASH_REPORT;
    let config = NetConfig {
        mac: port.filter.address().0,
        status: U16::new(of(Features::STATUS, status(port))),
        max_virtqueue_pairs: U16::new(of(Features::MQ | Features::RSS, port.queue_pairs())),
        mtu: U16::new(of(Features::MTU, port.mtu())),
        speed: U32::new(speed),
        duplex,
        rss_max_key_size: of(hash, MAX_KEY as u16) as u8,
        rss_max_indirection_table_length: U16::new(of(Features::RSS, port.rss_table())),
        supported_hash_types: U32::new(if offers(hash) {
            HashTypes::ALL.bits()
        } else {
            0
        }),
        supported_tunnel_types: U32::new(tunnels.bits()),
    };
    let fields = config.as_bytes();
    (offset..offset.saturating_add(size))
        .map(|at| fields.get(at).copied().unwrap_or(0))
        .collect()
}

/// The field `status`.
fn status(port: &Port) -> u16 {
    let bit = |set, bit: u32| if set { bit as u16 } else { 0 };
    bit(port.phy.link(), VIRTIO_NET_S_LINK_UP) | bit(port.announce, VIRTIO_NET_S_ANNOUNCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic_model::phy::Speed;
    use nic_model::port::PortConfig;
    use nic_model::time::Nanos;

    fn port() -> Port {
        Port::new(&PortConfig {
            mtu: 9000,
            ..Default::default()
        })
    }

    #[test]
    fn any_window_can_be_read() {
        let mut port = port();
        let read = |port: &Port, offset, size| read(port, Features::supported(1), offset, size);
        assert_eq!(
            read(&port, 0, 12),
            [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0x28, 0x23]
        );
        assert_eq!(read(&port, 6, 2), [1, 0]);
        assert_eq!(read(&port, 10, 8), [0x28, 0x23, 0x10, 0x27, 0, 0, 1, 40]);
        port.phy.set_link(Nanos::ZERO, false);
        assert_eq!(read(&port, 6, 2), [0, 0]);
        assert_eq!(read(&port, 12, 6), [0xff, 0xff, 0xff, 0xff, 0xff, 40]);
        port.announce = true;
        assert_eq!(read(&port, 6, 2), [2, 0]);
        assert_eq!(read(&port, usize::MAX, 1), []);
        assert_eq!(read(&port, 1000, 3), [0, 0, 0]);
    }

    #[test]
    fn each_field_goes_with_its_feature() {
        let mut port = port();
        port.announce = true;
        for (feature, at, len) in [
            (Features::STATUS, 6, 2),
            (Features::MTU, 10, 2),
            (Features::SPEED_DUPLEX, 12, 5),
            (Features::RSS, 18, 2),
            (Features::HASH_TUNNEL, 24, 4),
        ] {
            let with = read(&port, Features::all(), 0, 28);
            let left = Features::all().difference(feature);
            let without = read(&port, left, 0, 28);
            let missing = if feature == Features::SPEED_DUPLEX {
                0xff
            } else {
                0
            };
            assert_eq!(without[at..at + len], vec![missing; len], "{feature}");
            assert_ne!(with[at..at + len], without[at..at + len], "{feature}");
            assert_eq!(with[..at], without[..at], "{feature}");
            assert_eq!(with[at + len..], without[at + len..], "{feature}");
        }
    }

    #[test]
    fn queue_pairs_are_told_to_who_can_use_them_and_hashes_to_who_gets_them() {
        let port = port();
        for (offered, pairs, key) in [
            (Features::MQ, 1, 0),
            (Features::RSS, 1, 40),
            (Features::HASH_REPORT, 0, 40),
            (Features::CTRL_VQ, 0, 0),
        ] {
            assert_eq!(read(&port, offered, 8, 1), [pairs], "{offered}");
            assert_eq!(read(&port, offered, 17, 1), [key], "{offered}");
            let types = if key > 0 { [0xff, 1] } else { [0, 0] };
            assert_eq!(read(&port, offered, 20, 2), types, "{offered}");
        }
    }

    #[test]
    fn what_was_negotiated_is_shown() {
        let mut port = Port::new(&PortConfig {
            autoneg: true,
            partner: "10half,100half".parse().unwrap(),
            ..PortConfig::default()
        });
        let fields = |port: &Port| read(port, Features::all(), 12, 5);
        assert_eq!(fields(&port), [0xff; 5], "there is no link yet");
        port.phy.advance(Nanos(10_000_000_000));
        assert_eq!(fields(&port), [100, 0, 0, 0, 0]);
    }

    #[test]
    fn every_rate_fits_the_field() {
        for mbps in [10, 2_500, 400_000] {
            let speed = Speed::from_mbps(mbps).unwrap();
            let port = Port::new(&PortConfig {
                speed,
                ..Default::default()
            });
            assert_eq!(read(&port, Features::all(), 12, 4), mbps.to_le_bytes());
        }
    }
}
