//! The relay between a front-end and the crate vhost-user-backend.
//!
//! It reads whole messages with their descriptors, refuses what is malformed before anybody acts on it, and passes
//! the rest on unchanged, but for these, which the crate cannot do:
//!
//! | Message | What the relay does |
//! |---|---|
//! | SET_VRING_ENABLE before any SET_FEATURES, or the first after RESET_DEVICE | first passes on a SET_FEATURES of its own with bit 30 alone: QEMU sends them in that order, and the crate refuses to |
//! | RESET_OWNER | answers: it is deprecated, and the crate would forget features while rings run |
//! | SET_BACKEND_REQ_FD | keeps the socket and answers: the crate cannot send CONFIG_CHANGE_MSG through it |
//! | SET_MEM_TABLE with room behind its regions | cuts it off: User-mode Linux sends it, and the crate refuses it |
//! | SET_MEM_TABLE with regions in any order | sorts them by guest address: the crate refuses others |
//! | GET_VRING_BASE of packed rings | says in the upper half of the answer where used descriptors go on, which is where available ones do: the crate knows 16 bits |
//! | SET_VRING_KICK without a descriptor | attaches /dev/null, which is no eventfd: the ring is polled |
//!
//! A refused message is answered with an error if the front-end asked for answers; else the connection ends. In
//! both cases the state is what it was.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use log::{info, warn};
use nic_device::config::Tears;
use nic_device::features::Features;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::{BackendReq, FrontendReq as Request, VhostUserProtocolFeatures};

use crate::protocol::{HEADER, MAX_FDS, MAX_PAYLOAD, Message};
use crate::session::SessionConfig;

/// How long a front-end may take to read an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a front-end that has said nothing yet may go on so while another one waits, in milliseconds.
const GRACE_MS: u16 = 2_000;

/// What others may know of the front-end, and tell it.
#[derive(Debug, Default)]
pub struct FrontEnd {
    /// The way back to it, once it has given one.
    channel: Mutex<Option<OwnedFd>>,
    /// Connections so far.
    pub connections: AtomicU64,
    /// Messages refused so far.
    pub refused: AtomicU64,
    /// Connections that ended because guest memory was taken away.
    pub memory_gone: AtomicU64,
    /// What it reads of the configuration space that was never there, on purpose.
    tears: Mutex<Option<Tears>>,
}

impl FrontEnd {
    /// Tells it that the configuration space changed, if it is there and can be told (CONFIG_CHANGE_MSG).
    pub fn config_changed(&self) {
        let channel = self.channel.lock().expect("no holder panics");
        let Some(channel) = channel.as_ref() else {
            return;
        };
        let message = Message::of(BackendReq::CONFIG_CHANGE_MSG.into(), &[]);
        // It must not hold us up: one that does not read is not told.
        if let Err(error) = send(channel.as_fd(), &message.bytes(), &[], SendFlags::DONTWAIT) {
            warn!("the front-end cannot be told of the new configuration: {error}");
        }
    }

    /// From now on reads of the configuration space are torn with `probability`, by chance as `seed` says.
    pub fn set_tears(&self, probability: f64, seed: u64) {
        let tears = (probability > 0.0).then(|| Tears::new(probability, seed));
        *self.tears.lock().expect("no holder panics") = tears;
    }

    /// Changes `octets`, read of the configuration space, if they are to be.
    pub fn tear(&self, octets: &mut [u8]) {
        if let Some(tears) = &mut *self.tears.lock().expect("no holder panics") {
            tears.tear(octets);
        }
    }

    /// Reads of the configuration space that were torn since they are to be.
    pub fn torn(&self) -> u64 {
        let tears = self.tears.lock().expect("no holder panics");
        tears.as_ref().map_or(0, Tears::torn)
    }

    /// It is gone.
    pub fn left(&self) {
        *self.channel.lock().expect("no holder panics") = None;
    }
}

/// Why a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// The front-end closed it.
    Closed,
    /// The front-end closed it in the middle of a message.
    Cut,
    /// A message was refused, and the front-end does not listen to errors.
    Refused,
    /// The protocol's state did not allow a message.
    Protocol,
    /// It never said anything, and somebody else waits.
    Mute,
    /// The NIC shuts down.
    Stopped,
    /// Guest memory was taken away behind us, or cannot be used.
    Memory,
    /// The socket failed.
    Failed(io::Error),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Closed => write!(f, "the front-end closed it"),
            Ended::Cut => write!(f, "the front-end closed it in the middle of a message"),
            Ended::Refused => write!(f, "a message was refused"),
            Ended::Protocol => write!(
                f,
                "the last message was not allowed at this point, or what it asked for failed"
            ),
            Ended::Mute => write!(f, "it said nothing, and another front-end waits"),
            Ended::Stopped => write!(f, "the NIC shuts down"),
            Ended::Memory => write!(f, "guest memory cannot be used"),
            Ended::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ended::Closed,
            _ => Ended::Failed(error),
        }
    }
}

