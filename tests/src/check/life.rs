//! What ordinary drivers and front-ends do: traffic, interrupts, stop and restart, reset, coming and going.

use std::time::Duration;

use nic_guest::ring::VIRTQ_AVAIL_F_NO_INTERRUPT;
use nic_guest::ring::VIRTQ_DESC_F_WRITE as WRITE;
use nic_guest::transport::message::encode;
use nic_guest::virtio_net::features as f;
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::bed::{BUFFER, Bed, FRAME, HEADER, RX, SIZE, TX, buffer, take};
use super::front::Target;
use super::ring::{Layout, Piece, Ring};
use super::{Case, Stop, Verdict};

/// How long a device may take to do what it must not.
const A_WHILE: Duration = Duration::from_millis(50);

fn each(
    cases: &mut Vec<Case>,
    group: &'static str,
    name: &str,
    run: fn(&Target, Layout) -> Verdict,
) {
    for layout in Layout::ALL {
        let title = format!("{}: {name}", layout.name());
        cases.push(Case::new(group, title, move |target| run(target, layout)));
    }
}

/// All cases.
#[must_use]
pub fn suite() -> Vec<Case> {
    let mut cases = Vec::new();
    traffic(&mut cases);
    life(&mut cases);
    cases
}

fn packet() -> [Piece; 1] {
    [Piece::new(buffer(TX), HEADER + FRAME, 0)]
}

