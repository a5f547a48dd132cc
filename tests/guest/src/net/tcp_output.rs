//! Segments to send (Linux: `net/ipv4/tcp_output.c`, and of `tcp_ipv4.c` what sends).
//!
//! In: what connections have made, with an IP header that says its ends. Out: the same to IP, with TCP's checksum, or what the
//! device needs to make it; what is too long for its path as a packet that stands for several segments. Dropped and counted:
//! segments to which no route leads. What is lost here or later is sent again.

use super::checksum::{csum_fold, csum_fold_raw, csum_partial, csum_tcpudp_nofold};
use super::gro::word;
use super::ip_input::IPHDR_LEN;
use super::ip_output::Flow;
use super::netdevice::{Ifindex, NETIF_F_HW_CSUM};
use super::route::Rtable;
use super::skbuff::{IpSummed, SkBuff, Skb};
use super::stats::TxDrop;
use super::tcp::{
    IPPROTO_TCP, TCP_CHECK, TCP_DOFF, TCP_FLAG_ACK, TCP_FLAG_RST, TCP_FLAG_SYN, TCP_FLAGS, Tcphdr,
};
use super::{Kernel, Machine};
use crate::transport::Transport;
use crate::virtio_net::gso::SKB_GSO_TCPV4;

/// Payload of a segment that is sent, however narrow the path (`tcp_min_snd_mss`).
const TCP_MIN_SND_MSS: usize = 48;

/// Where a packet comes from and goes to, by its IP header.
fn ends(skb: &SkBuff) -> (u32, u32) {
    (word(skb.data(), 12), word(skb.data(), 16))
}

/// Has a segment that is longer than what passes on its way go as several: connections know only their device's MTU.
fn tcp_set_skb_tso_segs(skb: &mut SkBuff, mtu: usize) {
    if skb.len() <= mtu {
        return;
    }
    let headers = IPHDR_LEN + usize::from(skb.data()[IPHDR_LEN + TCP_DOFF] >> 4) * 4;
    let mss = mtu.saturating_sub(headers).max(TCP_MIN_SND_MSS);
    let segs = skb.len().saturating_sub(headers).div_ceil(mss);
    if segs > 1 {
        (skb.gso_size, skb.gso_segs) = (mss as u16, segs as u16);
        skb.gso_type = SKB_GSO_TCPV4;
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Has a connection send what it has to.
    pub(super) fn tcp_push(&mut self, at: usize) {
        let Some(old) = self.tcp.state(at) else {
            return;
        };
        let now = self.machine.now();
        self.tcp.poll(at, now, None, &mut self.skb_cache);
        let out = self.tcp.stack.take_out();
        self.tcp_count(at, &out);
        self.tcp_set_state(at, old, false);
        self.tcp_write_xmit(None, out);
    }

    /// Counts what a connection sends (`TcpOutSegs`, `TcpRetransSegs`, `TcpOutRsts`), and remembers how far it got.
    pub(super) fn tcp_count(&mut self, at: usize, out: &[Skb]) {
        for skb in out {
            let segment = &skb.data()[IPHDR_LEN..];
            let Ok(th) = Tcphdr::parse(segment) else {
                continue;
            };
            let snmp = &mut self.counters.snmp;
            if th.has(TCP_FLAG_RST) {
                snmp.tcp_out_rsts += 1;
            }
            let end = th.seq.wrapping_add(th.seq_len(segment.len()));
            let connection = self.tcp.get_mut(at).and_then(|sk| sk.connection());
            let new = connection.is_none_or(|connection| {
                let new = end == th.seq
                    || connection
                        .snd_nxt
                        .is_none_or(|snd_nxt| end.wrapping_sub(snd_nxt) as i32 > 0);
                if connection.snd_nxt.is_none() {
                    connection.snd_una = th.seq;
                }
                if new {
                    connection.snd_nxt = Some(end);
                }
                if let Some(&headers) = skb.data().first_chunk() {
                    connection.last = headers;
                }
                new
            });
            if new {
                snmp.tcp_out_segs += 1;
            } else {
                snmp.tcp_retrans_segs += 1;
            }
        }
    }

    /// Sends what a connection has made. A SYN-ACK goes its own way, by the route of its request if that is known.
    pub(super) fn tcp_write_xmit(&mut self, rt: Option<Rtable>, mut out: Vec<Skb>) {
        const SYN_ACK: u8 = TCP_FLAG_SYN | TCP_FLAG_ACK;
        for skb in out.drain(..) {
            if skb.data()[IPHDR_LEN + TCP_FLAGS] & SYN_ACK == SYN_ACK {
                self.tcp_v4_send_synack(skb, rt);
            } else {
                self.__tcp_transmit_skb(skb);
            }
        }
        self.tcp.stack.spare.push(out);
    }

    fn tcp_v4_send_synack(&mut self, mut skb: Skb, rt: Option<Rtable>) {
        let _stage = self.stage("tcp_v4_send_synack");
        let (saddr, daddr) = ends(&skb);
        let found = rt.map_or_else(|| self.ip_route_output_flow(daddr), Ok);
        let Ok(rt) = found else {
            return self.drop_tx(skb, TxDrop::IpOutNoRoutes);
        };
        self.tcp_v4_send_check(&mut skb, rt.dev);
        let flow = Flow {
            saddr,
            daddr,
            protocol: IPPROTO_TCP,
            tos: 0,
            df: true,
            id: 0,
        };
        // The peer asks again if it does not come.
        let _ = self.ip_build_and_send_pkt(skb, rt, &flow);
    }

    fn __tcp_transmit_skb(&mut self, mut skb: Skb) {
        let _stage = self.stage("__tcp_transmit_skb");
        let (saddr, daddr) = ends(&skb);
        let Ok(rt) = self.ip_route_output_flow(daddr) else {
            return self.drop_tx(skb, TxDrop::IpOutNoRoutes);
        };
        tcp_set_skb_tso_segs(&mut skb, self.dst_mtu(&rt));
        self.tcp_v4_send_check(&mut skb, rt.dev);
        let flow = Flow {
            saddr,
            daddr,
            protocol: IPPROTO_TCP,
            tos: 0,
            df: !rt.pmtu_locked,
            id: self.ip_select_ident_segs(skb.gso_segs),
        };
        // What is lost is sent again.
        let _ = self.ip_queue_xmit(skb, rt, &flow);
    }

    /// Takes IP's header off what a connection has made, and writes TCP's checksum, or leaves it to the device, or to who
    /// takes it apart.
    fn tcp_v4_send_check(&mut self, skb: &mut SkBuff, dev: Ifindex) {
        let (saddr, daddr) = ends(skb);
        skb.pull(IPHDR_LEN);
        skb.transport_header = skb.headroom();
        let pseudo = csum_tcpudp_nofold(saddr, daddr, skb.len(), IPPROTO_TCP);
        skb.data_mut()[TCP_CHECK..TCP_CHECK + 2].fill(0);
        let offloads = self.netdevs[dev].features & NETIF_F_HW_CSUM != 0;
        let check = if offloads || skb.gso_size != 0 {
            skb.ip_summed = IpSummed::Partial;
            skb.csum_start = skb.headroom();
            skb.csum_offset = TCP_CHECK as u16;
            csum_fold_raw(pseudo).to_ne_bytes()
        } else {
            csum_fold(csum_partial(skb.data(), pseudo))
        };
        skb.data_mut()[TCP_CHECK..TCP_CHECK + 2].copy_from_slice(&check);
    }
}
