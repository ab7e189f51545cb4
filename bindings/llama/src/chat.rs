//! Conversations: turns that decode only new tokens.

use std::ops::{ControlFlow, Range};

use crate::Token;
use crate::context::Context;
use crate::error::Error;
use crate::generate::{Before, GenerateOptions, Generated, Step, Stop, generate_after};
use crate::message::{Message, Role};
use crate::schedule::Standing;
use crate::template::ChatTemplate;

/// A conversation on sequence 0 of a context.
///
/// The model's tokens are kept as they were generated, and only the tokens of a new turn are decoded:
/// [`generate`](crate::generate()) finds the rest in the KV cache. If the caps have changed in between, the
/// whole conversation is decoded again under them.
#[derive(Debug)]
pub struct Chat<'a> {
    system: Option<String>,
    template: &'a ChatTemplate<'a>,
    messages: Vec<Message>,
    /// The conversation so far as text and as tokens, without the markup that closes the last answer.
    text: String,
    tokens: Vec<Token>,
    /// Where the answers are in `tokens`.
    answers: Vec<Range<usize>>,
    /// How alarm and watch stood after each answer. Those generated elsewhere are not known.
    standings: Vec<Standing>,
    /// Whether the context does not stand as after the last answer: turns were taken back, a turn failed, or there
    /// is no answer.
    is_rewound: bool,
}

impl<'a> Chat<'a> {
    /// Starts a conversation in the markup of a template, under a system prompt.
    #[must_use]
    pub fn new(template: &'a ChatTemplate<'a>, system: Option<&str>) -> Self {
        let (messages, text, tokens, answers, standings) = Default::default();
        let (system, is_rewound) = (system.map(Into::into), true);
        let mut chat = Self { system, template, messages, text, tokens, answers, standings, is_rewound };
        chat.reset();
        chat
    }

    /// Adds a user's message and generates the answer. After a failure, or if `on_text` stops it before the
    /// first token of the answer, the conversation is as it was before.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`] and [`generate`](crate::generate()).
    pub fn say(
        &mut self,
        context: &mut Context<'_>,
        text: &str,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Turn, Error> {
        self.say_watched(context, text, options, |step| on_text(step.text))
    }

    /// As [`Chat::say`]. `on_step` receives with the text what the watch of sequence 0 reads
    /// ([`generate_watched`](crate::generate_watched)). It goes on over the answers of the conversation, without those
    /// that were taken back.
    ///
    /// # Errors
    /// Those of [`Chat::say`].
    pub fn say_watched(
        &mut self,
        context: &mut Context<'_>,
        text: &str,
        options: &GenerateOptions,
        on_step: impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Turn, Error> {
        let asked = self.ask(text)?;
        let first = Standing::default();
        // The context may have been another conversation's since.
        let is_elsewhere = self.is_rewound || !context.holds_text(0, &asked.tokens, self.tokens.len());
        let standing = is_elsewhere.then(|| self.standings.last().unwrap_or(&first));
        let before = Before { answers: &asked.answers, standing };
        let generated = generate_after(context, &asked.tokens, &before, options, on_step);
        // A failure clears the context.
        self.is_rewound |= generated.is_err();
        let generated = generated?;
        let turn = Turn { prompt_tokens: asked.tokens.len(), generated };
        if !turn.is_unanswered() {
            self.answer(asked, &turn.generated.tokens, &turn.generated.text);
            self.standings.pop();
            self.standings.push(context.schedules.standing(0));
            self.is_rewound = false;
        }
        Ok(turn)
    }

    /// Returns the prompt of a user's message after the conversation so far, which stays as it is: for answers that
    /// are generated elsewhere, and questions that are asked beside the conversation.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn ask(&self, text: &str) -> Result<Asked, Error> {
        self.ask_all(vec![Message::new(Role::User, text)])
    }

    /// As [`Chat::ask`], with any messages before the answer: for conversations that were had elsewhere.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn ask_all(&self, asked: Vec<Message>) -> Result<Asked, Error> {
        let model = self.template.model();
        let messages = [&self.messages[..], &asked].concat();
        let rendered = self.template.render(&messages, true)?;
        let (tokens, answers) = match rendered.after(&self.text) {
            // Tokenizing an answer again may cut it otherwise than the model did.
            Some(new) if !self.tokens.is_empty() => {
                ([&self.tokens[..], &new.tokens(model, false)?].concat(), self.answers.clone())
            }
            _ => {
                let tokens = rendered.tokens(model, true)?;
                // Where earlier answers are is not known any more, so the whole prompt counts as one.
                let has_answers = messages.iter().any(|message| message.role == Role::Assistant);
                let answers = has_answers.then_some(0..tokens.len());
                (tokens, Vec::from_iter(answers))
            }
        };
        Ok(Asked { messages: asked, text: rendered.text(), tokens, answers })
    }

    /// Adds messages that were asked after this conversation, and their answer: the tokens as they were generated,
    /// without the one that ends the turn, and their text.
    pub fn answer(&mut self, asked: Asked, tokens: &[Token], text: &str) {
        let Asked { messages, text: prompt, tokens: mut all, mut answers } = asked;
        let prompt_tokens = all.len();
        all.extend_from_slice(tokens);
        answers.push(prompt_tokens..all.len());
        (self.tokens, self.answers) = (all, answers);
        self.text = prompt + text;
        self.messages.extend(messages);
        self.messages.push(Message::new(Role::Assistant, text));
        self.standings.push(Standing::default());
    }

    /// Removes the last question and its answer. Returns `false` if there is none.
    pub fn undo(&mut self) -> bool {
        let Some(question) = self.messages.iter().rposition(|message| message.role == Role::User) else {
            return false;
        };
        self.messages.truncate(question);
        self.standings.pop();
        self.is_rewound = true;
        self.text.clear();
        self.tokens.clear();
        self.answers.clear();
        true
    }

    /// Starts again under the same system prompt.
    pub fn reset(&mut self) {
        self.messages = self.system.iter().map(|text| Message::new(Role::System, text)).collect();
        self.standings.clear();
        self.is_rewound = true;
        self.text.clear();
        self.tokens.clear();
        self.answers.clear();
    }

    /// Returns the tokens so far, as they were decoded. Empty until the first turn, and after
    /// [`Chat::undo`].
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Returns the messages so far.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }
}

/// Messages that are not answered yet ([`Chat::ask`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    messages: Vec<Message>,
    /// The conversation with them, in the markup of the template.
    text: String,
    tokens: Vec<Token>,
    answers: Vec<Range<usize>>,
}

impl Asked {
    /// Returns the prompt: the conversation with the messages, up to where the answer begins.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Returns where earlier answers are in the prompt.
    #[must_use]
    pub fn answers(&self) -> &[Range<usize>] {
        &self.answers
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Tokens of the whole conversation up to the answer.
    pub prompt_tokens: usize,
    /// The answer.
    pub generated: Generated,
}

impl Turn {
    /// Returns whether the turn was stopped before the first token of its answer. It is not part of the
    /// conversation.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.generated.stop == Stop::Caller && self.generated.tokens.is_empty()
    }
}
