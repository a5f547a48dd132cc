//! Pages that a receive queue's buffers are cut out of (Linux: `net/core/page_pool.c`).
//!
//! In: pages of guest memory, each mapped for the device once, when it comes. Out: pieces of them to post, one after the other; the
//! page goes back when the last of its pieces does (`pp_ref_count`): to a short stack for who polls, else to a ring, and to
//! guest memory where both are full. Nothing is allocated for a packet. Who ends the pool hears of pages that did not come back.
//!
//! Linux's skbs keep the pages of long frames, and have them recycled (`pp_recycle`). Here a frame is copied out and its
//! buffers come back at once, as Linux has it with short ones: nothing that a device can write may be lent as a slice.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::dma::{DmaDevice, DmaDirection, DmaSlice};
use crate::memory::{GuestMemory, MemoryError, PAGE_SIZE};

/// Pages on the stack of who polls.
const PP_ALLOC_CACHE_SIZE: usize = 128;
/// How many come there from the ring at once.
const PP_ALLOC_CACHE_REFILL: usize = 64;
/// Bits of a piece's number that say which of its page it is.
const FRAG_BITS: u32 = 6;
/// Shortest piece: so many are in a page of the shortest kind.
const MIN_FRAG: usize = PAGE_SIZE >> FRAG_BITS;

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

#[derive(Debug)]
struct Page {
    memory: DmaSlice,
    /// Pieces that did not come back, each a bit, those that were not given yet among them (`pp_ref_count`).
    out: u64,
}

/// A pool of pages.
#[derive(Debug)]
pub struct PagePool {
    /// What it counts.
    pub stats: PagePoolStats,
    guest: Arc<GuestMemory>,
    device: DmaDevice,
    page_len: usize,
    frag_len: usize,
    frags: u32,
    /// By number; those that went back to guest memory have none.
    pages: Vec<Option<Page>>,
    cache: Vec<u32>,
    ring: VecDeque<u32>,
    pool_size: usize,
    /// The page that pieces are cut from, and how many were.
    frag_page: u32,
    frag_next: u32,
    pages_state_hold_cnt: u32,
    pages_state_release_cnt: u32,
}

impl PagePool {
    /// A pool that cuts pages into pieces of `frag_len` bytes, with as many pages as `count` pieces in a row take. They are mapped for
    /// the device called `name`, which is to write them; `pool_size` of them wait in the ring at most.
    ///
    /// # Errors
    /// When guest memory is full.
    pub fn create(
        guest: &Arc<GuestMemory>,
        name: impl FnOnce() -> String,
        frag_len: usize,
        count: usize,
        pool_size: usize,
    ) -> Result<Self, MemoryError> {
        let frag_len = frag_len.next_multiple_of(MIN_FRAG).max(MIN_FRAG);
        let page_len = frag_len.next_multiple_of(PAGE_SIZE);
        let frags = page_len / frag_len;
        // The pieces in use need not begin with a page.
        let pages = count.div_ceil(frags) + usize::from(frags > 1);
        let mut pool = Self {
            stats: PagePoolStats::default(),
            guest: Arc::clone(guest),
            device: DmaDevice::new(guest, name),
            page_len,
            frag_len,
            frags: frags as u32,
            pages: Vec::with_capacity(pages),
            cache: Vec::with_capacity(PP_ALLOC_CACHE_SIZE),
            ring: VecDeque::with_capacity(pool_size.max(pages)),
            pool_size: pool_size.max(pages),
            frag_page: 0,
            frag_next: frags as u32,
            pages_state_hold_cnt: 0,
            pages_state_release_cnt: 0,
        };
        for _ in 0..pages {
            match pool.alloc_pages_slow() {
                Ok(page) => pool.ring.push_back(page),
                Err(error) => {
                    // What came goes back; nobody has any of it.
                    let _ = pool.destroy();
                    return Err(error);
                }
            }
        }
        Ok(pool)
    }

