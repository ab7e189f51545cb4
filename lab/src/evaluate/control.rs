//! Controls: caps on random directions whose dose is that of the caps.

use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::Model;

use crate::compute::ComputeOptions;
use crate::dose::{RandomDirections, Sample};
use crate::error::Error;
use crate::rollout::{Group, Rollout};

/// Doses are equal if they differ by at most this share.
const TOLERANCE: f64 = 0.03;

/// Maximum comparisons.
const MAX_TRIES: usize = 8;

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

/// Finds floors on random directions under which the mean KL(capped || uncapped) per token of answers is that of caps.
/// `wanted` is the latter if it is known. `go_on` is called after every batch with the number of answers compared.
/// Returns `None` if it asked to stop.
///
/// Every push is scaled alike. Divergences grow about as the square of small pushes, and the search goes along a
/// straight line in logarithms.
pub(super) fn matched(
    model: &Model,
    caps: &CapSet,
    answers: &[Rollout],
    seed: u64,
    wanted: Option<f64>,
    compute: &ComputeOptions,
    mut go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Matched>, Error> {
    let sample = Sample { answers: answers.to_vec(), texts: Vec::new() };
    let mut done = 0;
    let mut measure = |caps: &CapSet| {
        let doses = sample.doses(model, caps, compute, |now| go_on(done + now))?;
        done += sample.len();
        let dose = doses.map(|doses| doses.answers.ok_or(Error::NoAnswers)).transpose()?;
        Ok::<_, Error>(dose.map(|dose| (dose.kl.mean, dose.tokens)))
    };
    let wanted = match wanted {
        Some(wanted) => Some(wanted),
        None => measure(caps)?.map(|(kl, _)| kl),
    };
    let Some(wanted) = wanted else { return Ok(None) };
    let directions =
        RandomDirections::measure(model, answers, caps, &[seed], compute, |_| ControlFlow::Continue(()))?;
    let Some(directions) = directions else { return Ok(None) };
    let floors = |caps: &CapSet| caps.caps().iter().map(|entry| entry.cap.bound().lo()).collect();
    // Caps that change nothing have a control that changes nothing.
    if wanted <= 0.0 || !directions.has_pushes() {
        let none = directions.caps(0, 0.0)?;
        let found = measure(&none)?;
        return Ok(found.map(|(kl, tokens)| Matched { floors: floors(&none), wanted_kl: wanted, kl, tokens }));
    }
    let mut search = Search::new(wanted);
    let mut best: Option<(f64, Matched)> = None;
    for _ in 0..MAX_TRIES {
        let control = directions.caps(0, search.scale)?;
        let Some((kl, tokens)) = measure(&control)? else { return Ok(None) };
        let off = (kl / wanted).ln().abs();
        if best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, Matched { floors: floors(&control), wanted_kl: wanted, kl, tokens }));
        }
        if off <= TOLERANCE || !search.next(kl) {
            break;
        }
    }
    Ok(best.map(|(_, matched)| matched))
}

/// Searches the scale at which an increasing function has a value, in logarithms.
#[derive(Debug)]
struct Search {
    wanted: f64,
    scale: f64,
    /// Logarithms of the last scale and value.
    last: Option<(f64, f64)>,
}

impl Search {
    fn new(wanted: f64) -> Self {
        Self { wanted, scale: 1.0, last: None }
    }

    /// Takes the value at the present scale, and goes to the next. Returns `false` if there is none.
    fn next(&mut self, value: f64) -> bool {
        // A function that grows as the square, until two points say how it grows.
        let mut slope = 2.0;
        let now = (self.scale.ln(), value.max(1e-300).ln());
        if let Some((scale, value)) = self.last.filter(|last| last.0 != now.0) {
            let found = (now.1 - value) / (now.0 - scale);
            if found.is_finite() && found > 0.0 {
                slope = found.clamp(0.5, 8.0);
            }
        }
        self.last = Some(now);
        // No step is larger than a factor of 30.
        let step = ((self.wanted.ln() - now.1) / slope).clamp(-3.4, 3.4);
        self.scale *= step.exp();
        step != 0.0 && self.scale.is_finite() && (1e-6..1e6).contains(&self.scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_found_in_few_steps() {
        for power in [0.7, 1.0, 2.0, 3.5] {
            for wanted in [1e-5, 0.3, 40.0] {
                // Small scales change less than the power says, as caps that engage rarely do.
                let value = |scale: f64| 0.1 * scale.powf(power) * (1.0 + 0.3 * scale.ln().sin());
                let mut search = Search::new(wanted);
                let mut tries = 1;
                while (value(search.scale) / wanted).ln().abs() > TOLERANCE {
                    assert!(search.next(value(search.scale)) && tries < 12, "{power} {wanted}: {search:?}");
                    tries += 1;
                }
            }
        }
        assert!(!Search::new(1.0).next(1.0), "it is there");
    }
}
