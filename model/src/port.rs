//! The port: the blocks of the card on the side of the line, joined.
//!
//! [`Port::receive`] is a frame's way from the wire to its queue, [`Port::send`] one's way back. Both work in
//! bursts and both are paced by the line: what does not fit on it yet stays where it is, on the wire or
//! in the driver's ring. Behind the port are the [`Queues`](crate::queues), with the same owner or with others.

use std::time::Duration;
use std::vec::Drain;

use serde::Serialize;

use crate::BURST;
use crate::checksum::{self, Verdict};
use crate::counters::{Drop, LineCounters, PortCounters, QueueCounters};
use crate::fifo::Occupancy;
use crate::filter::{Destination, Filter, MacAddress};
use crate::frame::{Checksum, Contents, FCS, Frame, Pool};
use crate::host::QueueIndex;
use crate::mac::Mac;
use crate::moderation::Coalesce;
use crate::parse::{self, Plain, Summary};
use crate::phy::{self, Phy, Speed};
use crate::rss::{
    DEFAULT_TABLE, HashConfig, HashTypes, Progress, Rss, RssConfig, RssError, RssStatus, Steered,
};
use crate::time::Nanos;
use crate::tunnel::{self, TunnelTypes};
use crate::vlan::VlanFilter;

/// What a port is made of.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Queue pairs, at least 1.
    pub queue_pairs: u16,
    /// The station's address.
    pub mac: MacAddress,
    /// The longest packet, in octets.
    pub mtu: u16,
    /// The line rate.
    pub speed: Speed,
    /// Whether the link is up at first.
    pub link: bool,
    /// Octets that the receive FIFO of each queue holds.
    pub fifo: usize,
    /// Whether frames are steered by their hash, with the usual key and table, until a driver says otherwise.
    pub rss: bool,
    /// Entries of the longest indirection table that a driver may use, a power of two up to
    /// [`MAX_TABLE`](crate::rss::MAX_TABLE).
    pub rss_table: u16,
    /// When receive queues interrupt, until the driver says otherwise.
    pub rx_coalesce: Coalesce,
    /// When transmit queues interrupt, until the driver says otherwise.
    pub tx_coalesce: Coalesce,
    /// How far the model may run ahead of `now`: zero for exact time; with a real clock, about what a
    /// sleep is late, so that the line does not idle while its owner sleeps.
    pub lead: Duration,
}

impl Default for PortConfig {
    fn default() -> Self {
        PortConfig {
            queue_pairs: 1,
            mac: MacAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]),
            mtu: 1500,
            speed: Speed::from_mbps(10_000).expect("10G is a rate"),
            link: true,
            fifo: 256 * 1024,
            rss: false,
            rss_table: DEFAULT_TABLE as u16,
            rx_coalesce: Coalesce::default(),
            tx_coalesce: Coalesce::default(),
            lead: Duration::ZERO,
        }
    }
}

/// One port of the card: the side of the line.
#[derive(Debug)]
pub struct Port {
    /// The physical layer.
    pub phy: Phy,
    /// The receive address filter.
    pub filter: Filter,
    /// Which queue received frames go to.
    rss: Rss,
    /// Whether frames are steered by their hash though no driver has asked for it.
    always_rss: bool,
    rss_table: u16,
    /// The VLAN filter.
    pub vlan: VlanFilter,
    /// Tunnels whose inner headers are hashed instead of their own.
    pub hash_tunnel_types: TunnelTypes,
    /// Whether the host can be asked to tell its neighbours where it is.
    pub announces: bool,
    /// Whether it is asked to, and has yet to say that it does.
    pub announce: bool,
    /// The buffers that frames live in.
    pub pool: Pool,
    mac: Mac,
    /// The address that the card comes up with.
    address: MacAddress,
    mtu: u16,
    /// What is in the receive FIFO of each queue.
    fifos: Vec<Occupancy>,
    lead: Duration,
    counters: PortCounters,
    /// Frames that the queues have passed on.
    tx_taken: u64,
    /// What of that belongs to each queue.
    lines: Vec<LineCounters>,
    /// The queue that may send first in the next round.
    first_tx: usize,
    /// Whether the line was too busy for what the host may have to send.
    tx_paused: bool,
    /// Whether the wire gives and takes super-frames.
    wire_has_super_frames: bool,
    /// Whether the wire keeps what there is no room for.
    wire_waits: bool,
}

