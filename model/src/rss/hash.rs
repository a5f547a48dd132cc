//! The hash calculation: which fields of a frame are hashed, and what the driver is told about it.
//!
//! Follows VIRTIO 1.4, 5.1.6.4.3 (Hash calculation for incoming packets). Of the hash types that are enabled and
//! fit the frame the most telling one counts: for IPv6 with extension headers those that know of
//! Mobile IPv6 come first, even the one over addresses alone before the plain ones with ports. A fragment has no
//! transport header, so all fragments of a datagram are hashed over their addresses.

use super::RssError;
use super::toeplitz::{MAX_KEY, Toeplitz};
use crate::parse::{self, Network, Plain, Summary, Transport};

/// A set of hash types (VIRTIO 1.4, 5.1.6.4.3.1, `hash_types`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashTypes(u32);

impl HashTypes {
    /// No type: nothing is hashed.
    pub const NONE: HashTypes = HashTypes(0);
    /// Every type there is.
    pub const ALL: HashTypes = HashTypes(0x1ff);

    /// The set that `bits` stand for, as the driver gives it.
    ///
    /// # Errors
    /// [`RssError::HashTypes`] if there is a bit without a meaning.
    pub fn from_bits(bits: u32) -> Result<Self, RssError> {
        match bits & !Self::ALL.0 {
            0 => Ok(HashTypes(bits)),
            unknown => Err(RssError::HashTypes(unknown)),
        }
    }

    /// The set's bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The type that a frame with the headers `summary` is hashed by.
    #[must_use]
    #[inline]
    pub fn of(self, summary: &Summary) -> HashReport {
        self.pick(Family::of(summary), summary.transport)
    }

    /// The type that a frame of `family` with `transport` is hashed by.
    fn pick(self, family: Family, transport: Transport) -> HashReport {
        // In each family the types are IP, TCP and UDP, from bit 0, 3 or 6 on; what is more telling has the higher bit.
        let family = match family {
            Family::Other => return HashReport::None,
            Family::Ipv4 => 1,
            Family::Extended => 1 << 3 | 1 << 6,
            Family::Ipv6 => 1 << 3,
        };
        let types = match transport {
            Transport::None => family,
            Transport::Tcp => family | family << 1,
            Transport::Udp => family | family << 2,
        };
        HashReport::from_number(u32::BITS - (types & self.0).leading_zeros())
    }
}

/// Families of hash types.
#[derive(Clone, Copy)]
enum Family {
    Other,
    Ipv4,
    Ipv6,
    /// IPv6 with extension headers.
    Extended,
}

impl Family {
    const ALL: [Family; 4] = [Family::Other, Family::Ipv4, Family::Ipv6, Family::Extended];

    #[inline]
    fn of(summary: &Summary) -> Self {
        match summary.network {
            Network::Other => Family::Other,
            Network::Ipv4 => Family::Ipv4,
            Network::Ipv6 if summary.is_extended() => Family::Extended,
            Network::Ipv6 => Family::Ipv6,
        }
    }
}

/// What [`HashTypes::of`] says for each family and transport, so that no frame has to have it worked out.
#[derive(Clone, Debug)]
struct Picks([[HashReport; 3]; Family::ALL.len()]);

impl Picks {
    fn new(types: HashTypes) -> Self {
        let transports = [Transport::None, Transport::Tcp, Transport::Udp];
        Picks(Family::ALL.map(|family| transports.map(|transport| types.pick(family, transport))))
    }

    #[inline]
    fn of(&self, summary: &Summary) -> HashReport {
        self.0[Family::of(summary) as usize][summary.transport as usize]
    }
}

