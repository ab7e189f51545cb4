//! On cudarc's types: launches on `CudaSlice`s are safe, because cudarc keeps the memory alive and orders streams.

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, ValidAsZeroBits};

use crate::cpu::Element;
use crate::cuda::{CudaError, Device, DeviceNorm, DeviceRows, DeviceTable, Dtype, Job, Overlap, StreamRef};
use crate::error::{Error, RowsError};
use crate::stats::RowStat;

// SAFETY: plain data, the same on both sides.
unsafe impl DeviceRepr for RowStat {}
// SAFETY: two floats and an integer.
unsafe impl ValidAsZeroBits for RowStat {}

impl From<&CudaStream> for StreamRef {
    fn from(stream: &CudaStream) -> Self {
        // SAFETY: cudarc's stream is live; work is put on it while it is borrowed, and dropping it waits for that.
        unsafe { Self::from_raw(stream.cu_stream().cast()) }
    }
}

/// Per-row data of a launch. The default: profile 1 for every row, no statistics, no overlap.
#[expect(missing_debug_implementations, reason = "holds trait objects of cudarc's")]
pub struct SliceOptions<'a> {
    /// One profile index per row. A row with an index beyond the table's profiles goes uncapped, and
    /// [`DeviceTable::faults`] says so.
    pub profiles: Option<&'a dyn ReadSlice<u32>>,
    /// `rows * depth` entries, depth being the table's deepest profile.
    pub stats: Option<&'a mut dyn WriteSlice<RowStat>>,
    /// How the launch relates to the one before.
    pub overlap: Overlap,
}

impl Default for SliceOptions<'_> {
    fn default() -> Self {
        Self { profiles: None, stats: None, overlap: Overlap::None }
    }
}

/// A `CudaSlice` or `CudaView` that is read.
pub trait ReadSlice<T>: DevicePtr<T> {}
impl<T, S: DevicePtr<T>> ReadSlice<T> for S {}
/// A `CudaSlice` or `CudaViewMut` that is written.
pub trait WriteSlice<T>: DevicePtrMut<T> {}
impl<T, S: DevicePtrMut<T>> WriteSlice<T> for S {}

/// Caps the rows of a slice in place, row after row without gaps, on `stream`. Returns at once.
///
/// # Errors
/// [`CudaError::Invalid`] where lengths do not fit the table's width, or something is on another GPU;
/// [`CudaError::Driver`].
pub fn cap_slice<E: Element + DeviceRepr>(
    stream: &CudaStream,
    table: &DeviceTable,
    rows: &mut dyn WriteSlice<E>,
    options: SliceOptions<'_>,
) -> Result<(), CudaError> {
    let device = table.device();
    let width = table.view().layout.width;
    let count = whole_rows(rows.len(), width)?;
    same_gpu(device, stream)?;
    same_gpu(device, rows.stream())?;
    // The guards record the use when they are dropped, after the launch.
    let (address, _rows) = rows.device_ptr_mut(stream);
    let job = Job::in_place(Dtype::of::<E>(), DeviceRows { address, stride: width }, count);
    launch(device, stream, table, job, options)
}

/// Caps the rows of a slice in place and writes their RMSNorm * weight to `out`, on `stream`. Returns at once.
///
/// # Errors
/// Those of [`cap_slice`].
pub fn cap_norm_slice<E: Element + DeviceRepr>(
    stream: &CudaStream,
    table: &DeviceTable,
    rows: &mut dyn WriteSlice<E>,
    (weight, eps): (&dyn ReadSlice<f32>, f32),
    out: &mut dyn WriteSlice<E>,
    options: SliceOptions<'_>,
) -> Result<(), CudaError> {
    let device = table.device();
    let width = table.view().layout.width;
    let count = whole_rows(rows.len(), width)?;
    expect_length("the slice of normed rows", out.len(), rows.len())?;
    expect_length("the norm's weight", weight.len(), width)?;
    for other in [rows.stream(), out.stream(), weight.stream()] {
        same_gpu(device, other)?;
    }
    same_gpu(device, stream)?;
    let (address, _rows) = rows.device_ptr_mut(stream);
    let (weight, _weight) = weight.device_ptr(stream);
    let (out, _out) = out.device_ptr_mut(stream);
    let norm = DeviceNorm { weight, eps, out: DeviceRows { address: out, stride: width } };
    let job = Job {
        norm: Some(norm),
        ..Job::in_place(Dtype::of::<E>(), DeviceRows { address, stride: width }, count)
    };
    launch(device, stream, table, job, options)
}

