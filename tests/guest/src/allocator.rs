//! Which guest-physical addresses of a region are free.
//!
//! First fit over a sorted list of free ranges, which is all that a driver needs: it allocates
//! rings and buffer pools at set-up and gives them back when it is removed. What enters and leaves
//! are guest addresses; the bytes themselves are `memory`'s.

/// The free ranges of one region, sorted, never touching each other.
#[derive(Debug)]
pub(crate) struct FreeList {
    ranges: Vec<(u64, u64)>,
}

impl FreeList {
    pub(crate) fn new(start: u64, len: u64) -> Self {
        Self {
            ranges: if len == 0 {
                Vec::new()
            } else {
                vec![(start, len)]
            },
        }
    }

    /// Takes `len` bytes whose address is a multiple of `align` (a power of two).
    pub(crate) fn allocate(&mut self, len: u64, align: u64) -> Option<u64> {
        debug_assert!(align.is_power_of_two());
        let (index, start) =
            self.ranges
                .iter()
                .enumerate()
                .find_map(|(index, &(start, free))| {
                    let aligned = start.checked_next_multiple_of(align)?;
                    (aligned - start)
                        .checked_add(len)
                        .filter(|&needed| needed <= free)
                        .map(|_| (index, aligned))
                })?;
        let (old_start, old_len) = self.ranges.remove(index);
        let after = start + len;
        if after < old_start + old_len {
            self.ranges
                .insert(index, (after, old_start + old_len - after));
        }
        if start > old_start {
            self.ranges.insert(index, (old_start, start - old_start));
        }
        Some(start)
    }

    /// Gives a range back and joins it with its neighbours.
    pub(crate) fn release(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let index = self.ranges.partition_point(|&(other, _)| other < start);
        self.ranges.insert(index, (start, len));
        if let Some(&(next, next_len)) = self.ranges.get(index + 1)
            && start + len == next
        {
            self.ranges[index].1 += next_len;
            self.ranges.remove(index + 1);
        }
        if index > 0 && self.ranges[index - 1].0 + self.ranges[index - 1].1 == start {
            self.ranges[index - 1].1 += self.ranges[index].1;
            self.ranges.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back_whole() {
        let mut list = FreeList::new(0x1000, 0x9000);
        let a = list.allocate(0x1800, 0x1000).unwrap();
        let b = list.allocate(0x1000, 0x1000).unwrap();
        let c = list.allocate(64, 64).unwrap();
        assert_eq!((a, b, c), (0x1000, 0x3000, 0x2800));
        for (start, len) in [(b, 0x1000), (a, 0x1800), (c, 64)] {
            list.release(start, len);
        }
        assert_eq!(list.ranges, [(0x1000, 0x9000)]);
    }

    #[test]
    fn too_much_is_refused() {
        let mut list = FreeList::new(0, 0x2000);
        assert_eq!(list.allocate(0x2001, 1), None);
        assert_eq!(list.allocate(u64::MAX, 1), None);
        assert_eq!(list.allocate(0x2000, 1), Some(0));
        assert_eq!(list.allocate(1, 1), None);
    }

    proptest::proptest! {
        #[test]
        fn allocations_never_overlap(sizes in proptest::collection::vec((1u64..5000, 0u32..13), 1..40)) {
            let mut list = FreeList::new(0x10_0000, 0x10_0000);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (len, shift) in sizes {
                if let Some(start) = list.allocate(len, 1 << shift) {
                    assert_eq!(start % (1 << shift), 0);
                    assert!(start >= 0x10_0000 && start + len <= 0x20_0000);
                    assert!(taken.iter().all(|&(s, l)| start + len <= s || s + l <= start));
                    taken.push((start, len));
                }
                if taken.len() % 3 == 2 {
                    let (s, l) = taken.swap_remove(0);
                    list.release(s, l);
                }
            }
            for (s, l) in taken {
                list.release(s, l);
            }
            assert_eq!(list.ranges, [(0x10_0000, 0x10_0000)]);
        }
    }
}
