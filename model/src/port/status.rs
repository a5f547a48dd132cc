//! A port's state, as users see it.

use serde::Serialize;

use super::Port;
use crate::counters::{PortCounters, QueueCounters};
use crate::fifo::Occupancy;
use crate::filter::MacAddress;
use crate::packet_buffer::{BufferStatus, PacketBuffer};
use crate::pfc::PfcStatus;
use crate::phy::PhyStatus;
use crate::rate::Rates;
use crate::rss::RssStatus;

/// What a port has done and where it stands, at one instant.
#[derive(Clone, Debug, Serialize)]
pub struct PortStatus {
    /// Whether there is a link.
    pub link: bool,
    /// The line rate in megabits a second.
    pub speed_mbps: u32,
    /// The physical layer.
    pub phy: PhyStatus,
    /// Whether the host is asked to announce itself, and has yet to say that it does.
    pub announce: bool,
    /// The station's address.
    pub mac: String,
    /// Whether the address filter is in use.
    pub filter_active: bool,
    /// Whether all frames are admitted.
    pub promiscuous: bool,
    /// Whether all multicast frames are admitted.
    pub all_multicast: bool,
    /// Whether all unicast frames are admitted.
    pub all_unicast: bool,
    /// Whether multicast frames are refused.
    pub no_multicast: bool,
    /// Whether unicast frames are refused.
    pub no_unicast: bool,
    /// Whether broadcast frames are refused.
    pub no_broadcast: bool,
    /// Entries of the unicast table.
    pub unicast_table: Vec<String>,
    /// Entries of the multicast table.
    pub multicast_table: Vec<String>,
    /// How received frames are steered.
    pub rss: RssStatus,
    /// Whether the VLAN filter is in use.
    pub vlan_filter_active: bool,
    /// VLANs that are admitted then.
    pub vlan_table: Vec<String>,
    /// The packet buffer, if the receive queues share one.
    pub packet_buffer: Option<BufferStatus>,
    /// Flow control of single priorities, if that may be wanted.
    pub priorities: Option<PfcStatus>,
    /// The rates of both directions, where they are limited below the line's.
    pub rates: Rates,
    /// How many parts of the line each transmit queue gets, if all have enough to send.
    pub tx_weights: Vec<u8>,
    /// Frames that wait in the receive FIFOs.
    pub rx_fifo_frames: usize,
    /// Frames that the queues have passed on and the port has yet to take: none with one worker.
    pub tx_queued_frames: usize,
    /// All counts.
    #[serde(flatten)]
    pub counters: PortCounters,
}

impl Port {
    /// The port's state and counts, with those of all its queues: `queues`.
    #[must_use]
    pub fn status(&self, queues: &[QueueCounters]) -> PortStatus {
        let taken: u64 = self.fifos.iter().map(Occupancy::taken).sum();
        let drained: u64 = queues.iter().map(|queue| queue.rx_drained).sum();
        let passed: u64 = queues.iter().map(|queue| queue.tx_passed).sum();
        let (unicast, multicast) = self.filter.tables();
        PortStatus {
            link: self.phy.link(),
            speed_mbps: self.phy.speed().mbps(),
            phy: self.phy.status(),
            announce: self.announce,
            mac: self.filter.address().to_string(),
            filter_active: self.filter.active,
            promiscuous: self.filter.promiscuous,
            all_multicast: self.filter.all_multicast,
            all_unicast: self.filter.all_unicast,
            no_multicast: self.filter.no_multicast,
            no_unicast: self.filter.no_unicast,
            no_broadcast: self.filter.no_broadcast,
            unicast_table: unicast.iter().map(MacAddress::to_string).collect(),
            multicast_table: multicast.iter().map(MacAddress::to_string).collect(),
            rss: self.rss.status(),
            packet_buffer: self.buffer.as_ref().map(PacketBuffer::status),
            priorities: self.pfc.as_ref().map(|pfc| pfc.status()),
            rates: self.rates,
            tx_weights: (0..self.fifos.len())
                .map(|queue| self.tx_weights.of(queue))
                .collect(),
            rx_fifo_frames: taken.saturating_sub(drained) as usize,
            tx_queued_frames: passed.saturating_sub(self.tx_taken) as usize,
            vlan_filter_active: self.vlan.active,
            vlan_table: self.vlan.members().map(|id| id.to_string()).collect(),
            counters: self.counters(queues),
        }
    }
}
