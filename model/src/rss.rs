//! Receive-side scaling: which queue a received frame goes to.
//!
//! Frames enter behind the checksum engine and leave with a queue, and with a hash and its type for the driver. A frame is
//! dropped only to let its conversation change from a queue whose FIFO never empties; one for a queue that does not receive
//! goes on, to be dropped at the host's door. There are three ways to steer, and the driver's last word counts (VIRTIO 1.4, 5.1.6.5.5):
//!
//! * one queue takes everything, as after a reset;
//! * automatic receive steering (5.1.6.5.6): a conversation is received on the queue it was last transmitted on; those that
//!   have transmitted nothing are spread over the queues in use;
//! * receive-side scaling proper (5.1.6.5.7): the hash picks an entry of the driver's indirection table.
//!
//! The hash itself is the Toeplitz hash of 5.1.6.4.3 in each of them. A conversation keeps its order when it
//! changes its queue, be it by another table, another number of queues or its own transmitting: it goes over when the old
//! queue's FIFO holds none of its frames. Only where the change is in how conversations are told apart (another key,
//! other hash types, from one of the last two ways to the other) is it made at once, and what is in the FIFOs
//! then may be overtaken.

mod flow;
mod hash;
mod slots;
mod toeplitz;

use serde::Serialize;
use slots::Slots;

use crate::host::QueueIndex;
use crate::parse::{self, Plain, Summary};
use crate::tunnel::{self, TunnelTypes};

pub use flow::flow;
pub use hash::{HashConfig, HashReport, HashTypes, Hasher};
pub use slots::Progress;
pub use toeplitz::{MAX_INPUT, MAX_KEY};

/// Entries of the longest indirection table (`rss_max_indirection_table_length`). Tables that are shorter are
/// repeated up to this length, so that each flow keeps its slot whatever the length.
pub const MAX_TABLE: usize = 512;

/// Entries of the indirection table that a driver uses who does not know better.
pub const DEFAULT_TABLE: usize = 128;

/// Conversations that automatic steering tells apart.
const BUCKETS: usize = 4096;

/// Where frames go without any steering.
const FIRST: QueueIndex = QueueIndex(0);

/// Why a configuration is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RssError {
    /// Bits without a meaning among the hash types.
    #[error("unknown hash types {0:#x}")]
    HashTypes(u32),
    /// Octets of a key that is too long.
    #[error("a hash key of {0} octets; {MAX_KEY} is the most")]
    KeyLength(usize),
    /// Entries of a table that is too long, or not a power of two.
    #[error("an indirection table of {0} entries; it must be a power of two up to {MAX_TABLE}")]
    TableLength(usize),
    /// A queue that there is not.
    #[error("no queue {0}")]
    Queue(QueueIndex),
    /// A number of queue pairs that there are not.
    #[error("{0} queue pairs")]
    Pairs(u16),
}

/// What the driver sets receive-side scaling to (`struct virtio_net_rss_config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RssConfig {
    hash: HashConfig,
    table: Vec<QueueIndex>,
    unclassified: QueueIndex,
}

impl RssConfig {
    /// Entries of the table.
    #[must_use]
    pub fn table_len(&self) -> usize {
        self.table.len()
    }

    /// Frames go to the queue in `table` that the low bits of their hash, as `hash` says, pick; without a hash, to
    /// `unclassified`.
    ///
    /// # Errors
    /// [`RssError::TableLength`] if `table` has no power of two of entries, or more than [`MAX_TABLE`].
    pub fn new(
        hash: HashConfig,
        table: Vec<QueueIndex>,
        unclassified: QueueIndex,
    ) -> Result<Self, RssError> {
        if !table.len().is_power_of_two() || table.len() > MAX_TABLE {
            return Err(RssError::TableLength(table.len()));
        }
        Ok(RssConfig {
            hash,
            table,
            unclassified,
        })
    }

    /// A table of [`DEFAULT_TABLE`] entries that spreads over the first `pairs` queues, at least 1, evenly.
    #[must_use]
    pub fn even(hash: HashConfig, pairs: u16) -> Self {
        let entries = (0..DEFAULT_TABLE as u16).map(|entry| QueueIndex(entry % pairs.max(1)));
        RssConfig {
            hash,
            table: entries.collect(),
            unclassified: FIRST,
        }
    }
}

/// The way to steer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Everything goes to the first queue.
    Single,
    /// Conversations are received where they are transmitted.
    Automatic,
    /// By the indirection table.
    Table,
}

/// Where a frame goes, and what the driver may know about that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steered {
    /// The queue; `None` if the frame must be dropped.
    pub queue: Option<QueueIndex>,
    /// The hash; 0 if there is none.
    pub hash: u32,
    /// The type of the hash.
    pub report: HashReport,
}

