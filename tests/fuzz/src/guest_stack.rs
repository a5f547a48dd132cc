//! The guest's whole stack, and frames of any octets behind headers that say anything; and, for hosts that have more,
//! packets that are sound. The device keeps to the rules of the rings.

use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;

use super::guest::{Bed, Lie, frame, header, space};
use super::guest_host::{self, Host};
use super::input::Input;

/// Steps of one execution at most.
const STEPS: usize = 64;

/// Runs the target.
///
/// # Panics
/// If the guest does what it must not.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let shape = input.u8();
    let offered = [
        f::MAC | f::STATUS | f::CSUM | f::GUEST_CSUM,
        f::MRG_RXBUF,
        f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_USO4 | f::GUEST_USO6,
        f::EVENT_IDX,
        f::INDIRECT_DESC,
        f::HOST_USO,
        f::RING_PACKED,
        f::IN_ORDER,
    ];
    let bits = (0..).zip(offered).filter(|(bit, _)| shape >> bit & 1 == 1);
    let offered = bits.fold(f::VERSION_1, |sum, (_, feature)| sum | feature);
    let parts = input.u8();
    let config = guest_host::config(parts);
    let mut bed = Bed::with(offered, space(1), 1, config).expect("a device as it should be");
    let mut host = Host::new(&mut bed, parts);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.u8();
        match step % 8 {
            0..=3 if step >= 224 => {
                let frame = guest_host::frame6(&mut input);
                let header = VirtioNetHdr::default();
                bed.device.deliver(0, header, &frame, Lie::default());
                host.process6(&mut bed, &mut input);
            }
            // Only a host that has more than a socket is for these.
            0..=4 if step >= 128 && parts != 0 => {
                let header = if step < 192 {
                    VirtioNetHdr::default()
                } else {
                    header(&mut input)
                };
                let frame = guest_host::frame(&mut input, bed.device.seen.get());
                bed.device.deliver(0, header, &frame, Lie::default());
            }
            6.. if step >= 128 && parts != 0 => host.process(&mut bed, &mut input),
            0..=3 => {
                let header = header(&mut input);
                let frame = frame(&mut input, 1500);
                bed.device.deliver(0, header, &frame, Lie::default());
            }
            4 => {
                let header = header(&mut input);
                let frame = frame(&mut input, 0xf000);
                bed.device.deliver(0, header, &frame, Lie::default());
            }
            5 => bed.device.transmit(1, 16, Lie::default()),
            _ => bed.process(&mut input),
        }
        assert!(bed.rest(), "a ring is broken that the device did not break");
        bed.balance();
    }
}
