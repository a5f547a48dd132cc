//! Packet filter (Linux: `net/netfilter/core.c`, `nf_tables_core.c`): the five places where others may look at a
//! packet.
//!
//! In: packets with their IP header, at the five hooks of IPv4 and of IPv6. Out: the same, if every chain that is hooked there
//! accepts them, in the order of their priorities. Dropped and counted: what one of them drops. Chains are lists
//! of rules, as nf_tables has them; each rule counts what it matches. Where nothing is hooked a packet meets one
//! test of a bit.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ip_input::IPHDR_LEN;
use super::ipv6::{
    IPV6HDR_LEN, Ipv6hdr, NEXTHDR, NEXTHDR_FRAGMENT, NEXTHDR_NONE, find_hdr, is_ext_hdr,
    prefix_mask6,
};
use super::skbuff::{SkBuff, Skb};
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Where a packet is (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NfHook {
    /// It came in; where it is to go is not known yet.
    PreRouting,
    /// It is for this host.
    LocalIn,
    /// It is for another one.
    Forward,
    /// This host made it.
    LocalOut,
    /// It is about to leave.
    PostRouting,
}

impl NfHook {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::PreRouting,
        Self::LocalIn,
        Self::Forward,
        Self::LocalOut,
        Self::PostRouting,
    ];

    fn bit(self, family: NfProto) -> u16 {
        1 << (self as u8 + 8 * family as u8)
    }
}

/// Whose packets a chain is about (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NfProto {
    /// IPv4's.
    #[default]
    Ipv4,
    /// IPv6's.
    Ipv6,
}

/// What becomes of a packet (`NF_ACCEPT`, `NF_DROP`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the next chain.
    Accept,
    /// It ends here.
    Drop,
}

/// A rule of a chain (`struct nft_rule`): matches a packet that is all that it says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NftRule {
    /// From this network: an address, and how many bits of it count.
    pub saddr: Option<(Ipv4Addr, u8)>,
    /// To this network.
    pub daddr: Option<(Ipv4Addr, u8)>,
    /// The same of IPv6.
    pub saddr6: Option<(Ipv6Addr, u8)>,
    /// To this network.
    pub daddr6: Option<(Ipv6Addr, u8)>,
    /// Of this protocol, behind what IPv6 has between.
    pub protocol: Option<u8>,
    /// To this port of UDP or TCP; what is a fragment, but for the first, has none.
    pub dport: Option<u16>,
    /// What becomes of what matches; without one it is counted, and the next rule is asked.
    pub verdict: Option<Verdict>,
    /// Packets that matched.
    pub packets: u64,
    /// Bytes of them, from the IP header on.
    pub bytes: u64,
}

/// A chain of rules at a hook (`struct nft_base_chain`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftChain {
    /// Whose packets it is about.
    pub family: NfProto,
    /// Where it is.
    pub hook: NfHook,
    /// Lower ones come first; of equals those that were there first.
    pub priority: i32,
    /// Asked in order.
    pub rules: Vec<NftRule>,
    /// What becomes of a packet for which no rule has a verdict.
    pub policy: Verdict,
}

impl NftChain {
    /// A chain that counts and accepts all that comes by (`counter accept`).
    #[must_use]
    pub fn counting(hook: NfHook) -> Self {
        let rule = NftRule {
            verdict: Some(Verdict::Accept),
            ..NftRule::default()
        };
        Self {
            family: NfProto::Ipv4,
            hook,
            priority: 0,
            rules: vec![rule],
            policy: Verdict::Accept,
        }
    }

    /// Asks the rules about a packet of `len` bytes, of which it has the headers (`nft_do_chain`).
    fn ask(&mut self, packet: &[u8], len: usize) -> Verdict {
        let matches = match self.family {
            NfProto::Ipv4 => NftRule::matches,
            NfProto::Ipv6 => NftRule::matches6,
        };
        for rule in self.rules.iter_mut().filter(|rule| matches(rule, packet)) {
            rule.packets += 1;
            rule.bytes += len as u64;
            if let Some(verdict) = rule.verdict {
                return verdict;
            }
        }
        self.policy
    }
}

