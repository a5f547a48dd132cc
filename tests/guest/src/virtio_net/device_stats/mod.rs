//! What the device counts, asked for over the control queue (`ethtool -S`; virtio 1.4, 5.1.6.5, "Device
//! Statistics"; Linux
//! `include/uapi/linux/virtio_net.h`).
//!
//! In: queues. Out: each one's counters, in groups; which groups the device has it says once, at probe. A
//! reply must hold exactly what was asked for, each group once and whole: a device that answers otherwise
//! is an error, and none of its reply is believed.

mod groups;

pub use groups::{
    CvqStats, DeviceStats, RxBasicStats, RxCsumStats, RxGsoStats, SpeedStats, TxBasicStats,
    TxCsumStats, TxGsoStats,
};

use super::VirtnetInfo;
use super::ctrl::{self, CtrlError};
use super::features as f;
use crate::transport::Transport;

/// Commands of the control queue.
pub const VIRTIO_NET_STATS_TYPE_CVQ: u64 = 1 << 32;
/// Receive queues: packets, interrupts, drops.
pub const VIRTIO_NET_STATS_TYPE_RX_BASIC: u64 = 1 << 0;
/// Receive queues: checksums.
pub const VIRTIO_NET_STATS_TYPE_RX_CSUM: u64 = 1 << 1;
/// Receive queues: segmentation.
pub const VIRTIO_NET_STATS_TYPE_RX_GSO: u64 = 1 << 2;
/// Receive queues: rate limits.
pub const VIRTIO_NET_STATS_TYPE_RX_SPEED: u64 = 1 << 3;
/// Transmit queues: packets, interrupts, drops.
pub const VIRTIO_NET_STATS_TYPE_TX_BASIC: u64 = 1 << 16;
/// Transmit queues: checksums.
pub const VIRTIO_NET_STATS_TYPE_TX_CSUM: u64 = 1 << 17;
/// Transmit queues: segmentation.
pub const VIRTIO_NET_STATS_TYPE_TX_GSO: u64 = 1 << 18;
/// Transmit queues: rate limits.
pub const VIRTIO_NET_STATS_TYPE_TX_SPEED: u64 = 1 << 19;

/// All types of a receive queue.
const RX: u64 = 0xf;
/// All types of a transmit queue.
const TX: u64 = 0xf << 16;
/// Bytes of `struct virtio_net_stats_reply_hdr`.
const HDR_LEN: usize = 8;
/// Queues asked for in one command, so that the reply fits.
const QUEUES: usize = 16;

/// Why there are no statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatsError {
    /// The command failed.
    #[error("{0}")]
    Control(#[from] CtrlError),
    /// The reply ends too early.
    #[error("device statistics: the reply of {len} bytes ends within what begins at {at}")]
    Truncated {
        /// Where something begins.
        at: usize,
        /// Bytes that the device wrote.
        len: usize,
    },
    /// A group of counters of another length than its type has.
    #[error("device statistics: type {kind} in {size} bytes")]
    Size {
        /// Its type: the number of the bit.
        kind: u8,
        /// Bytes that it claims to have, header included.
        size: u16,
    },
    /// A group that nobody asked for, or the same once more.
    #[error("device statistics: type {kind} of queue {vq} was not asked for, or comes twice")]
    Unasked {
        /// Virtqueue number.
        vq: u16,
        /// Its type.
        kind: u8,
    },
    /// A group that was asked for and did not come.
    #[error("device statistics: types {types:#x} of queue {vq} are missing")]
    Missing {
        /// Virtqueue number.
        vq: u16,
        /// `VIRTIO_NET_STATS_TYPE_*`.
        types: u64,
    },
}

/// Bytes of the groups of `types`, headers included.
fn reply_len(types: u64) -> usize {
    let counters = [
        (VIRTIO_NET_STATS_TYPE_CVQ, 2),
        (VIRTIO_NET_STATS_TYPE_RX_BASIC, 6),
        (VIRTIO_NET_STATS_TYPE_RX_CSUM, 4),
        (VIRTIO_NET_STATS_TYPE_RX_GSO, 4),
        (VIRTIO_NET_STATS_TYPE_RX_SPEED, 2),
        (VIRTIO_NET_STATS_TYPE_TX_BASIC, 6),
        (VIRTIO_NET_STATS_TYPE_TX_CSUM, 2),
        (VIRTIO_NET_STATS_TYPE_TX_GSO, 6),
        (VIRTIO_NET_STATS_TYPE_TX_SPEED, 2),
    ];
    counters
        .iter()
        .filter(|(bit, _)| types & bit != 0)
        .map(|(_, count)| HDR_LEN + 8 * count)
        .sum()
}

