//! Readings: what caps see of the answers of conversations that are given.

use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::{Context, Model, TraceRow};

use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::pass::{Pass, Row, Text, check_caps, text_of};

/// A conversation: prompt and answer of each turn, as tokens.
pub(crate) type Turns = Vec<(Vec<i32>, Vec<i32>)>;

/// Reads conversations under caps. `see` gets what each cap saw of each token of an answer, with the index of the answer
/// among all. `go_on` is called after every batch with the number of answers. Returns `false` if it asked to stop.
pub(crate) fn read<'t>(
    model: &Model,
    conversations: impl IntoIterator<Item = &'t Turns>,
    caps: &CapSet,
    compute: &ComputeOptions,
    mut see: impl FnMut(usize, &TraceRow),
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<bool, Error> {
    let (mut texts, mut lanes) = (Vec::new(), Vec::new());
    for turns in conversations {
        texts.extend(turns.iter().map(|(prompt, response)| Text { prompt, response }));
        lanes.push(turns.len());
    }
    let mut pass = Pass::in_lanes(model, &texts, &lanes, compute, true)?;
    pass.context_mut().set_caps(Some(caps))?;
    pass.context_mut().set_tracing(true)?;
    let see_rows = |context: &mut Context<'_>, rows: &[Row]| {
        for line in context.take_trace() {
            let Some(text) = text_of(rows, &line) else { continue };
            let is_answer =
                usize::try_from(line.position).is_ok_and(|position| position >= texts[text].prompt.len());
            if is_answer && !line.skipped {
                see(text, &line);
            }
        }
        Ok(())
    };
    // The last block computes no rows but those with logits.
    let has_last = caps.caps().iter().any(|entry| entry.block + 1 == model.shape().blocks);
    let logits = |text: &Text<'_>, position: usize| has_last && position >= text.prompt.len();
    if !pass.run(logits, |_| {}, see_rows, go_on)? {
        return Ok(false);
    }
    check_caps(pass.context(), caps)?;
    Ok(true)
}
