//! Chat templates: conversations as the prompts that will be served.
//!
//! A template is a program in Jinja. It is run, as llama.cpp's server does by default, so that the prompt has
//! the system prompt that the template adds by itself, its date and its markup for thinking. llama.cpp's
//! library has another way, which recognises some templates and has code of its own for them. It is used for
//! templates that are named, and for those that cannot be run here ([`TemplateNote::Recognised`]).

mod detector;
mod jinja;
mod python;
mod rendered;
#[cfg(test)]
mod tests;

use jiff::ZonedDateTime;
use jiff::civil::Date;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use serde_json::{Map, Value as Json, json};

use self::detector::Detector;
use self::jinja::{Failure, Jinja};
use self::rendered::Hiding;
pub use self::rendered::Rendered;
use crate::Token;
use crate::error::Error;
use crate::message::{Message, Role};
use crate::model::Model;

/// Where a template comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TemplateSource {
    /// The model's file.
    #[default]
    Model,
    /// llama.cpp's code for templates of this name, e.g. `chatml`.
    Named(String),
    /// A text in Jinja.
    Jinja(String),
}

impl TemplateSource {
    /// Takes what a user gave: a text with Jinja's braces is a template, and any other is a name.
    #[must_use]
    pub fn of(text: &str) -> Self {
        if text.contains("{{") || text.contains("{%") {
            Self::Jinja(text.to_owned())
        } else {
            Self::Named(text.to_owned())
        }
    }
}

/// How conversations are written. The default is what a server with the model's own template does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TemplateOptions {
    /// Where the template comes from.
    pub source: TemplateSource,
    /// The system prompt of conversations that begin without one. An empty text is an empty system message,
    /// which keeps a template from adding its own.
    pub default_system: Option<String>,
    /// The template's variable `enable_thinking`: whether the model thinks before it answers. `None` is what
    /// llama.cpp's server has: true, if the template knows thoughts.
    pub thinking: Option<bool>,
    /// Further variables of the template, in JSON.
    pub variables: Map<String, Json>,
    /// The date that the template sees, as `YYYY-MM-DD`. `None` is today.
    pub date: Option<String>,
}

/// What is not as one would expect of a template. Each is worth a word to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateNote {
    /// The template cannot be run here, for this reason. llama.cpp recognises it and writes its markup
    /// without it. What else the template does, such as a system prompt of its own, is missing.
    Recognised {
        /// Why the template does not run.
        reason: String,
    },
    /// The template has no place for a system prompt. It is put before the first message, as llama.cpp's
    /// server does.
    SystemInMessage,
    /// The template does not read `enable_thinking`.
    NoThinking,
    /// The template reads the date, and this is the one that it sees, as `YYYY-MM-DD`.
    Dated(String),
}

impl std::fmt::Display for TemplateNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Recognised { reason } => write!(
                f,
                "the model's chat template cannot be run ({reason}): llama.cpp recognises it and writes its markup, but not its default system prompt or any other of its rules"
            ),
            Self::SystemInMessage => {
                f.write_str("the chat template has no system prompts: they are put before the first message")
            }
            Self::NoThinking => {
                f.write_str("the chat template does not read enable_thinking: the setting has no effect")
            }
            Self::Dated(date) => write!(f, "the chat template writes the date {date} into the prompt"),
        }
    }
}

/// A chat template, ready to write conversations for its model.
#[derive(Debug)]
pub struct ChatTemplate<'m> {
    model: &'m Model,
    engine: Engine,
    /// The template's own text, or its name.
    source: String,
    default_system: Option<String>,
    notes: Vec<TemplateNote>,
    bos: Option<String>,
    eos: Option<String>,
}

#[derive(Debug)]
enum Engine {
    Jinja { template: Box<Jinja>, form: Form },
    Llama(Detector),
}

/// In which form a template takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    /// Contents are lists of parts, in place of texts.
    is_typed: bool,
    /// System prompts are put before the first message.
    merges_system: bool,
}

/// The markup around a model's thoughts. It stays as it is in its answers, because templates look for it.
const THINKING: [&str; 2] = ["<think>", "</think>"];

impl Model {
    /// Returns whether the file holds a chat template.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.metadata(KEY).is_some()
    }

    /// Prepares a chat template.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], [`Error::ChatTemplate`] for one that neither runs nor is known to
    /// llama.cpp, [`Error::NulInText`], [`Error::Option`] for a wrong date.
    pub fn chat_template(&self, options: &TemplateOptions) -> Result<ChatTemplate<'_>, Error> {
        ChatTemplate::new(self, options)
    }
}

