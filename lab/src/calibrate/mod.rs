//! Bounds: the floor on each axis, from the projections of answers of the model that will be capped.
//!
//! # Which percentile
//! Percentiles here are counted *from the role end*, on the axis whose positive side is "more Assistant": a
//! floor at percentile 75 lies above the mean projection of 75 % of all answers, and below that of 25 %. The
//! paper's released configurations write the same floor as "p0.25", because they count on the negated axis.
//! The mean projections of *all* answers enter, default and role play alike, one value per answer and not one
//! per token.

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};

use crate::error::Error;

mod budget;
mod floor;

pub use budget::{Budget, Setting, strongest};
pub use floor::{BlockFloor, DEFAULT_PERCENTILE, TABLE, floor_of};

/// Returns the blocks to cap by default in a model of `blocks` blocks: 70 % to 90 % of its depth. The paper
/// capped 72 % to 84 % (Qwen3-32B, 46 to 53 of 64) and 70 % to 90 % (Llama-3.3-70B, 56 to 71 of 80).
#[must_use]
pub fn default_blocks(blocks: usize) -> std::ops::RangeInclusive<usize> {
    let share = |tenths: usize| (blocks * tenths + 5) / 10;
    let first = share(7).min(blocks.saturating_sub(1));
    first..=share(9).saturating_sub(1).max(first)
}

/// Makes a set of caps, one floor per block, each named `assistant`.
///
/// # Errors
/// [`Error::Caps`].
pub fn caps<'a>(floors: impl IntoIterator<Item = (&'a BlockFloor, &'a Axis)>) -> Result<CapSet, Error> {
    let mut caps = Vec::new();
    for (floor, axis) in floors {
        let cap = Cap::new(axis.clone(), Bound::floor(floor.floor)?).with_name("assistant");
        caps.push(BlockCap { block: floor.block, cap });
    }
    Ok(CapSet::new(caps)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_blocks_follow_the_paper_at_any_depth() {
        assert_eq!(default_blocks(80), 56..=71);
        assert_eq!(default_blocks(30), 21..=26);
        for blocks in 1..100 {
            let range = default_blocks(blocks);
            assert!(!range.is_empty() && *range.end() < blocks, "{blocks}: {range:?}");
        }
    }
}
