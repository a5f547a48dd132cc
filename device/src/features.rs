//! Feature bits: what the device can do, and what a driver accepted (VIRTIO 1.3, 2.2, 5.1.3 and 6).

use std::fmt;
use std::str::FromStr;

use virtio_bindings::{virtio_config, virtio_net, virtio_ring};

use crate::header::{LEGACY_HEADER, MAX_HEADER, USUAL_HEADER};

/// The bit of HASH_TUNNEL (VIRTIO 1.4, 5.1.3).
const VIRTIO_NET_F_HASH_TUNNEL: u32 = 51;

bitflags::bitflags! {
    /// Feature bits of this device, under the names of the VIRTIO specification.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The device inserts checksums.
        const CSUM = 1 << virtio_net::VIRTIO_NET_F_CSUM;
        /// The driver handles packets whose checksum is partial, and wants verdicts.
        const GUEST_CSUM = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
        /// The control queue says which of these offloads the driver takes at the moment.
        const CTRL_GUEST_OFFLOADS = 1 << virtio_net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
        /// The device says how long packets may be.
        const MTU = 1 << virtio_net::VIRTIO_NET_F_MTU;
        /// The device has an address.
        const MAC = 1 << virtio_net::VIRTIO_NET_F_MAC;
        /// The driver takes super-frames of TCP over IPv4.
        const GUEST_TSO4 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4;
        /// The driver takes super-frames of TCP over IPv6.
        const GUEST_TSO6 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO6;
        /// The driver takes super-frames of TCP with CWR.
        const GUEST_ECN = 1 << virtio_net::VIRTIO_NET_F_GUEST_ECN;
        /// The driver takes datagrams of UDP that stand for fragments of IP.
        const GUEST_UFO = 1 << virtio_net::VIRTIO_NET_F_GUEST_UFO;
        /// The device cuts super-frames of TCP over IPv4.
        const HOST_TSO4 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4;
        /// The device cuts super-frames of TCP over IPv6.
        const HOST_TSO6 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6;
        /// The device cuts super-frames of TCP with CWR.
        const HOST_ECN = 1 << virtio_net::VIRTIO_NET_F_HOST_ECN;
        /// The device cuts datagrams of UDP into fragments of IP.
        const HOST_UFO = 1 << virtio_net::VIRTIO_NET_F_HOST_UFO;
        /// A received packet may span several buffers.
        const MRG_RXBUF = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;
        /// The device tells its link's state.
        const STATUS = 1 << virtio_net::VIRTIO_NET_F_STATUS;
        /// There is a control queue.
        const CTRL_VQ = 1 << virtio_net::VIRTIO_NET_F_CTRL_VQ;
        /// The control queue sets the receive mode.
        const CTRL_RX = 1 << virtio_net::VIRTIO_NET_F_CTRL_RX;
        /// The control queue sets the address.
        const CTRL_MAC_ADDR = 1 << virtio_net::VIRTIO_NET_F_CTRL_MAC_ADDR;
        /// The control queue says of which VLANs the driver is.
        const CTRL_VLAN = 1 << virtio_net::VIRTIO_NET_F_CTRL_VLAN;
        /// The control queue refuses whole kinds of frames.
        const CTRL_RX_EXTRA = 1 << virtio_net::VIRTIO_NET_F_CTRL_RX_EXTRA;
        /// The device can ask the driver to tell its neighbours where it is.
        const GUEST_ANNOUNCE = 1 << virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;
        /// Several queue pairs.
        const MQ = 1 << virtio_net::VIRTIO_NET_F_MQ;
        /// The control queue tells the device's counts.
        const DEVICE_STATS = 1 << virtio_net::VIRTIO_NET_F_DEVICE_STATS;
        /// The control queue says of which tunnels the inner headers are hashed.
        const HASH_TUNNEL = 1 << VIRTIO_NET_F_HASH_TUNNEL;
        /// The control queue sets interrupt moderation for each virtqueue.
        const VQ_NOTF_COAL = 1 << virtio_net::VIRTIO_NET_F_VQ_NOTF_COAL;
        /// The control queue sets interrupt moderation for all virtqueues of a direction.
        const NOTF_COAL = 1 << virtio_net::VIRTIO_NET_F_NOTF_COAL;
        /// The driver takes super-frames of UDP over IPv4.
        const GUEST_USO4 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO4;
        /// The driver takes super-frames of UDP over IPv6.
        const GUEST_USO6 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO6;
        /// The device cuts super-frames of UDP.
        const HOST_USO = 1 << virtio_net::VIRTIO_NET_F_HOST_USO;
        /// The device says by which hash it steered a packet.
        const HASH_REPORT = 1 << virtio_net::VIRTIO_NET_F_HASH_REPORT;
        /// The driver says exactly how long the headers of super-frames are.
        const GUEST_HDRLEN = 1 << virtio_net::VIRTIO_NET_F_GUEST_HDRLEN;
        /// Receive-side scaling by a table of the driver's.
        const RSS = 1 << virtio_net::VIRTIO_NET_F_RSS;
        /// The device says how many segments a received super-frame stands for.
        const RSC_EXT = 1 << virtio_net::VIRTIO_NET_F_RSC_EXT;
        /// The device tells its line rate.
        const SPEED_DUPLEX = 1 << virtio_net::VIRTIO_NET_F_SPEED_DUPLEX;
        /// Descriptors may point to tables of descriptors.
        const INDIRECT_DESC = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
        /// Each side says at which index it wants to be notified.
        const EVENT_IDX = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
        /// The device follows VIRTIO 1.0 or later.
        const VERSION_1 = 1 << virtio_config::VIRTIO_F_VERSION_1;
        /// Virtqueues are packed (VIRTIO 1.3, 2.8).
        const RING_PACKED = 1 << virtio_config::VIRTIO_F_RING_PACKED;
        /// The device uses buffers in the order in which they were made available.
        const IN_ORDER = 1 << virtio_config::VIRTIO_F_IN_ORDER;
        /// A queue can be reset on its own.
        const RING_RESET = 1 << virtio_config::VIRTIO_F_RING_RESET;
        /// vhost-user's own bit: the two sides negotiate protocol features.
        const PROTOCOL_FEATURES = 1 << 30;
    }
}

