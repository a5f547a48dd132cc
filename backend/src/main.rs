//! `vhost-user-nic`: the NIC on the command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use log::info;
use nic_backend::clock::Clock;
use nic_backend::coalesce::CoalesceSpec;
use nic_backend::control::{self, ControlSocket, Request};
use nic_backend::cpus::CpuList;
use nic_backend::patience::PollMode;
use nic_backend::server::{NicConfig, NicServer};
use nic_backend::wire::WireSpec;
use nic_device::features::Features;
use nic_model::filter::MacAddress;
use nic_model::phy::Speed;
use nic_model::port::PortConfig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::Value;

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
    },
    /// Show the link of a running NIC, or bring it up or down
    Link {
        /// What it shall be; without it, only shown
        state: Option<LinkState>,
        #[command(flatten)]
        target: Target,
    },
    /// Have the guest of a running NIC tell its neighbours where it is, as after a migration
    ///
    /// A guest whose link has come up again does so by itself. The driver must have accepted GUEST_ANNOUNCE; behind QEMU's
    /// virtio-net-pci and cloud-hypervisor it is the VMM that asks.
    Announce {
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

#[derive(Clone, Copy, ValueEnum)]
enum LinkState {
    Up,
    Down,
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// What is offered to the driver, by who stands between.
#[derive(Clone, Copy, ValueEnum)]
enum Profile {
    /// Everything: User-mode Linux, QEMU, crosvm, cloud-hypervisor
    Full,
    /// For QEMU's virtio-net-pci: as full
    Qemu,
    /// For DPDK's virtio-user, which emulates the control queue itself
    VirtioUser,
}

#[derive(clap::Args)]
struct Serve {
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
    /// The line rate: 10M, 100M, 1G, 2.5G, 5G, 10G, 25G, 40G, 50G, 100G, 200G or 400G
    #[arg(long, default_value = "10G")]
    speed: Speed,
    /// What the line is plugged into
    ///
    /// partner: a small host at 10.77.0.1 that answers ARP, ping, and echo (7) and discard (9) over UDP and TCP.
    /// tap=NAME: a TAP device of this host. pcap=IN[,OUT][,pps=N]: replays IN at each link-up, writes OUT.
    /// generator[:pps=N,size=N,flows=N,count=N,random=SEED], sink, loopback, none.
    #[arg(
        long,
        value_name = "SPEC",
        default_value = "partner",
        verbatim_doc_comment
    )]
    wire: WireSpec,
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
    /// When queues interrupt until the driver says otherwise: rx-usecs=N,rx-frames=N,tx-usecs=N,tx-frames=N
    ///
    /// A queue interrupts N frames or N microseconds after the first frame, whichever comes first. off: for each
    /// frame. The driver can change it (ethtool -C), and a device reset restores it.
    #[arg(long, value_name = "SPEC", default_value = "off")]
    coalesce: CoalesceSpec,
    /// Spread received frames by their hash, with the usual key and an even table, until the driver says otherwise; off:
    /// flows are received where they are sent
    #[arg(long, value_enum, default_value = "off")]
    rss: Switch,
    /// Entries of the longest indirection table that a driver may use, a power of two up to 512. Linux before 6.9 breaks with more than
    /// 128
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = table_length)]
    rss_table: u16,
    /// What a thread that moves packets does that has nothing to do
    #[arg(long, value_enum, default_value = "never", num_args = 0..=1, default_missing_value = "always")]
    poll: PollMode,
    /// CPUs for the threads that move packets, as 2,3 or 2-5: the first for the line's thread, or the only one, the next for
    /// the workers in turn. Without it they run wherever the system puts them
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// The link at first. A capture or a generator starts when it comes up: with "down", and vhost-user-nic link up
    /// once the guest is ready, nothing of it is missed
    #[arg(long, value_enum, default_value = "up")]
    link: LinkState,
    /// Where to listen for vhost-user-nic stats, link and announce
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

    fn nic(&self) -> NicConfig {
        NicConfig {
            socket: self.socket.clone(),
            port: PortConfig {
                queue_pairs: self.queues,
                mac: self.mac,
                mtu: self.mtu,
                speed: self.speed,
                link: matches!(self.link, LinkState::Up),
                rx_coalesce: self.coalesce.rx,
                tx_coalesce: self.coalesce.tx,
                rss: matches!(self.rss, Switch::On),
                rss_table: self.rss_table,
                ..PortConfig::default()
            },
            features: self.features(),
            wire: self.wire.clone(),
            workers: self.workers,
            poll: self.poll,
            cpus: self.cpus.clone().unwrap_or_default(),
            trace: self.trace_protocol,
            clock: Clock::start(),
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let default = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(default).init();
    let done = match options.command {
        Command::Serve(options) => serve(&options),
        Command::Stats { target, all } => stats(&target, all),
        Command::Link { state, target } => link(&target, state),
        Command::Announce { target } => ask_to_announce(&target),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-nic: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// SIGTERM and SIGINT, for the management thread's event loop.
struct Signals {
    fd: SignalFd,
    caught: std::rc::Rc<std::cell::Cell<Option<Signal>>>,
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        if let Ok(Some(signal)) = self.fd.read_signal() {
            self.caught
                .set(Signal::try_from(signal.ssi_signo as i32).ok());
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.fd, EventSet::IN))
            .expect("a new descriptor can be waited for");
    }
}

fn serve(options: &Serve) -> anyhow::Result<()> {
    if options.workers > options.queues {
        let (workers, queues) = (options.workers, options.queues);
        Options::command()
            .error(
                ErrorKind::ValueValidation,
                format!("--workers {workers} needs --queues {workers} or more: a worker serves whole queue pairs, and there are {queues}"),
            )
            .exit();
    }
    if let Some(cpus) = &options.cpus
        && let Err(error) = cpus.check(options.workers)
    {
        Options::command()
            .error(
                ErrorKind::ValueValidation,
                format!("--cpus {cpus}: {error}"),
            )
            .exit();
    }
    // Before any thread starts, so that all inherit the mask and only the event loop hears of them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    let caught = std::rc::Rc::default();
    let signals = Signals {
        fd: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        caught: std::rc::Rc::clone(&caught),
    };
    let nic = NicServer::start(options.nic())?;
    let mut events = EventManager::<Box<dyn MutEventSubscriber + '_>>::new()
        .map_err(|error| anyhow::anyhow!("cannot make an event loop: {error}"))?;
    events.add_subscriber(Box::new(signals));
    if let Some(path) = &options.control {
        events.add_subscriber(Box::new(ControlSocket::new(&nic, path)?));
    }
    announce(options)?;
    while caught.get().is_none() {
        if let Err(error) = events.run() {
            bail!("cannot wait for events: {error}");
        }
    }
    if let Some(signal) = caught.get() {
        info!("{signal}: shutting down");
    }
    drop(events);
    drop(nic);
    Ok(())
}

/// Says how to attach a virtual machine.
fn announce(options: &Serve) -> anyhow::Result<()> {
    use std::io::Write;
    let socket = std::path::absolute(&options.socket)?;
    let socket = socket.display();
    let (mac, speed, mtu, wire) = (options.mac, options.speed, options.mtu, &options.wire);
    // QEMU answers for the configuration space; the guest learns the MTU from it alone.
    let host_mtu = match mtu {
        1500 => String::new(),
        mtu => format!(",host_mtu={mtu}"),
    };
    let (netdev, device) = match options.queues {
        1 => (String::new(), String::new()),
        queues => (
            format!(",queues={queues}"),
            format!(",mq=on,vectors={}", 2 * queues + 2),
        ),
    };
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "vhost-user-nic: {mac}, {speed}b/s, MTU {mtu}, wire {wire}, listening on {socket}

QEMU:
  -object memory-backend-memfd,id=mem,size=512M,share=on -machine memory-backend=mem -m 512M
  -chardev socket,id=nic,path={socket},reconnect-ms=500
  -netdev vhost-user,id=net,chardev=nic{netdev} -device virtio-net-pci,netdev=net,mac={mac}{host_mtu}{device}

User-mode Linux:
  virtio_uml.device={socket}:1
"
    )?;
    if let Some(control) = &options.control {
        let control = control.display();
        writeln!(out, "Counters: vhost-user-nic stats --control {control}\n")?;
    }
    out.flush().context("cannot write to standard output")
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

/// Prints to standard output. A reader that has seen enough is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
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

fn link(target: &Target, state: Option<LinkState>) -> anyhow::Result<()> {
    let up = state.map(|state| matches!(state, LinkState::Up));
    let link = control::ask(Path::new(&target.control), Request::Link { up })?;
    if target.json {
        print(&serde_json::to_string_pretty(&link)?)
    } else {
        let text = |key: &str| link[key].as_str().unwrap_or("unknown").to_owned();
        let speed = &link["speed_mbps"];
        print(&format!("link {} at {speed} Mb/s", text("link")))
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
