//! Numbers that are the same on every machine and run.

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0 .. `end`, near enough.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Uniform in [-1, 1).
    pub(crate) fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Roughly normal, times `scale`, and one in `rare` of them `massive` times as large: residual streams have
    /// outliers.
    pub(crate) fn outlying(&mut self, scale: f32, rare: u64, massive: f32) -> f32 {
        let bell = self.signed() + self.signed() + self.signed();
        bell * scale * if self.next().is_multiple_of(rare) { massive } else { 1.0 }
    }

    /// An activation, now and then a massive one.
    pub(crate) fn activation(&mut self, scale: f32) -> f32 {
        self.outlying(scale, 997, 300.0)
    }

    /// An activation of a row so short that outliers have to be more frequent.
    pub(crate) fn value(&mut self) -> f32 {
        self.outlying(0.7, 61, 40.0)
    }
}
