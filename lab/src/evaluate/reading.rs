//! Readings: what the answers of a conversation project on an axis.

use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::Model;

use super::record::TurnReading;
use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::reading::{self, Turns};

/// Sums over the tokens of an answer.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    rows: usize,
    before: f64,
    after: f64,
    outside: usize,
}

/// Reads conversations with caps one of which is watched. Outside is what lies beyond `bound`. `go_on` is called after
/// every batch with the number of turns. Returns `None` if it asked to stop.
pub(super) fn read(
    model: &Model,
    conversations: &[Turns],
    caps: &CapSet,
    watched: usize,
    bound: axiscap::Bound,
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Vec<TurnReading>>>, Error> {
    let mut sums = vec![Sums::default(); conversations.iter().map(Vec::len).sum()];
    let see = |answer: usize, line: &axiscap_llama::TraceRow| {
        if line.cap == watched {
            let sum: &mut Sums = &mut sums[answer];
            sum.rows += 1;
            sum.before += f64::from(line.before);
            sum.after += f64::from(line.after);
            sum.outside += usize::from(line.before < bound.lo() || line.before > bound.hi());
        }
    };
    if !reading::read(model, conversations, caps, compute, see, go_on)? {
        return Ok(None);
    }
    let mut readings = sums.into_iter().map(|sum| {
        let mean = |total: f64| (sum.rows > 0).then(|| (total / sum.rows as f64) as f32);
        TurnReading {
            tokens: sum.rows,
            before: mean(sum.before),
            after: mean(sum.after),
            outside: sum.outside,
        }
    });
    Ok(Some(conversations.iter().map(|turns| readings.by_ref().take(turns.len()).collect()).collect()))
}
