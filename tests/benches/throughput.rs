//! Packets a second on one core of this machine, in virtual time: from the generator on the wire by way of card and
//! guest to the buffer of a process that calls `recvfrom`. 64-octet frames at the rate of a 1 Gb/s line; an interrupt
//! for each, and moderated.
//!
//! Run with `cargo bench -p nic-testbed --bench throughput`; items are packets. `instructions` counts what does not
//! depend on the machine.

use std::num::NonZeroU64;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use nic_guest::net::CpuCost;
use nic_testbed::measure::closed_form::Arrivals;
use nic_testbed::measure::{Experiment, Testbed};

/// Packets in a sample.
const PACKETS: u64 = 100_000;

fn main() {
    divan::main();
}

#[divan::bench(args = ["off", "rx-usecs=8,rx-frames=32", "rx-usecs=64,rx-frames=256"], sample_count = 20, sample_size = 1)]
fn wire_to_socket(bencher: Bencher<'_, '_>, coalesce: &str) {
    let pps = NonZeroU64::new(1_488_095).expect("a rate");
    let experiment = Experiment {
        pps,
        frame_size: 64,
        coalesce: coalesce.parse().expect("a moderation"),
        arrivals: Arrivals::Constant,
        speed: "1G".parse().expect("a speed"),
        duration: Duration::from_nanos(PACKETS * 1_000_000_000 / pps),
        seed: 1,
        cost: CpuCost::default(),
        poll: false,
    };
    bencher
        .counter(ItemsCount::new(PACKETS))
        .with_inputs(|| {
            let mut testbed = Testbed::start(&experiment).expect("a testbed");
            let warm = testbed.now() + Duration::from_millis(5);
            testbed.run_until(warm).expect("a sound guest");
            testbed
        })
        .bench_local_values(|mut testbed| {
            let end = testbed.now() + experiment.duration;
            testbed.run_until(end).expect("a sound guest");
            testbed
        });
}
