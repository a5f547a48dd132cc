//! Commands that lie (VIRTIO 1.3, 5.1.6.5). Each is answered: what is wrong with an error, and the next one as if nothing had been.

use nic_guest::ring::VIRTQ_DESC_F_WRITE as WRITE;
use nic_guest::virtio_net::features as f;

use super::bed::{ACK, Bed, CONTROL, SIZE, Seen, buffer};
use super::front::Target;
use super::ring::{Layout, Piece};
use super::{Case, Stop, Verdict};

const GROUP: &str = "control";

/// What the answer must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ok,
    Error,
    /// Either.
    Any,
}

use Answer::{Any, Error, Ok as Good};

/// Name, feature bits to be accepted, class, command, data, answer.
type Command = (&'static str, u64, u8, u8, Vec<u8>, Answer);

/// RSS_CONFIG's data (5.1.6.5.7.1).
struct Rss {
    hash_types: u32,
    mask: u16,
    unclassified: u16,
    table: Vec<u16>,
    max_tx: u16,
    key_len: u8,
    key: Vec<u8>,
}

impl Rss {
    fn good(hash_types: u32) -> Self {
        Rss {
            hash_types,
            mask: 127,
            unclassified: 0,
            table: vec![0; 128],
            max_tx: 1,
            key_len: 40,
            key: vec![0x6d; 40],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.hash_types.to_le_bytes().to_vec();
        bytes.extend(self.mask.to_le_bytes());
        bytes.extend(self.unclassified.to_le_bytes());
        bytes.extend(self.table.iter().flat_map(|entry| entry.to_le_bytes()));
        bytes.extend(self.max_tx.to_le_bytes());
        bytes.push(self.key_len);
        bytes.extend(&self.key);
        bytes
    }
}

fn rss(hash_types: u32) -> Vec<Command> {
    let good = || Rss::good(hash_types);
    let long = vec![0; 65536];
    let of = |name, rss: Rss, answer| (name, f::RSS, 4, 1, rss.bytes(), answer);
    let cut = |name, len: usize| (name, f::RSS, 4, 1, good().bytes()[..len].to_vec(), Error);
    vec![
        of("RSS as it should be", good(), Good),
        of(
            "RSS: a table whose length is no power of two",
            Rss {
                mask: 2,
                table: vec![0; 3],
                ..good()
            },
            Error,
        ),
        of(
            "RSS: a table of 65536 entries",
            Rss {
                mask: 0xffff,
                table: long,
                ..good()
            },
            Error,
        ),
        of(
            "RSS: a table that is longer than the command",
            Rss {
                mask: 0x7fff,
                ..good()
            },
            Error,
        ),
        of(
            "RSS: a queue that is not there",
            Rss {
                table: [vec![0; 127], vec![0x7ff0]].concat(),
                ..good()
            },
            Error,
        ),
        of(
            "RSS: the rest to a queue that is not there",
            Rss {
                unclassified: 0x7ff0,
                ..good()
            },
            Error,
        ),
        of(
            "RSS: unknown kinds of hash",
            Rss {
                hash_types: 1 << 31,
                ..good()
            },
            Error,
        ),
        of(
            "RSS: a key of 255 octets",
            Rss {
                key_len: 255,
                key: vec![1; 255],
                ..good()
            },
            Error,
        ),
        of(
            "RSS: a key that is longer than the command",
            Rss {
                key_len: 200,
                ..good()
            },
            Error,
        ),
        of(
            "RSS: no transmit queue",
            Rss {
                max_tx: 0,
                ..good()
            },
            Any,
        ),
        of(
            "RSS: too many transmit queues",
            Rss {
                max_tx: 0xffff,
                ..good()
            },
            Error,
        ),
        cut("RSS: cut in the table", 100),
        cut("RSS: cut in the key", 280),
        cut("RSS: nothing but hash types", 4),
    ]
}

fn commands(target: &Target) -> Vec<Command> {
    let mac = target.facts.mac.to_vec();
    let one = |count: u32, macs: usize| [&count.to_le_bytes()[..], &mac.repeat(macs)].concat();
    let table = |unicast: Vec<u8>, multicast: Vec<u8>| [unicast, multicast].concat();
    let pairs = |n: u16| n.to_le_bytes().to_vec();
    let queue = |index: u16| [&index.to_le_bytes()[..], &[0; 10]].concat();
    let mut commands = vec![
        ("PROMISC on", f::CTRL_RX, 0, 0, vec![1], Good),
        ("PROMISC of 2", f::CTRL_RX, 0, 0, vec![2], Any),
        ("PROMISC without a value", f::CTRL_RX, 0, 0, vec![], Error),
        (
            "PROMISC with 4000 octets",
            f::CTRL_RX,
            0,
            0,
            vec![1; 4000],
            Any,
        ),
        ("an unknown receive mode", f::CTRL_RX, 0, 99, vec![1], Error),
        ("an unknown class", 0, 99, 0, vec![1], Error),
        ("class 255, command 255", 0, 255, 255, vec![], Error),
        (
            "NOBCAST without CTRL_RX_EXTRA",
            f::CTRL_RX,
            0,
            5,
            vec![1],
            Any,
        ),
        (
            "the address as it is",
            f::CTRL_MAC_ADDR,
            1,
            1,
            mac.clone(),
            Good,
        ),
        (
            "an address of 5 octets",
            f::CTRL_MAC_ADDR,
            1,
            1,
            mac[..5].to_vec(),
            Error,
        ),
        ("no address", f::CTRL_MAC_ADDR, 1, 1, vec![], Error),
        ("two addresses", f::CTRL_MAC_ADDR, 1, 1, mac.repeat(2), Any),
        (
            "a group's address",
            f::CTRL_MAC_ADDR,
            1,
            1,
            vec![0xff; 6],
            Any,
        ),
        (
            "a filter of no addresses",
            f::CTRL_RX,
            1,
            0,
            table(one(0, 0), one(0, 0)),
            Good,
        ),
        (
            "a filter that claims 4294967295 addresses",
            f::CTRL_RX,
            1,
            0,
            table(one(u32::MAX, 1), one(0, 0)),
            Error,
        ),
        (
            "a filter that claims one more than it has",
            f::CTRL_RX,
            1,
            0,
            one(2, 1),
            Error,
        ),
        (
            "a filter whose length wraps",
            f::CTRL_RX,
            1,
            0,
            table(one(0x2aaa_aaab, 1), one(0, 0)),
            Error,
        ),
        (
            "a filter without its second half",
            f::CTRL_RX,
            1,
            0,
            one(1, 1),
            Error,
        ),
        ("a filter of 3 octets", f::CTRL_RX, 1, 0, vec![0; 3], Error),
        (
            "a filter of 2000 addresses",
            f::CTRL_RX,
            1,
            0,
            table(one(2000, 2000), one(0, 0)),
            Any,
        ),
        ("VLAN 5", f::CTRL_VLAN, 2, 0, vec![5, 0], Good),
        ("VLAN 4096", f::CTRL_VLAN, 2, 0, vec![0, 0x10], Error),
        ("VLAN 65535", f::CTRL_VLAN, 2, 0, vec![0xff, 0xff], Error),
        (
            "VLAN 65535 taken away",
            f::CTRL_VLAN,
            2,
            1,
            vec![0xff, 0xff],
            Error,
        ),
        ("half a VLAN", f::CTRL_VLAN, 2, 0, vec![5], Error),
        (
            "an announcement that nobody asked for",
            f::GUEST_ANNOUNCE,
            3,
            0,
            vec![],
            Any,
        ),
        ("no queue pairs", f::MQ, 4, 0, pairs(0), Error),
        ("one queue pair", f::MQ, 4, 0, pairs(1), Good),
        (
            "one queue pair too many",
            f::MQ,
            4,
            0,
            pairs(target.facts.pairs.saturating_add(1)),
            Error,
        ),
        ("65535 queue pairs", f::MQ, 4, 0, pairs(0xffff), Error),
        ("half a number of queue pairs", f::MQ, 4, 0, vec![1], Error),
        (
            "offloads that were not accepted",
            f::CTRL_GUEST_OFFLOADS,
            5,
            0,
            vec![0xff; 8],
            Error,
        ),
        (
            "no offloads",
            f::CTRL_GUEST_OFFLOADS,
            5,
            0,
            vec![0; 8],
            Good,
        ),
        (
            "half of the offloads",
            f::CTRL_GUEST_OFFLOADS,
            5,
            0,
            vec![0; 4],
            Error,
        ),
        ("coalescing as it is", f::NOTF_COAL, 6, 1, vec![0; 8], Good),
        ("half a coalescing", f::NOTF_COAL, 6, 0, vec![0; 4], Error),
        (
            "coalescing for ever",
            f::NOTF_COAL,
            6,
            0,
            vec![0xff; 8],
            Any,
        ),
        (
            "coalescing of a queue that is not there",
            f::VQ_NOTF_COAL,
            6,
            2,
            queue(0x7ff0),
            Error,
        ),
        (
            "coalescing of queue 65535",
            f::VQ_NOTF_COAL,
            6,
            2,
            queue(0xffff),
            Error,
        ),
        (
            "coalescing of the control queue",
            f::VQ_NOTF_COAL,
            6,
            2,
            queue(2),
            Error,
        ),
        (
            "coalescing of a queue, cut",
            f::VQ_NOTF_COAL,
            6,
            2,
            vec![0, 0],
            Error,
        ),
        (
            "the coalescing of a queue that is not there",
            f::VQ_NOTF_COAL,
            6,
            3,
            queue(0x7ff0),
            Error,
        ),
        (
            "an unknown coalescing",
            f::NOTF_COAL,
            6,
            99,
            vec![0; 8],
            Error,
        ),
        (
            "tunnels that there are not",
            f::HASH_TUNNEL | f::RSS,
            7,
            0,
            vec![0xff; 4],
            Error,
        ),
        ("statistics, cut", f::DEVICE_STATS, 8, 1, vec![0; 3], Error),
        (
            "statistics of a queue that is not there",
            f::DEVICE_STATS,
            8,
            1,
            [&[0xf0, 0x7f][..], &[0; 6], &[0xff; 8]].concat(),
            Any,
        ),
        // What was not negotiated is not there.
        ("a VLAN without CTRL_VLAN", 0, 2, 0, vec![5, 0], Error),
        ("queue pairs without MQ", 0, 4, 0, pairs(1), Error),
        (
            "RSS without RSS",
            0,
            4,
            1,
            Rss::good(target.facts.hash_types).bytes(),
            Error,
        ),
        (
            "a hash report without HASH_REPORT",
            0,
            4,
            2,
            vec![0; 60],
            Error,
        ),
        (
            "offloads without CTRL_GUEST_OFFLOADS",
            0,
            5,
            0,
            vec![0; 8],
            Error,
        ),
        ("coalescing without NOTF_COAL", 0, 6, 0, vec![0; 8], Error),
        (
            "coalescing of a queue without VQ_NOTF_COAL",
            0,
            6,
            2,
            queue(0),
            Error,
        ),
        ("tunnels without HASH_TUNNEL", 0, 7, 0, vec![0; 4], Error),
        ("statistics without DEVICE_STATS", 0, 8, 0, vec![], Error),
    ];
    commands.extend(rss(target.facts.hash_types));
    commands
}

/// All cases.
#[must_use]
pub fn suite() -> Vec<Case> {
    // What they are depends on the device; how many and which does not.
    let stand_in = Target::new(std::path::Path::new(""), std::time::Duration::ZERO);
    let mut cases = Vec::new();
    for (number, (name, ..)) in commands(&stand_in).into_iter().enumerate() {
        cases.push(Case::new(GROUP, name, move |target| {
            let (_, bits, class, command, data, answer) = commands(target).swap_remove(number);
            give(
                target,
                bits,
                &[&[class, command][..], &data].concat(),
                answer,
            )
        }));
    }
    for (name, bytes) in [
        ("a command of one octet", vec![0]),
        ("a command of 60 KiB", vec![0xff; 60 << 10]),
    ] {
        cases.push(Case::new(GROUP, name, move |target| {
            give(target, 0, &bytes, Error)
        }));
    }
    cases.push(Case::new(
        GROUP,
        "a command in one-octet pieces",
        |target| {
            let mut bed = attach(target, 0)?;
            target.need(f::CTRL_RX, "CTRL_RX")?;
            bed.memory.write(buffer(CONTROL), &[0, 0, 1])?;
            let mut chain: Vec<_> = (0..3)
                .map(|n| Piece::new(buffer(CONTROL) + n, 1, 0))
                .collect();
            chain.push(Piece::new(ACK, 1, WRITE));
            bed.offer(CONTROL, 0, &chain);
            bed.await_used(CONTROL, 0)?;
            match bed.answer()? {
                0 => Ok("done".into()),
                answer => Err(Stop::Fail(format!("answer {answer}"))),
            }
        },
    ));
    cases.push(Case::new(
        GROUP,
        "five hundred commands in a row",
        |target| {
            let mut bed = attach(target, 0)?;
            target.need(f::CTRL_RX, "CTRL_RX")?;
            for n in 0..500 {
                let answer = bed.command(&[0, 0, 1])?;
                if answer != 0 {
                    return Err(Stop::Fail(format!("answer {answer} to command {n}")));
                }
            }
            Ok("all done".into())
        },
    ));
    for layout in Layout::ALL {
        let name = format!("the same answers over {} rings", layout.name());
        cases.push(Case::new(GROUP, name, move |target| {
            if !target.facts.control {
                return Err(Stop::missing("no control queue is served"));
            }
            target.need(f::CTRL_RX, "CTRL_RX")?;
            let mut bed = Bed::attach_with(target, layout, SIZE, 0)?;
            for (command, expected) in [(&[0, 0, 1][..], 0), (&[99, 0, 1], 1), (&[0, 0, 0], 0)] {
                let answer = bed.command(command)?;
                if answer != expected {
                    return Err(Stop::Fail(format!("answer {answer} to {command:?}")));
                }
            }
            Ok("done, refused, done".into())
        }));
    }
    cases
}

fn attach(target: &Target, bits: u64) -> Result<Bed<'_>, Stop> {
    if !target.facts.control {
        return Err(Stop::missing("no control queue is served"));
    }
    target.need(bits, "what the command is for")?;
    Bed::attach_with(target, Layout::Split, SIZE, bits)
}

fn give(target: &Target, bits: u64, command: &[u8], expected: Answer) -> Verdict {
    let mut bed = attach(target, bits)?;
    bed.offer_command(command)?;
    let seen = bed.observe_for(CONTROL, target.patience)?;
    let said = match seen {
        Seen::Used(0, _) => match (bed.answer()?, expected) {
            (0, Good | Any) => "done",
            (1, Error | Any) => "answered with an error",
            (answer, _) => return Err(Stop::Fail(format!("answer {answer:#x}"))),
        },
        Seen::Used(id, _) => return Err(Stop::Fail(format!("used chain {id} instead of 0"))),
        Seen::Nothing => return Err(Stop::fail("no answer")),
        _ if expected == Good => return Err(Stop::fail(seen.in_words())),
        Seen::Closed => return Ok(seen.in_words().into()),
        Seen::Error => {
            bed.stop(CONTROL)?;
            bed.set_up(CONTROL)?;
            seen.in_words()
        }
    };
    bed.works(CONTROL)?;
    Ok(said.into())
}
