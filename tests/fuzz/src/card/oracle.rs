//! What must come of a round, and whether it did.

use nic_device::features::Features;
use nic_device::ring::{Fault, Layout};
use nic_model::host::Direction;
use nic_model::time::Nanos;

use super::super::walk::{self, Buffer, Place};
use super::{BUFFERS, Bed, PAUSE, TABLES};

/// Rounds in which a card has to come to rest.
const ROUNDS: usize = 2000;

/// A chain that the card will find.
#[derive(Clone, Debug)]
struct Chain {
    id: u16,
    entries: u16,
    buffers: Vec<Buffer>,
}

/// What of a queue is to be expected.
struct Expected {
    index: usize,
    position: u16,
    faults: u64,
    chains: Vec<Chain>,
    /// What the ring makes of the chain behind them; `None` if there is none.
    end: Option<Fault>,
    /// Whether the last one of a packed ring, well-formed or not, goes on in descriptors of the first, which may be used by the time it
    /// is read.
    laps: bool,
}

impl Bed<'_> {
    /// What will come of queue `index`, if it is set up and sound.
    fn expect(&self, index: usize) -> Option<Expected> {
        let position = self.nic.device.position(index)?;
        let layout = self.queues[index].layout;
        let indirect = self.features.contains(Features::INDIRECT_DESC);
        let (mut chains, mut end, mut laps) = (Vec::new(), None, false);
        if self.packed() {
            let mut at = Place::from_word(position);
            let mut entries = 0;
            while entries < layout.size && at.is_available(self.memory, &layout) {
                match walk::packed(self.memory, &layout, indirect, at) {
                    Ok((buffers, chain)) => {
                        at = at.after(chain.entries, layout.size);
                        entries += chain.entries;
                        laps = entries > layout.size;
                        chains.push(Chain {
                            id: chain.id,
                            entries: chain.entries,
                            buffers,
                        });
                    }
                    Err(fault) => {
                        let linked = walk::linked(self.memory, &layout, at);
                        laps = entries > 0 && entries + linked > layout.size;
                        end = Some(fault);
                        break;
                    }
                }
            }
        } else {
            let available = self.memory.get16(layout.driver + 2).wrapping_sub(position);
            if available > layout.size {
                end = Some(Fault::IndexJump);
            } else {
                for count in 0..available {
                    let slot = u64::from(position.wrapping_add(count) % layout.size);
                    let id = self.memory.get16(layout.driver + 4 + 2 * slot);
                    match walk::split(self.memory, &layout, indirect, id) {
                        Ok(buffers) => chains.push(Chain {
                            id,
                            entries: 1,
                            buffers,
                        }),
                        Err(fault) => {
                            end = Some(fault);
                            break;
                        }
                    }
                }
            }
        }
        let faults = self.nic.device.counters_of(index).faults;
        Some(Expected {
            index,
            position,
            faults,
            chains,
            end,
            laps,
        })
    }

    /// What the card may write to on behalf of `expected`, unless that is a ring or a table, or the driver is about to write
    /// meanwhile: then there is no saying what it will find.
    fn writable(&self, expected: &[Expected]) -> Option<Vec<(u64, u64)>> {
        if !self.pokes.lock().expect("one thread").is_empty() {
            return None;
        }
        let mut areas: Vec<(u64, u64)> = Vec::new();
        for queue in expected.iter().map(|expected| &self.queues[expected.index]) {
            areas.extend(self.areas(&queue.layout));
        }
        areas.push((TABLES, BUFFERS - TABLES));
        let overlap = |a: (u64, u64), b: (u64, u64)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
        let apart =
            (areas.iter().enumerate()).all(|(at, &a)| !areas[..at].iter().any(|&b| overlap(a, b)));
        let mut rooms: Vec<(u64, u64)> = Vec::new();
        let mut elsewhere = false;
        for expected in expected {
            rooms.extend(
                expected
                    .chains
                    .iter()
                    .flat_map(|chain| walk::room(&chain.buffers)),
            );
            elsewhere |= expected.laps || self.has_table_elsewhere(expected);
        }
        // Most rooms are behind all areas.
        let end = areas.iter().map(|area| area.0 + area.1).max().unwrap_or(0);
        let aliased = (rooms.iter().filter(|room| room.0 < end))
            .any(|&room| areas.iter().any(|&area| overlap(room, area)));
        // What is written here may be read there, as a packet or a command; only a malformed chain behind is none of that.
        (apart && !aliased && !elsewhere).then_some(rooms)
    }

    /// Whether an indirect table may be where buffers are.
    fn has_table_elsewhere(&self, expected: &Expected) -> bool {
        let layout = self.queues[expected.index].layout;
        (0..layout.size).any(|index| {
            let at = walk::descriptor(self.memory, layout.descriptors, index.into());
            let at = at.expect("in the ring");
            let flags = at.fields[usize::from(self.packed())];
            let end = at.addr.saturating_add(at.len.into());
            flags & 4 != 0 && !(at.addr >= TABLES && end <= BUFFERS)
        })
    }

    /// One round, and what it must have come to. Returns whether there was anything to do.
    pub(crate) fn poll(&mut self) -> bool {
        self.now = Nanos(self.now.0 + PAUSE);
        let expected: Vec<_> = (0..self.queues.len())
            .filter_map(|index| self.expect(index))
            .collect();
        let writable = self.writable(&expected);
        self.foreseen = writable.is_some();
        self.memory.copy_to(&mut self.before);
        let worked = self.nic.poll(self.now, &mut self.rx, &mut self.tx);
        assert!(self.rx.is_empty(), "frames from the wire were left");
        self.nic.port.pool.give_all(self.tx.drain(..));
        self.balance();
        for expected in &expected {
            let faults = self.nic.device.counters_of(expected.index).faults;
            self.queues[expected.index].stopped |= faults > expected.faults;
        }
        match writable {
            None => self.memory.assert_canaries(),
            Some(rooms) => {
                let mut allowed = Vec::new();
                for expected in &expected {
                    let layout = self.queues[expected.index].layout;
                    let [descriptors, _, device] = self.areas(&layout);
                    allowed.push(device);
                    let taken = self.check(expected);
                    if self.packed() {
                        allowed.push(descriptors);
                    } else {
                        allowed.extend(self.written(expected, taken));
                    }
                }
                if self.packed() {
                    allowed.extend(rooms);
                }
                self.memory.assert_unchanged_but(&self.before, &allowed);
            }
        }
        worked
    }

    /// Where the card may have written of the first `taken` chains of `expected`, of a split ring: as many octets of each as it says.
    fn written(&self, expected: &Expected, taken: usize) -> Vec<(u64, u64)> {
        let layout = self.queues[expected.index].layout;
        let mut places = Vec::new();
        for (count, chain) in (0..).zip(&expected.chains[..taken]) {
            let mut left = self.used(&layout, expected.position.wrapping_add(count)).1;
            for (addr, len) in walk::room(&chain.buffers) {
                places.push((addr, len.min(left)));
                left -= len.min(left);
            }
        }
        places
    }

    /// What the used ring of a split ring has at `position`: a chain, and how many octets were written to it.
    fn used(&self, layout: &Layout, position: u16) -> (u32, u64) {
        let slot = u64::from(position % layout.size);
        let element = self.memory.get::<u64>(layout.device + 4 + 8 * slot);
        let element = u64::from_le(element.expect("in the ring"));
        (element as u32, element >> 32)
    }

    /// Each chain of a queue was used once, in order, or it stopped at one that deserves it. Returns how many were.
    fn check(&self, expected: &Expected) -> usize {
        let Expected {
            index,
            position,
            ref chains,
            ..
        } = *expected;
        let layout = self.queues[index].layout;
        let now = self.nic.device.position(index).expect("still set up");
        let taken = if self.packed() {
            let boundary = |count: usize| -> u16 {
                let entries = chains[..count]
                    .iter()
                    .fold(Place::from_word(position), |at, chain| {
                        at.after(chain.entries, layout.size)
                    });
                entries.word()
            };
            let taken = (0..=chains.len()).find(|&count| boundary(count) == now);
            taken.unwrap_or_else(|| {
                panic!("queue {index} went from {position:#x} to {now:#x}, into a chain")
            })
        } else {
            let taken = usize::from(now.wrapping_sub(position));
            assert!(
                taken <= chains.len(),
                "queue {index} took {taken} of {}",
                chains.len()
            );
            let used = self.memory.get16(layout.device + 2);
            assert!(taken == 0 || used == now, "queue {index}: {used} of {now}");
            for (count, chain) in (0..).zip(&chains[..taken]) {
                let (id, len) = self.used(&layout, position.wrapping_add(count));
                assert_eq!(id, u32::from(chain.id), "queue {index}");
                assert!(
                    len <= walk::octets(&chain.buffers, true),
                    "queue {index}: {len} octets"
                );
            }
            taken
        };
        let faults = self.nic.device.counters_of(index).faults - expected.faults;
        assert!(faults <= 1);
        if faults == 1 {
            let fault = self
                .nic
                .device
                .counters_of(index)
                .last_fault
                .clone()
                .expect("one was counted");
            match chains.get(taken) {
                // Chains that are well-formed, but not for that queue.
                Some(chain) => {
                    let control = self.nic.device.control_queue() == Some(index);
                    let unfit = |chain: &Chain| {
                        let (readable, writable) = (
                            walk::octets(&chain.buffers, false),
                            walk::octets(&chain.buffers, true),
                        );
                        writable == 0 || (!control && readable > 0)
                    };
                    // A frame may take several chains, of which a later one is unfit or malformed.
                    let unfit =
                        fault == Fault::NotWritable.name() && chains[taken..].iter().any(unfit);
                    let malformed = expected.end.map(Fault::name) == Some(fault);
                    assert!(unfit || malformed, "queue {index} stopped at {chain:?}");
                }
                None => {
                    let reason = expected.end.map(Fault::name);
                    assert_eq!(Some(fault), reason, "queue {index}");
                }
            }
        }
        taken
    }

    fn balance(&self) {
        let (counters, waiting) = (self.nic.counters(), self.nic.queues.frames());
        assert_eq!(counters.receive_balance(waiting), 0, "{counters:?}");
        assert_eq!(counters.transmit_balance(0), 0, "{counters:?}");
        assert!(counters.statistics_agree(), "{counters:?}");
        assert_eq!(self.nic.port.pool.lent(), waiting, "a buffer was lost");
    }

    /// Rounds until there is nothing to do.
    pub(crate) fn rest(&mut self) {
        for _ in 0..ROUNDS {
            if !self.poll() {
                self.all_done();
                return;
            }
            if !self.foreseen {
                // A buffer may lie over a ring, which then stays available for ever: as long as the driver wants it so.
                return;
            }
        }
        panic!("the card does not come to rest");
    }

    /// At rest: all that is to be sent was, and all commands were done.
    fn all_done(&self) {
        if !self.foreseen {
            return;
        }
        let device = &self.nic.device;
        for expected in (0..self.queues.len()).filter_map(|index| self.expect(index)) {
            let index = expected.index;
            let sends = matches!(device.half(index), Some((_, Direction::Transmit)));
            if (sends || device.control_queue() == Some(index)) && !self.queues[index].stopped {
                let left = (expected.chains.len(), expected.end);
                assert_eq!(left, (0, None), "queue {index} is not served");
            }
        }
    }
}
