//! The port: the blocks of the card on the side of the line, joined.
//!
//! [`Port::receive`] is a frame's way from the wire to its queue, [`Port::send`] one's way back. Both work in
//! bursts and both are paced by the line: what does not fit on it yet stays where it is, on the wire or
//! in the driver's ring. Behind the port are the [`Queues`](crate::queues), with the same owner or with others.

mod buffers;
mod config;
mod flow_control;
mod glance;
mod rates;
mod status;
mod steering;
mod super_frames;
mod transmit;

use std::time::Duration;
use std::vec::Drain;

use crate::BURST;
use crate::checksum::{self, Verdict};
use crate::counters::{Drop, LineCounters, PortCounters, QueueCounters};
use crate::fifo::Occupancy;
use crate::filter::{Destination, Filter, MacAddress};
use crate::frame::{Checksum, Contents, FCS, Frame, Pool};
use crate::host::QueueIndex;
use crate::mac::{self, Mac};
use crate::packet_buffer::PacketBuffer;
use crate::parse::{self, Plain, Summary};
use crate::pause::{self, Pause};
use crate::pfc::Pfc;
use crate::phy::{self, Phy, PhyConfig, Seen};
use crate::rate::{Rates, TokenBucket};
use crate::rsc::{Rsc, Takes};
use crate::rss::{Rss, Steered};
use crate::scheduler::{Scheduler, Weights};
use crate::time::Nanos;
use crate::tunnel::{self, TunnelTypes};
use crate::vlan::VlanFilter;

pub use config::PortConfig;
pub use status::PortStatus;
use steering::Fifos;
pub use super_frames::LONGEST_SUPER_FRAME;

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
    /// Whether the host may send super-frames.
    pub host_sends_super: bool,
    /// The buffers that frames live in.
    pub pool: Pool,
    mac: Mac,
    /// What merges segments.
    pub rsc: Rsc,
    /// Flow control with the partner.
    pause: Pause,
    /// Of single priorities, if that may be wanted.
    pfc: Option<Box<Pfc>>,
    /// Whether each received frame has to be looked at as a whole: a rate or priorities are to be judged.
    judges: bool,
    /// The address that the card comes up with.
    address: MacAddress,
    mtu: u16,
    /// What is in the receive FIFO of each queue.
    fifos: Vec<Occupancy>,
    /// What they share, if they do.
    buffer: Option<PacketBuffer>,
    /// Whether more has to be kept account of than what is in each: a shared buffer, or priorities.
    shares: bool,
    rates: Rates,
    rx_bucket: Option<TokenBucket>,
    tx_bucket: Option<TokenBucket>,
    /// Which queues have something that waits for the rate.
    tx_waits: Vec<bool>,
    lead: Duration,
    counters: PortCounters,
    /// Frames that the queues have passed on.
    tx_taken: u64,
    /// What of that belongs to each queue.
    lines: Vec<LineCounters>,
    /// Whose turn it is to send.
    scheduler: Scheduler,
    tx_weights: Weights,
    /// Whether the line was too busy for what the host may have to send.
    tx_paused: bool,
    /// Whether the wire gives and takes super-frames.
    wire_has_super_frames: bool,
    /// Whether the wire keeps what there is no room for.
    wire_waits: bool,
}

