//! The two hosts that are compared, set up alike: User-mode Linux, and our guest's kernel. Each is on a card of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nic_backend::card::Card;
use nic_backend::clock::Clock;
use nic_backend::cpus::CpuList;
use nic_backend::patience::PollMode;
use nic_backend::server::{NicConfig, NicServer};
use nic_backend::wire::WireSpec;
use nic_backend::wire::fault::FaultSpec;
use nic_device::features::Features;
use nic_device::nic::Nic;
use nic_guest::memory::GuestMemory;
use nic_guest::net::{
    DEVICE_FEATURES, Errno, Fd, Ifindex, Ipv4Sysctl, Ipv6Sysctl, Kernel, KernelConfig, NeighParms,
    ProcFile, Protocol, SockType,
};
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use nic_testbed::in_process::{InProcess, World};

use super::line::{FarEnd, line};
use super::packets::{OURS, PEER, barrier, is_barrier, neighbour};
use super::packets6::{OURS6, PEER6, PREFIX_LEN};
use crate::support::{Conversation, boot_on};

/// How long a host may take for one batch.
const PATIENCE: Duration = Duration::from_secs(60);
/// Every socket's port, and the port of the peer that it is connected to, if it is.
const SOCKETS: [(u16, Option<u16>); 3] = [(7000, None), (7001, Some(9)), (7002, None)];

/// What a host made of some frames.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// A line for each datagram or error that a socket received, by sockets: port, sender, octets.
    pub received: Vec<String>,
    /// Frames that came back.
    pub answers: Vec<Vec<u8>>,
    /// By how much each counter of `/proc/net/snmp` and `/proc/net/snmp6` rose that did.
    pub counters: BTreeMap<String, i64>,
}

/// A host, as far as it can be seen from outside.
pub trait Host {
    /// Has the frames arrive one behind the other and waits until the host is done with them.
    fn take_in(&mut self, frames: &[&[u8]]) -> Outcome;
}

/// What a socket received, in words.
fn received(socket: &str, what: Result<(SocketAddr, &[u8]), Errno>) -> String {
    let mut line = format!("{socket} ");
    match what {
        Ok((from, octets)) => {
            // (Without a scope: devices have numbers of their own.)
            let _ = write!(line, "from {} {}: ", from.ip(), from.port());
            for octet in octets {
                let _ = write!(line, "{octet:02x}");
            }
        }
        Err(errno) => line += &format!("{errno:?}"),
    }
    line
}

/// The numbers of `/proc/net/snmp`, by group and name, and of `/proc/net/snmp6`, by name.
fn counters<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<String, i64> {
    let mut counters = BTreeMap::new();
    let mut names: Vec<&str> = Vec::new();
    for line in lines {
        if let Some((name, value)) = line.split_once('\t') {
            let value = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
            counters.insert(name.trim_end().to_owned(), value);
            continue;
        }
        let words: Vec<_> = line.split(' ').collect();
        if names.first() == words.first() {
            for (name, value) in names.iter().zip(&words).skip(1) {
                let value = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
                counters.insert(format!("{}{name}", words[0].trim_end_matches(':')), value);
            }
            names.clear();
        } else {
            names = words;
        }
    }
    counters
}

/// By how much counters have risen since `before`, which becomes `now`.
fn risen(before: &mut BTreeMap<String, i64>, now: BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let old = std::mem::replace(before, now.clone());
    let risen = now.into_iter().map(|(name, value)| {
        let by = value - old.get(&name).copied().unwrap_or(0);
        (name, by)
    });
    risen.filter(|(_, by)| *by != 0).collect()
}

/// What the cards offer. Nobody filters addresses: each frame reaches the driver.
fn offered() -> Features {
    Features::supported(1) - Features::CTRL_RX
}

/// User-mode Linux.
pub struct UserModeLinux {
    guest: Conversation,
    far_end: FarEnd,
    step: u32,
    before: BTreeMap<String, i64>,
    console: PathBuf,
    _nic: NicServer,
    _directory: tempfile::TempDir,
}

