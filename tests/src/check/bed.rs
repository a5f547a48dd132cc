//! A driver with nothing but rings, to write anything into; and what it sees of the device.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nic_guest::memory::GuestMemory;
use nic_guest::ring::VIRTQ_DESC_F_WRITE;
use nic_guest::transport::message::{vring_addr, vring_state};
use nic_guest::virtio_net::features as f;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::Stop;
use super::front::{Front, Target};
use super::ring::{Layout, Piece, Ring};
use super::snapshot::Snapshot;

/// The receive queue.
pub const RX: usize = 0;
/// The transmit queue.
pub const TX: usize = 1;
/// The control queue, with one pair.
pub const CONTROL: usize = 2;
/// Their names.
pub const NAMES: [&str; 3] = ["receive", "transmit", "control"];

/// Entries of a ring.
pub const SIZE: u16 = 8;
/// Two regions adjoin here.
pub const SEAM: u64 = 1 << 20;
/// Here the second one ends.
pub const HOLE: u64 = 2 << 20;
/// Here the third one begins. A buffer of each queue, and a table for indirect descriptors, are in it.
pub const FAR: u64 = 4 << 20;
/// Octets of the third region.
pub const BEHIND: u32 = 8 << 20;
/// Where tables of indirect descriptors are.
pub const TABLE: u64 = FAR + 0x8000;
/// Where a command is.
const COMMAND: u64 = FAR + 0x20_0000;
/// Where a command's answer is.
pub const ACK: u64 = FAR + 0x7000;
/// Where its result is.
pub const RESULT: u64 = FAR + 0x7100;
/// Octets of a packet's header (VIRTIO 1.3, 5.1.6).
pub const HEADER: u32 = 12;
/// Octets of the frames that are sent.
pub const FRAME: u32 = 60;
/// Octets of a receive buffer.
pub const BUFFER: u32 = 2048;

const WRITE: u16 = VIRTQ_DESC_F_WRITE;
/// How long a device may take to do nothing.
const QUIET: Duration = Duration::from_millis(150);
/// How often something is sent for the wire to answer.
const STIMULUS: Duration = Duration::from_millis(10);
/// What buffers have in them that nobody wrote.
const CANARY: u8 = 0xa5;
/// Octets that have it.
const CANARIES: usize = 0x1_0000;

/// Where the buffer of a queue is.
#[must_use]
pub fn buffer(queue: usize) -> u64 {
    FAR + 0x1000 * queue as u64
}

/// The memory that cases have.
///
/// # Errors
/// When the system has none.
pub fn memory() -> Result<Arc<GuestMemory>, Stop> {
    let memory = GuestMemory::builder()
        .region(0, SEAM as usize)
        .region(SEAM, (HOLE - SEAM) as usize)
        .region(FAR, BEHIND as usize)
        .build()?;
    // Where buffers and tables are.
    memory.slice(FAR, CANARIES)?.fill(0, CANARIES, CANARY);
    Ok(memory)
}

/// A queue, and the descriptors that go with it.
pub struct Queue {
    /// Its number for the device.
    pub index: u32,
    /// Its ring.
    pub ring: Ring,
    /// Tells the device.
    pub kick: EventFd,
    /// The device's interrupts.
    pub call: EventFd,
    /// The device's errors.
    pub err: EventFd,
}

/// What a device did about a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It signalled an error.
    Error,
    /// It used it.
    Used(u32, u32),
    /// It closed the connection.
    Closed,
    /// Nothing.
    Nothing,
}

impl Seen {
    /// In words.
    #[must_use]
    pub fn in_words(&self) -> &'static str {
        match self {
            Seen::Error => "stopped the queue with an error",
            Seen::Used(..) => "used it",
            Seen::Closed => "closed the connection",
            Seen::Nothing => "did nothing with it",
        }
    }
}

/// A driver whose rings are set up.
pub struct Bed<'a> {
    /// The backend.
    pub target: &'a Target,
    /// The front-end.
    pub front: Front,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Receive, transmit, and control if there is one.
    pub queues: Vec<Queue>,
    /// Feature bits in force.
    pub features: u64,
}

