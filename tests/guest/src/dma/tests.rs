//! Each kind of error that the checker knows, made on purpose.

use super::debug::DmaErrorKind as Kind;
use super::{DmaDevice, DmaDirection, DmaSlice};
use crate::memory::GuestMemory;
use std::sync::Arc;

use DmaDirection::{FromDevice, ToDevice};

const LEN: usize = 256;
const PAGE: usize = 4096;

fn bench() -> (Arc<GuestMemory>, DmaSlice, DmaDevice) {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let device = DmaDevice::new(&memory, || "eth0".into());
    let slice = DmaSlice::allocate(&memory, 4096, 4096, device).unwrap();
    (memory, slice, device)
}

/// What `wrong` is found to be, each time that it is done, and nothing else.
fn found(wrong: impl FnOnce(&Arc<GuestMemory>, &DmaSlice, DmaDevice)) -> Vec<Kind> {
    let (memory, slice, device) = bench();
    memory.dma_debug().tolerate();
    wrong(&memory, &slice, device);
    let errors = memory.dma_debug().take_errors();
    assert_eq!(errors.len() as u64, memory.dma_debug().error_count());
    errors.iter().map(|error| error.kind).collect()
}

#[test]
fn turns_that_are_kept_are_no_error() {
    let (memory, slice, device) = bench();
    slice.write(0, &[1; LEN]);
    assert_eq!(slice.map_single(0, LEN, ToDevice), Ok(slice.guest_addr()));
    assert!(
        memory
            .dma_debug()
            .device_access(slice.guest_addr(), LEN, false)
    );
    assert_eq!(slice.read_u8(7), 1, "what is only read may be read");
    slice.unmap_single(0, LEN, ToDevice);
    slice.write(0, &[2; LEN]);
    slice.map_page(0, PAGE, FromDevice).unwrap();
    slice.write(0, &[3; LEN]);
    for at in [0, LEN] {
        slice.sync_single_for_device(at, LEN, FromDevice);
        let addr = slice.guest_addr() + at as u64;
        assert!(memory.dma_debug().device_access(addr, 100, true));
        memory.write(addr, &[4; 100]).unwrap();
    }
    slice.sync_single_for_cpu(0, LEN, FromDevice);
    let mut bytes = [0; LEN];
    slice.read(0, &mut bytes);
    assert_eq!((bytes[99], bytes[100]), (4, 3));
    // The driver may write what is its own.
    slice.write(0, &[5]);
    slice.sync_single_for_device(0, LEN, FromDevice);
    slice.sync_single_for_cpu(0, LEN, FromDevice);
    slice.unmap_single(0, PAGE, FromDevice);
    device.remove(&memory);
    assert_eq!(memory.dma_debug().error_count(), 0);
}

#[test]
fn what_is_mapped_is_not_mapped_again() {
    let twice = found(|_, slice, _| {
        slice.map_single(0, LEN, ToDevice).unwrap();
        slice.map_single(LEN - 1, LEN, FromDevice).unwrap();
        slice.unmap_single(0, LEN, ToDevice);
    });
    assert_eq!(twice, [Kind::DoubleMap]);
}

#[test]
fn what_is_not_mapped_is_not_given_back() {
    let not_mapped = found(|_, slice, _| {
        slice.map_single(0, LEN, FromDevice).unwrap();
        slice.unmap_single(0, LEN, FromDevice);
        slice.unmap_single(0, LEN, FromDevice);
        slice.sync_single_for_cpu(0, LEN, FromDevice);
        slice.sync_single_for_device(0, LEN, FromDevice);
    });
    assert_eq!(not_mapped, [Kind::NotMapped; 3]);
}

#[test]
fn lengths_directions_and_devices_agree() {
    let wrong = found(|memory, slice, _| {
        slice.map_single(0, LEN, FromDevice).unwrap();
        slice.sync_single_for_cpu(0, LEN + 1, FromDevice);
        slice.unmap_single(0, LEN - 1, FromDevice);
        slice.map_single(0, LEN, FromDevice).unwrap();
        slice.sync_single_for_cpu(0, LEN, ToDevice);
        slice.unmap_single(0, LEN, ToDevice);
        slice.map_single(0, LEN, FromDevice).unwrap();
        let other = DmaDevice::new(memory, || "eth1".into());
        let other = DmaSlice {
            slice: slice.slice.clone(),
            device: other,
        };
        other.unmap_single(0, LEN, FromDevice);
    });
    let (size, direction) = (Kind::WrongSize, Kind::WrongDirection);
    assert_eq!(wrong, [size, size, direction, direction, Kind::WrongDevice]);
}

