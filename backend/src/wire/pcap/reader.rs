//! Reading a capture: a file enters, its Ethernet frames leave one by one, each copied once, into a frame's
//! buffer.
//!
//! Classic pcap in both byte orders with microseconds or nanoseconds (draft-ietf-opsawg-pcap), and pcapng with any number
//! of sections and interfaces, each with its own timestamp resolution (draft-ietf-opsawg-pcapng). Whether frames have their
//! check sequence, the file says: in the upper half of the classic header's link type, in
//! `if_fcslen`, or with each packet. Records that were cut short when they were captured are told apart: the
//! rest of the frame is not known. The crate pcap-file parses the formats; what it leaves open (the link
//! type's upper half, timestamp units) is done here.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use nic_model::frame::{FCS, Fcs, Frame};
use nic_model::mac;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

/// What is wrong with a capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be read.
    #[error("{0}; check its name and that you may read it")]
    Io(#[from] io::Error),
    /// The file ends too early.
    #[error("it ends in the middle of a record; was it copied whole?")]
    CutOff,
    /// Not a file that this program knows.
    #[error("it is neither pcap nor pcapng; convert it, for example with editcap -F nsecpcap")]
    NoCapture,
    /// Some field has a value that it cannot have.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Frames of something else.
    #[error("its link type is {0}, which is not Ethernet (1); capture on an Ethernet interface")]
    NotEthernet(u32),
    /// A check sequence that Ethernet does not have.
    #[error("it says that frames end with a check sequence of {0} bits; Ethernet's has 32")]
    OddFcs(u32),
}

impl From<PcapError> for CaptureError {
    fn from(error: PcapError) -> Self {
        match error {
            PcapError::IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                CaptureError::CutOff
            }
            PcapError::IoError(e) => CaptureError::Io(e),
            other => CaptureError::Damaged(other.to_string()),
        }
    }
}

/// What comes next in a capture. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A frame.
    Frame(u64),
    /// A record that lacks the rest of its frame.
    Truncated(u64),
    /// Nothing more.
    End,
}

/// A file that gives at most so much at once: the crate would fill its 8 MB buffer in one go, and the
/// worker would stand still meanwhile.
struct Gentle(File);

impl Read for Gentle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const AT_ONCE: usize = 128 * 1024;
        let len = buffer.len().min(AT_ONCE);
        self.0.read(&mut buffer[..len])
    }
}

/// A capture that is being read.
pub struct Reader {
    format: Format,
}

enum Format {
    Classic {
        reader: PcapReader<Gentle>,
        /// Nanoseconds of a unit of the timestamps' fraction.
        unit: u64,
        fcs: Fcs,
    },
    Next {
        reader: PcapNgReader<Gentle>,
        endianness: Endianness,
        interfaces: Vec<Interface>,
        /// The latest timestamp: simple packet blocks have none of their own.
        time: u64,
    },
}

