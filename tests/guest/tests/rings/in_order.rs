//! IN_ORDER in both layouts: one used entry for many buffers (virtio 1.3, 2.7.9 and 2.8.9).

use nic_guest::ring::RingFault;
use nic_guest::ring::virtqueue::{Virtqueue, VirtqueueOptions};

use super::{DeviceRing, PACKED, SPLIT, event_idx, in_order, pair, piece};

fn layouts() -> [VirtqueueOptions; 4] {
    [SPLIT, PACKED, event_idx(SPLIT), event_idx(PACKED)].map(in_order)
}

fn take_all(device: &mut DeviceRing) -> Vec<u16> {
    std::iter::from_fn(|| device.take()).map(|c| c.0).collect()
}

fn tokens(vq: &mut Virtqueue) -> Vec<(u32, u32)> {
    std::iter::from_fn(|| vq.get_buf().unwrap())
        .map(|used| (used.token, used.len))
        .collect()
}

#[test]
fn one_used_entry_stands_for_all_before_it() {
    for options in layouts() {
        let (mut vq, mut device) = pair(8, options);
        for token in 0..4 {
            vq.add(&[piece(1)], &[piece(10 + token)], token).unwrap();
        }
        let _ = vq.kick_prepare();
        let ids = take_all(&mut device);
        device.put_batch(&ids[..3], 5);
        assert!(vq.more_used());
        // All but the last are used completely.
        assert_eq!(tokens(&mut vq), [(0, 10), (1, 11), (2, 5)], "{options:?}");
        assert_eq!((vq.num_free(), vq.outstanding()), (6, 1));
        assert!(!vq.more_used());
        device.put(ids[3], 1);
        assert_eq!(tokens(&mut vq), [(3, 1)]);
        assert_eq!((vq.num_free(), vq.outstanding()), (8, 0));
    }
}

#[test]
fn the_rest_of_a_batch_is_not_forgotten() {
    for options in layouts() {
        let (mut vq, mut device) = pair(8, options);
        for token in 0..3 {
            vq.add(&[], &[piece(1)], token).unwrap();
        }
        let _ = vq.kick_prepare();
        let ids = take_all(&mut device);
        vq.disable_cb();
        device.put_batch(&ids, 1);
        vq.get_buf().unwrap().unwrap();
        assert!(vq.more_used());
        assert!(!vq.enable_cb(), "two are left, and no interrupt follows");
        vq.disable_cb();
        let opaque = vq.enable_cb_prepare();
        assert!(vq.poll(opaque));
        assert_eq!(tokens(&mut vq).len(), 2);
        assert!(!vq.more_used());
        assert!(vq.enable_cb());
    }
}

#[test]
fn descriptors_of_a_split_ring_are_used_in_the_order_of_the_table() {
    let (mut vq, mut device) = pair(8, in_order(SPLIT));
    let mut next = 0;
    for round in 0..20 {
        for count in [2, 3] {
            vq.add(&vec![piece(1); count], &[], round).unwrap();
            vq.publish();
            let (head, _) = device.take().unwrap();
            assert_eq!(head, next);
            let last = (head + count as u16 - 1) % 8;
            let raw = device.raw();
            for at in 1..count as u16 {
                assert_eq!(raw.desc((head + at - 1) % 8).next, (head + at) % 8);
            }
            next = (last + 1) % 8;
            device.put(head, 0);
            assert_eq!(tokens(&mut vq), [(round, 0)]);
        }
    }
}

#[test]
fn ids_of_a_packed_ring_are_places() {
    let (mut vq, mut device) = pair(7, in_order(PACKED));
    let mut next = 0;
    for token in 0..40 {
        vq.add(&[piece(1), piece(2)], &[], token).unwrap();
        let (id, _) = device.take().unwrap();
        assert_eq!(id, next);
        next = (next + 2) % 7;
        device.put(id, 0);
        assert_eq!(tokens(&mut vq), [(token, 0)]);
    }
}

#[test]
fn lies_break_a_split_queue() {
    let fault = |id: u32, used: u16| {
        let (mut vq, device) = pair(8, in_order(SPLIT));
        for token in 0..3 {
            vq.add(&[piece(1), piece(1)], &[], token).unwrap();
        }
        vq.publish();
        device.raw().set_used_elem(0, id, 0);
        device.raw().set_used_idx(used);
        let mut taken = 0;
        while let Ok(Some(_)) = vq.get_buf() {
            taken += 1;
        }
        let fault = vq.get_buf().unwrap_err();
        assert_eq!(vq.fault(), Some(fault));
        assert!(vq.add(&[piece(1)], &[], 0).is_err());
        assert!(!vq.more_used());
        (fault, taken)
    };
    let (id, size) = (9, 8);
    assert_eq!(fault(9, 1), (RingFault::UsedId { id, size }, 0));
    assert_eq!(fault(1, 1), (RingFault::NotInFlight { id: 1 }, 0));
    assert_eq!(fault(6, 1), (RingFault::NotInFlight { id: 6 }, 0));
    // The last of three, but only two are said to be used.
    assert_eq!(fault(4, 2), (RingFault::Batch { id: 4 }, 2));
    assert!(matches!(fault(4, 4), (RingFault::UsedIndex { .. }, 0)));
}

proptest::proptest! {
    /// Whatever batches the device makes, buffers come back in order, each once, those in the middle of a batch
    /// full.
    #[test]
    fn buffers_come_back_in_order(
        steps in proptest::collection::vec((0u8..4, 1usize..5, 1usize..9), 1..300),
        packed: bool,
        events: bool,
        odd in 0u16..4,
        indirect in 0u16..4,
    ) {
        let layout = if packed { PACKED } else { SPLIT };
        let size = if packed { 13 + odd } else { 16 };
        let options = VirtqueueOptions { indirect, event_idx: events, ..in_order(layout) };
        let (mut vq, mut device) = pair(size, options);
        let (mut held, mut token) = (Vec::new(), 0u32);
        let (mut used, mut came) = (Vec::new(), Vec::new());
        for (what, pieces, many) in steps {
            match what {
                0 => if vq.add(&[], &vec![piece(4); pieces], token).is_ok() {
                    held.push((token, 4 * pieces as u32));
                    token += 1;
                },
                1 => {
                    let _ = vq.kick_prepare();
                    // What was taken is used at once, in one batch or several.
                    let ids = take_all(&mut device);
                    for batch in ids.chunks(many) {
                        device.put_batch(batch, 3);
                        for (at, (token, full)) in held.drain(..batch.len()).enumerate() {
                            let last = at + 1 == batch.len();
                            used.push((token, if last { 3 } else { full }));
                        }
                    }
                }
                2 => {
                    for _ in 0..many {
                        came.extend(vq.get_buf().unwrap().map(|used| (used.token, used.len)));
                    }
                }
                _ => {
                    came.extend(tokens(&mut vq));
                    assert!(!vq.more_used());
                    assert_eq!(came, used);
                }
            }
        }
        came.extend(tokens(&mut vq));
        assert_eq!(came, used);
        assert_eq!(usize::from(vq.outstanding()), held.len());
    }
}
