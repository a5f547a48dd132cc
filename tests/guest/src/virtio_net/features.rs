//! Feature bits of virtio-net, of the rings, and of vhost-user; and what depends on what.
//!
//! Names and numbers: virtio 1.3, 5.1.3 and 6; Linux `include/uapi/linux/virtio_net.h`.

/// Device handles packets with partial checksum (transmit checksum offload).
pub const CSUM: u64 = 1 << 0;
/// Driver handles packets with partial checksum.
pub const GUEST_CSUM: u64 = 1 << 1;
/// Control channel reconfigures receive offloads.
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// Config space has the MTU.
pub const MTU: u64 = 1 << 3;
/// Config space has the MAC address.
pub const MAC: u64 = 1 << 5;
/// Driver receives TSOv4.
pub const GUEST_TSO4: u64 = 1 << 7;
/// Driver receives TSOv6.
pub const GUEST_TSO6: u64 = 1 << 8;
/// Driver receives TSO with ECN.
pub const GUEST_ECN: u64 = 1 << 9;
/// Driver receives UFO.
pub const GUEST_UFO: u64 = 1 << 10;
/// Device takes TSOv4.
pub const HOST_TSO4: u64 = 1 << 11;
/// Device takes TSOv6.
pub const HOST_TSO6: u64 = 1 << 12;
/// Device takes TSO with ECN.
pub const HOST_ECN: u64 = 1 << 13;
/// Device takes UFO.
pub const HOST_UFO: u64 = 1 << 14;
/// Device merges receive buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// Config space has the status.
pub const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << 17;
/// Control queue: receive modes.
pub const CTRL_RX: u64 = 1 << 18;
/// Control queue: VLAN filter.
pub const CTRL_VLAN: u64 = 1 << 19;
/// Control queue: further receive modes.
pub const CTRL_RX_EXTRA: u64 = 1 << 20;
/// Device asks the driver to announce itself.
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// Several queue pairs.
pub const MQ: u64 = 1 << 22;
/// Control queue: MAC address.
pub const CTRL_MAC_ADDR: u64 = 1 << 23;
/// Device statistics over the control queue.
pub const DEVICE_STATS: u64 = 1 << 50;
/// Device hashes the inner headers of tunnels.
pub const HASH_TUNNEL: u64 = 1 << 51;
/// Notification coalescing for each queue.
pub const VQ_NOTF_COAL: u64 = 1 << 52;
/// Notification coalescing.
pub const NOTF_COAL: u64 = 1 << 53;
/// Driver receives USOv4.
pub const GUEST_USO4: u64 = 1 << 54;
/// Driver receives USOv6.
pub const GUEST_USO6: u64 = 1 << 55;
/// Device takes USO.
pub const HOST_USO: u64 = 1 << 56;
/// Device reports the hash of each packet.
pub const HASH_REPORT: u64 = 1 << 57;
/// Driver gives the exact header length of GSO packets.
pub const GUEST_HDRLEN: u64 = 1 << 59;
/// Receive-side scaling.
pub const RSS: u64 = 1 << 60;
/// Device reports coalesced segments.
pub const RSC_EXT: u64 = 1 << 61;
/// Device is a standby for another one.
pub const STANDBY: u64 = 1 << 62;
/// Config space has speed and duplex.
pub const SPEED_DUPLEX: u64 = 1 << 63;

/// Descriptors may refer to tables of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Event indices instead of flags.
pub const EVENT_IDX: u64 = 1 << 29;
/// Not a legacy device.
pub const VERSION_1: u64 = 1 << 32;
/// Device accesses memory through an IOMMU.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Packed rings.
pub const RING_PACKED: u64 = 1 << 34;
/// Device uses buffers in order.
pub const IN_ORDER: u64 = 1 << 35;
/// Memory is ordered as platforms order it.
pub const ORDER_PLATFORM: u64 = 1 << 36;
/// Kicks carry data.
pub const NOTIFICATION_DATA: u64 = 1 << 38;
/// Queues can be reset one by one.
pub const RING_RESET: u64 = 1 << 40;

/// vhost: log dirty pages.
pub const LOG_ALL: u64 = 1 << 26;
/// vhost-user: there are protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Frames that stand for several segments, in either direction.
pub const SEGMENTATION: u64 = GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | GUEST_UFO
    | GUEST_USO4
    | GUEST_USO6
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | HOST_UFO
    | HOST_USO;

/// What this driver can do.
pub const SUPPORTED: u64 = CSUM
    | GUEST_CSUM
    | CTRL_GUEST_OFFLOADS
    | MTU
    | MAC
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | GUEST_UFO
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | HOST_UFO
    | MRG_RXBUF
    | STATUS
    | CTRL_VQ
    | CTRL_RX
    | CTRL_VLAN
    | CTRL_RX_EXTRA
    | GUEST_ANNOUNCE
    | MQ
    | CTRL_MAC_ADDR
    | DEVICE_STATS
    | HASH_TUNNEL
    | VQ_NOTF_COAL
    | NOTF_COAL
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO
    | HASH_REPORT
    | GUEST_HDRLEN
    | RSS
    | RSC_EXT
    | SPEED_DUPLEX
    | INDIRECT_DESC
    | EVENT_IDX
    | VERSION_1
    | RING_PACKED
    | IN_ORDER
    | RING_RESET;

/// What it takes unless it is told otherwise: like QEMU's command line, neither packed rings nor order; like Linux, no word
/// of how many segments were coalesced.
pub const USUAL: u64 = SUPPORTED & !(RING_PACKED | IN_ORDER | RSC_EXT);

/// Each feature needs at least one of the others (virtio 1.3, 5.1.3.1).
const NEEDS: &[(u64, u64)] = &[
    (
        GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | GUEST_USO4 | GUEST_USO6,
        GUEST_CSUM,
    ),
    (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
    (HOST_TSO4 | HOST_TSO6 | HOST_UFO | HOST_USO, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
    (RSC_EXT, HOST_TSO4 | HOST_TSO6),
    (RSC_EXT, GUEST_TSO4 | GUEST_TSO6),
    (
        CTRL_RX
            | CTRL_VLAN
            | CTRL_RX_EXTRA
            | CTRL_GUEST_OFFLOADS
            | GUEST_ANNOUNCE
            | MQ
            | CTRL_MAC_ADDR
            | NOTF_COAL
            | VQ_NOTF_COAL
            | HASH_REPORT
            | RSS
            | HASH_TUNNEL
            | DEVICE_STATS,
        CTRL_VQ,
    ),
    (HASH_TUNNEL, RSS | HASH_REPORT),
    // A legacy device has split rings.
    (RING_PACKED, VERSION_1),
];

/// `features` without those whose conditions are not met.
#[must_use]
pub fn without_unmet(features: u64) -> u64 {
    NEEDS.iter().fold(features, |left, &(dependants, needed)| {
        if left & needed == 0 {
            left & !dependants
        } else {
            left
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_goes_with_what_it_needs() {
        let all = SUPPORTED;
        assert_eq!(without_unmet(all), all);
        let left = without_unmet(all & !GUEST_CSUM);
        assert_eq!(left & (GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4), 0);
        assert_ne!(left & HOST_TSO4, 0);
        assert_eq!(without_unmet(MQ | RSS | CTRL_RX | HASH_TUNNEL), 0);
        assert_eq!(without_unmet(CTRL_VQ | HASH_TUNNEL), CTRL_VQ);
        assert_eq!(without_unmet(HOST_ECN | CSUM), CSUM);
    }
}
