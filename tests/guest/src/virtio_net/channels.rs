//! Queue pairs in use (`ethtool -l`, `-L`; virtio 1.3, 5.1.6.5, "Multiqueue").
//!
//! In: how many. Out: VQ_PAIRS_SET, or RSS_CONFIG where RSS steers, and receive buffers for queues that come
//! into use. Pairs that go out of use stay set up: what is in their rings drains.

use super::VirtnetInfo;
use super::ctrl::{self, CtrlError};
use crate::net::{Kernel, Machine};
use crate::transport::Transport;

impl<T: Transport> VirtnetInfo<T> {
    /// Uses `pairs` queue pairs (`virtnet_set_queues`); they must have been set up. With RSS the table
    /// is spread over them and the number of pairs goes with it, unless the table is the administrator's:
    /// then, as in Linux, the device hears the number alone.
    ///
    /// # Errors
    /// As [`Self::send_command`]; then the old number stays.
    pub fn set_queues(&mut self, pairs: u16) -> Result<(), CtrlError> {
        if !self.commit_rss_for(pairs)? {
            let command = ctrl::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
            self.send_command(ctrl::VIRTIO_NET_CTRL_MQ, command, &pairs.to_le_bytes())?;
        }
        self.curr_queue_pairs = pairs.min(self.rq.len() as u16);
        self.refill();
        Ok(())
    }

    /// Gives the receive rings in use all the buffers there are (`refill_work`).
    pub(super) fn refill(&mut self) {
        for pair in 0..usize::from(self.curr_queue_pairs) {
            self.refill_pair(pair);
        }
    }

    /// The same for one ring.
    pub(super) fn refill_pair(&mut self, pair: usize) {
        let rq = &mut self.rq[pair];
        if rq.try_fill_recv() > 0 {
            rq.kick(&self.transport);
        }
    }

    /// Changes the number of queue pairs in use (`ethtool -L DEV combined PAIRS`,
    /// `virtnet_set_channels`), also while traffic runs.
    ///
    /// # Errors
    /// [`CtrlError::Invalid`] for none, for more than were set up, or for fewer than the administrator's
    /// indirection table leads to; else as [`Self::send_command`]. The old number stays then.
    pub fn set_channels(&mut self, pairs: u16) -> Result<(), CtrlError> {
        if pairs == 0 || usize::from(pairs) > self.rq.len() {
            return Err(CtrlError::Invalid("number of queue pairs"));
        }
        if !self.rxfh_fits(pairs) {
            return Err(CtrlError::Invalid("queue pair in the indirection table"));
        }
        self.set_queues(pairs)
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Changes the number of queue pairs in use, and deals those out to the CPUs anew. Packets that wait
    /// for the ring of a queue that goes out of use are dropped.
    ///
    /// # Errors
    /// As [`VirtnetInfo::set_channels`]; then all stays as it is.
    pub fn set_channels(&mut self, pairs: u16) -> Result<(), CtrlError> {
        self.dev.set_channels(pairs)?;
        self.virtnet_set_affinity();
        self.qdisc_reset_all_tx_gt(usize::from(pairs));
        Ok(())
    }
}
