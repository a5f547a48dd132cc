//! Which queue of a TAP device a frame is written to.
//!
//! The kernel sends a flow to us on the queue that it last saw the flow on from our side, for as long as that was
//! a few seconds ago, and else on one that its hash picks (Linux: drivers/net/tun.c, `tun_automq_select_queue`). So whoever
//! writes a flow to another queue moves it, and what is sent then may overtake what waits in the old queue. Therefore a
//! flow is written where it was last received. One that was not received yet, or that another has displaced from its slot here, has
//! a queue by its number.
//!
//! What remains: flows that the kernel tells apart otherwise than the card does. With a flow label IPv6 has one flow for each pair of
//! addresses there, and inside of tunnels (GRE, IP in IP) and PPPoE it looks further; such flows move with each other. And the kernel has forgotten a flow that was not written for some seconds, and both sides begin to send at the same
//! instant, so that we write before we have read. That can move it once.

use nic_model::parse;
use nic_model::rss;

/// Slots for flows: four times as many as the kernel remembers (`MAX_TAP_FLOWS`), so that few displace another.
const SLOT_BITS: u32 = 14;

/// Where flows were last received.
#[derive(Debug)]
pub struct Flows {
    queues: usize,
    /// None with a single queue.
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    flow: u32,
    queue: u32,
}

impl Flows {
    /// Of a device with so many queues.
    pub fn new(queues: usize) -> Self {
        let slots = if queues > 1 { 1 << SLOT_BITS } else { 0 };
        Flows {
            queues,
            slots: vec![Slot::default(); slots].into(),
        }
    }

    /// Notes that a frame was received on `queue`.
    #[inline]
    pub fn learn(&mut self, frame: &[u8], queue: usize) {
        if self.queues > 1 {
            let flow = flow(frame);
            self.slots[slot(flow)] = Slot {
                flow,
                queue: queue as u32,
            };
        }
    }

    /// Which queue a frame is written to.
    #[inline]
    pub fn queue_of(&self, frame: &[u8]) -> usize {
        if self.queues == 1 {
            return 0;
        }
        let flow = flow(frame);
        let slot = self.slots[slot(flow)];
        if slot.flow == flow {
            slot.queue as usize
        } else {
            ((u64::from(spread(flow)) * self.queues as u64) >> 32) as usize
        }
    }
}

/// All that is not IP is one flow.
#[inline]
fn flow(frame: &[u8]) -> u32 {
    rss::flow(frame, &parse::summarise(frame)).unwrap_or(0)
}

#[inline]
fn slot(flow: u32) -> usize {
    (spread(flow) >> (u32::BITS - SLOT_BITS)) as usize
}

/// Has all of the bits of `flow` count in the uppermost: neighbouring ports differ in few (Knuth, 6.4: the golden ratio).
fn spread(flow: u32) -> u32 {
    flow.wrapping_mul(0x9e37_79b9)
}
