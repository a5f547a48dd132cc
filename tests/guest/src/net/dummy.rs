//! Dummy devices (Linux: `drivers/net/dummy.c`): what is sent by one is counted and ends there.

use super::netdevice::{
    IFF_NOARP, Ifindex, NETIF_F_GSO_UDP_L4, NETIF_F_HW_CSUM, NetDevice, NetDeviceOps,
};
use super::skbuff::Skb;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::rx::ETH_DATA_LEN;

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Makes a dummy device (`ip link add NAME address MAC type dummy`).
    ///
    /// # Errors
    /// EEXIST: there is a device of that name; EINVAL: none can have it; ENFILE: there are too many.
    pub fn dummy_add(&mut self, name: &str, dev_addr: [u8; 6]) -> Result<Ifindex, Errno> {
        let mtu = usize::from(ETH_DATA_LEN);
        self.register_netdevice(NetDevice {
            flags: IFF_NOARP,
            features: NETIF_F_HW_CSUM | NETIF_F_GSO_UDP_L4,
            ..NetDevice::new(name, NetDeviceOps::Dummy, dev_addr, mtu)
        })
    }

    pub(super) fn dummy_xmit(&mut self, skb: Skb) {
        let _stage = self.stage("dummy_xmit");
        let stats = &mut self.netdevs[skb.dev].stats;
        stats.tx_packets += 1;
        stats.tx_bytes += skb.len() as u64;
        self.consume_skb(skb);
    }
}
