//! Neighbour Discovery (Linux: `net/ipv6/ndisc.c`; RFC 4861).
//!
//! In: solicitations and advertisements, of neighbours and of routers. Out: answers to solicitations for this station's
//! addresses, and hardware addresses for the neighbour cache. Routers are learnt as neighbours only: what they advertise
//! is not taken (`accept_ra` is 0), nor are redirects. Dropped and counted: messages that came from beyond the link or in
//! fragments, are short, or have options or addresses that contradict themselves.

use super::checksum::{csum_fold, csum_ipv6_magic, csum_partial};
use super::eth::{ETH_ALEN, ETH_P_IPV6};
use super::icmp::ICMPHDR_LEN;
use super::icmp6::{ICMPV6_ADDR_UNREACH, ICMPV6_DEST_UNREACH, NDISC_ROUTER_SOLICITATION};
use super::ip6_output::Flow6;
use super::ipv6::{
    IN6ADDR_ANY, IN6ADDR_LINKLOCAL_ALLNODES, IPPROTO_ICMPV6, addr_at, ipv6_eth_mc_map,
    is_linklocal, is_multicast, is_solict_mult, solict_mult,
};
use super::neigh_table::{NeighTable, NudState};
use super::neighbour::{NeighOps, NeighOverride};
use super::netdevice::{IFF_LOOPBACK, IFF_NOARP, Ifindex};
use super::skbuff::{SkBuff, Skb};
use super::stats::{RxDrop, TxDrop};
use super::{Kernel, Machine};
use crate::transport::Transport;

const NDISC_ROUTER_ADVERTISEMENT: u8 = 134;
const NDISC_NEIGHBOUR_SOLICITATION: u8 = 135;
const NDISC_NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Bytes of a message about a neighbour, and of a router's, without options.
const ND_MSG_LEN: usize = ICMPHDR_LEN + 16;
const RA_MSG_LEN: usize = 16;
/// Options: hardware addresses of who sends, and of whom it is about.
const ND_OPT_SOURCE_LL_ADDR: u8 = 1;
const ND_OPT_TARGET_LL_ADDR: u8 = 2;
/// Bytes of one for Ethernet.
const LL_ADDR_LEN: usize = 8;
/// Flags of an advertisement.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// A message that no router has passed on.
const ND_HOPLIMIT: u8 = 255;

/// A hardware address in the options of a message, if there is one that is of use.
type LlAddr = Option<[u8; ETH_ALEN]>;

/// The hardware address in the option of that kind; nothing where the options are wrong, or the address is
/// (`ndisc_parse_options`, `ndisc_opt_addr_data`).
fn parse_lladdr(mut options: &[u8], kind: u8) -> Result<LlAddr, ()> {
    let mut found = None;
    while let [this, len, ..] = options {
        let len = usize::from(*len) * 8;
        let option = options.get(..len).filter(|_| len != 0).ok_or(())?;
        // Of several the first counts.
        if *this == kind && found.is_none() {
            found = Some(option);
        }
        options = &options[len..];
    }
    match (options, found) {
        ([_, ..], _) => Err(()),
        ([], None) => Ok(None),
        ([], Some(option)) if option.len() == LL_ADDR_LEN => {
            Ok(option.get(2..).and_then(|addr| addr.first_chunk().copied()))
        }
        ([], Some(_)) => Err(()),
    }
}

/// Neighbours of IPv6 (`nd_tbl`, `ndisc_generic_ops`).
pub(super) struct Ndisc;

impl<T: Transport, M: Machine> NeighOps<T, M> for Ndisc {
    type Key = u128;
    const PROTOCOL: u16 = ETH_P_IPV6;
    const TBL: &'static str = "nd_tbl";

    #[inline]
    fn tbl(kernel: &Kernel<T, M>) -> &NeighTable<u128> {
        &kernel.nd_tbl
    }

    #[inline]
    fn tbl_mut(kernel: &mut Kernel<T, M>) -> &mut NeighTable<u128> {
        &mut kernel.nd_tbl
    }

    fn constructor(kernel: &Kernel<T, M>, key: u128, dev: Ifindex) -> LlAddr {
        let _stage = kernel.stage("ndisc_constructor");
        let device = &kernel.netdevs[dev];
        if is_multicast(key) {
            Some(ipv6_eth_mc_map(key))
        } else if device.flags & (IFF_NOARP | IFF_LOOPBACK) != 0 {
            Some(device.dev_addr)
        } else {
            None
        }
    }

    fn solicit(
        kernel: &mut Kernel<T, M>,
        key: u128,
        dev: Ifindex,
        to: LlAddr,
        saddr: Option<u128>,
    ) {
        let _stage = kernel.stage("ndisc_solicit");
        let own = saddr.filter(|saddr| kernel.ipv6_get_ifaddr(*saddr, dev));
        let Some(saddr) = own.or_else(|| kernel.ipv6_get_lladdr(dev)) else {
            return;
        };
        let daddr = to.map_or(solict_mult(key), |_| key);
        kernel.ndisc_send_ns(key, dev, daddr, saddr);
    }

