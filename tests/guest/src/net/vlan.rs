//! VLAN devices (Linux: `net/8021q`, IEEE 802.1Q): one network device for each VLAN of another.
//!
//! In: packets with a tag, received by a device that has VLANs; packets that are sent by a VLAN. Out: the former
//! without their tag, as if the VLAN's device had received them; the latter with a tag, by the device below. Tags are
//! in the packet when it meets the driver: virtio-net neither takes them off nor puts them in. Dropped and counted:
//! tags that are cut off. What is of a VLAN that nobody has is another host's; a tag that names none (a priority tag)
//! counts for nothing.

use super::eth::{ETH_P_8021AD, ETH_P_8021Q};
use super::netdevice::{IFF_LOOPBACK, Ifindex, NetDevice, NetDeviceOps};
use super::skbuff::{PktType, SkBuff, Skb};
use super::stats::RxDrop;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::features as f;

/// Bytes of a tag.
pub(super) const VLAN_HLEN: usize = 4;
/// Bits of a tag that name the VLAN.
const VLAN_VID_MASK: u16 = 0x0fff;
/// Bytes of the two addresses before it.
const ETH_ADDRS: usize = 12;

/// A tag that was taken off a packet, or is still to be put in (`skb->vlan_all`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VlanTag {
    proto: u16,
    tci: u16,
}

impl VlanTag {
    /// Priority and number (`tci`).
    pub fn tci(self) -> u16 {
        self.tci
    }
}

/// Whether a tag begins behind that Ethertype.
#[inline]
pub(super) fn eth_type_vlan(protocol: u16) -> bool {
    matches!(protocol, ETH_P_8021Q | ETH_P_8021AD)
}

/// The Ethertype behind a tag that a packet begins with.
pub(super) fn vlan_protocol(skb: &SkBuff) -> Option<u16> {
    let &[_, _, c, d] = skb.data().first_chunk::<VLAN_HLEN>()?;
    Some(u16::from_be_bytes([c, d]))
}

/// Takes the tag off a packet that begins with it; `None` when it is cut off.
fn skb_vlan_untag(skb: &mut SkBuff) -> Option<()> {
    let &[a, b, c, d] = skb.data().first_chunk::<VLAN_HLEN>()?;
    skb.vlan_tag = Some(VlanTag {
        proto: skb.protocol,
        tci: u16::from_be_bytes([a, b]),
    });
    skb.protocol = u16::from_be_bytes([c, d]);
    skb.pull_tag();
    skb.reset_network_header();
    Some(())
}

/// Puts the tag that a frame is to have into it (`__vlan_hwaccel_push_inside`).
pub(super) fn vlan_push_inside(skb: &mut SkBuff) {
    let Some(tag) = skb.vlan_tag.take() else {
        return;
    };
    skb.push::<VLAN_HLEN>();
    let frame = skb.data_mut();
    frame.copy_within(VLAN_HLEN..VLAN_HLEN + ETH_ADDRS, 0);
    frame[ETH_ADDRS..ETH_ADDRS + 2].copy_from_slice(&tag.proto.to_be_bytes());
    frame[ETH_ADDRS + 2..ETH_ADDRS + 4].copy_from_slice(&tag.tci.to_be_bytes());
    skb.protocol = tag.proto;
}

impl SkBuff {
    /// Takes off a tag; the Ethernet header comes after it (`skb_reorder_vlan_header`).
    fn pull_tag(&mut self) {
        self.pull(VLAN_HLEN);
        if let Some(frame) = self.mac_frame_mut(VLAN_HLEN) {
            frame.copy_within(..ETH_ADDRS, VLAN_HLEN);
        }
    }
}