impl NftRule {
    /// Whether it is about a packet.
    fn matches(&self, packet: &[u8]) -> bool {
        let Some(ip) = packet.first_chunk::<IPHDR_LEN>() else {
            return false;
        };
        let word = |at: usize| u32::from_be_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
        let (saddr, daddr, protocol) = (word(12), word(16), ip[9]);
        let within = |network: Option<(Ipv4Addr, u8)>, addr: u32| {
            network.is_none_or(|(network, prefix_len)| {
                let differs = network.to_bits() ^ addr;
                differs
                    .checked_shr(32 - u32::from(prefix_len.min(32)))
                    .unwrap_or(0)
                    == 0
            })
        };
        let whole = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff == 0;
        let has_ports = matches!(protocol, 6 | 17) && whole;
        let at = usize::from(ip[0] & 0xf) * 4 + 2;
        let port = packet.get(at..at + 2).filter(|_| has_ports);
        within(self.saddr, saddr)
            && within(self.daddr, daddr)
            && self.protocol.is_none_or(|wanted| wanted == protocol)
            && self
                .dport
                .is_none_or(|wanted| port == Some(&wanted.to_be_bytes()[..]))
    }
}

impl NftRule {
    /// The same for an IPv6 packet.
    fn matches6(&self, packet: &[u8]) -> bool {
        let Some(hdr) = Ipv6hdr::parse(packet) else {
            return false;
        };
        let within = |network: Option<(Ipv6Addr, u8)>, addr: u128| {
            network.is_none_or(|(network, prefix_len)| {
                (network.to_bits() ^ addr) & prefix_mask6(prefix_len) == 0
            })
        };
        let upper = find_hdr(packet, IPV6HDR_LEN, packet[NEXTHDR]);
        let port = upper
            .filter(|upper| matches!(upper.protocol, 6 | 17))
            .and_then(|upper| packet.get(upper.at + 2..upper.at + 4));
        let protocol = upper.and_then(|upper| match upper.protocol {
            // A later fragment says itself what it is a piece of, unless that is another header.
            NEXTHDR_FRAGMENT => packet
                .get(upper.at)
                .copied()
                .filter(|next| !is_ext_hdr(*next) || *next == NEXTHDR_NONE),
            protocol => Some(protocol),
        });
        within(self.saddr6, hdr.saddr)
            && within(self.daddr6, hdr.daddr)
            && self.protocol.is_none_or(|wanted| protocol == Some(wanted))
            && self
                .dport
                .is_none_or(|wanted| port == Some(&wanted.to_be_bytes()[..]))
    }
}

/// All chains, and where there are any.
#[derive(Debug, Default)]
pub(super) struct NfHooks {
    /// In the order in which they are asked.
    chains: Vec<NftChain>,
    /// A bit for each hook (`nf_hooks_needed`).
    needed: u16,
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Hooks a chain in (`nf_register_net_hook`).
    pub fn nf_register_net_hook(&mut self, chain: NftChain) {
        let chains = &mut self.nf.chains;
        let behind = chains.partition_point(|other| other.priority <= chain.priority);
        self.nf.needed |= chain.hook.bit(chain.family);
        chains.insert(behind, chain);
    }

    /// Takes all chains out again.
    pub fn nf_unregister_net_hooks(&mut self) {
        self.nf = NfHooks::default();
    }

    /// The chains in the order in which they are asked, with what their rules have counted.
    #[must_use]
    pub fn nft_chains(&self) -> &[NftChain] {
        &self.nf.chains
    }

    /// Whether a packet may pass a hook (`nf_hook`). Its data begins with its IP header.
    #[inline]
    pub(super) fn nf_hook(&mut self, hook: NfHook, skb: &SkBuff) -> bool {
        self.nf.needed & hook.bit(NfProto::Ipv4) == 0 || self.nf_hook_slow(NfProto::Ipv4, hook, skb)
    }

    /// The same for an IPv6 packet.
    #[inline]
    pub(super) fn nf_hook6(&mut self, hook: NfHook, skb: &SkBuff) -> bool {
        self.nf.needed & hook.bit(NfProto::Ipv6) == 0 || self.nf_hook_slow(NfProto::Ipv6, hook, skb)
    }

    /// The same for packets that came together; those that may not are dropped (`NF_HOOK_LIST`).
    #[inline]
    pub(super) fn nf_hook_list(&mut self, hook: NfHook, list: &mut Vec<Skb>) {
        if self.nf.needed & hook.bit(NfProto::Ipv4) != 0 {
            self.nf_hook_slow_list(hook, list);
        }
    }

    #[cold]
    fn nf_hook_slow_list(&mut self, hook: NfHook, list: &mut Vec<Skb>) {
        let _stage = self.stage("nf_hook_slow_list");
        super::each(list, |skb| {
            if self.nf_hook_slow(NfProto::Ipv4, hook, &skb) {
                return Some(skb);
            }
            self.drop_rx(skb, RxDrop::NetfilterDrop);
            None
        });
    }

