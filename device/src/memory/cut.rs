//! What is known of guest memory that was taken away: which region, and why, as far as can be told.

use std::fmt;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{SysconfVar, sysconf};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use crate::sigbus::Range;

/// Guest memory that is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The region's guest address and its octets.
    pub region: (u64, u64),
    /// How far behind its beginning something was touched.
    pub offset: u64,
    /// Octets in its file now, and octets that there must be.
    pub file: Option<(u64, u64)>,
}

impl Cut {
    /// What became of region number `region` of `mapped`, touched at `offset`.
    pub(super) fn of(mapped: &GuestMemoryMmap, region: usize, offset: usize) -> Option<Self> {
        let region = mapped.iter().nth(region)?;
        let file = region.file_offset().and_then(|file| {
            let size = fstat(file.file().as_fd()).ok()?.st_size as u64;
            Some((size, file.start() + region.len()))
        });
        Some(Cut {
            region: (region.start_addr().0, region.len()),
            offset: offset as u64,
            file,
        })
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut {
            region: (start, len),
            offset,
            file,
        } = self;
        write!(
            f,
            "guest memory is gone at offset {offset:#x} of region {start:#x}+{len:#x}: "
        )?;
        match file {
            Some((size, needed)) if size < needed => write!(
                f,
                "the front-end cut its memory file short, to {size} octets where the region needs {needed} (a file sealed with F_SEAL_SHRINK cannot be)"
            ),
            _ => write!(
                f,
                "the front-end's memory file gave nothing there (was it cut short for a time, or is its file system full?)"
            ),
        }
    }
}

/// What is to be guarded of `mapped`, in the order of its regions.
pub(super) fn ranges(mapped: &GuestMemoryMmap) -> impl Iterator<Item = Range> + '_ {
    // Every system knows.
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.map_or(4096, |page| page as usize);
    mapped.iter().map(move |region| {
        let start = region.get_host_address(MemoryRegionAddress(0));
        let huge = region.file_offset().and_then(|file| {
            let system = fstatfs(file.file().as_fd()).ok()?;
            (system.filesystem_type() == HUGETLBFS_MAGIC).then_some(system.block_size() as usize)
        });
        Range {
            // Without an address nothing of it is ever touched.
            start: start.map_or(0, <*mut u8>::expose_provenance),
            len: region.len() as usize,
            page: huge.unwrap_or(page),
        }
    })
}
