//! The receive address filter: which frames are for this station.
//!
//! Frames enter behind the MAC; those that no rule admits are dropped and counted as
//! [`Drop::RxFiltered`]. The rules are those of VIRTIO 1.3, 5.1.6.5.1 and 5.1.6.5.2: the station's own
//! address, exact tables of unicast and multicast addresses, and switches that admit or refuse whole
//! kinds. Promiscuous wins over everything; of the others, those that refuse a kind win over those that admit
//! it. An inactive filter (its owner did not ask for one) admits what no switch refuses.

use std::fmt;
use std::str::FromStr;

use crate::counters::Drop;

/// An Ethernet address (IEEE 802, 8.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All ones: every station.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

    /// Whether it stands for a group of stations (the first bit on the wire is set).
    #[must_use]
    #[inline]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The address as a number, to be compared at once; its lowest octets are none of it.
    fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What is wrong with the text of an address.
#[derive(Debug, thiserror::Error)]
#[error(
    "not a station's Ethernet address: {0:?} (write it as 52:54:00:12:34:56; the first octet is even)"
)]
pub struct BadMacAddress(String);

impl FromStr for MacAddress {
    type Err = BadMacAddress;
    fn from_str(text: &str) -> Result<Self, BadMacAddress> {
        let bad = || BadMacAddress(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        let address = MacAddress(octets);
        if parts.next().is_some() || address.is_group() || address == MacAddress::default() {
            return Err(bad());
        }
        Ok(address)
    }
}

/// Addresses that one table holds; a driver that has more asks for all frames of the kind.
pub const TABLE_SIZE: usize = 64;

/// To whom a frame that was admitted is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// One station.
    Unicast,
    /// A group of stations.
    Multicast,
    /// Every station.
    Broadcast,
}

impl Destination {
    /// To whom a frame to `address` is sent.
    #[must_use]
    #[inline]
    pub fn of(address: MacAddress) -> Self {
        if !address.is_group() {
            Destination::Unicast
        } else if address == MacAddress::BROADCAST {
            Destination::Broadcast
        } else {
            Destination::Multicast
        }
    }

    /// To whom `frame` is sent; to one station if it has no whole address.
    #[must_use]
    #[inline]
    pub fn of_frame(frame: &[u8]) -> Self {
        let address = frame.first_chunk::<6>();
        address.map_or(Destination::Unicast, |address| {
            Self::of(MacAddress(*address))
        })
    }
}

/// The filter's switches and tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Whether it looks for addresses at all; if not, all that is not refused passes.
    pub active: bool,
    /// The station's own address, and as a number.
    address: MacAddress,
    own: u64,
    /// Admits all frames, whatever the other switches say.
    pub promiscuous: bool,
    /// Admits all multicast frames.
    pub all_multicast: bool,
    /// Admits all unicast frames.
    pub all_unicast: bool,
    /// Refuses multicast frames; broadcast is not among them.
    pub no_multicast: bool,
    /// Refuses unicast frames.
    pub no_unicast: bool,
    /// Refuses broadcast frames.
    pub no_broadcast: bool,
    /// Addresses of other stations that are admitted too.
    unicast: Table,
    /// Groups that are admitted.
    multicast: Table,
}

/// A table of addresses that matches exactly, or everything once it overflowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    entries: Vec<MacAddress>,
    overflow: bool,
}

impl Table {
    fn new(addresses: &[MacAddress]) -> Self {
        let overflow = addresses.len() > TABLE_SIZE;
        let entries = if overflow { &[] } else { addresses };
        Table {
            entries: entries.to_vec(),
            overflow,
        }
    }

    fn admits(&self, address: MacAddress) -> bool {
        self.overflow || self.entries.contains(&address)
    }
}

impl Filter {
    /// An inactive filter of the station `address`.
    #[must_use]
    pub fn new(address: MacAddress) -> Self {
        Filter {
            active: false,
            address,
            own: address.number(),
            promiscuous: false,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Table::default(),
            multicast: Table::default(),
        }
    }

    /// Replaces both tables. One with more than [`TABLE_SIZE`] entries does not fit into the card: it then
    /// admits all addresses of the kind, since the driver's own check follows.
    pub fn set_tables(&mut self, unicast: &[MacAddress], multicast: &[MacAddress]) {
        self.unicast = Table::new(unicast);
        self.multicast = Table::new(multicast);
    }

    /// The tables' entries: other stations, and groups. One that overflowed has none.
    #[must_use]
    pub fn tables(&self) -> (&[MacAddress], &[MacAddress]) {
        (&self.unicast.entries, &self.multicast.entries)
    }

    /// Tells whether a frame is for this station, and of which kind it is.
    ///
    /// # Errors
    /// [`Drop::RxFiltered`] if it is not.
    #[inline]
    pub fn admit(&self, frame: &[u8]) -> Result<Destination, Drop> {
        let Some(destination) = frame.first_chunk::<6>() else {
            return Err(Drop::RxFiltered);
        };
        self.weigh(MacAddress(*destination))
    }

    /// Whether all frames to the station's own address are admitted, as they mostly are.
    #[inline]
    pub(crate) fn admits_own(&self) -> bool {
        !self.no_unicast && !self.address.is_group()
    }

    /// The station's own address.
    #[must_use]
    pub fn address(&self) -> MacAddress {
        self.address
    }

    /// Changes the station's own address.
    pub fn set_address(&mut self, address: MacAddress) {
        (self.address, self.own) = (address, address.number());
    }

