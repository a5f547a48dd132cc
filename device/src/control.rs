//! The control queue: what a driver tells the card to do (VIRTIO 1.3, 5.1.6.5).
//!
//! A command is a class, a command number and data in the readable part of a chain; one octet of answer goes into
//! the writable part. Whatever cannot be done is answered with an error and changes nothing. A command
//! without a place for the answer breaks the queue.

use nic_model::counters::QueueCounters;
use nic_model::frame::Frame;
use nic_model::host::{Direction, QueueIndex};
use nic_model::moderation::Coalesce;
use nic_model::port::Port;
use nic_model::queues::Queues;
use nic_model::time::Nanos;
use serde::Serialize;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_STATS,
    VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::features::Features;
use crate::ring::{Chain, Fault};
use crate::virtio_net::{VirtioNet, VirtqueueCounters, virtqueue};

mod announce;
mod coalesce;
mod filter;
mod hash_tunnel;
mod mq;
mod offloads;
mod stats;

/// Commands dealt with at once, where they are cheap: a driver that sends more has to wait for its packets' turn.
pub(crate) const BUDGET: usize = 64;
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

/// What a command answers beside OK.
type Reply = Vec<u8>;

/// What one half of a queue pair has counted.
#[derive(Clone, Debug, Default)]
pub struct HalfCounters {
    /// The model: both halves of the pair.
    pub pair: QueueCounters,
    /// The virtqueue of the half.
    pub virtqueue: VirtqueueCounters,
}

/// The queue pairs, whoever serves them: what commands ask of them.
pub trait Pairs {
    /// Whether virtqueue `index` is set up and packets may pass.
    fn is_enabled(&self, index: usize) -> bool;

    /// When one direction of `queue` interrupts.
    fn coalesce(&self, queue: QueueIndex, direction: Direction) -> Coalesce;

    /// Changes that.
    fn set_coalesce(&mut self, queue: QueueIndex, direction: Direction, coalesce: Coalesce);

    /// Changes it for all queues of a direction.
    fn set_coalesce_all(&mut self, direction: Direction, coalesce: Coalesce);

    /// Drops what waits in the FIFO of `queue`. Returns those frames that the port has to take back at once.
    fn abandon(&mut self, queue: QueueIndex) -> Vec<Frame>;

    /// Has received frames delivered as to a driver without the offloads `off`; it takes all others that it accepted.
    fn switch_offloads_off(&mut self, off: Features);

    /// What one direction of `queue` has counted.
    fn counters(&self, queue: QueueIndex, direction: Direction) -> HalfCounters;
}

/// Queue pairs that are served where the commands are done.
pub(crate) struct Local<'a> {
    pub queues: &'a mut Queues,
    pub device: &'a VirtioNet,
    pub now: Nanos,
}

impl Pairs for Local<'_> {
    fn is_enabled(&self, index: usize) -> bool {
        self.device.is_enabled(index)
    }

    fn coalesce(&self, queue: QueueIndex, direction: Direction) -> Coalesce {
        self.queues.moderator.of(queue, direction).coalesce()
    }

    fn set_coalesce(&mut self, queue: QueueIndex, direction: Direction, coalesce: Coalesce) {
        let moderation = self.queues.moderator.of_mut(queue, direction);
        moderation.set(coalesce, self.now);
    }

    fn set_coalesce_all(&mut self, direction: Direction, coalesce: Coalesce) {
        let moderator = &mut self.queues.moderator;
        moderator.set_all(direction, coalesce, self.now);
    }

    fn abandon(&mut self, queue: QueueIndex) -> Vec<Frame> {
        let mut frames = Vec::new();
        self.queues.abandon(queue, |stale| frames.extend(stale));
        frames
    }

    fn switch_offloads_off(&mut self, off: Features) {
        self.device.switch_offloads_off(off);
    }

    fn counters(&self, queue: QueueIndex, direction: Direction) -> HalfCounters {
        let pair = &self.queues.counters()[usize::from(queue.0)];
        let virtqueue = self.device.counters_of(virtqueue(queue, direction));
        HalfCounters {
            pair: pair.clone(),
            virtqueue: virtqueue.clone(),
        }
    }
}

/// What commands act on.
pub struct Context<'a> {
    /// The device: what was negotiated.
    pub device: &'a VirtioNet,
    /// The side of the line.
    pub port: &'a mut Port,
    /// The side of the host.
    pub pairs: &'a mut dyn Pairs,
    /// The commands so far, this one among those received.
    pub commands: ControlCounters,
}

impl Context<'_> {
    fn negotiated(&self, feature: Features) -> Result<(), Refusal> {
        if self.device.acked().contains(feature) {
            Ok(())
        } else {
            Err(Refusal::Unknown)
        }
    }
}

/// Takes what the driver asks for on its control queue, whether or not the front-end has enabled it: some enable
/// only the queues that packets pass through. `execute` does each command, and is told the counts with this one among
/// those received. No more than `budget` are done. Returns whether there was anything.
pub fn poll(
    device: &mut VirtioNet,
    counters: &mut ControlCounters,
    budget: usize,
    mut execute: impl FnMut(&VirtioNet, ControlCounters, &[u8]) -> Result<Reply, Refusal>,
) -> bool {
    let Some(index) = device.control_queue() else {
        return false;
    };
    let Some(queue) = device.sound(index) else {
        return false;
    };
    let mut done = 0;
    let mut result = match queue.ring.ring_mut().begin() {
        // Mostly there is none.
        Ok(0) => return false,
        begun => begun.map(drop),
    };
    while result.is_ok() && done < budget {
        match next_command(device, index) {
            Ok(Some((chain, command))) => {
                counters.commands += 1;
                let outcome = execute(device, *counters, &command);
                counters.ok += u64::from(outcome.is_ok());
                answer(device, index, chain, &command, outcome);
                done += 1;
            }
            Ok(None) => break,
            Err(fault) => result = Err(fault),
        }
    }
    if let Some(queue) = device.sound(index) {
        queue.ring.ring_mut().publish();
    }
    device.judge(index, result);
    if done > 0 {
        device.raise(index);
    }
    done > 0
}

