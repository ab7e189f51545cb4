//! A launch and its expected result: every byte of every buffer, including the guard zones.

use std::fmt::Debug;

use axiscap::cpu::{Element, oracle};
use axiscap::cuda::raw::KernelPath;
use axiscap::cuda::{DeviceRows, Job, Limits, ProfileFaults};
use axiscap::{Axis, Bound, Cap, CapTable, Dtype, Epsilon, Operation, RowStat};
use bytemuck::Pod;

use crate::literal;
use crate::numbers::Random;

/// The type of a row's values, with what tests need of it.
pub trait Value: Element + Pod + PartialEq + Debug {}
impl<E: Element + Pod + PartialEq + Debug> Value for E {}

/// How the rows of a launch name their profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profiles {
    /// Rows name no profile, so all have profile 1.
    One,
    /// Each row names a profile.
    Several,
    /// Each row names a profile, and some profiles do not exist.
    SomeMissing,
}

/// A launch to check.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The operation.
    pub operation: Operation,
    /// The type of all rows.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Values per row.
    pub width: usize,
    /// Number of caps.
    pub caps: usize,
    /// Elements between one row and the next.
    pub gap: usize,
    /// Elements by which every pointer misses 16-byte alignment.
    pub offset: usize,
    /// How the rows name their profiles.
    pub profiles: Profiles,
    /// Whether `h` is the first summand as well.
    pub aliased: bool,
    /// The path to test. Without it, the planner chooses one.
    pub path: Option<KernelPath>,
    /// Limits of the device.
    pub limits: Limits,
    /// Order in which the emulator runs blocks and threads: `Schedule` in kernels/emulate/machine.hpp.
    pub schedule: u32,
    /// Seed of all values.
    pub seed: u64,
}

impl Case {
    /// Whether the case's path takes such rows: docs/cuda.md. Without a path every case is taken.
    #[must_use]
    pub fn is_for_its_path(&self) -> bool {
        let Some(path) = self.path else { return true };
        let aligned = self.offset == 0 && self.width.is_multiple_of(16 / self.dtype.size());
        match path {
            // The limits of the case, or the device, must have clusters.
            KernelPath::Cluster => aligned && self.width == 8192 && self.caps <= 1,
            KernelPath::Single => {
                aligned && self.width.is_multiple_of(512) && self.width <= 8192 && self.caps <= 1
            }
            KernelPath::Direct => aligned && self.width <= 8192,
            // The axes leave room for two rows in the shared memory of a Hopper GPU.
            KernelPath::Pairs => {
                let same = self.operation == Operation::Cap && self.profiles == Profiles::One;
                aligned && same && self.caps <= 8 && self.width <= 8192 && self.width * self.caps <= 5 * 8192
            }
            KernelPath::Staged => aligned && self.width <= 16384,
            KernelPath::General => true,
        }
    }
}

/// Rows in a separate buffer, with a guard zone on either side.
///
/// A clone may have another alignment. Clones are only compared, and never used in a launch.
#[derive(Debug, Clone)]
pub struct Buffer<E> {
    memory: Vec<E>,
    start: usize,
    stride: usize,
    rows: usize,
    width: usize,
}

/// The bytes of guard zones and gaps. They are NaN in every type, which shows when a kernel reads them.
const GUARD: u8 = 0xff;
const GUARD_BYTES: usize = 128;

impl<E: Value> Buffer<E> {
    /// Allocates rows. `offset` is the number of elements by which the first row misses 16-byte alignment.
    #[must_use]
    pub fn new(rows: usize, width: usize, gap: usize, offset: usize) -> Self {
        let guard = GUARD_BYTES / size_of::<E>();
        let mut stride = width + gap;
        if offset == 0 {
            // An aligned buffer has aligned rows if the width allows it.
            stride = stride.next_multiple_of(16 / size_of::<E>());
        }
        let fill: E = bytemuck::pod_read_unaligned(&[GUARD; 8][..size_of::<E>()]);
        let memory = vec![fill; guard * 2 + rows * stride + 64];
        // A Vec is aligned to its element only.
        let misses = memory.as_ptr().align_offset(16);
        Self { memory, start: guard + misses + offset, stride, rows, width }
    }

