//! A launch before it is made: the rows and the table it works on, checked, and packed for a kernel.

use super::args::CapArgs;
use super::error::CudaError;
use super::pack::TableView;
use super::shape::{Limits, Path, Problem, Shape};
use crate::error::{Error, RowsError};

/// The most caps on one row that kernels/general.cuh can take (`MOST_STEPS`). The other paths have no limit.
pub const MOST_STEPS: usize = 1024;

/// The most rows of one launch.
pub const MOST_ROWS: usize = 1 << 31;

/// The widest row.
const MOST_WIDTH: usize = 1 << 30;

/// The type of a row's values in device memory.
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

    /// Bytes of an element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Its part of a kernel's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

/// What a launch does to each row.
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

    /// Its part of a kernel's name.
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

    /// Whether the normed row is written too.
    #[must_use]
    pub fn norms(self) -> bool {
        matches!(self, Self::CapNorm | Self::AddCapNorm)
    }
}

/// Rows in device memory: an address, how many, and how far apart. The width is the table's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRows {
    /// Address of the first element; a multiple of the element's size. 16-byte alignment is faster.
    pub address: u64,
    /// Elements from one row to the next, at least the width. Multiples of 16 bytes are faster.
    pub stride: usize,
}

/// RMSNorm after the caps: `out = h / sqrt(mean(h^2) + eps) * weight`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceNorm {
    /// Address of the weight, f32, as wide as the rows.
    pub weight: u64,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Where the normed rows go.
    pub out: DeviceRows,
}

/// Everything one launch works on.
///
/// With `add`, `rows` is written with the capped sum of both and not read; it may be one of them. `norm.out` must
/// not overlap anything else, and rows must not overlap each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    /// The type of all rows.
    pub dtype: Dtype,
    /// Number of rows.
    pub count: usize,
    /// The rows to cap, or to hold the capped sum.
    pub rows: DeviceRows,
    /// The two summands.
    pub add: Option<[DeviceRows; 2]>,
    /// The norm behind the caps.
    pub norm: Option<DeviceNorm>,
    /// Address of one u32 per row: the row's profile. Without it every row has profile 1. A row whose index is beyond
    /// the table's profiles goes uncapped and is recorded: see [`ProfileFaults`](super::ProfileFaults).
    pub profiles: Option<u64>,
    /// Address of `count * depth` [`RowStat`](crate::RowStat)s, written row by row; entries beyond a row's caps are
    /// zero.
    pub stats: Option<u64>,
}

impl Job {
    /// Rows capped in place; add to it by struct update.
    #[must_use]
    pub fn in_place(dtype: Dtype, rows: DeviceRows, count: usize) -> Self {
        Self { dtype, count, rows, add: None, norm: None, profiles: None, stats: None }
    }

    /// What this job does.
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

/// A kernel with its arguments and launch shape: what [`Device::launch`](super::Device::launch) puts on a stream,
/// and what the emulator in `kernels/emulate` runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    pub(crate) operation: Operation,
    pub(crate) dtype: Dtype,
    shape: Shape,
    args: CapArgs,
}

impl Plan {
    /// Checks a job and decides how to launch it; `None` when there are no rows.
    ///
    /// # Errors
    /// [`CudaError::Invalid`] for rows or a table that do not fit; [`CudaError::TooDeep`].
    pub fn new(job: &Job, table: &TableView, limits: &Limits) -> Result<Option<Self>, CudaError> {
        Self::on_path(job, table, limits, None)
    }

