//! Data that waits for more before it is a packet (Linux: `struct inet_cork`, `ip_append_data`, `ip_make_skb`,
//! `ip_push_pending_frames`, `ip_flush_pending_frames` in `net/ipv4/ip_output.c`).
//!
//! In: what processes send by UDP, ping and raw sockets; with `MSG_MORE`, or from a socket that is corked (`UDP_CORK`), it waits. Out:
//! one packet of all of it, once something is sent without. The route and the MTU are those of the first piece. What does not fit
//! any more is refused, and all that waited is lost with it.

use super::ip_input::IPHDR_LEN;
use super::ip_options::ReplyOptions;
use super::ip_output::Flow;
use super::route::Rtable;
use super::skbuff::{MAX_HEADER, SkBuff, Skb, skb_truesize};
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// Longest IP packet (`IP_MAX_MTU`).
pub(super) const IP_MAX_MTU: usize = 0xffff;

/// Where what a socket sends is to go.
#[derive(Debug, Clone, Copy)]
pub(super) struct InetCork {
    pub rt: Rtable,
    pub saddr: u32,
    pub daddr: u32,
    pub dport: u16,
    tos: u8,
    /// Bytes of each datagram that it is to be, 0 where it is to be one.
    pub gso_size: u16,
    /// The longest packet of the route when it began.
    pub fragsize: usize,
}

/// A packet that is not complete (`sk_write_queue`): room for the transport's header, and the data behind it.
#[derive(Debug)]
pub(super) struct Pending {
    cork: InetCork,
    pub skb: Skb,
}

impl InetCork {
    /// How long a packet may be before it is fragmented: one that stands for several is taken apart later, and none is longer
    /// than it can say, whatever the device takes.
    #[inline]
    fn mtu(&self) -> usize {
        match self.gso_size {
            0 => self.fragsize.min(IP_MAX_MTU),
            _ => IP_MAX_MTU,
        }
    }
}

/// How much of a packet each fragment but the last has.
fn fragment_step(mtu: usize) -> usize {
    (mtu.saturating_sub(IPHDR_LEN) & !7).max(8)
}