    fn saddr(packet: &[u8]) -> Option<u128> {
        addr_at(packet, 8)
    }

    /// Who sent it is told.
    fn error_report(kernel: &mut Kernel<T, M>, skb: Skb) {
        kernel.icmp6_send(&skb, ICMPV6_DEST_UNREACH, ICMPV6_ADDR_UNREACH, 0);
        kernel.drop_tx(skb, TxDrop::NeighResFailed);
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// A message of ICMPv6 whose checksum is right and whose header is whole.
    pub(super) fn ndisc_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("ndisc_rcv");
        let (icmp_type, code) = (skb.data()[0], skb.data()[1]);
        let sound = !skb.ip6.fragmented && skb.ip6.hop_limit == ND_HOPLIMIT && code == 0;
        let taken = sound
            && match icmp_type {
                NDISC_NEIGHBOUR_SOLICITATION => self.ndisc_recv_ns(&skb).is_some(),
                NDISC_NEIGHBOUR_ADVERTISEMENT => self.ndisc_recv_na(&skb).is_some(),
                NDISC_ROUTER_ADVERTISEMENT => self.ndisc_router_discovery(&skb).is_some(),
                // Hosts answer no solicitations for routers. Redirects are not followed.
                _ => icmp_type == NDISC_ROUTER_SOLICITATION,
            };
        if !taken {
            return self.drop_rx(skb, RxDrop::NdiscInvalid);
        }
        self.counters.consumed += 1;
        self.consume_skb(skb);
    }

    /// Somebody asks for the station of an address; `None` if the message makes no sense, or it is not this one.
    fn ndisc_recv_ns(&mut self, skb: &SkBuff) -> Option<()> {
        let _stage = self.stage("ndisc_recv_ns");
        let (dev, saddr, daddr) = (skb.dev, skb.ip6.saddr, skb.ip6.daddr);
        let options = skb.data().get(ND_MSG_LEN..)?;
        let target = addr_at(skb.data(), ICMPHDR_LEN)?;
        // Who has no address yet asks whether one is free.
        let dad = saddr == IN6ADDR_ANY;
        if is_multicast(target) || dad && !is_solict_mult(daddr) {
            return None;
        }
        let lladdr = parse_lladdr(options, ND_OPT_SOURCE_LL_ADDR).ok()?;
        if dad && lladdr.is_some() || !self.ipv6_get_ifaddr(target, dev) {
            return None;
        }
        if dad {
            self.ndisc_send_na(dev, IN6ADDR_LINKLOCAL_ALLNODES, target, OVERRIDE, true);
            return Some(());
        }
        let multicast = is_multicast(daddr);
        let known = self.neigh_lookup::<Ndisc>(saddr, dev);
        let neigh = known.or_else(|| {
            let learns = !multicast || lladdr.is_some();
            learns.then(|| self.__neigh_create::<Ndisc>(saddr, dev))?
        });
        let at = neigh?;
        self.neigh_update::<Ndisc>(at, lladdr, NudState::Stale, NeighOverride::Always);
        let flags = if multicast {
            SOLICITED | OVERRIDE
        } else {
            SOLICITED
        };
        self.ndisc_send_na(dev, saddr, target, flags, multicast);
        Some(())
    }

    /// A neighbour says where he is. Nobody is learnt of who was not asked for.
    fn ndisc_recv_na(&mut self, skb: &SkBuff) -> Option<()> {
        let _stage = self.stage("ndisc_recv_na");
        let message = skb.data();
        let options = message.get(ND_MSG_LEN..)?;
        let target = addr_at(message, ICMPHDR_LEN)?;
        let solicited = message[4] & SOLICITED != 0;
        if is_multicast(target) || is_multicast(skb.ip6.daddr) && solicited {
            return None;
        }
        let lladdr = parse_lladdr(options, ND_OPT_TARGET_LL_ADDR).ok()?;
        if self.ipv6_get_ifaddr(target, skb.dev) {
            // Somebody else has this station's address, or says so.
            return None;
        }
        let at = self.neigh_lookup::<Ndisc>(target, skb.dev)?;
        if self.nd_tbl.entries[at].nud_state == NudState::Failed {
            return None;
        }
        let state = if solicited {
            NudState::Reachable
        } else {
            NudState::Stale
        };
        let overrides = if message[4] & OVERRIDE != 0 {
            NeighOverride::Always
        } else {
            NeighOverride::Weak
        };
        self.neigh_update::<Ndisc>(at, lladdr, state, overrides);
        Some(())
    }

