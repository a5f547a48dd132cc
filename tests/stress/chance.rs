//! Numbers by chance, the same for the same seed (xorshift64*).

/// A sequence of such numbers.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        // The state must not be zero, nor the seeds that people choose be alike.
        Chance((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() * end) >> 32
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Mostly nothing, sometimes a moment: so that one side meets the other at any point of what it does.
    pub fn dawdle(&mut self) {
        if self.once_in(4) {
            for _ in 0..self.below(32) {
                std::hint::spin_loop();
            }
        }
    }

    /// Looks for a while whether there is `news`. Who gives up just when they come is who may miss a wake-up.
    pub fn linger(&mut self, mut news: impl FnMut() -> bool) -> bool {
        (0..1u32 << self.below(11)).any(|_| {
            std::hint::spin_loop();
            news()
        })
    }
}
