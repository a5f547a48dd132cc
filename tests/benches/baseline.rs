//! Compares what the benches counted, as gungraun prints it on standard input, with `instructions.json`; with `--accept` it becomes
//! the baseline. `scripts/instructions` runs it all.

use std::io::{BufWriter, Write, stdin};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use nic_testbed::baseline::{Counts, compare, read};

/// The baseline.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");

fn main() -> anyhow::Result<ExitCode> {
    let accept = std::env::args().any(|arg| arg == "--accept");
    let counts = read(stdin().lock())?;
    if accept {
        let file = std::fs::File::create(FILE).with_context(|| format!("cannot write {FILE}"))?;
        let mut file = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, &counts)?;
        writeln!(file)?;
        file.flush()?;
    }
    let baseline: Counts = match Path::new(FILE).exists() {
        true => serde_json::from_reader(std::fs::File::open(FILE)?)
            .with_context(|| format!("{FILE} is no list of counts"))?,
        false => Counts::new(),
    };
    let report = compare(&baseline, &counts);
    println!("{:24} {:>10} {:>10}", "instructions", "now", "baseline");
    for line in &report.table {
        println!("{line}");
    }
    for failure in &report.failures {
        println!("FAILED: {failure}");
    }
    if report.lower {
        println!("some take fewer than the baseline says: scripts/instructions --accept lowers it");
    }
    let (all, failed) = (report.table.len(), report.failures.len());
    println!("Instruction baseline: {all} compared, {failed} failed");
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