impl UserModeLinux {
    /// Boots it. Its sockets are served by this program, which runs in it as [`listen`].
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (far_end, wire) = line();
        let config = NicConfig {
            name: None,
            socket: directory.path().join("nic.sock"),
            port: PortConfig::default(),
            features: offered(),
            wire: WireSpec::None,
            fault: FaultSpec::default(),
            workers: 1,
            poll: PollMode::Never,
            cpus: CpuList::default(),
            trace: false,
            clock: Clock::start(),
        };
        let socket = config.socket.clone();
        let nic = NicServer::start_with(config, |_, _| Ok(wire)).expect("a NIC");
        let share = directory.path().join("share");
        let loader = share_this_program(&share);
        let console = directory.path().join("console");
        let mut neighbours = String::new();
        for host in 0..=254 {
            let [a, b, c, d, e, f] = neighbour(host);
            let _ = writeln!(
                neighbours,
                "neigh replace 10.77.0.{host} lladdr {a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x} nud permanent dev eth0"
            );
        }
        for host in (0..=254).filter(|host| *host != 2) {
            let [a, b, c, d, e, f] = neighbour(host);
            for prefix in ["fd77", "fe80"] {
                let _ = writeln!(
                    neighbours,
                    "neigh replace {prefix}::{host:x} lladdr {a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x} nud permanent dev eth0"
                );
            }
        }
        fs::write(share.join("neighbours"), neighbours).expect("the shared directory");
        let job = format!(
            "ipv4() {{ echo $2 > /proc/sys/net/ipv4/$1; }}
            ipv4 icmp_ratelimit 0; ipv4 icmp_msgs_per_sec 1000000; ipv4 icmp_msgs_burst 1000000
            ipv4 ipfrag_time 3600
            for dev in all default eth0; do
                ipv4 conf/$dev/rp_filter 0; ipv4 conf/$dev/accept_redirects 0
            done
            ethtool -K eth0 gro off
            modprobe ipv6 disable_ipv6=1
            ipv6() {{ echo $2 > /proc/sys/net/ipv6/$1; }}
            ipv6 icmp/ratelimit 0; ipv6 ip6frag_time 3600; ipv6 auto_flowlabels 0; ipv6 bindv6only 1
            ipv6 neigh/eth0/retrans_time_ms 3600000; ipv6 neigh/eth0/base_reachable_time_ms 36000000
            ipv6 neigh/eth0/delay_first_probe_time 3600
            for dev in all default eth0; do
                ipv6 conf/$dev/accept_ra 0; ipv6 conf/$dev/accept_redirects 0
                ipv6 conf/$dev/router_solicitations 0; ipv6 conf/$dev/accept_dad 0
            done
            ipv6 conf/lo/disable_ipv6 0; ipv6 conf/eth0/disable_ipv6 0
            ip -6 address add {OURS6}/{PREFIX_LEN} dev eth0 nodad
            ip -6 route add default via {PEER6}
            # Until the groups are reported.
            sleep 4
            ip -force -batch /share/neighbours || true
            ip route add default via 10.77.0.1
            /share/lib/{loader} --library-path /share/lib /share/program same_packets::listen --exact --ignored --nocapture"
        );
        let mut guest = boot_on("guest-uml", &[socket], &["--console"]);
        guest.arg(&console);
        let mut guest = Conversation::start(guest, &share, &job);
        let lines = guest.hear("step0");
        // What it said by itself: its groups.
        far_end.take();
        UserModeLinux {
            guest,
            far_end,
            step: 0,
            before: counters(lines.iter().map(String::as_str)),
            console,
            _nic: nic,
            _directory: directory,
        }
    }

    /// Ends it.
    pub fn end(self) {
        fs::write(self.guest.share().join("end"), "").expect("the shared directory");
        self.guest.answer(&format!("step{}", self.step));
        // The rest of what it says is of no interest; it ends when this is dropped.
    }
}

impl Host for UserModeLinux {
    fn take_in(&mut self, frames: &[&[u8]]) -> Outcome {
        let last = barrier();
        self.far_end.send(frames.iter().copied().chain([&last[..]]));
        let (start, mut answers) = (Instant::now(), Vec::new());
        while !answers.iter().any(|frame: &Vec<u8>| is_barrier(frame)) {
            assert!(start.elapsed() < PATIENCE, "Linux does not answer");
            std::thread::sleep(Duration::from_millis(1));
            answers.append(&mut self.far_end.take());
        }
        self.guest.answer(&format!("step{}", self.step));
        self.step += 1;
        let lines = self.guest.hear(&format!("step{}", self.step));
        let lines = || lines.iter().map(String::as_str);
        let received = lines().filter_map(|line| line.strip_prefix("received "));
        let received = received.map(str::to_owned).collect();
        let shown = lines().filter(|line| !line.starts_with("received "));
        answers.append(&mut self.far_end.take());
        Outcome {
            received,
            answers,
            counters: risen(&mut self.before, counters(shown)),
        }
    }
}

