//! Which queue received frames go to (VIRTIO 1.4, 5.1.6.5.5 to 5.1.6.5.8). The last command counts.

use nic_model::host::QueueIndex;
use nic_model::rss::{HashConfig, RssConfig, RssError};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ_HASH_CONFIG, VIRTIO_NET_CTRL_MQ_RSS_CONFIG, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
};

use super::{Context, Refusal, Reply};
use crate::features::Features;

/// Octets that nobody uses in `struct virtio_net_hash_config`.
const HASH_CONFIG_RESERVED: usize = 8;

pub(super) fn execute(
    context: &mut Context<'_>,
    command: u32,
    data: &[u8],
) -> Result<Reply, Refusal> {
    match command {
        VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET => {
            context.negotiated(Features::MQ)?;
            let pairs = u16::from_le_bytes(data.try_into().map_err(|_| Refusal::Malformed)?);
            context.port.use_pairs(pairs)?;
            // What is in the FIFOs of the others must not reach the driver any more.
            for queue in (pairs..context.port.queue_pairs()).map(QueueIndex) {
                let mut stale = context.pairs.abandon(queue);
                context.port.release(queue, stale.drain(..));
                context.port.abandon(queue, &mut Vec::new());
            }
        }
        VIRTIO_NET_CTRL_MQ_RSS_CONFIG => {
            context.negotiated(Features::RSS)?;
            let (config, pairs) = rss_config(data, context.port.queue_pairs())?;
            context.port.set_rss(&config, pairs)?;
        }
        VIRTIO_NET_CTRL_MQ_HASH_CONFIG => {
            context.negotiated(Features::HASH_REPORT)?;
            let mut data = Data(data);
            let types = data.le32()?;
            data.take(HASH_CONFIG_RESERVED)?;
            let config = HashConfig::new(types, data.key()?)?;
            context.port.set_hash(&config);
        }
        _ => return Err(Refusal::Unknown),
    }
    Ok(Reply::new())
}

/// `struct virtio_net_rss_config`, of a card with `pairs` pairs: the steering, and the pairs that the driver transmits on.
fn rss_config(data: &[u8], pairs: u16) -> Result<(RssConfig, u16), Refusal> {
    let mut data = Data(data);
    let types = data.le32()?;
    let mask = data.le16()?;
    let unclassified = QueueIndex(data.le16()?);
    let table = (0..=mask).map(|_| data.le16().map(QueueIndex));
    let table = table.collect::<Result<Vec<_>, _>>()?;
    let max_tx_vq = data.le16()?;
    let hash = HashConfig::new(types, data.key()?)?;
    if !(1..=pairs).contains(&max_tx_vq) {
        return Err(Refusal::NoQueue);
    }
    Ok((RssConfig::new(hash, table, unclassified)?, max_tx_vq))
}

impl From<RssError> for Refusal {
    fn from(error: RssError) -> Self {
        match error {
            RssError::Queue(_) | RssError::Pairs(_) => Refusal::NoQueue,
            RssError::HashTypes(_) | RssError::KeyLength(_) | RssError::TableLength(_) => {
                Refusal::Malformed
            }
        }
    }
}

/// What is left of a command's data.
struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    fn take(&mut self, octets: usize) -> Result<&'a [u8], Refusal> {
        let (taken, left) = self.0.split_at_checked(octets).ok_or(Refusal::Malformed)?;
        self.0 = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let taken = self.take(N)?;
        Ok(*taken.first_chunk().expect("as many were taken"))
    }

    fn le16(&mut self) -> Result<u16, Refusal> {
        self.array().map(u16::from_le_bytes)
    }

    fn le32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_le_bytes)
    }

    /// A key behind its length. What comes behind it is nobody's: Linux (seen in 6.12.113) sends an octet of its structure's
    /// padding, too.
    fn key(&mut self) -> Result<&'a [u8], Refusal> {
        let [len] = self.array()?;
        self.take(usize::from(len))
    }
}

#[cfg(test)]
mod tests;
