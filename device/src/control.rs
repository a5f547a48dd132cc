//! The control queue: what a driver tells the card to do (VIRTIO 1.3, 5.1.6.5).
//!
//! A command is a class, a command number and data in the readable part of a chain; one octet of answer goes into
//! the writable part. Whatever cannot be done is answered with an error and changes nothing. A command
//! without a place for the answer breaks the queue.

use nic_model::filter::MacAddress;
use nic_model::host::{Direction, QueueIndex};
use nic_model::moderation::Coalesce;
use nic_model::port::Port;
use nic_model::time::Nanos;
use serde::Serialize;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET,
    VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET,
    VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET, VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::features::Features;
use crate::ring::{Fault, Ring};
use crate::virtio_net::VirtioNet;

/// Commands dealt with at once: a driver that sends more has to wait for its packets' turn.
const BUDGET: usize = 64;
/// The longest command, in octets: a table of more than ten thousand addresses.
const MAX_COMMAND: u64 = 64 * 1024;

/// Why a command was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such class or command, or not one that was negotiated.
    #[error("unknown command, or one that was not negotiated")]
    Unknown,
    /// The data is too short, too long or inconsistent.
    #[error("malformed data")]
    Malformed,
    /// It names a virtqueue that is not for packets, or not in use.
    #[error("no such virtqueue for packets, or it is disabled")]
    NoQueue,
}

/// Counts of the control queue's commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ControlCounters {
    /// Commands received.
    pub commands: u64,
    /// Commands answered with OK.
    pub ok: u64,
}

/// Does what the driver asks for on its control queue, whether or not the front-end has enabled it: some enable
/// only the queues that packets pass through. Returns whether there was anything.
pub fn poll(
    device: &mut VirtioNet,
    port: &mut Port,
    counters: &mut ControlCounters,
    now: Nanos,
) -> bool {
    let Some(index) = device.control_queue() else {
        return false;
    };
    let Some(queue) = device.sound(index) else {
        return false;
    };
    let mut done = 0;
    let mut result = queue.ring.begin().map(drop);
    while result.is_ok() && done < BUDGET {
        match next_command(device, index) {
            Ok(Some((id, command))) => {
                let outcome = execute(device, port, now, &command);
                counters.commands += 1;
                counters.ok += u64::from(outcome.is_ok());
                answer(device, index, id, &command, outcome);
                done += 1;
            }
            Ok(None) => break,
            Err(fault) => result = Err(fault),
        }
    }
    if let Some(queue) = device.sound(index) {
        queue.ring.publish();
    }
    device.judge(index, result);
    if done > 0 {
        device.raise(index);
    }
    done > 0
}

/// Takes the next command from virtqueue `index`: its chain's identifier, and the octets of it.
fn next_command(device: &mut VirtioNet, index: usize) -> Result<Option<(u16, Vec<u8>)>, Fault> {
    let Some(queue) = device.sound(index) else {
        return Ok(None);
    };
    queue.readable.clear();
    queue.writable.clear();
    let position = queue.ring.position();
    let Some(id) = queue.ring.fetch(&mut queue.readable, &mut queue.writable)? else {
        return Ok(None);
    };
    if queue.writable.is_empty() {
        queue.ring.rewind(position);
        return Err(Fault::NotWritable);
    }
    // One that is too long is refused for that, whatever it begins with.
    let len = match queue.readable.len() {
        0..=MAX_COMMAND => queue.readable.len() as usize,
        _ => 0,
    };
    let mut command = vec![0; len];
    queue.readable.cursor().read(&mut command);
    Ok(Some((id, command)))
}

/// Answers the command at hand on virtqueue `index`: one octet, and behind it the result if there is one
/// (VIRTIO 1.3, 5.1.6.5).
fn answer(
    device: &mut VirtioNet,
    index: usize,
    id: u16,
    command: &[u8],
    outcome: Result<Reply, Refusal>,
) {
    let start = &command[..command.len().min(8)];
    let (ack, result) = match &outcome {
        Ok(result) => {
            log::debug!("control command {start:x?} done");
            (
                VIRTIO_NET_OK,
                result.as_ref().map_or(&[][..], |result| result),
            )
        }
        Err(refusal) => {
            log::debug!("control command refused: {refusal}; it begins {start:x?}");
            (VIRTIO_NET_ERR, &[][..])
        }
    };
    let Some(queue) = device.sound(index) else {
        return;
    };
    // What there is no room for is not told; the driver sees it by the length.
    let room = (queue.writable.len() - 1).min(result.len() as u64) as usize;
    let mut cursor = queue.writable.cursor();
    cursor.write(&[ack as u8]);
    cursor.write(&result[..room]);
    queue.ring.complete(id, 1 + room as u32);
}

