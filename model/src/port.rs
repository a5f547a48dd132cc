//! The port: the blocks of the card, joined.
//!
//! [`Port::receive`] is a frame's way from the wire to the host, [`Port::transmit`] its way back. Both work in
//! bursts and both are paced by the line: what does not fit on it yet stays where it is, on the wire or
//! in the driver's ring.

use std::time::Duration;

use serde::Serialize;

use crate::BURST;
use crate::checksum::{self, Verdict};
use crate::counters::{Drop, PortCounters};
use crate::fifo::Fifo;
use crate::filter::{Destination, Filter, MacAddress};
use crate::frame::{Checksum, FCS, Frame, Pool};
use crate::host::{Direction, Host, QueueIndex};
use crate::mac::Mac;
use crate::moderation::{Coalesce, Moderator};
use crate::parse;
use crate::phy::{self, Phy, Speed};
use crate::time::Nanos;

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
            rx_coalesce: Coalesce::default(),
            tx_coalesce: Coalesce::default(),
            lead: Duration::ZERO,
        }
    }
}

/// One port of the card.
#[derive(Debug)]
pub struct Port {
    /// The physical layer.
    pub phy: Phy,
    /// The receive address filter.
    pub filter: Filter,
    /// The buffers that frames live in.
    pub pool: Pool,
    /// When queues interrupt.
    pub moderator: Moderator,
    mac: Mac,
    mtu: u16,
    fifos: Vec<Fifo>,
    lead: Duration,
    counters: PortCounters,
    /// Frames fetched from the host that are about to go on the line.
    fetched: Vec<Frame>,
    /// The queue that may send first in the next round.
    first_tx: usize,
    /// Whether the line was too busy for what the host may have to send.
    tx_paused: bool,
}

/// What a port has done and where it stands, at one instant.
#[derive(Clone, Debug, Serialize)]
pub struct PortStatus {
    /// Whether there is a link.
    pub link: bool,
    /// The line rate in megabits a second.
    pub speed_mbps: u32,
    /// The station's address.
    pub mac: String,
    /// Whether the address filter is in use.
    pub filter_active: bool,
    /// Whether all frames are admitted.
    pub promiscuous: bool,
    /// Whether all multicast frames are admitted.
    pub all_multicast: bool,
    /// Entries of the unicast table.
    pub unicast_table: Vec<String>,
    /// Entries of the multicast table.
    pub multicast_table: Vec<String>,
    /// Frames that wait in the receive FIFOs.
    pub rx_fifo_frames: usize,
    /// All counts.
    #[serde(flatten)]
    pub counters: PortCounters,
}

impl Port {
    /// A port as `config` says, with nothing in it.
    #[must_use]
    pub fn new(config: &PortConfig) -> Self {
        let mac = Mac::new(config.mtu);
        // More than the longest frame, so that one that is longer can be told.
        let buffer = (mac.max_frame() + FCS + 1).next_multiple_of(64);
        let queues = config.queue_pairs.max(1);
        Port {
            phy: Phy::new(config.speed, config.link),
            filter: Filter::new(config.mac),
            pool: Pool::new(buffer),
            moderator: Moderator::new(queues.into(), config.rx_coalesce, config.tx_coalesce),
            mtu: config.mtu,
            mac,
            fifos: (0..queues).map(|_| Fifo::new(config.fifo)).collect(),
            lead: config.lead,
            counters: PortCounters::default(),
            fetched: Vec::with_capacity(BURST),
            first_tx: 0,
            tx_paused: false,
        }
    }

    /// Frames that the line can take from the wire at `now`: none without a link, or while it is busy with
    /// those it took before. Until a call of [`Port::receive`] brings none, more may have come.
    #[must_use]
    #[inline]
    pub fn rx_room(&self, now: Nanos) -> usize {
        if !self.phy.link() || self.phy.rx.busy_until() > now + self.lead {
            return 0;
        }
        // They are in the FIFO from then on, though they have yet to arrive: no more than surely fit, but one in any case,
        // to be dropped if it has to be.
        let free = self.fifos.iter().map(Fifo::free).min().unwrap_or(0);
        (free / self.pool.buffer_size()).clamp(1, BURST)
    }

    /// Takes a burst from the wire and delivers what has arrived to the host. Leaves `frames` empty.
    /// Returns whether anything was delivered.
    pub fn receive(&mut self, now: Nanos, frames: &mut Vec<Frame>, host: &mut impl Host) -> bool {
        let more = !frames.is_empty();
        for mut frame in frames.drain(..) {
            match self.ingress(&mut frame) {
                Ok(queue) => {
                    if let Err(frame) = self.fifos[usize::from(queue.0)].push(frame) {
                        self.counters.drops.count(Drop::RxFifoOverflow);
                        self.pool.give(frame);
                    }
                }
                Err(reason) => {
                    self.counters.drops.count(reason);
                    self.pool.give(frame);
                }
            }
        }
        // More may have come than there was room for: of them nothing is known yet but that they follow.
        let known = if more {
            now.min(self.phy.rx.busy_until())
        } else {
            now
        };
        self.deliver(now, known, host)
    }

