//! A device that lies on purpose (`--fault device:...`), and the guest's driver, which must survive it: a queue that is broken is left
//! alone, a packet that lies is dropped and counted, a command that nobody answers ends, and when the lies stop, what is not broken works.

use std::time::Duration;

use nic_backend::wire::fault::FaultSpec;
use nic_device::nic::NicStatus;
use nic_guest::memory::GuestMemory;
use nic_guest::ring::RingFault;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::ctrl::CtrlError;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f};
use nic_model::fault::LieCounters;
use nic_testbed::in_process::InProcess;

use crate::support::{
    TestNic, exchange, numbered_frame, virtual_guest_with, wait_until, without_super_frames,
};

type Guest = VirtnetInfo<InProcess>;

/// A guest on a plug that returns its frames, with rings of either layout, and the faults of `spec` in its card.
fn guest(packed: bool, spec: &str) -> Guest {
    let options = match packed {
        true => without_super_frames().with(f::RING_PACKED),
        false => without_super_frames(),
    };
    let guest = virtual_guest_with("loopback", &options, |_| {});
    inject(&guest, spec);
    guest
}

fn inject(guest: &Guest, spec: &str) {
    use nic_backend::worker::Body;
    let (card, now) = (guest.transport.card(), guest.transport.now());
    let spec: FaultSpec = spec.parse().unwrap_or_else(|error| panic!("{error}"));
    let mut card = card.borrow_mut();
    card.rings().set_faults(spec.host, spec.seed, now);
}

fn status(guest: &Guest) -> NicStatus {
    guest.transport.card().borrow().nic.status()
}

/// How often the device has lied about virtqueue `index`.
fn lies(guest: &Guest, index: usize) -> LieCounters {
    status(guest).queues[index].lies
}

/// What came of `count` frames.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    received: Vec<Vec<u8>>,
    broken: Option<RingFault>,
}

/// Sends `count` frames and takes what comes, until nothing does or the driver gives a queue up.
fn pass(guest: &mut Guest, count: u32) -> Seen {
    let mut seen = Seen {
        received: Vec::new(),
        broken: None,
    };
    // The last ones are on their way for a time.
    for number in 0..count + 10 {
        if number < count {
            let frame = numbered_frame(number, 60 + number as usize % 1000);
            // A queue that is broken, or full of what never comes back, takes none.
            let _ = guest.start_xmit(0, &frame, &VirtioNetHdr::default());
            guest.flush(0);
        }
        guest.wait(Duration::from_micros(50));
        loop {
            match guest.poll(0, 64, |frame| seen.received.push(frame.to_vec())) {
                Ok(0) => break,
                Ok(_) => {}
                Err(fault) => {
                    seen.broken = Some(fault);
                    return seen;
                }
            }
        }
    }
    seen
}

/// Frames that are lied about are dropped, each counted as `dropped` says, and all others arrive; without lies all do.
fn frames_are_dropped(spec: &str, lied: impl Fn(LieCounters) -> u64, length_errors: bool) {
    for packed in [false, true] {
        let what = format!("{spec}, packed {packed}");
        let mut guest = guest(packed, spec);
        let seen = pass(&mut guest, 2000);
        assert_eq!(seen.broken, None, "{what}");
        let (lied, rx) = (lied(lies(&guest, 0)), guest.stats().0);
        assert!((300..1700).contains(&lied), "{what}: {lied}");
        let errors = match length_errors {
            true => (rx.length_errors, rx.frame_errors),
            false => (rx.frame_errors, rx.length_errors),
        };
        assert_eq!((errors, rx.drops), ((lied, 0), lied), "{what}");
        assert_eq!(seen.received.len() as u64, 2000 - lied, "{what}");
        inject(&guest, "none");
        let seen = pass(&mut guest, 500);
        assert_eq!((seen.received.len(), seen.broken), (500, None), "{what}");
    }
}

#[test]
fn a_used_length_that_cannot_be_drops_the_frame() {
    frames_are_dropped(
        "device:rx:used-len=0.5,seed=3",
        |lies| lies.used_lengths,
        true,
    );
}

#[test]
fn segments_that_cannot_be_drop_the_frame() {
    frames_are_dropped("device:gso=0.5,seed=3", |lies| lies.gso, false);
}

#[test]
fn a_checksum_behind_the_packet_drops_the_frame() {
    frames_are_dropped("device:csum=0.5,seed=3", |lies| lies.csum, false);
}

#[test]
fn a_wrong_number_of_buffers_loses_no_buffer() {
    for packed in [false, true] {
        let mut guest = guest(packed, "device:num-buffers=0.5,seed=3");
        let seen = pass(&mut guest, 2000);
        assert_eq!(seen.broken, None);
        let (lied, rx) = (lies(&guest, 0).num_buffers, guest.stats().0);
        assert!((500..1500).contains(&lied), "{lied}");
        // A frame in no buffer is dropped. One in too many takes those that came behind it, or there are none and it is dropped.
        assert!(rx.length_errors > lied / 4, "{rx:?}");
        assert_eq!(rx.packets, seen.received.len() as u64);
        inject(&guest, "none");
        let seen = pass(&mut guest, 500);
        assert_eq!((seen.received.len(), seen.broken), (500, None));
    }
}

