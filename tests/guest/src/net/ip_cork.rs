//! Data that waits for more before it is a packet (Linux: `struct inet_cork`, `ip_append_data`, `ip_push_pending_frames`,
//! `ip_flush_pending_frames` in `net/ipv4/ip_output.c`).
//!
//! In: what a process sends with `MSG_MORE`, or from a socket that is corked (`UDP_CORK`). Out: one packet of all of it, once
//! something is sent without. The route and the MTU are those of the first piece. What does not fit any more is refused, and
//! all that waited is lost with it.

use super::ip_input::IPHDR_LEN;
use super::ip_output::Flow;
use super::route::Rtable;
use super::skbuff::{MAX_HEADER, Skb, skb_truesize};
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// Longest IP packet (`IP_MAX_MTU`).
const IP_MAX_MTU: usize = 0xffff;

/// Where what waits is to go.
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
    /// What its IP header says.
    pub fn flow(&self, protocol: u8, df: bool, id: u16) -> Flow {
        Flow {
            saddr: self.saddr,
            daddr: self.daddr,
            protocol,
            tos: self.tos,
            df,
            id,
        }
    }
}

/// How many fragments a packet is with `len` bytes behind its IP header.
fn fragments(len: usize, mtu: usize) -> usize {
    if IPHDR_LEN + len <= mtu {
        return 1;
    }
    len.div_ceil((mtu.saturating_sub(IPHDR_LEN) & !7).max(8))
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Begins a packet with room for `transhdrlen` bytes of its transport (`ip_setup_cork`).
    ///
    /// # Errors
    /// As [`Self::sock_alloc_send`].
    #[cold]
    pub(super) fn ip_setup_cork(
        &mut self,
        at: usize,
        transhdrlen: usize,
        (rt, daddr, dport): (Rtable, u32, u16),
        gso_size: u16,
    ) -> Result<(), Errno> {
        let (owner, _, tos) = self.sock_alloc_send(at)?;
        let pmtudisc = self.socks.get(at).ok_or(Errno::EBADF)?.pmtudisc;
        let cork = InetCork {
            rt,
            saddr: self.source(at, &rt),
            daddr,
            dport,
            tos,
            gso_size,
            // No packet is longer, whatever lo may send.
            fragsize: self.ip_sk_mtu(pmtudisc, &rt).min(IP_MAX_MTU),
        };
        // It has room for the longest, and its socket is charged for what is in it.
        let (headroom, room) = (MAX_HEADER - transhdrlen, IP_MAX_MTU - IPHDR_LEN);
        let charged = skb_truesize(MAX_HEADER);
        let mut skb = self.skb_cache.alloc_charged(headroom, room, charged);
        skb.transport_header = skb.headroom();
        skb.put(transhdrlen);
        self.skb_set_owner_w(&mut skb, owner);
        if let Some(sk) = self.socks.get_mut(at) {
            sk.pending = Some(Pending { cork, skb });
        }
        Ok(())
    }

    /// Puts data behind what waits (`__ip_append_data`).
    ///
    /// # Errors
    /// EMSGSIZE: the packet would be too long; ENOBUFS: twice the send buffer waits; EINVAL: nothing waits.
    #[cold]
    pub(super) fn ip_append_pending(&mut self, at: usize, data: &[u8]) -> Result<(), Errno> {
        let _stage = self.stage("__ip_append_data");
        let sk = self.socks.get_mut(at).ok_or(Errno::EBADF)?;
        let Pending { cork, skb } = sk.pending.as_mut().ok_or(Errno::EINVAL)?;
        let mtu = match cork.gso_size {
            0 => cork.fragsize,
            _ => IP_MAX_MTU,
        };
        let longest = if sk.pmtudisc.ignores_df() {
            IP_MAX_MTU
        } else {
            mtu
        };
        let (before, after) = (skb.len(), skb.len() + data.len());
        if IPHDR_LEN + after > longest {
            let to = (cork.daddr, cork.dport);
            self.ip_local_error(at, to, mtu);
            return Err(Errno::EMSGSIZE);
        }
        // Linux has an skb for each fragment that it is going to be.
        let more = fragments(after, mtu) - fragments(before, mtu);
        if more > 0 && sk.sk_wmem_alloc > 2 * sk.sk_sndbuf {
            self.counters.snmp.ip_out_discards += 1;
            return Err(Errno::ENOBUFS);
        }
        let charged = more * skb_truesize(MAX_HEADER) + data.len();
        sk.sk_wmem_alloc += charged;
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
}
