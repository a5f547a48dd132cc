//! Guest memory at one time, to find out what a device wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use nic_guest::memory::GuestMemory;
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};

use super::Stop;

/// Octets of a page.
const PAGE: usize = 4096;

/// Guest memory at one time: what is in each page, by its address. A page that is not there is empty.
pub struct Snapshot(BTreeMap<u64, Vec<u8>>);

impl Snapshot {
    /// All of `memory` as it is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(memory: &Arc<GuestMemory>) -> Result<Self, Stop> {
        let mut pages = BTreeMap::new();
        for (index, region) in memory.regions().iter().enumerate() {
            let Some(file) = memory.region_file(index) else {
                continue;
            };
            // Pages that nobody touched are not even there.
            let mut at = 0;
            while let Ok(data) = lseek(file, at, Whence::SeekData) {
                at = lseek(file, data, Whence::SeekHole)?;
                for offset in (data..at).step_by(PAGE) {
                    let mut page = vec![0; PAGE];
                    pread(file, &mut page, offset)?;
                    pages.insert(region.guest_addr + offset as u64, page);
                }
            }
        }
        Ok(Snapshot(pages))
    }

    /// The first address whose octet was another one `before`.
    #[must_use]
    pub fn changed(&self, before: &Snapshot) -> Option<u64> {
        self.differs(before, &[])
    }

    /// The first address outside of `allowed`, each with its length, whose octet was another one `before`.
    #[must_use]
    pub fn differs(&self, before: &Snapshot, allowed: &[(u64, u64)]) -> Option<u64> {
        let empty = vec![0; PAGE];
        let may = |addr: u64| {
            let inside =
                |&(from, len): &(u64, u64)| addr.checked_sub(from).is_some_and(|into| into < len);
            allowed.iter().any(inside)
        };
        self.0.iter().find_map(|(start, now)| {
            let then = before.0.get(start).unwrap_or(&empty);
            if now == then {
                return None;
            }
            let octets = (*start..).zip(now.iter().zip(then));
            let changed = octets.filter(|(_, (now, then))| now != then);
            changed.map(|(addr, _)| addr).find(|&addr| !may(addr))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_unless_it_may_be() {
        let before = Snapshot(BTreeMap::from([(0x1000, vec![7; PAGE])]));
        let mut after = BTreeMap::from([(0x1000, vec![7; PAGE]), (0x5000, vec![0; PAGE])]);
        assert_eq!(Snapshot(after.clone()).differs(&before, &[]), None);
        after.get_mut(&0x5000).unwrap()[3] = 1;
        let after = Snapshot(after);
        assert_eq!(after.differs(&before, &[]), Some(0x5003));
        assert_eq!(
            after.differs(&before, &[(0x5004, 9), (0x5000, 3)]),
            Some(0x5003)
        );
        assert_eq!(after.differs(&before, &[(0x5003, 1)]), None);
        assert_eq!(before.differs(&after, &[]), None);
    }
}
