//! What can be wrong with an axis, a bound, a cap or a set of caps.

use std::fmt;

/// What the width of a set of caps is compared with, where it is a model's.
pub(crate) const MODEL: &str = "the model's residual stream";

/// Why a value of the vocabulary ([`Axis`](crate::Axis), [`Bound`](crate::Bound), [`Cap`](crate::Cap),
/// [`CapSet`](crate::CapSet), [`CapTable`](crate::CapTable)) was refused.
///
/// Every message says what was wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An axis without a single value.
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
    /// An axis whose norm is zero (or underflows to it) points nowhere.
    #[error("the axis is zero: it has no direction to project on; extract it from answers that differ")]
    ZeroAxis,
    /// An axis that was said to be a unit vector is not one.
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
    /// A lower bound above the upper one, or bounds that no finite projection can satisfy.
    #[error(
        "no projection lies within [{lo}, {hi}]; the lower bound must not exceed the upper one, and a bound of +inf below or -inf above leaves nothing"
    )]
    EmptyBound {
        /// Lower bound.
        lo: f32,
        /// Upper bound.
        hi: f32,
    },
    /// Strength outside `[0, 1]`, or NaN.
    #[error("strength {0} is outside [0, 1]; 1 moves the projection onto the bound, 0 only observes")]
    Strength(f32),
    /// Two widths that must be one.
    #[error(
        "{what} has width {found}, not {expected}, the width of {against}; {}", width_remedy(.against)
    )]
    Width {
        /// What was being added or applied.
        what: String,
        /// Its width.
        found: usize,
        /// What it was compared with.
        against: &'static str,
        /// The width expected.
        expected: usize,
    },
    /// A cap on a block the model does not have.
    #[error("cap {index} is on block {block}, but the model has {blocks} blocks (0 to {}); caps work only on the model they were made for", .blocks.saturating_sub(1))]
    Block {
        /// Index of the cap in its set.
        index: usize,
        /// The block it names.
        block: usize,
        /// Number of blocks of the model.
        blocks: usize,
    },
    /// A set of caps without a cap would silently do nothing.
    #[error("the set holds no cap; run uncapped on purpose instead, or add a cap")]
    EmptySet,
    /// More caps or profiles than a table can index.
    #[error("{found} {what} are more than the {most} a table can hold")]
    TooMany {
        /// `caps` or `profiles`.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are accepted.
        most: usize,
    },
    /// An index that names no cap.
    #[error("there is no cap {index}; the set has {caps} (0 to {})", .caps.saturating_sub(1))]
    NoSuchCap {
        /// The index asked for.
        index: usize,
        /// Number of caps.
        caps: usize,
    },
    /// An RMSNorm epsilon that is negative, infinite or NaN.
    #[error("epsilon {0} is not a finite number >= 0; use the model's own, e.g. 1e-5")]
    Epsilon(f32),
    /// An instruction set was asked for that this machine (or this build) does not have.
    #[error(
        "this machine cannot run the {0} code; leave the choice to Isa::best, or ask Isa::available first"
    )]
    Isa(crate::cpu::Isa),
    /// Rows that do not fit the memory, the table or each other.
    #[error("{0}")]
    Rows(RowsError),
}

/// Why a description of rows in memory was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowsError {
    /// Rows need at least one value each.
    ZeroWidth,
    /// The distance between two rows is smaller than a row.
    StrideTooSmall {
        /// Elements from one row to the next.
        stride: usize,
        /// Elements of a row.
        width: usize,
    },
    /// The slice is shorter than the rows it is said to hold.
    SliceTooShort {
        /// Elements needed.
        needed: usize,
        /// Elements present.
        found: usize,
    },
    /// The pointer is not a multiple of the element's size.
    Misaligned {
        /// Required alignment in bytes.
        align: usize,
    },
    /// A null pointer with rows behind it.
    Null,
    /// The extent of the rows overflows the address space.
    Overflow,
    /// Per-row data of another length than the number of rows.
    Count {
        /// What has the wrong length.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length expected.
        expected: usize,
    },
    /// A row's profile index names no profile of the table.
    Profile {
        /// The row.
        row: usize,
        /// Its profile index.
        profile: u32,
        /// Number of profiles, the empty profile 0 included.
        profiles: usize,
    },
}

impl fmt::Display for RowsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ZeroWidth => write!(f, "rows of width 0 have no projection; the width must be at least 1"),
            Self::StrideTooSmall { stride, width } => write!(
                f,
                "a stride of {stride} elements is smaller than the width {width}: rows would overlap; strides count elements, not bytes"
            ),
            Self::SliceTooShort { needed, found } => {
                write!(f, "the rows need {needed} elements, but the slice has {found}")
            }
            Self::Misaligned { align } => {
                write!(f, "the row pointer is not a multiple of the element size ({align} bytes)")
            }
            Self::Null => write!(f, "the row pointer is null"),
            Self::Overflow => write!(f, "rows x stride overflows the address space"),
            Self::Count { what, found, expected } => {
                write!(
                    f,
                    "{found} entries in {what}, where {expected} are needed; give one per row, and of statistics as many per row as the deepest profile has caps"
                )
            }
            Self::Profile { row, profile, profiles } => write!(
                f,
                "row {row} asks for profile {profile}, but the table has {profiles} (0 = uncapped, then 1 to {})",
                profiles.saturating_sub(1)
            ),
        }
    }
}

fn width_remedy(against: &str) -> &'static str {
    if against == MODEL {
        "caps work only on the model they were made for: extract and calibrate on this model"
    } else {
        "rows, axes and weights of one call or set are all as wide as the model's residual stream"
    }
}

impl From<RowsError> for Error {
    fn from(error: RowsError) -> Self {
        Self::Rows(error)
    }
}

/// Shorthand for results of the vocabulary.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_is_one_for_what_is_wrong() {
        let width = |what: &str, against| Error::Width { what: what.into(), found: 2, against, expected: 4 };
        let model = width("the set of caps", MODEL).to_string();
        assert!(model.contains("extract and calibrate on this model"), "{model}");
        let rows = width("the residual", "the rows").to_string();
        assert!(rows.starts_with("the residual has width 2, not 4, the width of the rows; "), "{rows}");
        assert!(!rows.contains("calibrate"), "{rows}");
        let count =
            RowsError::Count { what: "the statistics ([rows][deepest profile])", found: 4, expected: 8 };
        let count = count.to_string();
        assert!(
            count.starts_with("4 entries in the statistics ([rows][deepest profile]), where 8 are"),
            "{count}"
        );
        assert!(!count.contains("8 rows"), "{count}");
    }
}
