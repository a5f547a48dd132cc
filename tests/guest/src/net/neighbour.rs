//! The neighbour cache (Linux: `net/core/neighbour.c`): hardware addresses of IP addresses.
//!
//! In: packets for an address on the link, and what ARP or Neighbour Discovery learns. Out: frames to the neighbour, and
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

use std::net::{Ipv4Addr, Ipv6Addr};

use super::arp::Arp;
use super::eth::{ETH_ALEN, eth_header};
use super::ndisc::Ndisc;
use super::neigh_table::{NeighKey, NeighParms, NeighTable, Neighbour, NudState};
use super::netdevice::Ifindex;
use super::skbuff::Skb;
use super::stats::TxDrop;
use super::sysctl_net_ipv4::nanos;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// A protocol that finds neighbours (`struct neigh_table`, `struct neigh_ops`): a name, not a table of pointers, so that
/// calls can be inlined.
pub(super) trait NeighOps<T: Transport, M: Machine> {
    /// What neighbours are called by.
    type Key: NeighKey;
    /// Ethertype of packets to them.
    const PROTOCOL: u16;
    /// The name of their table.
    const TBL: &'static str;

    fn tbl(kernel: &Kernel<T, M>) -> &NeighTable<Self::Key>;

    fn tbl_mut(kernel: &mut Kernel<T, M>) -> &mut NeighTable<Self::Key>;

    /// The hardware address of a neighbour who need not be asked for it, from what he is.
    fn constructor(kernel: &Kernel<T, M>, key: Self::Key, dev: Ifindex) -> Option<[u8; ETH_ALEN]>;

    /// Asks the neighbour at a hardware address, or all of a device's, for `key`; as `saddr`, if that is an address of
    /// this host.
    fn solicit(
        kernel: &mut Kernel<T, M>,
        key: Self::Key,
        dev: Ifindex,
        to: Option<[u8; ETH_ALEN]>,
        saddr: Option<Self::Key>,
    );

    /// Who a packet is from.
    fn saddr(packet: &[u8]) -> Option<Self::Key>;

    /// A packet's neighbour does not answer.
    fn error_report(kernel: &mut Kernel<T, M>, skb: Skb);
}

