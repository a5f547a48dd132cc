//! The virtio-net driver (Linux: `drivers/net/virtio_net.c`).
//!
//! [`VirtnetInfo::probe`] negotiates, reads config space, sets queues up and fills the receive
//! rings; from then on frames come out of [`VirtnetInfo::poll`] and go in through
//! [`VirtnetInfo::start_xmit`]. Nothing here blocks but control commands, and nothing asks what
//! time it is: waiting is the transport's. No packet costs an allocation or a lock.
//!
//! | File | What |
//! |---|---|
//! | `features`, `config`, `header` | layouts |
//! | `rx`, `tx` | the two halves of a queue pair |
//! | `gso`, `offloads` | frames that stand for several; what of that is switched on |
//! | `ctrl`, `commands` | the control queue and what is asked over it |
//! | `napi` | the driver under a [`Kernel`](crate::net::Kernel): interrupts, NAPI, skbs |
//! | `channels`, `rss`, `rxfh_fields` | queue pairs in use, and what goes to which |
//! | `ringparam` | rings of another size |
//! | `coalesce`, `dim` | interrupt moderation, and its tuner |
//! | `device_stats` | what the device counts |
//! | `hash_tunnel` | what tunnels' packets are hashed by |
//! | `hash_input`, `toeplitz` | what a device hashes of a frame, and how |
//! | `stats` | what the driver counts |

mod channels;
pub mod coalesce;
pub mod commands;
pub mod config;
pub mod ctrl;
pub mod device_stats;
pub mod dim;
pub mod features;
pub mod gso;
pub mod hash_input;
pub mod hash_tunnel;
pub mod header;
mod napi;
pub mod offloads;
pub mod ringparam;
pub mod rss;
pub mod rx;
pub mod rxfh_fields;
pub mod stats;
pub mod toeplitz;
pub mod tx;

use std::time::Duration;

use coalesce::Coalesce;
use config::VirtioNetConfig;
use ctrl::{ControlQueue, CtrlError};
use device_stats::StatsError;
use features as f;
use header::VirtioNetHdr;
use rss::{Rss, VIRTIO_NET_RSS_MAX_KEY_SIZE};
use rx::{ETH_DATA_LEN, ReceiveQueue, RxFrame};
use stats::{RxStats, TxStats};
use tx::{LayoutError, SendQueue, TxLayout, XmitError};

use crate::memory::MemoryError;
use crate::ring::RingFault;
use crate::ring::virtqueue::{Virtqueue, VirtqueueOptions};
use crate::transport::{QueueConfig, Transport, TransportError};

/// Bounds of virtio 1.3, 5.1.4: queue pairs, MTU, RSS key and table.
const MAX_PAIRS: u16 = 0x8000;
const MIN_MTU: u16 = 68;
const MIN_RSS_TABLE: u16 = 128;

/// Why a device was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The transport failed.
    #[error("probe: {0}")]
    Transport(#[from] TransportError),
    /// Guest memory is too small for the queues.
    #[error("probe: {0}")]
    Memory(#[from] MemoryError),
    /// No ring of the negotiated layout has so many entries.
    #[error(
        "probe: a ring of {0} entries (up to 32768 are possible, of a split ring powers of two)"
    )]
    QueueSize(u16),
    /// Frames cannot be laid out as asked.
    #[error("probe: {0}")]
    Layout(#[from] LayoutError),
    /// A first control command failed.
    #[error("probe: control queue: {0}")]
    Control(#[from] CtrlError),
    /// The device does not say which statistics it has.
    #[error("probe: {0}")]
    Stats(#[from] StatsError),
    /// The device says it has that many queue pairs.
    #[error("device claims {0} queue pairs (1 to {MAX_PAIRS} are possible)")]
    MaxPairs(u16),
    /// The device says its MTU is that.
    #[error("device claims an MTU of {0} (at least {MIN_MTU})")]
    Mtu(u16),
    /// The device says its RSS key or table may be no longer than that, or its key longer than any.
    #[error(
        "device claims an RSS key of {key} (only {VIRTIO_NET_RSS_MAX_KEY_SIZE} is possible) and a table of {table} (at least {MIN_RSS_TABLE})"
    )]
    Rss {
        /// `rss_max_key_size`.
        key: u8,
        /// `rss_max_indirection_table_length`.
        table: u16,
    },
}

