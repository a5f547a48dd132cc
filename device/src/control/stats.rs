//! Device statistics: the driver reads what the card has counted (VIRTIO 1.4, 5.1.6.5.11).
//!
//! A request is an array of virtqueues and, for each, the groups that it asks for; the answer is one record a group,
//! each behind its own header. One bad entry refuses the whole request.

use nic_model::counters::{Drop, Exceeded, LineCounters};
use nic_model::frame::FCS;
use nic_model::host::Direction;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_STATS_GET, VIRTIO_NET_CTRL_STATS_QUERY, VIRTIO_NET_STATS_TYPE_REPLY_CVQ,
    VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC, VIRTIO_NET_STATS_TYPE_REPLY_RX_CSUM,
    VIRTIO_NET_STATS_TYPE_REPLY_RX_GSO, VIRTIO_NET_STATS_TYPE_REPLY_RX_SPEED,
    VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC, VIRTIO_NET_STATS_TYPE_REPLY_TX_CSUM,
    VIRTIO_NET_STATS_TYPE_REPLY_TX_GSO, VIRTIO_NET_STATS_TYPE_REPLY_TX_SPEED,
};

use super::{Context, ControlCounters, HalfCounters, Refusal, Reply};
use crate::features::Features;

/// Octets of an entry of `struct virtio_net_ctrl_queue_stats`: the virtqueue, padding, the groups.
const ENTRY: usize = 16;
/// Octets of `struct virtio_net_stats_reply_hdr`.
const HEADER: usize = 8;

/// One group of counts, by its number in a reply; its bit in a bitmap is that of the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Group {
    RxBasic = VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC as u8,
    RxCsum = VIRTIO_NET_STATS_TYPE_REPLY_RX_CSUM as u8,
    RxGso = VIRTIO_NET_STATS_TYPE_REPLY_RX_GSO as u8,
    RxSpeed = VIRTIO_NET_STATS_TYPE_REPLY_RX_SPEED as u8,
    TxBasic = VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC as u8,
    TxCsum = VIRTIO_NET_STATS_TYPE_REPLY_TX_CSUM as u8,
    TxGso = VIRTIO_NET_STATS_TYPE_REPLY_TX_GSO as u8,
    TxSpeed = VIRTIO_NET_STATS_TYPE_REPLY_TX_SPEED as u8,
    Control = VIRTIO_NET_STATS_TYPE_REPLY_CVQ as u8,
}

impl Group {
    /// All, in the order of a reply.
    const ALL: [Group; 9] = [
        Group::RxBasic,
        Group::RxCsum,
        Group::RxGso,
        Group::RxSpeed,
        Group::TxBasic,
        Group::TxCsum,
        Group::TxGso,
        Group::TxSpeed,
        Group::Control,
    ];

    /// Its bit in a bitmap.
    fn bit(self) -> u64 {
        1 << self as u8
    }

    /// The features without any of which it cannot be asked for.
    fn features(self) -> Features {
        match self {
            Group::RxCsum => Features::GUEST_CSUM,
            Group::TxCsum => Features::CSUM,
            Group::RxGso => Features::GUEST_GSO,
            Group::TxGso => Features::HOST_GSO,
            Group::RxBasic | Group::RxSpeed | Group::TxBasic | Group::TxSpeed | Group::Control => {
                Features::DEVICE_STATS
            }
        }
    }
}

/// The counts of one group, in the order of the fields of the group's structure.
type Record = (Group, Vec<u64>);

pub(super) fn execute(context: &Context<'_>, command: u32, data: &[u8]) -> Result<Reply, Refusal> {
    context.negotiated(Features::DEVICE_STATS)?;
    match (command, data) {
        (VIRTIO_NET_CTRL_STATS_QUERY, []) => {
            // A driver asks for all of these: none that would be refused.
            Ok(bitmap(context, Group::ALL).to_le_bytes().to_vec())
        }
        (VIRTIO_NET_CTRL_STATS_GET, [_, ..]) => get(context, data),
        (VIRTIO_NET_CTRL_STATS_QUERY | VIRTIO_NET_CTRL_STATS_GET, _) => Err(Refusal::Malformed),
        _ => Err(Refusal::Unknown),
    }
}

/// Those of `groups` that the driver may ask for.
fn bitmap(context: &Context<'_>, groups: impl IntoIterator<Item = Group>) -> u64 {
    let acked = context.device.acked();
    groups
        .into_iter()
        .filter(|group| acked.intersects(group.features()))
        .fold(0, |bitmap, group| bitmap | group.bit())
}

