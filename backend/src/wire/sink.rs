//! A receiver that keeps nothing.
//!
//! Frames enter, their headers are looked at, they are counted by protocol, and dropped. Nothing leaves.

use nic_model::frame::{Frame, Pool};
use nic_model::parse::{self, Network, Transport};
use nic_model::time::Nanos;

use super::Wire;

/// The receiver.
#[derive(Debug, Default)]
pub struct Sink {
    frames: u64,
    octets: u64,
    ipv4: u64,
    ipv6: u64,
    other: u64,
    tcp: u64,
    udp: u64,
}

impl Sink {
    fn look_at(&mut self, bytes: &[u8]) {
        self.frames += 1;
        self.octets += bytes.len() as u64;
        let summary = parse::summarise(bytes);
        match summary.network {
            Network::Ipv4 => self.ipv4 += 1,
            Network::Ipv6 => self.ipv6 += 1,
            Network::Other => self.other += 1,
        }
        match summary.transport {
            Transport::Tcp => self.tcp += 1,
            Transport::Udp => self.udp += 1,
            Transport::None => {}
        }
    }
}

impl Wire for Sink {
    fn receive(&mut self, _: Nanos, _: usize, _: &mut Pool, _: &mut Vec<Frame>) {}

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        for frame in frames.drain(..) {
            self.look_at(frame.bytes());
            pool.give(frame);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("sink_frames", self.frames),
            ("sink_octets", self.octets),
            ("sink_ipv4", self.ipv4),
            ("sink_ipv6", self.ipv6),
            ("sink_other", self.other),
            ("sink_tcp", self.tcp),
            ("sink_udp", self.udp),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{frame, pool};
    use etherparse::PacketBuilder;

    #[test]
    fn frames_are_counted_by_protocol() {
        let (mut wire, mut pool) = (Sink::default(), pool(1500));
        let ether = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut packets = vec![Vec::new(); 4];
        let ipv4 = || ether().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        ipv4().udp(1, 2).write(&mut packets[0], b"payload").unwrap();
        let ipv6 = ether().ipv6([7; 16], [9; 16], 64);
        ipv6.tcp(1, 2, 3, 4).write(&mut packets[1], b"x").unwrap();
        ipv4().udp(1, 2).write(&mut packets[2], b"more").unwrap();
        packets[3] = vec![0xff; 60];
        let octets: usize = packets.iter().map(Vec::len).sum();
        let mut frames = packets.iter().map(|p| frame(&mut pool, 0, p)).collect();
        wire.transmit(Nanos(0), &mut pool, &mut frames);
        assert!(frames.is_empty());
        assert_eq!(pool.lent(), 0);
        let counts: Vec<u64> = wire.counters().into_iter().map(|(_, n)| n).collect();
        assert_eq!(counts, [4, octets as u64, 2, 1, 1, 1, 2]);
    }
}
