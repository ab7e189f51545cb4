//! f32 values that start on a cache line. A vector register then never straddles two lines.

use std::ops::Deref;

use bytemuck::{Pod, Zeroable};

/// One cache line.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// f32 values in owned memory that starts on a cache line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AlignedF32 {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedF32 {
    /// No values.
    pub(crate) const EMPTY: Self = Self { lines: Vec::new(), len: 0 };

    /// Grows to at least `len` values. New ones are zero.
    pub(crate) fn grow(&mut self, len: usize) {
        if self.len < len {
            self.lines.resize(len.div_ceil(16), Line::zeroed());
            self.len = len;
        }
    }

    /// Returns the address of the first value.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.lines.as_mut_ptr().cast()
    }

    /// Copies `slices` one after the other.
    pub(crate) fn concat<'a>(slices: impl Iterator<Item = &'a [f32]> + Clone) -> Self {
        let len = slices.clone().map(<[f32]>::len).sum::<usize>();
        let mut lines = vec![Line::zeroed(); len.div_ceil(16)];
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(&mut lines);
        for slice in slices {
            let (own, others) = rest.split_at_mut(slice.len());
            own.copy_from_slice(slice);
            rest = others;
        }
        Self { lines, len }
    }
}

impl Deref for AlignedF32 {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_slices_keep_their_values_and_start_on_a_cache_line() {
        let parts: [&[f32]; 3] = [&[1.0, 2.0, 3.0], &[], &[4.0; 17]];
        let joined = AlignedF32::concat(parts.into_iter());
        assert_eq!(*joined, parts.concat());
        assert_eq!(joined.as_ptr() as usize % 64, 0);
        assert!(AlignedF32::concat(std::iter::empty()).is_empty());
    }

    #[test]
    fn grown_memory_keeps_its_values_and_starts_on_a_cache_line() {
        let mut memory = AlignedF32::EMPTY;
        for len in [3, 1, 40, 1000] {
            memory.grow(len);
            assert!(memory.len() >= len);
            assert_eq!(memory.as_mut_ptr() as usize % 64, 0);
        }
        assert!(memory.iter().all(|&value| value == 0.0));
    }
}
