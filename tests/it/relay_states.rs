//! A front-end that asks for answers, against a model of what it may say when: any order of messages, each answered as the model
//! says. What is posted to a ring that is started is used, and sent if it is enabled too; one that is stopped leaves it alone until it is
//! started. What was sent comes back: a ring to receive by takes it if it is started and enabled, and is left alone otherwise. Afterwards the
//! NIC serves the next one as ever.

use std::cell::Cell;
use std::fmt;
use std::os::fd::AsRawFd;
use std::time::Instant;

use nic_guest::transport::message::{
    Connection, MessageError, memory_table, single_region, vring_addr, vring_state,
};
use nic_testbed::check::messages::{Fds, SIZE, region};
use proptest::prelude::*;
use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use crate::hostile_messages::{assert_works, dial, guest};
use crate::support::{PATIENCE, TestNic, offered};

/// Bit 30, which a front-end accepts for itself.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// Rings of the NIC.
const RINGS: u32 = 3;

/// Those of them that packets are received and sent by.
const RECEIVES: u32 = 0;
const SENDS: u32 = 1;

/// Where a ring's parts are, behind its descriptors, and where its packets are.
const AVAILABLE: u64 = 0x6000;
const USED: u64 = 0x8000;
const PACKETS: [u64; 2] = [0xf_8000, 0xf_0000];

/// The packet that is sent: to everybody, behind its header.
const HEADER: usize = 12;
const PACKET: [u8; 72] = {
    let mut packet = [0; 72];
    let mut at = HEADER;
    while at < HEADER + 6 {
        packet[at] = 0xff;
        at += 1;
    }
    packet
};

/// Where ring `ring` is in its region.
fn ring_at(ring: u32) -> u64 {
    0x1_0000 * u64::from(ring)
}

/// What a front-end says.
#[derive(Clone, Debug)]
enum Step {
    /// SET_FEATURES: with bit 30 or without, and with a bit that nobody offered or without.
    Features {
        protocol: bool,
        unknown: bool,
    },
    /// SET_MEM_TABLE with regions at these places, in units of their size.
    MemoryTable(Vec<u8>),
    AddRegion(u8),
    RemoveRegion(u8),
    Size {
        ring: u32,
        size: u32,
    },
    Base {
        ring: u32,
        base: u16,
    },
    /// Addresses in the region at that place.
    Addresses {
        ring: u32,
        place: u8,
    },
    Enable {
        ring: u32,
        on: u32,
    },
    /// SET_VRING_KICK with an eventfd.
    Kick {
        ring: u32,
    },
    GetBase {
        ring: u32,
    },
    ResetOwner,
    ResetDevice,
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly such rings as there are.
    let ring = || prop_oneof![9 => 0..RINGS, 1 => RINGS..RINGS + 2];
    let place = 0..6u8;
    prop_oneof![
        3 => (prop::bool::weighted(0.8), prop::bool::weighted(0.1))
            .prop_map(|(protocol, unknown)| Step::Features { protocol, unknown }),
        4 => prop::collection::vec(place.clone(), 1..4).prop_map(Step::MemoryTable),
        3 => place.clone().prop_map(Step::AddRegion),
        3 => place.clone().prop_map(Step::RemoveRegion),
        3 => (ring(), prop_oneof![Just(0), Just(3), Just(8), Just(256), Just(2048)])
            .prop_map(|(ring, size)| Step::Size { ring, size }),
        2 => (ring(), any::<u16>()).prop_map(|(ring, base)| Step::Base { ring, base }),
        4 => (ring(), place).prop_map(|(ring, place)| Step::Addresses { ring, place }),
        4 => (ring(), prop_oneof![9 => 0..2u32, 1 => Just(2)])
            .prop_map(|(ring, on)| Step::Enable { ring, on }),
        4 => ring().prop_map(|ring| Step::Kick { ring }),
        2 => ring().prop_map(|ring| Step::GetBase { ring }),
        1 => Just(Step::ResetOwner),
        1 => Just(Step::ResetDevice),
    ]
}

