//! Captures of any octets, replayed: what is no capture is refused, and of what is one come frames until it ends or is damaged.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nic_backend::wire::{PortFacts, Wire, WireSpec};
use nic_model::frame::Pool;
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Frames of a burst.
const BURST: usize = 64;
/// Bursts of a replay at most: each takes a frame, or passes over many records of at least 12 octets.
const BURSTS: usize = 4096;

/// Octets of a frame's buffer.
const BUFFER: usize = 2048;
/// When the link comes up.
const START: Nanos = Nanos(1_000_000);

thread_local! {
    static FILE: RefCell<Option<(File, WireSpec)>> = const { RefCell::new(None) };
}

/// A file in memory, and the wire that replays it.
fn file() -> (File, WireSpec) {
    let file = File::from(memfd_create(c"capture", MFdFlags::empty()).expect("memory"));
    let spec = format!("pcap=/proc/self/fd/{}", file.as_raw_fd());
    (file, spec.parse().expect("a wire"))
}

/// Runs the target.
///
/// # Panics
/// If a replay does what it must not.
pub fn run(data: &[u8]) {
    FILE.with_borrow_mut(|kept| {
        let (file, spec) = kept.get_or_insert_with(file);
        file.set_len(0).expect("a file in memory");
        file.write_all_at(data, 0).expect("a file in memory");
        if let Ok(wire) = spec.open(&PortFacts::of(&PortConfig::default())) {
            replay(wire, data.len());
        }
    });
}

/// Replays what there is, as fast as it may come.
fn replay(mut wire: Box<dyn Wire>, octets: usize) {
    let (mut pool, mut frames) = (Pool::new(BUFFER), Vec::new());
    let (mut last, mut total) = (START, 0);
    wire.link_changed(START, true);
    for _ in 0..BURSTS {
        let Some(now) = wire.next_deadline() else {
            break;
        };
        wire.receive(now, BURST, &mut pool, &mut frames);
        for frame in &frames {
            assert!(
                frame.arrival <= now,
                "{:?} is later than {now:?}",
                frame.arrival
            );
            assert!(
                frame.arrival >= last,
                "{:?} is before {last:?}",
                frame.arrival
            );
            last = frame.arrival;
            total += frame.len();
        }
        pool.give_all(frames.drain(..));
    }
    assert_eq!(wire.next_deadline(), None, "it does not end");
    assert!(total <= octets, "{total} octets out of {octets}");
    wire.link_changed(last, false);
    assert!(pool.lent() <= 1, "only the next frame's buffer is kept");
}
