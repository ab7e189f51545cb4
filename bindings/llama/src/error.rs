//! What can go wrong between a model file and generated text. The messages speak of this crate's options. A
//! program that has flags for them matches the variants and names its flags.

use std::path::PathBuf;

use axiscap_ggml::HookError;

use crate::kv_type::KvType;
use crate::options::ContextParams;

/// Why a model, a context or a decode failed. Every message says what failed, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model file cannot be opened or read.
    #[error("cannot read the model {}: {error}; give the path of a GGUF file that this user may read", .path.display())]
    ModelFile {
        /// The path as given.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// A path that llama.cpp cannot take.
    #[error("the model's path {} is not UTF-8 or holds a NUL byte; rename the file or link to it under another name", .0.display())]
    ModelPath(PathBuf),
    /// llama.cpp refused the model.
    #[error("llama.cpp cannot load the model {}: {reason}; {}", .path.display(), .cause.remedy())]
    ModelLoad {
        /// The path as given.
        path: PathBuf,
        /// llama.cpp's own words.
        reason: String,
        /// What kind of failure that is.
        cause: LoadFailure,
    },
    /// A file that is not the one that was loaded, or not the whole of it.
    #[error("the model file {} has changed since llama.cpp read it: {reason}; put the whole file back, or load the model again", .path.display())]
    ModelChanged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it now.
        reason: String,
    },
    /// Files of a split model are not there.
    #[error("the model {} is split into {count} files, and {} missing: {}; put all of them into one folder, under their own names", .path.display(), if .missing.len() == 1 { "1 is" } else { "some are" }, listed(.missing))]
    SplitMissing {
        /// The path as given.
        path: PathBuf,
        /// Number of files.
        count: u16,
        /// The files that are not there.
        missing: Vec<PathBuf>,
    },
    /// A file of a split model that has another name than its place in the model asks for. llama.cpp finds
    /// the files by their names.
    #[error("{} is file {number} of {count} of a split model, says its metadata, but its name does not; the files of a split model are found by their names: rename it to {expected}, beside the others", .path.display())]
    SplitName {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        number: u32,
        /// Number of files.
        count: u16,
        /// The name that it should have.
        expected: String,
    },
    /// A file with the name of a file of a split model that does not belong to it.
    #[error("{} has the name of a file of the split model {}, but its metadata does not say that it is one; put the right file there", .path.display(), .of.display())]
    SplitStranger {
        /// The file.
        path: PathBuf,
        /// The model's path as given.
        of: PathBuf,
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
        /// The field's name, e.g. `ctx`.
        option: &'static str,
        /// The value given.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// llama.cpp could not make a context.
    #[error("llama.cpp cannot make a context of {ctx} tokens: {reason}; a smaller context needs less memory")]
    ContextCreation {
        /// Tokens of context asked for.
        ctx: u32,
        /// llama.cpp's own words.
        reason: String,
    },
    /// llama.cpp does not take these number formats for the KV cache.
    #[error(
        "llama.cpp cannot keep K as {k} and V as {v} in the KV cache: {reason}; a quantised V needs flash attention, and a quantised K or V heads whose width is a multiple of its block: choose other types (f16 works with every model), or turn flash attention on"
    )]
    KvTypes {
        /// Number format of the keys.
        k: KvType,
        /// Number format of the values.
        v: KvType,
        /// llama.cpp's own words.
        reason: String,
    },
    /// The hook saw no backend while the context was made.
    #[error(
        "no ggml backend of the new context passed through the hook, so nothing could be capped; Hook::report lists the devices that the hook sees"
    )]
    NotBound,
    /// Caps on a context made with [`Context::uncapped`](crate::Context::uncapped).
    #[error("this context was made without the hook; make it with Context::new to set caps or traces on it")]
    NotHooked,
    /// The hook refused caps, or a decode did not run as configured.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// More requests than the queue of a batcher takes.
    #[error(
        "{waiting} requests are waiting, and the queue takes no more; submit again when some have ended, or give the batcher a longer queue (BatcherOptions::queue) or its context more sequences"
    )]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
    },
    /// A sequence that cannot be saved or restored.
    #[error("sequence {sequence} cannot be saved or restored: {reason}; decode its tokens again instead")]
    Saved {
        /// The sequence.
        sequence: i32,
        /// Why not.
        reason: String,
    },
    /// A text without a single token.
    #[error("the prompt is empty: there is no token to start from; give some text")]
    EmptyPrompt,
    /// A text that llama.cpp cannot take.
    #[error("the {what} holds a NUL byte at offset {offset}; remove it")]
    NulInText {
        /// Which text.
        what: &'static str,
        /// Offset in bytes.
        offset: usize,
    },
    /// A text too long to be tokenized, or to be put into a chat template, at all.
    #[error("the text is {bytes} bytes long; llama.cpp takes at most {max}: shorten it")]
    TextTooLong {
        /// Length in bytes.
        bytes: usize,
        /// Maximum bytes.
        max: usize,
    },
    /// More tokens than the context holds.
    #[error(
        "the prompt has {prompt} tokens, but the context holds {context}; make the context larger (the model was trained on {trained} tokens) or shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens the context holds.
        context: usize,
        /// Tokens of context the model was trained on.
        trained: u32,
    },
    /// The KV cache has no room for the rows of a batch.
    #[error(
        "the context is full: no room for {rows} more rows among its {context} tokens; make the context larger, or clear it"
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
        /// Maximum rows of a batch.
        batch: usize,
    },
    /// A row of a batch with a token, position or sequence out of range.
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
        /// The last sequence of the context.
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
    #[error("the model {} has no chat template; name one that llama.cpp knows (chatml is the most common), or write the prompt's markup yourself", .path.display())]
    NoChatTemplate {
        /// The path as given.
        path: PathBuf,
    },
    /// A chat template that neither runs nor is known to llama.cpp.
    #[error(
        "the chat template {template:?} cannot be used: {}llama.cpp does not know it; name one that it knows (e.g. chatml, llama3, gemma), give another in Jinja, or write the prompt's markup yourself", .reason.as_ref().map_or(String::new(), |reason| format!("it cannot be run ({reason}), and "))
    )]
    ChatTemplate {
        /// Its name, or its beginning.
        template: String,
        /// Why it cannot be run, if it is more than a name.
        reason: Option<String>,
    },
    /// A conversation that the model's template refuses.
    #[error(
        "the chat template refuses the conversation: {reason}; change the messages, or use another template"
    )]
    TemplateRefuses {
        /// The template's own words.
        reason: String,
    },
    /// A chat template that runs on some conversations and not on this one.
    #[error(
        "the chat template fails on the conversation: {reason}; change the messages, or use another template"
    )]
    TemplateFails {
        /// What went wrong, and where in the template.
        reason: String,
    },
    /// Messages that hold each of Unicode's 131,068 characters for private use in the planes 15 and 16.
    #[error(
        "the messages use every character of Unicode's private planes, and none is left to stand for the special tokens that they spell; shorten them"
    )]
    PrivateUse,
    /// The hook reported other rows than those of the batch.
    #[error(
        "the hook reported {found} rows for block {block}, but the batch had {rows} rows, {outputs} of them with logits; this is a bug in axiscap: please report it with the model's name"
    )]
    Trace {
        /// The block.
        block: usize,
        /// Rows reported.
        found: usize,
        /// Rows of the batch.
        rows: usize,
        /// Rows with logits.
        outputs: usize,
    },
}

