//! The same call on whatever there is: a GPU where one can be used, else the CPU.

use crate::cpu::run::Job;
use crate::cpu::{Element, Norm, Options, Rows, RowsMut};
#[cfg(feature = "cuda")]
use crate::cuda::{CudaError, Device};
use crate::error::Error;
use crate::table::CapTable;

/// One call on rows in host memory: what to do to which rows.
///
/// The four variants are those of [`cpu`](crate::cpu), with the same arguments.
#[expect(missing_debug_implementations, reason = "a bundle of borrowed rows; nothing in it can be shown")]
pub struct Call<'a, E>(pub(crate) Job<'a, E>);

impl<'a, E: Element> Call<'a, E> {
    /// As [`cap_rows`](crate::cpu::cap_rows).
    #[must_use]
    pub fn cap(table: &'a CapTable, rows: RowsMut<'a, E>) -> Self {
        Self(Job { table, rows: rows.layout, add: None, norm: None })
    }

    /// As [`add_cap_rows`](crate::cpu::add_cap_rows).
    #[must_use]
    pub fn add_cap(table: &'a CapTable, x: Rows<'a, E>, residual: Rows<'a, E>, out: RowsMut<'a, E>) -> Self {
        Self(Job { table, rows: out.layout, add: Some([x.layout, residual.layout]), norm: None })
    }

    /// As [`cap_norm_rows`](crate::cpu::cap_norm_rows).
    #[must_use]
    pub fn cap_norm(table: &'a CapTable, rows: RowsMut<'a, E>, norm: Norm<'a>, out: RowsMut<'a, E>) -> Self {
        Self(Job { table, rows: rows.layout, add: None, norm: Some((norm, out.layout)) })
    }

    /// As [`add_cap_norm_rows`](crate::cpu::add_cap_norm_rows).
    #[must_use]
    pub fn add_cap_norm(
        table: &'a CapTable,
        x: Rows<'a, E>,
        residual: Rows<'a, E>,
        sum: RowsMut<'a, E>,
        norm: Norm<'a>,
        out: RowsMut<'a, E>,
    ) -> Self {
        let add = Some([x.layout, residual.layout]);
        Self(Job { table, rows: sum.layout, add, norm: Some((norm, out.layout)) })
    }
}

/// Something that caps rows in host memory. All implementations give the same bits, NaN payloads aside.
pub trait Backend {
    /// What does the work, for people.
    fn describe(&self) -> String;

    /// Makes one call and returns when it is done.
    ///
    /// # Errors
    /// [`BackendError::Invalid`] for arguments that do not fit; `BackendError::Cuda` where a GPU failed.
    fn run<E: Element>(&self, call: Call<'_, E>, options: Options<'_>) -> Result<(), BackendError>;
}

/// Why a backend did not do a call.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The arguments do not fit.
    #[error(transparent)]
    Invalid(#[from] Error),
    /// The GPU could not do it.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(CudaError),
}

/// The CPU twin.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

impl Backend for Cpu {
    fn describe(&self) -> String {
        format!("CPU ({})", crate::cpu::Isa::best())
    }

    fn run<E: Element>(&self, call: Call<'_, E>, options: Options<'_>) -> Result<(), BackendError> {
        Ok(call.0.run(options)?)
    }
}

/// The best there is on this machine.
#[derive(Debug, Clone)]
pub enum Best {
    /// The first GPU.
    #[cfg(feature = "cuda")]
    Gpu(Device),
    /// The CPU twin, and why no GPU.
    Cpu {
        /// Why no GPU is used, with the remedy.
        reason: String,
    },
}

impl Best {
    /// Opens the first GPU, or falls back to the CPU. Never fails and never panics.
    ///
    /// Rows in host memory travel to a GPU and back, which takes longer than capping them on the CPU: this is for
    /// programs that want one code path, and for comparing. Rows that live on a GPU are capped there by
    /// `axiscap::cuda` (feature `cuda`).
    ///
    /// ```
    /// use axiscap::backend::{Backend, Best, Call};
    /// use axiscap::cpu::{Options, RowsMut};
    /// use axiscap::{Axis, Bound, Cap, CapTable};
    ///
    /// let table = CapTable::new(&[Cap::new(Axis::from_direction(&[0.0, 1.0])?, Bound::floor(0.5)?)])?;
    /// let mut h = [1.0f32, -6.0];
    /// let backend = Best::find();
    /// backend.run(Call::cap(&table, RowsMut::from_slice(&mut h, 2)?), Options::new())?;
    /// assert_eq!(h, [1.0, 0.5]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn find() -> Self {
        #[cfg(feature = "cuda")]
        match Device::open(0) {
            Ok(device) => Self::Gpu(device),
            Err(error) => Self::Cpu { reason: error.to_string() },
        }
        #[cfg(not(feature = "cuda"))]
        Self::Cpu { reason: "axiscap was built without the feature cuda".into() }
    }

    /// Why no GPU is used, with the remedy; `None` where one is.
    #[must_use]
    pub fn why_no_gpu(&self) -> Option<&str> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => None,
            Self::Cpu { reason } => Some(reason),
        }
    }
}

impl Backend for Best {
    fn describe(&self) -> String {
        match self {
            #[cfg(feature = "cuda")]
            Self::Gpu(device) => device.describe(),
            Self::Cpu { .. } => Cpu.describe(),
        }
    }

    fn run<E: Element>(&self, call: Call<'_, E>, options: Options<'_>) -> Result<(), BackendError> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Gpu(device) => device.run(call, options),
            Self::Cpu { .. } => Cpu.run(call, options),
        }
    }
}
