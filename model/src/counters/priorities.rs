//! What flow control of single priorities counts ([`pfc`](crate::pfc)).

use serde::{Serialize, Serializer};

use crate::pfc::{PRIORITIES, Request};

/// Counts of priority-based flow control.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PfcCounters {
    /// Frames that came, also of priorities that are not controlled (indications: IEEE 802.1Q, 12.23).
    pub rx_frames: u64,
    /// Frames sent (requests). They are no frames of the host's.
    pub tx_frames: u64,
    /// What they said, by priority.
    #[serde(flatten, serialize_with = "by_priority")]
    pub priorities: [PriorityCounters; PRIORITIES],
}

/// Counts of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PriorityCounters {
    /// Frames that stop it, if it is controlled.
    pub rx_xoff: u64,
    /// Frames that let it go on, if it is.
    pub rx_xon: u64,
    /// Frames sent that stop it at the partner's.
    pub tx_xoff: u64,
    /// Frames sent that let it go on.
    pub tx_xon: u64,
}

impl PriorityCounters {
    fn count_received(&mut self, quanta: u16) {
        match quanta {
            0 => self.rx_xon += 1,
            _ => self.rx_xoff += 1,
        }
    }

    fn count_sent(&mut self, quanta: u16) {
        match quanta {
            0 => self.tx_xon += 1,
            _ => self.tx_xoff += 1,
        }
    }
}

impl PfcCounters {
    /// Frames that came and spoke of `priority`.
    pub(crate) fn received(&self, priority: usize) -> u64 {
        let counters = &self.priorities[priority];
        counters.rx_xoff + counters.rx_xon
    }

    /// Frames sent that spoke of `priority`.
    pub(crate) fn sent(&self, priority: usize) -> u64 {
        let counters = &self.priorities[priority];
        counters.tx_xoff + counters.tx_xon
    }

    /// Counts a frame that came and says `request`.
    pub(crate) fn count_received(&mut self, request: &Request) {
        self.rx_frames += 1;
        for priority in request.priorities.iter() {
            self.priorities[priority].count_received(request.quanta[priority]);
        }
    }

    /// Counts a frame sent that says `request`.
    pub(crate) fn count_sent(&mut self, request: &Request) {
        self.tx_frames += 1;
        for priority in request.priorities.iter() {
            self.priorities[priority].count_sent(request.quanta[priority]);
        }
    }
}

fn by_priority<S: Serializer>(
    priorities: &[PriorityCounters; PRIORITIES],
    out: S,
) -> Result<S::Ok, S::Error> {
    let named = priorities.iter().enumerate();
    out.collect_map(named.map(|(priority, counters)| (format!("prio{priority}"), counters)))
}
