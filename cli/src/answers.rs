//! The model's answers, generated or read: the input of `axiscap extract` and `axiscap calibrate`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use axiscap_lab::rollout::{
    Fault, FaultCounts, Generator, Plan, Rollout, RolloutHeader, RolloutOptions, RolloutPart, Rollouts, sift,
};
use axiscap_llama::{Model, Token};
use clap::builder::RangedU64ValueParser;
use serde_json::{Map, Value};

use crate::bos::{self, Writer};
use crate::interrupt::{self, Catch};
use crate::model::{self, GpuLayers};
use crate::output::{self, counted, file_name, tool};
use crate::progress::Progress;
use crate::sampling::Seed;
use crate::template::{self, TemplateArgs, switched};
use crate::{input, remedy, sampling};

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

/// The model and its answers.
#[derive(Debug, clap::Args)]
pub(crate) struct AnswersArgs {
    /// The model, a GGUF file
    #[arg(long, short = 'm', value_name = "FILE", env = "AXISCAP_MODEL")]
    pub(crate) model: PathBuf,

    /// The answers (JSON lines): read if the file exists, else generated and written to it. Answers in
    /// progress are kept in FILE.part (without this option beside --out): a run that was stopped continues
    /// from there
    #[arg(long, value_name = "FILE.jsonl")]
    rollouts: Option<PathBuf>,

    /// Roles and neutral system prompts (JSON) instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    roles: Option<PathBuf>,

    /// Questions, one a line, instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,

    /// Use only the first N roles: for a quick trial
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit_roles: Option<usize>,

    /// Use only the first N questions: for a quick trial
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    limit_questions: Option<usize>,

    /// Maximum tokens of an answer [default: 48]
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

    /// CPU threads
    #[arg(long, short = 't', value_name = "N", value_parser = model::thread_counts())]
    pub(crate) threads: Option<usize>,

    /// Layers on the GPU: a number, or all, or auto
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "N", value_parser = model::gpu_layers)]
    gpu_layers: Option<GpuLayers>,

    /// Measure all answers: also those without text, those that never leave their thoughts, and those with
    /// markup of the template or with somebody else's turn, which are left out otherwise
    #[arg(long)]
    keep_all_answers: bool,

    #[command(flatten)]
    template: TemplateArgs,
}

/// Answers, and the file that keeps them until the command's output is written.
#[derive(Debug)]
pub(crate) struct Answers {
    /// The file that keeps them.
    place: PathBuf,
    pub(crate) header: RolloutHeader,
    /// Those that are measured.
    pub(crate) rollouts: Vec<Rollout>,
    /// The faults of all.
    pub(crate) counts: FaultCounts,
    part: Option<RolloutPart>,
}

impl Answers {
    /// Ends a command that was cut short while it measured the answers.
    pub(crate) fn interrupted(&self) -> anyhow::Error {
        let place = self.place.display();
        interrupt::error(&format!(
            "all answers are kept in {place}, and the same command measures them without generating them again"
        ))
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
        model::load(&self.model, self.gpu_layers)
    }

    /// Reads the answers, or generates and keeps them.
    /// Ends with [`interrupt::end`] if there was a signal.
    pub(crate) fn answers(&self, model: &Model, out: &Path, caught: &Catch) -> Result<Answers> {
        let text = |path: &Option<PathBuf>| path.as_deref().map(input::text_file).transpose();
        let (roles, questions) = (text(&self.roles)?, text(&self.questions)?);
        let plan = Plan::from_texts(roles.as_deref(), questions.as_deref())?;
        let answers = match self.rollouts.as_deref().filter(|path| path.exists()) {
            Some(path) => self.reuse(path, model, &plan),
            None => self.generate(model, plan.limited(self.limit_roles, self.limit_questions), out, caught),
        };
        self.sifted(answers?)
    }