#[test]
fn a_used_length_of_a_sent_packet_is_nobodys_concern() {
    for packed in [false, true] {
        let mut guest = guest(packed, "device:tx:used-len=1");
        let seen = pass(&mut guest, 1000);
        assert_eq!((seen.received.len(), seen.broken), (1000, None));
        assert_eq!(lies(&guest, 1).used_lengths, 1000);
        assert_eq!(lies(&guest, 0), LieCounters::default());
    }
}

#[test]
fn a_used_buffer_that_is_none_breaks_the_queue_for_the_driver_and_nothing_else() {
    for spec in [
        "device:rx:used-id=0.05",
        "device:tx:used-id=0.05",
        "device:rx:used-jump=0.05",
        "device:tx:used-jump=0.05",
        "device:used-id=1,device:used-len=1,device:used-jump=1,device:num-buffers=1,device:gso=1,device:csum=1",
    ] {
        for (packed, seed) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let what = format!("{spec}, packed {packed}, seed {seed}");
            let spec = format!("{spec},seed={seed}");
            let run = || {
                let mut guest = guest(packed, &spec);
                let seen = pass(&mut guest, 3000);
                let lies = [lies(&guest, 0), lies(&guest, 1)];
                let told = lies.iter().map(|lies| lies.used_ids + lies.used_jumps);
                assert!(told.sum::<u64>() > 0, "{what}: {lies:?}");
                // It stays broken, and the card does not mind.
                let again = pass(&mut guest, 10);
                if seen.broken.is_some() && !spec.contains("tx:") {
                    assert_eq!(again.broken, seen.broken, "{what}");
                    assert_eq!(again.received.len(), 0, "{what}");
                }
                let port = status(&guest).port;
                assert_eq!(port.counters.receive_balance(port.rx_fifo_frames), 0);
                assert_eq!(port.counters.transmit_balance(0), 0);
                (seen, lies)
            };
            let (seen, lies) = run();
            if spec.contains("rx:") {
                assert!(seen.broken.is_some(), "{what}: {lies:?}");
            }
            // The same seed tells the same lies.
            assert_eq!(run(), (seen, lies), "{what}");
        }
    }
}

#[test]
fn a_command_that_nobody_answers_ends_and_the_next_one_works() {
    for packed in [false, true] {
        let mut guest = guest(packed, "device:silent=1");
        for unanswered in 1..4 {
            let error = guest.set_promisc(true).expect_err("nobody answers");
            assert!(matches!(error, CtrlError::TimedOut), "{error}");
            assert_eq!(lies(&guest, 2).unanswered, unanswered);
        }
        // Packets go on.
        assert_eq!(pass(&mut guest, 100).received.len(), 100);
        inject(&guest, "none");
        guest.set_promisc(false).expect("an answer");
        guest.set_promisc(true).expect("an answer");
        assert!(guest.transport.card().borrow().nic.port.filter.promiscuous);
    }
}

#[test]
fn interrupts_that_are_lost_or_for_nothing_are_the_devices_too() {
    let mut guest = guest(
        false,
        "device:irq-lost=0.2,device:irq-spurious=10000,seed=5",
    );
    let seen = pass(&mut guest, 1000);
    assert_eq!((seen.received.len(), seen.broken), (1000, None));
    let queues = status(&guest).queues;
    assert!(queues[0].interrupts_lost > 0 && queues[0].interrupts_spurious > 0);
}

#[test]
fn a_torn_configuration_space_is_refused_or_read_again() {
    let nic = TestNic::new("loopback");
    let spec = |text: &str| text.parse::<FaultSpec>().expect("faults");
    let probe = || {
        let memory = GuestMemory::new(32 << 20).expect("guest memory");
        let transport = VhostUser::connect(&nic.socket(), memory).expect("a connection");
        VirtnetInfo::probe(transport, &without_super_frames())
    };
    let mut refused = 0;
    for seed in 0..20 {
        nic.server()
            .set_faults(spec(&format!("device:config-tear=1,seed={seed}")))
            .expect("it runs");
        match probe() {
            // What it believes is at least possible.
            Ok(guest) => assert!(guest.config.mtu.is_none_or(|mtu| mtu >= 68)),
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
        assert!(nic.status().config_tears > 0);
    }
    assert!(refused > 0, "nothing that was torn was noticed");
    nic.server().set_faults(spec("none")).expect("it runs");
    assert_eq!(nic.status().config_tears, 0);
    let mut guest = probe().expect("a device");
    let frames: Vec<_> = (0..100).map(|number| numbered_frame(number, 60)).collect();
    assert_eq!(exchange(&mut guest, &frames), frames);
}

#[test]
fn a_driver_that_gives_up_can_begin_anew() {
    let nic = TestNic::new("loopback");
    let spec = |text: &str| text.parse::<FaultSpec>().expect("faults");
    for text in ["device:rx:used-id=1", "device:used-jump=1"] {
        nic.server().set_faults(spec(text)).expect("it runs");
        let options: ProbeOptions = without_super_frames();
        let mut guest = nic.guest(&options);
        let frame = numbered_frame(1, 60);
        wait_until("the queue to break", || {
            let _ = guest.start_xmit(0, &frame, &VirtioNetHdr::default());
            guest.flush(0);
            guest.poll(0, 64, |_| {}).is_err()
        });
        drop(guest);
        nic.server().set_faults(spec("none")).expect("it runs");
        let mut guest = nic.guest(&options);
        let frames: Vec<_> = (0..500).map(|number| numbered_frame(number, 60)).collect();
        assert_eq!(exchange(&mut guest, &frames), frames);
        nic.assert_balanced();
    }
}
