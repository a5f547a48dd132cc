//! `/proc/net/udp` (Linux: `net/ipv4/udp.c`, `udp4_format_sock`).

use std::fmt;

use super::super::{Kernel, Machine};
use super::be32;
use crate::transport::Transport;

/// States of a socket: connected, and not.
pub(super) const TCP_ESTABLISHED: u8 = 1;
pub(super) const TCP_CLOSE: u8 = 7;
/// Characters of a line.
const WIDTH: usize = 127;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn udp4_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let header = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                      uid  timeout inode ref pointer drops";
        writeln!(out, "{header:WIDTH$}")?;
        for (bucket, at) in self.udp_table.buckets() {
            let Some(sk) = self.socks.get(at) else {
                continue;
            };
            let state = if sk.inet_daddr == 0 {
                TCP_CLOSE
            } else {
                TCP_ESTABLISHED
            };
            let line = format!(
                "{bucket:5}: {:08X}:{:04X} {:08X}:{:04X} {state:02X} {:08X}:{:08X} {:02X}:{:08X} {:08X} {:5} {:8} {} {} {:016x} {}",
                be32(sk.inet_rcv_saddr),
                sk.inet_num,
                be32(sk.inet_daddr),
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
            );
            writeln!(out, "{line:WIDTH$}")?;
        }
        Ok(())
    }
}
