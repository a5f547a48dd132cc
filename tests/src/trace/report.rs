//! Stages as users see them: a tree of text, or JSON.

use std::fmt::Write;

use nic_guest::net::trace::{Change, Stage};
use serde::Serialize;

use super::compare::Comparison;

/// A scenario that was played.
#[derive(Clone, Debug)]
pub struct Journey<'a> {
    /// Its name.
    pub scenario: &'a str,
    /// What happens.
    pub about: &'a str,
    /// The stages that packets went through.
    pub stages: Vec<Stage>,
}

/// A document with what was traced.
#[derive(Serialize)]
pub struct Report<'a> {
    scenarios: Vec<Played<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Compared<'a>>,
}

/// A scenario and the stages that packets went through.
#[derive(Serialize)]
struct Played<'a> {
    scenario: &'a str,
    about: &'a str,
    stages: Vec<Entry<'a>>,
}

/// A stage.
#[derive(Serialize)]
struct Entry<'a> {
    stage: &'a str,
    /// The CPU; none for hardware.
    cpu: Option<usize>,
    /// When it was entered, and how long it took, in nanoseconds of virtual time.
    at_ns: u64,
    took_ns: u64,
    changes: Vec<Changed<'a>>,
    calls: Vec<Entry<'a>>,
}

/// What a stage changed.
#[derive(Serialize)]
struct Changed<'a> {
    what: &'a str,
    how: &'a str,
}

/// How the stages compare with a recording.
#[derive(Serialize)]
struct Compared<'a> {
    recording: &'a str,
    same: bool,
    stages: usize,
    left_out: usize,
    difference: Option<String>,
}

impl<'a> Entry<'a> {
    fn new(stage: &'a Stage) -> Self {
        let changed = |change: &'a Change| Changed {
            what: change.what,
            how: &change.how,
        };
        Entry {
            stage: stage.name,
            cpu: stage.cpu,
            at_ns: stage.entered,
            took_ns: stage.left - stage.entered,
            changes: stage.changes.iter().map(changed).collect(),
            calls: stage.calls.iter().map(Entry::new).collect(),
        }
    }
}

impl<'a> Report<'a> {
    /// Of scenarios that were played, and a comparison if there was one: the recording's name, and how it went.
    #[must_use]
    pub fn new(played: &'a [Journey<'a>], comparison: Option<(&'a str, &Comparison)>) -> Self {
        let scenarios = played.iter().map(|journey| Played {
            scenario: journey.scenario,
            about: journey.about,
            stages: journey.stages.iter().map(Entry::new).collect(),
        });
        Report {
            scenarios: scenarios.collect(),
            comparison: comparison.map(|(recording, comparison)| Compared {
                recording,
                same: comparison.difference.is_none(),
                stages: comparison.stages,
                left_out: comparison.left_out,
                difference: comparison.difference.as_ref().map(ToString::to_string),
            }),
        }
    }

    /// As a tree: when each stage was entered in microseconds since the first, the CPU, the stage, and what it changed.
    #[must_use]
    pub fn tree(&self) -> String {
        let mut text = String::new();
        for played in &self.scenarios {
            let begin = played.stages.first().map_or(0, |stage| stage.at_ns);
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}: {}\n", played.scenario, played.about);
            let _ = writeln!(text, "{:>11}  {:>3}  stage", "us", "CPU");
            for stage in &played.stages {
                branch(&mut text, stage, begin, 0);
            }
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text
    }
}

fn branch(text: &mut String, stage: &Entry<'_>, begin: u64, depth: usize) {
    let us = (stage.at_ns - begin) as f64 / 1000.0;
    let cpu = stage.cpu.map_or("NIC".into(), |cpu| format!("{cpu}"));
    let changes: Vec<_> = stage
        .changes
        .iter()
        .map(|change| format!("{}: {}", change.what, change.how))
        .collect();
    let line = format!(
        "{us:>11.3}  {cpu:>3}  {:depth$}{}",
        "",
        stage.stage,
        depth = 2 * depth
    );
    let _ = match &changes[..] {
        [] => writeln!(text, "{line}"),
        changes => writeln!(text, "{line:<56}  {}", changes.join("; ")),
    };
    for call in &stage.calls {
        branch(text, call, begin, depth + 1);
    }
}
