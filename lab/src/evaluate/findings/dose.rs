//! How much the distributions of the next tokens change, and where.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::super::arm::Arm;
use super::super::record::Record;
use crate::estimate::Estimate;
use crate::quantile::quantile;

/// Positions by which rows are told apart: from one to below the next.
const POSITIONS: [usize; 6] = [0, 1, 16, 64, 256, usize::MAX];

/// What caps do to tokens of one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dose {
    /// Under which caps.
    pub arm: Arm,
    /// Where.
    pub place: DosePlace,
    /// Tokens of answers there.
    pub tokens: usize,
    /// Mean KL(capped || uncapped) per token, in nats. The units are answers.
    pub kl: Option<Estimate>,
    /// The 95th percentile of KL over the tokens.
    pub kl_p95: Option<f64>,
    /// Rows there, those of prompts as well.
    pub rows: usize,
    /// Share of them on which a cap engaged.
    pub engaged: Option<f64>,
}

/// Where a dose is measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DosePlace {
    /// Everywhere.
    All,
    /// Under a system prompt.
    SystemPrompt(String),
    /// At positions of the sequence, the first and the last one. `None` has no end.
    Positions(usize, Option<usize>),
}

impl fmt::Display for DosePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("everywhere"),
            Self::SystemPrompt(name) => write!(f, "prompt {name}"),
            Self::Positions(from, Some(to)) if from == to => write!(f, "position {from}"),
            Self::Positions(from, Some(to)) => write!(f, "positions {from} to {to}"),
            Self::Positions(from, None) => write!(f, "positions from {from} on"),
        }
    }
}

/// What is known of a place.
#[derive(Debug, Clone, Default)]
struct Tokens {
    /// By answer.
    kl: BTreeMap<(String, usize), Vec<f64>>,
    rows: usize,
    engaged: usize,
}

/// Summarises doses. `None` without any.
pub(super) fn dose<'r>(records: impl Iterator<Item = &'r Record>) -> Option<Vec<Dose>> {
    let mut places = BTreeMap::<(Arm, DosePlace), Tokens>::new();
    for record in records {
        let Record::Dose { arm, prompt, question, first, kl, engaged } = record else { continue };
        let place_of = |position: usize| {
            let range = POSITIONS.windows(2).find(|range| position < range[1]).unwrap_or(&POSITIONS[4..]);
            DosePlace::Positions(range[0], (range[1] < usize::MAX).then(|| range[1] - 1))
        };
        let mut see = |place: DosePlace, see: &dyn Fn(&mut Tokens)| {
            see(places.entry((*arm, place)).or_default());
        };
        let all =
            |position: usize| [DosePlace::All, DosePlace::SystemPrompt(prompt.clone()), place_of(position)];
        for (index, kl) in kl.iter().enumerate() {
            for place in all(first.saturating_add(index)) {
                see(place, &|tokens| {
                    tokens.kl.entry((prompt.clone(), *question)).or_default().push(f64::from(*kl));
                });
            }
        }
        for (position, engaged) in engaged.bytes().enumerate() {
            for place in all(position) {
                see(place, &|tokens| {
                    tokens.rows += 1;
                    tokens.engaged += usize::from(engaged == b'1');
                });
            }
        }
    }
    let summary = |((arm, place), found): ((Arm, DosePlace), Tokens)| {
        let means: Vec<f64> = found.kl.values().map(|kl| kl.iter().sum::<f64>() / kl.len() as f64).collect();
        let mut all: Vec<f64> = found.kl.into_values().flatten().collect();
        all.sort_by(f64::total_cmp);
        Dose {
            arm,
            place,
            tokens: all.len(),
            kl: Estimate::of_mean(&means),
            kl_p95: (!all.is_empty()).then(|| quantile(&all, 95.0)),
            rows: found.rows,
            engaged: (found.rows > 0).then(|| found.engaged as f64 / found.rows as f64),
        }
    };
    (!places.is_empty()).then(|| places.into_iter().map(summary).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doses_are_told_apart_by_prompt_and_position() {
        let record = |prompt: &str, first, kl: &[f32], engaged: &str| Record::Dose {
            arm: Arm::Capped,
            prompt: prompt.into(),
            question: 0,
            first,
            kl: kl.into(),
            engaged: engaged.into(),
        };
        let records = [record("none", 0, &[4.0, 2.0], "1001"), record("warm", 15, &[0.0, 1.0], "0")];
        let found = dose(records.iter()).unwrap();
        let place = |place: DosePlace| found.iter().find(|dose| dose.place == place).unwrap();
        let all = place(DosePlace::All);
        assert_eq!((all.tokens, all.rows, all.engaged), (4, 5, Some(0.4)));
        assert_eq!(all.kl.unwrap().value, 1.75);
        assert_eq!(place(DosePlace::SystemPrompt("none".into())).kl.unwrap().value, 3.0);
        let first = place(DosePlace::Positions(0, Some(0)));
        assert_eq!((first.tokens, first.rows, first.engaged), (1, 2, Some(0.5)));
        assert_eq!(place(DosePlace::Positions(1, Some(15))).tokens, 2);
        assert_eq!(place(DosePlace::Positions(16, Some(63))).engaged, None);
        assert_eq!(dose([].iter()), None);
    }
}