/// How a port steers, as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RssStatus {
    /// The way to steer.
    pub mode: Mode,
    /// Queue pairs that automatic steering uses.
    pub queue_pairs: u16,
    /// The types that are hashed, by their bits (VIRTIO 1.4, 5.1.6.4.3.1).
    pub hash_types: u32,
    /// The key, in hexadecimal.
    pub key: String,
    /// The indirection table, if it is in use.
    pub table: Vec<u16>,
    /// Where frames go that have no hash, if the table is in use.
    pub unclassified: u16,
}

/// The steering of a port with its state.
#[derive(Debug)]
pub struct Rss {
    mode: Mode,
    /// The mode as far as it matters: with one queue it does not.
    steers: Mode,
    /// Queue pairs that automatic steering uses.
    pairs: u16,
    /// Of each queue that there is, whether its frames reach the host.
    receives: Vec<bool>,
    hasher: Hasher,
    slots: Slots,
    /// The indirection table as it was given.
    table: Vec<QueueIndex>,
    unclassified: QueueIndex,
}

impl Rss {
    /// A steering among `queues` queues, at least 1, that uses the first only and hashes nothing.
    #[must_use]
    pub fn new(queues: u16) -> Self {
        Rss {
            mode: Mode::Single,
            steers: Mode::Single,
            pairs: 1,
            receives: vec![true; queues.max(1).into()],
            hasher: Hasher::new(HashConfig::default()),
            slots: Slots::default(),
            table: Vec::new(),
            unclassified: FIRST,
        }
    }

    /// How frames are steered.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What is hashed, and with which key.
    #[must_use]
    pub fn hash_config(&self) -> &HashConfig {
        self.hasher.config()
    }

    /// Queue pairs that automatic steering uses (`virtqueue_pairs`).
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// What users may know of it.
    #[must_use]
    pub fn status(&self) -> RssStatus {
        let (in_use, hash) = (self.mode == Mode::Table, self.hash_config());
        let table = self.table.iter().filter(|_| in_use);
        RssStatus {
            mode: self.mode,
            queue_pairs: self.pairs,
            hash_types: hash.types().bits(),
            key: hash
                .key()
                .iter()
                .map(|octet| format!("{octet:02x}"))
                .collect(),
            table: table.map(|queue| queue.0).collect(),
            unclassified: if in_use { self.unclassified.0 } else { 0 },
        }
    }

    /// Back to one queue and no hash, as for a new device; all queues receive.
    pub fn reset(&mut self) {
        *self = Rss::new(self.receives.len() as u16);
    }

    /// Steers automatically among the first `pairs` queues; with 1, everything goes to the first
    /// (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`). What was learned is forgotten. What is in the FIFOs of the other queues must
    /// not reach the host any more.
    ///
    /// # Errors
    /// [`RssError::Pairs`] if `pairs` is 0 or there are not as many; then nothing changes.
    pub fn set_pairs(&mut self, pairs: u16, progress: &impl Progress) -> Result<(), RssError> {
        if pairs == 0 || usize::from(pairs) > self.receives.len() {
            return Err(RssError::Pairs(pairs));
        }
        self.pairs = pairs;
        self.steer_automatically(progress);
        Ok(())
    }

    /// Hashes as `config` says, for the driver's sake only: frames are steered automatically
    /// (`VIRTIO_NET_CTRL_MQ_HASH_CONFIG`).
    pub fn set_hash(&mut self, config: &HashConfig, progress: &impl Progress) {
        self.hasher.set(config);
        if self.mode == Mode::Table {
            self.steer_automatically(progress);
        }
    }

    /// Steers by hash and table (`VIRTIO_NET_CTRL_MQ_RSS_CONFIG`).
    ///
    /// # Errors
    /// [`RssError::Queue`] if `config` names a queue that there is not; then nothing changes.
    pub fn set_table(
        &mut self,
        config: &RssConfig,
        progress: &impl Progress,
    ) -> Result<(), RssError> {
        let mut named = config.table.iter().chain([&config.unclassified]);
        if let Some(&queue) = named.find(|queue| usize::from(queue.0) >= self.receives.len()) {
            return Err(RssError::Queue(queue));
        }
        let regrouped = self.mode == Mode::Automatic
            || self.mode == Mode::Table && config.hash != *self.hasher.config();
        self.hasher.set(&config.hash);
        self.enter(Mode::Table, MAX_TABLE, progress);
        self.table.clone_from(&config.table);
        self.unclassified = config.unclassified;
        let table = &config.table;
        let entry = |slot| table[slot & (table.len() - 1)];
        self.slots.aim_all(entry, config.unclassified, progress);
        let receives = &self.receives;
        self.slots
            .release(|queue| !regrouped && receives[usize::from(queue.0)]);
        Ok(())
    }

    /// Has automatic steering use the first `pairs` queues from when it is next asked for.
    pub fn expect_pairs(&mut self, pairs: u16) {
        self.pairs = pairs.clamp(1, self.receives.len() as u16);
    }