fn event() -> Result<EventFd, Stop> {
    Ok(EventFd::from_flags(
        EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
    )?)
}

/// What an eventfd holds; it is empty afterwards.
pub fn take(event: &EventFd) -> u64 {
    event.read().unwrap_or(0)
}

impl<'a> Bed<'a> {
    /// Attaches with rings of `layout` and `size`, accepting `features` besides those that go without saying.
    ///
    /// # Errors
    /// The backend does not offer that, or refuses it.
    pub fn attach_with(
        target: &'a Target,
        layout: Layout,
        size: u16,
        features: u64,
    ) -> Result<Self, Stop> {
        Self::attach_over(target, memory()?, layout, size, features)
    }

    /// The same with rings in `memory`, which has to have the buffers too.
    ///
    /// # Errors
    /// As [`Self::attach_with`].
    pub fn attach_over(
        target: &'a Target,
        memory: Arc<GuestMemory>,
        layout: Layout,
        size: u16,
        features: u64,
    ) -> Result<Self, Stop> {
        let front = Front::greet(target)?;
        Self::attach_by(target, front, memory, layout, (size, features))
    }

    /// Attaches with small rings, and with the protocol features `wanted` besides the usual ones.
    ///
    /// # Errors
    /// As [`Self::attach_with`].
    pub fn attach_taking(
        target: &'a Target,
        layout: Layout,
        wanted: Protocol,
    ) -> Result<Self, Stop> {
        let front = Front::greet_with(target, Front::USUAL | wanted)?;
        Self::attach_by(target, front, memory()?, layout, (SIZE, 0))
    }

    fn attach_by(
        target: &'a Target,
        front: Front,
        memory: Arc<GuestMemory>,
        layout: Layout,
        (size, features): (u16, u64),
    ) -> Result<Self, Stop> {
        target.need(f::VERSION_1, "VERSION_1")?;
        let mut features = features | f::VERSION_1;
        if layout == Layout::Packed {
            target.need(f::RING_PACKED, "RING_PACKED")?;
            features |= f::RING_PACKED;
        }
        let control = target.facts.control;
        if control {
            features |= f::CTRL_VQ | target.facts.features & f::CTRL_RX;
        }
        front.accept(features)?;
        front.share(&memory)?;
        // Behind all pairs there can be, or behind the first (VIRTIO 1.3, 5.1.2).
        let last = if features & (f::MQ | f::RSS) == 0 {
            2
        } else {
            2 * u32::from(target.facts.pairs)
        };
        let numbers = [0, 1, last];
        let queues = numbers[..if control { 3 } else { 2 }].iter().map(|&index| {
            Ok(Queue {
                index,
                ring: Ring::allocate(&memory, layout, size)?,
                kick: event()?,
                call: event()?,
                err: event()?,
            })
        });
        let mut bed = Bed {
            target,
            front,
            queues: queues.collect::<Result<_, Stop>>()?,
            memory,
            features,
        };
        (0..bed.queues.len()).try_for_each(|queue| bed.set_up(queue))?;
        Ok(bed)
    }

    /// Attaches with small rings, and tables of descriptors where the backend has them.
    ///
    /// # Errors
    /// As [`Self::attach_with`].
    pub fn attach(target: &'a Target, layout: Layout) -> Result<Self, Stop> {
        let tables = target.facts.features & f::INDIRECT_DESC;
        Self::attach_with(target, layout, SIZE, tables)
    }

    /// Sets a queue up anew, its ring empty, and enables it.
    ///
    /// # Errors
    /// The backend refuses.
    pub fn set_up(&mut self, queue: usize) -> Result<(), Stop> {
        self.queues[queue].ring.clear();
        self.place(queue)?;
        self.enable(queue, true)
    }

