//! Controls: caps on random directions whose dose is that of the caps.

use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::Model;

use crate::compute::ComputeOptions;
use crate::dose::{RandomDirections, Reference, random_caps_with};
use crate::error::Error;
use crate::pass::Text;
use crate::rollout::{Group, Rollout};

/// Doses are equal if they differ by at most this share.
const TOLERANCE: f64 = 0.05;

/// Maximum comparisons.
const MAX_TRIES: usize = 12;

/// A control whose floors are found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matched {
    pub(super) floors: Vec<f32>,
    pub(super) wanted_kl: f64,
    pub(super) kl: f64,
    pub(super) tokens: usize,
}

/// Returns conversations as answers: the last one after all that was said before.
pub(super) fn sample(conversations: Vec<(Vec<i32>, Vec<i32>)>) -> Vec<Rollout> {
    let answer = |(prompt, response)| Rollout {
        group: Group::Default,
        system: None,
        question: 0,
        seed: 0,
        prompt,
        response,
        thoughts: 0,
        text: String::new(),
        log_likelihood: None,
        score: None,
        faults: Vec::new(),
    };
    conversations.into_iter().map(answer).collect()
}

/// Returns an answer that begins at position 1.
fn whole(answer: &Rollout) -> Rollout {
    let mut all = [&answer.prompt[..], &answer.response].concat();
    let response = all.split_off(1.min(all.len()));
    Rollout { prompt: all, response, ..answer.clone() }
}

/// Finds floors on random directions under which the mean KL(capped || uncapped) per token of answers is that of caps.
/// `wanted` is the latter if it is known. `go_on` is called after every batch with the number of answers compared.
/// Returns `None` if it asked to stop.
///
/// Every push is scaled alike.
pub(super) fn matched(
    model: &Model,
    caps: &CapSet,
    answers: &[Rollout],
    seed: u64,
    wanted: Option<f64>,
    compute: &ComputeOptions,
    mut go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Matched>, Error> {
    let texts: Vec<Text<'_>> = answers.iter().map(Text::of).collect();
    if texts.is_empty() {
        return Err(Error::NoAnswers);
    }
    let Some(reference) = Reference::of(model, &texts, compute, &mut go_on)? else { return Ok(None) };
    let tokens = reference.tokens();
    let mut done = texts.len();
    let mut measure = |caps: &CapSet| {
        let kl = reference.mean_kl(caps, |now| go_on(done + now));
        done += texts.len();
        kl
    };
    let wanted = match wanted {
        Some(wanted) => Some(wanted),
        None => measure(caps)?,
    };
    let Some(wanted) = wanted else { return Ok(None) };
    // Caps act on all rows, those of prompts as well: a floor below every answer could still move prompts. Rows at
    // position 0 are attention sinks, whose projections are far from all others.
    let rows: Vec<Rollout> = answers.iter().map(whole).collect();
    let directions =
        RandomDirections::measure(model, &rows, caps, &[seed], compute, |_| ControlFlow::Continue(()))?;
    let Some(directions) = directions else { return Ok(None) };
    let mut compare = |scale: f64| {
        let floors = directions.floors(0, scale)?;
        let kl = measure(&random_caps_with(caps, seed, &floors)?)?;
        Ok::<_, Error>(kl.map(|kl| Matched { floors, wanted_kl: wanted, kl, tokens }))
    };
    // Caps that change nothing have a control that changes nothing.
    if wanted <= 0.0 || !directions.has_pushes() {
        return compare(0.0);
    }
    let mut search = Search::new(wanted);
    let mut best: Option<(f64, Matched)> = None;
    for _ in 0..MAX_TRIES {
        let Some(found) = compare(search.scale.exp())? else { return Ok(None) };
        let (kl, off) = (found.kl, (found.kl / wanted).ln().abs());
        if best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, found));
        }
        if off <= TOLERANCE || !search.next(kl) {
            break;
        }
    }
    Ok(best.map(|(_, matched)| matched))
}

/// Searches the scale at which an increasing function has a value. Scales and values are logarithms.
///
/// Between a scale that is too small and one that is too large it goes along the line through both, and to the middle
/// where that hardly moves. Divergences are steep where caps hardly engage, and about a square elsewhere.
#[derive(Debug)]
struct Search {
    wanted: f64,
    scale: f64,
    /// The largest scale that is too small, and the smallest that is too large, each with its value.
    below: Option<(f64, f64)>,
    above: Option<(f64, f64)>,
    /// Whether the last value was too small.
    was_below: Option<bool>,
}

impl Search {
    fn new(wanted: f64) -> Self {
        Self { wanted: wanted.ln(), scale: 0.0, below: None, above: None, was_below: None }
    }

    /// Takes the value at the present scale, which is no logarithm, and goes to the next. Returns `false` if there is
    /// none.
    fn next(&mut self, value: f64) -> bool {
        // No step goes beyond a factor of 20 in scale, or 400 in the value of a square.
        const MAX_STEP: f64 = 3.0;
        let now = (self.scale, value.max(1e-300).ln());
        let last = self.scale;
        let is_below = now.1 < self.wanted;
        let is_again = self.was_below.replace(is_below) == Some(is_below);
        if is_below {
            self.below = Some(now);
        } else {
            self.above = Some(now);
        }
        self.scale = match (self.below, self.above) {
            (Some(below), Some(above)) => {
                let (width, rise) = (above.0 - below.0, above.1 - below.1);
                let share = (self.wanted - below.1) / rise;
                // Where the line hardly moves the same end, the curve is no line.
                below.0 + width * if share.is_finite() && !is_again { share.clamp(0.1, 0.9) } else { 0.5 }
            }
            _ => now.0 + ((self.wanted - now.1) / 2.0).clamp(-MAX_STEP, MAX_STEP),
        };
        self.scale != last && self.scale.abs() < 14.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_found_in_few_steps() {
        for power in [0.7, 1.0, 2.0, 3.5] {
            for wanted in [1e-3, 0.3, 4.0] {
                // Nothing below a scale of 0.05, as caps that do not engage: steep above it.
                let value = |scale: f64| {
                    let scale = scale.exp();
                    0.1 * scale.powf(power) * (1.0 - 0.05 / scale).max(0.0).powi(2)
                };
                let mut search = Search::new(wanted);
                let mut tries = 1;
                while (value(search.scale) / wanted).ln().abs() > TOLERANCE {
                    assert!(search.next(value(search.scale)), "{power} {wanted}: {search:?}");
                    tries += 1;
                }
                assert!(tries <= MAX_TRIES, "{power} {wanted}: {tries}");
            }
        }
        assert!(!Search::new(1.0).next(1.0), "it is there");
    }
}
