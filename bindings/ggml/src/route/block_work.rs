//! Work of the CPU on one block output: first the tap, then the caps.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use axiscap::cpu::{Job, RowsMut, split_rows};
use axiscap::{CapTable, RowStat};

use super::{BlockDone, GraphCall, Result};
use crate::error::HookError;
use crate::graph::find::Output;
use crate::tap::{Tap, TapRows};

/// Work on one block output, shared by the threads that do it.
pub(super) struct BlockWork<'a> {
    /// Index in [`GraphCall::outputs`].
    index: usize,
    pub(super) output: Output,
    width: usize,
    pub(super) tap: Option<&'a Tap>,
    pub(super) table: Option<&'a CapTable>,
    /// The profile of each row. `None` stands for the first of the table.
    profiles: Option<&'a [u32]>,
    /// `[rows][`[`BlockCaps::depth`](crate::profile::BlockCaps::depth)`]`, written by the threads that cap the rows. Empty when nothing is recorded.
    stats: Vec<UnsafeCell<RowStat>>,
    error: Mutex<Option<HookError>>,
}

impl<'a> BlockWork<'a> {
    pub(super) fn new(call: &GraphCall<'a>, index: usize, output: Output) -> Self {
        let config = call.config;
        let caps = call.caps_of(&output);
        let stats = caps.filter(|_| config.records()).map_or(0, |caps| caps.depth() * output.rows());
        let profiles = call.profiles.each().and_then(|each| each.of(output.rows()));
        Self {
            index,
            output,
            width: call.width,
            tap: config.tap_of(output.block),
            table: caps.map(|caps| &caps.table),
            profiles: profiles.map(|(_, profiles)| profiles),
            stats: (0..stats).map(|_| UnsafeCell::default()).collect(),
            error: Mutex::new(None),
        }
    }

    fn fail(&self, error: HookError) {
        let mut slot = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(error);
    }

    /// Runs `work`, and keeps an error or a panic as the error of this block.
    fn guarded(&self, work: impl FnOnce() -> std::result::Result<(), HookError>) {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(error),
            Err(panic) => self.fail(HookError::panic(panic.as_ref())),
        }
    }

    /// Shows the rows to a tap.
    ///
    /// # Safety
    /// `data` must hold the output's rows, and no thread may write them during the call.
    pub(super) unsafe fn show(&self, tap: &Tap, data: *const f32) {
        let (rows, stride) = (self.output.rows(), self.output.stride());
        let values = match rows {
            0 => &[],
            // SAFETY: the caller promises the rows. The last row ends after `width` values, not after a whole
            // stride.
            _ => unsafe { std::slice::from_raw_parts(data, (rows - 1) * stride + self.width) },
        };
        self.guarded(|| {
            (tap.see)(self.output.block, TapRows { values, rows, width: self.width, stride });
            Ok(())
        });
    }

    /// Caps worker `ith`'s share of the rows, and writes their statistics.
    ///
    /// # Safety
    /// `data` must hold the output's rows. Concurrent calls must have different `ith` and the same `nth`, and
    /// no other thread may use the rows or `stats` during the call.
    pub(super) unsafe fn cap(&self, table: &CapTable, data: *mut f32, ith: usize, nth: usize) {
        let stride = self.output.stride();
        let share = split_rows(self.output.rows(), ith, nth);
        if share.is_empty() {
            return;
        }
        let depth = if self.stats.is_empty() { 0 } else { table.max_caps_per_row() };
        self.guarded(|| {
            let stats = &self.stats[share.start * depth..share.end * depth];
            // SAFETY: the rows of `share` exist, and by the caller's promise only this worker uses them and
            // their statistics. An `UnsafeCell` may be written through its pointer, and a slice of them is
            // one allocation.
            let (rows, stats) = unsafe {
                (
                    RowsMut::from_raw(data.add(share.start * stride), share.len(), self.width, stride)?,
                    std::slice::from_raw_parts_mut(UnsafeCell::raw_get(stats.as_ptr()), stats.len()),
                )
            };
            let mut job = Job::cap(rows);
            if let Some(profiles) = self.profiles {
                job = job.row_profiles(&profiles[share]);
            }
            if depth > 0 {
                job = job.stats(stats);
            }
            Ok(job.run(table)?)
        });
    }

    /// Returns what was done, or the first error.
    pub(super) fn finish(self) -> Result<BlockDone> {
        if let Some(error) = self.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error.into());
        }
        let stats = self.stats.into_iter().map(UnsafeCell::into_inner).collect();
        let (block, rows) = (self.output.block, self.output.rows());
        Ok(BlockDone { output: self.index, block, rows, stats: Some(stats) })
    }
}
