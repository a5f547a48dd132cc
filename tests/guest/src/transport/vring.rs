//! The file descriptors of one virtqueue: kick, call and error; and waiting for several of them.
//!
//! What enters: eventfd counts (or, where the VMM is User-mode Linux, 8-byte words on a socket)
//! from the device. What leaves: kicks. Nothing but [`Waiter::wait`] blocks.

use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The interrupt line of a queue.
#[derive(Debug)]
enum CallFd {
    Event(EventFd),
    /// Our end, and the end that is passed on.
    Socket(UnixStream, UnixStream),
}

impl CallFd {
    fn to_read(&self) -> RawFd {
        match self {
            Self::Event(event) => event.as_raw_fd(),
            Self::Socket(ours, _) => ours.as_raw_fd(),
        }
    }
}

/// Kick, call and error of one queue.
#[derive(Debug)]
pub(super) struct VringFds {
    kick: EventFd,
    call: CallFd,
    err: EventFd,
    call_waiter: Waiter,
}

fn event() -> std::io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

impl VringFds {
    /// Fresh descriptors, watched by `all` too; with `socket` the call is a stream socket as in
    /// User-mode Linux.
    pub(super) fn new(socket: bool, all: &Waiter) -> std::io::Result<Self> {
        let call = if socket {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            CallFd::Socket(ours, theirs)
        } else {
            CallFd::Event(event()?)
        };
        let err = event()?;
        let call_waiter = Waiter::new()?;
        call_waiter.watch(call.to_read())?;
        all.watch(call.to_read())?;
        all.watch(err.as_raw_fd())?;
        Ok(Self {
            kick: event()?,
            call,
            err,
            call_waiter,
        })
    }

    /// The descriptor that kicks go through.
    pub(super) fn kick_event(&self) -> &EventFd {
        &self.kick
    }

    /// The call eventfd, unless it is a socket.
    pub(super) fn call_event(&self) -> Option<&EventFd> {
        match &self.call {
            CallFd::Event(event) => Some(event),
            CallFd::Socket(..) => None,
        }
    }

    /// The error eventfd.
    pub(super) fn err_event(&self) -> &EventFd {
        &self.err
    }

    /// The call descriptor to pass on.
    pub(super) fn call_to_send(&self) -> RawFd {
        match &self.call {
            CallFd::Event(event) => event.as_raw_fd(),
            CallFd::Socket(_, theirs) => theirs.as_raw_fd(),
        }
    }

    pub(super) fn kick(&self) {
        // An eventfd refuses only when its counter is full: the device then has more than enough.
        let _ = self.kick.write(1);
    }

    pub(super) fn take_interrupt(&self) -> u64 {
        match &self.call {
            CallFd::Event(event) => event.read().unwrap_or(0),
            CallFd::Socket(ours, _) => {
                let (mut ours, mut words, mut total) = (ours, [0; 512], 0);
                while let Ok(len @ 1..) = ours.read(&mut words) {
                    total += len as u64 / 8;
                }
                total
            }
        }
    }

    pub(super) fn take_error(&self) -> u64 {
        self.err.read().unwrap_or(0)
    }

    pub(super) fn wait_interrupt(&self, timeout: Duration) -> bool {
        self.call_waiter.wait(timeout)
    }
}

/// Waits for the first of several descriptors.
#[derive(Debug)]
pub(super) struct Waiter(Epoll);

impl Waiter {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self(Epoll::new()?))
    }

    /// Adds a descriptor. It drops out by itself when it is closed.
    pub(super) fn watch(&self, fd: RawFd) -> std::io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, fd as u64);
        self.0.ctl(ControlOperation::Add, fd, event)
    }

    /// Waits until one of the descriptors is readable or hung up; whether one is.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        // Rounded up, so that a short wait is a wait.
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        let millis = i32::try_from(millis).unwrap_or(i32::MAX);
        let mut events = [EpollEvent::default(); 1];
        loop {
            match self.0.wait(millis, &mut events) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                ready => return ready.is_ok_and(|count| count > 0),
            }
        }
    }
}
