//! Faults as users write them: `rx:drop=0.01,rx:delay=100us±20us,seed=7`, or `none`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use nic_model::fault::{HostFaults, Lies, QueueFaults, RingLies, Stall};
use serde::{Deserialize, Serialize};

use crate::written::{self, BadSpec};

/// Delays, stalls and flaps at most.
const LONGEST: Duration = Duration::from_secs(3600);
/// Frames that a frame lets pass at most.
const DEEPEST: u32 = 1000;
/// Interrupts for nothing at most, a second.
const MOST_SPURIOUS: f64 = 1e6;

/// What is to go wrong, on the line and on the side of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FaultSpec {
    /// With frames on their way to us.
    pub rx: PathFaults,
    /// With frames on their way from us.
    pub tx: PathFaults,
    /// When the link goes down.
    pub flap: Option<Flap>,
    /// Between the card and the host.
    pub host: HostFaults,
    /// What chance goes by.
    pub seed: u64,
}

/// What is to go wrong with frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PathFaults {
    /// The probability that a frame is lost.
    pub drop: f64,
    /// The probability that it comes twice.
    pub duplicate: f64,
    /// The probability that its end is cut off.
    pub truncate: f64,
    /// The probability that a bit of it is wrong.
    pub bit_errors: f64,
    /// Whether it lets others pass.
    pub reorder: Reorder,
    /// How much longer it takes.
    pub delay: Delay,
}

/// Frames let others pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reorder {
    /// The probability that a frame does.
    pub probability: f64,
    /// How many it lets pass, at most: each number from 1 on is as likely.
    pub depth: u32,
}

/// Frames take longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// How much, in the mean.
    pub mean: Duration,
    /// How far from that at most; uniformly distributed.
    pub jitter: Duration,
}

/// The link comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flap {
    /// For how long it stays up, more than zero.
    pub up: Duration,
    /// For how long it is then down, more than zero.
    pub down: Duration,
}

impl PathFaults {
    /// Whether nothing is to go wrong.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether frames are kept for a time.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.delay != Delay::default() || self.reorder.probability > 0.0
    }
}

impl FaultSpec {
    /// Whether nothing is to go wrong.
    #[must_use]
    pub fn is_none(&self) -> bool {
        FaultSpec { seed: 0, ..*self } == FaultSpec::default()
    }
}

const USAGE: &str = "none, or some of drop=P, duplicate=P, truncate=P, ber=P, reorder=P[/DEPTH], delay=TIME[±JITTER], dma-stall=RUN/STALL, slow-used=TIME, irq-lost=P, irq-spurious=RATE, device:used-id=P, device:used-len=P, device:used-jump=P, each with rx: or tx: before its name or for both directions, device:num-buffers=P, device:gso=P, device:csum=P, device:silent=P, device:config-tear=P, flap=UP/DOWN, seed=N";

impl FromStr for FaultSpec {
    type Err = BadSpec;
    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let spec = written::read(text, "are no faults", USAGE, parse)?;
        // Where nothing goes wrong, chance decides nothing.
        Ok(if spec.is_none() {
            Self::default()
        } else {
            spec
        })
    }
}

impl TryFrom<String> for FaultSpec {
    type Error = BadSpec;
    fn try_from(text: String) -> Result<Self, BadSpec> {
        text.parse()
    }
}

impl From<FaultSpec> for String {
    fn from(spec: FaultSpec) -> Self {
        spec.to_string()
    }
}

/// The directions that an item is for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Directions {
    rx: bool,
    tx: bool,
}

/// Faults of the device.
const LIES: &str = "used-id, used-len, used-jump, num-buffers, gso, csum, silent and config-tear";

/// What of an item is wrong.
enum Wrong {
    /// Its name.
    Kind,
    /// Its value, and why.
    Value(String),
}

impl<T: Into<String>> From<T> for Wrong {
    fn from(reason: T) -> Self {
        Wrong::Value(reason.into())
    }
}

