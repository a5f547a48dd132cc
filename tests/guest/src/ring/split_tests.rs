//! The split ring against a device-side walker of its own and against devices that lie.

use std::sync::Arc;

use super::raw::{Descriptor, RawRing};
use super::split::{SplitQueue, SplitQueueOptions};
use super::{
    AddError, RingFault, Segment, VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_USED_F_NO_NOTIFY, vring_need_event,
};
use crate::memory::{GuestMemory, PAGE_SIZE};

/// The smallest honest device: takes chains in order, and uses them when told.
struct Walker {
    raw: RawRing,
    memory: Arc<GuestMemory>,
    next: u16,
    used: u16,
}

impl Walker {
    fn new(vq: &SplitQueue, start: u16) -> Self {
        let memory = Arc::clone(vq.ring().desc.memory());
        Self {
            raw: RawRing::new(vq.ring()),
            memory,
            next: start,
            used: start,
        }
    }

    /// The next available chain: its head and descriptors.
    fn take(&mut self) -> Option<(u16, Vec<Descriptor>)> {
        if self.next == self.raw.avail_idx() {
            return None;
        }
        let head = self.raw.avail_entry(self.next);
        self.next = self.next.wrapping_add(1);
        let first = self.raw.desc(head);
        let mut chain = Vec::new();
        if first.flags & VIRTQ_DESC_F_INDIRECT != 0 {
            for index in 0..u64::from(first.len) / 16 {
                let mut bytes = [0; 16];
                self.memory
                    .read(first.addr + 16 * index, &mut bytes)
                    .unwrap();
                chain.push(Descriptor::new(
                    u64::from_le_bytes(bytes[..8].try_into().unwrap()),
                    u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
                    u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
                    u16::from_le_bytes(bytes[14..].try_into().unwrap()),
                ));
            }
            assert!(
                chain
                    .iter()
                    .rev()
                    .skip(1)
                    .all(|d| d.flags & VIRTQ_DESC_F_NEXT != 0)
            );
            return Some((head, chain));
        }
        let mut desc = first;
        loop {
            chain.push(desc);
            if desc.flags & VIRTQ_DESC_F_NEXT == 0 {
                return Some((head, chain));
            }
            assert!(chain.len() <= usize::from(self.raw.size()), "loop");
            desc = self.raw.desc(desc.next);
        }
    }

    fn put(&mut self, head: u16, len: u32) {
        self.raw.set_used_elem(self.used, u32::from(head), len);
        self.used = self.used.wrapping_add(1);
        self.raw.set_used_idx(self.used);
    }
}

const PLAIN: SplitQueueOptions = SplitQueueOptions {
    event_idx: false,
    indirect: 0,
};
const EVENTS: SplitQueueOptions = SplitQueueOptions {
    event_idx: true,
    indirect: 0,
};

fn queue(size: u16, options: SplitQueueOptions) -> SplitQueue {
    let memory = GuestMemory::new(64 * PAGE_SIZE).unwrap();
    SplitQueue::new(&memory, size, options).unwrap()
}

fn piece(len: u32) -> Segment {
    Segment::new(0x1000, len)
}

#[test]
fn event_index_arithmetic() {
    // (event, new, old) -> passed?
    for (event, new, old, passed) in [
        (0, 1, 0, true),
        (1, 1, 0, false),
        (0, 0, 0, false),
        (5, 10, 4, true),
        (10, 10, 4, false),
        (4, 10, 5, false),
        (0xffff, 0, 0xffff, true),
        (0xffff, 5, 0xfff0, true),
        (3, 2, 0xfffe, false),
        (0xfffe, 0xfffe, 0xfff0, false),
    ] {
        assert_eq!(
            vring_need_event(event, new, old),
            passed,
            "{event} {new} {old}"
        );
    }
}

#[test]
fn chains_have_the_right_shape_and_come_back() {
    let mut vq = queue(8, PLAIN);
    let mut device = Walker::new(&vq, 0);
    vq.add(&[piece(12), piece(100)], &[piece(7)], 42).unwrap();
    assert!(device.take().is_none(), "not published yet");
    assert!(vq.kick_prepare());
    let (head, chain) = device.take().unwrap();
    let shape: Vec<_> = chain.iter().map(|d| (d.len, d.flags)).collect();
    let next = VIRTQ_DESC_F_NEXT;
    assert_eq!(shape, [(12, next), (100, next), (7, VIRTQ_DESC_F_WRITE)]);
    assert_eq!(vq.num_free(), 5);
    assert_eq!(vq.get_buf(), Ok(None));
    device.put(head, 7);
    let used = vq.get_buf().unwrap().unwrap();
    assert_eq!((used.token, used.len, used.writable), (42, 7, 7));
    assert_eq!((vq.num_free(), vq.outstanding()), (8, 0));
}

