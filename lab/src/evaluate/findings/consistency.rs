//! Whether a question is answered alike early and late in a conversation.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::super::arm::Arm;
use super::super::material::Material;
use super::super::record::Record;
use super::measure::{Measure, Units};
use super::pair::PairKind;

/// How alike early and late answers are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Consistency {
    /// For each kind of pairs that a judge scored: `judged` (its mean score over a conversation, from 0 to 3). By
    /// domain and by subject of the probes, and for `all`: `agreement` (share of a conversation's probes whose most
    /// likely option is the same early and late) and `distance` (mean total variation distance between the
    /// distributions over the options, from 0 to 1).
    pub measures: Vec<Measure>,
}

/// The probes of a conversation in an arm.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    probes: usize,
    agreed: usize,
    distance: f64,
}

/// Summarises probes. `None` without any.
pub(super) fn consistency<'r>(
    material: &Material,
    records: impl Iterator<Item = &'r Record> + Clone,
) -> Option<Consistency> {
    let mut sums = BTreeMap::<(String, &str, Arm), Sums>::new();
    for record in records.clone() {
        let Record::Probe { arm, conversation, id, early, late } = record else { continue };
        let Some(script) = material.conversations.iter().find(|script| script.id == *conversation) else {
            continue;
        };
        let subject = material.probes.iter().find(|probe| probe.id == *id).map(|probe| probe.subject.clone());
        let of = [Some("all".into()), Some(script.domain.clone()), subject.map(|it| format!("about {it}"))];
        let (early, late) = (shares(early), shares(late));
        let distance: f64 = early.iter().zip(&late).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0;
        let is_agreed = most_likely(&early) == most_likely(&late);
        for of in of.into_iter().flatten() {
            let sum = sums.entry((of, conversation.as_str(), *arm)).or_default();
            sum.probes += 1;
            sum.agreed += usize::from(is_agreed);
            sum.distance += distance;
        }
    }
    let mut measures = judged(records.clone());
    if sums.is_empty() && measures.is_empty() {
        return None;
    }
    let mut names: Vec<&String> = sums.keys().map(|(of, ..)| of).collect();
    names.dedup();
    for name in names {
        let (mut agreement, mut distance) = (Units::shares(), Units::shares());
        for ((_, conversation, arm), sum) in sums.iter().filter(|((of, ..), _)| of == name) {
            agreement.put(*arm, *conversation, sum.agreed as f64 / sum.probes as f64);
            distance.put(*arm, *conversation, sum.distance / sum.probes as f64);
        }
        measures.extend(agreement.measure("agreement", name));
        measures.extend(distance.measure("distance", name));
    }
    Some(Consistency { measures })
}

/// Summarises the scores of judges: by kind of pairs, and by judge where there are several.
fn judged<'r>(records: impl Iterator<Item = &'r Record>) -> Vec<Measure> {
    let mut sums = BTreeMap::<(PairKind, &str), BTreeMap<(Arm, &str), (f64, f64)>>::new();
    for record in records {
        if let Record::Judged { arm, conversation, kind, score, by, .. } = record {
            let sums = sums.entry((*kind, by.as_str())).or_default();
            let sum = sums.entry((*arm, conversation.as_str())).or_default();
            *sum = (sum.0 + f64::from(*score), sum.1 + 1.0);
        }
    }
    let judges: BTreeSet<&str> = sums.keys().map(|(_, by)| *by).collect();
    let mut measures = Vec::new();
    for ((kind, by), sums) in &sums {
        let mut units = Units::numbers();
        for ((arm, conversation), (sum, count)) in sums {
            units.put(*arm, *conversation, sum / count);
        }
        let by = if judges.len() > 1 { format!(", {by}") } else { String::new() };
        measures.extend(units.measure("judged", kind.name().to_owned() + &by));
    }
    measures
}

/// Returns the share of each option of their common probability.
fn shares(log_likelihoods: &[f32]) -> Vec<f64> {
    let most = log_likelihoods.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        log_likelihoods.iter().map(|&likelihood| (f64::from(likelihood) - f64::from(most)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

pub(super) fn most_likely<T: PartialOrd>(options: &[T]) -> Option<usize> {
    let better = |best: usize, index: usize| if options[index] > options[best] { index } else { best };
    (0..options.len()).reduce(better)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Size;

    #[test]
    fn agreement_is_that_of_the_most_likely_option() {
        assert_eq!(shares(&[-1000.0, -1000.0]), [0.5, 0.5]);
        assert_eq!(most_likely(&[0.1, 0.7, 0.7]), Some(1));
        let material = Material::builtin().cut(&Size::QUICK);
        let (script, probes) = (&material.conversations[0], &material.probes[..2]);
        let ln = |shares: [f32; 2]| shares.map(f32::ln).to_vec();
        let record = |probe: usize, early, late| Record::Probe {
            arm: Arm::Uncapped,
            conversation: script.id.clone(),
            id: probes[probe].id.clone(),
            early: ln(early),
            late: ln(late),
        };
        let records = [record(0, [0.8, 0.2], [0.6, 0.4]), record(1, [0.8, 0.2], [0.2, 0.8])];
        let found = consistency(&material, records.iter()).unwrap();
        let value = |name: &str, of: &str| {
            let measure = found.measures.iter().find(|measure| measure.name == name && measure.of == of);
            measure.unwrap().arms[&Arm::Uncapped].value
        };
        assert_eq!((value("agreement", "all"), value("agreement", &script.domain)), (0.5, 0.5));
        assert!((value("distance", "all") - 0.4).abs() < 1e-6);
        assert!(consistency(&material, [].iter()).is_none());
    }

    #[test]
    fn judged_pairs_have_a_mean_per_conversation() {
        let record = |conversation: &str, second_turn, score, by: &str| Record::Judged {
            arm: Arm::Capped,
            conversation: conversation.into(),
            kind: PairKind::LineToLine,
            first_turn: 1,
            second_turn,
            score,
            by: by.into(),
        };
        let one = [record("a", 2, 3, "x"), record("a", 3, 0, "x"), record("b", 2, 2, "x")];
        let measures =
            |records: &[Record]| consistency(&Material::builtin(), records.iter()).unwrap().measures;
        let found = measures(&one);
        assert_eq!((found.len(), found[0].of.as_str()), (1, "line-to-line"));
        assert_eq!(found[0].arms[&Arm::Capped].value, 1.75);
        // Judges are not mixed.
        let two = [&one[..], &[record("a", 2, 0, "y")]].concat();
        let found = measures(&two);
        let values = found.iter().map(|one| (one.of.as_str(), one.arms[&Arm::Capped].value));
        assert_eq!(values.collect::<Vec<_>>(), [("line-to-line, x", 1.75), ("line-to-line, y", 0.0)]);
    }
}
