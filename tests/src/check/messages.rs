//! Messages that nobody should send.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use nic_guest::memory::{GuestMemory, RegionInfo};
use nic_guest::transport::message::{
    Connection, FLAG_REPLY, FLAG_VERSION, VRING_NOFD, config, memory_region, memory_table,
    single_region, vring_addr, vring_state,
};
use nix::sys::eventfd::EventFd;
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::bed::Bed;
use super::front::{Front, Reaction, Target};
use super::ring::Layout;
use super::{Case, Stop, Verdict};

/// The descriptors that come with messages.
pub struct Fds {
    /// An eventfd.
    pub event: EventFd,
    memory: Arc<GuestMemory>,
}

impl Default for Fds {
    fn default() -> Self {
        Fds {
            event: EventFd::new().expect("an eventfd"),
            memory: GuestMemory::new(SIZE as usize).expect("memory"),
        }
    }
}

impl Fds {
    /// A file of [`SIZE`] octets.
    #[must_use]
    pub fn file(&self) -> RawFd {
        self.memory.regions()[0].fd
    }

    /// What it holds.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
}

/// Octets of the file that comes with regions.
pub const SIZE: u64 = 1 << 20;

/// A memory region as messages have it, `user` being its front-end's address.
#[must_use]
pub fn region(guest_addr: u64, size: u64, user: u64, mmap_offset: u64) -> Vec<u8> {
    let region = RegionInfo {
        fd: -1,
        guest_addr,
        size,
        mmap_offset,
        host_addr: user,
    };
    memory_region(&region, user)
}

fn table(regions: &[Vec<u8>], count: u32) -> Vec<u8> {
    let mut table = memory_table(regions);
    table[..4].copy_from_slice(&count.to_ne_bytes());
    table
}

/// A message that nobody should send.
pub struct Hostile {
    /// Its request and what is wrong.
    pub name: String,
    /// The request.
    pub request: u32,
    /// The flags.
    pub flags: u32,
    /// The payload.
    pub payload: Vec<u8>,
    /// What comes along; open as long as the [`Fds`] are.
    pub fds: Vec<RawFd>,
    /// Whether the request has an answer of its own, so that NEED_REPLY says nothing.
    pub answered: bool,
    /// Whether accepting it is a mistake of any backend. Else it depends on what the backend can do, or the protocol does not say.
    pub must: bool,
    /// Protocol features without which the request means nothing.
    pub needs: Protocol,
}

impl Hostile {
    /// Whether there is no way to answer it with an error.
    #[must_use]
    pub fn ends(&self) -> bool {
        self.answered || self.fds.len() > 32
    }

    fn may(self) -> Self {
        Hostile {
            must: false,
            ..self
        }
    }

    fn must_if(self, must: bool) -> Self {
        Hostile { must, ..self }
    }
}

/// What is known of a backend before it gets these messages.
pub struct Known {
    /// Feature bits that it offers.
    pub features: u64,
    /// Protocol features that it offers.
    pub protocol: Protocol,
    /// A number that none of its rings has.
    pub no_ring: u32,
}

fn case(
    name: impl std::fmt::Display,
    request: impl Into<u32>,
    payload: impl Into<Vec<u8>>,
    fds: &[RawFd],
) -> Hostile {
    let request = request.into();
    let known = Req::try_from(request);
    let title = match &known {
        Ok(req) => format!("{req:?}: {name}"),
        Err(_) => format!("request {request}: {name}"),
    };
    let needs = match known {
        Ok(Req::ADD_MEM_REG | Req::REM_MEM_REG) => Protocol::CONFIGURE_MEM_SLOTS,
        Ok(Req::GET_CONFIG | Req::SET_CONFIG) => Protocol::CONFIG,
        Ok(Req::RESET_DEVICE) => Protocol::RESET_DEVICE,
        Ok(Req::SET_BACKEND_REQ_FD) => Protocol::BACKEND_REQ,
        _ => Protocol::empty(),
    };
    let own_answer = [
        Req::GET_FEATURES,
        Req::GET_VRING_BASE,
        Req::GET_CONFIG,
        Req::GET_QUEUE_NUM,
    ];
    Hostile {
        name: title,
        request,
        flags: FLAG_VERSION,
        payload: payload.into(),
        fds: fds.to_vec(),
        answered: own_answer.into_iter().any(|req| u32::from(req) == request),
        must: true,
        needs,
    }
}

