//! What a driver can do wrong with a ring.

use nic_device::ring::Fault;
use nic_guest::ring::raw::{Descriptor, RawRing};

use super::{CONTROL, FAR, HOLE, INDIRECT, NEXT, RX, SEAM, SIZE, TABLE, WRITE};

/// What a driver does wrong with a queue: its ring, and the flag that its descriptors have when they are right.
pub type Break = fn(&RawRing, u64, u16);

/// On all queues.
pub const BREAKS: &[(&str, Fault, Break)] = &[
    ("a loop", Fault::ChainTooLong, |ring, addr, flag| {
        ring.set_desc(0, Descriptor::new(addr, 8, flag | NEXT, 1));
        ring.set_desc(1, Descriptor::new(addr, 8, flag | NEXT, 0));
        ring.make_available(&[0]);
    }),
    ("a loop of one", Fault::ChainTooLong, |ring, addr, flag| {
        ring.set_desc(3, Descriptor::new(addr, 8, flag | NEXT, 3));
        ring.make_available(&[3]);
    }),
    (
        "a head out of range",
        Fault::HeadOutOfRange,
        |ring, _, _| ring.make_available(&[SIZE]),
    ),
    (
        "a head far out of range",
        Fault::HeadOutOfRange,
        |ring, _, _| ring.make_available(&[u16::MAX]),
    ),
    (
        "a next out of range",
        Fault::NextOutOfRange,
        |ring, addr, flag| {
            ring.set_desc(0, Descriptor::new(addr, 8, flag | NEXT, SIZE));
            ring.make_available(&[0]);
        },
    ),
    (
        "an address in a hole",
        Fault::AddressOutOfRange,
        |ring, _, flag| {
            ring.set_desc(0, Descriptor::new(HOLE, 64, flag, 0));
            ring.make_available(&[0]);
        },
    ),
    (
        "a buffer that reaches into a hole",
        Fault::AddressOutOfRange,
        |ring, _, flag| {
            ring.set_desc(0, Descriptor::new(HOLE - 32, 64, flag, 0));
            ring.make_available(&[0]);
        },
    ),
    (
        "a buffer over a hole",
        Fault::AddressOutOfRange,
        |ring, _, flag| {
            ring.set_desc(0, Descriptor::new(SEAM, (FAR - SEAM) as u32 + 64, flag, 0));
            ring.make_available(&[0]);
        },
    ),
    (
        "a huge buffer",
        Fault::AddressOutOfRange,
        |ring, addr, flag| {
            ring.set_desc(0, Descriptor::new(addr, u32::MAX, flag, 0));
            ring.make_available(&[0]);
        },
    ),
    (
        "an address that wraps",
        Fault::AddressWraps,
        |ring, _, flag| {
            ring.set_desc(0, Descriptor::new(u64::MAX - 4, 64, flag, 0));
            ring.make_available(&[0]);
        },
    ),
    ("a length of zero", Fault::ZeroLength, |ring, addr, flag| {
        ring.set_desc(0, Descriptor::new(addr, 64, flag | NEXT, 1));
        ring.set_desc(1, Descriptor::new(addr, 0, flag, 0));
        ring.make_available(&[0]);
    }),
    (
        "readable after writable",
        Fault::ReadableAfterWritable,
        |ring, addr, _| {
            ring.set_desc(0, Descriptor::new(addr, 64, WRITE | NEXT, 1));
            ring.set_desc(1, Descriptor::new(addr, 64, 0, 0));
            ring.make_available(&[0]);
        },
    ),
    ("an index that jumps", Fault::IndexJump, |ring, _, _| {
        ring.set_avail_idx(ring.avail_idx() + SIZE + 1);
    }),
    ("an index that goes back", Fault::IndexJump, |ring, _, _| {
        ring.set_avail_idx(ring.avail_idx().wrapping_sub(1));
    }),
    (
        "nested tables",
        Fault::IndirectNested,
        |ring, addr, flag| {
            let table = [
                Descriptor::new(addr, 8, flag | NEXT, 1),
                Descriptor::new(TABLE, 32, INDIRECT, 0),
            ];
            indirect(ring, &table, 32, 0);
        },
    ),
    (
        "a table with a successor",
        Fault::IndirectWithNext,
        |ring, addr, flag| {
            indirect(ring, &[Descriptor::new(addr, 8, flag, 0)], 16, NEXT);
        },
    ),
    ("an empty table", Fault::IndirectLength, |ring, _, _| {
        indirect(ring, &[], 0, 0);
    }),
    ("half a table", Fault::IndirectLength, |ring, addr, flag| {
        indirect(ring, &[Descriptor::new(addr, 8, flag, 0)], 24, 0);
    }),
    (
        "a successor outside its table",
        Fault::NextOutOfRange,
        |ring, addr, flag| {
            indirect(ring, &[Descriptor::new(addr, 8, flag | NEXT, 1)], 16, 0);
        },
    ),
    (
        "a loop in a table",
        Fault::ChainTooLong,
        |ring, addr, flag| {
            indirect(ring, &[Descriptor::new(addr, 8, flag | NEXT, 0)], 16, 0);
        },
    ),
    (
        "a table in a hole",
        Fault::AddressOutOfRange,
        |ring, _, _| {
            ring.set_desc(0, Descriptor::new(HOLE, 32, INDIRECT, 0));
            ring.make_available(&[0]);
        },
    ),
    (
        "a table at the last address",
        Fault::AddressOutOfRange,
        |ring, _, _| {
            ring.set_desc(0, Descriptor::new(u64::MAX - 15, 32, INDIRECT, 0));
            ring.make_available(&[0]);
        },
    ),
];

/// Makes an indirect table of `len` octets available, with more flags than it takes.
pub fn indirect(ring: &RawRing, table: &[Descriptor], len: u32, flags: u16) {
    ring.write_indirect_table(TABLE, table)
        .expect("it is mapped");
    ring.set_desc(0, Descriptor::new(TABLE, len, INDIRECT | flags, 1));
    ring.make_available(&[0]);
}

/// Only where the device has to write.
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