impl Port {
    /// A port as `config` says, with nothing in it.
    #[must_use]
    pub fn new(config: &PortConfig) -> Self {
        let queues = usize::from(config.queue_pairs.max(1));
        let mut scheduler = Scheduler::new(queues, Mac::new(config.mtu).max_frame());
        scheduler.set_weights(&config.tx_weights);
        let pfc = (config.pfc)
            .map(|priorities| Box::new(Pfc::new(priorities, config.queue_room(), queues)));
        Port {
            phy: Phy::with(&PhyConfig {
                speed: config.speed,
                plugged: config.link,
                autoneg: config.autoneg,
                partner: config.partner,
            }),
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
            host_sends_super: false,
            mtu: config.mtu,
            mac: Mac::new(config.mtu),
            rsc: Rsc::new(config.lro),
            pause: Pause::default(),
            judges: pfc.is_some() || config.rates.rx.is_some(),
            shares: pfc.is_some() || config.packet_buffer.is_some(),
            pfc,
            fifos: vec![Self::fifo(config); queues],
            buffer: config
                .packet_buffer
                .map(|buffer| PacketBuffer::new(buffer, queues)),
            rates: config.rates,
            rx_bucket: config.rates.rx.map(TokenBucket::new),
            tx_bucket: config.rates.tx.map(TokenBucket::new),
            tx_waits: vec![false; queues],
            lead: config.lead,
            counters: PortCounters::default(),
            tx_taken: 0,
            lines: vec![LineCounters::default(); queues],
            scheduler,
            tx_weights: config.tx_weights,
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
        if self.shares {
            return self.shared_rx_room();
        }
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
    /// be is not known before (IEEE 802.3, annex 31B: PAUSE is for all of the line). Nor is its priority: that it is not controlled has to be expected, too.
    #[must_use]
    #[inline]
    pub fn wire_is_paused(&self) -> bool {
        self.wire_waits && self.lacks_room()
    }

    #[cold]
    fn lacks_room(&self) -> bool {
        let longest = self.longest();
        let full = |fifo: &Occupancy| fifo.octets() > 0 && self.room_in(fifo) < longest;
        let no_buffer = self.wire_has_super_frames && self.pool.big_room_received() == 0;
        no_buffer || self.fifos.iter().any(full) || self.others_lack_room(longest)
    }

    /// Takes a burst from the wire and leaves in `frames` those that are admitted, each with its queue. Returns the instant
    /// up to which all that has come is known.
    #[inline(never)] // with the registers for itself it takes fewer instructions
    pub fn receive(&mut self, now: Nanos, frames: &mut Vec<Frame>) -> Nanos {
        if frames.is_empty() {
            return now;
        }
        self.counters.rx_frames += frames.len() as u64;
        // Most are for this station alone. Whoever finds that one is not takes it back: so those that are cost nothing.
        self.counters.rx_unicast += frames.len() as u64;
        let usual = self.filter.admits_own()
            && self.hash_tunnel_types.is_empty()
            && !self.pool.lends_big()
            && !self.judges;
        let mut dropped = 0;
        for frame in frames.iter_mut() {
            let plain = if usual {
                Plain::<4>::of(frame.bytes())
            } else {
                None
            };
            let outcome = match plain {
                Some(headers) => self.ingress_plain(frame, headers),
                None => self.ingress(frame, usual),
            };
            if let Err(reason) = outcome {
                self.counters.drop_received(reason, frame.octets);
                frame.octets = GONE;
                dropped += 1;
            }
        }
        if dropped > 0 {
            self.remove_gone(frames);
        }
        if self.rsc.is_on() {
            self.coalesce(frames);
        }
        // More may have come than there was room for: of them nothing is known yet but that they follow.
        now.min(self.phy.rx.busy_until())
    }

    /// Takes the buffers of dropped frames back, and of merged ones.
    #[cold]
    fn remove_gone(&mut self, frames: &mut Vec<Frame>) {
        let gone = frames.extract_if(.., |frame| frame.octets == GONE);
        self.pool.give_all(gone);
    }

    /// The way of a frame of any kind from the line to its queue. Under the `usual` rules most need but a
    /// [`Port::glance`].
    #[cold] // so that the way of most frames is short
    fn ingress(&mut self, frame: &mut Contents, usual: bool) -> Result<(), Drop> {
        if usual && let Some(headers) = Plain::<6>::of(frame.bytes()) {
            return self.ingress_plain(frame, headers);
        }
        if frame.is_super() {
            return self.ingress_super(frame);
        }
        let steered = self.examine(frame)?;
        self.police(frame, 1, &steered)?;
        if self.pfc.is_some() {
            return self.enqueue_by_priority(frame, steered);
        }
        self.enqueue(frame, steered)
    }

    /// Puts a frame into the account of the queue that it was steered to.
    #[inline(always)]
    fn enqueue(&mut self, frame: &mut Contents, steered: Steered) -> Result<(), Drop> {
        (frame.hash, frame.hash_report) = (steered.hash, steered.report);
        frame.queue = steered.queue.ok_or(Drop::RxResteered)?;
        let queue = usize::from(frame.queue.0);
        if self.fifos[queue].push(frame) || self.push_shared(queue, frame) {
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

    /// Takes back that one of the burst was taken for a frame to this station.
    #[inline]
    fn look_closer(&mut self) {
        self.counters.rx_unicast -= 1;
    }

    /// Has the address filter admit what stands for `frames` frames, and counts them.
    fn weigh(&mut self, bytes: &[u8], frames: u64) -> Result<(), Drop> {
        let destination = Destination::of_frame(bytes);
        self.counters.count_on_line(destination, frames);
        let admitted = self.filter.admit(bytes)?;
        self.counters.count_admitted(admitted, frames);
        Ok(())
    }

    /// Verifies the transport checksum of a frame with the headers `summary`.
    fn verify(&mut self, frame: &mut Contents, summary: &Summary) {
        match checksum::verify(frame.bytes(), summary) {
            Verdict::Good => {
                self.counters.rx_checksums.count_good(summary.transport);
                frame.checksum = Checksum::Valid;
            }
            Verdict::Bad => {
                self.counters.rx_checksums.count_bad(summary.transport);
                frame.checksum = Checksum::Bad;
            }
            Verdict::None => self.counters.rx_checksums.count_none(),
        }
    }

    /// Looks into a frame of any kind.
    fn examine(&mut self, frame: &mut Contents) -> Result<Steered, Drop> {
        self.look_closer();
        let octets = phy::octets_on_line(frame);
        self.carry(frame, octets);
        let accepted = self.mac.accept(frame);
        if let Ok(()) | Err(Drop::RxFcs | Drop::RxAlign) = accepted {
            self.counters.rx_sizes.count(octets);
        }
        accepted?;
        let bytes = frame.bytes();
        if let Some(control) = pause::read(bytes, self.filter.address()) {
            self.obey(control, frame.arrival);
            self.counters.count_control(Destination::of_frame(bytes));
            return Err(Drop::RxControl);
        }
        self.weigh(bytes, 1)?;
        self.counters.count_length(mac::length_field(bytes), octets);
        let summary = parse::summarise(bytes);
        if summary.is_tagged() && !self.filter.promiscuous {
            self.vlan.admit(bytes)?;
        }
        // Who verified what is behind the header verified it, too.
        if frame.checksum != Checksum::Valid && !checksum::is_header_right(bytes, &summary) {
            self.counters.rx_checksums.count_bad_header(1);
        }
        match frame.checksum {
            Checksum::Unknown => self.verify(frame, &summary),
            Checksum::Valid => self.counters.rx_checksums.count_good(summary.transport),
            Checksum::Bad => self.counters.rx_checksums.count_bad(summary.transport),
            Checksum::Partial { .. } => self.counters.rx_checksums.count_left(1),
        }
        let bytes = frame.bytes();
        let inner = tunnel::inner(bytes, &summary, self.hash_tunnel_types);
        let hashed = inner.as_ref().unwrap_or(&summary);
        Ok(self.rss.steer(bytes, hashed, &Fifos(&self.fifos)))
    }

    /// Takes back frames that have left the FIFO of `queue`, the oldest there.
    #[inline]
    pub fn release(&mut self, queue: QueueIndex, frames: Drain<'_, Frame>) {
        let index = usize::from(queue.0);
        if self.shares {
            self.drain_shared(index, &frames);
        } else {
            self.fifos[index].drain(frames.as_slice());
        }
        if self.pool.lends_big() {
            self.fifos[index].drain_super(frames.as_slice());
        }
        self.pool.give_all(frames);
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
        if self.pfc.is_some() {
            self.hold_back(now, queue, frames);
        }
        let count = frames.len();
        if count == 0 {
            return;
        }
        let sent = frames.iter().map(|frame| frame.bytes());
        self.rss.learn(sent, queue, self.hash_tunnel_types);
        self.tx_taken += count as u64;
        if !self.phy.link() {
            self.counters.drops.count_many(Drop::TxLinkDown, count);
            self.lines[usize::from(queue.0)].tx_link_down += count as u64;
            self.pool.give_all(frames.drain(..));
            return;
        }
        let ready = now.max(self.pause.until());
        if self.pool.lends_big() || self.tx_bucket.is_some() {
            self.send_one_by_one(ready, queue, frames, out);
            return;
        }
        let (line, sizes) = (&mut self.phy.tx, &mut self.counters.tx_sizes);
        line.idle_until(ready);
        let (sent, mut total, mut first_octets) = (out.len(), 0, 0);
        out.extend(frames.drain(..).map(|mut frame| {
            // They are prepared: padded, without check sequence.
            let octets = frame.len() + FCS;
            debug_assert_eq!(octets, phy::octets_on_line(&frame));
            frame.arrival = line.carry(octets, Nanos::ZERO);
            total += octets as u64;
            sizes.count(octets);
            first_octets |= frame.first_octet();
            frame
        }));
        if first_octets & 1 != 0 {
            self.count_groups(&out[sent..]);
        }
        self.count_line(queue, count as u64, total);
    }

    /// Counts `frames` sent frames of `queue`, of `octets` octets in all.
    #[inline]
    fn count_line(&mut self, queue: QueueIndex, frames: u64, octets: u64) {
        self.counters.tx_frames += frames;
        self.counters.tx_octets += octets;
        let line = &mut self.lines[usize::from(queue.0)];
        line.tx_frames += frames;
        line.tx_octets += octets;
    }

    /// Counts those of the sent `frames` that go to groups.
    #[cold]
    fn count_groups(&mut self, frames: &[Frame]) {
        for frame in frames {
            let destination = Destination::of_frame(frame.bytes());
            self.counters.count_sent(destination, 1);
        }
    }

    /// When the port has something to do again without anybody's asking; `None` if it only waits for the
    /// wire or the host.
    #[must_use]
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let horizon = now + self.lead;
        let rx_line = Some(self.phy.rx.busy_until()).filter(|&free| free > horizon);
        let ahead = self.tx_resumes().into_iter().chain(rx_line);
        // The line may run ahead of the clock, the link may not.
        let link = self.phy.next_deadline().into_iter();
        let others = link.chain(self.next_control()).chain(self.held_resumes());
        ahead.map(|due| due - self.lead).chain(others).min()
    }

    /// Resets what a driver set up: receive modes, address, VLANs, steering (VIRTIO 1.3, 2.4). Its packets that are held back
    /// are dropped. Counters and the link stay.
    pub fn reset(&mut self) {
        self.filter = Filter::new(self.address);
        self.vlan = VlanFilter::default();
        self.hash_tunnel_types = TunnelTypes::default();
        (self.announces, self.announce) = (false, false);
        self.host_sends_super = false;
        self.rsc.accept(Takes::default());
        self.rss.reset();
        for queue in (0..self.queue_pairs()).map(QueueIndex) {
            self.abandon(queue, &mut Vec::new());
        }
    }

    /// Plugs the cable in, or pulls it out: without auto-negotiation the link is up, or down, at once. Returns whether that was a
    /// change, of which the host has to hear.
    pub fn set_link(&mut self, now: Nanos, up: bool) -> bool {
        self.change_phy(|phy| {
            phy.set_link(now, up);
        })
    }

    /// Does what `change` does to the physical layer. A host behind a link that has come up again is asked to announce itself: the
    /// neighbours may be others. Returns whether anything that others see has changed; of the link and its mode the host has to hear.
    pub fn change_phy(&mut self, change: impl FnOnce(&mut Phy)) -> bool {
        let (before, turned) = (self.phy.seen(), self.phy.loopback());
        change(&mut self.phy);
        let after = self.phy.seen();
        if after.link && !before.link {
            self.ask_to_announce();
        }
        let other = self.phy.loopback() != turned;
        if other || after.link != before.link || after.pause != before.pause {
            self.forget_pauses();
        }
        let visible = |seen: Seen| (seen.link.then_some(seen.mode), seen.pause);
        visible(before) != visible(after)
    }

    /// Asks the host to tell its neighbours where it is (VIRTIO 1.3, 5.1.6.5.4). Returns false if it is none
    /// that can be asked; otherwise it has to hear of it.
    pub fn ask_to_announce(&mut self) -> bool {
        self.announce |= self.announces;
        self.announces
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

    /// The longest frame, in octets with its check sequence.
    #[must_use]
    pub fn max_frame(&self) -> usize {
        self.mac.max_frame()
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
}

/// In the place of a frame's octets on the line: it is to be removed. No frame is as short.
pub(crate) const GONE: u32 = 0;

#[cfg(test)]
mod tests;
