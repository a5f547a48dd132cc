//! How a driver is interrupted.
//!
//! A front-end gives one call file descriptor a queue. Mostly it is an eventfd; User-mode Linux gives a
//! socket. Neither may ever block the data path: a full one means that an interrupt is pending already.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nic_model::chance::Chance;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};

/// One interrupt line.
pub trait Interrupt: Send {
    /// Raises the interrupt; never blocks.
    ///
    /// # Errors
    /// The line is broken: nobody can be interrupted through it.
    fn raise(&mut self) -> io::Result<()>;
}

/// What became of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// It is on its way.
    Sent,
    /// It was lost, on purpose: nobody hears of it.
    Lost,
}

/// Loses interrupts on purpose, by chance. It stands before whatever line a virtqueue has at the moment: front-ends
/// bring new ones, and the fault stays.
#[derive(Debug)]
pub struct Lossy(Chance);

impl Lossy {
    /// Loses what `chance` strikes.
    #[must_use]
    pub fn new(chance: Chance) -> Self {
        Lossy(chance)
    }

    /// Raises `line`, or not.
    ///
    /// # Errors
    /// The line is broken.
    pub fn raise(&mut self, line: &mut dyn Interrupt) -> io::Result<Raised> {
        if self.0.strikes() {
            return Ok(Raised::Lost);
        }
        line.raise().map(|()| Raised::Sent)
    }
}

/// A call file descriptor of a vhost-user front-end.
#[derive(Debug)]
pub struct CallFd {
    file: File,
    socket: bool,
}

impl CallFd {
    /// Takes over `fd`, an eventfd or a socket.
    ///
    /// # Errors
    /// `fd` is neither, or cannot be made non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let socket = file_type(&fd)? == SFlag::S_IFSOCK;
        if !socket {
            if !is_eventfd(&fd) {
                let kind = io::ErrorKind::InvalidInput;
                return Err(io::Error::new(
                    kind,
                    "it is neither an eventfd nor a socket",
                ));
            }
            let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(CallFd {
            file: fd.into(),
            socket,
        })
    }
}

/// Whether `fd` is an eventfd, as far as can be told: it has no file type, as all that Linux calls anonymous.
#[must_use]
pub fn is_eventfd(fd: &impl AsFd) -> bool {
    file_type(fd).is_ok_and(|file_type| file_type.is_empty())
}

fn file_type(fd: &impl AsFd) -> io::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT)
}

impl Interrupt for CallFd {
    fn raise(&mut self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        let raised = if self.socket {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(self.file.as_raw_fd(), &one, flags)
                .map(drop)
                .map_err(Errno::into)
        } else {
            self.file.write_all(&one)
        };
        match raised {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            raised => raised,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::Read;

    #[test]
    fn an_eventfd_at_its_limit_does_not_block() {
        let event = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
        event.write(u64::MAX - 1).unwrap();
        let mut call = CallFd::new(AsFd::as_fd(&event).try_clone_to_owned().unwrap()).unwrap();
        call.raise().unwrap();
        assert_eq!(event.read().unwrap(), u64::MAX - 1);
    }

    #[test]
    fn what_could_block_or_grow_is_no_interrupt() {
        let file = File::open("/dev/null").unwrap();
        assert!(!is_eventfd(&file));
        assert!(CallFd::new(file.into()).is_err());
    }

    #[test]
    fn a_full_socket_does_not_block_and_a_closed_one_is_an_error() {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::empty(),
        )
        .unwrap();
        let mut call = CallFd::new(ours).unwrap();
        for _ in 0..100_000 {
            call.raise().unwrap();
        }
        let mut theirs = File::from(theirs);
        let mut word = [0; 8];
        theirs.read_exact(&mut word).unwrap();
        assert_eq!(u64::from_ne_bytes(word), 1);
        drop(theirs);
        assert!(call.raise().is_err());
    }
}
