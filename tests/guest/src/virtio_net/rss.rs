//! Receive-side scaling and hash reports (virtio 1.3, 5.1.6.5, "Receive-side scaling"
//! and "Hash calculation").
//!
//! In: what the device supports, and what an administrator wants (`ethtool -X`, `-N rx-flow-hash`, `-L`).
//! Out: RSS_CONFIG commands, or HASH_CONFIG where hashes are reported and do not steer. What the device
//! refuses is not kept: the state here is what it last accepted.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::config::VirtioNetConfig;
use super::ctrl::{self, CtrlError};
use super::features as f;
use super::hash_input::{
    HashInput, VIRTIO_NET_HASH_REPORT_NONE, VIRTIO_NET_RSS_HASH_TYPE_IP_EX,
    VIRTIO_NET_RSS_HASH_TYPE_TCP_EX, VIRTIO_NET_RSS_HASH_TYPE_UDP_EX,
};
use super::rxfh_fields::FlowHash;
use super::{VirtnetInfo, rxfh_fields};
use crate::transport::Transport;

/// Bytes of the longest Toeplitz key.
pub const VIRTIO_NET_RSS_MAX_KEY_SIZE: usize = 40;
/// Entries of the longest table that this driver sends.
const MAX_TABLE: u16 = 4096;
/// Types that need more than the headers on the wire say; Linux does not use them.
const EX: u32 = VIRTIO_NET_RSS_HASH_TYPE_IP_EX
    | VIRTIO_NET_RSS_HASH_TYPE_TCP_EX
    | VIRTIO_NET_RSS_HASH_TYPE_UDP_EX;

/// RSS as the driver asks for it (`struct virtio_net_rss_config`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RssConfig {
    /// `VIRTIO_NET_RSS_HASH_TYPE_*`.
    pub hash_types: u32,
    /// Queue pair of frames that are not hashed.
    pub unclassified_queue: u16,
    /// Queue pair for each value of the hash; its length should be a power of two.
    pub indirection_table: Vec<u16>,
    /// Transmit queues in use.
    pub max_tx_vq: u16,
    /// Toeplitz key.
    pub key: Vec<u8>,
}

/// What a device is to make of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steered {
    /// Queue pair that it goes to.
    pub pair: u16,
    /// Its hash; 0 where it has none.
    pub hash_value: u32,
    /// `VIRTIO_NET_HASH_REPORT_*`.
    pub hash_report: u16,
}

impl RssConfig {
    /// The data of RSS_CONFIG, however wrong the values.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mask = (self.indirection_table.len() as u16).wrapping_sub(1);
        let mut bytes = self.hash_types.to_le_bytes().to_vec();
        bytes.extend(mask.to_le_bytes());
        bytes.extend(self.unclassified_queue.to_le_bytes());
        bytes.extend(
            self.indirection_table
                .iter()
                .flat_map(|queue| queue.to_le_bytes()),
        );
        bytes.extend(self.max_tx_vq.to_le_bytes());
        bytes.push(self.key.len() as u8);
        bytes.extend(&self.key);
        bytes
    }

    /// The data of HASH_CONFIG: types and key alone (`struct virtio_net_hash_config`).
    #[must_use]
    pub fn to_hash_config_bytes(&self) -> Vec<u8> {
        let mut bytes = self.hash_types.to_le_bytes().to_vec();
        bytes.extend([0; 8]); // reserved
        bytes.push(self.key.len() as u8);
        bytes.extend(&self.key);
        bytes
    }

    /// What a device that was told this does with `frame`.
    #[must_use]
    pub fn steer(&self, frame: &[u8]) -> Steered {
        let Some(input) = HashInput::of(frame, self.hash_types) else {
            return Steered {
                pair: self.unclassified_queue,
                hash_value: 0,
                hash_report: VIRTIO_NET_HASH_REPORT_NONE,
            };
        };
        let hash_value = input.hash(&self.key);
        let at = hash_value as usize & self.indirection_table.len().wrapping_sub(1);
        let entry = self.indirection_table.get(at);
        Steered {
            pair: entry.copied().unwrap_or(self.unclassified_queue),
            hash_value,
            hash_report: input.report,
        }
    }

    /// Spreads hashes and senders over `pairs` queue pairs (`virtnet_rss_update_by_qpairs`).
    fn update_by_qpairs(&mut self, pairs: u16) {
        for (queue, at) in self.indirection_table.iter_mut().zip(0..) {
            *queue = at % pairs.max(1);
        }
        self.max_tx_vq = pairs;
    }
}

