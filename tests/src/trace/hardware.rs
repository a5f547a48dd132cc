//! The card's stages, told from what its counters did.
//!
//! The card knows nothing of being traced: whenever it has done what it had to do at an instant, its counters are compared with
//! those before. With one frame under way at a time that says what became of it, and when.

use nic_backend::card::Card;
use nic_device::nic::NicStatus;
use nic_guest::net::trace::{Change, Tracer};
use nic_model::counters::{Drop as Reason, PortCounters};
use nic_model::host::QueueIndex;

/// Compares the card with what it was.
pub struct Observer {
    tracer: Tracer,
    before: NicStatus,
    /// Frames that each receive queue had by then: those that it was given, and those in its FIFO.
    steered: Vec<u64>,
}

/// Frames that were steered to each receive queue: they wait in its FIFO, or have been delivered.
fn steered(card: &Card, status: &NicStatus) -> Vec<u64> {
    let pairs = (0..).zip(status.queues.chunks_exact(2));
    pairs
        .map(|(pair, queues)| queues[0].packets + card.nic.queues.waiting(QueueIndex(pair)) as u64)
        .collect()
}

/// A stage, and what it is found to have done.
struct Stage<'a> {
    tracer: &'a Tracer,
    name: &'static str,
    changes: Vec<Change>,
}

impl<'a> Stage<'a> {
    fn new(tracer: &'a Tracer, name: &'static str) -> Self {
        Stage {
            tracer,
            name,
            changes: Vec::new(),
        }
    }

    /// A counter may have risen.
    fn counts(self, what: &'static str, before: u64, now: u64) -> Self {
        if now > before {
            self.changes(what, format!("+{}", now - before))
        } else {
            self
        }
    }

    /// Something became of something.
    fn changes(mut self, what: &'static str, how: String) -> Self {
        self.changes.push(Change { what, how });
        self
    }

    /// Tells of the stage, if it did anything.
    fn tell(self) {
        if !self.changes.is_empty() {
            self.tracer.hardware(self.name, self.changes);
        }
    }
}

impl Observer {
    /// Looks at a card for the first time.
    pub fn new(tracer: Tracer, card: &Card) -> Self {
        let before = card.nic.status();
        Observer {
            tracer,
            steered: steered(card, &before),
            before,
        }
    }

    /// Tells of what the card did since it was last looked at.
    pub fn look(&mut self, card: &Card) {
        let now = card.nic.status();
        let before = std::mem::replace(&mut self.before, now);
        let now = &self.before;
        let (old, new) = (&before.port.counters, &now.port.counters);
        let stage = |name| Stage::new(&self.tracer, name);
        stage("phy rx")
            .counts("frames", old.rx_frames, new.rx_frames)
            .counts("octets", old.rx_octets, new.rx_octets)
            .tell();
        let good = |counters: &PortCounters| {
            let bad = counters
                .drops
                .iter()
                .take_while(|(reason, _)| *reason != Reason::RxFiltered);
            counters.rx_frames - bad.map(|(_, count)| count).sum::<u64>()
        };
        stage("mac rx")
            .counts("good frames", good(old), good(new))
            .tell();
        stage("filter")
            .counts("to this station", old.rx_unicast, new.rx_unicast)
            .counts("to a group", old.rx_multicast, new.rx_multicast)
            .counts("to everyone", old.rx_broadcast, new.rx_broadcast)
            .tell();
        stage("checksum rx")
            .counts("right", old.rx_checksums.good(), new.rx_checksums.good())
            .counts("wrong", old.rx_checksums.bad(), new.rx_checksums.bad())
            .tell();
        let mut dropped = stage("drop");
        for ((reason, old), (_, new)) in old.drops.iter().zip(new.drops.iter()) {
            dropped = dropped.counts(reason.name(), old, new);
        }
        dropped.tell();
        let steered = steered(card, now);
        for (pair, (old, new)) in self.steered.iter().zip(&steered).enumerate() {
            if new > old {
                stage("rss").changes("queue pair", pair.to_string()).tell();
            }
        }
        let (old_frames, new_frames) = (before.port.rx_fifo_frames, now.port.rx_fifo_frames);
        if old_frames != new_frames {
            stage("rx fifo")
                .changes("frames", format!("{old_frames} -> {new_frames}"))
                .tell();
        }
        let queues = || before.queues.iter().zip(&now.queues).enumerate();
        for (_, (old, new)) in queues().filter(|(queue, _)| queue.is_multiple_of(2)) {
            stage("dma rx")
                .counts("descriptors used", old.packets, new.packets)
                .counts("octets written", old.bytes, new.bytes)
                .tell();
        }
        for (_, (old, new)) in queues().filter(|(queue, _)| !queue.is_multiple_of(2)) {
            stage("dma tx")
                .counts("descriptors fetched", old.packets, new.packets)
                .counts("octets read", old.bytes, new.bytes)
                .tell();
        }
        stage("mac tx")
            .counts(
                "checksums inserted",
                old.tx_checksum_inserted,
                new.tx_checksum_inserted,
            )
            .counts("frames", old.tx_frames, new.tx_frames)
            .tell();
        stage("phy tx")
            .counts("octets", old.tx_octets, new.tx_octets)
            .tell();
        for (queue, (old, new)) in queues() {
            if new.interrupts_sent > old.interrupts_sent {
                let vector = format!("of virtqueue {queue}");
                stage("msi-x").changes("vector", vector).tell();
            }
        }
        self.steered = steered;
    }
}
