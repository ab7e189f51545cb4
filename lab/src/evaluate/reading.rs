//! Readings: what the answers of a conversation project on an axis.

use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::{Context, Model};

use super::record::TurnReading;
use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::pass::{Pass, Row, Text, check_caps, text_of};

/// Sums over the tokens of an answer.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    rows: usize,
    before: f64,
    after: f64,
    outside: usize,
}

/// Reads conversations, given as prompts and answers turn by turn, with caps one of which is watched. Outside is what
/// lies beyond `bound`. `go_on` is called after every batch with the number of turns. Returns `None` if it asked to
/// stop.
pub(super) fn read(
    model: &Model,
    conversations: &[Vec<(Vec<i32>, Vec<i32>)>],
    caps: &CapSet,
    watched: usize,
    bound: axiscap::Bound,
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Vec<TurnReading>>>, Error> {
    let texts: Vec<Text<'_>> =
        conversations.iter().flatten().map(|(prompt, response)| Text { prompt, response }).collect();
    let lanes: Vec<usize> = conversations.iter().map(Vec::len).collect();
    let mut pass = Pass::in_lanes(model, &texts, &lanes, compute, true)?;
    pass.context_mut().set_caps(Some(caps))?;
    pass.context_mut().set_tracing(true)?;
    let mut sums = vec![Sums::default(); texts.len()];
    let see = |context: &mut Context<'_>, rows: &[Row]| {
        for line in context.take_trace() {
            let Some(text) = text_of(rows, &line).filter(|_| line.cap == watched) else { continue };
            let is_answer =
                usize::try_from(line.position).is_ok_and(|position| position >= texts[text].prompt.len());
            if is_answer && !line.skipped {
                let sum = &mut sums[text];
                sum.rows += 1;
                sum.before += f64::from(line.before);
                sum.after += f64::from(line.after);
                sum.outside += usize::from(line.before < bound.lo() || line.before > bound.hi());
            }
        }
        Ok(())
    };
    // The last block computes no rows but those with logits.
    let is_last = caps.caps()[watched].block + 1 == model.shape().blocks;
    let logits = |text: &Text<'_>, position: usize| is_last && position >= text.prompt.len();
    if !pass.run(logits, |_| {}, see, go_on)? {
        return Ok(None);
    }
    check_caps(pass.context(), caps)?;
    let mut readings = sums.into_iter().map(|sum| {
        let mean = |total: f64| (sum.rows > 0).then(|| (total / sum.rows as f64) as f32);
        TurnReading {
            tokens: sum.rows,
            before: mean(sum.before),
            after: mean(sum.after),
            outside: sum.outside,
        }
    });
    Ok(Some(lanes.iter().map(|&turns| readings.by_ref().take(turns).collect()).collect()))
}