/// Takes the next command from virtqueue `index`: its chain's identifier, and the octets of it.
fn next_command(device: &mut VirtioNet, index: usize) -> Result<Option<(Chain, Vec<u8>)>, Fault> {
    let Some(queue) = device.sound(index) else {
        return Ok(None);
    };
    queue.dma.readable.clear();
    queue.dma.writable.clear();
    let position = queue.ring.ring().position();
    let ring = queue.ring.ring_mut();
    let Some(chain) = ring.fetch(&mut queue.dma.readable, &mut queue.dma.writable)? else {
        return Ok(None);
    };
    if queue.dma.writable.is_empty() {
        queue.ring.ring_mut().rewind(position);
        return Err(Fault::NotWritable);
    }
    // One that is too long is refused for that, whatever it begins with.
    let len = match queue.dma.readable.len() {
        0..=MAX_COMMAND => queue.dma.readable.len() as usize,
        _ => 0,
    };
    let mut command = vec![0; len];
    queue.dma.readable.cursor().read(&mut command);
    Ok(Some((chain, command)))
}

/// Answers the command at hand on virtqueue `index`: one octet, and behind it the result if there is one
/// (VIRTIO 1.3, 5.1.6.5).
fn answer(
    device: &mut VirtioNet,
    index: usize,
    chain: Chain,
    command: &[u8],
    outcome: Result<Reply, Refusal>,
) {
    let start = &command[..command.len().min(8)];
    let (ack, result) = match outcome {
        Ok(result) => {
            log::debug!("control command {start:x?} done");
            (VIRTIO_NET_OK, result)
        }
        Err(refusal) => {
            log::debug!("control command refused: {refusal}; it begins {start:x?}");
            (VIRTIO_NET_ERR, Reply::new())
        }
    };
    let Some(queue) = device.sound(index) else {
        return;
    };
    if let Some(liar) = &mut queue.dma.liar {
        let silent = liar.keeps_silent();
        queue.counters.lies = liar.counts;
        if silent {
            return;
        }
    }
    // What there is no room for is not told; the driver sees it by the length.
    let room = (queue.dma.writable.len() - 1).min(result.len() as u64) as usize;
    let mut cursor = queue.dma.writable.cursor();
    cursor.write(&[ack as u8]);
    cursor.write(&result[..room]);
    queue.ring.ring_mut().complete(chain, 1 + room as u32);
}

/// Does one command.
///
/// # Errors
/// The command is answered with an error, and all is as it was.
pub fn execute(context: &mut Context<'_>, command: &[u8]) -> Result<Reply, Refusal> {
    let (&[class, command], data) = command.split_first_chunk::<2>().ok_or(Refusal::Malformed)?;
    let command = u32::from(command);
    match u32::from(class) {
        VIRTIO_NET_CTRL_RX => filter::receive_mode(context, command, data),
        VIRTIO_NET_CTRL_MAC => filter::address(context, command, data),
        VIRTIO_NET_CTRL_MQ => mq::execute(context, command, data),
        VIRTIO_NET_CTRL_VLAN => filter::vlan(context, command, data),
        VIRTIO_NET_CTRL_ANNOUNCE => announce::execute(context, command, data),
        VIRTIO_NET_CTRL_GUEST_OFFLOADS => offloads::execute(context, command, data),
        VIRTIO_NET_CTRL_NOTF_COAL => coalesce::execute(context, command, data),
        hash_tunnel::CLASS => hash_tunnel::execute(context, command, data),
        VIRTIO_NET_CTRL_STATS => stats::execute(context, command, data),
        _ => Err(Refusal::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nic_model::filter::MacAddress;
    use nic_model::port::PortConfig;

    pub(super) fn execute_on(
        port: &mut Port,
        queues: &mut Queues,
        features: Features,
        command: &[u8],
    ) -> Result<Reply, Refusal> {
        let mut device = VirtioNet::new(port.queue_pairs(), Features::supported(1));
        device.set_features(features).unwrap();
        let mut pairs = Local {
            queues,
            device: &device,
            now: Nanos::ZERO,
        };
        let mut context = Context {
            device: &device,
            port,
            pairs: &mut pairs,
            commands: ControlCounters::default(),
        };
        super::execute(&mut context, command)
    }

    /// The queues of `port`.
    fn queues(port: &Port) -> Queues {
        Queues::new(&PortConfig {
            queue_pairs: port.queue_pairs(),
            ..PortConfig::default()
        })
    }

    pub(super) fn execute(
        port: &mut Port,
        features: Features,
        command: &[u8],
    ) -> Result<Reply, Refusal> {
        let mut queues = queues(port);
        execute_on(port, &mut queues, features, command)
    }

    pub(super) fn refused(port: &mut Port, features: Features, command: &[u8]) -> Refusal {
        let mut queues = queues(port);
        let before = format!("{port:?} {:?}", queues.moderator);
        let refusal = execute_on(port, &mut queues, features, command).unwrap_err();
        let after = format!("{port:?} {:?}", queues.moderator);
        assert_eq!(after, before, "{command:?} changed something");
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
        assert_eq!(port.filter.address(), MacAddress([2, 0, 0, 0, 0, 9]));
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
        for unknown in [&[0, 9, 1][..], &[1, 9], &[99, 0], &[6, 4]] {
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