#[test]
fn indirect_takes_one_descriptor() {
    let mut vq = queue(
        4,
        SplitQueueOptions {
            event_idx: false,
            indirect: 3,
        },
    );
    let mut device = Walker::new(&vq, 0);
    for token in 0..4 {
        vq.add(&[piece(1), piece(2)], &[piece(3)], token).unwrap();
    }
    assert_eq!(vq.add(&[piece(1), piece(2)], &[], 9), Err(AddError::Full));
    vq.publish();
    for token in 0..4 {
        let (head, chain) = device.take().unwrap();
        assert_eq!(chain.iter().map(|d| d.len).collect::<Vec<_>>(), [1, 2, 3]);
        device.put(head, 3);
        assert_eq!(vq.get_buf().unwrap().unwrap().token, token);
    }
    // More pieces than a table holds go into the ring itself.
    vq.add(&[piece(1); 4], &[], 0).unwrap();
    assert_eq!(vq.num_free(), 0);
    assert_eq!(vq.add(&[piece(1); 5], &[], 0), Err(AddError::TooLong(5)));
}

#[test]
fn full_and_empty_are_errors() {
    let mut vq = queue(4, PLAIN);
    assert_eq!(vq.add(&[], &[], 0), Err(AddError::Empty));
    vq.add(&[piece(1); 3], &[], 0).unwrap();
    assert_eq!(vq.add(&[piece(1); 2], &[], 0), Err(AddError::Full));
    vq.add(&[piece(1)], &[], 0).unwrap();
    assert_eq!(vq.add(&[piece(1); 1], &[], 0), Err(AddError::Full));
}

#[test]
fn indices_wrap_at_65536() {
    for options in [PLAIN, EVENTS] {
        let mut vq = queue(16, options);
        vq.start_at(65_530);
        let mut device = Walker::new(&vq, 65_530);
        let mut expected = 0;
        for round in 0..20_000u32 {
            for n in 0..7 {
                vq.add(&[piece(n + 1)], &[], round * 7 + n).unwrap();
            }
            let _ = vq.kick_prepare();
            // Out of order within the round.
            let mut heads: Vec<u16> = std::iter::from_fn(|| device.take()).map(|c| c.0).collect();
            assert_eq!(heads.len(), 7);
            heads.rotate_left(3);
            for head in heads {
                device.put(head, 0);
            }
            let mut sum = 0;
            while let Some(used) = vq.get_buf().unwrap() {
                sum += u64::from(used.token);
            }
            expected += (0..7).map(|n| u64::from(round * 7 + n)).sum::<u64>();
            assert_eq!(sum, expected);
            expected = 0;
            assert_eq!(vq.num_free(), 16);
        }
    }
}

#[test]
fn kicks_follow_the_flag() {
    let mut vq = queue(8, PLAIN);
    let raw = RawRing::new(vq.ring());
    vq.add(&[piece(1)], &[], 0).unwrap();
    assert!(vq.kick_prepare());
    raw.set_used_flags(VIRTQ_USED_F_NO_NOTIFY);
    vq.add(&[piece(1)], &[], 0).unwrap();
    assert!(!vq.kick_prepare());
}

#[test]
fn kicks_follow_the_event_index() {
    let mut vq = queue(8, EVENTS);
    let raw = RawRing::new(vq.ring());
    raw.set_used_flags(VIRTQ_USED_F_NO_NOTIFY); // must be ignored
    raw.set_avail_event(2);
    for kick in [false, false, true, false] {
        vq.add(&[piece(1)], &[], 0).unwrap();
        assert_eq!(vq.kick_prepare(), kick);
    }
    raw.set_avail_event(5);
    for _ in 0..3 {
        vq.add(&[piece(1)], &[], 0).unwrap();
    }
    assert!(vq.kick_prepare(), "passed in the middle of a batch");
    assert!(!vq.kick_prepare(), "nothing new");
}

#[test]
fn interrupts_off_and_on() {
    let mut vq = queue(8, PLAIN);
    let mut device = Walker::new(&vq, 0);
    vq.disable_cb();
    assert_eq!(device.raw.avail_flags(), VIRTQ_AVAIL_F_NO_INTERRUPT);
    vq.add(&[piece(1)], &[], 0).unwrap();
    vq.publish();
    let (head, _) = device.take().unwrap();
    device.put(head, 0);
    assert!(!vq.enable_cb(), "a buffer came while interrupts were off");
    assert_eq!(device.raw.avail_flags(), 0);
    vq.get_buf().unwrap().unwrap();
    assert!(vq.enable_cb());
}

#[test]
fn interrupts_off_and_on_with_event_index() {
    let mut vq = queue(8, EVENTS);
    let mut device = Walker::new(&vq, 0);
    let interrupt_due = |device: &Walker, old: u16| {
        vring_need_event(device.raw.used_event(), device.raw.used_idx(), old)
    };
    for _ in 0..8 {
        vq.add(&[piece(1)], &[], 0).unwrap();
    }
    vq.publish();
    let step = |device: &mut Walker| {
        let (head, _) = device.take().unwrap();
        let old = device.raw.used_idx();
        device.put(head, 0);
        interrupt_due(device, old)
    };
    assert!(step(&mut device));
    assert!(!step(&mut device), "not asked for again yet");
    vq.get_buf().unwrap().unwrap();
    vq.get_buf().unwrap().unwrap();
    assert!(step(&mut device), "get_buf asked");
    vq.get_buf().unwrap().unwrap();
    vq.disable_cb();
    assert!(!step(&mut device));
    vq.get_buf().unwrap().unwrap();
    assert!(
        !step(&mut device),
        "get_buf does not ask while interrupts are off"
    );
    vq.get_buf().unwrap().unwrap();
    assert!(vq.enable_cb());
    assert!(step(&mut device));
    vq.get_buf().unwrap().unwrap();
    // Two outstanding: three quarters of them is one.
    assert!(vq.enable_cb_delayed());
    assert!(!step(&mut device));
    assert!(step(&mut device));
}

