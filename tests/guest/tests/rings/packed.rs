//! The packed ring: shapes, wrap-around, order of completion, lies.

use nic_guest::ring::raw_packed::{PackedDescriptor, RawPackedRing};
use nic_guest::ring::virtqueue::VirtqueueOptions;
use nic_guest::ring::{AddError, OffWrap, RingFault, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};

use super::{PACKED, SPLIT, event_idx, in_order, packed_at, pair, piece};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

#[test]
fn a_chain_stands_in_the_ring_as_the_standard_has_it() {
    let (mut vq, mut device) = pair(8, PACKED);
    vq.add(&[piece(12), piece(100)], &[piece(7)], 42).unwrap();
    let raw = device.raw_packed();
    let flags: Vec<u16> = (0..4).map(|at| raw.desc(at).flags).collect();
    let (next, write) = (VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE);
    assert_eq!(flags, [AVAIL | next, AVAIL | next, AVAIL | write, 0]);
    let id = raw.desc(0).id;
    assert!((0..3).all(|at| raw.desc(at).id == id));
    assert!(vq.kick_prepare());
    let (taken, chain) = device.take().unwrap();
    assert_eq!(taken, id);
    let lens: Vec<u32> = chain.iter().map(|desc| desc.len).collect();
    assert_eq!(lens, [12, 100, 7]);
    assert_eq!((vq.num_free(), vq.outstanding()), (5, 1));
    assert_eq!(vq.get_buf(), Ok(None));
    assert!(!vq.more_used());
    device.put(id, 7);
    assert!(vq.more_used());
    let used = vq.get_buf().unwrap().unwrap();
    assert_eq!((used.token, used.len, used.writable), (42, 7, 7));
    assert_eq!((vq.num_free(), vq.outstanding()), (8, 0));
    // The next one begins behind all three.
    vq.add(&[], &[piece(9)], 43).unwrap();
    assert_eq!(device.raw_packed().desc(3).flags, AVAIL | write);
}

#[test]
fn the_wrap_counter_turns_with_each_round() {
    let (mut vq, mut device) = pair(3, PACKED);
    assert_eq!(vq.vring_base(), 0x8000_8000);
    for round in 0..5 {
        for token in 0..3 {
            vq.add(&[piece(1)], &[], token).unwrap();
        }
        let want = if round % 2 == 0 { AVAIL } else { USED };
        for at in 0..3 {
            assert_eq!(device.raw_packed().flags(at), want, "round {round}");
        }
        let ids: Vec<u16> = (0..3).map(|_| device.take().unwrap().0).collect();
        for id in ids {
            device.put(id, 0);
        }
        for _ in 0..3 {
            vq.get_buf().unwrap().unwrap();
        }
        let base = if round % 2 == 0 { 0 } else { 0x8000_8000 };
        assert_eq!(vq.vring_base(), base);
        assert_eq!(device.base(), base);
    }
}

#[test]
fn a_chain_goes_round_the_end_of_the_ring() {
    for start in [OffWrap::new(3, true), OffWrap::new(3, false)] {
        let (mut vq, mut device) = packed_at(5, start, PACKED);
        vq.add(&[piece(1), piece(2)], &[piece(3), piece(4)], 1)
            .unwrap();
        assert_eq!(vq.next_avail(), OffWrap::new(2, !start.wrap()));
        let raw = device.raw_packed();
        let (now, then) = if start.wrap() {
            (AVAIL, USED)
        } else {
            (USED, AVAIL)
        };
        for (at, bits) in [(3, now), (4, now), (0, then), (1, then)] {
            assert_eq!(raw.flags(at) & (AVAIL | USED), bits, "{at}");
        }
        let (id, chain) = device.take().unwrap();
        assert_eq!(chain.len(), 4);
        device.put(id, 7);
        assert_eq!(vq.get_buf().unwrap().unwrap().token, 1);
        assert_eq!(vq.last_used(), vq.next_avail());
    }
}

#[test]
fn indirect_takes_one_descriptor() {
    let options = VirtqueueOptions {
        indirect: 3,
        ..PACKED
    };
    let (mut vq, mut device) = pair(4, options);
    for token in 0..4 {
        vq.add(&[piece(1), piece(2)], &[piece(3)], token).unwrap();
    }
    assert_eq!(vq.add(&[piece(1), piece(2)], &[], 9), Err(AddError::Full));
    for token in 0..4 {
        let (id, chain) = device.take().unwrap();
        let shape: Vec<_> = chain.iter().map(|desc| (desc.len, desc.flags)).collect();
        assert_eq!(shape, [(1, 0), (2, 0), (3, VIRTQ_DESC_F_WRITE)]);
        device.put(id, 3);
        assert_eq!(vq.get_buf().unwrap().unwrap().token, token);
    }
    // More pieces than a table holds go into the ring itself.
    vq.add(&[piece(1); 4], &[], 0).unwrap();
    assert_eq!(vq.num_free(), 0);
    assert_eq!(vq.add(&[piece(1); 5], &[], 0), Err(AddError::TooLong(5)));
}

