//! A front-end that asks for answers, against a model of what it may say when: any order of messages, each answered as the model
//! says, and afterwards the NIC serves the next one as ever.

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
        3 => ring().prop_map(|ring| Step::GetBase { ring }),
        1 => Just(Step::ResetOwner),
        1 => Just(Step::ResetDevice),
    ]
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
}

impl Model {
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
            Step::Base { ring, .. } | Step::GetBase { ring } => is_ring(*ring),
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
            let (_, user) = addresses(*place);
            let payload = vring_addr(*ring, 0, user, user + 0x8000, user + 0x6000, 0);
            acked(Req::SET_VRING_ADDR, &payload, &[])
        }
        Step::Enable { ring, on } => acked(Req::SET_VRING_ENABLE, &vring_state(*ring, *on), &[]),
        Step::GetBase { ring } => {
            let answer = front.ask(Req::GET_VRING_BASE, &vring_state(*ring, 0))?;
            assert_eq!(answer.payload[..4], ring.to_ne_bytes());
            Ok(())
        }
        Step::ResetOwner => acked(Req::RESET_OWNER, &[], &[]),
        Step::ResetDevice => acked(Req::RESET_DEVICE, &[], &[]),
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
    let steps = prop::collection::vec(step(), 1..30);
    let config = ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in steps)| {
        let (front, mut model) = (connected(&nic), Model::default());
        let mut refused = nic.status().refused_messages;
        let mut over = false;
        for step in &steps {
            let expected = model.outcome(step);
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
        }
        prop_assert!(over || !front.is_closed(), "{steps:?}");
    });
    assert_works(&mut guest(&nic), "all that");
    nic.assert_balanced();
}
