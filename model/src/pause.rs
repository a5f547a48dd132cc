//! MAC Control: PAUSE (IEEE 802.3, clause 31 and annex 31B).
//!
//! A station whose buffers fill up tells its partner to stop: a frame to a group address that no bridge forwards says for how
//! long, in quanta of 512 bit times; one of no quanta lets it go on. A frame that has begun is completed, and MAC
//! Control frames themselves are not held up. Such frames end in the MAC and never reach the host.
//!
//! Whether a station stops, and whether it asks others to, is what auto-negotiation agreed on ([`Phy::pause`](crate::phy::Phy::pause)). Where single priorities are
//! stopped ([`pfc`]), each has such a state of its own.

use crate::filter::MacAddress;
use crate::frame::{Contents, FCS};
use crate::mac::MIN_FRAME;
use crate::pfc::{self, Request};
use crate::phy::Speed;
use crate::time::Nanos;

/// Where PAUSE frames go: to the partner, and no further (IEEE 802.3, 31B.1).
pub const ADDRESS: MacAddress = MacAddress([0x01, 0x80, 0xc2, 0x00, 0x00, 0x01]);
/// The type of MAC Control frames (31.4.1.3).
const ETHERTYPE: [u8; 2] = [0x88, 0x08];
/// The opcode of PAUSE (31B.2).
const OPCODE: [u8; 2] = [0x00, 0x01];
/// Octets' time in a quantum.
const QUANTUM: u64 = 512 / 8;
/// What a partner is asked for that is to stop until it is told otherwise: all that the field can say.
const STOP: u16 = u16::MAX;

/// What a MAC Control frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Stop for so many quanta.
    Pause(u16),
    /// Stop sending frames of some priorities.
    Priorities(Request),
    /// What we do not know, or is not for us.
    Other,
}

/// What `frame`, without its check sequence, says to the station `own`, if it is a MAC Control frame.
#[must_use]
#[inline]
pub fn read(frame: &[u8], own: MacAddress) -> Option<Control> {
    if frame.get(12..14) != Some(&ETHERTYPE) {
        return None;
    }
    let for_us = frame[..6] == ADDRESS.0 || frame[..6] == own.0;
    let said = match frame[14..].split_first_chunk::<2>() {
        Some((&OPCODE, parameters)) if for_us => {
            let quanta = parameters.first_chunk::<2>();
            quanta.map(|quanta| Control::Pause(u16::from_be_bytes(*quanta)))
        }
        Some((&pfc::OPCODE, parameters)) if for_us => {
            Request::read(parameters).map(Control::Priorities)
        }
        _ => None,
    };
    Some(said.unwrap_or(Control::Other))
}

/// Makes `frame` a PAUSE frame of the station `source`, of `quanta`.
pub fn write(frame: &mut Contents, source: MacAddress, quanta: u16) {
    let parameters = write_control(frame, source, OPCODE);
    parameters[..2].copy_from_slice(&quanta.to_be_bytes());
}

/// Makes `frame` a MAC Control frame of the station `source` with `opcode`. Returns its parameters, which are zero.
pub(crate) fn write_control(
    frame: &mut Contents,
    source: MacAddress,
    opcode: [u8; 2],
) -> &mut [u8] {
    frame.set_len(MIN_FRAME - FCS);
    let bytes = frame.bytes_mut();
    bytes.fill(0);
    bytes[..6].copy_from_slice(&ADDRESS.0);
    bytes[6..12].copy_from_slice(&source.0);
    bytes[12..14].copy_from_slice(&ETHERTYPE);
    bytes[14..16].copy_from_slice(&opcode);
    &mut bytes[16..]
}

/// How long `quanta` last at `speed`, in nanoseconds.
#[must_use]
pub fn nanoseconds(quanta: u16, speed: Speed) -> u64 {
    u64::from(quanta) * QUANTUM * speed.picoseconds_per_octet() / 1_000
}

/// The state of flow control in both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pause {
    /// Until when we have been told to stop.
    until: Nanos,
    /// Whether the partner has been told to stop: if so, when that has to be said again.
    told: Option<Nanos>,
}

impl Pause {
    /// Until when nothing may be sent.
    #[must_use]
    #[inline]
    pub fn until(&self) -> Nanos {
        self.until
    }

    /// Obeys a PAUSE frame of `quanta` that came at `arrival`: the last one counts.
    pub fn obey(&mut self, quanta: u16, arrival: Nanos, speed: Speed) {
        self.until = Nanos(arrival.0 + nanoseconds(quanta, speed));
    }

    /// What the partner has to be told at `now`, in quanta, with buffers as full as `level` says.
    #[must_use]
    pub fn tell(&self, now: Nanos, level: Level) -> Option<u16> {
        match (self.told, level) {
            (None, Level::High) => Some(STOP),
            (Some(_), Level::Low) => Some(0),
            (Some(due), _) if due <= now => Some(STOP),
            _ => None,
        }
    }

    /// Notes that the partner was told `quanta` in a frame that leaves at `leaves`.
    pub fn told(&mut self, quanta: u16, leaves: Nanos, speed: Speed) {
        // Half of the time is left then.
        let again = Nanos(leaves.0 + nanoseconds(quanta, speed) / 2);
        self.told = (quanta > 0).then_some(again);
    }

    /// When the partner has to be told again that it is to stop.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.told
    }

    /// Stops for nobody any more, and knows what the partner was told: it has yet to hear that it may go on.
    pub fn disobey(&mut self) {
        self.until = Nanos::ZERO;
    }

    /// Forgets what both sides said: there is no link, or flow control was not agreed on.
    pub fn forget(&mut self) {
        *self = Pause::default();
    }
}

/// How full a receive buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The partner may go on.
    Low,
    /// It may go on with what it does.
    Between,
    /// It has to stop.
    High,
}

impl Level {
    /// With `octets` in a buffer of `size`. From half on the partner is to stop, which leaves as much for what it has sent until it hears of
    /// that; below a quarter it may go on.
    #[must_use]
    pub fn of(octets: usize, size: usize) -> Self {
        if 2 * octets > size {
            Level::High
        } else if 4 * octets > size {
            Level::Between
        } else {
            Level::Low
        }
    }
}
