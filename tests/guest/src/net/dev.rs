//! The device-independent layer (Linux: `net/core/dev.c`).
//!
//! Receive: packets from NAPI in lists, dispatched by Ethertype; those of no registered type are dropped and
//! counted. Send: packets with their Ethernet header, to the queueing discipline of the transmit
//! queue that belongs to this CPU; what it has no room for is dropped there. What leaves the discipline is
//! taken apart if the device cannot do that, and goes to the driver. Devices of software have no discipline. Dropped
//! and counted: packets that would go through too many of them.

use std::collections::VecDeque;

use super::checksum::{CSUM_MANGLED_0, csum_fold, csum_partial};
use super::eth::{ETH_P_ARP, ETH_P_IP, ETH_P_IPV6};
use super::gso::skb_gso_segment;
use super::ip_input::NetProtocol;
use super::ip6_input::Inet6Protocol;
use super::netdevice::{NETIF_F_GSO_UDP_L4, NETIF_F_HW_CSUM, NetDeviceOps};
use super::skbuff::{IpSummed, SkBuff, Skb};
use super::stats::{RxDrop, TxDrop};
use super::vlan::{eth_type_vlan, vlan_push_inside};
use super::{Kernel, Machine};
use crate::transport::Transport;

/// How many devices without a queueing discipline may send by one another, beside the first.
const XMIT_RECURSION_LIMIT: u8 = 8;

/// A protocol above the device (`struct packet_type`). The handler is a name, not a pointer, so that
/// the call can be inlined.
#[derive(Debug, Clone, Copy)]
pub(super) struct PacketType {
    /// Ethertype.
    pub protocol: u16,
    pub func: PacketHandler,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "functions of that name")]
pub(super) enum PacketHandler {
    IpRcv,
    ArpRcv,
    Ipv6Rcv,
}

/// `ip_packet_type`, `arp_packet_type` and `ipv6_packet_type`.
const PACKET_TYPES: [PacketType; 3] = [
    PacketType {
        protocol: ETH_P_IP,
        func: PacketHandler::IpRcv,
    },
    PacketType {
        protocol: ETH_P_ARP,
        func: PacketHandler::ArpRcv,
    },
    PacketType {
        protocol: ETH_P_IPV6,
        func: PacketHandler::Ipv6Rcv,
    },
];

