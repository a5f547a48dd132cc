//! A front-end for one case: it greets the backend, sends any message, and tells how it was taken.

use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nic_guest::memory::GuestMemory;
use nic_guest::transport::message::{
    Connection, FLAG_NEED_REPLY, FLAG_REPLY, MessageError, config, connect, memory_region,
    memory_table,
};
use nic_guest::virtio_net::features as f;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::{Stop, Verdict};

/// How long nobody may listen: a moment, for one that is started again.
const DIALLING: Duration = Duration::from_secs(1);
/// How long a backend may take to notice that a front-end leaves.
const LEAVING_MS: u16 = 1000;

/// Goes, and the backend notices, if it does: one that serves a single front-end may turn the next one away until then.
pub fn leave(stream: &UnixStream) {
    // It may be closed already.
    let _ = stream.shutdown(Shutdown::Write);
    // What is there to read does not matter any more: only the end of both directions does.
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::from(LEAVING_MS));
    let _ = stream.shutdown(Shutdown::Both);
}

/// What the suite learned of the backend before the first case.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Feature bits that it offers.
    pub features: u64,
    /// Protocol features that it offers.
    pub protocol: Protocol,
    /// What GET_QUEUE_NUM says: pairs or queues, that is the backend's choice.
    pub queues: Option<u64>,
    /// Whether it serves a control queue: it owns config space too.
    pub control: bool,
    /// Queue pairs that config space names.
    pub pairs: u16,
    /// Hash types that config space names.
    pub hash_types: u32,
    /// Its MAC address, or one that may be used.
    pub mac: [u8; 6],
    /// Whether frames come back from the wire.
    pub answers: bool,
}

/// Where the backend is, what is known of it, and how long it may take.
pub struct Target {
    socket: PathBuf,
    /// How long the backend may take for anything.
    pub patience: Duration,
    /// What is known of it.
    pub facts: Facts,
    /// Connections of the case that runs.
    open: Mutex<Vec<UnixStream>>,
}

impl Target {
    /// The backend at `socket`, of which nothing is known yet.
    #[must_use]
    pub fn new(socket: &Path, patience: Duration) -> Self {
        Target {
            socket: socket.to_owned(),
            patience,
            facts: Facts {
                features: 0,
                protocol: Protocol::empty(),
                queues: None,
                control: false,
                pairs: 1,
                hash_types: 0,
                mac: [2, 0, 0, 0, 0x77, 2],
                answers: false,
            },
            open: Mutex::new(Vec::new()),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks the backend what it is.
    ///
    /// # Errors
    /// It does not answer.
    pub fn learn(&mut self) -> Result<(), Stop> {
        let front = Front::greet_with(self, Front::USUAL)?;
        self.facts.features = front.offered;
        self.facts.protocol = front.protocols;
        let agreed = front.agreed;
        if agreed.contains(Protocol::MQ) {
            self.facts.queues = Some(front.raw.ask_u64(Req::GET_QUEUE_NUM)?);
        }
        if agreed.contains(Protocol::CONFIG) {
            self.facts.control = front.offered & f::CTRL_VQ != 0;
            if front.offered & f::MAC != 0 {
                let bytes = front.read_config(0, 6)?;
                self.facts.mac.copy_from_slice(&bytes[..6]);
            }
            if front.offered & (f::MQ | f::RSS) != 0 {
                let bytes = front.read_config(8, 2)?;
                self.facts.pairs = u16::from_le_bytes([bytes[0], bytes[1]]);
            }
            if front.offered & (f::RSS | f::HASH_REPORT) != 0 {
                let bytes = front.read_config(20, 4)?;
                let word = [bytes[0], bytes[1], bytes[2], bytes[3]];
                self.facts.hash_types = u32::from_le_bytes(word);
            }
        }
        Ok(())
    }

    /// A connection on which nothing was said yet.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn dial(&self) -> Result<Line, Stop> {
        let stream = connect(&self.socket, DIALLING)
            .map_err(|error| Stop::Fail(format!("cannot connect: {error}")))?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(stream.try_clone()?);
        drop(open);
        Ok(Line(Connection::new(stream, self.patience)?))
    }

    /// Closes whatever the case that runs has open: what waits for an answer waits no longer.
    pub fn hang_up(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.drain(..) {
            leave(&stream);
        }
    }

    /// Waits until `done`, at most as long as anything may take.
    pub fn wait(&self, mut done: impl FnMut() -> bool) -> bool {
        let begin = Instant::now();
        loop {
            if done() {
                return true;
            }
            if begin.elapsed() > self.patience {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether the backend offers feature bits `bits`, all of them.
    ///
    /// # Errors
    /// [`Stop::NotOffered`] with `name`.
    pub fn need(&self, bits: u64, name: &str) -> Result<(), Stop> {
        if self.facts.features & bits == bits {
            Ok(())
        } else {
            Err(Stop::missing(name))
        }
    }

    /// Whether the backend offers the protocol features `wanted`.
    ///
    /// # Errors
    /// [`Stop::NotOffered`] with their names.
    pub fn need_protocol(&self, wanted: Protocol) -> Result<(), Stop> {
        if self.facts.protocol.contains(wanted) {
            return Ok(());
        }
        let missing = wanted - self.facts.protocol;
        let names: Vec<_> = missing.iter_names().map(|(name, _)| name).collect();
        Err(Stop::missing(names.join(", ")))
    }
}

/// A connection that is over when this is dropped, whoever else holds its socket.
pub struct Line(Connection);

impl Deref for Line {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // It may be closed already.
        let _ = self.0.stream().shutdown(Shutdown::Both);
    }
}

/// How a message was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// It was answered with an error.
    Refused,
    /// The connection was closed.
    Closed,
    /// It was answered as if it were good.
    Accepted,
    /// Nobody said anything, and later messages are answered.
    Ignored,
}

impl Reaction {
    /// In words.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Reaction::Refused => "refused with an error",
            Reaction::Closed => "closed the connection",
            Reaction::Accepted => "accepted",
            Reaction::Ignored => "no answer, and goes on",
        }
    }

