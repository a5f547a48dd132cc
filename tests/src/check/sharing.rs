//! What a backend shares with its front-end besides rings: the log of dirty pages, and the record of buffers in flight.

use std::os::fd::AsRawFd;

use nic_guest::memory::GuestMemory;
use nic_guest::ring::VIRTQ_DESC_F_WRITE as WRITE;
use nic_guest::transport::message::FLAG_VERSION;
use nic_guest::virtio_net::features as f;
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::bed::{BUFFER, Bed, FAR, RX, SIZE, TX, buffer};
use super::front::{Front, Reaction, Target};
use super::ring::{Layout, Piece};
use super::{Case, Stop, Verdict};

/// Octets of a page, in the log.
const PAGE: u64 = 4096;
/// Octets of a log for all of the memory that cases have.
const LOG: usize = 4096;

/// All cases.
#[must_use]
pub fn suite() -> Vec<Case> {
    let mut cases = log();
    cases.extend(inflight());
    cases
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn need_log(target: &Target) -> Result<(), Stop> {
    target.need_protocol(Protocol::LOG_SHMFD)?;
    target.need(f::LOG_ALL, "LOG_ALL")
}

fn log() -> Vec<Case> {
    // Name, size, offset, whether there is a file, whether it must not be accepted.
    let bad: [(&str, u64, u64, bool, bool); 6] = [
        ("a log of no octets", 0, 0, true, false),
        (
            "a log whose end wraps",
            u64::MAX - 0xfff,
            0x2000,
            true,
            true,
        ),
        (
            "a log larger than files can be",
            i64::MAX as u64,
            0,
            true,
            true,
        ),
        ("a log larger than its file", 1 << 30, 0, true, false),
        (
            "a log that begins behind its file",
            PAGE,
            1 << 30,
            true,
            false,
        ),
        ("a log without a file", PAGE, 0, false, true),
    ];
    let mut cases: Vec<_> = bad
        .into_iter()
        .map(|(name, size, offset, file, must)| {
            Case::new("log", name, move |target| {
                need_log(target)?;
                let front = Front::greet_with(target, Front::USUAL | Protocol::LOG_SHMFD)?;
                let memory = GuestMemory::new(LOG)?;
                let fd = memory.regions()[0].fd;
                let sent = (Req::SET_LOG_BASE.into(), FLAG_VERSION);
                let fds = if file { vec![fd] } else { vec![] };
                let seen = front.provoke(sent, &words(&[size, offset]), &fds, true)?;
                if must && seen == Reaction::Accepted {
                    return Err(Stop::fail("accepted"));
                }
                Ok(seen.in_words().into())
            })
        })
        .collect();
    for layout in Layout::ALL {
        let name = format!("{}: a received frame's pages are logged", layout.name());
        cases.push(Case::new("log", name, move |target| logged(target, layout)));
    }
    cases
}

fn logged(target: &Target, layout: Layout) -> Verdict {
    need_log(target)?;
    if !target.facts.answers {
        return Err(Stop::missing("nothing comes from the wire"));
    }
    let mut bed = Bed::attach_taking(target, layout, Protocol::LOG_SHMFD)?;
    bed.works(TX)?;
    let log = GuestMemory::new(LOG)?;
    let fd = log.regions()[0].fd;
    let body = words(&[LOG as u64, 0]);
    bed.front
        .raw
        .send(Req::SET_LOG_BASE.into(), FLAG_VERSION, &body, &[fd])?;
    bed.front.raw.recv_reply(Req::SET_LOG_BASE)?;
    bed.front.accept(bed.features | f::LOG_ALL)?;
    bed.receive(&[Piece::new(buffer(RX), BUFFER, WRITE)])?;
    let mut bits = [0; LOG];
    log.read(0, &mut bits)?;
    let page = (FAR / PAGE) as usize;
    let set = bits[page / 8] >> (page % 8) & 1 == 1;
    if set {
        Ok(format!("page {page:#x}"))
    } else {
        Err(Stop::Fail(format!("page {page:#x} is not in the log")))
    }
}

fn request(size: u64, offset: u64, queues: u16, length: u16) -> Vec<u8> {
    let mut body = words(&[size, offset]);
    body.extend(queues.to_ne_bytes());
    body.extend(length.to_ne_bytes());
    // The structure's end, as compilers pad it.
    body.extend([0; 4]);
    body
}

fn inflight() -> Vec<Case> {
    let take = |target: &Target| {
        target.need_protocol(Protocol::INFLIGHT_SHMFD)?;
        Front::greet_with(target, Front::USUAL | Protocol::INFLIGHT_SHMFD)
    };
    let mut cases = vec![Case::new(
        "inflight",
        "a record for two queues",
        move |target| {
            let front = take(target)?;
            let body = request(0, 0, 2, SIZE);
            let answer = front.raw.ask(Req::GET_INFLIGHT_FD, &body)?;
            let size = answer
                .payload
                .first_chunk()
                .map_or(0, |size| u64::from_ne_bytes(*size));
            let Some(file) = answer.file else {
                return Err(Stop::fail("no file comes with it"));
            };
            let len = file.metadata()?.len();
            if size == 0 || size > len {
                return Err(Stop::Fail(format!("{size} octets of a file of {len}")));
            }
            let back = [&words(&[size, 0])[..], &body[16..]].concat();
            front.say(Req::SET_INFLIGHT_FD, &back, &[file.as_raw_fd()])?;
            Ok(format!("{size} octets"))
        },
    )];
    for (name, queues, length) in [
        ("a record for no queues", 0, SIZE),
        ("a record for queues of no entries", 2, 0),
        (
            "a record for 65535 queues of 65535 entries",
            u16::MAX,
            u16::MAX,
        ),
    ] {
        cases.push(Case::new("inflight", name, move |target| {
            let front = take(target)?;
            let sent = (Req::GET_INFLIGHT_FD.into(), FLAG_VERSION);
            let seen = front.provoke(sent, &request(0, 0, queues, length), &[], true)?;
            Ok(seen.in_words().into())
        }));
    }
    // Name, size, offset, queues, entries, whether there is a file.
    let bad: [(&str, u64, u64, u16, u16, bool); 6] = [
        ("a record of no octets given back", 0, 0, 2, SIZE, true),
        (
            "a record whose end wraps given back",
            u64::MAX - 0xfff,
            0x2000,
            2,
            SIZE,
            true,
        ),
        (
            "a record smaller than its queues given back",
            64,
            0,
            u16::MAX,
            1024,
            true,
        ),
        (
            "a record behind its file given back",
            PAGE,
            1 << 40,
            2,
            SIZE,
            true,
        ),
        (
            "a record without a file given back",
            PAGE,
            0,
            2,
            SIZE,
            false,
        ),
        ("a record for no queues given back", PAGE, 0, 0, SIZE, true),
    ];
    for (name, size, offset, queues, length, file) in bad {
        cases.push(Case::new("inflight", name, move |target| {
            let front = take(target)?;
            let memory = GuestMemory::new(LOG)?;
            let fd = memory.regions()[0].fd;
            let fds = if file { vec![fd] } else { vec![] };
            let sent = (Req::SET_INFLIGHT_FD.into(), FLAG_VERSION);
            let body = request(size, offset, queues, length);
            front.provoke(sent, &body, &fds, false)?.must_be_refused()
        }));
    }
    cases
}
