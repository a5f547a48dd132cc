//! Pages that a receive queue's buffers are cut out of (Linux: `net/core/page_pool.c`).
//!
//! In: pages of guest memory, each mapped for the device once, when it comes. Out: pieces of them to post, one after the other; the
//! page goes back when the last of its pieces does (`pp_ref_count`): to a short stack for who polls, else to a ring, and to
//! guest memory where both are full. Nothing is allocated for a packet. Who ends the pool hears of pages that did not come back.
//!
//! Linux's skbs keep the pages of long frames, and have them recycled (`pp_recycle`). Here a frame is copied out and its
//! buffers come back at once, as Linux has it with short ones: nothing that a device can write may be lent as a slice.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::dma::{DmaDevice, DmaDirection, DmaMappingError, DmaSlice};
use crate::memory::{GuestMemory, MemoryError, PAGE_SIZE};

/// Pages on the stack of who polls.
const PP_ALLOC_CACHE_SIZE: usize = 128;
/// How many come there from the ring at once.
const PP_ALLOC_CACHE_REFILL: usize = 64;
/// Buffers begin on a cache line.
const SMP_CACHE_BYTES: usize = 64;
/// Pieces that a page is cut into, as a power of two, where they are not longer than [`PAGE_SIZE`]: Linux cuts pages of order 3,
/// which hold as many of the usual length.
const FRAG_SHIFT: u32 = 4;

/// What a pool counts (`struct page_pool_alloc_stats`, `struct page_pool_recycle_stats`), by the names of its netlink family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PagePoolStats {
    /// Pieces of a page that was there, and pages from the stack.
    pub alloc_fast: u64,
    /// Pages from guest memory.
    pub alloc_slow: u64,
    /// Those that are longer than [`PAGE_SIZE`].
    pub alloc_slow_high_order: u64,
    /// Times that the ring was empty, so that a page had to come from guest memory.
    pub alloc_empty: u64,
    /// Times that pages came from the ring, so that the stack had one again.
    pub alloc_refill: u64,
    /// Pages of another node: never.
    pub alloc_waive: u64,
    /// Pages that came back to the stack.
    pub recycle_cached: u64,
    /// Times that the stack was full.
    pub recycle_cache_full: u64,
    /// Pages that came back to the ring.
    pub recycle_ring: u64,
    /// Pages that went back to guest memory because the ring was full.
    pub recycle_ring_full: u64,
    /// Pages that somebody else held when they came back: never.
    pub recycle_released_refcnt: u64,
}

impl PagePoolStats {
    /// As `ethtool -S` shows them (`page_pool_ethtool_stats_get`).
    #[must_use]
    pub fn ethtool(&self) -> [(&'static str, u64); 11] {
        [
            ("rx_pp_alloc_fast", self.alloc_fast),
            ("rx_pp_alloc_slow", self.alloc_slow),
            ("rx_pp_alloc_slow_ho", self.alloc_slow_high_order),
            ("rx_pp_alloc_empty", self.alloc_empty),
            ("rx_pp_alloc_refill", self.alloc_refill),
            ("rx_pp_alloc_waive", self.alloc_waive),
            ("rx_pp_recycle_cached", self.recycle_cached),
            ("rx_pp_recycle_cache_full", self.recycle_cache_full),
            ("rx_pp_recycle_ring", self.recycle_ring),
            ("rx_pp_recycle_ring_full", self.recycle_ring_full),
            ("rx_pp_recycle_released_ref", self.recycle_released_refcnt),
        ]
    }
}

/// Pages that never came back to a pool that ended (`page_pool_release_retry`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stalled pool shutdown, {0} pages inflight")]
pub struct Inflight(pub u32);

/// Pieces that follow each other.
#[derive(Debug)]
pub struct Frags {
    /// What they are called.
    pub numbers: Range<u32>,
    /// Where the first one is.
    pub addr: u64,
    /// How far from each the next one is.
    pub len: usize,
}

/// The stack of who polls (`struct pp_alloc_cache`).
#[derive(Debug)]
struct ArrayStack {
    pages: [u32; PP_ALLOC_CACHE_SIZE],
    len: usize,
}

impl Default for ArrayStack {
    fn default() -> Self {
        Self {
            pages: [0; PP_ALLOC_CACHE_SIZE],
            len: 0,
        }
    }
}

impl ArrayStack {
    /// Whether there was room for it.
    #[inline]
    fn push(&mut self, page: u32) -> bool {
        match self.pages.get_mut(self.len) {
            Some(place) => {
                *place = page;
                self.len += 1;
                true
            }
            None => false,
        }
    }

