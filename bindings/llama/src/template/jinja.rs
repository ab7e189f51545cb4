//! Chat templates run as the code that they are: Jinja.

use jiff::ZonedDateTime;
use jiff::fmt::strtime;
use minijinja::{Environment, Error as JinjaError, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use super::python;

/// Maximum instructions of a run. A conversation of a thousand messages takes some hundred thousand.
const MAX_INSTRUCTIONS: u64 = 20_000_000;

/// The name of the one template of an environment.
const NAME: &str = "chat template";

/// A template that can be run.
#[derive(Debug)]
pub(super) struct Jinja {
    environment: Environment<'static>,
    /// Variables of every run.
    variables: Map<String, Json>,
}

/// Why a template did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The template itself refuses the messages, in these words.
    Refused(String),
    /// It is no Jinja that runs here.
    Broken(String),
}

impl Failure {
    /// Returns the reason.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Refused(reason) | Self::Broken(reason) => reason,
        }
    }
}

impl From<JinjaError> for Failure {
    fn from(error: JinjaError) -> Self {
        let raised = error.detail().and_then(|detail| detail.strip_prefix(python::RAISED));
        match raised {
            Some(reason) => Self::Refused(reason.to_owned()),
            None if error.kind() == ErrorKind::OutOfFuel => {
                Self::Broken(format!("it runs for more than {MAX_INSTRUCTIONS} instructions"))
            }
            None => Self::Broken(error.to_string()),
        }
    }
}

impl Jinja {
    /// Compiles a template. `now` is the time that it sees, and `variables` are those of every run.
    pub(super) fn new(
        source: &str,
        now: &ZonedDateTime,
        variables: Map<String, Json>,
    ) -> Result<Self, Failure> {
        let mut environment = Environment::new();
        // As `transformers` and llama.cpp have it.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        python::add_to(&mut environment);
        let now = now.clone();
        environment.add_function("strftime_now", move |format: &str| {
            strtime::format(format, &now)
                .map_err(|error| JinjaError::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        environment.add_template_owned(NAME, without_generation_tags(source))?;
        Ok(Self { environment, variables })
    }

    /// Runs the template on messages. `answer` asks for the markup that opens the model's next answer.
    pub(super) fn run(&self, messages: Json, answer: bool) -> Result<String, Failure> {
        let mut context = self.variables.clone();
        context.insert("messages".into(), messages);
        context.insert("add_generation_prompt".into(), answer.into());
        Ok(self.environment.get_template(NAME)?.render(Value::from_serialize(&context))?)
    }
}

/// Replaces the tags `generation` and `endgeneration`, with which `transformers` marks the model's answers, by
/// a block that does nothing.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let Some(length) = tag[2..].find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(2 + length + 2);
        let name = tag[2..2 + length].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        match name {
            "generation" => text.push_str(&tag.replacen(name, "if true", 1)),
            "endgeneration" => text.push_str(&tag.replacen(name, "endif", 1)),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}
