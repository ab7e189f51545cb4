//! What can go wrong between a model file and generated text.

use std::path::PathBuf;

use axiscap_ggml::HookError;

/// Why a model, a context or a decode failed. Every message says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model file cannot be opened or read.
    #[error("cannot read the model {}: {error}; give the path of a GGUF file that this user may read", .path.display())]
    ModelFile {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A path that cannot be handed to llama.cpp.
    #[error("the model's path {} is not UTF-8 or holds a NUL byte; rename the file or link to it under another name", .0.display())]
    ModelPath(PathBuf),
    /// llama.cpp refused the model.
    #[error("llama.cpp cannot load the model {}: {reason}; {remedy}", .path.display())]
    ModelLoad {
        /// The path as given.
        path: PathBuf,
        /// llama.cpp's own words.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A model that does not generate text: an encoder, an embedding model, or a file without a tokenizer.
    #[error("the model {} ({architecture}) cannot generate text: {reason}; give a causal language model with its tokenizer", .path.display())]
    NotGenerative {
        /// The path as given.
        path: PathBuf,
        /// `general.architecture`.
        architecture: String,
        /// What is missing.
        reason: &'static str,
    },
    /// An option outside its range.
    #[error("{option} is {value}; it must be {expected}")]
    Option {
        /// The option, as a field and as the program's flag.
        option: &'static str,
        /// The value given.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// llama.cpp could not make a context.
    #[error(
        "llama.cpp cannot make a context of {ctx} tokens: {reason}; a smaller context (--ctx) needs less memory"
    )]
    ContextCreation {
        /// Tokens of context asked for.
        ctx: u32,
        /// llama.cpp's own words.
        reason: String,
    },
    /// The hook did not see a backend while the context was made.
    #[error(
        "no ggml backend of the new context passed through the hook, so nothing could be capped; `axiscap doctor` says which devices the hook sees"
    )]
    NotBound,
    /// Caps on a context made with [`Context::uncapped`](crate::Context::uncapped).
    #[error("this context was made without the hook; make it with Context::new to set caps or traces on it")]
    NotHooked,
    /// The hook refused caps, or a decode did not run as configured.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A text without a single token.
    #[error("the prompt is empty: there is no token to start from; give some text")]
    EmptyPrompt,
    /// A text that cannot be handed to llama.cpp.
    #[error("the {what} holds a NUL byte at offset {offset}; remove it")]
    NulInText {
        /// Which text.
        what: &'static str,
        /// Offset in bytes.
        offset: usize,
    },
    /// A text too long to be tokenized, or to be put into a chat template, at all.
    #[error("the text is {bytes} bytes long; llama.cpp takes at most {most}: shorten it")]
    TextTooLong {
        /// Length in bytes.
        bytes: usize,
        /// Most bytes.
        most: usize,
    },
    /// More tokens than the context holds.
    #[error(
        "the prompt has {prompt} tokens, but the context holds {context}; raise --ctx (the model was trained on {trained} tokens) or shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens the context holds.
        context: usize,
        /// Tokens of context the model was trained on.
        trained: u32,
    },
    /// Prompts and answers that do not fit what the model was trained on, where the context is made as needed.
    #[error(
        "a prompt of {prompt} tokens and an answer of up to {answer} do not fit into the {trained} tokens that the model was trained on; lower --max-tokens or shorten the prompts"
    )]
    AnswerTooLong {
        /// Tokens of the longest prompt.
        prompt: usize,
        /// Most tokens of an answer.
        answer: usize,
        /// Tokens of context the model was trained on.
        trained: u32,
    },
    /// The KV cache has no room for the rows of a batch.
    #[error(
        "the context is full: no room for {rows} more rows among its {context} tokens; raise --ctx or start anew"
    )]
    ContextFull {
        /// Rows of the batch.
        rows: usize,
        /// Tokens the context holds.
        context: usize,
    },
    /// A batch longer than the context was made for.
    #[error(
        "a batch of {rows} rows exceeds the context's {batch}; split it, or make the context with a larger batch"
    )]
    BatchTooLong {
        /// Rows of the batch.
        rows: usize,
        /// Most rows of a batch.
        batch: usize,
    },
    /// A batch that names a token, position or sequence that cannot be.
    #[error("row {row} of the batch has {what} {value}; expected {expected}")]
    BatchRow {
        /// Index of the row.
        row: usize,
        /// `token`, `position` or `sequence`.
        what: &'static str,
        /// The value.
        value: i64,
        /// What is accepted.
        expected: String,
    },
    /// A sequence that the context does not have.
    #[error(
        "there is no sequence {sequence}: the context has 0 to {last}; make it with more sequences, or name one of these"
    )]
    Sequence {
        /// The sequence.
        sequence: i32,
        /// The last one there is.
        last: u32,
    },
    /// llama.cpp failed to decode a batch.
    #[error("llama.cpp failed to decode {rows} rows from position {position}: {reason}")]
    Decode {
        /// Rows of the batch.
        rows: usize,
        /// Position of the first.
        position: i32,
        /// llama.cpp's own words.
        reason: String,
    },
    /// The memory of this model cannot be rolled back to a position.
    #[error(
        "the memory of this model ({architecture}) cannot be rolled back to position {position} of sequence {sequence}; clear it and decode again from the start"
    )]
    CannotTruncate {
        /// `general.architecture`.
        architecture: String,
        /// The sequence.
        sequence: i32,
        /// The position.
        position: i32,
    },
    /// A model file without a chat template.
    #[error("the model {} has no chat template; name one that llama.cpp knows with --chat-template (chatml is the most common), or write the prompt's markup yourself with run --raw", .path.display())]
    NoChatTemplate {
        /// The path as given.
        path: PathBuf,
    },
    /// A chat template that llama.cpp does not know.
    #[error(
        "llama.cpp cannot apply the chat template {template:?}; name one it knows with --chat-template (e.g. chatml, llama3, gemma), or write the prompt's markup yourself with run --raw"
    )]
    ChatTemplate {
        /// Its name, or its beginning.
        template: String,
    },
    /// An axis of another width than the model's residual stream.
    #[error(
        "the axis of block {block} has width {found}, but the model's residual stream has width {expected}; axes work only on the model they were made for: extract them on this model"
    )]
    AxisWidth {
        /// The block.
        block: usize,
        /// Width of the axis.
        found: usize,
        /// Width of the model.
        expected: usize,
    },
    /// The trace does not have the rows of the batch.
    #[error(
        "the hook's trace has {found} rows for block {block}, but the batch had {rows} rows, {outputs} of them with logits; this is a fault of axiscap: please report it with the model's name"
    )]
    Trace {
        /// The block.
        block: usize,
        /// Rows traced.
        found: usize,
        /// Rows of the batch.
        rows: usize,
        /// Rows with logits.
        outputs: usize,
    },
}
