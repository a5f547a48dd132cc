//! Line rate, in virtual time: at every speed and size the guest gets, and the wire is given, as many frames a second as Ethernet
//! has room for (IEEE 802.3: each frame with eight octets before it and a gap of twelve behind it).

use nic_backend::card::Line;
use nic_guest::virtio_net::VirtnetInfo;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_model::phy::{LINE_OVERHEAD, Speed};
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;

use crate::support::{numbered_frame, virtual_guest};
use crate::virtual_time::receive_until;

const SPEEDS: [&str; 5] = ["1G", "10G", "25G", "100G", "400G"];
/// Octets of a frame, with its check sequence.
const SIZES: [usize; 8] = [64, 128, 256, 512, 1024, 1518, 4096, 9000];
const FRAMES: u64 = 10_000;

fn guest(wire: &str, speed: Speed) -> VirtnetInfo<InProcess> {
    virtual_guest(wire, |port| {
        port.speed = speed;
        port.mtu = 9000;
    })
}

/// Calls `each` with all speeds and sizes, and how long [`FRAMES`] of them take in picoseconds.
fn all(mut each: impl FnMut(&str, Speed, usize, u64)) {
    for speed in SPEEDS {
        for size in SIZES {
            let what = format!("{size} octets at {speed}");
            let speed: Speed = speed.parse().expect("a speed");
            let bits = 8 * (size as u64 + LINE_OVERHEAD as u64);
            // A bit at 1 Mb/s takes 10^6 ps.
            let exact = FRAMES * bits * 1_000_000 / u64::from(speed.mbps());
            each(&what, speed, size, exact);
        }
    }
}

#[test]
fn a_guest_receives_what_the_line_carries() {
    all(|what, speed, size, exact| {
        let mut guest = guest(&format!("generator:size={size}"), speed);
        let mut received: u64 = 0;
        receive_until(&mut guest, Nanos(exact / 1000), |_, frame| {
            assert_eq!(frame.len(), size - 4, "{what}");
            received += 1;
        });
        // One in 10,000: the last one is half out of the line.
        assert!(received.abs_diff(FRAMES) <= 1, "{what}: {received}");
        let counters = guest.transport.card().borrow().nic.counters();
        assert_eq!(counters.drops.received(), 0, "{what}");
    });
}

#[test]
fn a_guest_that_sends_all_it_can_fills_the_line() {
    all(|what, speed, size, exact| {
        let mut guest = guest("sink", speed);
        let frame = numbered_frame(0, size - 4);
        let begin = guest.transport.now();
        let mut sent = 0;
        while sent < FRAMES {
            while sent < FRAMES
                && guest
                    .start_xmit(0, &frame, &VirtioNetHdr::default())
                    .is_ok()
            {
                sent += 1;
            }
            guest.flush(0);
            // Before the ring is empty.
            let step = exact / 1000 * 64 / FRAMES;
            let now = guest.transport.now();
            guest.transport.run_until(Nanos(now.0 + step));
            guest.sq[0].free_old_xmit().expect("a sound ring");
        }
        guest.transport.run_until(Nanos(begin.0 + 2 * exact / 1000));
        let card = guest.transport.card();
        let card = card.borrow();
        assert!(card.wire().counters().contains(&("sink_frames", FRAMES)));
        let took = card.nic.port.phy.tx.busy_until().since(begin).as_nanos() as u64 * 1000;
        assert!(
            took.abs_diff(exact) * 10_000 <= exact,
            "{what}: {took} ps instead of {exact}"
        );
    });
}
