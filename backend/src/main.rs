//! `vhost-user-nic`: the NIC on the command line.

mod cli;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use nic_backend::clock::Clock;
use nic_backend::coalesce::CoalesceSpec;
use nic_backend::config::{self, Given};
use nic_backend::control::{self, LoopbackTo, Request};
use nic_backend::cpus::CpuList;
use nic_backend::packet_buffer::PacketBufferSpec;
use nic_backend::patience::PollMode;
use nic_backend::pfc::PfcSpec;
use nic_backend::rate::RateSpec;
use nic_backend::server::NicConfig;
use nic_backend::settings::Settings;
use nic_backend::weights::WeightsSpec;
use nic_backend::wire::WireSpec;
use nic_backend::wire::fault::FaultSpec;
use nic_device::features::Features;
use nic_model::filter::MacAddress;
use nic_model::phy::{LinkPartner, Speed};
use nic_model::port::PortConfig;
use serde_json::Value;

mod change;
#[cfg(test)]
mod config_tests;
mod serve;

/// A NIC that virtual machines plug into: virtio-net over vhost-user.
#[derive(Parser)]
#[command(
    name = "vhost-user-nic",
    version,
    after_help = "Start with: vhost-user-nic serve --socket /tmp/nic.sock"
)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one at a time
enum Command {
    /// Run a NIC and wait for virtual machines on a socket
    Serve(Serve),
    /// Show the counters and the state of a running NIC
    Stats {
        #[command(flatten)]
        target: Target,
        /// Show counters that are zero, too
        #[arg(long)]
        all: bool,
        /// Under whose names: nic, everything, as it is called here; ethtool, the port's counters as Linux has them (ethtool -S DEV
        /// --all-groups); rfc, as the MIBs have them (RFC 2819, 3635, 2863). The last two have zeros in any case
        #[arg(long, value_enum, default_value = "nic")]
        names: cli::stats::Names,
    },
    /// Show the link of a running NIC, or plug its cable in or pull it out
    ///
    /// Without auto-negotiation (serve --autoneg) that brings the link up or down at once; with it, plugging in starts a negotiation.
    Link {
        /// What it shall be; without it, only shown
        state: Option<LinkState>,
        /// Plug the cable into another link partner, as serve --link-partner has it
        #[arg(long, value_name = "SPEC")]
        partner: Option<LinkPartner>,
        #[command(flatten)]
        target: Target,
    },
    /// Have the frames that a running NIC sends come back to it, or show whether they do
    Loopback {
        /// Where they turn; without it, only shown
        to: Option<LoopbackTo>,
        #[command(flatten)]
        target: Target,
    },
    /// Read and write the registers of a running NIC's PHY (IEEE 802.3, Clauses 22 and 45)
    #[command(subcommand)]
    Mdio(cli::mdio::Mdio),
    /// Have the guest of a running NIC tell its neighbours where it is, as after a migration
    ///
    /// A guest whose link has come up again does so by itself. The driver must have accepted GUEST_ANNOUNCE; behind QEMU's
    /// virtio-net-pci and cloud-hypervisor it is the VMM that asks.
    Announce {
        #[command(flatten)]
        target: Target,
    },
    /// Show what goes wrong in a running NIC on purpose and how often it did, or change it
    Fault {
        /// What is to go wrong, instead of what did before, as for serve --fault; none: nothing. Without it, only shown
        spec: Option<FaultSpec>,
        #[command(flatten)]
        target: Target,
    },
    /// Change settings of a running NIC: coalesce=SPEC, pfc=LIST, rate=SPEC, speed=RATE, tx-weights=LIST
    ///
    /// coalesce=SPEC, as for serve --coalesce: for all queues from now on, whatever the driver said, and after a device reset.
    /// speed=RATE: one that the card has, from the next frame on; with auto-negotiation the only one that is advertised, and a negotiation
    /// begins. Linux reads it again when its link comes up (vhost-user-nic link down, link up).
    /// pfc=LIST: as for serve --pfc, of a NIC that was started with some.
    /// rate=SPEC: as for serve --rate, with full buckets.
    /// tx-weights=LIST: as for serve --tx-weights.
    /// The rest is settled when the NIC starts.
    #[command(verbatim_doc_comment)]
    Set {
        /// What to change
        #[arg(required = true, value_name = "NAME=VALUE")]
        settings: Vec<Settings>,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(clap::Args)]
struct Target {
    /// The control socket of the NIC, as given to serve --control
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LinkState {
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// What is offered to the driver, by who stands between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Everything: User-mode Linux, QEMU, crosvm, cloud-hypervisor
    Full,
    /// For QEMU's virtio-net-pci: as full
    Qemu,
    /// For DPDK's virtio-user, which emulates the control queue itself
    VirtioUser,
}

#[derive(clap::Args, Debug, PartialEq)]
struct Serve {
    /// A file with these options, in TOML: a table [[nic]] for each NIC, and in it each option under its name; those on the command line count
    /// more. docs/nic.toml has them all
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen for a virtual machine
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Queue pairs: 1 to 31
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=31))]
    queues: u16,
    /// Threads that move packets: 1 runs the whole card, of N each serves some of the queue pairs, and the line has one of
    /// its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=31))]
    workers: u16,
    /// The card's address
    #[arg(long, default_value = "52:54:00:12:34:56")]
    mac: MacAddress,
    /// The longest packet, in octets without the Ethernet header: 68 to 9216
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..=9216))]
    mtu: u16,
    /// The line rate: 10M, 100M, 1G, 2.5G, 5G, 10G, 25G, 40G, 50G, 100G, 200G or 400G; with --autoneg on, the highest one
    #[arg(long, default_value = "10G")]
    speed: Speed,
    /// Negotiate speed, duplex and flow control with the link partner, in the time that it takes (one to four seconds up to 10G); off:
    /// the link is at --speed, full duplex, at once
    #[arg(long, value_enum, default_value = "off")]
    autoneg: Switch,
    /// What the station at the other end of the line does
    ///
    /// same: whatever this card does. Or a list of what it negotiates: modes (10half, 100full, 1000full, 10G, ...; all if none is
    /// named), pause and asym (flow control), master or slave, fault. Or MODE,silent: it is forced to that and does not negotiate.
    #[arg(long, value_name = "SPEC", default_value = "same")]
    link_partner: LinkPartner,
    /// Flow control of single priorities (IEEE 802.1Qbb), instead of all of the line: off, all, or some from 0 to 7, as in 3,4
    ///
    /// A frame's priority is that of its outermost VLAN tag, 0 without one. A priority whose frames wait for the guest is stopped at the
    /// partner's, and frames of one that the partner stops wait, while others go on. It needs no negotiation.
    #[arg(long, value_name = "LIST", default_value = "off")]
    pfc: PfcSpec,
    /// What the line is plugged into
    ///
    /// partner: a small host at 10.77.0.1 that answers ARP, ping, and echo (7) and discard (9) over UDP and TCP.
    /// tap=NAME[,queues=N]: a TAP device of this host, through N queues of it, 1 to 16, by default 1.
    /// pcap=IN[,OUT][,pps=N]: replays IN at each link-up, writes OUT.
    /// generator[:pps=N,size=N,flows=N,count=N,random=SEED], sink, loopback, none.
    #[arg(
        long,
        value_name = "SPEC",
        default_value = "partner",
        verbatim_doc_comment
    )]
    wire: WireSpec,
    /// What goes wrong on purpose: some of these, with commas between, or none
    ///
    /// drop=P, duplicate=P, truncate=P: frames are lost, come twice, lose their end, with probability P (0.01, 1%).
    /// ber=P: each bit is wrong with probability P; the check sequence shows it, and the frame is dropped and counted.
    /// reorder=P[/DEPTH]: a frame lets 1 to DEPTH others pass (default 1), or waits for 10 ms.
    /// delay=TIME[±JITTER] (or +-): frames take TIME longer, uniformly distributed, in order; at most 16384 are under way.
    /// dma-stall=RUN/STALL: DMA runs for a time, stands still for a time, and so on.
    /// slow-used=TIME: the driver is shown (and told) what was moved TIME later.
    /// irq-lost=P: interrupts for packets are lost. irq-spurious=RATE: so many a second and queue come for nothing.
    /// device:used-id=P, device:used-len=P, device:used-jump=P: of a used buffer the driver is told another one, a wrong length, or that
    /// more are used than are.
    /// Each of these is for both directions, or with rx: or tx: before its name for one (rx:drop=P, device:tx:used-id=P).
    /// device:num-buffers=P, device:gso=P, device:csum=P: the header of a received packet lies about its buffers, segments, checksum.
    /// device:silent=P: a command is never answered (Linux waits for ever). device:config-tear=P: a read of the configuration space
    /// gives what was never there.
    /// flap=UP/DOWN: the link is up for a time, down for a time, and so on. seed=N: what chance goes by (default 0).
    /// Times have a unit: ns, us, ms, s. Super-frames of a TAP device are cut first: each frame has its own fate.
    /// Example: rx:drop=0.01,rx:delay=100us±20us,seed=7
    #[arg(
        long,
        value_name = "SPEC",
        default_value = "none",
        verbatim_doc_comment
    )]
    fault: FaultSpec,
    /// Which features are offered to the driver
    #[arg(long, value_enum, default_value = "full")]
    profile: Profile,
    /// A feature not to offer, by its name in the VIRTIO specification (MRG_RXBUF, EVENT_IDX, ...); repeatable
    #[arg(long, value_name = "FEATURE")]
    disable: Vec<Features>,
    /// Offer RING_RESET, with which a guest resizes its rings (ethtool -G). Only for front-ends that pass on the reset of a single
    /// queue: QEMU up to 11.1 does not, and the guest's network would stand still
    #[arg(long)]
    ring_reset: bool,
    /// When queues interrupt until the driver says otherwise: off, rx-usecs=N,rx-frames=N,tx-usecs=N,tx-frames=N, itr=N, igb-dynamic or dim
    ///
    /// rx-usecs=N,rx-frames=N,tx-usecs=N,tx-frames=N: N frames or N microseconds after the first frame, whichever comes
    /// first. off: for each frame.
    /// itr=N: no sooner than N microseconds (1 to 8191) after the last interrupt, as an Intel 82576 does. With ,lli-bytes=N
    /// frames of fewer octets do not wait; with ,lli-usecs=N, a multiple of 4 up to 124, that many microseconds apart in the
    /// long run.
    /// igb-dynamic: the same with 14, 49 or 245 us, by the load, as Linux's igb driver chooses.
    /// dim, dim=cqe: one of five profiles, by the load, as Linux's DIM chooses; the time counts from the last interrupt, or
    /// from the last frame (cqe).
    /// The driver can change it (ethtool -C), which ends these modes; a device reset restores it.
    #[arg(long, value_name = "SPEC", default_value = "off", verbatim_doc_comment)]
    coalesce: CoalesceSpec,
    /// Spread received frames by their hash, with the usual key and an even table, until the driver says otherwise; off:
    /// flows are received where they are sent
    #[arg(long, value_enum, default_value = "off")]
    rss: Switch,
    /// Merge TCP segments that come in one burst into one super-frame, for guests that take such (GUEST_TSO4, GUEST_TSO6), until the
    /// guest switches it off (ethtool -K eth0 lro off, or rx-gro-hw off)
    #[arg(long, value_enum, default_value = "off")]
    lro: Switch,
    /// Entries of the longest indirection table that a driver may use, a power of two up to 512. Linux before 6.9 breaks with more than
    /// 128
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = table_length)]
    rss_table: u16,
    /// The packet buffer that the receive queues share; off: each has a FIFO of 256 KiB
    ///
    /// OCTETS[,guarantee=OCTETS][,alpha=N], octets with K or M for 1024 or 1024 * 1024 of them: each queue has the guarantee for itself (default 0), and
    /// may hold N times what of the rest is free: a power of two from 1/128 to 8 (default 1). Example: 512K,guarantee=16K,alpha=2
    #[arg(long, value_name = "SPEC", default_value = "off")]
    packet_buffer: PacketBufferSpec,
    /// The rates of both directions, where they are to be below the line's: off, or as in rx=1G:128K,tx=500M
    ///
    /// rx=RATE[:BURST]: of received frames what exceeds RATE bits a second (with k, M or G) and BURST octets at once (with K or M for 1024 or
    /// 1024 * 1024) is dropped and counted. tx=RATE[:BURST]: sent frames wait instead. BURST is by default what comes in a millisecond, at
    /// least 64K. Octets count from destination address to check sequence.
    #[arg(long, value_name = "SPEC", default_value = "off")]
    rate: RateSpec,
    /// How transmit queues share the line: equal, or a weight from 1 to 100 for each from the first on, as in 1,3; those left out are 1.
    /// Shares are of octets (deficit round robin), where all have enough to send
    #[arg(long, value_name = "LIST", default_value = "equal")]
    tx_weights: WeightsSpec,
    /// What a thread that moves packets does that has nothing to do
    #[arg(long, value_enum, default_value = "never", num_args = 0..=1, default_missing_value = "always")]
    poll: PollMode,
    /// CPUs for the threads that move packets, as 2,3 or 2-5: the first for the line's thread, or the only one, the next for
    /// the workers in turn. Without it they run wherever the system puts them
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// The link, or with --autoneg on, the cable, at first. A capture or a generator starts when it comes up: with "down", and vhost-user-nic link up
    /// once the guest is ready, nothing of it is missed
    #[arg(long, value_enum, default_value = "up")]
    link: LinkState,
    /// Where to listen for vhost-user-nic stats, link, mdio, loopback, fault, set and announce
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Log each message of the vhost-user protocol
    #[arg(long)]
    trace_protocol: bool,
}

