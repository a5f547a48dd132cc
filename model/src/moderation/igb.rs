//! The adaptive interval of Linux's igb driver, run in the card.
//!
//! The driver tells three classes of load apart and sets the interval of the throttle ([`itr`](super::itr)) by them. After each interrupt it looks at
//! the packets that came with it, and the octets of these without check sequence (`igb_update_itr`, for a driver with
//! `rx-usecs 1`):
//!
//! ```text
//! class            interval            | goes to          | if
//! lowest-latency   14 us, 70,000 a s   | bulk-latency     | more than 8000 octets a packet
//!                                      | low-latency      | else fewer than 5 packets, more than 512 octets
//! low-latency      49 us, 20,000 a s   | bulk-latency     | more than 10,000 octets, and fewer than 10 packets or more than 1200 octets a packet
//!                                      | lowest-latency   | else more than 10,000 octets, and more than 35 packets
//!                                      | bulk-latency     | up to 10,000 octets, more than 2000 a packet
//!                                      | lowest-latency   | else fewer than 512 octets, no more than 2 packets
//! bulk-latency     245 us, 4,000 a s   | low-latency      | more than 25,000 octets and more than 35 packets, or fewer than 1500 octets
//! ```
//!
//! Intervals are the driver's numbers for the register (56, 196 and 980), of which bits 14 to 2 are microseconds. It begins with the lowest
//! latency; at links below 1 Gb/s the interval is that of bulk latency always.
//!
//! Where this differs from the driver: what the driver finds takes effect two interrupts later (it writes the register at the next one, whose
//! counter has been loaded by then), here it does for the interval that begins. The driver judges both directions of a queue pair and
//! takes the longer interval, as they have one vector; each of VIRTIO's queues has its own.

use std::time::Duration;

use serde::Serialize;

use super::ModeStatus;
use crate::phy::Speed;

/// The interval before the first interrupt (648 in the register).
pub(super) const START: Duration = Duration::from_micros(162);

/// A class of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Few octets: somebody waits for an answer.
    LowestLatency,
    /// In between.
    LowLatency,
    /// Many large packets.
    BulkLatency,
}

impl Class {
    /// The shortest time between two interrupts.
    #[must_use]
    pub fn interval(self) -> Duration {
        Duration::from_micros(match self {
            Class::LowestLatency => 14,
            Class::LowLatency => 49,
            Class::BulkLatency => 245,
        })
    }

    /// The class after an interrupt for so many packets, at least one, with so many octets in all.
    #[must_use]
    pub fn after(self, packets: u32, octets: u64) -> Class {
        // As the driver divides.
        let mean = octets / u64::from(packets.max(1));
        match self {
            Class::LowestLatency if mean > 8000 => Class::BulkLatency,
            Class::LowestLatency if packets < 5 && octets > 512 => Class::LowLatency,
            Class::LowLatency if octets > 10_000 => match packets {
                _ if mean > 1200 => Class::BulkLatency,
                ..10 => Class::BulkLatency,
                10..=35 => Class::LowLatency,
                36.. => Class::LowestLatency,
            },
            Class::LowLatency if mean > 2000 => Class::BulkLatency,
            Class::LowLatency if packets <= 2 && octets < 512 => Class::LowestLatency,
            Class::BulkLatency if octets > 25_000 && packets > 35 => Class::LowLatency,
            Class::BulkLatency if octets < 1500 => Class::LowLatency,
            same => same,
        }
    }
}

/// The class of a queue.
#[derive(Clone, Debug)]
pub(super) struct Igb {
    class: Class,
    changes: u64,
    /// Whether it stays what it is.
    fixed: bool,
}

impl Igb {
    pub fn new(speed: Speed) -> Self {
        let fixed = speed.mbps() < 1_000;
        Igb {
            class: if fixed {
                Class::BulkLatency
            } else {
                Class::LowestLatency
            },
            changes: 0,
            fixed,
        }
    }

    pub fn status(&self) -> ModeStatus {
        ModeStatus::IgbDynamic {
            class: self.class,
            class_changes: self.changes,
        }
    }

    /// There was an interrupt for so many packets with so many octets. Returns the interval from now on.
    pub fn interrupted(&mut self, packets: u32, octets: u64) -> Duration {
        if !self.fixed {
            let class = self.class.after(packets, octets);
            self.changes += u64::from(class != self.class);
            self.class = class;
        }
        self.class.interval()
    }
}

#[cfg(test)]
mod tests;
