//! The kernel: from a NIC's interrupt to a socket and back, as Linux 6.12 does it.
//!
//! A [`Kernel`] owns a driven device ([`VirtnetInfo`]), one `softnet_data` per CPU and the IPv4
//! stack. Nothing runs by itself: [`Kernel::step`] does what is pending, socket calls do what a
//! process would have the kernel do, and the [`Machine`] says what time it is and is told what work
//! costs. So the same kernel runs in real time behind a vhost-user socket and in virtual time
//! beside a modelled NIC. Functions have the names of their Linux namesakes.
//!
//! ```text
//! interrupt -> vring_interrupt -> skb_recv_done -> napi_schedule        softirq, virtio_net::napi
//! net_rx_action -> __napi_poll -> virtnet_poll -> napi_gro_receive      napi, virtio_net::napi
//! netif_receive_skb_list -> __netif_receive_skb_core                    dev
//!   -> arp_rcv                                                          arp, neighbour
//!   -> ip_rcv -> ip_route_input_noref -> ip_local_deliver               ip_input, route
//!        -> udp_rcv -> __udp4_lib_lookup -> the socket's queue          udp, sock
//!        -> icmp_rcv -> icmp_echo, ping_rcv                             icmp, ping
//! recvfrom, sendto                                                      af_inet
//!   -> udp_sendmsg -> ip_make_skb -> ip_output -> ip_finish_output2     udp, ip_output
//!        -> neigh_resolve_output -> dev_queue_xmit                      neighbour, dev
//!        -> sch_direct_xmit -> start_xmit                               sch_generic, virtio_net::napi
//! ```
//!
//! The way of a packet has stages, and each has its place; those that are not here yet have one, too:
//!
//! | | Receive | Where |
//! |---|---|---|
//! | 5 | hard-IRQ handler masks its queue and schedules NAPI | `softirq`, `virtio_net::napi` |
//! | 6 | NET_RX_SOFTIRQ, `net_rx_action`, on IRQ exit or in ksoftirqd | `softirq`, `napi` |
//! | 7 | the driver's poll: used descriptors become skbs, the ring is refilled | `virtio_net::napi`, `skbuff` |
//! | 8 | `napi_gro_receive`, merging later | `napi` |
//! | 9 | `netif_receive_skb`, RPS and the backlog later | `dev` |
//! | 10 | `__netif_receive_skb_core`: protocol dispatch; taps, VLAN, bridge later | `dev` |
//! | 11 | `arp_rcv`, neighbour cache | `arp`, `neighbour` |
//! | 12 | `ip_rcv`, route, `ip_local_deliver`; hooks, reassembly, forwarding later | `ip_input`, `route` |
//! | 13 | `inet_protos`: UDP, ICMP; TCP, IGMP later | `ip_input`, `icmp` |
//! | 14 | `__udp4_lib_lookup`, the socket's receive queue | `udp`, `sock` |
//! | 15 | `recvfrom` | `af_inet` |
//! | 16 | `napi_complete_done`, interrupt on again, the ring checked once more | `virtio_net::napi`, `napi` |
//!
//! (1 to 4 are the NIC's: PHY and MAC, filter, DMA, interrupt.)
//!
//! | | Send | Where |
//! |---|---|---|
//! | 1, 2 | `socket`, `sendto`, `inet_autobind` | `af_inet` |
//! | 3 | route, `ip_make_skb`, checksum or the device's affair | `udp`, `route` |
//! | 4 | `ip_output`; hooks, fragmentation later | `ip_output` |
//! | 5 | neighbour: resolved, or an ARP request and the packet waits | `neighbour`, `arp` |
//! | 6, 7 | `dev_queue_xmit`, choice of a queue, queueing discipline; GSO later | `dev`, `xps`, `sch_generic` |
//! | 8 | `start_xmit`: descriptors, kick | `virtio_net::napi` |
//! | 9 | ring full: queue stopped, NET_TX_SOFTIRQ starts it again | `sch_generic` |
//! | 11 | completion: transmit NAPI, skb freed, queue woken | `virtio_net::napi` |
//!
//! Where an skb ends, it is counted once ([`KernelStats`]). No packet costs an allocation once the
//! caches are filled, or a lock, or a virtual call.
//!
//! # Time
//!
//! Work takes no time but what [`CpuCost`] says. While the CPU is busy, interrupts come in as on a
//! real machine: after each piece of work, those that are pending run, once each, before the next.
//! Hard interrupts do not nest. The CPUs take turns within a step, so costs of several CPUs add up.
//!
//! # Limits
//!
//! Where Linux has a chain of small functions for one thing, one of them may stand here for all.
//! IPv4 over one Ethernet device; no forwarding, fragments, VLAN, GRO or GSO, TCP, loopback,
//! multicast or byte queue limits. Neighbours do not age. There is no scheduler: who waits for a
//! socket looks again after each step.

