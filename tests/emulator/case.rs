//! One launch in the emulator against the definition: every byte of every buffer, guard zones included.

use axiscap::cpu::Element;
use axiscap::cuda::{DeviceNorm, DeviceRows, Dtype, Job, Limits, Operation, PackedTable, Path, Plan, TableView};
use axiscap::{Axis, Bound, Cap, CapTable, RowStat};
use half::{bf16, f16};

use crate::{literal, machine};

/// A row type, as the tests need it.
pub(crate) trait Value: Copy + PartialEq + std::fmt::Debug + bytemuck::Pod {
    const DTYPE: Dtype;
    fn widen(self) -> f32;
    fn narrow(value: f32) -> Self;
}

impl Value for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn widen(self) -> f32 {
        self
    }
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Value for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Value for bf16 {
    const DTYPE: Dtype = Dtype::BF16;
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// A launch to check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) operation: Operation,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) caps: usize,
    /// Elements between rows, beyond the width.
    pub(crate) gap: usize,
    /// Elements by which every pointer misses 16-byte alignment.
    pub(crate) offset: usize,
    /// Rows choose among several profiles.
    pub(crate) profiles: bool,
    /// `h` is the first summand.
    pub(crate) aliased: bool,
    pub(crate) path: Option<Path>,
    pub(crate) limits: Limits,
    pub(crate) schedule: u32,
    pub(crate) seed: u64,
}

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Roughly normal, now and then large: residual streams have outliers.
    pub(crate) fn value(&mut self) -> f32 {
        let sum: i64 = (0..4).map(|_| (self.next() & 0xffff) as i64 - 0x8000).sum();
        let x = sum as f32 / 32768.0;
        if self.next() % 61 == 0 { x * 40.0 } else { x }
    }
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
        DeviceRows {
            address: self.memory.as_mut_ptr().wrapping_add(self.start) as u64,
            stride: self.stride,
        }
    }

    /// Rows, width, elements from one row to the next.
    pub(crate) fn extent(&self) -> (usize, usize, usize) {
        (self.rows, self.width, self.stride)
    }

    pub(crate) fn from_first(&self) -> &[E] {
        &self.memory[self.start..]
    }

    pub(crate) fn from_first_mut(&mut self) -> &mut [E] {
        &mut self.memory[self.start..]
    }

    fn fill(&mut self, random: &mut Random) {
        for row in 0..self.rows {
            let kind = random.next() % 16;
            let at = random.next() as usize % self.width;
            for x in self.row_mut(row) {
                *x = E::narrow(match kind {
                    0 => random.value() * 1e-39,
                    1 => 0.0,
                    _ => random.value(),
                });
            }
            match kind {
                2 => self.row_mut(row)[at] = E::narrow(f32::NAN),
                3 => self.row_mut(row)[at] = E::narrow(f32::INFINITY),
                _ => {}
            }
        }
    }

    pub(crate) fn widened(&self, row: usize) -> Vec<f32> {
        self.row(row).iter().map(|x| x.widen()).collect()
    }

    fn store(&mut self, row: usize, values: &[f32]) {
        for (to, &x) in self.row_mut(row).iter_mut().zip(values) {
            *to = E::narrow(x);
        }
    }

    /// The same bytes, where NaN is NaN: payloads are not part of the definition.
    fn same(&self, other: &Self) -> Result<(), String> {
        for (i, (a, b)) in self.memory.iter().zip(&other.memory).enumerate() {
            let bits = bytemuck::bytes_of(a) == bytemuck::bytes_of(b);
            if !bits && !(a.widen().is_nan() && b.widen().is_nan()) {
                let at = i as isize - self.start as isize;
                let (row, column) = (at.div_euclid(self.stride as isize), at.rem_euclid(self.stride as isize));
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
    if case.profiles {
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
        let profiles = (0..case.rows).map(|_| (random.next() % 5) as u32).collect();
        let old = RowStat { before: f32::NAN, after: f32::NAN, flags: 77 };
        // One guard entry behind the last.
        let stats = vec![old; case.rows * table.deepest_profile() + 1];
        Self { table, h, x, r, y, weight, profiles, stats }
    }

    /// What the definition makes of it.
    pub(crate) fn define(&mut self, case: &Case) {
        let vector = 16 / size_of::<E>();
        let depth = self.table.deepest_profile();
        for row in 0..case.rows {
            let mut h = if case.operation.adds() {
                let x = if case.aliased { self.h.widened(row) } else { self.x.widened(row) };
                x.iter().zip(self.r.widened(row)).map(|(x, r)| x + r).collect()
            } else {
                self.h.widened(row)
            };
            let profile = if case.profiles { self.profiles[row] } else { 1 };
            let mut acted = false;
            let stats = &mut self.stats[row * depth..][..depth];
            stats.fill(RowStat::default());
            for (k, cap) in self.table.profile(profile).expect("a profile").enumerate() {
                let (stat, acts) =
                    literal::cap(&mut h, self.table.axis(cap), self.table.params()[cap], vector);
                stats[k] = stat;
                acted |= acts;
            }
            if case.operation.norms() {
                let normed = literal::norm(&h, self.weight.row(0), EPS, vector);
                self.y.store(row, &normed);
            }
            if acted || case.operation.adds() {
                self.h.store(row, &h);
            }
        }
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
            profiles: (case.profiles && case.rows > 0).then_some(self.profiles.as_ptr() as u64),
            stats: (case.rows > 0).then_some(self.stats.as_mut_ptr() as u64),
            ..Job::in_place(E::DTYPE, self.h.rows(), case.rows)
        }
    }

    /// Runs it in the emulator; false where the path cannot take it or there is nothing to do.
    pub(crate) fn emulate(&mut self, case: &Case) -> Result<bool, String> {
        let packed = PackedTable::new(&self.table);
        // The axes as a buffer with guards, like everything else.
        let mut axes = Buffer::<f32>::new(1, packed.axes().len(), 0, 0);
        axes.row_mut(0).copy_from_slice(packed.axes());
        let view = TableView {
            axes: axes.rows().address,
            params: packed.params().as_ptr() as u64,
            ends: packed.ends().as_ptr() as u64,
            layout: packed.layout(),
        };
        let plan =
            Plan::on_path(&self.job(case), &view, &case.limits, case.path).map_err(|e| e.to_string())?;
        let Some(plan) = plan else { return Ok(false) };
        // SAFETY: every buffer outlives the call and is ours alone.
        unsafe { machine::run(&plan, case.schedule) }?;
        Ok(true)
    }

    fn same(&self, other: &Self) -> Result<(), String> {
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
        Ok(())
    }
}

/// Checks one case against the definition and the CPU twin; returns whether anything ran.
pub(crate) fn check<E: Value + Element>(case: &Case) -> bool {
    let mut setup = Setup::<E>::new(case);
    let (mut expected, mut twin) = (setup.clone(), setup.clone());
    expected.define(case);
    twin.on_twin(case);
    twin.same(&expected).unwrap_or_else(|e| panic!("the twin, {case:?} {:?}: {e}", E::DTYPE));
    let ran = setup.emulate(case).unwrap_or_else(|e| panic!("{case:?} {:?}: {e}", E::DTYPE));
    if ran {
        setup.same(&expected).unwrap_or_else(|e| panic!("{case:?} {:?}: {e}", E::DTYPE));
    }
    ran
}
