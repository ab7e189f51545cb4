//! One call of the operation: what happens to which rows, wherever they are in memory.
//!
//! A [`Job`] describes a call. It is generic over [`Memory`], that is over how rows, weights and statistics
//! are given. There are three kinds. Each has its own launch, and all have the same builder methods:
//!
//! | memory | alias | launch |
//! |---|---|---|
//! | slices in host memory | [`cpu::Job`](crate::cpu::Job) | `job.run(&table)` |
//! | addresses in device memory | [`DeviceJob`], also `cuda::Job` | `unsafe { job.launch(&table, stream, overlap) }` |
//! | `CudaSlice`s of cudarc | `interop::cudarc::Job` | `job.launch(&table, &stream, overlap)` |
//!
//! A plain name works in place, and `_into` writes to other rows: [`Job::add_cap`] puts the capped sum into
//! the residual, [`Job::add_cap_into`] puts it into a third batch of rows.
//!
//! Nothing here needs CUDA. A [`DeviceJob`] consists of numbers and can be compared and hashed, so that a
//! program can record and cache its launches on a machine without a GPU.

use crate::error::{Error, Result};

/// Maximum number of caps per row that `kernels/general.cuh` takes (`MAX_STEPS` there). The other kernels
/// have no limit.
pub const MAX_STEPS: usize = 1024;

/// Maximum number of rows of one launch on a GPU.
pub const MAX_ROWS: usize = 1 << 31;

/// Elements of a segment, the unit of the fixed-order sum (docs/operation.md).
pub(crate) const SEGMENT: usize = 512;

/// The type of a row's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// `f32`.
    F32,
    /// IEEE half precision, [`half::f16`].
    F16,
    /// [`half::bf16`].
    BF16,
}

impl Dtype {
    /// All types.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of a value.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Values in 16 bytes: 4 or 8. This number fixes the lane map (docs/operation.md).
    #[must_use]
    pub const fn vector(self) -> usize {
        16 / self.size()
    }

    /// The type's part of a kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

/// The operation of a call on each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Cap in place.
    Cap,
    /// Residual addition, then cap.
    AddCap,
    /// Cap, then RMSNorm * weight.
    CapNorm,
    /// Residual addition, cap, RMSNorm * weight.
    AddCapNorm,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 4] = [Self::Cap, Self::AddCap, Self::CapNorm, Self::AddCapNorm];

    /// The operation's part of a kernel's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cap => "cap",
            Self::AddCap => "add_cap",
            Self::CapNorm => "cap_norm",
            Self::AddCapNorm => "add_cap_norm",
        }
    }

    /// Whether the row is a sum.
    #[must_use]
    pub fn adds(self) -> bool {
        matches!(self, Self::AddCap | Self::AddCapNorm)
    }

    /// Whether the normed row is written as well.
    #[must_use]
    pub fn norms(self) -> bool {
        matches!(self, Self::CapNorm | Self::AddCapNorm)
    }
}

/// The number that RMSNorm adds to the mean of the squares: finite and not negative.
///
/// The value is stored as its bits, because jobs are compared and hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epsilon(u32);

impl Epsilon {
    /// Checks an epsilon.
    ///
    /// # Errors
    /// [`Error::Epsilon`] when it is negative, infinite or NaN.
    pub fn new(epsilon: f32) -> Result<Self> {
        if epsilon >= 0.0 && epsilon.is_finite() {
            Ok(Self(epsilon.to_bits()))
        } else {
            Err(Error::Epsilon(epsilon))
        }
    }

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// How a call's data are given: as slices, as device addresses, or as another crate's buffers.
pub trait Memory {
    /// Rows that are read.
    type Rows;
    /// Rows that are written.
    type RowsMut;
    /// The weight of a norm, f32, one value per channel.
    type Weight;
    /// One profile index (u32) per row.
    type Profiles;
    /// Statistics, [`RowStat`](crate::RowStat)s in the shape
    /// `[rows][`[`max_caps_per_row`](crate::CapTable::max_caps_per_row)`]`.
    type Stats;
}

/// One call: the rows, and what happens to them.
///
/// Build one with [`Job::cap`], [`Job::add_cap`] or [`Job::add_cap_into`], and add to it with the other
/// methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Job<M: Memory> {
    /// The rows that are capped in place, or that take the capped sum.
    pub rows: M::RowsMut,
    /// The residual addition ahead of the caps.
    pub add: Option<Summands<M::Rows>>,
    /// The RMSNorm after the caps.
    pub norm: Option<Norm<M::Weight, M::RowsMut>>,
    /// The profile of each row. By default every row has profile 1.
    pub row_profiles: Option<M::Profiles>,
    /// Where the statistics go. By default none are written.
    pub stats: Option<M::Stats>,
}

/// The summands of a residual addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Summands<R> {
    /// The first summand.
    pub x: R,
    /// The second summand. `None` stands for the job's own rows, which then take the sum in place.
    pub residual: Option<R>,
}

