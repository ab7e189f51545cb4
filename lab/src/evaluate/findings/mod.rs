//! What the records of an evaluation say.

mod capability;
mod consistency;
mod dose;
mod drift;
mod measure;
mod pair;
mod reliability;
mod statement;

use serde::Serialize;

pub use self::capability::Capability;
pub use self::consistency::Consistency;
pub use self::dose::{Dose, DosePlace};
pub use self::drift::{ArmTurns, Drift};
pub use self::measure::Measure;
pub use self::pair::{Pair, PairKind, pairs};
pub use self::reliability::Reliability;
pub use self::statement::{Statement, StatementKind};
use super::Suite;
use super::arm::Arm;
use super::material::Material;
use super::record::{Header, Record, Records};

/// What the records of an evaluation say. Computed from them alone: the same records give the same findings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// What was evaluated, and how.
    pub header: Header,
    /// The controls.
    pub controls: Vec<Control>,
    /// Conversations.
    pub drift: Option<Drift>,
    /// Factual questions.
    pub reliability: Option<Reliability>,
    /// Questions that were asked early and late.
    pub consistency: Option<Consistency>,
    /// Texts and multiple choice.
    pub capability: Option<Capability>,
    /// How much the distributions of the next tokens change.
    pub dose: Option<Vec<Dose>>,
    /// What all this says, in plain words.
    pub statements: Vec<Statement>,
}

/// Caps on random directions, and how well their dose was matched.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Control {
    /// Its arm.
    pub arm: Arm,
    /// Mean KL(capped || uncapped) per token of the caps, in nats.
    pub wanted_kl: f32,
    /// That of the control.
    pub kl: f32,
    /// Tokens that both are over.
    pub tokens: usize,
}

impl Findings {
    /// Computes what records say. The material is that of [`Evaluation::material`](super::Evaluation::material).
    #[must_use]
    pub fn of(material: &Material, records: &Records) -> Self {
        let control = |record: &Record| match record {
            &Record::Control { arm, wanted_kl, kl, tokens, .. } => {
                Some(Control { arm, wanted_kl, kl, tokens })
            }
            _ => None,
        };
        let mut findings = Self {
            header: records.header().clone(),
            controls: records.all().filter_map(control).collect(),
            drift: drift::drift(material, records.all()),
            reliability: reliability::reliability(records.all()),
            consistency: consistency::consistency(material, records.all()),
            capability: capability::capability(records.all()),
            dose: dose::dose(records.all()),
            statements: Vec::new(),
        };
        findings.statements = statement::statements(&findings, material);
        findings
    }

    /// Returns all measures, with their suites.
    pub fn measures(&self) -> impl Iterator<Item = (Suite, &Measure)> {
        let suites = [
            (Suite::Drift, self.drift.as_ref().map(|drift| &drift.measures)),
            (Suite::Reliability, self.reliability.as_ref().map(|reliability| &reliability.measures)),
            (Suite::Consistency, self.consistency.as_ref().map(|consistency| &consistency.measures)),
            (Suite::Capability, self.capability.as_ref().map(|capability| &capability.measures)),
        ];
        suites
            .into_iter()
            .flat_map(|(suite, measures)| measures.into_iter().flatten().map(move |measure| (suite, measure)))
    }

    /// Returns a measure.
    #[must_use]
    pub fn measure(&self, suite: Suite, name: &str, of: &str) -> Option<&Measure> {
        let is_it = |measure: &Measure| measure.name == name && measure.of == of;
        self.measures().find(|(found, measure)| *found == suite && is_it(measure)).map(|(_, measure)| measure)
    }
}
