//! Wires as users write them: text in, a wire that is plugged in out, or a line that says what was wrong.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;

use nic_model::frame::{ETHERNET_HEADER, FCS};
use nic_model::mac::MIN_FRAME;

use super::generator::{Generator, Load, MAX_FLOWS};
use super::loopback::Loopback;
use super::mac_control::MacControl;
use super::none::NoWire;
use super::partner::Partner;
use super::pcap::Replay;
use super::sink::Sink;
use super::tap::{self, Tap};
use super::{OpenError, PortFacts, Wire};
use crate::written::{self, BadSpec};

/// The longest frame at the largest MTU, with its check sequence.
const LONGEST: u64 = (u16::MAX as usize + ETHERNET_HEADER + FCS) as u64;

/// Which wire, as users write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WireSpec {
    /// Nothing is plugged in: what is sent is lost, nothing comes.
    None,
    /// A plug that connects the two directions: what is sent comes back.
    Loopback,
    /// A small host that answers ARP, ping and the echo and discard services at 10.77.0.1.
    #[default]
    Partner,
    /// Frames without end; what is sent is lost.
    Generator {
        /// Frames a second; without it, as many as the line takes.
        pps: Option<NonZeroU64>,
        /// Octets of a frame with its check sequence.
        size: usize,
        /// Distinct flows that the frames belong to.
        flows: u32,
        /// Frames in all; without it, no end.
        count: Option<u64>,
        /// The seed of random gaps; without it, they are all the same.
        random: Option<u64>,
    },
    /// Looks at every frame that is sent, as a receiver would, and drops it. Nothing comes.
    Sink,
    /// A capture that is replayed, and one that is written.
    Pcap {
        /// What comes.
        input: PathBuf,
        /// Where what is sent is written.
        output: Option<PathBuf>,
        /// Frames a second instead of the capture's own spacing.
        pps: Option<NonZeroU64>,
    },
    /// A TAP device of this host.
    Tap {
        /// The interface's name.
        name: String,
        /// Its queues.
        queues: u16,
    },
}

const USAGE: &str = "none, loopback, partner, sink, generator[:pps=N,size=N,flows=N,count=N,random=SEED], pcap=IN[,OUT][,pps=N] or tap=NAME[,queues=N]";

impl WireSpec {
    /// Plugs the wire into the port of `facts`.
    ///
    /// # Errors
    /// What it needs is not there, or the port cannot use it.
    pub fn open(&self, facts: &PortFacts) -> Result<Box<dyn Wire>, OpenError> {
        let wire: Box<dyn Wire> = match self {
            WireSpec::None => Box::new(NoWire::default()),
            WireSpec::Loopback => Box::new(Loopback::default()),
            WireSpec::Partner => Box::new(Partner::new(facts)),
            WireSpec::Sink => Box::new(Sink::default()),
            &WireSpec::Generator {
                pps,
                size,
                flows,
                count,
                random,
            } => {
                let load = Load {
                    pps,
                    size,
                    flows,
                    count,
                    random,
                };
                Box::new(Generator::new(load, facts)?)
            }
            WireSpec::Pcap { input, output, pps } => {
                Box::new(Replay::open(input, output.as_deref(), *pps)?)
            }
            WireSpec::Tap { name, queues } => {
                let named = |reason| OpenError::Tap {
                    name: name.clone(),
                    reason,
                };
                Box::new(Tap::open(name, facts.mtu, *queues).map_err(named)?)
            }
        };
        Ok(if facts.flow_control {
            Box::new(MacControl::before(wire, facts.speed))
        } else {
            wire
        })
    }
}

impl fmt::Display for WireSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireSpec::None => f.write_str("none"),
            WireSpec::Loopback => f.write_str("loopback"),
            WireSpec::Partner => f.write_str("partner"),
            WireSpec::Sink => f.write_str("sink"),
            WireSpec::Generator {
                pps,
                size,
                flows,
                count,
                random,
            } => {
                write!(f, "generator:size={size},flows={flows}")?;
                if let Some(pps) = pps {
                    write!(f, ",pps={pps}")?;
                }
                if let Some(count) = count {
                    write!(f, ",count={count}")?;
                }
                if let Some(seed) = random {
                    write!(f, ",random={seed}")?;
                }
                Ok(())
            }
            WireSpec::Pcap { input, output, pps } => {
                write!(f, "pcap={}", input.display())?;
                if let Some(output) = output {
                    write!(f, ",{}", output.display())?;
                }
                if let Some(pps) = pps {
                    write!(f, ",pps={pps}")?;
                }
                Ok(())
            }
            WireSpec::Tap { name, queues: 1 } => write!(f, "tap={name}"),
            WireSpec::Tap { name, queues } => write!(f, "tap={name},queues={queues}"),
        }
    }
}

