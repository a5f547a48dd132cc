//! The control queue: what a driver tells the card to do (VIRTIO 1.3, 5.1.6.5).
//!
//! A command is a class, a command number and data in the readable part of a chain; one octet of answer goes into
//! the writable part. Whatever cannot be done is answered with an error and changes nothing. A command
//! without a place for the answer breaks the queue.

use nic_model::filter::MacAddress;
use nic_model::port::Port;
use serde::Serialize;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET,
    VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR,
    VIRTIO_NET_OK,
};

use crate::features::Features;
use crate::ring::{Fault, Ring};
use crate::virtio_net::{VirtioNet, Virtqueue};

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
pub fn poll(device: &mut VirtioNet, port: &mut Port, counters: &mut ControlCounters) -> bool {
    let Some(index) = device.control_queue() else {
        return false;
    };
    let features = device.acked();
    let Some(queue) = device.sound(index) else {
        return false;
    };
    let mut done = 0;
    let result = serve(queue, features, port, counters, &mut done);
    queue.ring.publish();
    device.judge(index, result);
    if done > 0 {
        device.raise(index);
    }
    done > 0
}

fn serve(
    queue: &mut Virtqueue,
    features: Features,
    port: &mut Port,
    counters: &mut ControlCounters,
    done: &mut usize,
) -> Result<(), Fault> {
    queue.ring.begin()?;
    while *done < BUDGET {
        queue.readable.clear();
        queue.writable.clear();
        let position = queue.ring.position();
        let Some(id) = queue.ring.fetch(&mut queue.readable, &mut queue.writable)? else {
            break;
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
        counters.commands += 1;
        let answer = match execute(port, features, &command) {
            Ok(()) => {
                counters.ok += 1;
                log::debug!(
                    "control command {:x?} done",
                    &command[..command.len().min(8)]
                );
                VIRTIO_NET_OK
            }
            Err(refusal) => {
                let start = &command[..command.len().min(8)];
                log::debug!("control command refused: {refusal}; it begins {start:x?}");
                VIRTIO_NET_ERR
            }
        };
        queue.writable.cursor().write(&[answer as u8]);
        queue.ring.complete(id, 1);
        *done += 1;
    }
    Ok(())
}

/// Does one command.
///
/// # Errors
/// The command is answered with an error, and the port is as it was.
pub fn execute(port: &mut Port, features: Features, command: &[u8]) -> Result<(), Refusal> {
    let (&[class, command], data) = command.split_first_chunk::<2>().ok_or(Refusal::Malformed)?;
    let negotiated = |feature| {
        if features.contains(feature) {
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
        _ => return Err(Refusal::Unknown),
    }
    Ok(())
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

    fn refused(port: &mut Port, features: Features, command: &[u8]) -> Refusal {
        let before = format!("{:?}", port.filter);
        let refusal = execute(port, features, command).unwrap_err();
        assert_eq!(
            format!("{:?}", port.filter),
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
        ] {
            assert_eq!(
                refused(&mut port, all, malformed),
                Refusal::Malformed,
                "{malformed:?}"
            );
        }
        for unknown in [&[0, 9, 1][..], &[1, 9], &[99, 0], &[3, 0]] {
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
        assert_eq!(
            refused(&mut port, Features::CTRL_RX, &[1, 1, 2, 0, 0, 0, 0, 1]),
            Refusal::Unknown
        );
    }
}