/// `residual = cap(x + residual)` on the rows of two slices, on `stream`. Returns at once.
///
/// # Errors
/// Those of [`cap_slice`].
pub fn add_cap_slice<E: Element + DeviceRepr>(
    stream: &CudaStream,
    table: &DeviceTable,
    x: &dyn ReadSlice<E>,
    residual: &mut dyn WriteSlice<E>,
    options: SliceOptions<'_>,
) -> Result<(), CudaError> {
    let device = table.device();
    let width = table.view().layout.width;
    let count = whole_rows(residual.len(), width)?;
    expect_length("the slice of summands", x.len(), residual.len())?;
    for other in [x.stream(), residual.stream()] {
        same_gpu(device, other)?;
    }
    same_gpu(device, stream)?;
    let (x, _x) = x.device_ptr(stream);
    let (address, _residual) = residual.device_ptr_mut(stream);
    let rows = DeviceRows { address, stride: width };
    let job = Job {
        add: Some([DeviceRows { address: x, stride: width }, rows]),
        ..Job::in_place(Dtype::of::<E>(), rows, count)
    };
    launch(device, stream, table, job, options)
}

fn launch(
    device: &Device,
    stream: &CudaStream,
    table: &DeviceTable,
    mut job: Job,
    options: SliceOptions<'_>,
) -> Result<(), CudaError> {
    let profiles = match options.profiles {
        Some(profiles) => {
            expect_length("the slice of profiles", profiles.len(), job.count)?;
            same_gpu(device, profiles.stream())?;
            Some(profiles.device_ptr(stream))
        }
        None => None,
    };
    let stats = match options.stats {
        Some(stats) => {
            expect_length("the slice of statistics", stats.len(), job.count * table.view().layout.depth)?;
            same_gpu(device, stats.stream())?;
            Some(stats.device_ptr_mut(stream))
        }
        None => None,
    };
    job.profiles = profiles.as_ref().map(|(address, _)| *address);
    job.stats = stats.as_ref().filter(|_| table.view().layout.depth > 0).map(|(address, _)| *address);
    // SAFETY: the slices have the lengths that the job says and are on this GPU, cudarc orders their use across
    // streams by the guards, and freeing them waits for the stream. The table is borrowed now; freeing it waits for
    // the GPU. Profile indices beyond the table read nothing of it.
    unsafe { device.launch(&job, table, stream.into(), options.overlap) }
}

fn whole_rows(length: usize, width: usize) -> Result<usize, CudaError> {
    if length.is_multiple_of(width) {
        Ok(length / width)
    } else {
        let needed = length.next_multiple_of(width);
        Err(CudaError::Invalid(Error::Rows(RowsError::SliceTooShort { needed, found: length })))
    }
}

fn expect_length(what: &'static str, found: usize, expected: usize) -> Result<(), CudaError> {
    if found == expected {
        Ok(())
    } else {
        Err(CudaError::Invalid(Error::Rows(RowsError::Count { what, found, expected })))
    }
}

fn same_gpu(device: &Device, stream: &CudaStream) -> Result<(), CudaError> {
    let (expected, found) = (device.info().ordinal, stream.context().ordinal());
    // Of one GPU there is one primary context; a context of cudarc's may also be another one's.
    if stream.context().cu_ctx() == device.context().cu_ctx() {
        Ok(())
    } else {
        Err(CudaError::OtherContext { expected, found })
    }
}
