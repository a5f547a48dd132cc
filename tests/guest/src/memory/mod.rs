//! Guest memory: memfd-backed regions that this process maps and a device maps too.
//!
//! Everything the device may read or write lives here, so this module is the
//! one with `unsafe` in it. What enters: region descriptions (guest address, size, offset into the
//! file). What leaves: [`RegionInfo`]s for a transport to share, and [`GuestSlice`]s,
//! bounds-checked windows through which rings and buffers are accessed.

mod slice;

use std::fs::File;
use std::hash::Hasher;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

pub use slice::{GuestSlice, virtio_mb};

use crate::allocator::FreeList;
use crate::dma::debug::DmaDebug;

/// Size of a guest page; regions and file offsets are multiples of it.
pub const PAGE_SIZE: usize = 4096;

/// Why memory could not be made, allocated or accessed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region's size or offset is zero or not a multiple of the page size.
    #[error(
        "region {0}: size and file offset must be multiples of {PAGE_SIZE}, and the size not 0"
    )]
    BadRegion(usize),
    /// Two regions share guest addresses.
    #[error("region {0} overlaps another one")]
    Overlap(usize),
    /// The guest has no contiguous free memory of that length left.
    #[error("no {len} bytes of guest memory free (alignment {align})")]
    OutOfMemory {
        /// Bytes asked for.
        len: usize,
        /// Alignment asked for.
        align: usize,
    },
    /// An address range that is not (wholly) in guest memory.
    #[error("guest addresses {addr:#x}+{len:#x} are not in guest memory")]
    OutOfRange {
        /// First guest address.
        addr: u64,
        /// Length in bytes.
        len: usize,
    },
    /// The system refused a memfd, a seal or a mapping.
    #[error("guest memory: {0}")]
    System(#[from] nix::Error),
    /// The memfd could not be given its size.
    #[error("guest memory file: {0}")]
    Io(#[from] std::io::Error),
}

/// What a transport tells a device about one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionInfo {
    /// File behind the region; valid as long as the [`GuestMemory`] is.
    pub fd: RawFd,
    /// Guest-physical address of the first byte.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Where in the file the region starts.
    pub mmap_offset: u64,
    /// Where this process has it mapped.
    pub host_addr: u64,
}

/// Where in guest-physical space a region lies.
#[derive(Debug, Clone, Copy)]
enum GuestBase {
    At(u64),
    HostAddress,
}

#[derive(Debug, Clone, Copy)]
struct RegionSpec {
    base: GuestBase,
    size: usize,
    mmap_offset: usize,
}

/// Describes guest memory region by region; see [`GuestMemory::builder`].
#[derive(Debug, Default)]
pub struct GuestMemoryBuilder {
    regions: Vec<RegionSpec>,
    one_file: bool,
    unsealed: bool,
}

impl GuestMemoryBuilder {
    /// Adds a region of `size` bytes at `guest_addr`.
    #[must_use]
    pub fn region(self, guest_addr: u64, size: usize) -> Self {
        self.region_at_offset(guest_addr, size, 0)
    }

    /// Adds a region that starts `mmap_offset` bytes into its file, as User-mode Linux has it.
    #[must_use]
    pub fn region_at_offset(mut self, guest_addr: u64, size: usize, mmap_offset: usize) -> Self {
        self.regions.push(RegionSpec {
            base: GuestBase::At(guest_addr),
            size,
            mmap_offset,
        });
        self
    }

    /// Adds a region whose guest-physical address is its address in this process, as DPDK's
    /// virtio-user has it.
    #[must_use]
    pub fn region_at_host_address(mut self, size: usize) -> Self {
        self.regions.push(RegionSpec {
            base: GuestBase::HostAddress,
            size,
            mmap_offset: 0,
        });
        self
    }

    /// Puts all regions into one file, one after the other, instead of a file for each.
    #[must_use]
    pub fn one_file(mut self) -> Self {
        self.one_file = true;
        self
    }

    /// Leaves the files without a seal against shrinking, for [`GuestMemory::truncate`].
    #[must_use]
    pub fn unsealed(mut self) -> Self {
        self.unsealed = true;
        self
    }

