//! Options of IP headers (Linux: `net/ipv4/ip_options.c`, RFC 791, 3.1).
//!
//! In: the headers of received packets that have options, which few have. Out: the same, with this host's address and time
//! filled in where options ask for that; what an answer to the packet has for options. Refused: options that contradict
//! themselves, whose sender is told which octet is wrong, and source routes (RFC 1122, 3.2.1.8).

use super::icmp::ICMP_PARAMETERPROB;
use super::ip_input::IPHDR_LEN;
use super::ip_output::ip_send_check;
use super::netdevice::Ifindex;
use super::route::RtType;
use super::skbuff::SkBuff;
use super::stats::RxDrop;
use super::{Kernel, Machine};
use crate::transport::Transport;

/// Bytes of the longest options.
const MAX_IPOPTLEN: usize = 40;

/// Kinds of options.
const IPOPT_END: u8 = 0;
const IPOPT_NOOP: u8 = 1;
const IPOPT_RR: u8 = 7;
const IPOPT_TIMESTAMP: u8 = 68;
const IPOPT_LSRR: u8 = 131;
const IPOPT_SSRR: u8 = 137;
const IPOPT_RA: u8 = 148;
/// An option that each fragment has (`IPOPT_COPIED`).
const IPOPT_COPY: u8 = 0x80;

/// What of a timestamp option is to be filled in.
const IPOPT_TS_TSONLY: u8 = 0;
const IPOPT_TS_TSANDADDR: u8 = 1;
const IPOPT_TS_PRESPEC: u8 = 3;

/// Where options are in a header, as offsets from its beginning, 0 where there are none (`struct ip_options`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct IpOptions {
    srr: u8,
    pub(super) rr: u8,
    ts: u8,
    /// Who forwards the packet is to look into it.
    router_alert: u8,
    /// There was room for this host's address or time.
    rr_needaddr: bool,
    ts_needaddr: bool,
    ts_needtime: bool,
}

/// Options of a packet to send, padded to whole words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplyOptions {
    opt: IpOptions,
    data: [u8; MAX_IPOPTLEN],
    optlen: usize,
}

/// What this host fills in.
struct Own<'a> {
    addr: u32,
    /// Milliseconds since midnight, UT.
    time: u32,
    addr_type: &'a dyn Fn(u32) -> RtType,
}

/// Writes a word at `at`, which was found to be within the header.
fn put(header: &mut [u8], at: usize, word: u32) {
    if let Some(field) = header.get_mut(at..at + 4) {
        field.copy_from_slice(&word.to_be_bytes());
    }
}

fn get(header: &[u8], at: usize) -> u32 {
    let field = header.get(at..at + 4).and_then(|field| field.first_chunk());
    field.map_or(0, |field| u32::from_be_bytes(*field))
}

impl IpOptions {
    /// Reads the options of a whole header, and fills in what they ask for (`__ip_options_compile`).
    ///
    /// # Errors
    /// Which octet is wrong; what was read before stays.
    fn compile(&mut self, header: &mut [u8], own: &Own<'_>) -> Result<(), usize> {
        let end = header.len();
        let mut at = IPHDR_LEN;
        while at < end {
            match header[at] {
                IPOPT_END => {
                    header[at..].fill(IPOPT_END);
                    return Ok(());
                }
                IPOPT_NOOP => {
                    at += 1;
                    continue;
                }
                _ => {}
            }
            let len = usize::from(*header.get(at + 1).ok_or(at)?);
            if len < 2 || at + len > end {
                return Err(at);
            }
            let option = &mut header[at..at + len];
            let wrong = match option[0] {
                IPOPT_SSRR | IPOPT_LSRR => self.source_route(option, at),
                IPOPT_RR => self.record_route(option, at, own),
                IPOPT_TIMESTAMP => self.timestamp(option, at, own),
                IPOPT_RA if len < 4 => Some(1),
                IPOPT_RA => {
                    if option[2..4] == [0, 0] {
                        self.router_alert = at as u8;
                    }
                    None
                }
                _ => None,
            };
            if let Some(wrong) = wrong {
                return Err(at + wrong);
            }
            at += len;
        }
        Ok(())
    }

    fn source_route(&mut self, option: &[u8], at: usize) -> Option<usize> {
        if option.len() < 3 {
            return Some(1);
        }
        if option[2] < 4 {
            return Some(2);
        }
        if self.srr != 0 {
            return Some(0);
        }
        self.srr = at as u8;
        None
    }

    fn record_route(&mut self, option: &mut [u8], at: usize, own: &Own<'_>) -> Option<usize> {
        if self.rr != 0 {
            return Some(0);
        }
        if option.len() < 3 {
            return Some(1);
        }
        let pointer = usize::from(option[2]);
        if pointer < 4 {
            return Some(2);
        }
        if pointer <= option.len() {
            if pointer + 3 > option.len() {
                return Some(2);
            }
            put(option, pointer - 1, own.addr);
            option[2] += 4;
            self.rr_needaddr = true;
        }
        self.rr = at as u8;
        None
    }

