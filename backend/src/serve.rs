//! The command `serve`: NICs, the sockets that control them, and the signals that end them, in one event loop.
//!
//! Each NIC has threads of its own and shares nothing with another, so what a guest, a front-end or a wire does to one is no matter of
//! the others'. They are told apart by their control sockets; in the log, by the NIC's socket before the line. What two of them
//! cannot both have is refused before the first one starts ([`apart`]). A panic, which is a mistake in the program, ends them all.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use log::info;
use nic_backend::control::ControlSocket;
use nic_backend::server::{NicServer, nic_of_this_thread};
use nic_backend::wire::WireSpec;
use nic_model::mac::Mac;
use nic_model::packet_buffer::PacketBuffer;
use nic_model::port::LONGEST_SUPER_FRAME;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::Serve;
use crate::cli::usage;

/// A NIC that is to be served.
#[derive(Debug)]
pub struct Nic {
    /// What it is.
    pub options: Serve,
    /// Where a file says so, if one does.
    pub place: Option<String>,
}

impl Nic {
    /// What is wrong with it.
    fn wrong(&self) -> Option<String> {
        let Serve {
            workers,
            queues,
            cpus,
            packet_buffer,
            pfc,
            rate,
            speed,
            tx_weights,
            mtu,
            wire,
            ..
        } = &self.options;
        if workers > queues {
            return Some(format!(
                "--workers {workers} needs --queues {workers} or more: a worker serves whole queue pairs, and there are {queues}"
            ));
        }
        if let Some(buffer) = packet_buffer.0
            && buffer.guarantee.saturating_mul((*queues).into()) > buffer.size
        {
            return Some(format!(
                "--packet-buffer {packet_buffer}: {queues} queues are guaranteed more than there is"
            ));
        }
        if let Some(buffer) = packet_buffer.0 {
            let most =
                buffer.guarantee as usize + PacketBuffer::new(buffer, (*queues).into()).room(0);
            let (what, longest) = match wire {
                WireSpec::Tap { .. } => ("a super-frame of a TAP device", LONGEST_SUPER_FRAME),
                _ => ("a frame", Mac::new(*mtu).max_frame()),
            };
            if most < longest {
                return Some(format!(
                    "--packet-buffer {packet_buffer}: an empty queue has room for {most} octets, and {what} may have {longest}: make it larger, or alpha"
                ));
            }
        }
        if let Some(reason) = rate.unfit(*speed) {
            return Some(format!("--rate {rate}: {reason}"));
        }
        if let Some(reason) = tx_weights.unfit(*queues) {
            return Some(format!("--tx-weights {tx_weights}: {reason}"));
        }
        let room = self.options.nic(None).port.queue_room();
        if let Some(reason) = pfc.unfit(room, Mac::new(*mtu).max_frame()) {
            return Some(format!("--pfc {pfc}: {reason}"));
        }
        let cpus = cpus.as_ref()?;
        let error = cpus.check(*workers).err()?;
        Some(format!("--cpus {cpus}: {error}"))
    }

    /// `reason`, behind where this NIC is in the file.
    fn placed(&self, reason: &str) -> String {
        match &self.place {
            Some(place) => format!("{place}: {reason}"),
            None => reason.to_owned(),
        }
    }

    /// What no other NIC may have: of which option, and what it is.
    fn own(&self) -> Vec<(&'static str, Own)> {
        let options = &self.options;
        let path = |path: &Path| {
            let whole = std::path::absolute(path);
            Own::Path(whole.unwrap_or_else(|_| path.to_owned()))
        };
        let mut own = vec![
            ("socket", path(&options.socket)),
            ("mac", Own::Name(options.mac.to_string())),
        ];
        own.extend(options.control.as_deref().map(|it| ("control", path(it))));
        match &options.wire {
            // The system chooses the number.
            WireSpec::Tap { name, .. } if name.contains('%') => {}
            WireSpec::Tap { name, .. } => own.push(("wire", Own::Tap(name.clone()))),
            WireSpec::Pcap { output, .. } => {
                own.extend(output.as_deref().map(|it| ("wire", path(it))));
            }
            _ => {}
        }
        own
    }
}