    /// As [`Plan::new`], on a given path: to test and time each of them. `None` also where the path cannot take
    /// the rows.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn on_path(
        job: &Job,
        table: &TableView,
        limits: &Limits,
        path: Option<Path>,
    ) -> Result<Option<Self>, CudaError> {
        let aligned = check(job, table)?;
        if job.count == 0 {
            return Ok(None);
        }
        let layout = &table.layout;
        let problem = Problem {
            operation: job.operation(),
            dtype: job.dtype,
            rows: job.count,
            width: layout.width,
            aligned,
        };
        let Some(shape) = Shape::choose(&problem, limits, path) else { return Ok(None) };
        if shape.path == Path::General && layout.depth > MOST_STEPS {
            return Err(CudaError::TooDeep { depth: layout.depth, most: MOST_STEPS });
        }
        let [x, r] = job.add.map_or([None; 2], |rows| rows.map(Some));
        let address = |rows: Option<DeviceRows>| rows.map_or(0, |rows| rows.address);
        let stride = |rows: Option<DeviceRows>| rows.map_or(0, |rows| rows.stride as i64);
        let out = job.norm.map(|norm| norm.out);
        let args = CapArgs {
            h: job.rows.address,
            x: address(x),
            r: address(r),
            y: address(out),
            weight: job.norm.map_or(0, |norm| norm.weight),
            h_stride: job.rows.stride as i64,
            x_stride: stride(x),
            r_stride: stride(r),
            y_stride: stride(out),
            axes: table.axes,
            params: table.params,
            ends: table.ends,
            profile: job.profiles.unwrap_or(0),
            stats: job.stats.unwrap_or(0),
            faults: table.faults,
            axis_stride: layout.axis_stride as u32,
            profiles: layout.profiles as u32,
            first: layout.first as u32,
            count: layout.count as u32,
            depth: layout.depth as u32,
            rows: job.count as u32,
            width: layout.width as u32,
            eps: job.norm.map_or(0.0, |norm| norm.eps),
            stages: shape.stages,
            wide: aligned.into(),
        };
        Ok(Some(Self { operation: problem.operation, dtype: job.dtype, shape, args }))
    }

    /// The kernel's name in the image.
    #[must_use]
    pub fn kernel(&self) -> String {
        kernel_name(self.operation, self.dtype, self.shape.path)
    }

    /// The launch shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The kernel's argument.
    #[must_use]
    pub fn args(&self) -> &CapArgs {
        &self.args
    }
}

pub(crate) fn kernel_name(operation: Operation, dtype: Dtype, path: Path) -> String {
    format!("axiscap_{}_{}_{}", operation.name(), dtype.name(), path.name())
}

/// Checks everything that can be checked without the device. Returns whether all accesses may be 16 bytes wide.
fn check(job: &Job, table: &TableView) -> Result<bool, CudaError> {
    let width = table.layout.width;
    let all = [Some(job.rows), job.add.map(|a| a[0]), job.add.map(|a| a[1]), job.norm.map(|n| n.out)];
    let invalid = |error: RowsError| Err(CudaError::Invalid(Error::Rows(error)));
    if width == 0 {
        return invalid(RowsError::ZeroWidth);
    }
    if width > MOST_WIDTH || job.count > MOST_ROWS {
        return Err(CudaError::TooLarge { rows: job.count, width });
    }
    let size = job.dtype.size();
    let mut aligned = width.is_multiple_of(16 / size);
    for rows in all.into_iter().flatten() {
        if rows.stride < width {
            return invalid(RowsError::StrideTooSmall { stride: rows.stride, width });
        }
        let bytes = job.count.saturating_sub(1).checked_mul(rows.stride).and_then(|n| n.checked_add(width));
        if bytes.and_then(|n| n.checked_mul(size)).is_none_or(|bytes| i64::try_from(bytes).is_err()) {
            return invalid(RowsError::Overflow);
        }
        if job.count > 0 && rows.address == 0 {
            return invalid(RowsError::Null);
        }
        if !rows.address.is_multiple_of(size as u64) {
            return invalid(RowsError::Misaligned { align: size });
        }
        let strided = job.count <= 1 || (rows.stride * size).is_multiple_of(16);
        aligned &= rows.address.is_multiple_of(16) && strided;
    }
    let words = [job.norm.map(|n| n.weight), job.profiles, job.stats];
    for address in words.into_iter().flatten() {
        if job.count > 0 && address == 0 {
            return invalid(RowsError::Null);
        }
        if !address.is_multiple_of(4) {
            return invalid(RowsError::Misaligned { align: 4 });
        }
    }
    aligned &= job.norm.is_none_or(|norm| norm.weight.is_multiple_of(16));
    if let Some(norm) = job.norm
        && !(norm.eps.is_finite() && norm.eps >= 0.0)
    {
        return Err(CudaError::Invalid(Error::Epsilon(norm.eps)));
    }
    Ok(aligned)
}
