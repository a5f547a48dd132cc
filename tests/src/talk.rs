//! A small host on any vhost-user-net backend: `nic-guest talk`.
//!
//! It boots the guest's kernel on the backend's socket and does what a user would do first on a Linux: ping, and
//! send datagrams and streams to a service. Meanwhile it answers ARP and ping itself.

mod stream;

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::PossibleValue;
use clap::{Args, Subcommand};
use nic_backend::clock::Clock;
use nic_guest::memory::GuestMemory;
use nic_guest::net::{
    Errno, Fd, Ifindex, Ipv6Sysctl, Kernel, KernelConfig, Machine, ProcFile, Protocol, Received,
    SockType,
};
use nic_guest::transport::vhost_user::{VhostUser, VhostUserOptions};
use nic_guest::virtio_net::VirtnetInfo;
use nic_guest::virtio_net::features::RING_PACKED;

use crate::measure::{RealMachine, probe_options};

/// Memory of the guest, in octets: rings and buffers of a queue pair.
const GUEST_MEMORY: usize = 16 << 20;
/// ICMP's echo request.
const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;
/// Octets of an ICMP header.
const ICMP_HEADER: usize = 8;

/// `nic-guest talk`.
#[derive(Args)]
pub struct Talk {
    /// The backend's socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// This host's address, and how many bits of it name the network
    #[arg(long, value_name = "ADDR/BITS", default_value = "10.77.0.2/24", value_parser = address)]
    address: (Ipv4Addr, u8),
    /// An IPv6 address beside the link-local one, and how many bits of it name the network
    #[arg(long, value_name = "ADDR/BITS", value_parser = address6)]
    address6: Option<(Ipv6Addr, u8)>,
    /// A neighbour that does not answer ARP, as 10.77.0.1=02:00:00:00:77:01; repeatable
    #[arg(long, value_name = "ADDR=MAC", value_parser = neighbour)]
    neighbour: Vec<(Ipv4Addr, [u8; 6])>,
    /// Take packed rings, which the backend has to offer
    #[arg(long)]
    packed: bool,
    /// How long to wait for the backend's socket, and for each answer
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Show a file of this host's /proc when it is done, or all; repeatable
    #[arg(long, value_name = "FILE", value_parser = proc_files())]
    proc: Vec<String>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Send ICMP echo requests and count the answers
    Ping {
        /// Whom to ask
        #[arg(default_value = "10.77.0.1")]
        target: IpAddr,
        /// How many
        #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
        /// The time from one to the next
        #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
        interval: Duration,
        /// Octets of payload
        #[arg(short, long, default_value_t = 56, value_parser = clap::value_parser!(u16).range(0..=1472))]
        size: u16,
    },
    /// Send datagrams to an echo service and compare what comes back; or be the service
    UdpEcho {
        /// Where the service is
        #[arg(default_value = "10.77.0.1:7")]
        target: SocketAddrV4,
        /// How many
        #[arg(short, long, default_value_t = 1000)]
        count: u64,
        /// Octets of payload
        #[arg(short, long, default_value_t = 56, value_parser = clap::value_parser!(u16).range(8..=1472))]
        size: u16,
        /// Be the service, at this port, until so many datagrams have been answered
        #[arg(long, value_name = "PORT", conflicts_with = "target")]
        listen: Option<u16>,
    },
    /// Send octets over a TCP connection, compare what comes back, if anything does, and wait until the service closes
    TcpSend {
        /// Where the service is: discard, echo (port 7), or another guest's tcp-recv
        #[arg(default_value = "10.77.0.1:9")]
        target: SocketAddrV4,
        /// How many octets
        #[arg(short = 'n', long, default_value_t = 10_000_000)]
        octets: u64,
    },
    /// Take TCP connections of tcp-send and compare what comes
    TcpRecv {
        /// At this port
        #[arg(long, value_name = "PORT", default_value_t = 9)]
        listen: u16,
        /// Until so many connections have ended
        #[arg(short, long, default_value_t = 1)]
        count: u64,
    },
}

fn address(text: &str) -> Result<(Ipv4Addr, u8), String> {
    let parts = text.split_once('/');
    parts
        .and_then(|(addr, bits)| Some((addr.parse().ok()?, bits.parse().ok()?)))
        .filter(|(_, bits)| (1..=32).contains(bits))
        .ok_or_else(|| "an address and a prefix length, as 10.77.0.2/24".into())
}

