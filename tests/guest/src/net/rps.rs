//! Receive packet steering and receive flow steering (Linux: `net/core/dev.c`, `get_rps_cpu`; `include/net/rps.h`): which CPU a packet goes up on.
//!
//! In: packets that the driver brought, by the hash of their flow. Out: the same in the backlog of a CPU: of those that the
//! administrator gave the receive queue (RPS) the one that the hash says, or the one where the flow's socket was last read or written
//! to (RFS). A flow changes CPUs only when all its packets on the old one have gone up, so that it keeps its order. The other CPU
//! hears of it by an interrupt from this one.

use super::flow_dissector::skb_get_rx_hash;
use super::napi::BACKLOG;
use super::netdevice::Ifindex;
use super::skbuff::{SkBuff, Skb};
use super::sock::Sock;
use super::softirq::NET_RX_SOFTIRQ;
use super::xps::reciprocal_scale;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// No CPU yet (`RPS_NO_CPU`).
const RPS_NO_CPU: usize = usize::MAX;

/// Where a flow of a receive queue goes at present (`struct rps_dev_flow`).
#[derive(Debug, Clone, Copy)]
struct RpsDevFlow {
    cpu: usize,
    /// What that CPU's backlog had got in all when the flow's last packet had been added.
    last_qtail: u64,
}

/// A receive queue (`struct netdev_rx_queue`).
#[derive(Debug, Default)]
struct NetdevRxQueue {
    /// The CPUs that its packets are spread over.
    rps_map: Vec<usize>,
    /// By hash; as long as a power of 2, or empty.
    rps_flow_table: Vec<RpsDevFlow>,
}

/// What is set up.
#[derive(Debug, Default)]
pub(super) struct Rps {
    rx: Vec<NetdevRxQueue>,
    /// The CPU that each flow's socket was last used on, in the low bits, and the rest of the hash (`rps_sock_flow_table`); as
    /// long as a power of 2, or empty.
    sock_flow_table: Vec<u32>,
    /// Bits of the table's entries that are a CPU.
    cpu_mask: u32,
    /// Packets have to be looked at (`rps_needed`).
    pub needed: bool,
    /// Sockets have to tell where they are used (`rfs_needed`).
    pub rfs_needed: bool,
}

/// An entry of a table whose length is a power of 2.
fn slot(hash: u32, len: usize) -> usize {
    hash as usize & (len - 1)
}