/// The key of a model's template.
const KEY: &str = "tokenizer.chat_template";

impl<'m> ChatTemplate<'m> {
    fn new(model: &'m Model, options: &TemplateOptions) -> Result<Self, Error> {
        let (source, is_named) = match &options.source {
            TemplateSource::Model => {
                let source = model.metadata(KEY);
                (source.ok_or_else(|| Error::NoChatTemplate { path: model.path().to_owned() })?, false)
            }
            TemplateSource::Named(name) => (name.clone(), true),
            TemplateSource::Jinja(text) => (text.clone(), false),
        };
        let (bos, eos) = model.written_ends();
        let mut template = Self {
            model,
            engine: Engine::Llama(Detector::new(&source)?),
            source,
            default_system: options.default_system.clone(),
            notes: Vec::new(),
            bos,
            eos,
        };
        let failure = if is_named { None } else { template.run_jinja(options)?.err() };
        if matches!(template.engine, Engine::Llama(_)) {
            let reason = failure.as_ref().map(|failure| failure.reason().to_owned());
            if template.detected(&[Message::new(Role::User, "Hello")], true)?.is_none() {
                return Err(Error::ChatTemplate { template: template.beginning(), reason });
            }
            template.notes.extend(reason.map(|reason| TemplateNote::Recognised { reason }));
        }
        if options.thinking.is_some() && !template.reads("enable_thinking") {
            template.notes.push(TemplateNote::NoThinking);
        }
        Ok(template)
    }

    /// Takes Jinja for the engine, if the template runs.
    fn run_jinja(&mut self, options: &TemplateOptions) -> Result<Result<(), Failure>, Error> {
        let now = now(options.date.as_deref())?;
        let written = |format| strtime::format(format, &now).unwrap_or_default();
        let mut variables = Map::new();
        for (name, value) in [
            ("bos_token", json!(self.bos.as_deref().unwrap_or_default())),
            ("eos_token", json!(self.eos.as_deref().unwrap_or_default())),
            ("enable_thinking", json!(options.thinking.unwrap_or_else(|| knows_thoughts(&self.source)))),
            // As llama.cpp's server has them.
            ("date_string", json!(written("%d %b %Y"))),
            ("datetime", json!(written("%b %d %Y"))),
        ] {
            variables.insert(name.into(), value);
        }
        variables.extend(options.variables.clone());
        let template = match Jinja::new(&self.source, &now, variables) {
            Ok(template) => template,
            Err(failure) => return Ok(Err(failure)),
        };
        let form = match Form::of(&template) {
            Ok(form) => form,
            Err(failure) => return Ok(Err(failure)),
        };
        self.engine = Engine::Jinja { template: Box::new(template), form };
        if form.merges_system {
            self.notes.push(TemplateNote::SystemInMessage);
        }
        let dated = ["strftime_now", "date_string", "datetime"];
        if dated.iter().any(|name| self.reads(name) && !options.variables.contains_key(*name)) {
            self.notes.push(TemplateNote::Dated(written("%Y-%m-%d")));
        }
        Ok(Ok(()))
    }

    /// Returns what the user should know about the template.
    #[must_use]
    pub fn notes(&self) -> &[TemplateNote] {
        &self.notes
    }

    /// Returns whether the template is run, and not one that llama.cpp recognises.
    #[must_use]
    pub fn is_run(&self) -> bool {
        matches!(self.engine, Engine::Jinja { .. })
    }

    /// Returns the model that it writes for.
    #[must_use]
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Returns the date that the template writes into prompts, if it does.
    #[must_use]
    pub fn date(&self) -> Option<&str> {
        self.notes.iter().find_map(|note| match note {
            TemplateNote::Dated(date) => Some(date.as_str()),
            _ => None,
        })
    }