fn table_length(text: &str) -> Result<u16, String> {
    let length = text.parse().ok().filter(|length: &u16| {
        length.is_power_of_two() && usize::from(*length) <= nic_model::rss::MAX_TABLE
    });
    length.ok_or_else(|| "not a power of two from 1 to 512".to_owned())
}

impl Serve {
    fn features(&self) -> Features {
        let offered = match self.profile {
            Profile::Full | Profile::Qemu => Features::supported(self.queues),
            Profile::VirtioUser => Features::supported(self.queues).without(Features::CTRL_VQ),
        };
        let offered = if self.ring_reset {
            offered | Features::RING_RESET
        } else {
            offered
        };
        self.disable
            .iter()
            .fold(offered, |left, feature| left.without(*feature))
    }

    /// Its NIC, called `name` if there are others.
    fn nic(&self, name: Option<String>) -> NicConfig {
        NicConfig {
            name,
            socket: self.socket.clone(),
            port: PortConfig {
                queue_pairs: self.queues,
                mac: self.mac,
                mtu: self.mtu,
                speed: self.speed,
                link: matches!(self.link, LinkState::Up),
                autoneg: matches!(self.autoneg, Switch::On),
                partner: self.link_partner,
                pfc: self.pfc.0,
                rx_coalesce: self.coalesce.rx,
                tx_coalesce: self.coalesce.tx,
                packet_buffer: self.packet_buffer.0,
                rates: self.rate.0,
                tx_weights: self.tx_weights.0,
                lro: matches!(self.lro, Switch::On),
                rss: matches!(self.rss, Switch::On),
                rss_table: self.rss_table,
                ..PortConfig::default()
            },
            features: self.features(),
            wire: self.wire.clone(),
            fault: self.fault,
            workers: self.workers,
            poll: self.poll,
            cpus: self.cpus.clone().unwrap_or_default(),
            trace: self.trace_protocol,
            clock: Clock::start(),
        }
    }
}

