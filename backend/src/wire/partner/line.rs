//! The partner's end of the line as smoltcp sees it: two queues of frames and the pool.
//!
//! A token is leave to move one frame. There is none to receive while the queue to the card is full, because
//! every frame may be answered. Sockets, which have windows' worth to send, get tokens only while it
//! is half empty: so acknowledgements and pings get through a bulk transfer. smoltcp has room for one packet
//! in fragments, and would overwrite it with the next: so while one is under way its fragments alone
//! get tokens, as many as they need. It gives all whole packets of IPv4 the identification 0; here they are numbered, as most
//! systems do, so that a card that coalesces has something to merge.

use std::collections::VecDeque;

use nic_model::checksum;
use nic_model::frame::{ETHERNET_HEADER, Frame, Pool};
use nic_model::time::Nanos;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Frames that wait for the card when it gets no further answers.
pub const OUTBOUND: usize = 256;
/// Frames that wait for the card when it gets nothing more from sockets.
pub const FROM_SOCKETS: usize = OUTBOUND / 2;

/// What is on the line.
#[derive(Debug, Default)]
pub struct Queues {
    /// From the card.
    pub inbound: VecDeque<Frame>,
    /// To the card.
    pub outbound: VecDeque<Frame>,
    /// The frame that was read last; its buffer goes back to the pool at the next occasion.
    pub read: Option<Frame>,
    /// Whether the packet that went last lacks its further fragments.
    fragments: bool,
    /// The identification of the next packet of IPv4.
    identification: u16,
}

/// The line for the time of one call.
pub struct Line<'a> {
    pub queues: &'a mut Queues,
    pub pool: &'a mut Pool,
    /// The longest packet, in octets.
    pub mtu: u16,
    /// When what is sent now arrives.
    pub arrival: Nanos,
    /// Whether it is the fragments' turn: smoltcp asks for their token first.
    fragment_turn: bool,
}

impl<'a> Line<'a> {
    /// The line for packets of up to `mtu` octets, at the instant `arrival`.
    pub fn new(queues: &'a mut Queues, pool: &'a mut Pool, mtu: u16, arrival: Nanos) -> Self {
        Line {
            queues,
            pool,
            mtu,
            arrival,
            fragment_turn: false,
        }
    }

    /// Lets `send` send one frame of each socket, and one fragment. Returns whether anything went.
    pub fn turn(&mut self, send: impl FnOnce(&mut Self)) -> bool {
        let before = self.queues.outbound.len();
        self.fragment_turn = true;
        send(self);
        let went = self.queues.outbound.len() > before;
        // What does not use its turn does not exist.
        self.queues.fragments &= went;
        went
    }

    /// Gives the buffer of the frame that was read back.
    pub fn recycle(&mut self) {
        self.pool.give_all(self.queues.read.take());
    }

    fn room(&mut self) -> Room<'_> {
        Room {
            pool: self.pool,
            outbound: &mut self.queues.outbound,
            fragments: &mut self.queues.fragments,
            identification: &mut self.queues.identification,
            arrival: self.arrival,
        }
    }
}

impl Device for Line<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Room<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        self.recycle();
        if self.queues.outbound.len() >= OUTBOUND {
            return None;
        }
        let frame = self.queues.inbound.pop_front()?;
        let received = Received {
            frame,
            read: &mut self.queues.read,
        };
        let room = Room {
            pool: self.pool,
            outbound: &mut self.queues.outbound,
            fragments: &mut self.queues.fragments,
            identification: &mut self.queues.identification,
            arrival: self.arrival,
        };
        Some((received, room))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        let first = std::mem::take(&mut self.fragment_turn);
        let leave = match self.queues.fragments {
            true => first,
            false => self.queues.outbound.len() < FROM_SOCKETS,
        };
        leave.then(|| self.room())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.mtu) + ETHERNET_HEADER;
        capabilities
    }
}

/// A frame that came.
pub struct Received<'a> {
    frame: Frame,
    read: &'a mut Option<Frame>,
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(self.frame.bytes());
        *self.read = Some(self.frame);
        result
    }
}

/// Room for a frame to go.
pub struct Room<'a> {
    pool: &'a mut Pool,
    outbound: &'a mut VecDeque<Frame>,
    fragments: &'a mut bool,
    identification: &'a mut u16,
    arrival: Nanos,
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = self.pool.take();
        frame.set_len(len);
        frame.arrival = self.arrival;
        let result = f(frame.bytes_mut());
        if number(frame.bytes_mut(), *self.identification) {
            *self.identification = self.identification.wrapping_add(1);
        }
        *self.fragments = has_more_fragments(frame.bytes());
        self.outbound.push_back(frame);
        result
    }
}

/// Gives `frame` an `identification` if it is a whole packet of IPv4.
fn number(frame: &mut [u8], identification: u16) -> bool {
    const HEADER: usize = 20;
    const FRAGMENT: u16 = 0x3fff;
    let is_ipv4 = frame[12..14] == [0x08, 0x00];
    let Some(header) = frame.get_mut(ETHERNET_HEADER..ETHERNET_HEADER + HEADER) else {
        return false;
    };
    if !is_ipv4 || header[0] != 0x45 || u16::from_be_bytes([header[6], header[7]]) & FRAGMENT != 0 {
        return false;
    }
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[10..12].fill(0);
    let checksum = !checksum::sum(header, 0);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// Whether `frame` is a fragment of an IPv4 packet, but not the last one.
fn has_more_fragments(frame: &[u8]) -> bool {
    const MORE_FRAGMENTS: u8 = 0x20;
    frame[12..14] == [0x08, 0x00] && frame[ETHERNET_HEADER + 6] & MORE_FRAGMENTS != 0
}
