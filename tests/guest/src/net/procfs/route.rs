//! `/proc/net/route` (Linux: `net/ipv4/fib_trie.c`, `fib_route_seq_show`).

use std::fmt;

use super::super::route::RtType;
use super::super::{Kernel, Machine};
use super::be32;
use crate::transport::Transport;

/// Usable; by a gateway; to one host.
const RTF_UP: u16 = 1;
const RTF_GATEWAY: u16 = 2;
const RTF_HOST: u16 = 4;
/// Characters of a line.
const WIDTH: usize = 127;

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Routes to others, in the order of a trie: those to this host and for broadcasts are in a table that the file does
    /// not show.
    pub(super) fn fib_route_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let header =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
        writeln!(out, "{header:WIDTH$}")?;
        let others = self
            .fib
            .iter()
            .filter(|entry| entry.rt_type == RtType::Unicast);
        let mut routes: Vec<_> = others.collect();
        routes.sort_by_key(|entry| (entry.prefix, !entry.mask));
        for entry in routes {
            let flag = |set: bool, flag| if set { flag } else { 0 };
            let flags = RTF_UP
                | flag(entry.gateway != 0, RTF_GATEWAY)
                | flag(entry.mask == u32::MAX, RTF_HOST);
            let line = format!(
                "{}\t{:08X}\t{:08X}\t{flags:04X}\t0\t0\t0\t{:08X}\t0\t0\t0",
                self.netdevs[entry.dev].name(),
                be32(entry.prefix),
                be32(entry.gateway),
                be32(entry.mask)
            );
            writeln!(out, "{line:WIDTH$}")?;
        }
        Ok(())
    }
}
