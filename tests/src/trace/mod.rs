//! One packet's way, stage by stage: `nic-guest trace`.
//!
//! A [`scenario`], or the frames of a [`capture`], is played by an embedded card and the guest's kernel in virtual time. The kernel says which stage it is in
//! ([`nic_guest::net::trace`]); what the card does is told from its counters ([`hardware`]). The [`report`] is a tree or JSON;
//! [`compare`] holds it against what function_graph recorded of a real kernel ([`function_graph`]), with the table
//! of [`stages`] between the two. The [`journey`] is the report as a moving picture.

mod bed;
pub mod capture;
pub mod compare;
pub mod function_graph;
pub mod hardware;
pub mod journey;
pub mod report;
pub mod scenario;
pub mod stages;

use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::PossibleValue;
use nic_guest::net::CpuCost;

use self::compare::Recording;
use self::report::{Journey, Report};
use self::scenario::{CAPTURE, SCENARIOS, Scenario};
use self::stages::{Stages, TABLE};

/// What work takes: so that time goes by on the way through the guest. As `nic-guest measure --cpu-cost default`.
pub const COST: CpuCost = CpuCost {
    irq: Duration::from_micros(4),
    poll: Duration::from_micros(1),
    packet: Duration::from_nanos(2_750),
};

/// `nic-guest trace`.
#[derive(Args)]
pub struct Trace {
    /// What happens [default: receive, then send; with --compare what the file's name says]
    #[arg(long, value_name = "NAME", value_parser = scenarios())]
    scenario: Option<String>,
    /// Play the frames of a capture instead of a scenario's: pcap or pcapng, the first 64 frames
    ///
    /// They come one behind the other, as fast as the line of 10 Gb/s carries them, to the guest of the scenarios: 52:54:00:12:34:56 and
    /// 10.77.0.2/24, with sockets at UDP ports 7000, and 7001 of 10.100.0.2 in VLAN 100, and at TCP port 7002; fixtures/kernel-traces/README.md
    /// says more. Its neighbour is 10.77.0.1 (02:00:00:00:77:01). With --compare the recording is of these frames.
    #[arg(long, value_name = "FILE", conflicts_with = "scenario")]
    pcap: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Write a page that shows the journey as a moving picture
    ///
    /// One file for any browser; it needs neither a network nor anything else. Nothing is printed then but what --json or --compare ask for.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Compare order and nesting with what function_graph recorded of a real kernel; exit status 1 if they differ
    ///
    /// All 18 recordings of fixtures/kernel-traces can be compared: igb-rx, igb-tx, virtio_net-rx, virtio_net-tx and the scenario-NAME
    /// that are there. Or one of your own: SOMETHING-rx, SOMETHING-tx or scenario-NAME, or say which scenario it is of; of your own recordings the
    /// functions that are in there are compared.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

fn scenarios() -> Vec<PossibleValue> {
    let value = |scenario: &Scenario| PossibleValue::new(scenario.name).help(scenario.about);
    SCENARIOS.iter().map(value).collect()
}

impl Trace {
    /// The scenarios that are to be played, in order; none if it is a capture.
    ///
    /// # Errors
    /// It cannot be told which one a recording is of: bad usage.
    pub fn scenarios(&self) -> anyhow::Result<Vec<&'static Scenario>> {
        Ok(match (&self.scenario, &self.compare) {
            _ if self.pcap.is_some() => Vec::new(),
            (Some(name), _) => Scenario::named(name).into_iter().collect(),
            (None, Some(path)) => vec![compare::scenario_of(&name_of(path))?],
            (None, None) => ["receive", "send"]
                .into_iter()
                .filter_map(Scenario::named)
                .collect(),
        })
    }
}

/// What a recording is called: its file's name without the ending.
fn name_of(path: &Path) -> Cow<'_, str> {
    path.file_stem().unwrap_or_default().to_string_lossy()
}

/// Plays what was asked for and prints it.
///
/// # Errors
/// The recording cannot be read, or the guest's stages differ from it.
pub fn run(options: &Trace) -> anyhow::Result<()> {
    let recording = match &options.compare {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Some((name_of(path), text))
        }
        None => None,
    };
    let mut played = Vec::new();
    if let Some(path) = &options.pcap {
        let (frames, more) = capture::read(path)?;
        if more {
            eprintln!(
                "nic-guest: {}: only the first {} frames are played",
                path.display(),
                frames.len()
            );
        }
        played.push(Journey {
            scenario: CAPTURE.name,
            about: CAPTURE.about,
            stages: CAPTURE.play_frames(frames, COST)?,
        });
    }
    for scenario in options.scenarios()? {
        played.push(Journey {
            scenario: scenario.name,
            about: scenario.about,
            stages: scenario.play(COST)?,
        });
    }
    let mut comparison = None;
    if let (Some((name, text)), [journey]) = (&recording, &played[..]) {
        let table = Stages::parse(TABLE)?;
        let recording =
            Recording::read(name, text, &table).with_context(|| format!("the recording {name}"))?;
        let guest = recording.reduce(&journey.stages, &table);
        comparison = Some((&**name, recording.compare(&guest)));
    }
    let compared = comparison.as_ref().map(|(name, outcome)| (*name, outcome));
    let report = Report::new(&played, compared);
    if let Some(path) = &options.html {
        std::fs::write(path, journey::page(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = match (options.json, compared) {
        (true, _) => serde_json::to_string_pretty(&report)?,
        (false, None) if options.html.is_some() => String::new(),
        (false, None) => report.tree(),
        (false, Some((name, outcome))) if outcome.difference.is_none() => format!(
            "{name}: the same {} stages, in the same order and within each other; {} calls of the kernel are left out",
            outcome.stages, outcome.left_out
        ),
        (false, Some(_)) => String::new(),
    };
    if !text.is_empty() {
        print(&text)?;
    }
    if let Some((name, outcome)) = compared
        && let Some(difference) = &outcome.difference
    {
        bail!("{name} differs: {difference}");
    }
    Ok(())
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
