//! Packet sockets (Linux: `net/packet/af_packet.c`, `dev_queue_xmit_nit` of `net/core/dev.c`): taps that see what
//! devices receive and send.
//!
//! In: each frame of the tapped device, or of all, as it is received, before anybody else has it, and as it is about to
//! be sent. Out: a copy in the socket's queue, from the Ethernet header on, with what is known of it. Dropped and
//! counted, for the socket too: copies for a queue that is full. Where nobody taps a frame meets one test.

use super::eth::ETH_HLEN;
use super::netdevice::Ifindex;
use super::skbuff::{PktType, SkBuff};
use super::sock::Proto;
use super::stats::RxDrop;
use super::vlan::VlanTag;
use super::{Errno, Fd, Kernel, Machine};
use crate::transport::Transport;

/// A frame that a packet socket has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Bytes in the caller's buffer; the rest of a longer frame is lost.
    pub len: usize,
    /// The device that it passed (`sll_ifindex`).
    pub ifindex: Ifindex,
    /// Its Ethertype (`sll_protocol`).
    pub protocol: u16,
    /// Which way (`sll_pkttype`).
    pub pkt_type: PktType,
    /// The VLAN tag that belongs to it and is not in its bytes (`tp_vlan_tci`).
    pub vlan_tci: Option<u16>,
    /// When it passed, in the machine's time.
    pub queued: u64,
}

/// What a packet socket has counted (`struct tpacket_stats`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TpacketStats {
    /// Frames that were put into its queue, and such as were not.
    pub tp_packets: u64,
    /// Frames that its queue had no room for.
    pub tp_drops: u64,
}

/// A tap (`struct packet_sock`, an entry of `ptype_all`).
#[derive(Debug)]
pub(super) struct PacketSock {
    /// The socket.
    at: usize,
    /// The device; none is all.
    dev: Option<Ifindex>,
    stats: TpacketStats,
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Makes a socket that sees all frames of a device, or of all (`socket(AF_PACKET, SOCK_RAW, ETH_P_ALL)`, `bind`). It
    /// is read by [`Self::packet_recvmsg`], and closed as any other.
    ///
    /// # Errors
    /// ENODEV; EMFILE.
    pub fn packet_socket(&mut self, dev: Option<Ifindex>) -> Result<Fd, Errno> {
        if dev.is_some_and(|dev| self.dev_get_by_index(dev).is_none()) {
            return Err(Errno::ENODEV);
        }
        let (rcvbuf, sndbuf) = (self.config.rmem_default, self.config.wmem_default);
        let at = self.socks.sk_alloc(Proto::Packet, rcvbuf, sndbuf);
        self.ptype_all.push(PacketSock {
            at,
            dev,
            stats: TpacketStats::default(),
        });
        self.update_rx_handlers();
        self.sock_map_fd(at)
    }

    /// Takes the oldest frame from a packet socket's queue and copies it to `buf`.
    ///
    /// # Errors
    /// EBADF; EAGAIN when there is none; EOPNOTSUPP: it is another kind of socket.
    pub fn packet_recvmsg(&mut self, fd: Fd, buf: &mut [u8]) -> Result<Packet, Errno> {
        let _stage = self.stage("packet_recvmsg");
        let at = self.sockfd_lookup(fd)?;
        let sk = self.socks.get(at).ok_or(Errno::EBADF)?;
        if sk.sk_prot != Proto::Packet {
            return Err(Errno::EOPNOTSUPP);
        }
        let skb = self.sock_dequeue_skb(at)?;
        let len = skb.len().min(buf.len());
        buf[..len].copy_from_slice(&skb.data()[..len]);
        let packet = Packet {
            len,
            ifindex: skb.dev,
            protocol: skb.protocol,
            pkt_type: skb.pkt_type,
            vlan_tci: skb.vlan_tag.map(VlanTag::tci),
            queued: skb.tstamp,
        };
        self.skb_cache.put(skb);
        Ok(packet)
    }

    /// What a packet socket has counted since the last call (`PACKET_STATISTICS`).
    ///
    /// # Errors
    /// EBADF; EOPNOTSUPP: it is another kind of socket.
    pub fn packet_statistics(&mut self, fd: Fd) -> Result<TpacketStats, Errno> {
        let at = self.sockfd_lookup(fd)?;
        self.socks.get(at).ok_or(Errno::EBADF)?;
        let tap = self.ptype_all.iter_mut().find(|tap| tap.at == at);
        let tap = tap.ok_or(Errno::EOPNOTSUPP)?;
        Ok(std::mem::take(&mut tap.stats))
    }

    /// A packet socket is closed (`packet_release`).
    pub(super) fn packet_release(&mut self, at: usize) {
        self.ptype_all.retain(|tap| tap.at != at);
        self.update_rx_handlers();
    }

    /// A packet was received that begins behind its Ethernet header: those who tap its device get a copy.
    #[cold]
    pub(super) fn deliver_ptype_all(&mut self, skb: &SkBuff) {
        for at in 0..self.ptype_all.len() {
            self.packet_rcv(at, skb, skb.pkt_type);
        }
    }

    /// A frame is about to be sent: those who tap its device get a copy.
    #[cold]
    pub(super) fn dev_queue_xmit_nit(&mut self, skb: &SkBuff) {
        let _stage = self.stage("dev_queue_xmit_nit");
        for at in 0..self.ptype_all.len() {
            self.packet_rcv(at, skb, PktType::Outgoing);
        }
    }

    /// Puts a copy of a frame into the queue of a tap, if it taps that device.
    fn packet_rcv(&mut self, tap: usize, skb: &SkBuff, pkt_type: PktType) {
        let tap = &mut self.ptype_all[tap];
        if tap.dev.is_some_and(|dev| dev != skb.dev) {
            return;
        }
        tap.stats.tp_packets += 1;
        let at = tap.at;
        let full = self
            .socks
            .get(at)
            .is_none_or(|sk| sk.sk_rmem_alloc >= sk.sk_rcvbuf);
        if full {
            tap.stats.tp_drops += 1;
        }
        let _stage = self.stage("packet_rcv");
        self.counters.cloned += 1;
        if full {
            // It is not even copied.
            self.counters.rx_drops[RxDrop::PacketRcvbufErrors as usize] += 1;
            return;
        }
        let mut copy = self.skb_cache.clone_skb(skb);
        copy.pkt_type = pkt_type;
        if pkt_type == PktType::Outgoing {
            // It came by no queue, and whoever reads it is not to poll one.
            copy.queue_mapping = 0;
        } else {
            copy.push::<ETH_HLEN>();
        }
        self.sock_queue_rcv_skb(at, copy, RxDrop::PacketRcvbufErrors);
    }
}
