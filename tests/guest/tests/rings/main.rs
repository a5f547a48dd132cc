//! Virtqueues of both layouts against a device's side of their own, and against devices that lie. The split
//! ring without IN_ORDER has tests beside it.

#[path = "../common/mod.rs"]
mod common;

mod driver;
mod in_order;
mod packed;
mod suppression;

use common::rings::DeviceRing;
use nic_guest::memory::{GuestMemory, PAGE_SIZE};
use nic_guest::ring::packed::PackedQueue;
use nic_guest::ring::virtqueue::{Virtqueue, VirtqueueOptions, packed_base};
use nic_guest::ring::{OffWrap, Segment};

const SPLIT: VirtqueueOptions = VirtqueueOptions {
    packed: false,
    in_order: false,
    event_idx: false,
    indirect: 0,
};
const PACKED: VirtqueueOptions = VirtqueueOptions {
    packed: true,
    ..SPLIT
};

fn in_order(options: VirtqueueOptions) -> VirtqueueOptions {
    VirtqueueOptions {
        in_order: true,
        ..options
    }
}

fn event_idx(options: VirtqueueOptions) -> VirtqueueOptions {
    VirtqueueOptions {
        event_idx: true,
        ..options
    }
}

fn piece(len: u32) -> Segment {
    Segment::new(0x1000, len)
}

/// A queue and the device's side of its ring.
fn pair(size: u16, options: VirtqueueOptions) -> (Virtqueue, DeviceRing) {
    let memory = GuestMemory::new(64 * PAGE_SIZE).unwrap();
    let vq = Virtqueue::new(&memory, size, options).unwrap();
    let device = if options.packed {
        DeviceRing::packed(vq.ring(), vq.vring_base(), options.event_idx)
    } else {
        DeviceRing::split(vq.ring(), 0, options.event_idx)
    };
    (vq, device)
}

/// A packed queue that begins at `place`, and the device's side of it.
fn packed_at(size: u16, place: OffWrap, options: VirtqueueOptions) -> (PackedQueue, DeviceRing) {
    let memory = GuestMemory::new(64 * PAGE_SIZE).unwrap();
    let mut vq = PackedQueue::new(&memory, size, options).unwrap();
    vq.start_at(place);
    let device = DeviceRing::packed(vq.ring(), packed_base(place, place), options.event_idx);
    (vq, device)
}
