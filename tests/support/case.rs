//! One launch and what it should do: every byte of every buffer, guard zones included. The emulator's tests and the
//! GPU's share it.

use std::fmt::Debug;

use axiscap::cpu::{Element, oracle};
use axiscap::cuda::{DeviceNorm, DeviceRows, Dtype, Job, Limits, Operation, Path, ProfileFaults};
use axiscap::{Axis, Bound, Cap, CapTable, RowStat};
use bytemuck::Pod;

use crate::literal;
use crate::numbers::Random;

/// A row type, as the tests need it.
pub(crate) trait Value: Element + Pod + PartialEq + Debug {}
impl<E: Element + Pod + PartialEq + Debug> Value for E {}

/// What rows say about their profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profiles {
    /// Nothing: all have profile 1.
    One,
    /// Each names one.
    Several,
    /// Each names one, and some one that does not exist.
    SomeMissing,
}

/// A launch to check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) operation: Operation,
    pub(crate) dtype: Dtype,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) caps: usize,
    /// Elements between rows, beyond the width.
    pub(crate) gap: usize,
    /// Elements by which every pointer misses 16-byte alignment.
    pub(crate) offset: usize,
    pub(crate) profiles: Profiles,
    /// `h` is the first summand.
    pub(crate) aliased: bool,
    pub(crate) path: Option<Path>,
    pub(crate) limits: Limits,
    pub(crate) schedule: u32,
    pub(crate) seed: u64,
}

/// Rows in a buffer of their own, with a guard zone on either side.
///
/// A clone may lie at another alignment: only its values are compared, nothing runs on it.
#[derive(Clone)]
pub(crate) struct Buffer<E> {
    memory: Vec<E>,
    start: usize,
    stride: usize,
    rows: usize,
    width: usize,
}

/// Guard zones and gaps hold this; it is a NaN of every type, so that reading it shows too.
const GUARD: u8 = 0xff;
const GUARD_BYTES: usize = 128;

impl<E: Value> Buffer<E> {
    pub(crate) fn new(rows: usize, width: usize, gap: usize, offset: usize) -> Self {
        let guard = GUARD_BYTES / size_of::<E>();
        let mut stride = width + gap;
        if offset == 0 {
            // An aligned buffer has aligned rows where the width allows it.
            stride = stride.next_multiple_of(16 / size_of::<E>());
        }
        let fill: E = bytemuck::pod_read_unaligned(&[GUARD; 8][..size_of::<E>()]);
        let memory = vec![fill; guard * 2 + rows * stride + 64];
        // Vec gives alignment to the element only.
        let misses = memory.as_ptr().align_offset(16);
        Self { memory, start: guard + misses + offset, stride, rows, width }
    }

