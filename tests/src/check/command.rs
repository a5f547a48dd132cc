//! `nic-guest check` on the command line: chooses cases, runs them one after the other, and watches the backend.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use nic_guest::virtio_net::features as f;

use super::bed::{Bed, SIZE, TX};
use super::front::{Front, Target};
use super::process::{Backend, Start};
use super::report::{Done, Outcome, Report};
use super::ring::Layout;
use super::{Case, GROUPS, Stop, Verdict, cases};

/// `nic-guest check`.
#[derive(Args)]
pub struct Check {
    /// The backend's socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Start the backend with this command, and again whenever it has died or hangs
    ///
    /// A shell runs it. Its standard input stays open; its output goes to --exec-log.
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Where the output of --exec goes [default: nowhere]
    #[arg(long, value_name = "FILE", requires = "exec")]
    exec_log: Option<PathBuf>,
    /// Only the cases of this group; repeatable (see --list)
    #[arg(long, value_name = "GROUP", value_parser = group)]
    only: Vec<String>,
    /// Say which cases there are, and do nothing
    #[arg(long)]
    list: bool,
    /// How long a case may take
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Write JUnit's XML to this file too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

fn group(text: &str) -> Result<String, String> {
    if GROUPS.iter().any(|&(name, _)| name == text) {
        return Ok(text.into());
    }
    let names: Vec<_> = GROUPS.iter().map(|&(name, _)| name).collect();
    Err(format!("one of {}", names.join(", ")))
}

/// Parts of a case's time that the backend may take for any one thing.
const PATIENCE_PARTS: u32 = 3;
/// How long a backend that seems dead may take to be.
const DYING: Duration = Duration::from_secs(2);
/// How long a backend may take to start.
const STARTING: Duration = Duration::from_secs(30);

/// Does what the command line says.
///
/// # Errors
/// The backend cannot be reached, or a case failed.
pub fn run(options: &Check) -> anyhow::Result<()> {
    if options.list {
        return list(options);
    }
    let start = options.exec.clone().map(|command| Start {
        command,
        log: options.exec_log.clone(),
        patience: STARTING,
    });
    let backend = Backend::new(&options.socket, start)?;
    let mut target = Target::new(&options.socket, options.timeout / PATIENCE_PARTS);
    target
        .learn()
        .map_err(|stop| anyhow::anyhow!("the backend does not say what it is: {}", words(stop)))?;
    target.facts.answers = wire_answers(&target);
    let chosen = chosen(options, &target);
    let mut suite = Suite {
        backend,
        target: Arc::new(target),
        timeout: options.timeout,
        given_up: None,
    };
    let mut report = Report::default();
    for case in chosen {
        let done = suite.run(case);
        if !options.json {
            say(&done.line())?;
        }
        report.cases.push(done);
    }
    if let Some(path) = &options.junit {
        std::fs::write(path, report.junit())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if options.json {
        say(&serde_json::to_string_pretty(&report)?)?;
    } else {
        say(&report.summary())?;
    }
    match report.count(Outcome::Fail) {
        0 => Ok(()),
        failed => bail!("{failed} of {} cases failed", report.cases.len()),
    }
}

fn chosen(options: &Check, target: &Target) -> Vec<Case> {
    let mut cases = cases(target);
    cases.retain(|case| options.only.is_empty() || options.only.iter().any(|g| g == case.group));
    cases
}

fn list(options: &Check) -> anyhow::Result<()> {
    let cases = chosen(options, &Target::new(&options.socket, Duration::ZERO));
    let named: BTreeSet<_> = cases.iter().map(|case| case.group).collect();
    for &(name, about) in GROUPS.iter().filter(|(name, _)| named.contains(name)) {
        say(&format!("{name}: {about}"))?;
        for case in cases.iter().filter(|case| case.group == name) {
            say(&format!("  {}", case.name))?;
        }
    }
    Ok(())
}

fn words(stop: Stop) -> String {
    match stop {
        Stop::Fail(why) => why,
        Stop::NotOffered(what) => format!("{what} is not offered"),
    }
}

/// Whether a frame comes back when some are sent.
fn wire_answers(target: &Target) -> bool {
    let mut with = Target::new(target.socket(), target.patience.min(Duration::from_secs(1)));
    with.facts = target.facts;
    with.facts.answers = true;
    let received = Bed::attach_with(&with, Layout::Split, SIZE, 0).and_then(|mut bed| bed.works(0));
    received.is_ok()
}

/// A small session that any backend serves: whether it still does.
fn serves(target: &Target) -> Result<(), Stop> {
    let served = if target.facts.features & f::VERSION_1 == 0 {
        Front::greet(target).map(|_| ())
    } else {
        Bed::attach_with(target, Layout::Split, SIZE, 0).and_then(|mut bed| bed.works(TX))
    };
    target.hang_up();
    served
}

/// The cases' run.
struct Suite {
    backend: Backend,
    target: Arc<Target>,
    timeout: Duration,
    /// Why no more cases are run.
    given_up: Option<String>,
}

impl Suite {
    fn run(&mut self, case: Case) -> Done {
        let (group, name) = (case.group, case.name.clone());
        if let Some(why) = &self.given_up {
            let verdict = Err(Stop::Fail(format!("not run: {why}")));
            return Done::new(group, name, verdict, Duration::ZERO);
        }
        let begin = Instant::now();
        let verdict = self.attempt(case);
        let took = begin.elapsed();
        let verdict = self.settle(verdict, &name);
        Done::new(group, name, verdict, took)
    }

    /// Runs the case in a thread of its own: one that waits for ever is left alone.
    fn attempt(&self, case: Case) -> Verdict {
        let (tell, told) = mpsc::channel();
        let target = self.target.clone();
        let thread = std::thread::spawn(move || {
            // Nobody listens any more to one that was given up.
            let _ = tell.send((case.run)(&target));
        });
        let verdict = match told.recv_timeout(self.timeout) {
            Err(RecvTimeoutError::Timeout) => {
                self.target.hang_up();
                // It ends now, unless it waits for something else.
                let _ = told.recv_timeout(DYING);
                Err(Stop::Fail(format!("no end after {:?}", self.timeout)))
            }
            Ok(verdict) => verdict,
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => Err(Stop::Fail(format!(
                    "the suite itself: {}",
                    message(&*panic)
                ))),
                Ok(()) => Err(Stop::fail("the suite itself: no verdict")),
            },
        };
        self.target.hang_up();
        verdict
    }

    /// What a verdict is worth once it is known whether the backend lives, and serves the next connection.
    fn settle(&mut self, verdict: Verdict, name: &str) -> Verdict {
        if matches!(verdict, Err(Stop::NotOffered(_))) {
            return verdict;
        }
        let mut death = self.backend.death(Duration::ZERO);
        let mut hangs = None;
        if death.is_none()
            && let Err(stop) = serves(&self.target)
        {
            death = self.backend.death(DYING);
            hangs = Some(words(stop));
        }
        let seen = match &verdict {
            Ok(seen) => seen.clone(),
            Err(Stop::Fail(why) | Stop::NotOffered(why)) => why.clone(),
        };
        let trouble = match (death, hangs) {
            (None, None) => return verdict,
            (Some(how), _) => format!("the backend died ({how}); {seen}"),
            (None, Some(how)) => {
                format!("the backend lives, but does not serve the next connection ({how}); {seen}")
            }
        };
        if self.backend.restarts() {
            if let Err(error) = self.backend.start_again() {
                self.given_up = Some(format!("{error:#}"));
            }
        } else if serves(&self.target).is_err() {
            self.given_up = Some(format!(
                "the backend is gone since {name:?} (with --exec it would be started again)"
            ));
        }
        Err(Stop::Fail(trouble))
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic".into())
}

/// Prints a line at once. A reader that has seen enough ends the program.
fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn cases_have_names_of_their_own_and_groups_that_there_are() {
        let cases = cases(&Target::new(Path::new(""), Duration::ZERO));
        assert!(cases.len() >= 100, "{}", cases.len());
        let mut seen = BTreeSet::new();
        for case in &cases {
            assert!(GROUPS.iter().any(|&(name, _)| name == case.group));
            assert!(
                seen.insert((case.group, &case.name)),
                "twice: {}",
                case.name
            );
        }
        for &(name, _) in GROUPS {
            assert!(
                cases.iter().any(|case| case.group == name),
                "{name} is empty"
            );
        }
    }

    /// Two implementations check each other only if they share nothing.
    #[test]
    fn the_suite_uses_no_crate_of_the_nic() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check");
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for crate_name in ["model", "device", "backend"] {
                let name = format!("nic_{crate_name}");
                assert!(!text.contains(&name), "{} uses {name}", path.display());
            }
        }
    }
}
