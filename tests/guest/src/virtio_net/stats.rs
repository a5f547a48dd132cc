//! What the driver counts, by Linux's names.
//!
//! Each counter is a plain number in its queue; sums over queues are made on request.

use std::ops::AddAssign;

/// Receive side of a queue, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxStats {
    /// Frames delivered.
    pub packets: u64,
    /// Bytes of them, without the virtio header.
    pub bytes: u64,
    /// Frames dropped, for whatever reason below.
    pub drops: u64,
    /// Buffers with an impossible length, or frames with buffers missing (`rx_length_errors`).
    pub length_errors: u64,
    /// Frames whose header lies (`rx_frame_errors`, "bad gso").
    pub frame_errors: u64,
    /// Kicks sent.
    pub kicks: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// Errors that the device signalled for the ring (VRING_ERR).
    pub ring_errors: u64,
}

/// Transmit side of a queue, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxStats {
    /// Frames that the device has sent and given back.
    pub packets: u64,
    /// Bytes of them, without the virtio header.
    pub bytes: u64,
    /// Frames refused because the ring was full (`tx_busy`).
    pub busy: u64,
    /// Frames refused because no buffer holds them.
    pub too_long: u64,
    /// Kicks sent.
    pub kicks: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// Errors that the device signalled for the ring (VRING_ERR).
    pub ring_errors: u64,
}

impl AddAssign for RxStats {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.drops += other.drops;
        self.length_errors += other.length_errors;
        self.frame_errors += other.frame_errors;
        self.kicks += other.kicks;
        self.interrupts += other.interrupts;
        self.ring_errors += other.ring_errors;
    }
}

impl AddAssign for TxStats {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.busy += other.busy;
        self.too_long += other.too_long;
        self.kicks += other.kicks;
        self.interrupts += other.interrupts;
        self.ring_errors += other.ring_errors;
    }
}