    /// Whether a frame with a whole header is to the station's own address.
    #[inline(always)]
    pub(crate) fn is_own(&self, frame: &[u8]) -> bool {
        // With the first octets of the source, which are shifted out.
        let octets = frame.first_chunk::<8>();
        octets.is_some_and(|octets| u64::from_le_bytes(*octets) << 16 == self.own)
    }

    /// Weighs the rules for frames to `destination`.
    fn weigh(&self, destination: MacAddress) -> Result<Destination, Drop> {
        let kind = Destination::of(destination);
        let wanted = match kind {
            Destination::Unicast => {
                !self.no_unicast
                    && (!self.active
                        || destination == self.address
                        || self.all_unicast
                        || self.unicast.admits(destination))
            }
            Destination::Multicast => {
                !self.no_multicast
                    && (!self.active || self.all_multicast || self.multicast.admits(destination))
            }
            Destination::Broadcast => !self.no_broadcast,
        };
        if wanted || self.promiscuous {
            Ok(kind)
        } else {
            Err(Drop::RxFiltered)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x57]);
    const GROUP: MacAddress = MacAddress([1, 0, 0x5e, 0, 0, 1]);

    fn admits(filter: &Filter, address: MacAddress) -> bool {
        filter.admit(&address.0).is_ok()
    }

    #[test]
    fn each_rule_admits_what_it_says() {
        let mut filter = Filter::new(OWN);
        assert!(admits(&filter, OTHER) && admits(&filter, GROUP));
        filter.active = true;
        assert!(admits(&filter, OWN) && admits(&filter, MacAddress::BROADCAST));
        assert!(!admits(&filter, OTHER) && !admits(&filter, GROUP));
        filter.all_multicast = true;
        assert!(admits(&filter, GROUP) && !admits(&filter, OTHER));
        filter.all_multicast = false;
        filter.set_tables(&[OTHER], &[GROUP]);
        assert!(admits(&filter, GROUP) && admits(&filter, OTHER));
        filter.set_tables(&[GROUP; TABLE_SIZE + 1], &[]);
        assert!(
            admits(&filter, OTHER) && !admits(&filter, GROUP),
            "a table that overflows admits its whole kind"
        );
        filter.set_tables(&[], &[]);
        filter.promiscuous = true;
        assert!(admits(&filter, GROUP) && admits(&filter, OTHER));
        assert_eq!(filter.admit(&[2; 5]), Err(Drop::RxFiltered));
    }

    /// Each switch alone and with each that it has to be weighed against, on an active filter and an inactive one.
    #[test]
    fn switches_that_refuse_win_over_those_that_admit_and_promiscuous_over_all() {
        const BROADCAST: MacAddress = MacAddress::BROADCAST;
        type Switch = fn(&mut Filter);
        let all_unicast: Switch = |filter| filter.all_unicast = true;
        let all_multicast: Switch = |filter| filter.all_multicast = true;
        let no_unicast: Switch = |filter| filter.no_unicast = true;
        let no_multicast: Switch = |filter| filter.no_multicast = true;
        let no_broadcast: Switch = |filter| filter.no_broadcast = true;
        let promiscuous: Switch = |filter| filter.promiscuous = true;
        let tables: Switch = |filter| filter.set_tables(&[OTHER], &[GROUP]);
        let refuse_all: &[Switch] = &[no_unicast, no_multicast, no_broadcast];
        // What an active filter admits, and an inactive one.
        let rows: &[(&[Switch], &[MacAddress], &[MacAddress])] = &[
            (&[], &[OWN, BROADCAST], &[OWN, OTHER, GROUP, BROADCAST]),
            (
                &[all_unicast],
                &[OWN, OTHER, BROADCAST],
                &[OWN, OTHER, GROUP, BROADCAST],
            ),
            (&[no_unicast], &[BROADCAST], &[GROUP, BROADCAST]),
            (
                &[no_unicast, all_unicast],
                &[BROADCAST],
                &[GROUP, BROADCAST],
            ),
            (
                &[no_unicast, tables],
                &[GROUP, BROADCAST],
                &[GROUP, BROADCAST],
            ),
            (&[no_multicast], &[OWN, BROADCAST], &[OWN, OTHER, BROADCAST]),
            (
                &[no_multicast, all_multicast, tables],
                &[OWN, OTHER, BROADCAST],
                &[OWN, OTHER, BROADCAST],
            ),
            (&[no_broadcast], &[OWN], &[OWN, OTHER, GROUP]),
            (
                &[no_broadcast, all_multicast],
                &[OWN, GROUP],
                &[OWN, OTHER, GROUP],
            ),
            (refuse_all, &[], &[]),
        ];
        for (row, (switches, active, inactive)) in rows.iter().enumerate() {
            for (is_active, expected) in [(true, active), (false, inactive)] {
                let mut filter = Filter::new(OWN);
                filter.active = is_active;
                switches.iter().for_each(|switch| switch(&mut filter));
                let every = [OWN, OTHER, GROUP, BROADCAST];
                let admitted: Vec<_> = every.into_iter().filter(|a| admits(&filter, *a)).collect();
                assert_eq!(admitted, *expected, "row {row}, active: {is_active}");
                promiscuous(&mut filter);
                assert!(every.into_iter().all(|a| admits(&filter, a)), "row {row}");
            }
        }
    }

    #[test]
    fn addresses_are_read_as_users_write_them() {
        assert_eq!("52:54:00:12:34:56".parse::<MacAddress>().unwrap(), OWN);
        assert_eq!(OWN.to_string(), "52:54:00:12:34:56");
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "zz:54:00:12:34:56",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
