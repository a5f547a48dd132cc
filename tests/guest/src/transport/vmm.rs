//! What a front-end answers itself when the backend has no config space.
//!
//! QEMU, cloud-hypervisor and DPDK own config space and control queue of a vhost-user NIC: MAC,
//! link state, MTU and receive modes stay with them, and queue pairs become SET_VRING_ENABLE. A
//! backend without protocol feature CONFIG (DPDK's vhost library) counts on that.

use crate::virtio_net::ctrl;
use crate::virtio_net::features as f;

/// Features that the front-end provides, and does not tell the backend of.
pub(super) const PROVIDED: u64 = f::MAC | f::STATUS | f::CTRL_VQ | f::CTRL_RX | f::CTRL_MAC_ADDR;
/// Features that need config space or a control queue of the device itself.
pub(super) const DEVICE_OWNED: u64 = PROVIDED
    | f::CTRL_VLAN
    | f::CTRL_RX_EXTRA
    | f::CTRL_GUEST_OFFLOADS
    | f::GUEST_ANNOUNCE
    | f::NOTF_COAL
    | f::VQ_NOTF_COAL
    | f::RSS
    | f::HASH_REPORT
    | f::SPEED_DUPLEX
    | f::DEVICE_STATS
    | f::HASH_TUNNEL;

/// What a VMM's command line says of the NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmConfig {
    /// Queue pairs.
    pub pairs: u16,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU, if the guest is to be told one.
    pub mtu: Option<u16>,
}

impl Default for VmmConfig {
    fn default() -> Self {
        Self {
            pairs: 1,
            mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            mtu: None,
        }
    }
}

impl VmmConfig {
    /// `features` of a backend, less what cannot be offered, plus what is provided here.
    pub(super) fn offer(&self, features: u64, provided: u64) -> u64 {
        let mut hidden = 0;
        if self.mtu.is_none() {
            hidden |= f::MTU;
        }
        if self.pairs == 1 {
            hidden |= f::MQ;
        }
        features & !hidden | provided
    }

    /// Reads config space as it is made up here; `None` when the range is too long.
    pub(super) fn read(&self, offset: u32, buf: &mut [u8]) -> Option<()> {
        let mut bytes = [0; 64];
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6] = 1; // VIRTIO_NET_S_LINK_UP
        bytes[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        let at = offset as usize;
        buf.copy_from_slice(bytes.get(at..at.checked_add(buf.len())?)?);
        Some(())
    }

    /// What a control command asks for.
    pub(super) fn control(&self, class: u8, command: u8, data: &[u8]) -> Control {
        let (mq, pairs_set) = (
            ctrl::VIRTIO_NET_CTRL_MQ,
            ctrl::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
        );
        if (class, command) != (mq, pairs_set) {
            // Receive modes and addresses stay with the VMM.
            return Control::Done;
        }
        match data.try_into().map(u16::from_le_bytes) {
            Ok(pairs) if (1..=self.pairs).contains(&pairs) => Control::UsePairs(pairs),
            _ => Control::Refused,
        }
    }
}

/// A control command as a VMM sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    Done,
    Refused,
    UsePairs(u16),
}
