//! Rows in host memory, capped on a GPU: there and back. For [`Backend`] and for tests; not a fast path.

use std::any::TypeId;

use half::f16;

use super::device::{Device, Overlap};
use super::driver::{Memory, copy_to_device, copy_to_host};
use super::error::CudaError;
use super::plan::{DeviceNorm, DeviceRows, Dtype, Job};
use super::stream::Stream;
use crate::backend::{Backend, BackendError, Call};
use crate::cpu::rows::Layout;
use crate::cpu::{Element, Options};
use crate::stats::RowStat;

impl Dtype {
    /// The type of a row's values, from a Rust type.
    #[must_use]
    pub fn of<E: Element>() -> Self {
        // `Element` is sealed: there are three.
        match E::VECTOR {
            4 => Self::F32,
            _ if TypeId::of::<E>() == TypeId::of::<f16>() => Self::F16,
            _ => Self::BF16,
        }
    }
}

/// Several pieces of device memory that go together.
struct Arena<'a> {
    device: &'a Device,
    /// Not the default stream, which would wait for everybody's.
    stream: Stream,
    pieces: Vec<Memory>,
}

impl Drop for Arena<'_> {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            self.pieces.iter_mut().for_each(Memory::free);
        }
    }
}

impl Arena<'_> {
    fn upload(&mut self, bytes: &[u8]) -> Result<u64, CudaError> {
        let memory = Memory::new(bytes.len())?;
        let address = memory.address();
        self.pieces.push(memory);
        // SAFETY: just allocated, of that length, in the context that `there_and_back` entered.
        unsafe { copy_to_device(address, bytes, self.stream.as_ref().0) }?;
        Ok(address)
    }
}

/// The rows' bytes, one after the other.
fn gather<E: Element>(rows: &Layout<E>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.rows * rows.width * size_of::<E>());
    for row in 0..rows.rows {
        // SAFETY: the layout was checked, and stands for a borrow of rows that are initialised.
        let row = unsafe { std::slice::from_raw_parts(rows.ptr.add(row * rows.stride), rows.width) };
        // SAFETY: `Element` is sealed to f32, f16 and bf16, which are plain bytes.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(row.as_ptr().cast(), size_of_val(row)) });
    }
    bytes
}

fn scatter<E: Element>(bytes: &[u8], rows: &Layout<E>) {
    let row_bytes = rows.width * size_of::<E>();
    for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
        // SAFETY: the layout stands for a mutable borrow of rows of that many bytes, which `bytes` is no part of.
        unsafe {
            rows.ptr.add(row * rows.stride).cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), row_bytes)
        };
    }
}

impl Backend for Device {
    fn describe(&self) -> String {
        let info = self.info();
        format!(
            "GPU {} ({}, compute capability {}.{})",
            info.ordinal,
            info.name,
            info.arch / 10,
            info.arch % 10
        )
    }

    fn run<E: Element>(&self, call: Call<'_, E>, options: Options<'_>) -> Result<(), BackendError> {
        call.0.check(&options)?;
        self.there_and_back(&call, options).map_err(|error| match error {
            CudaError::Invalid(error) => BackendError::Invalid(error),
            error => BackendError::Cuda(error),
        })
    }
}

impl Device {
    fn there_and_back<E: Element>(&self, call: &Call<'_, E>, options: Options<'_>) -> Result<(), CudaError> {
        let host = &call.0;
        let count = host.rows.rows;
        if count == 0 {
            return Ok(());
        }
        let table = self.upload(host.table)?;
        let _current = self.enter()?;
        let mut arena = Arena { device: self, stream: Stream::new(self)?, pieces: Vec::new() };
        let mut rows = |layout: &Layout<E>| -> Result<DeviceRows, CudaError> {
            Ok(DeviceRows { address: arena.upload(&gather(layout))?, stride: layout.width })
        };
        let h = rows(&host.rows)?;
        let add = match &host.add {
            Some([x, r]) => Some([rows(x)?, rows(r)?]),
            None => None,
        };
        let out = match &host.norm {
            Some((_, out)) => Some(rows(out)?),
            None => None,
        };
        let norm = match (&host.norm, out) {
            (Some((norm, _)), Some(out)) => {
                let weight = arena.upload(bytemuck::cast_slice(norm.weight()))?;
                Some(DeviceNorm { weight, eps: norm.eps(), out })
            }
            _ => None,
        };
        let profiles = match options.profiles {
            Some(profiles) => Some(arena.upload(bytemuck::cast_slice(profiles))?),
            None => None,
        };
        let stats = match &options.stats {
            Some(stats) if !stats.is_empty() => {
                Some(arena.upload(bytemuck::cast_slice::<RowStat, u8>(stats))?)
            }
            _ => None,
        };
        let job = Job { add, norm, profiles, stats, ..Job::in_place(Dtype::of::<E>(), h, count) };
        let stream = arena.stream.as_ref();
        // SAFETY: everything was just uploaded for this, is aligned, and lives until after the copies back.
        unsafe { self.launch(&job, &table, stream, Overlap::None) }?;
        let back = |layout: &Layout<E>, from: DeviceRows| {
            let mut bytes = vec![0; count * layout.width * size_of::<E>()];
            // SAFETY: as many bytes were uploaded there.
            unsafe { copy_to_host(&mut bytes, from.address, stream.0) }?;
            scatter(&bytes, layout);
            Ok::<(), CudaError>(())
        };
        back(&host.rows, h)?;
        if let (Some((_, layout)), Some(from)) = (&host.norm, out) {
            back(layout, from)?;
        }
        if let (Some(to), Some(from)) = (options.stats, stats) {
            // SAFETY: as many bytes were uploaded there.
            unsafe { copy_to_host(bytemuck::cast_slice_mut(to), from, stream.0) }?;
        }
        Ok(())
    }
}
