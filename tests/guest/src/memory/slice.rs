//! Windows on guest memory: how rings and buffers are read and written.
//!
//! What enters: offsets of the driver's own and bytes. What leaves: bytes that the device may have
//! changed a moment ago. No Rust reference into guest memory is ever made: the device is another
//! process, or another thread, and may change any byte at any time. Numbers are little-endian
//! (virtio 1.x), whatever the host is; ring indices are atomics with acquire and release order
//! (virtio 1.3, 2.7.13 and 2.7.14).

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::GuestMemory;

/// A window on guest memory that lies in one region and keeps it mapped.
///
/// Offsets are the driver's own, never the device's, so an offset out of bounds is a bug here and
/// panics.
#[derive(Debug, Clone)]
pub struct GuestSlice {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) base: NonNull<u8>,
    pub(super) len: usize,
    pub(super) guest_addr: u64,
}

// SAFETY: the window keeps its mapping alive, and all accesses go through raw pointers; see
// `Region`.
unsafe impl Send for GuestSlice {}
// SAFETY: as above.
unsafe impl Sync for GuestSlice {}

impl GuestSlice {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Guest-physical address of the first byte.
    #[must_use]
    pub fn guest_addr(&self) -> u64 {
        self.guest_addr
    }

    /// The memory that the window is in.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "access outside a guest slice"
        );
        // SAFETY: just checked to be inside the window, which is inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Copies bytes out.
    #[inline]
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        let src = self.at(offset, buf.len());
        // SAFETY: `src` has `buf.len()` readable bytes; a `&mut` of ours never overlaps guest
        // memory.
        unsafe { src.copy_to_nonoverlapping(buf.as_mut_ptr(), buf.len()) };
    }

    /// Copies bytes in.
    #[inline]
    pub fn write(&self, offset: usize, buf: &[u8]) {
        let dst = self.at(offset, buf.len());
        // SAFETY: `dst` has `buf.len()` writable bytes; a `&` of ours never overlaps guest memory.
        unsafe { dst.copy_from_nonoverlapping(buf.as_ptr(), buf.len()) };
    }

    /// Sets `len` bytes to `byte`.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        // SAFETY: checked by `at`.
        unsafe { self.at(offset, len).write_bytes(byte, len) };
    }

    #[inline]
    fn load<T: Copy>(&self, offset: usize) -> T {
        let src = self.at(offset, size_of::<T>()).cast::<T>();
        // SAFETY: in bounds; `T` is one of the integer types below.
        unsafe { load(src) }
    }

    #[inline]
    fn store<T: Copy>(&self, offset: usize, value: T) {
        let dst = self.at(offset, size_of::<T>()).cast::<T>();
        // SAFETY: in bounds.
        unsafe { store(dst, value) };
    }

    /// Reads a byte.
    #[inline]
    #[must_use]
    pub fn read_u8(&self, offset: usize) -> u8 {
        self.load(offset)
    }

    /// Reads a little-endian `u16`.
    #[inline]
    #[must_use]
    pub fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.load(offset))
    }

    /// Reads a little-endian `u32`.
    #[inline]
    #[must_use]
    pub fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le(self.load(offset))
    }

    /// Reads a little-endian `u64`.
    #[inline]
    #[must_use]
    pub fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le(self.load(offset))
    }

    /// Writes a little-endian `u16`.
    #[inline]
    pub fn write_u16(&self, offset: usize, value: u16) {
        self.store(offset, value.to_le());
    }

    /// Writes a little-endian `u32`.
    #[inline]
    pub fn write_u32(&self, offset: usize, value: u32) {
        self.store(offset, value.to_le());
    }

    /// Writes a little-endian `u64`.
    #[inline]
    pub fn write_u64(&self, offset: usize, value: u64) {
        self.store(offset, value.to_le());
    }

    /// Reads two little-endian `u32` that lie side by side, each once.
    #[inline]
    #[must_use]
    pub fn read_u32_pair(&self, offset: usize) -> (u32, u32) {
        let src = self.at(offset, 8).cast::<u32>();
        // SAFETY: both are in bounds.
        let (first, second) = unsafe { (load(src), load(src.add(1))) };
        (u32::from_le(first), u32::from_le(second))
    }

    /// Reads a little-endian `u64` and the `u32` behind it, each once.
    #[inline]
    #[must_use]
    pub fn read_u64_u32(&self, offset: usize) -> (u64, u32) {
        let src = self.at(offset, 12);
        // SAFETY: both are in bounds.
        let (first, second) = unsafe { (load(src.cast::<u64>()), load(src.add(8).cast::<u32>())) };
        (u64::from_le(first), u32::from_le(second))
    }

    /// Reads two little-endian `u64` and the `u32` behind them, each once.
    #[inline]
    #[must_use]
    pub fn read_u64_u64_u32(&self, offset: usize) -> (u64, u64, u32) {
        let src = self.at(offset, 20);
        // SAFETY: all are in bounds.
        let (first, second, third) = unsafe {
            (
                load(src.cast::<u64>()),
                load(src.add(8).cast::<u64>()),
                load(src.add(16).cast::<u32>()),
            )
        };
        (
            u64::from_le(first),
            u64::from_le(second),
            u32::from_le(third),
        )
    }

    /// Writes two little-endian `u64` side by side.
    #[inline]
    pub fn write_u64_pair(&self, offset: usize, first: u64, second: u64) {
        let dst = self.at(offset, 16).cast::<u64>();
        // SAFETY: both are in bounds.
        unsafe {
            store(dst, first.to_le());
            store(dst.add(1), second.to_le());
        }
    }

    #[inline]
    fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        let ptr = self.at(offset, 2).cast::<u16>();
        assert!(ptr.is_aligned(), "a ring index must be aligned");
        // SAFETY: in bounds, aligned, and mapped for as long as `self` is; atomics may be shared
        // with the device.
        unsafe { AtomicU16::from_ptr(ptr) }
    }

    /// Loads a ring index: what the device wrote before it is visible afterwards.
    #[inline]
    #[must_use]
    pub fn load_acquire_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic_u16(offset).load(Ordering::Acquire))
    }

    /// Stores a ring index: what was written before it is visible to whoever loads it.
    #[inline]
    pub fn store_release_u16(&self, offset: usize, value: u16) {
        self.atomic_u16(offset)
            .store(value.to_le(), Ordering::Release);
    }
}

/// Reads a number of guest memory: volatile, so that the compiler reads once what the device may change; in
/// one access where alignment allows it.
///
/// # Safety
/// `src` can be read, and every bit pattern is a `T`.
#[inline]
unsafe fn load<T: Copy>(src: *const T) -> T {
    if src.is_aligned() {
        // SAFETY: the caller's promise, and aligned.
        unsafe { src.read_volatile() }
    } else {
        // SAFETY: the caller's promise.
        unsafe { src.read_unaligned() }
    }
}

/// Writes a number to guest memory, as [`load`] reads it.
///
/// # Safety
/// `dst` can be written.
#[inline]
unsafe fn store<T: Copy>(dst: *mut T, value: T) {
    if dst.is_aligned() {
        // SAFETY: the caller's promise, and aligned.
        unsafe { dst.write_volatile(value) };
    } else {
        // SAFETY: the caller's promise.
        unsafe { dst.write_unaligned(value) };
    }
}

/// Orders what this side has stored before what it loads next (`virtio_mb`).
#[inline]
pub fn virtio_mb() {
    fence(Ordering::SeqCst);
}
