//! Rings of another size, one queue at a time (`ethtool -g`, `-G`; virtio 1.3, 2.6.1, RING_RESET).
//!
//! In: entries of the receive and the transmit rings. Out: each queue stopped, and set up again with a new
//! ring. Received frames that nobody took from the old one are lost, and so are those that were not sent yet,
//! which a kernel counts. Counters go on; interrupt moderation the device is told again.

use super::coalesce::IntrCoal;
use super::ctrl::CtrlError;
use super::rx::ReceiveQueue;
use super::tx::{LayoutError, SendQueue};
use super::{VirtnetInfo, features as f, queue_config};
use crate::memory::MemoryError;
use crate::net::stats::TxDrop;
use crate::net::{Kernel, Machine};
use crate::transport::{Transport, TransportError};

/// Why a ring has not the size that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The device cannot reset single queues; nothing was changed.
    #[error("RING_RESET was not negotiated")]
    NotNegotiated,
    /// No ring has that size; nothing was changed.
    #[error("a ring of {0} entries (up to 32768 are possible, of a split ring powers of two)")]
    Size(u16),
    /// Frames do not fit into so short a ring; it is as it was.
    #[error("{0}")]
    Layout(#[from] LayoutError),
    /// No guest memory for the new ring; the queue is as it was.
    #[error("{0}")]
    Memory(#[from] MemoryError),
    /// The device did not stop the queue, which is as it was; or would not have it back, which is dead then
    /// until it is resized once more.
    #[error("{0}")]
    Transport(#[from] TransportError),
    /// The queue has its new size, but the device refused its moderation.
    #[error("interrupt moderation: {0}")]
    Control(#[from] CtrlError),
}

impl<T: Transport> VirtnetInfo<T> {
    /// Entries of receive and of transmit rings.
    #[must_use]
    pub fn ringparam(&self) -> (u16, u16) {
        (self.rq[0].vq.size(), self.sq[0].vq.size())
    }

    /// Gives all receive rings `rx` entries and all transmit rings `tx` (`virtnet_set_ringparam`). Rings that
    /// have that size already are left alone.
    ///
    /// # Errors
    /// Queues before the one that failed have their new size.
    pub fn set_ringparam(&mut self, rx: u16, tx: u16) -> Result<(), ResizeError> {
        self.check_ringparam(rx, tx)?;
        for pair in 0..self.rq.len() {
            if let Some(new) = self.tx_stop(pair, tx)? {
                // What was sent counts; a broken ring has nothing more to say.
                let _ = self.sq[pair].free_old_xmit();
                self.tx_start(pair, new)?;
            }
            self.rx_resize(pair, rx)?;
        }
        Ok(())
    }

    fn check_ringparam(&self, rx: u16, tx: u16) -> Result<(), ResizeError> {
        if self.features & f::RING_RESET == 0 {
            return Err(ResizeError::NotNegotiated);
        }
        let bad = |&size: &u16| !self.ring.size_is_possible(size);
        [rx, tx]
            .into_iter()
            .find(bad)
            .map_or(Ok(()), |size| Err(ResizeError::Size(size)))
    }

    /// A new receive ring (`virtnet_rx_resize`); whether it was another.
    fn rx_resize(&mut self, pair: usize, size: u16) -> Result<bool, ResizeError> {
        let old = &self.rq[pair];
        if old.vq.size() == size {
            return Ok(false);
        }
        let (index, buf_len) = (old.index(), Some(old.buf_len()));
        let memory = self.transport.memory().clone();
        let (features, mtu) = (self.features, self.mtu());
        let mut new = ReceiveQueue::new(&memory, index, size, features, self.ring, mtu, buf_len)?;
        if let Err(error) = self.transport.stop_queue(index) {
            new.release();
            return Err(error.into());
        }
        new.succeed(&self.rq[pair]);
        std::mem::replace(&mut self.rq[pair], new).release();
        let config = queue_config(index, &self.rq[pair].vq);
        self.transport.setup_queue(&config)?;
        if pair < usize::from(self.curr_queue_pairs) {
            self.refill_pair(pair);
        }
        self.restore_coal(index, self.coalesce.rx)?;
        Ok(true)
    }

    /// Stops a transmit queue that is to have another size; the one that takes its place.
    fn tx_stop(&mut self, pair: usize, size: u16) -> Result<Option<SendQueue>, ResizeError> {
        let old = &self.sq[pair];
        if old.vq.size() == size {
            return Ok(None);
        }
        let (index, buf_len) = (old.index(), Some(old.buf_len()));
        let memory = self.transport.memory().clone();
        let (features, mtu) = (self.features, self.mtu());
        let mut new = SendQueue::new(&memory, index, size, features, self.ring, mtu, buf_len)?;
        let layout = new.set_layout(old.layout().clone());
        let stopped = layout
            .map_err(ResizeError::from)
            .and_then(|()| Ok(self.transport.stop_queue(index)?));
        if let Err(error) = stopped {
            new.release();
            return Err(error);
        }
        Ok(Some(new))
    }

    /// A stopped transmit queue begins anew.
    fn tx_start(&mut self, pair: usize, mut new: SendQueue) -> Result<(), ResizeError> {
        new.succeed(&self.sq[pair]);
        let index = new.index();
        std::mem::replace(&mut self.sq[pair], new).release();
        let config = queue_config(index, &self.sq[pair].vq);
        self.transport.setup_queue(&config)?;
        Ok(self.restore_coal(index, self.coalesce.tx)?)
    }

    /// A queue that was reset moderates as all of its kind were told, and no longer as it alone was: the
    /// driver tells it, so that both have the same idea.
    fn restore_coal(&mut self, vqn: u16, coal: IntrCoal) -> Result<(), CtrlError> {
        if self.features & f::VQ_NOTF_COAL == 0 {
            return Ok(());
        }
        self.send_ctrl_coal_vq_cmd(vqn, coal)
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Gives all rings other sizes, also while traffic runs. Packets in the transmit rings are dropped;
    /// those that wait for room are sent.
    ///
    /// # Errors
    /// As [`VirtnetInfo::set_ringparam`].
    pub fn set_ringparam(&mut self, rx: u16, tx: u16) -> Result<(), ResizeError> {
        self.dev.check_ringparam(rx, tx)?;
        for pair in 0..self.dev.rq.len() {
            if let Some(new) = self.dev.tx_stop(pair, tx)? {
                self.free_old_xmit(pair);
                self.free_unused_bufs(pair, tx);
                let started = self.dev.tx_start(pair, new);
                self.netif_tx_wake_queue(pair);
                self.local_bh_enable();
                self.virtnet_napi_enable(2 * pair + 1);
                started?;
            }
            if self.dev.rx_resize(pair, rx)? {
                self.virtnet_napi_enable(2 * pair);
            }
        }
        Ok(())
    }

    /// The skbs that are left in a stopped ring end here; there will be room for those of the next.
    fn free_unused_bufs(&mut self, pair: usize, size: u16) {
        let mut in_flight = std::mem::take(&mut self.txq[pair].in_flight);
        for skb in in_flight.drain(..).flatten() {
            self.drop_tx(skb, TxDrop::RingReset);
        }
        in_flight.resize_with(usize::from(size), || None);
        self.txq[pair].in_flight = in_flight;
        self.netdev_tx_reset_queue(pair);
    }
}
