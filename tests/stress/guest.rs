//! The guest's side: a driver that masks and unmasks interrupts at random.

use nic_guest::memory::GuestSlice;
use nic_guest::ring::Segment;
use nic_guest::ring::virtqueue::Virtqueue;

use crate::chance::Chance;
use crate::watch::{LostWakeUp, Watch};
use crate::{BUFFER, Traffic};

/// A driver with a queue.
pub struct Guest<'a> {
    queue: Virtqueue,
    traffic: Traffic,
    packets: u64,
    watch: &'a Watch,
    chance: Chance,
    /// Buffers, and which of them are the driver's.
    pool: GuestSlice,
    free: Vec<u32>,
    /// Packets that were put into the ring, and that have come back or arrived.
    added: u64,
    moved: u64,
    /// Buffers still to come for the packet that arrives.
    rest: u16,
}

impl<'a> Guest<'a> {
    pub fn new(
        queue: Virtqueue,
        traffic: Traffic,
        packets: u64,
        watch: &'a Watch,
        chance: Chance,
    ) -> Self {
        let entries = queue.size();
        let memory = queue.ring().desc.memory();
        let pool = memory
            .allocate(BUFFER * usize::from(entries), BUFFER)
            .expect("buffers");
        Guest {
            pool,
            free: (0..u32::from(entries)).collect(),
            queue,
            traffic,
            packets,
            watch,
            chance,
            added: 0,
            moved: 0,
            rest: 0,
        }
    }

    /// Moves all packets.
    pub fn run(mut self) -> Result<(), String> {
        while self.moved < self.packets {
            let before = self.moved;
            self.add();
            if self.chance.once_in(2) {
                self.queue.disable_cb();
            }
            let all = self.chance.once_in(2);
            self.take(all);
            self.chance.dawdle();
            // A driver that got something has something to do; but it may also wait for more.
            if (self.moved == before && !self.linger()) || self.chance.once_in(8) {
                self.sleep().map_err(|LostWakeUp| self.state())?;
            }
        }
        Ok(())
    }

    fn state(&self) -> String {
        let queue = &self.queue;
        format!(
            "the guest: {} buffers added, {} packets moved, {:#x} looked at next, {} buffers out, {} descriptors free",
            self.added,
            self.moved,
            queue.vring_base(),
            queue.outstanding(),
            queue.num_free()
        )
    }

    /// Stays awake for a while, and returns whether something came.
    fn linger(&mut self) -> bool {
        let queue = &self.queue;
        self.chance.linger(|| queue.more_used())
    }

    /// Fills up the ring, or some of it.
    fn add(&mut self) {
        let mut room = self.free.len() as u64;
        if self.traffic == Traffic::Transmit {
            room = room.min(self.packets - self.added);
        }
        let count = room - self.chance.below(room + 1);
        self.add_exactly(count);
        if self.chance.once_in(4) {
            // Without a kick: the next one is for these too.
            self.queue.publish();
        } else {
            self.kick();
        }
    }

    fn add_exactly(&mut self, count: u64) {
        for _ in 0..count {
            let slot = self.free.pop().expect("a free buffer");
            let offset = slot as usize * BUFFER;
            let piece = [Segment::new(
                self.pool.guest_addr() + offset as u64,
                BUFFER as u32,
            )];
            let added = if self.traffic == Traffic::Transmit {
                self.pool.write_u64(offset, self.added);
                self.queue.add(&piece, &[], slot)
            } else {
                self.pool.write_u64(offset, u64::MAX);
                self.queue.add(&[], &piece, slot)
            };
            added.expect("room in the ring");
            self.added += 1;
        }
    }

    fn kick(&mut self) {
        if self.queue.kick_prepare() {
            self.watch.kick.raise();
        }
    }

    /// Takes what the card has used, `all` of it or some.
    fn take(&mut self, all: bool) {
        while let Some(used) = self.queue.get_buf().expect("a sound ring") {
            let number = self.pool.read_u64(used.token as usize * BUFFER);
            assert_eq!(number, self.moved, "a packet is lost, or here again");
            self.free.push(used.token);
            if self.rest == 0 {
                self.rest = self.traffic.span(number);
            }
            self.rest -= 1;
            if self.rest == 0 {
                self.moved += 1;
                self.watch.guest_moved(self.moved);
            }
            if !all && self.chance.once_in(4) {
                break;
            }
        }
    }

    /// Sleeps until the card has used more, unless the handshake says not to.
    fn sleep(&mut self) -> Result<(), LostWakeUp> {
        self.add_rest();
        let idle = match self.chance.below(4) {
            0 => {
                let last = self.queue.enable_cb_prepare();
                self.chance.dawdle();
                !self.queue.poll(last)
            }
            1 if self.uses_all() => self.queue.enable_cb_delayed(),
            2 => {
                // With interrupts on, taking the last buffer asks for the next one.
                if !self.queue.enable_cb() {
                    self.take(true);
                    self.add_rest();
                }
                true
            }
            _ => self.queue.enable_cb(),
        };
        if !idle || self.moved == self.packets || self.queue.outstanding() == 0 {
            return Ok(());
        }
        self.watch.wait(&self.watch.interrupt)
    }

    /// The card may need all buffers that there are before it uses any; it shall have them, and know of them.
    fn add_rest(&mut self) {
        if self.traffic != Traffic::Transmit {
            self.add_exactly(self.free.len() as u64);
        }
        self.kick();
    }

    /// Whether the card will use all buffers that it has, without more: only then may most of them be waited for.
    fn uses_all(&self) -> bool {
        match self.traffic {
            Traffic::Transmit => true,
            Traffic::Receive => self.packets - self.moved >= u64::from(self.queue.outstanding()),
            Traffic::ReceiveMerged => false,
        }
    }
}
