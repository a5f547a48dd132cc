//! The neighbour cache (Linux: `net/core/neighbour.c`): hardware addresses of IP addresses.
//!
//! In: packets for an address on the link, and what ARP learns. Out: frames to the neighbour, and
//! requests to find it: three, a second apart, the first at once. Who has answered is believed for 30 s; then the next
//! packet still goes, but after 5 s more the neighbour is asked whether he is still there, three times, and after
//! that all are. Dropped and counted: packets that
//! wait beyond a bound (the oldest goes), those of neighbours that never answer, and those for which
//! there is no room for another neighbour.
//!
//! ```text
//! None --packet--> Incomplete --answer--> Reachable --30 s--> Stale --packet--> Delay --5 s--> Probe --answer--> Reachable
//!                       +--3 questions--> Failed                                                 +--3 questions--> Failed
//! ```

use std::net::Ipv4Addr;

use super::eth::{BROADCAST, ETH_ALEN, ETH_P_IP, eth_header};
use super::icmp::{ICMP_DEST_UNREACH, ICMP_HOST_UNREACH};
use super::neigh_table::{NeighParms, NudState};
use super::netdevice::{IFF_LOOPBACK, IFF_NOARP, Ifindex};
use super::route::RtType;
use super::skbuff::Skb;
use super::stats::TxDrop;
use super::sysctl_net_ipv4::nanos;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

impl NeighParms {
    /// Questions before a neighbour is given up (`neigh_max_probes`).
    fn max_probes(&self, state: NudState) -> u32 {
        let to_all = if state == NudState::Probe {
            0
        } else {
            self.mcast_solicit
        };
        self.ucast_solicit.saturating_add(to_all)
    }
}