#[test]
fn the_cpu_keeps_off_what_is_the_devices() {
    let accesses = found(|_, slice, _| {
        slice.map_single(0, LEN, ToDevice).unwrap();
        slice.write(LEN - 1, &[0]);
        slice.unmap_single(0, LEN, ToDevice);
        slice.map_single(0, LEN, FromDevice).unwrap();
        assert_eq!(slice.read_u8(LEN), 0, "behind it");
        let _ = slice.read_u8(LEN - 1);
        let _ = slice.read_u64_u32(LEN - 12);
        slice.write(0, &[0]);
        slice.unmap_single(0, LEN, FromDevice);
        slice.map_page(0, PAGE, FromDevice).unwrap();
        slice.sync_single_for_device(0, LEN, FromDevice);
        // Half of it is the CPU's.
        let mut both = [0; LEN];
        slice.read(LEN / 2, &mut both);
        slice.unmap_single(0, PAGE, FromDevice);
    });
    assert_eq!(accesses, [Kind::CpuAccess; 5]);
}

#[test]
#[should_panic(expected = "CpuAccess")]
fn a_use_after_it_was_given_away_ends_a_test() {
    let (_memory, slice, _) = bench();
    slice.map_single(0, LEN, FromDevice).unwrap();
    let _ = slice.read_u8(0);
}

#[test]
fn a_device_that_asks_hears_what_is_not_its_own() {
    let accesses = found(|memory, slice, _| {
        let (debug, addr) = (memory.dma_debug(), slice.guest_addr());
        slice.map_single(0, LEN, FromDevice).unwrap();
        assert!(debug.device_access(addr, LEN, true));
        assert!(!debug.device_access(addr, LEN + 1, true));
        assert!(!debug.device_access(addr, LEN, false), "to be written only");
        slice.unmap_single(0, LEN, FromDevice);
        assert!(!debug.device_access(addr, 1, true), "after unmap");
        slice.map_single(0, LEN, ToDevice).unwrap();
        assert!(!debug.device_access(addr, 1, true), "to be read only");
        slice.unmap_single(0, LEN, ToDevice);
        slice.map_page(0, PAGE, FromDevice).unwrap();
        assert!(!debug.device_access(addr, 1, true), "the CPU's still");
        slice.unmap_single(0, PAGE, FromDevice);
    });
    let (access, direction) = (Kind::DeviceAccess, Kind::WrongDirection);
    assert_eq!(accesses, [access, direction, access, direction, access]);
}

#[test]
fn a_device_that_does_not_ask_is_found_out_by_what_it_wrote() {
    let accesses = found(|memory, slice, _| {
        let addr = slice.guest_addr();
        slice.map_single(0, LEN, ToDevice).unwrap();
        memory.write(addr + 9, &[0xff]).unwrap();
        slice.unmap_single(0, LEN, ToDevice);
        slice.map_page(0, PAGE, FromDevice).unwrap();
        for _ in 0..2 {
            slice.sync_single_for_device(0, LEN, FromDevice);
            memory.write(addr + 9, &[1]).unwrap();
            slice.sync_single_for_cpu(0, LEN, FromDevice);
            memory.write(addr + 9, &[2]).unwrap();
        }
        slice.unmap_single(0, PAGE, FromDevice);
    });
    assert_eq!(accesses, [Kind::DeviceAccess; 3]);
}

#[test]
fn what_is_left_when_the_device_goes_is_a_leak() {
    let leaks = found(|memory, slice, device| {
        slice.map_single(0, LEN, ToDevice).unwrap();
        slice.map_single(LEN, LEN, FromDevice).unwrap();
        device.remove(memory);
        assert_eq!(memory.dma_debug().mapped(), 0);
    });
    assert_eq!(leaks, [Kind::Leak; 2]);
}

#[test]
fn a_mapping_that_fails_is_none() {
    let (memory, slice, _) = bench();
    memory.dma_debug().fail_maps(1);
    assert!(slice.map_single(0, LEN, ToDevice).is_err());
    slice.write(0, &[1]);
    assert!(slice.map_single(0, LEN, ToDevice).is_ok());
    slice.unmap_single(0, LEN, ToDevice);
}
