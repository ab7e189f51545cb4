//! How likely given responses are.

use std::ops::ControlFlow;

use axiscap_llama::{Context, log_probability};

use crate::error::Error;
use crate::pass::{Pass, Row, Text};

/// Returns the natural logarithm of the probability of each response after its prompt: the sum over its tokens. Minus
/// infinity or NaN where the model's logits give no other. `None` if `go_on` asked to stop.
pub(crate) fn log_likelihoods(
    pass: &mut Pass<'_, '_>,
    texts: &[Text<'_>],
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<f64>>, Error> {
    let mut sums = vec![0f64; texts.len()];
    let add = |context: &mut Context<'_>, rows: &[Row]| {
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.logits) {
            let next = texts[row.text].token(row.position + 1);
            sums[row.text] += f64::from(log_probability(context.logits(index).unwrap_or_default(), next));
        }
        Ok(())
    };
    let predicts = |text: &Text<'_>, position: usize| text.predicts(position);
    let is_done = pass.run(predicts, |_| {}, add, go_on)?;
    Ok(is_done.then_some(sums))
}
