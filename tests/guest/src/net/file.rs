//! Sockets as files (Linux: `fs/file.c`, `fs/file_table.c`, `net/socket.c`): descriptors, what they lead to, and reading and
//! writing by them.
//!
//! In: descriptors of the kernel's one process. Out: its sockets, through the operations of their files. Several descriptors
//! may lead to one file; the socket is released when the last of them is closed. A message is gathered from several
//! buffers, or scattered over them, as `sendmsg` and `recvmsg` have it.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddrV4;

pub use nix::poll::PollFlags;
pub use nix::sys::socket::MsgFlags;

use super::{Errno, Fd, Kernel, Machine, Received};
use crate::transport::Transport;

/// What is sent waits for more; nix has no name for it.
pub const MSG_MORE: MsgFlags = MsgFlags::from_bits_retain(libc::MSG_MORE);

/// Nothing more will be received; nix has no name for it, either.
pub const POLLRDHUP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// Descriptors that a process may have (`RLIMIT_NOFILE`).
const RLIMIT_NOFILE: usize = 1024;

/// What may be done with a file (`struct file_operations`): a name, not pointers, so that the calls are direct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileOperations {
    /// `socket_file_ops`.
    Socket,
}

/// An open file (`struct file`), as its descriptors have it: a call looks in one place.
#[derive(Debug, Clone, Copy)]
struct File {
    /// Which of the process's files.
    number: u32,
    /// What it is about: a socket's place.
    private_data: u32,
    f_op: FileOperations,
}

/// The descriptors of a process (`struct files_struct`).
#[derive(Debug, Default)]
pub(super) struct FilesStruct {
    fdtable: Vec<Option<File>>,
    /// By a file's number: how many descriptors lead to it (`f_count`).
    f_count: Vec<Option<u32>>,
}

/// The lowest place that is free; there is one more then, if none was.
fn lowest_free<V>(places: &mut Vec<Option<V>>) -> usize {
    places.iter().position(Option::is_none).unwrap_or_else(|| {
        places.push(None);
        places.len() - 1
    })
}

impl FilesStruct {
    /// Whether there may be one more descriptor.
    ///
    /// # Errors
    /// EMFILE.
    pub fn check_limit(&self) -> Result<(), Errno> {
        match self.fdtable.iter().flatten().count() {
            RLIMIT_NOFILE.. => Err(Errno::EMFILE),
            _ => Ok(()),
        }
    }

    /// A descriptor for a new socket, the lowest that is free (`sock_map_fd`).
    ///
    /// # Errors
    /// EMFILE.
    pub fn sock_map_fd(&mut self, at: usize) -> Result<Fd, Errno> {
        self.check_limit()?;
        let number = lowest_free(&mut self.f_count);
        Ok(self.fd_install(File {
            number: number as u32,
            private_data: at as u32,
            f_op: FileOperations::Socket,
        }))
    }

    fn fd_install(&mut self, file: File) -> Fd {
        *self.f_count[file.number as usize].get_or_insert(0) += 1;
        let fd = lowest_free(&mut self.fdtable);
        self.fdtable[fd] = Some(file);
        Fd(fd as u32)
    }

    /// Where a descriptor leads.
    #[inline]
    fn fget(&self, fd: Fd) -> Result<&File, Errno> {
        let file = self.fdtable.get(fd.0 as usize);
        file.and_then(Option::as_ref).ok_or(Errno::EBADF)
    }

    /// The socket that a descriptor leads to.
    #[inline]
    pub fn sockfd_lookup(&self, fd: Fd) -> Result<usize, Errno> {
        let file = self.fget(fd)?;
        match file.f_op {
            FileOperations::Socket => Ok(file.private_data as usize),
        }
    }

    fn dup(&mut self, fd: Fd) -> Result<Fd, Errno> {
        let file = *self.fget(fd)?;
        self.check_limit()?;
        Ok(self.fd_install(file))
    }

