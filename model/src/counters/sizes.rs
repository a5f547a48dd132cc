//! How long frames were: the histogram of RFC 2819 (etherStatsPkts64Octets and the following), with one bin more for
//! what is longer than 1518 octets, as Linux has it (`ethtool --groups rmon`).
//!
//! What enters is the number of octets that a frame had on the line, from the destination address to the check sequence. The
//! bins are of frames that are neither too short nor too long for the port: those have counters of their own.

use serde::{Serialize, Serializer};

macro_rules! bins {
    ($($(#[doc = $doc:literal])+ $variant:ident = $first:literal, $name:literal,)+) => {
        /// A range of frame sizes, in octets with the check sequence.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bin { $($(#[doc = $doc])+ $variant,)+ }

        impl Bin {
            /// All, from the shortest frames on.
            pub const ALL: &[Bin] = &[$(Bin::$variant,)+];

            /// The shortest frame that it has.
            #[must_use]
            pub const fn first(self) -> usize {
                match self { $(Bin::$variant => $first,)+ }
            }

            /// Its name, as users see it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Bin::$variant => $name,)+ }
            }
        }
    };
}

bins! {
    /// As short as frames can be: 64 octets.
    Shortest = 64, "64",
    /// 65 to 127 octets.
    From65 = 65, "65-127",
    /// 128 to 255 octets.
    From128 = 128, "128-255",
    /// 256 to 511 octets.
    From256 = 256, "256-511",
    /// 512 to 1023 octets.
    From512 = 512, "512-1023",
    /// 1024 to 1518 octets: up to the longest without a tag (IEEE 802.3, 3.2.7).
    From1024 = 1024, "1024-1518",
    /// From 1519 octets to the port's longest: frames with tags, and jumbo frames.
    From1519 = 1519, "1519-max",
}

/// Octets from which on there is one bin only.
const LONG: usize = Bin::From1519.first();
/// The bin of each size below that: a look-up costs less than comparing.
static BINS: [Bin; LONG] = {
    let mut bins = [Bin::Shortest; LONG];
    let mut next = 1;
    while next < Bin::ALL.len() {
        let mut octets = Bin::ALL[next].first();
        while octets < LONG {
            bins[octets] = Bin::ALL[next];
            octets += 1;
        }
        next += 1;
    }
    bins
};

impl Bin {
    /// The bin of a frame of `octets`.
    #[must_use]
    pub fn of(octets: usize) -> Self {
        BINS.get(octets).copied().unwrap_or(Bin::From1519)
    }
}

/// Frames by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes([u64; Bin::ALL.len()]);

impl Sizes {
    /// Counts a frame of `octets`.
    #[inline(always)] // on the way of each packet
    pub fn count(&mut self, octets: usize) {
        // Each way with an addition of its own: nothing has to be chosen first.
        match BINS.get(octets) {
            Some(&bin) => self.0[bin as usize] += 1,
            None => self.0[Bin::From1519 as usize] += 1,
        }
    }

    /// Counts `frames` frames of `octets` each.
    pub fn count_many(&mut self, octets: usize, frames: u64) {
        self.0[Bin::of(octets) as usize] += frames;
    }

    /// Frames of the sizes of `bin`.
    #[must_use]
    pub fn get(&self, bin: Bin) -> u64 {
        self.0[bin as usize]
    }

    /// Frames of any size.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every bin with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (Bin, u64)> + '_ {
        Bin::ALL.iter().map(|&bin| (bin, self.get(bin)))
    }
}

impl Serialize for Sizes {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_map(self.iter().map(|(bin, frames)| (bin.name(), frames)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_has_the_bin_that_the_standards_name() {
        for (octets, name) in [
            (64, "64"),
            (65, "65-127"),
            (127, "65-127"),
            (128, "128-255"),
            (255, "128-255"),
            (256, "256-511"),
            (511, "256-511"),
            (512, "512-1023"),
            (1023, "512-1023"),
            (1024, "1024-1518"),
            (1518, "1024-1518"),
            (1519, "1519-max"),
            (9242, "1519-max"),
            (usize::MAX, "1519-max"),
        ] {
            assert_eq!(Bin::of(octets).name(), name, "{octets}");
        }
    }
}
