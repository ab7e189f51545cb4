//! The strongest floors whose dose stays within a budget.

use crate::dose::{Dose, Doses};

/// Where floors are, and how far rows are moved to them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Percentile of the floors, from the role end.
    pub percentile: f64,
    /// Strength of the caps.
    pub strength: f32,
}

/// How strong a dose may be. The default allows every dose.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Budget {
    /// Maximum of the 95th percentile of KL(capped || uncapped) per token of held-out default answers, in nats.
    pub kl: Option<f64>,
    /// Maximum rise of the perplexity of each text: 0.03 for 3 %.
    pub perplexity: Option<f64>,
}

impl Budget {
    /// Returns whether it allows every dose.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether it allows these doses.
    #[must_use]
    pub fn allows(&self, doses: &Doses) -> bool {
        let answers = |most: f64| doses.answers.as_ref().is_none_or(|dose| dose.kl.p95 <= most);
        let texts = |most: f64| doses.texts.iter().all(|(_, dose)| Dose::perplexity_rise(dose) <= most);
        self.kl.is_none_or(answers) && self.perplexity.is_none_or(texts)
    }
}

/// Returns the strongest setting that is within a budget, up to full strength at `percentile`. `None` if the weakest
/// is not.
///
/// A lower floor comes before a lower strength: of two caps that lift role play by the same distance, the one with
/// the lower floor and full strength changes other text less (`docs/method.md`). Only below the lowest floor are
/// strengths under 1 tried. Settings are 2.5 percentiles apart, and each one asked for is measured: the search takes
/// it for granted that a stronger setting has the larger dose, and its result does not.
///
/// # Errors
/// Those of `is_within`.
pub fn strongest<E>(
    percentile: f64,
    mut is_within: impl FnMut(Setting) -> Result<bool, E>,
) -> Result<Option<Setting>, E> {
    const STEP: f64 = 2.5;
    let weak = [0.25, 0.5, 0.75].map(|strength| Setting { percentile: 0.0, strength });
    let steps = (percentile / STEP).ceil() as usize;
    let full = (0..steps).map(|step| step as f64 * STEP).chain([percentile]);
    let full = full.map(|percentile| Setting { percentile, strength: 1.0 });
    let settings: Vec<_> = weak.into_iter().chain(full).collect();
    let mut found = None;
    // Below `low` settings are within the budget, from `high` on they are not.
    let (mut low, mut high) = (0, settings.len());
    // Most often there is nothing to search for.
    let mut next = high - 1;
    while low < high {
        if is_within(settings[next])? {
            found = Some(settings[next]);
            low = next + 1;
        } else {
            high = next;
        }
        next = usize::midpoint(low, high).min(high.saturating_sub(1));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn search(percentile: f64, is_within: impl Fn(Setting) -> bool) -> (Option<Setting>, usize) {
        let mut asked = 0;
        let found = strongest(percentile, |setting| {
            asked += 1;
            Ok::<_, Infallible>(is_within(setting))
        });
        (found.unwrap(), asked)
    }

    #[test]
    fn the_strongest_setting_within_the_budget_is_found_in_few_steps() {
        let at = |percentile, strength| Some(Setting { percentile, strength });
        assert_eq!(search(75.0, |_| true), (at(75.0, 1.0), 1));
        for percentile in [0.0, 2.5, 40.0, 72.5] {
            let (found, asked) = search(75.0, |setting| setting.percentile <= percentile);
            assert_eq!(found, at(percentile, 1.0));
            assert!(asked <= 7, "{asked}");
        }
        assert_eq!(search(76.0, |setting| setting.percentile < 76.0).0, at(75.0, 1.0));
        assert_eq!(search(75.0, |setting| setting.strength <= 0.5).0, at(0.0, 0.5));
        assert_eq!(search(75.0, |_| false).0, None);
        assert_eq!(search(0.0, |setting| setting.strength < 1.0).0, at(0.0, 0.75));
        assert_eq!(strongest(75.0, |_| Err(())), Err(()));
    }
}
