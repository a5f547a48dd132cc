//! What happened to every frame.
//!
//! Each frame ends in exactly one counter: `frames in = delivered + dropped (by reason) + merged + still in the FIFO`,
//! and `frames fetched + segments made = sent + dropped (by reason) + still on their way to the port`. Frames are merged where
//! several go on as one super-frame, and segments made where one goes on as several. [`PortCounters::receive_balance`] and
//! [`PortCounters::transmit_balance`] say so, and tests hold every path to it.

use std::fmt;

use serde::Serialize;

use crate::filter::Destination;
use crate::frame::Contents;
use crate::mac::LengthField;
use crate::segment;

pub mod names;

mod checksums;
mod priorities;
mod sizes;

pub use checksums::Checksums;
pub use priorities::{PfcCounters, PriorityCounters};
pub use sizes::{Bin, Sizes};

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
    /// The check sequence of a frame of valid size is wrong (dot3StatsFCSErrors, RFC 3635).
    RxFcs = "rx_fcs_errors",
    /// The same, and it has half an octet too many (dot3StatsAlignmentErrors). Lines of 10 and 100 Mb/s only.
    RxAlign = "rx_align_errors",
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
    /// A MAC Control frame: it ends in the MAC, obeyed or not.
    RxControl = "rx_mac_control",
    /// Not for this station: the address filter did not admit it.
    RxFiltered = "rx_filtered",
    /// Of a VLAN that is not in the VLAN filter's table.
    RxVlanFiltered = "rx_vlan_filtered",
    /// Its queue is not enabled by the driver.
    RxQueueDisabled = "rx_queue_disabled",
    /// Its flow has to change its queue, and the old one is too busy for that.
    RxResteered = "rx_resteered",
    /// It exceeds the rate that the card receives at most (in_allowance_exceeded of clouds' cards).
    RxRateExceeded = "rx_rate_exceeded",
    /// There was no room in its queue's FIFO, or for its queue in the packet buffer: the driver posts buffers too slowly (missed packets: MPC of an
    /// Intel 82576).
    RxFifoOverflow = "rx_fifo_overflow",
    /// Longer than the buffer that it was to go into.
    RxBufferTooSmall = "rx_buffer_too_small",
    /// The driver's packet is too short for its header, or for an Ethernet header.
    TxUndersize = "tx_undersize",
    /// Longer than the port's maximum.
    TxOversize = "tx_oversize",
    /// The driver asked for an offload in a way that cannot be, or that was not negotiated.
    TxMalformed = "tx_malformed",
    /// The driver sends on a queue that it has disabled, or the queue went out of use while its packet was held back for its priority.
    TxQueueDisabled = "tx_queue_disabled",
    /// There is no link.
    TxLinkDown = "tx_link_down",
}

