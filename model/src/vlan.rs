//! The VLAN filter: which VLANs this station is a member of.
//!
//! Frames that the address filter admitted enter; those of a VLAN that is not in the table are dropped and counted as
//! [`Drop::RxVlanFiltered`]. The rules are those of VIRTIO 1.3, 5.1.6.5.3. The table is for tagged frames alone: one
//! without a tag passes, and so does one whose tag has the null identifier, which gives a priority and belongs to no
//! VLAN (IEEE 802.1Q, 6.9.1 and table 9-2). Service tags (IEEE 802.1ad) are not looked into: they are of the provider, whose
//! VLANs are others.

use std::fmt;

use crate::counters::Drop;

/// VLAN identifiers that 12 bits can tell.
const IDS: usize = 4096;
/// The type of a customer's tag (IEEE 802.1Q, table 9-1).
const CUSTOMER_TAG: [u8; 2] = [0x81, 0x00];

/// A VLAN identifier: 12 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VlanId(u16);

impl VlanId {
    /// The identifier `id`, if it has no more than 12 bits.
    #[must_use]
    pub fn new(id: u16) -> Option<Self> {
        (usize::from(id) < IDS).then_some(VlanId(id))
    }

    /// That of a tag's control information, behind priority and drop eligibility.
    fn of(control: [u8; 2]) -> Self {
        VlanId(u16::from_be_bytes(control) & 0x0fff)
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A table with one bit a VLAN.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanFilter {
    /// Whether it filters at all; if not, all frames pass.
    pub active: bool,
    members: [u64; IDS / 64],
}

impl Default for VlanFilter {
    /// An inactive filter with an empty table.
    fn default() -> Self {
        VlanFilter {
            active: false,
            members: [0; IDS / 64],
        }
    }
}

impl fmt::Debug for VlanFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VlanFilter")
            .field("active", &self.active)
            .field("members", &self.members().collect::<Vec<_>>())
            .finish()
    }
}

impl VlanFilter {
    /// Admits the frames of VLAN `id`.
    pub fn add(&mut self, id: VlanId) {
        let (word, bit) = place(id);
        self.members[word] |= bit;
    }

    /// Admits them no more.
    pub fn remove(&mut self, id: VlanId) {
        let (word, bit) = place(id);
        self.members[word] &= !bit;
    }

    /// The VLANs in the table.
    pub fn members(&self) -> impl Iterator<Item = VlanId> + '_ {
        (0..IDS as u16).map(VlanId).filter(|&id| self.contains(id))
    }

    fn contains(&self, id: VlanId) -> bool {
        let (word, bit) = place(id);
        self.members[word] & bit != 0
    }

    /// Tells whether a frame is of no VLAN, or of one in the table.
    ///
    /// # Errors
    /// [`Drop::RxVlanFiltered`] if it is not.
    pub fn admit(&self, frame: &[u8]) -> Result<(), Drop> {
        if !self.active {
            return Ok(());
        }
        let Some(&[a, b, tag @ ..]) = frame.get(12..).and_then(<[u8]>::first_chunk::<4>) else {
            return Ok(());
        };
        let id = VlanId::of(tag);
        if [a, b] != CUSTOMER_TAG || id == VlanId(0) || self.contains(id) {
            Ok(())
        } else {
            Err(Drop::RxVlanFiltered)
        }
    }
}

/// Which bit of which word stands for `id`.
fn place(id: VlanId) -> (usize, u64) {
    (usize::from(id.0) / 64, 1 << (id.0 % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with the tag `kind`, `control`.
    fn tagged(kind: u16, control: u16) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(kind.to_be_bytes());
        frame.extend(control.to_be_bytes());
        frame.extend([0x08, 0x00, 0x45]);
        frame
    }

    fn filter(members: &[u16]) -> VlanFilter {
        let mut filter = VlanFilter {
            active: true,
            ..VlanFilter::default()
        };
        for &id in members {
            filter.add(VlanId::new(id).unwrap());
        }
        filter
    }

    #[test]
    fn each_identifier_is_admitted_by_its_own_bit_alone() {
        let mut filter = filter(&[]);
        for id in 0..4096 {
            filter.add(VlanId(id));
            assert_eq!(filter.admit(&tagged(0x8100, id)), Ok(()));
            for other in (0..12)
                .map(|bit| id ^ (1 << bit))
                .filter(|&other| other != 0)
            {
                let refused = Err(Drop::RxVlanFiltered);
                assert_eq!(filter.admit(&tagged(0x8100, other)), refused, "{other}");
            }
            filter.remove(VlanId(id));
        }
        assert_eq!(filter.members().count(), 0);
        for id in [9, 4095, 0] {
            filter.add(VlanId(id));
        }
        assert!(filter.members().eq([0, 9, 4095].map(VlanId)));
    }

    #[test]
    fn priority_is_no_part_of_the_identifier() {
        let filter = filter(&[5]);
        assert_eq!(filter.admit(&tagged(0x8100, 0xf005)), Ok(()));
        assert!(filter.admit(&tagged(0x8100, 0xf006)).is_err());
    }

    #[test]
    fn what_belongs_to_no_customers_vlan_passes() {
        let filter = filter(&[]);
        for frame in [
            tagged(0x0800, 5),
            tagged(0x88a8, 5),
            tagged(0x8100, 0),
            tagged(0x8100, 0xe000),
            vec![0; 14],
            vec![0; 3],
        ] {
            assert_eq!(filter.admit(&frame), Ok(()), "{frame:x?}");
        }
        assert!(filter.admit(&tagged(0x8100, 1)).is_err());
    }

    #[test]
    fn an_inactive_filter_admits_all() {
        let filter = VlanFilter::default();
        assert_eq!(filter.admit(&tagged(0x8100, 1)), Ok(()));
    }

    #[test]
    fn identifiers_have_12_bits() {
        assert!(VlanId::new(0).is_some() && VlanId::new(4095).is_some());
        assert!(VlanId::new(4096).is_none() && VlanId::new(0xffff).is_none());
    }
}
