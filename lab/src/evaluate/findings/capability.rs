//! What the model can do: texts and multiple choice.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::record::Record;
use super::consistency::most_likely;
use super::measure::{Measure, Units};

/// How well texts are predicted and questions answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Capability {
    /// By text: `nats per token` (the logarithm of the perplexity; the units are pieces of at most 512 tokens). For
    /// `choices`: `right` (share of the questions whose right option is the most likely one) and `lead` (logarithm of
    /// the ratio of its probability and that of the likeliest wrong one).
    pub measures: Vec<Measure>,
    /// Mean share of right answers by chance.
    pub chance: Option<f64>,
}

/// Summarises texts and choices. `None` without any.
pub(super) fn capability<'r>(records: impl Iterator<Item = &'r Record>) -> Option<Capability> {
    let (mut texts, mut order) = (BTreeMap::<&str, Units>::new(), Vec::new());
    let (mut rights, mut leads) = (Units::events(), Units::numbers());
    let mut chances = BTreeMap::new();
    for record in records {
        match record {
            Record::Piece { arm, text, piece, tokens, log_likelihood } if *tokens > 0 => {
                if !order.contains(&text) {
                    order.push(text);
                }
                let nats = -f64::from(*log_likelihood) / *tokens as f64;
                texts.entry(text).or_insert_with(Units::numbers).put(*arm, format!("{piece:06}"), nats);
            }
            Record::Choice { arm, id, options, right } => {
                rights.put(*arm, id, f64::from(most_likely(options) == Some(*right)));
                let wrong = options.iter().enumerate().filter(|(index, _)| index != right);
                let wrong = wrong.map(|(_, &likelihood)| likelihood).fold(f32::NEG_INFINITY, f32::max);
                leads.put(*arm, id, f64::from(options[*right]) - f64::from(wrong));
                chances.insert(id, 1.0 / options.len() as f64);
            }
            _ => {}
        }
    }
    let mut measures = Vec::new();
    for text in order {
        measures.extend(texts.get(text.as_str()).and_then(|units| units.measure("nats per token", text)));
    }
    measures.extend(rights.measure("right", "choices"));
    measures.extend(leads.measure("lead", "choices"));
    let chance = (!chances.is_empty()).then(|| chances.values().sum::<f64>() / chances.len() as f64);
    (!measures.is_empty()).then_some(Capability { measures, chance })
}

#[cfg(test)]
mod tests {
    use super::super::super::arm::Arm;
    use super::*;

    #[test]
    fn texts_and_choices_are_summarised() {
        let piece = |piece, tokens, log_likelihood| Record::Piece {
            arm: Arm::Capped,
            text: "prose".into(),
            piece,
            tokens,
            log_likelihood,
        };
        let choice = |id: &str, options: &[f32], right| Record::Choice {
            arm: Arm::Capped,
            id: id.into(),
            options: options.into(),
            right,
        };
        let records = [
            piece(0, 100, -300.0),
            piece(1, 50, -50.0),
            choice("a", &[-1.0, -3.0, -2.0], 0),
            choice("b", &[-1.0, -3.0], 1),
        ];
        let found = capability(records.iter()).unwrap();
        let value = |name: &str| {
            found.measures.iter().find(|measure| measure.name == name).unwrap().arms[&Arm::Capped].value
        };
        assert_eq!((value("nats per token"), value("right"), value("lead")), (2.0, 0.5, -0.5));
        assert_eq!(found.chance, Some((1.0 / 3.0 + 0.5) / 2.0));
        assert!(capability([].iter()).is_none());
    }
}
