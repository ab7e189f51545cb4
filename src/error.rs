//! What can be wrong with an axis, a bound, a cap, a set of caps, or the arguments of a call.

use crate::cpu::isa::Isa;

/// The reference of [`Error::Width`] for a set of caps and a model.
pub(crate) const MODEL: &str = "the model's residual stream";

/// Why a value of the vocabulary ([`Axis`](crate::Axis), [`Bound`](crate::Bound), [`Cap`](crate::Cap),
/// [`CapSet`](crate::CapSet), [`CapTable`](crate::CapTable)) or a [`Job`](crate::op::Job) was refused.
///
/// Every message says what was wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An axis has no values.
    #[error("the axis is empty; give one value per channel of the residual stream (the model's n_embd)")]
    EmptyAxis,
    /// An axis holds NaN or an infinity.
    #[error(
        "the axis holds {value} at index {index} of {width}; every value must be finite: extract the axis again, or repair the file it came from"
    )]
    NonFiniteAxis {
        /// Index of the first value that is not finite.
        index: usize,
        /// Number of values.
        width: usize,
        /// The value itself.
        value: f32,
    },
    /// The norm of an axis is zero or underflows to it.
    #[error("the axis is zero: it has no direction to project on; extract it from answers that differ")]
    ZeroAxis,
    /// An axis that was given as a unit vector is not one.
    #[error(
        "the axis has norm {norm}, not 1 (tolerance {tolerance}); use Axis::from_direction for a vector that still has to be normalised, and mind that bounds belong to the unit axis"
    )]
    NotUnit {
        /// The norm found, computed in f64.
        norm: f64,
        /// The largest accepted distance from 1.
        tolerance: f64,
    },
    /// A bound is NaN.
    #[error("the {which} bound is NaN; use -inf or +inf for a side without a bound")]
    NanBound {
        /// `lower` or `upper`.
        which: &'static str,
    },
    /// A lower bound is above the upper one, or no finite projection can satisfy the bounds.
    #[error(
        "no projection is within [{lo}, {hi}]; the lower bound must not exceed the upper one, must not be +inf, and the upper one must not be -inf"
    )]
    EmptyBound {
        /// Lower bound.
        lo: f32,
        /// Upper bound.
        hi: f32,
    },
    /// A strength is outside `[0, 1]`, or NaN.
    #[error("strength {0} is outside [0, 1]; 1 moves the projection onto the bound, 0 only observes")]
    Strength(f32),
    /// Two widths differ that must be equal.
    #[error(
        "{what} has width {found}, not {expected}, the width of {against}; {}", width_remedy(.against)
    )]
    Width {
        /// The value with the wrong width.
        what: String,
        /// The width found.
        found: usize,
        /// The reference of the comparison.
        against: &'static str,
        /// The width expected.
        expected: usize,
    },
    /// A cap is on a block that the model does not have.
    #[error("cap {index} is on block {block}, but the model has {blocks} blocks (0 to {}); caps work only on the model they were made for", .blocks.saturating_sub(1))]
    Block {
        /// Index of the cap in its set.
        index: usize,
        /// The block it names.
        block: usize,
        /// Number of blocks of the model.
        blocks: usize,
    },
    /// The caps were made for a model with another number of blocks.
    #[error(
        "the caps are for a model of {caps} blocks, but the model has {model} blocks; caps work only on the model they were made for: extract and calibrate on this model"
    )]
    BlockCount {
        /// Number of blocks of the model that the caps were made for.
        caps: usize,
        /// Number of blocks of the model.
        model: usize,
    },
    /// A set has no caps, so it would have no effect.
    #[error("the set holds no cap; add one, or run uncapped on purpose")]
    EmptySet,
    /// There are more caps or profiles than a table can index.
    #[error("{found} {what} are more than the {max} a table can hold")]
    TooMany {
        /// `caps` or `profiles`.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are accepted.
        max: usize,
    },
    /// An index names no cap.
    #[error("there is no cap {index}; the set has {caps} (0 to {})", .caps.saturating_sub(1))]
    NoSuchCap {
        /// The index asked for.
        index: usize,
        /// Number of caps.
        caps: usize,
    },
    /// An RMSNorm epsilon is negative, infinite or NaN.
    #[error("epsilon {0} is not a finite number >= 0; use the model's own, e.g. 1e-5")]
    Epsilon(f32),
    /// This machine does not have the instruction set asked for.
    #[error(
        "this machine cannot run the {0} code; leave the choice to Isa::best, or ask Isa::available before"
    )]
    Isa(Isa),
    /// Rows do not fit the memory, the table or each other.
    #[error(transparent)]
    Rows(#[from] RowsError),
}

