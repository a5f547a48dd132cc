//! Compares the guest's stages with a recording of a real kernel: the same ones, in the same order, within each other.
//!
//! Both are brought to the stages that they could have in common: of the recording what the table has a stage for, of the guest what the
//! recording itself and its group of functions have. What falls out leaves those that it called in its place; what is incidental goes with all
//! that it called. A recording ends where it was stopped: what the guest does after that, in a function that is
//! open there or after the last that nobody called, is not compared.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::Context;
use nic_guest::net::trace::Stage;

use super::function_graph::{self, Call};
use super::scenario::{SCENARIOS, Scenario};
use super::stages::Stages;

/// Recordings that were made with the same choice of functions.
const GROUPS: [&str; 3] = ["igb", "virtio_net", "scenario"];

/// A stage in either, to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The stage's name.
    pub name: String,
    /// The recording's line; 0 for the guest's.
    pub line: usize,
    /// The recording ends in it.
    pub open: bool,
    /// What it called.
    pub calls: Vec<Node>,
}

impl Node {
    fn of_stage(stage: &Stage) -> Self {
        Node {
            name: stage.name.into(),
            line: 0,
            open: false,
            calls: stage.calls.iter().map(Self::of_stage).collect(),
        }
    }

    /// Stages in it, itself included.
    fn count(&self) -> usize {
        1 + self.calls.iter().map(Self::count).sum::<usize>()
    }
}

/// The first difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Callers of what differs, outermost first.
    pub within: Vec<String>,
    /// The kernel's stage, and the line of the recording that it is in.
    pub kernel: Option<(String, usize)>,
    /// The guest's stage.
    pub guest: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.within.last() {
            Some(_) => write!(f, "in {}: ", self.within.join(" > "))?,
            None => write!(f, "called by nobody: ")?,
        }
        match &self.kernel {
            Some((name, line)) => write!(f, "the kernel does {name} (line {line}), ")?,
            None => write!(f, "the kernel does nothing more, ")?,
        }
        match &self.guest {
            Some(name) => write!(f, "the guest {name}"),
            None => write!(f, "the guest nothing more"),
        }
    }
}

/// How a comparison went.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Stages of the recording.
    pub stages: usize,
    /// Calls of the recording that have no stage, or were incidental.
    pub left_out: usize,
    /// Where the two part first, if they do.
    pub difference: Option<Difference>,
}

/// A recording, to be compared with.
#[derive(Clone, Debug)]
pub struct Recording {
    name: String,
    /// Its stages.
    pub roots: Vec<Node>,
    left_out: usize,
    /// The stages that it could show.
    known: BTreeSet<String>,
}

impl Recording {
    /// Reads a recording called `name`, as the file is without its ending.
    ///
    /// # Errors
    /// It is no recording, or has a function that the table does not know.
    pub fn read(name: &str, text: &str, table: &Stages) -> anyhow::Result<Self> {
        let calls = function_graph::parse(text)?;
        let mut roots = Vec::new();
        for call in &calls {
            map(call, table, &mut roots)?;
        }
        let group = GROUPS.iter().find(|group| name.starts_with(*group));
        let mut known = names(&roots);
        if let Some(group) = group {
            known.extend(table.of_group(group).map(Into::into));
        }
        prune(&mut roots, &mut Vec::new(), &|way| {
            let marks = &table.incidental;
            marks
                .iter()
                .any(|mark| mark.is_of(name) && mark.matches(way))
        });
        let stages: usize = roots.iter().map(Node::count).sum();
        let all: usize = calls.iter().map(count_calls).sum();
        Ok(Recording {
            name: name.into(),
            roots,
            left_out: all - stages,
            known,
        })
    }

    /// The guest's stages that could be in the recording.
    #[must_use]
    pub fn reduce(&self, stages: &[Stage], table: &Stages) -> Vec<Node> {
        let mut roots = Vec::new();
        for stage in stages {
            keep(Node::of_stage(stage), &self.known, &mut roots);
        }
        prune(&mut roots, &mut Vec::new(), &|way| {
            let marks = &table.incidental;
            marks
                .iter()
                .any(|mark| mark.is_of_guest(&self.name) && mark.matches(way))
        });
        roots
    }