/// What has `ring` run, in any order that there is: before there is memory, and then.
fn runs(ring: u32) -> impl Strategy<Value = [Vec<Step>; 2]> {
    let placed = Just(vec![
        Step::Size { ring, size: 8 },
        Step::Addresses { ring, place: 0 },
    ]);
    let others = Just(vec![Step::Kick { ring }, Step::Enable { ring, on: 1 }]);
    let both = (placed, others.prop_shuffle(), any::<bool>());
    let both = both.prop_map(|(placed, others, behind)| match behind {
        true => [vec![], [placed, others].concat()],
        false => [others, placed],
    });
    prop_oneof![1 => Just([vec![], vec![]]), 3 => both]
}

/// Any steps, mostly behind those that have the rings run.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let memory = vec![Step::MemoryTable(vec![0, 1])];
    let all = (
        runs(SENDS),
        runs(RECEIVES),
        prop::collection::vec(step(), 1..30),
    );
    let all = all.prop_map(move |([early, sends], [earlier, receives], steps)| {
        [earlier, early, memory.clone(), sends, receives, steps].concat()
    });
    prop_oneof![1 => prop::collection::vec(step(), 1..30), 3 => all]
}

/// What has to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It was done.
    Done,
    /// It was refused before anybody acted on it, and all is as it was.
    Refused,
    /// It cannot be done: the connection ends.
    Ends,
}

/// What is known of the connection.
#[derive(Debug, Default)]
struct Model {
    /// What was accepted, once that is known.
    features: Option<u64>,
    /// Places of the regions.
    regions: Vec<u8>,
    /// Descriptors of each ring, 0 as long as nobody said.
    sizes: [u32; RINGS as usize],
    /// What was said of the rings that something is posted to: [`RECEIVES`] and [`SENDS`].
    rings: [Ring; 2],
}

/// What becomes of what is posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The ring is stopped.
    Left,
    /// The ring is disabled: packets are used and go nowhere, and none come.
    Discarded,
    Served,
}

/// A ring on its way.
#[derive(Debug, Default)]
struct Ring {
    /// The region that it is in, once that is known.
    place: Option<u8>,
    started: bool,
    enabled: bool,
}

impl Model {
    /// What becomes of what is posted to `ring`.
    fn fate(&self, ring: u32) -> Fate {
        let placed = |place| self.regions.contains(&place);
        match &self.rings[ring as usize] {
            Ring { place, started, .. } if !started || !place.is_some_and(placed) => Fate::Left,
            Ring { enabled: false, .. } => Fate::Discarded,
            _ => Fate::Served,
        }
    }

    /// What comes of `step`, and what the rings that something is posted to make of it.
    fn say(&mut self, step: &Step) -> Outcome {
        let outcome = self.outcome(step);
        if outcome != Outcome::Done {
            return outcome;
        }
        match step {
            Step::Features { protocol, .. } => {
                for ring in &mut self.rings {
                    ring.enabled |= !protocol;
                }
            }
            Step::ResetDevice => self.rings = Default::default(),
            Step::Addresses { ring, .. }
            | Step::Enable { ring, .. }
            | Step::Kick { ring }
            | Step::GetBase { ring } => {
                let Some(ring) = self.rings.get_mut(*ring as usize) else {
                    return outcome;
                };
                match step {
                    Step::Addresses { place, .. } => ring.place = Some(*place),
                    Step::Enable { on, .. } => ring.enabled = *on == 1,
                    Step::Kick { .. } => ring.started = true,
                    _ => ring.started = false,
                }
            }
            _ => {}
        }
        outcome
    }