impl Drop {
    /// Whether it was no valid frame on the line.
    #[must_use]
    pub fn is_error(self) -> bool {
        self <= Drop::RxMalformed
    }
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
    /// Frames that arrived, by size; those that are too short or too long, or refused as malformed, are in no bin.
    pub rx_sizes: Sizes,
    /// Octets of frames that were no valid ones ([`Drop::is_error`]).
    pub rx_error_octets: u64,
    /// Octets of valid frames that the address filter did not admit.
    pub rx_filtered_octets: u64,
    /// Valid frames to a group, whether or not they were admitted (etherStatsMulticastPkts, RFC 2819).
    pub rx_line_multicast: u64,
    /// Valid frames to everyone, whether or not they were admitted (etherStatsBroadcastPkts).
    pub rx_line_broadcast: u64,
    /// Frames that the filter admitted, sent to a group.
    pub rx_multicast: u64,
    /// Frames that the filter admitted, sent to everyone.
    pub rx_broadcast: u64,
    /// Frames that the filter admitted, sent to one station.
    pub rx_unicast: u64,
    /// Admitted frames that have a length instead of a type, and another length than it says (aInRangeLengthErrors, IEEE 802.3,
    /// 30.3.1.1.23). They are delivered: what follows the length judges it.
    pub rx_in_range_length: u64,
    /// Admitted frames whose length is more than a frame may have, and no type (aOutOfRangeLengthField, 30.3.1.1.24). Delivered, too.
    pub rx_out_of_range_length: u64,
    /// Octets of both.
    pub rx_length_octets: u64,
    /// Admitted frames, by what is known of their TCP or UDP checksum.
    #[serde(flatten)]
    pub rx_checksums: Checksums,
    /// PAUSE frames that came, whether or not they are obeyed (dot3InPauseFrames, RFC 3635).
    pub rx_pause: u64,
    /// MAC Control frames that came and say nothing that is known here (dot3ControlInUnknownOpcodes).
    pub rx_control_unknown: u64,
    /// MAC Control frames that came to a group, as PAUSE frames mostly do.
    pub rx_control_multicast: u64,
    /// PAUSE frames sent that stop the partner (with the next one: dot3OutPauseFrames). They are no frames of the host's.
    pub tx_xoff: u64,
    /// PAUSE frames sent that let it go on.
    pub tx_xon: u64,
    /// The same for each priority.
    pub pfc: PfcCounters,
    /// Frames that go to the host with the one before them, in one super-frame.
    pub rx_merged: u64,
    /// Those of them that the card put there itself; the others came so from the wire.
    pub rx_coalesced: u64,
    /// Frames delivered to the host.
    pub rx_delivered: u64,
    /// Frames that waited in a FIFO, since there was no buffer of the host's when they came (RNBC of an Intel 82576). They are not lost.
    pub rx_no_buffer: u64,
    /// Frames read from the host.
    pub tx_fetched: u64,
    /// Segments that super-frames stood for on the line, beyond one each.
    pub tx_segments_made: u64,
    /// Frames sent on the line.
    pub tx_frames: u64,
    /// Octets of those.
    pub tx_octets: u64,
    /// Those, by size.
    pub tx_sizes: Sizes,
    /// Those that were sent to a group.
    pub tx_multicast: u64,
    /// Those that were sent to everyone.
    pub tx_broadcast: u64,
    /// Frames that had to wait since they exceed the rate that the card sends at most. They are not lost.
    pub tx_rate_exceeded: u64,
    /// Frames whose TCP or UDP checksum was computed and inserted.
    pub tx_checksum_inserted: u64,
    /// Super-frames whose headers are not as long as the driver said, which had promised to be exact.
    pub tx_headers_inexact: u64,
    /// Dropped frames by reason.
    #[serde(serialize_with = "serialize_drops")]
    pub drops: Drops,
}

/// Frames that exceed a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exceeded {
    /// How many.
    pub frames: u64,
    /// Octets of those.
    pub octets: u64,
}

impl Exceeded {
    /// Counts `frames` frames of `octets` octets in all.
    pub fn count(&mut self, frames: u64, octets: u64) {
        self.frames += frames;
        self.octets += octets;
    }
}

/// What of a port's counts belongs to one queue pair: frames that it could not take from the line, and frames of it that
/// the line took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounters {
    /// Received frames dropped since its FIFO was full.
    pub rx_overflows: u64,
    /// Received frames dropped since they exceed the rate.
    pub rx_exceeded: Exceeded,
    /// Frames that waited since they exceed the rate.
    pub tx_exceeded: Exceeded,
    /// Frames sent on the line.
    pub tx_frames: u64,
    /// Octets of those.
    pub tx_octets: u64,
    /// Frames dropped since there was no link.
    pub tx_link_down: u64,
    /// Frames dropped since the queue went out of use while they were held back for their priority.
    pub tx_abandoned: u64,
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
        self.packets += 1;
        self.bytes += octets;
        self.segments += segment::frames(frame) as u64;
        self.segment_bytes += segment::octets(frame) as u64;
    }
}

