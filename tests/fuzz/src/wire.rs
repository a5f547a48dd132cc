//! Frames of any octets from the wire, super-frames too, through the whole card into a sound driver's buffers.

use std::cell::RefCell;

use nic_device::features::Features;

use super::card::{Bed, features};
use super::input::Input;
use super::memory::Memory;

/// Bursts of one execution at most.
const BURSTS: usize = 32;

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
        let features = features(&mut input, pairs) | Features::VERSION_1;
        let mut bed = Bed::new(memory, pairs, features, 32);
        bed.nic.port.filter.promiscuous = shape & 2 != 0;
        bed.nic.port.set_flow_control(shape & 4 != 0);
        for _ in 0..BURSTS {
            if input.is_empty() {
                break;
            }
            let script = input.u8();
            for _ in 0..script & 0xf {
                let index = 2 * (u16::from(script >> 7) % pairs);
                if Some(usize::from(index)) != bed.nic.device.control_queue() {
                    bed.post_receive(&mut input, index);
                }
            }
            bed.arrive(&mut input);
            bed.poll();
            bed.rest();
        }
        bed.end();
    });
}