impl Error {
    /// Classifies by llama.cpp's words why it did not make a context of these numbers: [`Error::KvTypes`] or
    /// [`Error::ContextCreation`].
    #[must_use]
    pub fn of_context(params: &ContextParams, reason: String) -> Self {
        if ["K cache", "V cache", "cache types"].iter().any(|words| reason.contains(words)) {
            Self::KvTypes { k: params.kv_type_k, v: params.kv_type_v, reason }
        } else {
            Self::ContextCreation { ctx: params.ctx, reason }
        }
    }
}

/// Lists the first paths.
fn listed(paths: &[PathBuf]) -> String {
    const LISTED: usize = 8;
    let mut names: Vec<_> = paths.iter().take(LISTED).map(|path| path.display().to_string()).collect();
    if paths.len() > LISTED {
        names.push(format!("and {} more", paths.len() - LISTED));
    }
    names.join(", ")
}

/// Kinds of failures to load a model, classified by llama.cpp's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadFailure {
    /// The file is no GGUF.
    NotGguf,
    /// A GGUF that holds a control vector or caps.
    ControlVector,
    /// This llama.cpp does not know the architecture.
    UnknownArchitecture,
    /// Not enough memory.
    Memory,
    /// The file is empty.
    Empty,
    /// Anything else: most often a file that was cut or overwritten.
    Damaged,
}

impl LoadFailure {
    /// Classifies llama.cpp's words.
    #[must_use]
    pub fn of(reason: &str) -> Self {
        let says = |word| reason.contains(word);
        if says("magic") {
            Self::NotGguf
        } else if says("controlvector") {
            Self::ControlVector
        } else if says("unknown model architecture") {
            Self::UnknownArchitecture
        } else if says("allocate") || says("memory") {
            Self::Memory
        } else {
            Self::Damaged
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::NotGguf => {
                "give a GGUF file (other formats are converted with llama.cpp's convert_hf_to_gguf.py)"
            }
            Self::ControlVector => "this is a control vector or a cap file: give the model's file",
            Self::UnknownArchitecture => {
                "this llama.cpp does not know the architecture: give another model, or build against a newer llama.cpp"
            }
            Self::Memory => "free some memory, or give a smaller model or quantisation",
            Self::Empty => "fetch or copy it again",
            Self::Damaged => {
                "the file may be incomplete or damaged: compare its size and checksum with the source's, or fetch it again"
            }
        }
    }
}
