//! `/proc/net/if_inet6` (Linux: `net/ipv6/addrconf.c`, `if6_seq_show`).

use std::fmt;

use super::super::ipv6::{IN6ADDR_LOOPBACK, is_linklocal};
use super::super::{Kernel, Machine};
use crate::transport::Transport;

/// Scopes as the file has them: this host, the link, the site, all.
const IPV6_ADDR_LOOPBACK: u16 = 0x10;
const IPV6_ADDR_LINKLOCAL: u16 = 0x20;
const IPV6_ADDR_SITELOCAL: u16 = 0x40;
/// Nobody took it from a router: it stays.
const IFA_F_PERMANENT: u8 = 0x80;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn if6_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        for device in self.net_devices() {
            for ifa in &device.inet6_ifaddrs {
                let scope = match ifa.addr {
                    IN6ADDR_LOOPBACK => IPV6_ADDR_LOOPBACK,
                    addr if is_linklocal(addr) => IPV6_ADDR_LINKLOCAL,
                    addr if addr >> 118 == 0x3fb => IPV6_ADDR_SITELOCAL,
                    _ => 0,
                };
                writeln!(
                    out,
                    "{:032x} {:02x} {:02x} {scope:02x} {IFA_F_PERMANENT:02x} {:>8}",
                    ifa.addr,
                    u32::from(device.ifindex()),
                    ifa.prefix_len,
                    device.name()
                )?;
            }
        }
        Ok(())
    }
}
