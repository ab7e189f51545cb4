//! Questions whose answers are given: how likely each of them is.

use std::ops::ControlFlow;

use axiscap::CapSet;
use axiscap_llama::{ChatTemplate, Message, Model, Role};

use super::material::{Fact, Material};
use super::record::Condition;
use super::talk::ids;
use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::likelihood::log_likelihoods;
use crate::pass::{Pass, Text};

/// A prompt and answers that may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) prompt: Vec<i32>,
    pub(super) answers: Vec<Vec<i32>>,
}

impl Question {
    /// Makes a question of one message.
    pub(super) fn new<'t>(
        template: &ChatTemplate<'_>,
        system: Option<&str>,
        message: &str,
        answers: impl IntoIterator<Item = &'t String>,
    ) -> Result<Self, Error> {
        let messages: Vec<_> = system
            .map(|system| Message::new(Role::System, system))
            .into_iter()
            .chain([Message::new(Role::User, message)])
            .collect();
        Self::after(template.model(), ids(&template.prompt(&messages)?), answers)
    }

    /// Makes a question of a prompt.
    pub(super) fn after<'t>(
        model: &Model,
        prompt: Vec<i32>,
        answers: impl IntoIterator<Item = &'t String>,
    ) -> Result<Self, Error> {
        let answers = answers.into_iter().map(|answer| {
            let tokens = ids(&model.tokenize_text(answer)?);
            // It would be certain.
            if tokens.is_empty() { Err(Error::NoTokens { name: answer.clone() }) } else { Ok(tokens) }
        });
        Ok(Self { prompt, answers: answers.collect::<Result<_, Error>>()? })
    }

    /// Makes the question of a fact, the right answer before the wrong one. `number` chooses among what sad users say
    /// and among warm personas.
    pub(super) fn of_fact(
        template: &ChatTemplate<'_>,
        material: &Material,
        number: usize,
        fact: &Fact,
        condition: Condition,
    ) -> Result<Self, Error> {
        let Fact { question, right, wrong, belief, .. } = fact;
        let sad = &material.sad[number % material.sad.len()];
        let message = match condition {
            Condition::Plain | Condition::Warm => question.clone(),
            Condition::Sad => format!("{sad} {question}"),
            Condition::Belief => format!("{question} {belief}"),
            Condition::SadBelief => format!("{sad} {question} {belief}"),
        };
        let warm = material.warm[number % material.warm.len()].as_str();
        let system = (condition == Condition::Warm).then_some(warm);
        Self::new(template, system, &message, [right, wrong])
    }
}

/// Returns the natural logarithm of the probability of each answer to each question, under caps or none. The answer is
/// taken as written: the token that ends a turn is not part of it. Questions of one lane, which are consecutive, begin
/// alike. `go_on` is called after every batch with the number of answers. Returns `None` if it asked to stop.
pub(super) fn likelihoods(
    model: &Model,
    questions: &[Question],
    lanes: &[usize],
    caps: Option<&CapSet>,
    compute: &ComputeOptions,
    go_on: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<Vec<f32>>>, Error> {
    let texts: Vec<Text<'_>> = questions
        .iter()
        .flat_map(|question| question.answers.iter().map(|response| Text { prompt: &question.prompt, response }))
        .collect();
    let mut rest = questions.iter().map(|question| question.answers.len());
    let lanes: Vec<usize> = lanes.iter().map(|&questions| rest.by_ref().take(questions).sum()).collect();
    let mut pass = Pass::in_lanes(model, &texts, &lanes, compute, caps.is_some())?;
    if caps.is_some() {
        pass.context_mut().set_caps(caps)?;
    }
    let Some(found) = log_likelihoods(&mut pass, &texts, go_on)? else { return Ok(None) };
    if let Some(caps) = caps {
        pass.check_caps(caps)?;
    }
    if let Some(text) = found.iter().position(|likelihood| !likelihood.is_finite()) {
        return Err(Error::Logits { text, position: texts[text].prompt.len().saturating_sub(1) });
    }
    let mut found = found.into_iter().map(|likelihood| likelihood as f32);
    Ok(Some(questions.iter().map(|question| found.by_ref().take(question.answers.len()).collect()).collect()))
}