    /// Makes the files, seals them against shrinking, and maps them.
    ///
    /// # Errors
    /// [`MemoryError::BadRegion`] and [`MemoryError::Overlap`] for a wrong description, else what
    /// the system refused.
    pub fn build(self) -> Result<Arc<GuestMemory>, MemoryError> {
        for (index, spec) in self.regions.iter().enumerate() {
            if spec.size == 0 || spec.size % PAGE_SIZE != 0 || spec.mmap_offset % PAGE_SIZE != 0 {
                return Err(MemoryError::BadRegion(index));
            }
        }
        let mut regions: Vec<Region> = Vec::with_capacity(self.regions.len());
        let total: usize = self
            .regions
            .iter()
            .map(|spec| spec.mmap_offset + spec.size)
            .sum();
        let mut shared = if self.one_file {
            Some((self.guest_file(total)?, 0))
        } else {
            None
        };
        for (index, spec) in self.regions.iter().enumerate() {
            let (file, mmap_offset) = match &mut shared {
                Some((file, end)) => {
                    let offset = *end + spec.mmap_offset;
                    *end = offset + spec.size;
                    (Arc::clone(file), offset)
                }
                None => {
                    let file = self.guest_file(spec.mmap_offset + spec.size)?;
                    (file, spec.mmap_offset)
                }
            };
            let region = Region::map(file, spec, mmap_offset)?;
            let end = region
                .guest_addr
                .checked_add(region.size as u64)
                .ok_or(MemoryError::BadRegion(index))?;
            if regions
                .iter()
                .any(|r| region.guest_addr < r.end() && r.guest_addr < end)
            {
                return Err(MemoryError::Overlap(index));
            }
            regions.push(region);
        }
        let free = regions
            .iter()
            .map(|r| {
                // Guest page 0 is never handed out, so that an address of 0 in a descriptor is
                // always a bug.
                let reserved = if r.guest_addr == 0 {
                    PAGE_SIZE as u64
                } else {
                    0
                };
                FreeList::new(r.guest_addr + reserved, r.size as u64 - reserved)
            })
            .collect();
        Ok(Arc::new(GuestMemory {
            regions,
            free: Mutex::new(free),
            dma_debug: DmaDebug::default(),
        }))
    }

    fn guest_file(&self, size: usize) -> Result<Arc<File>, MemoryError> {
        let fd = memfd_create(
            c"nic-guest-memory",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )?;
        let file = File::from(fd);
        file.set_len(size as u64)?;
        if !self.unsealed {
            // A file cut short under a mapping means SIGBUS for whoever touches it: rule that out.
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
        }
        Ok(Arc::new(file))
    }
}

/// One mapped piece of guest memory.
#[derive(Debug)]
struct Region {
    file: Arc<File>,
    guest_addr: u64,
    size: usize,
    mmap_offset: usize,
    host: NonNull<u8>,
}

// SAFETY: the mapping is owned by the region and stays where it is until the region is dropped; no
// references into it exist, and all accesses go through raw pointers whose races are with the
// device by design.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn map(file: Arc<File>, spec: &RegionSpec, mmap_offset: usize) -> Result<Self, MemoryError> {
        let len = NonZeroUsize::new(spec.size).ok_or(MemoryError::BadRegion(0))?;
        let offset = libc::off_t::try_from(mmap_offset).map_err(|_| MemoryError::BadRegion(0))?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice touches no memory
        // that Rust knows of.
        let host =
            unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, &*file, offset)? }.cast::<u8>();
        let guest_addr = match spec.base {
            GuestBase::At(addr) => addr,
            GuestBase::HostAddress => host.as_ptr() as u64,
        };
        Ok(Self {
            file,
            guest_addr,
            size: spec.size,
            mmap_offset,
            host,
        })
    }

    fn end(&self) -> u64 {
        self.guest_addr + self.size as u64
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's, and every slice of it keeps the memory alive, so
        // none is left.
        if let Err(error) = unsafe { munmap(self.host.cast(), self.size) } {
            log::error!("unmapping guest memory: {error}");
        }
    }
}

/// The guest's RAM: one or more regions, and which pages of them are free.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
    /// Taken at set-up only; no packet ever waits for it.
    free: Mutex<Vec<FreeList>>,
    dma_debug: DmaDebug,
}

impl GuestMemory {
    /// Who checks what is mapped for devices, in builds with debug assertions.
    #[must_use]
    pub fn dma_debug(&self) -> &DmaDebug {
        &self.dma_debug
    }

    /// Starts a description of guest memory.
    #[must_use]
    pub fn builder() -> GuestMemoryBuilder {
        GuestMemoryBuilder::default()
    }

    /// One region of `size` bytes at guest address 0.
    ///
    /// # Errors
    /// See [`GuestMemoryBuilder::build`].
    pub fn new(size: usize) -> Result<Arc<Self>, MemoryError> {
        Self::builder().region(0, size).build()
    }