/// Everything that is refused before anybody acts on it.
#[must_use]
pub fn cases(fds: &Fds, known: &Known) -> Vec<Hostile> {
    let (event, file) = (fds.event.as_raw_fd(), fds.file());
    let user = 0x7000_0000_0000;
    let good = region(0, SIZE, user, 0);
    let mut cases: Vec<_> = [0, 41, 99, u32::MAX]
        .map(|request| case("unknown", request, [], &[]))
        .into();
    for (req, feature) in [
        (Req::SET_LOG_BASE, Protocol::LOG_SHMFD),
        (Req::SET_LOG_FD, Protocol::LOG_SHMFD),
        (Req::SEND_RARP, Protocol::RARP),
        (Req::NET_SET_MTU, Protocol::MTU),
        (Req::IOTLB_MSG, Protocol::empty()),
        (Req::GET_INFLIGHT_FD, Protocol::INFLIGHT_SHMFD),
    ] {
        let offered = known.protocol.contains(feature);
        cases.push(case("not negotiated", req, [0; 16], &[]).must_if(!offered));
    }
    for flags in [
        0,
        2,
        3,
        FLAG_VERSION | FLAG_REPLY,
        FLAG_VERSION | 0x10,
        0x8000_0001,
    ] {
        let name = format!("flags {flags:#x}");
        cases.push(Hostile {
            flags,
            must: flags & 3 != FLAG_VERSION,
            ..case(name, Req::SET_OWNER, [], &[])
        });
    }
    for (req, right) in [
        (Req::SET_FEATURES, 8),
        (Req::SET_VRING_NUM, 8),
        (Req::SET_VRING_ADDR, 40),
        (Req::SET_VRING_KICK, 8),
        (Req::ADD_MEM_REG, 40),
        (Req::RESET_DEVICE, 0),
        (Req::GET_FEATURES, 0),
        (Req::GET_VRING_BASE, 8),
    ] {
        for len in [right + 1, right + 8, 4096, usize::saturating_sub(right, 1)] {
            if len != right {
                let name = format!("{len} octets instead of {right}");
                // Who takes more than it needs can still tell what it was.
                cases.push(case(name, req, vec![0; len], &[]).must_if(len < right));
            }
        }
    }
    for (req, payload, right) in [
        (Req::RESET_DEVICE, vec![], 0),
        (Req::SET_FEATURES, vec![0; 8], 0),
        (Req::SET_VRING_NUM, vring_state(0, 256), 0),
        (Req::GET_VRING_BASE, vring_state(0, 0), 0),
        (Req::SET_VRING_KICK, vec![0; 8], 1),
        (Req::SET_VRING_CALL, vec![0; 8], 1),
        (Req::SET_VRING_ERR, vec![0; 8], 1),
        (Req::SET_VRING_CALL, VRING_NOFD.to_ne_bytes().to_vec(), 0),
        (Req::SET_BACKEND_REQ_FD, vec![], 1),
        (Req::SET_MEM_TABLE, table(std::slice::from_ref(&good), 1), 1),
        (Req::ADD_MEM_REG, single_region(&good), 1),
    ] {
        for count in [0, 1, 2, 32, 33, 40] {
            if count != right {
                cases.push(case(
                    format!("{count} descriptors instead of {right}"),
                    req,
                    payload.clone(),
                    &vec![file; count],
                ));
            }
        }
    }
    for index in [known.no_ring, 256, u32::MAX] {
        // There can be more rings than a backend says that it has.
        let must = index >= 256;
        let state = vring_state(index, 1);
        for req in [
            Req::SET_VRING_NUM,
            Req::SET_VRING_BASE,
            Req::GET_VRING_BASE,
            Req::SET_VRING_ENABLE,
        ] {
            let named = case(format!("ring {index}"), req, state.clone(), &[]);
            cases.push(named.must_if(must));
        }
        cases.push(case(
            format!("ring {index}"),
            Req::SET_VRING_ADDR,
            vring_addr(index, 0, user, user, user, 0),
            &[],
        ));
    }
    for word in [u64::from(known.no_ring), 255, 0x200, 1 << 32, !VRING_NOFD] {
        for req in [Req::SET_VRING_KICK, Req::SET_VRING_CALL, Req::SET_VRING_ERR] {
            let name = format!("ring {word:#x}");
            cases.push(case(name, req, word.to_ne_bytes(), &[event]).may());
        }
    }
    for size in [0, 3, 2048, 1 << 16, 1 << 31, u32::MAX] {
        let name = format!("size {size}");
        let sized = case(name, Req::SET_VRING_NUM, vring_state(1, size), &[]);
        cases.push(sized.must_if(!(1..=1 << 15).contains(&size) || !size.is_power_of_two()));
    }
    for value in [2, u32::MAX] {
        let name = format!("value {value}");
        cases.push(case(name, Req::SET_VRING_ENABLE, vring_state(1, value), &[]).may());
    }
    for (name, addr) in [
        (
            "descriptors misaligned",
            vring_addr(0, 0, user + 8, user, user, 0),
        ),
        (
            "used ring misaligned",
            vring_addr(0, 0, user, user + 2, user, 0),
        ),
        (
            "available ring misaligned",
            vring_addr(0, 0, user, user, user + 1, 0),
        ),
        ("unknown flags", vring_addr(0, 0x80, user, user, user, 0)),
    ] {
        let must = name != "unknown flags";
        cases.push(case(name, Req::SET_VRING_ADDR, addr, &[]).must_if(must));
    }
    let unoffered = !known.features;
    for (name, features) in [
        ("all that is not offered", unoffered),
        ("STANDBY", 1 << 62),
        ("everything", u64::MAX),
        // Of devices before the standard.
        ("GSO", 1 << 6),
    ] {
        let features: u64 = features;
        let bits = case(name, Req::SET_FEATURES, features.to_ne_bytes(), &[]);
        cases.push(bits.must_if(features & unoffered != 0));
    }
    let bad_regions = [
        ("size zero", region(0, 0, user, 0)),
        (
            "guest address wraps",
            region(u64::MAX - 0xfff, SIZE, user, 0),
        ),
        ("user address wraps", region(0, SIZE, u64::MAX - 0xfff, 0)),
        ("offset wraps", region(0, SIZE, user, u64::MAX - 0xfff)),
        (
            "larger than files can be",
            region(0, i64::MAX as u64, user, 0x1000),
        ),
        ("larger than its file", region(0, SIZE + 1, user, 0)),
        ("beyond its file", region(0, SIZE, user, 0x1000)),
        ("everything", region(0, u64::MAX, 0, 0)),
    ];
    for (name, bad) in bad_regions {
        cases.push(case(name, Req::ADD_MEM_REG, single_region(&bad), &[file]));
        cases.push(case(
            name,
            Req::SET_MEM_TABLE,
            table(std::slice::from_ref(&bad), 1),
            &[file],
        ));
        let second = region(1 << 40, SIZE, user, 0);
        cases.push(case(
            format!("{name}, the second"),
            Req::SET_MEM_TABLE,
            table(&[second, bad], 2),
            &[file; 2],
        ));
    }
    let many: Vec<_> = (0..33).map(|n| region(n << 32, SIZE, user, 0)).collect();
    let overlapping = [good.clone(), region(SIZE - 1, SIZE, user, 0)];
    cases.extend([
        case("no regions", Req::SET_MEM_TABLE, table(&[], 0), &[]).may(),
        case(
            "33 regions",
            Req::SET_MEM_TABLE,
            table(&many, 33),
            &[file; 33],
        ),
        case(
            "more regions than there are",
            Req::SET_MEM_TABLE,
            table(&many[..1], 2),
            &[file; 2],
        ),
        case(
            "many more regions",
            Req::SET_MEM_TABLE,
            table(&many[..1], u32::MAX),
            &[file],
        ),
        case(
            "regions that overlap",
            Req::SET_MEM_TABLE,
            table(&overlapping, 2),
            &[file; 2],
        ),
        case(
            "the same region twice",
            Req::SET_MEM_TABLE,
            table(&[good.clone(), good.clone()], 2),
            &[file; 2],
        ),
        case(
            "two descriptors",
            Req::REM_MEM_REG,
            single_region(&good),
            &[file; 2],
        ),
        case("no size", Req::GET_CONFIG, [0; 8], &[]),
        case(
            "a size of its own",
            Req::GET_CONFIG,
            [&config(0, 0, &[0; 24])[..], &[0]].concat(),
            &[],
        ),
        case(
            "a short payload",
            Req::GET_CONFIG,
            [vring_state(0, 24), vec![0; 4]].concat(),
            &[],
        ),
        case(
            "a huge size",
            Req::GET_CONFIG,
            [vring_state(0, u32::MAX), vec![0; 28]].concat(),
            &[],
        ),
        case(
            "a huge size",
            Req::SET_CONFIG,
            [vring_state(0, u32::MAX), vec![0; 28]].concat(),
            &[],
        ),
    ]);
    cases
}

