//! Single priorities that the card has stopped at its partner's: what comes of them is kept until they may go on.

use std::collections::VecDeque;

use nic_model::filter::MacAddress;
use nic_model::frame::{BIG_BUFFER, Frame, Pool};
use nic_model::pause;
use nic_model::pfc::{self, PRIORITIES, Request};
use nic_model::phy::Speed;
use nic_model::port::LONGEST_SUPER_FRAME;
use nic_model::time::Nanos;

use crate::wire::Wire;

/// Octets of the buffers that are kept, about: then the wire is asked for no more, and all its frames wait.
pub(super) const KEPT: usize = 2 << 20;
/// Super-frames that are kept, about. Each has one of the pool's few big buffers, and those that pass need some, too.
pub(super) const SUPER_KEPT: usize = 8;

/// What was said of single priorities, and what waits for it.
#[derive(Default)]
pub(super) struct Stopped {
    /// Until when nothing comes of each.
    until: [Nanos; PRIORITIES],
    /// Frames of each that were due meanwhile.
    kept: [VecDeque<Frame>; PRIORITIES],
    /// Octets of all their buffers, and how many are super-frames.
    octets: usize,
    super_frames: usize,
    /// What comes from the wire behind.
    coming: Vec<Frame>,
    /// When the last frame came.
    last: Nanos,
    /// What was kept when the link went down, until the pool is at hand.
    lost: Vec<Frame>,
    paused: [u64; PRIORITIES],
    resumed: [u64; PRIORITIES],
    kept_lost: u64,
}

impl Stopped {
    /// Obeys `request`, which came at `arrival` on a line of `speed`.
    pub(super) fn obey(&mut self, request: &Request, arrival: Nanos, speed: Speed) {
        for priority in request.priorities.iter() {
            let quanta = request.quanta[priority];
            self.until[priority] = Nanos(arrival.0 + pause::nanoseconds(quanta, speed));
            match quanta {
                0 => self.resumed[priority] += 1,
                _ => self.paused[priority] += 1,
            }
        }
    }

    /// Whether there is no place to keep more.
    fn is_full(&self) -> bool {
        self.octets >= KEPT || self.super_frames >= SUPER_KEPT
    }

    /// Until when nothing is taken from the wire, since there is no place to keep it.
    pub(super) fn full_until(&self) -> Option<Nanos> {
        self.due().filter(|_| self.is_full())
    }

    /// When the first frame that is kept may go.
    pub(super) fn due(&self) -> Option<Nanos> {
        let waits = |(_, kept): &(&Nanos, &VecDeque<Frame>)| !kept.is_empty();
        let all = self.until.iter().zip(&self.kept);
        all.filter(waits).map(|(until, _)| *until).min()
    }

    /// What [`Wire::receive`] says, of the wire `behind`.
    pub(super) fn receive(
        &mut self,
        behind: &mut dyn Wire,
        now: Nanos,
        room: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
    ) {
        let first = frames.len();
        let over = now.min(self.last);
        if self.octets == 0 && self.until.iter().all(|&until| until <= over) {
            behind.receive(now, room, pool, frames);
        } else {
            self.receive_what_may_go(behind, now, room, pool, frames);
            self.put_in_order(&mut frames[first..]);
        }
        if let Some(frame) = frames[first..].last() {
            self.last = frame.arrival;
        }
    }

    #[cold]
    fn receive_what_may_go(
        &mut self,
        behind: &mut dyn Wire,
        now: Nanos,
        room: usize,
        pool: &mut Pool,
        frames: &mut Vec<Frame>,
    ) {
        // The port says how many usual frames fit. A super-frame takes the room of several; as long as the longest does, the next one may be
        // one.
        let buffer = pool.buffer_size();
        let places = |frame: &Frame| match frame.is_super() {
            true => frame.len().div_ceil(buffer),
            false => 1,
        };
        let (most, longest) = match behind.has_super_frames() {
            true => (SUPER_KEPT, LONGEST_SUPER_FRAME.div_ceil(buffer)),
            false => (room, 1),
        };
        let mut left = room;
        let goes_on = |left: usize| left == room || left >= longest;
        for priority in (0..PRIORITIES).rev() {
            while goes_on(left)
                && self.until[priority] <= now
                && let Some(frame) = self.let_go(priority, buffer)
            {
                left = left.saturating_sub(places(&frame));
                frames.push(frame);
            }
        }
        while goes_on(left) && !self.is_full() {
            let mut coming = std::mem::take(&mut self.coming);
            behind.receive(now, left.min(most), pool, &mut coming);
            let came = !coming.is_empty();
            for frame in coming.drain(..) {
                match priority(&frame) {
                    Some(waits) if self.until[waits] > now || !self.kept[waits].is_empty() => {
                        self.keep(waits, frame, buffer);
                    }
                    _ => {
                        left = left.saturating_sub(places(&frame));
                        frames.push(frame);
                    }
                }
            }
            self.coming = coming;
            if !came {
                break;
            }
        }
    }