    /// The verdict on a message that must not be accepted.
    ///
    /// # Errors
    /// It was.
    pub fn must_be_refused(self) -> Verdict {
        match self {
            Reaction::Accepted => Err(Stop::fail("accepted")),
            seen => Ok(seen.in_words().into()),
        }
    }
}

/// A front-end that has greeted the backend.
pub struct Front {
    /// The connection.
    pub raw: Line,
    /// Feature bits that the backend offers.
    pub offered: u64,
    /// Protocol features that it offers.
    pub protocols: Protocol,
    /// Protocol features in force.
    pub agreed: Protocol,
}

impl Front {
    /// Protocol features that are always taken where they are offered.
    pub const USUAL: Protocol = Protocol::MQ
        .union(Protocol::CONFIG)
        .union(Protocol::REPLY_ACK)
        .union(Protocol::RESET_DEVICE)
        .union(Protocol::CONFIGURE_MEM_SLOTS);

    /// Says who it is, and takes the usual protocol features.
    ///
    /// # Errors
    /// The backend does not answer.
    pub fn greet(target: &Target) -> Result<Self, Stop> {
        Self::greet_with(target, Self::USUAL)
    }

    /// The same, taking of `wanted` what there is.
    ///
    /// # Errors
    /// The backend does not answer.
    pub fn greet_with(target: &Target, wanted: Protocol) -> Result<Self, Stop> {
        let raw = target.dial()?;
        raw.tell(Req::SET_OWNER, &[], &[])?;
        let offered = raw.ask_u64(Req::GET_FEATURES)?;
        let mut front = Front {
            raw,
            offered,
            protocols: Protocol::empty(),
            agreed: Protocol::empty(),
        };
        if offered & f::PROTOCOL_FEATURES != 0 {
            let bits = front.raw.ask_u64(Req::GET_PROTOCOL_FEATURES)?;
            front.protocols = Protocol::from_bits_truncate(bits);
            let agreed = front.protocols & wanted;
            let body = agreed.bits().to_ne_bytes();
            front.raw.tell(Req::SET_PROTOCOL_FEATURES, &body, &[])?;
            front.agreed = agreed;
        }
        Ok(front)
    }

    /// Sends a message that must be accepted.
    ///
    /// # Errors
    /// It is not.
    pub fn say(&self, request: Req, payload: &[u8], fds: &[RawFd]) -> Result<(), Stop> {
        let said = if self.agreed.contains(Protocol::REPLY_ACK) {
            self.raw.tell_acked(request, payload, fds)
        } else {
            self.raw.tell(request, payload, fds)
        };
        said.map_err(|error| Stop::Fail(format!("{request:?}: {error}")))
    }

    /// Sends a question that must be answered.
    ///
    /// # Errors
    /// It is not.
    pub fn ask(&self, request: Req, payload: &[u8]) -> Result<Vec<u8>, Stop> {
        let answer = self.raw.ask(request, payload);
        answer
            .map(|answer| answer.payload)
            .map_err(|error| Stop::Fail(format!("{request:?}: {error}")))
    }

