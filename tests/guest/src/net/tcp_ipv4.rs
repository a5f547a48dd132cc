//! TCP over IPv4, receive side (Linux: `net/ipv4/tcp_ipv4.c`, `tcp_input.c`), and how connections begin.
//!
//! In: segments from IP, and processes that want a connection. Out: data in the connection that
//! it is of, connections in the backlog of a listener. What finds no socket is answered with a reset, and so is
//! an acknowledgement to a listener (RFC 9293, 3.10.7). Dropped and counted: segments that are short, have a bad
//! checksum, were not sent to this station alone, find no socket or make no sense to a listener, and
//! requests beyond a listener's backlog.

use std::net::SocketAddrV4;

use smoltcp::socket::tcp::State;

use super::checksum::{csum_fold, csum_partial, csum_tcpudp_nofold};
use super::icmp::IcmpError;
use super::inet_ecn::INET_ECN_MASK;
use super::ip_input::Iphdr;
use super::ip_output::Flow;
use super::route::{RtType, Rtable};
use super::skbuff::{IpSummed, PktType, SkBuff, Skb};
use super::stats::RxDrop;
use super::tcp::{
    IPPROTO_TCP, TCP_CHECK, TCP_FLAG_ACK, TCP_FLAG_FIN, TCP_FLAG_RST, TCP_FLAG_SYN, TCPHDR_LEN,
    Tcphdr,
};
use super::tcp_sock::{Peer, Role, TcpSock};
use super::udp::checksum_complete;
use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

impl<T: Transport, M: Machine> Kernel<T, M> {
    #[inline(never)] // what it needs of the stack, datagrams do not
    pub(super) fn tcp_v4_rcv(&mut self, skb: Skb) {
        let _stage = self.stage("tcp_v4_rcv");
        if skb.pkt_type != PktType::Host {
            return self.drop_rx(skb, RxDrop::TcpNotHost);
        }
        self.counters.snmp.tcp_in_segs += 1;
        let th = match Tcphdr::parse(skb.data()) {
            Ok(th) => th,
            Err(reason) => return self.drop_rx(skb, reason),
        };
        if skb.ip_summed == IpSummed::None && !checksum_complete(&skb) {
            return self.drop_rx(skb, RxDrop::TcpInCsumErrors);
        }
        let found = self.__inet_lookup_skb(&skb, &th);
        self.tcp_v4_fill_cb(&skb, &th);
        let verdict = match found {
            Some(at) => self.tcp_v4_do_rcv(at, &skb, &th),
            None => {
                self.tcp_v4_send_reset(&skb, &th);
                Err(RxDrop::TcpNoSocket)
            }
        };
        match verdict {
            Ok(()) => {
                self.counters.consumed += 1;
                self.consume_skb(skb);
            }
            Err(reason) => self.drop_rx(skb, reason),
        }
    }

    /// The connection that a segment is of, or the listener that it is for.
    fn __inet_lookup_skb(&mut self, skb: &SkBuff, th: &Tcphdr) -> Option<usize> {
        let (from, to) = ((skb.ip.saddr, th.source), (skb.ip.daddr, th.dest));
        let listener = self.tcp.lookup_listener(to);
        let Some(at) = self.tcp.lookup_established(from, to) else {
            return listener;
        };
        let asks = th.flags & (TCP_FLAG_SYN | TCP_FLAG_ACK | TCP_FLAG_RST) == TCP_FLAG_SYN;
        let over = self.tcp.state(at) == Some(State::TimeWait);
        if asks && over && listener.is_some() {
            // The next connection between the same ends (`TCP_TW_SYN`); a process may still read of the old one.
            self.tcp_done(at);
            return listener;
        }
        Some(at)
    }