/// What a port has done and where it stands, at one instant.
#[derive(Clone, Debug, Serialize)]
pub struct PortStatus {
    /// Whether there is a link.
    pub link: bool,
    /// The line rate in megabits a second.
    pub speed_mbps: u32,
    /// Whether the host is asked to announce itself, and has yet to say that it does.
    pub announce: bool,
    /// The station's address.
    pub mac: String,
    /// Whether the address filter is in use.
    pub filter_active: bool,
    /// Whether all frames are admitted.
    pub promiscuous: bool,
    /// Whether all multicast frames are admitted.
    pub all_multicast: bool,
    /// Whether all unicast frames are admitted.
    pub all_unicast: bool,
    /// Whether multicast frames are refused.
    pub no_multicast: bool,
    /// Whether unicast frames are refused.
    pub no_unicast: bool,
    /// Whether broadcast frames are refused.
    pub no_broadcast: bool,
    /// Entries of the unicast table.
    pub unicast_table: Vec<String>,
    /// Entries of the multicast table.
    pub multicast_table: Vec<String>,
    /// How received frames are steered.
    pub rss: RssStatus,
    /// Whether the VLAN filter is in use.
    pub vlan_filter_active: bool,
    /// VLANs that are admitted then.
    pub vlan_table: Vec<String>,
    /// Frames that wait in the receive FIFOs.
    pub rx_fifo_frames: usize,
    /// Frames that the queues have passed on and the port has yet to take: none with one worker.
    pub tx_queued_frames: usize,
    /// All counts.
    #[serde(flatten)]
    pub counters: PortCounters,
}

impl Port {
    /// A port as `config` says, with nothing in it.
    #[must_use]
    pub fn new(config: &PortConfig) -> Self {
        Port {
            phy: Phy::new(config.speed, config.link),
            filter: Filter::new(config.mac),
            rss: Rss::new(config.queue_pairs),
            always_rss: config.rss,
            rss_table: config.rss_table,
            pool: Pool::new(Self::buffer_size(config)),
            address: config.mac,
            vlan: VlanFilter::default(),
            hash_tunnel_types: TunnelTypes::default(),
            announces: false,
            announce: false,
            mtu: config.mtu,
            mac: Mac::new(config.mtu),
            fifos: vec![Occupancy::new(config.fifo); config.queue_pairs.max(1).into()],
            lead: config.lead,
            counters: PortCounters::default(),
            tx_taken: 0,
            lines: vec![LineCounters::default(); config.queue_pairs.max(1).into()],
            first_tx: 0,
            tx_paused: false,
            wire_has_super_frames: false,
            wire_waits: false,
        }
    }

    /// Octets of a buffer: more than the longest frame, so that one that is longer can be told.
    #[must_use]
    pub fn buffer_size(config: &PortConfig) -> usize {
        (Mac::new(config.mtu).max_frame() + FCS + 1).next_multiple_of(64)
    }

    /// Frames that the line can take from the wire at `now`: none without a link, or while it is busy with
    /// those it took before, or if the wire has to wait for room. Until a burst brings none, more may have come.
    #[must_use]
    #[inline]
    pub fn rx_room(&self, now: Nanos) -> usize {
        if !self.phy.link() || self.phy.rx.busy_until() > now + self.lead || self.wire_is_paused() {
            return 0;
        }
        // They are in the FIFO from then on, though they have yet to arrive: no more than surely fit, but one in any case,
        // to be dropped if it has to be.
        // A queue that has no room for one will drop it, and does not hold up the others.
        let buffer = self.pool.buffer_size();
        let longest = self.longest();
        let free = self.fifos.iter().map(Occupancy::free);
        let free = free.filter(|&free| free >= longest).min().unwrap_or(0);
        (free / buffer).clamp(1, BURST)
    }

    /// Says whether the wire keeps what there is no room for, until there is.
    pub fn set_flow_control(&mut self, wire_waits: bool) {
        self.wire_waits = wire_waits;
    }

