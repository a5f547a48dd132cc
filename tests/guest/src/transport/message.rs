//! vhost-user messages as bytes (vhost-user specification, "Message Specification").
//!
//! The `vhost` crate's `Frontend` allows only what is right, in the order it thinks right. Other
//! front-ends have orders of their own, and a hostile one sends garbage; both are built from this.
//! What enters: a request number, a payload, file descriptors. What leaves: replies, with their
//! flags checked as QEMU, DPDK and Linux check them. Every read ends after the connection's
//! timeout.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::memory::RegionInfo;

/// Version 1, as every message has it.
pub const FLAG_VERSION: u32 = 1;
/// The message is a reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// The sender wants a reply (with REPLY_ACK negotiated).
pub const FLAG_NEED_REPLY: u32 = 1 << 3;
/// In the payload of KICK, CALL and ERR: there is no descriptor.
pub const VRING_NOFD: u64 = 1 << 8;

const HEADER: usize = 12;
/// No message of the protocol is longer; what claims to be is refused.
const MAX_PAYLOAD: usize = 64 << 10;

/// Why no good reply came.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The peer closed the connection.
    #[error("connection closed by the peer")]
    Closed,
    /// Nothing came in time.
    #[error("no reply in time")]
    TimedOut,
    /// The reply has flags other than 0x5.
    #[error("reply flags {0:#x} instead of 0x5")]
    Flags(u32),
    /// The reply is to another request.
    #[error("reply to request {got} instead of {wanted}")]
    Request {
        /// Request of the reply.
        got: u32,
        /// Request that was sent.
        wanted: u32,
    },
    /// The reply has a length that its kind does not have.
    #[error("reply of {0} bytes")]
    Size(usize),
    /// The backend reported failure with REPLY_ACK.
    #[error("backend reports error {0:#x}")]
    Failed(u64),
    /// The system refused.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for MessageError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
                Self::Closed
            }
            _ => Self::Io(error),
        }
    }
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// Request number.
    pub request: u32,
    /// Flags.
    pub flags: u32,
    /// Payload.
    pub payload: Vec<u8>,
    /// Descriptor that came along; the first, if there were several.
    pub file: Option<File>,
}

impl Message {
    /// The payload, if it is exactly a `u64`.
    ///
    /// # Errors
    /// [`MessageError::Size`].
    pub fn u64(&self) -> Result<u64, MessageError> {
        let bytes = self.payload.as_slice().try_into();
        bytes
            .map(u64::from_ne_bytes)
            .map_err(|_| MessageError::Size(self.payload.len()))
    }
}

/// A message's 12 bytes of header.
#[must_use]
pub fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&request.to_ne_bytes());
    bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..].copy_from_slice(&size.to_ne_bytes());
    bytes
}

