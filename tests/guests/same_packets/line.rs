//! A line whose far end the test holds: what it puts in reaches the card, what the card sends it takes out.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use nic_backend::wire::Wire;
use nic_model::frame::{Frame, Pool};
use nic_model::time::Nanos;
use nix::sys::eventfd::{EfdFlags, EventFd};

#[derive(Default)]
struct UnderWay {
    to_card: VecDeque<Vec<u8>>,
    from_card: Vec<Vec<u8>>,
}

struct Shared {
    under_way: Mutex<UnderWay>,
    /// Readable while something is on its way to the card.
    event: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().expect("nobody panics with it")
    }
}

/// The card's end.
struct Line(Arc<Shared>);

/// The test's end.
pub struct FarEnd(Arc<Shared>);

/// A line, by its two ends.
pub fn line() -> (FarEnd, Box<dyn Wire>) {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let shared = Arc::new(Shared {
        under_way: Mutex::default(),
        event: EventFd::from_flags(flags).expect("an eventfd"),
    });
    (FarEnd(shared.clone()), Box::new(Line(shared)))
}

impl FarEnd {
    /// Puts frames on the line.
    pub fn send<'a>(&self, frames: impl IntoIterator<Item = &'a [u8]>) {
        let frames = frames.into_iter().map(<[u8]>::to_vec);
        self.0.lock().to_card.extend(frames);
        self.0.event.write(1).expect("it counts far");
    }

    /// What has come from the card since the last call.
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().from_card)
    }
}

impl Wire for Line {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        let mut under_way = self.0.lock();
        let count = under_way.to_card.len().min(room);
        for bytes in under_way.to_card.drain(..count) {
            let mut frame = pool.take();
            assert!(frame.fill(&bytes), "{} octets do not fit", bytes.len());
            frame.arrival = now;
            frames.push(frame);
        }
        if under_way.to_card.is_empty() {
            // It may be read already.
            let _ = self.0.event.read();
        }
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        let mut under_way = self.0.lock();
        for frame in frames.drain(..) {
            under_way.from_card.push(frame.bytes().to_vec());
            pool.give(frame);
        }
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.event.as_fd())
    }
}