mod af_inet;
mod arp;
pub(crate) mod checksum;
mod dev;
pub(crate) mod eth;
mod gso;
mod icmp;
mod ip_input;
mod ip_output;
pub(crate) mod napi;
mod neighbour;
mod ping;
mod route;
mod sch_generic;
pub(crate) mod skbuff;
mod sock;
mod softirq;
pub mod stats;
pub(crate) mod udp;
pub(crate) mod xps;

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

pub use nix::errno::Errno;

pub use self::af_inet::{Fd, Protocol, Received, SockType};
use self::dev::PacketType;
use self::ip_input::NetProtocol;
use self::napi::NapiStruct;
use self::neighbour::NeighTable;
use self::route::Fib;
use self::sch_generic::NetdevQueue;
use self::skbuff::{Skb, SkbCache};
use self::sock::{PortTable, SockTable};
use self::softirq::SoftnetData;
use self::stats::{Counters, KernelStats, RxDrop, TxDrop};
use self::xps::XpsMaps;
use crate::ring::RingFault;
use crate::transport::{Transport, TransportError};
use crate::virtio_net::{VirtnetInfo, features};

/// The computer that the kernel runs on: what time it is and what work costs.
pub trait Machine {
    /// Nanoseconds since the machine's epoch.
    fn now(&self) -> u64;

    /// The CPU is busy for `ns`, never 0: in virtual time the world (NIC, wire) moves on meanwhile;
    /// in real time there is nothing to do, the work itself took its time.
    fn spend(&self, ns: u64);
}

impl<M: Machine + ?Sized> Machine for &M {
    #[inline]
    fn now(&self) -> u64 {
        (**self).now()
    }

    #[inline]
    fn spend(&self, ns: u64) {
        (**self).spend(ns);
    }
}

impl<M: Machine + ?Sized> Machine for Rc<M> {
    #[inline]
    fn now(&self) -> u64 {
        (**self).now()
    }

    #[inline]
    fn spend(&self, ns: u64) {
        (**self).spend(ns);
    }
}

/// What work costs. Zero is not spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuCost {
    /// Each hard interrupt.
    pub irq: Duration,
    /// Each call of a receive NAPI's poll function.
    pub poll: Duration,
    /// Each received packet, from the ring to the socket.
    pub packet: Duration,
}

/// How the kernel is set up; the defaults are Linux's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelConfig {
    /// The interface's address.
    pub addr: Ipv4Addr,
    /// Bits of it that name the network.
    pub prefix_len: u8,
    /// Where packets for other networks go.
    pub gateway: Option<Ipv4Addr>,
    /// What work costs.
    pub cost: CpuCost,
    /// CPUs; the queue pairs in use are dealt out to them (`virtnet_set_affinity`).
    pub cpus: usize,
    /// Packets of one `net_rx_action`.
    pub netdev_budget: usize,
    /// Microseconds of one `net_rx_action`, in whole jiffies of 4 ms: 2.
    pub netdev_budget_usecs: u64,
    /// Packets of one poll, at least 1 (`NAPI_POLL_WEIGHT`).
    pub napi_weight: usize,
    /// Packets of one run of a queueing discipline, at least 1 (`net.core.dev_weight`).
    pub dev_weight: usize,
    /// Packets that a poll gathers before they go up together.
    pub gro_normal_batch: usize,
    /// Receive buffer of a new socket (`net.core.rmem_default`).
    pub rmem_default: usize,
    /// Send buffer of a new socket (`net.core.wmem_default`).
    pub wmem_default: usize,
    /// Packets that a queueing discipline holds (`txqueuelen`).
    pub tx_queue_len: usize,
    /// Packets that wait for one neighbour (`unres_qlen`).
    pub unres_qlen: usize,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            addr: Ipv4Addr::new(10, 77, 0, 2),
            prefix_len: 24,
            gateway: None,
            cost: CpuCost::default(),
            cpus: 1,
            netdev_budget: 300,
            netdev_budget_usecs: 8000,
            napi_weight: 64,
            dev_weight: 64,
            gro_normal_batch: 8,
            rmem_default: 212_992,
            wmem_default: 212_992,
            tx_queue_len: 1000,
            unres_qlen: 101,
        }
    }
}

