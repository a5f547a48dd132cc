//! A traffic generator: UDP datagrams to the card, from 02:00:00:00:77:01, 10.77.0.1 to 10.77.0.2.
//!
//! Frames leave at a rate that starts with each link-up, constant or random, or as many as the line takes. Each
//! carries a sequence number in the first eight octets of its payload, and in the next eight the instant at which it
//! was due on the line, in nanoseconds of the card's clock, both big-endian; its flow, the sequence number modulo
//! the number of flows, is its UDP source port. All else comes from a template, checksums included: only
//! the words that differ are added (RFC 1624, 3), and a buffer that still holds the template is not written again but for
//! these. What the card sends enters and is dropped, counted.

use std::num::NonZeroU64;
use std::time::Duration;

use nic_model::checksum;
use nic_model::filter::MacAddress;
use nic_model::frame::{Checksum, ETHERNET_HEADER, FCS, Frame, Pool};
use nic_model::mac::{MIN_FRAME, fcs};
use nic_model::phy::LINE_OVERHEAD;
use nic_model::time::Nanos;

use super::pace::Pace;
use super::{OpenError, PortFacts, Wire};

/// The address that frames come from.
pub const SOURCE: MacAddress = MacAddress([0x02, 0x00, 0x00, 0x00, 0x77, 0x01]);
const SOURCE_IP: [u8; 4] = [10, 77, 0, 1];
const DESTINATION_IP: [u8; 4] = [10, 77, 0, 2];
/// The discard service.
const DESTINATION_PORT: u16 = 9;
/// The UDP source port of the first flow.
const FIRST_PORT: u16 = 1024;
/// Flows that there are source ports for.
pub const MAX_FLOWS: u32 = 65_536 - FIRST_PORT as u32;

const IP: usize = ETHERNET_HEADER;
const UDP: usize = IP + 20;
const UDP_CHECKSUM: usize = UDP + 6;
const PAYLOAD: usize = UDP + 8;
/// Sequence number and instant.
const NUMBERS: usize = 16;

/// How late frames may be asked for without loss to the line's rate: a worker that overslept by no more
/// finds them ready since, and the line never was idle.
const PATIENCE: Duration = Duration::from_millis(1);

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Frames a second; without it, as many as the line takes.
    pub pps: Option<NonZeroU64>,
    /// Octets of a frame with its check sequence.
    pub size: usize,
    /// Distinct flows that the frames belong to, in turn.
    pub flows: u32,
    /// Frames in all; without it, no end.
    pub count: Option<u64>,
    /// The seed of random gaps; without it, they are all the same.
    pub random: Option<u64>,
}

/// Octets of frames made at a time: what the card then reads of them is still in the nearest cache.
const NEAR: usize = 48 * 1024;

/// The generator.
#[derive(Debug)]
pub struct Generator {
    load: Load,
    template: Box<[u8]>,
    /// What buffers hold that hold the template, but for the words that differ.
    pattern: u32,
    /// The template's UDP checksum as a sum that is not complemented, without source port and sequence.
    sum: u16,
    sequence: u64,
    flow: u32,
    /// Since when there is a link.
    up: Option<Nanos>,
    pace: Option<Pace>,
    /// Picoseconds that a frame occupies the line.
    occupies: u64,
    sunk: u64,
}

impl Generator {
    /// A generator of `load` for the port of `facts`.
    ///
    /// # Errors
    /// The port does not take frames of that size.
    pub fn new(load: Load, facts: &PortFacts) -> Result<Self, OpenError> {
        let max = usize::from(facts.mtu) + ETHERNET_HEADER + FCS;
        if load.size > max {
            return Err(OpenError::FrameSize {
                size: load.size,
                mtu: facts.mtu,
                max,
            });
        }
        let template = template(load.size.max(MIN_FRAME) - FCS, facts.mac);
        let udp_length = (template.len() - UDP) as u64;
        let pseudo = 17 + udp_length + u64::from(checksum::sum(&template[IP + 12..UDP], 0));
        Ok(Generator {
            sum: checksum::sum(&template[UDP..], pseudo),
            load,
            pattern: u32::from_le_bytes(fcs(&template)).max(1),
            template,
            sequence: 0,
            flow: 0,
            up: None,
            pace: None,
            occupies: (load.size + LINE_OVERHEAD) as u64 * facts.speed.picoseconds_per_octet(),
            sunk: 0,
        })
    }

