//! The guest of the scenarios behind a card, both traced, in virtual time.
//!
//! Its devices, addresses, sockets and neighbours are those of `fixtures/kernel-traces`.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use nic_backend::card::{Card, Line};
use nic_backend::wire::Wire;
use nic_device::features::Features;
use nic_device::nic::Nic;
use nic_guest::memory::GuestMemory;
use nic_guest::net::netfilter::NftChain;
use nic_guest::net::sch_api::{FqCodelParams, QdiscKind};
use nic_guest::net::trace::Traced;
use nic_guest::net::{CpuCost, Fd, Ifindex, Kernel, KernelConfig, Protocol, SockType};
use nic_guest::virtio_net::VirtnetInfo;
use nic_model::filter::MacAddress;
use nic_model::frame::{Frame, Pool};
use nic_model::port::PortConfig;
use nic_model::time::Nanos;

use super::capture::Incoming;
use super::hardware::Observer;
use super::scenario::{Beside, Scenario};
use crate::in_process::{InProcess, World};
use crate::measure::probe_options;

/// Memory of the guest, in octets.
const GUEST_MEMORY: usize = 16 << 20;
/// The card's address.
const MAC: MacAddress = MacAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
/// The neighbour.
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x77, 0x01];
/// The device that is only software, its network, and a neighbour there.
const DUMMY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x09, 0x01];
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 168, 9, 1);
const BEYOND: Ipv4Addr = Ipv4Addr::new(192, 168, 9, 2);
const BEYOND_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x09, 0x02];
/// The bridge's port that is only software.
const DUMMY1_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x09, 0x03];
/// The VLAN of the card's device, the guest there, its socket, and a neighbour.
const VLAN_ID: u16 = 100;
const VLAN: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 2);
const VLAN_PORT: u16 = 7001;
pub const VLAN_PEER: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);
/// Where the guest's process has a socket, and where it listens for connections.
pub const PORT: u16 = 7000;
const TCP_PORT: u16 = 7002;
/// When nothing has happened for so long, nothing will.
const QUIET: Duration = Duration::from_millis(1);
/// Octets that a link carries beside a frame: preamble and gap (IEEE 802.3, 4.2.3.2), check sequence.
const LINE_OVERHEAD: u64 = 24;
/// The line carries ten octets in 8 ns: what comes in a burst is there before the CPU has dealt with its first frame.
const SPEED: &str = "10G";
const TEN_OCTETS: u64 = 8;
/// How long an interrupt waits for the last frame of a burst, in microseconds.
const BURST_USECS: u32 = 100;

/// Frames on their way to the card, each with the instant at which the line begins to carry it.
type OnLine = Arc<Mutex<VecDeque<(Nanos, Incoming)>>>;

/// A wire whose other end says what comes when, and keeps nothing of what it gets.
struct Script(OnLine);

impl Wire for Script {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = line
            .iter()
            .take(room)
            .take_while(|(at, _)| *at <= now)
            .count();
        for (at, incoming) in line.drain(..due) {
            let mut frame = pool.take();
            if frame.fill(&incoming.bytes) {
                frame.fcs = incoming.fcs;
                frame.excess = incoming.excess;
                frame.arrival = at;
                frames.push(frame);
            } else {
                pool.give(frame);
            }
        }
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        for frame in frames.drain(..) {
            pool.give(frame);
        }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.front().map(|(at, _)| *at)
    }
}

/// A guest behind a card, traced.
pub struct Bed {
    /// The kernel.
    pub kernel: Kernel<InProcess, Traced<World>>,
    world: World,
    line: OnLine,
    /// The process's socket.
    pub reader: Fd,
}

