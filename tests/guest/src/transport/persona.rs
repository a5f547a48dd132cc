//! What the front-ends in the field have in common, and where they differ, as a table.
//!
//! Read from their sources and from message traces: QEMU 11.1.3 (`virtio-net-pci`),
//! cloud-hypervisor 53, crosvm, DPDK 25.11 (`net_virtio_user`), User-mode Linux 6.12. The order of
//! the messages is in [`super::front_end`].

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

use super::vmm::PROVIDED;
use crate::virtio_net::features as f;

/// Whose messages to play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Persona {
    /// A front-end with no habits: every message acknowledged, everything the device's.
    Plain,
    /// QEMU `-netdev vhost-user` with `virtio-net-pci`.
    Qemu,
    /// cloud-hypervisor `--net vhost_user=true`.
    CloudHypervisor,
    /// crosvm `--vhost-user type=net`.
    Crosvm,
    /// DPDK `net_virtio_user`.
    VirtioUser,
    /// User-mode Linux `virtio_uml.device=`.
    Uml,
}

impl Persona {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Plain,
        Self::Qemu,
        Self::CloudHypervisor,
        Self::Crosvm,
        Self::VirtioUser,
        Self::Uml,
    ];

    /// Device features that pass from the backend to the guest.
    #[must_use]
    pub fn passes(self) -> u64 {
        let tso = f::CSUM
            | f::GUEST_CSUM
            | f::GUEST_TSO4
            | f::GUEST_TSO6
            | f::GUEST_ECN
            | f::GUEST_UFO
            | f::HOST_TSO4
            | f::HOST_TSO6
            | f::HOST_ECN
            | f::HOST_UFO;
        let common = tso | f::MRG_RXBUF | f::INDIRECT_DESC | f::EVENT_IDX | f::VERSION_1 | f::MQ;
        match self {
            Self::Plain => !(f::PROTOCOL_FEATURES | f::LOG_ALL),
            // It has no message to stop a queue by.
            Self::Uml => !(f::PROTOCOL_FEATURES | f::LOG_ALL | f::RING_RESET),
            Self::Qemu => {
                let rings = f::RING_PACKED | f::IN_ORDER | f::RING_RESET;
                common | rings | f::MTU | f::GUEST_ANNOUNCE | f::RSC_EXT
            }
            Self::CloudHypervisor => common | f::IN_ORDER | f::CTRL_VQ | f::GUEST_ANNOUNCE | f::MTU,
            // Bits 0 to 23 and 50 to 63.
            Self::Crosvm => 0xfffc_0000_00ff_ffff | f::VERSION_1 | f::EVENT_IDX,
            Self::VirtioUser => {
                let less = f::GUEST_ECN | f::GUEST_UFO | f::HOST_ECN | f::HOST_UFO | f::EVENT_IDX;
                common & !less | f::RING_PACKED | f::IN_ORDER
            }
        }
    }

    /// Device features that the guest sees because the front-end itself provides them, where it
    /// owns config space and control queue.
    #[must_use]
    pub fn provides(self) -> u64 {
        match self {
            Self::CloudHypervisor => f::MAC,
            _ => PROVIDED,
        }
    }

    /// Features that the front-end keeps for itself although the guest chose them.
    #[must_use]
    pub fn keeps(self) -> u64 {
        match self {
            Self::CloudHypervisor => f::MAC,
            _ => PROVIDED,
        }
    }

    /// Protocol features it takes where they are offered.
    #[must_use]
    pub fn protocol_features(self) -> Protocol {
        match self {
            Self::Plain => {
                Protocol::MQ
                    | Protocol::CONFIG
                    | Protocol::REPLY_ACK
                    | Protocol::BACKEND_REQ
                    | Protocol::RESET_DEVICE
                    | Protocol::STATUS
            }
            Self::Qemu => Protocol::all() - (Protocol::CONFIG | Protocol::XEN_MMAP),
            Self::CloudHypervisor => {
                Protocol::MQ
                    | Protocol::CONFIGURE_MEM_SLOTS
                    | Protocol::REPLY_ACK
                    | Protocol::INFLIGHT_SHMFD
                    | Protocol::LOG_SHMFD
            }
            Self::Crosvm => {
                Protocol::CONFIG
                    | Protocol::MQ
                    | Protocol::BACKEND_REQ
                    | Protocol::DEVICE_STATE
                    | Protocol::REPLY_ACK
            }
            Self::VirtioUser => Protocol::MQ | Protocol::REPLY_ACK | Protocol::STATUS,
            Self::Uml => {
                Protocol::MQ | Protocol::REPLY_ACK | Protocol::BACKEND_REQ | Protocol::CONFIG
            }
        }
    }

    /// Whether it sets NEED_REPLY on this message, once REPLY_ACK is negotiated.
    #[must_use]
    pub fn awaits(self, request: FrontendReq) -> bool {
        match self {
            Self::Plain | Self::CloudHypervisor | Self::Uml => true,
            Self::Crosvm => false,
            Self::Qemu => matches!(
                request,
                FrontendReq::SET_MEM_TABLE
                    | FrontendReq::ADD_MEM_REG
                    | FrontendReq::SET_VRING_ENABLE
                    | FrontendReq::SET_VRING_KICK
                    | FrontendReq::SET_VRING_CALL
                    | FrontendReq::SET_BACKEND_REQ_FD
            ),
            Self::VirtioUser => {
                matches!(
                    request,
                    FrontendReq::SET_MEM_TABLE | FrontendReq::SET_STATUS
                )
            }
        }
    }

    /// Whether config space and control queue are the front-end's own, whatever the backend has.
    #[must_use]
    pub fn owns_config(self) -> bool {
        matches!(self, Self::Qemu | Self::CloudHypervisor | Self::VirtioUser)
    }

    /// Whether ring addresses (and regions' user addresses) are guest-physical.
    #[must_use]
    pub fn rings_by_guest_address(self) -> bool {
        self == Self::Uml
    }

    /// Whether the call descriptor is a socket instead of an eventfd.
    #[must_use]
    pub fn call_is_socket(self) -> bool {
        self == Self::Uml
    }

    /// Whether it attaches again when the backend comes back.
    #[must_use]
    pub fn reconnects(self) -> bool {
        // crosvm takes a closed socket for a crashed device; User-mode Linux breaks the device.
        !matches!(self, Self::Crosvm | Self::Uml)
    }
}
