//! `/proc/net/udp6` and `/proc/net/sockstat6` (Linux: `net/ipv6/udp.c`, `datagram.c`, `proc.c`).

use std::fmt;

use super::super::sock::Proto;
use super::super::{Kernel, Machine};
use super::be32;
use super::udp::{TCP_CLOSE, TCP_ESTABLISHED};
use crate::transport::Transport;

/// An address as four numbers, the way they lie in a little-endian machine's memory.
fn words(addr: u128) -> String {
    let words = [96, 64, 32, 0].map(|shift| be32((addr >> shift) as u32));
    words.map(|word| format!("{word:08X}")).concat()
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn udp6_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        out.write_str(
            "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when \
             retrnsmt   uid  timeout inode ref pointer drops\n",
        )?;
        for (bucket, at) in self.udp6_table.buckets() {
            let Some(sk) = self.socks.get(at) else {
                continue;
            };
            let np = &sk.pinet6;
            let state = if np.daddr == 0 {
                TCP_CLOSE
            } else {
                TCP_ESTABLISHED
            };
            writeln!(
                out,
                "{bucket:5}: {}:{:04X} {}:{:04X} {state:02X} {:08X}:{:08X} {:02X}:{:08X} {:08X} {:5} {:8} {} {} {:016x} {}",
                words(np.rcv_saddr),
                sk.inet_num,
                words(np.daddr),
                sk.inet_dport,
                sk.sk_wmem_alloc,
                sk.sk_rmem_alloc,
                0,
                0,
                0,
                0,
                0,
                sk.generation,
                2,
                0,
                sk.sk_drops,
            )?;
        }
        Ok(())
    }

    pub(super) fn sockstat6_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        for (name, inuse) in [
            ("TCP6", 0),
            ("UDP6", self.socks.inuse(Proto::Udpv6)),
            ("UDPLITE6", 0),
            ("RAW6", 0),
        ] {
            writeln!(out, "{name}: inuse {inuse}")?;
        }
        let (queues, memory) = (self.frags6.waiting(), self.frags6.mem());
        writeln!(out, "FRAG6: inuse {queues} memory {memory}")
    }
}
