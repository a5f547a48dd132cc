//! The kernel: from a NIC's interrupt to a socket and back, as Linux 6.12 does it.
//!
//! A [`Kernel`] owns a driven device ([`VirtnetInfo`]), one `softnet_data` per CPU and the stacks of IPv4 and
//! IPv6. Nothing runs by itself: [`Kernel::step`] does what is pending, socket calls do what a
//! process would have the kernel do, and the [`Machine`] says what time it is and is told what work
//! costs. So the same kernel runs in real time behind a vhost-user socket and in virtual time
//! beside a modelled NIC. Functions have the names of their Linux namesakes.
//!
//! ```text
//! interrupt -> vring_interrupt -> skb_recv_done -> napi_schedule        softirq, virtio_net::napi
//! net_rx_action -> __napi_poll -> virtnet_poll -> napi_gro_receive      napi, virtio_net::napi, gro
//! netif_receive_skb_list_internal -> __netif_receive_skb_core           dev
//!   -> get_rps_cpu -> enqueue_to_backlog                                rps, backlog
//!   (netif_rx -> enqueue_to_backlog -> process_backlog comes here, too) backlog
//!   -> packet_rcv, vlan_do_receive, br_handle_frame                     af_packet, vlan, bridge
//!   -> arp_rcv                                                          arp, neighbour
//!   -> ipv6_list_rcv -> ip6_rcv_core -> ipv6_parse_hopopts              ip6_input, exthdrs
//!        -> ip6_rcv_finish -> ip6_input -> ip6_protocol_deliver_rcu     ip6_route, ip6_input
//!        -> ipv6_destopt_rcv, ipv6_rthdr_rcv, ipv6_frag_rcv             exthdrs, reassembly
//!        -> udpv6_rcv; icmpv6_rcv -> ndisc_rcv; tcp_v6_rcv              udp6, icmp6, ndisc, tcp_ipv6
//!   -> ip_list_rcv -> ip_rcv_core -> ip_rcv_finish_core                 ip_input, route
//!        -> ip_forward -> ip_output                                     ip_forward, ip_output
//!        -> ip_local_deliver, ip_defrag                                 ip_input, ip_fragment
//!        -> udp_rcv -> __udp4_lib_lookup -> the socket's queue          udp, sock
//!        -> icmp_rcv -> icmp_echo, ping_rcv                             icmp, ping
//!        -> igmp_rcv; raw_local_deliver                                 igmp, raw
//!        -> tcp_v4_rcv -> the connection, a listener, or a reset        tcp_ipv4, tcp_sock
//! recvfrom, sendto, read, write, sendmsg, recvmsg                       af_inet, file
//!   -> udp_sendmsg -> ip_make_skb -> udp_send_skb                       udp, ip_cork
//!      (with more to come: ip_append_data, udp_push_pending_frames)      udp, ip_cork
//!   -> tcp_sendmsg -> __tcp_transmit_skb -> ip_queue_xmit               tcp, tcp_output, ip_output
//!   -> udpv6_sendmsg -> ip6_make_skb -> ip6_output -> ip6_finish_output2 af_inet6, udp6, ip6_output
//!        -> __ip_local_out -> ip_output -> ip_finish_output2            ip_output, netfilter
//!        -> neigh_resolve_output -> __dev_queue_xmit                    neighbour, dev
//!        -> dev_qdisc_enqueue, __qdisc_run                              sch_generic, sch_*
//!        -> sch_direct_xmit -> dev_hard_start_xmit -> start_xmit        sch_generic, virtio_net::napi
//!        -> dev_hard_start_xmit -> loopback_xmit, dummy_xmit, ...       loopback, dummy, vlan
//! ```
//!
//! Each function of the way says in its first line which stage it is ([`trace`]); a machine with a tracer hears of it.
//!
//! The way of a packet has stages, and each has its place:
//!
//! | | Receive | Where |
//! |---|---|---|
//! | 5 | hard-IRQ handler masks its queue and schedules NAPI | `softirq`, `virtio_net::napi` |
//! | 6 | NET_RX_SOFTIRQ, `net_rx_action`, on IRQ exit or in ksoftirqd; a thread, a timer, a reader instead | `softirq`, `napi`, `napi_threaded`, `hrtimer`, `busy_poll` |
//! | 7 | the driver's poll: used descriptors become skbs, the ring is refilled | `virtio_net::napi`, `skbuff`, `page_pool` |
//! | 8 | `napi_gro_receive`: segments of a flow are merged | `gro`, `tcp_offload`, `udp_offload` |
//! | 9 | `netif_receive_skb_list_internal`; RPS, RFS; the backlog | `dev`, `rps`, `backlog` |
//! | 10 | `__netif_receive_skb_core`: taps, VLAN, bridge, protocol dispatch | `dev`, `af_packet`, `vlan`, `bridge` |
//! | 11 | `arp_rcv`, `ndisc_rcv`, neighbour cache | `arp`, `ndisc`, `neighbour` |
//! | 12 | `ip_list_rcv`, hooks, route, `ip_local_deliver`, reassembly, `ip_forward` | `ip_input`, `ip_fragment`, `ip_forward`, `netfilter`, `route`; `ip6_input`, `exthdrs`, `reassembly`, `ip6_route` |
//! | 13 | `inet_protos`: UDP, ICMP, TCP, IGMP; `inet6_protos` | `ip_input`, `icmp`, `tcp_ipv4`, `igmp`, `raw`; `ip6_input`, `icmp6`, `udp6` |
//! | 14 | `__udp4_lib_lookup`, the socket's receive queue; `__inet_lookup_skb`, the connection | `udp`, `port_table`, `sock`, `inet_hashtables` |
//! | 15 | `recvfrom`, `read`, `recvmsg`; errors | `af_inet`, `file`, `tcp`; `ip_recverr` |
//! | 16 | `napi_complete_done`, interrupt on again, the ring checked once more | `virtio_net::napi`, `napi` |
//!
//! (1 to 4 are the NIC's: PHY and MAC, filter, DMA, interrupt.)
//!
//! | | Send | Where |
//! |---|---|---|
//! | 1, 2 | `socket`, `sendto`, `write`, `sendmsg`, `inet_autobind` | `af_inet`, `file` |
//! | 3 | route, `ip_make_skb`, checksum or the device's affair; TCP's segments | `udp`, `ip_cork`, `route`, `fib`, `devinet`, `tcp_output` |
//! | 4 | `ip_output`, hooks; fragmentation, path MTU | `ip_output`, `netfilter`, `fib_nh_exception` |
//! | 5 | neighbour: resolved, or an ARP request and the packet waits | `neighbour`, `neigh_table`, `arp` |
//! | 6, 7 | `__dev_queue_xmit`, choice of a queue, queueing discipline, segments | `dev`, `xps`, `sch_generic`, `sch_api`, `sch_*`, `gso` |
//! | 8 | `dev_hard_start_xmit`, taps, `start_xmit`: descriptors, kick | `dev`, `af_packet`, `virtio_net::napi` |
//! | 9 | ring full, or the device has enough: queue stopped, NET_TX_SOFTIRQ starts it again | `sch_generic`, `dql` |
//! | 11 | completion: transmit NAPI, skb freed, queue woken | `virtio_net::napi` |
//!
//! What all that has come to is shown as Linux's `/proc` does (`procfs`), and `tc -s qdisc` ([`sch_api`]).
//!
//! Devices are in `netdevice`: `eth0` has the driver, the others are software, each in a file of its own.
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
//! IPv4 and IPv6 over Ethernet, with one driven device. Of IPv6 there are no connections, no raw sockets, no sockets of both
//! families, no forwarding, no reports of groups, and nothing that routers advertise. Of groups all sources are taken (no
//! source filters). There is no
//! scheduler: who waits for a
//! socket looks again after each step.

