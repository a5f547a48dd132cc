//! A fuzzer's octets, read as decisions.
//!
//! What has run out reads as zeros, so that every input means something and a shorter one is a simpler one.

/// What is left of an input.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    data: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Input { data }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The next `count` octets, or as many as there are.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, left) = self.data.split_at(count.min(self.data.len()));
        self.data = left;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next octet.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of the first `bound` numbers, of which there is at least one.
    pub fn below(&mut self, bound: u16) -> u16 {
        if bound <= 256 {
            u16::from(self.u8()) % bound
        } else {
            self.u16() % bound
        }
    }

    /// Octets whose number comes first, up to `most`.
    pub fn octets(&mut self, most: u16) -> &'a [u8] {
        let count = self.below(most.saturating_add(1));
        self.take(count.into())
    }
}
