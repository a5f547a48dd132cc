//! Rings that are broken on purpose, and what is odd but allowed; split and packed.

use nic_guest::ring::raw::Descriptor;
use nic_guest::ring::{VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_WRITE as WRITE};
use nic_guest::virtio_net::features as f;

use super::bed::{
    BEHIND, BUFFER, Bed, CONTROL, FAR, FRAME, HEADER, NAMES, RX, SEAM, SIZE, Seen, TABLE, TX,
    buffer,
};
use super::breaks::{
    BREAKS, Break, NOT_WRITABLE, PACKED_BREAKS, PACKED_NOT_WRITABLE, PackedBreak, four_gibioctets,
    indirect, takes_tables,
};
use super::front::Target;
use super::ring::{Layout, Piece, Ring};
use super::{Case, Stop, Verdict};

/// All cases.
#[must_use]
pub fn suite() -> Vec<Case> {
    let mut cases = Vec::new();
    for &(name, how) in BREAKS {
        for queue in [RX, TX, CONTROL] {
            cases.push(split(name, queue, SIZE, how));
        }
    }
    for &(name, queue, how) in NOT_WRITABLE {
        cases.push(split(name, queue, SIZE, how));
    }
    for queue in [RX, TX, CONTROL] {
        cases.push(split("a chain of 4 GiB", queue, 1024, four_gibioctets));
    }
    for &(name, how) in PACKED_BREAKS {
        for queue in [RX, TX, CONTROL] {
            cases.push(packed(name, queue, how));
        }
    }
    for &(name, queue, how) in PACKED_NOT_WRITABLE {
        cases.push(packed(name, queue, how));
    }
    for layout in Layout::ALL {
        for queue in [RX, TX, CONTROL] {
            let name = format!("{} queue: a table that was not negotiated", NAMES[queue]);
            cases.push(Case::new(layout.name(), name, move |target| {
                let bed = Bed::attach_with(target, layout, SIZE, 0)?;
                attack(bed, queue, |ring, addr, flag| {
                    let table = [Descriptor::new(addr, 8, flag, 0)];
                    match ring {
                        Ring::Split(ring) => indirect(&ring.raw, &table, 16, 0),
                        Ring::Packed(ring) => {
                            let entry = packed_desc(addr, 8, flag);
                            // Memory of the suite's own.
                            let _ = ring.raw.write_indirect_table(TABLE, &[entry]);
                            ring.put(&[packed_desc(TABLE, 16, INDIRECT)]);
                        }
                    }
                })
            }));
        }
        cases.extend(allowed(layout));
    }
    cases
}

fn packed_desc(addr: u64, len: u32, flags: u16) -> nic_guest::ring::raw_packed::PackedDescriptor {
    nic_guest::ring::raw_packed::PackedDescriptor::new(addr, len, 0, flags)
}

fn split(name: &'static str, queue: usize, size: u16, how: Break) -> Case {
    let title = format!("{} queue: {name}", NAMES[queue]);
    Case::new("split", title, move |target| {
        if takes_tables(name) {
            target.need(f::INDIRECT_DESC, "INDIRECT_DESC")?;
        }
        let tables = target.facts.features & f::INDIRECT_DESC;
        let bed = Bed::attach_with(target, Layout::Split, size, tables)?;
        attack(bed, queue, |ring, addr, flag| {
            if let Ring::Split(ring) = ring {
                how(&ring.raw, addr, flag);
            }
        })
    })
}

fn packed(name: &'static str, queue: usize, how: PackedBreak) -> Case {
    let title = format!("{} queue: {name}", NAMES[queue]);
    Case::new("packed", title, move |target| {
        target.need(f::RING_PACKED, "RING_PACKED")?;
        if takes_tables(name) {
            target.need(f::INDIRECT_DESC, "INDIRECT_DESC")?;
        }
        attack(
            Bed::attach(target, Layout::Packed)?,
            queue,
            |ring, addr, flag| {
                if let Ring::Packed(ring) = ring {
                    how(ring, addr, flag);
                }
            },
        )
    })
}

