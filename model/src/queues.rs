//! The queues: what one worker does for the host's rings, from the FIFO on.
//!
//! Receive: frames that the port has steered wait in their queue's FIFO until they have arrived; then they go by DMA into the
//! host's buffers, and the moderation says when to interrupt. Transmit: packets come by DMA, are made frames that may
//! go on the line, and wait for the port to send them. Dropped and counted by queue: what comes for a queue that the
//! driver has disabled, what the host's buffers are too small for, and packets that are none.

use std::time::Duration;
use std::vec::Drain;

use crate::BURST;
use crate::counters::{Drop, QueueCounters};
use crate::fault::{Dma, Held, HostFaults, Troubles};
use crate::fifo::Fifo;
use crate::frame::{Frame, Pool};
use crate::host::{Direction, Fault, Fetched, Host, QueueIndex};
use crate::mac::Mac;
use crate::moderation::{Moderation, Moderator, Packet};
use crate::port::{Port, PortConfig};
use crate::time::Nanos;

/// All queue pairs, those of other workers included: these stay empty.
#[derive(Debug)]
pub struct Queues {
    /// When they interrupt.
    pub moderator: Moderator,
    /// Frames fetched from the host that are about to go to the port.
    pub fetched: Vec<Frame>,
    fifos: Vec<Fifo>,
    counters: Vec<QueueCounters>,
    mac: Mac,
    lead: Duration,
    /// What goes wrong on purpose; mostly nothing.
    faults: Option<Box<Troubles>>,
}

impl Queues {
    /// The queues of a card as `config` says, with nothing in them.
    #[must_use]
    pub fn new(config: &PortConfig) -> Self {
        let pairs = usize::from(config.queue_pairs.max(1));
        Queues {
            moderator: Moderator::new(pairs, config.rx_coalesce, config.tx_coalesce, config.speed),
            fetched: Vec::with_capacity(BURST),
            fifos: (0..pairs).map(|_| Fifo::default()).collect(),
            counters: vec![QueueCounters::default(); pairs],
            mac: Mac::new(config.mtu),
            lead: config.lead,
            faults: None,
        }
    }

