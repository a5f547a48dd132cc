//! The whole card, and a driver and a front-end that do anything at any time.

use std::cell::RefCell;

use super::card::{Bed, features};
use super::input::Input;
use super::memory::Memory;

/// Steps of one execution at most.
const STEPS: usize = 64;

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
        let pairs = 1 + u16::from(shape & 1);
        let features = features(&mut input, pairs);
        let mut bed = Bed::new(memory, pairs, features, 1 << (shape >> 1).min(5));
        bed.nic.port.filter.promiscuous = shape & 0x80 != 0;
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            step(&mut bed, &mut input);
        }
        bed.rest();
        bed.end();
    });
}

fn step(bed: &mut Bed<'_>, input: &mut Input<'_>) {
    let step = input.u8();
    let index = u16::from(step >> 4) % bed.queues();
    match step & 0xf {
        0..=2 => bed.describe(input, index),
        3 => {
            let head = input.below(0x100);
            bed.post_head(index, head % 40);
        }
        4 | 5 => bed.post_receive(input, index & !1),
        6 | 7 => bed.post_send(input, index),
        8 => bed.poke(input, true),
        9 => bed.poke(input, false),
        10 | 11 => {
            bed.arrive(input);
            bed.poll();
        }
        12 => _ = bed.poll(),
        13 => bed.rest(),
        _ => bed.manage(input),
    }
}
