//! The operation on the CPU: the twin of the CUDA kernels, with the same bits.
//!
//! `docs/operation.md` fixes every rounding. The code is written once over explicit vector registers and
//! compiled for each instruction set ([`Isa`]). Nothing is left to the compiler's reassociation, so portable
//! Rust, AVX2, AVX-512 and NEON agree bit for bit, except for NaN payloads. The fastest one of the machine is
//! chosen at run time.
//!
//! A call is a [`Job`] on rows of `f32`, [`half::f16`] or [`half::bf16`] ([`Element`]):
//!
//! | job | reads | writes |
//! |---|---|---|
//! | `Job::cap(rows)` | rows | the rows on which a cap acted |
//! | `Job::add_cap(x, residual)` | both summands | their capped sum, into `residual` |
//! | `Job::add_cap_into(x, residual, sum)` | both summands | their capped sum, into `sum` |
//! | any of them `.norm(weight, epsilon, out)` | the weight as well | the normed rows as well, into `out` |
//!
//! [`Job::run`] runs on the calling thread, takes no lock and, for f32 rows, allocates nothing. For f16 and
//! bf16 rows each thread keeps a buffer of four f32 rows. A call may come from any thread, and threads that
//! share a batch take the rows that [`split_rows`] gives them.
//!
//! The floating-point environment is the one that Rust assumes: round to nearest, denormals kept. If other
//! code has set FTZ or DAZ on the calling thread, results that involve denormals may differ.
//!
//! ```
//! use axiscap::cpu::{Job, RowsMut};
//! use axiscap::{Axis, Bound, Cap, CapTable, RowStat};
//!
//! let axis = Axis::from_direction(&[0.0, 1.0, 0.0, 0.0])?;
//! let table = CapTable::new(&[Cap::new(axis, Bound::floor(0.5)?)])?;
//! let mut h = [1.0f32, 2.0, 3.0, 4.0, 5.0, -6.0, 7.0, 8.0];
//! let mut stats = [RowStat::default(); 2];
//! Job::cap(RowsMut::from_slice(&mut h, 4)?).stats(&mut stats).run(&table)?;
//! assert_eq!(h, [1.0, 2.0, 3.0, 4.0, 5.0, 0.5, 7.0, 8.0]);
//! assert!(!stats[0].engaged() && stats[1].engaged());
//! assert_eq!((stats[1].before, stats[1].after), (-6.0, 0.5));
//! # Ok::<(), axiscap::Error>(())
//! ```
//!
//! Several rows may be exactly the same rows in memory only through raw pointers ([`Rows::from_raw`]).

mod dispatch;
pub(crate) mod isa;
mod kernel;
pub mod oracle;
mod rows;
mod simd;
mod storage;

pub use isa::Isa;
pub use rows::{Host, Rows, RowsMut, split_rows};
pub use storage::Element;

/// A call on slices in host memory.
pub type Job<'a, E> = crate::op::Job<Host<'a, E>>;