/// Features of a device that this kernel has a use for.
pub const DEVICE_FEATURES: u64 = features::USUAL & !features::SEGMENTATION;

/// [`CpuCost`] in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Costs {
    pub irq: u64,
    pub poll: u64,
    pub packet: u64,
}

/// A guest's kernel with one network device.
pub struct Kernel<T: Transport, M: Machine> {
    /// The device.
    pub dev: VirtnetInfo<T>,
    /// The computer.
    pub machine: M,
    pub(crate) config: KernelConfig,
    pub(crate) costs: Costs,
    pub(crate) softnet: Vec<SoftnetData>,
    /// The CPU that runs now (`smp_processor_id`).
    pub(crate) cpu: usize,
    /// The CPU that processes run on.
    task_cpu: usize,
    /// By virtqueue number.
    pub(crate) napi: Vec<NapiStruct>,
    /// By queue pair.
    pub(crate) txq: Vec<NetdevQueue>,
    pub(crate) xps: XpsMaps,
    pub(crate) skb_cache: SkbCache,
    pub(crate) dev_addr: [u8; 6],
    /// The device takes datagrams that stand for several (`NETIF_F_GSO_UDP_L4`).
    pub(crate) tx_udp_segmentation: bool,
    ptype_base: Vec<PacketType>,
    inet_protos: [Option<NetProtocol>; 256],
    fib: Fib,
    arp_tbl: NeighTable,
    socks: SockTable,
    udp_table: PortTable,
    ping_table: PortTable,
    /// Next identification of an IP packet (`ip_idents`).
    ip_ident: u16,
    counters: Counters,
    /// Something waits for a worker (`schedule_work`).
    pub(crate) work: bool,
    /// What a device did wrong since the last step ended.
    fault: Option<RingFault>,
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Boots: registers the protocols (`net_dev_init`, `inet_init`) and opens the device, whose
    /// receive queues interrupt from then on (`virtnet_open`).
    pub fn new(dev: VirtnetInfo<T>, machine: M, config: KernelConfig) -> Self {
        let ns = |cost: Duration| u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        let cost = config.cost;
        let pairs = dev.rq.len();
        let cpus = config.cpus.max(1);
        let mut kernel = Self {
            costs: Costs {
                irq: ns(cost.irq),
                poll: ns(cost.poll),
                packet: ns(cost.packet),
            },
            softnet: (0..cpus).map(|_| SoftnetData::default()).collect(),
            cpu: 0,
            task_cpu: 0,
            napi: (0..2 * pairs)
                .map(|vq| NapiStruct::new(vq / 2 % cpus, config.napi_weight))
                .collect(),
            txq: (0..pairs)
                .map(|pair| NetdevQueue::new(&dev.sq[pair], config.tx_queue_len))
                .collect(),
            xps: XpsMaps::default(),
            skb_cache: SkbCache::default(),
            dev_addr: dev.mac(),
            tx_udp_segmentation: dev.features() & features::HOST_USO != 0,
            ptype_base: Vec::new(),
            inet_protos: [None; 256],
            fib: Fib::new(&config),
            arp_tbl: NeighTable::default(),
            socks: SockTable::default(),
            udp_table: PortTable::default(),
            ping_table: PortTable::default(),
            ip_ident: 0,
            counters: Counters::default(),
            work: false,
            fault: None,
            dev,
            machine,
            config,
        };
        kernel.inet_init();
        kernel.virtnet_set_affinity();
        kernel.virtnet_open();
        kernel.virtnet_config_changed_work();
        kernel
    }

