//! The warning about prompts that begin with two BOS tokens.

use axiscap_llama::{Model, Token};

use crate::output;

/// Where the second BOS comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The text of the prompt.
    Prompt,
    /// The chat template.
    Template,
}

/// Warns if a prompt begins with two BOS tokens. Returns whether it does.
pub(crate) fn check(model: &Model, prompt: &[Token], writer: Writer) -> bool {
    let doubled = model.begins_with_two_bos(prompt);
    if doubled {
        let bos = model.llama().vocab().bos();
        let bos =
            String::from_utf8_lossy(&model.llama().vocab().token_to_piece(bos, true, None)).into_owned();
        let (who, remedy) = match writer {
            Writer::Prompt => ("the prompt begins with one", format!("leave {bos} out of the prompt")),
            Writer::Template => (
                "the chat template writes one",
                format!(
                    "name a template without it with --chat-template, or give `axiscap run --raw` the markup without {bos}"
                ),
            ),
        };
        output::warning(&format!(
            "two BOS tokens ({bos}) begin the prompt, which no model was trained on: {who}, and the model's tokenizer adds one; {remedy}"
        ));
    }
    doubled
}