/// Whether an address that was learnt takes the place of another (`NEIGH_UPDATE_F_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NeighOverride {
    Never,
    /// It does not, but of the other one is doubted whether it still holds.
    Weak,
    Always,
}

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
    #[inline]
    fn neigh<F: NeighOps<T, M>>(&self, at: usize) -> &Neighbour<F::Key> {
        &F::tbl(self).entries[at]
    }

    #[inline]
    fn neigh_mut<F: NeighOps<T, M>>(&mut self, at: usize) -> &mut Neighbour<F::Key> {
        &mut F::tbl_mut(self).entries[at]
    }

    /// Sends an IP packet to the neighbour `key` (`ip_neigh_for_gw`, `neigh_output`); whether there was room for him.
    pub(super) fn neigh_output<F: NeighOps<T, M>>(&mut self, key: F::Key, skb: Skb) -> bool {
        let known = F::tbl(self).lookup(key, skb.dev);
        let Some(at) = known.or_else(|| self.__neigh_create::<F>(key, skb.dev)) else {
            self.drop_tx(skb, TxDrop::NeighTableFull);
            return false;
        };
        let neigh = self.neigh::<F>(at);
        if neigh.nud_state.is_connected() && neigh.hh_cached {
            self.neigh_hh_output::<F>(at, skb);
        } else {
            self.neigh_resolve_output::<F>(at, skb);
        }
        true
    }

    pub(super) fn neigh_lookup<F: NeighOps<T, M>>(
        &self,
        key: F::Key,
        dev: Ifindex,
    ) -> Option<usize> {
        let _stage = self.stage("neigh_lookup");
        F::tbl(self).lookup(key, dev)
    }

    /// What is known of a neighbour of a device (`ip neigh show`).
    #[must_use]
    pub fn neigh_state(&self, addr: Ipv4Addr, dev: Ifindex) -> Option<NudState> {
        let at = self.arp_tbl.lookup(addr.to_bits(), dev)?;
        Some(self.arp_tbl.entries[at].nud_state)
    }

    /// The same of an IPv6 neighbour (`ip -6 neigh show`).
    #[must_use]
    pub fn neigh6_state(&self, addr: Ipv6Addr, dev: Ifindex) -> Option<NudState> {
        let at = self.nd_tbl.lookup(addr.to_bits(), dev)?;
        Some(self.nd_tbl.entries[at].nud_state)
    }

    /// Makes an entry for a neighbour of whom nothing is known; `None` when there is no room for him.
    pub(super) fn __neigh_create<F: NeighOps<T, M>>(
        &mut self,
        key: F::Key,
        dev: Ifindex,
    ) -> Option<usize> {
        let _stage = self.stage("__neigh_create");
        let now = self.machine.now();
        let at = F::tbl_mut(self).create(key, dev, now)?;
        self.changed(F::TBL, || format!("{} added", key.addr()));
        if let Some(to) = F::constructor(self, key, dev) {
            let own = self.netdevs[dev].dev_addr;
            let neigh = self.neigh_mut::<F>(at);
            (neigh.nud_state, neigh.hh) = (NudState::NoArp, eth_header(to, own, F::PROTOCOL));
        }
        Some(at)
    }

    /// With the header of the last packet to that neighbour.
    #[inline]
    fn neigh_hh_output<F: NeighOps<T, M>>(&mut self, at: usize, mut skb: Skb) {
        *skb.push() = self.neigh::<F>(at).hh;
        self.__dev_queue_xmit(skb);
    }

    /// Makes the header that packets to the neighbour have; where he is not known the packet waits.
    fn neigh_resolve_output<F: NeighOps<T, M>>(&mut self, at: usize, skb: Skb) {
        let _stage = self.stage("neigh_resolve_output");
        if let Some(skb) = self.neigh_event_send::<F>(at, skb) {
            // `neigh_hh_init`: the next one has it easier.
            let caches = self.netdevs[self.neigh::<F>(at).dev].caches_headers();
            self.neigh_mut::<F>(at).hh_cached = caches;
            self.neigh_hh_output::<F>(at, skb);
        }
    }

    /// A packet for a neighbour; it comes back if it can be sent.
    fn neigh_event_send<F: NeighOps<T, M>>(&mut self, at: usize, skb: Skb) -> Option<Skb> {
        let now = self.machine.now();
        let neigh = self.neigh_mut::<F>(at);
        neigh.used = now;
        let state = neigh.nud_state;
        if state.is_connected() || matches!(state, NudState::Delay | NudState::Probe) {
            return Some(skb);
        }
        self.__neigh_event_send::<F>(at, skb)
    }

    /// Who answered long ago is to be asked, if nothing is heard of him meanwhile. For who did not the packet waits,
    /// and he is asked at once, unless that was done already.
    fn __neigh_event_send<F: NeighOps<T, M>>(&mut self, at: usize, skb: Skb) -> Option<Skb> {
        let _stage = self.stage("__neigh_event_send");
        let now = self.machine.now();
        let before = self.neigh::<F>(at).nud_state;
        if before == NudState::Stale {
            let delay = nanos(F::tbl(self).parms.delay_first_probe_time);
            self.neigh_becomes::<F>(at, NudState::Delay, now);
            self.neigh_add_timer::<F>(at, now.saturating_add(delay));
            return Some(skb);
        }
        let asks = before != NudState::Incomplete;
        if asks {
            self.neigh_mut::<F>(at).probes = F::tbl(self).parms.ucast_solicit;
            self.neigh_becomes::<F>(at, NudState::Incomplete, now);
            let retrans = nanos(F::tbl(self).parms.retrans_time);
            self.neigh_add_timer::<F>(at, now.saturating_add(retrans));
        }
        let limit = self.config.unres_qlen;
        let arp_queue = &mut self.neigh_mut::<F>(at).arp_queue;
        arp_queue.push_back(skb);
        let oldest = if arp_queue.len() > limit {
            arp_queue.pop_front()
        } else {
            None
        };
        let len = arp_queue.len();
        self.changed("arp_queue", || format!("{len} wait"));
        if let Some(skb) = oldest {
            F::tbl_mut(self).stats.unres_discards += 1;
            self.drop_tx(skb, TxDrop::NeighUnresDiscards);
        }
        if asks {
            self.neigh_probe::<F>(at);
        }
        None
    }

    fn neigh_becomes<F: NeighOps<T, M>>(&mut self, at: usize, state: NudState, now: u64) {
        let neigh = self.neigh_mut::<F>(at);
        neigh.updated = now;
        let before = std::mem::replace(&mut neigh.nud_state, state);
        self.changed("nud_state", || format!("{before:?} -> {state:?}"));
    }

    /// When to look at the state again.
    fn neigh_add_timer<F: NeighOps<T, M>>(&mut self, at: usize, expires: u64) {
        let _stage = self.stage("neigh_add_timer");
        F::tbl_mut(self).add_timer(at, expires);
        self.changed("timer", || format!("expires at {expires} ns"));
    }

    /// Asks: the neighbour himself, where he had answered once, or all.
    fn neigh_probe<F: NeighOps<T, M>>(&mut self, at: usize) {
        let _stage = self.stage("neigh_probe");
        let ucast_solicit = F::tbl(self).parms.ucast_solicit;
        let neigh = self.neigh_mut::<F>(at);
        let to = (neigh.probes < ucast_solicit).then(|| {
            let mut to = [0; ETH_ALEN];
            to.copy_from_slice(&neigh.hh[..ETH_ALEN]);
            to
        });
        neigh.probes += 1;
        let (key, dev) = (neigh.primary_key, neigh.dev);
        // The question is asked by the address that the last packet to wait is from.
        let waiting = neigh.arp_queue.back();
        let saddr = waiting.and_then(|skb| F::saddr(skb.data()));
        F::solicit(self, key, dev, to, saddr);
    }

    /// The timer's soft interrupt: states that have come to their time.
    pub(super) fn neigh_timer_handler<F: NeighOps<T, M>>(&mut self) {
        let now = self.machine.now();
        if F::tbl(self).next_timer().is_none_or(|timer| timer > now) {
            return;
        }
        let _stage = self.stage("neigh_timer_handler");
        for at in 0..F::tbl(self).entries.len() {
            let neigh = self.neigh_mut::<F>(at);
            if neigh.expires.is_some_and(|expires| expires <= now) {
                neigh.expires = None;
                self.neigh_expired::<F>(at, now);
            }
        }
        F::tbl_mut(self).restart_timer();
        F::tbl_mut(self).periodic_work(now);
    }

    fn neigh_expired<F: NeighOps<T, M>>(&mut self, at: usize, now: u64) {
        let parms = &F::tbl(self).parms;
        let [reachable, delay, retrans] = [
            parms.base_reachable_time,
            parms.delay_first_probe_time,
            parms.retrans_time,
        ]
        .map(nanos);
        let neigh = self.neigh::<F>(at);
        let confirmed = |within: u64| {
            let until = neigh.confirmed?.saturating_add(within);
            (now < until).then_some(until)
        };
        let used = neigh.used.saturating_add(delay);
        match neigh.nud_state {
            NudState::Reachable => {
                if let Some(until) = confirmed(reachable) {
                    F::tbl_mut(self).add_timer(at, until);
                } else if now < used {
                    self.neigh_becomes::<F>(at, NudState::Delay, now);
                    F::tbl_mut(self).add_timer(at, now.saturating_add(delay));
                } else {
                    self.neigh_becomes::<F>(at, NudState::Stale, now);
                }
                return;
            }
            NudState::Delay => {
                if confirmed(delay).is_some() {
                    let until = confirmed(reachable).unwrap_or(now);
                    self.neigh_becomes::<F>(at, NudState::Reachable, now);
                    F::tbl_mut(self).add_timer(at, until);
                    return;
                }
                self.neigh_mut::<F>(at).probes = 0;
                self.neigh_becomes::<F>(at, NudState::Probe, now);
            }
            _ => {}
        }
        let neigh = self.neigh::<F>(at);
        if neigh.probes >= F::tbl(self).parms.max_probes(neigh.nud_state) {
            self.neigh_becomes::<F>(at, NudState::Failed, now);
            self.neigh_invalidate::<F>(at);
        } else {
            self.neigh_add_timer::<F>(at, now.saturating_add(retrans));
            self.neigh_probe::<F>(at);
        }
    }

    /// The neighbour did not answer: what waits for it is dropped.
    fn neigh_invalidate<F: NeighOps<T, M>>(&mut self, at: usize) {
        F::tbl_mut(self).stats.res_failed += 1;
        // To tell of them may take a new neighbour, for whom this one makes room.
        for skb in std::mem::take(&mut self.neigh_mut::<F>(at).arp_queue) {
            F::error_report(self, skb);
        }
    }

    /// Somebody asked for us and so told us of himself (`neigh_event_ns`); whether there was room
    /// for him.
    pub(super) fn neigh_event_ns<F: NeighOps<T, M>>(
        &mut self,
        key: F::Key,
        dev: Ifindex,
        lladdr: [u8; 6],
    ) -> bool {
        let _stage = self.stage("neigh_event_ns");
        let known = self.neigh_lookup::<F>(key, dev);
        let Some(at) = known.or_else(|| self.__neigh_create::<F>(key, dev)) else {
            return false;
        };
        let overrides = NeighOverride::Always;
        self.__neigh_update::<F>(at, Some(lladdr), NudState::Stale, overrides);
        true
    }

    /// Whether an answer is so fresh that others do not count (`locktime`).
    pub(super) fn neigh_is_locked<F: NeighOps<T, M>>(&self, at: usize) -> bool {
        let lock = nanos(F::tbl(self).parms.locktime);
        self.machine.now() < self.neigh::<F>(at).updated.saturating_add(lock)
    }

    /// A hardware address was learnt; without `overrides` another one stays. What waited for it is sent.
    pub(super) fn neigh_update<F: NeighOps<T, M>>(
        &mut self,
        at: usize,
        lladdr: Option<[u8; 6]>,
        state: NudState,
        overrides: NeighOverride,
    ) {
        let _stage = self.stage("neigh_update");
        self.__neigh_update::<F>(at, lladdr, state, overrides);
    }

    fn __neigh_update<F: NeighOps<T, M>>(
        &mut self,
        at: usize,
        lladdr: Option<[u8; 6]>,
        state: NudState,
        overrides: NeighOverride,
    ) {
        let _stage = self.stage("__neigh_update");
        let now = self.machine.now();
        let dev = self.neigh::<F>(at).dev;
        let own = self.netdevs[dev].dev_addr;
        let neigh = self.neigh_mut::<F>(at);
        let before = neigh.nud_state;
        let told = matches!(before, NudState::Permanent | NudState::NoArp);
        if told && state != NudState::Permanent {
            return;
        }
        let mut hh = match lladdr {
            Some(lladdr) => eth_header(lladdr, own, F::PROTOCOL),
            // What is known stays; where that is nothing, there is nothing to learn.
            None if before.is_valid() => neigh.hh,
            None => return,
        };
        if state.is_connected() {
            neigh.confirmed = Some(now);
        }
        let mut other = !before.is_valid() || neigh.hh != hh;
        let mut state = state;
        if before.is_valid() && other && overrides != NeighOverride::Always {
            if overrides == NeighOverride::Never || !before.is_connected() {
                return;
            }
            (hh, other, state) = (neigh.hh, false, NudState::Stale);
        } else if state == NudState::Stale && !other {
            // That someone asks does not make less of an answer he gave.
            state = before;
        }
        if other {
            (neigh.hh, neigh.updated) = (hh, now);
            if !state.is_connected() {
                neigh.confirmed = None;
            }
        }
        if state == before {
            return;
        }
        F::tbl_mut(self).del_timer(at);
        if state == NudState::Permanent {
            F::tbl_mut(self).make_permanent(at);
        }
        if state == NudState::Reachable {
            let reachable = nanos(F::tbl(self).parms.base_reachable_time);
            self.neigh_add_timer::<F>(at, now.saturating_add(reachable));
        }
        self.neigh_becomes::<F>(at, state, now);
        if !before.is_valid() {
            while let Some(skb) = self.neigh_mut::<F>(at).arp_queue.pop_front() {
                self.neigh_resolve_output::<F>(at, skb);
            }
        }
    }

    /// A device has another address: headers with the old one are forgotten, and what waited for an answer to it is
    /// dropped (`neigh_changeaddr`).
    pub(super) fn neigh_changeaddr(&mut self, dev: Ifindex) {
        let mut waited = self.arp_tbl.flush_dev(dev);
        waited.append(&mut self.nd_tbl.flush_dev(dev));
        for skb in waited {
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
        self.neigh_add_permanent::<Arp>(key, dev, lladdr)
    }

    /// The same of an IPv6 neighbour on a device (`ip -6 neigh replace ADDR lladdr MAC nud permanent dev DEV`).
    ///
    /// # Errors
    /// `ENODEV`; `ENOBUFS`: the table is full.
    pub fn neigh6_add(
        &mut self,
        addr: Ipv6Addr,
        dev: Ifindex,
        lladdr: [u8; 6],
    ) -> Result<(), Errno> {
        if self.dev_get_by_index(dev).is_none() {
            return Err(Errno::ENODEV);
        }
        self.neigh_add_permanent::<Ndisc>(addr.to_bits(), dev, lladdr)
    }

    fn neigh_add_permanent<F: NeighOps<T, M>>(
        &mut self,
        key: F::Key,
        dev: Ifindex,
        lladdr: [u8; 6],
    ) -> Result<(), Errno> {
        let known = F::tbl(self).lookup(key, dev);
        let at = known
            .or_else(|| self.__neigh_create::<F>(key, dev))
            .ok_or(Errno::ENOBUFS)?;
        let overrides = NeighOverride::Always;
        self.neigh_update::<F>(at, Some(lladdr), NudState::Permanent, overrides);
        Ok(())
    }
}
