//! From the arguments of a call to passes over rows: checks, shares, scratch.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::element::Element;
use crate::cpu::isa::{self, Isa};
use crate::cpu::norm::Norm;
use crate::cpu::options::Options;
use crate::cpu::row::{NormPass, Pass, Strided};
use crate::cpu::rows::{Layout, share};
use crate::cpu::sum::STREAMS;
use crate::error::{Error, Result, RowsError};
use crate::stats::RowStat;
use crate::table::CapTable;

/// Fewer bytes than this are not worth another thread: waking one costs some microseconds, in which one thread
/// goes through about as much.
const LEAST_SHARE: usize = 128 << 10;

/// One call, its pointers checked.
pub(crate) struct Job<'a, E> {
    pub(crate) table: &'a CapTable,
    /// Where the rows are capped in place, or where their sum goes.
    pub(crate) rows: Layout<E>,
    /// The two summands of add + cap.
    pub(crate) add: Option<[Layout<E>; 2]>,
    /// The norm behind the caps, and where its rows go.
    pub(crate) norm: Option<(Norm<'a>, Layout<E>)>,
}

// SAFETY: the pointers come from `Rows` and `RowsMut`, which may be sent to other threads, and each thread works on
// rows of its own.
unsafe impl<E: Element> Sync for Job<'_, E> {}

impl<E: Element> Job<'_, E> {
    /// Checks the call as a whole, then does it.
    pub(crate) fn run(&self, options: Options<'_>) -> Result<()> {
        self.check(&options)?;
        let isa = options.isa.unwrap_or_else(Isa::best);
        if !isa.available() {
            return Err(Error::Isa(isa));
        }
        let Options { profiles, mut stats, parallel, .. } = options;
        let rows = self.rows.rows;
        let threads = if parallel { self.threads() } else { 1 };
        if threads < 2 {
            // SAFETY: checked above.
            unsafe { self.run_share(isa, 0..rows, profiles, stats) };
            return Ok(());
        }
        let depth = self.table.deepest_profile();
        let shares: Vec<_> = (0..threads)
            .map(|ith| {
                let rows = share(rows, ith, threads);
                let stats = stats.as_mut().and_then(|rest| rest.split_off_mut(..rows.len() * depth));
                (rows, stats)
            })
            .collect();
        shares.into_par_iter().for_each(|(rows, stats)| {
            let profiles = profiles.map(|profiles| &profiles[rows.clone()]);
            // SAFETY: checked above; shares do not overlap.
            unsafe { self.run_share(isa, rows, profiles, stats) };
        });
        Ok(())
    }

    /// How many threads of the current pool the job is worth.
    fn threads(&self) -> usize {
        let bytes = self.rows.rows.saturating_mul(self.rows.width).saturating_mul(size_of::<E>());
        (bytes / LEAST_SHARE).clamp(1, rayon::current_num_threads().max(1)).min(self.rows.rows.max(1))
    }

    pub(crate) fn check(&self, options: &Options<'_>) -> Result<()> {
        let rows = &self.rows;
        check_width("the batch of rows", rows.width, "the table of caps", self.table.width())?;
        for (what, other) in [("x", 0), ("the residual", 1)] {
            if let Some(add) = &self.add {
                check_shape(what, &add[other], rows)?;
            }
        }
        if let Some((norm, out)) = &self.norm {
            check_shape("the normed output", out, rows)?;
            check_width("the norm's weight", norm.weight().len(), "the rows", rows.width)?;
        }
        if let Some(profiles) = options.profiles {
            check_count("the list of profiles", profiles.len(), rows.rows)?;
            let known = self.table.profiles();
            if let Some(row) = profiles.iter().position(|&p| p as usize >= known) {
                return Err(RowsError::Profile { row, profile: profiles[row], profiles: known }.into());
            }
        }
        if let Some(stats) = &options.stats {
            let expected = rows.rows.checked_mul(self.table.deepest_profile()).ok_or(RowsError::Overflow)?;
            check_count("the statistics ([rows][deepest profile])", stats.len(), expected)?;
        }
        Ok(())
    }

    /// # Safety
    /// The call was checked, the instructions are available, and nobody else works on these rows.
    unsafe fn run_share(
        &self,
        isa: Isa,
        rows: Range<usize>,
        profiles: Option<&[u32]>,
        stats: Option<&mut [RowStat]>,
    ) {
        let at = |layout: &Layout<E>| Strided {
            ptr: layout.ptr.wrapping_add(rows.start * layout.stride),
            stride: layout.stride,
        };
        let mut pass = Pass {
            table: self.table,
            count: rows.len(),
            rows: at(&self.rows),
            add: self.add.as_ref().map(|add| [at(&add[0]), at(&add[1])]),
            norm: self.norm.as_ref().map(|(norm, out)| NormPass {
                weight: norm.weight().as_ptr(),
                eps: norm.eps(),
                out: at(out),
            }),
            profiles,
            stats,
            scratch: std::ptr::null_mut(),
        };
        if E::IS_F32 {
            // SAFETY: the caller's promise; f32 rows need no scratch.
            unsafe { isa::run(isa, &mut pass) };
        } else {
            with_scratch(STREAMS.min(rows.len()) * self.table.width(), |scratch| {
                pass.scratch = scratch;
                // SAFETY: the caller's promise; the scratch has room for as many rows as are worked on at once.
                unsafe { isa::run(isa, &mut pass) };
            });
        }
    }
}

/// Lends out this thread's buffer of at least `len` values. It grows to the widest rows the thread has seen and goes
/// with the thread.
fn with_scratch(len: usize, work: impl FnOnce(*mut f32)) {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        work(scratch.as_mut_ptr());
    });
}

fn check_shape<E>(what: &'static str, found: &Layout<E>, rows: &Layout<E>) -> Result<()> {
    check_width(what, found.width, "the rows", rows.width)?;
    check_count(what, found.rows, rows.rows)
}

fn check_width(what: &str, found: usize, against: &'static str, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Width { what: what.into(), found, against, expected }) }
}

fn check_count(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(RowsError::Count { what, found, expected }.into()) }
}
