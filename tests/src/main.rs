//! `nic-guest`: the guest on the command line.

use std::io::{IsTerminal, Write};
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nic_backend::coalesce::CoalesceSpec;
use nic_guest::net::CpuCost;
use nic_model::moderation::Coalesce;
use nic_model::phy::Speed;
use nic_testbed::check::command as check;
use nic_testbed::measure::closed_form::Arrivals;
use nic_testbed::measure::report::{Report, Run};
use nic_testbed::measure::{self, Experiment};
use nic_testbed::{talk, trace};

/// A guest without a virtual machine: it drives virtio-net over vhost-user as Linux does, and measures.
#[derive(Parser)]
#[command(
    name = "nic-guest",
    version,
    after_help = "Start with: nic-guest measure"
)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure how often a NIC interrupts its guest, and compare it with what it should be
    ///
    /// A generator on the wire offers UDP datagrams, the card moderates its interrupts (VIRTIO's notification coalescing, or
    /// a mode of its own), a guest with Linux's NAPI takes them up to a socket. In virtual time, the default, it is exact and the same on every
    /// machine; with --clock real a NIC with its threads and a guest run on this machine, over a vhost-user socket.
    Measure(Measure),
    /// Be a small host on a vhost-user-net backend, anybody's
    Talk(talk::Talk),
    /// Attack a vhost-user-net backend, anybody's, and see whether it keeps to the rules
    ///
    /// Hostile guests, hostile front-ends and well-behaved ones: each case has a connection of its own and ends as pass, FAIL or
    /// not offered. Exit status 1 if one failed.
    Check(check::Check),
    /// Show one packet's way through NIC and guest, stage by stage
    ///
    /// In virtual time: from the line to a socket and back, each stage with its time, its CPU and what it changed. The guest's stages
    /// have the names of Linux's functions, and can be compared with what the kernel's function_graph tracer recorded.
    Trace(trace::Trace),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ClockKind {
    /// Simulated: exact, deterministic, as fast as it goes
    Virtual,
    /// This machine's
    Real,
}

#[derive(Clone, Copy, ValueEnum)]
enum ArrivalsKind {
    /// Constant bit rate: all gaps are the same
    Cbr,
    /// Random gaps, exponentially distributed beyond what a frame occupies of the line
    Poisson,
}

/// The guest's CPU when --cpu-cost is `default`: with these, the published measurement of NAPI (in Linux's NAPI_HOWTO)
/// comes out again, at least in its shape. That machine forwarded 360,000 packets a second.
const DEFAULT_COST: CpuCost = CpuCost {
    irq: Duration::from_micros(4),
    poll: Duration::from_micros(1),
    packet: Duration::from_nanos(2_750),
};

/// Seconds that a run in real time takes at least, unless --duration says otherwise.
const REAL_SECONDS: u64 = 2;

#[derive(clap::Args)]
struct Measure {
    /// What time is
    #[arg(long, value_enum, default_value = "virtual")]
    clock: ClockKind,
    /// Packets a second to offer, several separated by commas; 10k, 1.5M, or line for as many as the line carries
    #[arg(
        long,
        value_name = "RATE",
        value_delimiter = ',',
        default_value = "10k,100k,line"
    )]
    pps: Vec<Rate>,
    /// Octets of a frame with its check sequence, several separated by commas
    #[arg(long, value_name = "OCTETS", value_delimiter = ',', default_value = "64",
        value_parser = clap::value_parser!(u16).range(64..=9018))]
    frame_size: Vec<u16>,
    /// Interrupt moderation as USECS,FRAMES or rx-usecs=N,rx-frames=N or off, or a mode as itr=50, igb-dynamic, dim; repeatable
    /// [default: off 8,32 64,32 64,256 10000,32]
    ///
    /// What the modes are is in vhost-user-nic serve --help. The adaptive ones have no figure to be compared with.
    #[arg(long, value_name = "SPEC", num_args = 1.., value_parser = moderation)]
    coalesce: Vec<CoalesceSpec>,
    /// How packets follow each other
    #[arg(long, value_enum, default_value = "cbr")]
    arrivals: ArrivalsKind,
    /// Queue pairs; this version has one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1))]
    queues: u16,
    /// The line rate: 10M, 100M, 1G, 2.5G, 5G, 10G, 25G, 40G, 50G, 100G, 200G or 400G
    #[arg(long, default_value = "1G")]
    speed: Speed,
    /// What chance starts from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long each run takes, as 10s or 500ms [default: as long as --packets take, in real time at least 2 s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "packets")]
    duration: Option<Duration>,
    /// How many packets each run offers; 100k, 1M
    #[arg(long, value_name = "N", default_value = "100k", value_parser = amount)]
    packets: u64,
    /// What the guest's CPU takes in virtual time: none, default, or irq=TIME,poll=TIME,packet=TIME
    ///
    /// irq is for each hard interrupt, poll for each round of NAPI, packet for each packet from the ring to the socket.
    /// default is irq=4us,poll=1us,packet=2750ns: 360,000 packets a second, beyond that the NIC's FIFO overflows.
    #[arg(long, value_name = "SPEC", default_value = "none", value_parser = cpu_cost)]
    cpu_cost: CpuCost,
    /// In real time, have the NIC spin instead of sleeping: its timers are more exact, it takes a core
    #[arg(long)]
    poll: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A rate as users write it.
