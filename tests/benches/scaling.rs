//! Instructions a packet costs with more queue pairs, and with more flows: it shall not matter how many there are.
//!
//! Receive with all features, RSS spreading the flows over all pairs, a burst of 32 packets of 64 octets a poll (`bed`). `rx_pairs_N`:
//! 1,024 flows on N pairs; with 16 of them a burst brings a queue two packets. `rx_flows_N`: N flows on 4 pairs, each of the
//! packets counted of another one. `full_pairs_N`: a burst of 32 a queue pair, in one poll. `idle_pairs_N`: what a poll costs that
//! finds nothing. The names are those of `instructions.json`.

// What the macros of gungraun make has no documentation, and full names.
#![allow(missing_docs, unused_qualifications)]

mod bed;

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use nic_testbed::baseline::POLLS;

use bed::{BURST, Bed, Ip, Shape, flows_in_turn};

/// Queue pairs in the benches of flows.
const PAIRS: u16 = 4;
/// Flows in the benches of queue pairs.
const FLOWS: u32 = 1024;

fn pairs(pairs: u16) -> Bed {
    let mut bed = Bed::new(&Shape::of(pairs));
    bed.arrive(Ip::V4, POLLS as usize, flows_in_turn(FLOWS));
    bed
}

/// `flows` flows, of which as many are received as there are packets, far from each other.
fn flows(flows: u32) -> Bed {
    let mut bed = Bed::new(&Shape::of(PAIRS));
    // A prime: all have their turn before one has it again.
    let far = (0..flows).cycle().step_by(7_919);
    bed.arrive(Ip::V4, POLLS as usize, far);
    bed
}

fn full(pairs: u16) -> Bed {
    let mut bed = Bed::new(&Shape::of(pairs));
    let burst = usize::from(pairs) * BURST;
    bed.arrive_in(Ip::V4, 1, burst, flows_in_turn(FLOWS));
    bed
}

fn idle(pairs: u16) -> Bed {
    let mut bed = Bed::new(&Shape::of(pairs));
    bed.stay_idle(POLLS as usize);
    bed
}

#[library_benchmark]
#[bench::rx_pairs_1(pairs(1))]
#[bench::rx_pairs_2(pairs(2))]
#[bench::rx_pairs_4(pairs(4))]
#[bench::rx_pairs_8(pairs(8))]
#[bench::rx_pairs_16(pairs(16))]
#[bench::rx_flows_10(flows(10))]
#[bench::rx_flows_1000(flows(1_000))]
#[bench::rx_flows_100000(flows(100_000))]
#[bench::rx_flows_1000000(flows(1_000_000))]
#[bench::full_pairs_1(full(1))]
#[bench::full_pairs_16(full(16))]
#[bench::idle_pairs_1(idle(1))]
#[bench::idle_pairs_16(idle(16))]
fn poll(mut bed: Bed) -> Bed {
    bed.poll();
    black_box(bed)
}

library_benchmark_group!(name = scaling; benchmarks = poll);

main!(library_benchmark_groups = scaling);