    /// Whether the wire has to wait until the host has taken frames: as long as any FIFO has no room for the longest, whose queue it will
    /// be is not known before (IEEE 802.3, annex 31B: PAUSE is for all of the line).
    #[must_use]
    #[inline]
    pub fn wire_is_paused(&self) -> bool {
        self.wire_waits && self.lacks_room()
    }

    #[cold]
    fn lacks_room(&self) -> bool {
        let longest = self.longest();
        let full = |fifo: &Occupancy| fifo.octets() > 0 && fifo.free() < longest;
        let no_buffer = self.wire_has_super_frames && self.pool.big_room_received() == 0;
        no_buffer || self.fifos.iter().any(full)
    }

    /// Takes a burst from the wire and leaves in `frames` those that are admitted, each with its queue. Returns the instant
    /// up to which all that has come is known.
    #[inline(never)] // with the registers for itself it takes fewer instructions
    pub fn receive(&mut self, now: Nanos, frames: &mut Vec<Frame>) -> Nanos {
        if frames.is_empty() {
            return now;
        }
        self.counters.rx_frames += frames.len() as u64;
        let usual =
            self.filter.admits_own() && self.hash_tunnel_types.is_empty() && !self.pool.lends_big();
        let mut dropped = 0;
        for frame in frames.iter_mut() {
            let glance = if usual { self.glance(frame) } else { None };
            let outcome = match glance {
                Some(steered) => self.enqueue(frame, steered),
                None => self.ingress(frame, usual),
            };
            if let Err(reason) = outcome {
                self.counters.drops.count(reason);
                frame.octets = DROPPED;
                dropped += 1;
            }
        }
        if dropped > 0 {
            self.remove_dropped(frames);
        }
        // More may have come than there was room for: of them nothing is known yet but that they follow.
        now.min(self.phy.rx.busy_until())
    }

    /// Takes the buffers of dropped frames back.
    #[cold]
    fn remove_dropped(&mut self, frames: &mut Vec<Frame>) {
        let dropped = frames.extract_if(.., |frame| frame.octets == DROPPED);
        self.pool.give_all(dropped);
    }

    /// The way of a frame of any kind from the line to its queue. Most need but a [`Port::glance`], under the `usual` rules
    /// even some of these.
    #[cold] // so that the way of most frames is short
    fn ingress(&mut self, frame: &mut Contents, usual: bool) -> Result<(), Drop> {
        if frame.is_super() {
            return self.ingress_super(frame);
        }
        let glance = if usual {
            self.glance_unverified(frame)
        } else {
            None
        };
        let steered = match glance {
            Some(steered) => steered,
            None => self.examine(frame)?,
        };
        self.enqueue(frame, steered)
    }

    /// Puts a frame into the account of the queue that it was steered to.
    #[inline(always)]
    fn enqueue(&mut self, frame: &mut Contents, steered: Steered) -> Result<(), Drop> {
        (frame.hash, frame.hash_report) = (steered.hash, steered.report);
        frame.queue = steered.queue.ok_or(Drop::RxResteered)?;
        let queue = usize::from(frame.queue.0);
        if self.fifos[queue].push(frame) {
            Ok(())
        } else {
            self.lines[queue].rx_overflows += 1;
            Err(Drop::RxFifoOverflow)
        }
    }

    /// Carries a frame that takes `octets` over the line.
    #[inline(always)]
    fn carry(&mut self, frame: &mut Contents, octets: usize) {
        frame.octets = octets as u32;
        frame.arrival = self.phy.rx.carry(octets, frame.arrival);
        self.counters.rx_octets += octets as u64;
    }

    /// Looks into a frame as most are: with nothing to check at the MAC, for the station's own address, plain TCP or UDP, its
    /// checksum right. `None` if it is any other; then nothing has happened. What it finds is what [`Port::examine`] would find.
    #[inline(always)]
    fn glance(&mut self, frame: &mut Contents) -> Option<Steered> {
        let bytes = frame.bytes();
        let headers = Plain::of(bytes)?;
        let usual = matches!(frame.checksum, Checksum::Unknown)
            && self.mac.is_plain(frame)
            && self.filter.is_own(bytes)
            && checksum::is_right(bytes, headers);
        if !usual {
            return None;
        }
        let steered = self.settle(frame, headers);
        self.counters.rx_checksum_good += 1;
        frame.checksum = Checksum::Valid;
        Some(steered)
    }

