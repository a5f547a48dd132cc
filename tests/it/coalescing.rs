//! Interrupt moderation as a driver asks for it, over the socket and in real time.
//!
//! Instants are the model's and virtual time's affair; here it is counts.

use std::time::Duration;

use nic_backend::coalesce::CoalesceSpec;
use nic_backend::patience::PollMode;
use nic_device::rings::ModerationStatus;
use nic_guest::transport::Transport;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::ctrl::{CtrlError, VIRTIO_NET_ERR};
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nic_model::moderation::{Mode, ModeStatus};

use crate::support::{PATIENCE, TestNic, exchange, numbered_frame};

type Guest = VirtnetInfo<VhostUser>;

const RX: usize = 0;
const TX: usize = 1;

fn moderation(nic: &TestNic, queue: usize) -> ModerationStatus {
    nic.status().nic.moderation[queue].expect("a queue for packets")
}

/// Sends `count` frames through the loopback and takes them.
fn around(guest: &mut Guest, count: u32) {
    let frames: Vec<_> = (0..count)
        .map(|number| numbered_frame(number, 100))
        .collect();
    assert_eq!(exchange(guest, &frames), frames);
}

/// Sends `count` frames and forgets interrupts that came before.
fn send(guest: &mut Guest, count: u32) {
    guest.take_interrupts(0);
    for number in 0..count {
        let frame = numbered_frame(number, 100);
        guest
            .start_xmit(0, &frame, &VirtioNetHdr::default())
            .expect("room");
    }
    guest.flush(0);
}

/// Takes what has come; how many frames.
fn take(guest: &mut Guest) -> usize {
    guest.poll(0, 64, |_| {}).expect("sound rings")
}

/// Sends `count` frames through the loopback and takes them; how often each direction's condition was met.
fn met(nic: &TestNic, guest: &mut Guest, count: u32) -> [u64; 2] {
    let counts = || [RX, TX].map(|queue| moderation(nic, queue).counters.conditions_met);
    let before = counts();
    around(guest, count);
    let after = counts();
    [after[0] - before[0], after[1] - before[1]]
}

#[test]
fn each_direction_interrupts_as_the_driver_says() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    assert_eq!(met(&nic, &mut guest, 16), [16, 16], "off");
    guest.set_rx_coalesce(8, 10_000_000).expect("an answer");
    guest.set_tx_coalesce(4, 10_000_000).expect("an answer");
    assert_eq!(met(&nic, &mut guest, 16), [2, 4]);
    assert_eq!(guest.queue_coalesce(0).expect("an answer"), (8, 10_000_000));
    guest
        .set_queue_coalesce(0, 2, 10_000_000)
        .expect("an answer");
    assert_eq!(guest.queue_coalesce(0).expect("an answer"), (2, 10_000_000));
    assert_eq!(guest.queue_coalesce(1).expect("an answer"), (4, 10_000_000));
    assert_eq!(met(&nic, &mut guest, 16), [8, 4]);
}

#[test]
fn time_that_is_up_interrupts_a_driver_that_sleeps() {
    for poll in [PollMode::Never, PollMode::Adaptive, PollMode::Always] {
        let nic = TestNic::with("loopback", |config| config.poll = poll);
        let mut guest = nic.guest(&ProbeOptions::default());
        guest.set_rx_coalesce(1_000, 20_000).expect("an answer");
        send(&mut guest, 3);
        assert!(
            guest.transport.wait_interrupt(0, PATIENCE),
            "no interrupt came"
        );
        assert_eq!(take(&mut guest), 3, "one interrupt for all");
        let counters = moderation(&nic, RX).counters;
        assert_eq!((counters.conditions_met, counters.by_timer), (1, 1));
    }
}

#[test]
fn packets_that_wait_are_told_at_once_when_moderation_ends() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    guest
        .set_rx_coalesce(100, 4_000_000_000)
        .expect("an answer");
    send(&mut guest, 3);
    assert!(!guest.transport.wait_interrupt(0, Duration::from_millis(20)));
    guest.set_rx_coalesce(0, 0).expect("an answer");
    assert!(
        guest.transport.wait_interrupt(0, PATIENCE),
        "no interrupt came"
    );
    assert_eq!(take(&mut guest), 3);
}

#[test]
fn what_the_card_came_with_holds_until_it_is_changed_and_after_a_reset() {
    let came: CoalesceSpec = "rx-usecs=7,rx-frames=9,tx-usecs=3,tx-frames=5"
        .parse()
        .expect("a moderation");
    let nic = TestNic::with("loopback", |config| {
        (config.port.rx_coalesce, config.port.tx_coalesce) = (came.rx, came.tx);
    });
    let all = || [RX, TX].map(|queue| Mode::from(moderation(&nic, queue).coalesce));
    let mut guest = nic.guest(&ProbeOptions::default());
    assert_eq!(all(), [came.rx, came.tx]);
    guest.set_rx_coalesce(1, 2).expect("an answer");
    assert_ne!(all(), [came.rx, came.tx]);
    guest.remove().expect("a reset");
    assert_eq!(all(), [came.rx, came.tx]);
}

#[test]
fn a_mode_of_the_cards_own_moderates_until_the_driver_says_something() {
    // The first frame interrupts at once, the others when an interval has passed; with 8 ms that is seen also on a slow machine.
    let came: CoalesceSpec = "itr=8000".parse().expect("a moderation");
    let nic = TestNic::with("loopback", |config| {
        (config.port.rx_coalesce, config.port.tx_coalesce) = (came.rx, came.tx);
    });
    let mut guest = nic.guest(&ProbeOptions::default());
    let itr = ModeStatus::Itr { lli_sent: 0 };
    assert_eq!([RX, TX].map(|queue| moderation(&nic, queue).mode), [itr; 2]);
    let in_force = guest.queue_coalesce(0).expect("an answer");
    assert_eq!(in_force, (u32::MAX, 8_000), "what holds can be read");
    for _ in 0..3 {
        send(&mut guest, 1);
        assert!(
            guest.transport.wait_interrupt(0, PATIENCE),
            "no interrupt came"
        );
        assert_eq!(take(&mut guest), 1);
    }
    guest
        .set_queue_coalesce(0, 2, 10_000_000)
        .expect("an answer");
    let modes = || [RX, TX].map(|queue| moderation(&nic, queue).mode);
    assert_eq!(modes(), [ModeStatus::NotfCoal, itr]);
    assert_eq!(met(&nic, &mut guest, 16)[RX], 8);
    guest.remove().expect("a reset");
    assert_eq!(modes(), [itr; 2]);
}

#[test]
fn queues_that_have_no_packets_are_refused() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    for queue in [2, 3, 0xffff] {
        let refused = |result| matches!(result, Err(CtrlError::Refused(VIRTIO_NET_ERR)));
        assert!(refused(guest.set_queue_coalesce(queue, 1, 1)), "{queue}");
        assert!(refused(guest.queue_coalesce(queue).map(drop)), "{queue}");
    }
}
