//! Hashes of what is inside tunnels (virtio 1.3, 5.1.6.4.3, "Inner Header Hash").
//!
//! In: tunnels whose packets are to be hashed by their inner headers. Out: one command.

use super::VirtnetInfo;
use super::ctrl::{self, CtrlError};
use crate::transport::Transport;

/// GRE of RFC 2784.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_GRE_2784: u32 = 1 << 0;
/// GRE of RFC 2890.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_GRE_2890: u32 = 1 << 1;
/// GRE of RFC 7676.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_GRE_7676: u32 = 1 << 2;
/// GRE in UDP.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_GRE_UDP: u32 = 1 << 3;
/// VXLAN.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN: u32 = 1 << 4;
/// VXLAN with the Generic Protocol Extension.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_VXLAN_GPE: u32 = 1 << 5;
/// GENEVE.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_GENEVE: u32 = 1 << 6;
/// IP in IP.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_IPIP: u32 = 1 << 7;
/// NVGRE.
pub const VIRTIO_NET_HASH_TUNNEL_TYPE_NVGRE: u32 = 1 << 8;

impl<T: Transport> VirtnetInfo<T> {
    /// Has packets in these tunnels (`VIRTIO_NET_HASH_TUNNEL_TYPE_*`) hashed by their inner headers.
    ///
    /// # Errors
    /// [`CtrlError::NotNegotiated`] without HASH_TUNNEL, [`CtrlError::Invalid`] for tunnels that the device does not know, else as [`Self::send_command`].
    pub fn set_hash_tunnel(&mut self, tunnel_types: u32) -> Result<(), CtrlError> {
        let supported = self.config.supported_tunnel_types;
        let supported = supported.ok_or(CtrlError::NotNegotiated("HASH_TUNNEL"))?;
        if tunnel_types & !supported != 0 {
            return Err(CtrlError::Invalid("tunnel type"));
        }
        let (class, command) = (
            ctrl::VIRTIO_NET_CTRL_HASH_TUNNEL,
            ctrl::VIRTIO_NET_CTRL_HASH_TUNNEL_SET,
        );
        self.send_command(class, command, &tunnel_types.to_le_bytes())
    }
}
