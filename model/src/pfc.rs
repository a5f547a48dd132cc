//! Priority-based flow control (IEEE 802.1Q-2018, clause 36; the frame: IEEE 802.3, annex 31D).
//!
//! What PAUSE is for all of a line ([`pause`]) this is for each of eight priorities: a MAC Control frame says of some of them for how many
//! quanta nothing is to be sent, and the others go on. A frame's priority is the one in its outermost VLAN tag; a frame without one has priority 0.
//!
//! Receive: the octets of each priority that wait for the host are counted, from the filter to the return of the buffer. The room that any one queue has is
//! shared equally by the priorities that are flow controlled, and by all others together. From half of its share on a priority's partner is told to stop, below a
//! quarter that it may go on. Frames of the others find no more room than their share: so they leave what the first have to have for what is still under way, whatever queue
//! either are steered to.
//!
//! Transmit: which priority a packet has is known when it has been fetched. One whose priority has to wait is held back, and with it what
//! is behind it in its queue; all other queues go on. So a driver that does not want its priorities to wait for each other gives each a queue of its own.

use std::fmt;

use serde::Serialize;

use crate::filter::MacAddress;
use crate::frame::Frame;
use crate::pause::{self, Level, Pause};
use crate::phy::Speed;
use crate::time::Nanos;

/// Priorities that there are.
pub const PRIORITIES: usize = 8;

/// The opcode (IEEE 802.3, 31D.2).
pub(crate) const OPCODE: [u8; 2] = [0x01, 0x01];

/// The priority of `frame`: that of its outermost tag (IEEE 802.1Q, 9.6), 0 without one.
#[must_use]
pub fn priority(frame: &[u8]) -> usize {
    match frame.get(12..15) {
        Some(&[0x81, 0x00, control] | &[0x88, 0xa8, control]) => usize::from(control >> 5),
        _ => 0,
    }
}

/// A set of priorities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Priorities(u8);

impl Priorities {
    /// None of them.
    pub const NONE: Self = Priorities(0);
    /// All of them.
    pub const ALL: Self = Priorities(u8::MAX);

    /// Those whose bits are set in `vector`, the lowest for priority 0.
    #[must_use]
    pub fn of_vector(vector: u8) -> Self {
        Priorities(vector)
    }

    /// Adds `priority`, which is below [`PRIORITIES`].
    pub fn insert(&mut self, priority: usize) {
        self.0 |= 1 << priority;
    }

    /// Whether `priority` is one of them.
    #[must_use]
    pub fn contains(self, priority: usize) -> bool {
        self.0 >> priority & 1 != 0
    }

    /// Each of them, from the lowest.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..PRIORITIES).filter(move |&priority| self.contains(priority))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// Parts that a buffer is divided into: one for each of them, and one for the others, if there are any.
    #[must_use]
    pub fn shares(self) -> usize {
        self.iter().count() + usize::from(self != Self::ALL)
    }
}

impl fmt::Display for Priorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.iter().map(|priority| priority.to_string()).collect();
        f.write_str(&all.join(","))
    }
}

/// What a frame of priority-based flow control says: for how many quanta each of some priorities has to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Of which priorities it speaks.
    pub priorities: Priorities,
    /// The quanta of each.
    pub quanta: [u16; PRIORITIES],
}

impl Request {
    /// What stands in a frame behind the opcode; `None` if it is cut off.
    pub(crate) fn read(octets: &[u8]) -> Option<Self> {
        let (&[_, vector], times) = octets.split_first_chunk::<2>()?;
        let mut request = Request {
            priorities: Priorities(vector),
            ..Request::default()
        };
        for (priority, quanta) in request.quanta.iter_mut().enumerate() {
            let time = times.get(2 * priority..)?.first_chunk::<2>()?;
            *quanta = u16::from_be_bytes(*time);
        }
        Some(request)
    }

    /// Makes `frame` one of the station `source` that says this.
    pub fn write(&self, frame: &mut Frame, source: MacAddress) {
        let octets = pause::write_control(frame, source, OPCODE);
        octets[1] = self.priorities.0;
        for priority in self.priorities.iter() {
            let time = self.quanta[priority].to_be_bytes();
            octets[2 + 2 * priority..][..2].copy_from_slice(&time);
        }
    }
}