/// The type that a frame was hashed by, as the driver is told (VIRTIO 1.4, 5.1.6.4.5, `hash_report`): the number of the
/// type's bit, plus 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum HashReport {
    /// It was not hashed.
    #[default]
    None = 0,
    /// Addresses of IPv4.
    Ipv4 = 1,
    /// Addresses of IPv4 and ports of TCP.
    Tcpv4 = 2,
    /// Addresses of IPv4 and ports of UDP.
    Udpv4 = 3,
    /// Addresses of IPv6.
    Ipv6 = 4,
    /// Addresses of IPv6 and ports of TCP.
    Tcpv6 = 5,
    /// Addresses of IPv6 and ports of UDP.
    Udpv6 = 6,
    /// Addresses of Mobile IPv6.
    Ipv6Ex = 7,
    /// Addresses of Mobile IPv6 and ports of TCP.
    Tcpv6Ex = 8,
    /// Addresses of Mobile IPv6 and ports of UDP.
    Udpv6Ex = 9,
}

impl HashReport {
    #[inline]
    fn from_number(number: u32) -> Self {
        match number {
            1 => HashReport::Ipv4,
            2 => HashReport::Tcpv4,
            3 => HashReport::Udpv4,
            4 => HashReport::Ipv6,
            5 => HashReport::Tcpv6,
            6 => HashReport::Udpv6,
            7 => HashReport::Ipv6Ex,
            8 => HashReport::Tcpv6Ex,
            9 => HashReport::Udpv6Ex,
            _ => HashReport::None,
        }
    }
}

/// What to hash, and with which key (`struct virtio_net_hash_config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashConfig {
    types: HashTypes,
    key: [u8; MAX_KEY],
}

impl Default for HashConfig {
    /// Nothing is hashed.
    fn default() -> Self {
        HashConfig {
            types: HashTypes::NONE,
            key: [0; MAX_KEY],
        }
    }
}

impl HashConfig {
    /// Hashes all types with the key that Microsoft's specification of receive-side scaling uses to verify it, and many a
    /// card comes with.
    #[must_use]
    pub fn usual() -> Self {
        HashConfig {
            types: HashTypes::ALL,
            key: USUAL_KEY,
        }
    }

    /// Hashes by the types in `types`, with `key`; zeros follow a key that is shorter than [`MAX_KEY`] octets.
    ///
    /// # Errors
    /// [`RssError::HashTypes`] if there are unknown types, [`RssError::KeyLength`] if the key is longer than
    /// [`MAX_KEY`] octets.
    pub fn new(types: u32, key: &[u8]) -> Result<Self, RssError> {
        let mut config = HashConfig {
            types: HashTypes::from_bits(types)?,
            key: [0; MAX_KEY],
        };
        let whole = config.key.get_mut(..key.len());
        whole
            .ok_or(RssError::KeyLength(key.len()))?
            .copy_from_slice(key);
        Ok(config)
    }

    /// The types that are enabled.
    #[must_use]
    pub fn types(&self) -> HashTypes {
        self.types
    }

    /// The key, with the zeros that follow it.
    #[must_use]
    pub fn key(&self) -> &[u8; MAX_KEY] {
        &self.key
    }
}

#[rustfmt::skip]
const USUAL_KEY: [u8; MAX_KEY] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// The hash calculation with one configuration.
#[derive(Clone, Debug)]
pub struct Hasher {
    config: HashConfig,
    picks: Picks,
    toeplitz: Toeplitz,
}

impl Hasher {
    /// A hash calculation as `config` says.
    #[must_use]
    pub fn new(config: HashConfig) -> Self {
        Hasher {
            picks: Picks::new(config.types),
            toeplitz: Toeplitz::new(&config.key),
            config,
        }
    }

    /// Hashes as `config` says from now on.
    pub fn set(&mut self, config: &HashConfig) {
        if config.key != self.config.key {
            self.toeplitz.set_key(&config.key);
        }
        self.picks = Picks::new(config.types);
        self.config = config.clone();
    }

    /// What is hashed, and with which key.
    #[must_use]
    pub fn config(&self) -> &HashConfig {
        &self.config
    }