impl Sock {
    /// A connected socket's flow, from a packet of it.
    #[cold]
    pub(super) fn sock_rps_save_rxhash(&mut self, skb: &SkBuff) {
        if self.inet_daddr != 0 {
            self.sk_rxhash = skb_get_rx_hash(skb);
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    fn rx_queue(&mut self, queue: usize) -> Result<&mut NetdevRxQueue, Errno> {
        let queues = self.dev.rq.len();
        self.rps.rx.resize_with(queues, NetdevRxQueue::default);
        self.rps.rx.get_mut(queue).ok_or(Errno::ENOENT)
    }

    /// Spreads a receive queue's packets over `cpus`; none is not at all
    /// (`/sys/class/net/DEV/queues/rx-QUEUE/rps_cpus`).
    ///
    /// # Errors
    /// ENOENT: there is no such queue; EINVAL: there is no such CPU.
    pub fn set_rps_cpus(&mut self, queue: usize, cpus: &[usize]) -> Result<(), Errno> {
        if cpus.iter().any(|&cpu| cpu >= self.softnet.len()) {
            return Err(Errno::EINVAL);
        }
        self.rx_queue(queue)?.rps_map = cpus.to_vec();
        self.rps_changed();
        Ok(())
    }

    /// Has a receive queue keep where so many flows go, rounded up to a power of 2; 0 ends it
    /// (`/sys/class/net/DEV/queues/rx-QUEUE/rps_flow_cnt`).
    ///
    /// # Errors
    /// ENOENT: there is no such queue; EINVAL beyond 2^16.
    pub fn set_rps_flow_cnt(&mut self, queue: usize, count: usize) -> Result<(), Errno> {
        let none = RpsDevFlow {
            cpu: RPS_NO_CPU,
            last_qtail: 0,
        };
        let table = vec![none; table_len(count)?];
        self.rx_queue(queue)?.rps_flow_table = table;
        self.rps_changed();
        Ok(())
    }

    /// Has the kernel keep where the sockets of so many flows are used, rounded up to a power of 2; 0 ends it
    /// (`net.core.rps_sock_flow_entries`).
    ///
    /// # Errors
    /// EINVAL beyond 2^16.
    pub fn set_rps_sock_flow_entries(&mut self, count: usize) -> Result<(), Errno> {
        // No CPU: all bits are set.
        self.rps.sock_flow_table = vec![u32::MAX; table_len(count)?];
        self.rps_changed();
        Ok(())
    }

    fn rps_changed(&mut self) {
        let rps = &mut self.rps;
        // One more than there are, so that no CPU is none of them.
        rps.cpu_mask = (self.softnet.len() + 1).next_power_of_two() as u32 - 1;
        rps.rfs_needed = !rps.sock_flow_table.is_empty();
        let set_up = |rx: &NetdevRxQueue| !rx.rps_map.is_empty() || !rx.rps_flow_table.is_empty();
        rps.needed = rps.rx.iter().any(set_up);
    }

    /// Takes packets that go up on other CPUs, or by this one's backlog, out of a list.
    #[cold]
    pub(super) fn rps_steer_list(&mut self, list: &mut Vec<Skb>) {
        super::each(list, |mut skb| {
            let Some((cpu, flow)) = self.get_rps_cpu(&mut skb) else {
                return Some(skb);
            };
            self.enqueue_to_backlog_of_flow(skb, cpu, flow);
            None
        });
    }

    /// To a CPU's backlog; whether there was room for it.
    pub(super) fn enqueue_to_backlog_of_flow(
        &mut self,
        skb: Skb,
        cpu: usize,
        flow: Option<(usize, usize)>,
    ) -> bool {
        let room = self.enqueue_to_backlog(skb, cpu);
        if let Some((queue, at)) = flow {
            self.rps.rx[queue].rps_flow_table[at].last_qtail = self.softnet[cpu].input_queue_tail;
        }
        room
    }

    /// The CPU that a packet goes up on, and its flow: queue and entry of its table; `None` where nothing is set up for it.
    pub(super) fn get_rps_cpu(
        &mut self,
        skb: &mut SkBuff,
    ) -> Option<(usize, Option<(usize, usize)>)> {
        let _stage = self.stage("get_rps_cpu");
        if skb.dev != Ifindex::ETH0 {
            return None;
        }
        let queue = usize::from(skb.queue_mapping).saturating_sub(1);
        let rps = &mut self.rps;
        let rx = rps.rx.get_mut(queue)?;
        if rx.rps_map.is_empty() && rx.rps_flow_table.is_empty() {
            return None;
        }
        skb.reset_network_header();
        let hash = skb_get_rx_hash(skb);
        if hash == 0 {
            return None;
        }
        if !rx.rps_flow_table.is_empty() && !rps.sock_flow_table.is_empty() {
            let entry = rps.sock_flow_table[slot(hash, rps.sock_flow_table.len())];
            // Another flow may have the entry.
            if (entry ^ hash) & !rps.cpu_mask == 0 {
                let next_cpu = (entry & rps.cpu_mask) as usize;
                let at = slot(hash, rx.rps_flow_table.len());
                let flow = &mut rx.rps_flow_table[at];
                let head = |cpu: usize| self.softnet.get(cpu).map(|sd| sd.input_queue_head);
                let gone = head(flow.cpu).is_none_or(|head| head >= flow.last_qtail);
                if flow.cpu != next_cpu && gone {
                    // `set_rps_cpu`
                    flow.cpu = next_cpu;
                    flow.last_qtail = head(next_cpu).unwrap_or(0);
                }
                if flow.cpu < self.softnet.len() {
                    let cpu = flow.cpu;
                    self.changed("cpu", || format!("{cpu}, where its socket is used"));
                    return Some((cpu, Some((queue, at))));
                }
            }
        }
        if rx.rps_map.is_empty() {
            return None;
        }
        let cpu = rx.rps_map[reciprocal_scale(hash, rx.rps_map.len())];
        self.changed("cpu", || format!("{cpu}, by its hash"));
        Some((cpu, None))
    }

    /// A process uses a socket on this CPU: its packets had better go up here (`sock_rps_record_flow`).
    #[cold]
    pub(super) fn sock_rps_record_flow(&mut self, at: usize) {
        let hash = self.socks.get(at).map_or(0, |sk| sk.sk_rxhash);
        if hash != 0 {
            let rps = &mut self.rps;
            let at = slot(hash, rps.sock_flow_table.len());
            rps.sock_flow_table[at] = hash & !rps.cpu_mask | self.cpu as u32;
        }
    }

    /// Has a CPU's backlog polled where packets have come into it: this one's at once, another's by an interrupt when
    /// this one's polls are done (`napi_schedule_rps`).
    pub(super) fn napi_schedule_rps(&mut self, cpu: usize) {
        if cpu == self.cpu {
            return self.sd().napi_schedule(BACKLOG);
        }
        let sd = self.sd();
        sd.rps_ipi_list.push(cpu);
        if !sd.in_net_rx_action {
            sd.raise_softirq(NET_RX_SOFTIRQ);
        }
    }

    /// Interrupts the CPUs whose backlogs got packets.
    #[inline]
    pub(super) fn net_rps_action(&mut self) {
        while let Some(cpu) = self.sd().rps_ipi_list.pop() {
            let _stage = self.stage("net_rps_send_ipi");
            self.softnet[cpu].rps_ipi_pending = true;
        }
    }

    /// Another CPU's interrupt; whether there was one.
    #[inline]
    pub(super) fn rps_trigger_softirq(&mut self) -> bool {
        let pending = std::mem::take(&mut self.sd().rps_ipi_pending);
        if pending {
            let _stage = self.stage("rps_trigger_softirq");
            let sd = self.sd();
            sd.stats.received_rps += 1;
            sd.napi_schedule(BACKLOG);
        }
        pending
    }
}

/// Entries of a table for `count` flows.
fn table_len(count: usize) -> Result<usize, Errno> {
    match count {
        0 => Ok(0),
        1..=0x1_0000 => Ok(count.next_power_of_two()),
        _ => Err(Errno::EINVAL),
    }
}
