//! A TAP device of this host: its kernel is the link partner.
//!
//! Frames that the kernel sends through the interface enter, frames of the card leave, one system call each. Super-frames pass
//! whole in both directions, and checksums that the kernel left to the card come as they are ([`vnet`]). The device is attached to if it exists
//! (made persistent with `ip tuntap`), else created, brought up and given the port's MTU ([`attach`]); one that was created
//! here goes with the process. Its carrier follows the card's link. While the card has no room frames wait in the interface's
//! queues, and there the kernel drops what is too much. Dropped are frames that the kernel refuses
//! (its interface down, its queue full) and those that waited in it while there was no link.
//!
//! Of several queues those in which frames wait are read in turns ([`turns`]). A flow keeps its order both ways: the
//! kernel sends it on one queue, and it is written to the same ([`flows`]).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use log::error;
use nic_model::frame::{Frame, Pool};
use nic_model::time::Nanos;
use nix::errno::Errno;
use nix::unistd::read;

use super::Wire;
use flows::Flows;
use turns::Turns;

mod attach;
mod flows;
mod ioctl;
mod link;
mod turns;
mod vnet;

pub use attach::TapError;

/// Queues that a device is given at most.
pub const MAX_QUEUES: u16 = 16;
/// Frames that a queue of a TAP device holds at most, with room to spare (its default is 1000).
const STALE_AT_ONCE: usize = 10_000;
/// Octets that the next super-frame may take in a FIFO.
const LONGEST: usize = 72 * 1024;

/// Whether `name` may name an interface. A comma may, too, but not here, where options follow it.
pub fn is_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"/:%,".contains(&b))
        && name != "."
        && name != ".."
}

/// A TAP device.
#[derive(Debug)]
pub struct Tap {
    name: String,
    /// Its queues, one at least.
    queues: Vec<File>,
    turns: Turns,
    flows: Flows,
    reader: vnet::Reader,
    received: u64,
    sent: u64,
    /// Of those, super-frames.
    received_super: u64,
    sent_super: u64,
    /// Frames refused because the interface is down, because its queue is full, and for any other reason.
    refused_down: u64,
    refused_full: u64,
    refused: u64,
    read_errors: u64,
    stale: u64,
    gone: bool,
}

impl Tap {
    /// Attaches to `queues` queues of the TAP device `name`, no less than 1 and no more than [`MAX_QUEUES`], or creates it for
    /// packets of up to `mtu` octets.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, mtu: u16, queues: u16) -> Result<Self, TapError> {
        let queues = attach::attach(name, mtu, queues.clamp(1, MAX_QUEUES))?;
        let turns = Turns::new(&queues).map_err(|source| TapError::Failed {
            what: "wait for its queues",
            source,
        })?;
        Ok(Tap {
            name: name.to_owned(),
            turns,
            flows: Flows::new(queues.len()),
            queues,
            reader: vnet::Reader::new(),
            received: 0,
            sent: 0,
            received_super: 0,
            sent_super: 0,
            refused_down: 0,
            refused_full: 0,
            refused: 0,
            read_errors: 0,
            stale: 0,
            gone: false,
        })
    }

    /// Reads the next frame of the queue whose turn it is. `None` if none waits, or there is no buffer for it.
    #[inline]
    fn read(&mut self, pool: &mut Pool) -> Option<Frame> {
        while let Some(queue) = self.turns.queue() {
            match self.reader.read(&self.queues[queue], pool) {
                Ok(frame) => {
                    self.turns.gave();
                    self.flows.learn(frame.bytes(), queue);
                    self.received += 1;
                    self.received_super += u64::from(frame.is_super());
                    return Some(frame);
                }
                Err(errno) => self.read_failed(errno),
            }
        }
        None
    }

    /// There is nothing more of the queue whose turn it was.
    fn read_failed(&mut self, errno: Errno) {
        self.turns.emptied();
        match errno {
            Errno::EAGAIN | Errno::EINTR => {}
            Errno::EBADFD => self.lose(),
            _ => self.read_errors += 1,
        }
    }

    /// Somebody has removed the interface.
    fn lose(&mut self) {
        if !self.gone {
            let name = &self.name;
            error!(
                "TAP device {name} was removed: nothing comes or goes any more; restart the NIC"
            );
            self.gone = true;
        }
    }

    /// Discards what waits in the interface's queues: it was sent to a link that there was not.
    fn discard_stale(&mut self) {
        for queue in &self.queues {
            for _ in 0..STALE_AT_ONCE {
                // A frame that does not fit is cut off.
                if read(queue, &mut [0; 16]).is_err() {
                    break;
                }
                self.stale += 1;
            }
        }
    }
}

impl Wire for Tap {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        if self.gone {
            return;
        }
        self.turns.look();
        // The port says how many usual frames surely fit. As long as a super-frame does, the next one may be one.
        let octets = room * pool.buffer_size();
        let mut taken = 0;
        for turn in 0..room {
            if turn > 0 && taken + LONGEST > octets {
                break;
            }
            let Some(mut frame) = self.read(pool) else {
                break;
            };
            frame.arrival = now;
            taken += frame.len();
            frames.push(frame);
        }
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        for frame in frames.drain(..) {
            let queue = self.flows.queue_of(frame.bytes());
            match vnet::write(&self.queues[queue], &frame) {
                Ok(()) => {
                    self.sent += 1;
                    self.sent_super += u64::from(frame.is_super());
                }
                Err(Errno::EIO) => self.refused_down += 1,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => self.refused_full += 1,
                Err(_) => self.refused += 1,
            }
            pool.give(frame);
        }
    }

    fn has_super_frames(&self) -> bool {
        true
    }

    fn waits(&self) -> bool {
        true
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.turns.readable().unwrap_or(self.queues[0].as_fd()))
    }

    fn is_gone(&self) -> bool {
        self.gone
    }

    fn link_changed(&mut self, _: Nanos, up: bool) {
        if up {
            self.discard_stale();
        }
        // Kernels before 5.0 cannot; the interface then shows a carrier that there is not.
        let _ = ioctl::set_carrier(&self.queues[0], up);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("tap_received", self.received),
            ("tap_sent", self.sent),
            ("tap_received_super", self.received_super),
            ("tap_sent_super", self.sent_super),
            ("tap_refused_down", self.refused_down),
            ("tap_refused_full", self.refused_full),
            ("tap_refused", self.refused),
            ("tap_read_errors", self.read_errors),
            ("tap_stale", self.stale),
        ]
    }
}

#[cfg(test)]
mod flow_control_tests;
#[cfg(test)]
mod multi_queue_tests;
#[cfg(test)]
mod receive_tests;
#[cfg(test)]
mod super_frame_tests;
#[cfg(test)]
mod tests;