/// The state of priority-based flow control, as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PfcStatus {
    /// Which priorities are flow controlled.
    pub priorities: Vec<usize>,
    /// Octets that one of them may have in the receive FIFOs; those that are not, together.
    pub share: u32,
    /// Octets that each priority has there.
    pub octets: [u32; PRIORITIES],
    /// Sent packets that wait for their priority, by queue.
    pub held: Vec<usize>,
}

/// Priority-based flow control of one port.
#[derive(Debug)]
pub struct Pfc {
    priorities: Priorities,
    /// What both sides have said of each.
    pauses: [Pause; PRIORITIES],
    /// Octets that any one queue has room for.
    room: u32,
    share: u32,
    /// Octets of each priority in the FIFOs.
    octets: [u32; PRIORITIES],
    /// The packets of each queue that wait, in order.
    held: Vec<Vec<Frame>>,
}

impl Pfc {
    /// Of `queues` queues, for `priorities`; any one queue has room for `room` octets, whatever the others hold.
    #[must_use]
    pub fn new(priorities: Priorities, room: usize, queues: usize) -> Self {
        let mut pfc = Pfc {
            priorities,
            pauses: Default::default(),
            room: room.min(u32::MAX as usize / 2) as u32,
            share: 0,
            octets: [0; PRIORITIES],
            held: (0..queues).map(|_| Vec::new()).collect(),
        };
        pfc.set_priorities(priorities);
        pfc
    }

    /// Controls `priorities` from now on. What both sides said of those that were controlled before, and are, still holds; of the others nobody is to wait any
    /// more, and the partner is told so.
    pub fn set_priorities(&mut self, priorities: Priorities) {
        self.priorities = priorities;
        self.share = self.room / priorities.shares() as u32;
        for (priority, pause) in self.pauses.iter_mut().enumerate() {
            if !priorities.contains(priority) {
                pause.disobey();
            }
        }
    }

    /// The priorities that are flow controlled.
    #[must_use]
    pub fn priorities(&self) -> Priorities {
        self.priorities
    }