    /// Returns a row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[E] {
        &self.memory[self.start + row * self.stride..][..self.width]
    }

    /// Returns a row for writing.
    pub fn row_mut(&mut self, row: usize) -> &mut [E] {
        &mut self.memory[self.start + row * self.stride..][..self.width]
    }

    /// Returns the rows by their host address.
    pub fn rows(&mut self) -> DeviceRows {
        let address = self.memory.as_mut_ptr().wrapping_add(self.start) as u64;
        DeviceRows { dtype: E::DTYPE, address, count: self.rows, stride: self.stride }
    }

    /// Returns number of rows, width, and elements from one row to the next.
    #[must_use]
    pub fn extent(&self) -> (usize, usize, usize) {
        (self.rows, self.width, self.stride)
    }

    /// Returns the whole memory with guard zones and gaps, and the index of the first row in it.
    pub fn memory(&mut self) -> (&mut [E], usize) {
        (&mut self.memory, self.start)
    }

    /// Returns the memory from the first row on.
    #[must_use]
    pub fn first_row_on(&self) -> &[E] {
        &self.memory[self.start..]
    }

    /// Returns the memory from the first row on, for writing.
    pub fn first_row_on_mut(&mut self) -> &mut [E] {
        &mut self.memory[self.start..]
    }

    fn fill(&mut self, random: &mut Random) {
        for row in 0..self.rows {
            let kind = random.bits() % 16;
            let at = random.bits() as usize % self.width;
            for x in self.row_mut(row) {
                *x = E::from_f32(match kind {
                    0 => random.value() * 1e-39,
                    1 => 0.0,
                    _ => random.value(),
                });
            }
            match kind {
                2 => self.row_mut(row)[at] = E::from_f32(f32::NAN),
                3 => self.row_mut(row)[at] = E::from_f32(f32::INFINITY),
                _ => {}
            }
        }
    }

    /// Returns a row's values as f32.
    #[must_use]
    pub fn widened(&self, row: usize) -> Vec<f32> {
        self.row(row).iter().map(|x| x.to_f32()).collect()
    }

    fn store(&mut self, row: usize, values: &[f32]) {
        for (to, &x) in self.row_mut(row).iter_mut().zip(values) {
            *to = E::from_f32(x);
        }
    }

    /// Compares all bytes, except for NaN payloads, which the definition leaves open.
    fn same(&self, other: &Self) -> Result<(), String> {
        for (i, (a, b)) in self.memory.iter().zip(&other.memory).enumerate() {
            let same = bytemuck::bytes_of(a) == bytemuck::bytes_of(b)
                || (a.to_f32().is_nan() && b.to_f32().is_nan());
            if !same {
                let at = i as isize - self.start as isize;
                let (row, column) =
                    (at.div_euclid(self.stride as isize), at.rem_euclid(self.stride as isize));
                return Err(format!("row {row}, column {column}: {a:?} instead of {b:?}"));
            }
        }
        Ok(())
    }
}

/// Makes the table of a case.
///
/// # Panics
/// If the numbers give no valid cap.
pub fn table(case: &Case, random: &mut Random) -> CapTable {
    let mut cap = |k: usize| {
        let direction: Vec<f32> = (0..case.width).map(|_| random.value() + 1e-3).collect();
        let axis = Axis::from_direction(&direction).expect("a direction");
        let near = random.value() * 0.5;
        let bound = match k % 4 {
            0 => Bound::floor(near),
            1 => Bound::band(near - 0.1, near + 0.2),
            2 => Bound::ceiling(near),
            _ => Ok(Bound::NONE),
        };
        let strength = [1.0, 0.5, 1.0, 0.0, 0.75][(k + case.seed as usize) % 5];
        Cap::new(axis, bound.expect("a bound")).with_strength(strength).expect("a strength")
    };
    let caps: Vec<Cap> = (0..case.caps.max(1)).map(&mut cap).collect();
    let all: Vec<&Cap> = caps.iter().collect();
    if case.profiles != Profiles::One {
        // Profile 1 has all caps, 2 none, 3 the last, and 4 all in reverse order.
        let reversed: Vec<&Cap> = all.iter().rev().copied().collect();
        CapTable::with_profiles(&[&all, &[], &all[all.len() - 1..], &reversed]).expect("a table")
    } else {
        CapTable::new(all).expect("a table")
    }
}