fn get(context: &Context<'_>, data: &[u8]) -> Result<Reply, Refusal> {
    let (entries, []) = data.as_chunks::<ENTRY>() else {
        return Err(Refusal::Malformed);
    };
    // Each may cost a question to another thread; nobody needs more than one a group.
    if entries.len() > Group::ALL.len() * context.device.queues() {
        return Err(Refusal::Malformed);
    }
    let mut reply = Reply::new();
    for &[low, high, _, _, _, _, _, _, ref groups @ ..] in entries {
        let index = u16::from_le_bytes([low, high]);
        let groups = u64::from_le_bytes(*groups);
        let records = records(context, index)?;
        let possible = bitmap(context, records.iter().map(|(group, _)| *group));
        if groups & !possible != 0 {
            return Err(Refusal::Malformed);
        }
        for (group, counts) in records {
            if groups & group.bit() != 0 {
                append(&mut reply, group, index, &counts);
            }
        }
    }
    Ok(reply)
}

/// Appends one record: `struct virtio_net_stats_reply_hdr`, then the counts.
fn append(reply: &mut Reply, group: Group, index: u16, counts: &[u64]) {
    let size = (HEADER + size_of_val(counts)) as u16;
    reply.extend([group as u8, 0]);
    reply.extend(index.to_le_bytes());
    reply.extend([0; 2]);
    reply.extend(size.to_le_bytes());
    reply.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
}

/// All that is counted of virtqueue `index`.
fn records(context: &Context<'_>, index: u16) -> Result<Vec<Record>, Refusal> {
    // The control queue is the last that the driver has.
    let control = context.device.control_queue().ok_or(Refusal::NoQueue)?;
    let index = usize::from(index);
    if index == control {
        let ControlCounters { commands, ok } = context.commands;
        // This command is among those that are done.
        return Ok(vec![(Group::Control, vec![commands, ok + 1])]);
    }
    let half = context.device.half(index).filter(|_| index < control);
    let (queue, direction) = half.ok_or(Refusal::NoQueue)?;
    let counters = context.pairs.counters(queue, direction);
    let line = context.port.line_counters(queue);
    Ok(match direction {
        Direction::Receive => received(&counters, line),
        Direction::Transmit => sent(&counters, line),
    })
}

fn received(counters: &HalfCounters, line: &LineCounters) -> Vec<Record> {
    let HalfCounters { pair, virtqueue } = counters;
    let basic = vec![
        virtqueue.kicks,
        virtqueue.packets,
        virtqueue.bytes,
        virtqueue.interrupts_sent,
        pair.drops.received() + line.rx_overflows + line.rx_exceeded.frames,
        line.rx_overflows,
    ];
    let csum = vec![
        virtqueue.checksum_valid(),
        virtqueue.checksum_partial,
        virtqueue.checksum_none,
        virtqueue.checksum_bad,
    ];
    let gso = &virtqueue.gso;
    let gso = vec![gso.packets, gso.bytes, gso.segments, gso.segment_bytes];
    vec![
        (Group::RxBasic, basic),
        (Group::RxCsum, csum),
        (Group::RxGso, gso),
        (Group::RxSpeed, speed(line.rx_exceeded)),
    ]
}

/// What exceeds a rate: as above, without check sequences.
fn speed(Exceeded { frames, octets }: Exceeded) -> Vec<u64> {
    vec![frames, octets - FCS as u64 * frames]
}

fn sent(counters: &HalfCounters, line: &LineCounters) -> Vec<Record> {
    let HalfCounters { pair, virtqueue } = counters;
    let basic = vec![
        virtqueue.kicks,
        line.tx_frames,
        // A driver's packets have no check sequence.
        line.tx_octets - FCS as u64 * line.tx_frames,
        virtqueue.interrupts_sent,
        pair.drops.transmitted() + line.tx_link_down + line.tx_abandoned,
        pair.drops.get(Drop::TxMalformed) + pair.drops.get(Drop::TxUndersize),
    ];
    let needed = pair.tx_checksum_inserted;
    let prepared = pair.tx_fetched - pair.drops.transmitted();
    let csum = vec![prepared - needed, needed];
    let gso = &pair.tx_gso;
    let gso = vec![
        gso.packets,
        gso.bytes,
        gso.segments,
        gso.segment_bytes,
        gso.packets_whole,
        gso.bytes_whole,
    ];
    vec![
        (Group::TxBasic, basic),
        (Group::TxCsum, csum),
        (Group::TxGso, gso),
        (Group::TxSpeed, speed(line.tx_exceeded)),
    ]
}

#[cfg(test)]
mod tests;