impl Drop for UserModeLinux {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = fs::read(&self.console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let lines: Vec<_> = console.lines().rev().take(40).collect();
            eprintln!("--- the guest's console ---");
            for line in lines.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// Puts this program and the libraries that it has loaded into a directory; the name of the one that loads it.
fn share_this_program(share: &Path) -> String {
    let lib = share.join("lib");
    fs::create_dir_all(&lib).expect("a directory");
    let own = std::env::current_exe().expect("the test's own path");
    fs::copy(own, share.join("program")).expect("room for the program");
    let maps = fs::read_to_string("/proc/self/maps").expect("a list of mappings");
    let paths = maps.lines().filter_map(|line| line.split_once('/'));
    let mut loader = None;
    for path in paths.map(|(_, path)| PathBuf::from(format!("/{path}"))) {
        let name = path.file_name().expect("a name").to_string_lossy();
        if !name.contains(".so") || lib.join(&*name).exists() {
            continue;
        }
        fs::copy(&path, lib.join(&*name)).expect("room for a library");
        if name.starts_with("ld-linux") {
            loader = Some(name.into_owned());
        }
    }
    loader.expect("this program is loaded by ld-linux")
}

/// What runs in User-mode Linux: reads the sockets when it is told to, and says what was there and the counters.
pub fn listen() {
    let sockets = SOCKETS.map(|(port, connected)| {
        let own = [
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Ipv6Addr::UNSPECIFIED.into(),
        ];
        let peers = [IpAddr::from(PEER), PEER6.into()];
        [0, 1].map(|at| {
            let socket = UdpSocket::bind((own[at], port)).expect("a socket");
            if let Some(peer) = connected {
                socket.connect((peers[at], peer)).expect("a route");
            }
            socket.set_nonblocking(true).expect("a socket");
            (name(port, at == 1), socket)
        })
    });
    let sockets = sockets.as_flattened();
    println!();
    let mut buf = vec![0; 1 << 16];
    for step in 0.. {
        for file in ["/proc/net/snmp", "/proc/net/snmp6"] {
            print!("{}", fs::read_to_string(file).expect("counters"));
        }
        println!("said step{step}");
        while !Path::new(&format!("/share/step{step}")).exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if Path::new("/share/end").exists() {
            break;
        }
        for (name, socket) in sockets {
            loop {
                let what = match socket.recv_from(&mut buf) {
                    Ok((len, from)) => Ok((from, &buf[..len])),
                    Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
                };
                if what == Err(Errno::EAGAIN) {
                    break;
                }
                println!("received {}", received(name, what));
            }
        }
    }
}

/// What a socket is called.
fn name(port: u16, ipv6: bool) -> String {
    format!("{}{port}", if ipv6 { "6:" } else { "" })
}

/// Adds a line for all that a socket has, by what reads one piece.
fn read_all(
    lines: &mut Vec<String>,
    name: &str,
    mut read: impl FnMut(&mut [u8]) -> Result<(SocketAddr, usize), Errno>,
) {
    let mut buf = vec![0; 1 << 16];
    loop {
        let what = match read(&mut buf) {
            Ok((from, len)) => Ok((from, &buf[..len])),
            Err(Errno::EAGAIN) => break,
            Err(errno) => Err(errno),
        };
        lines.push(received(name, what));
    }
}

/// Our guest's kernel, in virtual time.
pub struct Ours {
    kernel: Kernel<InProcess, World>,
    far_end: FarEnd,
    sockets: Vec<(u16, [Fd; 2])>,
    before: BTreeMap<String, i64>,
}

impl Ours {
    /// Boots it.
    pub fn start() -> Self {
        let (far_end, wire) = line();
        let card = Card::new(
            Nic::new(&PortConfig::default(), offered()),
            wire,
            Nanos::ZERO,
        );
        let memory = GuestMemory::new(32 << 20).expect("guest memory");
        let transport = InProcess::new(card, memory).expect("a mapping");
        let world = transport.world();
        let options = ProbeOptions {
            features: DEVICE_FEATURES,
            ..ProbeOptions::default()
        };
        let dev = VirtnetInfo::probe(transport, &options).expect("a device");
        let config = KernelConfig {
            gateway: Some(PEER),
            ipv4: Ipv4Sysctl {
                icmp_ratelimit: Duration::ZERO,
                icmp_msgs_per_sec: 1_000_000,
                icmp_msgs_burst: 1_000_000,
                ipfrag_time: Duration::from_secs(3600),
                ..Ipv4Sysctl::default()
            },
            ipv6: Ipv6Sysctl {
                addr: Some((OURS6, PREFIX_LEN)),
                gateway: Some(PEER6),
                icmp_ratelimit: Duration::ZERO,
                ip6frag_time: Duration::from_secs(3600),
                ..Ipv6Sysctl::default()
            },
            neigh: NeighParms {
                retrans_time: Duration::from_secs(3600),
                base_reachable_time: Duration::from_secs(36000),
                delay_first_probe_time: Duration::from_secs(3600),
                ..NeighParms::default()
            },
            ..KernelConfig::default()
        };
        let mut kernel = Kernel::new(dev, world, config);
        for host in (0..=254).filter(|host| *host != OURS.octets()[3]) {
            let added = kernel.neigh_add(Ipv4Addr::new(10, 77, 0, host), neighbour(host));
            added.expect("room for a neighbour");
            for prefix in [0xfd77, 0xfe80] {
                let addr = Ipv6Addr::new(prefix, 0, 0, 0, 0, 0, 0, host.into());
                let added = kernel.neigh6_add(addr, Ifindex::ETH0, neighbour(host));
                added.expect("room for a neighbour");
            }
        }
        let sockets = SOCKETS.map(|(port, connected)| {
            let socket = kernel.socket(SockType::Dgram, Protocol::Udp);
            let socket = socket.expect("a socket");
            let own = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            kernel.bind(socket, own).expect("a free port");
            if let Some(peer) = connected {
                let peer = SocketAddrV4::new(PEER, peer);
                kernel.connect(socket, peer).expect("a route");
            }
            let socket6 = kernel.socket6(SockType::Dgram, Protocol::Udp);
            let socket6 = socket6.expect("a socket");
            let own = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
            kernel.bind6(socket6, own).expect("a free port");
            if let Some(peer) = connected {
                let peer = SocketAddrV6::new(PEER6, peer, 0, 0);
                kernel.connect6(socket6, peer).expect("a route");
            }
            (port, [socket, socket6])
        });
        let mut ours = Ours {
            kernel,
            far_end,
            sockets: sockets.into(),
            before: BTreeMap::new(),
        };
        ours.before = ours.counters();
        ours
    }

    fn counters(&self) -> BTreeMap<String, i64> {
        let mut snmp = String::new();
        for file in [ProcFile::Snmp, ProcFile::Snmp6] {
            let shown = self.kernel.proc_show(file, &mut snmp);
            shown.expect("a string has room");
        }
        counters(snmp.lines())
    }
}

impl Host for Ours {
    fn take_in(&mut self, frames: &[&[u8]]) -> Outcome {
        let last = barrier();
        self.far_end.send(frames.iter().copied().chain([&last[..]]));
        let mut answers = Vec::new();
        for _ in 0..100_000 {
            while self.kernel.step().expect("sound rings") {}
            answers.append(&mut self.far_end.take());
            if answers.iter().any(|frame| is_barrier(frame)) {
                break;
            }
            let wait = self.kernel.wait(Duration::from_millis(1));
            wait.expect("the card is there");
        }
        let answered = answers.iter().any(|frame| is_barrier(frame));
        assert!(answered, "our guest does not answer");
        let mut lines = Vec::new();
        for &(port, [socket, socket6]) in &self.sockets {
            let kernel = &mut self.kernel;
            read_all(&mut lines, &name(port, false), |buf| {
                let received = kernel.recvfrom(socket, buf)?;
                Ok((received.from.into(), received.len))
            });
            read_all(&mut lines, &name(port, true), |buf| {
                let received = kernel.recvfrom6(socket6, buf)?;
                Ok((received.from.into(), received.len))
            });
        }
        let now = self.counters();
        Outcome {
            received: lines,
            answers,
            counters: risen(&mut self.before, now),
        }
    }
}