    fn outcome(&mut self, step: &Step) -> Outcome {
        let is_ring = |ring: u32| match ring < RINGS {
            true => Outcome::Done,
            false => Outcome::Refused,
        };
        match step {
            Step::Features { unknown: true, .. } => Outcome::Refused,
            Step::Features { protocol, .. } => {
                self.features = Some(VERSION_1 | if *protocol { PROTOCOL_FEATURES } else { 0 });
                Outcome::Done
            }
            Step::MemoryTable(places) => {
                let twice = (1..places.len()).any(|at| places[..at].contains(&places[at]));
                if twice {
                    return Outcome::Refused;
                }
                self.regions.clone_from(places);
                Outcome::Done
            }
            Step::AddRegion(place) if self.regions.contains(place) => Outcome::Ends,
            Step::AddRegion(place) => {
                self.regions.push(*place);
                Outcome::Done
            }
            Step::RemoveRegion(place) => match self.regions.iter().position(|at| at == place) {
                Some(at) => {
                    self.regions.remove(at);
                    Outcome::Done
                }
                None => Outcome::Ends,
            },
            Step::Size { size, .. } if !size.is_power_of_two() || *size > 1024 => Outcome::Refused,
            Step::Size { ring, size } => {
                if let Some(known) = self.sizes.get_mut(*ring as usize) {
                    *known = *size;
                }
                is_ring(*ring)
            }
            Step::Base { ring, .. } | Step::GetBase { ring } | Step::Kick { ring } => {
                is_ring(*ring)
            }
            Step::Addresses { ring, place } => match self.sizes.get(*ring as usize) {
                None => Outcome::Refused,
                Some(0) => Outcome::Ends,
                Some(_) if !self.regions.contains(place) => Outcome::Ends,
                Some(_) => Outcome::Done,
            },
            Step::Enable { ring, on } => {
                let negotiated = self
                    .features
                    .is_none_or(|bits| bits & PROTOCOL_FEATURES != 0);
                if is_ring(*ring) == Outcome::Refused || *on > 1 || !negotiated {
                    return Outcome::Refused;
                }
                // The NIC says so for a front-end that has not.
                self.features.get_or_insert(PROTOCOL_FEATURES);
                Outcome::Done
            }
            Step::ResetOwner => Outcome::Done,
            Step::ResetDevice => {
                self.features = None;
                self.sizes = [0; RINGS as usize];
                Outcome::Done
            }
        }
    }
}

/// Where the region at `place` begins, for the guest and for its front-end.
fn addresses(place: u8) -> (u64, u64) {
    let at = (u64::from(place) + 1) * SIZE;
    (at, (1 << 40) + at)
}

fn place(place: u8) -> Vec<u8> {
    let (guest, user) = addresses(place);
    region(guest, SIZE, user, 0)
}

/// Says it, and what was answered.
fn say(front: &Connection, step: &Step, fds: &Fds) -> Result<(), MessageError> {
    let file = fds.file();
    let acked = |request, payload: &[u8], fds: &[_]| front.tell_acked(request, payload, fds);
    match step {
        Step::Features { protocol, unknown } => {
            let mut bits = VERSION_1 | u64::from(*protocol) << 30;
            // Nobody knows that one.
            bits |= u64::from(*unknown) << 48;
            acked(Req::SET_FEATURES, &bits.to_ne_bytes(), &[])
        }
        Step::MemoryTable(places) => {
            let regions: Vec<_> = places.iter().map(|&at| place(at)).collect();
            let files = vec![file; regions.len()];
            acked(Req::SET_MEM_TABLE, &memory_table(&regions), &files)
        }
        Step::AddRegion(at) => acked(Req::ADD_MEM_REG, &single_region(&place(*at)), &[file]),
        Step::RemoveRegion(at) => acked(Req::REM_MEM_REG, &single_region(&place(*at)), &[]),
        Step::Size { ring, size } => acked(Req::SET_VRING_NUM, &vring_state(*ring, *size), &[]),
        Step::Base { ring, base } => acked(
            Req::SET_VRING_BASE,
            &vring_state(*ring, (*base).into()),
            &[],
        ),
        Step::Addresses { ring, place } => {
            let user = addresses(*place).1 + ring_at(*ring);
            let payload = vring_addr(*ring, 0, user, user + USED, user + AVAILABLE, 0);
            acked(Req::SET_VRING_ADDR, &payload, &[])
        }
        Step::Enable { ring, on } => acked(Req::SET_VRING_ENABLE, &vring_state(*ring, *on), &[]),
        Step::Kick { ring } => {
            let word = u64::from(*ring).to_ne_bytes();
            acked(Req::SET_VRING_KICK, &word, &[fds.event.as_raw_fd()])
        }
        Step::GetBase { ring } => {
            let answer = front.ask(Req::GET_VRING_BASE, &vring_state(*ring, 0))?;
            assert_eq!(answer.payload[..4], ring.to_ne_bytes());
            Ok(())
        }
        Step::ResetOwner => acked(Req::RESET_OWNER, &[], &[]),
        Step::ResetDevice => acked(Req::RESET_DEVICE, &[], &[]),
    }
}