    fn exhausted(&self) -> bool {
        self.load.count.is_some_and(|count| self.sequence >= count)
    }

    /// Writes the next frame of the sequence, due at `arrival`.
    #[inline]
    fn write(&mut self, frame: &mut Frame, arrival: Nanos) {
        let len = self.template.len();
        frame.set_len(len);
        let known = frame.pattern() == self.pattern;
        let bytes = &mut frame.bytes_mut()[..len];
        if !known {
            bytes.copy_from_slice(&self.template);
        }
        let port = FIRST_PORT + self.flow as u16;
        let (n, due) = (self.sequence, arrival.0);
        // Sums of 32-bit words are as good: 2^16 is 1 (RFC 1071, 2).
        let low = u64::from(u32::MAX);
        let sum = (n >> 32) + (n & low) + (due >> 32) + (due & low);
        let sum = sum + u64::from(self.sum) + u64::from(port);
        bytes[UDP..UDP + 2].copy_from_slice(&port.to_be_bytes());
        bytes[UDP_CHECKSUM..PAYLOAD].copy_from_slice(&udp_checksum(sum).to_be_bytes());
        let numbers = u128::from(n) << 64 | u128::from(due);
        bytes[PAYLOAD..PAYLOAD + NUMBERS].copy_from_slice(&numbers.to_be_bytes());
        frame.set_pattern(self.pattern);
        frame.arrival = arrival;
        // By construction, as the check sequence is.
        frame.checksum = Checksum::Valid;
        self.sequence += 1;
        self.flow += 1;
        if self.flow == self.load.flows {
            self.flow = 0;
        }
    }
}

