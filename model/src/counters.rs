//! What happened to every frame.
//!
//! Each frame ends in exactly one counter: `frames in = delivered + dropped (by reason) + merged + still in the FIFO`,
//! and `frames fetched + segments made = sent + dropped (by reason) + still on their way to the port`. Frames are merged where
//! several go on as one super-frame, and segments made where one goes on as several. [`PortCounters::receive_balance`] and
//! [`PortCounters::transmit_balance`] say so, and tests hold every path to it.

use std::fmt;

use serde::Serialize;

use crate::frame::Contents;
use crate::segment;

macro_rules! drops {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Drop { $($(#[doc = $doc])+ $variant,)+ }

        impl Drop {
            /// Every reason, in the order of the frame's way.
            pub const ALL: &[Drop] = &[$(Drop::$variant,)+];

            /// The counter's name, as users see it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Drop::$variant => $name,)+ }
            }
        }
    };
}

drops! {
    /// The check sequence of a frame of valid size is wrong (etherStatsCRCAlignErrors, RFC 2819).
    RxFcs = "rx_fcs_errors",
    /// Shorter than 64 octets, check sequence right (etherStatsUndersizePkts).
    RxUndersize = "rx_undersize",
    /// Shorter than 64 octets, check sequence wrong (etherStatsFragments).
    RxFragment = "rx_fragments",
    /// Longer than the port's maximum, check sequence right (etherStatsOversizePkts).
    RxOversize = "rx_oversize",
    /// Longer than the port's maximum, check sequence wrong (etherStatsJabbers).
    RxJabber = "rx_jabbers",
    /// The wire's software gave several frames in one that cannot be cut into them.
    RxMalformed = "rx_malformed",
    /// Not for this station: the address filter did not admit it.
    RxFiltered = "rx_filtered",
    /// Of a VLAN that is not in the VLAN filter's table.
    RxVlanFiltered = "rx_vlan_filtered",
    /// Its queue is not enabled by the driver.
    RxQueueDisabled = "rx_queue_disabled",
    /// Its flow has to change its queue, and the old one is too busy for that.
    RxResteered = "rx_resteered",
    /// Its queue's FIFO was full: the driver posts buffers too slowly.
    RxFifoOverflow = "rx_fifo_overflow",
    /// Longer than the buffer that it was to go into.
    RxBufferTooSmall = "rx_buffer_too_small",
    /// The driver's packet is too short for its header, or for an Ethernet header.
    TxUndersize = "tx_undersize",
    /// Longer than the port's maximum.
    TxOversize = "tx_oversize",
    /// The driver asked for an offload in a way that cannot be, or that was not negotiated.
    TxMalformed = "tx_malformed",
    /// The driver sends on a queue that it has disabled.
    TxQueueDisabled = "tx_queue_disabled",
    /// There is no link.
    TxLinkDown = "tx_link_down",
}

impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Dropped frames by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    by_reason: [u64; Drop::ALL.len()],
    total: u64,
}

impl Drops {
    /// Counts one frame.
    #[cold]
    pub fn count(&mut self, reason: Drop) {
        self.count_many(reason, 1);
    }

    /// Counts `frames` frames.
    pub fn count_many(&mut self, reason: Drop, frames: usize) {
        self.by_reason[reason as usize] += frames as u64;
        self.total += frames as u64;
    }

    /// Frames dropped for `reason`.
    #[must_use]
    pub fn get(&self, reason: Drop) -> u64 {
        self.by_reason[reason as usize]
    }

    /// Frames dropped for any reason.
    #[must_use]
    #[inline]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (Drop, u64)> + '_ {
        Drop::ALL.iter().map(|&reason| (reason, self.get(reason)))
    }

    /// Counts all that `other` has, too.
    pub fn add(&mut self, other: &Drops) {
        for (mine, theirs) in self.by_reason.iter_mut().zip(other.by_reason) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// Frames dropped on their way from the wire to the host.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.iter()
            .filter(|(r, _)| *r < Drop::TxUndersize)
            .map(|(_, n)| n)
            .sum()
    }

    /// Frames dropped on their way from the host to the wire.
    #[must_use]
    pub fn transmitted(&self) -> u64 {
        self.iter()
            .filter(|(r, _)| *r >= Drop::TxUndersize)
            .map(|(_, n)| n)
            .sum()
    }
}

impl PartialOrd for Drop {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((*self as usize).cmp(&(*other as usize)))
    }
}

