//! Transmit packet steering: which transmit queue a packet takes (Linux: `net/core/dev.c`,
//! `get_xps_queue`).
//!
//! In: the CPU that sends, and the packet. Out: the queue that the driver gave this CPU; where it gave
//! several, the packet's flow decides, so that a flow keeps its order.

use super::flow_dissector::skb_get_hash;
use super::skbuff::SkBuff;

/// The transmit queues of each CPU (`struct xps_dev_maps`).
#[derive(Debug, Default)]
pub(crate) struct XpsMaps {
    /// By CPU.
    attr_map: Vec<Vec<usize>>,
}

impl XpsMaps {
    /// Deals the queues out anew: `masks` are the CPUs of each queue (`netif_set_xps_queue`).
    pub fn set(&mut self, cpus: usize, masks: &[Vec<usize>]) {
        self.attr_map = vec![Vec::new(); cpus];
        for (queue, mask) in masks.iter().enumerate() {
            for &cpu in mask {
                self.attr_map[cpu].push(queue);
            }
        }
    }

    /// The queue for a packet that `cpu` sends.
    #[inline]
    pub fn get_xps_queue(&self, cpu: usize, skb: &SkBuff) -> usize {
        match self.attr_map[cpu][..] {
            [] => 0,
            [queue] => queue,
            ref queues => queues[reciprocal_scale(skb_get_hash(skb), queues.len())],
        }
    }
}

/// The CPUs of each of `pairs` queues: each has its share, in order; where there are more queues than CPUs,
/// a CPU has several (`virtnet_set_affinity`).
pub(crate) fn stripe(cpus: usize, pairs: usize) -> Vec<Vec<usize>> {
    let stride = (cpus / pairs).max(1);
    let stragglers = if cpus >= pairs { cpus % pairs } else { 0 };
    let mut next = (0..cpus).cycle();
    (0..pairs)
        .map(|pair| stride + usize::from(pair < stragglers))
        .map(|share| next.by_ref().take(share).collect())
        .collect()
}

/// A hash as an index below `len`, by its high bits.
#[inline]
pub(super) fn reciprocal_scale(hash: u32, len: usize) -> usize {
    ((u64::from(hash) * len as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::super::eth::ETH_P_IP;
    use super::super::skbuff::SkbCache;
    use super::super::udp::IPPROTO_UDP;
    use super::*;

    #[test]
    fn queues_have_their_share_of_the_cpus() {
        assert_eq!(stripe(4, 4), [[0], [1], [2], [3]]);
        assert_eq!(stripe(5, 2), [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!(stripe(3, 4), [[0], [1], [2], [0]]);
        assert_eq!(stripe(1, 1), [[0]]);
        for (cpus, pairs) in [(1, 7), (3, 8), (8, 3), (16, 5)] {
            let mut all = stripe(cpus, pairs).concat();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all, (0..cpus).collect::<Vec<_>>(), "{cpus} {pairs}");
        }
    }

    fn packet(cache: &mut SkbCache, port: u16) -> Box<SkBuff> {
        let mut skb = cache.alloc(0, 60);
        skb.protocol = ETH_P_IP;
        let bytes = skb.put(60);
        bytes.fill(0);
        bytes[23] = IPPROTO_UDP;
        bytes[36..38].copy_from_slice(&port.to_be_bytes());
        skb
    }

    #[test]
    fn a_cpu_with_several_queues_keeps_a_flow_in_one() {
        let mut cache = SkbCache::default();
        let mut maps = XpsMaps::default();
        maps.set(2, &stripe(2, 4));
        let mut used = [[0; 4]; 2];
        for port in 0..64 {
            let skb = packet(&mut cache, port);
            for (cpu, used) in used.iter_mut().enumerate() {
                let queue = maps.get_xps_queue(cpu, &skb);
                assert_eq!(queue, maps.get_xps_queue(cpu, &skb));
                used[queue] += 1;
            }
        }
        let [[a, 0, b, 0], [0, c, 0, d]] = used else {
            panic!("{used:?}");
        };
        for share in [a, b, c, d] {
            assert!((16..48).contains(&share), "{used:?}");
        }
    }

    #[test]
    fn what_changes_from_echo_to_echo_does_not_count() {
        let mut cache = SkbCache::default();
        let [one, other] = [1, 2].map(|checksum| {
            let mut skb = packet(&mut cache, checksum);
            skb.data_mut()[23] = 1;
            skb_get_hash(&skb)
        });
        assert_eq!(one, other);
    }

    #[test]
    fn what_has_no_flow_takes_the_first_queue() {
        let mut maps = XpsMaps::default();
        maps.set(1, &stripe(1, 4));
        let mut skb = packet(&mut SkbCache::default(), 1);
        skb.protocol = super::super::eth::ETH_P_ARP;
        assert_eq!(maps.get_xps_queue(0, &skb), 0);
        skb.hash = u32::MAX;
        assert_eq!(maps.get_xps_queue(0, &skb), 3);
    }
}