fn parse(text: &str) -> Result<FaultSpec, String> {
    let mut spec = FaultSpec::default();
    if text == "none" {
        return Ok(spec);
    }
    let mut written: Vec<(&str, Directions)> = Vec::new();
    for item in text.split(',') {
        let (device, undirected) = match item.strip_prefix("device:") {
            Some(rest) => (true, rest),
            None => (false, item),
        };
        let (directions, rest) = match undirected.split_once(':') {
            Some(("rx", rest)) => (
                Directions {
                    rx: true,
                    tx: false,
                },
                rest,
            ),
            Some(("tx", rest)) => (
                Directions {
                    rx: false,
                    tx: true,
                },
                rest,
            ),
            Some((other, _)) => return Err(format!("{other:?} is no direction: it is rx or tx")),
            None => (Directions { rx: true, tx: true }, undirected),
        };
        let (kind, value) = rest
            .split_once('=')
            .ok_or_else(|| format!("{item:?} is not KIND=VALUE"))?;
        let again = |&(before, others): &(&str, Directions)| {
            let both = others.rx && directions.rx || others.tx && directions.tx;
            before == kind && both
        };
        if written.iter().any(again) {
            return Err(format!("{kind} is said twice"));
        }
        written.push((kind, directions));
        if let "flap" | "seed" | "silent" | "config-tear" = kind
            && directions != (Directions { rx: true, tx: true })
        {
            let device = match kind {
                "silent" | "config-tear" => "device:",
                _ => "",
            };
            return Err(format!(
                "{kind} is for both directions, write \"{device}{rest}\""
            ));
        }
        if let "num-buffers" | "gso" | "csum" = kind
            && !directions.rx
        {
            return Err(format!(
                "{kind} is about received packets, write device:{rest}"
            ));
        }
        set(&mut spec, device, directions, kind, value).map_err(|wrong| match wrong {
            Wrong::Kind if device => format!("the device has no fault {kind:?}, but {LIES}"),
            Wrong::Kind => format!("there is no fault {kind:?}"),
            Wrong::Value(reason) => format!("{kind} cannot be {value:?}: {reason}"),
        })?;
    }
    Ok(spec)
}

fn set(
    spec: &mut FaultSpec,
    device: bool,
    directions: Directions,
    kind: &str,
    value: &str,
) -> Result<(), Wrong> {
    let path: &dyn Fn(&mut PathFaults) = match kind {
        // Interrupts are the device's, too.
        "irq-lost" | "irq-spurious" => {
            return Ok(set_host(&mut spec.host, directions, kind, value)?);
        }
        _ if device => return set_lie(&mut spec.host.lies, directions, kind, value),
        "seed" => {
            spec.seed = value.parse().map_err(|_| "it is a number below 2^64")?;
            return Ok(());
        }
        "flap" => {
            let (up, down) = two_spans(value)?;
            spec.flap = Some(Flap { up, down });
            return Ok(());
        }
        "dma-stall" | "slow-used" => {
            return Ok(set_host(&mut spec.host, directions, kind, value)?);
        }
        "drop" => {
            let probability = probability(value)?;
            &move |path| path.drop = probability
        }
        "duplicate" => {
            let probability = probability(value)?;
            &move |path| path.duplicate = probability
        }
        "truncate" => {
            let probability = probability(value)?;
            &move |path| path.truncate = probability
        }
        "ber" => {
            let probability = probability(value)?;
            &move |path| path.bit_errors = probability
        }
        "reorder" => {
            let reorder = reorder(value)?;
            &move |path| path.reorder = reorder
        }
        "delay" => {
            let delay = delay(value)?;
            &move |path| path.delay = delay
        }
        _ => return Err(Wrong::Kind),
    };
    if directions.rx {
        path(&mut spec.rx);
    }
    if directions.tx {
        path(&mut spec.tx);
    }
    Ok(())
}

fn set_host(
    host: &mut HostFaults,
    directions: Directions,
    kind: &str,
    value: &str,
) -> Result<(), String> {
    let queue: &dyn Fn(&mut QueueFaults) = match kind {
        "dma-stall" => {
            let (run, stall) = two_spans(value)?;
            &move |queue| queue.stall = Some(Stall { run, stall })
        }
        "slow-used" => {
            let span = span(value)?;
            &move |queue| queue.slow_used = span
        }
        "irq-lost" => {
            let probability = probability(value)?;
            &move |queue| queue.lost_interrupts = probability
        }
        _ => {
            let rate = value.parse().ok();
            let rate = rate.filter(|rate| (0.0..=MOST_SPURIOUS).contains(rate));
            let rate = rate.ok_or("it is a number of interrupts a second, up to 1000000")?;
            &move |queue| queue.spurious_interrupts = rate
        }
    };
    if directions.rx {
        queue(&mut host.receive);
    }
    if directions.tx {
        queue(&mut host.transmit);
    }
    Ok(())
}