/// How to drive a device.
#[derive(Debug, Clone)]
pub struct ProbeOptions {
    /// Features to take where they are offered: [`features::USUAL`] unless changed, [`features::SUPPORTED`] at
    /// most.
    pub features: u64,
    /// Take `features` as they are, offered or not, sensible or not.
    pub exact: bool,
    /// Queue pairs to set up, at most what the device has.
    pub queue_pairs: u16,
    /// CPUs of the guest: of the pairs set up, no more than these are used at first.
    pub cpus: u16,
    /// Entries of receive and transmit rings: up to 32768, of split rings a power of two.
    pub queue_size: u16,
    /// Entries of indirect tables.
    pub indirect: u16,
    /// Length of receive buffers with header, where the usual will not do.
    pub rx_buf_len: Option<usize>,
    /// Length of transmit buffers with header, where the usual will not do.
    pub tx_buf_len: Option<usize>,
    /// How frames are laid into descriptors.
    pub tx_layout: TxLayout,
    /// How long a control command may take.
    pub ctrl_timeout: Duration,
    /// Toeplitz key to begin with; a random one where there is none.
    pub rss_key: Option<[u8; VIRTIO_NET_RSS_MAX_KEY_SIZE]>,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            features: f::USUAL,
            exact: false,
            queue_pairs: 1,
            cpus: u16::MAX,
            queue_size: 256,
            indirect: 32,
            rx_buf_len: None,
            tx_buf_len: None,
            tx_layout: TxLayout::Single,
            ctrl_timeout: Duration::from_secs(2),
            rss_key: None,
        }
    }
}

impl ProbeOptions {
    /// As Linux does on a machine with `cpus` CPUs: all queue pairs of the device are set up, and one for
    /// each CPU is used, until [`VirtnetInfo::set_channels`].
    #[must_use]
    pub fn for_cpus(cpus: u16) -> Self {
        Self {
            queue_pairs: u16::MAX,
            cpus,
            ..Self::default()
        }
    }

    /// Takes `features` too, where they are offered.
    #[must_use]
    pub fn with(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }

    /// Takes none of `features`.
    #[must_use]
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }
}

/// Entries of the control ring.
const CTRL_QUEUE_SIZE: u16 = 64;

/// A driven device (Linux: `struct virtnet_info`).
pub struct VirtnetInfo<T: Transport> {
    /// What is between driver and device.
    pub transport: T,
    /// Receive queues, one a pair.
    pub rq: Vec<ReceiveQueue>,
    /// Send queues, one a pair.
    pub sq: Vec<SendQueue>,
    /// Control queue, if negotiated.
    pub cvq: Option<ControlQueue>,
    /// Config space as last read.
    pub config: VirtioNetConfig,
    features: u64,
    ring: VirtqueueOptions,
    rss: Rss,
    coalesce: Coalesce,
    device_stats_cap: u64,
    /// Receive offloads in use.
    guest_offloads: u64,
    max_queue_pairs: u16,
    curr_queue_pairs: u16,
    ctrl_timeout: Duration,
    /// A config change was taken by [`Self::wait`] and not handled yet.
    config_changed: bool,
}