impl Features {
    /// Kinds of super-frames that a driver takes.
    pub const GUEST_GSO: Self = Self::GUEST_TSO4
        .union(Self::GUEST_TSO6)
        .union(Self::GUEST_ECN)
        .union(Self::GUEST_UFO)
        .union(Self::GUEST_USO4)
        .union(Self::GUEST_USO6);
    /// Kinds of super-frames that the device takes.
    pub const HOST_GSO: Self = Self::HOST_TSO4
        .union(Self::HOST_TSO6)
        .union(Self::HOST_ECN)
        .union(Self::HOST_UFO)
        .union(Self::HOST_USO);
    /// What a driver may switch on and off (VIRTIO 1.3, 5.1.6.5.6).
    pub const GUEST_OFFLOADS: Self = Self::GUEST_CSUM.union(Self::GUEST_GSO);

    /// Everything that this device can do with `pairs` queue pairs. RING_RESET is not among it: some front-ends hand all that is
    /// offered to the driver, and cannot reset a queue themselves.
    #[must_use]
    pub fn supported(pairs: u16) -> Self {
        let several = if pairs > 1 {
            Features::empty()
        } else {
            Features::MQ
        };
        Features::all().difference(several | Features::RING_RESET)
    }

    /// Octets of the header before each packet (VIRTIO 1.3, 5.1.6; 5.1.6.1 for legacy drivers).
    #[must_use]
    pub fn header_len(self) -> usize {
        if self.contains(Features::HASH_REPORT) {
            MAX_HEADER
        } else if self.intersects(Features::VERSION_1 | Features::MRG_RXBUF) {
            USUAL_HEADER
        } else {
            LEGACY_HEADER
        }
    }

    /// The virtqueue for control of a device with `pairs` queue pairs, if the driver accepted one: behind all pairs
    /// with MQ or RSS, behind the first without (VIRTIO 1.3, 5.1.2).
    #[must_use]
    pub fn control_queue(self, pairs: u16) -> Option<usize> {
        if !self.contains(Features::CTRL_VQ) {
            None
        } else if self.intersects(Features::MQ | Features::RSS) {
            Some(2 * usize::from(pairs))
        } else {
            Some(2)
        }
    }

    /// Removes `feature` and what cannot be without it (VIRTIO 1.3, 5.1.3.1).
    #[must_use]
    pub fn without(self, feature: Features) -> Self {
        let mut left = self.difference(feature);
        if !left.contains(Features::CTRL_VQ) {
            left.remove(Features::CTRL_RX | Features::CTRL_MAC_ADDR | Features::MQ);
            left.remove(Features::NOTF_COAL | Features::VQ_NOTF_COAL);
            left.remove(Features::RSS | Features::HASH_REPORT);
            left.remove(Features::CTRL_VLAN | Features::CTRL_RX_EXTRA);
            left.remove(Features::DEVICE_STATS | Features::CTRL_GUEST_OFFLOADS);
        }
        if !left.contains(Features::CSUM) {
            left.remove(Features::HOST_GSO);
        }
        if !left.contains(Features::GUEST_CSUM) {
            left.remove(Features::GUEST_GSO);
        }
        if !left.intersects(Features::HOST_TSO4 | Features::HOST_TSO6) {
            left.remove(Features::HOST_ECN | Features::RSC_EXT);
        }
        // How long whose headers are?
        if !left.intersects(Features::HOST_GSO) {
            left.remove(Features::GUEST_HDRLEN);
        }
        if !left.intersects(Features::GUEST_TSO4 | Features::GUEST_TSO6) {
            // Coalesced are segments of TCP alone.
            left.remove(Features::GUEST_ECN | Features::RSC_EXT);
        }
        // A hash that nobody uses is not worth looking into tunnels for.
        if !left.intersects(Features::RSS | Features::HASH_REPORT) {
            left.remove(Features::HASH_TUNNEL);
        }
        // What it asks for is asked for in the status, and answered on the control queue.
        if !left.contains(Features::CTRL_VQ | Features::STATUS) {
            left.remove(Features::GUEST_ANNOUNCE);
        }
        left
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, _)) in self.iter_names().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}