    #[cold]
    fn nf_hook_slow(&mut self, family: NfProto, hook: NfHook, skb: &SkBuff) -> bool {
        let _stage = self.stage("nf_hook_slow");
        (0..self.nf.chains.len()).all(|at| {
            let chain = &self.nf.chains[at];
            (chain.family, chain.hook) != (family, hook)
                || self.nft_do_chain_ip(at, skb) == Verdict::Accept
        })
    }

    fn nft_do_chain_ip(&mut self, at: usize, skb: &SkBuff) -> Verdict {
        let _stage = self.stage(match self.nf.chains[at].family {
            NfProto::Ipv4 => "nft_do_chain_ipv4",
            NfProto::Ipv6 => "nft_do_chain_ipv6",
        });
        self.nft_do_chain(at, skb)
    }

    fn nft_do_chain(&mut self, at: usize, skb: &SkBuff) -> Verdict {
        let _stage = self.stage("nft_do_chain");
        let chain = &mut self.nf.chains[at];
        let (hook, verdict) = (chain.hook, chain.ask(skb.data(), skb.len()));
        self.changed("verdict", || format!("{hook:?}: {verdict:?}"));
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram from 10.77.0.1 to 192.168.9.2, port 7000.
    fn packet(frag_off: u16) -> [u8; 28] {
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[6..8].copy_from_slice(&frag_off.to_be_bytes());
        packet[9] = 17;
        packet[12..20].copy_from_slice(&[10, 77, 0, 1, 192, 168, 9, 2]);
        packet[22..24].copy_from_slice(&7000_u16.to_be_bytes());
        packet
    }

    fn net(addr: [u8; 4], prefix_len: u8) -> Option<(Ipv4Addr, u8)> {
        Some((addr.into(), prefix_len))
    }

    #[test]
    fn a_rule_matches_what_is_all_that_it_says() {
        let any = NftRule::default;
        for (rule, frag_off, want) in [
            (any(), 0, true),
            (
                NftRule {
                    saddr: net([10, 77, 0, 9], 24),
                    ..any()
                },
                0,
                true,
            ),
            (
                NftRule {
                    saddr: net([10, 77, 0, 9], 32),
                    ..any()
                },
                0,
                false,
            ),
            (
                NftRule {
                    daddr: net([1, 2, 3, 4], 0),
                    ..any()
                },
                0,
                true,
            ),
            (
                NftRule {
                    daddr: net([192, 168, 8, 2], 16),
                    ..any()
                },
                0,
                true,
            ),
            (
                NftRule {
                    daddr: net([192, 168, 8, 2], 24),
                    ..any()
                },
                0,
                false,
            ),
            (
                NftRule {
                    protocol: Some(17),
                    dport: Some(7000),
                    ..any()
                },
                0,
                true,
            ),
            (
                NftRule {
                    protocol: Some(6),
                    ..any()
                },
                0,
                false,
            ),
            (
                NftRule {
                    dport: Some(7001),
                    ..any()
                },
                0,
                false,
            ),
            (
                NftRule {
                    dport: Some(7000),
                    ..any()
                },
                0x2000,
                true,
            ),
            (
                NftRule {
                    dport: Some(7000),
                    ..any()
                },
                1,
                false,
            ),
        ] {
            assert_eq!(rule.matches(&packet(frag_off)), want, "{rule:?}");
        }
        assert!(!any().matches(&packet(0)[..19]), "too short");
    }

    #[test]
    fn the_first_verdict_counts_or_the_policy() {
        let mut chain = NftChain {
            family: NfProto::Ipv4,
            hook: NfHook::LocalIn,
            priority: 0,
            rules: vec![
                NftRule::default(),
                NftRule {
                    protocol: Some(6),
                    verdict: Some(Verdict::Drop),
                    ..NftRule::default()
                },
                NftRule {
                    protocol: Some(17),
                    verdict: Some(Verdict::Accept),
                    ..NftRule::default()
                },
                NftRule {
                    verdict: Some(Verdict::Drop),
                    ..NftRule::default()
                },
            ],
            policy: Verdict::Drop,
        };
        assert_eq!(chain.ask(&packet(0), 28), Verdict::Accept);
        let counted: Vec<_> = chain
            .rules
            .iter()
            .map(|rule| (rule.packets, rule.bytes))
            .collect();
        assert_eq!(counted, [(1, 28), (0, 0), (1, 28), (0, 0)]);
        chain.rules.truncate(2);
        assert_eq!(chain.ask(&packet(0), 28), Verdict::Drop, "the policy");
    }
}
