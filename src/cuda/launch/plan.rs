//! A launch before it is made: the job and the table, checked and packed for a kernel.

use crate::cuda::error::CudaError;
use crate::cuda::launch::args::CapArgs;
use crate::cuda::launch::kernel::{KernelPath, kernel_name};
use crate::cuda::launch::limits::Limits;
use crate::cuda::launch::shape::{Problem, Shape};
use crate::cuda::table::TableView;
use crate::error::{Error, RowsError};
use crate::op::{DeviceJob, DeviceRows, Dtype, MAX_ROWS, MAX_STEPS, Operation};

/// Maximum width of a row.
const MAX_WIDTH: usize = 1 << 30;

/// A kernel with its argument and launch shape. A device puts it on a stream, and the emulator in
/// `kernels/emulate` runs it on the CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    pub(super) operation: Operation,
    pub(super) dtype: Dtype,
    shape: Shape,
    args: CapArgs,
}

impl Plan {
    /// Checks a job and chooses its kernel and shape; `None` when there are no rows.
    ///
    /// # Errors
    /// [`CudaError::Invalid`] when rows and table do not fit; [`CudaError::TooLarge`];
    /// [`CudaError::TooManyCaps`].
    pub fn new(job: &DeviceJob, table: &TableView, limits: &Limits) -> Result<Option<Self>, CudaError> {
        Self::on_path(job, table, limits, None)
    }

    /// Plans a job on a given path, to test and time each of them. `None` also if the path cannot take the
    /// rows.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn on_path(
        job: &DeviceJob,
        table: &TableView,
        limits: &Limits,
        path: Option<KernelPath>,
    ) -> Result<Option<Self>, CudaError> {
        let aligned = check(job, table)?;
        let rows = job.rows;
        if rows.count == 0 {
            return Ok(None);
        }
        let layout = &table.layout;
        let problem = Problem {
            operation: job.operation(),
            dtype: rows.dtype,
            rows: rows.count,
            width: layout.width,
            aligned,
            max_caps: layout.max_caps_per_row,
            same_caps: job.row_profiles.is_none().then_some(layout.count),
        };
        let Some(shape) = Shape::choose(&problem, limits, path) else { return Ok(None) };
        if shape.path == KernelPath::General && layout.max_caps_per_row > MAX_STEPS {
            return Err(CudaError::TooManyCaps { caps: layout.max_caps_per_row, max: MAX_STEPS });
        }
        let [x, r] = summands(job);
        let address = |rows: Option<DeviceRows>| rows.map_or(0, |rows| rows.address);
        let stride = |rows: Option<DeviceRows>| rows.map_or(0, |rows| rows.stride as i64);
        let out = job.norm.map(|norm| norm.out);
        let args = CapArgs {
            h: rows.address,
            x: address(x),
            r: address(r),
            y: address(out),
            weight: job.norm.map_or(0, |norm| norm.weight),
            h_stride: rows.stride as i64,
            x_stride: stride(x),
            r_stride: stride(r),
            y_stride: stride(out),
            axes: table.axes,
            params: table.params,
            ends: table.ends,
            profile: job.row_profiles.unwrap_or(0),
            stats: job.stats.unwrap_or(0),
            faults: table.faults,
            axis_stride: layout.axis_stride as u32,
            profiles: layout.profile_count as u32,
            first: layout.first as u32,
            count: layout.count as u32,
            depth: layout.max_caps_per_row as u32,
            rows: rows.count as u32,
            width: layout.width as u32,
            eps: job.norm.map_or(0.0, |norm| norm.epsilon.get()),
            stages: shape.stages,
            wide: aligned.into(),
        };
        Ok(Some(Self { operation: problem.operation, dtype: rows.dtype, shape, args }))
    }

    /// Returns the kernel's name in the image.
    #[must_use]
    pub fn kernel(&self) -> String {
        kernel_name(self.operation, self.dtype, self.shape.path)
    }

    /// Returns the launch shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns the kernel's argument.
    #[must_use]
    pub fn args(&self) -> &CapArgs {
        &self.args
    }
}

/// Returns both summands. Without a separate residual, the job's rows are the residual.
fn summands(job: &DeviceJob) -> [Option<DeviceRows>; 2] {
    job.add.map_or([None; 2], |add| [Some(add.x), Some(add.residual.unwrap_or(job.rows))])
}