impl FromStr for WireSpec {
    type Err = BadSpec;
    fn from_str(text: &str) -> Result<Self, BadSpec> {
        written::read(text, "is no wire", USAGE, parse)
    }
}

fn parse(text: &str) -> Result<WireSpec, String> {
    let (kind, rest) = match text.find([':', '=']) {
        Some(at) => (&text[..at], Some(&text[at..])),
        None => (text, None),
    };
    match (kind, rest) {
        ("none", None) => Ok(WireSpec::None),
        ("loopback", None) => Ok(WireSpec::Loopback),
        ("partner", None) => Ok(WireSpec::Partner),
        ("sink", None) => Ok(WireSpec::Sink),
        ("none" | "loopback" | "partner" | "sink", Some(rest)) => {
            Err(format!("{kind} takes no options, remove {rest:?}"))
        }
        ("generator", None) => generator(""),
        ("generator", Some(rest)) => match rest.strip_prefix(':') {
            Some(options) => generator(options),
            None => Err("the generator's options follow a colon".into()),
        },
        ("pcap", Some(rest)) if rest.starts_with('=') => pcap(&rest[1..]),
        ("pcap", _) => Err("which capture is missing, as in pcap=in.pcap".into()),
        ("tap", Some(rest)) if rest.starts_with('=') => tap(&rest[1..]),
        ("tap", _) => Err("the interface's name is missing, as in tap=tap0".into()),
        ("", None) => Err("it is empty".into()),
        _ => Err(format!("there is no {kind:?}")),
    }
}

fn generator(options: &str) -> Result<WireSpec, String> {
    let (mut pps, mut size, mut flows, mut count) = (None, MIN_FRAME, 1, None);
    let mut random = None;
    let options = match options {
        "" => Vec::new(),
        options => written::pairs(options)?,
    };
    for (name, value) in options {
        match name {
            "pps" => pps = Some(rate(value)?),
            "size" => size = number("size", value, MIN_FRAME as u64, LONGEST)? as usize,
            "flows" => flows = number("flows", value, 1, u64::from(MAX_FLOWS))? as u32,
            "count" => count = Some(number("count", value, 1, u64::MAX)?),
            "random" => random = Some(number("random", value, 0, u64::MAX)?),
            _ => return Err(format!("the generator has no option {name:?}")),
        }
    }
    if random.is_some() && pps.is_none() {
        return Err("random gaps need a rate: give pps=N, too".into());
    }
    Ok(WireSpec::Generator {
        pps,
        size,
        flows,
        count,
        random,
    })
}

fn pcap(options: &str) -> Result<WireSpec, String> {
    let mut parts = options.split(',');
    let input = match parts.next() {
        Some(input) if !input.is_empty() => PathBuf::from(input),
        _ => return Err("which capture is missing, as in pcap=in.pcap".into()),
    };
    let (mut output, mut pps) = (None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("pps", value)) => pps = Some(rate(value)?),
            _ if part.is_empty() => return Err("a file's name is missing behind a comma".into()),
            _ if output.is_none() => output = Some(PathBuf::from(part)),
            _ => {
                return Err(format!(
                    "{part:?} is a third file, one is replayed and one written"
                ));
            }
        }
    }
    Ok(WireSpec::Pcap { input, output, pps })
}

fn tap(options: &str) -> Result<WireSpec, String> {
    let (name, options) = match options.split_once(',') {
        Some((name, options)) => (name, Some(options)),
        None => (options, None),
    };
    if !tap::is_name(name) {
        return Err(format!(
            "{name:?} is no interface's name, which has 1 to 15 characters and no space, slash, colon, comma or percent sign"
        ));
    }
    let mut queues = 1;
    for (name, value) in options.map_or(Ok(Vec::new()), written::pairs)? {
        match name {
            "queues" => queues = number("queues", value, 1, tap::MAX_QUEUES.into())? as u16,
            _ => return Err(format!("tap has no option {name:?}")),
        }
    }
    Ok(WireSpec::Tap {
        name: name.into(),
        queues,
    })
}

fn rate(value: &str) -> Result<NonZeroU64, String> {
    let pps = number("pps", value, 1, 1_000_000_000)?;
    Ok(NonZeroU64::new(pps).expect("it is 1 at least"))
}

fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, String> {
    match value.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ if most == u64::MAX => Err(format!(
            "{name}= is a number from {least} up, not {value:?}"
        )),
        _ => Err(format!(
            "{name}= is a number from {least} to {most}, not {value:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(pps: u64, size: usize, flows: u32, count: Option<u64>) -> WireSpec {
        WireSpec::Generator {
            pps: NonZeroU64::new(pps),
            size,
            flows,
            count,
            random: None,
        }
    }

    fn pcap(input: &str, output: Option<&str>, pps: u64) -> WireSpec {
        WireSpec::Pcap {
            input: input.into(),
            output: output.map(PathBuf::from),
            pps: NonZeroU64::new(pps),
        }
    }

    #[test]
    fn what_users_write_is_understood_and_written_back() {
        let tap0 = |queues| WireSpec::Tap {
            name: "tap0".into(),
            queues,
        };
        for (text, spec) in [
            ("none", WireSpec::None),
            ("loopback", WireSpec::Loopback),
            ("partner", WireSpec::Partner),
            ("sink", WireSpec::Sink),
            ("generator", generator(0, 64, 1, None)),
            ("generator:", generator(0, 64, 1, None)),
            ("generator:pps=1000", generator(1000, 64, 1, None)),
            (
                "generator:count=5,flows=64512,size=9018,pps=1000000000",
                generator(1_000_000_000, 9018, 64512, Some(5)),
            ),
            ("pcap=in.pcap", pcap("in.pcap", None, 0)),
            ("pcap=/a:b/in,out", pcap("/a:b/in", Some("out"), 0)),
            ("pcap=in,pps=7", pcap("in", None, 7)),
            ("pcap=in,pps=7,out", pcap("in", Some("out"), 7)),
            ("pcap=in,x=y", pcap("in", Some("x=y"), 0)),
            ("tap=tap0", tap0(1)),
            ("tap=tap0,queues=1", tap0(1)),
            ("tap=tap0,queues=16", tap0(16)),
        ] {
            assert_eq!(text.parse::<WireSpec>().unwrap(), spec, "{text}");
            assert_eq!(
                spec.to_string().parse::<WireSpec>().unwrap(),
                spec,
                "{spec}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "it is empty"),
            ("ethernet", "there is no \"ethernet\""),
            ("Partner", "there is no \"Partner\""),
            ("partner:x", "partner takes no options, remove \":x\""),
            ("none=1", "none takes no options"),
            ("generator=5", "follow a colon"),
            ("generator:pps", "\"pps\" is not NAME=VALUE"),
            ("generator:pps=1,pps=2", "pps is said twice"),
            (
                "generator:pps=0",
                "pps= is a number from 1 to 1000000000, not \"0\"",
            ),
            ("generator:pps=1.5", "not \"1.5\""),
            (
                "generator:size=63",
                "size= is a number from 64 to 65553, not \"63\"",
            ),
            ("generator:flows=0", "flows= is a number from 1 to 64512"),
            (
                "generator:pps=1,random=-1",
                "random= is a number from 0 up, not \"-1\"",
            ),
            ("generator:random=1", "random gaps need a rate"),
            (
                "generator:count=-1",
                "count= is a number from 1 up, not \"-1\"",
            ),
            ("generator:rate=5", "no option \"rate\""),
            ("generator:pps=5,", "\"\" is not NAME=VALUE"),
            ("pcap", "which capture is missing"),
            ("pcap:in", "which capture is missing"),
            ("pcap=", "which capture is missing"),
            ("pcap=in,", "a file's name is missing"),
            ("pcap=a,b,c", "\"c\" is a third file"),
            ("pcap=a,pps=x", "not \"x\""),
            ("tap", "the interface's name is missing, as in tap=tap0"),
            ("tap=", "\"\" is no interface's name"),
            ("tap=abcdefghijklmnop", "no interface's name"),
            ("tap=tap%d", "no interface's name"),
            ("tap=,queues=2", "\"\" is no interface's name"),
            ("tap=tap0,", "\"\" is not NAME=VALUE"),
            ("tap=tap0,queues", "\"queues\" is not NAME=VALUE"),
            ("tap=tap0,mtu=1", "tap has no option \"mtu\""),
            (
                "tap=tap0,queues=0",
                "queues= is a number from 1 to 16, not \"0\"",
            ),
            ("tap=tap0,queues=17", "not \"17\""),
        ] {
            let error = text.parse::<WireSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(error.contains("is no wire") && error.contains("or tap=NAME[,queues=N]"));
        }
    }

    #[test]
    fn wires_that_need_nothing_open() {
        let facts = crate::wire::testing::facts(1500);
        for text in ["none", "loopback", "partner", "sink", "generator:size=1518"] {
            assert!(
                text.parse::<WireSpec>().unwrap().open(&facts).is_ok(),
                "{text}"
            );
        }
        let spec: WireSpec = "pcap=/nowhere/in.pcap".parse().unwrap();
        let error = spec.open(&facts).err().unwrap().to_string();
        assert!(error.contains("/nowhere/in.pcap"), "{error}");
    }
}