/// What one NIC has, and no other can.
#[derive(Debug, PartialEq, Eq)]
enum Own {
    Path(PathBuf),
    Tap(String),
    Name(String),
}

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Own::Path(path) => path.display().fmt(f),
            Own::Tap(name) => write!(f, "tap={name}"),
            Own::Name(name) => name.fmt(f),
        }
    }
}

/// Why `nics` cannot all be served.
fn apart(nics: &[Nic]) -> Option<String> {
    let mut taken: Vec<(&Nic, &str, Own)> = Vec::new();
    for nic in nics {
        if let Some(reason) = nic.wrong() {
            return Some(nic.placed(&reason));
        }
        for (option, own) in nic.own() {
            if let Some((other, theirs, _)) = taken.iter().find(|(_, _, taken)| *taken == own) {
                let whose = match &other.place {
                    _ if std::ptr::eq(*other, nic) => String::new(),
                    Some(place) => format!(" of the NIC at {place}"),
                    None => " of another NIC".to_owned(),
                };
                let reason =
                    format!("{option}: {own} is the {theirs}{whose} already; each has its own");
                return Some(nic.placed(&reason));
            }
            taken.push((nic, option, own));
        }
    }
    None
}

/// Begins the log. With `several` NICs, each line says which one it is about.
pub fn log(several: bool) {
    use std::io::Write;
    let default = env_logger::Env::default().default_filter_or("info");
    let mut log = env_logger::Builder::from_env(default);
    if several {
        log.format(|out, record| {
            let (time, level) = (out.timestamp(), record.level());
            let (target, text) = (record.target(), record.args());
            match nic_of_this_thread() {
                Some(nic) => writeln!(out, "[{time} {level:<5} {target}] {nic}: {text}"),
                None => writeln!(out, "[{time} {level:<5} {target}] {text}"),
            }
        });
    }
    log.init();
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

/// Serves `nics` until a signal says that it is enough.
pub fn run(nics: &[Nic]) -> anyhow::Result<()> {
    if let Some(reason) = apart(nics) {
        usage::refuse(reason);
    }
    // Before any thread starts, so that all inherit the mask and only the event loop hears of them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    let caught = std::rc::Rc::default();
    let signals = Signals {
        fd: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        caught: std::rc::Rc::clone(&caught),
    };
    if let Some(path) = nics.iter().find_map(|nic| nic.options.config.as_ref()) {
        info!("options from {}", path.display());
    }
    let start = |Nic { options, place }: &Nic| {
        let name = (nics.len() > 1).then(|| options.socket.display().to_string());
        let started = NicServer::start(options.nic(name));
        match place {
            Some(place) if nics.len() > 1 => started.with_context(|| place.clone()),
            _ => started,
        }
    };
    let servers = nics.iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
    let mut events = EventManager::<Box<dyn MutEventSubscriber + '_>>::new()
        .map_err(|error| anyhow::anyhow!("cannot make an event loop: {error}"))?;
    events.add_subscriber(Box::new(signals));
    for (Nic { options, .. }, server) in nics.iter().zip(&servers) {
        if let Some(path) = &options.control {
            events.add_subscriber(Box::new(ControlSocket::new(server, path)?));
        }
    }
    for nic in nics {
        if !announce(&nic.options)? {
            // Whoever read has gone, and takes the program along as any other in a pipe.
            return Ok(());
        }
    }
    while caught.get().is_none() {
        if let Err(error) = events.run() {
            bail!("cannot wait for events: {error}");
        }
    }
    if let Some(signal) = caught.get() {
        info!("{signal}: shutting down");
    }
    drop(events);
    drop(servers);
    Ok(())
}

/// Says how to attach a virtual machine. Returns whether anybody reads it.
fn announce(options: &Serve) -> anyhow::Result<bool> {
    use std::fmt::Write;
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
    let mut text = String::new();
    writeln!(
        text,
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
        writeln!(text, "Counters: vhost-user-nic stats --control {control}\n")?;
    }
    crate::write(&text)
}