/// What a command answers beside OK.
type Reply = Option<[u8; 8]>;

/// Does one command at `now`.
///
/// # Errors
/// The command is answered with an error, and the port is as it was.
pub fn execute(
    device: &VirtioNet,
    port: &mut Port,
    now: Nanos,
    command: &[u8],
) -> Result<Reply, Refusal> {
    let (&[class, command], data) = command.split_first_chunk::<2>().ok_or(Refusal::Malformed)?;
    let negotiated = |feature| {
        if device.acked().contains(feature) {
            Ok(())
        } else {
            Err(Refusal::Unknown)
        }
    };
    match (u32::from(class), u32::from(command)) {
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC) => {
            negotiated(Features::CTRL_RX)?;
            port.filter.promiscuous = switch(data)?;
        }
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI) => {
            negotiated(Features::CTRL_RX)?;
            port.filter.all_multicast = switch(data)?;
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
            negotiated(Features::CTRL_RX)?;
            let (unicast, rest) = table(data)?;
            let (multicast, rest) = table(rest)?;
            if !rest.is_empty() {
                return Err(Refusal::Malformed);
            }
            port.filter.set_tables(&unicast, &multicast);
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
            negotiated(Features::CTRL_MAC_ADDR)?;
            let address = data.try_into().map_err(|_| Refusal::Malformed)?;
            port.filter.address = MacAddress(address);
        }
        (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET) => {
            negotiated(Features::NOTF_COAL)?;
            let coalesce = coalesce(data)?;
            port.moderator.set_all(Direction::Transmit, coalesce, now);
        }
        (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET) => {
            negotiated(Features::NOTF_COAL)?;
            let coalesce = coalesce(data)?;
            port.moderator.set_all(Direction::Receive, coalesce, now);
        }
        (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET) => {
            negotiated(Features::VQ_NOTF_COAL)?;
            let (queue, direction, data) = data_queue(device, data)?;
            let coalesce = coalesce(data)?;
            port.moderator.of_mut(queue, direction).set(coalesce, now);
        }
        (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET) => {
            negotiated(Features::VQ_NOTF_COAL)?;
            let (queue, direction, []) = data_queue(device, data)? else {
                return Err(Refusal::Malformed);
            };
            let Coalesce { usecs, frames } = port.moderator.of(queue, direction).coalesce();
            let mut result = [0; 8];
            result[..4].copy_from_slice(&frames.to_le_bytes());
            result[4..].copy_from_slice(&usecs.to_le_bytes());
            return Ok(Some(result));
        }
        _ => return Err(Refusal::Unknown),
    }
    Ok(None)
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
    device: &VirtioNet,
    data: &'a [u8],
) -> Result<(QueueIndex, Direction, &'a [u8]), Refusal> {
    let (&[low, high, _, _], rest) = data.split_first_chunk().ok_or(Refusal::Malformed)?;
    let index = usize::from(u16::from_le_bytes([low, high]));
    let half = device.half(index).filter(|_| device.is_enabled(index));
    let (queue, direction) = half.ok_or(Refusal::NoQueue)?;
    Ok((queue, direction, rest))
}

/// One octet that switches something on or off (VIRTIO 1.3, 5.1.6.5.1).
fn switch(data: &[u8]) -> Result<bool, Refusal> {
    match data {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Refusal::Malformed),
    }
}

