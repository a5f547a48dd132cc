//! The configuration space: `struct virtio_net_config` (VIRTIO 1.3, 5.1.4).

use nic_model::port::Port;
use nic_model::rss::{HashTypes, MAX_KEY};
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

/// The fields up to `supported_hash_types`; those of features that are not offered are zero.
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
}

/// `duplex`: unknown, since SPEED_DUPLEX is not offered.
const DUPLEX_UNKNOWN: u8 = 0xff;
/// `speed`: unknown, likewise.
const SPEED_UNKNOWN: u32 = 0xffff_ffff;

/// The space's octets `offset..offset + size`. What lies beyond its fields reads as zero.
#[must_use]
pub fn read(port: &Port, offset: usize, size: usize) -> Vec<u8> {
    let config = NetConfig {
        mac: port.filter.address.0,
        status: U16::new(if port.phy.link() {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        }),
        max_virtqueue_pairs: U16::new(port.queue_pairs()),
        mtu: U16::new(port.mtu()),
        speed: U32::new(SPEED_UNKNOWN),
        duplex: DUPLEX_UNKNOWN,
        rss_max_key_size: MAX_KEY as u8,
        rss_max_indirection_table_length: U16::new(port.rss_table()),
        supported_hash_types: U32::new(HashTypes::ALL.bits()),
    };
    let fields = config.as_bytes();
    (offset..offset.saturating_add(size))
        .map(|at| fields.get(at).copied().unwrap_or(0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic_model::port::PortConfig;

    #[test]
    fn any_window_can_be_read() {
        let mut port = Port::new(&PortConfig {
            mtu: 9000,
            ..Default::default()
        });
        assert_eq!(
            read(&port, 0, 12),
            [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0x28, 0x23]
        );
        assert_eq!(read(&port, 6, 2), [1, 0]);
        port.phy.set_link(false);
        assert_eq!(read(&port, 6, 2), [0, 0]);
        assert_eq!(read(&port, 15, 4), [0xff, 0xff, 0, 0]);
        assert_eq!(read(&port, usize::MAX, 1), []);
        assert_eq!(read(&port, 1000, 3), [0, 0, 0]);
    }
}
