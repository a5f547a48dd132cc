//! Memory that a device works on while it is mapped for it (Linux: `kernel/dma/mapping.c`).
//!
//! The CPU and the device take turns: [`DmaSlice::map_single`] gives a buffer to the device,
//! [`DmaSlice::unmap_single`] takes it back; a page that stays mapped changes hands by
//! [`DmaSlice::sync_single_for_device`] and [`DmaSlice::sync_single_for_cpu`]. Guest memory is coherent and a device has the
//! addresses that the guest has, so nothing of that moves a byte. It says whose turn it is, and in builds with debug assertions
//! a checker holds the driver and the device to it ([`debug`]). Without them no instruction is left of it.
//!
//! Rings, with their indirect tables, are coherent memory, which both sides use at any time.

pub mod debug;
#[cfg(all(test, debug_assertions))]
mod tests;

use std::sync::Arc;

use self::debug::DmaDebug;
use crate::memory::{GuestMemory, GuestSlice, MemoryError};

/// Whether each mapping is checked (`CONFIG_DMA_API_DEBUG`): a constant, so that nothing is asked at run time.
pub const CONFIG_DMA_API_DEBUG: bool = cfg!(debug_assertions);

/// Who writes a buffer and who reads it (`enum dma_data_direction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaDirection {
    /// The device reads it (`DMA_TO_DEVICE`).
    ToDevice,
    /// The device writes it (`DMA_FROM_DEVICE`).
    FromDevice,
}

/// A buffer could not be mapped (`DMA_MAPPING_ERROR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a buffer could not be mapped for the device")]
pub struct DmaMappingError;

/// Who maps buffers (`struct device`, of which there is one for each queue here).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaDevice(u32);

impl DmaDevice {
    /// A device called `name` that works on `memory`.
    pub fn new(memory: &GuestMemory, name: impl FnOnce() -> String) -> Self {
        Self(debug_of(memory).map_or(0, |debug| debug.add_device(name())))
    }

    /// The same with `len` bytes of guest memory for its buffers.
    ///
    /// # Errors
    /// When guest memory is full; then there is no device.
    pub fn allocate(
        memory: &Arc<GuestMemory>,
        name: impl FnOnce() -> String,
        len: usize,
        align: usize,
    ) -> Result<(Self, DmaSlice), MemoryError> {
        let device = Self::new(memory, name);
        let buffers = DmaSlice::allocate(memory, len, align, device);
        let buffers = buffers.inspect_err(|_| device.remove(memory))?;
        Ok((device, buffers))
    }

    /// The device is gone: what is mapped for it still was forgotten (`dma_debug_device_change`).
    pub fn remove(self, memory: &GuestMemory) {
        if let Some(debug) = debug_of(memory) {
            debug.remove_device(self.0);
        }
    }
}

#[inline(always)] // without debug assertions a constant, so that nothing is left of it
fn debug_of(memory: &GuestMemory) -> Option<&DmaDebug> {
    Some(memory.dma_debug()).filter(|debug| debug.is_enabled())
}

/// Memory whose buffers are mapped for a device: what the driver reads and writes of it is checked.
#[derive(Debug)]
pub struct DmaSlice {
    slice: GuestSlice,
    device: DmaDevice,
}

impl DmaSlice {
    /// Takes free guest memory for buffers of `device`.
    ///
    /// # Errors
    /// When guest memory is full.
    pub fn allocate(
        memory: &Arc<GuestMemory>,
        len: usize,
        align: usize,
        device: DmaDevice,
    ) -> Result<Self, MemoryError> {
        let slice = memory.allocate(len, align)?;
        Ok(Self { slice, device })
    }