/// How many fragments a packet is with `len` bytes behind its IP header.
fn fragments(len: usize, mtu: usize) -> usize {
    if IPHDR_LEN + len <= mtu {
        return 1;
    }
    len.div_ceil(fragment_step(mtu))
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Where a socket sends to by a route; `gso_size` bytes are in each datagram, unless that is 0.
    ///
    /// # Errors
    /// EBADF.
    #[inline]
    pub(super) fn ip_setup_cork(
        &self,
        at: usize,
        rt: Rtable,
        (daddr, dport): (u32, u16),
        gso_size: u16,
    ) -> Result<InetCork, Errno> {
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        Ok(InetCork {
            saddr: self.source(at, &rt),
            fragsize: self.ip_sk_mtu(sk.pmtudisc, &rt),
            rt,
            daddr,
            dport,
            tos: sk.tos,
            gso_size,
        })
    }

    /// Makes a packet of `data` behind the IP header and `transhdrlen` bytes that its transport is to fill in; nothing waits.
    ///
    /// # Errors
    /// As [`Self::ip_append_pending`].
    #[inline]
    pub(super) fn ip_make_skb(
        &mut self,
        at: usize,
        transhdrlen: usize,
        data: &[u8],
        cork: &InetCork,
        protocol: u8,
    ) -> Result<Skb, Errno> {
        let _stage = self.stage("ip_make_skb");
        let mut skb = if IPHDR_LEN + transhdrlen + data.len() <= cork.mtu() {
            let (owner, ..) = self.sock_alloc_send(at)?;
            self.__ip_append_data(transhdrlen, data, Some(owner))
        } else {
            self.__ip_append_pending(at, transhdrlen, Some(cork), data)?;
            self.ip_finish_skb(at).ok_or(Errno::EBADF)?.0
        };
        self.ip_finish_header(at, &mut skb, cork, protocol);
        Ok(skb)
    }

    /// Puts data behind what waits, or begins a packet that goes where `cork` says, with room for `transhdrlen` bytes of its
    /// transport. Where that fails, what waited is lost.
    ///
    /// # Errors
    /// EMSGSIZE: the packet would be too long; ENOBUFS: twice the send buffer waits; EINVAL: nothing waits. Where a transport
    /// begins, also those of [`Self::sock_alloc_send`].
    pub(super) fn ip_append_pending(
        &mut self,
        at: usize,
        transhdrlen: usize,
        cork: Option<&InetCork>,
        data: &[u8],
    ) -> Result<(), Errno> {
        let _stage = self.stage("ip_append_data");
        self.__ip_append_pending(at, transhdrlen, cork, data)
    }

    #[cold]
    fn __ip_append_pending(
        &mut self,
        at: usize,
        transhdrlen: usize,
        cork: Option<&InetCork>,
        data: &[u8],
    ) -> Result<(), Errno> {
        let _stage = self.stage("__ip_append_data");
        let appended = self.append_pending(at, transhdrlen, cork, data);
        appended.inspect_err(|_| self.ip_flush_pending_frames(at))
    }

    fn append_pending(
        &mut self,
        at: usize,
        transhdrlen: usize,
        cork: Option<&InetCork>,
        data: &[u8],
    ) -> Result<(), Errno> {
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        let (cork, before, added, had) = match &sk.pending {
            Some(Pending { cork, skb }) => {
                let had = fragments(skb.len(), cork.mtu());
                (*cork, skb.len(), data.len(), had)
            }
            None => {
                let added = transhdrlen + data.len();
                (*cork.ok_or(Errno::EINVAL)?, 0, added, 0)
            }
        };
        let (mtu, after) = (cork.mtu(), before + added);
        let longest = if sk.pmtudisc.ignores_df() {
            IP_MAX_MTU
        } else {
            mtu
        };
        if IPHDR_LEN + after > longest {
            self.ip_local_error(at, cork.daddr, mtu);
            return Err(Errno::EMSGSIZE);
        }
        // Linux has an skb for each fragment that it is going to be. The first is the transport's affair; for each other there is
        // to be room, of which the last has the least.
        let (mut looked_at, has) = (had, fragments(after, mtu));
        if had == 0 && transhdrlen > 0 {
            self.sock_alloc_send(at)?;
            looked_at = 1;
        }
        let overhead = skb_truesize(MAX_HEADER);
        let owner = self.sk_ref(at)?;
        let sk = self.socks.get_mut(at).ok_or(Errno::EBADF)?;
        if has > looked_at {
            let others = (has - 1 - had) * overhead
                + ((has - 1) * fragment_step(mtu)).saturating_sub(before);
            if sk.sk_wmem_alloc + others > 2 * sk.sk_sndbuf {
                self.counters.snmp.ip_out_discards += 1;
                return Err(Errno::ENOBUFS);
            }
        }
        let charged = (has - had) * overhead + data.len();
        sk.sk_wmem_alloc += charged;
        let priority = sk.sk_priority;
        let pending = sk.pending.get_or_insert_with(|| {
            let headroom = MAX_HEADER - transhdrlen;
            let mut skb = self.skb_cache.alloc_charged(headroom, added, 0);
            skb.transport_header = skb.headroom();
            skb.put(transhdrlen);
            (skb.sk, skb.priority) = (Some(owner), priority);
            Pending { cork, skb }
        });
        let skb = &mut pending.skb;
        self.skb_cache.expand_tail(skb, data.len());
        skb.truesize += charged;
        skb.put(data.len()).copy_from_slice(data);
        self.changed("sk_write_queue", || format!("{before} -> {after} bytes"));
        Ok(())
    }

    /// All that waits as a packet without its IP header, and where it is to go (`ip_finish_skb`).
    pub(super) fn ip_finish_skb(&mut self, at: usize) -> Option<(Skb, InetCork)> {
        let Pending { cork, skb } = self.socks.get_mut(at)?.pending.take()?;
        Some((skb, cork))
    }

    /// What waits is lost (`ip_flush_pending_frames`).
    pub(super) fn ip_flush_pending_frames(&mut self, at: usize) {
        if let Some((skb, _)) = self.ip_finish_skb(at) {
            self.consume_skb(skb);
        }
    }

    /// Writes the IP header of what a socket sends, as the socket wants it now.
    #[inline]
    pub(super) fn ip_finish_header(
        &mut self,
        at: usize,
        skb: &mut SkBuff,
        cork: &InetCork,
        protocol: u8,
    ) {
        let pmtudisc = self.socks.get(at).map(|sk| sk.pmtudisc);
        let flow = Flow {
            saddr: cork.saddr,
            daddr: cork.daddr,
            protocol,
            tos: cork.tos,
            df: self.ip_dont_fragment(
                pmtudisc.unwrap_or_default(),
                &cork.rt,
                IPHDR_LEN + skb.len(),
            ),
            id: self.ip_select_ident(),
        };
        self.__ip_make_skb(skb, &flow, &ReplyOptions::NONE);
        self.ip_select_ttl(&cork.rt, skb);
    }

    /// Sends what waited at a ping or a raw socket.
    pub(super) fn ip_push_skb(
        &mut self,
        at: usize,
        mut skb: Skb,
        cork: &InetCork,
        protocol: u8,
    ) -> Result<(), Errno> {
        let _stage = self.stage("ip_push_pending_frames");
        self.ip_finish_header(at, &mut skb, cork, protocol);
        self.ip_send_skb(skb, cork.rt)
    }
}
