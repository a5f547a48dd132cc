//! vhost-user messages: their layout, their names, and what makes one acceptable.
//!
//! Follows the vhost-user protocol's specification (QEMU, docs/interop/vhost-user.rst). Everything that can be
//! told from a message alone is checked here, before anybody acts on it. Unknown requests, sizes that
//! are not a request's own, descriptors too many or too few: each is a [`Refusal`] in words.

use std::fmt;
use std::os::fd::OwnedFd;

use nix::sys::stat::{SFlag, fstat};
use vhost::vhost_user::message::FrontendReq as Request;

/// Octets of a header: request, flags, size of the payload.
pub const HEADER: usize = 12;
/// The longest payload, in octets.
pub const MAX_PAYLOAD: usize = 4096;
/// Descriptors that come with one message at most.
pub const MAX_FDS: usize = 32;
/// Descriptors of a ring at most.
pub const MAX_RING: u32 = 1024;

/// Flags: the version, which is 1.
const VERSION: u32 = 0x1;
/// Flags: this is an answer.
const REPLY: u32 = 0x4;
/// Flags: the sender waits for an answer.
const NEED_REPLY: u32 = 0x8;
/// In the payload of SET_VRING_KICK, CALL and ERR: the ring's number, and that no descriptor comes along.
const VRING_INDEX: u64 = 0xff;
const VRING_NOFD: u64 = 0x100;

/// A message with its descriptors.
#[derive(Debug)]
pub struct Message {
    /// The request's number.
    pub request: u32,
    /// Version, reply, need-reply.
    pub flags: u32,
    /// What it says.
    pub payload: Vec<u8>,
    /// What came along.
    pub fds: Vec<OwnedFd>,
}

/// Why a message was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The flags do not say version 1, or it is an answer, or unknown flags are set.
    #[error("flags {0:#x} are not those of a request of version 1")]
    Flags(u32),
    /// Nobody here knows the request, or does what it asks for.
    #[error("this request is not supported")]
    Unsupported,
    /// The payload is not as long as it has to be.
    #[error("the payload has {got} octets instead of {expected}")]
    Size {
        /// As it came.
        got: usize,
        /// As it has to be.
        expected: String,
    },
    /// Too many or too few descriptors.
    #[error("{got} file descriptors came along instead of {expected}")]
    Descriptors {
        /// As they came.
        got: usize,
        /// As they have to be.
        expected: usize,
    },
    /// There is no such ring.
    #[error("there is no ring {index}: there are {rings}")]
    NoSuchRing {
        /// Its number.
        index: u64,
        /// How many there are.
        rings: usize,
    },
    /// A ring of that size cannot be.
    #[error(
        "a ring of {0} descriptors: it can have up to {MAX_RING}, and unless it is packed a power of two"
    )]
    RingSize(u32),
    /// A value out of range.
    #[error("{what} is {value}")]
    Value {
        /// Which field.
        what: &'static str,
        /// What it says.
        value: u64,
    },
    /// Regions of memory that overlap, wrap, or are not in their file.
    #[error("memory region {index}: {what}")]
    Region {
        /// Its place in the table.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        let (words, _) = self.payload.as_chunks::<4>();
        for word in words {
            write!(f, " {:#x}", u32::from_ne_bytes(*word))?;
        }
        if self.needs_ack() {
            write!(f, " need-reply")?;
        }
        if !self.fds.is_empty() {
            write!(f, " with {} fds", self.fds.len())?;
        }
        Ok(())
    }
}

impl Message {
    /// A request without descriptors.
    #[must_use]
    pub fn new(request: Request, payload: &[u8]) -> Self {
        Self::of(request.into(), payload)
    }

    /// A message without descriptors, by its request's number.
    #[must_use]
    pub fn of(request: u32, payload: &[u8]) -> Self {
        Message {
            request,
            flags: VERSION,
            payload: payload.to_vec(),
            fds: Vec::new(),
        }
    }

    /// The answer to a request that waits for one: zero for success.
    #[must_use]
    pub fn ack(&self, value: u64) -> Self {
        Message {
            request: self.request,
            flags: VERSION | REPLY,
            payload: value.to_ne_bytes().to_vec(),
            fds: Vec::new(),
        }
    }

    /// Whether the sender waits for an answer that says how it went.
    #[must_use]
    pub fn needs_ack(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// Whether the request has an answer of its own, which no acknowledgement can stand for.
    #[must_use]
    pub fn has_own_answer(&self) -> bool {
        matches!(
            self.code(),
            Some(
                Request::GET_FEATURES
                    | Request::GET_PROTOCOL_FEATURES
                    | Request::GET_VRING_BASE
                    | Request::GET_QUEUE_NUM
                    | Request::GET_CONFIG
                    | Request::GET_MAX_MEM_SLOTS
            )
        )
    }

    /// Which request it is, if anybody knows it.
    #[must_use]
    pub fn code(&self) -> Option<Request> {
        Request::try_from(self.request).ok()
    }

    /// The request's name, or its number.
    #[must_use]
    pub fn name(&self) -> String {
        self.code().map_or_else(
            || format!("request {}", self.request),
            |code| format!("{code:?}"),
        )
    }

    /// The message's octets, descriptors apart.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let words = [self.request, self.flags, self.payload.len() as u32];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(&self.payload);
        bytes
    }

