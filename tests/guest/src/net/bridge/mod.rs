//! Bridges (Linux: `net/bridge`, IEEE 802.1Q): devices that pass frames on between others, their ports.
//!
//! In: what the ports receive, before any protocol sees it, and what this host sends by the bridge. Out: the same by
//! the port that its destination is behind, or by all others when that is not known or it is for many; and, what is
//! for this host, up the stack as if the bridge had received it. Sources are learnt ([`fdb`]). Dropped and counted:
//! frames from no station, MAC control frames, frames that no other port is there for, and such as are too long for
//! the port. There is no spanning tree, and no filtering by VLAN: tags pass. Who wants which multicasts is not looked
//! at; all get them.

mod fdb;

use std::time::Duration;

use self::fdb::{BridgeFdb, FdbDst, Learnt};
use super::eth::{BROADCAST, ETH_HLEN};
use super::netdevice::{
    IFF_LOOPBACK, Ifindex, NETIF_F_GSO_UDP_L4, NETIF_F_HW_CSUM, NetDevice, NetDeviceOps,
};
use super::skbuff::{PktType, SkBuff, Skb};
use super::stats::{RxDrop, TxDrop};
use super::vlan::VLAN_HLEN;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::features as f;
use crate::virtio_net::rx::ETH_DATA_LEN;

/// Addresses that no bridge passes on begin so (IEEE 802.1Q, table 8-1); the last octet is below 16.
const LINK_LOCAL: [u8; 5] = [0x01, 0x80, 0xc2, 0, 0];
/// That of the spanning tree protocol, which goes on where there is none; and of MAC control (IEEE 802.3, annex 31B).
const BRIDGE_GROUP: u8 = 0;
const MAC_CONTROL: u8 = 1;
/// Most ports (`BR_MAX_PORTS`).
const BR_MAX_PORTS: usize = 1024;

/// What makes a device a bridge (`struct net_bridge`).
#[derive(Debug, Default)]
pub(crate) struct Bridge {
    ports: Vec<Ifindex>,
    fdb: BridgeFdb,
}

