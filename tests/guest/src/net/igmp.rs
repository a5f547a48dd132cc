//! Multicast groups (Linux: `net/ipv4/igmp.c`; RFC 1112, 2236, 3376).
//!
//! In: groups that sockets join and leave, and queries of routers. Out: whether a group's packets are for this host; reports,
//! so that routers send them here. Reports are IGMPv3's, until a query of an older version is heard. Each device is a
//! member of 224.0.0.1 without being asked, and reports nothing of that. Dropped and counted: messages that are short
//! or have a bad checksum.

use super::checksum::{csum_fold, csum_good, csum_partial};
use super::ip_options::ReplyOptions;
use super::ip_output::Flow;
use super::ipv6::ipv6_eth_mc_map;
use super::neighbour::ip_eth_mc_map;
use super::netdevice::{IFF_LOOPBACK, Ifindex, NetDevice};
use super::skbuff::{IpSummed, PktType, SkBuff, Skb};
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::features as f;

pub(super) const IPPROTO_IGMP: u8 = 2;
/// All hosts, all routers, and all routers that know IGMPv3.
const IGMP_ALL_HOSTS: u32 = 0xe000_0001;
const IGMP_ALL_ROUTER: u32 = 0xe000_0002;
const IGMPV3_ALL_MCR: u32 = 0xe000_0016;

/// Types of messages.
const IGMP_HOST_MEMBERSHIP_QUERY: u8 = 0x11;
const IGMP_HOST_MEMBERSHIP_REPORT: u8 = 0x12;
const IGMPV2_HOST_MEMBERSHIP_REPORT: u8 = 0x16;
const IGMP_HOST_LEAVE_MESSAGE: u8 = 0x17;
const IGMPV3_HOST_MEMBERSHIP_REPORT: u8 = 0x22;
/// What a record of a report says of a group, of which any source's packets are wanted or none's.
const IGMPV3_MODE_IS_EXCLUDE: u8 = 2;
const IGMPV3_CHANGE_TO_INCLUDE: u8 = 3;
const IGMPV3_CHANGE_TO_EXCLUDE: u8 = 4;

/// Bytes of a message of version 2, of a query of version 3, and of a report's header and of each record in it.
const IGMP_LEN: usize = 8;
const IGMPV3_QUERY_LEN: usize = 12;
const RECORD_LEN: usize = 8;
/// Records of one report: what fits into any MTU.
const MAX_RECORDS: usize = 64;
/// Reports are of the same precedence as routing (`0xc0`), and go no further than the link.
const TOS: u8 = 0xc0;
const TTL: u8 = 1;

const TENTH: u64 = 100_000_000;
const SECOND: u64 = 10 * TENTH;
/// How often a change is told (`igmp_qrv`).
const IGMP_QUERY_ROBUSTNESS_VARIABLE: u8 = 2;
/// How long a router's silence is waited for before version 3 is spoken again: twice the time between its queries, and
/// that for the answers.
const OLDER_VERSION_TIME: u64 = (2 * 125 + 10) * SECOND;
/// Up to when a change is told again (`igmpv2_unsolicited_report_interval` and `igmpv3_`...).
const V2_UNSOLICITED: u64 = 10 * SECOND;
const V3_UNSOLICITED: u64 = SECOND;
/// Soon.
const INITIAL_REPORT_DELAY: u64 = 4_000_000;

/// A group of a device (`struct ip_mc_list`).
#[derive(Debug)]
struct IpMcList {
    dev: Ifindex,
    multiaddr: u32,
    /// Sockets that are in it; 0 for one that was left and of which that is still to be told.
    users: u32,
    /// How often its change is still to be told.
    crcount: u8,
    /// When to report it; and whether it is because it was joined or left.
    timer: Option<u64>,
    change: bool,
    /// This host was the last that reported it.
    reporter: bool,
}

/// All groups, and what is known of the routers.
#[derive(Debug)]
pub(super) struct Igmp {
    groups: Vec<IpMcList>,
    /// Until when version 2 is spoken on devices where it was heard (`mr_v2_seen`).
    v2_seen: Vec<(Ifindex, u64)>,
    seed: u32,
    timer: Option<u64>,
}

impl Default for Igmp {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            v2_seen: Vec::new(),
            seed: 1,
            timer: None,
        }
    }
}