/// What is wrong with the name of a feature.
#[derive(Debug, thiserror::Error)]
#[error("no feature is called {name:?}; those that can be disabled are {known}")]
pub struct UnknownFeature {
    name: String,
    known: Features,
}

impl FromStr for Features {
    type Err = UnknownFeature;
    fn from_str(text: &str) -> Result<Self, UnknownFeature> {
        // Neither the protocol itself nor the modern interface can be switched off.
        let known = Features::all() - Features::PROTOCOL_FEATURES - Features::VERSION_1;
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("VIRTIO_NET_F_").unwrap_or(&name);
        Features::from_name(name)
            .filter(|feature| known.contains(*feature))
            .ok_or_else(|| UnknownFeature {
                name: text.to_owned(),
                known,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_specifications() {
        assert_eq!(
            "mrg_rxbuf".parse::<Features>().unwrap(),
            Features::MRG_RXBUF
        );
        assert_eq!(
            "VIRTIO_NET_F_MTU".parse::<Features>().unwrap(),
            Features::MTU
        );
        let error = "TURBO".parse::<Features>().unwrap_err().to_string();
        assert!(
            error.contains("TURBO") && error.contains("EVENT_IDX"),
            "{error}"
        );
    }

    #[test]
    fn what_needs_the_control_queue_goes_with_it() {
        let left = Features::all().without(Features::CTRL_VQ);
        assert!(!left.intersects(Features::CTRL_VQ | Features::CTRL_RX | Features::CTRL_MAC_ADDR));
        assert!(!left.intersects(Features::NOTF_COAL | Features::VQ_NOTF_COAL));
        assert!(!left.intersects(Features::MQ | Features::RSS | Features::HASH_REPORT));
        assert!(!left.intersects(Features::CTRL_VLAN | Features::CTRL_RX_EXTRA));
        assert!(!left.intersects(Features::DEVICE_STATS | Features::GUEST_ANNOUNCE));
        assert!(left.contains(Features::CSUM | Features::SPEED_DUPLEX));
    }

    #[test]
    fn what_is_asked_for_in_the_status_goes_with_it() {
        let left = Features::supported(1).without(Features::STATUS);
        assert!(!left.contains(Features::GUEST_ANNOUNCE));
        let others = Features::STATUS | Features::GUEST_ANNOUNCE;
        assert_eq!(left, Features::supported(1).difference(others));
    }

    #[test]
    fn super_frames_go_with_the_checksums_and_ecn_with_tcp() {
        let left = Features::all().without(Features::CSUM);
        assert!(!left.intersects(Features::HOST_GSO) && left.contains(Features::GUEST_GSO));
        assert!(!left.intersects(Features::GUEST_HDRLEN | Features::RSC_EXT));
        let left = Features::all().without(Features::GUEST_CSUM);
        assert!(!left.intersects(Features::GUEST_GSO) && left.contains(Features::HOST_GSO));
        assert!(left.contains(Features::GUEST_HDRLEN) && !left.contains(Features::RSC_EXT));
        let left = Features::all().without(Features::HOST_TSO4 | Features::GUEST_TSO6);
        assert!(left.contains(Features::HOST_ECN | Features::GUEST_ECN | Features::RSC_EXT));
        let left = left.without(Features::HOST_TSO6 | Features::GUEST_TSO4);
        assert!(!left.intersects(Features::HOST_ECN | Features::GUEST_ECN));
        assert!(left.contains(Features::HOST_USO | Features::GUEST_USO4));
        let left = left.without(Features::CTRL_VQ);
        assert!(!left.contains(Features::CTRL_GUEST_OFFLOADS));
    }

    #[test]
    fn tunnels_are_for_hashes() {
        let left = Features::all().without(Features::RSS);
        assert!(left.contains(Features::HASH_TUNNEL));
        let left = left.without(Features::HASH_REPORT);
        assert!(!left.contains(Features::HASH_TUNNEL));
    }

    #[test]
    fn the_header_is_shorter_for_legacy_drivers() {
        assert_eq!(Features::VERSION_1.header_len(), 12);
        assert_eq!(Features::MRG_RXBUF.header_len(), 12);
        assert_eq!(Features::CSUM.header_len(), 10);
        assert_eq!(Features::HASH_REPORT.header_len(), 20);
    }
}
