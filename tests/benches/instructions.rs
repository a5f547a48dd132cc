//! Instructions a packet costs, counted by callgrind: the same on every machine, however busy.
//!
//! `receive`: from a burst that came from the wire to the stored used index. `transmit`: from the kick to the burst
//! that goes on the wire. 32 packets, the shortest of UDP over IPv4 and IPv6 (64 and 66 octets); one queue pair, INDIRECT_DESC,
//! EVENT_IDX, MRG_RXBUF, CSUM and GUEST_CSUM; the receive checksum is verified. All that the card offers is on, so that each
//! packet is hashed by all types and has its hash in the header; `rx_split_plain` is with neither RSS nor HASH_REPORT, which then
//! cost nothing.
//!
//! `wire_to_socket`: everything, card and guest, in virtual time: from the generator on the wire by way of the card, its
//! moderation (64 us, 256 frames), interrupt, NAPI, IP and UDP to the buffer of a process that calls `recvfrom`. 64-octet
//! frames at the rate of a 1 Gb/s line.
//!
//! The names of the benches are those of `instructions.json`; `nic_testbed::baseline` says how many packets each is of, and
//! `scripts/instructions` runs and compares them. It takes valgrind and gungraun-runner.

// What the macros of gungraun make has no documentation, and full names.
#![allow(missing_docs, unused_qualifications)]

mod bed;

use std::hint::black_box;
use std::num::NonZeroU64;
use std::time::Duration;

use gungraun::{library_benchmark, library_benchmark_group, main};
use nic_device::features::Features;
use nic_guest::net::CpuCost;
use nic_model::time::Nanos;
use nic_testbed::baseline::THROUGH;
use nic_testbed::measure::closed_form::Arrivals;
use nic_testbed::measure::{Experiment, Testbed};

use bed::{Bed, Ip, Shape, flows_in_turn};

/// Flows that received packets belong to.
const FLOWS: u32 = 16;

fn before_receive(ip: Ip, shape: &Shape) -> Bed {
    let mut bed = Bed::new(shape);
    bed.arrive(ip, 1, flows_in_turn(FLOWS));
    bed
}

fn before_transmit(ip: Ip, shape: &Shape) -> Bed {
    let mut bed = Bed::new(shape);
    bed.send(ip);
    bed
}

/// One queue pair with everything.
fn split() -> Shape {
    Shape::default()
}

fn packed() -> Shape {
    split().packed()
}

fn plain() -> Shape {
    split().without(Features::RSS | Features::HASH_REPORT)
}

#[library_benchmark]
#[bench::rx_split(before_receive(Ip::V4, &split()))]
#[bench::rx_split_ipv6(before_receive(Ip::V6, &split()))]
#[bench::rx_split_plain(before_receive(Ip::V4, &plain()))]
#[bench::rx_packed(before_receive(Ip::V4, &packed()))]
fn receive(mut bed: Bed) -> Bed {
    bed.poll();
    black_box(bed)
}

#[library_benchmark]
#[bench::tx_split(before_transmit(Ip::V4, &split()))]
#[bench::tx_split_ipv6(before_transmit(Ip::V6, &split()))]
#[bench::tx_packed(before_transmit(Ip::V4, &packed()))]
fn transmit(mut bed: Bed) -> Bed {
    bed.poll();
    black_box(bed)
}

/// A load that has been running for a while.
fn before_wire_to_socket() -> (Box<Testbed>, Nanos) {
    let mut experiment = Experiment {
        pps: NonZeroU64::new(1_488_095).expect("a rate"),
        frame_size: 64,
        coalesce: "rx-usecs=64,rx-frames=256".parse().expect("a moderation"),
        arrivals: Arrivals::Constant,
        speed: "1G".parse().expect("a speed"),
        duration: Duration::ZERO,
        seed: 1,
        cost: CpuCost::default(),
        poll: false,
    };
    experiment.duration = Duration::from_nanos(THROUGH * 1_000_000_000 / experiment.pps);
    let mut testbed = Testbed::start(&experiment).expect("a testbed");
    let warm = testbed.now() + Duration::from_millis(5);
    testbed.run_until(warm).expect("a sound guest");
    let end = testbed.now() + experiment.duration;
    (Box::new(testbed), end)
}

#[library_benchmark]
#[bench::wire_to_socket(before_wire_to_socket())]
fn through((mut testbed, end): (Box<Testbed>, Nanos)) -> Box<Testbed> {
    testbed.run_until(end).expect("a sound guest");
    black_box(testbed)
}

library_benchmark_group!(name = data_path; benchmarks = receive, transmit, through);

main!(library_benchmark_groups = data_path);
