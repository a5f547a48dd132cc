//! The loopback device (Linux: `drivers/net/loopback.c`): what is sent by it comes in again.
//!
//! In: packets for this host's own addresses. Out: the same into this CPU's backlog. The sender is charged no longer;
//! the route goes with the packet, so that nobody looks it up again. What the backlog has no room for is dropped there.

use super::eth::eth_type_trans;
use super::netdevice::{
    IFF_LOOPBACK, Ifindex, NETIF_F_GSO_UDP_L4, NETIF_F_HW_CSUM, NetDevice, NetDeviceOps,
};
use super::skbuff::Skb;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Its MTU: any IP packet has room.
const LOOPBACK_MTU: usize = 64 * 1024;

impl NetDevice {
    /// `lo`.
    pub(super) fn loopback() -> Self {
        Self {
            flags: IFF_LOOPBACK,
            features: NETIF_F_HW_CSUM | NETIF_F_GSO_UDP_L4,
            ..Self::new("lo", NetDeviceOps::Loopback, [0; 6], LOOPBACK_MTU)
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn loopback_xmit(&mut self, mut skb: Skb) {
        let _stage = self.stage("loopback_xmit");
        self.skb_orphan(&mut skb);
        let len = skb.len() as u64;
        let lo = &self.netdevs[Ifindex::LO];
        eth_type_trans(&mut skb, lo);
        if self.netif_rx(skb) {
            let stats = &mut self.netdevs[Ifindex::LO].stats;
            stats.tx_packets += 1;
            stats.tx_bytes += len;
            stats.rx_packets += 1;
            stats.rx_bytes += len;
        }
    }
}