    fn timestamp(&mut self, option: &mut [u8], at: usize, own: &Own<'_>) -> Option<usize> {
        if self.ts != 0 {
            return Some(0);
        }
        if option.len() < 4 {
            return Some(1);
        }
        let pointer = usize::from(option[2]);
        if pointer < 5 {
            return Some(2);
        }
        let kind = option[3] & 0xf;
        if pointer > option.len() {
            if kind != IPOPT_TS_PRESPEC {
                // One more host for which there was no room.
                if option[3] >> 4 == 15 {
                    return Some(3);
                }
                option[3] += 0x10;
            }
            self.ts = at as u8;
            return None;
        }
        let room = |len: usize| pointer + len - 1 <= option.len();
        if !room(4) || matches!(kind, IPOPT_TS_TSANDADDR | IPOPT_TS_PRESPEC) && !room(8) {
            return Some(2);
        }
        match kind {
            IPOPT_TS_TSONLY => {
                put(option, pointer - 1, own.time);
                option[2] += 4;
                self.ts_needtime = true;
            }
            IPOPT_TS_TSANDADDR => {
                put(option, pointer - 1, own.addr);
                put(option, pointer + 3, own.time);
                option[2] += 8;
                (self.ts_needaddr, self.ts_needtime) = (true, true);
            }
            IPOPT_TS_PRESPEC if (own.addr_type)(get(option, pointer - 1)) != RtType::Unicast => {
                put(option, pointer + 3, own.time);
                option[2] += 8;
                self.ts_needtime = true;
            }
            _ => {}
        }
        self.ts = at as u8;
        None
    }
}

impl ReplyOptions {
    /// What most packets have.
    pub const NONE: Self = Self {
        opt: IpOptions {
            srr: 0,
            rr: 0,
            ts: 0,
            router_alert: 0,
            rr_needaddr: false,
            ts_needaddr: false,
            ts_needtime: false,
        },
        data: [IPOPT_END; MAX_IPOPTLEN],
        optlen: 0,
    };

    /// That who forwards the packet is to look into it (RFC 2113).
    pub const ROUTER_ALERT: Self = {
        let mut options = Self::NONE;
        (options.data[0], options.data[1]) = (IPOPT_RA, 4);
        options.optlen = 4;
        options
    };

    /// Bytes of them, whole words.
    pub fn optlen(&self) -> usize {
        self.optlen
    }

    /// What an answer to a packet with that header has: the route is recorded and timestamps are taken on the way back,
    /// too (`__ip_options_echo`); `None` when there would be no room.
    fn echo(header: &[u8], opt: &IpOptions, addr_type: impl Fn(u32) -> RtType) -> Option<Self> {
        let mut reply = Self::NONE;
        if opt.rr != 0 {
            let option = reply.copy(header, opt.rr, 3)?;
            let at = usize::from(option[2]);
            if opt.rr_needaddr && at <= option.len() {
                if at + 3 > option.len() {
                    return None;
                }
                option[2] += 4;
                reply.opt.rr_needaddr = true;
            }
            reply.opt.rr = (IPHDR_LEN + reply.optlen) as u8;
            reply.optlen += usize::from(header[usize::from(opt.rr) + 1]);
        }
        if opt.ts != 0 {
            let option = reply.copy(header, opt.ts, 4)?;
            let mut at = usize::from(option[2]);
            let (mut needaddr, mut needtime) = (false, false);
            if at <= option.len() {
                if opt.ts_needaddr {
                    if at + 3 > option.len() {
                        return None;
                    }
                    needaddr = true;
                    at += 4;
                }
                if opt.ts_needtime {
                    if at + 3 > option.len() {
                        return None;
                    }
                    if option[3] & 0xf != IPOPT_TS_PRESPEC {
                        needtime = true;
                        at += 4;
                    } else if at + 7 <= option.len()
                        && addr_type(get(option, at - 1)) != RtType::Unicast
                    {
                        needtime = true;
                        at += 8;
                    }
                }
                option[2] = at as u8;
            }
            (reply.opt.ts_needaddr, reply.opt.ts_needtime) = (needaddr, needtime);
            reply.opt.ts = (IPHDR_LEN + reply.optlen) as u8;
            reply.optlen += usize::from(header[usize::from(opt.ts) + 1]);
        }
        reply.optlen = reply.optlen.next_multiple_of(4);
        Some(reply)
    }

    /// Copies the option at `at` of a header behind what is there, and lends it, if it has `least` octets.
    fn copy(&mut self, header: &[u8], at: u8, least: usize) -> Option<&mut [u8]> {
        let at = usize::from(at);
        let len = usize::from(*header.get(at + 1)?);
        if len < least {
            return None;
        }
        let to = self.data.get_mut(self.optlen..self.optlen + len)?;
        to.copy_from_slice(header.get(at..at + len)?);
        Some(to)
    }