    /// Feature bits are accepted: `features`, and bit 30 where there is one.
    ///
    /// # Errors
    /// They are refused.
    pub fn accept(&self, features: u64) -> Result<(), Stop> {
        let features = features | self.offered & f::PROTOCOL_FEATURES;
        self.say(Req::SET_FEATURES, &features.to_ne_bytes(), &[])
    }

    /// Shares `memory`.
    ///
    /// # Errors
    /// It is refused.
    pub fn share(&self, memory: &Arc<GuestMemory>) -> Result<(), Stop> {
        let regions = memory.regions();
        let bodies: Vec<_> = regions
            .iter()
            .map(|region| memory_region(region, region.host_addr))
            .collect();
        let fds: Vec<_> = regions.iter().map(|region| region.fd).collect();
        self.say(Req::SET_MEM_TABLE, &memory_table(&bodies), &fds)
    }

    /// `len` octets of config space at `offset`.
    ///
    /// # Errors
    /// The answer is not that of a GET_CONFIG.
    pub fn read_config(&self, offset: u32, len: usize) -> Result<Vec<u8>, Stop> {
        let question = config(offset, 0, &vec![0; len]);
        let answer = self.ask(Req::GET_CONFIG, &question)?;
        if answer.len() != question.len() {
            let got = answer.len();
            return Err(Stop::Fail(format!(
                "GET_CONFIG: {got} octets of answer for {len} at {offset}"
            )));
        }
        Ok(answer[12..].to_vec())
    }

    /// Whether the backend still answers on this connection.
    ///
    /// # Errors
    /// It neither answers nor closes.
    pub fn lives(&self) -> Result<bool, Stop> {
        match self.raw.ask_u64(Req::GET_FEATURES) {
            Ok(_) => Ok(true),
            Err(MessageError::Closed) => Ok(false),
            Err(error) => Err(Stop::Fail(format!("GET_FEATURES afterwards: {error}"))),
        }
    }

    /// Sends any message, and tells how it was taken. `answered` says that the request has an answer of its own.
    ///
    /// # Errors
    /// The backend neither answers nor closes.
    pub fn provoke(
        &self,
        (request, flags): (u32, u32),
        payload: &[u8],
        fds: &[RawFd],
        answered: bool,
    ) -> Result<Reaction, Stop> {
        let acked = self.agreed.contains(Protocol::REPLY_ACK) && !answered;
        let flags = if acked {
            flags | FLAG_NEED_REPLY
        } else {
            flags
        };
        match self.raw.send(request, flags, payload, fds) {
            Ok(()) => {}
            Err(MessageError::Closed) => return Ok(Reaction::Closed),
            Err(error) => return Err(error.into()),
        }
        // An answer to what comes next says that there is none to this.
        match self.raw.tell(Req::GET_FEATURES, &[], &[]) {
            Ok(()) | Err(MessageError::Closed) => {}
            Err(error) => return Err(error.into()),
        }
        let first = match self.raw.recv() {
            Ok(answer) => answer,
            Err(MessageError::Closed) => return Ok(Reaction::Closed),
            Err(error) => return Err(Stop::Fail(format!("after the message: {error}"))),
        };
        if first.request == u32::from(Req::GET_FEATURES) && request != first.request {
            return Ok(Reaction::Ignored);
        }
        if first.request != request || first.flags & FLAG_REPLY == 0 {
            return Err(Stop::Fail(format!(
                "an answer to request {} with flags {:#x}",
                first.request, first.flags
            )));
        }
        let refused = if answered {
            first.payload.is_empty()
        } else {
            first.u64()? != 0
        };
        // What was asked behind it: after an error the connection may end.
        let gone = matches!(self.raw.recv(), Err(MessageError::Closed));
        Ok(match (refused, gone) {
            (true, _) => Reaction::Refused,
            (false, true) => Reaction::Closed,
            (false, false) => Reaction::Accepted,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn who_leaves_waits_until_that_was_noticed() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let noticed = Arc::new(AtomicBool::new(false));
        let notices = noticed.clone();
        let backend = std::thread::spawn(move || {
            let mut rest = Vec::new();
            theirs.read_to_end(&mut rest).unwrap();
            notices.store(true, Ordering::SeqCst);
        });
        leave(&ours);
        assert!(noticed.load(Ordering::SeqCst));
        backend.join().unwrap();
    }
}