/// Everything that a launch reads and writes.
#[derive(Debug, Clone)]
pub struct Setup<E> {
    /// The caps.
    pub table: CapTable,
    /// The rows that are capped, or that take the sum.
    pub h: Buffer<E>,
    /// The first summand.
    pub x: Buffer<E>,
    /// The second summand.
    pub r: Buffer<E>,
    /// The normed rows.
    pub y: Buffer<E>,
    /// The weight of the norm.
    pub weight: Buffer<f32>,
    /// The profile of each row.
    pub profiles: Vec<u32>,
    /// The statistics, and one guard entry.
    pub stats: Vec<RowStat>,
    /// The record of rows without a profile.
    pub faults: Option<ProfileFaults>,
}

/// Returns the epsilon of every norm.
///
/// # Panics
/// Never: the number is valid.
#[must_use]
pub fn epsilon() -> Epsilon {
    Epsilon::new(1e-5).expect("a valid epsilon")
}

impl<E: Value> Setup<E> {
    /// Fills all buffers of a case with values.
    #[must_use]
    pub fn new(case: &Case) -> Self {
        let mut random = Random(case.seed);
        let table = table(case, &mut random);
        let buffer = || Buffer::<E>::new(case.rows, case.width, case.gap, case.offset);
        let (mut h, mut x, mut r, y) = (buffer(), buffer(), buffer(), buffer());
        h.fill(&mut random);
        x.fill(&mut random);
        r.fill(&mut random);
        let mut weight = Buffer::<f32>::new(1, case.width, 0, case.offset);
        for w in weight.row_mut(0) {
            *w = random.value() + 1.0;
        }
        let missing = [5, 6, 1 << 20, u32::MAX - 1, u32::MAX];
        let profiles = (0..case.rows)
            .map(|_| match random.below(if case.profiles == Profiles::SomeMissing { 7 } else { 5 }) {
                there @ 0..5 => there as u32,
                _ => missing[random.below(missing.len())],
            })
            .collect();
        let old = RowStat { before: f32::NAN, after: f32::NAN, flags: 77 };
        // One guard entry after the last.
        let stats = vec![old; case.rows * table.max_caps_per_row() + 1];
        Self { table, h, x, r, y, weight, profiles, stats, faults: None }
    }

    /// Returns the profile of a row, if it exists.
    fn profile(&self, case: &Case, row: usize) -> Option<u32> {
        let profile = if case.profiles == Profiles::One { 1 } else { self.profiles[row] };
        ((profile as usize) < self.table.profile_count()).then_some(profile)
    }

    /// Returns every row's profile, or the empty one for profiles that do not exist. The CPU takes these.
    #[must_use]
    pub fn profiles_that_exist(&self, case: &Case) -> Vec<u32> {
        (0..case.rows).map(|row| self.profile(case, row).unwrap_or(0)).collect()
    }

    /// Records the rows whose profile does not exist, as a GPU does, and flags their statistics.
    pub fn record_faults(&mut self, case: &Case) {
        let max_caps = self.table.max_caps_per_row();
        for row in 0..case.rows {
            if self.profile(case, row).is_none() {
                self.stats[row * max_caps].flags = RowStat::BAD_PROFILE;
                let first = ProfileFaults { rows: 0, row: row as u32, profile: self.profiles[row] };
                self.faults.get_or_insert(first).rows += 1;
            }
        }
    }