    /// A page from guest memory (`__page_pool_alloc_pages_slow`).
    #[cold]
    fn alloc_pages_slow(&mut self) -> Result<u32, MemoryError> {
        let memory = DmaSlice::allocate(&self.guest, self.page_len, PAGE_SIZE, self.device)?;
        if memory.map_page(DmaDirection::FromDevice).is_err() {
            memory.release();
            let (len, align) = (self.page_len, PAGE_SIZE);
            return Err(MemoryError::OutOfMemory { len, align });
        }
        let page = Some(Page { memory, out: 0 });
        let hole = self.pages.iter().position(Option::is_none);
        let number = hole.unwrap_or(self.pages.len());
        match hole {
            Some(hole) => self.pages[hole] = page,
            None => self.pages.push(page),
        }
        self.stats.alloc_slow += 1;
        if self.page_len > PAGE_SIZE {
            self.stats.alloc_slow_high_order += 1;
        }
        self.pages_state_hold_cnt = self.pages_state_hold_cnt.wrapping_add(1);
        Ok(number as u32)
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
            return self.alloc_pages_slow().ok();
        }
        self.cache.extend(self.ring.drain(..count));
        self.stats.alloc_refill += 1;
        self.cache.pop()
    }

    /// The next piece, by its number (`page_pool_alloc_frag`); none where guest memory is full.
    #[inline]
    pub fn alloc_frag(&mut self) -> Option<u32> {
        if self.frag_next < self.frags {
            self.stats.alloc_fast += 1;
        } else {
            self.frag_page = self.alloc_pages()?;
            self.frag_next = 0;
            self.page(self.frag_page).out = u64::MAX >> (u64::BITS - self.frags);
        }
        let frag = self.frag_page << FRAG_BITS | self.frag_next;
        self.frag_next += 1;
        Some(frag)
    }

    /// # Panics
    /// When it has gone: who has a number got it from the pool, and gives it back once.
    #[inline]
    fn page(&mut self, page: u32) -> &mut Page {
        let page = self.pages[page as usize].as_mut();
        page.expect("a page of this pool")
    }

    /// Where a piece is: the memory of its page, and the offset there.
    ///
    /// # Panics
    /// When it has gone back.
    #[inline]
    #[must_use]
    pub fn place(&self, frag: u32) -> (&DmaSlice, usize) {
        let page = self.pages[(frag >> FRAG_BITS) as usize].as_ref();
        let offset = (frag & ((1 << FRAG_BITS) - 1)) as usize * self.frag_len;
        (&page.expect("a page of this pool").memory, offset)
    }

    /// A piece comes back, and its page if it was the last one; `allow_direct` where the caller is who polls
    /// (`page_pool_put_page`).
    ///
    /// # Panics
    /// With debug assertions, when it came back before.
    #[inline]
    pub fn put_frag(&mut self, frag: u32, allow_direct: bool) {
        let number = frag >> FRAG_BITS;
        let page = self.page(number);
        // (The shift takes no more bits of the number than say which of the page it is.)
        let piece = 1u64.wrapping_shl(frag);
        debug_assert!(page.out & piece != 0, "a piece comes back once");
        page.out ^= piece;
        if page.out == 0 {
            self.put_page(number, allow_direct);
        }
    }

    #[inline]
    fn put_page(&mut self, page: u32, allow_direct: bool) {
        if allow_direct {
            if self.cache.len() < PP_ALLOC_CACHE_SIZE {
                self.stats.recycle_cached += 1;
                return self.cache.push(page);
            }
            self.stats.recycle_cache_full += 1;
        }
        self.recycle_in_ring(page);
    }

    #[cold]
    fn recycle_in_ring(&mut self, page: u32) {
        if self.ring.len() < self.pool_size {
            self.stats.recycle_ring += 1;
            return self.ring.push_back(page);
        }
        self.stats.recycle_ring_full += 1;
        self.return_page(page);
    }

    /// A page goes back to guest memory (`page_pool_return_page`).
    fn return_page(&mut self, page: u32) {
        if let Some(page) = self.pages[page as usize].take() {
            page.memory.unmap_page(DmaDirection::FromDevice);
            page.memory.release();
            self.pages_state_release_cnt = self.pages_state_release_cnt.wrapping_add(1);
        }
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
    /// Pieces did not come back; their pages are nobody's now.
    pub fn destroy(mut self) -> Result<(), Inflight> {
        // The pieces that were not given (`page_pool_free_frag`).
        for at in self.frag_next..self.frags {
            self.put_frag(self.frag_page << FRAG_BITS | at, false);
        }
        while let Some(page) = self.cache.pop().or_else(|| self.ring.pop_front()) {
            self.return_page(page);
        }
        self.device.remove(&self.guest);
        match self.inflight() {
            0 => Ok(()),
            pages => Err(Inflight(pages)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(frag_len: usize, count: usize, pool_size: usize) -> PagePool {
        let guest = GuestMemory::new(4 << 20).unwrap();
        PagePool::create(&guest, || "pool".into(), frag_len, count, pool_size).unwrap()
    }

    #[test]
    fn a_page_comes_back_with_the_last_of_its_pieces() {
        let mut pool = pool(1536, 4, 8);
        assert_eq!(pool.inflight(), 3);
        let frags: Vec<u32> = (0..4).map(|_| pool.alloc_frag().unwrap()).collect();
        let places: Vec<_> = frags
            .iter()
            .map(|&frag| pool.place(frag).0.guest_addr() + pool.place(frag).1 as u64)
            .collect();
        assert_eq!(places[1] - places[0], 1536);
        assert_eq!(places[2] % PAGE_SIZE as u64, 0);
        pool.put_frag(frags[0], true);
        pool.put_frag(frags[2], true);
        assert_eq!(pool.stats.recycle_cached, 0, "a piece of each is out");
        pool.put_frag(frags[1], true);
        assert_eq!(pool.stats.recycle_cached, 1);
        let again = pool.alloc_frag().unwrap();
        assert_eq!(again, frags[0], "the page that is warm");
        pool.put_frag(again, true);
        pool.put_frag(frags[3], true);
        assert_eq!((pool.stats.alloc_slow, pool.stats.alloc_refill), (3, 1));
        assert_eq!(pool.destroy(), Ok(()));
    }

    #[test]
    fn stack_and_ring_are_bounded_and_the_rest_goes_back() {
        const PAGES: usize = PP_ALLOC_CACHE_SIZE + 12;
        let mut pool = pool(PAGE_SIZE, 1, 10);
        let free: Vec<u32> = (0..PAGES).map(|_| pool.alloc_frag().unwrap()).collect();
        let stats = pool.stats;
        assert_eq!(stats.alloc_slow as usize, PAGES);
        assert_eq!(
            (stats.alloc_refill, stats.alloc_empty as usize),
            (1, PAGES - 1)
        );
        for frag in free {
            pool.put_frag(frag, true);
        }
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
            pool.put_frag(frag, false);
        }
        assert_eq!(pool.stats.alloc_slow as usize, PAGES, "all were there");
        assert_eq!(pool.destroy(), Ok(()));
    }

    #[test]
    fn long_pieces_have_a_page_each() {
        let mut pool = pool(65_562, 3, 3);
        let frag = pool.alloc_frag().unwrap();
        assert_eq!(pool.stats.alloc_slow_high_order, 3);
        assert_eq!(pool.place(frag).1, 0);
        pool.put_frag(frag, true);
        assert_eq!(pool.destroy(), Ok(()));
    }

    #[test]
    fn a_pool_without_memory_gives_all_back() {
        let guest = GuestMemory::new(64 << 10).unwrap();
        let made = PagePool::create(&guest, || "pool".into(), PAGE_SIZE, 16, 16);
        assert!(matches!(made, Err(MemoryError::OutOfMemory { .. })));
        assert!(guest.allocate(60 << 10, PAGE_SIZE).is_ok());
        assert_eq!(guest.dma_debug().mapped(), 0);
    }

    #[test]
    #[cfg(debug_assertions)]
    fn a_piece_comes_back_once() {
        for frags in [1, 2, 64] {
            let mut pool = pool(PAGE_SIZE / frags, frags, 8);
            let all: Vec<u32> = (0..frags).map(|_| pool.alloc_frag().unwrap()).collect();
            pool.put_frag(all[0], true);
            let again = std::panic::AssertUnwindSafe(|| pool.put_frag(all[0], true));
            assert!(std::panic::catch_unwind(again).is_err(), "{frags} a page");
            for frag in &all[1..] {
                pool.put_frag(*frag, true);
            }
            assert_eq!(pool.stats.recycle_cached, 1);
            assert_eq!(pool.destroy(), Ok(()));
        }
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