/// What is posted to a ring, at the same place of the file in whichever region: one thing at a time.
struct Posted<'a> {
    ring: u32,
    fds: &'a Fds,
    available: u16,
}

impl<'a> Posted<'a> {
    /// Nothing, in a ring of zeros.
    fn new(ring: u32, fds: &'a Fds) -> Self {
        let posted = Posted {
            ring,
            fds,
            available: 0,
        };
        posted.put(0, &vec![0; 0x1_0000]);
        posted
    }

    fn put(&self, at: u64, octets: &[u8]) {
        let written = self.fds.memory().write(ring_at(self.ring) + at, octets);
        written.expect("its memory");
    }

    fn used(&self) -> u16 {
        let mut index = [0; 2];
        let at = ring_at(self.ring) + USED + 2;
        self.fds.memory().read(at, &mut index).expect("its memory");
        u16::from_le_bytes(index)
    }

    /// What was posted and not used.
    fn left(&self) -> u16 {
        self.available.wrapping_sub(self.used())
    }

    /// The only descriptor, which all entries of the available ring stand for, has a packet in the region at `place`, or room for one.
    fn point_to(&self, place: u8) {
        let (len, flags) = match self.ring {
            RECEIVES => (2048_u32, 2_u16),
            _ => (PACKET.len() as u32, 0),
        };
        let packet = addresses(place).0 + PACKETS[self.ring as usize];
        self.put(0, &packet.to_le_bytes());
        self.put(8, &len.to_le_bytes());
        self.put(12, &flags.to_le_bytes());
    }

    /// Posts it, unless it is left from before. Returns whether it was used.
    fn post(&mut self) -> bool {
        let used = self.left() == 0;
        if used {
            self.available = self.available.wrapping_add(1);
            self.put(AVAILABLE + 2, &self.available.to_le_bytes());
        }
        used
    }
}

/// Packets that are posted, buffers to receive them, and what becomes of both.
struct Traffic<'a> {
    nic: &'a TestNic,
    fds: &'a Fds,
    /// By ring.
    posted: [Posted<'a>; 2],
    /// Packets that were posted and not used, and those that were sent, when it was looked last.
    left: u64,
    sent: u64,
}

impl<'a> Traffic<'a> {
    fn new(nic: &'a TestNic, fds: &'a Fds) -> Self {
        let posted = [RECEIVES, SENDS].map(|ring| Posted::new(ring, fds));
        let packet = fds.memory().write(PACKETS[SENDS as usize], &PACKET);
        packet.expect("its memory");
        let mut traffic = Traffic {
            nic,
            fds,
            posted,
            left: 0,
            sent: 0,
        };
        traffic.sent = traffic.sent_by_now();
        traffic
    }

    fn sent_by_now(&self) -> u64 {
        self.nic.status().nic.port.counters.tx_frames
    }

