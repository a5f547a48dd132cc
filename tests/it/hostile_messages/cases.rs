//! Messages that nobody should send.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crate::support::offered;
use nic_guest::memory::{GuestMemory, RegionInfo};
use nic_guest::transport::message::{
    FLAG_REPLY, FLAG_VERSION, VRING_NOFD, config, memory_region, memory_table, single_region,
    vring_addr, vring_state,
};
use nix::sys::eventfd::EventFd;
use vhost::vhost_user::message::FrontendReq as Req;

/// The descriptors that come with messages.
pub struct Fds {
    pub event: EventFd,
    pub memory: Arc<GuestMemory>,
}

impl Fds {
    pub fn new() -> Self {
        Fds {
            event: EventFd::new().expect("an eventfd"),
            memory: GuestMemory::new(SIZE as usize).expect("memory"),
        }
    }

    pub fn file(&self) -> RawFd {
        self.memory.regions()[0].fd
    }
}

/// Octets of the file that comes with regions.
pub const SIZE: u64 = 1 << 20;

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

pub struct Case {
    pub name: String,
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<RawFd>,
    /// Whether there is no way to answer it with an error.
    pub ends: bool,
}

fn case(
    name: impl std::fmt::Display,
    request: impl Into<u32>,
    payload: impl Into<Vec<u8>>,
    fds: &[RawFd],
) -> Case {
    let request = request.into();
    let own_answer = [
        Req::GET_FEATURES,
        Req::GET_VRING_BASE,
        Req::GET_CONFIG,
        Req::GET_QUEUE_NUM,
    ];
    Case {
        name: format!("request {request}: {name}"),
        request,
        flags: FLAG_VERSION,
        payload: payload.into(),
        fds: fds.to_vec(),
        ends: own_answer.into_iter().any(|req| u32::from(req) == request) || fds.len() > 32,
    }
}

/// Everything that is refused before anybody acts on it.
pub fn cases(fds: &Fds) -> Vec<Case> {
    let (event, file) = (fds.event.as_raw_fd(), fds.file());
    let user = 0x7000_0000_0000;
    let good = region(0, SIZE, user, 0);
    let mut cases: Vec<_> = [0, 41, 99, u32::MAX]
        .map(|request| case("unknown", request, [], &[]))
        .into();
    for req in [
        Req::SET_LOG_BASE,
        Req::SET_LOG_FD,
        Req::SEND_RARP,
        Req::NET_SET_MTU,
        Req::IOTLB_MSG,
        Req::GET_INFLIGHT_FD,
    ] {
        cases.push(case("not offered", req, [0; 16], &[]));
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
        cases.push(Case {
            flags,
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
                cases.push(case(format!("{len} octets"), req, vec![0; len], &[]));
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
                    format!("{count} descriptors"),
                    req,
                    payload.clone(),
                    &vec![file; count],
                ));
            }
        }
    }
    for index in [3, 256, u32::MAX] {
        let state = vring_state(index, 1);
        for req in [
            Req::SET_VRING_NUM,
            Req::SET_VRING_BASE,
            Req::GET_VRING_BASE,
            Req::SET_VRING_ENABLE,
        ] {
            cases.push(case(format!("ring {index}"), req, state.clone(), &[]));
        }
        cases.push(case(
            format!("ring {index}"),
            Req::SET_VRING_ADDR,
            vring_addr(index, 0, user, user, user, 0),
            &[],
        ));
    }
    for word in [3, 255, 0x200, 1 << 32, !VRING_NOFD] {
        for req in [Req::SET_VRING_KICK, Req::SET_VRING_CALL, Req::SET_VRING_ERR] {
            cases.push(case(
                format!("ring {word:#x}"),
                req,
                word.to_ne_bytes(),
                &[event],
            ));
        }
    }
    for size in [0, 3, 2048, 1 << 16, 1 << 31, u32::MAX] {
        cases.push(case(
            format!("size {size}"),
            Req::SET_VRING_NUM,
            vring_state(1, size),
            &[],
        ));
    }
    for value in [2, u32::MAX] {
        cases.push(case(
            format!("value {value}"),
            Req::SET_VRING_ENABLE,
            vring_state(1, value),
            &[],
        ));
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
        cases.push(case(name, Req::SET_VRING_ADDR, addr, &[]));
    }
    let unoffered = !offered(1).bits();
    for features in [unoffered, 1 << 62, u64::MAX, 1 << 14] {
        cases.push(case(
            format!("bits {features:#x}"),
            Req::SET_FEATURES,
            features.to_ne_bytes(),
            &[],
        ));
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
        case("no regions", Req::SET_MEM_TABLE, table(&[], 0), &[]),
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

/// Messages that only the state of the session forbids, for a guest whose 8 MiB are mapped at `start`.
pub fn forbidden(start: u64, fds: &Fds) -> Vec<Case> {
    let addr = |desc, used, avail| vring_addr(0, 0, desc, used, avail, 0);
    let (end, last) = (start + (8 << 20), u64::MAX - 15);
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
    let places = places.map(|(name, addr)| case(name, Req::SET_VRING_ADDR, addr, &[]));
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
        case("an owner already", Req::SET_OWNER, [], &[]),
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