mod addrconf;
mod af_inet;
mod af_inet6;
mod af_packet;
mod arp;
mod backlog;
mod bridge;
mod busy_poll;
pub(crate) mod checksum;
mod codel;
mod dev;
mod devinet;
mod dql;
mod dropreason;
mod dummy;
pub(crate) mod eth;
mod exthdrs;
mod fib;
mod fib_nh_exception;
pub mod file;
mod flow_dissector;
mod gro;
#[cfg(test)]
mod gro_tests;
mod gso;
mod hrtimer;
mod icmp;
mod icmp6;
mod icmp_ratelimit;
mod igmp;
mod inet_ecn;
mod inet_fragment;
mod inet_hashtables;
mod ip6_input;
mod ip6_output;
mod ip6_route;
mod ip_cork;
mod ip_forward;
mod ip_fragment;
mod ip_input;
mod ip_options;
mod ip_output;
mod ip_recverr;
mod ip_sockglue;
mod ipv6;
mod loopback;
mod mib6;
pub(crate) mod napi;
mod napi_threaded;
mod ndisc;
mod neigh_table;
mod neighbour;
pub(crate) mod netdevice;
pub mod netfilter;
pub mod page_pool;
mod ping;
mod ping6;
mod port_table;
mod procfs;
mod raw;
mod reassembly;
mod route;
mod rps;
pub mod sch_api;
mod sch_fq_codel;
mod sch_generic;
mod sch_pfifo_fast;
mod sch_tbf;
pub(crate) mod skbuff;
mod sock;
mod sockopt;
mod softirq;
pub mod stats;
mod sysctl_net_ipv4;
mod sysctl_net_ipv6;
mod tcp;
mod tcp_ipv4;
mod tcp_ipv6;
mod tcp_offload;
mod tcp_output;
mod tcp_sock;
mod tcp_state;
pub mod trace;
pub(crate) mod udp;
mod udp6;
mod udp_offload;
mod vlan;
pub(crate) mod xps;

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