    /// What a transport shares with the device, in the order of the description.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionInfo> {
        self.regions
            .iter()
            .map(|r| RegionInfo {
                fd: r.file.as_raw_fd(),
                guest_addr: r.guest_addr,
                size: r.size as u64,
                mmap_offset: r.mmap_offset as u64,
                host_addr: r.host.as_ptr() as u64,
            })
            .collect()
    }

    /// The file behind region `index`, for an in-process device that maps the memory itself.
    #[must_use]
    pub fn region_file(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.regions.get(index).map(|r| r.file.as_fd())
    }

    /// Cuts the file behind region `index` short, to `len` bytes: what no front-end must do. From then on whoever touches what was
    /// behind gets SIGBUS, this process too.
    ///
    /// # Errors
    /// There is no such region, or its file is sealed, as it is unless [`GuestMemoryBuilder::unsealed`] says otherwise.
    pub fn truncate(&self, index: usize, len: u64) -> Result<(), MemoryError> {
        let region = self
            .regions
            .get(index)
            .ok_or(MemoryError::BadRegion(index))?;
        Ok(region.file.set_len(len)?)
    }

    /// Where this process has guest address `addr` mapped.
    #[must_use]
    pub fn host_addr(&self, addr: u64) -> Option<u64> {
        let region = self.find(addr)?;
        Some(region.host.as_ptr() as u64 + (addr - region.guest_addr))
    }

    fn find(&self, addr: u64) -> Option<&Region> {
        self.regions
            .iter()
            .find(|r| addr >= r.guest_addr && addr < r.end())
    }

    /// A window on `len` bytes at guest address `addr`; it must lie in one region.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn slice(self: &Arc<Self>, addr: u64, len: usize) -> Result<GuestSlice, MemoryError> {
        let out_of_range = MemoryError::OutOfRange { addr, len };
        let Some(region) = self.find(addr) else {
            return Err(out_of_range);
        };
        if len as u64 > region.end() - addr {
            return Err(out_of_range);
        }
        let offset = (addr - region.guest_addr) as usize;
        // SAFETY: offset is below the region's size, so the result stays inside the mapping.
        let base = unsafe { region.host.add(offset) };
        Ok(GuestSlice {
            memory: Arc::clone(self),
            base,
            len,
            guest_addr: addr,
        })
    }

    /// Takes `len` contiguous free bytes from the first region that has them.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`].
    pub fn allocate(self: &Arc<Self>, len: usize, align: usize) -> Result<GuestSlice, MemoryError> {
        (0..self.regions.len())
            .find_map(|region| self.allocate_in(region, len, align).ok())
            .ok_or(MemoryError::OutOfMemory { len, align })
    }

    /// Takes `len` contiguous free bytes from region `region`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`].
    pub fn allocate_in(
        self: &Arc<Self>,
        region: usize,
        len: usize,
        align: usize,
    ) -> Result<GuestSlice, MemoryError> {
        let out_of_memory = MemoryError::OutOfMemory { len, align };
        let mut free = self
            .free
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let addr = free
            .get_mut(region)
            .and_then(|list| list.allocate(len as u64, align as u64));
        drop(free);
        self.slice(addr.ok_or(out_of_memory)?, len)
    }

    /// Gives an allocated range back. The device must no longer use it.
    pub fn release(&self, slice: &GuestSlice) {
        let Some(index) = self
            .regions
            .iter()
            .position(|r| slice.guest_addr >= r.guest_addr && slice.guest_addr < r.end())
        else {
            return;
        };
        let mut free = self
            .free
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        free[index].release(slice.guest_addr, slice.len as u64);
    }

    /// Copies guest memory at `addr` out; the range may span regions that touch.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], after the part before the hole was copied.
    pub fn read(self: &Arc<Self>, addr: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < buf.len() {
            let (slice, here) = self.piece(addr, done, buf.len())?;
            slice.read(0, &mut buf[done..done + here]);
            done += here;
        }
        Ok(())
    }

    /// Copies `buf` to guest memory at `addr`; the range may span regions that touch.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], after the part before the hole was written.
    pub fn write(self: &Arc<Self>, addr: u64, buf: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < buf.len() {
            let (slice, here) = self.piece(addr, done, buf.len())?;
            slice.write(0, &buf[done..done + here]);
            done += here;
        }
        Ok(())
    }

    /// The part of `addr..addr + len` that begins `done` bytes in and lies in one region.
    fn piece(
        self: &Arc<Self>,
        addr: u64,
        done: usize,
        len: usize,
    ) -> Result<(GuestSlice, usize), MemoryError> {
        let out_of_range = || MemoryError::OutOfRange { addr, len };
        let at = addr.checked_add(done as u64).ok_or_else(out_of_range)?;
        let region = self.find(at).ok_or_else(out_of_range)?;
        let here = ((region.end() - at) as usize).min(len - done);
        Ok((self.slice(at, here)?, here))
    }

    /// Sets every byte of every region: a canary that shows what a device wrote.
    pub fn fill(self: &Arc<Self>, byte: u8) {
        for region in &self.regions {
            // SAFETY: the whole mapping is ours and writable; see the note on references at the
            // top.
            unsafe { region.host.as_ptr().write_bytes(byte, region.size) };
        }
    }

    /// A hash of all of guest memory, to tell whether a device wrote anywhere.
    #[must_use]
    pub fn checksum(self: &Arc<Self>) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        let mut chunk = vec![0; 64 << 10];
        for region in &self.regions {
            for start in (0..region.size).step_by(chunk.len()) {
                let len = chunk.len().min(region.size - start);
                // The range is in the region by construction.
                if self
                    .read(region.guest_addr + start as u64, &mut chunk[..len])
                    .is_ok()
                {
                    hasher.write(&chunk[..len]);
                }
            }
        }
        hasher.finish()
    }

    /// A hash of `len` bytes at `addr`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn checksum_of(self: &Arc<Self>, addr: u64, len: usize) -> Result<u64, MemoryError> {
        let mut bytes = vec![0; len];
        self.read(addr, &mut bytes)?;
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&bytes);
        Ok(hasher.finish())
    }
}