fn set_lie(lies: &mut Lies, directions: Directions, kind: &str, value: &str) -> Result<(), Wrong> {
    let of_ring: fn(&mut RingLies) -> &mut f64 = match kind {
        "used-id" => |ring| &mut ring.used_id,
        "used-len" => |ring| &mut ring.used_len,
        "used-jump" => |ring| &mut ring.used_jump,
        _ => {
            let lie = match kind {
                "num-buffers" => &mut lies.num_buffers,
                "gso" => &mut lies.gso,
                "csum" => &mut lies.csum,
                "silent" => &mut lies.silent,
                "config-tear" => &mut lies.config_tear,
                _ => return Err(Wrong::Kind),
            };
            *lie = probability(value)?;
            return Ok(());
        }
    };
    let probability = probability(value)?;
    if directions.rx {
        *of_ring(&mut lies.receive) = probability;
    }
    if directions.tx {
        *of_ring(&mut lies.transmit) = probability;
    }
    Ok(())
}

/// From 0 to 1, or in percent.
fn probability(text: &str) -> Result<f64, String> {
    let parsed = match text.strip_suffix('%') {
        Some(percent) => percent.parse().map(|percent: f64| percent / 100.0),
        None => text.parse(),
    };
    let probability = parsed.ok().filter(|p| (0.0..=1.0).contains(p));
    probability.ok_or_else(|| "it is a probability, from 0 to 1 or from 0% to 100%".into())
}

fn reorder(text: &str) -> Result<Reorder, String> {
    let (first, depth) = match text.split_once('/') {
        Some((first, depth)) => (first, depth.parse().ok()),
        None => (text, Some(1)),
    };
    let depth = depth.filter(|depth| (1..=DEEPEST).contains(depth));
    let depth = depth.ok_or_else(|| format!("the depth is a number from 1 to {DEEPEST}"))?;
    let probability = probability(first)?;
    Ok(Reorder { probability, depth })
}

fn delay(text: &str) -> Result<Delay, String> {
    let parts = text.split_once('±').or_else(|| text.split_once("+-"));
    let (mean, jitter) = match parts {
        Some((mean, jitter)) => (span(mean)?, span(jitter)?),
        None => (span(text)?, Duration::ZERO),
    };
    if jitter > mean {
        return Err("the jitter is longer than the delay".into());
    }
    Ok(Delay { mean, jitter })
}

fn two_spans(text: &str) -> Result<(Duration, Duration), String> {
    let (first, second) = text
        .split_once('/')
        .ok_or("it is two times with a slash between, as in 10s/1s")?;
    let spans = (span(first)?, span(second)?);
    if spans.0.is_zero() || spans.1.is_zero() {
        return Err("neither time can be zero".into());
    }
    Ok(spans)
}

/// Units of time, in nanoseconds; longer names first.
const UNITS: [(&str, f64); 4] = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)];

/// A number and a unit.
fn span(text: &str) -> Result<Duration, String> {
    let parts = UNITS.iter().find_map(|&(unit, nanos)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * nanos)
    });
    let nanos = parts.filter(|nanos| (0.0..=LONGEST.as_nanos() as f64).contains(nanos));
    let nanos = nanos.ok_or_else(|| {
        format!("{text:?} is no time up to an hour, with its unit, as in 100us, 1.5ms or 2s")
    })?;
    Ok(Duration::from_nanos(nanos.round() as u64))
}

/// A time in the largest unit in which it is a whole number.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let whole = |&&(_, each): &&(&str, f64)| nanos.is_multiple_of(each as u128);
        let (unit, each) = UNITS.iter().rev().find(whole).unwrap_or(&UNITS[0]);
        write!(f, "{}{unit}", nanos / *each as u128)
    }
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = both(path_items(&self.rx), path_items(&self.tx));
        items.extend(both(
            queue_items(&self.host.receive),
            queue_items(&self.host.transmit),
        ));
        let Lies {
            receive, transmit, ..
        } = &self.host.lies;
        let mut lies = both(ring_items(receive), ring_items(transmit));
        lies.extend(lie_items(&self.host.lies));
        items.extend(lies.into_iter().map(|item| format!("device:{item}")));
        if let Some(Flap { up, down }) = self.flap {
            items.push(format!("flap={}/{}", Span(up), Span(down)));
        }
        if items.is_empty() {
            return f.write_str("none");
        }
        if self.seed != 0 {
            items.push(format!("seed={}", self.seed));
        }
        f.write_str(&items.join(","))
    }
}

