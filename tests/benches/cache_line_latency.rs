//! How long a cache line takes from one CPU to another: two threads, each on a CPU of its own, hand one line to and fro.
//!
//! What two processes that share a ring can reach is bounded by it, and on a virtual machine it changes from minute to
//! minute, as the host moves its CPUs. `scripts/bench-dpdk` notes it beside each sample.
//!
//! Run with `cargo run --release -p nic-testbed --example cache-line-latency -- 0 1`; prints nanoseconds for one way, the median of
//! [`BATCHES`] batches.

use std::hint::spin_loop;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Release};
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Odd, so that one is in the middle.
const BATCHES: usize = 21;
/// Round trips in a batch: some milliseconds at most.
const ROUND_TRIPS: u32 = 5_000;

/// A line of its own; processors fetch them in pairs.
#[repr(align(128))]
struct Line(AtomicU32);

fn main() -> ExitCode {
    match measure(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(nanoseconds) => {
            println!("{nanoseconds:.1}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cache-line-latency: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The median of the batches, in nanoseconds for one way.
fn measure(arguments: &[String]) -> anyhow::Result<f64> {
    let [here, there] = arguments else {
        bail!("which CPUs? cache-line-latency CPU CPU");
    };
    let cpu = |text: &String| text.parse().with_context(|| format!("'{text}' is no CPU"));
    let (here, there): (usize, usize) = (cpu(here)?, cpu(there)?);
    if here == there {
        bail!("two CPUs, not {here} twice: the threads would wait for each other's turn");
    }
    let line = Line(AtomicU32::new(0));
    thread::scope(|scope| {
        // Both must be where they belong before either waits for the other.
        let pinned = pin(there).and_then(|()| pin(here));
        pinned?;
        scope.spawn(|| {
            // It was possible a moment ago; if it no longer is, the figure is of another pair.
            let _ = pin(there);
            answer(&line);
        });
        let mut batches: Vec<f64> = (0..BATCHES as u32).map(|batch| ask(&line, batch)).collect();
        batches.sort_by(f64::total_cmp);
        Ok(batches[BATCHES / 2])
    })
}

/// Puts the calling thread on one CPU.
fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("cannot run on CPU {cpu}"))
}

/// Makes every even number odd, until the last.
fn answer(line: &Line) {
    for turn in 0..BATCHES as u32 * ROUND_TRIPS {
        await_value(line, 2 * turn + 1);
        line.0.store(2 * turn + 2, Release);
    }
}

/// A batch of round trips; nanoseconds for one way.
fn ask(line: &Line, batch: u32) -> f64 {
    let start = Instant::now();
    for turn in batch * ROUND_TRIPS..(batch + 1) * ROUND_TRIPS {
        line.0.store(2 * turn + 1, Release);
        await_value(line, 2 * turn + 2);
    }
    start.elapsed().as_nanos() as f64 / f64::from(2 * ROUND_TRIPS)
}

fn await_value(line: &Line, value: u32) {
    while line.0.load(Acquire) != value {
        spin_loop();
    }
}