    /// Keeps what the header says.
    fn tcp_v4_fill_cb(&self, skb: &SkBuff, th: &Tcphdr) {
        let _stage = self.stage("tcp_v4_fill_cb");
        self.changed("tcp_skb_cb", || {
            let end_seq = th.seq.wrapping_add(th.seq_len(skb.len()));
            format!("seq {}, end_seq {end_seq}, flags {:#04x}", th.seq, th.flags)
        });
    }

    fn tcp_v4_do_rcv(&mut self, at: usize, skb: &SkBuff, th: &Tcphdr) -> Result<(), RxDrop> {
        let _stage = self.stage("tcp_v4_do_rcv");
        match self.tcp.state(at) {
            Some(State::Established) => self.tcp_rcv_established(at, skb, th),
            _ => self.tcp_rcv_state_process(at, skb, th),
        }
    }

    fn tcp_rcv_established(&mut self, at: usize, skb: &SkBuff, th: &Tcphdr) -> Result<(), RxDrop> {
        let _stage = self.stage("tcp_rcv_established");
        self.tcp_rcv(at, skb, th);
        Ok(())
    }

    /// A segment for a listener, or of a connection that begins or ends.
    fn tcp_rcv_state_process(
        &mut self,
        at: usize,
        skb: &SkBuff,
        th: &Tcphdr,
    ) -> Result<(), RxDrop> {
        let _stage = self.stage("tcp_rcv_state_process");
        let Some(sk) = self.tcp.get_mut(at) else {
            return Err(RxDrop::TcpNoSocket);
        };
        let parent = sk.parent;
        if sk.listener().is_some() {
            if th.has(TCP_FLAG_ACK) {
                self.tcp_v4_send_reset(skb, th);
                return Err(RxDrop::TcpFlags);
            }
            if th.has(TCP_FLAG_RST | TCP_FLAG_FIN) || !th.has(TCP_FLAG_SYN) {
                return Err(RxDrop::TcpFlags);
            }
            return self.tcp_v4_conn_request(at, skb, th);
        }
        let state = self.tcp.state(at);
        if state == Some(State::SynSent)
            && th.has(TCP_FLAG_ACK)
            && !self.tcp.acknowledges(at, th.ack_seq)
        {
            // Of an earlier connection between the same ends (RFC 9293, 3.10.7.3).
            self.tcp_v4_send_reset(skb, th);
            return Err(RxDrop::TcpInvalidAckSequence);
        }
        let full = parent
            .and_then(|parent| self.tcp.get_mut(parent)?.listener())
            .is_some_and(|queue| queue.is_full());
        let opening = state == Some(State::SynReceived);
        if full && opening && !th.has(TCP_FLAG_RST) {
            // It is as if the acknowledgement were lost: the SYN-ACK is repeated, and the peer's answer.
            return Err(RxDrop::ListenOverflows);
        }
        self.tcp_rcv(at, skb, th);
        Ok(())
    }

    /// A connection takes a segment, and sends what it then has to.
    fn tcp_rcv(&mut self, at: usize, skb: &SkBuff, th: &Tcphdr) {
        let Some(old) = self.tcp.state(at) else {
            return;
        };
        if let Some(connection) = self.tcp.get_mut(at).and_then(TcpSock::connection)
            && th.has(TCP_FLAG_ACK)
        {
            connection.tcp_ack(th.ack_seq);
        }
        let now = self.machine.now();
        self.tcp.poll(at, now, Some(skb), &mut self.skb_cache);
        let out = self.tcp.stack.take_out();
        self.tcp_count(at, &out);
        self.tcp_set_state(at, old, th.has(TCP_FLAG_RST));
        self.tcp_write_xmit(None, out);
        let unwanted = self.tcp.get_mut(at).is_some_and(|sk| {
            let orphan = sk.orphan;
            let connection = sk.connection().filter(|_| orphan);
            connection.is_some_and(|connection| connection.socket().recv_queue() > 0)
        });
        if unwanted {
            // Nobody will read it (`TCPAbortOnData`).
            self.tcp_send_active_reset(at);
        }
    }

