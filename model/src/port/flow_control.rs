//! Flow control with the link partner: for all of the line, where it was agreed on ([`pause`]), or for each priority ([`pfc`]); a link has one or
//! the other (IEEE 802.1Q, 36.1.1).

use super::Port;
use crate::BURST;
use crate::counters::Drop;
use crate::fifo::Occupancy;
use crate::frame::{Contents, Frame};
use crate::host::QueueIndex;
use crate::pause::{self, Control, Level};
use crate::pfc::{self, Pfc, Priorities};
use crate::phy::{self, Duplex};
use crate::rss::Steered;
use crate::time::Nanos;

impl Port {
    /// Does what a MAC Control frame says that came at `arrival`.
    #[cold]
    pub(super) fn obey(&mut self, control: Control, arrival: Nanos) {
        match control {
            Control::Pause(quanta) => {
                self.counters.rx_pause += 1;
                let (_, obeys) = self.phy.pause();
                if obeys && self.pfc().is_none() {
                    self.pause.obey(quanta, arrival, self.phy.speed());
                }
            }
            Control::Priorities(request) if self.pfc().is_some() => {
                self.counters.pfc.count_received(&request);
                let speed = self.phy.speed();
                if let Some(pfc) = &mut self.pfc {
                    pfc.obey(&request, arrival, speed);
                }
            }
            Control::Priorities(_) | Control::Other => self.counters.rx_control_unknown += 1,
        }
    }

    /// What controls single priorities, if any is controlled, and the partner hears of it.
    pub(super) fn pfc(&self) -> Option<&Pfc> {
        self.pfc_of_link()
            .filter(|pfc| !pfc.priorities().is_empty())
    }

    /// What controls single priorities, any or none: on a link in full duplex, with a partner at its other end.
    fn pfc_of_link(&self) -> Option<&Pfc> {
        let phy = &self.phy;
        let pfc = self.pfc.as_deref();
        pfc.filter(|_| phy.link() && phy.duplex() == Duplex::Full && phy.loopback().is_none())
    }

    /// Controls `priorities` from now on, none of them or some, instead of the whole line. Whom the partner was told to stop and who is not controlled any more may go
    /// on, and it is told so. Returns false, and changes nothing, if the port was made without ([`PortConfig::pfc`](super::PortConfig)).
    pub fn set_pfc(&mut self, priorities: Priorities) -> bool {
        let Some(pfc) = &mut self.pfc else {
            return false;
        };
        pfc.set_priorities(priorities);
        if !priorities.is_empty() {
            self.pause.disobey();
        }
        true
    }

    /// Octets that the controlled priorities, and all others together, share: what any one queue has room for. `None` if the port was made without.
    #[must_use]
    pub fn pfc_room(&self) -> Option<usize> {
        self.pfc.as_ref().map(|pfc| pfc.room())
    }

    /// Forgets what both ends of the line said.
    pub(super) fn forget_pauses(&mut self) {
        self.pause.forget();
        if let Some(pfc) = &mut self.pfc {
            pfc.forget();
        }
    }

    /// When the next frame may be sent: the line is free, nobody has said PAUSE, and the rate lets it. The line may run ahead of the clock, tokens may not.
    #[inline]
    pub(super) fn tx_free(&self) -> Nanos {
        let free = self.phy.tx.busy_until().max(self.pause.until());
        match &self.tx_bucket {
            None => free,
            Some(bucket) => free.max(bucket.ready() + self.lead),
        }
    }

    /// Packets that a queue may send at a time. A station that obeys PAUSE frames commits itself to no more than one: a frame that has begun is
    /// completed, and none begins any more (IEEE 802.3, 31B.3.7).
    #[must_use]
    #[inline]
    pub(super) fn tx_burst(&self) -> usize {
        let (_, obeys) = self.phy.pause();
        if obeys || self.pfc.is_some() {
            1
        } else {
            BURST
        }
    }

    /// Appends to `out` what the link partner has to be told of the receive FIFOs, if flow control was agreed on.
    #[inline]
    pub fn send_control(&mut self, now: Nanos, out: &mut Vec<Frame>) {
        let (tells, _) = self.phy.pause();
        if self.pfc.is_some() {
            self.tell_partner_of_priorities(now, out);
        } else if tells {
            self.tell_partner(now, self.level(), out);
        }
    }

    /// When the link partner has to be told again what it was told.
    #[must_use]
    pub fn next_control(&self) -> Option<Nanos> {
        let priorities = self.pfc.as_ref().and_then(|pfc| pfc.next_deadline());
        self.pause
            .next_deadline()
            .into_iter()
            .chain(priorities)
            .min()
    }

    #[cold]
    fn tell_partner(&mut self, now: Nanos, level: Level, out: &mut Vec<Frame>) {
        let Some(quanta) = self.pause.tell(now, level) else {
            return;
        };
        let mut frame = self.pool.take();
        pause::write(&mut frame, self.address, quanta);
        let leaves = self.control_leaves(&mut frame, now);
        self.pause.told(quanta, leaves, self.phy.speed());
        if quanta == 0 {
            self.counters.tx_xon += 1;
        } else {
            self.counters.tx_xoff += 1;
        }
        out.push(frame);
    }

