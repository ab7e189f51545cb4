//! The model's answers, generated or read: the input of `axiscap extract` and `axiscap calibrate`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use axiscap_lab::ComputeOptions;
use axiscap_lab::rollout::{
    Fault, FaultCounts, Generator, Group, Plan, PlanSize, Rollout, RolloutHeader, RolloutOptions,
    RolloutPart, Rollouts, sift,
};
use axiscap_llama::Model;
use clap::builder::RangedU64ValueParser;
use serde_json::Value;

use crate::bos::{self, Writer};
use crate::interrupt::{self, Catch};
use crate::model::{self, LoadArgs};
use crate::output::{self, file_name, tool};
use crate::progress::Progress;
use crate::sampling::Seed;
use crate::template::{self, TemplateArgs};
use crate::{input, remedy, sampling};

mod judging;
mod reuse;

use judging::{JudgeArgs, Judging};

/// Seed of the answers by default.
const SEED: u32 = 1;

/// Returns where answers are kept while they are generated for `out`.
pub(crate) fn part_file(rollouts: Option<&Path>, out: &Path) -> PathBuf {
    let (path, suffix) = match rollouts {
        Some(path) => (path, ".part"),
        None => (out, ".answers.part"),
    };
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A number of answers. `None` is all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number(Option<usize>);

fn number_or_all(text: &str) -> Result<Number, String> {
    if text == "all" {
        return Ok(Number(None));
    }
    let number = text.parse().ok().filter(|&number: &usize| number > 0);
    number.map(|number| Number(Some(number))).ok_or_else(|| "expected a number from 1 on, or all".into())
}

/// Returns a number of answers as `number_or_all` reads it.
fn written(number: Option<usize>) -> String {
    number.map_or("all".into(), |number| number.to_string())
}

/// A fault that leaves no answer out, or all faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    All,
    One(Fault),
}

fn fault(text: &str) -> Result<Kept, String> {
    let names = || Fault::ALL.map(Fault::name).join(", ");
    let found = Fault::ALL.into_iter().find(|fault| fault.name() == text).map(Kept::One);
    found
        .or((text == "all").then_some(Kept::All))
        .ok_or_else(|| format!("expected some of {}, or all", names()))
}

/// The model and its answers.
#[derive(Debug, clap::Args)]
pub(crate) struct AnswersArgs {
    #[command(flatten)]
    model: LoadArgs,

    /// The answers (JSON lines): read if the file exists, else generated and written to it. Answers in
    /// progress are kept in FILE.part (without this option beside --out): a run that was stopped continues
    /// from there
    #[arg(long, value_name = "FILE.jsonl")]
    rollouts: Option<PathBuf>,

    /// Roles and neutral system prompts (JSON) instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    roles: Option<PathBuf>,

    /// Questions, one a line, instead of the built-in ones. A line in [brackets] begins a style
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,

    /// Traits (JSON) whose axes are compared with the Assistant's
    #[arg(long, value_name = "FILE")]
    traits: Option<PathBuf>,

    /// Answers per role, and per side of a trait, spread evenly over its system prompts and the styles of
    /// questions; all is every question under every system prompt [default: 4]
    #[arg(long, value_name = "N", value_parser = number_or_all)]
    answers_per_role: Option<Number>,

    /// Answers of the default Assistant, spread evenly over the neutral system prompts [default: 48]
    #[arg(long, value_name = "N", value_parser = number_or_all)]
    default_answers: Option<Number>,

    /// Answers of the default Assistant to questions of their own. Axes and floors are not made from them: they are
    /// for measuring what caps do [default: 16]
    #[arg(long, value_name = "N")]
    held_out_answers: Option<usize>,

    /// Use only the first N roles: for a quick trial
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit_roles: Option<usize>,

    /// Use only the first N questions: for a quick trial
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    limit_questions: Option<usize>,