fn traffic(cases: &mut Vec<Case>) {
    let mut case = |name, run| each(cases, "traffic", name, run);
    case("frames are taken, one after the other", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        (0..100).try_for_each(|_| bed.send())?;
        Ok("100 frames".into())
    });
    case(
        "a used transmit buffer has nothing written to it",
        |target, layout| {
            let mut bed = Bed::attach(target, layout)?;
            bed.fill(TX)?;
            bed.offer(TX, 0, &packet());
            // The length is what was written (2.7.8.2); in a packed ring it says nothing where nothing may be (2.8.5).
            match (bed.await_used(TX, 0)?, layout) {
                (0, _) => Ok("length 0".into()),
                (len, Layout::Packed) => Ok(format!("length {len}, which is reserved")),
                (len, Layout::Split) => Err(Stop::Fail(format!("length {len}"))),
            }
        },
    );
    case(
        "a full ring comes back, each chain once",
        |target, layout| {
            let mut bed = Bed::attach(target, layout)?;
            bed.fill(TX)?;
            for _ in 0..5 {
                (0..SIZE).for_each(|at| bed.queues[TX].ring.offer(at, &packet()));
                bed.kick(TX);
                all_once(&mut bed)?;
            }
            Ok(format!("{} chains", 5 * SIZE))
        },
    );
    case("chains of the whole ring", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        bed.fill(TX)?;
        let pieces = u32::from(SIZE);
        let len = (HEADER + FRAME) / pieces;
        let chain: Vec<_> = (0..pieces)
            .map(|n| Piece::new(buffer(TX) + u64::from(n * len), len, 0))
            .collect();
        for _ in 0..5 {
            bed.offer(TX, 0, &chain);
            bed.await_used(TX, 0)?;
        }
        Ok("5 chains of 8".into())
    });
    case(
        "buffers are used in order with IN_ORDER",
        |target, layout| {
            target.need(f::IN_ORDER, "IN_ORDER")?;
            let mut bed = Bed::attach_with(target, layout, SIZE, f::IN_ORDER)?;
            bed.fill(TX)?;
            (0..SIZE).for_each(|at| bed.queues[TX].ring.offer(at, &packet()));
            bed.kick(TX);
            // The last one of a batch stands for it (2.7.9, 2.8.9).
            let mut last = None;
            let all = target.wait(|| {
                let used = bed.queues[TX].ring.take_used();
                let ordered = used.is_none_or(|(id, _)| last.is_none_or(|last| id > last));
                last = used.map(|(id, _)| id).or(last);
                !ordered || last == Some(u32::from(SIZE) - 1)
            });
            if all && last == Some(u32::from(SIZE) - 1) {
                Ok("in order".into())
            } else {
                Err(Stop::Fail(format!("the last one used is {last:?}")))
            }
        },
    );
    case(
        "an interrupt says that a buffer was used",
        |target, layout| {
            let mut bed = Bed::attach(target, layout)?;
            for _ in 0..5 {
                take(&bed.queues[TX].call);
                bed.send()?;
                let call = &bed.queues[TX].call;
                if !target.wait(|| take(call) > 0) {
                    return Err(Stop::fail("none comes"));
                }
            }
            Ok("5 of them".into())
        },
    );
    case(
        "no interrupt comes where none is wanted",
        |target, layout| {
            let mut bed = Bed::attach_with(target, layout, SIZE, 0)?;
            match &bed.queues[TX].ring {
                Ring::Split(ring) => ring.raw.set_avail_flags(VIRTQ_AVAIL_F_NO_INTERRUPT),
                Ring::Packed(ring) => {
                    let off = nic_guest::ring::VRING_PACKED_EVENT_FLAG_DISABLE;
                    ring.raw.set_driver_event(nic_guest::ring::OffWrap(0), off);
                }
            }
            take(&bed.queues[TX].call);
            (0..5).try_for_each(|_| bed.send())?;
            std::thread::sleep(A_WHILE);
            // It should not (2.7.7.2), and may.
            Ok(match take(&bed.queues[TX].call) {
                0 => "none comes".into(),
                n => format!("{n} come all the same"),
            })
        },
    );
    case(
        "EVENT_IDX: an interrupt when its buffer is used, and none before",
        |target, layout| {
            target.need(f::EVENT_IDX, "EVENT_IDX")?;
            let mut bed = Bed::attach_with(target, layout, SIZE, f::EVENT_IDX)?;
            match &bed.queues[TX].ring {
                Ring::Split(ring) => ring.raw.set_used_event(3),
                Ring::Packed(ring) => {
                    let at = nic_guest::ring::OffWrap::new(3, true);
                    let desc = nic_guest::ring::VRING_PACKED_EVENT_FLAG_DESC;
                    ring.raw.set_driver_event(at, desc);
                }
            }
            take(&bed.queues[TX].call);
            (0..3).try_for_each(|_| bed.send())?;
            std::thread::sleep(A_WHILE);
            let early = take(&bed.queues[TX].call);
            bed.send()?;
            let call = &bed.queues[TX].call;
            if !target.wait(|| take(call) > 0) {
                return Err(Stop::fail("none comes"));
            }
            Ok(match early {
                0 => "one at the fourth".into(),
                n => format!("{n} before it all the same"),
            })
        },
    );
    case("a frame comes from the wire", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        for _ in 0..5 {
            bed.receive(&[Piece::new(buffer(RX), BUFFER, WRITE)])?;
        }
        Ok("5 frames".into())
    });
    case(
        "a received frame is as long as it says, and no longer",
        |target, layout| {
            let mut bed = Bed::attach(target, layout)?;
            (0..3).try_for_each(|queue| bed.fill(queue))?;
            let len = bed.receive(&[Piece::new(buffer(RX), BUFFER, WRITE)])?;
            let mut bytes = vec![0; BUFFER as usize];
            bed.memory.read(buffer(RX), &mut bytes)?;
            let rest = &bytes[(len as usize).min(bytes.len())..];
            // What lies behind may be written, but why should it (2.7.8.2).
            if len < HEADER + 14 {
                return Err(Stop::Fail(format!("{len} octets")));
            }
            let clean = rest.iter().all(|&octet| octet == 0xa5);
            Ok(format!(
                "{len} octets{}",
                if clean { "" } else { ", and wrote behind them" }
            ))
        },
    );
}

/// All chains 0 to [`SIZE`] of the transmit queue come back once.
fn all_once(bed: &mut Bed<'_>) -> Result<(), Stop> {
    let mut back = [0u32; SIZE as usize];
    let mut wrong = None;
    let (target, ring) = (bed.target, &mut bed.queues[TX].ring);
    let all = target.wait(|| {
        while let Some((id, _)) = ring.take_used() {
            match back.get_mut(id as usize) {
                Some(count) => *count += 1,
                None => wrong = Some(id),
            }
        }
        back.iter().sum::<u32>() >= u32::from(SIZE)
    });
    if all && wrong.is_none() && back == [1; SIZE as usize] {
        Ok(())
    } else {
        Err(Stop::Fail(format!(
            "came back {back:?} times, besides {wrong:?}"
        )))
    }
}

