//! Which offloads the driver takes at the moment (VIRTIO 1.3, 5.1.6.5.6).
//!
//! Of those that it accepted it may switch any off and on again. What waits in the FIFOs is delivered as it is wanted
//! when it is delivered.

use virtio_bindings::virtio_net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET;

use super::{Context, Refusal, Reply};
use crate::features::Features;
use crate::nic::coalesced;

pub(super) fn execute(
    context: &mut Context<'_>,
    command: u32,
    data: &[u8],
) -> Result<Reply, Refusal> {
    context.negotiated(Features::CTRL_GUEST_OFFLOADS)?;
    if command != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET {
        return Err(Refusal::Unknown);
    }
    let bits = data.try_into().map_err(|_| Refusal::Malformed)?;
    let wanted = Features::from_bits(u64::from_le_bytes(bits)).ok_or(Refusal::Malformed)?;
    let acked = context.device.acked();
    let possible = acked & Features::GUEST_OFFLOADS;
    // Linux counts GUEST_HDRLEN among them. There is nothing about it to switch: it is the driver's own word.
    let said = possible | acked & Features::GUEST_HDRLEN;
    if !said.contains(wanted) {
        return Err(Refusal::Malformed);
    }
    context.pairs.switch_offloads_off(possible - wanted);
    // What it does not take need not be merged first.
    context.port.rsc.switch(coalesced(wanted));
    Ok(Reply::new())
}
