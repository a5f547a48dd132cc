//! What happens to the guest in each scenario: the frames that come, what its process does, and the state it finds.
//!
//! They are those of `fixtures/kernel-traces`, as far as the guest can do what they are about: the same addresses, sockets and chains,
//! and the frames themselves. `receive` and `send` are the two ways of one datagram, without a packet filter.

use std::net::{Ipv4Addr, SocketAddrV4};

use nic_guest::net::netfilter::NfHook;
use nic_guest::net::trace::Stage;
use nic_guest::net::{CpuCost, Protocol, SockType};

use super::bed::{Bed, PEER, PORT, VLAN_PEER};
use super::capture::Incoming;

/// Octets of a capture file's header, and of each record's.
const PCAP_HEADER: usize = 24;
const PCAP_RECORD: usize = 16;

/// What the process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    /// It waits for a datagram: looks at it first, as socat does, and then takes it.
    Reads,
    /// It takes whatever comes, as it comes.
    Takes,
    /// It has other things to do.
    Sleeps,
    /// It sends so many octets to that address.
    Sends(Ipv4Addr, usize),
}

/// Who looks at the card's frames before any protocol does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nobody.
    Nothing,
    /// The card is a port of the bridge. (In the recording that is another card.)
    Bridge,
    /// A packet socket.
    Tap,
}

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// The frames that come, as a capture.
    capture: &'static [u8],
    process: Process,
    /// Where a chain is hooked in that counts and accepts.
    pub hooks: &'static [NfHook],
    /// A datagram went to the neighbour before.
    pub warm: bool,
    /// What else looks at the card's frames.
    pub beside: Beside,
}

macro_rules! capture {
    ($name:literal) => {
        include_bytes!(concat!(
            "../../../fixtures/kernel-traces/frames/",
            $name,
            ".pcap"
        ))
    };
}

/// All scenarios.
pub const SCENARIOS: [Scenario; 20] = [
    Scenario {
        name: "receive",
        about: "a datagram comes for a bound socket, and a process reads it",
        capture: capture!("udp"),
        process: Process::Reads,
        hooks: &[],
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "send",
        about: "a process sends a datagram",
        capture: &[],
        process: Process::Sends(PEER, 26),
        // A security module's, which the recorded kernel has too.
        hooks: &[NfHook::PostRouting],
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "udp",
        about: "a datagram for a bound socket",
        capture: capture!("udp"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "icmp-echo",
        about: "an echo request, answered",
        capture: capture!("icmp-echo"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: false,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "arp-request",
        about: "somebody asks who has this host's address, and is answered",
        capture: capture!("arp-request"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: false,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "fragments",
        about: "a datagram in two fragments, put together again",
        capture: capture!("fragments"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "udp-closed",
        about: "a datagram for a closed port, answered with port unreachable",
        capture: capture!("udp-closed"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "tcp-closed",
        about: "a connection is asked for at a closed port, and reset",
        capture: capture!("tcp-closed"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "tcp-listen",
        about: "a connection is asked for at a listening socket, and granted",
        capture: capture!("tcp-listen"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "tcp-burst",
        about: "four segments of a connection that nobody knows come at once: they are merged, and answered with one reset",
        capture: capture!("tcp-burst"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "send-fragmented",
        about: "a process sends more than the MTU",
        capture: &[],
        process: Process::Sends(PEER, 3000),
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "send-unresolved",
        about: "a process sends to a neighbour who is not known yet, and who answers",
        capture: capture!("send-unresolved-reply"),
        process: Process::Sends(Ipv4Addr::new(10, 77, 0, 50), 26),
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "send-loopback",
        about: "a process sends to a socket of the same host",
        capture: &[],
        process: Process::Sends(Ipv4Addr::LOCALHOST, 26),
        hooks: &NfHook::ALL,
        warm: false,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "forward",
        about: "a datagram for a host behind another device, sent on",
        capture: capture!("forward"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "forward-ttl1",
        about: "the same with no hop left, answered with time exceeded",
        capture: capture!("forward-ttl1"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "vlan",
        about: "a frame with a VLAN tag, for a socket of that VLAN",
        capture: capture!("vlan"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "send-vlan",
        about: "a process sends to a neighbour in a VLAN",
        capture: &[],
        process: Process::Sends(VLAN_PEER, 26),
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
    Scenario {
        name: "bridge",
        about: "a frame for a station that the bridge does not know, flooded to its other port",
        capture: capture!("bridge"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Bridge,
    },
    Scenario {
        name: "tap",
        about: "a datagram for a bound socket, seen by a packet socket, too",
        capture: capture!("udp"),
        process: Process::Sleeps,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Tap,
    },
    Scenario {
        name: "broadcast",
        about: "a datagram to all hosts of the network, for a bound socket",
        capture: capture!("broadcast"),
        process: Process::Reads,
        hooks: &NfHook::ALL,
        warm: true,
        beside: Beside::Nothing,
    },
];

/// What a capture's frames are played in: all hooks, the neighbour known, and a process that takes what is for it.
pub const CAPTURE: Scenario = Scenario {
    name: "capture",
    about: "the frames of a capture",
    capture: &[],
    process: Process::Takes,
    hooks: &NfHook::ALL,
    warm: true,
    beside: Beside::Nothing,
};

impl Scenario {
    /// The scenario called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Plays it and returns the stages that packets went through.
    ///
    /// # Errors
    /// A ring broke, or the process did not get what it waited for.
    pub fn play(&self, cost: CpuCost) -> anyhow::Result<Vec<Stage>> {
        self.play_frames(frames(self.capture), cost)
    }

    /// The same, with other frames that come.
    ///
    /// # Errors
    /// A ring broke, or the process did not get what it waited for.
    pub fn play_frames(&self, frames: Vec<Incoming>, cost: CpuCost) -> anyhow::Result<Vec<Stage>> {
        let mut bed = Bed::new(cost)?;
        bed.set_up(self)?;
        bed.expect_burst(frames.len())?;
        drop(bed.kernel.machine.tracer.take());
        let fd = match self.process {
            Process::Sends(to, len) => {
                let fd = bed.kernel.socket(SockType::Dgram, Protocol::Udp)?;
                let to = SocketAddrV4::new(to, PORT);
                bed.kernel.sendto(fd, &vec![0x55; len], Some(to))?;
                bed.settle()?;
                fd
            }
            Process::Reads | Process::Takes | Process::Sleeps => bed.reader,
        };
        bed.arrive(frames);
        match self.process {
            Process::Reads => {
                bed.wait_for_datagram()?;
                bed.read(fd)?;
            }
            Process::Takes => {
                while bed.wait_for_datagram()? {
                    bed.read_all(fd)?;
                }
            }
            Process::Sends(..) | Process::Sleeps => {}
        }
        bed.settle()?;
        Ok(bed.kernel.machine.tracer.take())
    }
}

/// The frames of a capture (pcap, little-endian), oldest first.
fn frames(capture: &[u8]) -> Vec<Incoming> {
    let mut frames = Vec::new();
    let mut rest = capture.get(PCAP_HEADER..).unwrap_or_default();
    while let Some((record, data)) = rest.split_first_chunk::<PCAP_RECORD>() {
        let len = u32::from_le_bytes([record[8], record[9], record[10], record[11]]);
        let (frame, next) = data.split_at((len as usize).min(data.len()));
        frames.push(Incoming::new(frame));
        rest = next;
    }
    frames
}
