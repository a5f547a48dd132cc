//! Notification coalescing: when queues interrupt (VIRTIO 1.3, 5.1.6.5.10).

use nic_model::host::{Direction, QueueIndex};
use nic_model::moderation::Coalesce;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET,
    VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET, VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET,
};

use super::{Context, Refusal, Reply};
use crate::features::Features;

pub(super) fn execute(
    context: &mut Context<'_>,
    command: u32,
    data: &[u8],
) -> Result<Reply, Refusal> {
    match command {
        VIRTIO_NET_CTRL_NOTF_COAL_TX_SET => {
            context.negotiated(Features::NOTF_COAL)?;
            let coalesce = coalesce(data)?;
            context
                .pairs
                .set_coalesce_all(Direction::Transmit, coalesce);
        }
        VIRTIO_NET_CTRL_NOTF_COAL_RX_SET => {
            context.negotiated(Features::NOTF_COAL)?;
            let coalesce = coalesce(data)?;
            context.pairs.set_coalesce_all(Direction::Receive, coalesce);
        }
        VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET => {
            context.negotiated(Features::VQ_NOTF_COAL)?;
            let (queue, direction, data) = data_queue(context, data)?;
            let coalesce = coalesce(data)?;
            context.pairs.set_coalesce(queue, direction, coalesce);
        }
        VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET => {
            context.negotiated(Features::VQ_NOTF_COAL)?;
            let (queue, direction, []) = data_queue(context, data)? else {
                return Err(Refusal::Malformed);
            };
            let Coalesce { usecs, frames } = context.pairs.coalesce(queue, direction);
            return Ok([frames.to_le_bytes(), usecs.to_le_bytes()].concat());
        }
        _ => return Err(Refusal::Unknown),
    }
    Ok(Reply::new())
}

/// `struct virtio_net_ctrl_coal`: packets, then microseconds.
fn coalesce(data: &[u8]) -> Result<Coalesce, Refusal> {
    let (words, []) = data.as_chunks::<4>() else {
        return Err(Refusal::Malformed);
    };
    let &[frames, usecs] = words else {
        return Err(Refusal::Malformed);
    };
    Ok(Coalesce {
        usecs: u32::from_le_bytes(usecs),
        frames: u32::from_le_bytes(frames),
    })
}

/// The beginning of `struct virtio_net_ctrl_coal_vq`: a virtqueue, which has to be one for packets and enabled, and
/// two octets of padding. Returns which it is and what follows.
fn data_queue<'a>(
    context: &Context<'_>,
    data: &'a [u8],
) -> Result<(QueueIndex, Direction, &'a [u8]), Refusal> {
    let (&[low, high, _, _], rest) = data.split_first_chunk().ok_or(Refusal::Malformed)?;
    let index = usize::from(u16::from_le_bytes([low, high]));
    let half = context.device.half(index);
    let half = half.filter(|_| context.pairs.is_enabled(index));
    let (queue, direction) = half.ok_or(Refusal::NoQueue)?;
    Ok((queue, direction, rest))
}