/// Reads a reply to `asked`: queues and types (`__virtnet_get_hw_stats`).
fn parse(reply: &[u8], asked: &[(u16, u64)]) -> Result<Vec<DeviceStats>, StatsError> {
    let mut pending = asked.to_vec();
    let mut stats: Vec<_> = asked
        .iter()
        .map(|&(vq, _)| DeviceStats {
            vq,
            ..DeviceStats::default()
        })
        .collect();
    let (mut at, len) = (0, reply.len());
    while at < len {
        let truncated = StatsError::Truncated { at, len };
        let header: &[u8; HDR_LEN] = reply[at..].first_chunk().ok_or(truncated)?;
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let (kind, vq, size) = (header[0], word(2), word(6));
        let bad_size = StatsError::Size { kind, size };
        let body = HDR_LEN..usize::from(size);
        let unasked = StatsError::Unasked { vq, kind };
        let bit = 1u64.checked_shl(kind.into()).ok_or(unasked)?;
        let queue = pending
            .iter()
            .position(|&(queue, types)| queue == vq && types & bit != 0)
            .ok_or(unasked)?;
        if body.is_empty() {
            return Err(bad_size);
        }
        let body = reply[at..].get(body).ok_or(truncated)?;
        stats[queue].fill(kind, body).ok_or(bad_size)?;
        pending[queue].1 &= !bit;
        at += usize::from(size);
    }
    match pending.iter().find(|(_, types)| *types != 0) {
        Some(&(vq, types)) => Err(StatsError::Missing { vq, types }),
        None => Ok(stats),
    }
}

impl<T: Transport> VirtnetInfo<T> {
    /// Which types of statistics the device has, as it said at probe: `VIRTIO_NET_STATS_TYPE_*`.
    #[must_use]
    pub fn device_stats_cap(&self) -> u64 {
        self.device_stats_cap
    }

    /// Asks the device which types of statistics it has (STATS_QUERY).
    ///
    /// # Errors
    /// When the command fails, or its reply is short.
    pub fn stats_query(&mut self) -> Result<u64, StatsError> {
        let (class, command) = (
            ctrl::VIRTIO_NET_CTRL_STATS,
            ctrl::VIRTIO_NET_CTRL_STATS_QUERY,
        );
        let mut reply = [0; 8];
        let len = self.send_command_reply(class, command, &[], &mut reply)?;
        if len < reply.len() {
            return Err(StatsError::Truncated { at: 0, len });
        }
        Ok(u64::from_le_bytes(reply))
    }

    /// Asks for all that the device counts of these virtqueues (STATS_GET); in their order. More than 16
    /// queues are several commands, at several instants.
    ///
    /// # Errors
    /// [`CtrlError::NotNegotiated`] without DEVICE_STATS; when a command fails, which is how a device
    /// refuses queues that it has not; when a reply is not what was asked for.
    pub fn stats_get(&mut self, vqs: &[u16]) -> Result<Vec<DeviceStats>, StatsError> {
        if self.features & f::DEVICE_STATS == 0 {
            return Err(CtrlError::NotNegotiated("DEVICE_STATS").into());
        }
        let cvq = self.cvq.as_ref().map(ctrl::ControlQueue::index);
        let types = |vq: u16| match vq {
            vq if Some(vq) == cvq => VIRTIO_NET_STATS_TYPE_CVQ,
            vq if vq.is_multiple_of(2) => RX,
            _ => TX,
        };
        let asked: Vec<_> = vqs
            .iter()
            .map(|&vq| (vq, types(vq) & self.device_stats_cap))
            .collect();
        self.stats_get_types(&asked)
    }

