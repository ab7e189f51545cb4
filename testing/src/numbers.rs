//! Pseudo-random numbers that are the same on every machine and in every run.

/// The generator SplitMix64, with its state.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// Returns 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from 0 to `end - 1`, nearly uniform.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Returns a number in [-1, 1), uniform.
    pub fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Returns a roughly normal number times `scale`. One in `rare` numbers is `massive` times as large,
    /// because residual streams have outliers.
    pub fn outlying(&mut self, scale: f32, rare: u64, massive: f32) -> f32 {
        let bell = self.signed() + self.signed() + self.signed();
        bell * scale * if self.bits().is_multiple_of(rare) { massive } else { 1.0 }
    }

    /// Returns an activation. One in 997 is massive.
    pub fn activation(&mut self, scale: f32) -> f32 {
        self.outlying(scale, 997, 300.0)
    }

    /// Returns an activation for short rows, with more frequent outliers.
    pub fn value(&mut self) -> f32 {
        self.outlying(0.7, 61, 40.0)
    }
}
