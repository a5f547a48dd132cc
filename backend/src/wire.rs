//! What the card's line is plugged into.
//!
//! A [`Wire`] gives bursts of frames, each with the time at which it reached us, and takes bursts of frames,
//! each with the time at which its last bit left. It belongs to the worker that owns the port and never
//! waits. What it has to be woken for, it says: a file descriptor, a deadline, or both.
//!
//! Its life: [`WireSpec::open`]; `link_changed(now, true)` when the link comes up, and before the first frame
//! if it is up from the start; any number of `receive` and `transmit`; `link_changed(now, false)` when the
//! link goes down, after which nothing is received or transmitted until it comes up again. What is on a
//! wire when the link goes down is lost.
//!
//! Which one it is, users say with `--wire`: [`WireSpec`].

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use nic_model::filter::MacAddress;
use nic_model::frame::{Frame, Pool};
use nic_model::phy::Speed;
use nic_model::port::PortConfig;
use nic_model::time::Nanos;

mod capture;
pub mod fault;
mod generator;
mod loopback;
mod looped;
mod mac_control;
mod none;
mod pace;
mod partner;
mod pcap;
mod sink;
mod spec;
mod tap;

pub use capture::CaptureWriter;
pub(crate) use looped::Looped;
pub(crate) use none::NoWire;
pub use pcap::{CaptureError, Next as CaptureNext, Reader as CaptureReader};
pub use spec::WireSpec;
pub use tap::TapError;

/// The far end of the line.
pub trait Wire: Send {
    /// Appends frames that have reached us by `now`, `room` at most, oldest first, to `frames`, with their
    /// `arrival` set: none is later than `now` or earlier than the one before. Their buffers come from
    /// `pool`. Called only with a link.
    ///
    /// Whoever lets the card run ahead of its clock passes the later instant.
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>);

    /// Takes all of `frames` and gives their buffers back to `pool` once they are done with. Their `arrival`
    /// may be later than `now`; what comes of them comes no sooner.
    fn transmit(&mut self, now: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>);

    /// When [`Wire::receive`] has something to do that it has not yet, if the wire knows. An instant that has
    /// passed means that there is something now.
    fn next_deadline(&self) -> Option<Nanos> {
        None
    }

    /// Whether what comes, and when, is settled whatever happens meanwhile and whenever it is asked for, with
    /// [`Wire::next_deadline`] as the next frame's instant. In virtual time such a wire need not be asked at each instant.
    fn is_scheduled(&self) -> bool {
        false
    }

    /// Whether it gives super-frames, and takes them whole. Any other wire gets their segments.
    fn has_super_frames(&self) -> bool {
        false
    }

    /// Whether it keeps what is not received, without loss, until there is room: as a link partner does with flow control
    /// (IEEE 802.3, annex 31B). From any other the card takes what comes, and drops what it has no room for.
    fn waits(&self) -> bool {
        false
    }

    /// A descriptor that is readable when frames have come. It stays so until they are received.
    fn readable(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The rate that the line has from now on, where it is another than the port's highest.
    fn set_speed(&mut self, _speed: Speed) {}

    /// Until when nothing is received, though the descriptor is readable.
    fn busy_until(&self) -> Nanos {
        Nanos::ZERO
    }

    /// Whether there is no far end that would look at a check sequence: damaged frames come back as they are.
    fn is_passive(&self) -> bool {
        false
    }

    /// The faults that are injected into it, if any.
    fn faults(&mut self) -> Option<&mut fault::Faulty> {
        None
    }

    /// The wire that this one, a loopback in the card, stands before.
    fn behind(&mut self) -> Option<&mut Box<dyn Wire>> {
        None
    }

    /// The link went up or down.
    fn link_changed(&mut self, _now: Nanos, _up: bool) {}

    /// Whether the wire is gone for good, or put aside: nothing comes or goes any more, and its descriptor is not worth watching.
    fn is_gone(&self) -> bool {
        false
    }

    /// Takes out the wire that this one stands before, if it does, and gives what is under way back to `pool`. Nothing else is done
    /// with it then.
    fn unplug(&mut self, _pool: &mut Pool) -> Option<Box<dyn Wire>> {
        None
    }

    /// Counts of the wire's own, by name, beyond what the port counts (what a TAP device refused, say).
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What a wire may want to know about the port that it is plugged into.
#[derive(Clone, Copy, Debug)]
pub struct PortFacts {
    /// The card's address.
    pub mac: MacAddress,
    /// The longest packet, in octets.
    pub mtu: u16,
    /// The line rate.
    pub speed: Speed,
    /// Whether there may be flow control: it negotiates, or controls priorities.
    pub flow_control: bool,
}

impl PortFacts {
    /// Those of a port as `config` says.
    #[must_use]
    pub fn of(config: &PortConfig) -> Self {
        PortFacts {
            mac: config.mac,
            mtu: config.mtu,
            speed: config.speed,
            flow_control: config.autoneg || config.pfc.is_some(),
        }
    }
}

/// Why a wire cannot be plugged in, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The generator's frames are longer than the port takes.
    #[error(
        "generator: a frame of {size} octets is too long for an MTU of {mtu}: give size=64 to size={max}, or a larger --mtu"
    )]
    FrameSize {
        /// What was asked for, check sequence included.
        size: usize,
        /// The port's.
        mtu: u16,
        /// The longest frame that goes.
        max: usize,
    },
    /// A capture cannot be replayed.
    #[error("cannot replay {}: {reason}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: CaptureError,
    },
    /// The capture that is replayed would be overwritten.
    #[error("{} is replayed, it cannot be written at the same time: name another file", path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// A capture cannot be written.
    #[error("cannot write {}: {source}: name a file in a directory that exists and that you may write to", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A TAP device cannot be used.
    #[error("TAP device {name}: {reason}")]
    Tap {
        /// The interface.
        name: String,
        /// Why not.
        reason: TapError,
    },
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the tests of several wires need.

    use super::PortFacts;
    use nic_model::filter::MacAddress;
    use nic_model::frame::{FCS, Frame, Pool};
    use nic_model::mac::Mac;
    use nic_model::phy::Speed;
    use nic_model::time::Nanos;

    pub const CARD: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);

    pub fn facts(mtu: u16) -> PortFacts {
        PortFacts {
            mac: CARD,
            mtu,
            speed: Speed::from_mbps(10_000).expect("10G is a rate"),
            flow_control: false,
        }
    }

    /// A pool as the port makes it.
    pub fn pool(mtu: u16) -> Pool {
        Pool::new((Mac::new(mtu).max_frame() + FCS + 1).next_multiple_of(64))
    }

    pub fn frame(pool: &mut Pool, arrival: u64, bytes: &[u8]) -> Frame {
        let mut frame = pool.take();
        assert!(frame.fill(bytes));
        frame.arrival = Nanos(arrival);
        frame
    }
}
