//! How strong the caps are: their dose on text that they should leave as it is, and that of their control.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use axiscap::CapSet;
use axiscap_lab::calibrate::{Budget, Setting, strongest};
use axiscap_lab::dose::{Dose, Doses, GivenText, Sample, random_caps};
use axiscap_llama::Model;
use clap::builder::RangedU64ValueParser;

use crate::answers::Answers;
use crate::input;
use crate::interrupt::Catch;
use crate::output::{self, file_name};

/// A rise of a text's perplexity above which there is a warning, as a share.
const STRONG: f64 = 0.1;

/// Options about doses.
#[derive(Debug, clap::Args)]
pub(super) struct DoseArgs {
    /// Find the highest floors, up to --percentile, under which the 95th percentile of KL(capped || uncapped) per
    /// token, on default answers that are held out, is at most so many nats
    #[arg(long, value_name = "NATS", value_parser = positive)]
    max_kl: Option<f64>,

    /// Find the highest floors, up to --percentile, under which no text's perplexity rises by more than so many per
    /// cent
    #[arg(long, value_name = "PERCENT", value_parser = positive)]
    max_perplexity: Option<f64>,

    /// Texts whose perplexity is measured capped and uncapped, of each the first 2048 tokens. May be repeated
    /// [default: 512 tokens each of prose, science and code that are built in]
    #[arg(long = "text", value_name = "FILE")]
    texts: Vec<PathBuf>,

    /// Random directions that the caps are compared with: the dose of pushing rows as far along them
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = RangedU64ValueParser::<usize>::new().range(0..=100))]
    random_directions: usize,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|&number: &f64| number > 0.0 && number.is_finite());
    number.ok_or_else(|| "it must be a number above 0".into())
}

impl DoseArgs {
    /// Returns the budget.
    pub(super) fn budget(&self) -> Budget {
        Budget { kl: self.max_kl, perplexity: self.max_perplexity.map(|percent| percent / 100.0) }
    }

    /// Returns the options as they are written on a command line, without folders.
    pub(super) fn words(&self) -> String {
        let mut words = String::new();
        for (flag, number) in [("--max-kl", self.max_kl), ("--max-perplexity", self.max_perplexity)] {
            if let Some(number) = number {
                words += &format!(" {flag} {number}");
            }
        }
        for path in &self.texts {
            words += &format!(" --text {}", file_name(path));
        }
        words + &format!(" --random-directions {}", self.random_directions)
    }

    /// Returns what doses are measured on.
    pub(super) fn sample(&self, model: &Model, answers: &Answers) -> Result<Sample> {
        const PIECES: usize = 4;
        let text = |path: &PathBuf| {
            let text = input::text_file(path)?;
            Ok(GivenText::cut(model, &file_name(path), &text, PIECES)?)
        };
        let texts = if self.texts.is_empty() {
            GivenText::builtin(model, 1)?
        } else {
            self.texts.iter().map(text).collect::<Result<_>>()?
        };
        let answers: Vec<_> =
            answers.held_out.iter().filter(|answer| !answer.response.is_empty()).cloned().collect();
        ensure!(
            self.max_kl.is_none() || !answers.is_empty(),
            "--max-kl: the answers have none that are held out; generate them again with --held-out-answers 16"
        );
        Ok(Sample { answers, texts })
    }
}

/// What doses are measured with.
pub(super) struct Dosing<'a> {
    pub(super) args: &'a DoseArgs,
    pub(super) model: &'a Model,
    pub(super) compute: &'a axiscap_lab::ComputeOptions,
    pub(super) answers: &'a Answers,
    pub(super) sample: Sample,
    pub(super) caught: &'a Catch,
}

impl Dosing<'_> {
    /// Finds the strongest caps, up to a percentile, whose doses are within the budget.
    pub(super) fn strongest(
        &self,
        percentile: f64,
        caps: impl Fn(Setting) -> Result<CapSet>,
    ) -> Result<(Setting, Doses)> {
        let budget = self.args.budget();
        // The texts that the budget is about. The rest is measured once.
        let relevant = Sample {
            answers: self.sample.answers.iter().filter(|_| budget.kl.is_some()).cloned().collect(),
            texts: self.sample.texts.iter().filter(|_| budget.perplexity.is_some()).cloned().collect(),
        };
        let mut last = None;
        let setting = strongest(percentile, |setting| {
            if budget.is_unlimited() {
                return Ok(true);
            }
            let doses = self.doses(&relevant, &caps(setting)?)?;
            let is_within = budget.allows(&doses);
            last = Some((setting, doses));
            anyhow::Ok(is_within)
        })?;
        let Some(setting) = setting else {
            let (setting, doses) = last.expect("the weakest setting was measured");
            return Err(anyhow::anyhow!(
                "even at percentile {} with strength {} the caps are beyond the budget: {}; allow more with --max-kl or --max-perplexity, or cap fewer blocks with --blocks",
                setting.percentile,
                setting.strength,
                within_words(&doses)
            ));
        };
        Ok((setting, self.doses(&self.sample, &caps(setting)?)?))
    }

    fn doses(&self, sample: &Sample, caps: &CapSet) -> Result<Doses> {
        self.answers.measured("texts compared", sample.len(), self.caught, |go_on| {
            sample.doses(self.model, caps, self.compute, go_on)
        })
    }

    /// Returns the doses of caps on random directions, on the held-out answers.
    pub(super) fn control(&self, caps: &CapSet) -> Result<Vec<Dose>> {
        let sample = Sample { answers: self.sample.answers.clone(), texts: Vec::new() };
        if sample.is_empty() || self.args.random_directions == 0 {
            return Ok(Vec::new());
        }
        let first = u64::from(self.answers.header.seed);
        let seeds = (first..).take(self.args.random_directions);
        let controls = self.answers.measured("answers projected", sample.len(), self.caught, |go_on| {
            random_caps(self.model, &sample.answers, caps, seeds, self.compute, go_on)
        })?;
        let mut found = Vec::new();
        for control in &controls {
            found.extend(self.doses(&sample, control)?.answers);
        }
        Ok(found)
    }
}

fn within_words(doses: &Doses) -> String {
    let answers = doses.answers.iter().map(|dose| format!("KL {:.4} on held-out answers", dose.kl.p95));
    let texts = doses
        .texts
        .iter()
        .map(|(name, dose)| format!("perplexity {:+.1} % on {name}", 100.0 * dose.perplexity_rise()));
    answers.chain(texts).collect::<Vec<_>>().join(", ")
}

/// Returns a warning if the caps change a text much.
pub(super) fn warning(doses: &Doses) -> Option<String> {
    let (name, dose) = doses
        .texts
        .iter()
        .max_by(|a, b| a.1.perplexity_rise().total_cmp(&b.1.perplexity_rise()))
        .filter(|(_, dose)| dose.perplexity_rise() > STRONG)?;
    Some(format!(
        "the caps raise the perplexity of {name} by {:.0} %: a strong dose; --max-perplexity 3 finds floors that leave such text nearly as it is",
        100.0 * dose.perplexity_rise()
    ))
}

/// Says what is not measured because no answers are held out.
pub(super) fn note_if_missing(sample: &Sample) {
    if sample.answers.is_empty() {
        output::note(
            "[the answers have none that are held out, so the dose is measured on texts only; --held-out-answers generates some]",
        );
    }
}