    /// Writes a conversation. `answer` adds the markup that opens the model's next answer.
    ///
    /// # Errors
    /// [`Error::TemplateRefuses`] in the words of the template, [`Error::TemplateFails`],
    /// [`Error::NulInText`], [`Error::TextTooLong`].
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<Rendered, Error> {
        let mut messages = messages.to_vec();
        if let Some(text) = &self.default_system
            && messages.first().is_none_or(|message| message.role != Role::System)
        {
            messages.insert(0, Message::new(Role::System, text));
        }
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        if bytes > detector::MAX_BYTES {
            return Err(Error::TextTooLong { bytes, max: detector::MAX_BYTES });
        }
        // In a prompt it is the sign of a file that is no text.
        if let Some(offset) = messages.iter().find_map(|message| message.content.find('\0')) {
            return Err(Error::NulInText { what: "message", offset });
        }
        let contents = messages.iter().map(|message| message.content.as_str());
        let mut hiding = Hiding::new(self.model.special_tokens(), contents.chain([self.source.as_str()]));
        for message in &mut messages {
            let kept: &[&str] = if message.role == Role::Assistant { &THINKING } else { &[] };
            message.content = hiding.hide(&message.content, kept)?;
        }
        let text = match &self.engine {
            Engine::Jinja { template, form } => {
                template.run(form.apply(messages), answer).map_err(|failure| match failure {
                    Failure::Refused(reason) => Error::TemplateRefuses { reason },
                    Failure::Broken(reason) => Error::TemplateFails { reason },
                })?
            }
            Engine::Llama(_) => self
                .detected(&messages, answer)?
                .ok_or_else(|| Error::ChatTemplate { template: self.beginning(), reason: None })?,
        };
        let mut rendered = Rendered::new(text, hiding);
        // What the tokenizer adds is not to be there twice. llama.cpp's server does the same.
        let vocab = self.model.llama().vocab();
        rendered.strip(
            self.bos.as_deref().filter(|_| vocab.should_add_bos()),
            self.eos.as_deref().filter(|_| vocab.should_add_eos()),
        );
        Ok(rendered)
    }

    /// Returns the tokens of a whole conversation that the model is to answer.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<Token>, Error> {
        self.render(messages, true)?.tokens(self.model, true)
    }

    fn detected(&self, messages: &[Message], answer: bool) -> Result<Option<String>, Error> {
        match &self.engine {
            Engine::Llama(detector) => detector.run(self.model.llama(), messages, answer),
            Engine::Jinja { .. } => Ok(None),
        }
    }

    /// Returns whether the template's text has this word.
    fn reads(&self, word: &str) -> bool {
        self.is_run() && self.source.contains(word)
    }

    fn beginning(&self) -> String {
        let mut beginning: String = self.source.chars().take(40).collect();
        if beginning.len() < self.source.len() {
            beginning.push_str("...");
        }
        beginning
    }
}

impl Form {
    /// Finds the form that a template takes, as llama.cpp does (`common/jinja/caps.cpp`): by what it makes of
    /// messages.
    fn of(template: &Jinja) -> Result<Self, Failure> {
        const ASKED: &str = "axiscap asks";
        const SET: &str = "axiscap sets";
        let plain = Self { is_typed: false, merges_system: false };
        let typed = Self { is_typed: true, ..plain };
        let user = || vec![Message::new(Role::User, ASKED)];
        let shows = |form: Self, messages, text| {
            template.run(form.apply(messages), true).map(|written| written.contains(text))
        };
        let form = match shows(plain, user(), ASKED) {
            Ok(true) => plain,
            first => match (shows(typed, user(), ASKED), first) {
                (Ok(true), _) => typed,
                (_, Err(failure)) => return Err(failure),
                (_, Ok(_)) => return Err(Failure::Broken("it leaves the user's message out".into())),
            },
        };
        let mut conversation = vec![Message::new(Role::System, SET)];
        conversation.extend(user());
        let merges_system = !shows(form, conversation, SET).is_ok_and(|shown| shown);
        Ok(Self { merges_system, ..form })
    }

    /// Returns messages as a template's variable.
    fn apply(self, mut messages: Vec<Message>) -> Json {
        if self.merges_system && messages.len() > 1 && messages[0].role == Role::System {
            let system = messages.remove(0).content;
            if !system.is_empty() {
                messages[0].content = format!("{system}\n{}", messages[0].content);
            }
        }
        let content = |text: String| {
            if self.is_typed { json!([{ "type": "text", "text": text }]) } else { json!(text) }
        };
        let message =
            |Message { role, content: text }| json!({ "role": role.name(), "content": content(text) });
        messages.into_iter().map(message).collect()
    }
}

/// Returns whether a template has markup for thoughts, or a place for them in messages.
fn knows_thoughts(source: &str) -> bool {
    let rest = source.to_ascii_lowercase().replace("enable_thinking", "");
    rest.contains("think") || rest.contains("reasoning")
}

/// Returns the time that templates see.
fn now(date: Option<&str>) -> Result<ZonedDateTime, Error> {
    let Some(date) = date else { return Ok(ZonedDateTime::now()) };
    let parsed: Option<Date> = date.parse().ok();
    let zoned = parsed.and_then(|date| date.to_zoned_datetime(TimeZone::system()).ok());
    zoned.ok_or_else(|| Error::Option {
        option: "date",
        value: format!("{date:?}"),
        expected: "a date of the form YYYY-MM-DD".into(),
    })
}