    /// Octets that any one queue has room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room as usize
    }

    /// Octets that a priority may have in the FIFOs.
    #[must_use]
    pub fn share(&self) -> usize {
        self.share as usize
    }

    /// Forgets what both sides said.
    pub fn forget(&mut self) {
        self.pauses = Default::default();
    }

    /// Obeys what a frame said that came at `arrival`.
    pub fn obey(&mut self, request: &Request, arrival: Nanos, speed: Speed) {
        for priority in request.priorities.iter() {
            if self.priorities.contains(priority) {
                self.pauses[priority].obey(request.quanta[priority], arrival, speed);
            }
        }
    }

    /// What the partner has to be told at `now`, if anything.
    #[must_use]
    pub fn tell(&self, now: Nanos) -> Option<Request> {
        let mut request = Request::default();
        for (priority, pause) in self.pauses.iter().enumerate() {
            if let Some(quanta) = pause.tell(now, self.level(priority)) {
                request.priorities.insert(priority);
                request.quanta[priority] = quanta;
            }
        }
        (!request.priorities.is_empty()).then_some(request)
    }

    /// Notes that the partner was told `request` in a frame that leaves at `leaves`.
    pub fn told(&mut self, request: &Request, leaves: Nanos, speed: Speed) {
        for priority in request.priorities.iter() {
            self.pauses[priority].told(request.quanta[priority], leaves, speed);
        }
    }

    /// When the partner has to be told again that something is to stop.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.pauses.iter().filter_map(Pause::next_deadline).min()
    }

    /// How full the share of `priority` is. One that is not controlled has nothing to wait for.
    fn level(&self, priority: usize) -> Level {
        if !self.priorities.contains(priority) {
            return Level::Low;
        }
        Level::of(self.octets[priority] as usize, self.share())
    }

    /// Whether there is room for a frame of `octets` octets and the priority `priority`. There always is for those that are flow controlled: if any is lost, it is
    /// because their queue is full.
    #[must_use]
    pub fn has_room(&self, priority: usize, octets: u32) -> bool {
        if self.priorities.is_empty() || self.priorities.contains(priority) {
            return true;
        }
        octets as usize <= self.room_of_others().unwrap_or(usize::MAX)
    }

    /// Octets that the priorities which are not flow controlled have room for together. `None` if they have nothing there: a super-frame may be longer than their share, and the
    /// first finds room.
    #[must_use]
    pub fn room_of_others(&self) -> Option<usize> {
        let others = (0..PRIORITIES).filter(|&other| !self.priorities.contains(other));
        let used: u32 = others.map(|other| self.octets[other]).sum();
        (used > 0).then(|| self.share.saturating_sub(used) as usize)
    }

    /// A frame of `octets` octets and the priority `priority` is in a FIFO now.
    pub fn enter(&mut self, priority: usize, octets: u32) {
        self.octets[priority] += octets;
    }

    /// `frames` have left the FIFOs.
    pub fn leave(&mut self, frames: &[Frame]) {
        for frame in frames {
            self.octets[priority(frame.bytes())] -= frame.octets;
        }
    }

    /// Puts before `frames` of `queue` those that were held back, and holds back from the first one on whose priority has to wait at `start`.
    pub fn hold_back(&mut self, queue: usize, frames: &mut Vec<Frame>, start: Nanos) {
        let held = &mut self.held[queue];
        held.append(frames);
        let waits = |frame: &Frame| self.pauses[priority(frame.bytes())].until() > start;
        let free = held.iter().position(waits).unwrap_or(held.len());
        frames.extend(held.drain(..free));
    }

    /// Puts before `frames` of `queue` those that were held back, whatever they wait for.
    pub fn let_go(&mut self, queue: usize, frames: &mut Vec<Frame>) {
        let held = &mut self.held[queue];
        held.append(frames);
        std::mem::swap(held, frames);
    }

    /// Until when the packets of `queue` that are held back have to wait, if there are any.
    #[must_use]
    pub fn held_until(&self, queue: usize) -> Option<Nanos> {
        let first = self.held[queue].first()?;
        Some(self.pauses[priority(first.bytes())].until())
    }

    /// The first instant at which packets of any queue that are held back may go.
    #[must_use]
    pub fn resumes(&self) -> Option<Nanos> {
        (0..self.held.len())
            .filter_map(|queue| self.held_until(queue))
            .min()
    }

    /// Its state.
    #[must_use]
    pub fn status(&self) -> PfcStatus {
        PfcStatus {
            priorities: self.priorities.iter().collect(),
            share: self.share,
            octets: self.octets,
            held: self.held.iter().map(Vec::len).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use crate::pause::Control;

    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

    fn request() -> Request {
        let mut request = Request {
            priorities: Priorities::of_vector(0b1000_1000),
            ..Request::default()
        };
        (request.quanta[3], request.quanta[7]) = (0x1234, 0);
        request
    }

    #[test]
    fn a_frame_has_the_octets_of_the_standard() {
        let mut frame = Pool::new(128).take();
        request().write(&mut frame, OWN);
        let mut expected = vec![0x01, 0x80, 0xc2, 0x00, 0x00, 0x01, 2, 0, 0, 0, 0, 1];
        expected.extend([0x88, 0x08, 0x01, 0x01, 0x00, 0x88]);
        expected.extend([0, 0, 0, 0, 0, 0, 0x12, 0x34]);
        expected.resize(60, 0);
        assert_eq!(frame.bytes(), expected);
        let read = pause::read(&expected, MacAddress::default());
        assert_eq!(read, Some(Control::Priorities(request())));
        // Cut off, for another station, or of another opcode.
        for (len, at, octet) in [(33, 0, 1), (60, 5, 2), (60, 15, 2)] {
            let mut other = expected[..len].to_vec();
            other[at] = octet;
            let read = pause::read(&other, MacAddress::default());
            assert_eq!(read, Some(Control::Other), "{len} {at}");
        }
    }

    #[test]
    fn a_priority_stands_in_the_outermost_tag() {
        for (tag, expected) in [
            ([0x81, 0x00, 0xbf, 0xff], 5),
            ([0x81, 0x00, 0x00, 0x01], 0),
            ([0x88, 0xa8, 0x60, 0x01], 3),
            ([0x08, 0x00, 0xe0, 0x00], 0),
        ] {
            let mut frame = [0; 60];
            frame[12..16].copy_from_slice(&tag);
            frame[16..20].copy_from_slice(&[0x81, 0x00, 0xe0, 0x00]);
            assert_eq!(priority(&frame), expected, "{tag:x?}");
        }
        assert_eq!(priority(&[0x81; 14]), 0);
    }

    #[test]
    fn the_others_share_what_is_left_and_have_no_room_beyond() {
        let mut pfc = Pfc::new(Priorities::of_vector(0b1000), 10_000, 1);
        assert_eq!((pfc.share(), Priorities::ALL.shares()), (5_000, 8));
        pfc.enter(0, 3_000);
        pfc.enter(7, 1_000);
        assert!(pfc.has_room(1, 1_000) && !pfc.has_room(1, 1_001));
        assert!(pfc.has_room(3, 9_000));
        pfc.set_priorities(Priorities::NONE);
        assert!(pfc.has_room(1, 9_000), "nothing is controlled");
    }

    #[test]
    fn what_was_said_of_a_priority_holds_as_long_as_it_is_controlled() {
        let speed = Speed::from_mbps(1_000).unwrap();
        let mut pfc = Pfc::new(Priorities::ALL, 80_000, 1);
        pfc.obey(&request(), Nanos(100), speed);
        let until = pfc.pauses[3].until();
        for priority in [3, 4] {
            pfc.enter(priority, 6_000);
        }
        let stop = pfc.tell(Nanos(0)).unwrap();
        pfc.told(&stop, Nanos(0), speed);
        pfc.set_priorities(Priorities::of_vector(0b1_1000));
        assert_eq!(pfc.pauses[3].until(), until);
        // The share is larger now: 4 may go on, once it is said.
        let go = pfc.tell(Nanos(1)).unwrap();
        assert_eq!((go.priorities, go.quanta), (stop.priorities, [0; 8]));
        pfc.told(&go, Nanos(1), speed);
        pfc.enter(3, 9_000);
        let stop = pfc.tell(Nanos(2)).unwrap();
        pfc.told(&stop, Nanos(2), speed);
        // 3 is not controlled any more: the partner hears that once, and we do not wait for it.
        pfc.set_priorities(Priorities::of_vector(0b1_0000));
        assert_eq!(pfc.pauses[3].until(), Nanos::ZERO);
        let go = pfc.tell(Nanos(3)).unwrap();
        assert_eq!((go.priorities, go.quanta), (stop.priorities, [0; 8]));
        pfc.told(&go, Nanos(3), speed);
        assert_eq!((pfc.tell(Nanos(4)), pfc.next_deadline()), (None, None));
    }

    #[test]
    fn what_is_held_back_keeps_its_order_and_lets_nothing_behind_it_pass() {
        let (mut pool, speed) = (Pool::new(128), Speed::from_mbps(1_000).unwrap());
        let mut pfc = Pfc::new(Priorities::ALL, 10_000, 2);
        pfc.obey(&request(), Nanos(100), speed);
        let mut frame = |priority: u8, number: u8| {
            let mut frame = pool.take();
            assert!(frame.fill(&[number; 60]));
            frame.bytes_mut()[12..15].copy_from_slice(&[0x81, 0, priority << 5]);
            frame
        };
        let until = Nanos(100 + 0x1234 * 512);
        let mut frames = vec![frame(5, 1), frame(3, 2), frame(5, 3)];
        pfc.hold_back(1, &mut frames, Nanos(100));
        let numbers = |frames: &[Frame]| -> Vec<_> {
            frames.iter().map(|frame| frame.first_octet()).collect()
        };
        assert_eq!(numbers(&frames), [1]);
        assert_eq!((pfc.held_until(0), pfc.held_until(1)), (None, Some(until)));
        assert_eq!(pfc.resumes(), Some(until));
        let mut frames = vec![frame(5, 4)];
        pfc.hold_back(1, &mut frames, Nanos(until.0 - 1));
        assert!(frames.is_empty());
        pfc.hold_back(1, &mut frames, until);
        assert_eq!(numbers(&frames), [2, 3, 4]);
        assert_eq!((pfc.held_until(1), pfc.status().held), (None, vec![0, 0]));
    }
}