impl<T: Transport> VirtnetInfo<T> {
    /// Takes a device: features, config space, queues, buffers (`virtnet_probe` and
    /// `virtnet_open`).
    ///
    /// # Errors
    /// When the device does not answer, or claims what cannot be.
    pub fn probe(mut transport: T, options: &ProbeOptions) -> Result<Self, ProbeError> {
        let features = if options.exact {
            options.features
        } else {
            f::without_unmet(transport.device_features()? & options.features)
        };
        transport.set_driver_features(features)?;
        let config = VirtioNetConfig::read(&mut transport, features)?;
        let max_queue_pairs = check_config(&config)?;
        let pairs = options.queue_pairs.clamp(1, max_queue_pairs);
        let used = pairs.min(options.cpus.max(1));
        let mut this = Self {
            transport,
            rq: Vec::new(),
            sq: Vec::new(),
            cvq: None,
            config,
            features,
            ring: ring_options(features, options),
            rss: Rss::new(features, &config, used, options.rss_key),
            coalesce: Coalesce::default(),
            device_stats_cap: 0,
            guest_offloads: offloads::guest_offloads_capable(features),
            max_queue_pairs,
            curr_queue_pairs: used,
            ctrl_timeout: options.ctrl_timeout,
            config_changed: false,
        };
        this.find_vqs(pairs, options)?;
        this.transport.driver_ok()?;
        this.refill();
        this.commit_default_rss()?;
        if features & f::MQ != 0 && features & f::CTRL_VQ != 0 {
            this.set_queues(used)?;
        }
        if features & (f::MAC | f::CTRL_MAC_ADDR) == f::CTRL_MAC_ADDR {
            // It has none: it is told ours.
            this.set_mac_address(this.mac())?;
        }
        if features & f::DEVICE_STATS != 0 {
            this.device_stats_cap = this.stats_query()?;
        }
        Ok(this)
    }

    fn find_vqs(&mut self, pairs: u16, options: &ProbeOptions) -> Result<(), ProbeError> {
        let memory = self.transport.memory().clone();
        let (features, size) = (self.features, options.queue_size);
        let (mtu, ring) = (self.mtu(), self.ring);
        if !ring.size_is_possible(size) {
            return Err(ProbeError::QueueSize(size));
        }
        for pair in 0..pairs {
            let (rx, tx) = (2 * pair, 2 * pair + 1);
            let (rx_len, tx_len) = (options.rx_buf_len, options.tx_buf_len);
            let rq = ReceiveQueue::new(&memory, rx, size, features, ring, mtu, rx_len)?;
            let mut sq = SendQueue::new(&memory, tx, size, features, ring, mtu, tx_len)?;
            sq.set_layout(options.tx_layout.clone())?;
            self.transport.setup_queue(&queue_config(rx, &rq.vq))?;
            self.transport.setup_queue(&queue_config(tx, &sq.vq))?;
            self.rq.push(rq);
            self.sq.push(sq);
        }
        if features & f::CTRL_VQ != 0 {
            let many = features & (f::MQ | f::RSS) != 0;
            let pairs = if many { self.max_queue_pairs } else { 1 };
            // A device with as many pairs as there can be has no index left for it.
            let index = pairs.checked_mul(2).ok_or(ProbeError::MaxPairs(pairs))?;
            let cvq = ControlQueue::new(&memory, index, CTRL_QUEUE_SIZE, ring)?;
            self.transport.setup_queue(&queue_config(index, &cvq.vq))?;
            self.cvq = Some(cvq);
        }
        Ok(())
    }

    /// The longest packet that goes into a buffer.
    pub(crate) fn mtu(&self) -> u16 {
        self.config.mtu.unwrap_or(ETH_DATA_LEN)
    }

    /// Features in force.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Queue pairs that the device has.
    #[must_use]
    pub fn max_queue_pairs(&self) -> u16 {
        self.max_queue_pairs
    }

    /// Queue pairs in use.
    #[must_use]
    pub fn curr_queue_pairs(&self) -> u16 {
        self.curr_queue_pairs
    }

