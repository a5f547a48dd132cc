//! Network devices (Linux: `include/linux/netdevice.h`, `net/core/dev.c`): what packets come in and go out by.
//!
//! A kernel has several: `lo`, `eth0` with the driver behind it, and those that are made of software alone. They are
//! called by their index, which stays theirs; a packet knows its device (`skb->dev`), and so do routes and
//! neighbours. What a device does with a packet is a name, not a pointer ([`NetDeviceOps`]), so that the call can be
//! inlined.

use std::ops::{Index, IndexMut};

use super::addrconf::Inet6Ifaddr;
use super::bridge::Bridge;
use super::devinet::InIfaddr;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::{VirtnetInfo, features as f};

/// Longest name of a device, in bytes (`IFNAMSIZ` without the end mark).
const MAX_NAME: usize = 15;

/// Least MTU.
const ETH_MIN_MTU: usize = 68;

/// Number of a device (`ifindex`), from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ifindex(u16);

impl Ifindex {
    /// The loopback device.
    pub const LO: Self = Self(1);
    /// The device that has a driver.
    pub const ETH0: Self = Self(2);

    /// The device of that number, if it can be one.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        u16::try_from(number)
            .ok()
            .filter(|number| *number != 0)
            .map(Self)
    }
}

impl From<Ifindex> for u32 {
    fn from(index: Ifindex) -> Self {
        index.0.into()
    }
}

impl From<Ifindex> for u16 {
    fn from(index: Ifindex) -> Self {
        index.0
    }
}

impl Default for Ifindex {
    /// [`Self::LO`], which every kernel has.
    fn default() -> Self {
        Self::LO
    }
}

/// Sends and takes packets, but does not resolve addresses (`IFF_NOARP`).
pub(crate) const IFF_NOARP: u32 = 0x80;
/// What is sent by it comes in again (`IFF_LOOPBACK`).
pub(crate) const IFF_LOOPBACK: u32 = 0x8;

/// It finishes the checksum of any packet (`NETIF_F_HW_CSUM`).
pub(crate) const NETIF_F_HW_CSUM: u32 = 1 << 0;
/// It takes datagrams that stand for several (`NETIF_F_GSO_UDP_L4`).
pub(crate) const NETIF_F_GSO_UDP_L4: u32 = 1 << 1;

/// Who sends a device's packets (`struct net_device_ops`, `ndo_start_xmit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetDeviceOps {
    Loopback,
    Virtnet,
    Dummy,
    Vlan { real_dev: Ifindex, vlan_id: u16 },
    Bridge,
}

/// What a device has counted (`struct rtnl_link_stats64`, `/proc/net/dev`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RtnlLinkStats64 {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes of them, with their Ethernet headers.
    pub rx_bytes: u64,
    /// Packets received that the device, or the layer above it, had no use for.
    pub rx_dropped: u64,
    /// Frames of an impossible length.
    pub rx_length_errors: u64,
    /// Frames whose header lies.
    pub rx_frame_errors: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes of them, with their Ethernet headers.
    pub tx_bytes: u64,
    /// Packets that the device was to send and did not.
    pub tx_dropped: u64,
}

/// A network device (`struct net_device`).
#[derive(Debug)]
pub struct NetDevice {
    pub(super) name: String,
    pub(super) ifindex: Ifindex,
    pub(crate) netdev_ops: NetDeviceOps,
    pub(crate) dev_addr: [u8; 6],
    pub(crate) mtu: usize,
    pub(crate) flags: u32,
    pub(crate) features: u32,
    /// Its IPv4 addresses (`in_device`).
    pub(crate) ifa_list: Vec<InIfaddr>,
    /// Its IPv6 addresses (`inet6_dev`), those that reach far first.
    pub(crate) inet6_ifaddrs: Vec<Inet6Ifaddr>,
    /// The VLANs that it has, by their numbers.
    pub(crate) vlans: Vec<(u16, Ifindex)>,
    /// The bridge that it is a port of.
    pub(crate) br_port: Option<Ifindex>,
    /// Of a bridge.
    pub(super) bridge: Option<Bridge>,
    /// What the layers above it count; of a device with a driver that has the rest.
    pub(crate) stats: RtnlLinkStats64,
}

impl NetDevice {
    /// One that is not registered yet.
    pub(crate) fn new(name: &str, netdev_ops: NetDeviceOps, dev_addr: [u8; 6], mtu: usize) -> Self {
        Self {
            name: name.into(),
            ifindex: Ifindex::default(),
            netdev_ops,
            dev_addr,
            mtu,
            flags: 0,
            features: 0,
            ifa_list: Vec::new(),
            inet6_ifaddrs: Vec::new(),
            vlans: Vec::new(),
            br_port: None,
            bridge: None,
            stats: RtnlLinkStats64::default(),
        }
    }

    /// `eth0`, of a driven device.
    fn virtnet<T: Transport>(dev: &VirtnetInfo<T>) -> Self {
        let offers = |feature, offload| {
            if dev.features() & feature != 0 {
                offload
            } else {
                0
            }
        };
        Self {
            features: offers(f::CSUM, NETIF_F_HW_CSUM) | offers(f::HOST_USO, NETIF_F_GSO_UDP_L4),
            ..Self::new("eth0", NetDeviceOps::Virtnet, dev.mac(), dev.mtu().into())
        }
    }

    /// Whether the header of one packet to a neighbour is kept for the next (`header_ops->cache`).
    pub(crate) fn caches_headers(&self) -> bool {
        !matches!(self.netdev_ops, NetDeviceOps::Vlan { .. })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
    #[inline]
    pub fn ifindex(&self) -> Ifindex {
        self.ifindex
    }

    /// Its hardware address.
    #[must_use]
    pub fn dev_addr(&self) -> [u8; 6] {
        self.dev_addr
    }

    /// Longest IP packet that it sends, in bytes.
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.mtu
    }
}

