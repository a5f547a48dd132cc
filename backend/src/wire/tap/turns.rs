//! Which queue of a TAP device is read next: those in which frames wait have turns.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};

use super::MAX_QUEUES;

/// Frames that a queue may give before it is the next one's turn.
const TURN: usize = 16;

/// Whose turn it is. It goes on from one burst to the next, however short they are.
#[derive(Debug)]
pub struct Turns {
    /// All queues' descriptors, so that one call tells which are readable and one descriptor wakes for all. There is none for a
    /// single queue.
    epoll: Option<OwnedFd>,
    /// Queues that are worth a look, a bit for each.
    ready: u32,
    queue: usize,
    /// Frames that `queue` may still give.
    left: usize,
}

impl Turns {
    /// Of `queues`.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new(queues: &[File]) -> io::Result<Self> {
        let mut turns = Turns {
            epoll: None,
            ready: 0,
            queue: 0,
            left: 0,
        };
        if queues.len() > 1 {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            for (number, queue) in queues.iter().enumerate() {
                let number = epoll::EventData::new_u64(number as u64);
                epoll::add(&epoll, queue, number, epoll::EventFlags::IN)?;
            }
            turns.epoll = Some(epoll);
        }
        Ok(turns)
    }

    /// What is readable while any queue is, unless there is but one.
    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.epoll.as_ref().map(AsFd::as_fd)
    }

    /// Begins a burst: looks which queues are readable now.
    pub fn look(&mut self) {
        self.ready = 1;
        if let Some(epoll) = &self.epoll {
            let mut events = [const { MaybeUninit::uninit() }; MAX_QUEUES as usize];
            let at_once = Timespec::default();
            let (readable, _) = epoll::wait(epoll, &mut events, Some(&at_once)).unwrap_or_default();
            let bits = readable.iter().map(|event| 1 << event.data.u64());
            self.ready = bits.fold(0, |all, bit: u32| all | bit);
        }
    }

    /// The queue whose turn it is, `None` if none is worth a look.
    #[inline]
    pub fn queue(&mut self) -> Option<usize> {
        if self.ready == 0 {
            return None;
        }
        if self.left == 0 || self.ready & 1 << self.queue == 0 {
            let later = self.ready & !0 << self.queue << 1;
            let next = if later == 0 { self.ready } else { later };
            (self.queue, self.left) = (next.trailing_zeros() as usize, TURN);
        }
        Some(self.queue)
    }

    /// It has given a frame.
    #[inline]
    pub fn gave(&mut self) {
        self.left -= 1;
    }

    /// It has no more.
    #[inline]
    pub fn emptied(&mut self) {
        self.ready &= !(1 << self.queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Queues in which so many octets wait, each standing for a frame.
    fn queues(waiting: &[usize]) -> (Vec<File>, Vec<File>) {
        let pipe = |&octets| {
            let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
            let mut write = File::from(write);
            write.write_all(&vec![0; octets]).unwrap();
            (File::from(read), write)
        };
        waiting.iter().map(pipe).unzip()
    }

    /// Reads up to `room` frames, and says from which queues.
    fn burst(turns: &mut Turns, queues: &[File], room: usize) -> Vec<usize> {
        let mut from = Vec::new();
        turns.look();
        while from.len() < room
            && let Some(queue) = turns.queue()
        {
            match (&queues[queue]).read_exact(&mut [0]) {
                Ok(()) => {
                    turns.gave();
                    from.push(queue);
                }
                Err(_) => turns.emptied(),
            }
        }
        from
    }

    #[test]
    fn each_queue_has_its_turn_whatever_the_bursts() {
        for room in [1, 3, 16, 17, 64] {
            let (queues, _writers) = queues(&[1000, 0, 1000, 40]);
            let mut turns = Turns::new(&queues).unwrap();
            let mut from = Vec::new();
            while from.len() < 2040 {
                let burst = burst(&mut turns, &queues, room);
                assert!(!burst.is_empty() && burst.len() <= room);
                from.extend(burst);
            }
            let mut turn = [0, 2, 3].map(|queue| [queue; TURN]).as_flattened().to_vec();
            turn.rotate_left(if from[0] == 0 { 0 } else { TURN });
            assert!(from[..turn.len()] == turn, "{room}: {from:?}");
            for queue in [0, 2] {
                let half = from[..1000].iter().filter(|&&from| from == queue).count();
                assert!((480 - TURN..500).contains(&half), "{room}: {half}");
            }
            assert!(burst(&mut turns, &queues, room).is_empty());
        }
    }

    #[test]
    fn a_queue_that_fills_again_and_again_holds_up_no_other() {
        let (queues, mut writers) = queues(&[50, 0]);
        let mut turns = Turns::new(&queues).unwrap();
        burst(&mut turns, &queues, 5);
        writers[1].write_all(&[0]).unwrap();
        let mut before = 0;
        loop {
            writers[0].write_all(&[0; 8]).unwrap();
            let burst = burst(&mut turns, &queues, 8);
            assert_eq!(burst.len(), 8);
            if burst.contains(&1) {
                break;
            }
            before += 8;
            assert!(before <= 64, "it starves");
        }
    }

    #[test]
    fn a_single_queue_is_not_asked_before() {
        let (queues, _writers) = queues(&[100]);
        let mut turns = Turns::new(&queues).unwrap();
        assert!(turns.readable().is_none());
        assert_eq!(burst(&mut turns, &queues, 64), [0; 64]);
        assert_eq!(burst(&mut turns, &queues, 64), [0; 36]);
        assert!(burst(&mut turns, &queues, 64).is_empty());
    }
}