fn main() -> ExitCode {
    let given = config::with_file(std::env::args_os().collect(), &Options::command());
    let given = given.unwrap_or_else(|error| cli::usage::refuse(error));
    serve::log(given.len() > 1);
    let mut given = given.into_iter().map(|Given { args, place }| {
        let command = cli::usage::parse(args).command;
        (command, place)
    });
    let (command, place) = given.next().expect("there is one, whatever is in a file");
    let done = match command {
        Command::Serve(options) => {
            // Of a file with several NICs each has the same command.
            let others = given.filter_map(|(command, place)| match command {
                Command::Serve(options) => Some(serve::Nic { options, place }),
                _ => None,
            });
            let first = serve::Nic { options, place };
            serve::run(&std::iter::once(first).chain(others).collect::<Vec<_>>())
        }
        Command::Stats { target, all, names } => match names.standard() {
            None => stats(&target, all),
            Some(standard) => cli::stats::named(&target, standard),
        },
        Command::Link {
            state,
            partner,
            target,
        } => link(&target, state, partner),
        Command::Loopback { to, target } => loopback(&target, to),
        Command::Mdio(command) => cli::mdio::run(&command),
        Command::Announce { target } => ask_to_announce(&target),
        Command::Fault { spec, target } => change::fault(&target, spec),
        Command::Set { settings, target } => change::set(&target, &settings),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If nobody reads it any more, the status has to do.
            let _ = writeln!(std::io::stderr(), "vhost-user-nic: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn stats(target: &Target, all: bool) -> anyhow::Result<()> {
    let stats = control::ask(&target.control, Request::Stats)?;
    if target.json {
        return print(&serde_json::to_string_pretty(&stats)?);
    }
    let mut lines = Vec::new();
    flatten("", &stats, &mut lines);
    lines.retain(|(_, value)| all || value != "0" && value != "null");
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<_> = lines
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}"))
        .collect();
    print(&lines.join("\n"))
}

/// Prints a line to standard output. A reader that has seen enough is no error.
fn print(text: &str) -> anyhow::Result<()> {
    write(&format!("{text}\n")).map(drop)
}

/// Writes to standard output. Returns false if the reader has seen enough.
fn write(text: &str) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// One line a value, its name made of all names on the way to it.
fn flatten(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let below = |key: &dyn std::fmt::Display| match name {
        "" => key.to_string(),
        name => format!("{name}.{key}"),
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&below(key), value, lines);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            for (index, value) in values.iter().enumerate() {
                flatten(&below(&index), value, lines);
            }
        }
        Value::Array(values) => {
            let text = |value: &Value| match value {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            let values: Vec<_> = values.iter().map(text).collect();
            if !values.is_empty() {
                lines.push((name.to_owned(), values.join(" ")));
            }
        }
        Value::String(text) => lines.push((name.to_owned(), text.clone())),
        other => lines.push((name.to_owned(), other.to_string())),
    }
}