/// The checksum field for a sum of less than 2^48; zero would mean that there is none (RFC 768).
#[inline]
fn udp_checksum(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    match !(sum as u16) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// A frame of `len` octets without its check sequence; UDP source port, checksum and numbers are zero.
fn template(len: usize, destination: MacAddress) -> Box<[u8]> {
    let mut bytes = vec![0; len].into_boxed_slice();
    let be16 = |n: usize| (n as u16).to_be_bytes();
    bytes[..6].copy_from_slice(&destination.0);
    bytes[6..12].copy_from_slice(&SOURCE.0);
    bytes[12..14].copy_from_slice(&[0x08, 0x00]);
    bytes[IP] = 0x45;
    bytes[IP + 2..IP + 4].copy_from_slice(&be16(len - IP));
    bytes[IP + 6] = 0x40; // do not fragment: so the identification may stay zero (RFC 6864, 4.1)
    bytes[IP + 8] = 64;
    bytes[IP + 9] = 17;
    bytes[IP + 12..IP + 16].copy_from_slice(&SOURCE_IP);
    bytes[IP + 16..UDP].copy_from_slice(&DESTINATION_IP);
    let header = !checksum::sum(&bytes[IP..UDP], 0);
    bytes[IP + 10..IP + 12].copy_from_slice(&header.to_be_bytes());
    bytes[UDP + 2..UDP + 4].copy_from_slice(&DESTINATION_PORT.to_be_bytes());
    bytes[UDP + 4..UDP + 6].copy_from_slice(&be16(len - UDP));
    for (i, octet) in bytes[PAYLOAD + NUMBERS..].iter_mut().enumerate() {
        *octet = i as u8;
    }
    bytes
}

impl Wire for Generator {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        let Some(up) = self.up else { return };
        let near = NEAR / self.template.len();
        for _ in 0..room.min(near.max(1)) {
            if self.exhausted() {
                break;
            }
            let arrival = match &mut self.pace {
                Some(pace) if pace.due() > now => break,
                Some(pace) => pace.advance(),
                None => up.max(now - PATIENCE),
            };
            let mut frame = pool.take();
            self.write(&mut frame, arrival);
            frames.push(frame);
        }
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        self.sunk += frames.len() as u64;
        pool.give_all(frames.drain(..));
    }

    fn next_deadline(&self) -> Option<Nanos> {
        match &self.pace {
            _ if self.exhausted() => None,
            Some(pace) => Some(pace.due()),
            None => self.up,
        }
    }

    fn is_scheduled(&self) -> bool {
        self.pace.is_some()
    }

    fn link_changed(&mut self, now: Nanos, up: bool) {
        self.up = up.then_some(now);
        self.pace = match self.load.pps {
            Some(pps) if up => Some(match self.load.random {
                Some(seed) => Pace::random(pps, self.occupies, seed, now),
                None => Pace::constant(pps, now),
            }),
            _ => None,
        };
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("generator_frames", self.sequence),
            ("generator_sunk", self.sunk),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{CARD, facts, pool};
    use etherparse::{SlicedPacket, TransportSlice};

    fn generator(pps: u64, size: usize, flows: u32, count: Option<u64>) -> Generator {
        let load = Load {
            pps: NonZeroU64::new(pps),
            size,
            flows,
            count,
            random: None,
        };
        Generator::new(load, &facts(9000)).unwrap()
    }

    fn check(frame: &Frame, sequence: u64, flows: u64) {
        let packet = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
        let link = packet
            .link
            .unwrap()
            .to_header()
            .unwrap()
            .ethernet2()
            .unwrap();
        assert_eq!((link.destination, link.source), (CARD.0, SOURCE.0));
        let etherparse::NetSlice::Ipv4(ip) = packet.net.unwrap() else {
            panic!("no IPv4");
        };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(
            (header.source, header.destination),
            (SOURCE_IP, DESTINATION_IP)
        );
        let Some(TransportSlice::Udp(udp)) = packet.transport else {
            panic!("no UDP");
        };
        let right = udp
            .to_header()
            .calc_checksum_ipv4(&header, udp.payload())
            .unwrap();
        assert_eq!(udp.checksum(), right, "frame {sequence}");
        assert_ne!(udp.checksum(), 0);
        assert_eq!(udp.payload()[..8], sequence.to_be_bytes());
        assert_eq!(udp.payload()[8..16], frame.arrival.0.to_be_bytes());
        assert_eq!(u64::from(udp.source_port()), 1024 + sequence % flows);
    }

    #[test]
    fn a_buffer_that_others_wrote_to_is_written_again() {
        let mut pool = pool(1500);
        let mut wire = generator(0, 1518, 3, None);
        wire.link_changed(Nanos(0), true);
        let mut frames = Vec::new();
        for sequence in 0..8 {
            wire.receive(Nanos(0), 1, &mut pool, &mut frames);
            check(&frames[0], sequence, 3);
            pool.give_all(frames.drain(..));
            let mut other = pool.take();
            match sequence % 4 {
                0 => assert!(other.fill(&[0xee; 1000])),
                1 => other.buffer_mut()[1400] ^= 1,
                2 => {
                    other.set_len(100);
                    other.bytes_mut()[99] ^= 1;
                }
                _ => other.set_len(10),
            }
            pool.give(other);
        }
    }

    #[test]
    fn frames_are_valid_and_distinct_at_every_size() {
        let mut pool = pool(9000);
        for size in [64, 65, 128, 777, 1518, 9018] {
            let mut wire = generator(0, size, 3, None);
            wire.link_changed(Nanos(0), true);
            let mut frames = Vec::new();
            while frames.len() < 64 {
                wire.receive(Nanos(0), 64 - frames.len(), &mut pool, &mut frames);
            }
            for (n, frame) in frames.iter().enumerate() {
                assert_eq!(frame.len() + FCS, size);
                check(frame, n as u64, 3);
            }
            pool.give_all(frames);
        }
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn checksums_stay_right_as_the_sequence_wraps_its_words() {
        let mut pool = pool(9000);
        let mut wire = generator(0, 64, MAX_FLOWS, None);
        wire.link_changed(Nanos(0), true);
        for start in [0, 65_500, 0xffff_ffe0, 0xffff_ffff_ffe0, u64::MAX - 65] {
            wire.sequence = start;
            wire.flow = (start % u64::from(MAX_FLOWS)) as u32;
            let mut frames = Vec::new();
            wire.receive(Nanos(0), 64, &mut pool, &mut frames);
            for (n, frame) in frames.iter().enumerate() {
                check(frame, start + n as u64, u64::from(MAX_FLOWS));
            }
            pool.give_all(frames);
        }
    }

    #[test]
    fn the_pace_is_exact_from_each_link_up() {
        let mut pool = pool(9000);
        let mut wire = generator(3, 64, 1, None);
        let mut frames = Vec::new();
        wire.receive(Nanos(0), 64, &mut pool, &mut frames);
        assert_eq!((frames.len(), wire.next_deadline()), (0, None), "no link");
        wire.link_changed(Nanos(500), true);
        assert_eq!(wire.next_deadline(), Some(Nanos(500)));
        wire.receive(Nanos(500 + 666_666_666), 64, &mut pool, &mut frames);
        let arrivals: Vec<u64> = frames.iter().map(|f| f.arrival.0).collect();
        assert_eq!(arrivals, [500, 333_333_833, 666_667_166]);
        assert_eq!(wire.next_deadline(), Some(Nanos(1_000_000_500)));
        wire.link_changed(Nanos(700_000_000), false);
        wire.receive(Nanos(2_000_000_000), 64, &mut pool, &mut frames);
        assert_eq!((frames.len(), wire.next_deadline()), (3, None));
        wire.link_changed(Nanos(3_000_000_000), true);
        wire.receive(Nanos(3_000_000_000), 64, &mut pool, &mut frames);
        assert_eq!(frames[3].arrival, Nanos(3_000_000_000));
        check(&frames[3], 3, 1);
    }

    #[test]
    fn random_gaps_leave_each_frame_its_time_on_the_line() {
        let mut pool = pool(9000);
        let load = Load {
            random: Some(3),
            ..generator(1_000_000, 64, 1, None).load
        };
        let mut wire = Generator::new(load, &facts(9000)).unwrap();
        wire.link_changed(Nanos(0), true);
        let mut frames = Vec::new();
        while frames.len() < 1000 {
            let left = 1000 - frames.len();
            wire.receive(Nanos(1_000_000_000), left, &mut pool, &mut frames);
        }
        assert_eq!(frames.len(), 1000);
        for (n, pair) in frames.windows(2).enumerate() {
            check(&pair[1], n as u64 + 1, 1);
            // 84 octets at 10 Gb/s.
            assert!(pair[1].arrival.0 - pair[0].arrival.0 >= 67);
        }
    }

    #[test]
    fn it_stops_after_the_count_and_gives_no_more_than_there_is_room_for() {
        let mut pool = pool(9000);
        let mut wire = generator(0, 64, 1, Some(70));
        wire.link_changed(Nanos(5), true);
        let mut frames = Vec::new();
        wire.receive(Nanos(10), 64, &mut pool, &mut frames);
        assert_eq!(frames.len(), 64);
        assert_eq!(frames[0].arrival, Nanos(5), "not before the link was up");
        wire.receive(Nanos(10_000_000), 64, &mut pool, &mut frames);
        assert_eq!(frames.len(), 70);
        assert_eq!(frames[64].arrival, Nanos(9_000_000));
        assert_eq!(wire.next_deadline(), None);
    }

    #[test]
    fn frames_that_the_port_does_not_take_are_refused() {
        let load = Load {
            pps: None,
            size: 1519,
            flows: 1,
            count: None,
            random: None,
        };
        let error = Generator::new(load, &facts(1500)).unwrap_err().to_string();
        assert!(
            error.contains("1519") && error.contains("size=1518"),
            "{error}"
        );
    }
}
