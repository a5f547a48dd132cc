//! What flows are hashed by, in ethtool's words (`ethtool -N DEV rx-flow-hash`).
//!
//! In: a kind of flow and the fields to hash. Out: hash types. The types of a transport stand on those of its
//! network layer: who asks for addresses and ports of UDP gets plain addresses for what has no ports.

use super::hash_input as t;

/// A kind of flow (`TCP_V4_FLOW`, ...).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowType {
    /// `tcp4`.
    TcpV4,
    /// `udp4`.
    UdpV4,
    /// All of IPv4.
    IpV4,
    /// `tcp6`.
    TcpV6,
    /// `udp6`.
    UdpV6,
    /// All of IPv6.
    IpV6,
}

/// What packets of a flow are hashed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowHash {
    /// Nothing (`r`, `RXH_DISCARD`).
    Discard,
    /// Source and destination address (`sd`).
    Addresses,
    /// The same and both ports (`sdfn`); where flows have none, the addresses alone.
    Ports,
}

impl FlowType {
    /// The types of addresses, and of ports where such flows have any.
    fn types(self) -> (u32, u32) {
        match self {
            Self::TcpV4 => (
                t::VIRTIO_NET_RSS_HASH_TYPE_IPV4,
                t::VIRTIO_NET_RSS_HASH_TYPE_TCPV4,
            ),
            Self::UdpV4 => (
                t::VIRTIO_NET_RSS_HASH_TYPE_IPV4,
                t::VIRTIO_NET_RSS_HASH_TYPE_UDPV4,
            ),
            Self::IpV4 => (t::VIRTIO_NET_RSS_HASH_TYPE_IPV4, 0),
            Self::TcpV6 => (
                t::VIRTIO_NET_RSS_HASH_TYPE_IPV6,
                t::VIRTIO_NET_RSS_HASH_TYPE_TCPV6,
            ),
            Self::UdpV6 => (
                t::VIRTIO_NET_RSS_HASH_TYPE_IPV6,
                t::VIRTIO_NET_RSS_HASH_TYPE_UDPV6,
            ),
            Self::IpV6 => (t::VIRTIO_NET_RSS_HASH_TYPE_IPV6, 0),
        }
    }

    /// `hash_types`, with this kind of flow hashed by `hash`.
    pub(super) fn set(self, hash_types: u32, hash: FlowHash) -> u32 {
        let (addresses, ports) = self.types();
        let others = hash_types & !(addresses | ports);
        match hash {
            FlowHash::Discard => others,
            FlowHash::Addresses => others | addresses,
            FlowHash::Ports => others | addresses | ports,
        }
    }

    /// What this kind of flow is hashed by under `hash_types`.
    pub(super) fn get(self, hash_types: u32) -> FlowHash {
        let (addresses, ports) = self.types();
        if hash_types & ports != 0 {
            FlowHash::Ports
        } else if hash_types & addresses != 0 {
            FlowHash::Addresses
        } else {
            FlowHash::Discard
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_what_is_got() {
        let cases = [
            (FlowType::TcpV4, FlowHash::Ports, 0x03),
            (FlowType::UdpV4, FlowHash::Ports, 0x05),
            (FlowType::IpV4, FlowHash::Addresses, 0x01),
            (FlowType::TcpV6, FlowHash::Ports, 0x18),
            (FlowType::UdpV6, FlowHash::Addresses, 0x08),
            (FlowType::IpV6, FlowHash::Discard, 0x00),
        ];
        for (flow, hash, types) in cases {
            assert_eq!(flow.set(0, hash), types);
            assert_eq!(flow.get(types), hash);
        }
    }

    #[test]
    fn other_flows_keep_theirs() {
        assert_eq!(FlowType::UdpV4.set(0x3f, FlowHash::Addresses), 0x3b);
        assert_eq!(FlowType::UdpV6.set(0x3f, FlowHash::Discard), 0x17);
        // Linux's, too: without the addresses of one, the other's packets without ports go unhashed.
        assert_eq!(FlowType::TcpV4.get(0x02), FlowHash::Ports);
        assert_eq!(FlowType::IpV4.set(0, FlowHash::Ports), 0x01);
    }
}
