//! The table that people read and the document that programs read.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use nic_model::moderation::{Coalesce, ModeStatus};
use serde::Serialize;

use super::closed_form::Arrivals;
use super::{Experiment, Lateness, Outcome};

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The program's version.
    pub version: &'static str,
    /// `virtual` or `real`.
    pub clock: &'static str,
    /// What chance started from.
    pub seed: u64,
    /// `cbr` or `poisson`.
    pub arrivals: &'static str,
    /// The line rate, in megabits a second.
    pub speed_mbps: u32,
    /// What the guest's CPU took for its work, in nanoseconds.
    pub cpu_cost_ns: CpuCostNs,
    /// One a load and moderation.
    pub runs: Vec<Run>,
}

/// [`nic_guest::net::CpuCost`] in nanoseconds.
#[derive(Debug, Serialize)]
pub struct CpuCostNs {
    irq: u128,
    poll: u128,
    packet: u128,
}

/// One run, in rates.
#[derive(Debug, Serialize)]
pub struct Run {
    /// Packets a second that were offered.
    pub offered_pps: u64,
    /// Packets a second that reached the socket.
    pub delivered_pps: f64,
    /// Conditions met a second, as the moderation counted them.
    pub conditions_met_per_s: f64,
    /// Interrupts a second that the card sent.
    pub interrupts_per_s: f64,
    /// Conditions met a second by arithmetic; null where there is no closed form.
    pub expected_interrupts_per_s: Option<f64>,
    /// How far the conditions met are from that, in per cent.
    pub error_pct: Option<f64>,
    /// Packets that reached the socket by interrupts.
    pub packets_per_interrupt: Option<f64>,
    /// Rounds of NAPI.
    pub polls: u64,
    /// Packets lost, by reason.
    pub drops: serde_json::Map<String, serde_json::Value>,
    /// From the first bit on the wire to the socket.
    pub latency_us: Percentiles,
    /// The moderation.
    pub coalesce: RxCoalesce,
    /// Octets of a frame with its check sequence.
    pub frame_size: usize,
    /// Queue pairs.
    pub queues: u16,
    /// Seconds that it took.
    pub seconds: f64,
    /// How late the card was when time was up; in real time only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timer_lateness_us: Option<LatenessUs>,
    /// What `expected_interrupts_per_s` would be if the moderation waited longer by the mean lateness; in real time only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_when_late_per_s: Option<f64>,
}

/// Times in microseconds.
#[derive(Debug, Serialize)]
pub struct Percentiles {
    p50: f64,
    p99: f64,
}

/// Times in microseconds.
#[derive(Debug, Serialize)]
pub struct LatenessUs {
    mean: f64,
    max: f64,
}

/// The moderation's mode, and `struct ethtool_coalesce`, the receive half, as they were in the end.
#[derive(Debug, Serialize)]
pub struct RxCoalesce {
    /// As it was asked for.
    spec: String,
    #[serde(flatten)]
    mode: ModeStatus,
    rx_usecs: u32,
    rx_frames: u32,
}

impl Report {
    /// A report without runs. All experiments have the seed, the arrivals, the speed and the costs of `first`.
    #[must_use]
    pub fn new(clock: &'static str, first: &Experiment) -> Self {
        Report {
            version: env!("CARGO_PKG_VERSION"),
            clock,
            seed: first.seed,
            arrivals: match first.arrivals {
                Arrivals::Constant => "cbr",
                Arrivals::Poisson => "poisson",
            },
            speed_mbps: first.speed.mbps(),
            cpu_cost_ns: CpuCostNs {
                irq: first.cost.irq.as_nanos(),
                poll: first.cost.poll.as_nanos(),
                packet: first.cost.packet.as_nanos(),
            },
            runs: Vec::new(),
        }
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::ASCII_MARKDOWN)
            .set_content_arrangement(ContentArrangement::Disabled);
        let mut header = vec![
            "size",
            "offered pps",
            "usecs, frames",
            "delivered pps",
            "conditions/s",
            "expected/s",
            "error %",
            "interrupts/s",
            "packets/interrupt",
            "polls",
            "p50 us",
            "p99 us",
        ];
        if self.runs.iter().any(|run| run.timer_lateness_us.is_some()) {
            header.extend(["timer late us, mean", "max", "expected/s when late"]);
        }
        header.push("drops");
        table.set_header(header.clone());
        for run in &self.runs {
            table.add_row(run.cells(header.len()));
        }
        for column in table.column_iter_mut().take(header.len() - 1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.trim_fmt()
    }
}