fn life(cases: &mut Vec<Case>) {
    let mut case = |name, run| each(cases, "life", name, run);
    case("a stopped ring says where it goes on", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        (0..3).try_for_each(|_| bed.send())?;
        let base = bed.stop(TX)?;
        let expected = match layout {
            Layout::Split => [3; 2],
            // Some front-ends know the lower half alone.
            Layout::Packed => [0x8003_8003, 0x8003],
        };
        if expected.contains(&base) {
            Ok(format!("{base:#x}"))
        } else {
            Err(Stop::Fail(format!("{base:#x} after 3 chains")))
        }
    });
    case("a stopped ring is left alone", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        (0..3).try_for_each(|queue| bed.fill(queue))?;
        bed.send()?;
        (0..bed.queues.len()).try_for_each(|queue| bed.stop(queue).map(|_| ()))?;
        let chain = [Piece::new(buffer(RX), BUFFER, WRITE)];
        bed.offer(TX, 0, &packet());
        bed.offer(RX, 0, &chain);
        let before = bed.snapshot()?;
        std::thread::sleep(A_WHILE);
        match bed.snapshot()?.changed(&before) {
            None => Ok("nothing was written".into()),
            Some(addr) => Err(Stop::Fail(format!("{addr:#x} was written"))),
        }
    });
    case("a ring goes on where it stopped", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        (0..11).try_for_each(|_| bed.send())?;
        bed.stop(TX)?;
        bed.queues[TX].ring.offer(0, &packet());
        bed.place(TX)?;
        bed.enable(TX, true)?;
        bed.kick(TX);
        bed.await_used(TX, 0)?;
        (0..11).try_for_each(|_| bed.send())?;
        Ok("23 frames".into())
    });
    case("a ring is stopped twice", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        bed.send()?;
        let (first, second) = (bed.stop(TX)?, bed.stop(TX)?);
        bed.set_up(TX)?;
        bed.send()?;
        Ok(format!("{first:#x}, then {second:#x}"))
    });
    case(
        "all rings are stopped and set up again, twenty times",
        |target, layout| {
            let mut bed = Bed::attach(target, layout)?;
            for _ in 0..20 {
                bed.send()?;
                bed.restart()?;
            }
            (0..3).try_for_each(|queue| bed.works(queue))?;
            Ok("all work".into())
        },
    );
    case(
        "the receive ring is stopped and set up again, the transmit ring goes on",
        |target, layout| {
            let mut bed = Bed::attach(target, layout)?;
            bed.send()?;
            bed.stop(RX)?;
            bed.set_up(RX)?;
            bed.send()?;
            bed.works(RX)?;
            Ok("both work".into())
        },
    );
    case(
        "the transmit ring is stopped and set up again, the receive ring goes on",
        |target, layout| {
            let mut bed = Bed::attach(target, layout)?;
            bed.works(RX)?;
            bed.stop(TX)?;
            bed.set_up(TX)?;
            bed.send()?;
            bed.works(RX)?;
            Ok("both work".into())
        },
    );
    case(
        "a disabled transmit ring is emptied, and goes on when it is enabled",
        |target, layout| {
            target.need(f::PROTOCOL_FEATURES, "PROTOCOL_FEATURES")?;
            let mut bed = Bed::attach(target, layout)?;
            bed.send()?;
            bed.enable(TX, false)?;
            // It "must process and discard any TX packets" (vhost-user, "Ring states").
            let discarded = bed.send();
            bed.enable(TX, true)?;
            if discarded.is_err() {
                return Err(Stop::fail("nothing is taken while it is disabled"));
            }
            bed.send()?;
            Ok("emptied".into())
        },
    );
    case(
        "a disabled receive ring receives nothing",
        |target, layout| {
            target.need(f::PROTOCOL_FEATURES, "PROTOCOL_FEATURES")?;
            if !target.facts.answers {
                return Err(Stop::missing("nothing comes from the wire"));
            }
            let mut bed = Bed::attach(target, layout)?;
            bed.works(RX)?;
            bed.enable(RX, false)?;
            bed.fill(RX)?;
            bed.offer(RX, 0, &[Piece::new(buffer(RX), BUFFER, WRITE)]);
            for _ in 0..5 {
                bed.send()?;
                std::thread::sleep(A_WHILE / 5);
            }
            if bed.queues[RX].ring.take_used().is_some() {
                return Err(Stop::fail("received"));
            }
            bed.enable(RX, true)?;
            bed.await_received()?;
            Ok("until it is enabled".into())
        },
    );
    case("another size after a stop", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        for size in [2, 4, 64, 256] {
            bed.send()?;
            bed.stop(TX)?;
            bed.queues[TX].ring = Ring::allocate(&bed.memory, layout, size)?;
            bed.set_up(TX)?;
        }
        bed.send()?;
        Ok("2, 4, 64 and 256".into())
    });
    case("RESET_DEVICE, and all again", |target, layout| {
        target.need_protocol(Protocol::RESET_DEVICE)?;
        let mut bed = Bed::attach(target, layout)?;
        for _ in 0..3 {
            bed.send()?;
            (0..bed.queues.len()).try_for_each(|queue| bed.stop(queue).map(|_| ()))?;
            bed.front.say(Req::RESET_DEVICE, &[], &[])?;
            bed.front.accept(bed.features)?;
            (0..bed.queues.len()).try_for_each(|queue| bed.set_up(queue))?;
        }
        (0..3).try_for_each(|queue| bed.works(queue))?;
        Ok("all work".into())
    });
    case("RESET_DEVICE while rings run", |target, layout| {
        target.need_protocol(Protocol::RESET_DEVICE)?;
        let mut bed = Bed::attach(target, layout)?;
        (0..3).try_for_each(|queue| bed.fill(queue))?;
        bed.send()?;
        bed.front.say(Req::RESET_DEVICE, &[], &[])?;
        bed.offer(TX, 0, &packet());
        bed.offer(RX, 0, &[Piece::new(buffer(RX), BUFFER, WRITE)]);
        let before = bed.snapshot()?;
        std::thread::sleep(A_WHILE);
        if let Some(addr) = bed.snapshot()?.changed(&before) {
            return Err(Stop::Fail(format!("{addr:#x} was written afterwards")));
        }
        bed.front.accept(bed.features)?;
        (0..bed.queues.len()).try_for_each(|queue| bed.set_up(queue))?;
        (0..3).try_for_each(|queue| bed.works(queue))?;
        Ok("all work afterwards".into())
    });
    case("RESET_OWNER while rings run", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        bed.send()?;
        let sent = (Req::RESET_OWNER.into(), 1);
        let seen = bed.front.provoke(sent, &[], &[], false)?;
        // Nobody should send it any more, and what it does differs.
        Ok(seen.in_words().into())
    });
    case(
        "it comes and goes, thirty times, with rings full",
        |target, layout| {
            for _ in 0..30 {
                let mut bed = Bed::attach(target, layout)?;
                bed.fill(TX)?;
                (0..SIZE).for_each(|at| bed.queues[TX].ring.offer(at, &packet()));
                bed.queues[RX]
                    .ring
                    .offer(0, &[Piece::new(buffer(RX), BUFFER, WRITE)]);
                (0..bed.queues.len()).for_each(|queue| bed.kick(queue));
            }
            Ok("gone in the middle of it".into())
        },
    );
    case(
        "gone in the middle of a message, with rings full",
        |target, layout| {
            for len in [1, 11, 12, 19] {
                let mut bed = Bed::attach(target, layout)?;
                bed.fill(TX)?;
                (0..SIZE).for_each(|at| bed.queues[TX].ring.offer(at, &packet()));
                bed.kick(TX);
                let whole = encode(Req::GET_VRING_BASE.into(), 1, &[1, 0, 0, 0, 0, 0, 0, 0]);
                bed.front.raw.send_bytes(&whole[..len], &[])?;
            }
            Ok("four times".into())
        },
    );
    case(
        "another connection takes the rings over",
        |target, layout| {
            let mut bed = Bed::attach(target, layout)?;
            (0..5).try_for_each(|_| bed.send())?;
            let base = bed.stop(TX)?;
            let Bed {
                mut queues,
                memory,
                front,
                ..
            } = bed;
            drop(front);
            let mut next = Bed::attach(target, layout)?;
            (0..next.queues.len()).try_for_each(|queue| next.stop(queue).map(|_| ()))?;
            // The same memory and the same ring, as after a migration to oneself.
            next.memory = memory;
            next.queues[TX].ring = queues.swap_remove(TX).ring;
            for queue in (0..next.queues.len()).filter(|&queue| queue != TX) {
                next.queues[queue].ring = Ring::allocate(&next.memory, layout, SIZE)?;
            }
            next.front.share(&next.memory)?;
            for queue in (0..next.queues.len()).filter(|&queue| queue != TX) {
                next.set_up(queue)?;
            }
            next.place(TX)?;
            next.enable(TX, true)?;
            (0..5).try_for_each(|_| next.send())?;
            Ok(format!("from {base:#x} on"))
        },
    );
    case("kicks without anything to do", |target, layout| {
        let mut bed = Bed::attach(target, layout)?;
        for _ in 0..1000 {
            (0..bed.queues.len()).for_each(|queue| bed.kick(queue));
        }
        (0..3).try_for_each(|queue| bed.works(queue))?;
        Ok("1000 for each queue".into())
    });
}
