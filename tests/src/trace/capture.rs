//! Frames of the user's own, from a capture, played to the scenarios' guest.

use std::path::Path;

use anyhow::{anyhow, bail, ensure};
use nic_backend::wire::{CaptureError, CaptureNext, CaptureReader};
use nic_model::frame::{Fcs, Pool};
use nic_model::port::{Port, PortConfig};

/// Frames of a capture that are played at most: all fit into the ring, and the tree can still be read.
pub const FRAMES: usize = 64;
/// Records that are looked at in search of them.
const RECORDS: usize = 4096;

/// A frame that is to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its octets.
    pub bytes: Vec<u8>,
    /// Whether they end with its check sequence.
    pub fcs: Fcs,
    /// Octets that it has beyond those: of a frame that is too long no more is kept than shows that.
    pub excess: u32,
}

impl Incoming {
    /// A frame without its check sequence.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Incoming {
            bytes: bytes.into(),
            fcs: Fcs::Offloaded,
            excess: 0,
        }
    }
}

/// The first frames of a capture, at most [`FRAMES`], and whether there are more.
///
/// # Errors
/// The file cannot be read, is no capture of Ethernet frames, or has no whole frame.
pub fn read(path: &Path) -> anyhow::Result<(Vec<Incoming>, bool)> {
    let name = || format!("the capture {}", path.display());
    let wrong = |error: CaptureError| anyhow!("{}: {error}", name());
    let mut reader = CaptureReader::open(path).map_err(wrong)?;
    let mut frame = Pool::new(Port::buffer_size(&PortConfig::default())).take();
    let mut frames = Vec::new();
    let mut cut = 0;
    for _ in 0..RECORDS {
        match reader.next(&mut frame).map_err(wrong)? {
            CaptureNext::End if frames.is_empty() && cut > 0 => {
                bail!(
                    "{}: none of its {cut} frames is whole; capture without a limit on their length",
                    name()
                )
            }
            CaptureNext::End => {
                ensure!(!frames.is_empty(), "{}: there is no frame in it", name());
                return Ok((frames, false));
            }
            CaptureNext::Truncated(_) => cut += 1,
            CaptureNext::Frame(_) if frames.len() == FRAMES => return Ok((frames, true)),
            CaptureNext::Frame(_) => frames.push(Incoming {
                bytes: frame.bytes().into(),
                fcs: frame.fcs,
                excess: frame.excess,
            }),
        }
    }
    ensure!(
        !frames.is_empty(),
        "{}: none of its first {RECORDS} frames is whole; capture without a limit on their length",
        name()
    );
    Ok((frames, true))
}