    /// Takes a descriptor away; the socket that none is left of (`close_fd`, `fput`).
    pub fn close(&mut self, fd: Fd) -> Result<Option<usize>, Errno> {
        let file = *self.fget(fd)?;
        self.fdtable[fd.0 as usize] = None;
        let f_count = &mut self.f_count[file.number as usize];
        *f_count = f_count.map(|count| count - 1).filter(|&count| count > 0);
        Ok(f_count.is_none().then_some(file.private_data as usize))
    }
}

/// What `sendmsg` and `recvmsg` are given (`struct msghdr`); `V` are its buffers (`struct iovec`).
#[derive(Debug)]
pub struct Msghdr<V> {
    /// Whom a message goes to, or came from.
    pub msg_name: Option<SocketAddrV4>,
    /// Where it is, or is put, in this order.
    pub msg_iov: V,
    /// What became of it: `MSG_TRUNC` where the buffers were too short.
    pub msg_flags: MsgFlags,
}

impl<V> Msghdr<V> {
    /// A message to `msg_name`, or from nobody yet.
    pub fn new(msg_name: Option<SocketAddrV4>, msg_iov: V) -> Self {
        Self {
            msg_name,
            msg_iov,
            msg_flags: MsgFlags::empty(),
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// One more descriptor for what `fd` leads to (`dup`).
    ///
    /// # Errors
    /// EBADF; EMFILE.
    pub fn dup(&mut self, fd: Fd) -> Result<Fd, Errno> {
        self.files.dup(fd)
    }

    /// Takes the oldest datagram from a socket's queue; how many bytes of it are in `buf`, whose rest is lost (`read`).
    ///
    /// # Errors
    /// As [`Self::recvfrom`].
    pub fn read(&mut self, fd: Fd, buf: &mut [u8]) -> Result<usize, Errno> {
        let _stage = self.stage("ksys_read");
        match self.f_op(fd)? {
            FileOperations::Socket => self.sock_read_iter(fd, buf),
        }
    }

    /// Sends a datagram to where a socket is connected; how many bytes (`write`).
    ///
    /// # Errors
    /// As [`Self::sendto`].
    pub fn write(&mut self, fd: Fd, data: &[u8]) -> Result<usize, Errno> {
        let _stage = self.stage("ksys_write");
        match self.f_op(fd)? {
            FileOperations::Socket => self.sock_write_iter(fd, data),
        }
    }

    /// What may be done without waiting, of `events` and of what is told anyway (`poll`): `POLLIN`, `POLLOUT` as long as half of the
    /// send buffer is free, `POLLERR`, `POLLHUP`; `POLLNVAL` where there is no such descriptor.
    #[must_use]
    pub fn vfs_poll(&self, fd: Fd, events: PollFlags) -> PollFlags {
        match self.f_op(fd) {
            Ok(FileOperations::Socket) => {
                self.sock_poll(fd) & (events | PollFlags::POLLERR | PollFlags::POLLHUP)
            }
            Err(_) => PollFlags::POLLNVAL,
        }
    }

    fn f_op(&self, fd: Fd) -> Result<FileOperations, Errno> {
        Ok(self.files.fget(fd)?.f_op)
    }

    fn sock_read_iter(&mut self, fd: Fd, buf: &mut [u8]) -> Result<usize, Errno> {
        let _stage = self.stage("sock_read_iter");
        Ok(self.sock_recvmsg(fd, buf, false)?.len)
    }

    fn sock_write_iter(&mut self, fd: Fd, data: &[u8]) -> Result<usize, Errno> {
        let _stage = self.stage("sock_write_iter");
        self.sock_sendmsg(fd, data, None)
    }

    fn sock_poll(&self, fd: Fd) -> PollFlags {
        let _stage = self.stage("sock_poll");
        self.inet_poll(fd).unwrap_or(PollFlags::POLLNVAL)
    }

    /// Sends a message that is gathered from several buffers; how many bytes.
    ///
    /// # Errors
    /// As [`Self::sendto`].
    pub fn sendmsg(&mut self, fd: Fd, msg: &Msghdr<&[IoSlice<'_>]>) -> Result<usize, Errno> {
        let _stage = self.stage("__sys_sendmsg");
        if let [iov] = msg.msg_iov {
            return self.sock_sendmsg(fd, iov, msg.msg_name);
        }
        let mut gathered = std::mem::take(&mut self.iov);
        gathered.clear();
        for iov in msg.msg_iov {
            gathered.extend_from_slice(iov);
        }
        let sent = self.sock_sendmsg(fd, &gathered, msg.msg_name);
        self.iov = gathered;
        sent
    }

    /// Takes the oldest message from a socket's queue and scatters it over several buffers; how many bytes are in them, or with
    /// `MSG_TRUNC` how many it had. With `MSG_PEEK` it stays in the queue.
    ///
    /// # Errors
    /// As [`Self::recvfrom`].
    pub fn recvmsg(
        &mut self,
        fd: Fd,
        msg: &mut Msghdr<&mut [IoSliceMut<'_>]>,
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let _stage = self.stage("__sys_recvmsg");
        let peek = flags.contains(MsgFlags::MSG_PEEK);
        let received = if let [iov] = &mut *msg.msg_iov {
            self.sock_recvmsg(fd, iov, peek)?
        } else {
            self.recv_scattered(fd, msg.msg_iov, peek)?
        };
        msg.msg_name = Some(received.from);
        msg.msg_flags = if received.len < received.datagram_len {
            MsgFlags::MSG_TRUNC
        } else {
            MsgFlags::empty()
        };
        Ok(if flags.contains(MsgFlags::MSG_TRUNC) {
            received.datagram_len
        } else {
            received.len
        })
    }

    fn recv_scattered(
        &mut self,
        fd: Fd,
        iovs: &mut [IoSliceMut<'_>],
        peek: bool,
    ) -> Result<Received, Errno> {
        let mut whole = std::mem::take(&mut self.iov);
        // No message is longer.
        let room: usize = iovs.iter().map(|iov| iov.len()).sum();
        whole.resize(room.min(usize::from(u16::MAX)), 0);
        let received = self.sock_recvmsg(fd, &mut whole, peek);
        if let Ok(received) = &received {
            let mut rest = &whole[..received.len];
            for iov in iovs {
                let (here, behind) = rest.split_at(rest.len().min(iov.len()));
                iov[..here.len()].copy_from_slice(here);
                rest = behind;
            }
        }
        self.iov = whole;
        received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_descriptor_is_taken_and_the_last_one_closes() {
        let mut files = FilesStruct::default();
        let [a, b] = [70, 80].map(|at| files.sock_map_fd(at).unwrap());
        assert_eq!((a, b), (Fd(0), Fd(1)));
        let c = files.dup(a).unwrap();
        assert_eq!((c, files.sockfd_lookup(c)), (Fd(2), Ok(70)));
        assert_eq!(files.close(a), Ok(None));
        assert_eq!(files.close(a), Err(Errno::EBADF));
        assert_eq!(files.dup(b), Ok(Fd(0)));
        assert_eq!(files.close(c), Ok(Some(70)));
        assert_eq!(files.close(b), Ok(None));
        assert_eq!(files.close(Fd(0)), Ok(Some(80)));
        assert_eq!(files.sockfd_lookup(Fd(0)), Err(Errno::EBADF));
        assert!(files.f_count.iter().all(Option::is_none));
    }

    #[test]
    fn descriptors_are_limited() {
        let mut files = FilesStruct::default();
        let first = files.sock_map_fd(0).unwrap();
        for _ in 1..RLIMIT_NOFILE {
            files.dup(first).unwrap();
        }
        assert_eq!(files.dup(first), Err(Errno::EMFILE));
        assert_eq!(files.sock_map_fd(1), Err(Errno::EMFILE));
        files.close(Fd(5)).unwrap();
        assert_eq!(files.dup(first), Ok(Fd(5)));
    }
}