    /// One frame's way from the line to its queue.
    #[inline]
    fn ingress(&mut self, frame: &mut Frame) -> Result<QueueIndex, Drop> {
        let octets = phy::octets_on_line(frame);
        frame.arrival = self.phy.rx.carry(octets, frame.arrival);
        self.counters.rx_frames += 1;
        self.counters.rx_octets += octets as u64;
        self.mac.accept(frame)?;
        let bytes = frame.bytes();
        match self.filter.admit(bytes)? {
            Destination::Unicast => self.counters.rx_unicast += 1,
            Destination::Multicast => self.counters.rx_multicast += 1,
            Destination::Broadcast => self.counters.rx_broadcast += 1,
        }
        let summary = parse::summarise(bytes);
        if frame.checksum == Checksum::Unknown {
            match checksum::verify(bytes, &summary) {
                Verdict::Good => {
                    self.counters.rx_checksum_good += 1;
                    frame.checksum = Checksum::Valid;
                }
                Verdict::Bad => self.counters.rx_checksum_bad += 1,
                Verdict::None => {}
            }
        }
        // Without receive-side scaling every flow belongs to the first queue.
        Ok(QueueIndex(0))
    }

    /// Moves frames that have arrived from the FIFOs to the host, as far as it has buffers. All that have arrived by
    /// `known` are there. Returns whether any was moved.
    fn deliver(&mut self, now: Nanos, known: Nanos, host: &mut impl Host) -> bool {
        let horizon = now + self.lead;
        let mut worked = false;
        for (index, fifo) in self.fifos.iter_mut().enumerate() {
            let queue = QueueIndex(index as u16);
            let moderation = self.moderator.of_mut(queue, Direction::Receive);
            // The driver has a packet when it has arrived, or, if there was no buffer then, now.
            let since = if fifo.refused { now } else { Nanos::ZERO };
            while !fifo.is_empty() {
                if !host.receives(queue) {
                    let stale = fifo.len();
                    self.counters.drops.count_many(Drop::RxQueueDisabled, stale);
                    fifo.drain(stale, |frame| self.pool.give(frame));
                    fifo.refused = false;
                    break;
                }
                let arrived = arrived(fifo.front(), horizon);
                if arrived.is_empty() {
                    break;
                }
                let (offered, dropped) = (arrived.len(), self.counters.drops.total());
                let taken = host.deliver(queue, arrived, &mut self.counters.drops);
                let dropped = self.counters.drops.total() - dropped;
                self.counters.rx_delivered += taken as u64 - dropped;
                for frame in &arrived[..taken] {
                    moderation.packet(frame.arrival.max(since), now);
                }
                fifo.refused = taken < offered;
                fifo.drain(taken, |frame| self.pool.give(frame));
                worked |= taken > 0;
                if moderation.take_due() {
                    host.interrupt(queue, Direction::Receive);
                }
                if taken < offered {
                    break;
                }
            }
            moderation.expire(known, now);
            if moderation.take_due() {
                host.interrupt(queue, Direction::Receive);
            }
        }
        worked
    }

    /// Takes frames from the host, as many as the line has time for, and appends them to `out`, each with
    /// the instant at which its last bit leaves. Returns whether there were any.
    pub fn transmit(&mut self, now: Nanos, out: &mut Vec<Frame>, host: &mut impl Host) -> bool {
        let queues = self.fifos.len();
        let horizon = now + self.lead;
        let mut worked = false;
        let mut more = false;
        // Turns move on with what was sent: a call that finds the line busy must not cost a queue its turn.
        let mut next = self.first_tx;
        for turn in 0..queues {
            if self.phy.tx.busy_until() > horizon {
                more = true;
                break;
            }
            let queue = QueueIndex(((self.first_tx + turn) % queues) as u16);
            let fetched = self.transmit_queue(now, queue, out, host);
            more |= fetched == BURST;
            if fetched > 0 {
                worked = true;
                next = usize::from(queue.0) + 1;
            }
        }
        self.tx_paused = more && self.phy.tx.busy_until() > horizon;
        self.first_tx = next % queues;
        for queue in (0..queues).map(|index| QueueIndex(index as u16)) {
            let moderation = self.moderator.of_mut(queue, Direction::Transmit);
            moderation.expire(now, now);
            if moderation.take_due() {
                host.interrupt(queue, Direction::Transmit);
            }
        }
        worked
    }