fn address6(text: &str) -> Result<(Ipv6Addr, u8), String> {
    let parts = text.split_once('/');
    parts
        .and_then(|(addr, bits)| Some((addr.parse().ok()?, bits.parse().ok()?)))
        .filter(|(_, bits)| (1..=128).contains(bits))
        .ok_or_else(|| "an IPv6 address and a prefix length, as fd77::2/64".into())
}

fn proc_files() -> Vec<PossibleValue> {
    let files = ProcFile::ALL.iter().map(|file| file.path());
    files.chain(["all"]).map(PossibleValue::new).collect()
}

fn neighbour(text: &str) -> Result<(Ipv4Addr, [u8; 6]), String> {
    let parts = text.split_once('=');
    parts
        .and_then(|(addr, mac)| {
            let mac: nic_model::filter::MacAddress = mac.parse().ok()?;
            Some((addr.parse().ok()?, mac.0))
        })
        .ok_or_else(|| "an address and its MAC address, as 10.77.0.1=02:00:00:00:77:01".into())
}

type GuestKernel = Kernel<VhostUser, RealMachine>;

/// A kernel on a backend, and how long it waits.
struct Host {
    kernel: GuestKernel,
    clock: Clock,
    timeout: Duration,
}

/// Does what the command line says.
///
/// # Errors
/// The backend cannot be reached, refuses, or answers wrongly or not at all.
pub fn run(options: &Talk) -> anyhow::Result<()> {
    let mut host = Host::boot(options)?;
    let done = host.act(options);
    // Who gets no answer wants to see it all the more.
    let shown = host.show_proc(&options.proc);
    done.and(shown)
}

impl Host {
    fn act(&mut self, options: &Talk) -> anyhow::Result<()> {
        match options.action {
            Action::Ping {
                target,
                count,
                interval,
                size,
            } => self.ping(target, count, interval, size.into()),
            Action::UdpEcho {
                count,
                listen: Some(port),
                ..
            } => self.serve_echo(port, count),
            Action::UdpEcho {
                target,
                count,
                size,
                listen: None,
            } => self.udp_echo(target, count, size.into()),
            Action::TcpSend { target, octets } => self.tcp_send(target, octets),
            Action::TcpRecv { listen, count } => self.tcp_recv(listen, count),
        }
    }

    /// Files of `/proc`, with a line before each that says which, where there are several.
    fn show_proc(&self, names: &[String]) -> anyhow::Result<()> {
        let all = names.iter().any(|name| name == "all");
        for file in ProcFile::ALL {
            let path = file.path();
            if !all && !names.iter().any(|name| name == path) {
                continue;
            }
            let mut text = String::new();
            if all || names.len() > 1 {
                text = format!("==> /proc/{path} <==\n");
            }
            self.kernel.proc_show(file, &mut text)?;
            say(text.trim_end_matches('\n'))?;
        }
        Ok(())
    }

    fn boot(options: &Talk) -> anyhow::Result<Self> {
        let memory = GuestMemory::new(GUEST_MEMORY)?;
        let how = VhostUserOptions {
            timeout: options.timeout.max(Duration::from_secs(5)),
            ..VhostUserOptions::default()
        };
        let transport = VhostUser::connect_with(&options.socket, memory, &how)?;
        let mut probe = probe_options();
        if options.packed {
            probe = probe.with(RING_PACKED);
        }
        let dev = VirtnetInfo::probe(transport, &probe)?;
        ensure!(
            !options.packed || dev.features() & RING_PACKED != 0,
            "the backend offers no packed rings"
        );
        ensure!(dev.link_up(), "the backend says that the link is down");
        let clock = Clock::start();
        let (addr, prefix_len) = options.address;
        let config = KernelConfig {
            addr,
            prefix_len,
            random_seed: RandomState::new().hash_one(0),
            ipv6: Ipv6Sysctl {
                addr: options.address6,
                ..Ipv6Sysctl::default()
            },
            ..KernelConfig::default()
        };
        let mut kernel = Kernel::new(dev, RealMachine(clock), config);
        for &(addr, mac) in &options.neighbour {
            kernel.neigh_add(addr, mac)?;
        }
        Ok(Host {
            kernel,
            clock,
            timeout: options.timeout,
        })
    }

