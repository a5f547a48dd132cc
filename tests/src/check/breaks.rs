//! What a driver can do wrong with a ring (VIRTIO 1.3, 2.7 and 2.8).

use nic_guest::ring::raw::{Descriptor, RawRing};
use nic_guest::ring::raw_packed::PackedDescriptor;
use nic_guest::ring::{
    VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT, VIRTQ_DESC_F_WRITE as WRITE,
};

use super::bed::{BEHIND, CONTROL, FAR, HOLE, RX, SEAM, SIZE, TABLE};
use super::ring::Packed;

/// What a driver does wrong with a queue: its ring, and the flag that its descriptors have when they are right.
pub type Break = fn(&RawRing, u64, u16);

/// On all queues, of split rings of [`SIZE`] entries.
pub const BREAKS: &[(&str, Break)] = &[
    ("a loop", |ring, addr, flag| {
        ring.set_desc(0, Descriptor::new(addr, 8, flag | NEXT, 1));
        ring.set_desc(1, Descriptor::new(addr, 8, flag | NEXT, 0));
        ring.make_available(&[0]);
    }),
    ("a loop of one", |ring, addr, flag| {
        ring.set_desc(3, Descriptor::new(addr, 8, flag | NEXT, 3));
        ring.make_available(&[3]);
    }),
    ("a head out of range", |ring, _, _| {
        ring.make_available(&[SIZE]);
    }),
    ("a head far out of range", |ring, _, _| {
        ring.make_available(&[u16::MAX]);
    }),
    ("a next out of range", |ring, addr, flag| {
        ring.set_desc(0, Descriptor::new(addr, 8, flag | NEXT, SIZE));
        ring.make_available(&[0]);
    }),
    ("an address in a hole", |ring, _, flag| {
        ring.set_desc(0, Descriptor::new(HOLE, 64, flag, 0));
        ring.make_available(&[0]);
    }),
    ("a buffer that reaches into a hole", |ring, _, flag| {
        ring.set_desc(0, Descriptor::new(HOLE - 32, 64, flag, 0));
        ring.make_available(&[0]);
    }),
    ("a buffer over a hole", |ring, _, flag| {
        ring.set_desc(0, Descriptor::new(SEAM, (FAR - SEAM) as u32 + 64, flag, 0));
        ring.make_available(&[0]);
    }),
    ("a huge buffer", |ring, addr, flag| {
        ring.set_desc(0, Descriptor::new(addr, u32::MAX, flag, 0));
        ring.make_available(&[0]);
    }),
    ("an address that wraps", |ring, _, flag| {
        ring.set_desc(0, Descriptor::new(u64::MAX - 4, 64, flag, 0));
        ring.make_available(&[0]);
    }),
    ("a length of zero", |ring, addr, flag| {
        ring.set_desc(0, Descriptor::new(addr, 64, flag | NEXT, 1));
        ring.set_desc(1, Descriptor::new(addr, 0, flag, 0));
        ring.make_available(&[0]);
    }),
    ("readable after writable", |ring, addr, _| {
        ring.set_desc(0, Descriptor::new(addr, 64, WRITE | NEXT, 1));
        ring.set_desc(1, Descriptor::new(addr, 64, 0, 0));
        ring.make_available(&[0]);
    }),
    ("an index that jumps", |ring, _, _| {
        ring.set_avail_idx(ring.avail_idx() + SIZE + 1);
    }),
    ("an index that goes back", |ring, _, _| {
        ring.set_avail_idx(ring.avail_idx().wrapping_sub(1));
    }),
    ("nested tables", |ring, addr, flag| {
        let table = [
            Descriptor::new(addr, 8, flag | NEXT, 1),
            Descriptor::new(TABLE, 32, INDIRECT, 0),
        ];
        indirect(ring, &table, 32, 0);
    }),
    ("a table with a successor", |ring, addr, flag| {
        indirect(ring, &[Descriptor::new(addr, 8, flag, 0)], 16, NEXT);
    }),
    ("an empty table", |ring, _, _| {
        indirect(ring, &[], 0, 0);
    }),
    ("half a table", |ring, addr, flag| {
        indirect(ring, &[Descriptor::new(addr, 8, flag, 0)], 24, 0);
    }),
    ("a successor outside its table", |ring, addr, flag| {
        indirect(ring, &[Descriptor::new(addr, 8, flag | NEXT, 1)], 16, 0);
    }),
    ("a loop in a table", |ring, addr, flag| {
        indirect(ring, &[Descriptor::new(addr, 8, flag | NEXT, 0)], 16, 0);
    }),
    ("a table in a hole", |ring, _, _| {
        ring.set_desc(0, Descriptor::new(HOLE, 32, INDIRECT, 0));
        ring.make_available(&[0]);
    }),
    ("a table at the last address", |ring, _, _| {
        ring.set_desc(0, Descriptor::new(u64::MAX - 15, 32, INDIRECT, 0));
        ring.make_available(&[0]);
    }),
];