/// A relay between two sockets.
pub struct Relay<'a> {
    front: UnixStream,
    back: UnixStream,
    config: &'a SessionConfig,
    requests: Incoming,
    answers: Incoming,
    /// Answers that the crate owes: what the relay itself answers has to wait for them.
    owed: u32,
    /// Whether it has sent a whole message.
    spoken: bool,
    /// What the driver accepted, once the crate knows.
    features: Option<u64>,
    /// Whether the front-end has asked what is offered, and wants to be able to ask for answers. The crate gives
    /// any only to who did both.
    features_asked: bool,
    wants_answers: bool,
}

impl<'a> Relay<'a> {
    /// A relay from `front`, the front-end, to `back`, the crate.
    #[must_use]
    pub fn new(front: UnixStream, back: UnixStream, config: &'a SessionConfig) -> Self {
        Relay {
            front,
            back,
            config,
            requests: Incoming::default(),
            answers: Incoming::default(),
            owed: 0,
            spoken: false,
            features: None,
            features_asked: false,
            wants_answers: false,
        }
    }

    /// Passes messages on until the connection ends, or `stop` or `alarm`, of guest memory, is readable. If somebody comes to
    /// `listener` meanwhile, that is logged; and a front-end that has said nothing by then has to say something soon.
    pub fn run(&mut self, listener: &UnixListener, stop: &EventFd, alarm: &EventFd) -> Ended {
        let patience = Some(PATIENCE);
        // The crate owes what is waited for; if it gives nothing, that must not hold up those who come next.
        let timeouts = [
            self.front.set_write_timeout(patience),
            self.back.set_read_timeout(patience),
        ];
        if let Some(error) = timeouts.into_iter().find_map(Result::err) {
            return error.into();
        }
        let mut waited_for = false;
        loop {
            let mut fds = vec![
                PollFd::new(self.front.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.back.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(alarm.as_fd(), PollFlags::POLLIN),
            ];
            if !waited_for {
                fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            }
            let timeout = match waited_for && !self.spoken {
                true => PollTimeout::from(GRACE_MS),
                false => PollTimeout::NONE,
            };
            match poll(&mut fds, timeout) {
                Ok(0) => return Ended::Mute,
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Ended::Failed(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if ready[2] {
                return Ended::Stopped;
            }
            if ready[3] {
                return Ended::Memory;
            }
            if ready.get(4) == Some(&true) {
                waited_for = true;
                info!("another front-end waits until the present one leaves");
            }
            // Answers first: what the front-end says next may depend on them.
            let step = match (ready[1], ready[0]) {
                (true, _) => self.answer(),
                (_, true) => self.request(),
                _ => Ok(()),
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    /// Passes what the crate answers on to the front-end.
    fn answer(&mut self) -> Result<(), Ended> {
        let mut answer = match self.answers.read(self.back.as_fd()) {
            Ok(None) => return Ok(()),
            Ok(Some(answer)) => answer,
            Err(_) => return Err(Ended::Protocol),
        };
        if self.rings_are_packed() {
            answer.double_base();
        }
        self.owed = self.owed.saturating_sub(1);
        self.trace("answer to", &answer);
        send(
            self.front.as_fd(),
            &answer.bytes(),
            &answer.fds,
            SendFlags::empty(),
        )?;
        Ok(())
    }

    /// Reads what the front-end sends, and deals with it once it is a whole message.
    fn request(&mut self) -> Result<(), Ended> {
        let read = self.requests.read(self.front.as_fd());
        if matches!(read, Err(Ended::Refused)) {
            self.count_refused();
        }
        let Some(mut message) = read? else {
            return Ok(());
        };
        self.spoken = true;
        self.trace("request", &message);
        let packed = self.rings_are_packed();
        if let Err(refusal) = message.check(self.config.queues, packed) {
            warn!("refused {}: {refusal}", message.name());
            return self.refuse(&message);
        }
        match message.code() {
            Some(Request::SET_FEATURES) => {
                let features = message.u64_at(0);
                let unknown = features & !self.config.offered.bits();
                if unknown != 0 {
                    warn!("refused SET_FEATURES: bits {unknown:#x} were not offered");
                    return self.refuse(&message);
                }
                self.features = Some(features);
            }
            Some(Request::RESET_DEVICE) => self.features = None,
            Some(Request::RESET_OWNER) => return self.acknowledge(&message, 0),
            Some(Request::GET_FEATURES) => self.features_asked = true,
            Some(Request::SET_PROTOCOL_FEATURES) => {
                let reply_ack = VhostUserProtocolFeatures::REPLY_ACK.bits();
                self.wants_answers = message.u64_at(0) & reply_ack != 0;
            }
            Some(Request::SET_VRING_ENABLE) => {
                let bit = Features::PROTOCOL_FEATURES.bits();
                match self.features {
                    None => {
                        self.pass(&Message::new(Request::SET_FEATURES, &bit.to_ne_bytes()))?;
                        self.features = Some(bit);
                    }
                    Some(features) if features & bit == 0 => {
                        warn!(
                            "refused SET_VRING_ENABLE: bit 30 (PROTOCOL_FEATURES) was not accepted"
                        );
                        return self.refuse(&message);
                    }
                    Some(_) => {}
                }
            }
            Some(Request::SET_BACKEND_REQ_FD) => {
                *self
                    .config
                    .front_end
                    .channel
                    .lock()
                    .expect("no holder panics") = message.fds.pop();
                return self.acknowledge(&message, 0);
            }
            _ => {}
        }
        message.tidy_memory_table();
        if message.asks_for_polling() {
            // No eventfd, which stands for no kicks.
            message.attach_kick(std::fs::File::open("/dev/null")?.into());
        }
        self.pass(&message)
    }

    /// Whether the driver accepted packed rings.
    fn rings_are_packed(&self) -> bool {
        let features = self.features.unwrap_or(0);
        features & Features::RING_PACKED.bits() != 0
    }

    /// Answers a refused message with an error, or ends the connection.
    fn refuse(&mut self, message: &Message) -> Result<(), Ended> {
        self.count_refused();
        if self.answers_wanted(message) && !message.has_own_answer() {
            self.acknowledge(message, 1)
        } else {
            Err(Ended::Refused)
        }
    }

    fn count_refused(&self) {
        let refused = &self.config.front_end.refused;
        refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the front-end waits to be told how `message` went.
    fn answers_wanted(&self, message: &Message) -> bool {
        self.features_asked && self.wants_answers && message.needs_ack()
    }

    fn acknowledge(&mut self, message: &Message, value: u64) -> Result<(), Ended> {
        if self.answers_wanted(message) {
            while self.owed > 0 {
                self.answer()?;
            }
            let answer = message.ack(value);
            self.trace("answer to", &answer);
            send(self.front.as_fd(), &answer.bytes(), &[], SendFlags::empty())?;
        }
        Ok(())
    }

    /// Passes a message on to the crate.
    fn pass(&mut self, message: &Message) -> Result<(), Ended> {
        send(
            self.back.as_fd(),
            &message.bytes(),
            &message.fds,
            SendFlags::empty(),
        )
        .map_err(|_| Ended::Protocol)?;
        if message.has_own_answer() || self.answers_wanted(message) {
            self.owed += 1;
        }
        Ok(())
    }

    fn trace(&self, what: &str, message: &Message) {
        if self.config.trace {
            info!("protocol: {what} {message}");
        }
    }
}

/// A message that is coming in, whole or in pieces.
#[derive(Debug, Default)]
struct Incoming {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Incoming {
    /// Reads what is there, never beyond the present message. Returns the message once it is whole.
    fn read(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, Ended> {
        let mut chunk = [0; HEADER + MAX_PAYLOAD];
        let missing = self.missing();
        let read = receive(socket, &mut chunk[..missing], &mut self.fds)?;
        if read == 0 {
            return Err(if self.bytes.is_empty() {
                Ended::Closed
            } else {
                Ended::Cut
            });
        }
        self.bytes.extend(&chunk[..read]);
        if self.fds.len() > MAX_FDS {
            warn!("a message with more than {MAX_FDS} file descriptors");
            return Err(Ended::Refused);
        }
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (request, flags, size) = Message::header(header);
        if size > MAX_PAYLOAD {
            warn!("request {request} with a payload of {size} octets: more than {MAX_PAYLOAD}");
            return Err(Ended::Refused);
        }
        if self.missing() > 0 {
            return Ok(None);
        }
        let payload = self.bytes[HEADER..].to_vec();
        self.bytes.clear();
        let fds = std::mem::take(&mut self.fds);
        Ok(Some(Message {
            request,
            flags,
            payload,
            fds,
        }))
    }

    /// Octets that are still to come before the header or the message is whole.
    fn missing(&self) -> usize {
        match self.bytes.first_chunk::<HEADER>() {
            None => HEADER - self.bytes.len(),
            Some(header) => HEADER + Message::header(header).2.min(MAX_PAYLOAD) - self.bytes.len(),
        }
    }
}

/// Reads octets and the descriptors that come with them.
fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let mut slices = [IoSliceMut::new(bytes)];
    let message = loop {
        match recvmsg(socket, &mut slices, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            fds.extend(received);
        }
    }
    // More than a message may have are refused by whoever counts them; fewer were cut off by a limit of our own.
    if message.flags.contains(ReturnFlags::CTRUNC) && fds.len() <= MAX_FDS {
        return Err(io::Error::other(
            "no room for a message's file descriptors (is the limit of open files too low?)",
        ));
    }
    Ok(message.bytes)
}

/// Sends all octets, the descriptors with the first of them.
fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd], flags: SendFlags) -> io::Result<()> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let slices = [IoSlice::new(&bytes[sent..])];
        match sendmsg(socket, &slices, &mut control, flags | SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => {
                sent += result?;
                control.clear();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