    /// Queue pairs.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.fifos.len() as u16
    }

    /// Puts frames that the port has admitted into the FIFO of the queue that each was steered to.
    #[inline]
    pub fn push(&mut self, frames: &mut Vec<Frame>) {
        match &mut self.fifos[..] {
            [only] => only.append(frames),
            fifos => {
                for frame in frames.drain(..) {
                    fifos[usize::from(frame.queue.0)].push(frame);
                }
            }
        }
    }

    /// Puts a frame that the port has admitted into the FIFO of `queue`.
    #[inline]
    pub fn push_one(&mut self, queue: QueueIndex, frame: Frame) {
        self.fifos[usize::from(queue.0)].push(frame);
    }

    /// Moves frames of `queue` that have arrived from its FIFO to the host, as far as it has buffers, and hands them to
    /// `release`. All that have arrived by `known` are there. Returns whether any was moved.
    #[inline]
    pub fn deliver(
        &mut self,
        queue: QueueIndex,
        now: Nanos,
        known: Nanos,
        host: &mut impl Host,
        release: impl FnMut(Drain<'_, Frame>),
    ) -> bool {
        match self.faults {
            None => self.deliver_as::<false>(queue, now, known, host, release),
            Some(_) => self.deliver_faultily(queue, now, known, host, release),
        }
    }

    #[cold]
    fn deliver_faultily(
        &mut self,
        queue: QueueIndex,
        now: Nanos,
        known: Nanos,
        host: &mut impl Host,
        release: impl FnMut(Drain<'_, Frame>),
    ) -> bool {
        self.deliver_as::<true>(queue, now, known, host, release)
    }

    /// [`Queues::deliver`] with faults or without: those that there are none of cost nothing.
    #[inline]
    fn deliver_as<const FAULTY: bool>(
        &mut self,
        queue: QueueIndex,
        now: Nanos,
        known: Nanos,
        host: &mut impl Host,
        mut release: impl FnMut(Drain<'_, Frame>),
    ) -> bool {
        let dma = if FAULTY {
            self.attend(queue, Direction::Receive, now, host)
        } else {
            Dma::default()
        };
        let index = usize::from(queue.0);
        let (fifo, counters) = (&mut self.fifos[index], &mut self.counters[index]);
        let moderation = self.moderator.of_mut(queue, Direction::Receive);
        if fifo.is_empty() && moderation.is_quiet() {
            return false;
        }
        let horizon = now + self.lead;
        let mut worked = false;
        // The driver has a packet when it has arrived, or, if there was no buffer then, now.
        let usual = if FAULTY { dma.resumed } else { Nanos::ZERO };
        let since = if fifo.refused { now } else { usual };
        if fifo.refused && !FAULTY {
            // What has come since then found none either.
            counters.rx_no_buffer += fifo.wait(Nanos(now.0.saturating_sub(1)));
        }
        while !fifo.is_empty() {
            if FAULTY && dma.stalled {
                fifo.refused = true;
                break;
            }
            if !host.receives(queue) {
                self.abandon(queue, release);
                return false;
            }
            let arrived = arrived(fifo.frames(), horizon);
            if arrived.is_empty() {
                break;
            }
            let (offered, dropped) = (arrived.len(), counters.drops.total());
            let taken = host.deliver(queue, arrived, &mut counters.drops);
            let dropped = counters.drops.total() - dropped;
            counters.rx_delivered += taken as u64 - dropped;
            counters.rx_drained += taken as u64;
            let arrivals = arrived[..taken].iter();
            if FAULTY && dma.slow && taken > 0 {
                let octets = arrivals.map(|frame| frame.len() as u32);
                hold(&mut self.faults, queue, Direction::Receive, now, octets);
            } else {
                let packet = |frame: &Frame| Packet {
                    at: frame.arrival.max(since),
                    octets: frame.len() as u32,
                };
                moderation.packets(arrivals.map(packet), now);
            }
            fifo.refused = taken < offered;
            release(fifo.drain(taken));
            worked |= taken > 0;
            if moderation.take_due() {
                host.interrupt(queue, Direction::Receive);
            }
            if taken < offered {
                counters.rx_no_buffer += fifo.wait(horizon);
                break;
            }
        }
        moderation.expire(known, now);
        if moderation.take_due() {
            host.interrupt(queue, Direction::Receive);
        }
        worked
    }

    /// Drops what is in the FIFO of `queue`, and hands it to `release`: the driver uses that queue no more.
    pub fn abandon(&mut self, queue: QueueIndex, release: impl FnOnce(Drain<'_, Frame>)) {
        let index = usize::from(queue.0);
        let (fifo, counters) = (&mut self.fifos[index], &mut self.counters[index]);
        let stale = fifo.len();
        counters.drops.count_many(Drop::RxQueueDisabled, stale);
        counters.rx_drained += stale as u64;
        fifo.refused = false;
        release(fifo.drain(stale));
    }

    /// Takes a burst of packets of `queue`, `budget` at most, from the host into [`Queues::fetched`] for the port, those that may go
    /// on the line. Their buffers in the host are the driver's again. Returns how many were taken, those dropped included, and whether more wait.
    pub fn fetch(
        &mut self,
        queue: QueueIndex,
        now: Nanos,
        budget: usize,
        pool: &mut Pool,
        host: &mut impl Host,
    ) -> Fetched {
        let dma = match self.faults {
            None => Dma::default(),
            Some(_) => self.attend(queue, Direction::Transmit, now, host),
        };
        if dma.stalled {
            return Fetched::default();
        }
        let counters = &mut self.counters[usize::from(queue.0)];
        let fetched = host.fetch_tx(queue, budget, pool, &mut self.fetched, &mut counters.drops);
        let taken = fetched.frames;
        if taken == 0 {
            return fetched;
        }
        counters.tx_fetched += taken as u64;
        let has_super_frames = pool.lends_big();
        let mut at = 0;
        while let Some(frame) = self.fetched.get_mut(at) {
            let prepared = if has_super_frames && frame.is_super() {
                let said = frame.gso.headers;
                let prepared = self.mac.prepare_super(frame);
                if prepared.is_ok() {
                    counters.tx_gso.count(frame);
                    let wrong = said != 0 && frame.is_super() && said != frame.gso.headers;
                    counters.tx_headers_inexact += u64::from(wrong);
                }
                prepared
            } else {
                self.mac.prepare(frame)
            };
            match prepared {
                Ok(inserted) => {
                    counters.tx_checksum_inserted += u64::from(inserted);
                    at += 1;
                }
                Err(reason) => {
                    counters.drops.count(reason);
                    pool.give(self.fetched.remove(at));
                }
            }
        }
        counters.tx_passed += self.fetched.len() as u64;
        if dma.slow {
            self.hold_sent(queue, now, taken);
            return fetched;
        }
        host.complete_tx(queue);
        self.tell_sent(queue, now, taken);
        let moderation = self.moderator.of_mut(queue, Direction::Transmit);
        if moderation.take_due() {
            host.interrupt(queue, Direction::Transmit);
        }
        fetched
    }

    /// Has the driver shown later that `taken` packets of `queue` were sent or dropped.
    #[cold]
    fn hold_sent(&mut self, queue: QueueIndex, now: Nanos, taken: usize) {
        let fetched = &self.fetched;
        let octets = |n: usize| fetched.get(n).map_or(0, |frame| frame.len() as u32);
        let octets = (0..taken).map(octets);
        hold(&mut self.faults, queue, Direction::Transmit, now, octets);
    }

    /// Tells the moderation of `taken` packets of `queue` whose buffers are the driver's again: those in [`Queues::fetched`] with their
    /// octets, and others that were dropped.
    #[inline(never)] // so that the loop that prepares them stays as it is
    fn tell_sent(&mut self, queue: QueueIndex, now: Nanos, taken: usize) {
        let fetched = &self.fetched;
        let packets = (0..taken).map(|n| Packet {
            at: now,
            octets: fetched.get(n).map_or(0, |frame| frame.len() as u32),
        });
        let moderation = self.moderator.of_mut(queue, Direction::Transmit);
        moderation.packets(packets, now);
    }

    /// Interrupts the driver of `queue` if its sent packets have waited long enough to be told of.
    #[inline]
    pub fn expire_transmit(&mut self, queue: QueueIndex, now: Nanos, host: &mut impl Host) {
        if self.faults.is_some() {
            self.attend(queue, Direction::Transmit, now, host);
        }
        let moderation = self.moderator.of_mut(queue, Direction::Transmit);
        expire_sent(moderation, queue, now, host);
    }

    /// Looks after what goes wrong with a half of `queue`, and shows the driver what it is time to show.
    #[cold]
    fn attend(
        &mut self,
        queue: QueueIndex,
        direction: Direction,
        now: Nanos,
        host: &mut impl Host,
    ) -> Dma {
        let Some(faults) = &mut self.faults else {
            return Dma::default();
        };
        let dma = faults.attend(queue, direction, now, host);
        if let Some(held) = faults.due(queue, direction, now) {
            self.show(queue, direction, &held, now, host);
        }
        dma
    }

    /// Shows the driver the packets `held`.
    fn show(
        &mut self,
        queue: QueueIndex,
        direction: Direction,
        held: &Held,
        now: Nanos,
        host: &mut impl Host,
    ) {
        host.fault(queue, direction, Fault::SlowUsed);
        match direction {
            Direction::Receive => host.complete_rx(queue),
            Direction::Transmit => host.complete_tx(queue),
        }
        let moderation = self.moderator.of_mut(queue, direction);
        let packet = |&octets: &u32| Packet {
            at: held.due,
            octets,
        };
        moderation.packets(held.octets.iter().map(packet), now);
        if moderation.take_due() {
            host.interrupt(queue, direction);
        }
    }

    /// From `now` on `faults` go wrong, by chance as `seed` says, instead of what did before. What the driver had yet to be
    /// shown it is shown.
    pub fn set_faults(&mut self, faults: HostFaults, seed: u64, now: Nanos, host: &mut impl Host) {
        for queue in (0..self.pairs()).map(QueueIndex) {
            for direction in [Direction::Receive, Direction::Transmit] {
                let due =
                    |faults: &mut Box<Troubles>| faults.due(queue, direction, Nanos(u64::MAX));
                if let Some(held) = self.faults.as_mut().and_then(due) {
                    let held = Held { due: now, ..held };
                    self.show(queue, direction, &held, now, host);
                }
            }
        }
        let pairs = self.fifos.len();
        self.faults =
            (!faults.is_none()).then(|| Box::new(Troubles::new(faults, seed, pairs, now)));
    }

    /// A half of `queue` has stopped, or starts over: what its driver had yet to be shown is shown by the host, or never.
    pub fn forget_held(&mut self, queue: QueueIndex, direction: Direction) {
        if let Some(faults) = &mut self.faults {
            faults.forget(queue, direction);
        }
    }

    /// Whether the DMA of a half of `queue` stands still: nothing that comes there is news.
    #[must_use]
    pub fn is_stalled(&self, queue: QueueIndex, direction: Direction, now: Nanos) -> bool {
        let faults = self.faults.as_ref();
        faults.is_some_and(|faults| faults.is_stalled(queue, direction, now))
    }

    /// Takes a burst from the wire through `port`, which has the same owner, and delivers what has arrived to the host.
    /// Leaves `frames` empty. Returns whether anything was delivered.
    pub fn receive(
        &mut self,
        port: &mut Port,
        now: Nanos,
        frames: &mut Vec<Frame>,
        host: &mut impl Host,
    ) -> bool {
        let mut known = now;
        if !frames.is_empty() {
            known = port.receive(now, frames);
            self.push(frames);
        }
        let mut worked = false;
        for queue in (0..self.pairs()).map(QueueIndex) {
            let release = |frames: Drain<'_, Frame>| port.release(queue, frames);
            worked |= self.deliver(queue, now, known, host, release);
        }
        worked
    }

    /// Takes frames from the host, as many as the line of `port`, which has the same owner, has time for, and
    /// appends them to `out`, each with the instant at which its last bit leaves. Returns whether there were any.
    pub fn transmit(
        &mut self,
        port: &mut Port,
        now: Nanos,
        out: &mut Vec<Frame>,
        host: &mut impl Host,
    ) -> bool {
        let worked = port.transmit(now, |port, queue, budget| {
            let fetched = self.fetch(queue, now, budget, &mut port.pool, host);
            port.send(now, queue, &mut self.fetched, out);
            fetched
        });
        port.send_control(now, out);
        if self.faults.is_some() {
            for queue in (0..self.pairs()).map(QueueIndex) {
                self.expire_transmit(queue, now, host);
            }
            return worked;
        }
        for (queue, moderation) in self.moderator.each_mut(Direction::Transmit) {
            expire_sent(moderation, queue, now, host);
        }
        worked
    }

    /// When the queues have something to do again without anybody's asking; `None` if they only wait for frames or the
    /// host.
    #[must_use]
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let horizon = now + self.lead;
        let arrivals = self
            .fifos
            .iter()
            .filter_map(|fifo| fifo.frames().first())
            .map(|frame| frame.arrival)
            .filter(|&arrival| arrival > horizon);
        // The line may run ahead of the clock, interrupts may not.
        arrivals
            .map(|due| due - self.lead)
            .chain(self.moderator.next_deadline())
            .chain(self.fault_deadline(now))
            .min()
    }

    fn fault_deadline(&self, now: Nanos) -> Option<Nanos> {
        self.faults.as_ref()?.next_deadline(now)
    }

    /// When the host can notice at the earliest that the card has done something, if it does nothing itself and the
    /// wire of `port` has no frame ready before `next_frame` (`None`: none any more). In virtual time whoever drives
    /// the card may sleep until then: what arrives meanwhile is dealt with in one burst, each frame as of its own
    /// instant.
    #[must_use]
    pub fn next_notice(&self, port: &Port, now: Nanos, next_frame: Option<Nanos>) -> Option<Nanos> {
        let received = self.fifos.iter().enumerate().filter_map(|(index, fifo)| {
            let queue = QueueIndex(index as u16);
            let moderation = self.moderator.of(queue, Direction::Receive);
            let arrival = |n: usize| match fifo.frames().get(n - 1) {
                _ if fifo.refused => None,
                Some(frame) => Some(frame.arrival),
                None => next_frame.map(|ready| port.phy.rx.earliest(n - fifo.len(), ready)),
            };
            match &self.faults {
                // What is shown late has its delay from its arrival on, whatever the moderation then says.
                Some(faults) if faults.is_slow(Direction::Receive) => arrival(1),
                _ => moderation.earliest(arrival),
            }
        });
        received
            .chain(port.tx_resumes())
            .chain(port.held_resumes())
            .chain(port.next_control())
            .chain(self.moderator.next_deadline())
            .chain(self.fault_deadline(now))
            .min()
            .map(|due| due.max(now))
    }

    /// Whether frames have arrived on `queue` that the host has no buffers for.
    #[must_use]
    pub fn starved(&self, now: Nanos, queue: QueueIndex) -> bool {
        if self.is_stalled(queue, Direction::Receive, now) {
            return false;
        }
        let front = self.fifos[usize::from(queue.0)].frames();
        !arrived(front, now + self.lead).is_empty()
    }

    /// Frames that wait in the FIFO of `queue`; none if there is no such queue.
    #[must_use]
    pub fn waiting(&self, queue: QueueIndex) -> usize {
        self.fifos.get(usize::from(queue.0)).map_or(0, Fifo::len)
    }

    /// Frames that wait in all FIFOs.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.fifos.iter().map(Fifo::len).sum()
    }

    /// Each queue pair's counts.
    #[must_use]
    pub fn counters(&self) -> &[QueueCounters] {
        &self.counters
    }
}

/// Interrupts the driver of `queue` if its sent packets have waited long enough to be told of.
#[inline]
fn expire_sent(moderation: &mut Moderation, queue: QueueIndex, now: Nanos, host: &mut impl Host) {
    // Most have nothing to tell most of the time.
    if moderation.is_quiet() {
        return;
    }
    moderation.expire(now, now);
    if moderation.take_due() {
        host.interrupt(queue, Direction::Transmit);
    }
}

/// The driver is to be shown more packets, of so many `octets` each, later.
#[cold]
fn hold(
    faults: &mut Option<Box<Troubles>>,
    queue: QueueIndex,
    direction: Direction,
    now: Nanos,
    octets: impl Iterator<Item = u32>,
) {
    if let Some(faults) = faults {
        faults.hold(queue, direction, now, octets);
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
