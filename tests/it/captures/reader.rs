//! Captures as a stranger reads them: nothing here is the NIC's, or of the crate that the NIC reads with.
//!
//! Little-endian files only, of one section and one interface: the fixtures and what the NIC writes are.

use std::path::Path;

/// A capture in memory.
pub struct Capture {
    /// Octets of the check sequence that frames end with.
    pub fcs: usize,
    /// Nanoseconds since 1970 and octets of each record.
    pub records: Vec<(u64, Vec<u8>)>,
}

/// Reads the capture at `path`; `None` if it is cut off (it may yet be written).
pub fn read(path: &Path) -> Option<Capture> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    match u32_at(&bytes, 0)? {
        0x0a0d_0d0a => next_generation(&bytes),
        0xa1b2_c3d4 => classic(&bytes, 1_000),
        0xa1b2_3c4d => classic(&bytes, 1),
        magic => panic!("{}: magic {magic:#x}", path.display()),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_le_bytes(field.try_into().ok()?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

/// draft-ietf-opsawg-pcap: a header of 24 octets, then records with headers of 16.
fn classic(bytes: &[u8], unit: u64) -> Option<Capture> {
    let link = u32_at(bytes, 20)?;
    assert_eq!(link & 0xffff, 1, "Ethernet");
    // The upper four bits count words of 16 bits if bit 26 is set.
    let fcs = if link & 1 << 26 == 0 { 0 } else { link >> 28 };
    let mut records = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let [seconds, fraction, captured, original] =
            [0, 4, 8, 12].map(|field| u32_at(bytes, at + field));
        assert_eq!(captured?, original?, "whole frames");
        let end = at + 16 + captured? as usize;
        let time = u64::from(seconds?) * 1_000_000_000 + u64::from(fraction?) * unit;
        records.push((time, bytes.get(at + 16..end)?.to_vec()));
        at = end;
    }
    let fcs = 2 * fcs as usize;
    Some(Capture { fcs, records })
}

/// draft-ietf-opsawg-pcapng: blocks of a type, a length, a body, and the length again.
fn next_generation(bytes: &[u8]) -> Option<Capture> {
    const INTERFACE: u32 = 1;
    const ENHANCED_PACKET: u32 = 6;
    const IF_TSRESOL: usize = 9;
    const IF_FCSLEN: usize = 13;
    let mut capture = Capture {
        fcs: 0,
        records: Vec::new(),
    };
    let mut unit = 1_000;
    let mut at = 0;
    while at < bytes.len() {
        let len = u32_at(bytes, at + 4)? as usize;
        let block = bytes.get(at..at + len - 4)?;
        match u32_at(block, 0)? {
            INTERFACE => {
                assert_eq!(u16_at(block, 8)?, 1, "Ethernet");
                let mut option = 16;
                while let Some(code) = u16_at(block, option) {
                    let value = block.get(option + 4).copied();
                    match code {
                        IF_TSRESOL => unit = 10u64.pow(9 - u32::from(value?)),
                        IF_FCSLEN => capture.fcs = value?.into(),
                        _ => {}
                    }
                    option += 4 + u16_at(block, option + 2)?.next_multiple_of(4);
                }
            }
            ENHANCED_PACKET => {
                let [high, low, captured, original] =
                    [12, 16, 20, 24].map(|field| u32_at(block, field));
                assert_eq!(captured?, original?, "whole frames");
                let time = (u64::from(high?) << 32 | u64::from(low?)) * unit;
                let data = block.get(28..28 + captured? as usize)?;
                capture.records.push((time, data.to_vec()));
            }
            _ => {}
        }
        at += len;
    }
    Some(capture)
}