impl Igmp {
    pub fn next_timer(&self) -> Option<u64> {
        self.timer
    }

    fn restart_timer(&mut self) {
        self.timer = self.groups.iter().filter_map(|group| group.timer).min();
    }

    /// Whether a device takes a group's packets (`ip_check_mc_rcu`).
    pub fn is_member(&self, dev: Ifindex, multiaddr: u32) -> bool {
        multiaddr == IGMP_ALL_HOSTS
            || self
                .groups
                .iter()
                .any(|group| group.dev == dev && group.multiaddr == multiaddr && group.users > 0)
    }

    fn group(&mut self, dev: Ifindex, multiaddr: u32) -> Option<&mut IpMcList> {
        let is = |group: &&mut IpMcList| group.dev == dev && group.multiaddr == multiaddr;
        self.groups.iter_mut().find(is)
    }

    /// Some time below `max`, not always the same, so that hosts do not all speak at once.
    fn delay(&mut self, max: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        ((u128::from(self.seed) * u128::from(max)) >> 32) as u64
    }

    fn speaks_v2(&self, dev: Ifindex, now: u64) -> bool {
        self.v2_seen
            .iter()
            .any(|&seen| seen.0 == dev && now < seen.1)
    }

    /// A router on that device's link speaks version 2.
    fn saw_v2(&mut self, dev: Ifindex, until: u64) {
        match self.v2_seen.iter_mut().find(|seen| seen.0 == dev) {
            Some(seen) => seen.1 = until,
            None => self.v2_seen.push((dev, until)),
        }
    }
}