/// What the driver has of RSS and hash reports.
#[derive(Debug, Clone, Default)]
pub struct Rss {
    pub(super) config: RssConfig,
    pub(super) has_rss: bool,
    pub(super) has_hash_report: bool,
    pub(super) hash_types_supported: u32,
    /// What flows are to be hashed by; in force while `rxhash` is on.
    pub(super) hash_types_saved: u32,
    pub(super) rxhash: bool,
    /// Whether the table was given (`netif_is_rxfh_configured`).
    rxfh_configured: bool,
}

impl Rss {
    /// What the device offers, spread over `pairs` queue pairs (`virtnet_init_default_rss`).
    pub(super) fn new(
        features: u64,
        config: &VirtioNetConfig,
        pairs: u16,
        key: Option<[u8; VIRTIO_NET_RSS_MAX_KEY_SIZE]>,
    ) -> Self {
        let has_rss = features & f::RSS != 0;
        let has_hash_report = features & f::HASH_REPORT != 0;
        if !has_rss && !has_hash_report {
            return Self::default();
        }
        let hash_types = config.supported_hash_types.unwrap_or(0) & !EX;
        let key_len = usize::from(config.rss_max_key_size.unwrap_or(0));
        let mut key = key.unwrap_or_else(random_key).to_vec();
        key.truncate(key_len);
        let table = config.rss_max_indirection_table_length.unwrap_or(0);
        let mut rss = RssConfig {
            hash_types,
            indirection_table: vec![0; table_len(table)],
            key,
            ..RssConfig::default()
        };
        if has_rss {
            rss.update_by_qpairs(pairs);
        }
        Self {
            config: rss,
            has_rss,
            has_hash_report,
            hash_types_supported: hash_types,
            hash_types_saved: hash_types,
            rxhash: true,
            rxfh_configured: false,
        }
    }

    /// What the device was told last.
    #[must_use]
    pub fn config(&self) -> &RssConfig {
        &self.config
    }

    /// Whether hashes steer frames to queues: negotiated, and accepted by the device.
    #[must_use]
    pub fn has_rss(&self) -> bool {
        self.has_rss
    }

    /// Whether the device reports hashes: negotiated, and accepted by the device.
    #[must_use]
    pub fn has_hash_report(&self) -> bool {
        self.has_hash_report
    }

    /// Whether reported hashes are of use: accepted by the device, and switched on.
    #[inline]
    pub(super) fn reports(&self) -> bool {
        self.has_hash_report && self.rxhash
    }

    /// `VIRTIO_NET_RSS_HASH_TYPE_*` that flows can be hashed by.
    #[must_use]
    pub fn hash_types_supported(&self) -> u32 {
        self.hash_types_supported
    }

    /// What the packets of a kind of flow are hashed by (`ethtool -n DEV rx-flow-hash`).
    #[must_use]
    pub fn flow_hash(&self, flow: rxfh_fields::FlowType) -> FlowHash {
        flow.get(self.hash_types_saved)
    }
}

/// Entries of the table: the longest power of two that the device takes.
fn table_len(max: u16) -> usize {
    match max.min(MAX_TABLE) {
        0 => 0,
        max => 1 << max.ilog2(),
    }
}

/// A key that nobody knows (`netdev_rss_key_fill`).
fn random_key() -> [u8; VIRTIO_NET_RSS_MAX_KEY_SIZE] {
    let mut key = [0; VIRTIO_NET_RSS_MAX_KEY_SIZE];
    for piece in key.chunks_mut(8) {
        let random = RandomState::new().build_hasher().finish().to_ne_bytes();
        piece.copy_from_slice(&random[..piece.len()]);
    }
    key
}