    /// [`Port::glance`] at a frame in which there is no checksum to verify: it was verified before, or there is none.
    fn glance_unverified(&mut self, frame: &mut Contents) -> Option<Steered> {
        let bytes = frame.bytes();
        let headers = Plain::of(bytes)?;
        let verified = matches!(frame.checksum, Checksum::Valid);
        let unused =
            || matches!(frame.checksum, Checksum::Unknown) && checksum::is_unused(bytes, headers);
        let usual = (verified || unused()) && self.mac.is_plain(frame) && self.filter.is_own(bytes);
        if !usual {
            return None;
        }
        self.counters.rx_checksum_good += u64::from(verified);
        Some(self.settle(frame, headers))
    }

    /// Steers a frame as most are, and carries it over the line.
    #[inline(always)]
    fn settle(&mut self, frame: &mut Contents, headers: Plain) -> Steered {
        let bytes = frame.bytes();
        let octets = bytes.len() + FCS;
        let fifos = Fifos(&self.fifos);
        let steered = self.rss.steer_plain(bytes, headers, &fifos);
        self.carry(frame, octets);
        self.counters.rx_unicast += 1;
        steered
    }

    /// Verifies the transport checksum of a frame with the headers `summary`.
    fn verify(&mut self, frame: &mut Contents, summary: &Summary) {
        match checksum::verify(frame.bytes(), summary) {
            Verdict::Good => {
                self.counters.rx_checksum_good += 1;
                frame.checksum = Checksum::Valid;
            }
            Verdict::Bad => {
                self.counters.rx_checksum_bad += 1;
                frame.checksum = Checksum::Bad;
            }
            Verdict::None => {}
        }
    }

    /// Looks into a frame of any kind.
    fn examine(&mut self, frame: &mut Contents) -> Result<Steered, Drop> {
        let octets = phy::octets_on_line(frame);
        self.carry(frame, octets);
        self.mac.accept(frame)?;
        let bytes = frame.bytes();
        match self.filter.admit(bytes)? {
            Destination::Unicast => self.counters.rx_unicast += 1,
            Destination::Multicast => self.counters.rx_multicast += 1,
            Destination::Broadcast => self.counters.rx_broadcast += 1,
        }
        let summary = parse::summarise(bytes);
        if summary.is_tagged() && !self.filter.promiscuous {
            self.vlan.admit(bytes)?;
        }
        match frame.checksum {
            Checksum::Unknown => self.verify(frame, &summary),
            Checksum::Valid => self.counters.rx_checksum_good += 1,
            _ => {}
        }
        let bytes = frame.bytes();
        let inner = tunnel::inner(bytes, &summary, self.hash_tunnel_types);
        let hashed = inner.as_ref().unwrap_or(&summary);
        Ok(self.rss.steer(bytes, hashed, &Fifos(&self.fifos)))
    }

    /// Takes back frames that have left the FIFO of `queue`, the oldest there.
    #[inline]
    pub fn release(&mut self, queue: QueueIndex, frames: Drain<'_, Frame>) {
        self.fifos[usize::from(queue.0)].drain(frames.as_slice());
        self.pool.give_all(frames);
    }

    /// Has the queues send in turn, as long as the line has time: `fetch` takes a burst of a queue's frames and passes
    /// them to [`Port::send`], and returns how many it took. Returns whether there were any.
    pub fn transmit(
        &mut self,
        now: Nanos,
        mut fetch: impl FnMut(&mut Self, QueueIndex) -> usize,
    ) -> bool {
        let queues = self.fifos.len();
        let horizon = now + self.lead;
        let (mut worked, mut more) = (false, false);
        let mut free = self.phy.tx.busy_until() <= horizon;
        let mut queue = self.first_tx;
        for _ in 0..queues {
            if !free {
                more = true;
                break;
            }
            let before = self.counters.sent();
            let fetched = fetch(self, QueueIndex(queue as u16));
            let this = queue;
            queue = if this + 1 == queues { 0 } else { this + 1 };
            if fetched > 0 {
                self.lines[this].count_sent(before, self.counters.sent());
                free = self.phy.tx.busy_until() <= horizon;
                worked = true;
                more |= fetched == BURST;
                // Turns move on with what was sent: a call that finds the line busy must not cost a queue its turn.
                self.first_tx = queue;
            }
        }
        self.tx_paused = more && !free;
        worked
    }

