//! Reads of the configuration space that give what was never there, on purpose: so that drivers can be tried against them.
//!
//! A driver that reads a space while it changes may see the beginning of one and the end of another (VIRTIO 1.3, 2.5.3). A read that is
//! torn here is worse: from some octet on, every bit is the wrong way round.

use nic_model::chance::{Chance, Random};
use nic_model::fault::TEARS;

/// Which reads are torn, and how often they were.
#[derive(Clone, Debug)]
pub struct Tears {
    chance: Chance,
    random: Random,
    torn: u64,
}

impl Tears {
    /// Reads that are torn with `probability`, by chance as `seed` says.
    #[must_use]
    pub fn new(probability: f64, seed: u64) -> Self {
        Tears {
            chance: Chance::new(probability, seed, TEARS),
            random: Random::new(seed, TEARS + 1),
            torn: 0,
        }
    }

    /// Changes what a read gives, if it is torn.
    pub fn tear(&mut self, octets: &mut [u8]) {
        if !octets.is_empty() && self.chance.strikes() {
            let from = self.random.below(octets.len() as u64) as usize;
            octets[from..].iter_mut().for_each(|octet| *octet = !*octet);
            self.torn += 1;
        }
    }

    /// Reads torn so far.
    #[must_use]
    pub fn torn(&self) -> u64 {
        self.torn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_torn_somewhere_and_the_same_seed_tears_the_same() {
        let read = |probability, seed| {
            let mut tears = Tears::new(probability, seed);
            let reads = (0..100).map(|_| {
                let mut octets = [0x0f; 16];
                tears.tear(&mut octets);
                octets
            });
            let reads: Vec<_> = reads.collect();
            let torn = reads.iter().filter(|octets| octets.contains(&0xf0)).count();
            assert_eq!(tears.torn(), torn as u64);
            for octets in &reads {
                let from = octets.iter().position(|&octet| octet == 0xf0);
                assert!(
                    octets[from.unwrap_or(16)..]
                        .iter()
                        .all(|&octet| octet == 0xf0)
                );
            }
            reads
        };
        assert_eq!(read(0.0, 1), vec![[0x0f; 16]; 100]);
        assert!(read(1.0, 1).iter().all(|octets| octets[15] == 0xf0));
        let half = read(0.5, 1);
        assert!(half.contains(&[0x0f; 16]) && half != read(1.0, 1));
        assert_eq!(half, read(0.5, 1));
        assert_ne!(half, read(0.5, 2));
        Tears::new(1.0, 0).tear(&mut []);
    }
}