fn link(
    target: &Target,
    state: Option<LinkState>,
    partner: Option<LinkPartner>,
) -> anyhow::Result<()> {
    if let Some(partner) = partner {
        control::ask(&target.control, Request::Partner { partner })?;
    }
    let up = state.map(|state| matches!(state, LinkState::Up));
    let link = control::ask(Path::new(&target.control), Request::Link { up })?;
    if target.json {
        print(&serde_json::to_string_pretty(&link)?)
    } else {
        let speed = &link["speed_mbps"];
        let duplex = match link["phy"]["duplex"].as_str() {
            Some("half") => ", half duplex",
            _ => "",
        };
        match link["link"].as_str() {
            Some("up") => print(&format!("link up at {speed} Mb/s{duplex}")),
            // Without a link there is no speed.
            _ => print("link down"),
        }
    }
}

fn loopback(target: &Target, to: Option<LoopbackTo>) -> anyhow::Result<()> {
    let answer = control::ask(&target.control, Request::Loopback { to })?;
    if target.json {
        print(&serde_json::to_string_pretty(&answer)?)
    } else {
        print(&format!(
            "loopback {}",
            answer["loopback"].as_str().unwrap_or("off")
        ))
    }
}

fn ask_to_announce(target: &Target) -> anyhow::Result<()> {
    let asked = control::ask(&target.control, Request::Announce)?;
    if target.json {
        print(&serde_json::to_string_pretty(&asked)?)
    } else {
        print("the guest is asked to announce itself")
    }
}
