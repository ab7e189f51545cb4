//! The operation on the CPU: the twin of the CUDA kernels, with the same bits.
//!
//! `docs/operation.md` fixes every rounding. The code is written once over explicit vector registers and compiled
//! for each instruction set ([`Isa`]): nothing is left to the compiler's reassociation, so that portable Rust,
//! AVX2, AVX-512 and NEON agree bit for bit, NaN payloads aside. The fastest available one is chosen at run time.
//!
//! Four variants, for rows of `f32`, [`half::f16`] and [`half::bf16`] ([`Element`]):
//!
//! | function | reads | writes |
//! |---|---|---|
//! | [`cap_rows`] | rows | the rows on which a cap acted |
//! | [`add_cap_rows`] | two summands | their capped sum |
//! | [`cap_norm_rows`] | rows | the rows on which a cap acted; the normed rows |
//! | [`add_cap_norm_rows`] | two summands | their capped sum; the normed rows |
//!
//! A call runs on the calling thread alone, takes no lock and, for f32 rows, allocates nothing; f16 and bf16 rows
//! use a buffer of four f32 rows that each thread keeps. So a call may come from any thread: give thread `ith` of
//! `nth` its [`share`] of the rows. [`Options::parallel`] does that over rayon's threads.
//!
//! The floating-point environment is the one Rust assumes: round to nearest, denormals kept. A thread on which
//! foreign code switched flushing to zero on breaks the equality of bits where denormals occur.
//!
//! ```
//! use axiscap::cpu::{self, Options, RowsMut};
//! use axiscap::{Axis, Bound, Cap, CapTable, RowStat};
//!
//! let axis = Axis::from_direction(&[0.0, 1.0, 0.0, 0.0])?;
//! let table = CapTable::new(&[Cap::new(axis, Bound::floor(0.5)?)])?;
//! let mut h = [1.0f32, 2.0, 3.0, 4.0, 5.0, -6.0, 7.0, 8.0];
//! let mut stats = [RowStat::default(); 2];
//! cpu::cap_rows(&table, RowsMut::from_slice(&mut h, 4)?, Options::new().stats(&mut stats))?;
//! assert_eq!(h, [1.0, 2.0, 3.0, 4.0, 5.0, 0.5, 7.0, 8.0]);
//! assert!(!stats[0].engaged() && stats[1].engaged());
//! assert_eq!((stats[1].before, stats[1].after), (-6.0, 0.5));
//! # Ok::<(), axiscap::Error>(())
//! ```

mod element;
mod elementwise;
mod isa;
mod norm;
mod one_cap;
mod options;
pub mod oracle;
mod project;
mod row;
pub(crate) mod rows;
pub(crate) mod run;
mod simd;
mod sum;
mod verdict;

pub use element::Element;
pub use isa::Isa;
pub use norm::Norm;
pub use options::Options;
pub use rows::{Rows, RowsMut, share};

use crate::cpu::run::Job;
use crate::error::Result;
use crate::table::CapTable;

/// Caps rows in place. A row on which no cap acts is not written, not even with what it holds.
///
/// # Errors
/// [`Error::Width`](crate::Error::Width) when the rows are not as wide as the table's axes;
/// [`RowsError::Count`](crate::RowsError::Count) when profiles or statistics do not fit the rows;
/// [`RowsError::Profile`](crate::RowsError::Profile); [`Error::Isa`](crate::Error::Isa). Nothing is written then.
pub fn cap_rows<E: Element>(table: &CapTable, rows: RowsMut<'_, E>, options: Options<'_>) -> Result<()> {
    Job { table, rows: rows.layout, add: None, norm: None }.run(options)
}

/// `out = cap(x + residual)`; every row of `out` is written.
///
/// For a sum that takes the place of a summand see [`add_cap_rows_in_place`], or hand the same raw pointer in twice
/// ([`Rows::from_raw`]).
///
/// # Errors
/// Those of [`cap_rows`], also where the three differ in width or number of rows.
pub fn add_cap_rows<E: Element>(
    table: &CapTable,
    x: Rows<'_, E>,
    residual: Rows<'_, E>,
    out: RowsMut<'_, E>,
    options: Options<'_>,
) -> Result<()> {
    Job { table, rows: out.layout, add: Some([x.layout, residual.layout]), norm: None }.run(options)
}

/// `residual = cap(x + residual)`; every row of `residual` is written.
///
/// # Errors
/// Those of [`add_cap_rows`].
pub fn add_cap_rows_in_place<E: Element>(
    table: &CapTable,
    x: Rows<'_, E>,
    residual: RowsMut<'_, E>,
    options: Options<'_>,
) -> Result<()> {
    let residual = residual.layout;
    Job { table, rows: residual, add: Some([x.layout, residual]), norm: None }.run(options)
}

/// Caps rows in place and writes their RMSNorm * weight to `out`, all of it computed in f32 and rounded once. A row
/// on which no cap acts is not written; every row of `out` is.
///
/// # Errors
/// Those of [`cap_rows`], also where `rows`, `out` and the weight differ in width or number.
pub fn cap_norm_rows<E: Element>(
    table: &CapTable,
    rows: RowsMut<'_, E>,
    norm: Norm<'_>,
    out: RowsMut<'_, E>,
    options: Options<'_>,
) -> Result<()> {
    Job { table, rows: rows.layout, add: None, norm: Some((norm, out.layout)) }.run(options)
}

/// `sum = cap(x + residual)`, `out = RMSNorm(sum) * weight`; every row of both is written. `sum` is rounded to its
/// type for storage only.
///
/// # Errors
/// Those of [`cap_norm_rows`].
pub fn add_cap_norm_rows<E: Element>(
    table: &CapTable,
    x: Rows<'_, E>,
    residual: Rows<'_, E>,
    sum: RowsMut<'_, E>,
    norm: Norm<'_>,
    out: RowsMut<'_, E>,
    options: Options<'_>,
) -> Result<()> {
    let add = Some([x.layout, residual.layout]);
    Job { table, rows: sum.layout, add, norm: Some((norm, out.layout)) }.run(options)
}

/// `residual = cap(x + residual)`, `out = RMSNorm(residual) * weight`; every row of both is written.
///
/// # Errors
/// Those of [`cap_norm_rows`].
pub fn add_cap_norm_rows_in_place<E: Element>(
    table: &CapTable,
    x: Rows<'_, E>,
    residual: RowsMut<'_, E>,
    norm: Norm<'_>,
    out: RowsMut<'_, E>,
    options: Options<'_>,
) -> Result<()> {
    let residual = residual.layout;
    let add = Some([x.layout, residual]);
    Job { table, rows: residual, add, norm: Some((norm, out.layout)) }.run(options)
}
