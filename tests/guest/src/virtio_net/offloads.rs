//! Offloads that can be switched (`ethtool -k`, `-K`; virtio 1.3, 5.1.6.5.6).
//!
//! In: whether the device may put received segments together (`rx-gro-hw`), and whether datagrams that stand for
//! several are left to the device (`tx-udp-segmentation`). Out: one command that says which receive offloads
//! stay; the other switch is the kernel's own.

use super::ctrl::CtrlError;
use super::{VirtnetInfo, features as f};
use crate::net::netdevice::NETIF_F_GSO_UDP_L4;
use crate::net::{Errno, Ifindex, Kernel, Machine};
use crate::transport::Transport;

/// Receive offloads that a driver can choose among.
const GUEST_OFFLOADS: u64 = f::GUEST_CSUM | GUEST_OFFLOAD_GRO_HW_MASK;
/// Those that make super-frames.
const GUEST_OFFLOAD_GRO_HW_MASK: u64 =
    f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_ECN | f::GUEST_UFO | f::GUEST_USO4 | f::GUEST_USO6;

/// Receive offloads that a device under `features` begins with.
pub(super) fn guest_offloads_capable(features: u64) -> u64 {
    features & GUEST_OFFLOADS
}

impl<T: Transport> VirtnetInfo<T> {
    /// Receive offloads in use, as bits of the features.
    #[must_use]
    pub fn guest_offloads(&self) -> u64 {
        self.guest_offloads
    }

    /// Has the device put received segments together as far as was negotiated, or not at all
    /// (`virtnet_set_features`; `ethtool -K DEV rx-gro-hw`). Other receive offloads stay. Frames that were on
    /// their way may still come as before.
    ///
    /// # Errors
    /// [`CtrlError::NotNegotiated`] without CTRL_GUEST_OFFLOADS, else as [`Self::send_command`]; then all stays
    /// as it was.
    pub fn set_gro_hw(&mut self, on: bool) -> Result<(), CtrlError> {
        if self.features & f::CTRL_GUEST_OFFLOADS == 0 {
            return Err(CtrlError::NotNegotiated("CTRL_GUEST_OFFLOADS"));
        }
        let capable = guest_offloads_capable(self.features);
        let offloads = if on {
            capable
        } else {
            capable & !GUEST_OFFLOAD_GRO_HW_MASK
        };
        if offloads == self.guest_offloads {
            return Ok(());
        }
        self.set_guest_offloads(offloads)
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Leaves datagrams that stand for several to the device, or takes them apart before
    /// (`ethtool -K DEV tx-udp-segmentation`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` without HOST_USO.
    pub fn set_tx_udp_segmentation(&mut self, on: bool) -> Result<(), Errno> {
        if on && self.dev.features() & f::HOST_USO == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let features = &mut self.netdevs[Ifindex::ETH0].features;
        *features &= !NETIF_F_GSO_UDP_L4;
        if on {
            *features |= NETIF_F_GSO_UDP_L4;
        }
        Ok(())
    }
}
