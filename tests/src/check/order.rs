//! Messages at the wrong time, in pieces, or too many of them.

use std::os::fd::AsRawFd;
use std::time::Duration;

use nic_guest::transport::message::{
    FLAG_VERSION, VRING_NOFD, encode, header, single_region, vring_addr, vring_state,
};
use nic_guest::virtio_net::features as f;
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::bed::{Bed, CONTROL, RX, SIZE, TX, take};
use super::front::{Front, Reaction, Target};
use super::messages::{Fds, Random, garbage, region};
use super::ring::Layout;
use super::{Case, Stop, Verdict};

const GROUP: &str = "order";

fn case(name: impl Into<String>, run: impl Fn(&Target) -> Verdict + Send + Sync + 'static) -> Case {
    Case::new(GROUP, name, run)
}

/// Messages before memory, features or an owner are there: `request` with `payload` must not be accepted if `must`.
fn too_early(name: &'static str, request: Req, payload: Vec<u8>, must: bool) -> Case {
    case(name, move |target| {
        if request == Req::REM_MEM_REG {
            target.need_protocol(Protocol::CONFIGURE_MEM_SLOTS)?;
        }
        let front = Front::greet(target)?;
        let answered = request == Req::GET_VRING_BASE;
        let sent = (request.into(), FLAG_VERSION);
        let reaction = front.provoke(sent, &payload, &[], answered)?;
        if must {
            reaction.must_be_refused()
        } else {
            Ok(reaction.in_words().into())
        }
    })
}

/// All cases.
#[must_use]
pub fn suite() -> Vec<Case> {
    let mut cases = vec![
        too_early(
            "SET_VRING_ADDR before there is memory",
            Req::SET_VRING_ADDR,
            vring_addr(0, 0, 0x1000, 0x2000, 0x3000, 0),
            true,
        ),
        too_early(
            "REM_MEM_REG before there is memory",
            Req::REM_MEM_REG,
            single_region(&region(0, 1 << 20, 0, 0)),
            true,
        ),
        too_early(
            "GET_VRING_BASE of a ring that nobody set up",
            Req::GET_VRING_BASE,
            vring_state(0, 0),
            false,
        ),
        too_early(
            "SET_VRING_ENABLE of a ring that nobody set up",
            Req::SET_VRING_ENABLE,
            vring_state(1, 1),
            false,
        ),
        too_early(
            "SET_VRING_BASE beyond any ring",
            Req::SET_VRING_BASE,
            vring_state(0, u32::MAX),
            false,
        ),
    ];
    for len in 1..20 {
        cases.push(case(
            format!("a message of {len} octets of 20, then nothing"),
            move |target| {
                let whole = encode(
                    Req::SET_VRING_NUM.into(),
                    FLAG_VERSION,
                    &vring_state(0, 256),
                );
                let front = Front::greet(target)?;
                front.raw.send_bytes(&whole[..len], &[])?;
                Ok("the connection was closed in the middle".into())
            },
        ));
    }
    for size in [4097u32, 1 << 16, 1 << 31, u32::MAX] {
        cases.push(case(
            format!("a message that claims {size} octets"),
            move |target| {
                let front = Front::greet(target)?;
                let head = header(Req::SET_VRING_NUM.into(), FLAG_VERSION, size);
                front.raw.send_bytes(&head, &[])?;
                if front.raw.closes_within(target.patience) {
                    Ok("closed the connection".into())
                } else {
                    Err(Stop::fail("waits for all of it"))
                }
            },
        ));
    }
    for seed in 1..=12u64 {
        cases.push(case(
            format!("random messages, seed {seed}"),
            move |target| {
                let (fds, mut random) = (
                    Fds::default(),
                    Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                );
                for round in 0..8 {
                    let greeted = round % 4 != 0;
                    let line = if greeted {
                        Front::greet(target)?.raw
                    } else {
                        target.dial()?
                    };
                    garbage(&line, &mut random, &fds);
                }
                Ok("8 connections".into())
            },
        ));
    }
    cases.extend(at_any_time());
    cases.extend(while_it_runs());
    cases
}