    /// Posts a packet, and a buffer for it to come back into, unless they are left from before, and kicks: `fates` is what becomes of them.
    fn check(&mut self, fates: [Fate; 2], after: &impl fmt::Display) -> Result<(), TestCaseError> {
        let [receives, sends] = &mut self.posted;
        receives.post();
        let taken = receives.used();
        // What was left may have been used since.
        let posted = self.left + u64::from(sends.post());
        let [receives, sends] = &self.posted;
        self.fds.event.write(1).expect("it is not full");
        let begin = Instant::now();
        let comes = |what: &mut dyn FnMut() -> bool| {
            while !what() && begin.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            what()
        };
        let [room, fate] = fates;
        if fate != Fate::Left {
            let used = comes(&mut || sends.left() == 0);
            prop_assert!(used, "a ring that is started is not served: {after}");
        }
        if fate == Fate::Served {
            let passed = comes(&mut || self.sent_by_now() >= self.sent + posted);
            prop_assert!(passed, "an enabled ring's packet is not sent: {after}");
        }
        if room == Fate::Served && fate == Fate::Served && posted > 0 {
            let came = comes(&mut || receives.left() == 0);
            prop_assert!(came, "an enabled ring's buffer is not used: {after}");
        }
        // A round lies between.
        self.sent_by_now();
        if room != Fate::Served {
            prop_assert_eq!(
                receives.used(),
                taken,
                "a buffer was used, {:?}: {}",
                room,
                after
            );
        }
        let (left, sent) = (sends.left(), self.sent_by_now());
        let now = (u64::from(left), sent - self.sent);
        (self.left, self.sent) = (left.into(), sent);
        let expected = match fate {
            Fate::Left => (1, 0),
            Fate::Discarded => (0, 0),
            Fate::Served => (0, posted),
        };
        prop_assert_eq!(now, expected, "left and sent, {:?}: {}", fate, after);
        Ok(())
    }
}

fn connected(nic: &TestNic) -> Connection {
    let protocol =
        Protocol::MQ | Protocol::REPLY_ACK | Protocol::RESET_DEVICE | Protocol::CONFIGURE_MEM_SLOTS;
    let front = dial(&nic.socket());
    front.ask_u64(Req::GET_FEATURES).expect("an answer");
    front.tell(Req::SET_OWNER, &[], &[]).expect("it reads");
    let bits = protocol.bits().to_ne_bytes();
    front
        .tell(Req::SET_PROTOCOL_FEATURES, &bits, &[])
        .expect("it reads");
    front
}

#[test]
fn every_message_is_answered_as_the_state_says() {
    let (nic, fds) = (TestNic::new("loopback"), Fds::default());
    assert_eq!(offered(1).bits() & 1 << 48, 0, "the unknown bit");
    let served = Cell::new([0; 2]);
    let config = ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in steps())| {
        let (front, mut model) = (connected(&nic), Model::default());
        let mut traffic = Traffic::new(&nic, &fds);
        let mut refused = nic.status().refused_messages;
        let mut over = false;
        for step in &steps {
            let expected = model.say(step);
            if let (Step::Addresses { ring, place }, Outcome::Done) = (step, expected)
                && let Some(posted) = traffic.posted.get(*ring as usize)
            {
                posted.point_to(*place);
            }
            let said = say(&front, step, &fds);
            // What is answered by itself has no way to say that it was refused.
            over = expected == Outcome::Ends
                || (expected == Outcome::Refused && matches!(step, Step::GetBase { .. }));
            match (expected, &said) {
                (Outcome::Done, Ok(())) => {}
                (Outcome::Refused, Err(MessageError::Failed(1))) if !over => {}
                (_, Err(MessageError::Failed(1) | MessageError::Closed)) if over => {}
                _ => prop_assert!(false, "{step:?}: {expected:?} and not {said:?}, {model:?}"),
            }
            refused += u64::from(expected == Outcome::Refused);
            prop_assert_eq!(nic.status().refused_messages, refused, "{:?}", step);
            if over {
                prop_assert!(front.closes_within(PATIENCE), "{step:?} ends it");
                break;
            }
            let fates = [RECEIVES, SENDS].map(|ring| model.fate(ring));
            traffic.check(fates, &format_args!("{step:?}, {model:?}"))?;
            let [came, sent] = served.get();
            let [comes, sends] = fates.map(|fate| u32::from(fate == Fate::Served));
            served.set([came + comes * sends, sent + sends]);
        }
        prop_assert!(over || !front.is_closed(), "{steps:?}");
    });
    let [came, sent] = served.get();
    assert!(
        came > 100 && sent > 400,
        "packets were sent after {sent} steps only, and came after {came}"
    );
    assert_works(&mut guest(&nic), "all that");
    nic.assert_balanced();
}