    #[inline]
    fn pop(&mut self) -> Option<u32> {
        let len = self.len.checked_sub(1)?;
        self.len = len;
        self.pages.get(len).copied()
    }
}

/// A pool of pages.
#[derive(Debug)]
pub struct PagePool {
    /// What it counts.
    pub stats: PagePoolStats,
    device: DmaDevice,
    /// The pages that are there from the beginning, side by side, and how many pieces they have.
    arena: DmaSlice,
    arena_frags: u32,
    /// Others; those that went back to guest memory have none.
    more: Vec<Option<DmaSlice>>,
    frag_len: usize,
    frag_shift: u32,
    /// Of each page the pieces that did not come back, those that were not given yet among them.
    pp_ref_count: Vec<u32>,
    cache: ArrayStack,
    ring: VecDeque<u32>,
    pool_size: usize,
    /// The next piece, and that behind the last one of its page.
    frag_next: u32,
    frag_end: u32,
    pages_state_hold_cnt: u32,
    pages_state_release_cnt: u32,
}

impl PagePool {
    /// A pool that cuts pages into pieces of `frag_len` bytes, with as many pages as `count` pieces in a row take. They are
    /// mapped for the device called `name`, which is to write them; `pool_size` of them wait in the ring at most.
    ///
    /// # Errors
    /// When guest memory is full, or a page cannot be mapped.
    pub fn create(
        guest: &Arc<GuestMemory>,
        name: impl FnOnce() -> String,
        frag_len: usize,
        count: usize,
        pool_size: usize,
    ) -> Result<Self, MemoryError> {
        let frag_len = frag_len.next_multiple_of(SMP_CACHE_BYTES);
        let frag_shift = match frag_len <= PAGE_SIZE {
            true => FRAG_SHIFT.min(count.max(1).ilog2()),
            false => 0,
        };
        // The pieces in use need not begin with a page.
        let pages = count.div_ceil(1 << frag_shift) + usize::from(frag_shift > 0);
        let len = pages * (frag_len << frag_shift);
        let device = DmaDevice::new(guest, name);
        let mut pool = Self {
            stats: PagePoolStats::default(),
            device,
            arena: DmaSlice::allocate(guest, len, PAGE_SIZE, device)?,
            arena_frags: (pages << frag_shift) as u32,
            more: Vec::new(),
            frag_len,
            frag_shift,
            pp_ref_count: vec![0; pages],
            cache: ArrayStack::default(),
            ring: VecDeque::with_capacity(pool_size.max(pages)),
            pool_size: pool_size.max(pages),
            frag_next: 0,
            frag_end: 0,
            pages_state_hold_cnt: 0,
            pages_state_release_cnt: 0,
        };
        for page in 0..pages as u32 {
            if pool.map_page(page).is_err() {
                // What came goes back; nobody has any of it.
                let _ = pool.destroy();
                let align = PAGE_SIZE;
                return Err(MemoryError::OutOfMemory { len, align });
            }
            pool.ring.push_back(page);
        }
        Ok(pool)
    }

    fn page_len(&self) -> usize {
        self.frag_len << self.frag_shift
    }

