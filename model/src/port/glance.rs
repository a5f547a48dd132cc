//! The short way of frames as most are from the line to their queue.
//!
//! All that such frames have in common is a constant here, and what is looked for is tested at once; where anything
//! else turns up nothing has happened yet, and the frame goes the way of all, [`Port::examine`].

use super::Port;
use super::steering::Fifos;
use crate::checksum;
use crate::counters::Drop;
use crate::frame::{Checksum, Contents, FCS};
use crate::parse::Plain;
use crate::rss::Steered;

impl Port {
    /// [`Port::ingress`] of a frame with the headers that most have.
    #[inline(always)]
    pub(super) fn ingress_plain<const VERSION: u8>(
        &mut self,
        frame: &mut Contents,
        headers: Plain<VERSION>,
    ) -> Result<(), Drop> {
        match self.glance(frame, headers) {
            Some(steered) => self.enqueue(frame, steered),
            None => self.ingress_unverified(frame, headers),
        }
    }

    /// [`Port::ingress_plain`] of a frame for which a [`Port::glance`] was not enough.
    #[cold]
    fn ingress_unverified<const VERSION: u8>(
        &mut self,
        frame: &mut Contents,
        headers: Plain<VERSION>,
    ) -> Result<(), Drop> {
        match self.glance_unverified(frame, headers) {
            Some(steered) => self.enqueue(frame, steered),
            None => self.ingress(frame, false),
        }
    }

    /// Looks into a frame as most are: with nothing to check at the MAC, for the station's own address, plain TCP or UDP, its
    /// checksums right. `None` if it is any other; then nothing has happened. What it finds is what [`Port::examine`] would find.
    #[inline(always)]
    fn glance<const VERSION: u8>(
        &mut self,
        frame: &mut Contents,
        headers: Plain<VERSION>,
    ) -> Option<Steered> {
        let bytes = frame.bytes();
        let usual = matches!(frame.checksum, Checksum::Unknown)
            && self.mac.is_plain(frame)
            && self.filter.is_own(bytes)
            && checksum::are_right(bytes, headers);
        if !usual {
            return None;
        }
        let steered = self.settle(frame, headers);
        self.counters.rx_checksums.count_good(headers.transport);
        frame.checksum = Checksum::Valid;
        Some(steered)
    }

    /// [`Port::glance`] at a frame in which there is no checksum to verify: it was verified before, or there is none.
    #[inline(always)]
    fn glance_unverified<const VERSION: u8>(
        &mut self,
        frame: &mut Contents,
        headers: Plain<VERSION>,
    ) -> Option<Steered> {
        let bytes = frame.bytes();
        let verified = matches!(frame.checksum, Checksum::Valid);
        let unused = || {
            matches!(frame.checksum, Checksum::Unknown)
                && checksum::is_unused(bytes, headers)
                && checksum::is_plain_header_right::<VERSION>(bytes)
        };
        let usual = (verified || unused()) && self.mac.is_plain(frame) && self.filter.is_own(bytes);
        if !usual {
            return None;
        }
        match verified {
            true => self.counters.rx_checksums.count_good(headers.transport),
            false => self.counters.rx_checksums.count_none(),
        }
        Some(self.settle(frame, headers))
    }

    /// Steers a frame as most are, and carries it over the line.
    #[inline(always)]
    fn settle<const VERSION: u8>(
        &mut self,
        frame: &mut Contents,
        headers: Plain<VERSION>,
    ) -> Steered {
        let bytes = frame.bytes();
        let octets = bytes.len() + FCS;
        let fifos = Fifos(&self.fifos);
        let steered = self.rss.steer_plain(bytes, headers, &fifos);
        self.carry(frame, octets);
        self.counters.rx_sizes.count(octets);
        steered
    }
}

#[cfg(test)]
mod tests;
