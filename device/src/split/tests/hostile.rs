//! Drivers that do what none may, and those that only seem to.

use super::*;

/// What a driver does wrong: a name, what must come of it, and the features that were negotiated.
type Case = (&'static str, Fault, Features, fn(&mut Driver));

const SIZE: u16 = 8;
/// Where the hostile drivers put their indirect tables.
const TABLE: u64 = BUFFERS + 0x1000;

/// Posts a reference to an indirect table of `len` octets at `addr`.
fn refer(driver: &mut Driver, addr: u64, len: u32) {
    driver.describe(0, addr, len, INDIRECT, 0);
    driver.post_head(0);
}

/// Posts an indirect table of `descriptors`.
fn table(driver: &mut Driver, descriptors: &[(u64, u32, u16, u16)]) {
    for (index, &(addr, len, flags, next)) in (0..).zip(descriptors) {
        driver.guest.describe(
            TABLE,
            index,
            Descriptor {
                addr,
                len,
                flags,
                next,
            },
        );
    }
    refer(driver, TABLE, 16 * descriptors.len() as u32);
}

/// Posts a chain of `descriptors` from the first on.
fn direct(driver: &mut Driver, descriptors: &[(u64, u32, u16, u16)]) {
    for (index, &(addr, len, flags, next)) in (0..).zip(descriptors) {
        driver.describe(index, addr, len, flags, next);
    }
    driver.post_head(0);
}

const HOSTILE: &[Case] = &[
    ("the index goes one too far", Fault::IndexJump, BASE, |d| {
        d.set_available_index(d.available.wrapping_add(SIZE + 1));
    }),
    ("the index goes back", Fault::IndexJump, BASE, |d| {
        d.set_available_index(d.available.wrapping_sub(1));
    }),
    (
        "the head is the ring's size",
        Fault::HeadOutOfRange,
        BASE,
        |d| d.post_head(SIZE),
    ),
    ("the head is all ones", Fault::HeadOutOfRange, BASE, |d| {
        d.post_head(0xffff);
    }),
    (
        "the successor is the ring's size",
        Fault::NextOutOfRange,
        BASE,
        |d| {
            direct(d, &[(BUFFERS, 1, NEXT, SIZE)]);
        },
    ),
    (
        "the successor is all ones",
        Fault::NextOutOfRange,
        BASE,
        |d| {
            direct(d, &[(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 0xffff)]);
        },
    ),
    (
        "a successor behind the indirect table",
        Fault::NextOutOfRange,
        WITH_INDIRECT,
        |d| {
            table(d, &[(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 2)]);
        },
    ),
    (
        "a descriptor follows itself",
        Fault::ChainTooLong,
        BASE,
        |d| {
            direct(d, &[(BUFFERS, 1, NEXT, 0)]);
        },
    ),
    (
        "the last descriptor leads back",
        Fault::ChainTooLong,
        BASE,
        |d| {
            let all: Vec<_> = (0..SIZE)
                .map(|at| (BUFFERS, 1, NEXT, (at + 1) % SIZE))
                .collect();
            direct(d, &all);
        },
    ),
    ("a writable loop", Fault::ChainTooLong, BASE, |d| {
        direct(d, &[(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT | WRITE, 1)]);
    }),
    (
        "a loop in an indirect table",
        Fault::ChainTooLong,
        WITH_INDIRECT,
        |d| {
            table(d, &[(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 0)]);
        },
    ),
    (
        "an indirect chain longer than the ring",
        Fault::ChainTooLong,
        WITH_INDIRECT,
        |d| {
            let chain = [readable(BUFFERS, 1); SIZE as usize + 1];
            d.post_mixed(&[], Some((TABLE, &chain)));
        },
    ),
    (
        "a mixed chain longer than the ring",
        Fault::ChainTooLong,
        WITH_INDIRECT,
        |d| {
            let chain = [readable(BUFFERS, 1); SIZE as usize];
            d.post_mixed(&chain[..3], Some((TABLE, &chain[..6])));
        },
    ),
    (
        "an address in a hole",
        Fault::AddressOutOfRange,
        BASE,
        |d| {
            direct(d, &[(HOLE, 1, 0, 0)]);
        },
    ),
    ("the end in a hole", Fault::AddressOutOfRange, BASE, |d| {
        direct(d, &[(HOLE - 1, 2, WRITE, 0)]);
    }),
    ("over a hole", Fault::AddressOutOfRange, BASE, |d| {
        direct(d, &[(HOLE - 1, (HOLE_END - HOLE) as u32 + 2, 0, 0)]);
    }),
    (
        "an address behind all memory",
        Fault::AddressOutOfRange,
        BASE,
        |d| {
            direct(d, &[(1 << 40, 1, 0, 0)]);
        },
    ),
    ("the longest length", Fault::AddressOutOfRange, BASE, |d| {
        direct(d, &[(BUFFERS, u32::MAX, 0, 0)]);
    }),
    (
        "an end beyond the last address",
        Fault::AddressWraps,
        BASE,
        |d| {
            direct(d, &[(u64::MAX, 2, 0, 0)]);
        },
    ),
    ("a wrap into memory", Fault::AddressWraps, BASE, |d| {
        direct(
            d,
            &[(u64::MAX - 0xffff, 0x1_0000 + BUFFERS as u32, WRITE, 0)],
        );
    }),
    ("a length of zero", Fault::ZeroLength, BASE, |d| {
        direct(d, &[(BUFFERS, 0, 0, 0)]);
    }),
    ("a writable length of zero", Fault::ZeroLength, BASE, |d| {
        direct(d, &[(BUFFERS, 1, NEXT, 1), (BUFFERS, 0, WRITE, 0)]);
    }),
    (
        "a length of zero in a table",
        Fault::ZeroLength,
        WITH_INDIRECT,
        |d| {
            table(d, &[(BUFFERS, 0, 0, 0)]);
        },
    ),
    (
        "readable after writable",
        Fault::ReadableAfterWritable,
        BASE,
        |d| {
            d.post(&[writable(BUFFERS, 1), readable(BUFFERS, 1)]);
        },
    ),
    (
        "readable in a table after writable",
        Fault::ReadableAfterWritable,
        WITH_INDIRECT,
        |d| {
            d.post_mixed(
                &[writable(BUFFERS, 1)],
                Some((TABLE, &[readable(BUFFERS, 1)])),
            );
        },
    ),
    (
        "an indirect table nobody agreed on",
        Fault::IndirectNotNegotiated,
        BASE,
        |d| {
            table(d, &[(BUFFERS, 1, 0, 0)]);
        },
    ),
    (
        "a table in a table",
        Fault::IndirectNested,
        WITH_INDIRECT,
        |d| {
            table(d, &[(TABLE, 16, INDIRECT, 0)]);
        },
    ),
    (
        "a table in a table after a buffer",
        Fault::IndirectNested,
        WITH_INDIRECT,
        |d| {
            table(d, &[(BUFFERS, 1, NEXT, 1), (TABLE, 16, INDIRECT, 0)]);
        },
    ),
    (
        "a table with a successor",
        Fault::IndirectWithNext,
        WITH_INDIRECT,
        |d| {
            direct(d, &[(TABLE, 16, INDIRECT | NEXT, 1), (BUFFERS, 1, 0, 0)]);
        },
    ),
    (
        "a table of no length",
        Fault::IndirectLength,
        WITH_INDIRECT,
        |d| refer(d, TABLE, 0),
    ),
    (
        "a table of half a descriptor",
        Fault::IndirectLength,
        WITH_INDIRECT,
        |d| refer(d, TABLE, 8),
    ),
    (
        "a table of one octet too many",
        Fault::IndirectLength,
        WITH_INDIRECT,
        |d| refer(d, TABLE, 33),
    ),
    (
        "a table longer than an index reaches",
        Fault::IndirectLength,
        WITH_INDIRECT,
        |d| refer(d, TABLE, 16 << 16),
    ),
    (
        "a table in a hole",
        Fault::AddressOutOfRange,
        WITH_INDIRECT,
        |d| refer(d, HOLE, 16),
    ),
    (
        "a table that ends in a hole",
        Fault::AddressOutOfRange,
        WITH_INDIRECT,
        |d| {
            let first = Descriptor {
                addr: BUFFERS,
                len: 1,
                flags: NEXT,
                next: 1,
            };
            d.guest.describe(HOLE - 16, 0, first);
            refer(d, HOLE - 16, 32);
        },
    ),
    (
        "a table cut off by a hole",
        Fault::AddressOutOfRange,
        WITH_INDIRECT,
        |d| {
            refer(d, HOLE - 8, 16);
        },
    ),
    (
        "a table at the last address",
        Fault::AddressOutOfRange,
        WITH_INDIRECT,
        |d| {
            refer(d, u64::MAX, 16);
        },
    ),
];

#[test]
fn what_no_driver_may_do_is_told_apart() {
    for &(name, fault, features, misdeed) in HOSTILE {
        for start in [0, 65_530] {
            let guest = Guest::new();
            let mut driver = Driver::new(&guest, 0, SIZE, start);
            misdeed(&mut driver);
            let before = guest.snapshot();
            let mut device = Device::new(&driver, features);
            assert_eq!(device.begin_and_fetch(), Err(fault), "{name}");
            assert_eq!(
                device.ring.position(),
                start,
                "{name}: its chain is not taken"
            );
            assert_eq!(guest.changed_outside(&before, &[]), None, "{name}");
        }
    }
}

#[test]
fn an_indirect_tables_address_must_not_wrap() {
    // Only memory up to the last address can hold a table's first descriptor and not its second.
    let last = u64::MAX - 0xfff;
    let guest = Guest::with(&[(0, 0x1_0000), (last, 0xfff)]);
    let mut driver = Driver::new(&guest, 0, SIZE, 0);
    let at = u64::MAX - 20;
    guest.describe(
        at,
        0,
        Descriptor {
            addr: 0x8000,
            len: 1,
            flags: NEXT,
            next: 2,
        },
    );
    refer(&mut driver, at, 64);
    let mut device = Device::new(&driver, WITH_INDIRECT);
    assert_eq!(device.begin_and_fetch(), Err(Fault::AddressWraps));
}

#[test]
fn a_chain_holds_up_to_two_to_the_power_of_32_octets() {
    // Nobody touches this memory, so it takes none.
    let guest = Guest::with(&[(0, 0x1_0000), (0x1_0000_0000, 1 << 30)]);
    let quarter = readable(0x1_0000_0000, 1 << 30);
    for (last, verdict) in [(0, Ok(Some(0))), (1, Err(Fault::ChainTooBig))] {
        let mut driver = Driver::new(&guest, 0, SIZE, 0);
        let mut chain = vec![quarter; 4];
        chain.extend((last > 0).then_some(writable(0x8000, last)));
        driver.post(&chain);
        let mut device = Device::new(&driver, BASE);
        assert_eq!(device.begin_and_fetch(), verdict);
    }
}

#[test]
fn every_fault_of_a_ring_has_a_hostile_driver() {
    // Memory that is gone is no driver's doing.
    let elsewhere = [Fault::ChainTooBig, Fault::NotWritable, Fault::MemoryGone];
    for fault in Fault::ALL {
        let tried = HOSTILE.iter().any(|case| case.1 == *fault) || elsewhere.contains(fault);
        assert!(tried, "{fault:?}");
    }
}

#[test]
fn what_is_legal_is_accepted() {
    let guest = Guest::new();
    guest.write(BUFFERS, &noise(0x1000, 1));
    let fetch = |features, post: &dyn Fn(&mut Driver)| {
        let mut driver = Driver::new(&guest, 0, SIZE, 3);
        post(&mut driver);
        let mut device = Device::new(&driver, features);
        device.begin_and_fetch().unwrap().expect("a chain");
        (contents(&device.readable), device.writable.len())
    };
    // A WRITE flag on a reference to an indirect table means nothing.
    let marked = fetch(WITH_INDIRECT, &|d| {
        d.guest
            .describe_chain(TABLE, &[readable(BUFFERS, 5), writable(BUFFERS, 7)]);
        direct(d, &[(TABLE, 32, INDIRECT | WRITE, 0)]);
    });
    assert_eq!(marked, (guest.read(BUFFERS, 5), 7));
    // A chain that ends in an indirect table.
    let mixed = fetch(WITH_INDIRECT, &|d| {
        let rest = [readable(BUFFERS + 2, 3), writable(BUFFERS, 7)];
        d.post_mixed(&[readable(BUFFERS, 2)], Some((TABLE, &rest)));
    });
    assert_eq!(mixed, (guest.read(BUFFERS, 5), 7));
    // As many descriptors as the ring has: alone, and with a reference that does not count.
    let all: Vec<_> = (0..SIZE)
        .map(|at| readable(BUFFERS + u64::from(at), 1))
        .collect();
    assert_eq!(
        fetch(BASE, &|d| {
            d.post(&all);
        })
        .0,
        guest.read(BUFFERS, 8)
    );
    let indirect = fetch(WITH_INDIRECT, &|d| {
        d.post_mixed(&[], Some((TABLE, &all)));
    });
    assert_eq!(indirect.0, guest.read(BUFFERS, 8));
    let mixed = fetch(WITH_INDIRECT, &|d| {
        d.post_mixed(&all[..7], Some((TABLE, &all[7..])));
    });
    assert_eq!(mixed.0, guest.read(BUFFERS, 8));
    // The same place twice.
    let aliased = fetch(BASE, &|d| {
        d.post(&[readable(BUFFERS, 4), readable(BUFFERS, 4)]);
    });
    assert_eq!(aliased.0, guest.read(BUFFERS, 4).repeat(2));
    // A table that is larger than the ring, a short chain in it.
    let large = fetch(WITH_INDIRECT, &|d| {
        d.guest.describe(
            TABLE,
            0,
            Descriptor {
                addr: BUFFERS,
                len: 1,
                flags: NEXT,
                next: 99,
            },
        );
        d.guest.describe(
            TABLE,
            99,
            Descriptor {
                addr: BUFFERS + 1,
                len: 1,
                flags: 0,
                next: 0,
            },
        );
        refer(d, TABLE, 1600);
    });
    assert_eq!(large.0, guest.read(BUFFERS, 2));
    // A table whose only descriptor lies across two mappings that adjoin.
    let across = fetch(WITH_INDIRECT, &|d| {
        d.guest.describe_chain(BORDER - 8, &[readable(BUFFERS, 5)]);
        refer(d, BORDER - 8, 16);
    });
    assert_eq!(across.0, guest.read(BUFFERS, 5));
    // Flags that nobody knows, and a successor that does not count.
    let unknown = fetch(BASE, &|d| direct(d, &[(BUFFERS, 1, 0xfff8, 0xffff)]));
    assert_eq!(unknown.0, guest.read(BUFFERS, 1));
}
