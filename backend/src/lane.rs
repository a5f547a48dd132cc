//! A lane: what passes between the port's thread and the worker of one queue pair.
//!
//! Four bounded rings, each with one producer and one consumer (crate rtrb). Received frames go to the worker: that ring is
//! the queue's FIFO, its octets counted by the port. They come back when the host has them, so that the port's account is
//! right. Packets go to the port, and as many empty buffers come back. Frames keep their order in each.
//!
//! Whoever sleeps is woken by its [`Bell`], and only then.

use std::sync::Arc;

use nic_model::BURST;
use nic_model::frame::{Frame, Pool};
use nic_model::host::{Fetched, QueueIndex};
use nic_model::mac::MIN_FRAME;
use nic_model::port::Port;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rtrb::{Consumer, Producer, PushError, RingBuffer};

use crate::wakeup::Wakeup;

/// Packets on their way from a worker to the port, at most.
const TX_FRAMES: usize = 4 * BURST;

/// Wakes a thread that sleeps.
#[derive(Debug)]
pub struct Bell {
    event: EventFd,
    asleep: Wakeup,
}

impl Bell {
    /// A bell of a thread that is awake.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Bell {
            event: EventFd::from_flags(flags)?,
            asleep: Wakeup::default(),
        })
    }

    /// Readable when the bell has rung. Never blocks.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The thread is about to sleep: from now on it is woken. It has to look once more for what came before.
    pub fn doze(&self) {
        self.asleep.ask();
    }

    /// The thread is awake.
    pub fn rise(&self) {
        self.asleep.withdraw();
    }

    /// Wakes the thread if it sleeps, to see what was done before this call.
    #[inline]
    pub fn ring(&self) {
        if self.asleep.take() {
            self.wake();
        }
    }

    /// Wakes the thread, whether it sleeps or not.
    pub fn wake(&self) {
        // An eventfd that is full has rung.
        let _ = self.event.write(1);
    }
}

/// The port's end of a lane.
pub struct PortLane {
    received: Producer<Frame>,
    delivered: Consumer<Frame>,
    packets: Consumer<Frame>,
    spares: Producer<Frame>,
    worker: Arc<Bell>,
    /// Whether the worker is to be woken for what it was given.
    given: bool,
    /// Whether the port waits for frames to come back.
    room_wanted: Arc<Wakeup>,
}

/// The worker's end of a lane.
pub struct WorkerLane {
    /// Which queue pair it belongs to.
    pub queue: QueueIndex,
    received: Consumer<Frame>,
    delivered: Producer<Frame>,
    packets: Producer<Frame>,
    spares: Consumer<Frame>,
    port: Arc<Bell>,
    room_wanted: Arc<Wakeup>,
}

/// A lane of `queue`, whose FIFO holds `fifo` octets.
#[must_use]
pub fn lane(
    queue: QueueIndex,
    fifo: usize,
    port: Arc<Bell>,
    worker: Arc<Bell>,
) -> (PortLane, WorkerLane) {
    // No frame counts for less than the shortest.
    let frames = fifo / MIN_FRAME + 1;
    let (received, to_deliver) = RingBuffer::new(frames);
    let (to_return, delivered) = RingBuffer::new(frames);
    let (to_send, packets) = RingBuffer::new(TX_FRAMES);
    let (spares, to_use) = RingBuffer::new(2 * TX_FRAMES);
    let room_wanted = Arc::new(Wakeup::default());
    let ours = PortLane {
        received,
        delivered,
        packets,
        spares,
        worker,
        given: false,
        room_wanted: room_wanted.clone(),
    };
    let theirs = WorkerLane {
        queue,
        received: to_deliver,
        delivered: to_return,
        packets: to_send,
        spares: to_use,
        port,
        room_wanted,
    };
    (ours, theirs)
}

impl PortLane {
    /// Gives a received frame to the worker.
    ///
    /// # Panics
    /// If there are more than the FIFO has octets for.
    #[inline]
    pub fn push(&mut self, frame: Frame) {
        let pushed = self.received.push(frame);
        pushed.expect("the ring is as long as the FIFO is deep");
        self.given = true;
    }

    /// Wakes the worker if it was given something.
    #[inline]
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.given) {
            self.worker.ring();
        }
    }

    /// A received frame that the host has, or that was dropped.
    #[inline]
    pub fn delivered(&mut self) -> Option<Frame> {
        self.delivered.pop().ok()
    }

    /// Takes up to `budget` packets into the pool of `port` and appends them to `packets`. Returns how many, and whether more wait.
    #[inline]
    pub fn take(&mut self, budget: usize, port: &mut Port, packets: &mut Vec<Frame>) -> Fetched {
        let mut taken = 0;
        while taken < budget {
            let Ok(frame) = self.packets.pop() else {
                break;
            };
            taken += 1;
            port.pool.adopt();
            // The worker gets another one for it; if it has so many that there is no room, it needs none.
            let spare = port.pool.take_for(&frame);
            match self.spares.push(spare) {
                Ok(()) => port.pool.part_with(),
                Err(PushError::Full(spare)) => port.pool.give(spare),
            }
            packets.push(frame);
        }
        self.given |= taken > 0;
        Fetched {
            frames: taken,
            more: self.has_packets(),
        }
    }

    /// Has the port, which is about to sleep, woken for the next frame that comes back. Returns true if one has already.
    pub fn want_room(&mut self) -> bool {
        self.room_wanted.ask();
        !self.delivered.is_empty()
    }

    /// Whether packets wait to be taken.
    #[must_use]
    pub fn has_packets(&self) -> bool {
        !self.packets.is_empty()
    }
}