    /// Applies the definition, and checks each step against the bounds of the f64 oracle. Returns how many
    /// times a cap acted.
    ///
    /// # Panics
    /// If a step is outside the bounds.
    pub fn define(&mut self, case: &Case) -> usize {
        let vector = E::VECTOR;
        let mut times = 0;
        let max_caps = self.table.max_caps_per_row();
        for row in 0..case.rows {
            let mut h = if case.operation.adds() {
                let x = if case.aliased { self.h.widened(row) } else { self.x.widened(row) };
                x.iter().zip(self.r.widened(row)).map(|(x, r)| x + r).collect()
            } else {
                self.h.widened(row)
            };
            let profile = self.profile(case, row).unwrap_or(0);
            let mut acted = false;
            let stats = &mut self.stats[row * max_caps..][..max_caps];
            stats.fill(RowStat::default());
            for (k, cap) in self.table.profile(profile).expect("a profile").enumerate() {
                let (axis, params) = (self.table.axis(cap), self.table.params()[cap]);
                let before = h.clone();
                let (stat, acts) = literal::cap(&mut h, axis, params, vector);
                check_step(&before, &h, axis, params.strength, stat, acts, vector);
                stats[k] = stat;
                acted |= acts;
                times += usize::from(acts);
            }
            if case.operation.norms() {
                let normed = literal::rms_norm::<E>(&h, self.weight.row(0), epsilon().get());
                self.y.row_mut(row).copy_from_slice(&normed);
            }
            if acted || case.operation.adds() {
                self.h.store(row, &h);
            }
        }
        self.record_faults(case);
        times
    }

    /// Returns the job of the launch, with host addresses.
    pub fn job(&mut self, case: &Case) -> Job {
        let (h, x) = (self.h.rows(), if case.aliased { self.h.rows() } else { self.x.rows() });
        let mut job =
            if case.operation.adds() { Job::add_cap_into(x, self.r.rows(), h) } else { Job::cap(h) };
        if case.operation.norms() {
            job = job.norm(self.weight.rows().address, epsilon(), self.y.rows());
        }
        if case.profiles != Profiles::One && case.rows > 0 {
            job = job.row_profiles(self.profiles.as_ptr() as u64);
        }
        if case.rows > 0 { job.stats(self.stats.as_mut_ptr() as u64) } else { job }
    }

    /// Compares everything with another result of the same launch.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn same(&self, other: &Self) -> Result<(), String> {
        self.h.same(&other.h).map_err(|e| format!("h, {e}"))?;
        self.x.same(&other.x).map_err(|e| format!("x, {e}"))?;
        self.r.same(&other.r).map_err(|e| format!("r, {e}"))?;
        self.y.same(&other.y).map_err(|e| format!("y, {e}"))?;
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        for (i, (a, b)) in self.stats.iter().zip(&other.stats).enumerate() {
            if !same(a.before, b.before) || !same(a.after, b.after) || a.flags != b.flags {
                return Err(format!("stats {i}: {a:?} instead of {b:?}"));
            }
        }
        if self.faults != other.faults {
            return Err(format!("faults: {:?} instead of {:?}", self.faults, other.faults));
        }
        Ok(())
    }
}

/// Checks the effect of one cap on an f32 row against the bounds of docs/operation.md.
fn check_step(
    before: &[f32],
    after: &[f32],
    axis: &[f32],
    strength: f32,
    stat: RowStat,
    acts: bool,
    vector: usize,
) {
    if stat.non_finite() || before.iter().any(|x| !x.is_finite()) {
        return;
    }
    let off = (f64::from(stat.before) - oracle::projection(before, axis)).abs();
    let slack = oracle::projection_bound(before, axis, vector);
    assert!(off <= slack, "width {}: {stat:?} is off by {off:e}, allowed {slack:e}", axis.len());
    if acts && strength == 1.0 {
        let missed = (f64::from(stat.after) - oracle::projection(after, axis)).abs();
        let slack = oracle::capped_bound(axis.len(), vector, stat.after, oracle::norm(before));
        assert!(missed <= slack, "width {}: {stat:?} missed by {missed:e}, allowed {slack:e}", axis.len());
    }
}