    pub(crate) fn row(&self, row: usize) -> &[E] {
        &self.memory[self.start + row * self.stride..][..self.width]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [E] {
        &mut self.memory[self.start + row * self.stride..][..self.width]
    }

    pub(crate) fn rows(&mut self) -> DeviceRows {
        DeviceRows { address: self.memory.as_mut_ptr().wrapping_add(self.start) as u64, stride: self.stride }
    }

    /// Rows, width, elements from one row to the next.
    pub(crate) fn extent(&self) -> (usize, usize, usize) {
        (self.rows, self.width, self.stride)
    }

    /// The whole memory, guard zones and gaps included, and where in it the first row begins.
    pub(crate) fn memory(&mut self) -> (&mut [E], usize) {
        (&mut self.memory, self.start)
    }

    pub(crate) fn first_row_on(&self) -> &[E] {
        &self.memory[self.start..]
    }

    pub(crate) fn first_row_on_mut(&mut self) -> &mut [E] {
        &mut self.memory[self.start..]
    }

    fn fill(&mut self, random: &mut Random) {
        for row in 0..self.rows {
            let kind = random.next() % 16;
            let at = random.next() as usize % self.width;
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

    pub(crate) fn widened(&self, row: usize) -> Vec<f32> {
        self.row(row).iter().map(|x| x.to_f32()).collect()
    }

    fn store(&mut self, row: usize, values: &[f32]) {
        for (to, &x) in self.row_mut(row).iter_mut().zip(values) {
            *to = E::from_f32(x);
        }
    }

    /// The same bytes, where NaN is NaN: payloads are not part of the definition.
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

pub(crate) fn table(case: &Case, random: &mut Random) -> CapTable {
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
        // Profile 1: all. 2: none. 3: the last. 4: all, backwards.
        let reversed: Vec<&Cap> = all.iter().rev().copied().collect();
        CapTable::with_profiles(&[&all, &[], &all[all.len() - 1..], &reversed]).expect("a table")
    } else {
        CapTable::new(all).expect("a table")
    }
}

/// Everything one launch reads and writes.
#[derive(Clone)]
pub(crate) struct Setup<E> {
    pub(crate) table: CapTable,
    pub(crate) h: Buffer<E>,
    pub(crate) x: Buffer<E>,
    pub(crate) r: Buffer<E>,
    pub(crate) y: Buffer<E>,
    pub(crate) weight: Buffer<f32>,
    pub(crate) profiles: Vec<u32>,
    pub(crate) stats: Vec<RowStat>,
    pub(crate) faults: Option<ProfileFaults>,
}

pub(crate) const EPS: f32 = 1e-5;

impl<E: Value> Setup<E> {
    pub(crate) fn new(case: &Case) -> Self {
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
        // One guard entry behind the last.
        let stats = vec![old; case.rows * table.deepest_profile() + 1];
        Self { table, h, x, r, y, weight, profiles, stats, faults: None }
    }

    /// The profile of a row, and none where there is no such profile.
    fn profile(&self, case: &Case, row: usize) -> Option<u32> {
        let profile = if case.profiles == Profiles::One { 1 } else { self.profiles[row] };
        ((profile as usize) < self.table.profiles()).then_some(profile)
    }

    /// Every row's profile, where there is one, else the empty one: what the CPU takes.
    pub(crate) fn profiles_that_exist(&self, case: &Case) -> Vec<u32> {
        (0..case.rows).map(|row| self.profile(case, row).unwrap_or(0)).collect()
    }

    /// What is on record, and in the statistics, of rows whose profile does not exist.
    pub(crate) fn record_faults(&mut self, case: &Case) {
        let depth = self.table.deepest_profile();
        for row in 0..case.rows {
            if self.profile(case, row).is_none() {
                self.stats[row * depth].flags = RowStat::BAD_PROFILE;
                let first = ProfileFaults { rows: 0, row: row as u32, profile: self.profiles[row] };
                self.faults.get_or_insert(first).rows += 1;
            }
        }
    }

    /// What the definition makes of it, each step within the bounds of the f64 oracle. Returns how many times a cap
    /// acted.
    pub(crate) fn define(&mut self, case: &Case) -> usize {
        let vector = E::VECTOR;
        let mut times = 0;
        let depth = self.table.deepest_profile();
        for row in 0..case.rows {
            let mut h = if case.operation.adds() {
                let x = if case.aliased { self.h.widened(row) } else { self.x.widened(row) };
                x.iter().zip(self.r.widened(row)).map(|(x, r)| x + r).collect()
            } else {
                self.h.widened(row)
            };
            let profile = self.profile(case, row).unwrap_or(0);
            let mut acted = false;
            let stats = &mut self.stats[row * depth..][..depth];
            stats.fill(RowStat::default());
            for (k, cap) in self.table.profile(profile).expect("a profile").enumerate() {
                let (axis, params) = (self.table.axis(cap), self.table.params()[cap]);
                let before = h.clone();
                let (stat, acts) = literal::cap(&mut h, axis, params, vector);
                judge(&before, &h, axis, params.strength, stat, acts, vector);
                stats[k] = stat;
                acted |= acts;
                times += usize::from(acts);
            }
            if case.operation.norms() {
                let normed = literal::rms_norm::<E>(&h, self.weight.row(0), EPS);
                self.y.row_mut(row).copy_from_slice(&normed);
            }
            if acted || case.operation.adds() {
                self.h.store(row, &h);
            }
        }
        self.record_faults(case);
        times
    }

    pub(crate) fn job(&mut self, case: &Case) -> Job {
        let x = if case.aliased { self.h.rows() } else { self.x.rows() };
        Job {
            add: case.operation.adds().then(|| [x, self.r.rows()]),
            norm: case.operation.norms().then(|| DeviceNorm {
                weight: self.weight.rows().address,
                eps: EPS,
                out: self.y.rows(),
            }),
            profiles: (case.profiles != Profiles::One && case.rows > 0)
                .then_some(self.profiles.as_ptr() as u64),
            stats: (case.rows > 0).then_some(self.stats.as_mut_ptr() as u64),
            ..Job::in_place(Dtype::of::<E>(), self.h.rows(), case.rows)
        }
    }

    pub(crate) fn same(&self, other: &Self) -> Result<(), String> {
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

/// Holds what one cap did to an f32 row to the bounds of docs/operation.md.
fn judge(
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