/// What has to work although no tidy front-end does it.
fn at_any_time() -> Vec<Case> {
    vec![
        case("messages of one octet at a time are understood", |target| {
            let front = Front::greet(target)?;
            for _ in 0..3 {
                let bytes = encode(Req::GET_FEATURES.into(), FLAG_VERSION, &[]);
                front.raw.send_slowly(&bytes, &[])?;
                front.raw.recv_reply(Req::GET_FEATURES)?;
            }
            Ok("answered".into())
        }),
        case("a hundred messages at once are all answered", |target| {
            let front = Front::greet(target)?;
            let one = encode(Req::GET_FEATURES.into(), FLAG_VERSION, &[]);
            front.raw.send_bytes(&one.repeat(100), &[])?;
            for n in 0..100 {
                let answer = front.raw.recv_reply(Req::GET_FEATURES);
                answer.map_err(|error| Stop::Fail(format!("answer {n}: {error}")))?;
            }
            Ok("answered".into())
        }),
        case("rings are enabled before anything else", |target| {
            // As QEMU does it.
            let front = Front::greet(target)?;
            for ring in 0..2 {
                let said = front.say(Req::SET_VRING_ENABLE, &vring_state(ring, 1), &[]);
                said.map_err(|_| Stop::fail("refused"))?;
            }
            Ok("accepted".into())
        }),
        case("all is negotiated twice", |target| {
            let front = Front::greet(target)?;
            for _ in 0..2 {
                front.raw.ask_u64(Req::GET_FEATURES)?;
                front.accept(f::VERSION_1)?;
                if front.offered & f::PROTOCOL_FEATURES != 0 {
                    front.raw.ask_u64(Req::GET_PROTOCOL_FEATURES)?;
                    let agreed = front.agreed.bits().to_ne_bytes();
                    front.say(Req::SET_PROTOCOL_FEATURES, &agreed, &[])?;
                }
            }
            Ok("accepted".into())
        }),
        case("a connection that says nothing, then another", |target| {
            drop(target.dial()?);
            Front::greet(target)?;
            Ok("the next one is served".into())
        }),
        case("fifty connections, one after the other", |target| {
            for _ in 0..50 {
                Front::greet(target)?;
            }
            Ok("served".into())
        }),
        case("a descriptor that is no eventfd as the kick", |target| {
            let bed = Bed::attach(target, Layout::Split)?;
            let memory = bed.memory.regions();
            let body = 1u64.to_ne_bytes();
            let sent = (Req::SET_VRING_KICK.into(), FLAG_VERSION);
            let seen = bed.front.provoke(sent, &body, &[memory[0].fd], false)?;
            Ok(seen.in_words().into())
        }),
        case("its own socket as the kick", |target| {
            let bed = Bed::attach(target, Layout::Split)?;
            let body = 1u64.to_ne_bytes();
            let sent = (Req::SET_VRING_KICK.into(), FLAG_VERSION);
            let own = bed.front.raw.stream().as_raw_fd();
            let seen = bed.front.provoke(sent, &body, &[own], false)?;
            Ok(seen.in_words().into())
        }),
        case("its own socket as the interrupt", |target| {
            let mut bed = Bed::attach(target, Layout::Split)?;
            let body = 1u64.to_ne_bytes();
            let sent = (Req::SET_VRING_CALL.into(), FLAG_VERSION);
            let own = bed.front.raw.stream().as_raw_fd();
            let seen = bed.front.provoke(sent, &body, &[own], false)?;
            if seen == Reaction::Accepted {
                bed.send()?;
            }
            Ok(seen.in_words().into())
        }),
        case("an interrupt that is full", |target| {
            let mut bed = Bed::attach(target, Layout::Split)?;
            // The next one would block.
            let call = &bed.queues[TX].call;
            while call.write(u64::MAX - 1).is_err() {
                take(call);
            }
            (0..20).try_for_each(|_| bed.send())?;
            Ok("20 frames sent".into())
        }),
        case("a ring without a kick is polled", |target| {
            let mut bed = Bed::attach(target, Layout::Split)?;
            let body = (1 | VRING_NOFD).to_ne_bytes();
            bed.front
                .say(Req::SET_VRING_KICK, &body, &[])
                .map_err(|_| Stop::missing("a ring without a kick is refused"))?;
            bed.send()?;
            Ok("polled".into())
        }),
        case("a ring without an interrupt works", |target| {
            let mut bed = Bed::attach(target, Layout::Split)?;
            let body = (1 | VRING_NOFD).to_ne_bytes();
            bed.front.say(Req::SET_VRING_CALL, &body, &[])?;
            (0..3).try_for_each(|_| bed.send())?;
            Ok("3 frames sent".into())
        }),
        case("kicks before there is anything", |target| {
            let mut bed = Bed::attach(target, Layout::Split)?;
            for _ in 0..1000 {
                (0..bed.queues.len()).for_each(|queue| bed.kick(queue));
            }
            bed.works(TX)?;
            Ok("1000 for each queue".into())
        }),
    ]
}

