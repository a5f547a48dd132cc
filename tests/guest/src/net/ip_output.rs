//! IP, send side (Linux: `net/ipv4/ip_output.c`).
//!
//! In: packets with their transport header, and their route. Out: the same with an IP header, to the
//! neighbour. Dropped and counted: what is longer than the MTU, because nothing is fragmented yet;
//! sockets learn that earlier (EMSGSIZE).

use super::checksum::{csum_fold, csum_partial};
use super::eth::{BROADCAST, ETH_P_IP, eth_header};
use super::ip_input::{IP_DF, IPHDR_LEN};
use super::route::{RtType, Rtable};
use super::skbuff::Skb;
use super::stats::TxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::rx::ETH_DATA_LEN;

/// `ip_default_ttl`.
const IPDEFTTL: u8 = 64;

/// What a transport says of a packet (`struct ipcm_cookie`, `struct flowi4`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub daddr: u32,
    pub protocol: u8,
    pub tos: u8,
    /// Not to be fragmented on its way.
    pub df: bool,
    pub id: u16,
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Longest IP packet that the device sends.
    #[inline]
    pub(super) fn mtu(&self) -> usize {
        usize::from(self.dev.config.mtu.unwrap_or(ETH_DATA_LEN))
    }

    /// An identification (`ip_select_ident`).
    #[inline]
    pub(super) fn ip_select_ident(&mut self) -> u16 {
        self.ip_ident = self.ip_ident.wrapping_add(1);
        self.ip_ident
    }

    /// Writes the header (`__ip_make_skb`) and sends the packet (`ip_send_skb`).
    #[inline]
    pub(super) fn ip_send_skb(&mut self, mut skb: Skb, rt: Rtable, flow: &Flow) {
        let tot_len = skb.len() + IPHDR_LEN;
        // Of one that stands for several each segment has to fit, which the transport sees to.
        if tot_len > self.mtu() && skb.gso_size == 0 {
            return self.drop_tx(skb, TxDrop::IpFragFails);
        }
        let frag_off = if flow.df { IP_DF } else { 0 };
        let mut iph = [0; IPHDR_LEN];
        (iph[0], iph[1]) = (0x45, flow.tos);
        iph[2..4].copy_from_slice(&(tot_len as u16).to_be_bytes());
        iph[4..6].copy_from_slice(&flow.id.to_be_bytes());
        iph[6..8].copy_from_slice(&frag_off.to_be_bytes());
        (iph[8], iph[9]) = (IPDEFTTL, flow.protocol);
        iph[12..16].copy_from_slice(&self.fib.local_addr().to_be_bytes());
        iph[16..].copy_from_slice(&flow.daddr.to_be_bytes());
        let check = csum_fold(csum_partial(&iph, 0));
        iph[10..12].copy_from_slice(&check);
        *skb.push() = iph;
        skb.reset_network_header();
        self.__ip_local_out(skb, rt);
    }

    #[inline]
    fn __ip_local_out(&mut self, mut skb: Skb, rt: Rtable) {
        self.counters.snmp.ip_out_requests += 1;
        skb.protocol = ETH_P_IP;
        self.ip_output(skb, rt);
    }

    #[inline]
    fn ip_output(&mut self, skb: Skb, rt: Rtable) {
        self.ip_finish_output2(skb, rt);
    }

    /// To the neighbour that the route names; all of them have the broadcast address.
    #[inline]
    fn ip_finish_output2(&mut self, mut skb: Skb, rt: Rtable) {
        if rt.rt_type == RtType::Broadcast {
            *skb.push() = eth_header(BROADCAST, self.dev_addr, ETH_P_IP);
            self.dev_queue_xmit(skb);
        } else {
            self.neigh_output(rt.next_hop, skb);
        }
    }
}