/// Why a description of rows in memory was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowsError {
    /// The rows have no values.
    #[error("rows of width 0 have no projection; the width must be at least 1")]
    ZeroWidth,
    /// The distance between two rows is smaller than a row.
    #[error(
        "a stride of {stride} elements is smaller than the width {width}: rows would overlap; strides count elements, not bytes"
    )]
    StrideTooSmall {
        /// Elements from one row to the next.
        stride: usize,
        /// Elements of a row.
        width: usize,
    },
    /// The slice is shorter than its rows.
    #[error("the rows need {needed} elements, but the slice has {found}")]
    SliceTooShort {
        /// Elements needed.
        needed: usize,
        /// Elements present.
        found: usize,
    },
    /// The pointer is not a multiple of the element's size.
    #[error("the row pointer is not a multiple of the element size ({align} bytes)")]
    Misaligned {
        /// Required alignment in bytes.
        align: usize,
    },
    /// The pointer is null, and there are rows.
    #[error("the row pointer is null")]
    Null,
    /// The extent of the rows overflows the address space.
    #[error("rows x stride overflows the address space")]
    Overflow,
    /// The number of rows or of per-row values is wrong.
    #[error(
        "{found} entries in {what}, where {expected} are needed; give one per row, and of statistics as many per row as the longest profile has caps"
    )]
    Count {
        /// The value with the wrong length.
        what: &'static str,
        /// The length found.
        found: usize,
        /// The length expected.
        expected: usize,
    },
    /// Rows of one call differ in type.
    #[error(
        "{what} is of type {found}, but the rows are of type {expected}; all rows of a call have one type"
    )]
    Dtype {
        /// The rows of the wrong type.
        what: &'static str,
        /// The type found.
        found: &'static str,
        /// The type of the job's rows.
        expected: &'static str,
    },
    /// A row's profile does not exist.
    #[error(
        "row {row} asks for profile {profile}, but the table has {profiles} (0 = uncapped, then 1 to {})",
        .profiles.saturating_sub(1)
    )]
    Profile {
        /// The row.
        row: usize,
        /// The row's profile index.
        profile: u32,
        /// Number of profiles, including the empty profile 0.
        profiles: usize,
    },
}

fn width_remedy(against: &str) -> &'static str {
    if against == MODEL {
        "caps work only on the model they were made for: extract and calibrate on this model"
    } else {
        "rows, axes and weights of one call or set are all as wide as the model's residual stream"
    }
}

/// Shorthand for results of the vocabulary.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_belongs_to_the_fault() {
        let width = |what: &str, against| Error::Width { what: what.into(), found: 2, against, expected: 4 };
        let model = width("the set of caps", MODEL).to_string();
        assert!(model.contains("extract and calibrate on this model"), "{model}");
        let rows = width("the residual", "the rows").to_string();
        assert!(rows.starts_with("the residual has width 2, not 4, the width of the rows; "), "{rows}");
        assert!(!rows.contains("calibrate"), "{rows}");
        let count =
            RowsError::Count { what: "the statistics ([rows][max caps per row])", found: 4, expected: 8 };
        let count = count.to_string();
        assert!(
            count.starts_with("4 entries in the statistics ([rows][max caps per row]), where 8 are"),
            "{count}"
        );
        assert!(!count.contains("8 rows"), "{count}");
    }
}