/// RMSNorm after the caps: `out = h / sqrt(mean(h^2) + epsilon) * weight`, with `h` the capped row as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Norm<W, R> {
    /// The weight, one value per channel.
    pub weight: W,
    /// Added to the mean of the squares.
    pub epsilon: Epsilon,
    /// Where the normed rows go. They overlap nothing else of the call.
    pub out: R,
}

impl<M: Memory> Job<M> {
    /// Caps `rows` in place. A row on which no cap acts is not written.
    #[must_use]
    pub fn cap(rows: M::RowsMut) -> Self {
        Self { rows, add: None, norm: None, row_profiles: None, stats: None }
    }

    /// Adds and caps in place: `residual = cap(x + residual)`. Every row of `residual` is written.
    #[must_use]
    pub fn add_cap(x: M::Rows, residual: M::RowsMut) -> Self {
        Self { add: Some(Summands { x, residual: None }), ..Self::cap(residual) }
    }

    /// Adds and caps into other rows: `sum = cap(x + residual)`. Every row of `sum` is written.
    #[must_use]
    pub fn add_cap_into(x: M::Rows, residual: M::Rows, sum: M::RowsMut) -> Self {
        Self { add: Some(Summands { x, residual: Some(residual) }), ..Self::cap(sum) }
    }

    /// Adds a norm: `out = RMSNorm(capped rows) * weight`. Every row of `out` is written.
    ///
    /// The norm is computed from the capped row in f32, before that is rounded to its type, and rounded once.
    #[must_use]
    pub fn norm(self, weight: M::Weight, epsilon: Epsilon, out: M::RowsMut) -> Self {
        Self { norm: Some(Norm { weight, epsilon, out }), ..self }
    }

    /// Sets the profile of each row. Profile 0 leaves a row uncapped.
    #[must_use]
    pub fn row_profiles(self, profiles: M::Profiles) -> Self {
        Self { row_profiles: Some(profiles), ..self }
    }

    /// Asks for statistics. Entries beyond the caps of a row's profile become
    /// [`RowStat::default`](crate::RowStat::default).
    #[must_use]
    pub fn stats(self, stats: M::Stats) -> Self {
        Self { stats: Some(stats), ..self }
    }

    /// Returns the operation of this call.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match (self.add.is_some(), self.norm.is_some()) {
            (false, false) => Operation::Cap,
            (true, false) => Operation::AddCap,
            (false, true) => Operation::CapNorm,
            (true, true) => Operation::AddCapNorm,
        }
    }
}

/// Device memory, by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceMemory;

impl Memory for DeviceMemory {
    type Rows = DeviceRows;
    type RowsMut = DeviceRows;
    type Weight = u64;
    type Profiles = u64;
    type Stats = u64;
}

/// A call on device memory. All of its weights, profiles and statistics are addresses.
///
/// With `add`, the job's rows take the capped sum and may be one of the summands. The normed rows must not
/// overlap anything else, and rows must not overlap each other. A row whose profile index is beyond the
/// table's profiles goes uncapped and is recorded (`cuda::ProfileFaults`).
pub type DeviceJob = Job<DeviceMemory>;

/// Rows in device memory. Their width is the table's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceRows {
    /// The type of the values.
    pub dtype: Dtype,
    /// Address of the first value, a multiple of the value's size. Multiples of 16 bytes are faster.
    pub address: u64,
    /// Number of rows.
    pub count: usize,
    /// Values from one row to the next, at least the width. Multiples of 16 bytes are faster.
    pub stride: usize,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn device_jobs_can_be_told_apart_by_their_hash() {
        let rows = DeviceRows { dtype: Dtype::F32, address: 4096, count: 2, stride: 64 };
        let epsilon = |value| Epsilon::new(value).unwrap();
        let job = DeviceJob::cap(rows);
        let jobs = [
            job,
            job.stats(64),
            job.row_profiles(64),
            job.norm(64, epsilon(1e-5), rows),
            job.norm(64, epsilon(1e-6), rows),
            DeviceJob::add_cap(rows, rows),
            DeviceJob::add_cap_into(rows, rows, rows),
        ];
        assert_eq!(jobs.into_iter().chain(jobs).collect::<HashSet<_>>().len(), jobs.len());
    }

    #[test]
    fn a_job_names_its_operation() {
        let rows = DeviceRows { dtype: Dtype::F16, address: 4096, count: 1, stride: 8 };
        let epsilon = Epsilon::new(0.0).unwrap();
        let (cap, add_cap) = (DeviceJob::cap(rows), DeviceJob::add_cap(rows, rows));
        assert_eq!(cap.operation(), Operation::Cap);
        assert_eq!(add_cap.operation(), Operation::AddCap);
        assert_eq!(cap.norm(64, epsilon, rows).operation(), Operation::CapNorm);
        assert_eq!(add_cap.norm(64, epsilon, rows).operation(), Operation::AddCapNorm);
    }

    #[test]
    fn epsilon_is_a_finite_number_not_below_zero() {
        for epsilon in [-1e-5, f32::NAN, f32::INFINITY] {
            assert!(matches!(Epsilon::new(epsilon), Err(Error::Epsilon(_))), "{epsilon}");
        }
        assert_eq!(Epsilon::new(0.0).map(Epsilon::get), Ok(0.0));
    }
}