#[test]
fn full_and_empty_are_errors() {
    let (mut vq, _) = pair(5, PACKED);
    assert_eq!(vq.add(&[], &[], 0), Err(AddError::Empty));
    vq.add(&[piece(1); 3], &[], 0).unwrap();
    assert_eq!(vq.add(&[piece(1); 3], &[], 0), Err(AddError::Full));
    vq.add(&[piece(1); 2], &[], 0).unwrap();
    assert_eq!(vq.add(&[piece(1)], &[], 0), Err(AddError::Full));
}

#[test]
fn lies_break_the_queue() {
    let fault = |options: VirtqueueOptions, lie: &dyn Fn(&RawPackedRing)| {
        let (mut vq, device) = pair(5, options);
        for token in 0..2 {
            vq.add(&[piece(1), piece(1)], &[], token).unwrap();
        }
        lie(device.raw_packed());
        let mut result = vq.get_buf();
        while let Ok(Some(_)) = result {
            result = vq.get_buf();
        }
        let fault = result.unwrap_err();
        assert_eq!(vq.fault(), Some(fault));
        assert_eq!(vq.get_buf(), Err(fault), "broken for good");
        assert_eq!(vq.add(&[piece(1)], &[], 0), Err(AddError::Broken(fault)));
        assert!(!vq.more_used());
        assert!(!vq.kick_prepare());
        assert!(vq.enable_cb(), "nothing more will come");
        assert!(vq.enable_cb_delayed());
        fault
    };
    let both = AVAIL | USED;
    for options in [PACKED, in_order(PACKED)] {
        let range = |id: u16| RingFault::UsedId {
            id: id.into(),
            size: 5,
        };
        assert_eq!(fault(options, &|raw| raw.set_used(0, 5, 0, both)), range(5));
        let far = fault(options, &|raw| raw.set_used(0, 0xffff, 0, both));
        assert_eq!(far, range(0xffff));
        let free = RingFault::NotInFlight { id: 4 };
        assert_eq!(fault(options, &|raw| raw.set_used(0, 4, 0, both)), free);
        // More than there is: all used in order, and then one more.
        let more = fault(options, &|raw| {
            raw.set_used(0, raw.desc(0).id, 0, both);
            raw.set_used(2, raw.desc(2).id, 0, both);
            raw.set_used(4, 0, 0, both);
        });
        assert!(matches!(more, RingFault::NotInFlight { id: 0 }), "{more}");
        // The middle of a chain, and a buffer twice.
        let middle = RingFault::NotInFlight { id: 3 };
        assert_eq!(fault(options, &|raw| raw.set_used(0, 3, 0, both)), middle);
        let twice = fault(options, &|raw| {
            let id = raw.desc(0).id;
            raw.set_used(0, id, 0, both);
            raw.set_used(2, id, 0, both);
        });
        assert_eq!(twice, RingFault::NotInFlight { id: 0 });
    }
}

#[test]
fn descriptors_rewritten_by_the_device_do_not_matter() {
    let (mut vq, mut device) = pair(8, PACKED);
    vq.add(&[piece(1), piece(2)], &[piece(3)], 5).unwrap();
    let (id, _) = device.take().unwrap();
    for at in 1..8 {
        let nonsense = PackedDescriptor::new(u64::MAX, u32::MAX, 0xffff, 0);
        device.raw_packed().set_desc(at, nonsense);
    }
    device.put(id, 3);
    assert_eq!(vq.get_buf().unwrap().unwrap().token, 5);
    for token in 0..8 {
        vq.add(&[piece(1)], &[], token).unwrap();
    }
    let mut ids: Vec<u16> = std::iter::from_fn(|| device.take()).map(|c| c.0).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6, 7], "the list of ids is private");
}