/// `struct virtio_net_ctrl_mac`: a count and that many addresses. Returns them and what follows.
fn table(data: &[u8]) -> Result<(Vec<MacAddress>, &[u8]), Refusal> {
    let (count, rest) = data.split_first_chunk::<4>().ok_or(Refusal::Malformed)?;
    let octets = 6 * u64::from(u32::from_le_bytes(*count));
    let octets = usize::try_from(octets).map_err(|_| Refusal::Malformed)?;
    let (entries, rest) = rest.split_at_checked(octets).ok_or(Refusal::Malformed)?;
    let (addresses, _) = entries.as_chunks::<6>();
    Ok((
        addresses.iter().map(|&octets| MacAddress(octets)).collect(),
        rest,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic_model::port::PortConfig;

    fn execute(port: &mut Port, features: Features, command: &[u8]) -> Result<Reply, Refusal> {
        let mut device = VirtioNet::new(1, Features::supported());
        device.set_features(features).unwrap();
        super::execute(&device, port, Nanos::ZERO, command)
    }

    fn refused(port: &mut Port, features: Features, command: &[u8]) -> Refusal {
        let before = format!("{:?} {:?}", port.filter, port.moderator);
        let refusal = execute(port, features, command).unwrap_err();
        assert_eq!(
            format!("{:?} {:?}", port.filter, port.moderator),
            before,
            "{command:?} changed something"
        );
        refusal
    }

    #[test]
    fn receive_modes_are_switched() {
        let mut port = Port::new(&PortConfig::default());
        execute(&mut port, Features::CTRL_RX, &[0, 0, 1]).unwrap();
        assert!(port.filter.promiscuous);
        execute(&mut port, Features::CTRL_RX, &[0, 0, 0]).unwrap();
        execute(&mut port, Features::CTRL_RX, &[0, 1, 1]).unwrap();
        assert!(!port.filter.promiscuous && port.filter.all_multicast);
    }

    #[test]
    fn addresses_are_set() {
        let mut port = Port::new(&PortConfig::default());
        execute(
            &mut port,
            Features::CTRL_MAC_ADDR,
            &[1, 1, 2, 0, 0, 0, 0, 9],
        )
        .unwrap();
        assert_eq!(port.filter.address, MacAddress([2, 0, 0, 0, 0, 9]));
        let tables = [
            1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1, 0x33, 0x33, 0, 0,
            0, 1,
        ];
        execute(&mut port, Features::CTRL_RX, &tables).unwrap();
        let (unicast, multicast) = port.filter.tables();
        assert_eq!(unicast, [MacAddress([2, 0, 0, 0, 0, 7])]);
        assert_eq!(multicast.len(), 2);
        execute(
            &mut port,
            Features::CTRL_RX,
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )
        .unwrap();
        assert!(port.filter.tables().0.is_empty());
    }

    #[test]
    fn what_is_malformed_or_was_not_negotiated_is_refused_and_changes_nothing() {
        let mut port = Port::new(&PortConfig::default());
        let all = Features::all();
        for malformed in [
            &[][..],
            &[0],
            &[0, 0],
            &[0, 0, 2],
            &[0, 0, 1, 1],
            &[1, 1, 2, 0, 0, 0, 0],
            &[1, 1, 2, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0],
            &[1, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0],
            &[6, 0, 1, 0, 0, 0, 1, 0, 0],
            &[6, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0],
            &[6, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            &[6, 2, 0, 0, 0],
            &[6, 3, 0],
        ] {
            assert_eq!(
                refused(&mut port, all, malformed),
                Refusal::Malformed,
                "{malformed:?}"
            );
        }
        for unknown in [&[0, 9, 1][..], &[1, 9], &[99, 0], &[3, 0], &[6, 4]] {
            assert_eq!(
                refused(&mut port, all, unknown),
                Refusal::Unknown,
                "{unknown:?}"
            );
        }
        assert_eq!(
            refused(&mut port, Features::CTRL_VQ, &[0, 0, 1]),
            Refusal::Unknown
        );
        for (features, command) in [
            (Features::CTRL_RX, &[1, 1, 2, 0, 0, 0, 0, 1][..]),
            (Features::VQ_NOTF_COAL, &[6, 0, 1, 0, 0, 0, 1, 0, 0, 0]),
            (Features::VQ_NOTF_COAL, &[6, 1, 1, 0, 0, 0, 1, 0, 0, 0]),
            (
                Features::NOTF_COAL,
                &[6, 2, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
            ),
            (Features::NOTF_COAL, &[6, 3, 0, 0, 0, 0]),
        ] {
            let refusal = refused(&mut port, features, command);
            assert_eq!(refusal, Refusal::Unknown, "{command:?}");
        }
        // No virtqueue is set up here.
        for queue in [0, 1, 2, 0xff] {
            let set = [6, 2, queue, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
            assert_eq!(refused(&mut port, all, &set), Refusal::NoQueue);
            assert_eq!(refused(&mut port, all, &set[..6]), Refusal::NoQueue);
        }
    }
}
