//! Calls on cudarc's types. Launches on `CudaSlice`s are safe, because cudarc keeps the memory alive and
//! orders streams.
//!
//! | job | reads | writes |
//! |---|---|---|
//! | `Job::cap(&mut rows)` | rows | the rows on which a cap acted |
//! | `Job::add_cap(&x, &mut residual)` | both summands | their capped sum, into `residual` |
//! | `Job::add_cap_into(&x, &residual, &mut sum)` | both summands | their capped sum, into `sum` |
//! | any of them `.norm(&weight, epsilon, &mut out)` | the weight as well | the normed rows as well, into `out` |
//!
//! The end of a decoder block and the norm of the next one, in one launch:
//!
//! ```no_run
//! use axiscap::Epsilon;
//! use axiscap::cuda::{Device, Overlap};
//! use axiscap::interop::cudarc::Job;
//! # fn demo(table: &axiscap::CapTable) -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::open(0)?;
//! let stream = device.context().new_stream()?;
//! let table = device.upload(table)?;
//! let (width, rows) = (4096, 7);
//! let ffn_out = stream.alloc_zeros::<half::bf16>(rows * width)?;
//! let mut residual = stream.alloc_zeros::<half::bf16>(rows * width)?;
//! let mut normed = stream.alloc_zeros::<half::bf16>(rows * width)?;
//! let weight = stream.clone_htod(&vec![1.0_f32; width])?;
//! Job::add_cap(&ffn_out, &mut residual)
//!     .norm(&weight, Epsilon::new(1e-5)?, &mut normed)
//!     .launch(&table, &stream, Overlap::None)?;
//! # Ok(()) }
//! ```

use std::marker::PhantomData;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop, ValidAsZeroBits};

use crate::cpu::Element;
use crate::cuda::{CudaError, Device, DeviceTable, Overlap, StreamRef};
use crate::error::{Error, RowsError};
use crate::op::{self, DeviceJob, DeviceRows, Memory, Norm, Summands};
use crate::stats::RowStat;

// SAFETY: `RowStat` is plain data with the same layout in host and device code.
unsafe impl DeviceRepr for RowStat {}
// SAFETY: zeros are valid for its two floats and its integer.
unsafe impl ValidAsZeroBits for RowStat {}

impl<'a> From<&'a CudaStream> for StreamRef<'a> {
    fn from(stream: &'a CudaStream) -> Self {
        // SAFETY: cudarc's stream is live for as long as it is borrowed.
        unsafe { Self::from_raw(stream.cu_stream().cast()) }
    }
}

/// A `CudaSlice` or `CudaView` that is read.
pub trait ReadSlice<T>: DevicePtr<T> {}
impl<T, S: DevicePtr<T>> ReadSlice<T> for S {}
/// A `CudaSlice` or `CudaViewMut` that is written.
pub trait WriteSlice<T>: DevicePtrMut<T> {}
impl<T, S: DevicePtrMut<T>> WriteSlice<T> for S {}

/// cudarc's slices: the memory of a [`Job`]. Each holds rows of the table's width without gaps.
#[derive(Debug, Clone, Copy)]
pub struct Slices<'a, E>(PhantomData<&'a E>);

impl<'a, E: Element> Memory for Slices<'a, E> {
    type Rows = &'a dyn ReadSlice<E>;
    type RowsMut = &'a mut dyn WriteSlice<E>;
    type Weight = &'a dyn ReadSlice<f32>;
    type Profiles = &'a dyn ReadSlice<u32>;
    type Stats = &'a mut dyn WriteSlice<RowStat>;
}

/// A call on cudarc's slices.
///
/// A row with a profile index beyond the table's profiles goes uncapped, and [`DeviceTable::faults`] returns
/// it.
pub type Job<'a, E> = op::Job<Slices<'a, E>>;

