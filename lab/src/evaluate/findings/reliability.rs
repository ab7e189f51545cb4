//! How often wrong answers are more likely than right ones.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::record::{Condition, Record};
use super::measure::{Measure, Units};

/// What became of factual questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reliability {
    /// By condition: `errors` (share of the facts whose wrong answer is at least as likely as the right one) and
    /// `margin` (natural logarithm of the ratio of both probabilities). By condition but the plain one:
    /// `amplification` (errors there minus errors when asked plainly, fact by fact) and `margin lost` (the plain
    /// margin minus the one there).
    pub measures: Vec<Measure>,
}

/// Summarises facts. `None` without any.
pub(super) fn reliability<'r>(records: impl Iterator<Item = &'r Record>) -> Option<Reliability> {
    let mut conditions = BTreeMap::new();
    for record in records {
        if let Record::Fact { arm, id, condition, right, wrong } = record {
            let (errors, margins) =
                conditions.entry(*condition).or_insert_with(|| (Units::events(), Units::numbers()));
            errors.put(*arm, id, f64::from(wrong >= right));
            margins.put(*arm, id, f64::from(*right) - f64::from(*wrong));
        }
    }
    if conditions.is_empty() {
        return None;
    }
    let mut measures = Vec::new();
    for condition in Condition::ALL {
        let Some((errors, margins)) = conditions.get(&condition) else { continue };
        measures.extend(errors.measure("errors", condition.name()));
        measures.extend(margins.measure("margin", condition.name()));
        if let Some((plain_errors, plain_margins)) =
            conditions.get(&Condition::Plain).filter(|_| condition != Condition::Plain)
        {
            measures.extend(errors.minus(plain_errors).measure("amplification", condition.name()));
            measures.extend(plain_margins.minus(margins).measure("margin lost", condition.name()));
        }
    }
    Some(Reliability { measures })
}

#[cfg(test)]
mod tests {
    use super::super::super::arm::Arm;
    use super::*;

    #[test]
    fn amplification_is_that_of_each_fact() {
        let mut records = Vec::new();
        for (id, plain, sad, capped_sad) in
            [("a", 1.0, -1.0, 1.0), ("b", 2.0, 1.0, 1.0), ("c", -1.0, -1.0, -1.0), ("d", 3.0, 0.0, 0.5)]
        {
            for (arm, condition, margin) in [
                (Arm::Uncapped, Condition::Plain, plain),
                (Arm::Uncapped, Condition::Sad, sad),
                (Arm::Capped, Condition::Plain, plain),
                (Arm::Capped, Condition::Sad, capped_sad),
            ] {
                let (right, wrong) = (-10.0, -10.0 - margin);
                records.push(Record::Fact { arm, id: id.into(), condition, right, wrong });
            }
        }
        let found = reliability(records.iter()).unwrap();
        let measure = |name: &str, of: &str| {
            found.measures.iter().find(|measure| measure.name == name && measure.of == of).unwrap()
        };
        assert_eq!(measure("errors", "plain").arms[&Arm::Uncapped].value, 0.25);
        // Equal likelihoods are no knowledge: d counts.
        assert_eq!(measure("errors", "sad").arms[&Arm::Uncapped].value, 0.75);
        let amplification = measure("amplification", "sad");
        assert_eq!(amplification.arms[&Arm::Uncapped].value, 0.5);
        assert_eq!(amplification.capped_minus_uncapped.unwrap().value, -0.5);
        assert_eq!(measure("margin lost", "sad").arms[&Arm::Uncapped].value, 1.5);
        assert!(reliability([].iter()).is_none());
    }
}