impl NetDevice {
    fn bridge(name: &str) -> Self {
        Self {
            features: NETIF_F_HW_CSUM | NETIF_F_GSO_UDP_L4,
            bridge: Some(Bridge::default()),
            ..Self::new(name, NetDeviceOps::Bridge, [0; 6], ETH_DATA_LEN.into())
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Makes a bridge without ports (`ip link add NAME type bridge`). Its address is the lowest of its ports'.
    ///
    /// # Errors
    /// As [`Self::dummy_add`].
    pub fn br_add_bridge(&mut self, name: &str) -> Result<Ifindex, Errno> {
        self.register_netdevice(NetDevice::bridge(name))
    }

    /// Makes a device a port of a bridge (`ip link set DEV master BRIDGE`). A driver's, or the one that it is a VLAN of, is promiscuous
    /// from then on, if its device can be.
    ///
    /// # Errors
    /// ENODEV; EINVAL: `br` is no bridge, or `dev` is lo; ELOOP: `dev` is a bridge, or a VLAN of this one; EBUSY: it is a port already; EXFULL: the bridge has all ports
    /// that it may have.
    pub fn br_add_if(&mut self, br: Ifindex, dev: Ifindex) -> Result<(), Errno> {
        let port = self.dev_get_by_index(dev).ok_or(Errno::ENODEV)?;
        if port.flags & IFF_LOOPBACK != 0 {
            return Err(Errno::EINVAL);
        }
        if port.bridge.is_some() || self.is_above(dev, br) {
            return Err(Errno::ELOOP);
        }
        if port.br_port.is_some() {
            return Err(Errno::EBUSY);
        }
        let mtu = port.mtu;
        let device = self.dev_get_by_index(br).ok_or(Errno::ENODEV)?;
        let bridge = device.bridge.as_ref().ok_or(Errno::EINVAL)?;
        if bridge.ports.len() == BR_MAX_PORTS {
            return Err(Errno::EXFULL);
        }
        let first = bridge.ports.is_empty();
        let device = &mut self.netdevs[br];
        device.mtu = if first { mtu } else { mtu.min(device.mtu) };
        if let Some(bridge) = &mut device.bridge {
            bridge.ports.push(dev);
        }
        self.netdevs[dev].br_port = Some(br);
        self.addrconf_mtu_changed(br);
        self.br_addrs_changed(br);
        self.update_rx_handlers();
        if self.promiscuity() == 1 {
            self.dev_set_promiscuity(dev, true);
        }
        Ok(())
    }

    /// A port came, went, or has another address (`br_fdb_changeaddr`, `br_stp_recalculate_bridge_id`): all of theirs are
    /// the bridge's own, and the lowest is its address.
    pub(super) fn br_addrs_changed(&mut self, br: Ifindex) {
        let bridge = self.netdevs[br].bridge.as_ref();
        let ports = bridge.map_or(&[][..], |bridge| &bridge.ports).iter();
        let addrs: Vec<_> = ports
            .map(|&port| (self.netdevs[port].dev_addr, port))
            .collect();
        let lowest = addrs.iter().map(|port| port.0).min().unwrap_or_default();
        if let Some(bridge) = &mut self.netdevs[br].bridge {
            bridge.fdb.delete_local();
            for (addr, port) in addrs {
                bridge.fdb.add_local(addr, port);
            }
        }
        if self.netdevs[br].dev_addr != lowest {
            self.dev_addr_changed(br, lowest);
        }
    }

    /// How many ports need all frames that the driver's device gets: that itself, and VLANs of it.
    fn promiscuity(&self) -> usize {
        let ports = self
            .net_devices()
            .iter()
            .filter(|dev| dev.br_port.is_some());
        ports
            .filter(|port| self.vlan_dev_real_dev(port.ifindex()) == Ifindex::ETH0)
            .count()
    }

    /// The driver's device is to take all frames, if a port is that device or a VLAN of it, or no longer.
    fn dev_set_promiscuity(&mut self, port: Ifindex, on: bool) {
        let of_driver = self.vlan_dev_real_dev(port) == Ifindex::ETH0;
        if of_driver
            && self.dev.features() & f::CTRL_RX != 0
            && let Err(error) = self.dev.set_promisc(on)
        {
            log::warn!("failed to set promisc mode to {on}: {error}");
        }
    }

    /// Whether a device is a VLAN of `below`, or of one of its VLANs.
    fn is_above(&self, mut dev: Ifindex, below: Ifindex) -> bool {
        while let NetDeviceOps::Vlan { real_dev, .. } = self.netdevs[dev].netdev_ops {
            if real_dev == below {
                return true;
            }
            dev = real_dev;
        }
        false
    }

    /// Makes a port a device like any other again (`ip link set DEV nomaster`).
    ///
    /// # Errors
    /// ENODEV; EINVAL: it is no port.
    pub fn br_del_if(&mut self, dev: Ifindex) -> Result<(), Errno> {
        self.dev_get_by_index(dev).ok_or(Errno::ENODEV)?;
        let br = self.netdevs[dev].br_port.take().ok_or(Errno::EINVAL)?;
        if let Some(bridge) = &mut self.netdevs[br].bridge {
            bridge.ports.retain(|port| *port != dev);
            bridge.fdb.delete_by_port(dev);
        }
        self.br_addrs_changed(br);
        self.update_rx_handlers();
        if self.promiscuity() == 0 {
            self.dev_set_promiscuity(dev, false);
        }
        Ok(())
    }

    /// Sets how long a bridge remembers stations that send nothing; with 0 it learns nobody.
    ///
    /// # Errors
    /// ENODEV; EINVAL: it is no bridge.
    pub fn br_set_ageing_time(&mut self, br: Ifindex, time: Duration) -> Result<(), Errno> {
        self.dev_get_by_index(br).ok_or(Errno::ENODEV)?;
        let bridge = self.netdevs[br].bridge.as_mut().ok_or(Errno::EINVAL)?;
        bridge.fdb.ageing_time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// How many stations a bridge has learnt and not forgotten; 0 of what is none.
    #[must_use]
    pub fn br_fdb_n_learned(&self, br: Ifindex) -> usize {
        let bridge = self
            .dev_get_by_index(br)
            .and_then(|dev| dev.bridge.as_ref());
        bridge.map_or(0, |bridge| bridge.fdb.n_learned())
    }

    /// A frame that a port of the bridge `br` has received; given back if it is for the port itself.
    pub(super) fn br_handle_frame(&mut self, mut skb: Skb, br: Ifindex) -> Option<Skb> {
        let _stage = self.stage("br_handle_frame");
        if skb.pkt_type == PktType::Loopback {
            // No frame: this host's own copy of what it sends by the port.
            return Some(skb);
        }
        let Some(&hdr) = skb.mac_header() else {
            self.drop_rx(skb, RxDrop::MacInvalidSource);
            return None;
        };
        let [dest, source] = addresses(&hdr);
        if source[0] & 1 != 0 || source == [0; 6] {
            self.drop_rx(skb, RxDrop::MacInvalidSource);
            return None;
        }
        if dest[..5] == LINK_LOCAL && dest[5] < 16 && dest[5] != BRIDGE_GROUP {
            if dest[5] == MAC_CONTROL {
                self.drop_rx(skb, RxDrop::MacIeeeMacControl);
                return None;
            }
            self.br_fdb_update(br, source, skb.dev);
            return Some(skb);
        }
        if dest == self.netdevs[br].dev_addr {
            skb.pkt_type = PktType::Host;
        }
        self.br_handle_frame_finish(skb, br, (dest, source));
        None
    }

    fn br_handle_frame_finish(
        &mut self,
        skb: Skb,
        br: Ifindex,
        (dest, source): ([u8; 6], [u8; 6]),
    ) {
        let _stage = self.stage("br_handle_frame_finish");
        self.br_fdb_update(br, source, skb.dev);
        if dest[0] & 1 != 0 {
            // For many, so for this host, too.
            return self.br_flood(br, skb, true, false);
        }
        match self.br_fdb_find_rcu(br, dest) {
            Some(FdbDst::Local) => self.br_pass_frame_up(br, skb),
            Some(FdbDst::Port(to)) => self.br_forward(skb, to, false),
            None => self.br_flood(br, skb, false, false),
        }
    }

    fn br_fdb_update(&mut self, br: Ifindex, source: [u8; 6], port: Ifindex) {
        let _stage = self.stage("br_fdb_update");
        let now = self.machine.now();
        let bridge = self.netdevs[br].bridge.as_mut();
        let learnt = bridge.map(|bridge| bridge.fdb.update(source, port, now));
        if learnt == Some(Learnt::New) {
            self.changed("fdb", || {
                format!("{source:02x?} behind {}", self.netdevs[port].name())
            });
        }
    }

    fn br_fdb_find_rcu(&self, br: Ifindex, dest: [u8; 6]) -> Option<FdbDst> {
        let _stage = self.stage("br_fdb_find_rcu");
        let bridge = self.netdevs[br].bridge.as_ref()?;
        bridge.fdb.find(dest, self.machine.now())
    }

    /// To the port that the destination is behind; `local_orig` is whether this host sends it.
    fn br_forward(&mut self, skb: Skb, to: Ifindex, local_orig: bool) {
        let _stage = self.stage("br_forward");
        if skb.dev == to {
            return self.br_no_egress_port(skb, local_orig);
        }
        self.__br_forward(skb, to, local_orig);
    }

    /// To all ports but the one that it came by, and to this host with `local_rcv`.
    fn br_flood(&mut self, br: Ifindex, skb: Skb, local_rcv: bool, local_orig: bool) {
        let flooding = self.stage("br_flood");
        let mut prev = None;
        for at in 0.. {
            let bridge = self.netdevs[br].bridge.as_ref();
            let Some(&port) = bridge.and_then(|bridge| bridge.ports.get(at)) else {
                break;
            };
            if port == skb.dev {
                continue;
            }
            if let Some(earlier) = prev.replace(port) {
                self.deliver_clone(&skb, earlier);
            }
        }
        match prev {
            None if local_rcv => {}
            None => return self.br_no_egress_port(skb, local_orig),
            Some(last) if local_rcv => self.deliver_clone(&skb, last),
            Some(last) => return self.__br_forward(skb, last, local_orig),
        }
        drop(flooding);
        self.br_pass_frame_up(br, skb);
    }

    fn deliver_clone(&mut self, skb: &SkBuff, to: Ifindex) {
        let copy = self.skb_cache.clone_skb(skb);
        self.br_forward_by(copy, to);
    }

    /// A frame leaves by a port; if another port has received it, it ends there as one that came in.
    fn __br_forward(&mut self, skb: Skb, to: Ifindex, local_orig: bool) {
        if !local_orig {
            self.counters.bridged += 1;
        }
        self.br_forward_by(skb, to);
    }

    fn br_forward_by(&mut self, mut skb: Skb, to: Ifindex) {
        skb.dev = to;
        let _stage = self.stage("br_forward_finish");
        self.br_dev_queue_push_xmit(skb);
    }

    fn br_dev_queue_push_xmit(&mut self, mut skb: Skb) {
        let _stage = self.stage("br_dev_queue_push_xmit");
        skb.push::<ETH_HLEN>();
        // There is room for a tag beyond the MTU.
        if skb.gso_size == 0 && skb.len() > self.mtu(skb.dev) + ETH_HLEN + VLAN_HLEN {
            return self.drop_tx(skb, TxDrop::PktTooBig);
        }
        self.__dev_queue_xmit(skb);
    }

    /// No port is there for a frame.
    fn br_no_egress_port(&mut self, skb: Skb, local_orig: bool) {
        if local_orig {
            self.drop_tx(skb, TxDrop::BridgeOutNoEgressPort);
        } else {
            self.drop_rx(skb, RxDrop::BridgeNoEgressPort);
        }
    }

    /// To this host: the bridge has received it.
    fn br_pass_frame_up(&mut self, br: Ifindex, mut skb: Skb) {
        let _stage = self.stage("br_pass_frame_up");
        let stats = &mut self.netdevs[br].stats;
        stats.rx_packets += 1;
        stats.rx_bytes += skb.len() as u64;
        skb.dev = br;
        self.netif_receive_skb(skb);
    }

    /// This host sends by a bridge.
    pub(super) fn br_dev_xmit(&mut self, mut skb: Skb) {
        let _stage = self.stage("br_dev_xmit");
        let br = skb.dev;
        let stats = &mut self.netdevs[br].stats;
        stats.tx_packets += 1;
        stats.tx_bytes += skb.len() as u64;
        skb.pull(ETH_HLEN);
        let dest = skb.mac_header().map_or(BROADCAST, |hdr| addresses(hdr)[0]);
        if dest[0] & 1 != 0 {
            return self.br_flood(br, skb, false, true);
        }
        match self.br_fdb_find_rcu(br, dest) {
            Some(FdbDst::Port(to)) => self.br_forward(skb, to, true),
            Some(FdbDst::Local) => self.br_no_egress_port(skb, true),
            None => self.br_flood(br, skb, false, true),
        }
    }
}

/// Destination and source.
fn addresses(hdr: &[u8; ETH_HLEN]) -> [[u8; 6]; 2] {
    let mut both = [[0; 6]; 2];
    both[0].copy_from_slice(&hdr[..6]);
    both[1].copy_from_slice(&hdr[6..12]);
    both
}
