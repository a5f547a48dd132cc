//! A link partner that needs no privileges: a small host, so that a guest has someone to talk to at once.
//!
//! It is 02:00:00:00:77:01, 10.77.0.1/24, fd77::1/64 and fe80::ff:fe00:7701/64; it answers ARP, neighbour
//! solicitations and ping, and has the services of [`services`]. The stack is smoltcp's. It verifies every
//! checksum of what it gets: a card that inserts wrong ones is found out.
//!
//! The card's frames enter a queue and are worked off at once, each at its own instant, while there is room for
//! answers; answers leave as the card takes them. So a card that takes nothing holds the partner up, and
//! the only frames it drops are those that find [`INBOUND`] others waiting, and those on the line when
//! the link goes down; both are counted. Connections outlive that.

mod line;
mod services;

use std::time::Duration;

use nic_model::frame::{Frame, Pool};
use nic_model::time::Nanos;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use super::{PortFacts, Wire};
use line::{FROM_SOCKETS, Line, OUTBOUND, Queues};
use services::Services;

/// The partner's address.
const ADDRESS: [u8; 6] = [0x02, 0x00, 0x00, 0x00, 0x77, 0x01];
/// Frames of the card that wait for the partner at most.
const INBOUND: usize = 1024;
/// What a call has done is not to be done again before so much time has passed, whatever smoltcp says: its
/// clock ticks in microseconds.
const TICK: Duration = Duration::from_micros(1);

/// The host at the other end.
pub struct Partner {
    interface: Interface,
    sockets: SocketSet<'static>,
    services: Services,
    queues: Queues,
    mtu: u16,
    /// The partner's time: that of the last frame, or of the last call if it was later.
    clock: Nanos,
    /// When smoltcp wants to be called.
    due: Option<Nanos>,
    /// Whether smoltcp may have had more to send than there was room for.
    blocked: bool,
    /// Whether the link went down since the pool was at hand: what is on the line is lost.
    line_lost: bool,
    frames_in: u64,
    frames_out: u64,
    dropped: u64,
    link_lost: u64,
}

impl Partner {
    /// A partner for the port of `facts`, with its MTU.
    pub fn new(facts: &PortFacts) -> Self {
        let mut queues = Queues::default();
        let mut pool = Pool::new(0);
        let mut line = Line::new(&mut queues, &mut pool, facts.mtu, Nanos::ZERO);
        // The random seed stays the same: so do sequence numbers and identifications, from run to run.
        let config = Config::new(EthernetAddress(ADDRESS).into());
        let mut interface = Interface::new(config, &mut line, Instant::ZERO);
        let addresses = [
            IpCidr::new(IpAddress::v4(10, 77, 0, 1), 24),
            IpCidr::new(IpAddress::v6(0xfd77, 0, 0, 0, 0, 0, 0, 1), 64),
            IpCidr::new(IpAddress::v6(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x7701), 64),
        ];
        interface.update_ip_addrs(|list| {
            for address in addresses {
                list.push(address).expect("smoltcp is built for four");
            }
        });
        let mut sockets = SocketSet::new(Vec::new());
        Partner {
            interface,
            services: Services::start(&mut sockets),
            sockets,
            queues,
            mtu: facts.mtu,
            clock: Nanos::ZERO,
            due: Some(Nanos::ZERO),
            blocked: false,
            line_lost: false,
            frames_in: 0,
            frames_out: 0,
            dropped: 0,
            link_lost: 0,
        }
    }

    /// Works off what has come and sends what there is to send.
    fn work(&mut self, now: Nanos, pool: &mut Pool) {
        while let Some(frame) = self.queues.inbound.front()
            && self.queues.outbound.len() < OUTBOUND
        {
            let at = frame.arrival.max(now);
            self.step(at, true, pool);
        }
        if self.blocked || self.due.is_some_and(|due| due <= now) {
            self.step(now, false, pool);
        }
        self.blocked = self.queues.outbound.len() >= FROM_SOCKETS;
        let at = instant(self.clock);
        let due = self.interface.poll_at(at, &self.sockets);
        self.due = due.map(|due| Nanos(due.total_micros() as u64 * 1_000).max(now + TICK));
    }

    /// Takes one frame, if told to, serves, and sends, all at the instant `at`.
    fn step(&mut self, at: Nanos, take: bool, pool: &mut Pool) {
        self.clock = self.clock.max(at);
        let at = instant(self.clock);
        let mut line = Line::new(&mut self.queues, pool, self.mtu, self.clock);
        if take {
            self.interface
                .poll_ingress_single(at, &mut line, &mut self.sockets);
        } else {
            self.interface.poll_maintenance(at);
        }
        line.recycle();
        self.services.serve(&mut self.sockets);
        while line.turn(|line| {
            self.interface.poll_egress(at, line, &mut self.sockets);
        }) {
            // What went may have made room for more to be echoed.
            self.services.serve(&mut self.sockets);
        }
    }

    /// Moves answers that have arrived to `frames`, until there are `end` of them.
    fn hand_out(&mut self, now: Nanos, end: usize, frames: &mut Vec<Frame>) {
        while frames.len() < end
            && let Some(frame) = self.queues.outbound.pop_front_if(|f| f.arrival <= now)
        {
            frames.push(frame);
            self.frames_out += 1;
        }
    }

    fn clear_lost(&mut self, pool: &mut Pool) {
        if std::mem::take(&mut self.line_lost) {
            let Queues {
                inbound, outbound, ..
            } = &mut self.queues;
            self.link_lost += (inbound.len() + outbound.len()) as u64;
            pool.give_all(inbound.drain(..).chain(outbound.drain(..)));
        }
    }
}

fn instant(at: Nanos) -> Instant {
    Instant::from_micros((at.0 / 1_000) as i64)
}

impl Wire for Partner {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.clear_lost(pool);
        let end = frames.len() + room;
        self.hand_out(now, end, frames);
        let waiting = !self.queues.inbound.is_empty() || self.blocked;
        if waiting || self.due.is_some_and(|due| due <= now) {
            self.work(now, pool);
            self.hand_out(now, end, frames);
        }
    }

    fn transmit(&mut self, now: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.clear_lost(pool);
        for frame in frames.drain(..) {
            self.frames_in += 1;
            if self.queues.inbound.len() < INBOUND {
                self.queues.inbound.push_back(frame);
            } else {
                self.dropped += 1;
                pool.give(frame);
            }
        }
        self.work(now, pool);
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let answer = match self.line_lost {
            true => None,
            false => self.queues.outbound.front().map(|frame| frame.arrival),
        };
        [answer, self.due].into_iter().flatten().min()
    }

    fn link_changed(&mut self, _: Nanos, up: bool) {
        self.line_lost |= !up;
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("partner_frames_in", self.frames_in),
            ("partner_frames_out", self.frames_out),
            ("partner_dropped", self.dropped),
            ("partner_link_lost", self.link_lost),
            ("partner_udp_echoed", self.services.udp_echoed),
            ("partner_udp_discarded", self.services.udp_discarded),
            ("partner_udp_dropped", self.services.udp_dropped),
            ("partner_tcp_echoed", self.services.tcp_echoed),
            ("partner_tcp_discarded", self.services.tcp_discarded),
        ]
    }
}

#[cfg(test)]
mod tests;