#[derive(Clone, Copy, Debug)]
enum Rate {
    /// Packets a second.
    Pps(NonZeroU64),
    /// As many as the line carries.
    Line,
}

impl std::str::FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "line" {
            return Ok(Rate::Line);
        }
        let pps = amount(text).map_err(|wrong| format!("{wrong}, or line"))?;
        NonZeroU64::new(pps)
            .map(Rate::Pps)
            .ok_or_else(|| "no packets".into())
    }
}

/// A number of packets, with k and M as people write them.
fn amount(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['k', 'K', 'M']) {
        Some(number) if text.ends_with('M') => (number, 1e6),
        Some(number) => (number, 1e3),
        None => (text, 1.0),
    };
    let amount = number
        .parse::<f64>()
        .ok()
        .map(|number| (number * unit).round());
    amount
        .filter(|amount| (1.0..=1e9).contains(amount))
        .map(|amount| amount as u64)
        .ok_or_else(|| "use a number from 1 to 1000M, as 1500, 10k or 1.5M".into())
}

fn moderation(text: &str) -> Result<CoalesceSpec, String> {
    let pair = text.split_once(',');
    let numbers =
        pair.and_then(|(usecs, frames)| Some((usecs.parse().ok()?, frames.parse().ok()?)));
    if let Some((usecs, frames)) = numbers {
        return Ok(CoalesceSpec {
            rx: Coalesce { usecs, frames }.into(),
            ..CoalesceSpec::default()
        });
    }
    let spec: CoalesceSpec = text
        .parse()
        .map_err(|error: nic_backend::written::BadSpec| format!("{error}; or USECS,FRAMES"))?;
    if text.contains("tx-") {
        return Err("the guest only receives here: give rx-usecs and rx-frames".into());
    }
    Ok(spec)
}

fn cpu_cost(text: &str) -> Result<CpuCost, String> {
    match text {
        "none" => return Ok(CpuCost::default()),
        "default" => return Ok(DEFAULT_COST),
        _ => {}
    }
    let mut cost = CpuCost::default();
    for part in text.split(',') {
        let usage = "use none, default, or some of irq=TIME,poll=TIME,packet=TIME, as in irq=2us";
        let (name, time) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not NAME=TIME; {usage}"))?;
        let place = match name {
            "irq" => &mut cost.irq,
            "poll" => &mut cost.poll,
            "packet" => &mut cost.packet,
            _ => return Err(format!("there is no {name:?}; {usage}")),
        };
        *place = humantime::parse_duration(time)
            .ok()
            .filter(|time| *time <= Duration::from_secs(1))
            .ok_or_else(|| format!("{name} cannot be {time:?}: a time from 0ns to 1s; {usage}"))?;
    }
    Ok(cost)
}

impl Measure {
    /// What was asked for, or why that makes no sense.
    fn experiments(&self) -> Result<Vec<Experiment>, String> {
        let usual = ["off", "8,32", "64,32", "64,256", "10000,32"];
        let usual = usual.map(|text| moderation(text).expect("known to be good"));
        let moderations = match self.coalesce.as_slice() {
            [] => &usual,
            given => given,
        };
        if self.clock == ClockKind::Real && self.cpu_cost != CpuCost::default() {
            return Err(
                "--cpu-cost is for virtual time: with --clock real the work takes its own time"
                    .into(),
            );
        }
        if self.clock == ClockKind::Virtual && self.poll {
            return Err(
                "--poll is for --clock real: in virtual time nobody sleeps or spins".into(),
            );
        }
        let mut experiments = Vec::new();
        for &frame_size in &self.frame_size {
            for &rate in &self.pps {
                for &coalesce in moderations {
                    experiments.push(self.experiment(frame_size.into(), rate, coalesce)?);
                }
            }
        }
        Ok(experiments)
    }

