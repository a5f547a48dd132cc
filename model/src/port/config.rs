//! What a port is made of.

use std::time::Duration;

use crate::filter::MacAddress;
use crate::moderation::Mode;
use crate::packet_buffer::{BufferConfig, PacketBuffer};
use crate::pfc::Priorities;
use crate::phy::{LinkPartner, Speed};
use crate::rate::Rates;
use crate::rss::DEFAULT_TABLE;
use crate::scheduler::Weights;

/// What a port is made of.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Queue pairs, at least 1.
    pub queue_pairs: u16,
    /// The station's address.
    pub mac: MacAddress,
    /// The longest packet, in octets.
    pub mtu: u16,
    /// The line rate: the highest that is negotiated, or the one that there is.
    pub speed: Speed,
    /// Whether the cable is plugged in at first. Without auto-negotiation the link is up then.
    pub link: bool,
    /// Whether speed, duplex and flow control are negotiated with the link partner.
    pub autoneg: bool,
    /// Priorities that are flow controlled each for itself, instead of the whole line. With none among them it may be changed later; without,
    /// it costs nothing.
    pub pfc: Option<Priorities>,
    /// The station at the other end of the line.
    pub partner: LinkPartner,
    /// Octets that the receive FIFO of each queue holds.
    pub fifo: usize,
    /// The packet buffer that the queues share instead.
    pub packet_buffer: Option<BufferConfig>,
    /// Whether segments of TCP that come together are merged for a host that takes super-frames.
    pub lro: bool,
    /// Whether frames are steered by their hash, with the usual key and table, until a driver says otherwise.
    pub rss: bool,
    /// Entries of the longest indirection table that a driver may use, a power of two up to
    /// [`MAX_TABLE`](crate::rss::MAX_TABLE).
    pub rss_table: u16,
    /// The rates of both directions, where they are limited below the line's.
    pub rates: Rates,
    /// How transmit queues share the line.
    pub tx_weights: Weights,
    /// When receive queues interrupt, until the driver says otherwise.
    pub rx_coalesce: Mode,
    /// When transmit queues interrupt, until the driver says otherwise.
    pub tx_coalesce: Mode,
    /// How far the model may run ahead of `now`: zero for exact time; with a real clock, about what a
    /// sleep is late, so that the line does not idle while its owner sleeps.
    pub lead: Duration,
}

impl Default for PortConfig {
    fn default() -> Self {
        PortConfig {
            queue_pairs: 1,
            mac: MacAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]),
            mtu: 1500,
            speed: Speed::from_mbps(10_000).expect("10G is a rate"),
            link: true,
            autoneg: false,
            pfc: None,
            partner: LinkPartner::default(),
            fifo: 256 * 1024,
            packet_buffer: None,
            lro: false,
            rss: false,
            rss_table: DEFAULT_TABLE as u16,
            rates: Rates::default(),
            tx_weights: Weights::default(),
            rx_coalesce: Mode::default(),
            tx_coalesce: Mode::default(),
            lead: Duration::ZERO,
        }
    }
}

impl PortConfig {
    /// Octets that any one queue has room for, however the queues divide them among themselves.
    #[must_use]
    pub fn queue_room(&self) -> usize {
        self.packet_buffer.map_or(self.fifo, |config| {
            let buffer = PacketBuffer::new(config, self.queue_pairs.max(1).into());
            config.guarantee as usize + buffer.sure_room(0)
        })
    }

    /// Octets that are in any one queue's FIFO at most.
    #[must_use]
    pub fn fifo_depth(&self) -> usize {
        self.packet_buffer
            .map_or(self.fifo, |buffer| buffer.size as usize)
    }
}