    /// Lets the kernel work until `fd` has something or the clock shows `end`, in its nanoseconds.
    fn receive(&mut self, fd: Fd, buffer: &mut [u8], end: u64) -> anyhow::Result<Option<Received>> {
        self.receive_by(end, |kernel| kernel.recvfrom(fd, buffer))
    }

    /// The same by a call of the socket's own.
    fn receive_by<R>(
        &mut self,
        end: u64,
        mut recvfrom: impl FnMut(&mut GuestKernel) -> Result<R, Errno>,
    ) -> anyhow::Result<Option<R>> {
        loop {
            while self.kernel.step()? {}
            match recvfrom(&mut self.kernel) {
                Ok(received) => return Ok(Some(received)),
                Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error).context("recvfrom"),
            }
            let now = self.kernel.machine.now();
            if now >= end {
                return Ok(None);
            }
            let until = self.kernel.next_timer().map_or(end, |timer| timer.min(end));
            let left = Duration::from_nanos(until.saturating_sub(now));
            self.kernel.wait(left)?;
        }
    }

    fn after(&self, time: Duration) -> u64 {
        (self.clock.now() + time).0
    }

    /// An echo reply, its length and who sent it.
    fn receive_reply(
        &mut self,
        fd: Fd,
        target: IpAddr,
        buffer: &mut [u8],
        end: u64,
    ) -> anyhow::Result<Option<(usize, IpAddr)>> {
        self.receive_by(end, |kernel| match target {
            IpAddr::V4(_) => {
                let received = kernel.recvfrom(fd, buffer)?;
                Ok((received.len, (*received.from.ip()).into()))
            }
            IpAddr::V6(_) => {
                let received = kernel.recvfrom6(fd, buffer)?;
                Ok((received.len, (*received.from.ip()).into()))
            }
        })
    }

    fn send_request(&mut self, fd: Fd, message: &[u8], target: IpAddr) -> Result<usize, Errno> {
        match target {
            IpAddr::V4(addr) => {
                let to = SocketAddrV4::new(addr, 0);
                self.kernel.sendto(fd, message, Some(to))
            }
            IpAddr::V6(addr) => {
                // A link-local address, or a group, is one of eth0's link.
                let to = SocketAddrV6::new(addr, 0, 0, Ifindex::ETH0.into());
                self.kernel.sendto6(fd, message, Some(to))
            }
        }
    }

    fn ping(
        &mut self,
        target: IpAddr,
        count: u16,
        interval: Duration,
        size: usize,
    ) -> anyhow::Result<()> {
        let (fd, request) = if target.is_ipv4() {
            let fd = self.kernel.socket(SockType::Dgram, Protocol::Icmp)?;
            (fd, ICMP_ECHO)
        } else {
            let fd = self.kernel.socket6(SockType::Dgram, Protocol::Icmp)?;
            (fd, ICMPV6_ECHO_REQUEST)
        };
        say(&format!("PING {target} {size} octets of payload"))?;
        let (mut received, mut buffer) = (0, vec![0; ICMP_HEADER + 1472]);
        let mut times = Vec::new();
        for sequence in 1..=count {
            let mut message = vec![0; ICMP_HEADER + size];
            message[0] = request;
            message[6..8].copy_from_slice(&sequence.to_be_bytes());
            for (i, octet) in message[ICMP_HEADER..].iter_mut().enumerate() {
                *octet = i as u8;
            }
            let begin = self.clock.now();
            let (next, patience) = (self.after(interval), self.after(self.timeout));
            self.send_request(fd, &message, target)?;
            while let Some((len, from)) = self.receive_reply(fd, target, &mut buffer, patience)? {
                let octets = &buffer[..len];
                if octets.get(6..8) != Some(&sequence.to_be_bytes()) {
                    continue; // an answer that came late
                }
                ensure!(
                    octets[ICMP_HEADER..] == message[ICMP_HEADER..],
                    "the answer to request {sequence} is not what was sent"
                );
                let took = self.clock.now().since(begin);
                times.push(took);
                received += 1;
                let ms = took.as_secs_f64() * 1e3;
                say(&format!(
                    "{len} octets from {from}: icmp_seq={sequence} time={ms:.3} ms"
                ))?;
                break;
            }
            if sequence < count {
                // Meanwhile others are answered.
                self.receive_reply(fd, target, &mut buffer, next)?;
            }
        }
        say(&format!("{count} transmitted, {received} received"))?;
        if let (Some(min), Some(max)) = (times.iter().min(), times.iter().max()) {
            let mean = times.iter().sum::<Duration>() / times.len() as u32;
            let ms = |time: &Duration| time.as_secs_f64() * 1e3;
            let (min, mean, max) = (ms(min), ms(&mean), ms(max));
            say(&format!(
                "rtt min/mean/max = {min:.3}/{mean:.3}/{max:.3} ms"
            ))?;
        } else {
            bail!("{target} does not answer: {}", self.diagnosis());
        }
        Ok(())
    }

    fn udp_echo(&mut self, target: SocketAddrV4, count: u64, size: usize) -> anyhow::Result<()> {
        let fd = self.kernel.socket(SockType::Dgram, Protocol::Udp)?;
        let begin = self.clock.now();
        let (mut sent, mut next, mut lost) = (0u64, 0u64, 0u64);
        let (mut message, mut buffer) = (vec![0; size], vec![0; 1472]);
        // As many under way as no queue on the way minds.
        const WINDOW: u64 = 32;
        while next < count {
            while sent < count && sent - next < WINDOW {
                message.fill(sent as u8);
                message[..8].copy_from_slice(&sent.to_be_bytes());
                self.kernel.sendto(fd, &message, Some(target))?;
                sent += 1;
            }
            let patience = self.after(self.timeout);
            let Some(answer) = self.receive(fd, &mut buffer, patience)? else {
                lost += sent - next;
                if lost == sent {
                    break;
                }
                next = sent;
                continue;
            };
            let octets = &buffer[..answer.len];
            let number = octets
                .first_chunk()
                .map_or(u64::MAX, |n| u64::from_be_bytes(*n));
            let good = octets.len() == size && octets[8..].iter().all(|&o| o == number as u8);
            ensure!(
                good && number < sent,
                "what came back is not what was sent: {} octets from {}",
                answer.len,
                answer.from
            );
            if number >= next {
                lost += number - next;
                next = number + 1;
            }
        }
        let seconds = self.clock.now().since(begin).as_secs_f64();
        let back = sent - lost;
        say(&format!(
            "{sent} datagrams of {size} octets sent to {target}, {back} came back, {lost} lost, in {seconds:.3} s"
        ))?;
        if lost > 0 {
            bail!(
                "{lost} of {sent} datagrams did not come back: {}",
                self.diagnosis()
            );
        }
        Ok(())
    }

    fn serve_echo(&mut self, port: u16, count: u64) -> anyhow::Result<()> {
        let fd = self.kernel.socket(SockType::Dgram, Protocol::Udp)?;
        self.kernel
            .bind(fd, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        let addr = self.kernel.config().addr;
        say(&format!("echo service at {addr}:{port}"))?;
        let mut buffer = vec![0; 9216];
        let mut answered = 0;
        while answered < count {
            let end = self.after(Duration::from_secs(1));
            if let Some(datagram) = self.receive(fd, &mut buffer, end)? {
                self.kernel
                    .sendto(fd, &buffer[..datagram.len], Some(datagram.from))?;
                answered += 1;
            }
        }
        // What the last answer needs to go out.
        let end = self.after(Duration::from_millis(10));
        self.receive(fd, &mut buffer, end)?;
        say(&format!("{answered} datagrams answered"))
    }

    /// What may help to find out why nothing came.
    fn diagnosis(&self) -> String {
        let stats = self.kernel.stats();
        let (rx, tx) = self.kernel.dev.stats();
        // What the kernel dropped, and what the driver did before or behind it.
        let driver = [
            ("rx_length_errors", rx.length_errors),
            ("rx_frame_errors", rx.frame_errors),
            ("rx_ring_errors", rx.ring_errors),
            ("tx_busy", tx.busy),
            ("tx_too_long", tx.too_long),
            ("tx_ring_errors", tx.ring_errors),
        ];
        let drops: Vec<_> = stats
            .drops()
            .chain(driver)
            .filter(|&(_, count)| count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        format!(
            "the backend took {} frames and sent {}, {} interrupts; drops: {}",
            tx.packets,
            rx.packets,
            stats.rx().raised,
            if drops.is_empty() {
                "none".into()
            } else {
                drops.join(", ")
            },
        )
    }
}

/// Prints a line at once. A reader that has seen enough ends the program.
fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}