/// A whole message, header and payload.
#[must_use]
pub fn encode(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(request, flags, payload.len() as u32).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Payload of NUM, BASE, ENABLE and GET_VRING_BASE.
#[must_use]
pub fn vring_state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

/// Payload of SET_VRING_ADDR; addresses are those of the front-end's address space.
#[must_use]
pub fn vring_addr(index: u32, flags: u32, desc: u64, used: u64, avail: u64, log: u64) -> Vec<u8> {
    let mut bytes = vring_state(index, flags);
    for addr in [desc, used, avail, log] {
        bytes.extend_from_slice(&addr.to_ne_bytes());
    }
    bytes
}

/// The 32 bytes that describe a memory region, with `user_addr` as its front-end address.
#[must_use]
pub fn memory_region(region: &RegionInfo, user_addr: u64) -> Vec<u8> {
    let fields = [
        region.guest_addr,
        region.size,
        user_addr,
        region.mmap_offset,
    ];
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

/// Payload of SET_MEM_TABLE, for regions from [`memory_region`].
#[must_use]
pub fn memory_table(regions: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vring_state(regions.len() as u32, 0);
    bytes.extend(regions.iter().flatten());
    bytes
}

/// Payload of ADD_MEM_REG and REM_MEM_REG, for a region from [`memory_region`].
#[must_use]
pub fn single_region(region: &[u8]) -> Vec<u8> {
    [&0u64.to_ne_bytes(), region].concat()
}

/// Payload of GET_CONFIG and SET_CONFIG.
#[must_use]
pub fn config(offset: u32, flags: u32, bytes: &[u8]) -> Vec<u8> {
    let mut payload = vring_state(offset, bytes.len() as u32);
    payload.extend_from_slice(&flags.to_ne_bytes());
    payload.extend_from_slice(bytes);
    payload
}

/// A front-end's side of a vhost-user socket.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

/// Connects to `path`, trying again until the socket is there or `patience` is over.
///
/// # Errors
/// What the last attempt failed with.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let begin = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Err(error) if begin.elapsed() < patience => {
                log::trace!("{}: {error}, trying again", path.display());
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// Does it again for as long as signals come in between.
fn uninterrupted<T>(
    mut call: impl FnMut() -> Result<T, vmm_sys_util::errno::Error>,
) -> io::Result<T> {
    loop {
        match call().map_err(io::Error::from) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Connection {
    /// Speaks over `stream`; replies have to come within `timeout`.
    ///
    /// # Errors
    /// When the socket refuses a timeout (e.g. 0).
    pub fn new(stream: UnixStream, timeout: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream })
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the peer has closed the connection. Never blocks.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        // Hang-up is reported whether it was asked for or not.
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
    }

    /// Sends bytes as they are, with the descriptors on the first of them.
    ///
    /// # Errors
    /// When the peer is gone or does not read.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> Result<(), MessageError> {
        let (mut rest, mut fds) = (bytes, fds);
        while !rest.is_empty() {
            let sent = uninterrupted(|| self.stream.send_with_fds(&[rest], fds))?;
            if sent == 0 {
                return Err(MessageError::Closed);
            }
            (rest, fds) = (&rest[sent..], &[]);
        }
        Ok(())
    }

    /// Sends bytes one at a time, the descriptors with the first.
    ///
    /// # Errors
    /// When the peer is gone or does not read.
    pub fn send_slowly(&self, bytes: &[u8], mut fds: &[RawFd]) -> Result<(), MessageError> {
        for byte in bytes.chunks(1) {
            self.send_bytes(byte, std::mem::take(&mut fds))?;
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the peer is gone or does not read.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[RawFd],
    ) -> Result<(), MessageError> {
        self.send_bytes(&encode(request, flags, payload), fds)
    }

    /// Receives a message, whatever it is.
    ///
    /// # Errors
    /// When none comes in time, or the peer closes.
    pub fn recv(&self) -> Result<Message, MessageError> {
        let mut head = [0; HEADER];
        // Descriptors come with the first byte.
        let (first, file) = uninterrupted(|| self.stream.recv_with_fd(&mut head))?;
        if first == 0 {
            return Err(MessageError::Closed);
        }
        (&self.stream).read_exact(&mut head[first..])?;
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (request, flags, size) = (word(0), word(4), word(8) as usize);
        if size > MAX_PAYLOAD {
            return Err(MessageError::Size(size));
        }
        let mut payload = vec![0; size];
        (&self.stream).read_exact(&mut payload)?;
        Ok(Message {
            request,
            flags,
            payload,
            file,
        })
    }

    /// Receives the reply to `request`: the flags must be exactly 0x5.
    ///
    /// # Errors
    /// When none comes, or it is not a reply to that request.
    pub fn recv_reply(&self, request: FrontendReq) -> Result<Message, MessageError> {
        let reply = self.recv()?;
        let wanted = u32::from(request);
        if reply.flags != FLAG_VERSION | FLAG_REPLY {
            return Err(MessageError::Flags(reply.flags));
        }
        if reply.request != wanted {
            return Err(MessageError::Request {
                got: reply.request,
                wanted,
            });
        }
        Ok(reply)
    }

    /// Sends a message, without waiting for anything.
    ///
    /// # Errors
    /// When the peer is gone or does not read.
    pub fn tell(
        &self,
        request: FrontendReq,
        payload: &[u8],
        fds: &[RawFd],
    ) -> Result<(), MessageError> {
        self.send(request.into(), FLAG_VERSION, payload, fds)
    }

    /// Sends a message with NEED_REPLY and waits for the backend's 0.
    ///
    /// # Errors
    /// [`MessageError::Failed`] for another value.
    pub fn tell_acked(
        &self,
        request: FrontendReq,
        payload: &[u8],
        fds: &[RawFd],
    ) -> Result<(), MessageError> {
        self.send(request.into(), FLAG_VERSION | FLAG_NEED_REPLY, payload, fds)?;
        match self.recv_reply(request)?.u64()? {
            0 => Ok(()),
            error => Err(MessageError::Failed(error)),
        }
    }

    /// Sends a question that has a reply of its own.
    ///
    /// # Errors
    /// When no good reply comes.
    pub fn ask(&self, request: FrontendReq, payload: &[u8]) -> Result<Message, MessageError> {
        self.tell(request, payload, &[])?;
        self.recv_reply(request)
    }

    /// Asks for a number.
    ///
    /// # Errors
    /// When no good reply comes.
    pub fn ask_u64(&self, request: FrontendReq) -> Result<u64, MessageError> {
        self.ask(request, &[])?.u64()
    }

    /// Whether the peer closes the connection within `patience`; what it sends meanwhile is lost.
    #[must_use]
    pub fn closes_within(&self, patience: Duration) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < patience {
            match self.recv() {
                Err(MessageError::Closed) => return true,
                Err(MessageError::TimedOut) | Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn pair() -> (Connection, Connection) {
        let (a, b) = UnixStream::pair().unwrap();
        let timeout = Duration::from_secs(10);
        (
            Connection::new(a, timeout).unwrap(),
            Connection::new(b, timeout).unwrap(),
        )
    }

    #[test]
    fn messages_pass_whole_or_byte_by_byte_with_their_descriptor() {
        let (a, b) = pair();
        let fd = a.stream().as_raw_fd();
        let bytes = encode(12, FLAG_VERSION, &7u64.to_ne_bytes());
        a.send_bytes(&bytes, &[fd]).unwrap();
        a.send_slowly(&bytes, &[fd]).unwrap();
        for _ in 0..2 {
            let message = b.recv().unwrap();
            assert_eq!(
                (message.request, message.flags, message.u64().unwrap()),
                (12, 1, 7)
            );
            assert!(message.file.is_some());
        }
    }

    #[test]
    fn bad_replies_are_told_apart() {
        let (a, b) = pair();
        let reply = FrontendReq::GET_FEATURES;
        b.send(1, 0xd, &[], &[]).unwrap();
        assert!(matches!(a.recv_reply(reply), Err(MessageError::Flags(0xd))));
        b.send(2, 5, &[], &[]).unwrap();
        let wrong = a.recv_reply(reply);
        assert!(matches!(
            wrong,
            Err(MessageError::Request { got: 2, wanted: 1 })
        ));
        b.send(1, 5, &[1; 7], &[]).unwrap();
        assert!(matches!(
            a.recv_reply(reply).unwrap().u64(),
            Err(MessageError::Size(7))
        ));
        b.send_bytes(&header(1, 5, u32::MAX), &[]).unwrap();
        assert!(matches!(a.recv(), Err(MessageError::Size(_))));
        b.send_bytes(&header(1, 5, 8)[..5], &[]).unwrap();
        drop(b);
        assert!(matches!(a.recv(), Err(MessageError::Closed)));
        assert!(a.closes_within(Duration::from_secs(1)));
    }

    #[test]
    fn layouts_are_the_specifications() {
        let region = RegionInfo {
            fd: 3,
            guest_addr: 1,
            size: 2,
            mmap_offset: 4,
            host_addr: 3,
        };
        let table = memory_table(&[memory_region(&region, region.host_addr)]);
        let words: Vec<u64> = table
            .chunks(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [1, 1, 2, 3, 4]);
        assert_eq!(single_region(&table[8..]).len(), 40);
        assert_eq!(vring_addr(1, 0, 2, 3, 4, 5).len(), 40);
        assert_eq!(config(8, 1, &[9; 4]).len(), 16);
    }
}