impl<E: Element + DeviceRepr> op::Job<Slices<'_, E>> {
    /// Puts the call on a stream and returns at once.
    ///
    /// # Errors
    /// [`CudaError::Invalid`] when lengths do not fit the table's width; [`CudaError::OtherContext`] when
    /// something is not in the primary context of the table's GPU; [`CudaError::Driver`].
    pub fn launch(self, table: &DeviceTable, stream: &CudaStream, overlap: Overlap) -> Result<(), CudaError> {
        let call = Call::new(table, stream, self.rows.len())?;
        // cudarc's guards record the use of the slices when they are dropped, after the launch.
        let rows = call.write("the slice of rows", self.rows)?;
        let add = match self.add {
            None => None,
            Some(Summands { x, residual }) => {
                let x = call.read("the slice of summands", x)?;
                let residual = residual.map(|rows| call.read("the residual slice", rows)).transpose()?;
                Some((x, residual))
            }
        };
        let norm = match self.norm {
            None => None,
            Some(Norm { weight, epsilon, out }) => {
                let weight = call.address("the norm's weight", weight, call.width)?;
                Some((weight, epsilon, call.write("the slice of normed rows", out)?))
            }
        };
        let profiles =
            self.row_profiles.map(|slice| call.address("the slice of profiles", slice, call.count));
        let profiles = profiles.transpose()?;
        let stats = self.stats.map(|slice| call.stats(slice)).transpose()?;
        let job = DeviceJob {
            rows: rows.value,
            add: add
                .as_ref()
                .map(|(x, residual)| Summands { x: x.value, residual: residual.as_ref().map(|r| r.value) }),
            norm: norm.as_ref().map(|(weight, epsilon, out)| Norm {
                weight: weight.value,
                epsilon: *epsilon,
                out: out.value,
            }),
            row_profiles: profiles.as_ref().map(|profiles| profiles.value),
            stats: stats.as_ref().filter(|_| call.max_caps_per_row > 0).map(|stats| stats.value),
        };
        // SAFETY: the slices have the lengths that the job says and are on this GPU. Those that are written
        // are borrowed mutably, so none overlaps another. cudarc's guards order their use across streams, and
        // freeing them waits for the stream. The table is borrowed, and freeing it waits for the GPU. Profile
        // indices beyond the table read nothing of it.
        unsafe { job.launch(table, stream.into(), overlap) }
    }
}

/// A call on slices that all hold the same number of the table's rows.
struct Call<'a> {
    device: &'a Device,
    stream: &'a CudaStream,
    width: usize,
    max_caps_per_row: usize,
    count: usize,
}

/// The address of a slice, or rows at it. cudarc records the use of the slice when this is dropped.
struct Guarded<'a, T> {
    value: T,
    _use: SyncOnDrop<'a>,
}

impl<'a> Call<'a> {
    /// Begins a call on slices of `length` elements, which must be whole rows.
    fn new(table: &'a DeviceTable, stream: &'a CudaStream, length: usize) -> Result<Self, CudaError> {
        let (device, layout) = (table.device(), table.view().layout);
        same_gpu(device, stream)?;
        let width = layout.width;
        if !length.is_multiple_of(width) {
            let needed = length.next_multiple_of(width);
            return Err(CudaError::Invalid(Error::Rows(RowsError::SliceTooShort { needed, found: length })));
        }
        let max_caps_per_row = layout.max_caps_per_row;
        Ok(Self { device, stream, width, max_caps_per_row, count: length / width })
    }

    fn check(
        &self,
        what: &'static str,
        on: &CudaStream,
        found: usize,
        expected: usize,
    ) -> Result<(), CudaError> {
        same_gpu(self.device, on)?;
        if found == expected {
            Ok(())
        } else {
            Err(CudaError::Invalid(Error::Rows(RowsError::Count { what, found, expected })))
        }
    }

    fn rows<E: Element>(&self, address: u64) -> DeviceRows {
        DeviceRows { dtype: E::DTYPE, address, count: self.count, stride: self.width }
    }

    fn read<'s, E: Element>(
        &'s self,
        what: &'static str,
        slice: &'s dyn ReadSlice<E>,
    ) -> Result<Guarded<'s, DeviceRows>, CudaError> {
        let Guarded { value, _use } = self.address(what, slice, self.count * self.width)?;
        Ok(Guarded { value: self.rows::<E>(value), _use })
    }

    fn write<'s, E: Element>(
        &'s self,
        what: &'static str,
        slice: &'s mut dyn WriteSlice<E>,
    ) -> Result<Guarded<'s, DeviceRows>, CudaError> {
        self.check(what, slice.stream(), slice.len(), self.count * self.width)?;
        let (address, _use) = slice.device_ptr_mut(self.stream);
        Ok(Guarded { value: self.rows::<E>(address), _use })
    }

    fn address<'s, T>(
        &'s self,
        what: &'static str,
        slice: &'s dyn ReadSlice<T>,
        length: usize,
    ) -> Result<Guarded<'s, u64>, CudaError> {
        self.check(what, slice.stream(), slice.len(), length)?;
        let (value, _use) = slice.device_ptr(self.stream);
        Ok(Guarded { value, _use })
    }

    fn stats<'s>(&'s self, slice: &'s mut dyn WriteSlice<RowStat>) -> Result<Guarded<'s, u64>, CudaError> {
        let length = self.count * self.max_caps_per_row;
        self.check("the slice of statistics", slice.stream(), slice.len(), length)?;
        let (value, _use) = slice.device_ptr_mut(self.stream);
        Ok(Guarded { value, _use })
    }
}

fn same_gpu(device: &Device, stream: &CudaStream) -> Result<(), CudaError> {
    let (expected, found) = (device.info().ordinal, stream.context().ordinal());
    // A GPU has one primary context, but a context of cudarc's may be another one.
    if stream.context().cu_ctx() == device.context().cu_ctx() {
        Ok(())
    } else {
        Err(CudaError::OtherContext { expected, found })
    }
}