/// The items of both directions: what is the same once, else with its direction before it.
fn both(rx: Vec<String>, tx: Vec<String>) -> Vec<String> {
    let (same, rx_only): (Vec<_>, Vec<_>) = rx.into_iter().partition(|item| tx.contains(item));
    let tx_only = tx.into_iter().filter(|item| !same.contains(item));
    let tx_only: Vec<_> = tx_only.map(|item| format!("tx:{item}")).collect();
    let rx_only = rx_only.into_iter().map(|item| format!("rx:{item}"));
    same.into_iter().chain(rx_only).chain(tx_only).collect()
}

fn ring_items(ring: &RingLies) -> Vec<String> {
    probabilities(&[
        ("used-id", ring.used_id),
        ("used-len", ring.used_len),
        ("used-jump", ring.used_jump),
    ])
}

fn lie_items(lies: &Lies) -> Vec<String> {
    probabilities(&[
        ("num-buffers", lies.num_buffers),
        ("gso", lies.gso),
        ("csum", lies.csum),
        ("silent", lies.silent),
        ("config-tear", lies.config_tear),
    ])
}

fn probabilities(all: &[(&str, f64)]) -> Vec<String> {
    let some = all.iter().filter(|(_, probability)| *probability > 0.0);
    some.map(|(kind, probability)| format!("{kind}={probability}"))
        .collect()
}

fn path_items(path: &PathFaults) -> Vec<String> {
    let mut items = probabilities(&[
        ("drop", path.drop),
        ("duplicate", path.duplicate),
        ("truncate", path.truncate),
        ("ber", path.bit_errors),
    ]);
    let Reorder { probability, depth } = path.reorder;
    if probability > 0.0 {
        items.push(format!("reorder={probability}/{depth}"));
    }
    let Delay { mean, jitter } = path.delay;
    if !jitter.is_zero() {
        items.push(format!("delay={}±{}", Span(mean), Span(jitter)));
    } else if !mean.is_zero() {
        items.push(format!("delay={}", Span(mean)));
    }
    items
}