    /// The message's octets but for its payload: request, flags, and the payload's size.
    #[must_use]
    pub fn header(bytes: &[u8; HEADER]) -> (u32, u32, usize) {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        (word(0), word(4), word(8) as usize)
    }

    /// The payload's 64-bit word at octet `at`; zero beyond its end.
    #[must_use]
    pub fn u64_at(&self, at: usize) -> u64 {
        self.payload
            .get(at..at + 8)
            .and_then(|word| word.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    }

    /// The payload's 32-bit word at octet `at`; zero beyond its end.
    #[must_use]
    pub fn u32_at(&self, at: usize) -> u32 {
        self.payload
            .get(at..at + 4)
            .and_then(|word| word.try_into().ok())
            .map_or(0, u32::from_ne_bytes)
    }

    /// Says that a descriptor comes with a SET_VRING_KICK that came without, and attaches it.
    pub fn attach_kick(&mut self, kick: OwnedFd) {
        let index = self.u64_at(0) & VRING_INDEX;
        self.payload = index.to_ne_bytes().to_vec();
        self.fds = vec![kick];
    }

    /// Whether this is a SET_VRING_KICK without a descriptor: the ring is to be polled.
    #[must_use]
    pub fn asks_for_polling(&self) -> bool {
        self.code() == Some(Request::SET_VRING_KICK) && self.u64_at(0) & VRING_NOFD != 0
    }

    /// In the answer to a GET_VRING_BASE, says of a packed ring where used descriptors go on: where available ones do, for all
    /// that was taken has been used.
    pub fn double_base(&mut self) {
        let base = self.u32_at(4) & 0xffff;
        if self.code() == Some(Request::GET_VRING_BASE)
            && let Some(word) = self.payload.get_mut(4..8)
        {
            word.copy_from_slice(&(base | (base << 16)).to_ne_bytes());
        }
    }

    /// Checks all that can be told from the message itself. `rings` is how many there are, and `packed` how they are laid
    /// out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, rings: usize, packed: bool) -> Result<(), Refusal> {
        if self.flags & !NEED_REPLY != VERSION {
            return Err(Refusal::Flags(self.flags));
        }
        let code = self.code().ok_or(Refusal::Unsupported)?;
        match code {
            Request::GET_FEATURES
            | Request::GET_PROTOCOL_FEATURES
            | Request::GET_QUEUE_NUM
            | Request::GET_MAX_MEM_SLOTS
            | Request::SET_OWNER
            | Request::RESET_OWNER
            | Request::RESET_DEVICE => {
                self.payload_is(0)?;
                self.descriptors_are(0)
            }
            Request::SET_FEATURES | Request::SET_PROTOCOL_FEATURES => {
                self.payload_is(8)?;
                self.descriptors_are(0)
            }
            Request::SET_VRING_NUM => {
                self.ring_state(rings)?;
                let size = self.u32_at(4);
                let possible = (packed && size > 0) || size.is_power_of_two();
                if !possible || size > MAX_RING {
                    return Err(Refusal::RingSize(size));
                }
                Ok(())
            }
            Request::SET_VRING_ENABLE => {
                self.ring_state(rings)?;
                match self.u32_at(4) {
                    0 | 1 => Ok(()),
                    value => Err(Refusal::Value {
                        what: "what to enable",
                        value: u64::from(value),
                    }),
                }
            }
            Request::SET_VRING_BASE | Request::GET_VRING_BASE => self.ring_state(rings),
            Request::SET_VRING_ADDR => {
                self.payload_is(40)?;
                self.descriptors_are(0)?;
                self.ring(u64::from(self.u32_at(0)), rings)?;
                self.ring_addresses()
            }
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => {
                self.payload_is(8)?;
                let word = self.u64_at(0);
                if word & !(VRING_INDEX | VRING_NOFD) != 0 {
                    return Err(Refusal::Value {
                        what: "the ring's number",
                        value: word,
                    });
                }
                self.ring(word & VRING_INDEX, rings)?;
                self.descriptors_are(usize::from(word & VRING_NOFD == 0))
            }
            Request::SET_BACKEND_REQ_FD => {
                self.payload_is(0)?;
                self.descriptors_are(1)
            }
            Request::GET_CONFIG | Request::SET_CONFIG => {
                self.descriptors_are(0)?;
                let size = self.u32_at(4) as usize;
                if self.payload.len() < 12 || self.payload.len() != 12 + size {
                    return Err(Refusal::Size {
                        got: self.payload.len(),
                        expected: format!("12 and {size}"),
                    });
                }
                Ok(())
            }
            Request::SET_MEM_TABLE => self.memory_table(),
            Request::ADD_MEM_REG => {
                self.payload_is(40)?;
                self.descriptors_are(1)?;
                check_regions(&self.payload[8..], &self.fds)
            }
            Request::REM_MEM_REG => {
                self.payload_is(40)?;
                // Some front-ends send the region's descriptor; it is closed unused.
                if self.fds.len() > 1 {
                    return self.descriptors_are(1);
                }
                Ok(())
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn payload_is(&self, expected: usize) -> Result<(), Refusal> {
        if self.payload.len() == expected {
            return Ok(());
        }
        Err(Refusal::Size {
            got: self.payload.len(),
            expected: expected.to_string(),
        })
    }

    fn descriptors_are(&self, expected: usize) -> Result<(), Refusal> {
        if self.fds.len() == expected {
            return Ok(());
        }
        Err(Refusal::Descriptors {
            got: self.fds.len(),
            expected,
        })
    }

    /// A payload that names a ring and a value.
    fn ring_state(&self, rings: usize) -> Result<(), Refusal> {
        self.payload_is(8)?;
        self.descriptors_are(0)?;
        self.ring(u64::from(self.u32_at(0)), rings)
    }

    fn ring(&self, index: u64, rings: usize) -> Result<(), Refusal> {
        if index < rings as u64 {
            Ok(())
        } else {
            Err(Refusal::NoSuchRing { index, rings })
        }
    }

    /// Flags and addresses of a SET_VRING_ADDR. The only flag there is asks for a log of writes.
    fn ring_addresses(&self) -> Result<(), Refusal> {
        for (what, value, wrong) in [
            ("the flags' word", u64::from(self.u32_at(4)), !1),
            (
                "the descriptor table's misaligned address",
                self.u64_at(8),
                15,
            ),
            ("the used ring's misaligned address", self.u64_at(16), 3),
            (
                "the available ring's misaligned address",
                self.u64_at(24),
                1,
            ),
        ] {
            if value & wrong != 0 {
                return Err(Refusal::Value { what, value });
            }
        }
        Ok(())
    }

    fn memory_table(&self) -> Result<(), Refusal> {
        let regions = self.u32_at(0) as usize;
        if regions == 0 || regions > MAX_FDS {
            return Err(Refusal::Value {
                what: "the number of memory regions",
                value: regions as u64,
            });
        }
        let described = 8 + REGION * regions;
        if self.payload.len() < described {
            self.payload_is(described)?;
        }
        self.descriptors_are(regions)?;
        check_regions(&self.payload[8..described], &self.fds)
    }

    /// Cuts off what follows the last region of a memory table, since User-mode Linux always sends room for two,
    /// and puts the regions in the order of their guest addresses, the only one that the crate takes.
    pub fn tidy_memory_table(&mut self) {
        if self.code() != Some(Request::SET_MEM_TABLE) {
            return;
        }
        let count = self.u32_at(0) as usize;
        let (described, _) = self.payload[8..8 + REGION * count].as_chunks::<REGION>();
        let mut regions: Vec<_> = described.iter().copied().zip(self.fds.drain(..)).collect();
        regions.sort_by_key(|(region, _)| {
            let (guest, _) = region.as_chunks::<8>();
            u64::from_ne_bytes(guest[0])
        });
        self.payload.truncate(8);
        for (region, fd) in regions {
            self.payload.extend(region);
            self.fds.push(fd);
        }
    }
}

/// Octets that describe a region: guest address, size, the front-end's address, offset in the file.
const REGION: usize = 32;

/// Checks regions against themselves, each other, and their files.
fn check_regions(regions: &[u8], fds: &[OwnedFd]) -> Result<(), Refusal> {
    let (regions, _) = regions.as_chunks::<REGION>();
    let mut seen: Vec<(u64, u64)> = Vec::new();
    for (index, (region, fd)) in regions.iter().zip(fds).enumerate() {
        let wrong = |what| Refusal::Region { index, what };
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&region[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let (guest, size, user, offset) = (word(0), word(8), word(16), word(24));
        if size == 0 {
            return Err(wrong("its size is zero"));
        }
        let end = guest
            .checked_add(size)
            .ok_or(wrong("its guest address and size wrap around"))?;
        user.checked_add(size)
            .ok_or(wrong("its user address and size wrap around"))?;
        let file_end = offset
            .checked_add(size)
            .ok_or(wrong("its file offset and size wrap around"))?;
        if i64::try_from(file_end).is_err() {
            return Err(wrong("it is larger than a file can be"));
        }
        if seen
            .iter()
            .any(|&(other, other_end)| guest < other_end && other < end)
        {
            return Err(wrong("it overlaps another one"));
        }
        let Ok(file) = fstat(fd) else {
            return Err(wrong("its file cannot be looked at"));
        };
        let regular = SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        if regular && (file.st_size as u64) < file_end {
            return Err(wrong("its file is smaller"));
        }
        seen.push((guest, end));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