    #[cold]
    fn tell_partner_of_priorities(&mut self, now: Nanos, out: &mut Vec<Frame>) {
        if let (true, _) = self.phy.pause() {
            // The line is controlled as long as no priority is, and may go on otherwise.
            let level = match self.pfc() {
                Some(_) => Level::Low,
                None => self.level(),
            };
            self.tell_partner(now, level, out);
        }
        let Some(request) = self.pfc_of_link().and_then(|pfc| pfc.tell(now)) else {
            return;
        };
        let mut frame = self.pool.take();
        request.write(&mut frame, self.address);
        let leaves = self.control_leaves(&mut frame, now);
        if let Some(pfc) = &mut self.pfc {
            pfc.told(&request, leaves, self.phy.speed());
        }
        self.counters.pfc.count_sent(&request);
        out.push(frame);
    }

    /// Puts a MAC Control frame on the line: it waits for the frame that is there, and for no PAUSE. Returns when it has left.
    fn control_leaves(&mut self, frame: &mut Frame, now: Nanos) -> Nanos {
        frame.arrival = self.phy.tx.carry(phy::octets_on_line(frame), now);
        frame.arrival
    }

    /// How full the fullest FIFO is: any of them may be the next frame's.
    fn level(&self) -> Level {
        let level = |fifo: &Occupancy| {
            let octets = fifo.octets();
            Level::of(octets, octets + self.sure_room_in(fifo))
        };
        self.fifos.iter().map(level).max().unwrap_or(Level::Low)
    }

    /// Puts a frame into the account of the queue that it was steered to, and of its priority.
    #[cold]
    pub(super) fn enqueue_by_priority(
        &mut self,
        frame: &mut Contents,
        steered: Steered,
    ) -> Result<(), Drop> {
        if let Some(queue) = steered.queue {
            self.admit_by_priority(frame, queue, 1)?;
        }
        self.enqueue(frame, steered)?;
        self.enter_by_priority(frame);
        Ok(())
    }

    /// Whether the priorities that are not controlled have no room for a frame of `longest` octets.
    pub(super) fn others_lack_room(&self, longest: usize) -> bool {
        let room = self.pfc().and_then(Pfc::room_of_others);
        room.is_some_and(|room| room < longest)
    }

    /// Drops a frame, which stands for `frames` ones, if there is no room for its priority, whatever its `queue` has.
    pub(super) fn admit_by_priority(
        &mut self,
        frame: &Contents,
        queue: QueueIndex,
        frames: u64,
    ) -> Result<(), Drop> {
        let priority = pfc::priority(frame.bytes());
        let has_room = |pfc: &Pfc| pfc.has_room(priority, frame.octets);
        if self.pfc().is_none_or(has_room) {
            return Ok(());
        }
        self.lines[usize::from(queue.0)].rx_overflows += frames;
        Err(Drop::RxFifoOverflow)
    }

    /// Counts a frame that is in its FIFO now for its priority.
    pub(super) fn enter_by_priority(&mut self, frame: &Contents) {
        if let Some(pfc) = &mut self.pfc {
            pfc.enter(pfc::priority(frame.bytes()), frame.octets);
        }
    }

    /// Holds back those of the packets of `queue` whose priority has to wait at `now`, and puts those before `frames` that have not to any more.
    #[cold]
    pub(super) fn hold_back(&mut self, now: Nanos, queue: QueueIndex, frames: &mut Vec<Frame>) {
        let start = now.max(self.phy.tx.busy_until());
        if let Some(pfc) = &mut self.pfc {
            pfc.hold_back(queue.0.into(), frames, start);
        }
    }

    /// Whether packets of `queue` are held back for their priority.
    #[must_use]
    pub fn holds_back(&self, queue: QueueIndex) -> bool {
        self.held_until(queue.0.into()).is_some()
    }

    /// `queue` is out of use: drops its packets that are held back for their priority, and those `behind` them, which is empty then. They are not to leave in the time
    /// of whoever has it next, nor to hold up his.
    ///
    /// # Panics
    /// If there is no such queue.
    #[cold]
    pub fn abandon(&mut self, queue: QueueIndex, behind: &mut Vec<Frame>) {
        if let Some(pfc) = &mut self.pfc {
            pfc.let_go(queue.0.into(), behind);
        }
        let count = behind.len();
        self.tx_taken += count as u64;
        self.counters.drops.count_many(Drop::TxQueueDisabled, count);
        self.lines[usize::from(queue.0)].tx_abandoned += count as u64;
        self.pool.give_all(behind.drain(..));
    }

    /// Until when packets of `queue` are held back for their priority, if there are any.
    #[inline]
    pub(super) fn held_until(&self, queue: usize) -> Option<Nanos> {
        self.pfc.as_ref()?.held_until(queue)
    }

    /// When packets that are held back may go.
    pub(crate) fn held_resumes(&self) -> Option<Nanos> {
        let resumes = self.pfc.as_ref()?.resumes()?;
        Some(resumes.max(self.tx_free() - self.lead))
    }
}