impl Run {
    /// The rates of `outcome`.
    #[must_use]
    pub fn new(experiment: &Experiment, outcome: &Outcome) -> Self {
        let seconds = outcome.elapsed.as_secs_f64();
        let rate = |count: u64| count as f64 / seconds;
        let expected = experiment.expected();
        let met = rate(outcome.conditions_met);
        let Coalesce { usecs, frames } = outcome.in_force;
        let drops = outcome.drops.iter();
        Run {
            offered_pps: experiment.pps.get(),
            delivered_pps: rate(outcome.delivered),
            conditions_met_per_s: met,
            interrupts_per_s: rate(outcome.interrupts),
            expected_interrupts_per_s: expected,
            error_pct: expected.map(|expected| (met / expected - 1.0) * 100.0),
            packets_per_interrupt: (outcome.interrupts > 0)
                .then(|| outcome.delivered as f64 / outcome.interrupts as f64),
            polls: outcome.polls,
            drops: drops
                .map(|(reason, count)| (reason.clone(), (*count).into()))
                .collect(),
            latency_us: Percentiles {
                p50: outcome.latency_p50 as f64 / 1e3,
                p99: outcome.latency_p99 as f64 / 1e3,
            },
            coalesce: RxCoalesce {
                spec: experiment.coalesce.to_string(),
                mode: outcome.mode,
                rx_usecs: usecs,
                rx_frames: frames,
            },
            frame_size: experiment.frame_size,
            queues: 1,
            seconds,
            timer_lateness_us: outcome.lateness.map(|Lateness { mean, max }| LatenessUs {
                mean: micros(mean),
                max: micros(max),
            }),
            expected_when_late_per_s: outcome.lateness.and_then(|late| {
                let load = experiment.load();
                load.conditions_per_second_when_late(experiment.coalesce.rx, late.mean)
            }),
        }
    }

    fn cells(&self, columns: usize) -> Vec<String> {
        let some = |value: Option<f64>, digits| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let mut cells = vec![
            self.frame_size.to_string(),
            self.offered_pps.to_string(),
            self.coalesce.cell(),
            format!("{:.0}", self.delivered_pps),
            format!("{:.0}", self.conditions_met_per_s),
            some(self.expected_interrupts_per_s, 0),
            some(self.error_pct, 3),
            format!("{:.0}", self.interrupts_per_s),
            some(self.packets_per_interrupt, 2),
            self.polls.to_string(),
            format!("{:.2}", self.latency_us.p50),
            format!("{:.2}", self.latency_us.p99),
        ];
        if let (Some(late), expected) = (&self.timer_lateness_us, self.expected_when_late_per_s) {
            cells.extend([
                format!("{:.1}", late.mean),
                format!("{:.1}", late.max),
                some(expected, 0),
            ]);
        }
        let drops: Vec<_> = self
            .drops
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        // In real time a run without timers has no lateness.
        cells.resize(columns - 1, "-".to_owned());
        cells.push(drops.join(", "));
        cells
    }
}

impl RxCoalesce {
    fn cell(&self) -> String {
        let (usecs, frames) = (self.rx_usecs, self.rx_frames);
        match self.mode {
            ModeStatus::Off if (usecs, frames) == (0, 0) => "off".to_owned(),
            ModeStatus::Off | ModeStatus::NotfCoal => format!("{usecs}, {frames}"),
            ModeStatus::Itr { .. } => self.spec.clone(),
            ModeStatus::IgbDynamic { .. } => format!("{}: {usecs}", self.spec),
            ModeStatus::Dim { .. } => format!("{}: {usecs}, {frames}", self.spec),
        }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}