impl WorkerLane {
    /// A frame that was received.
    #[inline]
    pub fn received(&mut self) -> Option<Frame> {
        self.received.pop().ok()
    }

    /// Gives frames back that the host has, or that were dropped.
    ///
    /// # Panics
    /// If they did not come from here.
    #[inline]
    pub fn give_back(&mut self, frames: impl IntoIterator<Item = Frame>) {
        for frame in frames {
            let pushed = self.delivered.push(frame);
            pushed.expect("as many frames come back as came");
        }
        if self.room_wanted.take() {
            self.port.ring();
        }
    }

    /// Whether the port takes a burst of packets.
    #[must_use]
    #[inline]
    pub fn has_room(&self) -> bool {
        self.packets.slots() >= BURST
    }

    /// Passes a burst of packets of `pool` on to the port, for [`WorkerLane::reclaim`] to take as many buffers back.
    ///
    /// # Panics
    /// If there is no room.
    #[inline]
    pub fn send(&mut self, pool: &mut Pool, frames: impl Iterator<Item = Frame>) {
        for frame in frames {
            let pushed = self.packets.push(frame);
            pushed.expect("there was room for a burst");
            pool.part_with();
        }
        self.port.ring();
    }

    /// Takes the buffers that came back for packets into `pool`.
    #[inline]
    pub fn reclaim(&mut self, pool: &mut Pool) {
        while let Ok(spare) = self.spares.pop() {
            pool.adopt();
            pool.give(spare);
        }
    }

    /// Whether frames wait to be delivered.
    #[must_use]
    pub fn has_received(&self) -> bool {
        !self.received.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic_model::port::PortConfig;

    #[test]
    fn every_buffer_comes_back_to_where_it_belongs() {
        let bells = [(); 2].map(|()| Arc::new(Bell::new().expect("a descriptor")));
        let [port_bell, worker_bell] = bells;
        let (mut port, mut worker) = lane(
            QueueIndex(3),
            64 * 64,
            port_bell.clone(),
            worker_bell.clone(),
        );
        let mut card = Port::new(&PortConfig::default());
        let mut theirs = Pool::new(card.pool.buffer_size());
        for round in 0..100_u8 {
            // One way, and back.
            let mut frame = card.pool.take();
            assert!(frame.fill(&[round; 60]));
            port.push(frame);
            let frame = worker.received().expect("a frame");
            assert_eq!(frame.bytes(), [round; 60]);
            worker.give_back([frame]);
            card.pool.give(port.delivered().expect("a frame"));
            // The other way, and a buffer back.
            let packets: Vec<_> = (0..BURST).map(|_| theirs.take()).collect();
            assert!(worker.has_room());
            worker.send(&mut theirs, packets.into_iter());
            let mut sent = Vec::new();
            let taken = port.take(1000, &mut card, &mut sent);
            assert_eq!((taken.frames, taken.more), (BURST, false));
            card.pool.give_all(sent);
            assert_eq!((card.pool.lent(), theirs.lent()), (0, 0));
        }
        assert!(!port.has_packets() && !worker.has_received());
    }

    #[test]
    fn a_port_that_does_not_take_is_not_overrun() {
        let bell = Arc::new(Bell::new().expect("a descriptor"));
        let (port, mut worker) = lane(QueueIndex(0), 4096, bell.clone(), bell);
        let mut pool = Pool::new(64);
        while worker.has_room() {
            let burst: Vec<_> = (0..BURST).map(|_| pool.take()).collect();
            worker.send(&mut pool, burst.into_iter());
        }
        assert!(port.has_packets());
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_port_that_waits_for_room_is_woken_once() {
        let (bell, other) = (Bell::new(), Bell::new());
        let bell = Arc::new(bell.expect("a descriptor"));
        let other = Arc::new(other.expect("a descriptor"));
        let (mut port, mut worker) = lane(QueueIndex(0), 4096, bell.clone(), other);
        let mut pool = Pool::new(64);
        let mut pass = |port: &mut PortLane| {
            port.push(pool.take());
            let frame = worker.received();
            worker.give_back(frame);
        };
        bell.doze();
        pass(&mut port);
        assert!(bell.event().read().is_err(), "it does not wait for room");
        assert!(port.want_room(), "there is some");
        while port.delivered().is_some() {}
        assert!(!port.want_room());
        pass(&mut port);
        pass(&mut port);
        assert_eq!(bell.event().read(), Ok(1), "woken once");
        bell.doze();
        pass(&mut port);
        assert!(bell.event().read().is_err(), "it has not asked again");
    }

    #[test]
    fn a_bell_wakes_who_sleeps_and_nobody_else() {
        let bell = Bell::new().expect("a descriptor");
        bell.ring();
        assert!(bell.event().read().is_err(), "nobody slept");
        bell.doze();
        bell.ring();
        bell.ring();
        assert_eq!(bell.event().read(), Ok(1), "woken once");
        bell.doze();
        bell.rise();
        bell.ring();
        assert!(bell.event().read().is_err());
    }
}