impl Reader {
    /// Opens the capture at `path`.
    ///
    /// # Errors
    /// It is none, or it is none of Ethernet.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        if !std::fs::metadata(path)?.is_file() {
            // Opening a pipe would wait for its other end.
            let kind = io::ErrorKind::InvalidInput;
            return Err(io::Error::new(kind, "it is no regular file").into());
        }
        let mut file = File::open(path)?;
        let mut magic = [0; 4];
        match file.read_exact(&mut magic) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(CaptureError::NoCapture);
            }
            read => read?,
        }
        let file = Gentle(File::open(path)?);
        let format = match u32::from_be_bytes(magic) {
            0x0a0d_0d0a => {
                let reader = PcapNgReader::new(file)?;
                Format::Next {
                    endianness: reader.section().endianness,
                    reader,
                    interfaces: Vec::new(),
                    time: 0,
                }
            }
            0xa1b2_c3d4 | 0xd4c3_b2a1 | 0xa1b2_3c4d | 0x4d3c_b2a1 => {
                let reader = PcapReader::new(file)?;
                let header = reader.header();
                Format::Classic {
                    reader,
                    unit: match header.ts_resolution {
                        TsResolution::MicroSecond => 1_000,
                        TsResolution::NanoSecond => 1,
                    },
                    fcs: classic_fcs(header.datalink.into())?,
                }
            }
            _ => return Err(CaptureError::NoCapture),
        };
        Ok(Reader { format })
    }

    /// Copies the next frame into `frame`, or says why there is none.
    ///
    /// # Errors
    /// The file is damaged or cannot be read; there is no point in going on.
    pub fn next(&mut self, frame: &mut Frame) -> Result<Next, CaptureError> {
        match &mut self.format {
            Format::Classic { reader, unit, fcs } => {
                let Some(record) = reader.next_raw_packet() else {
                    return Ok(Next::End);
                };
                let record = record?;
                let time =
                    u64::from(record.ts_sec) * 1_000_000_000 + u64::from(record.ts_frac) * *unit;
                if record.incl_len < record.orig_len {
                    return Ok(Next::Truncated(time));
                }
                fill(frame, &record.data, *fcs);
                Ok(Next::Frame(time))
            }
            Format::Next {
                reader,
                endianness,
                interfaces,
                time,
            } => loop {
                let Some(block) = reader.next_block() else {
                    return Ok(Next::End);
                };
                let found = match block? {
                    Block::SectionHeader(section) => {
                        *endianness = section.endianness;
                        interfaces.clear();
                        continue;
                    }
                    Block::InterfaceDescription(block) => {
                        interfaces.push(Interface::new(&block));
                        continue;
                    }
                    Block::EnhancedPacket(packet) => {
                        let interface = packet_interface(interfaces, packet.interface_id)?;
                        // The crate takes the raw number for nanoseconds, whatever its unit.
                        *time = interface.nanos(packet.timestamp.as_nanos() as u64);
                        let fcs = packet
                            .options
                            .iter()
                            .find_map(|option| match option {
                                EnhancedPacketOption::Flags(flags) => Some(flags >> 5 & 0xf),
                                _ => None,
                            })
                            .filter(|&octets| octets != 0)
                            .map_or(interface.fcs_bits, |octets| octets * 8);
                        let whole = packet.data.len() >= packet.original_len as usize;
                        (packet.data, whole, fcs)
                    }
                    Block::Packet(packet) => {
                        let interface = packet_interface(interfaces, packet.interface_id.into())?;
                        // Two words, the upper one first in both byte orders; the crate reads one of eight octets.
                        let stamp = match endianness {
                            Endianness::Big => packet.timestamp,
                            Endianness::Little => packet.timestamp.rotate_left(32),
                        };
                        *time = interface.nanos(stamp);
                        let whole = packet.data.len() >= packet.original_len as usize;
                        (packet.data, whole, interface.fcs_bits)
                    }
                    Block::SimplePacket(packet) => {
                        let interface = packet_interface(interfaces, 0)?;
                        // The block is padded to four octets, and says only how long the frame was.
                        let original = packet.original_len as usize;
                        let captured = original.min(interface.snaplen);
                        if packet.data.len() < captured {
                            let reason = "a simple packet block is shorter than its packet";
                            return Err(CaptureError::Damaged(reason.into()));
                        }
                        let whole = captured == original;
                        fill_checked(frame, &packet.data[..captured], interface.fcs_bits)?;
                        return Ok(at(*time, whole));
                    }
                    _ => continue,
                };
                let (data, whole, fcs_bits) = found;
                fill_checked(frame, &data, fcs_bits)?;
                return Ok(at(*time, whole));
            },
        }
    }
}

fn at(time: u64, whole: bool) -> Next {
    if whole {
        Next::Frame(time)
    } else {
        Next::Truncated(time)
    }
}

/// The classic header's link type: the type in the lower 16 bits; bit 26 says that the upper four are the check
/// sequence's length in units of 16 bits.
fn classic_fcs(word: u32) -> Result<Fcs, CaptureError> {
    match word & 0xffff {
        1 => {}
        other => return Err(CaptureError::NotEthernet(other)),
    }
    match word >> 28 {
        bits if word & 1 << 26 != 0 => fcs_of(bits * 16),
        _ => Ok(Fcs::Offloaded),
    }
}

