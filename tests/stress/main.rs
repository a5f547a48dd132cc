//! No wake-up is lost, on real memory: the guest's ring against the card's, a thread each, that mask and sleep at random.
//!
//! The guest's queue on one mapping of a memfd, the card's ring on another, split or packed, a line each way to wake the other by. Rings are tiny, so
//! that a side soon has nothing to do; then it asks to be told, and sleeps until it is. If nothing moves for
//! 20 seconds while somebody sleeps, a wake-up has been lost, and both sides say where they stand. Packets carry
//! their number: each must arrive, once, and in order.
//!
//! `STRESS_PACKETS` is how many there are in all (100,000), `STRESS_SEED` what chance begins with. The second looks are
//! missed soon. A missing fence shows only while both sides run at the same moment: each of the four on the way to
//! sleep and to wake was found within 2 * 10^7 packets on two x86 processors, in the release build.

mod card;
mod chance;
mod guest;
mod watch;

use std::env;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use nic_device::features::Features;
use nic_device::memory::GuestMemory as Mapped;
use nic_device::packed::PackedRing;
use nic_device::ring::{Layout, Ring};
use nic_device::split::SplitRing;
use nic_guest::memory::{GuestMemory, PAGE_SIZE};
use nic_guest::ring::OffWrap;
use nic_guest::ring::virtqueue::{Virtqueue, VirtqueueOptions};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use card::Card;
use chance::Chance;
use guest::Guest;
use watch::Watch;

/// Entries of split rings, and of packed ones, which need not be powers of two.
const ENTRIES: [u16; 4] = [2, 4, 8, 16];
const PACKED_ENTRIES: [u16; 4] = [2, 3, 7, 16];
/// Where a split ring's indices start, so that they wrap around soon.
const START: u16 = 65_530;
/// Octets of a buffer: the number of its packet.
const BUFFER: usize = size_of::<u64>();

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    /// From the guest.
    Transmit,
    /// To the guest, each in one buffer.
    Receive,
    /// To the guest, each in one buffer or two: the card may have to wait although there is one.
    ReceiveMerged,
}

impl Traffic {
    /// How many buffers packet `number` takes.
    fn span(self, number: u64) -> u16 {
        match self {
            Traffic::ReceiveMerged => 1 + (number % 3 == 1) as u16,
            _ => 1,
        }
    }
}

fn variable(name: &str, default: u64) -> u64 {
    let parse = |value: String| value.parse().expect("a number");
    env::var(name).map_or(default, parse)
}

/// Maps the guest's memory once more, as another process would.
fn map_again(memory: &GuestMemory) -> Arc<Mapped> {
    let regions = memory.regions().into_iter().enumerate();
    let ranges = regions.map(|(index, region)| {
        let file = memory.region_file(index).expect("each region has a file");
        let file = file.as_fd().try_clone_to_owned().expect("a descriptor");
        let offset = FileOffset::new(file.into(), region.mmap_offset);
        let start = GuestAddress(region.guest_addr);
        (start, region.size as usize, Some(offset))
    });
    let mapped = GuestMemoryMmap::from_ranges_with_files(ranges).expect("a mapping");
    Arc::new(Mapped::new(Arc::new(mapped)))
}

/// Moves `packets` packets through a ring of `entries`.
fn pass(traffic: Traffic, options: VirtqueueOptions, entries: u16, packets: u64, seed: u64) {
    let memory = GuestMemory::new(16 * PAGE_SIZE).expect("guest memory");
    let mut queue = Virtqueue::new(&memory, entries, options).expect("a ring");
    let base = match &mut queue {
        Virtqueue::Split(queue) => {
            queue.start_at(START);
            None
        }
        Virtqueue::Packed(queue) => {
            let start = OffWrap::new(entries - 1, true);
            queue.start_at(start);
            Some(start.0)
        }
    };
    let at = queue.ring().layout();
    let layout = Layout {
        size: entries,
        descriptors: at.desc,
        driver: at.avail,
        device: at.used,
        base,
    };
    let mut features = Features::empty();
    features.set(Features::EVENT_IDX, options.event_idx);
    features.set(Features::IN_ORDER, options.in_order);
    let mapped = map_again(&memory);
    let (map, way) = (mapped.clone(), (traffic, packets, seed));
    if options.packed {
        let ring = PackedRing::new(mapped, &layout, features).expect("a ring");
        pass_between(queue, ring, map, way, options);
    } else {
        let ring = SplitRing::new(mapped, &layout, features).expect("a ring");
        pass_between(queue, ring, map, way, options);
    }
}

fn pass_between(
    queue: Virtqueue,
    ring: impl Ring + Send,
    mapped: Arc<Mapped>,
    (traffic, packets, seed): (Traffic, u64, u64),
    options: VirtqueueOptions,
) {
    let name = format!(
        "{traffic:?}, {options:?}, {} entries, seed {seed}",
        queue.size()
    );
    let watch = Watch::new(&queue);
    let begin = Instant::now();
    let guest = Guest::new(queue, traffic, packets, &watch, Chance::new(seed));
    let card = Card::new(ring, mapped, traffic, packets, &watch, Chance::new(!seed));
    thread::scope(|scope| {
        let card = scope.spawn(|| card.run());
        let guest = guest.run();
        let card = card.join().expect("the card's thread");
        if guest.is_err() || card.is_err() {
            panic!("{name}: a wake-up was lost\n{guest:#?}\n{card:#?}\n{watch}");
        }
    });
    println!(
        "{name}: {packets} packets in {:?}; {watch}",
        begin.elapsed()
    );
}

/// One ring at a time: the two sides shall run at the same moment, and there may be no more than two processors.
static ALONE: Mutex<()> = Mutex::new(());

/// An equal part of all packets through rings of each kind and size.
fn pass_all(traffic: Traffic, event_idx: bool) {
    let parts = 3 * 2 * 4 * ENTRIES.len() as u64;
    let packets = variable("STRESS_PACKETS", 100_000).div_ceil(parts);
    let seed = variable("STRESS_SEED", 1);
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (packed, in_order) in [(false, false), (false, true), (true, false), (true, true)] {
        let options = VirtqueueOptions {
            packed,
            in_order,
            event_idx,
            indirect: 0,
        };
        for entries in if packed { PACKED_ENTRIES } else { ENTRIES } {
            pass(traffic, options, entries, packets, seed);
        }
    }
}

#[test]
fn transmit_with_event_idx() {
    pass_all(Traffic::Transmit, true);
}

#[test]
fn transmit_with_flags() {
    pass_all(Traffic::Transmit, false);
}

#[test]
fn receive_with_event_idx() {
    pass_all(Traffic::Receive, true);
}

#[test]
fn receive_with_flags() {
    pass_all(Traffic::Receive, false);
}

#[test]
fn receive_merged_with_event_idx() {
    pass_all(Traffic::ReceiveMerged, true);
}

#[test]
fn receive_merged_with_flags() {
    pass_all(Traffic::ReceiveMerged, false);
}
