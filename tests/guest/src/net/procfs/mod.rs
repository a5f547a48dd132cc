//! Views of the kernel's state, as Linux's files under `/proc` have them (Linux: `fs/proc`, and where each is).
//!
//! Each file is a function that writes it, to the character what 6.12 writes; what this kernel has no counter for is 0.

mod arp;
mod if_inet6;
mod interrupts;
mod net_dev;
mod protocols;
mod route;
mod snmp;
mod snmp6;
mod udp;
mod udp6;

use std::fmt;

use super::{Kernel, Machine};
use crate::transport::Transport;

/// A file under `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcFile {
    /// `interrupts`: how often each queue interrupted each CPU.
    Interrupts,
    /// `softirqs`: how often each soft interrupt ran on each CPU.
    Softirqs,
    /// `net/softnet_stat`: each CPU's work, in hexadecimal.
    SoftnetStat,
    /// `net/dev`: what each device has counted.
    Dev,
    /// `net/snmp`: what the protocols have counted.
    Snmp,
    /// `net/udp`: UDP sockets.
    Udp,
    /// `net/arp`: neighbours.
    Arp,
    /// `net/route`: routes to others.
    Route,
    /// `net/protocols`: what sockets are made of.
    Protocols,
    /// `net/snmp6`: what the protocols of IPv6 have counted.
    Snmp6,
    /// `net/udp6`: UDP sockets of IPv6.
    Udp6,
    /// `net/if_inet6`: IPv6 addresses.
    IfInet6,
    /// `net/sockstat6`: how many sockets of IPv6 there are, and what waits for the rest of its packet.
    Sockstat6,
}

impl ProcFile {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Interrupts,
        Self::Softirqs,
        Self::SoftnetStat,
        Self::Dev,
        Self::Snmp,
        Self::Udp,
        Self::Arp,
        Self::Route,
        Self::Protocols,
        Self::Snmp6,
        Self::Udp6,
        Self::IfInet6,
        Self::Sockstat6,
    ];

    /// Its path under `/proc`.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Interrupts => "interrupts",
            Self::Softirqs => "softirqs",
            Self::SoftnetStat => "net/softnet_stat",
            Self::Dev => "net/dev",
            Self::Snmp => "net/snmp",
            Self::Udp => "net/udp",
            Self::Arp => "net/arp",
            Self::Route => "net/route",
            Self::Protocols => "net/protocols",
            Self::Snmp6 => "net/snmp6",
            Self::Udp6 => "net/udp6",
            Self::IfInet6 => "net/if_inet6",
            Self::Sockstat6 => "net/sockstat6",
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Writes a file's contents.
    ///
    /// # Errors
    /// `out`'s.
    pub fn proc_show(&self, file: ProcFile, out: &mut impl fmt::Write) -> fmt::Result {
        match file {
            ProcFile::Interrupts => self.show_interrupts(out),
            ProcFile::Softirqs => self.show_softirqs(out),
            ProcFile::SoftnetStat => self.softnet_seq_show(out),
            ProcFile::Dev => self.dev_seq_show(out),
            ProcFile::Snmp => self.snmp_seq_show(out),
            ProcFile::Udp => self.udp4_seq_show(out),
            ProcFile::Arp => self.arp_seq_show(out),
            ProcFile::Route => self.fib_route_seq_show(out),
            ProcFile::Protocols => self.proto_seq_show(out),
            ProcFile::Snmp6 => self.snmp6_seq_show(out),
            ProcFile::Udp6 => self.udp6_seq_show(out),
            ProcFile::IfInet6 => self.if6_seq_show(out),
            ProcFile::Sockstat6 => self.sockstat6_seq_show(out),
        }
    }
}

/// An IPv4 address as a number, the way it lies in a little-endian machine's memory.
fn be32(addr: u32) -> u32 {
    addr.swap_bytes()
}