#[test]
fn unused_buffers_come_back_and_a_reset_starts_over() {
    for options in [PACKED, in_order(PACKED), SPLIT, in_order(SPLIT)] {
        let (mut vq, _) = pair(8, options);
        for token in 0..3 {
            vq.add(&[piece(1), piece(1)], &[], token).unwrap();
        }
        vq.publish();
        let mut tokens: Vec<u32> = std::iter::from_fn(|| vq.detach_unused_buf()).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [0, 1, 2]);
        assert_eq!((vq.num_free(), vq.outstanding()), (8, 0));
        vq.reset();
        let fresh = if options.packed { 0x8000_8000 } else { 0 };
        assert_eq!(vq.vring_base(), fresh);
        vq.add(&[piece(1); 8], &[], 0).unwrap();
        vq.publish();
        let mut device = if options.packed {
            super::DeviceRing::packed(vq.ring(), fresh, false)
        } else {
            super::DeviceRing::split(vq.ring(), 0, false)
        };
        let (id, chain) = device.take().unwrap();
        assert_eq!(chain.len(), 8);
        device.put(id, 0);
        assert_eq!(vq.get_buf().unwrap().unwrap().token, 0);
    }
}

#[test]
fn places_advance_through_rounds() {
    for size in [1u16, 2, 3, 7, 256, 0x7fff, 0x8000] {
        let mut place = OffWrap::START;
        for step in 0..u32::from(size).min(600) * 3 {
            let line = step % (2 * u32::from(size));
            let wrap = line < u32::from(size);
            assert_eq!(u32::from(place.off()), line % u32::from(size));
            assert_eq!(place.wrap(), wrap);
            let round = place.advance(size, size);
            assert_eq!((round.off(), round.wrap()), (place.off(), !wrap));
            place = place.advance(1, size);
        }
    }
}

proptest::proptest! {
    /// Whatever the size of the ring, the order of completion and the shape of buffers, each comes back exactly
    /// once.
    #[test]
    fn every_buffer_comes_back_once(
        steps in proptest::collection::vec((0u8..4, 1usize..5, 0usize..64), 1..300),
        size in 4u16..20,
        start: u16,
        wrap: bool,
        events: bool,
        indirect in 0u16..4,
    ) {
        let options = VirtqueueOptions { indirect, ..PACKED };
        let options = if events { event_idx(options) } else { options };
        let place = OffWrap::new(start % size, wrap);
        let (mut vq, mut device) = packed_at(size, place, options);
        let (mut held, mut expected, mut token) = (Vec::new(), Vec::new(), 0u32);
        for (what, pieces, pick) in steps {
            match what {
                0 | 1 => match vq.add(&vec![piece(4); pieces], &[], token) {
                    Ok(()) => {
                        expected.push(token);
                        token += 1;
                    }
                    Err(error) => assert_eq!(error, AddError::Full),
                },
                2 => {
                    let _ = vq.kick_prepare();
                    held.extend(std::iter::from_fn(|| device.take()).map(|chain| chain.0));
                }
                _ if !held.is_empty() => {
                    let id = held.swap_remove(pick % held.len());
                    device.put(id, 0);
                }
                _ => {
                    while let Some(used) = vq.get_buf().unwrap() {
                        let at = expected.iter().position(|&t| t == used.token).unwrap();
                        expected.swap_remove(at);
                    }
                }
            }
            assert_eq!(usize::from(vq.outstanding()), expected.len());
        }
        held.extend(std::iter::from_fn(|| device.take()).map(|chain| chain.0));
        for id in held {
            device.put(id, 0);
        }
        while let Some(used) = vq.get_buf().unwrap() {
            let at = expected.iter().position(|&t| t == used.token).unwrap();
            expected.swap_remove(at);
        }
        assert!(expected.is_empty());
        assert_eq!(vq.num_free(), size);
        assert_eq!(vq.last_used(), vq.next_avail());
    }

    /// No used descriptor, whatever is in it, does more than break the ring.
    #[test]
    fn no_used_descriptor_makes_it_panic(
        lies in proptest::collection::vec((0u16..7, 0u16..8, 0u32..9, 0u16..4), 1..60),
        ordered: bool,
        events: bool,
    ) {
        let options = if ordered { in_order(PACKED) } else { PACKED };
        let options = if events { event_idx(options) } else { options };
        let (mut vq, device) = pair(7, options);
        let mut outstanding = 0u32;
        for (at, id, len, bits) in lies {
            let flags = (bits & 1) << 7 | (bits >> 1) << 15;
            device.raw_packed().set_used(at, id, len, flags);
            device.raw_packed().set_device_event(OffWrap(id << 13 | at), bits);
            if vq.add(&[piece(1)], &[piece(1)], at.into()).is_ok() {
                outstanding += 1;
            }
            let _ = vq.kick_prepare();
            while let Ok(Some(_)) = vq.get_buf() {
                outstanding -= 1;
            }
            let _ = (vq.enable_cb_delayed(), vq.enable_cb());
            vq.disable_cb();
        }
        assert_eq!(u32::from(vq.outstanding()), outstanding);
    }
}
