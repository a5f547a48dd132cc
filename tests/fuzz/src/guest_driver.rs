//! The guest's driver, and a device that lies: in config space, of what is used, in headers, anywhere in the guest's memory.

use nic_guest::virtio_net::features as f;

use super::guest::{Bed, Lie, MEMORY, frame, header, space};
use super::input::Input;

/// Steps of one execution at most.
const STEPS: usize = 64;

/// Runs the target.
///
/// # Panics
/// If the driver does what it must not.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let shape = input.u8();
    let pairs = 1 + u16::from(shape & 1);
    let mut space = space(pairs as u8);
    if shape & 2 != 0 {
        let at = usize::from(input.below(28));
        let octets = input.octets(8);
        space[at..at + octets.len()].copy_from_slice(octets);
    }
    let mut offered = match shape >> 6 {
        0 => f::VERSION_1 | f::MAC | f::MRG_RXBUF,
        1 => f::SUPPORTED,
        2 => f::SUPPORTED & !f::DEVICE_STATS,
        _ => input.u64(),
    };
    if shape & 4 == 0 {
        offered &= !f::RING_PACKED;
    }
    if shape & 8 == 0 {
        offered &= !f::EVENT_IDX;
    }
    if shape & 16 == 0 {
        offered &= !f::IN_ORDER;
    }
    let Ok(mut bed) = Bed::new(offered, space, pairs) else {
        return;
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut bed, &mut input);
        bed.rest();
        bed.balance();
    }
}

fn lie(input: &mut Input<'_>) -> Lie {
    let script = input.u8();
    let mut lie = Lie::default();
    match script & 0xf {
        0 => lie.id = u32::from(input.u8()),
        1 => lie.id = input.u32(),
        2 => lie.len = input.u32(),
        3 => lie.len = u32::from(input.u8()),
        4 => lie.index = u16::from(input.u8()),
        5 => lie.index = input.u16(),
        6 => lie.buffers = input.u16(),
        7 => lie.buffers = u16::from(input.u8() & 3),
        _ => {}
    }
    lie
}

fn step(bed: &mut Bed, input: &mut Input<'_>) {
    let step = input.u8();
    let device = bed.device.clone();
    let queue = u16::from(step >> 4) % device.queues().max(1);
    match step & 0xf {
        0..=3 => {
            let (header, lie) = (header(input), lie(input));
            let frame = frame(input, 3000);
            device.deliver(queue & !1, header, &frame, lie);
        }
        4 | 5 => {
            let lie = lie(input);
            device.transmit(queue | 1, usize::from(input.u8() & 15), lie);
        }
        6 | 7 => {
            // Into a ring.
            if let Some(parts) = device.ring(queue) {
                let at = parts[usize::from(input.u8()) % 3] + u64::from(input.u8());
                device.write(at, input.octets(15));
                device.interrupt(queue);
            }
        }
        8 => device.write(u64::from(input.u32()) % MEMORY as u64, input.octets(15)),
        9 => device.interrupt(queue),
        10 => device.configure(usize::from(input.below(28)), input.octets(8)),
        11 => device.answer.set(match input.u8() {
            0xff => None,
            answer => Some(answer & 3),
        }),
        _ => bed.process(input),
    }
}