/// Makes an indirect table of `len` octets available, with more flags than it takes.
pub fn indirect(ring: &RawRing, table: &[Descriptor], len: u32, flags: u16) {
    ring.write_indirect_table(TABLE, table)
        .expect("it is mapped");
    ring.set_desc(0, Descriptor::new(TABLE, len, INDIRECT | flags, 1));
    ring.make_available(&[0]);
}

/// Only where the device has to write, of split rings.
pub const NOT_WRITABLE: &[(&str, usize, Break)] = &[
    ("a receive buffer to read", RX, |ring, addr, _| {
        ring.set_desc(0, Descriptor::new(addr, 2048, 0, 0));
        ring.make_available(&[0]);
    }),
    ("a receive buffer to read and write", RX, |ring, addr, _| {
        ring.set_desc(0, Descriptor::new(addr, 16, NEXT, 1));
        ring.set_desc(1, Descriptor::new(addr, 2032, WRITE, 0));
        ring.make_available(&[0]);
    }),
    (
        "a command without room for an answer",
        CONTROL,
        |ring, addr, _| {
            ring.set_desc(0, Descriptor::new(addr, 3, 0, 0));
            ring.make_available(&[0]);
        },
    ),
];

/// A chain of more than 4 GiB, for a ring of 1024 entries.
pub fn four_gibioctets(ring: &RawRing, _: u64, flag: u16) {
    // The same eight mebioctets over and over; each descriptor is sound.
    for index in 0..1024 {
        let flags = if index < 1023 { flag | NEXT } else { flag };
        ring.set_desc(index, Descriptor::new(FAR, BEHIND, flags, index + 1));
    }
    ring.make_available(&[0]);
}

/// Whether a break takes tables of descriptors, by its name.
#[must_use]
pub fn takes_tables(name: &str) -> bool {
    name.contains("table")
}

/// What a driver does wrong with a queue whose ring is packed.
pub type PackedBreak = fn(&mut Packed, u64, u16);

fn desc(addr: u64, len: u32, flags: u16) -> PackedDescriptor {
    PackedDescriptor::new(addr, len, 0, flags)
}

/// Makes an indirect table of `len` octets available, with more flags than it takes.
fn packed_table(ring: &mut Packed, table: &[PackedDescriptor], len: u32, flags: u16) {
    ring.raw
        .write_indirect_table(TABLE, table)
        .expect("it is mapped");
    ring.put(&[desc(TABLE, len, INDIRECT | flags)]);
}