    /// Compares the recording with what [`Self::reduce`] has made of the guest's stages.
    #[must_use]
    pub fn compare(&self, guest: &[Node]) -> Comparison {
        Comparison {
            stages: self.roots.iter().map(Node::count).sum(),
            left_out: self.left_out,
            difference: differ(&self.roots, guest, true, &mut Vec::new()),
        }
    }
}

fn count_calls(call: &Call) -> usize {
    1 + call.calls.iter().map(count_calls).sum::<usize>()
}

fn names(nodes: &[Node]) -> BTreeSet<String> {
    let inner = nodes.iter().flat_map(|node| names(&node.calls));
    nodes
        .iter()
        .map(|node| node.name.clone())
        .chain(inner)
        .collect()
}

/// Appends a call's stage to `out`, or those of the calls that it made.
fn map(call: &Call, table: &Stages, out: &mut Vec<Node>) -> anyhow::Result<()> {
    let row = table.functions.get(&call.name).with_context(|| {
        format!(
            "line {}: the function {} is not in the table of stages: leave it out of the recording",
            call.line, call.name
        )
    })?;
    let mut calls = Vec::new();
    for inner in &call.calls {
        map(inner, table, &mut calls)?;
    }
    match &row.stage {
        Some(stage) => out.push(Node {
            name: stage.clone(),
            line: call.line,
            open: call.open,
            calls,
        }),
        None => out.append(&mut calls),
    }
    Ok(())
}

/// Appends a node to `out` if its name is `known`, else those that it called.
fn keep(node: Node, known: &BTreeSet<String>, out: &mut Vec<Node>) {
    let mut calls = Vec::new();
    for inner in node.calls {
        keep(inner, known, &mut calls);
    }
    if known.contains(&node.name) {
        out.push(Node { calls, ..node });
    } else {
        out.append(&mut calls);
    }
}

/// Takes out what `incidental` says, which is given the way to a node.
fn prune(
    nodes: &mut Vec<Node>,
    way: &mut Vec<(String, usize)>,
    incidental: &impl Fn(&[(&str, usize)]) -> bool,
) {
    let mut seen: Vec<(String, usize)> = Vec::new();
    nodes.retain_mut(|node| {
        let nth = match seen.iter_mut().find(|(name, _)| *name == node.name) {
            Some((_, nth)) => {
                *nth += 1;
                *nth
            }
            None => {
                seen.push((node.name.clone(), 1));
                1
            }
        };
        way.push((node.name.clone(), nth));
        let borrowed: Vec<_> = way.iter().map(|(name, nth)| (&name[..], *nth)).collect();
        let stays = !incidental(&borrowed);
        if stays {
            prune(&mut node.calls, way, incidental);
        }
        way.pop();
        stays
    });
}

/// Where two lists of calls part first; the guest's may be longer where the recording is `open`.
fn differ(
    kernel: &[Node],
    guest: &[Node],
    open: bool,
    within: &mut Vec<String>,
) -> Option<Difference> {
    let longest = kernel.len().max(guest.len());
    for at in 0..longest {
        let (theirs, ours) = (kernel.get(at), guest.get(at));
        match (theirs, ours) {
            (Some(theirs), Some(ours)) if theirs.name == ours.name => {
                within.push(theirs.name.clone());
                let inner = differ(&theirs.calls, &ours.calls, theirs.open, within);
                within.pop();
                if inner.is_some() {
                    return inner;
                }
            }
            (None, Some(_)) if open => return None,
            _ => {
                return Some(Difference {
                    within: within.clone(),
                    kernel: theirs.map(|node| (node.name.clone(), node.line)),
                    guest: ours.map(|node| node.name.clone()),
                });
            }
        }
    }
    None
}

/// The scenario that a recording called `name` is of.
///
/// # Errors
/// The name does not say, or says one that does not exist.
pub fn scenario_of(name: &str) -> anyhow::Result<&'static Scenario> {
    let scenario = match name.strip_prefix("scenario-") {
        Some(scenario) => Some(scenario),
        None if name.ends_with("-rx") => Some("receive"),
        None if name.ends_with("-tx") => Some("send"),
        None => None,
    };
    scenario.and_then(Scenario::named).with_context(|| {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        format!(
            "the name {name:?} does not say what was recorded: say it with --scenario NAME, or call the file scenario-NAME, \
             SOMETHING-rx (for receive) or SOMETHING-tx (for send); NAME is one of {}",
            names.join(", ")
        )
    })
}
