//! Evaluation: what caps do to a model, with controls.
//!
//! Everything is asked in several [arms](Arm): uncapped, capped, and under caps on random directions that change the
//! distributions of the next tokens as much ([`Suite`]). The arms get the same questions and the same seeds, and are
//! compared in pairs.
//!
//! An [`Evaluation`] is a list of jobs. Each one begins with an empty context and gives [records](Record), so that
//! the records are the same whether or not the work was stopped in between. [`Findings`] are computed from records
//! alone.

mod arm;
mod ask;
mod control;
mod findings;
mod job;
mod judged;
mod material;
mod reading;
mod record;
mod size;
mod talk;

use std::ops::ControlFlow;

use axiscap::{BlockCap, CapSet};
use axiscap_llama::{ChatTemplate, Message, Role};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub use self::arm::Arm;
pub use self::findings::{
    ArmTurns, Capability, Consistency, Control, Dose, DosePlace, Drift, Findings, Measure, Pair, PairKind,
    Reliability, Statement, StatementKind, pairs,
};
pub use self::job::Job;
pub use self::judged::judge_pairs;
pub use self::material::{Choice, DosePrompts, Fact, Material, NamedPrompt, Probe, Script};
pub use self::record::{Answer, Condition, Header, Record, Records, TurnReading};
pub use self::size::Size;
use crate::compute::ComputeOptions;
use crate::error::Error;

/// What is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// How far answers drift from the axis over scripted conversations.
    Drift,
    /// How often wrong answers are more likely than right ones: asked plainly, by a sad user, by one who believes the
    /// wrong answer, by one who does both, and under a warm persona (after arXiv 2507.21919).
    Reliability,
    /// Whether a question is answered alike early and late in a conversation (after arXiv 2511.00222).
    Consistency,
    /// Perplexity of texts, and multiple choice.
    Capability,
    /// How much the distributions of the next tokens change, and where.
    Dose,
}

impl Suite {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Drift, Self::Reliability, Self::Consistency, Self::Capability, Self::Dose];

    /// Returns its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drift => "drift",
            Self::Reliability => "reliability",
            Self::Consistency => "consistency",
            Self::Capability => "capability",
            Self::Dose => "dose",
        }
    }
}

/// What is evaluated, and how.
#[derive(Debug)]
pub struct Evaluation<'a> {
    template: &'a ChatTemplate<'a>,
    caps: &'a CapSet,
    /// Index of the cap whose axis is watched.
    watched: usize,
    material: Material,
    texts: Vec<crate::dose::GivenText>,
    size: Size,
    temperature: f32,
    seed: u32,
    compute: ComputeOptions,
}

/// How an evaluation is done.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationOptions {
    /// Index of the cap whose axis is watched.
    pub watched: usize,
    /// How much is asked.
    pub size: Size,
    /// Sampling temperature of the answers.
    pub temperature: f32,
    /// Seed of the answers and of the random directions.
    pub seed: u32,
    /// How llama.cpp computes.
    pub compute: ComputeOptions,
}

impl<'a> Evaluation<'a> {
    /// Prepares an evaluation. The perplexity is that of `texts`.
    ///
    /// # Panics
    /// If the watched cap is not there.
    #[must_use]
    pub fn new(
        template: &'a ChatTemplate<'a>,
        caps: &'a CapSet,
        material: Material,
        texts: Vec<crate::dose::GivenText>,
        options: EvaluationOptions,
    ) -> Self {
        let EvaluationOptions { watched, size, temperature, seed, compute } = options;
        assert!(watched < caps.caps().len(), "the watched cap is one of the caps");
        let material = material.cut(&size);
        let size = size.of(&material);
        Self { template, caps, watched, material, texts, size, temperature, seed, compute }
    }

    /// Returns the material that is asked.
    #[must_use]
    pub fn material(&self) -> &Material {
        &self.material
    }

    /// Returns the header of its records. `compute` says how llama.cpp computes, where it is not by default.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn header(&self, tool: String, compute: String) -> Result<Header, Error> {
        let model = self.template.model();
        let messages = [Message::new(Role::System, "s"), Message::new(Role::User, "u")];
        let rendered = self.template.render(&messages, true)?;
        let watched = self.watched();
        Ok(Header {
            version: record::VERSION,
            tool,
            architecture: model.shape().architecture.clone(),
            model: model.name().unwrap_or_default().into(),
            blocks: model.shape().blocks,
            width: model.shape().width,
            file_type: model.metadata("general.file_type").and_then(|number| number.parse().ok()),
            caps_sha256: digest(self.caps),
            block: watched.block,
            floor: Some(watched.cap.bound().lo()).filter(|floor| floor.is_finite()),
            material_sha256: self.material_and_texts(),
            template_sha256: format!("{:x}", Sha256::digest(rendered.text())),
            size: self.size,
            seed: self.seed,
            temperature: self.temperature,
            compute,
        })
    }

    fn material_and_texts(&self) -> String {
        let mut all = Sha256::new();
        all.update(self.material.sha256());
        for text in &self.texts {
            all.update(format!("{:?}", text.pieces));
        }
        format!("{:x}", all.finalize())
    }

    fn watched(&self) -> &BlockCap {
        &self.caps.caps()[self.watched]
    }

    /// Returns the jobs of some suites, in the order in which they can be run.
    #[must_use]
    pub fn jobs(&self, suites: &[Suite]) -> Vec<Job> {
        job::jobs(self, suites)
    }

    /// Runs a job. `records` has those of the jobs before it. `go_on` is called after every batch with a number up to
    /// [`Job::steps`]. Returns `None` if it asked to stop.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`] and [`Context::decode`](axiscap_llama::Context::decode), the hook's for caps
    /// of another model, [`Error::ConversationTooLong`], [`Error::Logits`], [`Error::NonFinite`].
    pub fn run(
        &self,
        job: &Job,
        records: &Records,
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Record>>, Error> {
        job::run(self, job, records, go_on)
    }
}

#[cfg(test)]
pub(crate) use record::tests::header as test_header;

/// Returns the SHA-256 of caps: their axes, bounds, strengths and policy.
fn digest(caps: &CapSet) -> String {
    let mut all = Sha256::new();
    for BlockCap { block, cap } in caps.caps() {
        all.update((*block as u64).to_le_bytes());
        for number in [cap.bound().lo(), cap.bound().hi(), cap.strength()] {
            all.update(number.to_le_bytes());
        }
        cap.axis().values().iter().for_each(|value| all.update(value.to_le_bytes()));
    }
    all.update(format!("{:?}", caps.policy()));
    format!("{:x}", all.finalize())
}
