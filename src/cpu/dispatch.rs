//! From a job to a pass over its rows: checks, scratch memory, and the choice of the compiled kernel.

use std::cell::RefCell;

use crate::aligned::AlignedF32;
use crate::cpu::isa::Isa;
use crate::cpu::kernel::row::{self, NormPass, Pass, ROWS_AT_ONCE};
use crate::cpu::rows::{Host, RowLayout};
#[cfg(target_arch = "aarch64")]
use crate::cpu::simd::neon::Neon;
use crate::cpu::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{avx2::Avx2, avx512::Avx512};
use crate::cpu::storage::Element;
use crate::error::{Error, Result, RowsError};
use crate::op::{Dtype, Job};
use crate::table::CapTable;

impl<E: Element> Job<Host<'_, E>> {
    /// Runs the call on the calling thread, with the fastest instruction set of this machine.
    ///
    /// # Errors
    /// [`Error::Width`] when the rows, the table's axes and the weight differ in width; [`RowsError::Count`]
    /// when batches of rows, profiles or statistics differ in number; [`RowsError::Profile`] when a row's
    /// profile does not exist. Nothing is written then.
    pub fn run(self, table: &CapTable) -> Result<()> {
        self.run_on(Isa::best(), table)
    }

    /// Runs the call with the given instruction set, for tests and benchmarks. All instruction sets give the
    /// same bits.
    ///
    /// # Errors
    /// Those of [`Job::run`], and [`Error::Isa`] when this machine does not have the instruction set.
    pub fn run_on(self, isa: Isa, table: &CapTable) -> Result<()> {
        let summands = self.summands();
        self.check(table, summands)?;
        if !isa.available() {
            return Err(Error::Isa(isa));
        }
        let count = self.rows.layout.rows;
        let mut pass = Pass {
            table,
            count,
            rows: self.rows.layout.strided(),
            add: summands.map(|both| both.map(|layout| layout.strided())),
            norm: self.norm.map(|norm| NormPass {
                weight: norm.weight.as_ptr(),
                epsilon: norm.epsilon.get(),
                out: norm.out.layout.strided(),
            }),
            profiles: self.row_profiles,
            stats: self.stats,
            scratch: std::ptr::null_mut(),
        };
        if E::IS_F32 {
            // SAFETY: the rows are valid for as long as they are borrowed, and `check` has found all shapes
            // and profiles to fit. The machine has the instructions. f32 rows need no scratch.
            unsafe { run(isa, pass) };
        } else {
            with_scratch(ROWS_AT_ONCE.min(count) * table.width(), |scratch| {
                pass.scratch = scratch;
                // SAFETY: as for f32 rows, and the scratch has room for the rows that are done at once.
                unsafe { run(isa, pass) };
            });
        }
        Ok(())
    }

    /// Returns both summands of the addition. Without a separate residual, the job's rows are the
    /// residual.
    fn summands(&self) -> Option<[RowLayout<E>; 2]> {
        let add = self.add.as_ref()?;
        Some([add.x.layout, add.residual.map_or(self.rows.layout, |rows| rows.layout)])
    }

    fn check(&self, table: &CapTable, summands: Option<[RowLayout<E>; 2]>) -> Result<()> {
        let rows = &self.rows.layout;
        check_width("the batch of rows", rows.width, "the table of caps", table.width())?;
        if let Some([x, residual]) = &summands {
            check_shape("x", x, rows)?;
            check_shape("the residual", residual, rows)?;
        }
        if let Some(norm) = &self.norm {
            check_shape("the normed output", &norm.out.layout, rows)?;
            check_width("the norm's weight", norm.weight.len(), "the rows", rows.width)?;
        }
        if let Some(profiles) = self.row_profiles {
            check_count("the list of profiles", profiles.len(), rows.rows)?;
            let known = table.profile_count();
            if let Some(row) = profiles.iter().position(|&p| p as usize >= known) {
                return Err(RowsError::Profile { row, profile: profiles[row], profiles: known }.into());
            }
        }
        if let Some(stats) = &self.stats {
            let expected = rows.rows.checked_mul(table.max_caps_per_row()).ok_or(RowsError::Overflow)?;
            check_count("the statistics ([rows][max caps per row])", stats.len(), expected)?;
        }
        Ok(())
    }
}

/// Runs a pass with the kernels of an instruction set.
///
/// # Safety
/// The pass keeps what [`Pass`] says of its fields, and the machine has the instructions of `isa`.
unsafe fn run<E: Element>(isa: Isa, pass: Pass<'_, E>) {
    // SAFETY: `Element` is sealed, and `DTYPE` tells its three types apart: the cast keeps the type. The
    // caller answers for the rest.
    unsafe {
        match E::DTYPE {
            Dtype::F32 => run_f32(isa, pass.cast()),
            Dtype::F16 => run_f16(isa, pass.cast()),
            Dtype::BF16 => run_bf16(isa, pass.cast()),
        }
    }
}

/// Stamps one function per type. A generic function would compile the kernels again in every crate that calls
/// it.
macro_rules! run_on_type {
    ($($name:ident $type:ty),+) => {
        $(
            /// # Safety
            /// As for [`run`].
            unsafe fn $name(isa: Isa, mut pass: Pass<'_, $type>) {
                // SAFETY: the caller promises a valid pass, and that the machine has the instructions of
                // `isa`. Those of the portable kernels are on every machine.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => row::run::<Avx2, $type>(&mut pass),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => row::run::<Avx512, $type>(&mut pass),
                        #[cfg(target_arch = "aarch64")]
                        Isa::Neon => row::run::<Neon, $type>(&mut pass),
                        _ => row::run::<Portable, $type>(&mut pass),
                    }
                }
            }
        )+
    };
}

run_on_type!(run_f32 f32, run_f16 half::f16, run_bf16 half::bf16);

/// Lends this thread's scratch memory of at least `len` values. It grows to the widest rows that the thread
/// has seen, and is freed when the thread ends. It starts on a cache line: registers that straddle two lines
/// made several caps a quarter slower.
fn with_scratch(len: usize, work: impl FnOnce(*mut f32)) {
    thread_local! {
        static SCRATCH: RefCell<AlignedF32> = const { RefCell::new(AlignedF32::EMPTY) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.grow(len);
        work(scratch.as_mut_ptr());
    });
}

fn check_shape<E>(what: &'static str, found: &RowLayout<E>, rows: &RowLayout<E>) -> Result<()> {
    check_width(what, found.width, "the rows", rows.width)?;
    check_count(what, found.rows, rows.rows)
}

fn check_width(what: &str, found: usize, against: &'static str, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Width { what: what.into(), found, against, expected }) }
}

fn check_count(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(RowsError::Count { what, found, expected }.into()) }
}