    fn tcp_v4_conn_request(&mut self, at: usize, skb: &SkBuff, th: &Tcphdr) -> Result<(), RxDrop> {
        let _stage = self.stage("tcp_v4_conn_request");
        if skb.rt_type() != RtType::Local {
            return Err(RxDrop::TcpFlags);
        }
        self.tcp_conn_request(at, skb, th)
    }

    /// A listener is asked for a connection: it gets a child, which answers.
    fn tcp_conn_request(&mut self, at: usize, skb: &SkBuff, th: &Tcphdr) -> Result<(), RxDrop> {
        let _stage = self.stage("tcp_conn_request");
        let sk = self.tcp.get_mut(at).ok_or(RxDrop::TcpNoSocket)?;
        let (rcvbuf, sndbuf, reuse) = (sk.sk_rcvbuf, sk.sk_sndbuf, sk.reuse);
        let queue = sk.listener().ok_or(RxDrop::TcpNoSocket)?;
        if queue.qlen >= queue.max_ack_backlog.max(1) {
            return Err(RxDrop::TcpReqQFullDrop);
        }
        if queue.is_full() {
            return Err(RxDrop::ListenOverflows);
        }
        let rt = self
            .tcp_v4_route_req(skb.ip.saddr)
            .map_err(|_| RxDrop::ListenDrops)?;
        let child = self.tcp.sk_alloc(rcvbuf, sndbuf);
        let (local, remote) = ((skb.ip.daddr, th.dest), (skb.ip.saddr, th.source));
        if self.tcp.connection(child, (local, remote), false).is_err() {
            self.tcp.remove(child);
            return Err(RxDrop::ListenDrops);
        }
        self.tcp_v4_init_seq_and_ts_off(child, skb);
        let out = self.tcp.stack.take_out();
        let granted = self.tcp.state(child) == Some(State::SynReceived);
        if granted {
            if let Some(sk) = self.tcp.get_mut(child) {
                (sk.parent, sk.reuse) = (Some(at), reuse);
            }
            if let Some(queue) = self.tcp.get_mut(at).and_then(|sk| sk.listener()) {
                queue.qlen += 1;
                let qlen = queue.qlen;
                self.changed("icsk_accept_queue", || format!("{qlen} handshakes"));
            }
        } else {
            self.tcp.remove(child);
        }
        self.tcp_count(child, &out);
        self.tcp_write_xmit(Some(rt), out);
        Ok(())
    }

    fn tcp_v4_route_req(&self, daddr: u32) -> Result<Rtable, Errno> {
        let _stage = self.stage("tcp_v4_route_req");
        self.ip_route_output_flow(daddr)
    }

    /// The child takes the request and chooses the number that its own sequence begins with.
    fn tcp_v4_init_seq_and_ts_off(&mut self, child: usize, skb: &SkBuff) {
        let _stage = self.stage("tcp_v4_init_seq_and_ts_off");
        let now = self.machine.now();
        self.tcp.poll(child, now, Some(skb), &mut self.skb_cache);
    }

    /// Tells who sent a segment that there is no such connection (RFC 9293, 3.10.7.1).
    fn tcp_v4_send_reset(&mut self, skb: &SkBuff, th: &Tcphdr) {
        let _stage = self.stage("tcp_v4_send_reset");
        if th.has(TCP_FLAG_RST) || skb.rt_type() != RtType::Local {
            return;
        }
        let mut reply = th.reset(skb.len());
        let pseudo = csum_tcpudp_nofold(skb.ip.daddr, skb.ip.saddr, TCPHDR_LEN, IPPROTO_TCP);
        let check = csum_fold(csum_partial(&reply, pseudo));
        reply[TCP_CHECK..TCP_CHECK + 2].copy_from_slice(&check);
        self.counters.snmp.tcp_out_segs += 1;
        self.counters.snmp.tcp_out_rsts += 1;
        self.changed("tcphdr", || {
            let seq = u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
            let ack_seq = u32::from_be_bytes([reply[8], reply[9], reply[10], reply[11]]);
            format!("RST, seq {seq}, ack_seq {ack_seq}")
        });
        let flow = Flow {
            saddr: skb.ip.daddr,
            daddr: skb.ip.saddr,
            protocol: IPPROTO_TCP,
            // What it says of congestion is of that segment alone.
            tos: skb.ip.tos & !INET_ECN_MASK,
            df: true,
            id: 0,
        };
        self.ip_send_unicast_reply(&reply, &flow);
    }

