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
use crate::pass::{Pass, Text, check_caps};

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
        .flat_map(|question| {
            question.answers.iter().map(|response| Text { prompt: &question.prompt, response })
        })
        .collect();
    let mut rest = questions.iter().map(|question| question.answers.len());
    let lanes: Vec<usize> = lanes.iter().map(|&questions| rest.by_ref().take(questions).sum()).collect();
    let mut pass = Pass::in_lanes(model, &texts, &lanes, compute, caps.is_some())?;
    if caps.is_some() {
        pass.context_mut().set_caps(caps)?;
    }
    let Some(found) = log_likelihoods(&mut pass, &texts, go_on)? else { return Ok(None) };
    if let Some(caps) = caps {
        check_caps(pass.context(), caps)?;
    }
    if let Some(text) = found.iter().position(|likelihood| !likelihood.is_finite()) {
        return Err(Error::Logits { text, position: texts[text].prompt.len().saturating_sub(1) });
    }
    let mut found = found.into_iter().map(|likelihood| likelihood as f32);
    Ok(Some(questions.iter().map(|question| found.by_ref().take(question.answers.len()).collect()).collect()))
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, BlockCap, Bound, Cap};
    use axiscap_llama::{BatchRow, Context, ContextOptions, ModelOptions, Token};
    use axiscap_testing::llama::{Description, TestModel, has_dense_form};
    use axiscap_testing::numbers::Random;

    use super::*;

    /// Returns a tiny model of an architecture, in f32.
    fn tiny(architecture: &str) -> Model {
        let file = tempfile::NamedTempFile::new().unwrap();
        TestModel::write(&Description::new(architecture, !has_dense_form(architecture)), file.path())
            .unwrap();
        Model::load(file.path(), &ModelOptions::default()).unwrap()
    }

    /// Returns a cap on block 1 that moves rows.
    fn caps(width: usize) -> CapSet {
        let mut random = Random(3);
        let direction: Vec<f32> = (0..width).map(|_| random.signed()).collect();
        let cap = Cap::new(Axis::from_direction(&direction).unwrap(), Bound::floor(9.0).unwrap());
        CapSet::new([BlockCap { block: 1, cap }]).unwrap()
    }

    /// Questions of two lanes. Prompts of a lane begin alike, and one is the beginning of the next.
    fn questions(vocabulary: usize) -> (Vec<Question>, Vec<usize>) {
        let word = |index: usize| i32::try_from((index * 37 + 5) % vocabulary).unwrap();
        let words = |range: std::ops::Range<usize>| range.map(word).collect::<Vec<_>>();
        let both = |one, other| [words(one), words(other)].concat();
        let answers = [words(50..53), words(50..51), words(60..64)];
        let question = |prompt, answers: &[Vec<i32>]| Question { prompt, answers: answers.into() };
        let questions = vec![
            question(words(0..9), &answers),
            question(both(0..9, 50..52), &answers[..2]),
            question(both(0..4, 20..30), &answers[1..]),
            question(words(30..31), &answers),
            question(words(30..31), &answers[..2]),
        ];
        (questions, vec![3, 2])
    }

    /// Returns the natural logarithm of the probability of an answer, by definition: one decode, and sums in f64.
    fn by_hand(model: &Model, caps: Option<&CapSet>, prompt: &[i32], answer: &[i32]) -> f64 {
        let mut context =
            Context::new(model, &ContextOptions { ctx: Some(64), ..Default::default() }).unwrap();
        context.set_caps(caps).unwrap();
        let all = [prompt, answer].concat();
        let row = |(position, &token): (usize, &i32)| BatchRow {
            token: Token(token),
            position: i32::try_from(position).unwrap(),
            sequence: 0,
            logits: true,
        };
        context.decode(&all.iter().enumerate().map(row).collect::<Vec<_>>()).unwrap();
        let log = |at: usize| {
            let logits: Vec<f64> = context.logits(at - 1).unwrap().iter().map(|&l| f64::from(l)).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            logits[usize::try_from(all[at]).unwrap()] - sum.ln()
        };
        (prompt.len()..all.len()).map(log).sum()
    }

    #[test]
    fn likelihoods_are_those_computed_by_hand_on_tiny_models() {
        // One with a cache of rows, one with windows, and one that keeps a state.
        for architecture in ["llama", "gemma3", "mamba"] {
            let model = tiny(architecture);
            let (questions, lanes) = questions(model.vocab_size());
            let caps = caps(model.shape().width);
            let mut moved = 0.0_f64;
            let mut uncapped = Vec::new();
            for acting in [None, Some(&caps)] {
                let go_on = |_| ControlFlow::Continue(());
                let compute = ComputeOptions::default();
                let found =
                    likelihoods(&model, &questions, &lanes, acting, &compute, go_on).unwrap().unwrap();
                for (question, found) in questions.iter().zip(&found) {
                    for (answer, &found) in question.answers.iter().zip(found) {
                        let expected = by_hand(&model, acting, &question.prompt, answer);
                        let off = (f64::from(found) - expected).abs();
                        assert!(off < 2e-3 * expected.abs(), "{architecture}: {found}, by hand {expected}");
                    }
                }
                match acting {
                    None => uncapped = found.concat(),
                    Some(_) => {
                        let pairs = uncapped.iter().zip(found.concat());
                        moved = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
                    }
                }
            }
            assert!(moved > 1e-3, "{architecture}: the caps acted: {moved}");
        }
    }
}
