//! Answers made before.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use axiscap_lab::rollout::{Plan, RolloutHeader, Rollouts};
use axiscap_llama::{Model, Token};
use serde_json::{Map, Value};

use super::{Answers, AnswersArgs, written};
use crate::bos::{self, Writer};
use crate::model;
use crate::output::{self, counted};
use crate::template::{self, switched};

impl AnswersArgs {
    /// Reads answers made before, if they are from this model and plan, made with the options given.
    pub(super) fn reuse(&self, path: &Path, model: &Model, plan: &Plan) -> Result<Answers> {
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
            ("roles", Some(&header.roles_sha256), Some(&plan.roles_sha256)),
            ("questions", Some(&header.questions_sha256), Some(&plan.questions_sha256)),
            // Calibration does not need them.
            (
                "traits",
                header.traits_sha256.as_ref(),
                plan.traits_sha256.as_ref().or(header.traits_sha256.as_ref()),
            ),
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
        if let Some(rollout) =
            rollouts.iter().find(|rollout| rollout.question >= plan.asked(&rollout.group).len())
        {
            bail!("{place}: there is no question {} in the plan; {again}", rollout.question);
        }
        let (counts, all_by_role, held_out) = Default::default();
        Ok(Answers { place: path.to_owned(), header, rollouts, held_out, counts, all_by_role, part: None })
    }

    /// Refuses options that the existing answers were not made with: they would have no effect.
    fn check_options(&self, path: &Path, header: &RolloutHeader) -> Result<()> {
        fn words(value: Option<impl ToString>) -> Option<String> {
            value.map(|value| value.to_string())
        }
        let template = &self.template;
        let used = template.options()?;
        let object = |variables: &Map<String, Value>| {
            (!variables.is_empty()).then(|| Value::Object(variables.clone()).to_string())
        };
        // A seed to be drawn agrees with the one that was.
        let seed = self.seed.filter(|seed| !seed.is_drawn).map(|seed| seed.number);
        let options = [
            ("--limit-roles", words(self.limit_roles), words(header.limit_roles)),
            ("--limit-questions", words(self.limit_questions), words(header.limit_questions)),
            (
                "--answers-per-role",
                self.answers_per_role.map(|number| written(number.0)),
                Some(written(header.answers_per_role)),
            ),
            (
                "--default-answers",
                self.default_answers.map(|number| written(number.0)),
                Some(written(header.default_answers)),
            ),
            ("--held-out-answers", words(self.held_out_answers), Some(header.held_out_answers.to_string())),
            (template.flag(), template::name(&used.source), header.chat_template.clone()),
            ("--default-system", used.default_system, header.default_system.clone()),
            ("--thinking", words(used.thinking.map(switched)), words(header.thinking.map(switched))),
            ("--chat-template-kwargs", object(&used.variables), object(&header.template_variables)),
            ("--template-date", used.date, header.template_date.clone()),
            ("--max-tokens", words(self.max_tokens), Some(header.max_tokens.to_string())),
            ("--temp", words(self.temp), Some(header.temperature.to_string())),
            ("--seed", words(seed), Some(header.seed.to_string())),
            ("--slots", words(self.slots), Some(header.slots.to_string())),
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
}