    fn transmit_queue(
        &mut self,
        now: Nanos,
        queue: QueueIndex,
        out: &mut Vec<Frame>,
        host: &mut impl Host,
    ) -> usize {
        let drops = &mut self.counters.drops;
        let fetched = host.fetch_tx(queue, BURST, &mut self.pool, &mut self.fetched, drops);
        if fetched == 0 {
            return 0;
        }
        self.counters.tx_fetched += fetched as u64;
        for mut frame in self.fetched.drain(..) {
            let prepared = if self.phy.link() {
                self.mac.prepare(&mut frame)
            } else {
                Err(Drop::TxLinkDown)
            };
            match prepared {
                Ok(inserted) => {
                    let octets = phy::octets_on_line(&frame);
                    frame.arrival = self.phy.tx.carry(octets, now);
                    self.counters.tx_frames += 1;
                    self.counters.tx_octets += octets as u64;
                    self.counters.tx_checksum_inserted += u64::from(inserted);
                    out.push(frame);
                }
                Err(reason) => {
                    self.counters.drops.count(reason);
                    self.pool.give(frame);
                }
            }
        }
        host.complete_tx(queue);
        let moderation = self.moderator.of_mut(queue, Direction::Transmit);
        for _ in 0..fetched {
            moderation.packet(now, now);
        }
        if moderation.take_due() {
            host.interrupt(queue, Direction::Transmit);
        }
        fetched
    }

    /// When the port has something to do again without anybody's asking; `None` if it only waits for the
    /// wire or the host.
    #[must_use]
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let horizon = now + self.lead;
        let rx_line = Some(self.phy.rx.busy_until()).filter(|&free| free > horizon);
        let rx_fifo = self
            .fifos
            .iter()
            .filter_map(|fifo| fifo.front().first())
            .map(|frame| frame.arrival)
            .filter(|&arrival| arrival > horizon);
        let ahead = self.tx_resumes().into_iter().chain(rx_line).chain(rx_fifo);
        // The line may run ahead of the clock, interrupts may not.
        ahead
            .map(|due| due - self.lead)
            .chain(self.moderator.next_deadline())
            .min()
    }

    /// When the host can notice at the earliest that the port has done something, if it does nothing itself and the
    /// wire has no frame ready before `next_frame` (`None`: none any more). In virtual time whoever drives
    /// the port may sleep until then: what arrives meanwhile is dealt with in one burst, each frame as of its own
    /// instant.
    #[must_use]
    pub fn next_notice(&self, now: Nanos, next_frame: Option<Nanos>) -> Option<Nanos> {
        let received = self.fifos.iter().enumerate().filter_map(|(index, fifo)| {
            let moderation = self
                .moderator
                .of(QueueIndex(index as u16), Direction::Receive);
            moderation.earliest(|n| match fifo.get(n - 1) {
                _ if fifo.refused => None,
                Some(frame) => Some(frame.arrival),
                None => next_frame.map(|ready| self.phy.rx.earliest(n - fifo.len(), ready)),
            })
        });
        received
            .chain(self.tx_resumes())
            .chain(self.moderator.next_deadline())
            .min()
            .map(|due| due.max(now))
    }

    /// When the line is free for what the host may have to send, if that waits for it.
    fn tx_resumes(&self) -> Option<Nanos> {
        self.tx_paused.then(|| self.phy.tx.busy_until())
    }

    /// Whether frames have arrived on `queue` that the host has no buffers for.
    #[must_use]
    pub fn starved(&self, now: Nanos, queue: QueueIndex) -> bool {
        let front = self.fifos[usize::from(queue.0)].front();
        !arrived(front, now + self.lead).is_empty()
    }

    /// Whether the line is too busy to take what the host may have to send.
    #[must_use]
    pub fn tx_paused(&self) -> bool {
        self.tx_paused
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

    /// All counts.
    #[must_use]
    pub fn counters(&self) -> &PortCounters {
        &self.counters
    }

    /// Frames that wait in the receive FIFOs.
    #[must_use]
    pub fn fifo_frames(&self) -> usize {
        self.fifos.iter().map(Fifo::len).sum()
    }

    /// The port's state and counts.
    #[must_use]
    pub fn status(&self) -> PortStatus {
        let (unicast, multicast) = self.filter.tables();
        PortStatus {
            link: self.phy.link(),
            speed_mbps: self.phy.speed().mbps(),
            mac: self.filter.address.to_string(),
            filter_active: self.filter.active,
            promiscuous: self.filter.promiscuous,
            all_multicast: self.filter.all_multicast,
            unicast_table: unicast.iter().map(MacAddress::to_string).collect(),
            multicast_table: multicast.iter().map(MacAddress::to_string).collect(),
            rx_fifo_frames: self.fifo_frames(),
            counters: self.counters.clone(),
        }
    }
}

/// The leading frames, at most a burst, whose last bit has arrived by `horizon`.
#[inline]
fn arrived(frames: &[Frame], horizon: Nanos) -> &[Frame] {
    let burst = &frames[..frames.len().min(BURST)];
    match burst.last() {
        Some(last) if last.arrival <= horizon => burst,
        _ => &burst[..burst.partition_point(|frame| frame.arrival <= horizon)],
    }
}

#[cfg(test)]
mod tests;