/// Counts of one queue pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueCounters {
    /// Frames that left the FIFO, delivered or dropped.
    pub rx_drained: u64,
    /// Frames delivered to the host.
    pub rx_delivered: u64,
    /// Frames that found no buffer of the host's when they came.
    pub rx_no_buffer: u64,
    /// Frames read from the host.
    pub tx_fetched: u64,
    /// Frames passed on to the port.
    pub tx_passed: u64,
    /// Frames whose TCP or UDP checksum was computed and inserted.
    pub tx_checksum_inserted: u64,
    /// Super-frames whose headers are not as long as the driver said, which had promised to be exact.
    pub tx_headers_inexact: u64,
    /// Super-frames read from the host.
    pub tx_gso: GsoCounters,
    /// Dropped frames by reason.
    #[serde(serialize_with = "serialize_drops")]
    pub drops: Drops,
}

impl PortCounters {
    /// Counts a received frame of `octets` that the port drops.
    #[cold]
    pub(crate) fn drop_received(&mut self, reason: Drop, octets: u32) {
        self.drops.count(reason);
        if reason.is_error() {
            self.rx_error_octets += u64::from(octets);
        } else if reason == Drop::RxFiltered {
            self.rx_filtered_octets += u64::from(octets);
        }
    }

    /// Counts `frames` valid frames to `destination`, before anybody has asked whether they are admitted.
    #[inline]
    pub(crate) fn count_on_line(&mut self, destination: Destination, frames: u64) {
        match destination {
            Destination::Unicast => {}
            Destination::Multicast => self.rx_line_multicast += frames,
            Destination::Broadcast => self.rx_line_broadcast += frames,
        }
    }

    /// Counts a MAC Control frame to `destination`.
    #[cold]
    pub(crate) fn count_control(&mut self, destination: Destination) {
        self.count_on_line(destination, 1);
        self.rx_control_multicast += u64::from(destination == Destination::Multicast);
    }

    /// Counts `frames` frames to `destination` that the filter admitted.
    #[inline]
    pub(crate) fn count_admitted(&mut self, destination: Destination, frames: u64) {
        match destination {
            Destination::Unicast => self.rx_unicast += frames,
            Destination::Multicast => self.rx_multicast += frames,
            Destination::Broadcast => self.rx_broadcast += frames,
        }
    }

    /// Counts what was found of the length of an admitted frame of `octets`.
    #[inline]
    pub(crate) fn count_length(&mut self, length: LengthField, octets: usize) {
        match length {
            LengthField::Right => return,
            LengthField::InRange => self.rx_in_range_length += 1,
            LengthField::OutOfRange => self.rx_out_of_range_length += 1,
        }
        self.rx_length_octets += octets as u64;
    }

    /// Counts `frames` sent frames to `destination`; of unicast ones there are as many as are left.
    #[cold]
    pub(crate) fn count_sent(&mut self, destination: Destination, frames: u64) {
        match destination {
            Destination::Unicast => {}
            Destination::Multicast => self.tx_multicast += frames,
            Destination::Broadcast => self.tx_broadcast += frames,
        }
    }

    /// Counts all that a queue pair has, too.
    pub fn add(&mut self, queue: &QueueCounters) {
        self.rx_delivered += queue.rx_delivered;
        self.rx_no_buffer += queue.rx_no_buffer;
        self.tx_fetched += queue.tx_fetched;
        self.tx_checksum_inserted += queue.tx_checksum_inserted;
        self.tx_headers_inexact += queue.tx_headers_inexact;
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

    /// Whether the statistics account for the same frames as the rest: each frame has a bin or was too short, too long or malformed, and each
    /// admitted one's checksum was looked at. Always so.
    #[must_use]
    pub fn statistics_agree(&self) -> bool {
        let beyond = [
            Drop::RxUndersize,
            Drop::RxFragment,
            Drop::RxOversize,
            Drop::RxJabber,
            Drop::RxMalformed,
        ];
        let beyond: u64 = beyond.iter().map(|&reason| self.drops.get(reason)).sum();
        let admitted = self.rx_unicast + self.rx_multicast + self.rx_broadcast;
        self.rx_frames == self.rx_sizes.total() + beyond
            && self.tx_frames == self.tx_sizes.total()
            && admitted == self.rx_checksums.total() + self.drops.get(Drop::RxVlanFiltered)
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