    /// The guest memory that this is part of.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.slice.memory()
    }

    /// Address of the first byte.
    #[inline]
    #[must_use]
    pub fn guest_addr(&self) -> u64 {
        self.slice.guest_addr()
    }

    /// Gives the memory back to the guest; nothing of it may be mapped.
    pub fn release(&self) {
        self.slice.memory().release(&self.slice);
    }

    #[inline(always)] // as `debug_of`
    fn debug(&self) -> Option<&DmaDebug> {
        debug_of(self.slice.memory())
    }

    /// Gives `len` bytes at `offset` to the device; their address there (`dma_map_single`).
    ///
    /// # Errors
    /// It cannot be mapped: the checker was told so ([`DmaDebug::fail_maps`]).
    #[inline(always)] // the address alone is left
    pub fn map_single(
        &self,
        offset: usize,
        len: usize,
        direction: DmaDirection,
    ) -> Result<u64, DmaMappingError> {
        if let Some(debug) = self.debug() {
            debug.map_single(self.device.0, &self.slice, offset, len, direction)?;
        }
        Ok(self.guest_addr() + offset as u64)
    }

    /// Takes a buffer back: the CPU may use it again (`dma_unmap_single`).
    #[inline(always)] // nothing is left
    pub fn unmap_single(&self, offset: usize, len: usize, direction: DmaDirection) {
        if let Some(debug) = self.debug() {
            debug.unmap_single(self.device.0, &self.slice, offset, len, direction);
        }
    }

    /// Maps `len` bytes at `offset` for good; they stay the CPU's until they are given (`dma_map_page` with
    /// `DMA_ATTR_SKIP_CPU_SYNC`). [`Self::unmap_single`] ends that.
    ///
    /// # Errors
    /// As [`Self::map_single`].
    #[inline(always)] // nothing is left
    pub fn map_page(
        &self,
        offset: usize,
        len: usize,
        direction: DmaDirection,
    ) -> Result<(), DmaMappingError> {
        match self.debug() {
            Some(debug) => debug.map_page(self.device.0, &self.slice, offset, len, direction),
            None => Ok(()),
        }
    }

    /// Gives part of what is mapped to the device (`dma_sync_single_for_device`).
    #[inline(always)] // nothing is left
    pub fn sync_single_for_device(&self, offset: usize, len: usize, direction: DmaDirection) {
        if let Some(debug) = self.debug() {
            debug.sync_for_device(&self.slice, offset, len, direction);
        }
    }

    /// Takes part of what is mapped back (`dma_sync_single_for_cpu`).
    #[inline(always)] // nothing is left
    pub fn sync_single_for_cpu(&self, offset: usize, len: usize, direction: DmaDirection) {
        if let Some(debug) = self.debug() {
            debug.sync_for_cpu(&self.slice, offset, len, direction);
        }
    }

    #[inline(always)] // nothing is left
    fn reads(&self, offset: usize, len: usize) {
        if let Some(debug) = self.debug() {
            debug.cpu_access(&self.slice, offset, len, false);
        }
    }

    /// As [`GuestSlice::read`].
    #[inline]
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        self.reads(offset, buf.len());
        self.slice.read(offset, buf);
    }

    /// As [`GuestSlice::write`].
    #[inline]
    pub fn write(&self, offset: usize, buf: &[u8]) {
        if let Some(debug) = self.debug() {
            debug.cpu_access(&self.slice, offset, buf.len(), true);
        }
        self.slice.write(offset, buf);
    }

    /// As [`GuestSlice::read_u8`].
    #[inline]
    #[must_use]
    pub fn read_u8(&self, offset: usize) -> u8 {
        self.reads(offset, 1);
        self.slice.read_u8(offset)
    }

    /// As [`GuestSlice::read_u64_u32`].
    #[inline]
    #[must_use]
    pub fn read_u64_u32(&self, offset: usize) -> (u64, u32) {
        self.reads(offset, 12);
        self.slice.read_u64_u32(offset)
    }

    /// As [`GuestSlice::read_u64_u64_u32`].
    #[inline]
    #[must_use]
    pub fn read_u64_u64_u32(&self, offset: usize) -> (u64, u64, u32) {
        self.reads(offset, 20);
        self.slice.read_u64_u64_u32(offset)
    }
}
