//! The tuner of interrupt moderation, driven by interrupts.

use std::rc::Rc;

use nic_guest::virtio_net::coalesce::IntrCoal;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::udp;
use crate::common::world::{FEATURES, Guest, Setup, World, settle};
use crate::{PORT, read_all, udp_socket};

fn guest() -> (Guest, Rc<World>) {
    let setup = Setup {
        features: FEATURES | f::CTRL_VQ | f::NOTF_COAL | f::VQ_NOTF_COAL,
        pairs: 2,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    kernel.dev.set_adaptive_rx(true).unwrap();
    world.commands.take();
    (kernel, world)
}

/// Interrupts of the second pair, each with one frame, so far apart; what the device was told meanwhile:
/// virtqueue and microseconds.
fn interrupts(kernel: &mut Guest, world: &World, count: usize, apart: u64) -> Vec<(u8, u16)> {
    let fd = udp_socket(kernel, PORT);
    for _ in 0..count {
        world.advance(apart);
        let now = nic_guest::net::Machine::now(world);
        world.schedule_with(now, 2, VirtioNetHdr::default(), &udp(PORT, b"x"));
        settle(kernel);
        assert_eq!(read_all(kernel, fd).len(), 1);
    }
    kernel.close(fd).unwrap();
    let told = world.commands.take();
    told.iter()
        .map(|(class, command, data)| {
            assert_eq!((*class, *command), (6, 2));
            assert_eq!(data[4..8], [0, 1, 0, 0], "256 packets");
            (data[0], u16::from_le_bytes([data[8], data[9]]))
        })
        .collect()
}

#[test]
fn each_64_interrupts_a_profile_is_chosen() {
    let (mut kernel, world) = guest();
    // The first of a measurement only starts it.
    assert_eq!(interrupts(&mut kernel, &world, 64, 10_000), []);
    assert_eq!(interrupts(&mut kernel, &world, 1, 10_000), [(2, 1)]);
    assert_eq!(kernel.dev.intr_coal(2), IntrCoal::new(256, 1));
    assert_eq!(kernel.dev.intr_coal(0), IntrCoal::default());
    // Slower is worse: back, and on as it gets better.
    assert_eq!(interrupts(&mut kernel, &world, 65, 20_000), [(2, 8)]);
    assert_eq!(interrupts(&mut kernel, &world, 65, 10_000), [(2, 64)]);
    assert_eq!(interrupts(&mut kernel, &world, 65, 5_000), [(2, 128)]);
}

#[test]
fn a_device_that_refuses_is_asked_again_later() {
    let (mut kernel, world) = guest();
    world.refuse.set(true);
    assert_eq!(interrupts(&mut kernel, &world, 65, 10_000), [(2, 1)]);
    assert_eq!(kernel.dev.intr_coal(2), IntrCoal::default());
    world.refuse.set(false);
    assert_eq!(interrupts(&mut kernel, &world, 65, 10_000), [(2, 8)]);
    assert_eq!(kernel.dev.intr_coal(2), IntrCoal::new(256, 8));
}

#[test]
fn who_is_not_tuned_is_left_alone() {
    let (mut kernel, world) = guest();
    kernel.dev.set_queue_coalesce(2, 5, 5).unwrap();
    world.commands.take();
    assert_eq!(interrupts(&mut kernel, &world, 200, 10_000), []);
    assert_eq!(kernel.dev.intr_coal(2), IntrCoal::new(5, 5));
}
