//! Instruction counts against those that were accepted before.
//!
//! The benches that count (`benches/instructions.rs`, `blocks.rs`, `scaling.rs`) are named by the keys of `benches/instructions.json`,
//! and each is so many operations; here it says how many, what may not be exceeded, and what is a rise.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use anyhow::{Context, bail};
use serde_json::Value;

/// Packets in a burst.
pub const BURST: u64 = 32;
/// Polls of the card in a bench of `scaling.rs`.
pub const POLLS: u64 = 16;
/// Packets on their way from the wire to the socket.
pub const THROUGH: u64 = 9_600;

/// What a count may rise by against the baseline: compilers and libraries differ by less.
const RISE: f64 = 0.03;
/// A fall by so much is worth accepting.
const FALL: f64 = 0.01;
/// Instructions that an operation may cost, whatever the baseline says.
const LIMITS: [(&str, f64); 3] = [
    ("rx_split", 300.0),
    ("tx_split", 250.0),
    ("wire_to_socket", 1_500.0),
];

/// Of keys that begin so, how much more the most expensive may cost than the cheapest. Where a burst of 32 is spread over 16 pairs, two
/// packets each, every pair still has its rings looked at, its used index stored and its interrupt raised: `rx_pairs_` is bound to rise.
/// With bursts in each pair (`full_pairs_`) only the steering is left, which a single pair needs none of.
const SCALES: [(&str, f64); 3] = [
    ("rx_pairs_", 1.05),
    ("full_pairs_", 0.10),
    ("rx_flows_", 0.10),
];

/// Instructions an operation, by key.
pub type Counts = BTreeMap<String, f64>;

/// How many operations the bench of `key` is of: packets, but for idle polls.
fn operations(key: &str) -> u64 {
    match key {
        "wire_to_socket" => THROUGH,
        "full_pairs_16" => 16 * BURST,
        key if key.starts_with("idle_") => POLLS,
        key if key.starts_with("rx_pairs_") || key.starts_with("rx_flows_") => POLLS * BURST,
        _ => BURST,
    }
}

/// Reads what gungraun prints with `--output-format=json`: one object a line, one line a bench.
///
/// # Errors
/// A line is none of these, or names a bench that another one has named.
pub fn read(lines: impl BufRead) -> anyhow::Result<Counts> {
    let mut counts = Counts::new();
    for line in lines.lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let summary: Value = serde_json::from_str(&line)
            .with_context(|| format!("this is no summary of gungraun: {line}"))?;
        let key = summary["id"].as_str().context("a bench without a name")?;
        let instructions =
            instructions(&summary).with_context(|| format!("{key} counts no instructions"))?;
        let each = instructions as f64 / operations(key) as f64;
        // As many digits as say something.
        let each = (each * 10.0).round() / 10.0;
        if counts.insert(key.to_owned(), each).is_some() {
            bail!("two benches are called {key}");
        }
    }
    if counts.is_empty() {
        bail!("no bench has run");
    }
    Ok(counts)
}

/// Instructions of the run that `summary` is of.
fn instructions(summary: &Value) -> Option<u64> {
    let mut profiles = summary["profiles"].as_array()?.iter();
    let callgrind = profiles.find(|profile| profile["tool"] == "Callgrind")?;
    callgrind["data"]["total"]["metrics"]["Ir"]["values"]["new"].as_u64()
}

/// What a comparison says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Everything, a line a key.
    pub table: Vec<String>,
    /// What must not be.
    pub failures: Vec<String>,
    /// Whether the baseline may be lowered.
    pub lower: bool,
}