impl NetDevice {
    /// The device of a VLAN that it has (`vlan_find_dev`).
    fn vlan_find_dev(&self, vlan_id: u16) -> Option<Ifindex> {
        let at = self.vlans.binary_search_by_key(&vlan_id, |vlan| vlan.0);
        at.ok().map(|at| self.vlans[at].1)
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Makes the device of a VLAN of another (`ip link add link DEV name NAME type vlan id ID`). A driver that filters
    /// VLANs lets it in.
    ///
    /// # Errors
    /// ENODEV; ERANGE: there is no VLAN 4095; EOPNOTSUPP for lo; EEXIST: it has that VLAN; EIO: the driver's device
    /// refused; and as [`Self::dummy_add`].
    pub fn vlan_add(
        &mut self,
        name: &str,
        real_dev: Ifindex,
        vlan_id: u16,
    ) -> Result<Ifindex, Errno> {
        let real = self.dev_get_by_index(real_dev).ok_or(Errno::ENODEV)?;
        if vlan_id >= VLAN_VID_MASK {
            return Err(Errno::ERANGE);
        }
        if real.flags & IFF_LOOPBACK != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let Err(at) = real.vlans.binary_search_by_key(&vlan_id, |vlan| vlan.0) else {
            return Err(Errno::EEXIST);
        };
        self.netdevs.check_name(name)?;
        let ops = NetDeviceOps::Vlan { real_dev, vlan_id };
        let device = NetDevice {
            flags: real.flags,
            features: real.features,
            ..NetDevice::new(name, ops, real.dev_addr, real.mtu)
        };
        let filters = self.dev.features() & f::CTRL_VLAN != 0;
        if real.netdev_ops == NetDeviceOps::Virtnet && filters {
            let added = self.dev.vlan_rx_add_vid(vlan_id);
            added.map_err(|_| Errno::EIO)?;
        }
        let index = self.register_netdevice(device)?;
        self.netdevs[real_dev].vlans.insert(at, (vlan_id, index));
        Ok(index)
    }

    /// The device that a VLAN is of, and that one, if it is a VLAN itself, and so on; of others the device itself
    /// (`vlan_dev_real_dev`).
    pub(super) fn vlan_dev_real_dev(&self, mut dev: Ifindex) -> Ifindex {
        while let NetDeviceOps::Vlan { real_dev, .. } = self.netdevs[dev].netdev_ops {
            dev = real_dev;
        }
        dev
    }

    /// Takes a tag off a packet that was just received; `None` when it is cut off.
    pub(super) fn skb_vlan_untag(&mut self, mut skb: Skb) -> Option<Skb> {
        if skb_vlan_untag(&mut skb).is_some() {
            return Some(skb);
        }
        self.drop_rx(skb, RxDrop::VlanUntag);
        None
    }

    /// Whether a packet was of a VLAN that its device has: then that has received it.
    pub(super) fn vlan_do_receive(&mut self, skb: &mut SkBuff) -> bool {
        let Some(tag) = skb.vlan_tag else {
            return false;
        };
        let _stage = self.stage("vlan_do_receive");
        let found = self.netdevs[skb.dev].vlan_find_dev(tag.tci & VLAN_VID_MASK);
        let Some(vlan_dev) = found.filter(|_| tag.proto == ETH_P_8021Q) else {
            return false;
        };
        let device = &mut self.netdevs[vlan_dev];
        let to_it = skb
            .mac_header()
            .is_some_and(|hdr| hdr[..6] == device.dev_addr);
        if skb.pkt_type == PktType::OtherHost && to_it {
            // It may have another address than the device below.
            skb.pkt_type = PktType::Host;
        }
        device.stats.rx_packets += 1;
        device.stats.rx_bytes += skb.len() as u64;
        (skb.dev, skb.vlan_tag) = (vlan_dev, None);
        let name = self.netdevs[vlan_dev].name();
        self.changed("skb->dev", || name.into());
        true
    }

    /// What no VLAN has taken loses its tag; whether that named one, so that the packet is another host's.
    pub(super) fn vlan_not_found(&mut self, skb: &mut SkBuff) -> bool {
        let tag = skb.vlan_tag.take();
        let named = tag.is_some_and(|tag| tag.tci & VLAN_VID_MASK != 0);
        if named {
            skb.pkt_type = PktType::OtherHost;
        }
        named
    }

    pub(super) fn vlan_dev_hard_start_xmit(
        &mut self,
        mut skb: Skb,
        (real_dev, vlan_id): (Ifindex, u16),
    ) {
        let _stage = self.stage("vlan_dev_hard_start_xmit");
        let (vlan_dev, len) = (skb.dev, skb.len() as u64);
        skb.vlan_tag = Some(VlanTag {
            proto: ETH_P_8021Q,
            tci: vlan_id,
        });
        skb.dev = real_dev;
        let stats = &mut self.netdevs[vlan_dev].stats;
        stats.tx_packets += 1;
        stats.tx_bytes += len;
        self.changed("vlan_tci", || vlan_id.to_string());
        self.__dev_queue_xmit(skb);
    }
}
