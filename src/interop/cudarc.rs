//! On cudarc's types: launches on `CudaSlice`s are safe, because cudarc keeps the memory alive and orders streams.
//!
//! | function | reads | writes |
//! |---|---|---|
//! | [`cap_slice`] | rows | the rows on which a cap acted |
//! | [`add_cap_slice`], [`add_cap_slice_into`] | two summands | their capped sum |
//! | [`cap_norm_slice`] | rows, weight | the rows on which a cap acted; the normed rows |
//! | [`add_cap_norm_slice`], [`add_cap_norm_slice_into`] | two summands, weight | their capped sum; the normed rows |
//!
//! A decoder block's epilogue and the next block's norm, in one launch:
//!
//! ```no_run
//! use axiscap::cuda::Device;
//! use axiscap::interop::cudarc::{SliceNorm, SliceOptions, add_cap_norm_slice};
//! # fn demo(table: &axiscap::CapTable) -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::open(0)?;
//! let stream = device.context().new_stream()?;
//! let table = device.upload(table)?;
//! let (width, rows) = (4096, 7);
//! let ffn_out = stream.alloc_zeros::<half::bf16>(rows * width)?;
//! let mut residual = stream.alloc_zeros::<half::bf16>(rows * width)?;
//! let mut normed = stream.alloc_zeros::<half::bf16>(rows * width)?;
//! let weight = stream.clone_htod(&vec![1.0_f32; width])?;
//! let norm = SliceNorm { weight: &weight, eps: 1e-5 };
//! let options = SliceOptions::default();
//! add_cap_norm_slice(&stream, &table, &ffn_out, &mut residual, norm, &mut normed, options)?;
//! # Ok(()) }
//! ```

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits};

use crate::cpu::Element;
use crate::cuda::{CudaError, Device, DeviceNorm, DeviceRows, DeviceTable, Dtype, Job, Overlap, StreamRef};
use crate::error::{Error, RowsError};
use crate::stats::RowStat;

// SAFETY: plain data, the same on both sides.
unsafe impl DeviceRepr for RowStat {}
// SAFETY: two floats and an integer.
unsafe impl ValidAsZeroBits for RowStat {}

impl<'a> From<&'a CudaStream> for StreamRef<'a> {
    fn from(stream: &'a CudaStream) -> Self {
        // SAFETY: cudarc's stream is live for as long as it is borrowed.
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

/// The RMSNorm behind the caps: `h / sqrt(mean(h^2) + eps) * weight`.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "holds a trait object of cudarc's")]
pub struct SliceNorm<'a> {
    /// One value per element of a row.
    pub weight: &'a dyn ReadSlice<f32>,
    /// Added to the mean of squares.
    pub eps: f32,
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
    let call = Call::new(stream, table, rows.len())?;
    // The guards record the use when they are dropped, after the launch.
    let (rows, _rows) = call.write("the slice of rows", rows)?;
    call.launch(Job::in_place(Dtype::of::<E>(), rows, call.count), options)
}

/// Caps the rows of a slice in place and writes their RMSNorm * weight to `out`, on `stream`. Returns at once.
///
/// # Errors
/// Those of [`cap_slice`].
pub fn cap_norm_slice<E: Element + DeviceRepr>(
    stream: &CudaStream,
    table: &DeviceTable,
    rows: &mut dyn WriteSlice<E>,
    norm: SliceNorm<'_>,
    out: &mut dyn WriteSlice<E>,
    options: SliceOptions<'_>,
) -> Result<(), CudaError> {
    let call = Call::new(stream, table, rows.len())?;
    let (rows, _rows) = call.write("the slice of rows", rows)?;
    let (weight, _weight) = call.weight(norm)?;
    let (out, _out) = call.write("the slice of normed rows", out)?;
    let norm = Some(DeviceNorm { weight, eps: norm.eps, out });
    call.launch(Job { norm, ..Job::in_place(Dtype::of::<E>(), rows, call.count) }, options)
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
    let call = Call::new(stream, table, residual.len())?;
    let (x, _x) = call.read("the slice of summands", x)?;
    let (rows, _rows) = call.write("the residual slice", residual)?;
    let add = Some([x, rows]);
    call.launch(Job { add, ..Job::in_place(Dtype::of::<E>(), rows, call.count) }, options)
}

/// `sum = cap(x + residual)` on the rows of three slices, on `stream`. Returns at once.
///
/// # Errors
/// Those of [`cap_slice`].
pub fn add_cap_slice_into<E: Element + DeviceRepr>(
    stream: &CudaStream,
    table: &DeviceTable,
    [x, residual]: [&dyn ReadSlice<E>; 2],
    sum: &mut dyn WriteSlice<E>,
    options: SliceOptions<'_>,
) -> Result<(), CudaError> {
    let call = Call::new(stream, table, sum.len())?;
    let (x, _x) = call.read("the slice of summands", x)?;
    let (residual, _residual) = call.read("the residual slice", residual)?;
    let (rows, _rows) = call.write("the slice of sums", sum)?;
    let add = Some([x, residual]);
    call.launch(Job { add, ..Job::in_place(Dtype::of::<E>(), rows, call.count) }, options)
}

