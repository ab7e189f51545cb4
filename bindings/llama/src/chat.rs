//! Conversations: the model's chat template, and turns that decode only new tokens.

use std::ops::{ControlFlow, Range};

use llama_cpp_2::model::{LlamaChatMessage, LlamaChatTemplate};

use crate::Token;
use crate::context::Context;
use crate::error::Error;
use crate::generate::{GenerateOptions, Generated, Stop, generate_after};
use crate::model::Model;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sets the scene.
    System,
    /// Asks.
    User,
    /// Answers: the model.
    Assistant,
}

impl Role {
    /// Returns the role's name in chat templates.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Makes a message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

impl Model {
    /// Returns whether the file holds a chat template.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.llama().chat_template(None).is_ok()
    }

    /// Writes a conversation in the markup of the model's chat template, or of the one named (e.g. `chatml`).
    ///
    /// `answer` adds the markup that opens the model's next answer. llama.cpp recognises templates rather
    /// than running their code, so the default system prompt of a template is not added.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], [`Error::ChatTemplate`], [`Error::NulInText`], [`Error::TextTooLong`].
    pub fn render(
        &self,
        messages: &[Message],
        template: Option<&str>,
        answer: bool,
    ) -> Result<String, Error> {
        // llama-cpp-2 gives llama.cpp a buffer of twice the messages' length, counted in an i32, and panics
        // beyond. The template's markup must fit as well.
        const MAX: usize = i32::MAX as usize / 4;
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        if bytes > MAX {
            return Err(Error::TextTooLong { bytes, max: MAX });
        }
        let template = match template {
            Some(name) => LlamaChatTemplate::new(name)
                .map_err(|error| Error::NulInText { what: "chat template", offset: error.nul_position() })?,
            None => self
                .llama()
                .chat_template(None)
                .map_err(|_| Error::NoChatTemplate { path: self.path().to_owned() })?,
        };
        let messages = messages
            .iter()
            .map(|message| {
                LlamaChatMessage::new(message.role.name().into(), message.content.clone()).map_err(|_| {
                    let offset = message.content.find('\0').unwrap_or(0);
                    Error::NulInText { what: "message", offset }
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.llama().apply_chat_template(&template, &messages, answer).map_err(|_| {
            let text = template.as_c_str().to_string_lossy();
            let mut beginning: String = text.chars().take(40).collect();
            if beginning.len() < text.len() {
                beginning.push_str("...");
            }
            Error::ChatTemplate { template: beginning }
        })
    }
}

/// A conversation on sequence 0 of a context.
///
/// The model's tokens are kept as they were generated, and only the tokens of a new turn are decoded:
/// [`generate`](crate::generate()) finds the rest in the KV cache. If the caps have changed in between, the
/// whole conversation is decoded again under them.
#[derive(Debug, Clone, Default)]
pub struct Chat {
    system: Option<String>,
    template: Option<String>,
    messages: Vec<Message>,
    /// The conversation so far as text and as tokens, without the markup that closes the last answer.
    text: String,
    tokens: Vec<Token>,
    /// Where the answers are in `tokens`.
    answers: Vec<Range<usize>>,
}

impl Chat {
    /// Starts a conversation under a system prompt, in the model's own template unless another one is named.
    #[must_use]
    pub fn new(system: Option<&str>, template: Option<&str>) -> Self {
        let mut chat =
            Self { system: system.map(Into::into), template: template.map(Into::into), ..Self::default() };
        chat.reset();
        chat
    }

    /// Adds a user's message and generates the answer. After a failure, or if `on_text` stops it before the
    /// first token of the answer, the conversation is as it was before.
    ///
    /// # Errors
    /// Those of [`Model::render`] and [`generate`](crate::generate()).
    pub fn say(
        &mut self,
        context: &mut Context<'_>,
        text: &str,
        options: &GenerateOptions,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Turn, Error> {
        self.messages.push(Message::new(Role::User, text));
        let before = self.messages.len();
        let answered = self.answer(context, options, on_text);
        if answered.as_ref().map_or(true, Turn::is_unanswered) {
            self.messages.truncate(before - 1);
        }
        answered
    }

    fn answer(
        &mut self,
        context: &mut Context<'_>,
        options: &GenerateOptions,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Turn, Error> {
        let model = context.model();
        let rendered = model.render(&self.messages, self.template.as_deref(), true)?;
        let (mut tokens, mut answers) = match rendered.strip_prefix(&self.text) {
            // Tokenizing an answer again may cut it otherwise than the model did.
            Some(new) if !self.tokens.is_empty() => {
                ([&self.tokens[..], &model.tokenize(new, false)?].concat(), self.answers.clone())
            }
            _ => {
                let tokens = model.tokenize(&rendered, true)?;
                // Where earlier answers are is not known any more, so the whole prompt counts as one.
                let has_answers = self.messages.iter().any(|message| message.role == Role::Assistant);
                let answers = has_answers.then_some(0..tokens.len());
                (tokens, Vec::from_iter(answers))
            }
        };
        let prompt = tokens.len();
        let generated = generate_after(context, &tokens, &answers, options, on_text)?;
        let turn = Turn { prompt_tokens: prompt, generated };
        if turn.is_unanswered() {
            return Ok(turn);
        }
        let generated = &turn.generated;
        tokens.extend_from_slice(&generated.tokens);
        answers.push(prompt..tokens.len());
        (self.tokens, self.answers) = (tokens, answers);
        self.text = rendered + &generated.text;
        self.messages.push(Message::new(Role::Assistant, &*generated.text));
        Ok(turn)
    }

    /// Removes the last question and its answer. Returns `false` if there is none.
    pub fn undo(&mut self) -> bool {
        let Some(question) = self.messages.iter().rposition(|message| message.role == Role::User) else {
            return false;
        };
        self.messages.truncate(question);
        self.text.clear();
        self.tokens.clear();
        self.answers.clear();
        true
    }

    /// Starts again under the same system prompt.
    pub fn reset(&mut self) {
        self.messages = self.system.iter().map(|text| Message::new(Role::System, text)).collect();
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
