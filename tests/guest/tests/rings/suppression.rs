//! Kicks and interrupts of a packed ring: wanted, not wanted, and wanted from a descriptor on (virtio 1.3,
//! 2.8.10).

use nic_guest::ring::virtqueue::VirtqueueOptions;
use nic_guest::ring::{
    OffWrap, VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
};

use super::{PACKED, event_idx, packed_at, pair, piece};

const ENABLE: u16 = VRING_PACKED_EVENT_FLAG_ENABLE;
const DISABLE: u16 = VRING_PACKED_EVENT_FLAG_DISABLE;
const DESC: u16 = VRING_PACKED_EVENT_FLAG_DESC;

#[test]
fn kicks_follow_the_flags() {
    let (mut vq, device) = pair(8, PACKED);
    let raw = device.raw_packed();
    for (flags, kick) in [(ENABLE, true), (DISABLE, false), (3, true), (ENABLE, true)] {
        raw.set_device_event(OffWrap(0), flags);
        vq.add(&[piece(1)], &[], 0).unwrap();
        assert_eq!(vq.kick_prepare(), kick, "{flags}");
    }
}

#[test]
fn kicks_follow_the_descriptor() {
    for size in [7u16, 8] {
        for wrap in [true, false] {
            let (mut vq, device) = packed_at(size, OffWrap::new(0, wrap), event_idx(PACKED));
            let raw = device.raw_packed();
            raw.set_device_event(OffWrap::new(2, wrap), DESC);
            for kick in [false, false, true, false] {
                vq.add(&[piece(1)], &[], 0).unwrap();
                assert_eq!(vq.kick_prepare(), kick);
            }
            raw.set_device_event(OffWrap::new(5, wrap), DESC);
            vq.add(&[piece(1), piece(1), piece(1)], &[], 0).unwrap();
            assert!(vq.kick_prepare(), "passed in the middle of a chain");
            assert!(!vq.kick_prepare(), "nothing new");
        }
    }
}

/// The driver decides as the definition says, at any place, with any number of descriptors added.
#[test]
fn kicks_are_those_of_the_definition() {
    let size = 5u16;
    let line =
        |place: OffWrap| i32::from(place.off()) + if place.wrap() { 0 } else { i32::from(size) };
    for start in 0..size {
        for wrap in [true, false] {
            for added in 1..=size {
                for event in 0..size {
                    for event_wrap in [true, false] {
                        let (old, event) =
                            (OffWrap::new(start, wrap), OffWrap::new(event, event_wrap));
                        let (mut vq, device) = packed_at(size, old, event_idx(PACKED));
                        for _ in 0..added {
                            vq.add(&[piece(1)], &[], 0).unwrap();
                        }
                        device.raw_packed().set_device_event(event, DESC);
                        let rounds = 2 * i32::from(size);
                        let ahead = (line(event) - line(old)).rem_euclid(rounds);
                        let passed = ahead < i32::from(added);
                        assert_eq!(vq.kick_prepare(), passed, "{old:?} +{added}, {event:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn interrupts_off_and_on() {
    let (mut vq, mut device) = pair(8, PACKED);
    vq.disable_cb();
    assert_eq!(device.raw_packed().driver_event().1, DISABLE);
    vq.add(&[piece(1)], &[], 0).unwrap();
    let (id, _) = device.take().unwrap();
    assert!(!device.put(id, 0));
    assert!(!vq.enable_cb(), "a buffer came while interrupts were off");
    assert_eq!(device.raw_packed().driver_event().1, ENABLE);
    vq.get_buf().unwrap().unwrap();
    assert!(vq.enable_cb());
}

#[test]
fn interrupts_off_and_on_with_event_index() {
    for place in [OffWrap::START, OffWrap::new(3, false)] {
        let (mut vq, mut device) = packed_at(8, place, event_idx(PACKED));
        for _ in 0..8 {
            vq.add(&[piece(1)], &[], 0).unwrap();
        }
        let mut step = || {
            let (id, _) = device.take().unwrap();
            device.put(id, 0)
        };
        assert!(step() && step(), "all are wanted at first");
        vq.get_buf().unwrap().unwrap();
        vq.get_buf().unwrap().unwrap();
        vq.disable_cb();
        assert!(!step());
        vq.get_buf().unwrap().unwrap();
        assert!(vq.enable_cb());
        assert!(step());
        assert!(!step(), "not asked for again yet");
        vq.get_buf().unwrap().unwrap();
        vq.get_buf().unwrap().unwrap();
        // Three in flight: three quarters of them are two.
        assert!(vq.enable_cb_delayed());
        assert!(!step());
        assert!(!step());
        assert!(step());
        assert!(!vq.enable_cb_delayed(), "there is something to take");
    }
}

#[test]
fn a_chain_that_passes_the_event_interrupts() {
    let (mut vq, mut device) = pair(7, event_idx(PACKED));
    vq.disable_cb();
    for _ in 0..2 {
        vq.add(&[piece(1); 3], &[], 0).unwrap();
    }
    let ids: Vec<u16> = (0..2).map(|_| device.take().unwrap().0).collect();
    // Six descriptors in flight: after four, in the middle of the second chain.
    assert!(vq.enable_cb_delayed());
    assert_eq!(
        device.raw_packed().driver_event(),
        (OffWrap::new(4, true), DESC)
    );
    assert!(!device.put(ids[0], 0));
    assert!(device.put(ids[1], 0));
}

#[test]
fn more_than_can_be_counted_kicks() {
    let (mut vq, mut device) = pair(256, event_idx(PACKED));
    device
        .raw_packed()
        .set_device_event(OffWrap::new(9, true), DESC);
    for _ in 0..0x1_0000 {
        vq.add(&[piece(1)], &[], 0).unwrap();
        let (id, _) = device.take().unwrap();
        device.put(id, 0);
        vq.get_buf().unwrap().unwrap();
    }
    assert!(vq.kick_prepare());
}

#[test]
fn a_size_is_possible_or_not() {
    let split = VirtqueueOptions::default();
    for (size, in_split, in_packed) in [
        (0, false, false),
        (1, true, true),
        (3, false, true),
        (256, true, true),
        (0x8000, true, true),
        (0x8001, false, false),
    ] {
        assert_eq!(split.size_is_possible(size), in_split, "{size}");
        assert_eq!(PACKED.size_is_possible(size), in_packed, "{size}");
    }
}
