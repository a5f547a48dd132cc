//! How a port steers: what the driver says of it, and what the FIFOs do.

use super::Port;
use crate::fifo::Occupancy;
use crate::host::QueueIndex;
use crate::rss::{HashConfig, HashTypes, Progress, Rss, RssConfig, RssError};

impl Port {
    /// How frames are steered.
    #[must_use]
    pub fn rss(&self) -> &Rss {
        &self.rss
    }

    /// Spreads received frames over the first `pairs` queue pairs: automatically, or by hash if the card does so always
    /// (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`).
    ///
    /// # Errors
    /// There are not as many.
    pub fn use_pairs(&mut self, pairs: u16) -> Result<(), RssError> {
        let fifos = Fifos(&self.fifos);
        if !self.always_rss {
            return self.rss.set_pairs(pairs, &fifos);
        }
        if pairs == 0 || pairs > self.queue_pairs() {
            return Err(RssError::Pairs(pairs));
        }
        // A driver that has said what to hash is not overruled.
        let said = self.rss.hash_config();
        let hash = if said.types() == HashTypes::NONE {
            HashConfig::usual()
        } else {
            said.clone()
        };
        self.rss.set_table(&RssConfig::even(hash, pairs), &fifos)?;
        self.rss.expect_pairs(pairs);
        Ok(())
    }

    /// Spreads received frames as `config` says; the driver uses `pairs` pairs (`VIRTIO_NET_CTRL_MQ_RSS_CONFIG`).
    ///
    /// # Errors
    /// It names a queue that there is not, or its table is too long.
    pub fn set_rss(&mut self, config: &RssConfig, pairs: u16) -> Result<(), RssError> {
        if config.table_len() > usize::from(self.rss_table) {
            return Err(RssError::TableLength(config.table_len()));
        }
        self.rss.set_table(config, &Fifos(&self.fifos))?;
        self.rss.expect_pairs(pairs);
        Ok(())
    }

    /// Entries of the longest indirection table that a driver may use.
    #[must_use]
    pub fn rss_table(&self) -> u16 {
        self.rss_table
    }

    /// Hashes received frames as `config` says, for the driver to know (`VIRTIO_NET_CTRL_MQ_HASH_CONFIG`).
    pub fn set_hash(&mut self, config: &HashConfig) {
        self.rss.set_hash(config, &Fifos(&self.fifos));
    }

    /// Says whether frames that go to `queue` reach the host.
    pub fn set_receiving(&mut self, queue: QueueIndex, receiving: bool) {
        let fifos = Fifos(&self.fifos);
        self.rss.set_receiving(queue, receiving, &fifos);
    }
}

/// How far the FIFOs have got.
pub(super) struct Fifos<'a>(pub(super) &'a [Occupancy]);

impl Progress for Fifos<'_> {
    #[inline]
    fn pushed(&self, queue: QueueIndex) -> u64 {
        self.0[usize::from(queue.0)].pushed()
    }

    #[inline]
    fn drained(&self, queue: QueueIndex) -> u64 {
        self.0[usize::from(queue.0)].drained()
    }
}