/// Messages that only the state of the session forbids, for a guest with `memory` octets that are mapped at `start`.
#[must_use]
pub fn forbidden(start: u64, memory: u64, fds: &Fds) -> Vec<Hostile> {
    let addr = |desc, used, avail| vring_addr(0, 0, desc, used, avail, 0);
    let (end, last) = (start + memory, u64::MAX - 15);
    let (file, event) = (fds.file(), fds.event.as_raw_fd());
    let places = [
        ("descriptors unmapped", addr(0x10, start, start)),
        ("used ring unmapped", addr(start, end, start)),
        ("available ring unmapped", addr(start, start, 0x20)),
        ("descriptors partly mapped", addr(end - 16, start, start)),
        ("used ring partly mapped", addr(start, end - 2048, start)),
        (
            "available ring partly mapped",
            addr(start, start, end - 512),
        ),
        ("the last addresses", addr(last, last, last)),
    ];
    // A backend may also wait for memory that has them.
    let places = places.map(|(name, addr)| case(name, Req::SET_VRING_ADDR, addr, &[]).may());
    let one = |name, req, guest, offset, fds: &[RawFd]| {
        case(
            name,
            req,
            single_region(&region(guest, SIZE, 0, offset)),
            fds,
        )
    };
    let mut cases = Vec::from(places);
    cases.extend([
        case("an owner already", Req::SET_OWNER, [], &[]).may(),
        one("over another region", Req::ADD_MEM_REG, 0x1000, 0, &[file]),
        one("the same region", Req::ADD_MEM_REG, 0, 0, &[file]),
        one("no file", Req::ADD_MEM_REG, 1 << 40, 0, &[event]),
        case(
            "no file",
            Req::SET_MEM_TABLE,
            memory_table(&[region(1 << 40, SIZE, 0, 0)]),
            &[event],
        ),
        one("no such region", Req::REM_MEM_REG, 1 << 40, 0, &[]),
        one("part of a region", Req::REM_MEM_REG, 0, 0, &[]),
    ]);
    cases
}

