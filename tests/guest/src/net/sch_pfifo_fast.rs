//! Three bands of FIFOs (Linux: `pfifo_fast` of `net/sched/sch_generic.c`): the default of the kernel itself.
//!
//! In: packets, by their priority. Out: those of the first band that has any, in order. Dropped and counted: what comes
//! while its band is full.

use std::collections::VecDeque;

use super::sch_generic::Account;
use super::skbuff::Skb;

/// Highest priority that a band is found by (`TC_PRIO_MAX`).
const TC_PRIO_MAX: u32 = 15;
/// The band of each priority (`sch_default_prio2band`).
pub(super) const PRIO2BAND: [u8; 16] = [1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];

/// The discipline.
#[derive(Debug)]
pub(super) struct PfifoFast {
    bands: [VecDeque<Skb>; 3],
    /// Packets of a band (`txqueuelen`).
    limit: usize,
}

impl PfifoFast {
    pub fn new(limit: usize) -> Self {
        Self {
            bands: Default::default(),
            limit,
        }
    }

    #[inline]
    pub fn enqueue(&mut self, skb: Skb, account: &mut Account) {
        let band = PRIO2BAND[(skb.priority & TC_PRIO_MAX) as usize];
        let band = &mut self.bands[usize::from(band)];
        if band.len() >= self.limit {
            return account.drop(skb);
        }
        account.came(&skb);
        band.push_back(skb);
    }

    #[inline]
    pub fn dequeue(&mut self, account: &mut Account) -> Option<Skb> {
        let skb = self.bands.iter_mut().find_map(VecDeque::pop_front)?;
        account.left(&skb);
        Some(skb)
    }

    /// Forgets all packets.
    pub fn reset(&mut self, account: &mut Account) {
        let bands = self.bands.iter_mut();
        account
            .to_free
            .extend(bands.flat_map(|band| band.drain(..)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::skbuff::SkbCache;
    use super::*;

    #[test]
    fn the_first_band_goes_first_and_each_has_its_own_limit() {
        let (mut cache, mut account) = (SkbCache::default(), Account::default());
        let mut sch = PfifoFast::new(2);
        // Best effort, bulk, control, interactive; three more of best effort are one too many.
        for priority in [0, 2, 7, 6, 0, 0] {
            let mut skb = cache.alloc(0, 60);
            skb.priority = priority;
            skb.put(60);
            sch.enqueue(skb, &mut account);
        }
        assert_eq!((account.stats.qlen, account.stats.drops), (5, 1));
        assert_eq!(account.stats.backlog, 300);
        let mut order = Vec::new();
        while let Some(skb) = sch.dequeue(&mut account) {
            order.push(skb.priority);
        }
        assert_eq!(order, [7, 6, 0, 0, 2]);
        assert_eq!((account.stats.qlen, account.stats.backlog), (0, 0));
    }
}