/// Finishes the checksum of a packet, whichever layer has it; whether it is one.
#[cold]
pub(super) fn skb_checksum_help(skb: &mut SkBuff) -> bool {
    let (start, at) = (
        skb.csum_start.checked_sub(skb.headroom()),
        usize::from(skb.csum_offset),
    );
    let Some(summed) = start.and_then(|start| skb.data_mut().get_mut(start..)) else {
        return false;
    };
    let sum = csum_fold(csum_partial(summed, 0));
    let Some(check) = summed.get_mut(at..at + 2) else {
        return false;
    };
    // Of UDP 0 says that there is none, and to all others the two are the same.
    let sum = if sum == [0, 0] { CSUM_MANGLED_0 } else { sum };
    check.copy_from_slice(&sum);
    skb.ip_summed = IpSummed::None;
    true
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Registers the Internet protocols (`inet_init`, `inet6_init`): the transports by number, then IP, ARP and IPv6
    /// with the device layer.
    pub(super) fn inet_init(&mut self) {
        for protocol in [
            NetProtocol::Icmp,
            NetProtocol::Udp,
            NetProtocol::Tcp,
            NetProtocol::Igmp,
        ] {
            self.inet_add_protocol(protocol);
        }
        for protocol in Inet6Protocol::ALL {
            self.inet6_add_protocol(protocol);
        }
        for packet_type in PACKET_TYPES {
            self.dev_add_pack(packet_type);
        }
    }

    fn dev_add_pack(&mut self, packet_type: PacketType) {
        self.ptype_base.push(packet_type);
    }

    /// Packets of one batch, in order. Nothing is left in the list.
    pub(super) fn netif_receive_skb_list_internal(&mut self, list: &mut Vec<Skb>) {
        let _stage = self.stage("netif_receive_skb_list_internal");
        if self.rps.needed {
            self.rps_steer_list(list);
        }
        self.sd().stats.processed += list.len() as u64;
        self.__netif_receive_skb_list_core(list);
    }

    /// Those of one protocol that follow each other go up together.
    fn __netif_receive_skb_list_core(&mut self, list: &mut Vec<Skb>) {
        let _stage = self.stage("__netif_receive_skb_list_core");
        let mut sublist = std::mem::take(&mut self.sd().ptype_list);
        let mut pt_curr = PacketHandler::IpRcv;
        for skb in list.drain(..) {
            let Some((skb, pt_prev)) = self.__netif_receive_skb_core(skb) else {
                continue;
            };
            if pt_prev != pt_curr {
                self.__netif_receive_skb_list_ptype(&mut sublist, pt_curr);
                pt_curr = pt_prev;
            }
            sublist.push(skb);
        }
        self.__netif_receive_skb_list_ptype(&mut sublist, pt_curr);
        self.sd().ptype_list = sublist;
    }

    /// A packet that came by itself.
    pub(super) fn __netif_receive_skb(&mut self, skb: Skb) {
        let _stage = self.stage("__netif_receive_skb");
        self.sd().stats.processed += 1;
        self.__netif_receive_skb_one_core(skb);
    }

    /// A packet that a device of software has received.
    pub(super) fn netif_receive_skb(&mut self, skb: Skb) {
        let _stage = self.stage("netif_receive_skb");
        self.__netif_receive_skb(skb);
    }

    #[cold]
    fn __netif_receive_skb_one_core(&mut self, skb: Skb) {
        let _stage = self.stage("__netif_receive_skb_one_core");
        match self.__netif_receive_skb_core(skb) {
            Some((skb, PacketHandler::IpRcv)) => self.ip_rcv(skb),
            Some((skb, PacketHandler::ArpRcv)) => self.arp_rcv(skb),
            Some((skb, PacketHandler::Ipv6Rcv)) => self.ipv6_rcv(skb),
            None => {}
        }
    }

    /// A packet and the protocol that it is for.
    #[inline(always)] // for each packet of a list; its other caller is rare
    fn __netif_receive_skb_core(&mut self, mut skb: Skb) -> Option<(Skb, PacketHandler)> {
        let _stage = self.stage("__netif_receive_skb_core");
        skb.reset_network_header();
        let func = match self.packet_handler(skb.protocol) {
            Some(func) if !self.rx_handlers_needed => func,
            _ => {
                skb = self.rx_handlers(skb)?;
                let Some(func) = self.packet_handler(skb.protocol) else {
                    self.netdevs[skb.dev].stats.rx_dropped += 1;
                    self.drop_rx(skb, RxDrop::UnhandledProto);
                    return None;
                };
                func
            }
        };
        self.changed("pt_prev", || format!("{func:?}"));
        Some((skb, func))
    }

    #[inline]
    fn packet_handler(&self, protocol: u16) -> Option<PacketHandler> {
        let mut ptypes = self.ptype_base.iter();
        let handler = ptypes.find(|ptype| ptype.protocol == protocol);
        handler.map(|ptype| ptype.func)
    }

    /// Somebody may have begun or ceased to look at packets of every protocol: those who tap, and bridges.
    pub(super) fn update_rx_handlers(&mut self) {
        let ports = self.net_devices().iter();
        self.rx_handlers_needed =
            !self.ptype_all.is_empty() || ports.into_iter().any(|dev| dev.br_port.is_some());
    }

    /// A packet that is not just for a protocol: tapped, of a VLAN, or of a port of a bridge; given back if it is for
    /// one then.
    #[cold]
    fn rx_handlers(&mut self, mut skb: Skb) -> Option<Skb> {
        let mut tapped = None;
        loop {
            if eth_type_vlan(skb.protocol) {
                skb = self.skb_vlan_untag(skb)?;
            }
            if tapped.replace(skb.dev) != Some(skb.dev) {
                self.deliver_ptype_all(&skb);
            }
            if self.vlan_do_receive(&mut skb) {
                // Another device has received it.
                continue;
            }
            if let Some(br) = self.netdevs[skb.dev].br_port {
                skb = self.br_handle_frame(skb, br)?;
            }
            // What named no VLAN may have another tag behind it.
            let named = self.vlan_not_found(&mut skb);
            if named || !eth_type_vlan(skb.protocol) {
                return Some(skb);
            }
        }
    }

    #[inline]
    fn __netif_receive_skb_list_ptype(&mut self, list: &mut Vec<Skb>, func: PacketHandler) {
        if list.is_empty() {
            return;
        }
        match func {
            PacketHandler::IpRcv => self.ip_list_rcv(list),
            PacketHandler::Ipv6Rcv => self.ipv6_list_rcv(list),
            PacketHandler::ArpRcv => list.drain(..).for_each(|skb| self.arp_rcv(skb)),
        }
    }

    /// Sends a frame by its device: to the queueing discipline of a transmit queue, or at once where there is none.
    pub(super) fn __dev_queue_xmit(&mut self, skb: Skb) {
        let _stage = self.stage("__dev_queue_xmit");
        let queue = self.netdev_core_pick_tx(&skb);
        if self.netdevs[skb.dev].netdev_ops == NetDeviceOps::Virtnet {
            self.__dev_xmit_skb(queue, skb);
        } else {
            self.noqueue_xmit(queue, skb);
        }
        // Soft interrupts stay off while a device sends by another.
        if self.sd().xmit_recursion == 0 {
            self.local_bh_enable();
        }
    }

    /// Sends a frame by a device that has no queueing discipline, since it is always done at once.
    fn noqueue_xmit(&mut self, queue: usize, skb: Skb) {
        let sd = self.sd();
        if sd.xmit_recursion > XMIT_RECURSION_LIMIT {
            self.netdevs[skb.dev].stats.tx_dropped += 1;
            return self.drop_tx(skb, TxDrop::RecursionLimit);
        }
        sd.xmit_recursion += 1;
        let mut list = sd.xmit_lists.pop().unwrap_or_default();
        self.validate_xmit_skb(skb, &mut list);
        self.dev_hard_start_xmit(queue, &mut list, false);
        let sd = self.sd();
        sd.xmit_lists.push(list);
        sd.xmit_recursion -= 1;
    }

    /// The transmit queue for a packet of this CPU.
    #[inline]
    fn netdev_core_pick_tx(&self, skb: &SkBuff) -> usize {
        let _stage = self.stage("netdev_core_pick_tx");
        let several = self.dev.curr_queue_pairs() > 1;
        let queue = match self.netdevs[skb.dev].netdev_ops {
            NetDeviceOps::Virtnet if several => self.xps.get_xps_queue(self.cpu, skb),
            _ => 0,
        };
        self.changed("queue_mapping", || queue.to_string());
        queue
    }

    /// What the driver is to send: a packet as it is, or its segments if the device does not take it whole.
    pub(super) fn validate_xmit_skb_list(&mut self, skb: Skb, list: &mut VecDeque<Skb>) {
        let _stage = self.stage("validate_xmit_skb_list");
        self.validate_xmit_skb(skb, list);
    }

    fn validate_xmit_skb(&mut self, mut skb: Skb, list: &mut VecDeque<Skb>) {
        let _stage = self.stage("validate_xmit_skb");
        let features = self.netdevs[skb.dev].features;
        vlan_push_inside(&mut skb);
        if skb.gso_size != 0 {
            if !self.takes_whole(&skb) {
                let _stage = self.stage("skb_gso_segment");
                let csum = features & NETIF_F_HW_CSUM != 0;
                let done = skb_gso_segment(&mut self.skb_cache, skb, csum, list);
                return match done {
                    Ok(()) => {}
                    Err(skb) => self.drop_tx(skb, TxDrop::SkbGsoSeg),
                };
            }
        } else if skb.ip_summed == IpSummed::Partial
            && features & NETIF_F_HW_CSUM == 0
            && !skb_checksum_help(&mut skb)
        {
            return self.drop_tx(skb, TxDrop::SkbCsum);
        }
        list.push_back(skb);
    }

    /// Whether the device takes a packet that stands for several (`netif_needs_gso`).
    #[cold]
    fn takes_whole(&self, skb: &SkBuff) -> bool {
        let takes = self.netdevs[skb.dev].features & NETIF_F_GSO_UDP_L4 != 0;
        takes && skb.is_udp_gso() && !skb.is_nonlinear()
    }

    /// Gives frames to the driver until it wants no more; with `more` others follow at once.
    pub(super) fn dev_hard_start_xmit(
        &mut self,
        queue: usize,
        list: &mut VecDeque<Skb>,
        more: bool,
    ) {
        let _stage = self.stage("dev_hard_start_xmit");
        while let Some(skb) = list.pop_front() {
            if !self.ptype_all.is_empty() {
                self.dev_queue_xmit_nit(&skb);
            }
            match self.netdevs[skb.dev].netdev_ops {
                NetDeviceOps::Virtnet => {
                    self.start_xmit(queue, skb, more || !list.is_empty());
                    if self.txq[queue].stopped {
                        return;
                    }
                }
                NetDeviceOps::Loopback => self.loopback_xmit(skb),
                NetDeviceOps::Dummy => self.dummy_xmit(skb),
                NetDeviceOps::Bridge => self.br_dev_xmit(skb),
                NetDeviceOps::Vlan { real_dev, vlan_id } => {
                    self.vlan_dev_hard_start_xmit(skb, (real_dev, vlan_id));
                }
            }
        }
    }
}