#[test]
fn hostile_used_rings_break_the_queue() {
    let fault = |prepare: &dyn Fn(&RawRing)| {
        let mut vq = queue(8, PLAIN);
        for token in 0..2 {
            vq.add(&[piece(1), piece(1)], &[], token).unwrap();
        }
        vq.publish();
        prepare(&RawRing::new(vq.ring()));
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
        fault
    };
    let used = |idx: u16, id: u32| {
        move |raw: &RawRing| {
            raw.set_used_elem(0, id, 0);
            raw.set_used_idx(idx);
        }
    };
    let jump = |to| RingFault::UsedIndex {
        from: 0,
        to,
        outstanding: 2,
    };
    assert_eq!(fault(&used(3, 0)), jump(3));
    assert_eq!(fault(&used(0xffff, 0)), jump(0xffff));
    assert_eq!(fault(&used(1, 8)), RingFault::UsedId { id: 8, size: 8 });
    assert_eq!(
        fault(&used(1, u32::MAX)),
        RingFault::UsedId {
            id: u32::MAX,
            size: 8
        }
    );
    assert_eq!(fault(&used(1, 4)), RingFault::NotInFlight { id: 4 });
    assert_eq!(fault(&used(1, 1)), RingFault::NotInFlight { id: 1 });
    // The same head twice: element 1 is still 0 from the zeroed ring.
    assert_eq!(fault(&used(2, 0)), RingFault::NotInFlight { id: 0 });
    // Forward, then back.
    let back = fault(&|raw| {
        raw.set_used_elem(0, 0, 0);
        raw.set_used_idx(1);
        raw.set_used_idx(0xfff0);
    });
    assert_eq!(back, jump(0xfff0));
}

#[test]
fn descriptors_rewritten_by_the_device_do_not_matter() {
    let mut vq = queue(8, PLAIN);
    let mut device = Walker::new(&vq, 0);
    vq.add(&[piece(1), piece(2)], &[piece(3)], 5).unwrap();
    vq.publish();
    let (head, _) = device.take().unwrap();
    for index in 0..8 {
        device
            .raw
            .set_desc(index, Descriptor::new(u64::MAX, u32::MAX, 0xffff, 0xffff));
    }
    device.raw.set_avail_entry(0, 0xffff);
    device.put(head, 3);
    assert_eq!(vq.get_buf().unwrap().unwrap().token, 5);
    assert_eq!(vq.num_free(), 8);
    for token in 0..8 {
        vq.add(&[piece(1)], &[], token).unwrap();
    }
    vq.publish();
    let mut heads: Vec<u16> = std::iter::from_fn(|| device.take()).map(|c| c.0).collect();
    heads.sort_unstable();
    assert_eq!(heads, [0, 1, 2, 3, 4, 5, 6, 7], "the free list is private");
}

#[test]
fn unused_buffers_come_back_on_reset() {
    let mut vq = queue(8, PLAIN);
    for token in 0..3 {
        vq.add(&[piece(1), piece(1)], &[], token).unwrap();
    }
    vq.publish();
    let mut tokens: Vec<u32> = std::iter::from_fn(|| vq.detach_unused_buf()).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [0, 1, 2]);
    assert_eq!((vq.num_free(), vq.outstanding()), (8, 0));
    vq.reset();
    vq.add(&[piece(1); 8], &[], 0).unwrap();
}

proptest::proptest! {
    /// Whatever the order of completion and the shape of buffers, each comes back exactly once.
    #[test]
    fn every_buffer_comes_back_once(
        steps in proptest::collection::vec((0u8..4, 1usize..5, 0usize..64), 1..300),
        start: u16,
        event_idx: bool,
        indirect in 0u16..4,
    ) {
        let mut vq = queue(16, SplitQueueOptions { event_idx, indirect });
        vq.start_at(start);
        let mut device = Walker::new(&vq, start);
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
                    let head = held.swap_remove(pick % held.len());
                    device.put(head, 0);
                }
                _ => {
                    while let Some(used) = vq.get_buf().unwrap() {
                        let at = expected.iter().position(|&t| t == used.token).unwrap();
                        expected.swap_remove(at);
                    }
                }
            }
        }
        let _ = vq.kick_prepare();
        held.extend(std::iter::from_fn(|| device.take()).map(|chain| chain.0));
        for head in held {
            device.put(head, 0);
        }
        while let Some(used) = vq.get_buf().unwrap() {
            let at = expected.iter().position(|&t| t == used.token).unwrap();
            expected.swap_remove(at);
        }
        assert!(expected.is_empty());
        assert_eq!(vq.num_free(), 16);
    }
}
