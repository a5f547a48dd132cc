//! Options of sockets that say how packets are treated (Linux: `net/core/sock.c`, `net/ipv4/ip_sockglue.c`).

use super::ip_sockglue::IpPmtudisc;
use super::sock::{Proto, Sock};
use super::{Errno, Fd, Kernel, Machine};
use crate::transport::Transport;

/// The priority that each type of service stands for, by its bits 1 to 4 (`ip_tos2prio`): best effort, bulk,
/// interactive, both.
const IP_TOS2PRIO: [u32; 16] = [0, 0, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 4, 4, 4, 4];

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Says how urgent what a socket sends is (`SO_PRIORITY`): disciplines with bands go by that.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_priority(&mut self, fd: Fd, priority: u32) -> Result<(), Errno> {
        self.sock_mut(fd)?.sk_priority = priority;
        Ok(())
    }

    /// Sets the type of service of what a socket sends, ECN's two bits too, and with it the priority (`IP_TOS`).
    ///
    /// # Errors
    /// EBADF.
    pub fn set_tos(&mut self, fd: Fd, tos: u8) -> Result<(), Errno> {
        let sk = self.sock_mut(fd)?;
        sk.tos = tos;
        sk.sk_priority = IP_TOS2PRIO[usize::from(tos >> 1 & 0xf)];
        Ok(())
    }

    /// How urgent what a socket sends is (`SO_PRIORITY`), its type of service (`IP_TOS`), and whether it may be fragmented
    /// (`IP_MTU_DISCOVER`).
    ///
    /// # Errors
    /// EBADF.
    pub fn treatment(&self, fd: Fd) -> Result<(u32, u8, IpPmtudisc), Errno> {
        let sk = self.socks.get(self.sockfd_lookup(fd)?);
        sk.map(|sk| (sk.sk_priority, sk.tos, sk.pmtudisc))
            .ok_or(Errno::EBADF)
    }

    /// Sets the class of what a socket of AF_INET6 sends, ECN's two bits too (`IPV6_TCLASS`).
    ///
    /// # Errors
    /// EBADF; ENOPROTOOPT: it is of another family.
    pub fn set_tclass(&mut self, fd: Fd, tclass: u8) -> Result<(), Errno> {
        let sk = self.sock_mut(fd)?;
        match sk.sk_prot {
            Proto::Udpv6 | Proto::Pingv6 => sk.pinet6.tclass = tclass,
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    /// Whether a socket shares its port (`SO_REUSEADDR`, `SO_REUSEPORT`).
    ///
    /// # Errors
    /// EBADF.
    pub fn reuse(&self, fd: Fd) -> Result<(bool, bool), Errno> {
        let sk = self.socks.get(self.sockfd_lookup(fd)?);
        sk.map(|sk| (sk.sk_reuse, sk.sk_reuseport))
            .ok_or(Errno::EBADF)
    }

    /// The socket of UDP that an option of it is for.
    pub(super) fn udp_sk(&mut self, fd: Fd) -> Result<&mut Sock, Errno> {
        let sk = self.sock_mut(fd)?;
        match sk.sk_prot {
            Proto::Udp => Ok(sk),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    /// Has what a UDP socket sends wait, to be one datagram; or sends what waits, of which nobody hears how that went
    /// (`UDP_CORK`).
    ///
    /// # Errors
    /// EBADF; ENOPROTOOPT: it is no UDP socket.
    pub fn set_udp_cork(&mut self, fd: Fd, on: bool) -> Result<(), Errno> {
        self.udp_sk(fd)?.corked = on;
        if !on {
            let at = self.sockfd_lookup(fd)?;
            let _ = self.udp_push_pending_frames(at);
        }
        Ok(())
    }
}
