//! Packets whose header or length lies (VIRTIO 1.3, 5.1.6.2 and 5.1.6.4). Each is sent or dropped, its buffer comes back, and the
//! next packet is none the worse for it; or the queue stops and says so.

use nic_guest::ring::VIRTQ_DESC_F_WRITE as WRITE;
use nic_guest::virtio_net::features as f;

use super::bed::{BUFFER, Bed, FAR, FRAME, HEADER, RX, SIZE, Seen, TX, buffer};
use super::front::Target;
use super::ring::{Layout, Piece};
use super::{Case, Stop, Verdict};

const GROUP: &str = "packets";

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// `virtio_net_hdr`.
#[derive(Clone, Copy, Default)]
struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    num_buffers: u16,
}

impl Header {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![self.flags, self.gso_type];
        let words = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }
}

/// A TCP segment over IPv4 with `payload` octets: 54 of headers.
fn tcp(payload: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0x77, 2, 8, 0]);
    let total = (40 + payload) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 2, 10, 77, 0, 1]);
    frame.extend([0x30, 0x39, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0]);
    frame.extend([0, 0, 0, 0]);
    frame.resize(frame.len() + payload, 0x61);
    frame
}

/// What is sent.
#[derive(Clone, Copy)]
enum Body {
    /// A short frame that is well.
    Short,
    /// TCP with so many octets of payload.
    Tcp(usize),
    /// Only the first octets of a TCP frame.
    CutTcp(usize),
}