/// Breaks `queue`. The device may stop it, drop what is in it or close the connection. It must write nowhere but where
/// the driver let it, go on with the other queues, and stop and serve all again when they are set up again.
fn attack(mut bed: Bed<'_>, queue: usize, how: impl FnOnce(&mut Ring, u64, u16)) -> Verdict {
    let queues = bed.queues.len();
    if queue >= queues {
        return Err(Stop::missing("no control queue is served"));
    }
    if queue == RX && !bed.target.facts.answers {
        return Err(Stop::missing("nothing comes from the wire"));
    }
    // Buffers of all queues are as they will be.
    (0..3).try_for_each(|queue| bed.fill(queue))?;
    bed.send()?;
    let flag = if queue == RX { WRITE } else { 0 };
    // The device may see it before the kick.
    let before = bed.snapshot()?;
    how(&mut bed.queues[queue].ring, buffer(queue), flag);
    bed.kick(queue);
    let seen = bed.observe(queue)?;
    if let Some(addr) = bed.harm(&before, queue)? {
        return Err(Stop::Fail(format!(
            "wrote to {addr:#x}, which is not its to write"
        )));
    }
    match seen {
        Seen::Closed => return Ok(seen.in_words().into()),
        Seen::Used(id, _) if id >= bed.queues[queue].ring.size().into() => {
            return Err(Stop::Fail(format!("used chain {id}, which cannot be")));
        }
        _ => {}
    }
    let others = (0..queues).filter(|&other| other != queue);
    for other in others {
        // What is received has to be sent first.
        if (queue, other) != (TX, RX) {
            bed.works(other).map_err(|stop| of(stop, "meanwhile"))?;
        }
    }
    bed.restart()
        .and_then(|()| (0..queues).try_for_each(|queue| bed.works(queue)))
        .map_err(|stop| of(stop, "set up again"))?;
    Ok(seen.in_words().into())
}

fn of(stop: Stop, when: &str) -> Stop {
    match stop {
        Stop::Fail(why) => Stop::Fail(format!("{when}: {why}")),
        other @ Stop::NotOffered(_) => other,
    }
}