    /// Maximum tokens of an answer [default: 160]
    #[arg(long, short = 'n', visible_aliases = ["n-predict", "predict"], value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    max_tokens: Option<usize>,

    /// Sampling temperature [default: 0.7]
    #[arg(long, visible_alias = "temperature", value_name = "T", value_parser = sampling::temperature)]
    temp: Option<f32>,

    /// Seed of the answers; -1 draws one and reports it [default: 1]
    #[arg(long, short = 's', value_name = "S", value_parser = sampling::seed)]
    seed: Option<Seed>,

    /// Answers generated side by side [default: 16]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=256))]
    slots: Option<usize>,

    /// Measure answers with these faults too, which are left out otherwise: empty, unfinished (thoughts), markup,
    /// other-turn, cut-off, role-ignored, or all
    #[arg(long, value_name = "FAULT,...", value_delimiter = ',', value_parser = fault)]
    keep: Vec<Kept>,

    #[command(flatten)]
    judge: JudgeArgs,

    #[command(flatten)]
    template: TemplateArgs,
}

/// Answers, and the file that keeps them until the command's output is written.
#[derive(Debug)]
pub(crate) struct Answers {
    /// The file that keeps them.
    place: PathBuf,
    pub(crate) header: RolloutHeader,
    /// Those that axes and floors are made from.
    pub(crate) rollouts: Vec<Rollout>,
    /// Those of the default Assistant that they are not made from.
    pub(crate) held_out: Vec<Rollout>,
    /// The faults of all.
    pub(crate) counts: FaultCounts,
    /// The number of all answers of each role.
    pub(crate) all_by_role: BTreeMap<String, usize>,
    part: Option<RolloutPart>,
}

impl Answers {
    /// Runs work over the answers, or as many other texts, that shows its progress and can be interrupted. `work`
    /// gets what it calls with the number of texts done, and returns `None` if that asked it to stop.
    ///
    /// # Errors
    /// Those of `work`. An interruption says where the answers are kept.
    pub(crate) fn measured<T>(
        &self,
        name: &'static str,
        count: usize,
        caught: &Catch,
        work: impl FnOnce(&mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<Option<T>, axiscap_lab::Error>,
    ) -> Result<T> {
        let progress = Progress::new(name, count);
        let done = work(&mut |done| {
            progress.set(done);
            caught.go_on()
        })?;
        let Some(done) = done else {
            progress.clear();
            let place = self.place.display();
            return Err(interrupt::error(&format!(
                "all answers are kept in {place}, and the same command measures them without generating them again"
            )));
        };
        progress.finish();
        Ok(done)
    }

    /// Returns how many answers have each fault, as JSON.
    pub(crate) fn faults(&self) -> Value {
        let name = |(fault, count): (&Fault, &usize)| (fault.name().to_owned(), (*count).into());
        Value::Object(self.counts.faults.iter().map(name).collect())
    }

    /// Removes the file. Call it after the command's output is written.
    pub(crate) fn done(self) {
        if let Some(part) = self.part {
            drop(part.finish());
        }
    }
}

impl AnswersArgs {
    /// Loads the model.
    pub(crate) fn load_model(&self) -> Result<Model> {
        self.model.load()
    }

    /// Reads the answers, or generates and keeps them, and has them judged.
    /// Ends with [`interrupt::end`] if there was a signal.
    pub(crate) fn answers(&self, model: &Model, out: &Path, caught: &Catch) -> Result<Answers> {
        let text = |path: &Option<PathBuf>| path.as_deref().map(input::text_file).transpose();
        let (roles, questions) = (text(&self.roles)?, text(&self.questions)?);
        let traits = text(&self.traits)?;
        let plan = Plan::from_texts(roles.as_deref(), questions.as_deref(), traits.as_deref())?;
        let whole = match self.rollouts.as_deref().filter(|path| path.exists()) {
            Some(path) => self.reuse(path, model, &plan),
            None => self.generate(
                model,
                plan.clone().limited(self.limit_roles, self.limit_questions),
                out,
                caught,
            ),
        };
        let mut answers = whole?;
        let compute = self.compute();
        let judging = Judging {
            model,
            template: &self.template,
            plan: &plan,
            compute: &compute,
            file: self.rollouts.as_deref(),
            keep: &self.kept(),
        };
        self.judge.judge(&judging, &mut answers, caught)?;
        self.sifted(answers)
    }

