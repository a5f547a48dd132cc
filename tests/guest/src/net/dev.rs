//! The device-independent layer (Linux: `net/core/dev.c`).
//!
//! Receive: packets from NAPI, dispatched by Ethertype; those of no registered type are dropped and
//! counted. Send: packets with their Ethernet header, to the queueing discipline of the transmit
//! queue that belongs to this CPU; what it has no room for is dropped there.

use super::eth::{ETH_P_ARP, ETH_P_IP};
use super::ip_input::NetProtocol;
use super::skbuff::{SkBuff, Skb};
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// A protocol above the device (`struct packet_type`). The handler is a name, not a pointer, so that
/// the call can be inlined.
#[derive(Debug, Clone, Copy)]
pub(super) struct PacketType {
    /// Ethertype.
    pub protocol: u16,
    pub func: PacketHandler,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum PacketHandler {
    IpRcv,
    ArpRcv,
}

/// `ip_packet_type` and `arp_packet_type`.
const PACKET_TYPES: [PacketType; 2] = [
    PacketType {
        protocol: ETH_P_IP,
        func: PacketHandler::IpRcv,
    },
    PacketType {
        protocol: ETH_P_ARP,
        func: PacketHandler::ArpRcv,
    },
];

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Registers the Internet protocols (`inet_init`): the transports by number, then IP and ARP
    /// with the device layer.
    pub(super) fn inet_init(&mut self) {
        for protocol in [NetProtocol::Icmp, NetProtocol::Udp] {
            self.inet_add_protocol(protocol);
        }
        for packet_type in PACKET_TYPES {
            self.dev_add_pack(packet_type);
        }
    }

    fn dev_add_pack(&mut self, packet_type: PacketType) {
        self.ptype_base.push(packet_type);
    }

    /// Packets of one batch, in order (`netif_receive_skb_list_internal`). Each goes all the way up
    /// before the next begins.
    pub(super) fn netif_receive_skb_list(&mut self, list: &mut Vec<Skb>) {
        self.sd().stats.processed += list.len() as u64;
        for skb in list.drain(..) {
            self.__netif_receive_skb_core(skb);
        }
    }

    #[inline]
    fn __netif_receive_skb_core(&mut self, mut skb: Skb) {
        skb.reset_network_header();
        let handler = self
            .ptype_base
            .iter()
            .find(|ptype| ptype.protocol == skb.protocol);
        match handler.map(|ptype| ptype.func) {
            Some(PacketHandler::IpRcv) => self.ip_rcv(skb),
            Some(PacketHandler::ArpRcv) => self.arp_rcv(skb),
            None => self.drop_rx(skb, RxDrop::UnhandledProto),
        }
    }

    /// Sends a frame (`__dev_queue_xmit`).
    pub(super) fn dev_queue_xmit(&mut self, skb: Skb) {
        let queue = self.netdev_core_pick_tx(&skb);
        // Linux takes packets apart when they leave the discipline.
        if skb.gso_size != 0 && !self.tx_udp_segmentation {
            self.validate_xmit_skb(queue, skb);
        } else {
            self.__dev_xmit_skb(queue, skb);
        }
        self.local_bh_enable();
    }

    /// The transmit queue for a packet of this CPU.
    #[inline]
    fn netdev_core_pick_tx(&self, skb: &SkBuff) -> usize {
        if self.dev.curr_queue_pairs() == 1 {
            return 0;
        }
        self.xps.get_xps_queue(self.cpu, skb)
    }

    /// Gives a frame to the driver (`dev_hard_start_xmit`); with `more` the next one follows at once.
    #[inline]
    pub(super) fn dev_hard_start_xmit(&mut self, queue: usize, skb: Skb, more: bool) {
        self.start_xmit(queue, skb, more);
    }
}