/// All devices of a kernel.
#[derive(Debug)]
pub(crate) struct NetDevices(Vec<NetDevice>);

impl NetDevices {
    /// Those that a kernel has from the beginning.
    pub fn new<T: Transport>(dev: &VirtnetInfo<T>) -> Self {
        let mut devices = Self(Vec::new());
        for device in [NetDevice::loopback(), NetDevice::virtnet(dev)] {
            // Their names are good and differ.
            let _ = devices.register(device);
        }
        devices
    }

    /// Whether a device can have a name.
    pub fn check_name(&self, name: &str) -> Result<(), Errno> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Errno::EINVAL);
        }
        if self.0.iter().any(|other| other.name == name) {
            return Err(Errno::EEXIST);
        }
        Ok(())
    }

    fn register(&mut self, mut device: NetDevice) -> Result<Ifindex, Errno> {
        self.check_name(&device.name)?;
        let number = u16::try_from(self.0.len() + 1).map_err(|_| Errno::ENFILE)?;
        device.ifindex = Ifindex(number);
        self.0.push(device);
        Ok(Ifindex(number))
    }
}

impl Index<Ifindex> for NetDevices {
    type Output = NetDevice;

    #[inline]
    fn index(&self, index: Ifindex) -> &NetDevice {
        &self.0[usize::from(index.0) - 1]
    }
}

impl IndexMut<Ifindex> for NetDevices {
    #[inline]
    fn index_mut(&mut self, index: Ifindex) -> &mut NetDevice {
        &mut self.0[usize::from(index.0) - 1]
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Takes a device into use (`register_netdevice`), with the IPv6 address that it has by itself.
    pub(super) fn register_netdevice(&mut self, device: NetDevice) -> Result<Ifindex, Errno> {
        let index = self.netdevs.register(device)?;
        self.addrconf_dev_config(index);
        Ok(index)
    }

    /// All devices, by their indices.
    #[must_use]
    pub fn net_devices(&self) -> &[NetDevice] {
        &self.netdevs.0
    }

    /// The device with that number.
    #[must_use]
    pub fn dev_get_by_index(&self, index: Ifindex) -> Option<&NetDevice> {
        self.netdevs.0.get(usize::from(index.0) - 1)
    }

    /// The device with that name.
    #[must_use]
    pub fn dev_get_by_name(&self, name: &str) -> Option<&NetDevice> {
        self.netdevs.0.iter().find(|device| device.name == name)
    }

    /// Sets the longest IP packet that a device of software sends, in bytes (`ip link set DEV mtu`).
    ///
    /// # Errors
    /// ENODEV; EINVAL below 68 bytes (RFC 791), or where the device has a driver, which has set its rings up for another;
    /// ERANGE: a VLAN's is no longer than its device's.
    pub fn dev_set_mtu(&mut self, index: Ifindex, mtu: usize) -> Result<(), Errno> {
        let device = self.dev_get_by_index(index).ok_or(Errno::ENODEV)?;
        if mtu < ETH_MIN_MTU || device.netdev_ops == NetDeviceOps::Virtnet {
            return Err(Errno::EINVAL);
        }
        if let NetDeviceOps::Vlan { real_dev, .. } = device.netdev_ops
            && mtu > self.netdevs[real_dev].mtu
        {
            return Err(Errno::ERANGE);
        }
        self.netdevs[index].mtu = mtu;
        self.addrconf_mtu_changed(index);
        // Its VLANs go with it (`NETDEV_CHANGEMTU`).
        for at in 0..self.netdevs[index].vlans.len() {
            let (_, vlan) = self.netdevs[index].vlans[at];
            if self.netdevs[vlan].mtu > mtu {
                self.dev_set_mtu(vlan, mtu)?;
            }
        }
        Ok(())
    }

    /// A device has another address, and who knew the old one learns it (`NETDEV_CHANGEADDR`): VLANs have that of their
    /// device, and a bridge the lowest of its ports'.
    pub(crate) fn dev_addr_changed(&mut self, dev: Ifindex, addr: [u8; 6]) {
        self.netdevs[dev].dev_addr = addr;
        self.neigh_changeaddr(dev);
        if self.ipv6_get_lladdr(dev).is_none() {
            // It had no hardware address before.
            self.addrconf_dev_config(dev);
        }
        for at in 0..self.netdevs[dev].vlans.len() {
            let (_, vlan) = self.netdevs[dev].vlans[at];
            self.dev_addr_changed(vlan, addr);
        }
        if let Some(br) = self.netdevs[dev].br_port {
            self.br_addrs_changed(br);
        }
    }

    /// What a device has counted, with its driver; `None` where there is no such device.
    #[must_use]
    pub fn dev_get_stats(&self, index: Ifindex) -> Option<RtnlLinkStats64> {
        let device = self.dev_get_by_index(index)?;
        let mut stats = device.stats;
        if device.netdev_ops == NetDeviceOps::Virtnet {
            let (rx, tx) = self.dev.stats();
            (stats.rx_packets, stats.rx_bytes) = (rx.packets, rx.bytes);
            stats.rx_dropped += rx.drops;
            (stats.rx_length_errors, stats.rx_frame_errors) = (rx.length_errors, rx.frame_errors);
            (stats.tx_packets, stats.tx_bytes) = (tx.packets, tx.bytes);
        }
        Some(stats)
    }
}