    /// Returns how llama.cpp computes.
    pub(crate) fn compute(&self) -> ComputeOptions {
        self.model.compute.options()
    }

    /// Returns the faults that leave no answer out.
    fn kept(&self) -> Vec<Fault> {
        let kept =
            |fault: &Fault| self.keep.iter().any(|k| matches!(k, Kept::All) || *k == Kept::One(*fault));
        Fault::ALL.into_iter().filter(kept).collect()
    }

    /// Leaves out answers that are not what they are taken for, and says how many.
    fn sifted(&self, mut answers: Answers) -> Result<Answers> {
        let place = answers.place.display().to_string();
        let all = std::mem::take(&mut answers.rollouts);
        // One that is cut off shows what caps do as well as any.
        let (held_out, all) = all.into_iter().partition(|rollout| rollout.group == Group::HeldOut);
        answers.held_out = held_out;
        for rollout in &all {
            if let Group::Role(name) = &rollout.group {
                *answers.all_by_role.entry(name.clone()).or_default() += 1;
            }
        }
        let sifted = sift(all, &self.kept())
            .map_err(|error| remedy::noted(error, format!("the answers are in {place}")));
        (answers.rollouts, answers.counts) = sifted?;
        let FaultCounts { answers: all, left_out, faults, keep } = &answers.counts;
        if !faults.is_empty() {
            let cut = if faults.contains_key(&Fault::CutOff) && keep.contains(&Fault::CutOff) {
                format!("; of those cut off, the first {} tokens are measured", answers.header.max_tokens)
            } else {
                String::new()
            };
            output::note(&format!("[of {all} answers {}; {left_out} left out{cut}]", answers.counts));
            if let Some(worst) = answers.counts.worst().filter(|_| left_out * 4 >= *all) {
                output::warning(&format!(
                    "{left_out} of {all} answers are left out, most of them {worst}: {}",
                    worst.remedy()
                ));
            }
        }
        Ok(answers)
    }