/// A block's whole epilogue in one pass: `residual = cap(x + residual)`, `out = RMSNorm(residual) * weight`, on
/// `stream`. Returns at once.
///
/// # Errors
/// Those of [`cap_slice`].
pub fn add_cap_norm_slice<E: Element + DeviceRepr>(
    stream: &CudaStream,
    table: &DeviceTable,
    x: &dyn ReadSlice<E>,
    residual: &mut dyn WriteSlice<E>,
    norm: SliceNorm<'_>,
    out: &mut dyn WriteSlice<E>,
    options: SliceOptions<'_>,
) -> Result<(), CudaError> {
    let call = Call::new(stream, table, residual.len())?;
    let (x, _x) = call.read("the slice of summands", x)?;
    let (rows, _rows) = call.write("the residual slice", residual)?;
    let (weight, _weight) = call.weight(norm)?;
    let (out, _out) = call.write("the slice of normed rows", out)?;
    let norm = Some(DeviceNorm { weight, eps: norm.eps, out });
    let add = Some([x, rows]);
    call.launch(Job { add, norm, ..Job::in_place(Dtype::of::<E>(), rows, call.count) }, options)
}

/// `sum = cap(x + residual)`, `out = RMSNorm(sum) * weight`, on `stream`. Returns at once.
///
/// # Errors
/// Those of [`cap_slice`].
pub fn add_cap_norm_slice_into<E: Element + DeviceRepr>(
    stream: &CudaStream,
    table: &DeviceTable,
    [x, residual]: [&dyn ReadSlice<E>; 2],
    sum: &mut dyn WriteSlice<E>,
    norm: SliceNorm<'_>,
    out: &mut dyn WriteSlice<E>,
    options: SliceOptions<'_>,
) -> Result<(), CudaError> {
    let call = Call::new(stream, table, sum.len())?;
    let (x, _x) = call.read("the slice of summands", x)?;
    let (residual, _residual) = call.read("the residual slice", residual)?;
    let (rows, _rows) = call.write("the slice of sums", sum)?;
    let (weight, _weight) = call.weight(norm)?;
    let (out, _out) = call.write("the slice of normed rows", out)?;
    let norm = Some(DeviceNorm { weight, eps: norm.eps, out });
    let add = Some([x, residual]);
    call.launch(Job { add, norm, ..Job::in_place(Dtype::of::<E>(), rows, call.count) }, options)
}

/// A call on slices that all hold the same number of the table's rows.
struct Call<'a> {
    stream: &'a CudaStream,
    table: &'a DeviceTable,
    count: usize,
}

/// An address, and what records its use when it is dropped.
type Guarded<'a, T> = (T, SyncOnDrop<'a>);

impl<'a> Call<'a> {
    /// `length` elements are a whole number of rows.
    fn new(stream: &'a CudaStream, table: &'a DeviceTable, length: usize) -> Result<Self, CudaError> {
        same_gpu(table.device(), stream)?;
        let width = table.view().layout.width;
        if !length.is_multiple_of(width) {
            let needed = length.next_multiple_of(width);
            return Err(CudaError::Invalid(Error::Rows(RowsError::SliceTooShort { needed, found: length })));
        }
        Ok(Self { stream, table, count: length / width })
    }

    fn width(&self) -> usize {
        self.table.view().layout.width
    }

    fn check(
        &self,
        what: &'static str,
        on: &CudaStream,
        found: usize,
        expected: usize,
    ) -> Result<(), CudaError> {
        same_gpu(self.table.device(), on)?;
        if found == expected {
            Ok(())
        } else {
            Err(CudaError::Invalid(Error::Rows(RowsError::Count { what, found, expected })))
        }
    }

    fn read<'s, E>(
        &'s self,
        what: &'static str,
        slice: &'s dyn ReadSlice<E>,
    ) -> Result<Guarded<'s, DeviceRows>, CudaError> {
        self.check(what, slice.stream(), slice.len(), self.count * self.width())?;
        let (address, guard) = slice.device_ptr(self.stream);
        Ok((DeviceRows { address, stride: self.width() }, guard))
    }

    fn write<'s, E>(
        &'s self,
        what: &'static str,
        slice: &'s mut dyn WriteSlice<E>,
    ) -> Result<Guarded<'s, DeviceRows>, CudaError> {
        self.check(what, slice.stream(), slice.len(), self.count * self.width())?;
        let (address, guard) = slice.device_ptr_mut(self.stream);
        Ok((DeviceRows { address, stride: self.width() }, guard))
    }

    fn weight<'s>(&'s self, norm: SliceNorm<'s>) -> Result<Guarded<'s, u64>, CudaError> {
        self.check("the norm's weight", norm.weight.stream(), norm.weight.len(), self.width())?;
        Ok(norm.weight.device_ptr(self.stream))
    }

    fn launch(&self, mut job: Job, options: SliceOptions<'_>) -> Result<(), CudaError> {
        let profiles = match options.profiles {
            Some(profiles) => {
                self.check("the slice of profiles", profiles.stream(), profiles.len(), self.count)?;
                Some(profiles.device_ptr(self.stream))
            }
            None => None,
        };
        let depth = self.table.view().layout.depth;
        let stats = match options.stats {
            Some(stats) => {
                self.check("the slice of statistics", stats.stream(), stats.len(), self.count * depth)?;
                Some(stats.device_ptr_mut(self.stream))
            }
            None => None,
        };
        job.profiles = profiles.as_ref().map(|(address, _)| *address);
        job.stats = stats.as_ref().filter(|_| depth > 0).map(|(address, _)| *address);
        // SAFETY: the slices have the lengths that the job says and are on this GPU; those that are written are
        // borrowed mutably, so that none overlaps another. cudarc orders their use across streams by the guards, and
        // freeing them waits for the stream. The table is borrowed now; freeing it waits for the GPU. Profile indices
        // beyond the table read nothing of it.
        unsafe { self.table.device().launch(&job, self.table, self.stream.into(), options.overlap) }
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
