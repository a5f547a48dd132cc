//! Writing a capture: frames enter, each with its instant, and leave as records of a classic pcap file.
//!
//! Nanosecond timestamps, little-endian, LINKTYPE_ETHERNET (draft-ietf-opsawg-pcap). A frame with its check sequence
//! in the buffer is written without it: the file has one format for all records. Writes are
//! buffered; [`CaptureWriter::flush`] brings them to the file, and so does dropping the writer. After a
//! write that failed nothing more is written and frames are counted as unwritten.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use log::warn;
use nic_model::frame::{FCS, Fcs, Frame};
use nic_model::time::Nanos;
use pcap_file::pcap::PcapHeader;
use pcap_file::{DataLink, Endianness, TsResolution};

/// Octets that are gathered before they are written.
const BUFFER: usize = 256 * 1024;
/// As much as tcpdump's: no frame is longer.
const SNAPLEN: u32 = 262_144;

/// A capture that is being written.
#[derive(Debug)]
pub struct CaptureWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// What instant 0 is, since 1970.
    epoch: Duration,
    written: u64,
    unwritten: u64,
    failed: bool,
    dirty: bool,
}

impl CaptureWriter {
    /// Creates or empties the file at `path`; the clock's epoch is now.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        CaptureWriter::with_epoch(path, now.unwrap_or_default())
    }

    /// Creates or empties the file at `path`; the clock's epoch is `epoch`, since 1970. With the same frames
    /// it always writes the same file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn with_epoch(path: &Path, epoch: Duration) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(BUFFER, File::create(path)?);
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::Little,
            ..PcapHeader::default()
        };
        header.write_to(&mut file).map_err(io::Error::other)?;
        file.flush()?;
        Ok(CaptureWriter {
            path: path.to_owned(),
            file,
            epoch,
            written: 0,
            unwritten: 0,
            failed: false,
            dirty: false,
        })
    }

    /// Writes `frame` with its `arrival` as timestamp.
    pub fn write(&mut self, frame: &Frame) {
        let len = match frame.fcs {
            Fcs::Offloaded => frame.len(),
            Fcs::Present | Fcs::Dribbled => frame.len().saturating_sub(FCS),
        };
        if !self.failed {
            let done = self.record(frame.arrival, &frame.bytes()[..len]);
            self.noted(done);
        }
        if self.failed {
            self.unwritten += 1;
        } else {
            self.written += 1;
            self.dirty = true;
        }
    }

    fn record(&mut self, at: Nanos, bytes: &[u8]) -> io::Result<()> {
        let time = self.epoch + Duration::from_nanos(at.0);
        let len = bytes.len() as u32;
        let mut header = [0; 16];
        for (field, value) in
            header
                .chunks_exact_mut(4)
                .zip([time.as_secs() as u32, time.subsec_nanos(), len, len])
        {
            field.copy_from_slice(&value.to_le_bytes());
        }
        self.file.write_all(&header)?;
        self.file.write_all(bytes)
    }

    /// Whether there is something that [`CaptureWriter::flush`] would write.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Brings what was written to the file.
    pub fn flush(&mut self) {
        if self.dirty && !self.failed {
            let done = self.file.flush();
            self.noted(done);
        }
        self.dirty = false;
    }

    fn noted(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            warn!(
                "{}: {error}; no further frames are written there",
                self.path.display()
            );
            self.failed = true;
        }
    }

    /// Frames that were written, and that were not because a write had failed.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.written, self.unwritten)
    }
}

impl Drop for CaptureWriter {
    fn drop(&mut self) {
        self.flush();
    }
}