impl<T: Transport> VirtnetInfo<T> {
    /// What the driver has of RSS and hash reports.
    #[must_use]
    pub fn rss(&self) -> &Rss {
        &self.rss
    }

    /// Sends RSS_CONFIG as it is given, without a look at it; the driver's own state stays.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_rss(&mut self, rss: &RssConfig) -> Result<(), CtrlError> {
        let command = ctrl::VIRTIO_NET_CTRL_MQ_RSS_CONFIG;
        self.send_command(ctrl::VIRTIO_NET_CTRL_MQ, command, &rss.to_bytes())
    }

    /// Sends HASH_CONFIG as it is given, without a look at it; the driver's own state stays.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_hash_config(&mut self, rss: &RssConfig) -> Result<(), CtrlError> {
        let command = ctrl::VIRTIO_NET_CTRL_MQ_HASH_CONFIG;
        let data = rss.to_hash_config_bytes();
        self.send_command(ctrl::VIRTIO_NET_CTRL_MQ, command, &data)
    }

    /// Tells the device, and keeps what it accepts (`virtnet_commit_rss_command`).
    pub(super) fn commit_rss_command(&mut self, rss: RssConfig) -> Result<(), CtrlError> {
        if self.rss.has_rss {
            self.set_rss(&rss)?;
        } else {
            self.set_hash_config(&rss)?;
        }
        self.rss.config = rss;
        Ok(())
    }

    /// Tells a new device how to hash. One that refuses is used without, as Linux does.
    pub(super) fn commit_default_rss(&mut self) -> Result<(), CtrlError> {
        if !self.rss.has_rss && !self.rss.has_hash_report {
            return Ok(());
        }
        match self.commit_rss_command(self.rss.config.clone()) {
            Err(CtrlError::Refused(_) | CtrlError::NoQueue) => {
                log::warn!("RSS disabled because committing failed");
                self.rss = Rss::default();
                Ok(())
            }
            other => other,
        }
    }

    /// Spreads what arrives over `pairs` queue pairs where that is RSS's affair: it was negotiated, and the
    /// table is not the administrator's. Whether it was.
    pub(super) fn commit_rss_for(&mut self, pairs: u16) -> Result<bool, CtrlError> {
        if !self.rss.has_rss || self.rss.rxfh_configured {
            return Ok(false);
        }
        let mut rss = self.rss.config.clone();
        rss.update_by_qpairs(pairs);
        self.commit_rss_command(rss)?;
        Ok(true)
    }

    /// Whether the administrator's table leads to no queue pair beyond `pairs`.
    pub(super) fn rxfh_fits(&self, pairs: u16) -> bool {
        let table = &self.rss.config.indirection_table;
        !self.rss.rxfh_configured || table.iter().all(|&queue| queue < pairs)
    }

    /// Sets the indirection table, the key, or both (`ethtool -X`, `virtnet_set_rxfh`). The table stays as
    /// it is when the number of queue pairs changes, until [`Self::reset_rxfh_indir`].
    ///
    /// # Errors
    /// [`CtrlError::NotNegotiated`] for a table without RSS or a key without any hash;
    /// [`CtrlError::Invalid`] for another length than the device's, or a queue pair that is not in use;
    /// else as [`Self::send_command`].
    pub fn set_rxfh(&mut self, indir: Option<&[u16]>, key: Option<&[u8]>) -> Result<(), CtrlError> {
        let mut rss = self.rss.config.clone();
        if let Some(indir) = indir {
            if !self.rss.has_rss {
                return Err(CtrlError::NotNegotiated("RSS"));
            }
            if indir.len() != rss.indirection_table.len() {
                return Err(CtrlError::Invalid("length of the indirection table"));
            }
            if indir.iter().any(|&queue| queue >= self.curr_queue_pairs) {
                return Err(CtrlError::Invalid("queue pair in the indirection table"));
            }
            rss.indirection_table = indir.to_vec();
        }
        if let Some(key) = key {
            if !self.rss.has_rss && !self.rss.has_hash_report {
                return Err(CtrlError::NotNegotiated("RSS or HASH_REPORT"));
            }
            if key.len() != rss.key.len() {
                return Err(CtrlError::Invalid("length of the key"));
            }
            rss.key = key.to_vec();
        }
        if indir.is_some() || key.is_some() {
            self.commit_rss_command(rss)?;
            self.rss.rxfh_configured |= indir.is_some();
        }
        Ok(())
    }

    /// Spreads hashes over all queue pairs in use again (`ethtool -X DEV default`).
    ///
    /// # Errors
    /// [`CtrlError::NotNegotiated`] without RSS, else as [`Self::send_command`].
    pub fn reset_rxfh_indir(&mut self) -> Result<(), CtrlError> {
        if !self.rss.has_rss {
            return Err(CtrlError::NotNegotiated("RSS"));
        }
        let mut rss = self.rss.config.clone();
        rss.update_by_qpairs(self.curr_queue_pairs);
        self.commit_rss_command(rss)?;
        self.rss.rxfh_configured = false;
        Ok(())
    }

    /// Switches hashing on or off (`ethtool -K DEV rxhash`). Unlike in Linux it is on at first.
    ///
    /// # Errors
    /// [`CtrlError::NotNegotiated`] without RSS and HASH_REPORT, else as [`Self::send_command`].
    pub fn set_rxhash(&mut self, on: bool) -> Result<(), CtrlError> {
        if !self.rss.has_rss && !self.rss.has_hash_report {
            return Err(CtrlError::NotNegotiated("RSS or HASH_REPORT"));
        }
        let hash_types = if on { self.rss.hash_types_saved } else { 0 };
        self.commit_rss_command(RssConfig {
            hash_types,
            ..self.rss.config.clone()
        })?;
        self.rss.rxhash = on;
        Ok(())
    }

    /// Sets what the packets of a kind of flow are hashed by (`ethtool -N DEV rx-flow-hash`,
    /// `virtnet_set_hashflow`); while hashing is off it is only remembered.
    ///
    /// # Errors
    /// [`CtrlError::Invalid`] when the device cannot hash so, else as [`Self::send_command`].
    pub fn set_flow_hash(
        &mut self,
        flow: rxfh_fields::FlowType,
        hash: FlowHash,
    ) -> Result<(), CtrlError> {
        let hash_types = flow.set(self.rss.hash_types_saved, hash);
        if hash_types & !self.rss.hash_types_supported != 0 {
            return Err(CtrlError::Invalid("hash type"));
        }
        if self.rss.rxhash && hash_types != self.rss.hash_types_saved {
            self.commit_rss_command(RssConfig {
                hash_types,
                ..self.rss.config.clone()
            })?;
        }
        self.rss.hash_types_saved = hash_types;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_powers_of_two() {
        for (max, len) in [(0, 0), (128, 128), (129, 128), (255, 128), (u16::MAX, 4096)] {
            assert_eq!(table_len(max), len);
        }
    }

    #[test]
    fn keys_are_random() {
        assert_ne!(random_key(), random_key());
        assert_ne!(random_key()[32..], [0; 8]);
    }

    #[test]
    fn what_is_not_hashed_has_a_queue_of_its_own() {
        let rss = RssConfig {
            hash_types: 1,
            unclassified_queue: 3,
            indirection_table: vec![5, 6],
            ..RssConfig::default()
        };
        let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
        let steered = Steered {
            pair: 3,
            hash_value: 0,
            hash_report: 0,
        };
        assert_eq!(rss.steer(&arp), steered);
        let mut ip = [&[2; 12][..], &[8, 0, 0x45, 0, 0, 20], &[0; 16]].concat();
        ip[33] = 1;
        // The last bit of the addresses, the 63rd, takes the key's bits 63 to 94: the hash's last is 94.
        for (last, pair) in [(0, 5), (1, 6)] {
            let mut key = vec![0; 40];
            key[11] = last << 1;
            let steered = RssConfig { key, ..rss.clone() }.steer(&ip);
            assert_eq!((steered.pair, steered.hash_report), (pair, 1), "{last}");
        }
    }
}