/// What is odd but allowed (VIRTIO 1.3, 2.7.4 to 2.7.6 and 2.8.6 to 2.8.8): it has to work.
fn allowed(layout: Layout) -> Vec<Case> {
    let at = |offset: u64| buffer(TX) + offset;
    let table = |addr: u64, len: u32, flags: u16| Piece::new(addr, len, INDIRECT | flags);
    let whole = || vec![Piece::new(at(0), HEADER + FRAME, 0)];
    // Name, chain, table.
    let mut chains = vec![
        (
            "a header in three pieces",
            vec![
                Piece::new(at(0), 1, 0),
                Piece::new(at(1), 10, 0),
                Piece::new(at(11), 1, 0),
                Piece::new(at(12), FRAME, 0),
            ],
            vec![],
        ),
        (
            "a header in twelve pieces",
            (0..12)
                .map(|n| Piece::new(at(n), 1, 0))
                .chain([Piece::new(at(12), FRAME, 0)])
                .collect(),
            vec![],
        ),
        ("a table", vec![table(TABLE, 16, 0)], whole()),
        ("a writable table", vec![table(TABLE, 16, WRITE)], whole()),
        (
            "a table in two regions",
            vec![table(SEAM - 16, 32, 0)],
            vec![Piece::new(at(0), 20, 0), Piece::new(at(20), 52, 0)],
        ),
        (
            "a buffer over two regions",
            vec![Piece::new(SEAM - 30, HEADER + FRAME, 0)],
            vec![],
        ),
        (
            "the same octets twice",
            vec![
                Piece::new(at(0), HEADER + FRAME, 0),
                Piece::new(at(12), FRAME, 0),
            ],
            vec![],
        ),
    ];
    if layout == Layout::Split {
        let chain = vec![Piece::new(at(0), HEADER, 0), table(TABLE, 16, 0)];
        let rest = vec![Piece::new(at(12), FRAME, 0)];
        chains.push(("a chain that ends in a table", chain, rest));
        chains.push((
            "a table with more entries than are used",
            vec![table(TABLE, 0x100, 0)],
            whole(),
        ));
    }
    let mut cases: Vec<_> = chains
        .into_iter()
        .map(|(name, chain, entries)| {
            let title = format!("transmit queue: {name} is served");
            Case::new(layout.name(), title, move |target| {
                serves(target, layout, &chain, &entries)
            })
        })
        .collect();
    let receive: [(&str, Vec<Piece>); 3] = [
        (
            "a buffer over two regions",
            vec![Piece::new(SEAM - 30, BUFFER, WRITE)],
        ),
        (
            "a buffer in three pieces",
            vec![
                Piece::new(FAR, 5, WRITE),
                Piece::new(FAR + 0x200, 30, WRITE),
                Piece::new(FAR + 0x400, BUFFER, WRITE),
            ],
        ),
        (
            "a huge buffer",
            vec![Piece::new(FAR + 0x10_0000, BEHIND - 0x10_0000, WRITE)],
        ),
    ];
    for (name, chain) in receive {
        let title = format!("receive queue: {name} is served");
        cases.push(Case::new(layout.name(), title, move |target| {
            let mut bed = Bed::attach(target, layout)?;
            let before = bed.memory_with_buffers()?;
            let len = bed.receive(&chain)?;
            if let Some(addr) = bed.harm(&before, RX)? {
                return Err(Stop::Fail(format!("wrote to {addr:#x}")));
            }
            Ok(format!("{len} octets"))
        }));
    }
    if layout == Layout::Packed {
        cases.push(Case::new(
            "packed",
            "transmit queue: a size that is no power of two is served",
            |target| {
                let mut bed = Bed::attach_with(target, Layout::Packed, 5, 0)?;
                (0..12).try_for_each(|_| bed.send())?;
                Ok("12 frames in a ring of 5".into())
            },
        ));
        cases.push(Case::new(
            "packed",
            "transmit queue: a buffer id beyond the ring comes back",
            |target| {
                let mut bed = Bed::attach(target, Layout::Packed)?;
                bed.fill(TX)?;
                bed.offer(TX, 0x1234, &[Piece::new(buffer(TX), HEADER + FRAME, 0)]);
                bed.await_used(TX, 0x1234)?;
                Ok("ids are the driver's (2.8.4)".into())
            },
        ));
    } else {
        cases.push(Case::new(
            "split",
            "transmit queue: indices wrap at 65536",
            |target| {
                let mut bed = Bed::attach(target, Layout::Split)?;
                bed.stop(TX)?;
                bed.queues[TX].ring.clear();
                bed.queues[TX].ring.begin_at(u16::MAX - 3);
                bed.place(TX)?;
                bed.enable(TX, true)?;
                (0..8).try_for_each(|_| bed.send())?;
                Ok("8 frames from index 65532 on".into())
            },
        ));
    }
    cases
}

fn serves(target: &Target, layout: Layout, chain: &[Piece], entries: &[Piece]) -> Verdict {
    if !entries.is_empty() {
        target.need(f::INDIRECT_DESC, "INDIRECT_DESC")?;
    }
    let tables = target.facts.features & f::INDIRECT_DESC;
    let mut bed = Bed::attach_with(target, layout, 16, tables)?;
    bed.fill(TX)?;
    let frame = [&[0; HEADER as usize][..], &bed.frame()].concat();
    bed.memory.write(SEAM - 30, &frame)?;
    if let Some(place) = chain.iter().find(|piece| piece.flags & INDIRECT != 0) {
        let last = entries.len().saturating_sub(1);
        let next = |n: usize| u16::from(n < last) * nic_guest::ring::VIRTQ_DESC_F_NEXT;
        let bytes: Vec<u8> = entries
            .iter()
            .enumerate()
            .flat_map(|(n, piece)| match &bed.queues[TX].ring {
                Ring::Split(_) => {
                    let flags = piece.flags | next(n);
                    Descriptor::new(piece.addr, piece.len, flags, n as u16 + 1).to_bytes()
                }
                // Each is one after the other: NEXT is not looked at (2.8.8).
                Ring::Packed(_) => packed_desc(piece.addr, piece.len, piece.flags).to_bytes(),
            })
            .collect();
        bed.memory.write(place.addr, &bytes)?;
    }
    for _ in 0..3 {
        bed.offer(TX, 0, chain);
        bed.await_used(TX, 0)?;
    }
    Ok("used".into())
}

impl Bed<'_> {
    /// Memory once all buffers have in them what they will have.
    fn memory_with_buffers(&mut self) -> Result<super::snapshot::Snapshot, Stop> {
        (0..3).try_for_each(|queue| self.fill(queue))?;
        self.snapshot()
    }
}
