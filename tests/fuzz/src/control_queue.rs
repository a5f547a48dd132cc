//! The control queue: commands of any octets in chains of any shape.
//!
//! Each is answered, once, with OK or an error; what is refused changes nothing; and whatever was set, the card goes on.

use std::cell::RefCell;

use nic_device::features::Features;
use nic_device::nic::Nic;
use nic_device::rings::{self, ModerationStatus};
use nic_model::filter::Filter;
use nic_model::rss::RssStatus;
use nic_model::tunnel::TunnelTypes;
use nic_model::vlan::VlanFilter;

use super::card::{BUFFERS, Bed};
use super::input::Input;
use super::memory::Memory;
use super::walk::Buffer;

/// Commands of one execution at most.
const COMMANDS: usize = 32;
/// Where answers are expected: behind the longest command.
const ANSWER: u64 = BUFFERS + 0x2000;

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Runs the target.
///
/// # Panics
/// If the card does what it must not.
pub fn run(data: &[u8]) {
    MEMORY.with_borrow_mut(|memory| {
        let mut input = Input::new(data);
        memory.reset();
        let shape = input.u8();
        let pairs = 1 + u16::from(shape & 3);
        let pairs = pairs.min(2);
        let mut features = Features::supported(pairs);
        features.set(Features::RING_PACKED, shape & 4 != 0);
        features.set(Features::IN_ORDER, shape & 8 != 0);
        if shape & 0x10 != 0 {
            features &= Features::from_bits_truncate(input.u64()) | Features::CTRL_VQ;
        }
        let mut bed = Bed::new(memory, pairs, features, 32);
        for _ in 0..COMMANDS {
            if input.is_empty() {
                break;
            }
            if input.u8() & 0xf == 0 {
                bed.arrive(&mut input);
            }
            command(&mut bed, &mut input);
        }
        bed.end();
    });
}

/// What is set up: a refused command leaves it as it was.
#[derive(Debug, PartialEq)]
struct State {
    filter: Filter,
    vlan: VlanFilter,
    rss: RssStatus,
    hash_tunnel_types: TunnelTypes,
    moderation: Vec<Option<ModerationStatus>>,
}

impl State {
    fn of(nic: &Nic) -> Self {
        State {
            filter: nic.port.filter.clone(),
            vlan: nic.port.vlan.clone(),
            rss: nic.port.rss().status(),
            hash_tunnel_types: nic.port.hash_tunnel_types,
            moderation: rings::moderation(&nic.queues, &nic.device),
        }
    }
}

/// RSS_CONFIG or HASH_CONFIG, mostly as they should be (VIRTIO 1.3, 5.1.6.5.7 and 5.1.6.5.6.4).
fn steering(input: &mut Input<'_>) -> Vec<u8> {
    let script = input.u8();
    let mut octets = vec![4, 1 + (script & 1)];
    octets.extend([input.u8(), script >> 7, 0, 0]);
    if script & 1 == 0 {
        let entries = 1u16 << (script >> 1 & 7);
        octets.extend((entries - 1).to_le_bytes());
        octets.extend([script >> 6 & 1, 0]);
        let table = input.u16();
        octets.extend((0..entries).flat_map(|entry| [(table >> (entry % 16)) as u8 & 1, 0]));
        octets.extend([input.u8() & 3, 0]);
    } else {
        octets.extend([0; 8]);
    }
    let key = match input.u8() {
        0xff => 41,
        short @ 0xf0.. => short - 0xf0,
        _ => 40,
    };
    octets.push(key);
    octets.extend(std::iter::repeat_n(input.u8(), key.into()));
    octets
}

fn command(bed: &mut Bed<'_>, input: &mut Input<'_>) {
    let script = input.u8();
    let mut octets = match input.u8() & 0xf {
        0..=3 => steering(input),
        4 => vec![1, 0],
        class => vec![class % 9, input.u8() % 6],
    };
    if script & 0x80 != 0 {
        octets.extend(input.octets(600));
    }
    if script & 0x90 == 0x90 {
        octets[0] = input.u8();
    }
    if script & 0x40 != 0 {
        // A long table, or a long key.
        octets.extend(input.octets(16).repeat(40));
    }
    let octets = &octets[usize::from(script >> 4 & 3 == 3)..];
    bed.memory.put(BUFFERS, octets);
    let mut buffers = Bed::pieces(input, BUFFERS, octets.len(), false);
    let room = match script & 3 {
        0 => 1,
        1 => 1 + u32::from(input.u8()),
        2 => 0x800,
        _ => 4,
    };
    buffers.push(Buffer {
        addr: ANSWER,
        len: room,
        writable: true,
    });
    bed.memory.put(ANSWER, &[0xee]);
    let (before, counted) = (State::of(&bed.nic), bed.nic.commands());
    let index = bed.nic.device.control_queue().expect("it was accepted") as u16;
    bed.post(index, &buffers);
    bed.poll();
    let now = bed.nic.commands();
    if buffers.len() > 32 {
        return;
    }
    assert_eq!(now.commands, counted.commands + 1, "it was not done once");
    let answer = bed.memory.get::<u8>(ANSWER);
    if now.ok > counted.ok {
        assert_eq!(answer, Some(0));
    } else {
        assert_eq!(answer, Some(1));
        let after = State::of(&bed.nic);
        assert_eq!(before, after, "refused, and done all the same: {octets:x?}");
    }
}