    /// Says whether the frames in the FIFO of `queue` will reach the host: not if the queue is disabled or being reset.
    /// Nothing waits for such a queue; automatic steering avoids it, and begins to learn anew. Queues that there are not are
    /// ignored.
    pub fn set_receiving(&mut self, queue: QueueIndex, receiving: bool, progress: &impl Progress) {
        let Some(receives) = self.receives.get_mut(usize::from(queue.0)) else {
            return;
        };
        if *receives == receiving {
            return;
        }
        *receives = receiving;
        match self.mode {
            Mode::Single => {}
            Mode::Automatic => self.steer_automatically(progress),
            Mode::Table => self.slots.release(|other| receiving || other != queue),
        }
    }

    fn steer_automatically(&mut self, progress: &impl Progress) {
        let regrouped = self.mode == Mode::Table;
        if self.pairs == 1 {
            self.set_mode(Mode::Single);
            return;
        }
        self.enter(Mode::Automatic, BUCKETS, progress);
        let (pairs, receives) = (self.pairs, &self.receives);
        let usable = |queue: QueueIndex| queue.0 < pairs && receives[usize::from(queue.0)];
        let queues: Vec<_> = (0..pairs).map(QueueIndex).filter(|&q| usable(q)).collect();
        // If no queue receives, it does not matter which one does not.
        let first = queues.first().copied().unwrap_or(FIRST);
        let spread = |bucket| *queues.get(bucket % queues.len().max(1)).unwrap_or(&first);
        self.slots.aim_all(spread, first, progress);
        self.slots.release(|queue| !regrouped && usable(queue));
    }

    /// Changes the mode, with as many slots as it needs.
    fn enter(&mut self, mode: Mode, slots: usize, progress: &impl Progress) {
        if self.mode != mode {
            self.slots.reset(slots, FIRST, progress);
            self.set_mode(mode);
        }
    }

    fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.steers = match self.receives.len() {
            1 => Mode::Single,
            _ => mode,
        };
    }

    /// The queue for a frame with the headers `summary`, which is then pushed into that queue's FIFO, or lost. There is
    /// none when the frame's conversation has to change its queue, and the old one is too busy for that.
    pub fn steer(&mut self, frame: &[u8], summary: &Summary, progress: &impl Progress) -> Steered {
        let (hash, report) = self.hasher.hash(frame, summary);
        Steered {
            queue: self.place(frame, summary, hash, report, progress),
            hash,
            report,
        }
    }

    /// [`Rss::steer`] for a frame as most are.
    #[inline(always)] // on the way of each packet
    pub(crate) fn steer_plain<const VERSION: u8>(
        &mut self,
        frame: &[u8],
        headers: Plain<VERSION>,
        progress: &impl Progress,
    ) -> Steered {
        let (hash, report) = self.hasher.hash_plain(frame, headers);
        Steered {
            queue: match self.steers {
                Mode::Table if report != HashReport::None => {
                    self.slots.place_hashed(hash, progress)
                }
                Mode::Single => Some(FIRST),
                _ => self.place_plain(frame, headers, hash, report, progress),
            },
            hash,
            report,
        }
    }

    /// [`Rss::place`] for a frame as most are.
    #[cold] // so that the way of frames with a hash is short
    fn place_plain<const VERSION: u8>(
        &mut self,
        frame: &[u8],
        headers: Plain<VERSION>,
        hash: u32,
        report: HashReport,
        progress: &impl Progress,
    ) -> Option<QueueIndex> {
        self.place(frame, &headers.summary(), hash, report, progress)
    }

    /// The queue for a frame of which the hash is known.
    fn place(
        &mut self,
        frame: &[u8],
        summary: &Summary,
        hash: u32,
        report: HashReport,
        progress: &impl Progress,
    ) -> Option<QueueIndex> {
        match self.mode {
            Mode::Single => Some(FIRST),
            Mode::Automatic => self.slots.place(flow(frame, summary), progress),
            Mode::Table => {
                let hash = (report != HashReport::None).then_some(hash);
                self.slots.place(hash, progress)
            }
        }
    }

    /// Notes that the driver transmitted `frames` on `queue`: what comes back is to be received there, with automatic
    /// steering. In tunnels of the types `tunnels` it goes by the inner headers, as received frames do. Queues that are not
    /// in use teach nothing.
    #[inline]
    pub fn learn<'a>(
        &mut self,
        frames: impl IntoIterator<Item = &'a [u8]>,
        queue: QueueIndex,
        tunnels: TunnelTypes,
    ) {
        if self.mode != Mode::Automatic
            || queue.0 >= self.pairs
            || !self.receives[usize::from(queue.0)]
        {
            return;
        }
        for frame in frames {
            let outer = parse::summarise(frame);
            let inner = tunnel::inner(frame, &outer, tunnels);
            if let Some(flow) = flow(frame, inner.as_ref().unwrap_or(&outer)) {
                self.slots.aim(flow, queue);
            }
        }
    }
}

#[cfg(test)]
mod tests;