pub use nix::errno::Errno;

pub use self::af_inet::{Fd, Protocol, Received, SockType};
use self::af_packet::PacketSock;
pub use self::af_packet::{Packet, TpacketStats};
use self::dev::PacketType;
pub use self::dql::ByteQueueLimits;
use self::dql::Dql;
use self::fib::Fib;
use self::fib_nh_exception::FnheHash;
use self::file::FilesStruct;
use self::hrtimer::HrtimerBase;
use self::icmp_ratelimit::IcmpLimits;
use self::igmp::Igmp;
use self::inet_fragment::Fqdir;
use self::inet_hashtables::TcpTable;
use self::ip_input::NetProtocol;
pub use self::ip_recverr::{EeOrigin, SockExtendedErr};
pub use self::ip_sockglue::IpPmtudisc;
use self::ip6_input::Inet6Protocol;
use self::ip6_route::Fib6;
use self::napi::NapiStruct;
use self::neigh_table::NeighTable;
pub use self::neigh_table::{NeighParms, NudState};
use self::netdevice::NetDevices;
pub use self::netdevice::{Ifindex, NetDevice, RtnlLinkStats64};
use self::netfilter::NfHooks;
use self::port_table::PortTable;
pub use self::procfs::ProcFile;
use self::rps::Rps;
use self::sch_api::QdiscKind;
use self::sch_generic::{NetdevQueue, Qdisc};
pub use self::skbuff::PktType;
use self::skbuff::{SkBuff, Skb, SkbCache};
use self::sock::SockTable;
use self::softirq::SoftnetData;
use self::stats::{Counters, KernelStats, RxDrop, TxDrop};
pub use self::sysctl_net_ipv4::Ipv4Sysctl;
pub use self::sysctl_net_ipv6::Ipv6Sysctl;
use self::trace::Tracer;
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

    /// Who hears of the stages that packets go through: nobody, unless the machine is [`trace::Traced`].
    #[inline(always)] // a constant, so that nothing is left of the stages' words
    fn tracer(&self) -> Option<&Tracer> {
        None
    }
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

    #[inline(always)] // a constant
    fn tracer(&self) -> Option<&Tracer> {
        (**self).tracer()
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

    #[inline(always)] // a constant
    fn tracer(&self) -> Option<&Tracer> {
        (**self).tracer()
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
    /// The address of `eth0`.
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
    /// The driver's receive queues are polled. Without, its interrupt handler takes all frames there are and has each go up
    /// by the CPU's backlog, as drivers did before NAPI.
    pub rx_napi: bool,
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
    /// Receive buffer of a new TCP socket (`net.ipv4.tcp_rmem`). The largest window that needs no scaling; smoltcp's own
    /// window shrinks by rounding where it is scaled.
    pub tcp_rmem: usize,
    /// Send buffer of a new TCP socket (`net.ipv4.tcp_wmem`).
    pub tcp_wmem: usize,
    /// Longest backlog of a listener (`net.core.somaxconn`).
    pub somaxconn: usize,
    /// Packets that a queueing discipline holds by itself (`txqueuelen`).
    pub tx_queue_len: usize,
    /// The discipline of each transmit queue (`net.core.default_qdisc`).
    pub default_qdisc: QdiscKind,
    /// The device has no more bytes to send than keep it busy (`CONFIG_BQL`): Linux's virtio-net has such limits since
    /// 6.11. Without them its ring takes all that there is room for.
    pub bql: bool,
    /// Packets that wait for one neighbour (`unres_qlen`).
    pub unres_qlen: usize,
    /// Packets for other hosts are sent on (`net.ipv4.ip_forward`).
    pub ip_forward: bool,
    /// Where ports and sequence numbers of TCP begin. Who boots one kernel after another beside the same peer, with one
    /// address, gives each another: else the peer takes a connection for an earlier one.
    pub random_seed: u64,
    /// Settings of IPv4.
    pub ipv4: Ipv4Sysctl,
    /// Settings of IPv6.
    pub ipv6: Ipv6Sysctl,
    /// Settings of the neighbour caches, IPv4's and IPv6's.
    pub neigh: NeighParms,
    /// Packets that wait in a CPU's backlog (`net.core.netdev_max_backlog`).
    pub netdev_max_backlog: usize,
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
            rx_napi: true,
            napi_weight: 64,
            dev_weight: 64,
            gro_normal_batch: 8,
            rmem_default: 212_992,
            wmem_default: 212_992,
            tcp_rmem: 65_535,
            tcp_wmem: 65_536,
            somaxconn: 4096,
            tx_queue_len: 1000,
            default_qdisc: QdiscKind::PfifoFast,
            bql: true,
            unres_qlen: 101,
            ip_forward: false,
            random_seed: 0,
            ipv4: Ipv4Sysctl::default(),
            ipv6: Ipv6Sysctl::default(),
            neigh: NeighParms::default(),
            netdev_max_backlog: 1000,
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

/// Has each packet of a list go through `pass`, which gives back those that go on.
#[inline]
fn each(list: &mut Vec<Skb>, pass: impl FnMut(Skb) -> Option<Skb>) {
    // The list stays where it is in memory: nothing is allocated.
    *list = std::mem::take(list).into_iter().filter_map(pass).collect();
}

/// A guest's kernel with one driven network device, and others of software.
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
    /// The disciplines of the transmit queues, and what they are under.
    qdiscs: Vec<Qdisc>,
    qdisc_root: QdiscKind,
    hrtimers: HrtimerBase,
    /// Polls that find nothing before a receive queue's interrupt is switched on, and nanoseconds between them.
    napi_defer_hard_irqs: u32,
    gro_flush_timeout: u64,
    pub(crate) xps: XpsMaps,
    rps: Rps,
    pub(crate) skb_cache: SkbCache,
    /// Of which `dev` is one.
    pub(crate) netdevs: NetDevices,
    ptype_base: Vec<PacketType>,
    /// Those who see each frame.
    ptype_all: Vec<PacketSock>,
    /// There are such, or ports of bridges.
    rx_handlers_needed: bool,
    inet_protos: [Option<NetProtocol>; 256],
    fib: Fib,
    fnhe: FnheHash<u32>,
    arp_tbl: NeighTable<u32>,
    inet6_protos: [Option<Inet6Protocol>; 256],
    fib6: Fib6,
    fnhe6: FnheHash<(u128, Option<Ifindex>)>,
    nd_tbl: NeighTable<u128>,
    nf: NfHooks,
    socks: SockTable,
    files: FilesStruct,
    /// A message in several buffers, while it is one. Kept for its memory.
    iov: Vec<u8>,
    udp_table: PortTable<u32>,
    ping_table: PortTable<u32>,
    udp6_table: PortTable<u128>,
    ping6_table: PortTable<u128>,
    tcp: TcpTable,
    /// Some socket has asked for datagrams in one (`udp_encap_needed_key`).
    udp_gro_needed: bool,
    /// Raw sockets.
    raw_table: Vec<usize>,
    /// Next identification of an IP packet (`ip_idents`).
    ip_ident: u16,
    ip6_ident: u32,
    /// Fragments that wait for the rest of their packets.
    frags: Fqdir,
    frags6: Fqdir,
    icmp_limits: IcmpLimits,
    igmp: Igmp,
    counters: Counters,
    /// ICMP messages by type, those that were sent from [`icmp::ICMP_OUT`] on.
    icmpmsg: Vec<u64>,
    /// The same of ICMPv6, from [`icmp6::ICMP6_OUT`] on.
    icmp6msg: Vec<u64>,
    /// Interrupts of each virtqueue that each CPU took, one virtqueue's behind the other's.
    kstat_irqs: Vec<u64>,
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
        let mtu = usize::from(dev.mtu());
        let now = machine.now();
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
                .map(|pair| NetdevQueue::new(&dev.sq[pair], config.bql.then(|| Dql::new(0))))
                .collect(),
            qdiscs: Vec::new(),
            qdisc_root: QdiscKind::default(),
            hrtimers: HrtimerBase::default(),
            napi_defer_hard_irqs: 0,
            gro_flush_timeout: 0,
            xps: XpsMaps::default(),
            rps: Rps::default(),
            skb_cache: SkbCache::default(),
            netdevs: NetDevices::new(&dev),
            ptype_base: Vec::new(),
            ptype_all: Vec::new(),
            rx_handlers_needed: false,
            inet_protos: [None; 256],
            fib: Fib::default(),
            fnhe: FnheHash::default(),
            arp_tbl: NeighTable::new(config.neigh.clone()),
            inet6_protos: [None; 256],
            fib6: Fib6::default(),
            fnhe6: FnheHash::default(),
            nd_tbl: NeighTable::new(config.neigh.clone()),
            nf: NfHooks::default(),
            socks: SockTable::default(),
            files: FilesStruct::default(),
            iov: Vec::new(),
            udp_table: PortTable::default(),
            ping_table: PortTable::default(),
            udp6_table: PortTable::default(),
            ping6_table: PortTable::default(),
            tcp: TcpTable::new(mtu, config.random_seed, now),
            udp_gro_needed: false,
            raw_table: Vec::new(),
            ip_ident: 0,
            ip6_ident: 0,
            frags: Fqdir::default(),
            frags6: Fqdir::default(),
            icmp_limits: IcmpLimits::default(),
            igmp: Igmp::default(),
            counters: Counters::default(),
            icmpmsg: vec![0; 2 * icmp::ICMP_OUT],
            icmp6msg: vec![0; 2 * icmp6::ICMP6_OUT],
            kstat_irqs: vec![0; 2 * pairs * cpus],
            work: false,
            fault: None,
            dev,
            machine,
            config,
        };
        kernel.inet_init();
        kernel.attach_default_qdiscs();
        kernel.inet_config();
        kernel.inet6_config();
        kernel.virtnet_set_affinity();
        kernel.virtnet_open();
        kernel.dev_set_rx_mode(Ifindex::ETH0);
        kernel.virtnet_config_changed_work();
        kernel
    }

    /// Does all that is pending at this instant: hard interrupts, the soft interrupts that follow
    /// them, one run of ksoftirqd and of each NAPI thread, and what the driver left to a worker. Whether there was anything: `false` means that the CPU is idle
    /// until an interrupt comes or [`Self::next_timer`] is due: [`Self::wait`].
    ///
    /// # Errors
    /// A ring is broken; its queue is dead, all others go on.
    pub fn step(&mut self) -> Result<bool, RingFault> {
        let mut any = false;
        for cpu in 0..self.softnet.len() {
            self.cpu = cpu;
            let irqs = self.do_irqs() | self.rps_trigger_softirq();
            let timer = cpu == 0 && self.timer_interrupt();
            let hrtimer = self.hrtimer_interrupt();
            if irqs || timer || hrtimer {
                self.irq_exit_rcu();
                any = true;
            }
            any |= self.run_ksoftirqd();
            any |= self.run_napi_threads();
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

    /// When a timer is due next, in the machine's time: neighbours are asked again or grow old, fragments are given up,
    /// groups are reported, connections repeat what was not acknowledged, packets that wait for their time are sent, and
    /// queues whose interrupt is masked are polled.
    #[must_use]
    pub fn next_timer(&self) -> Option<u64> {
        let timers = self.next_jiffies_timer().into_iter();
        timers.chain(self.hrtimers.next()).min()
    }

    /// The same of those that a soft interrupt serves (`struct timer_list`).
    fn next_jiffies_timer(&self) -> Option<u64> {
        let timers = [
            self.arp_tbl.next_timer(),
            self.nd_tbl.next_timer(),
            self.frags.next_timer(),
            self.frags6.next_timer(),
            self.igmp.next_timer(),
            self.tcp.timer,
        ];
        timers.into_iter().flatten().min()
    }

    /// The interface's configuration.
    #[must_use]
    pub fn config(&self) -> &KernelConfig {
        &self.config
    }

    /// All counters.
    #[must_use]
    pub fn stats(&self) -> KernelStats {
        let mut stats = KernelStats::new(
            &self.counters,
            self.napi.iter().map(|napi| napi.stats).collect(),
            self.softnet.iter().map(|sd| sd.stats).collect(),
            self.txq.iter().map(|txq| txq.stats).collect(),
        );
        stats.neigh = self.arp_tbl.stats;
        stats.neigh6 = self.nd_tbl.stats;
        stats
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

    /// Who sent a packet is charged no longer (`skb_orphan`).
    #[inline]
    fn skb_orphan(&mut self, skb: &mut SkBuff) {
        if let Some(sk) = skb.sk.take() {
            self.socks.sock_wfree(sk, skb.truesize);
        }
    }

    /// An skb ends well (`consume_skb`).
    #[inline]
    pub(crate) fn consume_skb(&mut self, mut skb: Skb) {
        self.skb_orphan(&mut skb);
        self.skb_cache.put(skb);
    }

    /// The same for one that was sent, whose buffer is kept for the next.
    #[inline]
    pub(crate) fn napi_consume_skb(&mut self, mut skb: Skb) {
        let _stage = self.stage("napi_consume_skb");
        self.skb_orphan(&mut skb);
        let _stage = self.stage("napi_skb_cache_put");
        self.skb_cache.put(skb);
    }

    /// A received packet ends before its time (`kfree_skb_reason`).
    #[inline]
    fn drop_rx(&mut self, skb: Skb, reason: RxDrop) {
        self.counters.rx_drops[reason as usize] += 1;
        self.changed("dropped", || reason.name().into());
        self.skb_cache.put(skb);
    }

    /// A packet is not sent.
    #[inline]
    pub(crate) fn drop_tx(&mut self, skb: Skb, reason: TxDrop) {
        self.counters.tx_drops[reason as usize] += 1;
        self.changed("dropped", || reason.name().into());
        self.consume_skb(skb);
    }
}
