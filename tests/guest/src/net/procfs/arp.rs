//! `/proc/net/arp` (Linux: `net/ipv4/arp.c`, `arp_format_neigh_entry`).

use std::fmt;
use std::net::Ipv4Addr;

use super::super::netdevice::IFF_NOARP;
use super::super::{Kernel, Machine};
use crate::transport::Transport;

/// Ethernet.
const ARPHRD_ETHER: u16 = 1;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn arp_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        out.write_str(
            "IP address       HW type     Flags       HW address            Mask     Device\n",
        )?;
        for neigh in self.arp_tbl.iter() {
            let device = &self.netdevs[neigh.dev];
            // Nobody is asked for by such a device.
            if device.flags & IFF_NOARP != 0 {
                continue;
            }
            let addr = Ipv4Addr::from_bits(neigh.addr).to_string();
            let [a, b, c, d, e, f] = neigh.lladdr;
            writeln!(
                out,
                "{addr:<16} 0x{ARPHRD_ETHER:<10x}0x{:<10x}{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}     *        {}",
                neigh.atf,
                device.name()
            )?;
        }
        Ok(())
    }
}