    /// A page that has come from guest memory is mapped, and counted.
    fn map_page(&mut self, page: u32) -> Result<(), DmaMappingError> {
        let (memory, offset) = self.place(page << self.frag_shift);
        memory.map_page(offset, self.page_len(), DmaDirection::FromDevice)?;
        self.pages_state_hold_cnt = self.pages_state_hold_cnt.wrapping_add(1);
        if self.page_len() > PAGE_SIZE {
            self.stats.alloc_slow_high_order += 1;
        } else {
            self.stats.alloc_slow += 1;
        }
        Ok(())
    }

    /// One more page from guest memory (`__page_pool_alloc_pages_slow`).
    #[cold]
    fn alloc_pages_slow(&mut self) -> Option<u32> {
        let guest = self.arena.memory();
        let memory = DmaSlice::allocate(guest, self.page_len(), PAGE_SIZE, self.device).ok()?;
        let hole = self.more.iter().position(Option::is_none);
        let at = hole.unwrap_or(self.more.len());
        match hole {
            Some(hole) => self.more[hole] = Some(memory),
            None => {
                self.more.push(Some(memory));
                self.pp_ref_count.push(0);
            }
        }
        let page = (self.arena_frags >> self.frag_shift) + at as u32;
        if self.map_page(page).is_err() {
            self.release_more(page);
            return None;
        }
        Some(page)
    }

    /// A page of those that came later is the guest's again.
    fn release_more(&mut self, page: u32) {
        let at = page - (self.arena_frags >> self.frag_shift);
        if let Some(memory) = self.more[at as usize].take() {
            memory.release();
        }
    }

    /// A page, from the stack if there is one (`page_pool_alloc_pages`).
    #[inline]
    fn alloc_pages(&mut self) -> Option<u32> {
        if let Some(page) = self.cache.pop() {
            self.stats.alloc_fast += 1;
            return Some(page);
        }
        self.refill_alloc_cache()
    }

    #[cold]
    fn refill_alloc_cache(&mut self) -> Option<u32> {
        let count = self.ring.len().min(PP_ALLOC_CACHE_REFILL);
        if count == 0 {
            self.stats.alloc_empty += 1;
            return self.alloc_pages_slow();
        }
        for page in self.ring.drain(..count) {
            self.cache.push(page);
        }
        self.stats.alloc_refill += 1;
        self.cache.pop()
    }

    /// The next pieces, up to `most` of those that follow each other in a page (`page_pool_alloc_frag`, for several at once); none
    /// where guest memory is full.
    #[inline]
    pub fn alloc_frags(&mut self, most: u16) -> Option<Frags> {
        if most == 0 {
            return None;
        }
        if self.frag_next == self.frag_end {
            let page = self.alloc_pages()?;
            self.pp_ref_count[page as usize] = 1 << self.frag_shift;
            self.frag_next = page << self.frag_shift;
            self.frag_end = self.frag_next + (1 << self.frag_shift);
        } else {
            self.stats.alloc_fast += 1;
        }
        let first = self.frag_next;
        let count = (self.frag_end - first).min(most.into());
        // The first of a page counts as that did.
        self.stats.alloc_fast += u64::from(count - 1);
        self.frag_next += count;
        let (memory, offset) = self.place(first);
        Some(Frags {
            numbers: first..first + count,
            addr: memory.guest_addr() + offset as u64,
            len: self.frag_len,
        })
    }

    /// Where a piece is: the memory that it is part of, and the offset there.
    #[inline(always)] // for each buffer
    #[must_use]
    pub fn place(&self, frag: u32) -> (&DmaSlice, usize) {
        if frag < self.arena_frags {
            return (&self.arena, frag as usize * self.frag_len);
        }
        self.place_more(frag)
    }

    /// # Panics
    /// When its page has gone back: who has a number got it from the pool, and gives it back once.
    #[cold]
    fn place_more(&self, frag: u32) -> (&DmaSlice, usize) {
        let frag = frag - self.arena_frags;
        let memory = self.more[(frag >> self.frag_shift) as usize].as_ref();
        let offset = (frag & ((1 << self.frag_shift) - 1)) as usize * self.frag_len;
        (memory.expect("a page of this pool"), offset)
    }

