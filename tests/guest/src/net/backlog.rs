//! A CPU's backlog (Linux: `net/core/dev.c`): packets that no driver's NAPI brings.
//!
//! In: packets of devices that cannot be polled, as lo, and those that another CPU was to have. Out: the same up the stack, one by one, when the backlog's
//! own NAPI instance is polled. Dropped and counted, for the CPU and for the device: what comes while
//! `netdev_max_backlog` packets wait.

use super::skbuff::Skb;
use super::softirq::SoftnetData;
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;

impl SoftnetData {
    /// Has a packet wait; whether the backlog is to be polled from now on. Gives it back where more than `max` wait
    /// already.
    fn enqueue(&mut self, skb: Skb, max: usize) -> Result<bool, Skb> {
        if self.input_pkt_queue.len() > max {
            self.stats.dropped += 1;
            return Err(skb);
        }
        self.input_pkt_queue.push_back(skb);
        self.input_queue_tail += 1;
        Ok(!std::mem::replace(&mut self.backlog_scheduled, true))
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// A packet comes in from a device without NAPI; whether there was room for it.
    pub(crate) fn netif_rx(&mut self, skb: Skb) -> bool {
        self.counters.netif_rx += 1;
        self.netif_rx_internal(skb)
    }

    fn netif_rx_internal(&mut self, mut skb: Skb) -> bool {
        let _stage = self.stage("netif_rx_internal");
        if self.rps.needed
            && let Some((cpu, flow)) = self.get_rps_cpu(&mut skb)
        {
            return self.enqueue_to_backlog_of_flow(skb, cpu, flow);
        }
        self.enqueue_to_backlog(skb, self.cpu)
    }

    /// Has a packet go up on `cpu`; whether there was room for it.
    pub(super) fn enqueue_to_backlog(&mut self, skb: Skb, cpu: usize) -> bool {
        let _stage = self.stage("enqueue_to_backlog");
        let max = self.config.netdev_max_backlog;
        let left = self.softnet[cpu].enqueue(skb, max);
        let len = self.softnet[cpu].input_pkt_queue.len();
        self.changed("input_pkt_queue", || format!("{len} wait"));
        let skb = match left {
            Ok(first) => {
                if first {
                    self.napi_schedule_rps(cpu);
                }
                return true;
            }
            Err(skb) => skb,
        };
        self.netdevs[skb.dev].stats.rx_dropped += 1;
        self.drop_rx(skb, RxDrop::CpuBacklog);
        false
    }

    /// The poll function: takes up to `quota` packets; how many it took.
    pub(super) fn process_backlog(&mut self, quota: usize) -> usize {
        let _stage = self.stage("process_backlog");
        // They may work meanwhile.
        self.net_rps_action();
        let mut work = 0;
        loop {
            let sd = self.sd();
            let Some(skb) = sd.process_queue.pop_front() else {
                if sd.input_pkt_queue.is_empty() {
                    sd.backlog_scheduled = false;
                    return work;
                }
                // What comes from now on waits for the next look.
                std::mem::swap(&mut sd.process_queue, &mut sd.input_pkt_queue);
                continue;
            };
            self.spend(self.costs.packet);
            self.__netif_receive_skb(skb);
            self.sd().input_queue_head += 1;
            work += 1;
            if work >= quota {
                return work;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::skbuff::SkbCache;
    use super::*;

    #[test]
    fn so_many_packets_wait_and_the_poll_is_asked_for_once() {
        let (mut sd, mut cache) = (SoftnetData::default(), SkbCache::default());
        for n in 0..=10 {
            let first = sd.enqueue(cache.alloc(0, 60), 10).expect("there is room");
            assert_eq!(first, n == 0);
        }
        assert!(sd.enqueue(cache.alloc(0, 60), 10).is_err());
        assert_eq!((sd.input_pkt_queue.len(), sd.stats.dropped), (11, 1));
    }
}