    /// Puts `frames` of `queue` on the line, and appends them to `out`, each with the instant at which its last bit leaves.
    /// Leaves `frames` empty.
    #[inline]
    pub fn send(
        &mut self,
        now: Nanos,
        queue: QueueIndex,
        frames: &mut Vec<Frame>,
        out: &mut Vec<Frame>,
    ) {
        let sent = frames.iter().map(|frame| frame.bytes());
        self.rss.learn(sent, queue, self.hash_tunnel_types);
        let count = frames.len();
        self.tx_taken += count as u64;
        if !self.phy.link() {
            self.counters.drops.count_many(Drop::TxLinkDown, count);
            self.pool.give_all(frames.drain(..));
            return;
        }
        if self.pool.lends_big() {
            self.send_super_frames(now, frames, out);
            return;
        }
        let line = &mut self.phy.tx;
        let mut total = 0;
        out.extend(frames.drain(..).map(|mut frame| {
            let octets = phy::octets_on_line(&frame);
            frame.arrival = line.carry(octets, now);
            total += octets as u64;
            frame
        }));
        self.counters.tx_frames += count as u64;
        self.counters.tx_octets += total;
    }

    /// When the port has something to do again without anybody's asking; `None` if it only waits for the
    /// wire or the host.
    #[must_use]
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let horizon = now + self.lead;
        let rx_line = Some(self.phy.rx.busy_until()).filter(|&free| free > horizon);
        let ahead = self.tx_resumes().into_iter().chain(rx_line);
        ahead.map(|due| due - self.lead).min()
    }

    /// Resets what a driver set up: receive modes, address, VLANs, steering (VIRTIO 1.3, 2.4). Counters and the link stay.
    pub fn reset(&mut self) {
        self.filter = Filter::new(self.address);
        self.vlan = VlanFilter::default();
        self.hash_tunnel_types = TunnelTypes::default();
        (self.announces, self.announce) = (false, false);
        self.rss.reset();
    }

    /// Brings the link up or down. A host behind a link that has come up again is asked to announce itself: the
    /// neighbours may be others. Returns whether that was a change, of which the host has to hear.
    pub fn set_link(&mut self, up: bool) -> bool {
        let changed = self.phy.set_link(up);
        if changed && up {
            self.ask_to_announce();
        }
        changed
    }

    /// Asks the host to tell its neighbours where it is (VIRTIO 1.3, 5.1.6.5.4). Returns false if it is none
    /// that can be asked; otherwise it has to hear of it.
    pub fn ask_to_announce(&mut self) -> bool {
        self.announce |= self.announces;
        self.announces
    }

    /// How frames are steered.
    #[must_use]
    pub fn rss(&self) -> &Rss {
        &self.rss
    }

    /// Spreads received frames over the first `pairs` queue pairs: automatically, or by hash if the card does so always
    /// (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`).
    ///
    /// # Errors
    /// There are not as many.
    pub fn use_pairs(&mut self, pairs: u16) -> Result<(), RssError> {
        let fifos = Fifos(&self.fifos);
        if !self.always_rss {
            return self.rss.set_pairs(pairs, &fifos);
        }
        if pairs == 0 || pairs > self.queue_pairs() {
            return Err(RssError::Pairs(pairs));
        }
        // A driver that has said what to hash is not overruled.
        let said = self.rss.hash_config();
        let hash = if said.types() == HashTypes::NONE {
            HashConfig::usual()
        } else {
            said.clone()
        };
        self.rss.set_table(&RssConfig::even(hash, pairs), &fifos)?;
        self.rss.expect_pairs(pairs);
        Ok(())
    }

    /// Spreads received frames as `config` says; the driver uses `pairs` pairs (`VIRTIO_NET_CTRL_MQ_RSS_CONFIG`).
    ///
    /// # Errors
    /// It names a queue that there is not, or its table is too long.
    pub fn set_rss(&mut self, config: &RssConfig, pairs: u16) -> Result<(), RssError> {
        if config.table_len() > usize::from(self.rss_table) {
            return Err(RssError::TableLength(config.table_len()));
        }
        self.rss.set_table(config, &Fifos(&self.fifos))?;
        self.rss.expect_pairs(pairs);
        Ok(())
    }

    /// Entries of the longest indirection table that a driver may use.
    #[must_use]
    pub fn rss_table(&self) -> u16 {
        self.rss_table
    }

    /// Hashes received frames as `config` says, for the driver to know (`VIRTIO_NET_CTRL_MQ_HASH_CONFIG`).
    pub fn set_hash(&mut self, config: &HashConfig) {
        self.rss.set_hash(config, &Fifos(&self.fifos));
    }

    /// Says whether frames that go to `queue` reach the host.
    pub fn set_receiving(&mut self, queue: QueueIndex, receiving: bool) {
        let fifos = Fifos(&self.fifos);
        self.rss.set_receiving(queue, receiving, &fifos);
    }

    /// When the line is free for what the host may have to send, if that waits for it.
    #[must_use]
    pub fn tx_resumes(&self) -> Option<Nanos> {
        self.tx_paused.then(|| self.phy.tx.busy_until())
    }

    /// Queue pairs.
    #[must_use]
    pub fn queue_pairs(&self) -> u16 {
        self.fifos.len() as u16
    }

    /// The longest packet's payload, in octets.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The port's counts, and those of all its queues: `queues`.
    #[must_use]
    pub fn counters(&self, queues: &[QueueCounters]) -> PortCounters {
        let mut counters = self.counters.clone();
        for queue in queues {
            counters.add(queue);
        }
        counters
    }

    /// What of the port's counts belongs to `queue`.
    ///
    /// # Panics
    /// If there is no such queue.
    #[must_use]
    pub fn line_counters(&self, queue: QueueIndex) -> &LineCounters {
        &self.lines[usize::from(queue.0)]
    }

    /// The port's state and counts, with those of all its queues: `queues`.
    #[must_use]
    pub fn status(&self, queues: &[QueueCounters]) -> PortStatus {
        let pushed: u64 = self.fifos.iter().map(Occupancy::pushed).sum();
        let drained: u64 = queues.iter().map(|queue| queue.rx_drained).sum();
        let passed: u64 = queues.iter().map(|queue| queue.tx_passed).sum();
        let (unicast, multicast) = self.filter.tables();
        PortStatus {
            link: self.phy.link(),
            speed_mbps: self.phy.speed().mbps(),
            announce: self.announce,
            mac: self.filter.address.to_string(),
            filter_active: self.filter.active,
            promiscuous: self.filter.promiscuous,
            all_multicast: self.filter.all_multicast,
            all_unicast: self.filter.all_unicast,
            no_multicast: self.filter.no_multicast,
            no_unicast: self.filter.no_unicast,
            no_broadcast: self.filter.no_broadcast,
            unicast_table: unicast.iter().map(MacAddress::to_string).collect(),
            multicast_table: multicast.iter().map(MacAddress::to_string).collect(),
            rss: self.rss.status(),
            rx_fifo_frames: pushed.saturating_sub(drained) as usize,
            tx_queued_frames: passed.saturating_sub(self.tx_taken) as usize,
            vlan_filter_active: self.vlan.active,
            vlan_table: self.vlan.members().map(|id| id.to_string()).collect(),
            counters: self.counters(queues),
        }
    }
}

/// In the place of a frame's octets on the line: it is to be removed. No frame is as short.
const DROPPED: u32 = 0;

/// How far the FIFOs have got.
struct Fifos<'a>(&'a [Occupancy]);

impl Progress for Fifos<'_> {
    #[inline]
    fn pushed(&self, queue: QueueIndex) -> u64 {
        self.0[usize::from(queue.0)].pushed()
    }

    #[inline]
    fn drained(&self, queue: QueueIndex) -> u64 {
        self.0[usize::from(queue.0)].drained()
    }
}

mod super_frames;
#[cfg(test)]
mod tests;
