//! What the kernel knows of an interface by name: whether it is a TAP device, and with how many queues (rtnetlink(7)).
//!
//! A TAP device is made for one queue or for several, and can be attached to only as what it is; and one for several lets
//! anybody attach to it beside others. So it is asked before.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// There is none of that name.
    Absent,
    /// It is no TAP device.
    Other,
    /// A TAP device for one queue.
    Single,
    /// A TAP device for several queues.
    Multi {
        /// Those that somebody has.
        attached: u32,
    },
}

/// Octets of a message's header (`struct nlmsghdr`), and of what follows about an interface (`struct ifinfomsg`).
const HEADER: usize = 16;
const ABOUT: usize = 16;

/// Attributes of a TAP device (Linux: include/uapi/linux/if_link.h), and the type that it has.
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;
const TAP: u8 = libc::IFF_TAP as u8;
/// An attribute's type without its flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

impl Link {
    /// What the interface `name` is now.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn of(name: &str) -> nix::Result<Link> {
        let index = match if_nametoindex(name) {
            Ok(index) => index,
            Err(Errno::ENODEV) => return Ok(Link::Absent),
            Err(errno) => return Err(errno),
        };
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        send(socket.as_raw_fd(), &request(index), MsgFlags::empty())?;
        let mut answer = vec![0; 0x1_0000];
        let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        Link::told(&answer[..len])
    }

    /// What an `answer` says.
    fn told(answer: &[u8]) -> nix::Result<Link> {
        let kind = answer.get(4..).and_then(number16);
        if kind != Some(libc::RTM_NEWLINK) {
            let errno = answer.get(HEADER..).and_then(number32);
            return match errno.map_or(Errno::EBADMSG, |errno| Errno::from_raw(-(errno as i32))) {
                Errno::ENODEV => Ok(Link::Absent),
                errno => Err(errno),
            };
        }
        let info = answer
            .get(HEADER + ABOUT..)
            .and_then(|all| attribute(all, libc::IFLA_LINKINFO))
            .unwrap_or(&[]);
        let kind = attribute(info, libc::IFLA_INFO_KIND);
        let tun = attribute(info, libc::IFLA_INFO_DATA).unwrap_or(&[]);
        if kind != Some(b"tun\0") || attribute(tun, IFLA_TUN_TYPE) != Some(&[TAP]) {
            return Ok(Link::Other);
        }
        if attribute(tun, IFLA_TUN_MULTI_QUEUE) != Some(&[1]) {
            return Ok(Link::Single);
        }
        let count = |kind| attribute(tun, kind).and_then(number32).unwrap_or(0);
        Ok(Link::Multi {
            attached: count(IFLA_TUN_NUM_QUEUES) + count(IFLA_TUN_NUM_DISABLED_QUEUES),
        })
    }
}

/// Asks for the interface with that index.
fn request(index: u32) -> [u8; HEADER + ABOUT] {
    let mut request = [0; HEADER + ABOUT];
    let len = request.len() as u32;
    request[..4].copy_from_slice(&len.to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
    request
}

/// The attribute `wanted` among `all` (`struct rtattr`).
fn attribute(mut all: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(number16(all)?);
        let kind = number16(&all[2..])? & NLA_TYPE_MASK;
        let value = all.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        all = all.get(len.next_multiple_of(4)..)?;
    }
}

fn number16(octets: &[u8]) -> Option<u16> {
    octets.first_chunk().copied().map(u16::from_ne_bytes)
}

fn number32(octets: &[u8]) -> Option<u32> {
    octets.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_no_tap_device_is_told_from_none() {
        assert_eq!(Link::of("lo"), Ok(Link::Other));
        assert_eq!(Link::of("nobody-has-this"), Ok(Link::Absent));
    }

    /// An attribute, padded.
    fn made(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = (4 + value.len()) as u16;
        let mut made = [&len.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
        made.resize(made.len().next_multiple_of(4), 0);
        made
    }

    fn answer(kind: &[u8], data: &[Vec<u8>]) -> Vec<u8> {
        let kind = made(libc::IFLA_INFO_KIND, kind);
        let data = made(libc::IFLA_INFO_DATA, &data.concat());
        let info = made(libc::IFLA_LINKINFO | 0x8000, &[kind, data].concat());
        let mut answer = vec![0; HEADER + ABOUT];
        answer[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        [answer, made(libc::IFLA_IFNAME, b"tap0\0"), info].concat()
    }

    #[test]
    fn answers_are_read_and_no_octets_make_it_panic() {
        let count = |kind, count: u32| made(kind, &count.to_ne_bytes());
        let multi = [
            made(IFLA_TUN_TYPE, &[2]),
            made(IFLA_TUN_MULTI_QUEUE, &[1]),
            count(IFLA_TUN_NUM_QUEUES, 3),
            count(IFLA_TUN_NUM_DISABLED_QUEUES, 2),
        ];
        let single = [made(IFLA_TUN_TYPE, &[2]), made(IFLA_TUN_MULTI_QUEUE, &[0])];
        let tun = [made(IFLA_TUN_TYPE, &[1]), made(IFLA_TUN_MULTI_QUEUE, &[1])];
        for (kind, data, link) in [
            (&b"tun\0"[..], &multi[..], Link::Multi { attached: 5 }),
            (b"tun\0", &single, Link::Single),
            (b"tun\0", &tun, Link::Other),
            (b"bridge\0", &single, Link::Other),
        ] {
            let answer = answer(kind, data);
            assert_eq!(Link::told(&answer), Ok(link));
            for len in 0..answer.len() {
                let _ = Link::told(&answer[..len]);
                let mut spoilt = answer.clone();
                for value in [0, 1, 3, 0xff] {
                    spoilt[len] = value;
                    let _ = Link::told(&spoilt);
                }
            }
        }
        let mut error = vec![0; HEADER + 4];
        error[4] = libc::NLMSG_ERROR as u8;
        for (errno, told) in [
            (Errno::ENODEV, Ok(Link::Absent)),
            (Errno::EPERM, Err(Errno::EPERM)),
        ] {
            error[HEADER..].copy_from_slice(&(-(errno as i32)).to_ne_bytes());
            assert_eq!(Link::told(&error), told);
        }
    }
}