    /// Asks for these types of statistics of these virtqueues, however little sense that makes.
    ///
    /// # Errors
    /// As [`Self::stats_get`].
    pub fn stats_get_types(
        &mut self,
        asked: &[(u16, u64)],
    ) -> Result<Vec<DeviceStats>, StatsError> {
        let (class, command) = (ctrl::VIRTIO_NET_CTRL_STATS, ctrl::VIRTIO_NET_CTRL_STATS_GET);
        let mut stats = Vec::new();
        for asked in asked.chunks(QUEUES) {
            let mut data = Vec::new();
            for (vq, types) in asked {
                data.extend(vq.to_le_bytes());
                data.extend([0; 6]); // reserved
                data.extend(types.to_le_bytes());
            }
            let mut reply = vec![0; asked.iter().map(|&(_, types)| reply_len(types)).sum()];
            let len = self.send_command_reply(class, command, &data, &mut reply)?;
            stats.extend(parse(&reply[..len], asked)?);
        }
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group whose counters are 1, 2, ...
    fn group(kind: u8, vq: u16, counters: u64) -> Vec<u8> {
        let size = HDR_LEN as u16 + 8 * counters as u16;
        let mut bytes = vec![kind, 0, vq as u8, (vq >> 8) as u8, 0, 0];
        bytes.extend(size.to_le_bytes());
        bytes.extend((1..=counters).flat_map(u64::to_le_bytes));
        bytes
    }

    const RX_TYPES: [(u8, u64); 4] = [(0, 6), (1, 4), (2, 4), (3, 2)];
    const TX_TYPES: [(u8, u64); 4] = [(16, 6), (17, 2), (18, 6), (19, 2)];

    #[test]
    fn counters_stand_where_the_standard_has_them() {
        let mut reply = group(32, 4, 2);
        let asked = [(4, VIRTIO_NET_STATS_TYPE_CVQ), (0, RX), (1, TX)];
        for (kind, counters) in RX_TYPES {
            reply.extend(group(kind, 0, counters));
        }
        for (kind, counters) in TX_TYPES {
            reply.extend(group(kind, 1, counters));
        }
        let expected: usize = asked.iter().map(|&(_, types)| reply_len(types)).sum();
        assert_eq!(reply.len(), expected);
        let stats = parse(&reply, &asked).unwrap();
        let (cvq, rx, tx) = (&stats[0], &stats[1], &stats[2]);
        assert_eq!((cvq.vq, rx.vq, tx.vq), (4, 0, 1));
        let cvq = cvq.cvq.unwrap();
        assert_eq!((cvq.command_num, cvq.ok_num), (1, 2));
        let basic = rx.rx_basic.unwrap();
        assert_eq!((basic.notifications, basic.packets), (1, 2));
        assert_eq!((basic.bytes, basic.interrupts), (3, 4));
        assert_eq!((basic.drops, basic.drop_overruns), (5, 6));
        let csum = rx.rx_csum.unwrap();
        assert_eq!((csum.valid, csum.needs_csum), (1, 2));
        assert_eq!((csum.none, csum.bad), (3, 4));
        let gso = rx.rx_gso.unwrap();
        assert_eq!((gso.packets, gso.bytes), (1, 2));
        assert_eq!((gso.packets_coalesced, gso.bytes_coalesced), (3, 4));
        for speed in [rx.rx_speed.unwrap(), tx.tx_speed.unwrap()] {
            assert_eq!(speed.packets_allowance_exceeded, 1);
            assert_eq!(speed.bytes_allowance_exceeded, 2);
        }
        let basic = tx.tx_basic.unwrap();
        assert_eq!((basic.notifications, basic.packets), (1, 2));
        assert_eq!((basic.bytes, basic.interrupts), (3, 4));
        assert_eq!((basic.drops, basic.drop_malformed), (5, 6));
        let csum = tx.tx_csum.unwrap();
        assert_eq!((csum.none, csum.needs_csum), (1, 2));
        let gso = tx.tx_gso.unwrap();
        assert_eq!((gso.packets, gso.bytes), (1, 2));
        assert_eq!((gso.segments, gso.segments_bytes), (3, 4));
        assert_eq!((gso.packets_noseg, gso.bytes_noseg), (5, 6));
        assert!(rx.tx_basic.is_none() && rx.cvq.is_none());
    }

    #[test]
    fn lies_are_found() {
        let asked = [(0, 0b11)];
        let (basic, csum) = (group(0, 0, 6), group(1, 0, 4));
        let both = [&basic[..], &csum].concat();
        assert!(parse(&both, &asked).is_ok());
        let with = |at: usize, byte: u8| {
            let mut bytes = both.clone();
            bytes[at] = byte;
            parse(&bytes, &asked)
        };
        let of = |vq, kind| Err(StatsError::Unasked { vq, kind });
        assert_eq!(with(0, 2), of(0, 2));
        assert_eq!(with(0, 200), of(0, 200), "no type has that number");
        assert_eq!(with(2, 1), of(1, 0));
        assert_eq!(parse(&[&basic[..], &basic].concat(), &asked), of(0, 0));
        for size in [0, 7, 8, 48, 55, 57, 64] {
            let bad = StatsError::Size {
                kind: 0,
                size: size.into(),
            };
            assert_eq!(with(6, size), Err(bad), "{size}");
        }
        let (at, len) = (56, 56 + 40);
        let cut = |at, len| Err(StatsError::Truncated { at, len });
        assert_eq!(with(56 + 6, 41), cut(at, len));
        assert_eq!(parse(&both[..len - 1], &asked), cut(at, len - 1));
        assert_eq!(parse(&both[..57], &asked), cut(at, 57));
        let missing = |types| Err(StatsError::Missing { vq: 0, types });
        assert_eq!(parse(&basic, &asked), missing(0b10));
        assert_eq!(parse(&[], &asked), missing(0b11));
    }

    proptest::proptest! {
        #[test]
        fn any_reply_is_read_or_refused(
            at in 0..96usize,
            byte in proptest::num::u8::ANY,
            len in 0..=96usize,
        ) {
            let mut reply = [group(0, 0, 6), group(1, 0, 4)].concat();
            reply[at] = byte;
            reply.truncate(len);
            if let Ok(stats) = parse(&reply, &[(0, 0b11)]) {
                assert_eq!(len, 96);
                assert!(stats[0].rx_basic.is_some() && stats[0].rx_csum.is_some());
            }
        }
    }
}