/// Messages that change what rings stand on while they run: they are refused, or all is as well as before.
fn while_it_runs() -> Vec<Case> {
    let changing = |name, change: fn(&Bed<'_>) -> Result<(), Stop>| {
        case(name, move |target| {
            let mut bed = Bed::attach(target, Layout::Split)?;
            (0..3).try_for_each(|_| bed.send())?;
            match change(&bed) {
                Ok(()) => {}
                Err(_) if bed.front.raw.is_closed() => return Ok("closed the connection".into()),
                Err(_) => {
                    bed.send()?;
                    return Ok("refused, and goes on".into());
                }
            }
            bed.send()?;
            bed.works(RX)?;
            bed.works(CONTROL)?;
            Ok("accepted, and goes on".into())
        })
    };
    vec![
        changing("the same memory again, while rings run", |bed| {
            bed.front.share(&bed.memory)
        }),
        changing("the same memory ten times, while rings run", |bed| {
            (0..10).try_for_each(|_| bed.front.share(&bed.memory))
        }),
        changing("the same features again, while rings run", |bed| {
            bed.front.accept(bed.features)
        }),
        changing("other features, while rings run", |bed| {
            bed.front
                .accept(bed.features | bed.front.offered & f::MRG_RXBUF)
        }),
        changing("the same addresses again, while rings run", |bed| {
            (0..2).try_for_each(|queue| {
                let body = bed.address(queue)?;
                bed.front.say(Req::SET_VRING_ADDR, &body, &[])
            })
        }),
        changing("another kick, while rings run", |bed| {
            let body = (TX as u64).to_ne_bytes();
            (0..10).try_for_each(|_| {
                bed.front
                    .say(Req::SET_VRING_KICK, &body, &[bed.kick_fd(TX)])
            })
        }),
        changing("enabled ten times, while rings run", |bed| {
            (0..10).try_for_each(|_| bed.enable(TX, true))
        }),
        case("another size, while rings run", |target| {
            let mut bed = Bed::attach(target, Layout::Split)?;
            bed.send()?;
            let body = vring_state(TX as u32, u32::from(SIZE) * 2);
            let sent = (Req::SET_VRING_NUM.into(), FLAG_VERSION);
            let seen = bed.front.provoke(sent, &body, &[], false)?;
            // The ring in memory is still of the old size: what the device makes of it is its own affair.
            std::thread::sleep(Duration::from_millis(10));
            Ok(seen.in_words().into())
        }),
        case("memory that rings are in goes away", |target| {
            let mut bed = Bed::attach(target, Layout::Split)?;
            bed.send()?;
            let other = nic_guest::memory::GuestMemory::builder()
                .region(1 << 40, 1 << 20)
                .build()?;
            let taken = bed.front.share(&other);
            for queue in 0..bed.queues.len() {
                bed.kick(queue);
            }
            std::thread::sleep(Duration::from_millis(20));
            Ok(match taken {
                Ok(()) => "accepted".into(),
                Err(_) => "refused".into(),
            })
        }),
        case("memory that buffers are in goes away", |target| {
            target.need_protocol(Protocol::CONFIGURE_MEM_SLOTS)?;
            let mut bed = Bed::attach(target, Layout::Split)?;
            bed.send()?;
            let regions = bed.memory.regions();
            let last = regions.last().ok_or_else(|| Stop::fail("no memory"))?;
            let body = region(last.guest_addr, last.size, last.host_addr, last.mmap_offset);
            bed.front
                .say(Req::REM_MEM_REG, &single_region(&body), &[])?;
            bed.fill(TX)?;
            let chain = [super::ring::Piece::new(super::bed::buffer(TX), 72, 0)];
            bed.offer(TX, 0, &chain);
            let seen = bed.observe(TX)?;
            Ok(seen.in_words().into())
        }),
    ]
}