/// Checks everything that can be checked without the device. Returns whether all accesses may be 16 bytes
/// wide.
fn check(job: &DeviceJob, table: &TableView) -> Result<bool, CudaError> {
    let width = table.layout.width;
    let DeviceRows { dtype, count, .. } = job.rows;
    let [x, residual] = summands(job);
    let all = [
        ("the rows", Some(job.rows)),
        ("x", x),
        ("the residual", residual),
        ("the normed output", job.norm.map(|norm| norm.out)),
    ];
    let invalid = |error: RowsError| Err(CudaError::Invalid(Error::Rows(error)));
    if width == 0 {
        return invalid(RowsError::ZeroWidth);
    }
    if width > MAX_WIDTH || count > MAX_ROWS {
        return Err(CudaError::TooLarge { rows: count, width });
    }
    let size = dtype.size();
    let mut aligned = width.is_multiple_of(dtype.vector());
    for (what, rows) in all {
        let Some(rows) = rows else { continue };
        if rows.dtype != dtype {
            let (found, expected) = (rows.dtype.name(), dtype.name());
            return invalid(RowsError::Dtype { what, found, expected });
        }
        if rows.count != count {
            return invalid(RowsError::Count { what, found: rows.count, expected: count });
        }
        if rows.stride < width {
            return invalid(RowsError::StrideTooSmall { stride: rows.stride, width });
        }
        let elements = count.saturating_sub(1).checked_mul(rows.stride).and_then(|n| n.checked_add(width));
        if elements.and_then(|n| n.checked_mul(size)).is_none_or(|bytes| i64::try_from(bytes).is_err()) {
            return invalid(RowsError::Overflow);
        }
        if count > 0 && rows.address == 0 {
            return invalid(RowsError::Null);
        }
        if !rows.address.is_multiple_of(size as u64) {
            return invalid(RowsError::Misaligned { align: size });
        }
        let strided = count <= 1 || (rows.stride * size).is_multiple_of(16);
        aligned &= rows.address.is_multiple_of(16) && strided;
    }
    let words = [job.norm.map(|norm| norm.weight), job.row_profiles, job.stats];
    for address in words.into_iter().flatten() {
        if count > 0 && address == 0 {
            return invalid(RowsError::Null);
        }
        if !address.is_multiple_of(4) {
            return invalid(RowsError::Misaligned { align: 4 });
        }
    }
    aligned &= job.norm.is_none_or(|norm| norm.weight.is_multiple_of(16));
    Ok(aligned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::table::TableLayout;

    const ROWS: DeviceRows = DeviceRows { dtype: Dtype::F32, address: 1 << 20, count: 3, stride: 64 };

    fn plan(job: &DeviceJob) -> Result<Option<Plan>, CudaError> {
        let layout = TableLayout {
            width: 64,
            axis_stride: 512,
            profile_count: 2,
            first: 0,
            count: 1,
            max_caps_per_row: 1,
        };
        let view = TableView { axes: 1 << 20, params: 1 << 20, ends: 1 << 20, faults: 1 << 20, layout };
        Plan::new(job, &view, &Limits::HOPPER)
    }

    #[test]
    fn rows_of_a_job_agree_in_number_and_type() {
        assert!(plan(&DeviceJob::add_cap(ROWS, ROWS)).unwrap().is_some());
        let refused = |x| match plan(&DeviceJob::add_cap(x, ROWS)) {
            Err(CudaError::Invalid(Error::Rows(error))) => error,
            other => panic!("{other:?}"),
        };
        let fewer = refused(DeviceRows { count: 2, ..ROWS });
        assert_eq!(fewer, RowsError::Count { what: "x", found: 2, expected: 3 });
        let half = refused(DeviceRows { dtype: Dtype::F16, ..ROWS });
        assert_eq!(half, RowsError::Dtype { what: "x", found: "f16", expected: "f32" });
    }

    #[test]
    fn without_a_residual_the_rows_are_the_second_summand() {
        let x = DeviceRows { address: 1 << 21, ..ROWS };
        let in_place = plan(&DeviceJob::add_cap(x, ROWS)).unwrap().unwrap();
        let named = plan(&DeviceJob::add_cap_into(x, ROWS, ROWS)).unwrap().unwrap();
        assert_eq!(in_place, named);
        assert_eq!((in_place.args().x, in_place.args().r, in_place.args().h), (1 << 21, 1 << 20, 1 << 20));
    }

    #[test]
    fn a_job_without_rows_is_no_launch() {
        assert_eq!(plan(&DeviceJob::cap(DeviceRows { address: 0, count: 0, ..ROWS })), Ok(None));
    }
}
