//! What a backend asks of its front-end, over the channel passed with SET_BACKEND_REQ_FD.
//!
//! What enters: CONFIG_CHANGE_MSG (a config interrupt), and anything else a backend may send. What
//! leaves: a count of config changes, and replies where the backend wants them: 0 for what is
//! known, an error for the rest.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::message::BackendReq;

use super::message::{Connection, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, MessageError};

/// Our end of the backend's channel, and the end that is passed to the backend.
#[derive(Debug)]
pub struct BackendChannel {
    connection: Connection,
    theirs: UnixStream,
    closed: bool,
}

impl BackendChannel {
    /// A fresh channel.
    ///
    /// # Errors
    /// When the system has no more sockets.
    pub fn new() -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let connection = Connection::new(ours, Duration::from_secs(1))?;
        Ok(Self {
            connection,
            theirs,
            closed: false,
        })
    }

    /// The descriptor for the backend.
    #[must_use]
    pub fn fd_to_send(&self) -> RawFd {
        self.theirs.as_raw_fd()
    }

    /// The descriptor to wait on.
    #[must_use]
    pub fn fd_to_watch(&self) -> RawFd {
        self.connection.stream().as_raw_fd()
    }

    /// Handles what has come in, without blocking: how many config changes were among it.
    pub fn take_config_changes(&mut self) -> u32 {
        let mut changes = 0;
        while !self.closed && self.readable() {
            match self.handle() {
                Ok(change) => changes += u32::from(change),
                Err(error) => {
                    log::debug!("backend channel: {error}");
                    self.closed = true;
                }
            }
        }
        changes
    }

    fn readable(&self) -> bool {
        let stream = self.connection.stream();
        let mut byte = [0; 1];
        let flags = nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        nix::sys::socket::recv(stream.as_raw_fd(), &mut byte, flags).is_ok_and(|len| len > 0)
    }

    fn handle(&self) -> Result<bool, MessageError> {
        let message = self.connection.recv()?;
        let known = message.request == u32::from(BackendReq::CONFIG_CHANGE_MSG);
        if !known {
            log::warn!("backend request {} ignored", message.request);
        }
        if message.flags & FLAG_NEED_REPLY != 0 {
            let answer = u64::from(!known).to_ne_bytes();
            self.connection
                .send(message.request, FLAG_VERSION | FLAG_REPLY, &answer, &[])?;
        }
        Ok(known)
    }
}