/// Counts of one port. Octets count frames from destination address to check sequence, padding included,
/// as etherStatsOctets does (RFC 2819).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortCounters {
    /// Frames that arrived on the line, good and bad.
    pub rx_frames: u64,
    /// Octets of those.
    pub rx_octets: u64,
    /// Frames that the filter admitted, sent to a group.
    pub rx_multicast: u64,
    /// Frames that the filter admitted, sent to everyone.
    pub rx_broadcast: u64,
    /// Frames that the filter admitted, sent to one station.
    pub rx_unicast: u64,
    /// Frames whose TCP or UDP checksum is right: it was verified, here or by whoever handed the frame over.
    pub rx_checksum_good: u64,
    /// Frames whose TCP or UDP checksum is wrong; they are delivered, and the driver is not told that they are good.
    pub rx_checksum_bad: u64,
    /// Frames that go to the host with the one before them, in one super-frame.
    pub rx_merged: u64,
    /// Frames delivered to the host.
    pub rx_delivered: u64,
    /// Frames read from the host.
    pub tx_fetched: u64,
    /// Segments that super-frames stood for on the line, beyond one each.
    pub tx_segments_made: u64,
    /// Frames sent on the line.
    pub tx_frames: u64,
    /// Octets of those.
    pub tx_octets: u64,
    /// Frames whose TCP or UDP checksum was computed and inserted.
    pub tx_checksum_inserted: u64,
    /// Dropped frames by reason.
    #[serde(serialize_with = "serialize_drops")]
    pub drops: Drops,
}

/// What of a port's counts belongs to one queue pair: frames that it could not take from the line, and frames of it that
/// the line took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounters {
    /// Received frames dropped since its FIFO was full.
    pub rx_overflows: u64,
    /// Frames sent on the line.
    pub tx_frames: u64,
    /// Octets of those.
    pub tx_octets: u64,
    /// Frames dropped since there was no link.
    pub tx_link_down: u64,
}

impl LineCounters {
    /// Counts a burst of the queue, from what the port had sent `before` and `after`.
    #[inline]
    pub(crate) fn count_sent(&mut self, before: Sent, after: Sent) {
        self.tx_frames += after.frames - before.frames;
        self.tx_octets += after.octets - before.octets;
        self.tx_link_down += after.link_down - before.link_down;
    }
}

/// What a port has sent of all queues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    frames: u64,
    octets: u64,
    link_down: u64,
}

/// Counts of super-frames, and of the frames that they stand for. Octets are without check sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GsoCounters {
    /// Super-frames.
    pub packets: u64,
    /// Octets of those.
    pub bytes: u64,
    /// Frames that they stand for.
    pub segments: u64,
    /// Octets of those.
    pub segment_bytes: u64,
    /// Packets that were to be cut, and are no longer than a segment.
    pub packets_whole: u64,
    /// Octets of those.
    pub bytes_whole: u64,
}

impl GsoCounters {
    /// Counts a super-frame that was admitted, or what turned out to be none.
    pub fn count(&mut self, frame: &Contents) {
        let octets = frame.len() as u64;
        if !frame.is_super() {
            self.packets_whole += 1;
            self.bytes_whole += octets;
            return;
        }
        let segments = segment::frames(frame) as u64;
        self.packets += 1;
        self.bytes += octets;
        self.segments += segments;
        self.segment_bytes += octets + (segments - 1) * u64::from(frame.gso.headers);
    }
}

/// Counts of one queue pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueCounters {
    /// Frames that left the FIFO, delivered or dropped.
    pub rx_drained: u64,
    /// Frames delivered to the host.
    pub rx_delivered: u64,
    /// Frames read from the host.
    pub tx_fetched: u64,
    /// Frames passed on to the port.
    pub tx_passed: u64,
    /// Frames whose TCP or UDP checksum was computed and inserted.
    pub tx_checksum_inserted: u64,
    /// Super-frames read from the host.
    pub tx_gso: GsoCounters,
    /// Dropped frames by reason.
    #[serde(serialize_with = "serialize_drops")]
    pub drops: Drops,
}

impl PortCounters {
    /// What was sent so far.
    #[inline]
    pub(crate) fn sent(&self) -> Sent {
        Sent {
            frames: self.tx_frames,
            octets: self.tx_octets,
            link_down: self.drops.get(Drop::TxLinkDown),
        }
    }

    /// Counts all that a queue pair has, too.
    pub fn add(&mut self, queue: &QueueCounters) {
        self.rx_delivered += queue.rx_delivered;
        self.tx_fetched += queue.tx_fetched;
        self.tx_checksum_inserted += queue.tx_checksum_inserted;
        self.drops.add(&queue.drops);
    }

    /// Frames received less frames accounted for; `in_fifo` are those still in the FIFOs. Always zero.
    #[must_use]
    pub fn receive_balance(&self, in_fifo: usize) -> i64 {
        self.rx_frames as i64
            - self.rx_delivered as i64
            - self.drops.received() as i64
            - self.rx_merged as i64
            - in_fifo as i64
    }

    /// Frames fetched less frames accounted for; `in_queue` are those between the queues and the port. Always zero.
    #[must_use]
    pub fn transmit_balance(&self, in_queue: usize) -> i64 {
        self.tx_fetched as i64 + self.tx_segments_made as i64
            - self.tx_frames as i64
            - self.drops.transmitted() as i64
            - in_queue as i64
    }
}

fn serialize_drops<S: serde::Serializer>(drops: &Drops, out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(drops.iter().map(|(reason, count)| (reason.name(), count)))
}