    fn generate(&self, model: &Model, plan: Plan, out: &Path, caught: &Catch) -> Result<Answers> {
        let seed = self.seed.map_or(SEED, |seed| seed.number);
        let drawn = self.seed.filter(|seed| seed.is_drawn);
        drawn.into_iter().for_each(Seed::report);
        let mut size = PlanSize::default();
        size.default = self.default_answers.map_or(size.default, |number| number.0);
        size.role = self.answers_per_role.map_or(size.role, |number| number.0);
        size.held_out = self.held_out_answers.unwrap_or(size.held_out);
        let requests = plan.requests(size, seed);
        let mut options = RolloutOptions::default();
        options.max_tokens = self.max_tokens.unwrap_or(options.max_tokens);
        options.slots = self.slots.unwrap_or(options.slots);
        options.sampling.temperature = self.temp.unwrap_or(options.sampling.temperature);
        options.compute = self.compute();
        let template = self.template.prepare(model)?;
        let used = self.template.options()?;
        let mut generator = Generator::new(&template, &requests, &options)?;
        generator.prompts().iter().any(|prompt| bos::check(model, prompt, Writer::Template));
        let shape = model.shape();
        let header = RolloutHeader {
            version: RolloutHeader::VERSION,
            tool: tool(),
            architecture: shape.architecture.clone(),
            model: model.name().unwrap_or_default().to_owned(),
            blocks: shape.blocks,
            width: shape.width,
            vocabulary: model.vocab_size(),
            roles_sha256: plan.roles_sha256,
            questions_sha256: plan.questions_sha256,
            traits_sha256: plan.traits_sha256,
            seed,
            temperature: options.sampling.temperature,
            max_tokens: options.max_tokens,
            chat_template: template::name(&used.source),
            default_system: used.default_system,
            thinking: used.thinking,
            template_variables: used.variables,
            template_date: template.date().map(Into::into),
            prompts_sha256: generator.prompts_sha256(),
            file_type: model::file_type(model),
            slots: options.slots,
            default_answers: size.default,
            answers_per_role: size.role,
            held_out_answers: size.held_out,
            limit_roles: self.limit_roles,
            limit_questions: self.limit_questions,
            answers: requests.len(),
            judge: None,
        };
        let place = part_file(self.rollouts.as_deref(), out);
        let mut part = RolloutPart::open(&place, &header, generator.group_size())?;
        if !part.kept().is_empty() {
            let (kept, all) = (part.kept().len(), requests.len());
            output::note(&format!("going on with {} ({kept} of {all} answers)", place.display()));
        }
        let progress = Progress::new("answers generated", requests.len());
        progress.set(part.kept().len());
        while part.kept().len() < requests.len() {
            let group = generator.group(part.kept().len(), |done| {
                progress.set(done);
                caught.go_on()
            });
            let failure = match group {
                Ok(Some(group)) => {
                    part.append(group)?;
                    continue;
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            progress.clear();
            let kept = part.kept().len();
            if kept == 0 {
                drop(part.finish());
                return Err(failure.map_or_else(
                    || interrupt::error("no group of answers was complete, so none are kept"),
                    Into::into,
                ));
            }
            let same = drawn.map_or(String::new(), |seed| format!(" with --seed {}", seed.number));
            let note = format!(
                "{kept} of {} answers are kept in {}, and the same command{same} continues from there",
                requests.len(),
                place.display()
            );
            return Err(match failure {
                Some(failure) => remedy::noted(failure, note),
                None => interrupt::error(&note),
            });
        }
        progress.finish();
        let rollouts = part.kept().to_vec();
        let (counts, all_by_role, held_out) = Default::default();
        let Some(path) = &self.rollouts else {
            return Ok(Answers { place, header, counts, all_by_role, rollouts, held_out, part: Some(part) });
        };
        let whole = Rollouts { header, rollouts };
        whole.write(path)?;
        drop(part.finish());
        let Rollouts { header, rollouts } = whole;
        Ok(Answers { place: path.clone(), header, counts, all_by_role, rollouts, held_out, part: None })
    }

    /// Returns the options that shaped the answers, for the origin of a file: without folders. They come from
    /// the header of the answers, because the command line may only name the file.
    pub(crate) fn command(&self, header: &RolloutHeader) -> String {
        let mut words = format!("--model {}", file_name(&self.model.model));
        for (flag, path) in [
            ("--rollouts", &self.rollouts),
            ("--roles", &self.roles),
            ("--questions", &self.questions),
            ("--traits", &self.traits),
        ] {
            if let Some(path) = path {
                words += &format!(" {flag} {}", file_name(path));
            }
        }
        for (flag, limit) in
            [("--limit-roles", header.limit_roles), ("--limit-questions", header.limit_questions)]
        {
            if let Some(limit) = limit {
                words += &format!(" {flag} {limit}");
            }
        }
        words += &format!(
            " --answers-per-role {} --default-answers {} --held-out-answers {}",
            written(header.answers_per_role),
            written(header.default_answers),
            header.held_out_answers
        );
        words += &template::words(header);
        let kept = self.kept();
        if !kept.is_empty() {
            words +=
                &format!(" --keep {}", kept.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(","));
        }
        let RolloutHeader { max_tokens, temperature, seed, slots, .. } = header;
        words += &format!(" --max-tokens {max_tokens} --temp {temperature} --seed {seed} --slots {slots}");
        words += &self.model.compute.words();
        words += &judging::words(header);
        words
    }
}
