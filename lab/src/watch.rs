//! Watches over transcripts: what their answers project, turn by turn, read in full batches.

use std::ops::ControlFlow;

use axiscap::{Bound, CapSet};
use axiscap_llama::{Chat, ChatTemplate, Level, Message, Role, Token, Watch, Watcher};

use crate::compute::ComputeOptions;
use crate::error::Error;
use crate::reading::{self, Turns};
use crate::transcript::Transcript;

/// A transcript in the markup of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Prompts and answers, as tokens.
    turns: Turns,
    /// Index of the message that each answer is.
    messages: Vec<usize>,
    /// Answers that are left out because they end beyond the context of the model's training.
    pub beyond: usize,
}

impl Prepared {
    /// Writes a transcript as the model would have seen it: each answer after all messages before it.
    ///
    /// Answers that end beyond the context of the model's training are left out.
    ///
    /// # Errors
    /// [`Error::AnswerBeyondContext`] if that is the first one, and [`Error::Llama`]: what the template refuses.
    pub fn new(template: &ChatTemplate<'_>, transcript: &Transcript) -> Result<Self, Error> {
        let model = template.model();
        let trained = match model.trained_context() as usize {
            0 => usize::MAX,
            trained => trained,
        };
        let ids = |tokens: &[Token]| tokens.iter().map(|token| token.0).collect::<Vec<_>>();
        let mut chat = Chat::new(template, None);
        let mut prepared = Self { turns: Vec::new(), messages: Vec::new(), beyond: 0 };
        let mut asked: Vec<Message> = Vec::new();
        for (index, message) in transcript.messages.iter().enumerate() {
            if message.role != Role::Assistant {
                asked.push(message.clone());
                continue;
            }
            // Later answers end later.
            if prepared.beyond > 0 {
                prepared.beyond += 1;
                continue;
            }
            let prompt = chat.ask_all(std::mem::take(&mut asked))?;
            let answer = model.tokenize_text(&message.content)?;
            let end = prompt.tokens().len() + answer.len();
            if end > trained {
                if prepared.turns.is_empty() {
                    return Err(Error::AnswerBeyondContext { end, trained });
                }
                prepared.beyond = 1;
                continue;
            }
            prepared.turns.push((ids(prompt.tokens()), ids(&answer)));
            prepared.messages.push(index);
            chat.answer(prompt, &answer, &message.content);
        }
        Ok(prepared)
    }

    /// Returns the number of answers that are read.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.turns.len()
    }

    /// Returns the beginning of the conversation, up to where the first answer begins.
    #[must_use]
    pub fn first_prompt(&self) -> Vec<Token> {
        let prompt = self.turns.first().map(|(prompt, _)| prompt.as_slice()).unwrap_or_default();
        prompt.iter().map(|&token| Token(token)).collect()
    }
}

/// What a cap saw of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AnswerSums {
    /// Tokens.
    pub tokens: usize,
    /// Sum of their projections before the cap.
    pub before: f64,
    /// Sum of their projections after it.
    pub after: f64,
    /// Tokens on which the cap acted.
    pub engaged: usize,
}

impl AnswerSums {
    /// Returns the mean projection before the cap and after it. `None` without tokens.
    #[must_use]
    pub fn means(&self) -> Option<(f64, f64)> {
        let tokens = self.tokens as f64;
        (self.tokens > 0).then(|| (self.before / tokens, self.after / tokens))
    }
}

/// An answer that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Index of its message in the transcript.
    pub message: usize,
    /// Its tokens.
    pub tokens: Vec<Token>,
    /// Projections of its tokens before the watched cap.
    pub projections: Vec<f32>,
    /// What each cap saw, in the order of the set.
    pub caps: Vec<AnswerSums>,
}

/// How transcripts are read.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// The template of the model that reads.
    pub template: &'a ChatTemplate<'a>,
    /// The caps.
    pub caps: &'a CapSet,
    /// The watched cap, as index in the set.
    pub watched: usize,
    /// Whether the caps act. If not, the transcripts are read by the uncapped model.
    pub acts: bool,
    /// How llama.cpp computes.
    pub compute: &'a ComputeOptions,
}

impl Reader<'_> {
    /// Reads the answers of transcripts: nothing is generated. `go_on` is called after every batch with the number of
    /// answers. Returns `None` if it asked to stop.
    ///
    /// # Errors
    /// Those of [`Context::decode`](axiscap_llama::Context::decode), and [`Error::NonFinite`].
    pub fn read(
        &self,
        transcripts: &[&Prepared],
        go_on: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Vec<Answer>>>, Error> {
        let observing = self.caps.with_bounds(|_| Bound::NONE);
        let caps = if self.acts { self.caps } else { &observing };
        let answer = |(&message, (_, tokens)): (&usize, &(Vec<i32>, Vec<i32>))| Answer {
            message,
            tokens: tokens.iter().map(|&token| Token(token)).collect(),
            projections: Vec::with_capacity(tokens.len()),
            caps: vec![AnswerSums::default(); caps.caps().len()],
        };
        let answers = transcripts.iter().flat_map(|one| one.messages.iter().zip(&one.turns).map(answer));
        let mut answers: Vec<Answer> = answers.collect();
        let see = |index: usize, line: &axiscap_llama::TraceRow| {
            let answer: &mut Answer = &mut answers[index];
            if line.cap == self.watched {
                answer.projections.push(line.before);
            }
            let sums = &mut answer.caps[line.cap];
            sums.tokens += 1;
            sums.before += f64::from(line.before);
            sums.after += f64::from(line.after);
            sums.engaged += usize::from(line.engaged);
        };
        let turns = transcripts.iter().map(|one| &one.turns);
        if !reading::read(self.template.model(), turns, caps, self.compute, see, go_on)? {
            return Ok(None);
        }
        let mut answers = answers.into_iter();
        Ok(Some(transcripts.iter().map(|one| answers.by_ref().take(one.answers()).collect()).collect()))
    }
}

/// Watches the answers of one conversation, one after the other. Returns the levels after each of their tokens.
///
/// # Errors
/// Those of [`Watcher::new`].
pub fn watch<'p>(
    watch: &Watch,
    answers: impl IntoIterator<Item = &'p [f32]>,
) -> Result<Vec<Vec<Level>>, Error> {
    let mut watcher = Watcher::new(watch)?;
    let mut levels =
        |projections: &[f32]| projections.iter().map(|&projection| watcher.see(projection)).collect();
    Ok(answers.into_iter().map(&mut levels).collect())
}
