//! Guest memory: regions, holes, offsets, and copies across borders.

use std::os::unix::fs::FileExt;

use crate::memory::{GuestMemory, MemoryError, PAGE_SIZE};

const MIB: usize = 1 << 20;

#[test]
fn regions_may_touch_or_leave_a_hole() {
    let memory = GuestMemory::builder()
        .region(0, MIB)
        .region(MIB as u64, MIB)
        .region(0x1_0000_0000, MIB)
        .build()
        .unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    memory.write(MIB as u64 - 100, &bytes).unwrap();
    let mut back = [0; 256];
    memory.read(MIB as u64 - 100, &mut back).unwrap();
    assert_eq!(&back[..], &bytes[..]);
    let hole = 2 * MIB as u64 - 4;
    assert!(matches!(
        memory.read(hole, &mut [0; 8]),
        Err(MemoryError::OutOfRange { .. })
    ));
    assert!(matches!(
        memory.write(u64::MAX, &[0; 8]),
        Err(MemoryError::OutOfRange { .. })
    ));
    assert!(
        memory.slice(MIB as u64 - 100, 256).is_err(),
        "a slice lies in one region"
    );
    assert_eq!(memory.host_addr(3 * MIB as u64), None);
    assert_eq!(
        memory.host_addr(0x1_0000_0010),
        Some(memory.regions()[2].host_addr + 0x10)
    );
}

#[test]
fn bad_regions_are_refused() {
    let build = |size, offset| {
        GuestMemory::builder()
            .region_at_offset(0, size, offset)
            .build()
    };
    for (size, offset) in [(0, 0), (100, 0), (PAGE_SIZE, 100)] {
        assert!(matches!(
            build(size, offset),
            Err(MemoryError::BadRegion(0))
        ));
    }
    let overlap = GuestMemory::builder()
        .region(0, MIB)
        .region(MIB as u64 - 4096, MIB)
        .build();
    assert!(matches!(overlap, Err(MemoryError::Overlap(1))));
}

#[test]
fn the_file_holds_the_region_at_its_offset_and_cannot_shrink() {
    let memory = GuestMemory::builder()
        .region_at_offset(0x10_0000, MIB, 5 * PAGE_SIZE)
        .region_at_offset(0x4000_0000, MIB, PAGE_SIZE)
        .one_file()
        .build()
        .unwrap();
    memory.write(0x4000_0000, b"here").unwrap();
    let regions = memory.regions();
    assert_eq!(regions[0].mmap_offset, 5 * PAGE_SIZE as u64);
    assert_eq!(regions[1].mmap_offset, (6 * PAGE_SIZE + MIB) as u64);
    assert_eq!(regions[0].fd, regions[1].fd);
    let file = std::fs::File::from(memory.region_file(1).unwrap().try_clone_to_owned().unwrap());
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, regions[1].mmap_offset)
        .unwrap();
    assert_eq!(&bytes, b"here");
    assert!(file.set_len(0).is_err(), "sealed");
}

#[test]
fn guest_addresses_may_be_host_addresses() {
    let memory = GuestMemory::builder()
        .region_at_host_address(MIB)
        .build()
        .unwrap();
    let region = memory.regions()[0];
    assert_eq!(region.guest_addr, region.host_addr);
    let slice = memory.allocate(100, 64).unwrap();
    assert_eq!(
        memory.host_addr(slice.guest_addr()),
        Some(slice.guest_addr())
    );
}

#[test]
fn allocations_come_from_the_region_asked_for_and_never_from_page_0() {
    let memory = GuestMemory::builder()
        .region(0, MIB)
        .region(0x8000_0000, MIB)
        .build()
        .unwrap();
    assert_eq!(
        memory.allocate(1, 1).unwrap().guest_addr(),
        PAGE_SIZE as u64
    );
    let there = memory.allocate_in(1, MIB, PAGE_SIZE).unwrap();
    assert_eq!(there.guest_addr(), 0x8000_0000);
    assert!(matches!(
        memory.allocate(2 * MIB, 1),
        Err(MemoryError::OutOfMemory { .. })
    ));
    assert!(memory.allocate_in(1, 1, 1).is_err());
    memory.release(&there);
    assert!(memory.allocate_in(1, 1, 1).is_ok());
}

#[test]
fn a_checksum_sees_every_byte() {
    let memory = GuestMemory::builder()
        .region(0, MIB)
        .region(0x8000_0000, MIB)
        .build()
        .unwrap();
    memory.fill(0xa5);
    let before = memory.checksum();
    assert_eq!(memory.checksum(), before);
    let last = 0x8000_0000 + MIB as u64 - 1;
    memory.write(last, &[0xa4]).unwrap();
    assert_ne!(memory.checksum(), before);
    memory.write(last, &[0xa5]).unwrap();
    assert_eq!(memory.checksum(), before);
}

#[test]
fn numbers_are_little_endian_and_need_no_alignment() {
    let memory = GuestMemory::new(16 * PAGE_SIZE).unwrap();
    let slice = memory.allocate(64, 64).unwrap();
    slice.write_u64(3, 0x1122_3344_5566_7788);
    let mut bytes = [0; 8];
    slice.read(3, &mut bytes);
    assert_eq!(bytes, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    assert_eq!(
        (slice.read_u16(3), slice.read_u32(5), slice.read_u8(10)),
        (0x7788, 0x3344_5566, 0x11)
    );
    slice.store_release_u16(32, 0xabcd);
    assert_eq!(slice.load_acquire_u16(32), 0xabcd);
}

#[test]
#[should_panic(expected = "outside a guest slice")]
fn an_access_outside_a_slice_is_a_bug() {
    let memory = GuestMemory::new(16 * PAGE_SIZE).unwrap();
    let slice = memory.allocate(64, 64).unwrap();
    let _ = slice.read_u32(61);
}