fn fcs_of(bits: u32) -> Result<Fcs, CaptureError> {
    match bits {
        0 => Ok(Fcs::Offloaded),
        32 => Ok(Fcs::Present),
        bits => Err(CaptureError::OddFcs(bits)),
    }
}

/// An interface of a pcapng section.
struct Interface {
    link: u32,
    snaplen: usize,
    fcs_bits: u32,
    /// Nanoseconds of a unit of its timestamps are `unit.0 / unit.1`.
    unit: (u128, u128),
    /// Seconds to be added to its timestamps.
    offset: i64,
}

impl Interface {
    fn new(block: &InterfaceDescriptionBlock<'_>) -> Self {
        let mut interface = Interface {
            link: block.linktype.into(),
            snaplen: match block.snaplen {
                0 => usize::MAX,
                limit => limit as usize,
            },
            fcs_bits: 0,
            unit: (1_000, 1),
            offset: 0,
        };
        for option in &block.options {
            match *option {
                InterfaceDescriptionOption::IfTsResol(resolution) => {
                    let power = u32::from(resolution & 0x7f);
                    let base: u128 = if resolution & 0x80 == 0 { 10 } else { 2 };
                    // Finer than any clock: all timestamps become the same.
                    let a_second = base.checked_pow(power).unwrap_or(u128::MAX);
                    interface.unit = (1_000_000_000, a_second);
                }
                // The specification says bits, and 4 in its example; files have both.
                InterfaceDescriptionOption::IfFcsLen(4) => interface.fcs_bits = 32,
                InterfaceDescriptionOption::IfFcsLen(bits) => interface.fcs_bits = bits.into(),
                InterfaceDescriptionOption::IfTsOffset(seconds) => {
                    interface.offset = seconds as i64;
                }
                _ => {}
            }
        }
        interface
    }

    fn nanos(&self, stamp: u64) -> u64 {
        let nanos = (u128::from(stamp) * self.unit.0 / self.unit.1) as i128;
        let nanos = nanos + i128::from(self.offset) * 1_000_000_000;
        nanos.clamp(0, u64::MAX.into()) as u64
    }
}

fn packet_interface(interfaces: &[Interface], id: u32) -> Result<&Interface, CaptureError> {
    let interface = interfaces.get(id as usize).ok_or_else(|| {
        CaptureError::Damaged(format!(
            "a packet is of interface {id}, which it does not describe"
        ))
    })?;
    if DataLink::from(interface.link) != DataLink::ETHERNET {
        return Err(CaptureError::NotEthernet(interface.link));
    }
    Ok(interface)
}

fn fill_checked(frame: &mut Frame, data: &[u8], fcs_bits: u32) -> Result<(), CaptureError> {
    fill(frame, data, fcs_of(fcs_bits)?);
    Ok(())
}

/// Copies `data` into `frame`. Of what is longer than a buffer the MAC needs to know only that it is too long
/// for the port (the buffers hold more than the longest frame) and whether its check sequence is right
/// (too long, or jabber): so it gets as much as the buffer holds, ending in a check sequence that is
/// right for that if the frame's was for the frame, and wrong if it was wrong.
fn fill(frame: &mut Frame, data: &[u8], fcs: Fcs) {
    frame.fcs = fcs;
    frame.excess = 0;
    if frame.fill(data) {
        return;
    }
    let buffer = frame.buffer_mut();
    let held = buffer.len();
    buffer.copy_from_slice(&data[..held]);
    if fcs == Fcs::Present
        && let (Some((octets, sequence)), Some((held, last))) = (
            data.split_last_chunk::<FCS>(),
            buffer.split_last_chunk_mut::<FCS>(),
        )
    {
        *last = mac::fcs(held);
        if mac::fcs(octets) != *sequence {
            last[0] ^= 0xff;
        }
    }
    frame.set_len(held);
    frame.excess = (data.len() - held) as u32;
}
