//! The checker of mappings (Linux: `kernel/dma/debug.c`).
//!
//! In: each mapping, each time that a buffer changes hands, and what the driver reads and writes of buffers. Out: what was done
//! wrong, counted and logged, and a panic where nobody said that it is looked at elsewhere ([`DmaDebug::tolerate`]), so that no
//! test passes over it.
//!
//! A device asks nobody before it writes. What it wrote out of turn shows all the same: the bytes that a received frame is in
//! are kept while they are the CPU's, and must be the same when the device gets them again; so must be those that the device
//! only reads. A device that runs in this process can be held to it at once ([`DmaDebug::device_access`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{CONFIG_DMA_API_DEBUG, DmaDirection, DmaMappingError};
use crate::memory::GuestSlice;

/// Errors that are kept; all are counted.
const KEPT_ERRORS: usize = 64;

/// What was done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DmaErrorKind {
    /// Mapped again, or part of it, while it is mapped.
    DoubleMap,
    /// Unmapped or synchronised, but not mapped: never, or no longer.
    NotMapped,
    /// Unmapped with another length, or synchronised beyond it.
    WrongSize,
    /// Unmapped or synchronised in another direction, or used by the device in the other one.
    WrongDirection,
    /// Unmapped by another device than it was mapped by.
    WrongDevice,
    /// Used by the CPU while it is the device's.
    CpuAccess,
    /// Used by the device while it is the CPU's.
    DeviceAccess,
    /// Mapped still when the device went.
    Leak,
}

/// An error, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("DMA-API: {device}: {kind:?}: {len} bytes at {addr:#x}")]
pub struct DmaError {
    /// What it is.
    pub kind: DmaErrorKind,
    /// Whose buffer; empty where nobody's is.
    pub device: String,
    /// Where it is, or the access was.
    pub addr: u64,
    /// How long.
    pub len: usize,
}

/// Part of a mapping that is the CPU's for now.
#[derive(Debug)]
struct CpuRange {
    range: Range<u64>,
    /// What was in there, once the device had written it.
    content: Option<Vec<u8>>,
}

/// A mapping (`struct dma_debug_entry`).
#[derive(Debug)]
struct Entry {
    len: usize,
    direction: DmaDirection,
    device: u32,
    /// What the device is to read.
    content: Option<Vec<u8>>,
    /// What of it is the CPU's, in any order.
    cpu: Vec<CpuRange>,
}

#[derive(Debug, Default)]
struct State {
    devices: Vec<String>,
    /// By their first address; they do not overlap.
    entries: BTreeMap<u64, Entry>,
    errors: Vec<DmaError>,
    error_count: u64,
    fail_maps: u64,
    tolerant: bool,
}

/// The checker of all that is mapped of one guest's memory.
#[derive(Debug, Default)]
pub struct DmaDebug {
    state: Mutex<State>,
    disabled: AtomicBool,
}

fn content(slice: &GuestSlice, range: &Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    slice.read((range.start - slice.guest_addr()) as usize, &mut bytes);
    bytes
}