    /// The options as they are sent (`ip_options_build`), by a host with that address at that time.
    pub fn build(&self, addr: u32, time: u32) -> ([u8; MAX_IPOPTLEN], usize) {
        let mut data = self.data;
        // Where the pointer of an option was before its last `back` octets were taken.
        let place = |data: &[u8], at: u8, back: usize| {
            let at = usize::from(at) - IPHDR_LEN;
            at + usize::from(data[at + 2]) - 1 - back
        };
        let opt = &self.opt;
        if opt.rr_needaddr {
            let at = place(&data, opt.rr, 4);
            put(&mut data, at, addr);
        }
        if opt.ts_needaddr {
            let at = place(&data, opt.ts, 8);
            put(&mut data, at, addr);
        }
        if opt.ts_needtime {
            let at = place(&data, opt.ts, 4);
            put(&mut data, at, time);
        }
        (data, self.optlen)
    }
}

/// Takes out of a header what only the first fragment has (`ip_options_fragment`).
pub(super) fn ip_options_fragment(header: &mut [u8]) {
    let mut at = IPHDR_LEN;
    while at < header.len() {
        let len = match header[at] {
            IPOPT_END => return,
            IPOPT_NOOP => 1,
            _ => header.get(at + 1).map_or(0, |len| usize::from(*len)),
        };
        if len == 0 || at + len > header.len() || len < 2 && header[at] != IPOPT_NOOP {
            return;
        }
        if header[at] & IPOPT_COPY == 0 {
            header[at..at + len].fill(IPOPT_NOOP);
        }
        at += len;
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Milliseconds since midnight, UT, if the machine's epoch was a midnight (`inet_current_timestamp`).
    pub(super) fn inet_current_timestamp(&self) -> u32 {
        const MSEC_PER_DAY: u64 = 24 * 60 * 60 * 1000;
        (self.machine.now() / 1_000_000 % MSEC_PER_DAY) as u32
    }

    /// Options of a received packet, whose route is known; why it is dropped.
    #[cold]
    pub(super) fn ip_rcv_options(&mut self, skb: &mut SkBuff) -> Result<(), RxDrop> {
        let _stage = self.stage("ip_rcv_options");
        let compiling = self.stage("__ip_options_compile");
        let own = Own {
            addr: self.spec_dst_fill(skb),
            time: self.inet_current_timestamp(),
            addr_type: &|addr| self.inet_addr_type(addr),
        };
        let hdr_len = usize::from(skb.ip.hdr_len);
        let mut opt = IpOptions::default();
        let compiled = match skb.data_mut().get_mut(..hdr_len) {
            Some(header) => opt.compile(header, &own),
            None => Err(0),
        };
        drop(compiling);
        skb.opt = opt;
        if let Err(at) = compiled {
            self.icmp_send(skb, ICMP_PARAMETERPROB, 0, (at as u32) << 24);
            return Err(RxDrop::IpInHdrErrors);
        }
        if opt.srr != 0 {
            return Err(RxDrop::IpInSourceRoute);
        }
        Ok(())
    }

    /// The address by which this host was addressed, or would answer (`spec_dst_fill`).
    fn spec_dst_fill(&self, skb: &SkBuff) -> u32 {
        if skb.rt_type() == RtType::Local {
            skb.ip.daddr
        } else {
            self.inet_select_addr(skb.dev, skb.ip.saddr)
        }
    }

    /// A packet that is sent on leaves by another address than that by which it came: where it says this host's, it is to be
    /// the one towards `next_hop` on `dev`.
    #[cold]
    pub(super) fn ip_forward_options(&self, skb: &mut SkBuff, dev: Ifindex, next_hop: u32) {
        let _stage = self.stage("ip_forward_options");
        let (opt, hdr_len) = (skb.opt, skb.ip.hdr_len());
        let addr = self.inet_select_addr(dev, next_hop);
        let Some(header) = skb.data_mut().get_mut(..hdr_len) else {
            return;
        };
        // Before the pointer, which was moved when the packet came.
        let needs = [(opt.rr_needaddr, opt.rr, 5), (opt.ts_needaddr, opt.ts, 9)];
        for (_, at, back) in needs.into_iter().filter(|need| need.0) {
            let at = usize::from(at);
            let pointer = header
                .get(at + 2)
                .map_or(0, |pointer| usize::from(*pointer));
            if let Some(back) = pointer.checked_sub(back) {
                put(header, at + back, addr);
            }
        }
        ip_send_check(header);
    }

    /// What an answer to a packet that was received has for options, and none to one that this host made; `None` where
    /// that is not possible.
    pub(super) fn ip_options_echo(&self, skb: &SkBuff) -> Option<ReplyOptions> {
        if usize::from(skb.ip.hdr_len) <= IPHDR_LEN {
            return Some(ReplyOptions::NONE);
        }
        let _stage = self.stage("__ip_options_echo");
        ReplyOptions::echo(skb.network(), &skb.opt, |addr| self.inet_addr_type(addr))
    }
}

#[cfg(test)]
mod tests;