    fn experiment(
        &self,
        frame_size: usize,
        rate: Rate,
        coalesce: CoalesceSpec,
    ) -> Result<Experiment, String> {
        let mut experiment = Experiment {
            pps: NonZeroU64::MIN,
            frame_size,
            coalesce,
            arrivals: match self.arrivals {
                ArrivalsKind::Cbr => Arrivals::Constant,
                ArrivalsKind::Poisson => Arrivals::Poisson,
            },
            speed: self.speed,
            duration: Duration::ZERO,
            seed: self.seed,
            cost: self.cpu_cost,
            poll: self.poll,
        };
        experiment.pps = match rate {
            Rate::Pps(pps) => pps,
            Rate::Line => NonZeroU64::new((1.0 / experiment.load().occupies) as u64)
                .ok_or("the line is too slow for a frame a second")?,
        };
        let usual = Duration::from_secs_f64(self.packets as f64 / experiment.pps.get() as f64);
        let least = match self.clock {
            ClockKind::Virtual => Duration::ZERO,
            ClockKind::Real => Duration::from_secs(REAL_SECONDS),
        };
        experiment.duration = self.duration.unwrap_or(usual.max(least));
        if experiment.duration.is_zero() {
            return Err("--duration has to be longer than nothing".into());
        }
        Ok(experiment)
    }
}

/// Shows how far a long measurement is; nothing where nobody looks.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {elapsed}") {
        bar.set_style(style);
    }
    bar
}

fn measure(options: &Measure) -> anyhow::Result<()> {
    let experiments = options.experiments().unwrap_or_else(|wrong| {
        let kind = clap::error::ErrorKind::ArgumentConflict;
        Options::command().error(kind, wrong).exit()
    });
    let first = experiments
        .first()
        .context("nothing to measure: give at least one --pps and --frame-size")?;
    let clock = match options.clock {
        ClockKind::Virtual => "virtual",
        ClockKind::Real => "real",
    };
    let mut report = Report::new(clock, first);
    let bar = progress_bar();
    for (index, experiment) in experiments.iter().enumerate() {
        bar.set_message(format!(
            "run {} of {}: {} pps, {}",
            index + 1,
            experiments.len(),
            experiment.pps,
            experiment.coalesce
        ));
        let progress = |done: f64| {
            let done = (index as f64 + done.min(1.0)) / experiments.len() as f64;
            bar.set_position((done * 1000.0) as u64);
        };
        for doubt in experiment.doubts() {
            bar.suspend(|| {
                eprintln!(
                    "nic-guest: {} pps, {}: {doubt}",
                    experiment.pps, experiment.coalesce
                );
            });
        }
        let outcome = match options.clock {
            ClockKind::Virtual => measure::in_virtual_time(experiment, progress),
            ClockKind::Real => measure::in_real_time(experiment, progress),
        };
        let outcome = outcome.with_context(|| {
            format!(
                "run {}: {} pps, {}",
                index + 1,
                experiment.pps,
                experiment.coalesce
            )
        })?;
        report.runs.push(Run::new(experiment, &outcome));
    }
    bar.finish_and_clear();
    if options.json {
        print(&serde_json::to_string_pretty(&report)?)
    } else {
        print(&report.table())?;
        if std::io::stdout().is_terminal() {
            print(
                "\nThe card's conditions are compared with the expected ones; --help says more.",
            )?;
        }
        Ok(())
    }
}

fn trace(options: &trace::Trace) -> anyhow::Result<()> {
    if let Err(wrong) = options.scenarios() {
        let kind = clap::error::ErrorKind::ValueValidation;
        Options::command().error(kind, wrong).exit()
    }
    trace::run(options)
}

/// Prints to standard output. A reader that has seen enough is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let default = env_logger::Env::default().default_filter_or("warn");
    env_logger::Builder::from_env(default).init();
    let done = match options.command {
        Command::Measure(options) => measure(&options),
        Command::Talk(options) => talk::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Trace(options) => trace(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nic-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