    /// The hash of a frame as most are, and its type; 0 without a type.
    #[inline(always)] // on the way of each packet
    pub(super) fn hash_plain<const VERSION: u8>(
        &self,
        frame: &[u8],
        headers: Plain<VERSION>,
    ) -> (u32, HashReport) {
        let addresses = Plain::<VERSION>::ADDRESSES;
        let family = match VERSION {
            4 => Family::Ipv4,
            _ => Family::Ipv6,
        };
        let report = self.picks.0[family as usize][headers.transport as usize];
        let hash = match (VERSION, report) {
            (_, HashReport::None) => None,
            (4, HashReport::Ipv4) => self.part::<0, 8>(frame, addresses),
            // The ports follow the addresses.
            (4, _) => self.part::<0, 12>(frame, addresses),
            (_, HashReport::Ipv6) => self.first_part::<32>(frame, addresses),
            _ => self.first_part::<36>(frame, addresses),
        };
        (hash.unwrap_or(0), report)
    }

    /// The hash of a frame with the headers `summary`, and its type; 0 without a type.
    #[must_use]
    pub fn hash(&self, frame: &[u8], summary: &Summary) -> (u32, HashReport) {
        let report = self.picks.of(summary);
        let network = usize::from(summary.network_offset);
        let ports = usize::from(summary.transport_offset);
        let hash = match report {
            HashReport::None => None,
            HashReport::Ipv4 => self.part::<0, 8>(frame, network + 12),
            HashReport::Tcpv4 | HashReport::Udpv4 => both(
                self.part::<0, 8>(frame, network + 12),
                self.part::<8, 4>(frame, ports),
            ),
            HashReport::Ipv6 => self.part::<0, 32>(frame, network + 8),
            HashReport::Tcpv6 | HashReport::Udpv6 if ports == network + 40 => {
                self.part::<0, 36>(frame, network + 8)
            }
            HashReport::Tcpv6 | HashReport::Udpv6 => both(
                self.part::<0, 32>(frame, network + 8),
                self.part::<32, 4>(frame, ports),
            ),
            HashReport::Ipv6Ex | HashReport::Tcpv6Ex | HashReport::Udpv6Ex => {
                return self.hash_mobile(frame, summary, report);
            }
        };
        Self::reported(hash, report)
    }

    /// [`Hasher::hash`] for Mobile IPv6, which is too rare to be in the others' way.
    #[cold]
    fn hash_mobile(
        &self,
        frame: &[u8],
        summary: &Summary,
        report: HashReport,
    ) -> (u32, HashReport) {
        let (source, destination) = parse::mobile_addresses(frame, summary);
        let addresses = both(
            self.part::<0, 16>(frame, source),
            self.part::<16, 16>(frame, destination),
        );
        let hash = match report {
            HashReport::Ipv6Ex => addresses,
            _ => both(
                addresses,
                self.part::<32, 4>(frame, summary.transport_offset.into()),
            ),
        };
        Self::reported(hash, report)
    }

    /// The hash with its type, as long as the fields were where the summary says.
    #[inline]
    fn reported(hash: Option<u32>, report: HashReport) -> (u32, HashReport) {
        hash.map_or((0, HashReport::None), |hash| (hash, report))
    }

    /// What the `N` octets of the frame from `at` on contribute, as octets `FROM` onwards of what is hashed.
    #[inline]
    fn part<const FROM: usize, const N: usize>(&self, frame: &[u8], at: usize) -> Option<u32> {
        Some(self.toeplitz.part::<FROM, N>(octets(frame, at)?))
    }

    /// [`Hasher::part`] for the first octets of what is hashed, in functions that are `#[cold]`.
    #[inline]
    fn first_part<const N: usize>(&self, frame: &[u8], at: usize) -> Option<u32> {
        Some(self.toeplitz.first_part(octets::<N>(frame, at)?))
    }
}

/// The hash over two parts.
#[inline]
fn both(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    Some(one? ^ other?)
}

/// `N` octets of the frame from `at` on.
#[inline]
pub(super) fn octets<const N: usize>(frame: &[u8], at: usize) -> Option<&[u8; N]> {
    frame.get(at..at + N)?.first_chunk()
}