    /// Keeps `frame`, which has the priority `priority` and, if it is a usual one, a buffer of `buffer` octets.
    fn keep(&mut self, priority: usize, frame: Frame, buffer: usize) {
        self.super_frames += usize::from(frame.is_super());
        self.octets += octets_of(&frame, buffer);
        self.kept[priority].push_back(frame);
    }

    /// The first frame of `priority` that is kept, which is so no more.
    fn let_go(&mut self, priority: usize, buffer: usize) -> Option<Frame> {
        let frame = self.kept[priority].pop_front()?;
        self.super_frames -= usize::from(frame.is_super());
        self.octets -= octets_of(&frame, buffer);
        Some(frame)
    }

    /// Has each of `came` come when it may, and sorts them by that. Most are in order.
    fn put_in_order(&self, came: &mut [Frame]) {
        for frame in &mut *came {
            let until = priority(frame).map(|priority| self.until[priority]);
            frame.arrival = frame.arrival.max(until.unwrap_or_default()).max(self.last);
        }
        for next in 1..came.len() {
            let arrival = came[next].arrival;
            if came[next - 1].arrival > arrival {
                let place = came[..next].partition_point(|frame| frame.arrival <= arrival);
                came[place..=next].rotate_right(1);
            }
        }
    }

    /// Gives the buffers of frames that were lost with the link back to `pool`.
    pub(super) fn clear_lost(&mut self, pool: &mut Pool) {
        if !self.lost.is_empty() {
            pool.give_all(self.lost.drain(..));
        }
    }

    /// The link went up or down: a new one knows of nothing that was said, and what is kept is lost.
    pub(super) fn link_changed(&mut self, up: bool) {
        self.until = Default::default();
        if !up {
            let before = self.lost.len();
            self.lost
                .extend(self.kept.iter_mut().flat_map(|kept| kept.drain(..)));
            self.kept_lost += (self.lost.len() - before) as u64;
            (self.octets, self.super_frames) = (0, 0);
        }
    }

    /// How often each priority was stopped, and could go on.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let paused = PAUSED.into_iter().zip(self.paused);
        let resumed = RESUMED.into_iter().zip(self.resumed);
        let lost = ("partner_kept_lost", self.kept_lost);
        paused.chain(resumed).chain([lost])
    }
}

/// The priority that `frame` waits for; MAC Control frames wait for none (IEEE 802.3, 31B.1).
fn priority(frame: &Frame) -> Option<usize> {
    let control = pause::read(frame.bytes(), MacAddress::default());
    control.is_none().then(|| pfc::priority(frame.bytes()))
}

/// Octets of the buffer of `frame`, where usual ones have `buffer`.
fn octets_of(frame: &Frame, buffer: usize) -> usize {
    if frame.is_super() { BIG_BUFFER } else { buffer }
}

const PAUSED: [&str; PRIORITIES] = [
    "partner_prio0_paused",
    "partner_prio1_paused",
    "partner_prio2_paused",
    "partner_prio3_paused",
    "partner_prio4_paused",
    "partner_prio5_paused",
    "partner_prio6_paused",
    "partner_prio7_paused",
];
const RESUMED: [&str; PRIORITIES] = [
    "partner_prio0_resumed",
    "partner_prio1_resumed",
    "partner_prio2_resumed",
    "partner_prio3_resumed",
    "partner_prio4_resumed",
    "partner_prio5_resumed",
    "partner_prio6_resumed",
    "partner_prio7_resumed",
];
