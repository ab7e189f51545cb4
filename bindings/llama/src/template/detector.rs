//! Chat templates that llama.cpp recognises and has code of its own for (`llama_chat_apply_template`).

use llama_cpp_2::model::{LlamaChatMessage, LlamaChatTemplate, LlamaModel};

use crate::error::Error;
use crate::message::Message;

/// Maximum bytes of the messages. llama-cpp-2 gives llama.cpp a buffer of twice their length, counted in an i32,
/// and panics beyond. The template's markup must fit as well.
pub(super) const MAX_BYTES: usize = i32::MAX as usize / 4;

/// A template that llama.cpp is asked for: by its name, or by its text, of which it looks at parts.
#[derive(Debug)]
pub(super) struct Detector(LlamaChatTemplate);

impl Detector {
    /// Takes a name or a text.
    pub(super) fn new(template: &str) -> Result<Self, Error> {
        let refused = |error: std::ffi::NulError| Error::NulInText {
            what: "chat template",
            offset: error.nul_position(),
        };
        LlamaChatTemplate::new(template).map(Self).map_err(refused)
    }

    /// Writes messages in the template's markup. Returns `None` if llama.cpp does not know the template. The
    /// messages have at most [`MAX_BYTES`] bytes.
    pub(super) fn run(
        &self,
        model: &LlamaModel,
        messages: &[Message],
        answer: bool,
    ) -> Result<Option<String>, Error> {
        let message = |message: &Message| {
            LlamaChatMessage::new(message.role.name().into(), message.content.clone()).map_err(|_| {
                let offset = message.content.find('\0').unwrap_or(0);
                Error::NulInText { what: "message", offset }
            })
        };
        let messages = messages.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        Ok(model.apply_chat_template(&self.0, &messages, answer).ok())
    }
}