    /// Asks a peer for a connection, from a port of its own if the socket has none.
    pub(super) fn tcp_v4_connect(&mut self, at: usize, to: SocketAddrV4) -> Result<(), Errno> {
        let _stage = self.stage("tcp_v4_connect");
        let sk = self.tcp.get_mut(at).ok_or(Errno::EBADF)?;
        match sk.role {
            Role::Fresh => {}
            Role::Listen(_) => return Err(Errno::EISCONN),
            Role::Connection(_) => {
                if let Some(error) = sk.sk_err.take() {
                    return Err(error);
                }
                return Err(if sk.state() == State::SynSent {
                    Errno::EALREADY
                } else {
                    Errno::EISCONN
                });
            }
        }
        let remote: Peer = (to.ip().to_bits(), to.port());
        let rt = self.ip_route_output_flow(remote.0);
        let rt = rt.inspect_err(|error| self.count_no_route(*error))?;
        if rt.rt_type == RtType::Broadcast {
            return Err(Errno::ENETUNREACH);
        }
        if remote.1 == 0 {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let (addr, port) = self.tcp.get(at).map_or((0, 0), |sk| sk.local);
        let addr = if addr == 0 { rt.saddr } else { addr };
        if port == 0 {
            let bound = self.tcp.get_port(at, (addr, 0));
            bound.map_err(|_| Errno::EADDRNOTAVAIL)?;
        }
        let local = (addr, self.tcp.get(at).map_or(0, |sk| sk.local.1));
        self.tcp.connection(at, (local, remote), true)?;
        self.counters.snmp.tcp_active_opens += 1;
        self.tcp_push(at);
        Err(Errno::EINPROGRESS)
    }

    /// A segment was not delivered, says somebody on the way (`tcp_v4_err`): it was too long for a path, or a connection
    /// cannot be had. Whoever does not quote what such a connection has sent and waits for is not believed (RFC 5927, 4).
    pub(super) fn tcp_v4_err(&mut self, iph: &Iphdr, quoted: &[u8], error: IcmpError) {
        let _stage = self.stage("tcp_v4_err");
        let Some(&[s0, s1, d0, d1, q0, q1, q2, q3]) = quoted.first_chunk() else {
            return;
        };
        let (source, dest) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        // It went the other way.
        let (from, to) = ((iph.daddr, dest), (iph.saddr, source));
        let Some(at) = self.tcp.lookup_established(from, to) else {
            self.counters.snmp.icmp_in_errors += 1;
            return;
        };
        let Some(sk) = self.tcp.get_mut(at) else {
            return;
        };
        let state = sk.state();
        let seq = u32::from_be_bytes([q0, q1, q2, q3]);
        let sent = sk.connection().is_some_and(|c| c.awaits(seq));
        if !sent || matches!(state, State::Closed | State::TimeWait) {
            return;
        }
        if error.is_frag_needed() {
            // What was lost is sent again in its time, in segments that pass (`tcp_set_skb_tso_segs`).
            self.ip_rt_update_pmtu(iph.daddr, error.info as u16);
        } else if let (State::SynSent, Some((errno, _))) = (state, error.errno()) {
            sk.sk_err = Some(errno);
            self.counters.snmp.tcp_attempt_fails += 1;
            self.tcp_done(at);
        }
    }
}