impl Bed {
    /// A guest whose work takes that long, and its process's sockets; the link is up.
    pub fn new(cost: CpuCost) -> anyhow::Result<Self> {
        let config = PortConfig {
            mac: MAC,
            link: false,
            speed: SPEED
                .parse()
                .map_err(|_| anyhow::anyhow!("no such speed"))?,
            ..PortConfig::default()
        };
        let line = OnLine::default();
        let wire = Box::new(Script(line.clone()));
        let card = Card::new(Nic::new(&config, Features::supported(1)), wire, Nanos::ZERO);
        let transport = InProcess::new(card, GuestMemory::new(GUEST_MEMORY)?)?;
        let (world, card) = (transport.world(), transport.card());
        let dev = VirtnetInfo::probe(transport, &probe_options())?;
        let machine = Traced::new(world.clone());
        let mut observer = Observer::new(machine.tracer.clone(), &card.borrow());
        world.set_watch(Box::new(move |card| observer.look(card)));
        let config = KernelConfig {
            cost,
            ip_forward: true,
            // What systemd says, of the recorded kernels' too.
            default_qdisc: QdiscKind::FqCodel(FqCodelParams::default()),
            // The recorded kernels' had found out how much keeps the device busy; ours would begin with one packet.
            bql: false,
            ..KernelConfig::default()
        };
        let mut kernel = Kernel::new(dev, machine, config);
        card.borrow_mut().set_link(world.now(), true);
        let reader = kernel.socket(SockType::Dgram, Protocol::Udp)?;
        kernel.bind(reader, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT))?;
        let listener = kernel.socket(SockType::Stream, Protocol::Tcp)?;
        kernel.bind(listener, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, TCP_PORT))?;
        kernel.listen(listener, 1)?;
        Ok(Bed {
            kernel,
            world,
            line,
            reader,
        })
    }

    /// Brings the guest into the state that a scenario begins with.
    pub fn set_up(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        let dummy = self.kernel.dummy_add("dummy0", DUMMY_MAC)?;
        self.kernel.inet_addr_add(dummy, DUMMY, 24)?;
        let vlan = self.kernel.vlan_add("eth0.100", Ifindex::ETH0, VLAN_ID)?;
        self.kernel.inet_addr_add(vlan, VLAN, 24)?;
        let socket = self.kernel.socket(SockType::Dgram, Protocol::Udp)?;
        let at = SocketAddrV4::new(VLAN, VLAN_PORT);
        self.kernel.bind(socket, at)?;
        self.kernel.neigh_add(VLAN_PEER, PEER_MAC)?;
        self.kernel.neigh_add(PEER, PEER_MAC)?;
        self.kernel.neigh_add(BEYOND, BEYOND_MAC)?;
        self.settle()?;
        if scenario.warm {
            let fd = self.kernel.socket(SockType::Dgram, Protocol::Udp)?;
            self.kernel
                .sendto(fd, b"before", Some(SocketAddrV4::new(PEER, 9)))?;
            self.settle()?;
            self.kernel.close(fd)?;
        }
        let bridge = self.kernel.br_add_bridge("br0")?;
        let dummy = self.kernel.dummy_add("dummy1", DUMMY1_MAC)?;
        self.kernel.br_add_if(bridge, dummy)?;
        match scenario.beside {
            Beside::Nothing => {}
            Beside::Bridge => self.kernel.br_add_if(bridge, Ifindex::ETH0)?,
            Beside::Tap => {
                self.kernel.packet_socket(Some(Ifindex::ETH0))?;
            }
        }
        self.settle()?;
        for &hook in scenario.hooks {
            self.kernel.nf_register_net_hook(NftChain::counting(hook));
        }
        Ok(())
    }

    /// So many frames are to come in a burst: several have one interrupt.
    pub fn expect_burst(&mut self, frames: usize) -> anyhow::Result<()> {
        if frames > 1 {
            let (burst, usecs) = (u32::try_from(frames)?, BURST_USECS);
            self.kernel.dev.set_rx_coalesce(burst, usecs)?;
            self.settle()?;
        }
        Ok(())
    }

    /// Has frames come one behind the other, as fast as the line carries them.
    pub fn arrive(&mut self, frames: Vec<Incoming>) {
        let mut at = self.world.now();
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for frame in frames {
            let octets = frame.bytes.len().max(60) as u64 + u64::from(frame.excess) + LINE_OVERHEAD;
            line.push_back((at, frame));
            at += Duration::from_nanos((octets * TEN_OCTETS).div_ceil(10));
        }
    }

    /// The process sleeps until something was put into a socket's queue, or nothing has happened for long.
    pub fn wait_for_datagram(&mut self) -> anyhow::Result<bool> {
        let before = self.kernel.stats().queued;
        let end = self.world.now() + QUIET;
        while self.kernel.stats().queued == before && self.world.now() < end {
            if !self.kernel.step()? {
                self.kernel.wait(QUIET)?;
            }
        }
        Ok(self.kernel.stats().queued > before)
    }

    /// Goes on until nothing happens any more.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        loop {
            let mut any = false;
            while self.kernel.step()? {
                any = true;
            }
            self.kernel.wait(QUIET)?;
            if !any && !self.kernel.step()? {
                return Ok(());
            }
        }
    }

    /// The process looks whether there is something, what it is, and takes it.
    pub fn read(&mut self, fd: Fd) -> anyhow::Result<()> {
        let mut buf = [0; 2048];
        ensure!(self.kernel.poll(fd)?, "there is nothing to read");
        let seen = self.kernel.recvmsg_peek(fd, &mut buf)?;
        let read = self.kernel.recvfrom(fd, &mut buf).context("recvfrom")?;
        ensure!(seen == read, "what was seen is not what was read");
        Ok(())
    }

    /// The process takes all that there is.
    pub fn read_all(&mut self, fd: Fd) -> anyhow::Result<()> {
        while self.kernel.poll(fd)? {
            let mut buf = [0; 2048];
            self.kernel.recvfrom(fd, &mut buf).context("recvfrom")?;
        }
        Ok(())
    }
}
