//! Drivers that do what none may, and those that only seem to.

use super::*;

/// What a driver does wrong: a name, what must come of it, the features that were negotiated, and its chain.
type Case = (&'static str, Fault, Features, fn(&mut PackedDriver));

const SIZE: u16 = 6;
/// Where the hostile drivers put their indirect tables.
const TABLE: u64 = BUFFERS + 0x1000;

/// Posts a chain of descriptors: address, length and flags.
fn direct(driver: &mut PackedDriver, chain: &[(u64, u32, u16)]) {
    let raw = |&(addr, len, flags): &(u64, u32, u16)| Raw {
        addr,
        len,
        id: 1,
        flags,
    };
    let chain: Vec<_> = chain.iter().map(raw).collect();
    driver.post_raw(&chain);
}

const HOSTILE: &[Case] = &[
    ("a loop", Fault::ChainTooLong, BASE, |d| {
        direct(d, &[(BUFFERS, 1, NEXT); SIZE as usize]);
    }),
    (
        "a successor that nobody wrote",
        Fault::ZeroLength,
        BASE,
        |d| direct(d, &[(BUFFERS, 1, NEXT)]),
    ),
    (
        "a table longer than the ring",
        Fault::ChainTooLong,
        WITH_INDIRECT,
        |d| {
            d.post_indirect(TABLE, &[readable(BUFFERS, 1); SIZE as usize + 1]);
        },
    ),
    (
        "an address in a hole",
        Fault::AddressOutOfRange,
        BASE,
        |d| direct(d, &[(HOLE, 1, 0)]),
    ),
    ("the end in a hole", Fault::AddressOutOfRange, BASE, |d| {
        direct(d, &[(BUFFERS, 1, NEXT), (HOLE - 1, 2, WRITE)]);
    }),
    ("the longest length", Fault::AddressOutOfRange, BASE, |d| {
        direct(d, &[(BUFFERS, u32::MAX, 0)]);
    }),
    ("a wrap into memory", Fault::AddressWraps, BASE, |d| {
        direct(d, &[(u64::MAX - 0xffff, 0x1_0000 + BUFFERS as u32, WRITE)]);
    }),
    ("a length of zero", Fault::ZeroLength, BASE, |d| {
        direct(d, &[(BUFFERS, 0, 0)]);
    }),
    (
        "a length of zero in a table",
        Fault::ZeroLength,
        WITH_INDIRECT,
        |d| {
            d.post_indirect(TABLE, &[readable(BUFFERS, 1), writable(BUFFERS, 0)]);
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
        "readable after writable in a table",
        Fault::ReadableAfterWritable,
        WITH_INDIRECT,
        |d| {
            d.post_indirect(TABLE, &[writable(BUFFERS, 1), readable(BUFFERS, 1)]);
        },
    ),
    (
        "a table nobody agreed on",
        Fault::IndirectNotNegotiated,
        BASE,
        |d| {
            d.post_indirect(TABLE, &[readable(BUFFERS, 1)]);
        },
    ),
    (
        "a table with a successor",
        Fault::IndirectWithNext,
        WITH_INDIRECT,
        |d| direct(d, &[(TABLE, 16, INDIRECT | NEXT), (BUFFERS, 1, 0)]),
    ),
    (
        "a table with a predecessor",
        Fault::IndirectWithNext,
        WITH_INDIRECT,
        |d| direct(d, &[(BUFFERS, 1, NEXT), (TABLE, 16, INDIRECT)]),
    ),
    (
        "a table of no length",
        Fault::IndirectLength,
        WITH_INDIRECT,
        |d| direct(d, &[(TABLE, 0, INDIRECT)]),
    ),
    (
        "a table of one octet too many",
        Fault::IndirectLength,
        WITH_INDIRECT,
        |d| direct(d, &[(TABLE, 33, INDIRECT)]),
    ),
    (
        "a table that ends in a hole",
        Fault::AddressOutOfRange,
        WITH_INDIRECT,
        |d| {
            let entry = |driver: &PackedDriver| driver.guest.read(TABLE, 16);
            d.post_indirect(TABLE, &[readable(BUFFERS, 1)]);
            d.guest.write(HOLE - 16, &entry(d));
            d.write(d.layout.base.unwrap() % 0x8000, HOLE - 16, 32, 1, {
                let slot = d.slot(d.layout.base.unwrap() % 0x8000);
                d.guest.read16(slot + 14)
            });
        },
    ),
    (
        "a table at the last address",
        Fault::AddressOutOfRange,
        WITH_INDIRECT,
        |d| direct(d, &[(u64::MAX, 16, INDIRECT)]),
    ),
];

#[test]
fn what_no_driver_may_do_is_told_apart() {
    for &(name, fault, features, misdeed) in HOSTILE {
        for start in [0x8000, 5, 0x8005] {
            let guest = Guest::new();
            let start = At::from_word(start);
            let mut driver = PackedDriver::new(&guest, 0, SIZE, start);
            misdeed(&mut driver);
            let before = guest.snapshot();
            let mut device = Device::new(&driver, features);
            assert_eq!(device.ring.begin(), Ok(SIZE), "{name}");
            for access in [Access::Read, Access::Write] {
                let want = |place: Place<'_>| (!place.is_empty()).then_some(0);
                let used = device.ring.use_places(&guest.memory, access, 1, want);
                assert_eq!(used, 0, "{name}");
            }
            assert_eq!(device.fetch(), Err(fault), "{name}");
            assert_eq!(device.at(), start, "{name}: its chain is not taken");
            assert_eq!(guest.changed_outside(&before, &[]), None, "{name}");
        }
    }
}

#[test]
fn a_chain_holds_up_to_two_to_the_power_of_32_octets() {
    // Nobody touches this memory, so it takes none.
    let guest = Guest::with(&[(0, 0x1_0000), (0x1_0000_0000, 1 << 30)]);
    let quarter = readable(0x1_0000_0000, 1 << 30);
    for last in [0, 1] {
        let mut driver = PackedDriver::new(&guest, 0, SIZE, FRESH);
        let mut chain = vec![quarter; 4];
        chain.extend((last > 0).then_some(writable(0x8000, last)));
        driver.post(&chain);
        let fetched = Device::new(&driver, BASE).fetch();
        assert_eq!(fetched.err(), (last > 0).then_some(Fault::ChainTooBig));
    }
}

#[test]
fn every_fault_that_a_packed_ring_can_have_has_a_hostile_driver() {
    // A packed ring has no indices that could be wrong, and what stands in a table cannot refer to another.
    let others = [
        Fault::IndexJump,
        Fault::HeadOutOfRange,
        Fault::NextOutOfRange,
        Fault::IndirectNested,
    ];
    // Memory that is gone is no driver's doing.
    let elsewhere = [Fault::ChainTooBig, Fault::NotWritable, Fault::MemoryGone];
    for fault in Fault::ALL {
        let tried = HOSTILE.iter().any(|case| case.1 == *fault) || elsewhere.contains(fault);
        assert_ne!(tried, others.contains(fault), "{fault:?}");
    }
}

#[test]
fn what_is_legal_is_accepted() {
    let guest = Guest::new();
    guest.write(BUFFERS, &noise(0x1000, 1));
    let fetch = |features, post: &dyn Fn(&mut PackedDriver)| {
        let mut driver = PackedDriver::new(&guest, 0, SIZE, At::from_word(0x8004));
        post(&mut driver);
        let mut device = Device::new(&driver, features);
        let chain = device.fetch().unwrap().expect("a chain");
        (
            chain.entries,
            contents(&device.readable),
            device.writable.len(),
        )
    };
    // A WRITE flag on a reference to an indirect table means nothing.
    let marked = fetch(WITH_INDIRECT, &|d| {
        d.guest.write(TABLE, &BUFFERS.to_le_bytes());
        d.guest.write(TABLE + 8, &[5, 0, 0, 0, 0, 0, 0, 0]);
        direct(d, &[(TABLE, 16, INDIRECT | WRITE)]);
    });
    assert_eq!(marked, (1, guest.read(BUFFERS, 5), 0));
    // As many descriptors as the ring has.
    let all = [readable(BUFFERS, 1); SIZE as usize];
    let octets = vec![guest.read(BUFFERS, 1)[0]; SIZE as usize];
    let whole = fetch(BASE, &|d| {
        d.post(&all);
    });
    assert_eq!(whole, (SIZE, octets.clone(), 0));
    let table = fetch(WITH_INDIRECT, &|d| {
        d.post_indirect(TABLE, &all);
    });
    assert_eq!(table, (1, octets, 0));
    // A table whose only descriptor lies across two mappings that adjoin.
    let across = fetch(WITH_INDIRECT, &|d| {
        d.guest.write(BORDER - 8, &BUFFERS.to_le_bytes());
        d.guest.write(BORDER, &[5, 0, 0, 0, 0, 0, 0, 0]);
        direct(d, &[(BORDER - 8, 16, INDIRECT)]);
    });
    assert_eq!(across, (1, guest.read(BUFFERS, 5), 0));
    // Flags that nobody knows.
    let unknown = fetch(BASE, &|d| direct(d, &[(BUFFERS, 1, 0x7f78)]));
    assert_eq!(unknown, (1, guest.read(BUFFERS, 1), 0));
}