    /// Pieces come back, and pages of which they were the last; `allow_direct` where the caller is who polls
    /// (`page_pool_put_page_bulk`).
    #[inline]
    pub fn put_frags(&mut self, frags: impl IntoIterator<Item = u32>, allow_direct: bool) {
        for frag in frags {
            let page = frag >> self.frag_shift;
            let pp_ref_count = &mut self.pp_ref_count[page as usize];
            *pp_ref_count -= 1;
            if *pp_ref_count == 0 {
                self.put_page(page, allow_direct);
            }
        }
    }

    fn put_page(&mut self, page: u32, allow_direct: bool) {
        if allow_direct {
            if self.cache.push(page) {
                self.stats.recycle_cached += 1;
                return;
            }
            self.stats.recycle_cache_full += 1;
        }
        // Those that were there from the beginning stay.
        let of_arena = page < self.arena_frags >> self.frag_shift;
        if self.ring.len() < self.pool_size || of_arena {
            self.stats.recycle_ring += 1;
            return self.ring.push_back(page);
        }
        self.stats.recycle_ring_full += 1;
        self.return_page(page);
        self.release_more(page);
    }

    /// A page is the pool's no longer (`page_pool_return_page`).
    fn return_page(&mut self, page: u32) {
        let (memory, offset) = self.place(page << self.frag_shift);
        memory.unmap_single(offset, self.page_len(), DmaDirection::FromDevice);
        self.pages_state_release_cnt = self.pages_state_release_cnt.wrapping_add(1);
    }

    /// Pages that the pool has given, and those that wait in it (`page_pool_inflight`).
    #[must_use]
    pub fn inflight(&self) -> u32 {
        self.pages_state_hold_cnt
            .wrapping_sub(self.pages_state_release_cnt)
    }

