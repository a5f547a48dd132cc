//! The instrument against arithmetic: `nic-guest measure` as users run it.

use std::num::NonZeroU64;
use std::process::{Command, Output};
use std::time::Duration;

use nic_guest::net::CpuCost;
use nic_testbed::measure::closed_form::Arrivals;
use nic_testbed::measure::{Experiment, Outcome, in_real_time, in_virtual_time};
use serde_json::Value;

fn measure(arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nic-guest"))
        .arg("measure")
        .args(arguments.split_whitespace())
        .output()
        .expect("the program starts")
}

/// What `measure --json` prints.
fn report(arguments: &str) -> Value {
    let output = measure(&format!("--json {arguments}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {errors}");
    assert!(errors.is_empty(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

fn runs(report: &Value) -> &[Value] {
    report["runs"].as_array().expect("runs")
}

fn number(run: &Value, name: &str) -> f64 {
    run[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name} in {run:#}"))
}

/// The parameters of a run: packets a second, microseconds, frames.
fn parameters(run: &Value) -> (u64, u64, u64) {
    let coalesce = &run["coalesce"];
    let of = |value: &Value| value.as_u64().expect("a number");
    (
        of(&run["offered_pps"]),
        of(&coalesce["rx_usecs"]),
        of(&coalesce["rx_frames"]),
    )
}

const LOADS: [u64; 3] = [10_000, 100_000, 1_488_095];
const MODERATIONS: [(u64, u64); 5] = [(0, 0), (8, 32), (64, 32), (64, 256), (10_000, 32)];

#[test]
fn with_constant_arrivals_every_run_is_what_arithmetic_says() {
    let report = report("");
    assert_eq!(
        (&report["clock"], &report["seed"]),
        (&"virtual".into(), &1.into())
    );
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let expected = LOADS
        .iter()
        .flat_map(|&pps| MODERATIONS.map(move |(usecs, frames)| (pps, usecs, frames)));
    assert!(expected.eq(runs(&report).iter().map(parameters)));
    for run in runs(&report) {
        let (pps, usecs, frames) = parameters(run);
        // Written down once more, from the text.
        let k = if usecs == 0 || frames == 0 {
            1
        } else {
            (1 + usecs * pps / 1_000_000).min(frames)
        };
        let expected = pps as f64 / k as f64;
        assert!((number(run, "expected_interrupts_per_s") / expected - 1.0).abs() < 1e-9);
        assert!(number(run, "error_pct").abs() < 0.5, "{run:#}");
        let met = number(run, "conditions_met_per_s");
        assert!((met / expected - 1.0).abs() < 0.005, "{run:#}");
        assert_eq!(met, number(run, "interrupts_per_s"), "{run:#}");
        assert!((number(run, "packets_per_interrupt") / k as f64 - 1.0).abs() < 0.005);
        assert!(number(run, "delivered_pps") / pps as f64 > 0.99, "{run:#}");
        assert!(run["drops"].as_object().expect("reasons").is_empty());
        assert!(
            number(run, "seconds") * pps as f64 >= 99_999.0,
            "100,000 packets"
        );
        // Half of what the first of a group waits: from the preamble's first bit on.
        let wait = (k - 1) as f64 * 1e6 / pps as f64;
        let most = if k < frames { usecs as f64 } else { wait };
        let p99 = number(&run["latency_us"], "p99");
        assert!((p99 - most - 0.576).abs() < 0.02 * most + 0.01, "{run:#}");
        assert!(number(&run["latency_us"], "p50") <= p99);
    }
}

#[test]
fn frames_of_every_size_and_loads_above_the_line_too() {
    let arguments =
        "--packets 20k --frame-size 65,1518,9018 --pps 10k,line,2M --coalesce off 64,32";
    let output = measure(&format!("--json {arguments}"));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    for run in runs(&report) {
        let groups = number(run, "expected_interrupts_per_s") * number(run, "seconds");
        assert!(
            number(run, "error_pct").abs() < 0.1 + 200.0 / groups,
            "{run:#}"
        );
        assert!(
            run["drops"].as_object().expect("reasons").is_empty(),
            "{run:#}"
        );
        let (met, sent) = ("conditions_met_per_s", "interrupts_per_s");
        assert_eq!(number(run, met), number(run, sent), "{run:#}");
    }
}

#[test]
fn what_the_closed_form_does_not_know_is_said() {
    for (arguments, doubt) in [
        (
            "--pps 1M --coalesce 10000,1000",
            "ring of 256 buffers runs dry",
        ),
        (
            "--pps 10k --packets 1000 --coalesce 10000,32",
            "only 31 interrupts to expect",
        ),
    ] {
        let output = measure(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && errors.contains(doubt),
            "{arguments}: {errors}"
        );
    }
    let output = measure("--coalesce tx-usecs=3,tx-frames=3");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_guest_that_polls_for_long_is_interrupted_when_it_sleeps() {
    // A CPU as fast as the packets: it polls for more than 2^16 of them before it sleeps.
    let arguments = "--arrivals poisson --pps 1.4M --duration 500ms --coalesce 100000,4294967295 --cpu-cost packet=666ns,poll=100ns";
    let output = measure(&format!("--json {arguments}"));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    for run in runs(&report) {
        // It sleeps a tenth of a second now and then; for ever it must not.
        assert!(number(run, "delivered_pps") > 400_000.0, "{run:#}");
    }
}

#[test]
fn with_random_arrivals_the_mean_is_what_arithmetic_says() {
    for arguments in [
        "--arrivals poisson",
        "--arrivals poisson --seed 7 --speed 10G",
    ] {
        for run in runs(&report(arguments)) {
            assert!(number(run, "error_pct").abs() < 2.0, "{arguments}: {run:#}");
            let (met, sent) = ("conditions_met_per_s", "interrupts_per_s");
            assert_eq!(number(run, met), number(run, sent), "{run:#}");
        }
    }
}

#[test]
fn a_throttle_interrupts_as_arithmetic_says() {
    let report = report("--packets 40k --coalesce itr=7 itr=50 itr=125");
    let expected = LOADS
        .iter()
        .flat_map(|&pps| [7, 50, 125].map(move |usecs| (pps, usecs, u64::from(u32::MAX))));
    assert!(expected.eq(runs(&report).iter().map(parameters)));
    for run in runs(&report) {
        let (pps, usecs, _) = parameters(run);
        assert_eq!(run["coalesce"]["mode"], "itr");
        assert_eq!(run["coalesce"]["spec"], format!("itr={usecs}"));
        // The lesser of packets and intervals; a run's end cuts one off.
        let expected = (pps as f64).min(1e6 / usecs as f64);
        assert!((number(run, "expected_interrupts_per_s") / expected - 1.0).abs() < 1e-9);
        let (met, seconds) = (number(run, "conditions_met_per_s"), number(run, "seconds"));
        assert!((met - expected).abs() * seconds < 1.01, "{run:#}");
        assert_eq!(met, number(run, "interrupts_per_s"), "{run:#}");
        // Nobody waits longer than an interval.
        let p99 = number(&run["latency_us"], "p99");
        assert!(p99 < 1.02 * usecs as f64 + 0.6, "{run:#}");
        assert!(run["drops"].as_object().expect("reasons").is_empty());
    }
    let arguments = "--arrivals poisson --packets 40k --coalesce itr=7 itr=50 itr=125";
    for run in runs(&self::report(arguments)) {
        assert!(number(run, "error_pct").abs() < 2.0, "{run:#}");
    }
}

#[test]
fn what_adapts_settles_where_its_rules_say() {
    // Packets a second, octets, moderation; what holds in the end, and conditions a second where it does not change.
    for (pps, size, spec, usecs, rate) in [
        ("10k", 64, "igb-dynamic", 14, Some(10_000)),
        ("100k", 64, "igb-dynamic", 14, Some(71_428)),
        ("line", 64, "igb-dynamic", 14, Some(71_428)),
        ("line", 1518, "igb-dynamic", 49, Some(20_408)),
        ("line", 9018, "igb-dynamic", 245, Some(4_081)),
        // 256 packets in 172 us.
        ("line", 64, "dim", 256, None),
        // Packets this close put it off until 256 are there, of all profiles only here.
        ("line", 64, "dim=cqe", 2, None),
    ] {
        let report = report(&format!(
            "--pps {pps} --frame-size {size} --coalesce {spec} --packets 60k"
        ));
        let [run] = runs(&report) else {
            panic!("{report:#}");
        };
        assert_eq!(run["coalesce"]["spec"], spec);
        assert_eq!(run["coalesce"]["rx_usecs"], usecs, "{run:#}");
        assert!(run["expected_interrupts_per_s"].is_null());
        assert!(run["error_pct"].is_null());
        if let Some(rate) = rate {
            let met = number(run, "conditions_met_per_s");
            assert!((met / f64::from(rate) - 1.0).abs() < 0.002, "{run:#}");
        }
        assert!(run["drops"].as_object().expect("reasons").is_empty());
    }
}

#[test]
fn either_parameter_at_zero_is_off() {
    let report = report("--pps 100k --coalesce off 64,0 0,32 rx-usecs=0,rx-frames=256");
    let [off, others @ ..] = runs(&report) else {
        panic!("no runs");
    };
    for run in others {
        for name in [
            "conditions_met_per_s",
            "interrupts_per_s",
            "delivered_pps",
            "polls",
        ] {
            assert_eq!(number(run, name), number(off, name), "{run:#}");
        }
    }
}

#[test]
fn two_runs_print_the_same_bytes() {
    let arguments =
        "--arrivals poisson --cpu-cost default --pps 100k,line --duration 20ms --seed 3";
    for form in ["", "--json "] {
        let [first, second] = [(); 2].map(|()| measure(&format!("{form}{arguments}")));
        let errors = String::from_utf8_lossy(&first.stderr);
        assert!(first.status.success(), "{errors}");
        assert!(!first.stdout.is_empty() && first.stdout == second.stdout);
    }
    let other = measure("--arrivals poisson --pps 100k,line --duration 20ms --seed 4");
    assert_ne!(measure(arguments).stdout, other.stdout);
}

#[test]
fn an_overloaded_guest_polls_and_the_card_drops() {
    let report =
        report("--cpu-cost default --coalesce off --pps line --frame-size 64,260,516,1028,1444");
    let runs = runs(&report);
    let per_packet = |run: &Value| 1.0 / number(run, "packets_per_interrupt");
    for run in &runs[..2] {
        // More than the CPU can take: interrupts all but vanish, and what is too much is lost before it costs anything.
        assert!(per_packet(run) < 0.001, "{run:#}");
        assert!(
            run["drops"]["rx_fifo_overflow"].as_u64() > Some(0),
            "{run:#}"
        );
        assert_eq!(run["drops"].as_object().map(serde_json::Map::len), Some(1));
    }
    // As many as it can take, however many come.
    let [most, many] = [0, 1].map(|run| number(&runs[run], "delivered_pps"));
    assert!((most / many - 1.0).abs() < 0.01, "{most} {many}");
    for run in &runs[2..] {
        assert!(per_packet(run) > 0.2, "{run:#}");
        assert_eq!(run["drops"].as_object().map(serde_json::Map::len), Some(0));
    }
    assert!((per_packet(&runs[4]) - 1.0).abs() < 0.001);
}

#[test]
fn a_cpu_that_takes_its_time_gets_fewer_interrupts_than_conditions() {
    let experiment = |pps, cost| Experiment {
        pps: NonZeroU64::new(pps).expect("a rate"),
        frame_size: 64,
        coalesce: "off".parse().expect("a moderation"),
        arrivals: Arrivals::Poisson,
        speed: "1G".parse().expect("a speed"),
        duration: Duration::from_millis(200),
        seed: 1,
        cost,
        poll: false,
    };
    let cost = CpuCost {
        irq: Duration::from_micros(2),
        poll: Duration::from_micros(1),
        packet: Duration::from_micros(2),
    };
    let run = |pps, cost| in_virtual_time(&experiment(pps, cost), |_| {}).expect("an outcome");
    let mut last = 1.0;
    for pps in [1_000, 50_000, 150_000, 300_000, 450_000, 600_000] {
        let Outcome {
            interrupts,
            conditions_met,
            ..
        } = run(pps, cost);
        let share = interrupts as f64 / conditions_met as f64;
        assert!(share <= last + 0.01, "{pps}: {share} after {last}");
        last = share;
        let free = run(pps, CpuCost::default());
        assert_eq!(free.interrupts, free.conditions_met, "{pps}");
    }
    assert!(last < 0.001, "{last}");
}

#[test]
fn in_real_time_the_counts_are_of_the_same_card() {
    let experiment = Experiment {
        pps: NonZeroU64::new(20_000).expect("a rate"),
        frame_size: 64,
        coalesce: "rx-usecs=500,rx-frames=32".parse().expect("a moderation"),
        arrivals: Arrivals::Constant,
        speed: "1G".parse().expect("a speed"),
        duration: Duration::from_millis(300),
        seed: 1,
        cost: CpuCost::default(),
        poll: false,
    };
    let outcome = in_real_time(&experiment, |_| {}).expect("an outcome");
    // How late things are is the machine's affair, not what is counted: conditions go by the frames' instants.
    let Outcome {
        offered,
        delivered,
        conditions_met: met,
        interrupts,
        ..
    } = outcome;
    assert!(delivered > 0 && delivered <= offered, "{outcome:#?}");
    assert!(interrupts > 0 && interrupts <= met, "{outcome:#?}");
    // Eleven frames in 500 us, as long as they are handed over in time.
    assert!(
        met >= offered / 32 && met <= offered / 11 + 1,
        "{outcome:#?}"
    );
    assert!(outcome.lateness.is_some(), "{outcome:#?}");
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    for (arguments, status, reason) in [
        ("--pps 0", 2, "use a number from 1 to 1000M"),
        ("--pps fast", 2, "10k or 1.5M, or line"),
        ("--packets 0", 2, "use a number from 1"),
        ("--packets 10 --duration 1s", 2, "cannot be used with"),
        ("--frame-size 63", 2, "63 is not in 64..=9018"),
        ("--coalesce often", 2, "\"often\" is not NAME=VALUE"),
        ("--coalesce rx-usecs=8", 2, "work only together"),
        ("--cpu-cost much", 2, "\"much\" is not NAME=TIME"),
        ("--cpu-cost irq=5", 2, "irq cannot be \"5\""),
        ("--queues 2", 2, "2 is not in 1..=1"),
        (
            "--clock real --cpu-cost default",
            2,
            "--cpu-cost is for virtual time",
        ),
        ("--poll", 2, "--poll is for --clock real"),
        ("--duration 0s", 2, "longer than nothing"),
    ] {
        let output = measure(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments}: {errors}");
        assert!(errors.contains(reason), "{arguments}: {errors}");
        assert!(output.stdout.is_empty(), "{arguments}");
    }
}