    /// Tells the backend of a queue as it is, without enabling it.
    ///
    /// # Errors
    /// The backend refuses.
    pub fn place(&self, queue: usize) -> Result<(), Stop> {
        let Queue {
            index,
            ring,
            kick,
            call,
            err,
        } = &self.queues[queue];
        let (front, index) = (&self.front, *index);
        front.say(
            Req::SET_VRING_NUM,
            &vring_state(index, ring.size().into()),
            &[],
        )?;
        front.say(Req::SET_VRING_BASE, &vring_state(index, ring.base()), &[])?;
        front.say(Req::SET_VRING_ADDR, &self.address(queue)?, &[])?;
        for (request, event) in [
            (Req::SET_VRING_ERR, err),
            (Req::SET_VRING_CALL, call),
            (Req::SET_VRING_KICK, kick),
        ] {
            let body = u64::from(index).to_ne_bytes();
            front.say(request, &body, &[event.as_raw_fd()])?;
        }
        Ok(())
    }

    /// The payload of SET_VRING_ADDR for a queue.
    ///
    /// # Errors
    /// When the ring is not in memory.
    pub fn address(&self, queue: usize) -> Result<Vec<u8>, Stop> {
        let at = self.queues[queue].ring.memory().layout();
        let host = |addr| {
            let host = self.memory.host_addr(addr);
            host.ok_or_else(|| Stop::fail("the suite itself: a ring out of memory"))
        };
        let (desc, used, avail) = (host(at.desc)?, host(at.used)?, host(at.avail)?);
        let index = self.queues[queue].index;
        Ok(vring_addr(index, 0, desc, used, avail, 0))
    }

    /// Enables or disables a queue, where queues can be.
    ///
    /// # Errors
    /// The backend refuses.
    pub fn enable(&self, queue: usize, enable: bool) -> Result<(), Stop> {
        if self.front.offered & f::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let body = vring_state(self.queues[queue].index, enable.into());
        self.front.say(Req::SET_VRING_ENABLE, &body, &[])
    }

    /// Stops a queue; where it would go on.
    ///
    /// # Errors
    /// There is no good answer.
    pub fn stop(&self, queue: usize) -> Result<u32, Stop> {
        let index = self.queues[queue].index;
        let answer = self
            .front
            .ask(Req::GET_VRING_BASE, &vring_state(index, 0))?;
        let (words, rest) = answer.as_chunks::<4>();
        match (words, rest) {
            ([got, base], []) if u32::from_ne_bytes(*got) == index => Ok(u32::from_ne_bytes(*base)),
            _ => Err(Stop::Fail(format!("GET_VRING_BASE: answer {answer:x?}"))),
        }
    }

    /// Tells the device that something is available.
    pub fn kick(&self, queue: usize) {
        // Full is as good.
        let _ = self.queues[queue].kick.write(1);
    }

    /// Stops all queues and sets them up anew, as a driver does that has seen one break.
    ///
    /// # Errors
    /// The backend refuses.
    pub fn restart(&mut self) -> Result<(), Stop> {
        (0..self.queues.len()).try_for_each(|queue| self.stop(queue).map(|_| ()))?;
        (0..self.queues.len()).try_for_each(|queue| self.set_up(queue))
    }

    /// The kick as a descriptor to send.
    #[must_use]
    pub fn kick_fd(&self, queue: usize) -> RawFd {
        self.queues[queue].kick.as_raw_fd()
    }

    /// A frame that a partner answers and a loop returns: an ARP request.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mac = self.target.facts.mac;
        let mut frame = vec![0xff; 6];
        frame.extend(mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(mac);
        frame.extend([10, 77, 0, 2, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1]);
        frame.resize(FRAME as usize, 0);
        frame
    }

    /// Puts a good frame or command where the queue's buffer is.
    ///
    /// # Errors
    /// When the buffer is not in memory.
    pub fn fill(&self, queue: usize) -> Result<(), Stop> {
        let bytes = match queue {
            TX => [&[0; HEADER as usize][..], &self.frame()].concat(),
            // CTRL_RX PROMISC on, and no answer yet.
            CONTROL => vec![0, 0, 1, 0xff],
            _ => vec![CANARY; BUFFER as usize],
        };
        Ok(self.memory.write(buffer(queue), &bytes)?)
    }