    /// Leaves out answers that are not what they are taken for, and says how many.
    fn sifted(&self, mut answers: Answers) -> Result<Answers> {
        let place = answers.place.display().to_string();
        if !self.keep_all_answers {
            let all = std::mem::take(&mut answers.rollouts);
            let sifted =
                sift(all).map_err(|error| remedy::noted(error, format!("the answers are in {place}")));
            (answers.rollouts, answers.counts) = sifted?;
        }
        let FaultCounts { answers: all, left_out, faults } = &answers.counts;
        if !faults.is_empty() {
            let kept = if self.keep_all_answers { "all are measured" } else { "left out" };
            let number = if self.keep_all_answers { String::new() } else { format!("{left_out} ") };
            let cut = if faults.contains_key(&Fault::CutOff) {
                format!("; of those cut off, the first {} tokens are measured", answers.header.max_tokens)
            } else {
                String::new()
            };
            output::note(&format!("[of {all} answers {}; {number}{kept}{cut}]", answers.counts));
            if let Some(worst) = answers.counts.worst().filter(|_| left_out * 10 >= *all) {
                output::warning(&format!(
                    "{left_out} of {all} answers are not what they are taken for, most of them {worst}: {}",
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
        let requests = plan.requests(seed);
        let mut options = RolloutOptions::default();
        options.max_tokens = self.max_tokens.unwrap_or(options.max_tokens);
        options.slots = self.slots.unwrap_or(options.slots);
        options.sampling.temperature = self.temp.unwrap_or(options.sampling.temperature);
        options.threads = self.threads;
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
            seed,
            temperature: options.sampling.temperature,
            max_tokens: options.max_tokens,
            chat_template: template::name(&used.source),
            default_system: used.default_system,
            thinking: used.thinking,
            template_variables: used.variables,
            template_date: template.date().map(Into::into),
            prompts_sha256: Some(generator.prompts_sha256()),
            file_type: model::file_type(model),
            slots: Some(options.slots),
            limit_roles: self.limit_roles,
            limit_questions: self.limit_questions,
            answers: Some(requests.len()),
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
        let Some(path) = &self.rollouts else {
            return Ok(Answers {
                place,
                header,
                counts: FaultCounts::of(&rollouts),
                rollouts,
                part: Some(part),
            });
        };
        let whole = Rollouts { header, rollouts };
        whole.write(path)?;
        drop(part.finish());
        let Rollouts { header, rollouts } = whole;
        Ok(Answers { place: path.clone(), header, counts: FaultCounts::of(&rollouts), rollouts, part: None })
    }

    /// Reads answers made before, if they are from this model and plan, made with the options given.
    fn reuse(&self, path: &Path, model: &Model, plan: &Plan) -> Result<Answers> {
        let Rollouts { header, rollouts } = Rollouts::read(path)?;
        let again = "remove the file to generate the answers again, or name another";
        let (shape, place) = (model.shape(), path.display());
        ensure!(
            header.shape() == *shape && header.vocabulary == model.vocab_size(),
            "{place}: these answers are from another model ({}, {} blocks, width {}, {} tokens; this one: {}, {}, {}, {}); {again}",
            header.architecture,
            header.blocks,
            header.width,
            header.vocabulary,
            shape.architecture,
            shape.blocks,
            shape.width,
            model.vocab_size()
        );
        for (what, found, expected) in [
            ("roles", &header.roles_sha256, &plan.roles_sha256),
            ("questions", &header.questions_sha256, &plan.questions_sha256),
        ] {
            ensure!(
                found == expected,
                "{place}: these answers were made from other {what}; give the file with theirs with --{what}, {again}"
            );
        }
        self.check_options(path, &header)?;
        if let Some(name) = model.name()
            && !header.model.is_empty()
            && header.model != name
        {
            output::warning(&format!(
                "{place}: these answers are from the model {:?}, but this one is {name:?}; {again} unless it is the same under another name",
                header.model
            ));
        }
        if let (Some(found), Some(expected)) = (header.file_type, model::file_type(model))
            && found != expected
        {
            output::warning(&format!(
                "{place}: these answers are from weights of file type {found}, but the model's are of file type {expected}, which would answer otherwise; {again}"
            ));
        }
        output::note(&format!("{} read from {place}", counted(rollouts.len(), "answer")));
        rollouts.iter().any(|rollout| {
            let prompt: Vec<_> = rollout.prompt.iter().copied().map(Token).collect();
            bos::check(model, &prompt, Writer::Template)
        });
        let counts = FaultCounts::of(&rollouts);
        Ok(Answers { place: path.to_owned(), header, rollouts, counts, part: None })
    }

    /// Refuses options that the existing answers were not made with: they would have no effect.
    fn check_options(&self, path: &Path, header: &RolloutHeader) -> Result<()> {
        fn words(value: Option<impl ToString>) -> Option<String> {
            value.map(|value| value.to_string())
        }
        let template = &self.template;
        let used = template.options()?;
        let written = |variables: &Map<String, Value>| {
            (!variables.is_empty()).then(|| Value::Object(variables.clone()).to_string())
        };
        // A seed to be drawn agrees with the one that was.
        let seed = self.seed.filter(|seed| !seed.is_drawn).map(|seed| seed.number);
        let options = [
            ("--limit-roles", words(self.limit_roles), words(header.limit_roles)),
            ("--limit-questions", words(self.limit_questions), words(header.limit_questions)),
            (template.flag(), template::name(&used.source), header.chat_template.clone()),
            ("--default-system", used.default_system, header.default_system.clone()),
            ("--thinking", words(used.thinking.map(switched)), words(header.thinking.map(switched))),
            ("--chat-template-kwargs", written(&used.variables), written(&header.template_variables)),
            ("--template-date", used.date, header.template_date.clone()),
            ("--max-tokens", words(self.max_tokens), Some(header.max_tokens.to_string())),
            ("--temp", words(self.temp), Some(header.temperature.to_string())),
            ("--seed", words(seed), Some(header.seed.to_string())),
            ("--slots", words(self.slots), words(header.slots)),
        ];
        for (flag, given, found) in options {
            if let Some(given) = given
                && Some(&given) != found.as_ref()
            {
                let made = found.map_or(format!("without {flag}"), |found| format!("with {flag} {found}"));
                bail!(
                    "{}: these answers were made {made}, so {flag} {given} has no effect on them; leave {flag} out to use them, or name another file with --rollouts to have new ones",
                    path.display()
                );
            }
        }
        Ok(())
    }

    /// Returns the options that shaped the answers, for the origin of a file: without folders. They come from
    /// the header of the answers, because the command line may only name the file.
    pub(crate) fn command(&self, header: &RolloutHeader) -> String {
        let mut words = format!("--model {}", file_name(&self.model));
        for (flag, path) in
            [("--rollouts", &self.rollouts), ("--roles", &self.roles), ("--questions", &self.questions)]
        {
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
        words += &template::words(header);
        if self.keep_all_answers {
            words += " --keep-all-answers";
        }
        let RolloutHeader { max_tokens, temperature, seed, .. } = header;
        words += &format!(" --max-tokens {max_tokens} --temp {temperature} --seed {seed}");
        if let Some(slots) = header.slots {
            words += &format!(" --slots {slots}");
        }
        words
    }
}