    /// Ends the pool (`page_pool_destroy`): all its pages go back to guest memory.
    ///
    /// # Errors
    /// Pieces did not come back; the pages are nobody's now.
    pub fn destroy(mut self) -> Result<(), Inflight> {
        // The pieces that were not given (`page_pool_free_frag`).
        self.put_frags(self.frag_next..self.frag_end, false);
        while let Some(page) = self.cache.pop().or_else(|| self.ring.pop_front()) {
            self.return_page(page);
        }
        self.device.remove(self.arena.memory());
        match self.inflight() {
            0 => {
                self.arena.release();
                self.more.iter().flatten().for_each(DmaSlice::release);
                Ok(())
            }
            pages => Err(Inflight(pages)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl PagePool {
        fn alloc_frag(&mut self) -> Option<u32> {
            let frags = self.alloc_frags(1)?;
            assert_eq!(frags.numbers.len(), 1);
            Some(frags.numbers.start)
        }

        fn addr(&self, frag: u32) -> u64 {
            let (memory, offset) = self.place(frag);
            memory.guest_addr() + offset as u64
        }
    }

    fn pool(frag_len: usize, count: usize, pool_size: usize) -> PagePool {
        let guest = GuestMemory::new(4 << 20).unwrap();
        PagePool::create(&guest, || "pool".into(), frag_len, count, pool_size).unwrap()
    }

    #[test]
    fn a_page_comes_back_with_the_last_of_its_pieces() {
        let mut pool = pool(1530, 32, 8);
        assert_eq!(pool.inflight(), 3);
        let frags = pool.alloc_frags(100).unwrap();
        assert_eq!((frags.numbers.len(), frags.len), (16, 1536));
        for (nth, frag) in frags.numbers.clone().enumerate() {
            assert_eq!(pool.addr(frag), frags.addr + 1536 * nth as u64);
        }
        let other = pool.alloc_frags(3).unwrap().numbers;
        assert_eq!(other.len(), 3);
        pool.put_frags(frags.numbers.start + 1..frags.numbers.end, true);
        assert_eq!(pool.stats.recycle_cached, 0, "a piece is out");
        pool.put_frags([frags.numbers.start], true);
        assert_eq!(pool.stats.recycle_cached, 1);
        let rest = pool.alloc_frags(100).unwrap().numbers;
        assert_eq!((rest.start, rest.len()), (other.end, 13));
        let again = pool.alloc_frags(100).unwrap();
        assert_eq!(again.addr, frags.addr, "the page that is warm");
        pool.put_frags(other.chain(rest).chain(again.numbers), true);
        let stats = pool.stats;
        assert_eq!((stats.alloc_slow_high_order, stats.alloc_refill), (3, 1));
        // The first page came from the ring: its first piece is counted there.
        assert_eq!(stats.alloc_fast, 16 + 3 + 13 + 16 - 1);
        assert_eq!(pool.destroy(), Ok(()));
    }

    #[test]
    fn stack_and_ring_are_bounded_and_the_rest_goes_back() {
        const PAGES: usize = PP_ALLOC_CACHE_SIZE + 12;
        let mut pool = pool(PAGE_SIZE, 1, 10);
        let frags: Vec<u32> = (0..PAGES).map(|_| pool.alloc_frag().unwrap()).collect();
        let mut addrs: Vec<u64> = frags.iter().map(|&frag| pool.addr(frag)).collect();
        addrs.sort_unstable();
        assert!(
            addrs
                .windows(2)
                .all(|two| two[1] - two[0] >= PAGE_SIZE as u64)
        );
        let stats = pool.stats;
        assert_eq!(stats.alloc_slow as usize, PAGES);
        assert_eq!(
            (stats.alloc_refill, stats.alloc_empty as usize),
            (1, PAGES - 1)
        );
        pool.put_frags(frags, true);
        let stats = pool.stats;
        assert_eq!(stats.recycle_cached as usize, PP_ALLOC_CACHE_SIZE);
        assert_eq!((stats.recycle_cache_full, stats.recycle_ring), (12, 10));
        assert_eq!(
            (stats.recycle_ring_full, pool.inflight() as usize),
            (2, PAGES - 2)
        );
        // Who does not poll leaves the stack alone; the numbers of those that went are taken again.
        for _ in 0..PAGES {
            let frag = pool.alloc_frag().unwrap();
            pool.put_frags([frag], false);
        }
        assert_eq!(pool.stats.alloc_slow as usize, PAGES, "all were there");
        assert_eq!(pool.destroy(), Ok(()));
    }

    #[test]
    fn long_pieces_have_a_page_each() {
        let mut pool = pool(65_562, 3, 3);
        let first = pool.alloc_frags(9).unwrap();
        assert_eq!(first.numbers.len(), 1);
        assert_eq!(pool.stats.alloc_slow_high_order, 3);
        pool.put_frags(first.numbers, true);
        assert_eq!(pool.destroy(), Ok(()));
    }

    #[test]
    fn a_pool_without_memory_takes_none() {
        let guest = GuestMemory::new(64 << 10).unwrap();
        let made = PagePool::create(&guest, || "pool".into(), PAGE_SIZE, 16, 16);
        assert!(matches!(made, Err(MemoryError::OutOfMemory { .. })));
        guest.dma_debug().fail_maps(1);
        let made = PagePool::create(&guest, || "pool".into(), PAGE_SIZE, 1, 1);
        assert_eq!(made.is_err(), crate::dma::CONFIG_DMA_API_DEBUG);
        drop(made.map(PagePool::destroy));
        assert!(guest.allocate(60 << 10, PAGE_SIZE).is_ok());
        assert_eq!(guest.dma_debug().mapped(), 0);
    }

    #[test]
    fn a_piece_that_does_not_come_back_is_told() {
        let guest = GuestMemory::new(1 << 20).unwrap();
        guest.dma_debug().tolerate();
        let mut pool = PagePool::create(&guest, || "pool".into(), 1536, 4, 8).unwrap();
        pool.alloc_frag().unwrap();
        assert_eq!(pool.destroy(), Err(Inflight(1)));
    }
}