fn queue_items(queue: &QueueFaults) -> Vec<String> {
    let mut items = Vec::new();
    if let Some(Stall { run, stall }) = queue.stall {
        items.push(format!("dma-stall={}/{}", Span(run), Span(stall)));
    }
    if !queue.slow_used.is_zero() {
        items.push(format!("slow-used={}", Span(queue.slow_used)));
    }
    if queue.lost_interrupts > 0.0 {
        items.push(format!("irq-lost={}", queue.lost_interrupts));
    }
    if queue.spurious_interrupts > 0.0 {
        items.push(format!("irq-spurious={}", queue.spurious_interrupts));
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> FaultSpec {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_is_written_is_meant() {
        let spec = faults("rx:drop=0.01,rx:delay=100us±20us,seed=7");
        assert_eq!(spec.rx.drop, 0.01);
        assert_eq!(spec.rx.delay.mean, Duration::from_micros(100));
        assert_eq!(spec.rx.delay.jitter, Duration::from_micros(20));
        assert_eq!(spec.seed, 7);
        assert!(spec.tx.is_none() && spec.host.is_none() && spec.flap.is_none());
        assert!(spec.rx.holds() && !spec.tx.holds());
        let spec =
            faults("device:rx:used-id=1%,device:silent=1,device:irq-lost=0.5,device:gso=1e-3");
        let lies = spec.host.lies;
        assert_eq!((lies.receive.used_id, lies.transmit.used_id), (0.01, 0.0));
        assert_eq!((lies.silent, lies.gso), (1.0, 0.001));
        assert_eq!(spec.host.receive.lost_interrupts, 0.5);
        let spec = faults("ber=1e-6,rx:reorder=5%/3,tx:reorder=1,flap=1.5s/20ms");
        assert_eq!((spec.rx.bit_errors, spec.tx.bit_errors), (1e-6, 1e-6));
    }

    #[test]
    fn a_direction_is_one_and_none_is_both() {
        let spec = faults("drop=0.5,rx:truncate=1%,tx:truncate=2%,tx:duplicate=1");
        assert_eq!((spec.rx.drop, spec.tx.drop), (0.5, 0.5));
        assert_eq!((spec.rx.truncate, spec.tx.truncate), (0.01, 0.02));
        assert_eq!((spec.rx.duplicate, spec.tx.duplicate), (0.0, 1.0));
        let spec = faults("rx:dma-stall=10ms/1ms,tx:slow-used=5us,irq-lost=0.1,rx:irq-spurious=9");
        assert_eq!(spec.host.transmit.stall, None);
        assert_eq!(spec.host.receive.stall.unwrap().stall.as_micros(), 1000);
        assert_eq!(spec.host.transmit.slow_used.as_micros(), 5);
        assert_eq!(spec.host.receive.lost_interrupts, 0.1);
        assert_eq!(spec.host.transmit.lost_interrupts, 0.1);
        assert_eq!(spec.host.receive.spurious_interrupts, 9.0);
    }

    #[test]
    fn what_is_shown_is_read_again() {
        for (text, shown) in [
            ("none", "none"),
            ("seed=3", "none"),
            ("rx:drop=0", "none"),
            ("drop=1%", "drop=0.01"),
            ("rx:drop=0.01,tx:drop=0.01", "drop=0.01"),
            ("tx:drop=0.5,rx:drop=0.25", "rx:drop=0.25,tx:drop=0.5"),
            ("delay=1000us+-1500ns,seed=9", "delay=1ms±1500ns,seed=9"),
            ("rx:reorder=0.1", "rx:reorder=0.1/1"),
            ("flap=0.5s/100ms", "flap=500ms/100ms"),
            (
                "tx:ber=0.000001,duplicate=1,truncate=0.2,tx:irq-lost=1,irq-spurious=0.5",
                "duplicate=1,truncate=0.2,tx:ber=0.000001,irq-spurious=0.5,tx:irq-lost=1",
            ),
            (
                "dma-stall=1s/1us,slow-used=7us",
                "dma-stall=1s/1us,slow-used=7us",
            ),
            (
                "device:config-tear=0.1,device:tx:used-jump=1,device:used-len=2%,device:csum=1,device:num-buffers=0.5,drop=1",
                "drop=1,device:used-len=0.02,device:tx:used-jump=1,device:num-buffers=0.5,device:csum=1,device:config-tear=0.1",
            ),
        ] {
            let spec = faults(text);
            assert_eq!(spec.to_string(), shown);
            assert_eq!(spec.is_none(), shown == "none");
            let again = faults(shown);
            assert_eq!(
                FaultSpec { seed: 0, ..again },
                FaultSpec { seed: 0, ..spec }
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "\"\" is not KIND=VALUE"),
            ("drop", "\"drop\" is not KIND=VALUE"),
            ("drop=1,", "\"\" is not KIND=VALUE"),
            ("explode=1", "there is no fault \"explode\""),
            ("up:drop=1", "\"up\" is no direction"),
            ("drop=1.01", "it is a probability"),
            ("drop=-0.1", "it is a probability"),
            ("drop=NaN", "it is a probability"),
            ("drop=101%", "it is a probability"),
            ("ber=often", "it is a probability"),
            ("drop=1,rx:drop=0", "drop is said twice"),
            ("rx:drop=1,tx:drop=1,rx:drop=1", "drop is said twice"),
            ("reorder=1/0", "the depth is a number from 1"),
            ("reorder=1/1001", "to 1000"),
            ("delay=100", "no time up to an hour, with its unit"),
            ("delay=2h", "no time"),
            ("delay=-1us", "no time"),
            ("delay=3601s", "no time"),
            ("delay=1us±2us", "the jitter is longer"),
            ("flap=1s", "two times with a slash"),
            ("flap=0s/1s", "neither time can be zero"),
            ("dma-stall=1s/0ns", "neither time can be zero"),
            ("rx:flap=1s/1s", "flap is for both directions"),
            ("rx:seed=1", "seed is for both directions"),
            ("seed=-1", "a number below 2^64"),
            ("irq-spurious=1e7", "interrupts a second"),
            ("used-id=1", "there is no fault \"used-id\""),
            (
                "device:drop=1",
                "the device has no fault \"drop\", but used-id, used-len",
            ),
            ("device:up:used-id=1", "\"up\" is no direction"),
            (
                "device:tx:gso=1",
                "gso is about received packets, write device:gso=1",
            ),
            ("device:rx:silent=1", "silent is for both directions"),
            ("device:csum=2", "it is a probability"),
            ("device:irq-lost=1,rx:irq-lost=1", "irq-lost is said twice"),
            ("none,drop=1", "\"none\" is not KIND=VALUE"),
        ] {
            let error = text.parse::<FaultSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(error.contains("dma-stall=RUN/STALL"), "what can be is said");
        }
    }
}