/// What a query's octet says in tenths of a second (`IGMPV3_MRC`).
fn max_resp_code(code: u8) -> u64 {
    let code = u64::from(code);
    if code < 0x80 {
        code
    } else {
        (code & 0xf | 0x10) << ((code >> 4 & 7) + 3)
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// A socket joins a group (`ip_mc_inc_group`).
    pub(super) fn ip_mc_inc_group(&mut self, dev: Ifindex, multiaddr: u32) {
        if multiaddr == IGMP_ALL_HOSTS {
            return;
        }
        let known = self.igmp.group(dev, multiaddr);
        let was_left = known.as_ref().is_some_and(|group| group.users == 0);
        match known {
            Some(group) => group.users += 1,
            None => self.igmp.groups.push(IpMcList {
                dev,
                multiaddr,
                users: 1,
                crcount: 0,
                timer: None,
                change: false,
                reporter: false,
            }),
        }
        let joined = self.igmp.group(dev, multiaddr);
        if was_left || joined.is_some_and(|group| group.users == 1) {
            self.igmp_group_changed(dev, multiaddr);
        }
    }

    /// A socket leaves a group (`__ip_mc_dec_group`).
    pub(super) fn ip_mc_dec_group(&mut self, dev: Ifindex, multiaddr: u32) {
        if let Some(group) = self.igmp.group(dev, multiaddr) {
            group.users = group.users.saturating_sub(1);
            if group.users == 0 {
                self.igmp_group_changed(dev, multiaddr);
            }
        }
    }

    /// A group was joined, or left by its last socket: routers are told, and the device.
    fn igmp_group_changed(&mut self, dev: Ifindex, multiaddr: u32) {
        let now = self.machine.now();
        let v2 = self.igmp.speaks_v2(dev, now);
        let silent = self.netdevs[dev].flags & IFF_LOOPBACK != 0;
        let delay = self.igmp.delay(INITIAL_REPORT_DELAY);
        let mut leaves = false;
        if let Some(group) = self.igmp.group(dev, multiaddr) {
            leaves = group.users == 0 && v2;
            if silent || leaves {
                (group.timer, group.crcount) = (None, 0);
            } else {
                group.crcount = IGMP_QUERY_ROBUSTNESS_VARIABLE;
                (group.timer, group.change) = (Some(now.saturating_add(delay)), true);
            }
            leaves &= group.reporter && !silent;
        }
        if leaves {
            self.igmp_send(dev, IGMP_HOST_LEAVE_MESSAGE, multiaddr, IGMP_ALL_ROUTER);
        }
        self.igmp
            .groups
            .retain(|group| group.users > 0 || group.timer.is_some());
        self.igmp.restart_timer();
        self.dev_set_rx_mode(dev);
    }

    /// Has the device take the frames of its groups, and of those of its VLANs (`__dev_set_rx_mode`,
    /// `vlan_dev_set_rx_mode`). One that cannot filter takes all.
    pub(super) fn dev_set_rx_mode(&mut self, dev: Ifindex) {
        let real_dev = self.vlan_dev_real_dev(dev);
        if real_dev != Ifindex::ETH0 || self.dev.features() & f::CTRL_RX == 0 {
            return;
        }
        let joined = self
            .igmp
            .groups
            .iter()
            .filter(|group| group.users > 0 && self.vlan_dev_real_dev(group.dev) == real_dev);
        let groups = std::iter::once(IGMP_ALL_HOSTS).chain(joined.map(|group| group.multiaddr));
        let mut table: Vec<_> = groups.map(ip_eth_mc_map).collect();
        let devices = self.net_devices().iter().map(NetDevice::ifindex);
        let these = devices.filter(|dev| self.vlan_dev_real_dev(*dev) == real_dev);
        table.extend(
            these
                .flat_map(|dev| self.ipv6_groups(dev))
                .map(ipv6_eth_mc_map),
        );
        // Several groups may have one address.
        table.sort_unstable();
        table.dedup();
        // A device that refuses filters on as before; Linux warns, too.
        let _ = self.dev.set_mac_table(&[], &table);
    }

    pub(super) fn igmp_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("igmp_rcv");
        let message = skb.data();
        let whole = message.len() >= IGMP_LEN
            && (skb.ip_summed != IpSummed::None || csum_good(csum_partial(message, 0)));
        if !whole {
            return self.drop_rx(skb, RxDrop::IgmpInvalid);
        }
        match message[0] {
            IGMP_HOST_MEMBERSHIP_QUERY => self.igmp_heard_query(&skb),
            IGMP_HOST_MEMBERSHIP_REPORT | IGMPV2_HOST_MEMBERSHIP_REPORT => {
                self.igmp_heard_report(&skb);
            }
            _ => {}
        }
        self.counters.consumed += 1;
        self.consume_skb(skb);
    }

    /// A router asks who is in a group, or which groups there are: each is reported some time before it wants to know.
    fn igmp_heard_query(&mut self, skb: &SkBuff) {
        let _stage = self.stage("igmp_heard_query");
        let (message, dev) = (skb.data(), skb.dev);
        let now = self.machine.now();
        let asked = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
        let max_delay = match (message.len(), message[1]) {
            (IGMP_LEN, 0) => 10 * SECOND,
            (IGMP_LEN, code) => u64::from(code) * TENTH,
            (len, _) if len < IGMPV3_QUERY_LEN => return,
            (_, code) => max_resp_code(code).max(1) * TENTH,
        };
        if message.len() == IGMP_LEN {
            self.igmp
                .saw_v2(dev, now.saturating_add(OLDER_VERSION_TIME));
        }
        for at in 0..self.igmp.groups.len() {
            let delay = self.igmp.delay(max_delay);
            let due = now.saturating_add(delay);
            let group = &mut self.igmp.groups[at];
            let wanted = asked == 0 || asked == group.multiaddr;
            let sooner = group.timer.is_none_or(|timer| timer > due);
            if group.dev == dev && group.users > 0 && wanted && sooner {
                (group.timer, group.change) = (Some(due), false);
            }
        }
        self.igmp.restart_timer();
    }

    /// Another host has reported a group (not this one itself): that is enough for those who count nobody.
    fn igmp_heard_report(&mut self, skb: &SkBuff) {
        if !matches!(skb.pkt_type, PktType::Multicast | PktType::Broadcast) {
            return;
        }
        let message = skb.data();
        let multiaddr = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
        if let Some(group) = self.igmp.group(skb.dev, multiaddr)
            && group.users > 0
        {
            (group.timer, group.reporter) = (None, false);
            self.igmp.restart_timer();
        }
    }

    /// The timer's soft interrupt: reports that are due.
    pub(super) fn igmp_timer_expire(&mut self) {
        let now = self.machine.now();
        if self.igmp.timer.is_none_or(|timer| timer > now) {
            return;
        }
        let _stage = self.stage("igmp_timer_expire");
        let mut records = [(Ifindex::LO, 0, 0); MAX_RECORDS];
        let mut count = 0;
        for at in 0..self.igmp.groups.len() {
            let v2 = self.igmp.speaks_v2(self.igmp.groups[at].dev, now);
            let delay = self
                .igmp
                .delay(if v2 { V2_UNSOLICITED } else { V3_UNSOLICITED });
            let group = &mut self.igmp.groups[at];
            if group.timer.is_none_or(|timer| timer > now) || count == MAX_RECORDS {
                continue;
            }
            let record = match (group.change, group.users) {
                (false, _) => IGMPV3_MODE_IS_EXCLUDE,
                (true, 0) => IGMPV3_CHANGE_TO_INCLUDE,
                (true, _) => IGMPV3_CHANGE_TO_EXCLUDE,
            };
            (group.timer, group.reporter) = (None, true);
            group.crcount = group.crcount.saturating_sub(u8::from(group.change));
            if group.crcount > 0 {
                (group.timer, group.change) = (Some(now.saturating_add(delay)), true);
            }
            records[count] = (group.dev, group.multiaddr, record);
            count += 1;
        }
        self.igmp
            .groups
            .retain(|group| group.users > 0 || group.timer.is_some());
        self.igmp.restart_timer();
        let mut rest = &records[..count];
        while let Some(&(dev, multiaddr, _)) = rest.first() {
            let same = rest.iter().take_while(|record| record.0 == dev).count();
            if self.igmp.speaks_v2(dev, now) {
                self.igmp_send(dev, IGMPV2_HOST_MEMBERSHIP_REPORT, multiaddr, multiaddr);
                rest = &rest[1..];
            } else {
                self.igmpv3_send_report(dev, &rest[..same]);
                rest = &rest[same..];
            }
        }
    }

    /// A report of version 3, or several changes in one.
    fn igmpv3_send_report(&mut self, dev: Ifindex, records: &[(Ifindex, u32, u8)]) {
        let _stage = self.stage("igmpv3_send_report");
        let mut message = [0; IGMP_LEN + MAX_RECORDS * RECORD_LEN];
        message[0] = IGMPV3_HOST_MEMBERSHIP_REPORT;
        message[7] = records.len() as u8;
        let places = message[IGMP_LEN..].chunks_exact_mut(RECORD_LEN);
        for (place, (_, multiaddr, record)) in places.zip(records) {
            place[0] = *record;
            place[4..].copy_from_slice(&multiaddr.to_be_bytes());
        }
        let len = IGMP_LEN + records.len() * RECORD_LEN;
        self.igmp_xmit(dev, &mut message[..len], IGMPV3_ALL_MCR);
    }

    /// A message of version 2.
    fn igmp_send(&mut self, dev: Ifindex, igmp_type: u8, multiaddr: u32, daddr: u32) {
        let _stage = self.stage("igmp_send_report");
        let mut message = [0; IGMP_LEN];
        message[0] = igmp_type;
        message[4..].copy_from_slice(&multiaddr.to_be_bytes());
        self.igmp_xmit(dev, &mut message, daddr);
    }

    fn igmp_xmit(&mut self, dev: Ifindex, message: &mut [u8], daddr: u32) {
        let check = csum_fold(csum_partial(message, 0));
        message[2..4].copy_from_slice(&check);
        let rt = self.ip_route_output_mc(daddr, dev);
        let flow = Flow {
            saddr: rt.saddr,
            daddr,
            protocol: IPPROTO_IGMP,
            tos: TOS,
            df: true,
            id: self.ip_select_ident(),
        };
        let mut skb = self.ip_append_data(message, None);
        self.__ip_make_skb(&mut skb, &flow, &ReplyOptions::ROUTER_ALERT);
        skb.data_mut()[8] = TTL;
        // Nobody waits for it: what the filter makes of it is counted.
        let _ = self.ip_local_out(skb, rt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_times_are_floating_point_numbers() {
        for (code, tenths) in [(0, 0), (100, 100), (127, 127), (128, 128), (255, 31_744)] {
            assert_eq!(max_resp_code(code), tenths, "{code}");
        }
    }

    #[test]
    fn delays_are_below_their_limit_and_differ() {
        let mut igmp = Igmp::default();
        let delays: Vec<_> = (0..100).map(|_| igmp.delay(SECOND)).collect();
        assert!(delays.iter().all(|delay| *delay < SECOND));
        let mut different = delays.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), 100);
    }
}