fn range_of(slice: &GuestSlice, offset: usize, len: usize) -> Range<u64> {
    let start = slice.guest_addr() + offset as u64;
    start..start + len as u64
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl State {
    /// The mapping that has any of `range`, the last of several.
    fn find(&mut self, range: &Range<u64>) -> Option<(u64, &mut Entry)> {
        let (&start, entry) = self.entries.range_mut(..range.end).next_back()?;
        (start + entry.len as u64 > range.start).then_some((start, entry))
    }

    fn device(&self, range: &Range<u64>) -> String {
        let before = self.entries.range(..range.end).next_back();
        let device = before.and_then(|(_, entry)| self.devices.get(entry.device as usize));
        device.cloned().unwrap_or_default()
    }

    /// Keeps an error; whether somebody else looks at it.
    fn note(&mut self, kind: DmaErrorKind, range: &Range<u64>) -> Result<(), DmaError> {
        let error = DmaError {
            kind,
            device: self.device(range),
            addr: range.start,
            len: (range.end - range.start) as usize,
        };
        log::error!("{error}");
        self.error_count += 1;
        if self.errors.len() < KEPT_ERRORS {
            self.errors.push(error.clone());
        }
        if self.tolerant { Ok(()) } else { Err(error) }
    }
}

/// Ends a test whose driver or device did wrong.
fn report(noted: Result<(), DmaError>) {
    if let Err(error) = noted
        && !std::thread::panicking()
    {
        panic!("{error}");
    }
}

impl DmaDebug {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks nothing from now on, for good (`dma_debug=off`).
    pub fn disable(&self) {
        self.disabled.store(true, Ordering::Relaxed);
    }

    /// Whether it checks anything: in builds with debug assertions, unless it was told not to.
    #[inline(always)] // without them a constant
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        CONFIG_DMA_API_DEBUG && !self.disabled.load(Ordering::Relaxed)
    }

    /// Counts errors from now on, instead of panicking at the first: who says so looks at [`Self::take_errors`].
    pub fn tolerate(&self) {
        self.lock().tolerant = true;
    }

    /// What went wrong since the last call; the first of it, where it was much.
    pub fn take_errors(&self) -> Vec<DmaError> {
        std::mem::take(&mut self.lock().errors)
    }

    /// How often anything went wrong (`dma-api/error_count`).
    #[must_use]
    pub fn error_count(&self) -> u64 {
        self.lock().error_count
    }

    /// Mappings that there are.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.lock().entries.len()
    }

    /// Has the next `count` mappings fail, as they do without address space for them.
    pub fn fail_maps(&self, count: u64) {
        self.lock().fail_maps = count;
    }

    /// A device reads or writes `len` bytes at `addr`: whether they are its own, to be used so. Who runs a device in this
    /// process asks before it does; what is no buffer, such as a ring, it does not ask for.
    pub fn device_access(&self, addr: u64, len: usize, write: bool) -> bool {
        if !self.is_enabled() {
            return true;
        }
        let range = addr..addr + len as u64;
        let mut state = self.lock();
        let kind = match state.find(&range) {
            Some((start, entry)) if start <= range.start => {
                let ends = range.end > start + entry.len as u64;
                if ends || entry.cpu.iter().any(|cpu| overlap(&cpu.range, &range)) {
                    Some(DmaErrorKind::DeviceAccess)
                } else if write != (entry.direction == DmaDirection::FromDevice) {
                    Some(DmaErrorKind::WrongDirection)
                } else {
                    None
                }
            }
            _ => Some(DmaErrorKind::DeviceAccess),
        };
        let Some(kind) = kind else { return true };
        let noted = state.note(kind, &range);
        drop(state);
        report(noted);
        false
    }

    pub(super) fn add_device(&self, name: String) -> u32 {
        let mut state = self.lock();
        state.devices.push(name);
        state.devices.len() as u32 - 1
    }

    pub(super) fn remove_device(&self, device: u32) {
        let mut state = self.lock();
        let mut noted = Ok(());
        while let Some((&start, entry)) = state.entries.iter().find(|(_, e)| e.device == device) {
            let range = start..start + entry.len as u64;
            noted = noted.and(state.note(DmaErrorKind::Leak, &range));
            state.entries.remove(&start);
        }
        drop(state);
        report(noted);
    }

    fn map(&self, range: &Range<u64>, entry: Entry) -> Result<(), DmaMappingError> {
        let mut state = self.lock();
        if state.fail_maps > 0 {
            state.fail_maps -= 1;
            return Err(DmaMappingError);
        }
        let noted = match state.find(range) {
            Some(_) => state.note(DmaErrorKind::DoubleMap, range),
            None => {
                state.entries.insert(range.start, entry);
                Ok(())
            }
        };
        drop(state);
        report(noted);
        Ok(())
    }

    pub(super) fn map_single(
        &self,
        device: u32,
        slice: &GuestSlice,
        offset: usize,
        len: usize,
        direction: DmaDirection,
    ) -> Result<(), DmaMappingError> {
        let range = range_of(slice, offset, len);
        let read_only = direction == DmaDirection::ToDevice;
        let entry = Entry {
            len,
            direction,
            device,
            content: read_only.then(|| content(slice, &range)),
            cpu: Vec::new(),
        };
        self.map(&range, entry)
    }

    pub(super) fn map_page(
        &self,
        device: u32,
        slice: &GuestSlice,
        offset: usize,
        len: usize,
        direction: DmaDirection,
    ) -> Result<(), DmaMappingError> {
        let range = range_of(slice, offset, len);
        let all = CpuRange {
            range: range.clone(),
            content: None,
        };
        let entry = Entry {
            len,
            direction,
            device,
            content: None,
            cpu: vec![all],
        };
        self.map(&range, entry)
    }

    pub(super) fn unmap_single(
        &self,
        device: u32,
        slice: &GuestSlice,
        offset: usize,
        len: usize,
        direction: DmaDirection,
    ) {
        let range = range_of(slice, offset, len);
        let mut state = self.lock();
        let wrong = match state.entries.get(&range.start) {
            None => Some(DmaErrorKind::NotMapped),
            Some(entry) if entry.device != device => Some(DmaErrorKind::WrongDevice),
            Some(entry) if entry.len != len => Some(DmaErrorKind::WrongSize),
            Some(entry) if entry.direction != direction => Some(DmaErrorKind::WrongDirection),
            Some(_) => None,
        };
        let mut noted = wrong.map_or(Ok(()), |kind| state.note(kind, &range));
        // It is unmapped all the same, as in Linux, if it is there.
        if let Some(entry) = state.entries.remove(&range.start) {
            let whole = range.start..range.start + entry.len as u64;
            let outside = whole.end > slice.guest_addr() + slice.len() as u64;
            let changed = |range: &Range<u64>, was: &Option<Vec<u8>>| {
                was.as_ref()
                    .is_some_and(|was| content(slice, range) != *was)
            };
            if !outside
                && (changed(&whole, &entry.content)
                    || entry
                        .cpu
                        .iter()
                        .any(|cpu| changed(&cpu.range, &cpu.content)))
            {
                noted = noted.and(state.note(DmaErrorKind::DeviceAccess, &whole));
            }
        }
        drop(state);
        report(noted);
    }

    /// The mapping that has all of `range`, in that direction; else what is wrong.
    fn synced<'a>(
        state: &'a mut State,
        range: &Range<u64>,
        direction: DmaDirection,
    ) -> Result<&'a mut Entry, DmaErrorKind> {
        let (start, entry) = state.find(range).ok_or(DmaErrorKind::NotMapped)?;
        if start > range.start || range.end > start + entry.len as u64 {
            return Err(DmaErrorKind::WrongSize);
        }
        if entry.direction != direction {
            return Err(DmaErrorKind::WrongDirection);
        }
        Ok(entry)
    }

    pub(super) fn sync_for_cpu(
        &self,
        slice: &GuestSlice,
        offset: usize,
        len: usize,
        direction: DmaDirection,
    ) {
        let range = range_of(slice, offset, len);
        let mut state = self.lock();
        let noted = match Self::synced(&mut state, &range, direction) {
            Ok(entry) => {
                let content = Some(content(slice, &range));
                entry.cpu.push(CpuRange { range, content });
                Ok(())
            }
            Err(kind) => state.note(kind, &range),
        };
        drop(state);
        report(noted);
    }

    pub(super) fn sync_for_device(
        &self,
        slice: &GuestSlice,
        offset: usize,
        len: usize,
        direction: DmaDirection,
    ) {
        let range = range_of(slice, offset, len);
        let mut state = self.lock();
        let wrong = match Self::synced(&mut state, &range, direction) {
            Ok(entry) => {
                let mut changed = false;
                for at in (0..entry.cpu.len()).rev() {
                    if !overlap(&entry.cpu[at].range, &range) {
                        continue;
                    }
                    let cpu = entry.cpu.swap_remove(at);
                    changed |= cpu
                        .content
                        .is_some_and(|was| content(slice, &cpu.range) != was);
                    // What is left of it before and behind.
                    let before = cpu.range.start..range.start.max(cpu.range.start);
                    let behind = range.end.min(cpu.range.end)..cpu.range.end;
                    for range in [before, behind] {
                        if !range.is_empty() {
                            let content = None;
                            entry.cpu.push(CpuRange { range, content });
                        }
                    }
                }
                changed.then_some(DmaErrorKind::DeviceAccess)
            }
            Err(kind) => Some(kind),
        };
        let noted = wrong.map_or(Ok(()), |kind| state.note(kind, &range));
        drop(state);
        report(noted);
    }

    /// The driver reads or writes a buffer: it must be all the CPU's; what the device is only to read may be read.
    pub(super) fn cpu_access(&self, slice: &GuestSlice, offset: usize, len: usize, write: bool) {
        let range = range_of(slice, offset, len);
        let mut state = self.lock();
        let allowed = match state.find(&range) {
            None => true,
            Some((_, entry)) if entry.direction == DmaDirection::ToDevice => !write,
            Some((_, entry)) => {
                let own = entry
                    .cpu
                    .iter_mut()
                    .find(|cpu| cpu.range.start <= range.start && range.end <= cpu.range.end);
                own.map(|own| {
                    if write {
                        own.content = None;
                    }
                })
                .is_some()
            }
        };
        let noted = if allowed {
            Ok(())
        } else {
            state.note(DmaErrorKind::CpuAccess, &range)
        };
        drop(state);
        report(noted);
    }
}
