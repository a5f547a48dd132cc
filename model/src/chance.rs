//! Chance that repeats: the same seed gives the same events.
//!
//! Each thing that happens by chance has a generator of its own, made from the seed and a number that says what it is for. So
//! what one of them draws changes nothing for the others.

use std::time::Duration;

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// Random numbers for one purpose.
#[derive(Clone, Debug)]
pub struct Random(Pcg64Mcg);

impl Random {
    /// Those of `seed` for purpose number `purpose`.
    #[must_use]
    pub fn new(seed: u64, purpose: u64) -> Self {
        // Neighbouring numbers give seeds far apart (the multiplier is Weyl's, 2^64 by the golden ratio).
        let purpose = (purpose + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Random(Pcg64Mcg::seed_from_u64(seed.rotate_left(32) ^ purpose))
    }

    /// A number below `bound`, each with the same probability; zero if `bound` is.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number above 0 and up to 1, uniformly distributed.
    fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// A number with the exponential distribution of mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// A span from `mean - spread` to `mean + spread`, uniformly distributed, in whole nanoseconds.
    pub fn around(&mut self, mean: Duration, spread: Duration) -> Duration {
        let spread = spread.as_nanos() as u64;
        let least = mean.as_nanos() as u64 - spread.min(mean.as_nanos() as u64);
        Duration::from_nanos(least + self.below(2 * spread + 1))
    }
}

/// An event of a probability, again and again, independently.
#[derive(Clone, Debug)]
pub struct Chance {
    probability: f64,
    random: Random,
}

impl Chance {
    /// An event that happens with `probability`, from 0 to 1; the other two as for [`Random::new`].
    #[must_use]
    pub fn new(probability: f64, seed: u64, purpose: u64) -> Self {
        Chance {
            probability,
            random: Random::new(seed, purpose),
        }
    }

    /// Whether it happens this time.
    pub fn strikes(&mut self) -> bool {
        // Greater than 0, at most 1: never with probability 0, always with 1.
        self.probability > 0.0 && self.random.unit() <= self.probability
    }
}

/// Which of many trials strike, when most do not: the distance between hits is drawn instead of each trial.
#[derive(Clone, Debug)]
pub struct Rare {
    /// The natural logarithm of a miss's probability; zero if nothing ever strikes.
    miss: f64,
    /// Trials that miss before the next hit.
    left: u64,
    random: Random,
}

impl Rare {
    /// Trials that strike with `probability`, from 0 to 1; the other two as for [`Random::new`].
    #[must_use]
    pub fn new(probability: f64, seed: u64, purpose: u64) -> Self {
        let mut rare = Rare {
            miss: (-probability).ln_1p(),
            left: 0,
            random: Random::new(seed, purpose),
        };
        rare.left = rare.gap();
        rare
    }

    /// Misses before a hit, geometrically distributed.
    fn gap(&mut self) -> u64 {
        if self.miss == 0.0 {
            return u64::MAX;
        }
        // A float that is too large becomes the largest integer, and with probability 1 this is zero.
        (self.random.exponential() / -self.miss) as u64
    }

    /// Makes `trials` trials, and calls `hit` with the number of each one that strikes.
    pub fn strike(&mut self, trials: u64, mut hit: impl FnMut(u64)) {
        let mut at = self.left;
        while at < trials {
            hit(at);
            at = at.saturating_add(self.gap()).saturating_add(1);
        }
        self.left = at - trials;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `hits` of `trials` are what a probability gives, within five standard deviations.
    fn is_likely(hits: u64, trials: u64, probability: f64) -> bool {
        let mean = trials as f64 * probability;
        let deviation = (mean * (1.0 - probability)).sqrt();
        (hits as f64 - mean).abs() <= 5.0 * deviation
    }

    #[test]
    fn events_are_as_frequent_as_they_should_be() {
        const TRIALS: u64 = 1_000_000;
        for (purpose, probability) in [0.0, 1e-4, 0.01, 0.5, 0.999, 1.0].into_iter().enumerate() {
            let mut chance = Chance::new(probability, 7, purpose as u64);
            let hits = (0..TRIALS).filter(|_| chance.strikes()).count() as u64;
            assert!(
                is_likely(hits, TRIALS, probability),
                "{probability}: {hits}"
            );
            let (mut rare, mut hits) = (Rare::new(probability, 7, purpose as u64), 0);
            // In bursts of any length, none included.
            let mut left = TRIALS;
            while left > 0 {
                let burst = (left % 1_001).clamp(1, left);
                rare.strike(burst, |at| {
                    assert!(at < burst);
                    hits += 1;
                });
                rare.strike(0, |_| panic!("no trial"));
                left -= burst;
            }
            assert!(
                is_likely(hits, TRIALS, probability),
                "{probability}: {hits}"
            );
        }
    }

    #[test]
    fn the_distance_of_hits_is_geometric() {
        // Of 8 trials each, how many have a hit: 1 - 0.9^8; the second moment would show hits that cling together.
        const BURSTS: u64 = 200_000;
        let mut rare = Rare::new(0.1, 1, 1);
        let mut some = 0;
        for _ in 0..BURSTS {
            let mut any = false;
            rare.strike(8, |_| any = true);
            some += u64::from(any);
        }
        assert!(is_likely(some, BURSTS, 1.0 - 0.9f64.powi(8)), "{some}");
    }

    #[test]
    fn the_same_seed_gives_the_same_and_another_one_something_else() {
        let draw = |seed, purpose| {
            let mut random = Random::new(seed, purpose);
            [(); 8].map(|()| random.below(u64::MAX))
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(2, 1));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn spans_are_uniform_and_end_where_they_should() {
        let (mean, spread) = (Duration::from_nanos(100), Duration::from_nanos(2));
        let mut random = Random::new(3, 0);
        let mut seen = [0u64; 5];
        const DRAWS: u64 = 100_000;
        for _ in 0..DRAWS {
            let span = random.around(mean, spread).as_nanos() as usize;
            seen[span - 98] += 1;
        }
        assert!(seen.iter().all(|&n| is_likely(n, DRAWS, 0.2)), "{seen:?}");
        assert_eq!(random.around(mean, Duration::ZERO), mean);
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn exponential_gaps_have_their_mean_and_deviation() {
        let mut random = Random::new(5, 0);
        const DRAWS: usize = 200_000;
        let draws: Vec<f64> = (0..DRAWS).map(|_| random.exponential()).collect();
        let mean = draws.iter().sum::<f64>() / DRAWS as f64;
        let square = draws.iter().map(|x| x * x).sum::<f64>() / DRAWS as f64;
        // Deviations of the estimates: 1 and sqrt(20) over the root of the number of draws.
        let root = (DRAWS as f64).sqrt();
        assert!((mean - 1.0).abs() < 5.0 / root, "{mean}");
        assert!((square - 2.0).abs() < 5.0 * 20f64.sqrt() / root, "{square}");
    }
}