    /// MAC address: the device's, or one of our own where it has none.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.config.mac.unwrap_or([0x02, 0, 0, 0, 0, 0x01])
    }

    /// Whether the link is up, as of the config space last read.
    #[must_use]
    pub fn link_up(&self) -> bool {
        self.config.link_up()
    }

    /// Reads config space again if the device said it changed (`virtnet_config_changed_work`);
    /// whether it said so.
    ///
    /// # Errors
    /// When the transport cannot.
    pub fn handle_config_change(&mut self) -> Result<bool, TransportError> {
        let changed = self.transport.take_config_change();
        if !changed && !std::mem::take(&mut self.config_changed) {
            return Ok(false);
        }
        self.read_config()?;
        Ok(true)
    }

    /// Reads config space now.
    ///
    /// # Errors
    /// When the transport cannot.
    pub fn read_config(&mut self) -> Result<(), TransportError> {
        self.config = VirtioNetConfig::read(&mut self.transport, self.features)?;
        Ok(())
    }

    /// One round of a pair's NAPI poll (`virtnet_poll`): takes back sent frames, lends up to
    /// `budget` received ones to `deliver`, and refills and kicks the ring once half of what could
    /// be taken is gone. How many frames were taken, good or bad; fewer than `budget` means that
    /// the ring was empty.
    ///
    /// # Errors
    /// When a ring is broken.
    pub fn poll(
        &mut self,
        pair: u16,
        budget: usize,
        deliver: impl FnMut(RxFrame<'_>),
    ) -> Result<usize, RingFault> {
        let (rq, sq) = (
            &mut self.rq[usize::from(pair)],
            &mut self.sq[usize::from(pair)],
        );
        sq.free_old_xmit()?;
        let taken = rq.receive(budget, deliver)?;
        if usize::from(rq.vq.num_free()) > budget.min(usize::from(rq.vq.size())) / 2
            && rq.try_fill_recv() > 0
        {
            rq.kick(&self.transport);
        }
        Ok(taken)
    }

    /// Puts a frame into a pair's send queue (`start_xmit`); [`Self::flush`] kicks.
    ///
    /// # Errors
    /// [`XmitError::Busy`] when the ring is full even after completions were taken.
    pub fn start_xmit(
        &mut self,
        pair: u16,
        frame: &[u8],
        hdr: &VirtioNetHdr,
    ) -> Result<(), XmitError> {
        let sq = &mut self.sq[usize::from(pair)];
        sq.free_old_xmit()?;
        sq.start_xmit(frame, hdr)
    }

    /// Publishes a pair's frames and kicks if the device wants it.
    pub fn flush(&mut self, pair: u16) {
        self.sq[usize::from(pair)].kick(&self.transport);
    }

    /// Takes the interrupts of a pair's two queues and counts them; how many.
    pub fn take_interrupts(&mut self, pair: u16) -> u64 {
        let (rq, sq) = (
            &mut self.rq[usize::from(pair)],
            &mut self.sq[usize::from(pair)],
        );
        let rx = self.transport.take_interrupt(rq.index());
        let tx = self.transport.take_interrupt(sq.index());
        rq.stats.interrupts += rx;
        sq.stats.interrupts += tx;
        rx + tx
    }

    /// Waits for an interrupt of any queue for packets, at most `timeout`, and takes all there are; how many. A
    /// config change ends the wait too, and is kept for [`Self::handle_config_change`]; so does a
    /// ring's error, which is counted.
    pub fn wait(&mut self, timeout: Duration) -> u64 {
        // The interrupt of the last command may come long after its answer was read. There is one at most: the next
        // comes after another command.
        for _ in 0..2 {
            self.transport.wait(timeout);
            let commanded = self.take_control_interrupt();
            let errors = self.take_ring_errors();
            self.config_changed |= self.transport.take_config_change();
            let pairs = 0..self.rq.len() as u16;
            let taken = pairs.map(|pair| self.take_interrupts(pair)).sum();
            if taken > 0 || errors > 0 || self.config_changed || !commanded {
                return taken;
            }
        }
        0
    }

    /// Takes what wakes a waiter and is no interrupt of a queue for packets; config space that changed
    /// is read. Whether it was.
    ///
    /// # Errors
    /// When the transport cannot.
    pub(crate) fn take_other_events(&mut self) -> Result<bool, TransportError> {
        self.take_control_interrupt();
        self.take_ring_errors();
        self.handle_config_change()
    }

    /// Takes the control queue's interrupts, for none of which anybody waits any more; whether there were any.
    fn take_control_interrupt(&self) -> bool {
        let index = self.cvq.as_ref().map(ControlQueue::index);
        index.is_some_and(|index| self.transport.take_interrupt(index) > 0)
    }

    /// Counts errors of rings; how many.
    fn take_ring_errors(&mut self) -> u64 {
        let mut errors = 0;
        for (rq, sq) in self.rq.iter_mut().zip(&mut self.sq) {
            let rx = self.transport.take_queue_error(rq.index());
            let tx = self.transport.take_queue_error(sq.index());
            rq.stats.ring_errors += rx;
            sq.stats.ring_errors += tx;
            errors += rx + tx;
        }
        errors
    }

    /// The transport and the queues apart, for threads that each drive a pair of their own.
    pub fn parts(&mut self) -> (&T, &mut [ReceiveQueue], &mut [SendQueue]) {
        (&self.transport, &mut self.rq, &mut self.sq)
    }

    /// Sums over all queues.
    #[must_use]
    pub fn stats(&self) -> (RxStats, TxStats) {
        let (mut rx, mut tx) = (RxStats::default(), TxStats::default());
        for rq in &self.rq {
            rx += rq.stats;
        }
        for sq in &self.sq {
            tx += sq.stats;
        }
        (rx, tx)
    }

    /// Lets go of the device (`virtnet_remove`): resets it, gives guest memory back, and returns
    /// the transport, on which a driver can be probed again.
    ///
    /// # Errors
    /// When the device cannot be reset; its memory is then not given back.
    pub fn remove(mut self) -> Result<T, TransportError> {
        self.transport.reset()?;
        self.rq.into_iter().for_each(ReceiveQueue::release);
        self.sq.into_iter().for_each(SendQueue::release);
        if let Some(cvq) = self.cvq {
            cvq.release();
        }
        Ok(self.transport)
    }
}