/// The hardware address of a multicast group (`ip_eth_mc_map`, RFC 1112, 6.4).
pub(super) fn ip_eth_mc_map(group: u32) -> [u8; ETH_ALEN] {
    let [_, high, mid, low] = group.to_be_bytes();
    [0x01, 0x00, 0x5e, high & 0x7f, mid, low]
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Sends an IP packet to the neighbour `key` (`ip_neigh_for_gw`, `neigh_output`).
    pub(super) fn neigh_output(&mut self, key: u32, skb: Skb) {
        let known = self.arp_tbl.lookup(key, skb.dev);
        let Some(at) = known.or_else(|| self.__neigh_create(key, skb.dev)) else {
            return self.drop_tx(skb, TxDrop::NeighTableFull);
        };
        let neigh = &self.arp_tbl.entries[at];
        if neigh.nud_state.is_connected() && neigh.hh_cached {
            self.neigh_hh_output(at, skb);
        } else {
            self.neigh_resolve_output(at, skb);
        }
    }

    pub(super) fn neigh_lookup(&self, key: u32, dev: Ifindex) -> Option<usize> {
        let _stage = self.stage("neigh_lookup");
        self.arp_tbl.lookup(key, dev)
    }

    /// What is known of a neighbour of a device (`ip neigh show`).
    #[must_use]
    pub fn neigh_state(&self, addr: Ipv4Addr, dev: Ifindex) -> Option<NudState> {
        let at = self.arp_tbl.lookup(addr.to_bits(), dev)?;
        Some(self.arp_tbl.entries[at].nud_state)
    }

    /// Makes an entry for a neighbour of whom nothing is known; `None` when there is no room for him.
    fn __neigh_create(&mut self, key: u32, dev: Ifindex) -> Option<usize> {
        let _stage = self.stage("__neigh_create");
        let now = self.machine.now();
        let at = self.arp_tbl.create(key, dev, now, &self.config.neigh)?;
        self.changed("arp_tbl", || format!("{} added", Ipv4Addr::from_bits(key)));
        self.arp_constructor(at, key, dev);
        Some(at)
    }

    /// Neighbours whose hardware address is known from what they are need no question.
    fn arp_constructor(&mut self, at: usize, key: u32, dev: Ifindex) {
        let _stage = self.stage("arp_constructor");
        let device = &self.netdevs[dev];
        let own = device.dev_addr;
        let to = if key >> 28 == 0xe {
            ip_eth_mc_map(key)
        } else if device.flags & (IFF_NOARP | IFF_LOOPBACK) != 0 {
            own
        } else if self.inet_addr_type(key) == RtType::Broadcast {
            BROADCAST
        } else {
            return;
        };
        let neigh = &mut self.arp_tbl.entries[at];
        (neigh.nud_state, neigh.hh) = (NudState::NoArp, eth_header(to, own, ETH_P_IP));
    }

    /// With the header of the last packet to that neighbour.
    #[inline]
    fn neigh_hh_output(&mut self, at: usize, mut skb: Skb) {
        *skb.push() = self.arp_tbl.entries[at].hh;
        self.__dev_queue_xmit(skb);
    }

    /// Makes the header that packets to the neighbour have; where he is not known the packet waits.
    fn neigh_resolve_output(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("neigh_resolve_output");
        if let Some(skb) = self.neigh_event_send(at, skb) {
            // `neigh_hh_init`: the next one has it easier.
            let neigh = &mut self.arp_tbl.entries[at];
            neigh.hh_cached = self.netdevs[neigh.dev].caches_headers();
            self.neigh_hh_output(at, skb);
        }
    }

    /// A packet for a neighbour; it comes back if it can be sent.
    fn neigh_event_send(&mut self, at: usize, skb: Skb) -> Option<Skb> {
        let now = self.machine.now();
        let neigh = &mut self.arp_tbl.entries[at];
        neigh.used = now;
        let state = neigh.nud_state;
        if state.is_connected() || matches!(state, NudState::Delay | NudState::Probe) {
            return Some(skb);
        }
        self.__neigh_event_send(at, skb)
    }

    /// Who answered long ago is to be asked, if nothing is heard of him meanwhile. For who did not the packet waits,
    /// and he is asked at once, unless that was done already.
    fn __neigh_event_send(&mut self, at: usize, skb: Skb) -> Option<Skb> {
        let _stage = self.stage("__neigh_event_send");
        let now = self.machine.now();
        let before = self.arp_tbl.entries[at].nud_state;
        if before == NudState::Stale {
            let delay = nanos(self.config.neigh.delay_first_probe_time);
            self.neigh_becomes(at, NudState::Delay, now);
            self.neigh_add_timer(at, now.saturating_add(delay));
            return Some(skb);
        }
        let asks = before != NudState::Incomplete;
        if asks {
            self.arp_tbl.entries[at].probes = self.config.neigh.ucast_solicit;
            self.neigh_becomes(at, NudState::Incomplete, now);
            let retrans = nanos(self.config.neigh.retrans_time);
            self.neigh_add_timer(at, now.saturating_add(retrans));
        }
        let limit = self.config.unres_qlen;
        let arp_queue = &mut self.arp_tbl.entries[at].arp_queue;
        arp_queue.push_back(skb);
        let oldest = if arp_queue.len() > limit {
            arp_queue.pop_front()
        } else {
            None
        };
        let len = arp_queue.len();
        self.changed("arp_queue", || format!("{len} wait"));
        if let Some(skb) = oldest {
            self.arp_tbl.stats.unres_discards += 1;
            self.drop_tx(skb, TxDrop::NeighUnresDiscards);
        }
        if asks {
            self.neigh_probe(at);
        }
        None
    }

    fn neigh_becomes(&mut self, at: usize, state: NudState, now: u64) {
        let neigh = &mut self.arp_tbl.entries[at];
        neigh.updated = now;
        let before = std::mem::replace(&mut neigh.nud_state, state);
        self.changed("nud_state", || format!("{before:?} -> {state:?}"));
    }

    /// When to look at the state again.
    fn neigh_add_timer(&mut self, at: usize, expires: u64) {
        let _stage = self.stage("neigh_add_timer");
        self.arp_tbl.add_timer(at, expires);
        self.changed("timer", || format!("expires at {expires} ns"));
    }

    /// Asks: the neighbour himself, where he had answered once, or all.
    fn neigh_probe(&mut self, at: usize) {
        let _stage = self.stage("neigh_probe");
        let neigh = &mut self.arp_tbl.entries[at];
        let mut dest = BROADCAST;
        if neigh.probes < self.config.neigh.ucast_solicit {
            dest.copy_from_slice(&neigh.hh[..ETH_ALEN]);
        }
        neigh.probes += 1;
        let (key, dev) = (neigh.primary_key, neigh.dev);
        // The question is asked by the address that the last packet to wait is from.
        let waiting = neigh.arp_queue.back();
        let saddr = waiting.and_then(|skb| skb.data().get(12..16)?.first_chunk().copied());
        self.arp_solicit(key, dev, dest, saddr.map(u32::from_be_bytes));
    }

    /// The timer's soft interrupt: states that have come to their time.
    pub(super) fn neigh_timer_handler(&mut self) {
        let now = self.machine.now();
        if self.arp_tbl.next_timer().is_none_or(|timer| timer > now) {
            return;
        }
        let _stage = self.stage("neigh_timer_handler");
        for at in 0..self.arp_tbl.entries.len() {
            let neigh = &mut self.arp_tbl.entries[at];
            if neigh.expires.is_some_and(|expires| expires <= now) {
                neigh.expires = None;
                self.neigh_expired(at, now);
            }
        }
        self.arp_tbl.restart_timer();
        self.arp_tbl.periodic_work(now, &self.config.neigh);
    }

    fn neigh_expired(&mut self, at: usize, now: u64) {
        let parms = &self.config.neigh;
        let [reachable, delay, retrans] = [
            parms.base_reachable_time,
            parms.delay_first_probe_time,
            parms.retrans_time,
        ]
        .map(nanos);
        let neigh = &mut self.arp_tbl.entries[at];
        let confirmed = |within: u64| {
            let until = neigh.confirmed?.saturating_add(within);
            (now < until).then_some(until)
        };
        let used = neigh.used.saturating_add(delay);
        match neigh.nud_state {
            NudState::Reachable => {
                if let Some(until) = confirmed(reachable) {
                    self.arp_tbl.add_timer(at, until);
                } else if now < used {
                    self.neigh_becomes(at, NudState::Delay, now);
                    self.arp_tbl.add_timer(at, now.saturating_add(delay));
                } else {
                    self.neigh_becomes(at, NudState::Stale, now);
                }
                return;
            }
            NudState::Delay => {
                if confirmed(delay).is_some() {
                    let until = confirmed(reachable).unwrap_or(now);
                    self.neigh_becomes(at, NudState::Reachable, now);
                    self.arp_tbl.add_timer(at, until);
                    return;
                }
                neigh.probes = 0;
                self.neigh_becomes(at, NudState::Probe, now);
            }
            _ => {}
        }
        let neigh = &self.arp_tbl.entries[at];
        if neigh.probes >= self.config.neigh.max_probes(neigh.nud_state) {
            self.neigh_becomes(at, NudState::Failed, now);
            self.neigh_invalidate(at);
        } else {
            self.neigh_add_timer(at, now.saturating_add(retrans));
            self.neigh_probe(at);
        }
    }

    /// The neighbour did not answer: what waits for it is dropped.
    fn neigh_invalidate(&mut self, at: usize) {
        self.arp_tbl.stats.res_failed += 1;
        // To tell of them may take a new neighbour, for whom this one makes room.
        for skb in std::mem::take(&mut self.arp_tbl.entries[at].arp_queue) {
            self.arp_error_report(skb);
        }
    }

    /// Who sent a packet is told that its neighbour does not answer.
    fn arp_error_report(&mut self, skb: Skb) {
        self.icmp_send(&skb, ICMP_DEST_UNREACH, ICMP_HOST_UNREACH, 0);
        self.drop_tx(skb, TxDrop::NeighResFailed);
    }

    /// Somebody asked for us and so told us of himself (`neigh_event_ns`); whether there was room
    /// for him.
    pub(super) fn neigh_event_ns(&mut self, key: u32, dev: Ifindex, lladdr: [u8; 6]) -> bool {
        let _stage = self.stage("neigh_event_ns");
        let known = self.neigh_lookup(key, dev);
        let Some(at) = known.or_else(|| self.__neigh_create(key, dev)) else {
            return false;
        };
        self.__neigh_update(at, lladdr, NudState::Stale, true);
        true
    }

    /// Whether an answer is so fresh that others do not count (`locktime`).
    pub(super) fn neigh_is_locked(&self, at: usize) -> bool {
        let lock = nanos(self.config.neigh.locktime);
        self.machine.now() < self.arp_tbl.entries[at].updated.saturating_add(lock)
    }

    /// A hardware address was learnt; without `overrides` another one stays. What waited for it is sent.
    pub(super) fn neigh_update(
        &mut self,
        at: usize,
        lladdr: [u8; 6],
        state: NudState,
        overrides: bool,
    ) {
        let _stage = self.stage("neigh_update");
        self.__neigh_update(at, lladdr, state, overrides);
    }

    fn __neigh_update(&mut self, at: usize, lladdr: [u8; 6], state: NudState, overrides: bool) {
        let _stage = self.stage("__neigh_update");
        let now = self.machine.now();
        let dev = self.arp_tbl.entries[at].dev;
        let hh = eth_header(lladdr, self.netdevs[dev].dev_addr, ETH_P_IP);
        let neigh = &mut self.arp_tbl.entries[at];
        let before = neigh.nud_state;
        let told = matches!(before, NudState::Permanent | NudState::NoArp);
        if told && state != NudState::Permanent {
            return;
        }
        if state.is_connected() {
            neigh.confirmed = Some(now);
        }
        let other = !before.is_valid() || neigh.hh != hh;
        if before.is_valid() && other && !overrides {
            return;
        }
        // That someone asks does not make less of an answer he gave.
        let state = match state {
            NudState::Stale if !other => before,
            state => state,
        };
        if other {
            (neigh.hh, neigh.updated) = (hh, now);
            if !state.is_connected() {
                neigh.confirmed = None;
            }
        }
        if state == before {
            return;
        }
        self.arp_tbl.del_timer(at);
        if state == NudState::Permanent {
            self.arp_tbl.make_permanent(at);
        }
        if state == NudState::Reachable {
            let reachable = nanos(self.config.neigh.base_reachable_time);
            self.neigh_add_timer(at, now.saturating_add(reachable));
        }
        self.neigh_becomes(at, state, now);
        if !before.is_valid() {
            while let Some(skb) = self.arp_tbl.entries[at].arp_queue.pop_front() {
                self.neigh_resolve_output(at, skb);
            }
        }
    }

    /// A device has another address: headers with the old one are forgotten, and what waited for an answer to it is
    /// dropped (`neigh_changeaddr`).
    pub(super) fn neigh_changeaddr(&mut self, dev: Ifindex) {
        for skb in self.arp_tbl.flush_dev(dev) {
            self.drop_tx(skb, TxDrop::NeighUnresDiscards);
        }
    }

    /// Tells the neighbour at `addr` for good, on the device that packets to it leave by (`ip neigh replace ADDR
    /// lladdr MAC nud permanent dev DEV`).
    ///
    /// # Errors
    /// `ENETUNREACH`: no route leads there; `ENOBUFS`: the table is full.
    pub fn neigh_add(&mut self, addr: Ipv4Addr, lladdr: [u8; 6]) -> Result<(), Errno> {
        let key = addr.to_bits();
        let dev = self.fib.output(key).ok_or(Errno::ENETUNREACH)?.dev;
        let known = self.arp_tbl.lookup(key, dev);
        let at = known
            .or_else(|| self.__neigh_create(key, dev))
            .ok_or(Errno::ENOBUFS)?;
        self.neigh_update(at, lladdr, NudState::Permanent, true);
        Ok(())
    }
}