/// Octets of memory that the guest of [`forbidden`] messages has here.
const MEMORY: usize = 16 << 20;

/// All cases.
#[must_use]
pub fn suite(target: &Target) -> Vec<Case> {
    let known = Known {
        features: target.facts.features,
        protocol: target.facts.protocol,
        // Some count pairs.
        no_ring: target.facts.queues.map_or(3, |n| 2 * n as u32 + 1),
    };
    let fds = Arc::new(Fds::default());
    let mut suite: Vec<_> = cases(&fds, &known)
        .into_iter()
        .map(|hostile| {
            let fds = fds.clone();
            Case::new("messages", hostile.name.clone(), move |target| {
                // They stay open.
                let _ = &fds;
                target.need_protocol(hostile.needs)?;
                let front = Front::greet_with(target, Front::USUAL | hostile.needs)?;
                judge(&hostile, provoke(&front, &hostile)?)
            })
        })
        .collect();
    for (number, hostile) in forbidden(0, MEMORY as u64, &fds).into_iter().enumerate() {
        let fds = fds.clone();
        let name = format!("{}, while rings run", hostile.name);
        suite.push(Case::new("messages", name, move |target| {
            target.need_protocol(hostile.needs)?;
            let memory = GuestMemory::new(MEMORY)?;
            let mut bed = Bed::attach_over(target, memory, Layout::Split, 8, 0)?;
            let start = bed.memory.host_addr(0).unwrap_or_default();
            let hostile = forbidden(start, MEMORY as u64, &fds).swap_remove(number);
            bed.send()?;
            let reaction = provoke(&bed.front, &hostile)?;
            if reaction == Reaction::Refused && bed.front.lives()? {
                bed.send()
                    .map_err(|_| Stop::fail("refused, and nothing is sent any more"))?;
            }
            judge(&hostile, reaction)
        }));
    }
    suite
}

fn provoke(front: &Front, hostile: &Hostile) -> Result<Reaction, Stop> {
    let Hostile {
        request,
        flags,
        payload,
        fds,
        answered,
        ..
    } = hostile;
    front.provoke((*request, *flags), payload, fds, *answered)
}

fn judge(hostile: &Hostile, reaction: Reaction) -> Verdict {
    if hostile.must {
        reaction.must_be_refused()
    } else {
        Ok(reaction.in_words().into())
    }
}

/// A small generator of pseudo-random numbers (xorshift).
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % limit
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// Messages that are almost right, as many as the NIC takes; and bytes that are not.
pub fn garbage(front: &Connection, random: &mut Random, fds: &Fds) {
    const WORDS: [u32; 12] = [
        0,
        0,
        1,
        1,
        2,
        3,
        8,
        256,
        1024,
        0x1000,
        0x7fff_ffff,
        u32::MAX,
    ];
    let files = [fds.event.as_raw_fd(), fds.file(), fds.event.as_raw_fd()];
    for _ in 0..random.below(24) {
        let sent = if random.below(8) == 0 {
            let bytes: Vec<_> = (0..random.below(64))
                .map(|_| random.below(256) as u8)
                .collect();
            front.send_bytes(&bytes, &[])
        } else {
            let request = random.below(44) as u32;
            let words = random.one_of(&[0, 2, 2, 2, 2, 3, 6, 10, 10]);
            let payload: Vec<_> = (0..words)
                .flat_map(|_| random.one_of(&WORDS).to_ne_bytes())
                .collect();
            let flags = random.one_of(&[1, 1, 1, 9, 9, 5]);
            let fds = vec![random.one_of(&files); random.one_of(&[0, 0, 0, 1, 1, 2])];
            front.send(request, flags, &payload, &fds)
        };
        if sent.is_err() {
            return;
        }
    }
}