    /// Does all that is pending at this instant: hard interrupts, the soft interrupts that follow
    /// them, one run of ksoftirqd, and what the driver left to a worker. Whether there was anything: `false` means that the CPU is idle
    /// until an interrupt comes or [`Self::next_timer`] is due: [`Self::wait`].
    ///
    /// # Errors
    /// A ring is broken; its queue is dead, all others go on.
    pub fn step(&mut self) -> Result<bool, RingFault> {
        let mut any = false;
        for cpu in 0..self.softnet.len() {
            self.cpu = cpu;
            let irqs = self.do_irqs();
            let timer = cpu == 0 && self.timer_interrupt();
            if irqs || timer {
                self.irq_exit();
                any = true;
            }
            any |= self.run_ksoftirqd();
        }
        self.cpu = self.task_cpu;
        any |= self.process_work();
        self.fault.take().map_or(Ok(any), Err)
    }

    /// The CPU sleeps until an interrupt comes, at most `timeout`. A change of config space is read
    /// meanwhile and seen to (`virtnet_config_changed_work`), so that nothing but interrupts is left to
    /// wake it.
    ///
    /// # Errors
    /// The device has gone, or its config space cannot be read any more.
    pub fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        let dev = &mut self.dev;
        if !dev.transport.wait(timeout) {
            return Ok(());
        }
        if dev.transport.is_gone() {
            return Err(TransportError::gone("waiting", "it closed the connection"));
        }
        if dev.take_other_events()? {
            self.virtnet_config_changed_work();
        }
        Ok(())
    }

    /// Has processes run on `cpu` from now on (`sched_setaffinity`): socket calls are made there.
    ///
    /// # Errors
    /// `EINVAL`: there is no such CPU.
    pub fn sched_setaffinity(&mut self, cpu: usize) -> Result<(), Errno> {
        if cpu >= self.softnet.len() {
            return Err(Errno::EINVAL);
        }
        (self.task_cpu, self.cpu) = (cpu, cpu);
        Ok(())
    }

    /// When a timer is due next, in the machine's time: neighbours that do not answer are asked again.
    #[must_use]
    pub fn next_timer(&self) -> Option<u64> {
        self.arp_tbl.next_timer()
    }

    /// The interface's configuration.
    #[must_use]
    pub fn config(&self) -> &KernelConfig {
        &self.config
    }

    /// All counters.
    #[must_use]
    pub fn stats(&self) -> KernelStats {
        KernelStats::new(
            &self.counters,
            self.napi.iter().map(|napi| napi.stats).collect(),
            self.softnet.iter().map(|sd| sd.stats).collect(),
            self.txq.iter().map(|txq| txq.stats).collect(),
        )
    }

    /// The CPU is busy for `ns`; interrupts that come meanwhile are taken.
    #[inline]
    pub(crate) fn spend(&mut self, ns: u64) {
        if ns > 0 {
            self.machine.spend(ns);
            self.do_irqs();
        }
    }

    /// Keeps what a ring did wrong for the end of the step; to whoever asked, the ring is empty.
    #[inline]
    pub(crate) fn note_fault<R>(&mut self, result: Result<R, RingFault>) -> Option<R> {
        result.map_err(|fault| self.fault = Some(fault)).ok()
    }

    /// An skb ends well (`consume_skb`): who sent it is charged no longer.
    #[inline]
    pub(crate) fn consume_skb(&mut self, mut skb: Skb) {
        if let Some(sk) = skb.sk.take() {
            self.socks.sock_wfree(sk, skb.truesize);
        }
        self.skb_cache.put(skb);
    }

    /// A received packet ends before its time (`kfree_skb_reason`).
    #[inline]
    fn drop_rx(&mut self, skb: Skb, reason: RxDrop) {
        self.counters.rx_drops[reason as usize] += 1;
        self.skb_cache.put(skb);
    }

    /// A packet is not sent.
    #[inline]
    pub(crate) fn drop_tx(&mut self, skb: Skb, reason: TxDrop) {
        self.counters.tx_drops[reason as usize] += 1;
        self.consume_skb(skb);
    }
}