/// Compares `counts` with `baseline`.
#[must_use]
pub fn compare(baseline: &Counts, counts: &Counts) -> Report {
    let mut report = Report::default();
    let keys: BTreeSet<_> = baseline.keys().chain(counts.keys()).collect();
    for key in keys {
        let (Some(&before), Some(&now)) = (baseline.get(key), counts.get(key)) else {
            let what = match counts.get(key) {
                Some(now) => format!("{key}: {now:.1}, not in the baseline"),
                None => format!("{key}: in the baseline, but not measured"),
            };
            report.table.push(what.clone());
            report.failures.push(what);
            continue;
        };
        let change = now / before - 1.0;
        let percent = 100.0 * change;
        report.table.push(format!(
            "{key:24} {now:10.1} {before:10.1} {percent:+7.1} %"
        ));
        if change > RISE {
            let text = format!("{key}: {now:.1}, {percent:.1} % more than {before:.1}");
            report.failures.push(text);
        }
        report.lower |= change < -FALL;
    }
    for (key, limit) in LIMITS {
        if let Some(&now) = counts.get(key).filter(|&&now| now > limit) {
            let text = format!("{key}: {now:.1}, above the limit of {limit}");
            report.failures.push(text);
        }
    }
    for (scale, apart) in SCALES {
        let of_scale = counts.iter().filter(|(key, _)| key.starts_with(scale));
        let costs: Vec<_> = of_scale.map(|(_, &now)| now).collect();
        let (least, most) = costs.iter().fold((f64::MAX, 0.0), |(least, most), &cost| {
            (cost.min(least), cost.max(most))
        });
        if most > least * (1.0 + apart) {
            let percent = 100.0 * apart;
            let text = format!("{scale}*: from {least:.1} to {most:.1}, above {percent} %");
            report.failures.push(text);
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, f64)]) -> Counts {
        of.iter()
            .map(|&(key, each)| (key.to_owned(), each))
            .collect()
    }

    /// What fails if `of` was 100, and whether the baseline may be lowered.
    fn judge(of: f64) -> (usize, bool) {
        let report = compare(&counts(&[("parse", 100.0)]), &counts(&[("parse", of)]));
        assert_eq!(report.table.len(), 1);
        (report.failures.len(), report.lower)
    }

    #[test]
    fn a_rise_fails_and_a_fall_may_be_accepted() {
        assert_eq!(judge(100.0), (0, false));
        assert_eq!(judge(102.9), (0, false));
        assert_eq!(judge(103.1), (1, false));
        assert_eq!(judge(99.5), (0, false));
        assert_eq!(judge(98.5), (0, true));
    }

    #[test]
    fn no_bench_comes_or_goes_unnoticed() {
        let (one, other) = (counts(&[("mac", 1.0)]), counts(&[("phy", 1.0)]));
        let report = compare(&one, &other);
        assert_eq!(report.failures.len(), 2, "{report:?}");
        assert_eq!(report.table.len(), 2);
    }

    #[test]
    fn a_limit_holds_whatever_the_baseline_says() {
        for (key, limit) in LIMITS {
            let (within, above) = (counts(&[(key, limit)]), counts(&[(key, limit + 1.0)]));
            assert!(compare(&within, &within).failures.is_empty());
            let failures = compare(&above, &above).failures;
            assert!(failures[0].contains("limit"), "{failures:?}");
        }
    }

    #[test]
    fn numbers_of_flows_must_not_matter() {
        let (scale, apart) = SCALES[SCALES.len() - 1];
        let most = 100.0 * (1.0 + apart);
        for (most, fails) in [(most - 1.0, 0), (most + 1.0, 1)] {
            let of = [1, 2, 3].map(|n| format!("{scale}{n}"));
            let of = counts(&[(&of[0], 105.0), (&of[1], 100.0), (&of[2], most)]);
            assert_eq!(compare(&of, &of).failures.len(), fails, "{most}");
        }
    }

    fn summary(key: &str, tool: &str, new: &str) -> String {
        let values = format!(r#"{{"new":{new},"old":5}}"#);
        let total = format!(r#"{{"metrics":{{"Ir":{{"values":{values}}}}}}}"#);
        let profile = format!(r#"{{"tool":"{tool}","data":{{"total":{total}}}}}"#);
        format!("{{\"id\":\"{key}\",\"profiles\":[{profile}]}}\n")
    }

    #[test]
    fn counts_are_read_an_operation() {
        let lines = summary("parse", "Callgrind", "3216")
            + &summary("idle_pairs_1", "Callgrind", "1600")
            + "\n"
            + &summary("wire_to_socket", "Callgrind", "9600");
        let expected = counts(&[
            ("parse", 100.5),
            ("idle_pairs_1", 100.0),
            ("wire_to_socket", 1.0),
        ]);
        assert_eq!(read(lines.as_bytes()).expect("counts"), expected);
    }

    #[test]
    fn what_is_no_count_is_refused() {
        let twice = summary("parse", "Callgrind", "1").repeat(2);
        for (lines, reason) in [
            ("", "no bench"),
            ("parse: 7", "no summary"),
            ("{}", "without a name"),
            (&summary("parse", "DHAT", "1"), "counts no instructions"),
            (
                &summary("parse", "Callgrind", "\"x\""),
                "counts no instructions",
            ),
            (&twice, "two benches"),
        ] {
            let error = read(lines.as_bytes()).expect_err(lines);
            let error = format!("{error:#}");
            assert!(error.contains(reason), "{lines}: {error}");
        }
    }
}