    /// Makes a chain of `queue` available and kicks.
    pub fn offer(&mut self, queue: usize, at: u16, chain: &[Piece]) {
        self.queues[queue].ring.offer(at, chain);
        self.kick(queue);
    }

    /// Waits until the device uses a chain of `queue`; it must be `at`. How many octets it says that it wrote.
    ///
    /// # Errors
    /// It does not, or it uses another.
    pub fn await_used(&mut self, queue: usize, at: u16) -> Result<u32, Stop> {
        let (target, ring) = (self.target, &mut self.queues[queue].ring);
        let mut used = None;
        target.wait(|| {
            used = ring.take_used();
            used.is_some() || self.front.raw.is_closed()
        });
        match used {
            Some((id, len)) if id == u32::from(at) => Ok(len),
            Some((id, _)) => Err(Stop::Fail(format!(
                "the {} queue used chain {id} instead of {at}",
                NAMES[queue]
            ))),
            None if self.front.raw.is_closed() => Err(Stop::fail("closed the connection")),
            None => Err(Stop::Fail(format!(
                "the {} queue does not use what it is given",
                NAMES[queue]
            ))),
        }
    }

    /// Sends a good frame and waits until it was taken.
    ///
    /// # Errors
    /// It is not.
    pub fn send(&mut self) -> Result<(), Stop> {
        self.fill(TX)?;
        self.offer(TX, 0, &[Piece::new(buffer(TX), HEADER + FRAME, 0)]);
        self.await_used(TX, 0).map(|_| ())
    }

    /// Sends frames until one comes into the receive buffer, which is made available as `chain`: the octets written.
    ///
    /// # Errors
    /// None comes.
    pub fn receive(&mut self, chain: &[Piece]) -> Result<u32, Stop> {
        if !self.target.facts.answers {
            return Err(Stop::missing("nothing comes from the wire"));
        }
        self.fill(RX)?;
        self.offer(RX, 0, chain);
        self.await_received()
    }

    /// Sends frames until the receive queue uses the chain that begins at descriptor 0.
    ///
    /// # Errors
    /// It does not.
    pub fn await_received(&mut self) -> Result<u32, Stop> {
        let begin = Instant::now();
        while begin.elapsed() < self.target.patience {
            self.send()?;
            let sent = Instant::now();
            while sent.elapsed() < STIMULUS {
                match self.queues[RX].ring.take_used() {
                    Some((0, len)) => return Ok(len),
                    Some((id, _)) => {
                        return Err(Stop::Fail(format!(
                            "the receive queue used chain {id} instead of 0"
                        )));
                    }
                    None => std::thread::sleep(Duration::from_micros(200)),
                }
            }
        }
        Err(Stop::fail("no frame comes into the receive queue"))
    }

    /// Gives a command: the device's answer.
    ///
    /// # Errors
    /// There is none.
    pub fn command(&mut self, command: &[u8]) -> Result<u8, Stop> {
        self.offer_command(command)?;
        self.await_used(CONTROL, 0)?;
        self.answer()
    }

    /// Makes a command available, with room for a result.
    ///
    /// # Errors
    /// There is no control queue.
    pub fn offer_command(&mut self, command: &[u8]) -> Result<(), Stop> {
        if self.queues.len() <= CONTROL {
            return Err(Stop::missing("no control queue is served"));
        }
        self.memory.write(COMMAND, command)?;
        self.memory.write(ACK, &[0xff])?;
        let chain = [
            Piece::new(COMMAND, command.len() as u32, 0),
            Piece::new(ACK, 1, WRITE),
            Piece::new(RESULT, 256, WRITE),
        ];
        self.offer(CONTROL, 0, &chain);
        Ok(())
    }