/// On all queues, of packed rings of [`SIZE`] entries.
pub const PACKED_BREAKS: &[(&str, PackedBreak)] = &[
    ("a chain that never ends", |ring, addr, flag| {
        // Each descriptor of the ring is available and goes on in the next.
        ring.put(&[desc(addr, 8, flag | NEXT); SIZE as usize]);
    }),
    ("a chain longer than the ring", |ring, addr, flag| {
        let mut at = ring.next();
        for _ in 0..2 * SIZE {
            let flags = flag | NEXT | at.avail_flags();
            ring.raw.set_desc(at.off(), desc(addr, 8, flags));
            at = at.advance(1, SIZE);
        }
    }),
    ("an address in a hole", |ring, _, flag| {
        ring.put(&[desc(HOLE, 64, flag)]);
    }),
    ("a buffer that reaches into a hole", |ring, _, flag| {
        ring.put(&[desc(HOLE - 32, 64, flag)]);
    }),
    ("a buffer over a hole", |ring, _, flag| {
        ring.put(&[desc(SEAM, (FAR - SEAM) as u32 + 64, flag)]);
    }),
    ("a huge buffer", |ring, addr, flag| {
        ring.put(&[desc(addr, u32::MAX, flag)]);
    }),
    ("an address that wraps", |ring, _, flag| {
        ring.put(&[desc(u64::MAX - 4, 64, flag)]);
    }),
    ("a length of zero", |ring, addr, flag| {
        ring.put(&[desc(addr, 64, flag | NEXT), desc(addr, 0, flag)]);
    }),
    ("readable after writable", |ring, addr, _| {
        ring.put(&[desc(addr, 64, WRITE | NEXT), desc(addr, 64, 0)]);
    }),
    ("the second descriptor in a hole", |ring, addr, flag| {
        ring.put(&[desc(addr, 12, flag | NEXT), desc(HOLE, 64, flag)]);
    }),
    ("a nested table", |ring, addr, flag| {
        let table = [desc(addr, 8, flag), desc(TABLE, 32, INDIRECT)];
        packed_table(ring, &table, 32, 0);
    }),
    ("a table with a successor", |ring, addr, flag| {
        let table = [desc(addr, 8, flag)];
        ring.raw
            .write_indirect_table(TABLE, &table)
            .expect("it is mapped");
        ring.put(&[desc(TABLE, 16, INDIRECT | NEXT), desc(addr, 8, flag)]);
    }),
    ("an empty table", |ring, _, _| packed_table(ring, &[], 0, 0)),
    ("nothing but empty tables", |ring, _, _| {
        // A device that skips them without taking them off the ring does nothing else any more.
        for id in 0..SIZE {
            ring.put(&[PackedDescriptor::new(TABLE, 0, id, INDIRECT)]);
        }
    }),
    ("half a table", |ring, addr, flag| {
        packed_table(ring, &[desc(addr, 8, flag)], 24, 0);
    }),
    ("a table in a hole", |ring, _, _| {
        ring.put(&[desc(HOLE, 32, INDIRECT)]);
    }),
    ("a table that reaches into a hole", |ring, _, _| {
        ring.put(&[desc(HOLE - 16, 64, INDIRECT)]);
    }),
    ("a table at the last address", |ring, _, _| {
        ring.put(&[desc(u64::MAX - 15, 32, INDIRECT)]);
    }),
    ("a huge table", |ring, addr, flag| {
        packed_table(ring, &[desc(addr, 8, flag); 2], 0xffff_fff0, 0);
    }),
    ("a table of buffers in a hole", |ring, _, flag| {
        packed_table(ring, &[desc(HOLE, 64, flag); 2], 32, 0);
    }),
];

/// Only where the device has to write, of packed rings.
pub const PACKED_NOT_WRITABLE: &[(&str, usize, PackedBreak)] = &[
    ("a receive buffer to read", RX, |ring, addr, _| {
        ring.put(&[desc(addr, 2048, 0)]);
    }),
    ("a receive buffer to read and write", RX, |ring, addr, _| {
        ring.put(&[desc(addr, 16, NEXT), desc(addr, 2032, WRITE)]);
    }),
    (
        "a command without room for an answer",
        CONTROL,
        |ring, addr, _| ring.put(&[desc(addr, 3, 0)]),
    ),
];
