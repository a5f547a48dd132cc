//! The Toeplitz hash, by table.
//!
//! The hash of an input is the exclusive or of the 32-bit windows of the key that begin where the input
//! has a one. It is linear, so the contribution of each octet of input, at its place, can be looked up.
//!
//! A table of 256 for each of the 36 places takes one load and one exclusive or an octet, besides the
//! octet's own load: 12 octets of IPv4 take about 24 instructions and touch at most 12 lines of 12 KiB, 36 octets of IPv6
//! about 72 of 36 KiB. Tables of 16 for each half octet are an eighth of the size, but they double the look-ups and
//! each half must be cut out first, about 70 and 200 instructions; walking the ones of the input, without a
//! table, takes several instructions a bit. Lines that are not in the nearest cache are loaded side by side, as no look-up
//! waits for another.

/// Octets of the longest key. It has a window for each bit of the longest input.
pub const MAX_KEY: usize = 40;

/// Octets of the longest input: two IPv6 addresses and two ports.
pub const MAX_INPUT: usize = MAX_KEY - 4;

/// The hash function that belongs to one key.
#[derive(Clone, Debug)]
pub(super) struct Toeplitz {
    tables: Box<[[u32; 256]; MAX_INPUT]>,
}

impl Toeplitz {
    pub fn new(key: &[u8; MAX_KEY]) -> Self {
        let mut toeplitz = Toeplitz {
            tables: Box::new([[0; 256]; MAX_INPUT]),
        };
        // Of zeros, which a card begins with, they are done.
        if *key != [0; MAX_KEY] {
            toeplitz.set_key(key);
        }
        toeplitz
    }

    pub fn set_key(&mut self, key: &[u8; MAX_KEY]) {
        for (table, bits) in self.tables.iter_mut().zip(key.windows(5)) {
            // All the windows that begin in this octet.
            let bits = bits
                .iter()
                .fold(0, |all, &octet| all << 8 | u64::from(octet));
            for octet in 1..256_usize {
                let rest = octet & (octet - 1);
                table[octet] = table[rest] ^ (bits >> (octet.trailing_zeros() + 1)) as u32;
            }
        }
    }

    /// What `octets` contribute to the hash of an input in which they begin at octet `AT`.
    #[inline(always)] // what is called from two places is a function otherwise
    pub fn part<const AT: usize, const N: usize>(&self, octets: &[u8; N]) -> u32 {
        let tables = self.tables[AT..].iter();
        octets
            .iter()
            .zip(tables)
            .fold(0, |hash, (&octet, table)| hash ^ table[usize::from(octet)])
    }

    /// What `octets` contribute at the beginning of an input: [`Toeplitz::part`] for functions that are `#[cold]`, in which it
    /// would stay a loop, with twice the instructions.
    #[inline(never)]
    pub fn first_part<const N: usize>(&self, octets: &[u8; N]) -> u32 {
        self.part::<0, N>(octets)
    }
}