/// What rings are made of under `features`.
fn ring_options(features: u64, options: &ProbeOptions) -> VirtqueueOptions {
    VirtqueueOptions {
        packed: features & f::RING_PACKED != 0,
        in_order: features & f::IN_ORDER != 0,
        event_idx: features & f::EVENT_IDX != 0,
        indirect: if features & f::INDIRECT_DESC != 0 {
            options.indirect
        } else {
            0
        },
    }
}

/// Where a queue is, for a transport. It goes on after the last used buffer that was taken; where
/// [`Transport::stop_queue`] returned another index, put that into `next`.
#[must_use]
pub fn queue_config(index: u16, vq: &Virtqueue) -> QueueConfig {
    QueueConfig {
        index,
        size: vq.size(),
        layout: vq.ring().layout(),
        next: vq.vring_base(),
    }
}

fn check_config(config: &VirtioNetConfig) -> Result<u16, ProbeError> {
    let pairs = config.max_virtqueue_pairs.unwrap_or(1);
    if !(1..=MAX_PAIRS).contains(&pairs) {
        return Err(ProbeError::MaxPairs(pairs));
    }
    if let Some(mtu) = config.mtu.filter(|&mtu| mtu < MIN_MTU) {
        return Err(ProbeError::Mtu(mtu));
    }
    // The standard wants at least so much, and Linux refuses more.
    let key_size = VIRTIO_NET_RSS_MAX_KEY_SIZE as u8;
    let key = config.rss_max_key_size.unwrap_or(key_size);
    let table = config
        .rss_max_indirection_table_length
        .unwrap_or(MIN_RSS_TABLE);
    if key != key_size || table < MIN_RSS_TABLE {
        return Err(ProbeError::Rss { key, table });
    }
    Ok(pairs)
}