    /// A router tells of itself: it is a neighbour.
    fn ndisc_router_discovery(&mut self, skb: &SkBuff) -> Option<()> {
        let _stage = self.stage("ndisc_router_discovery");
        let (dev, saddr) = (skb.dev, skb.ip6.saddr);
        let options = skb.data().get(RA_MSG_LEN..)?;
        if !is_linklocal(saddr) {
            return None;
        }
        let lladdr = parse_lladdr(options, ND_OPT_SOURCE_LL_ADDR).ok()?;
        let known = self.neigh_lookup::<Ndisc>(saddr, dev);
        let at = known.or_else(|| self.__neigh_create::<Ndisc>(saddr, dev))?;
        self.neigh_update::<Ndisc>(at, lladdr, NudState::Stale, NeighOverride::Always);
        Some(())
    }

    /// Answers; who was asked by many says which station he is.
    fn ndisc_send_na(&mut self, dev: Ifindex, daddr: u128, target: u128, flags: u8, inc_opt: bool) {
        let _stage = self.stage("ndisc_send_na");
        let option = inc_opt.then_some(ND_OPT_TARGET_LL_ADDR);
        let header = [NDISC_NEIGHBOUR_ADVERTISEMENT, flags];
        self.ndisc_send_skb(dev, header, target, option, (target, daddr));
    }

    /// Asks.
    fn ndisc_send_ns(&mut self, target: u128, dev: Ifindex, daddr: u128, saddr: u128) {
        let _stage = self.stage("ndisc_send_ns");
        let header = [NDISC_NEIGHBOUR_SOLICITATION, 0];
        let option = Some(ND_OPT_SOURCE_LL_ADDR);
        self.ndisc_send_skb(dev, header, target, option, (saddr, daddr));
    }

    /// Tells all of a device's neighbours where this host is (`ndisc_send_unsol_na`).
    pub(super) fn ndisc_send_unsol_na(&mut self, dev: Ifindex) {
        for at in 0..self.netdevs[dev].inet6_ifaddrs.len() {
            let own = self.netdevs[dev].inet6_ifaddrs[at].addr;
            self.ndisc_send_na(dev, IN6ADDR_LINKLOCAL_ALLNODES, own, OVERRIDE, true);
        }
    }

    /// Sends a message of a type, with flags, about `target`, with this station's address in an option if one is named.
    fn ndisc_send_skb(
        &mut self,
        dev: Ifindex,
        [icmp_type, flags]: [u8; 2],
        target: u128,
        option: Option<u8>,
        (saddr, daddr): (u128, u128),
    ) {
        let _stage = self.stage("ndisc_send_skb");
        let mut message = [0; ND_MSG_LEN + LL_ADDR_LEN];
        (message[0], message[4]) = (icmp_type, flags);
        message[ICMPHDR_LEN..ND_MSG_LEN].copy_from_slice(&target.to_be_bytes());
        let mut len = ND_MSG_LEN;
        if let Some(option) = option {
            message[ND_MSG_LEN..][..2].copy_from_slice(&[option, 1]);
            message[ND_MSG_LEN + 2..].copy_from_slice(&self.netdevs[dev].dev_addr);
            len += LL_ADDR_LEN;
        }
        let message = &mut message[..len];
        let pseudo = csum_ipv6_magic(saddr, daddr, len, IPPROTO_ICMPV6);
        let check = csum_fold(csum_partial(message, pseudo));
        message[2..4].copy_from_slice(&check);
        let rt = self.icmp6_dst_alloc(daddr, dev);
        let flow = Flow6 {
            hop_limit: ND_HOPLIMIT,
            ..Flow6::new(saddr, daddr, IPPROTO_ICMPV6)
        };
        let mut skb = self.ip_append_data(message, None);
        self.ip6_finish_skb(&mut skb, &flow);
        if self.ip6_local_out(skb, rt).is_ok() {
            self.icmp6_out_count(icmp_type);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused() {
        let own = [1, 1, 2, 0, 0, 0, 0, 9];
        let mac = Ok(Some([2, 0, 0, 0, 0, 9]));
        let other = [[14, 2].as_slice(), &[0; 14]].concat();
        let long = [[1, 2].as_slice(), &[7; 14]].concat();
        for (options, want) in [
            (vec![], Ok(None)),
            (own.to_vec(), mac),
            ([&other[..], &own].concat(), mac),
            ([&own[..], &long].concat(), mac),
            ([&long[..], &own].concat(), Err(())),
            (other.clone(), Ok(None)),
            (other[..15].to_vec(), Err(())),
            ([&own[..], &[1]].concat(), Err(())),
            (vec![1, 0, 0, 0, 0, 0, 0, 0], Err(())),
        ] {
            assert_eq!(
                parse_lladdr(&options, ND_OPT_SOURCE_LL_ADDR),
                want,
                "{options:?}"
            );
        }
    }
}
