//! Contexts of test models under caps, and what every row of them must show.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_ggml::{BlockTrace, Hook, HookError, ModelShape, Session};
use axiscap_testing::llama::{ContextSettings, Row, TestContext, TestModel};
use axiscap_testing::numbers::Random;

/// The projection that tight bands hold rows on.
pub(crate) const PINNED: f32 = 0.75;

/// Returns an axis that depends only on its block.
pub(crate) fn axis(block: usize, width: usize) -> Axis {
    let mut random = Random(1 + block as u64);
    Axis::from_direction(&(0..width).map(|_| random.signed()).collect::<Vec<_>>()).unwrap()
}

/// Returns the same band for each of these blocks.
pub(crate) fn bands(blocks: impl IntoIterator<Item = usize>, width: usize, lo: f32, hi: f32) -> CapSet {
    let bound = Bound::band(lo, hi).unwrap();
    let cap = |block| BlockCap { block, cap: Cap::new(axis(block, width), bound) };
    CapSet::new(blocks.into_iter().map(cap)).unwrap()
}

/// Returns a batch of one sequence from a position on.
pub(crate) fn rows(sequence: i32, from: usize, count: usize, logits: impl Fn(usize) -> bool) -> Vec<Row> {
    let row = |i: usize| Row {
        token: ((from + i) * 7 + 11 * sequence as usize) as i32 % 90 + 3,
        position: (from + i) as i32,
        sequence,
        logits: logits(i),
    };
    (0..count).map(row).collect()
}

/// Returns the bits of values, which compare NaN as well.
pub(crate) fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
    values.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

/// Why a decode failed.
enum Failed {
    Llama(i32),
    Hook(HookError),
}

impl From<HookError> for Failed {
    fn from(error: HookError) -> Self {
        Self::Hook(error)
    }
}

/// A context whose caps are those of a session.
pub(crate) struct Capped<'m> {
    pub(crate) session: Session,
    pub(crate) context: TestContext<'m>,
}

impl<'m> Capped<'m> {
    /// Makes a hooked context of a model, with tracing.
    pub(crate) fn new(
        hook: &Hook,
        model: &'m TestModel,
        architecture: &str,
        change: impl FnOnce(&mut ContextSettings),
    ) -> Result<Self, String> {
        let session = Session::new(shape(model, architecture));
        session.update(|settings| settings.tracing = true);
        let context = hook.bind(&session, || model.context(change))?;
        Ok(Self { session, context })
    }

    pub(crate) fn set(&self, caps: &CapSet) -> Result<(), String> {
        self.session.set_caps(Some(caps)).map_err(|error| error.to_string())
    }

    /// Decodes a batch and returns what every cap did to every row.
    pub(crate) fn decode(&mut self, rows: &[Row]) -> Result<Vec<BlockTrace>, String> {
        self.decode_with(rows, |context| context.decode(rows))
    }

    /// Decodes a batch by this call and returns what every cap did to every row.
    pub(crate) fn decode_with(
        &mut self,
        rows: &[Row],
        decode: impl FnOnce(&mut TestContext<'m>) -> i32,
    ) -> Result<Vec<BlockTrace>, String> {
        let outputs = rows.iter().filter(|row| row.logits).count();
        let decoded = self.session.watch(rows.len(), outputs, || match decode(&mut self.context) {
            0 => Ok(()),
            status => Err(Failed::Llama(status)),
        });
        match decoded {
            Ok(()) => Ok(self.session.take_trace()),
            Err(Failed::Llama(status)) => Err(format!("llama_decode returned {status}")),
            Err(Failed::Hook(error)) => Err(error.to_string()),
        }
    }
}

/// Returns the shape of a model, as the hook wants it.
pub(crate) fn shape(model: &TestModel, architecture: &str) -> ModelShape {
    ModelShape { architecture: architecture.into(), blocks: model.blocks(), width: model.width() }
}

/// Checks that every row of these blocks is on the tight bound.
pub(crate) fn check_pinned(
    trace: &[BlockTrace],
    blocks: &[usize],
    model: &TestModel,
    batch: &[Row],
) -> Result<(), String> {
    let outputs = batch.iter().filter(|row| row.logits).count();
    for &block in blocks {
        let seen: Vec<_> = trace.iter().filter(|traced| traced.block == block).collect();
        let rows: usize = seen.iter().map(|traced| traced.rows.len()).sum();
        if rows != batch.len() && (block + 1 != model.blocks() || rows != outputs) {
            return Err(format!("block {block} shows {rows} of {} rows", batch.len()));
        }
        for stat in seen.iter().flat_map(|traced| traced.stats()) {
            if stat.non_finite() || stat.after.to_bits() != PINNED.to_bits() {
                return Err(format!("block {block} has a row off the bound: {stat:?}"));
            }
        }
    }
    Ok(())
}