type Lie = (&'static str, u64, Header, Body);

fn lies() -> Vec<Lie> {
    let none = Header::default();
    let csum = Header {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..none
    };
    let tso = Header {
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1000,
        ..csum
    };
    let (c, t) = (f::CSUM, f::CSUM | f::HOST_TSO4);
    vec![
        (
            "all ones",
            0,
            Header {
                flags: 0xff,
                gso_type: 0xff,
                hdr_len: 0xffff,
                gso_size: 0xffff,
                csum_start: 0xffff,
                csum_offset: 0xffff,
                num_buffers: 0xffff,
            },
            Body::Short,
        ),
        (
            "unknown flags",
            0,
            Header {
                flags: 0xf8,
                ..none
            },
            Body::Short,
        ),
        (
            "a number of buffers",
            0,
            Header {
                num_buffers: 7,
                ..none
            },
            Body::Short,
        ),
        (
            "a header length without a reason",
            0,
            Header {
                hdr_len: 0xffff,
                ..none
            },
            Body::Short,
        ),
        (
            "a checksum that was not negotiated",
            0,
            csum,
            Body::Tcp(100),
        ),
        (
            "a segmentation that was not negotiated",
            0,
            tso,
            Body::Tcp(4000),
        ),
        (
            "a checksum that starts behind the packet",
            c,
            Header {
                csum_start: 60,
                ..csum
            },
            Body::Short,
        ),
        (
            "a checksum that starts at 65535",
            c,
            Header {
                csum_start: 0xffff,
                ..csum
            },
            Body::Short,
        ),
        (
            "a checksum whose place is behind the packet",
            c,
            Header {
                csum_offset: 27,
                ..csum
            },
            Body::Short,
        ),
        (
            "a checksum whose place wraps",
            c,
            Header {
                csum_start: 0xfff0,
                csum_offset: 0xfff0,
                ..csum
            },
            Body::Short,
        ),
        (
            "a checksum over the last octet alone",
            c,
            Header {
                csum_start: 59,
                csum_offset: 0,
                ..csum
            },
            Body::Short,
        ),
        (
            "a checksum over the Ethernet header",
            c,
            Header {
                csum_start: 0,
                csum_offset: 0,
                ..csum
            },
            Body::Short,
        ),
        (
            "segments of no octets",
            t,
            Header { gso_size: 0, ..tso },
            Body::Tcp(4000),
        ),
        (
            "segments of one octet",
            t,
            Header { gso_size: 1, ..tso },
            Body::Tcp(4000),
        ),
        (
            "segments longer than the packet",
            t,
            Header {
                gso_size: 0xffff,
                ..tso
            },
            Body::Tcp(4000),
        ),
        (
            "a segmentation without a checksum",
            t,
            Header { flags: 0, ..tso },
            Body::Tcp(4000),
        ),
        (
            "an unknown kind of segmentation",
            t,
            Header {
                gso_type: 0x7f,
                ..tso
            },
            Body::Tcp(4000),
        ),
        (
            "TCP over IPv6 in a packet of IPv4",
            t,
            Header {
                gso_type: GSO_TCPV6,
                ..tso
            },
            Body::Tcp(4000),
        ),
        (
            "UDP fragments in a packet of TCP",
            t,
            Header {
                gso_type: GSO_UDP,
                ..tso
            },
            Body::Tcp(4000),
        ),
        (
            "UDP segments in a packet of TCP",
            t,
            Header {
                gso_type: GSO_UDP_L4,
                ..tso
            },
            Body::Tcp(4000),
        ),
        (
            "ECN without a kind of segmentation",
            t,
            Header {
                gso_type: GSO_ECN,
                ..tso
            },
            Body::Tcp(4000),
        ),
        ("a segmentation of what is no TCP", t, tso, Body::Short),
        ("a segmentation of headers alone", t, tso, Body::Tcp(0)),
        (
            "a segmentation of half an IP header",
            t,
            tso,
            Body::CutTcp(20),
        ),
        (
            "a segmentation of half a TCP header",
            t,
            tso,
            Body::CutTcp(40),
        ),
        (
            "a header length of 0 with segments",
            t,
            Header { hdr_len: 0, ..tso },
            Body::Tcp(4000),
        ),
        (
            "a header length of 65535 with segments",
            t,
            Header {
                hdr_len: 0xffff,
                ..tso
            },
            Body::Tcp(4000),
        ),
        (
            "a checksum outside of TCP with segments",
            t,
            Header {
                csum_start: 0xffff,
                ..tso
            },
            Body::Tcp(4000),
        ),
        (
            "64 KiB in segments of one octet",
            t,
            Header { gso_size: 1, ..tso },
            Body::Tcp(65000),
        ),
    ]
}

/// All cases.
#[must_use]
pub fn suite() -> Vec<Case> {
    let mut cases = Vec::new();
    for layout in Layout::ALL {
        for (name, bits, header, body) in lies() {
            let title = format!("transmit, {}: {name}", layout.name());
            cases.push(Case::new(GROUP, title, move |target| {
                target.need(bits, "CSUM and HOST_TSO4")?;
                let mut packet = header.bytes();
                let bed = Bed::attach_with(target, layout, SIZE, bits)?;
                packet.extend(match body {
                    Body::Short => bed.frame(),
                    Body::Tcp(payload) => tcp(payload),
                    Body::CutTcp(len) => tcp(100)[..len].to_vec(),
                });
                transmit(bed, &packet)
            }));
        }
        for (name, len) in [
            ("one octet", 1),
            ("a header that is cut", HEADER - 1),
            ("a header and nothing else", HEADER),
            ("a frame of one octet", HEADER + 1),
            ("a frame of 13 octets", HEADER + 13),
            ("a frame of 1600 octets", HEADER + 1600),
            ("a frame of 9018 octets", HEADER + 9018),
            ("a frame of 65535 octets", HEADER + 65535),
            ("a frame of a mebioctet", 1 << 20),
        ] {
            let title = format!("transmit, {}: {name}", layout.name());
            cases.push(Case::new(GROUP, title, move |target| {
                let bed = Bed::attach_with(target, layout, SIZE, 0)?;
                let mut packet = [&[0; HEADER as usize][..], &bed.frame()].concat();
                packet.resize(len as usize, 0);
                transmit(bed, &packet)
            }));
        }
        for len in [1, HEADER - 1, HEADER, HEADER + FRAME - 1] {
            let title = format!("receive, {}: a buffer of {len} octets", layout.name());
            cases.push(Case::new(GROUP, title, move |target| {
                small(target, layout, len)
            }));
        }
        cases.push(Case::new(
            GROUP,
            format!(
                "receive, {}: the header says what was negotiated",
                layout.name()
            ),
            move |target| plain(target, layout),
        ));
        cases.push(Case::new(
            GROUP,
            format!("receive, {}: buffers are merged and counted", layout.name()),
            move |target| merged(target, layout),
        ));
    }
    cases
}

/// Where long packets are.
const PACKET: u64 = FAR + 0x10_0000;

fn transmit(mut bed: Bed<'_>, packet: &[u8]) -> Verdict {
    (0..3).try_for_each(|queue| bed.fill(queue))?;
    bed.send()?;
    bed.memory.write(PACKET, packet)?;
    let before = bed.snapshot()?;
    bed.offer(TX, 1, &[Piece::new(PACKET, packet.len() as u32, 0)]);
    let seen = bed.observe_for(TX, bed.target.patience)?;
    if let Some(addr) = bed.harm(&before, TX)? {
        return Err(Stop::Fail(format!("wrote to {addr:#x}")));
    }
    match seen {
        Seen::Used(1, _) => {}
        Seen::Used(id, _) => return Err(Stop::Fail(format!("used chain {id} instead of 1"))),
        Seen::Nothing => return Err(Stop::fail("the buffer does not come back")),
        Seen::Closed => return Ok(seen.in_words().into()),
        Seen::Error => {
            bed.restart()?;
        }
    }
    (0..3)
        .try_for_each(|_| bed.send())
        .map_err(|_| Stop::fail("no packet is sent any more"))?;
    Ok(seen.in_words().into())
}

fn small(target: &Target, layout: Layout, len: u32) -> Verdict {
    if !target.facts.answers {
        return Err(Stop::missing("nothing comes from the wire"));
    }
    let mut bed = Bed::attach_with(target, layout, SIZE, 0)?;
    (0..3).try_for_each(|queue| bed.fill(queue))?;
    let before = bed.snapshot()?;
    bed.offer(RX, 0, &[Piece::new(buffer(RX), len, WRITE)]);
    let seen = bed.observe(RX)?;
    if let Some(addr) = bed.harm(&before, RX)? {
        return Err(Stop::Fail(format!("wrote to {addr:#x}")));
    }
    if let Seen::Used(_, written) = seen
        && written > len
    {
        return Err(Stop::Fail(format!("says that it wrote {written} octets")));
    }
    if seen == Seen::Closed {
        return Ok(seen.in_words().into());
    }
    bed.restart()?;
    bed.works(RX)?;
    Ok(seen.in_words().into())
}

fn header(bed: &Bed<'_>, at: u64) -> Result<[u8; HEADER as usize], Stop> {
    let mut header = [0; HEADER as usize];
    bed.memory.read(at, &mut header)?;
    Ok(header)
}

/// Without MRG_RXBUF there is one buffer, and without offloads nothing else to say (5.1.6.4.1).
fn plain(target: &Target, layout: Layout) -> Verdict {
    let mut bed = Bed::attach_with(target, layout, SIZE, 0)?;
    let len = bed.receive(&[Piece::new(buffer(RX), BUFFER, WRITE)])?;
    let header = header(&bed, buffer(RX))?;
    let buffers = u16::from_le_bytes([header[10], header[11]]);
    if header[0] != 0 || header[1] != 0 {
        return Err(Stop::Fail(format!(
            "flags {:#x} and kind of segmentation {:#x}",
            header[0], header[1]
        )));
    }
    if buffers != 1 {
        return Err(Stop::Fail(format!("{buffers} buffers")));
    }
    Ok(format!("{len} octets in 1 buffer"))
}

/// With MRG_RXBUF a packet takes as many buffers as it needs, and its header counts them (5.1.6.4.1).
fn merged(target: &Target, layout: Layout) -> Verdict {
    const LEN: u32 = 40;
    target.need(f::MRG_RXBUF, "MRG_RXBUF")?;
    if !target.facts.answers {
        return Err(Stop::missing("nothing comes from the wire"));
    }
    let mut bed = Bed::attach_with(target, layout, SIZE, f::MRG_RXBUF)?;
    bed.fill(RX)?;
    for n in 0..SIZE {
        let at = buffer(RX) + 0x80 * u64::from(n);
        bed.queues[RX].ring.offer(n, &[Piece::new(at, LEN, WRITE)]);
    }
    bed.kick(RX);
    let first = bed.await_received()?;
    let header = header(&bed, buffer(RX))?;
    let buffers = u16::from_le_bytes([header[10], header[11]]);
    let mut octets = first;
    for n in 1..buffers.min(SIZE) {
        octets += bed.await_used(RX, n)?;
    }
    let needed = octets.div_ceil(LEN);
    if octets < HEADER + 14 || u32::from(buffers) != needed {
        return Err(Stop::Fail(format!("{octets} octets in {buffers} buffers")));
    }
    Ok(format!("{octets} octets in {buffers} buffers"))
}