    /// What the device answered the command with.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn answer(&self) -> Result<u8, Stop> {
        let mut answer = [0xff];
        self.memory.read(ACK, &mut answer)?;
        Ok(answer[0])
    }

    /// Has the queue do something good, where it can.
    ///
    /// # Errors
    /// It does not.
    pub fn works(&mut self, queue: usize) -> Result<(), Stop> {
        match queue {
            TX => self.send(),
            RX if self.target.facts.answers => {
                let len = self.receive(&[Piece::new(buffer(RX), BUFFER, WRITE)])?;
                if (HEADER + 14..=BUFFER).contains(&len) {
                    Ok(())
                } else {
                    Err(Stop::Fail(format!("a received packet of {len} octets")))
                }
            }
            CONTROL if self.queues.len() > CONTROL && self.features & f::CTRL_RX != 0 => {
                match self.command(&[0, 0, 1])? {
                    0 => Ok(()),
                    answer => Err(Stop::Fail(format!("answer {answer} to a good command"))),
                }
            }
            _ => Ok(()),
        }
    }

    /// What the device does about what was done to `queue`, if it does anything soon; the wire is asked for frames meanwhile.
    ///
    /// # Errors
    /// Nothing can be sent any more.
    pub fn observe(&mut self, queue: usize) -> Result<Seen, Stop> {
        self.observe_for(queue, QUIET)
    }

    /// The same, `patience` being how long nothing may happen.
    ///
    /// # Errors
    /// Nothing can be sent any more.
    pub fn observe_for(&mut self, queue: usize, patience: Duration) -> Result<Seen, Stop> {
        let begin = Instant::now();
        let mut next = begin;
        loop {
            if take(&self.queues[queue].err) > 0 {
                return Ok(Seen::Error);
            }
            if self.front.raw.is_closed() {
                return Ok(Seen::Closed);
            }
            if let Some((id, len)) = self.queues[queue].ring.take_used() {
                return Ok(Seen::Used(id, len));
            }
            if begin.elapsed() > patience {
                return Ok(Seen::Nothing);
            }
            if queue == RX && self.target.facts.answers && Instant::now() >= next {
                self.send()?;
                next = Instant::now() + STIMULUS;
            }
            let fds = &mut [PollFd::new(
                self.queues[queue].err.as_fd(),
                PollFlags::POLLIN,
            )];
            // Whatever it says, all is looked at again.
            let _ = poll(fds, PollTimeout::from(1u8));
        }
    }

    /// All of memory as it is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, Stop> {
        Snapshot::of(&self.memory)
    }

    /// The first address whose octet differs from `before`, apart from rings and tables of descriptors, which the driver writes
    /// too, and from what the descriptors of `queue` and of its table allow to be written.
    ///
    /// # Errors
    /// Memory cannot be read.
    pub fn harm(&self, before: &Snapshot, queue: usize) -> Result<Option<u64>, Stop> {
        let mut allowed = vec![(TABLE, TABLE_LEN)];
        for Queue { ring, .. } in &self.queues {
            let memory = ring.memory();
            let parts = [&memory.desc, &memory.avail, &memory.used];
            allowed.extend(parts.map(|part| (part.guest_addr(), part.len() as u64)));
        }
        let direct = self.queues[queue].ring.writable();
        allowed.extend(direct.into_iter().map(|(addr, len)| (addr, len.into())));
        let mut table = [0; 64];
        self.memory.read(TABLE, &mut table)?;
        let (entries, _) = table.as_chunks::<16>();
        for entry in entries {
            let whole = u128::from_le_bytes(*entry);
            // Address and length are where they are in both layouts; flags are in one half of the last word or the other.
            let (addr, len, last) = (whole as u64, (whole >> 64) as u32, (whole >> 96) as u32);
            if (last | last >> 16) as u16 & WRITE != 0 {
                allowed.push((addr, len.into()));
            }
        }
        Ok(self.snapshot()?.differs(before, &allowed))
    }
}

/// Octets that tables of descriptors have.
const TABLE_LEN: u64 = 0x1000;
