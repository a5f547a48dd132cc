//! The card's side: a device that masks and unmasks kicks at random, and moves packets in bursts of any length.

use std::sync::Arc;

use nic_device::memory::{GuestMemory, Scatter};
use nic_device::ring::{Chain, Ring};

use crate::chance::Chance;
use crate::watch::{LostWakeUp, Watch};
use crate::{BUFFER, Traffic};

/// A device with a ring.
pub struct Card<'a, R> {
    ring: R,
    traffic: Traffic,
    packets: u64,
    watch: &'a Watch,
    chance: Chance,
    readable: Scatter,
    writable: Scatter,
    /// Packets moved.
    moved: u64,
}

impl<'a, R: Ring> Card<'a, R> {
    pub fn new(
        ring: R,
        memory: Arc<GuestMemory>,
        traffic: Traffic,
        packets: u64,
        watch: &'a Watch,
        chance: Chance,
    ) -> Self {
        let entries = usize::from(ring.size());
        Card {
            ring,
            traffic,
            packets,
            watch,
            chance,
            readable: Scatter::new(memory.clone(), entries),
            writable: Scatter::new(memory, entries),
            moved: 0,
        }
    }

    /// Moves all packets.
    pub fn run(mut self) -> Result<(), String> {
        while self.moved < self.packets {
            let available = u64::from(self.ring.begin().expect("a sound ring"));
            let budget = available - self.chance.below(available / 2 + 1);
            let before = self.moved;
            while self.moved < self.packets && self.moved - before < budget && self.move_one() {
                if self.chance.once_in(4) {
                    self.ring.publish();
                    if self.chance.once_in(2) {
                        self.interrupt();
                    }
                }
            }
            self.ring.publish();
            self.chance.dawdle();
            if self.moved == before {
                // It may have come since.
                let ring = &mut self.ring;
                let known = ring.begin();
                if self.chance.linger(|| ring.begin() != known) {
                    continue;
                }
                self.sleep().map_err(|LostWakeUp| self.state())?;
                if self.chance.once_in(2) {
                    self.ring.disable_kicks();
                }
            } else if self.chance.once_in(2) {
                // Otherwise the next interrupt is for this burst too.
                self.interrupt();
            }
        }
        self.interrupt();
        Ok(())
    }

    fn state(&self) -> String {
        format!(
            "the card: {} packets moved, {:?}",
            self.moved,
            self.ring.state()
        )
    }

    /// Moves the next packet if there are buffers for it.
    fn move_one(&mut self) -> bool {
        let start = self.ring.position();
        self.readable.clear();
        self.writable.clear();
        let span = self.traffic.span(self.moved);
        let mut chains = [Chain::new(0); 2];
        for chain in &mut chains[..usize::from(span)] {
            let fetched = self.ring.fetch(&mut self.readable, &mut self.writable);
            let Some(fetched) = fetched.expect("a sound ring") else {
                self.ring.rewind(start);
                return false;
            };
            *chain = fetched;
        }
        let mut number = [0; BUFFER];
        let mut len = 0;
        if self.traffic == Traffic::Transmit {
            assert_eq!(self.readable.cursor().read(&mut number), BUFFER);
            let number = u64::from_le_bytes(number);
            assert_eq!(number, self.moved, "a packet is lost, or here again");
        } else {
            let mut cursor = self.writable.cursor();
            for _ in 0..span {
                assert_eq!(cursor.write(&self.moved.to_le_bytes()), BUFFER);
            }
            len = BUFFER as u32;
        }
        for &chain in &chains[..usize::from(span)] {
            self.ring.complete(chain, len);
        }
        self.moved += 1;
        self.watch.card_moved(self.moved);
        true
    }

    fn interrupt(&mut self) {
        if self.ring.needs_interrupt() {
            self.watch.interrupt.raise();
        }
    }

    /// Sleeps until there are more buffers, unless the handshake says that there are.
    fn sleep(&mut self) -> Result<(), LostWakeUp> {
        self.interrupt();
        if self.ring.enable_kicks() {
            return Ok(());
        }
        self.watch.wait(&self.watch.kick)
    }
}
