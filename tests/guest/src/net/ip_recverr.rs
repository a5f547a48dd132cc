//! Errors that a socket keeps for its process (`IP_RECVERR`; Linux: `ip_icmp_error`, `ip_local_error` and `ip_recv_error` in
//! `net/ipv4/ip_sockglue.c`, `sock_queue_err_skb` and `sock_dequeue_err_skb` in `net/core/skbuff.c`).
//!
//! In: what routers and peers answer to packets that a socket sent, and what was too long to be sent. Out: the same in order, each
//! with where the packet was to go and what of it came back. What the socket's receive buffer has no room for is not kept.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::icmp::IcmpError;
use super::skbuff::{Skb, skb_truesize};
use super::sock::Proto;
use super::{Errno, Fd, Kernel, Machine};
use crate::transport::Transport;

/// Room in the shortest buffers of Linux (`SKB_SMALL_HEAD_SIZE`), of which it takes one for an error of its own.
const SMALL_HEAD: usize = 256;

/// Who says so (`SO_EE_ORIGIN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EeOrigin {
    /// This host.
    Local,
    /// A message of ICMP.
    Icmp,
}

/// An error (`struct sock_extended_err`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SockExtendedErr {
    /// What it means.
    pub ee_errno: Errno,
    /// Who says so.
    pub ee_origin: EeOrigin,
    /// Type of the message, 0 of this host.
    pub ee_type: u8,
    /// Its code.
    pub ee_code: u8,
    /// What passes, of what was too long.
    pub ee_info: u32,
    /// Who sent the message (`SO_EE_OFFENDER`).
    pub offender: Option<Ipv4Addr>,
    /// Where the packet was to go.
    pub addr: SocketAddrV4,
}

/// Errors that wait, with what of the packets came back (`sk_error_queue`), of a socket that asked for them.
#[derive(Debug, Default)]
pub(super) struct ErrorQueue {
    pub wanted: bool,
    pub queue: VecDeque<(SockExtendedErr, Skb)>,
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Has a socket keep what becomes of what it sends, or no longer (`IP_RECVERR`). Of a stream nothing is kept: its calls
    /// tell of it.
    ///
    /// # Errors
    /// EBADF; ENOPROTOOPT for a packet socket.
    pub fn set_recverr(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        let sk = self.sock_mut(fd)?;
        if sk.sk_prot == Proto::Packet {
            return Err(Errno::ENOPROTOOPT);
        }
        sk.errors.wanted = on;
        if on {
            return Ok(());
        }
        let purged = std::mem::take(&mut sk.errors.queue);
        sk.sk_rmem_alloc -= purged.iter().map(|(_, skb)| skb.truesize).sum::<usize>();
        for (_, skb) in purged {
            self.skb_cache.put(skb);
        }
        Ok(())
    }

    /// Takes the oldest error, and copies what of the packet came back to `buf`; how much (`recvmsg` with `MSG_ERRQUEUE`).
    ///
    /// # Errors
    /// EBADF; EAGAIN when there is none.
    pub fn recv_error(
        &mut self,
        fd: Fd,
        buf: &mut [u8],
    ) -> Result<(usize, SockExtendedErr), Errno> {
        let _stage = self.stage("ip_recv_error");
        let sk = self.sock_mut(fd)?;
        let (error, skb) = sk.errors.queue.pop_front().ok_or(Errno::EAGAIN)?;
        sk.sk_rmem_alloc -= skb.truesize;
        // What a call would be told of this one it is told of the next.
        let next = sk.errors.queue.front().map(|(next, _)| next);
        match next.filter(|next| next.ee_origin == EeOrigin::Icmp) {
            Some(next) => sk.sk_err = Some(next.ee_errno),
            None if error.ee_origin == EeOrigin::Icmp => sk.sk_err = None,
            None => {}
        }
        let len = skb.copy_bits(0, buf);
        self.skb_cache.put(skb);
        Ok((len, error))
    }

    /// What came back of a packet to `to` (`ip_icmp_error`).
    pub(super) fn ip_icmp_error(
        &mut self,
        at: usize,
        (error, ee_errno): (IcmpError, Errno),
        to: (u32, u16),
        payload: &[u8],
    ) {
        let _stage = self.stage("ip_icmp_error");
        let (ee_type, ee_code) = error.type_and_code();
        let kept = SockExtendedErr {
            ee_errno,
            ee_origin: EeOrigin::Icmp,
            ee_type,
            ee_code,
            ee_info: error.info,
            offender: Some(Ipv4Addr::from_bits(error.offender)),
            addr: SocketAddrV4::new(to.0.into(), to.1),
        };
        self.sock_queue_err_skb(at, kept, payload, error.truesize);
    }

    /// A packet to `daddr` is longer than the `mtu` octets that pass (`ip_local_error`); the port is that of the connection, if the
    /// socket has one.
    #[cold]
    pub(super) fn ip_local_error(&mut self, at: usize, daddr: u32, mtu: usize) {
        let dport = self.socks.get(at).map_or(0, |sk| sk.inet_dport);
        let error = SockExtendedErr {
            ee_errno: Errno::EMSGSIZE,
            ee_origin: EeOrigin::Local,
            ee_type: 0,
            ee_code: 0,
            ee_info: mtu as u32,
            offender: None,
            addr: SocketAddrV4::new(daddr.into(), dport),
        };
        self.sock_queue_err_skb(at, error, &[], skb_truesize(SMALL_HEAD));
    }

    /// Keeps an error, for which the socket is charged as for the message that told of it.
    fn sock_queue_err_skb(
        &mut self,
        at: usize,
        error: SockExtendedErr,
        payload: &[u8],
        truesize: usize,
    ) {
        let Some(sk) = self.socks.get_mut(at).filter(|sk| sk.errors.wanted) else {
            return;
        };
        if sk.sk_rmem_alloc + truesize >= sk.sk_rcvbuf {
            return;
        }
        sk.sk_rmem_alloc += truesize;
        let mut skb = self.skb_cache.alloc_charged(0, payload.len(), truesize);
        skb.put(payload.len()).copy_from_slice(payload);
        sk.errors.queue.push_back((error, skb));
        self.changed("sk_error_queue", || format!("{:?}", error.ee_errno));
    }
}
