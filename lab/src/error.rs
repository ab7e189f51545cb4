//! What can go wrong between a model and a finding. The messages speak of this crate's options. A program
//! that has flags for them matches the variants and names its flags.

use std::path::PathBuf;

use axiscap::file::FileError;

use crate::judge::JudgeError;
use crate::rollout::{Fault, FaultCounts};

/// Why there are no answers, axes, bounds or measurements. Every message says what is wrong, where, and what
/// to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model, a context or a decode failed.
    #[error(transparent)]
    Llama(#[from] axiscap_llama::Error),
    /// A judge did not score the answers.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An axis, a bound or a set of caps was refused.
    #[error(transparent)]
    Caps(#[from] axiscap::Error),
    /// An option outside its range.
    #[error("{option} is {value}; it must be {expected}")]
    Option {
        /// The field's name, e.g. `pairs`.
        option: &'static str,
        /// The value given.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// Caps with a policy and a baseline that caps all rows alike.
    #[error(
        "the caps leave rows at some positions alone, and the baselines cap every row (cb_eval, ggml's operations); compare them under caps without a policy (skip_positions 0)"
    )]
    BaselinePolicy,
    /// A roles file that is not JSON of the expected shape.
    // The message holds the cause, which as a source would be printed twice.
    #[error(
        "the roles are not as expected: {error}; a roles file is JSON: {{\"default\": [null, \"system prompt\"], \"roles\": [{{\"name\": \"pirate\", \"prompts\": [\"You are a pirate ...\"]}}]}}"
    )]
    Roles {
        /// What the parser found.
        error: serde_json::Error,
    },
    /// A traits file that is not JSON of the expected shape.
    // The message holds the cause, which as a source would be printed twice.
    #[error(
        "the traits are not as expected: {error}; a traits file is JSON: {{\"traits\": [{{\"name\": \"warm\", \"positive\": [\"You are warm ...\"], \"negative\": [\"You are cold ...\"]}}]}}"
    )]
    Traits {
        /// What the parser found.
        error: serde_json::Error,
    },
    /// A script that is not JSON of the expected shape.
    // The message holds the cause, which as a source would be printed twice.
    #[error(
        "the script is not as expected: {error}; a script is JSON: {{\"name\": \"...\", \"system\": null, \"turns\": [\"first message\", ...]}}"
    )]
    Script {
        /// What the parser found.
        error: serde_json::Error,
    },
    /// Material of an evaluation that is not JSON of the expected shape.
    // The message holds the cause, which as a source would be printed twice.
    #[error(
        "the material is not as expected: {error}; docs/evaluation.md says what its keys hold, and a key that is left out is built in"
    )]
    Material {
        /// What the parser found.
        error: serde_json::Error,
    },
    /// A file of records that cannot be read or written.
    #[error("{}{}: {problem}", .path.display(), .line.map_or(String::new(), |line| format!(", line {line}")))]
    RecordFile {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: Option<usize>,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The first message of a conversation and its answer do not fit into what the model was trained on.
    #[error(
        "conversation {id:?}: the first message needs {prompt} tokens, and with an answer that is more than the {trained} that the model was trained on; shorten it, or its system prompt"
    )]
    ConversationTooLong {
        /// The conversation.
        id: String,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of context the model was trained on.
        trained: u32,
    },
    /// A transcript that is not JSON of a known shape.
    #[error("the transcript is not as expected: {problem}; docs/watch.md says what a line may hold")]
    Transcript {
        /// What is wrong, and where.
        problem: String,
    },
    /// A conversation whose first answer is beyond what the model was trained on.
    #[error(
        "the first answer ends at token {end}, but the model was trained on {trained}; shorten what comes before it"
    )]
    AnswerBeyondContext {
        /// Tokens up to the end of the answer.
        end: usize,
        /// Tokens of context the model was trained on.
        trained: usize,
    },
    /// A text without a token to be predicted.
    #[error("{name}: there is no token to be predicted; give a longer text")]
    NoTokens {
        /// What the text is called.
        name: String,
    },
    /// Logits that are NaN, or give a text's own token no probability.
    #[error(
        "text {text}, position {position}: the distribution of the next token is not finite, capped or uncapped; weaker caps may help, or the model's file is damaged"
    )]
    Logits {
        /// Index of the text.
        text: usize,
        /// Position of the row in it.
        position: usize,
    },
    /// A list of a plan or a script is empty, or a text in it is.
    #[error("{place} is empty; {remedy}")]
    Empty {
        /// What is empty.
        place: String,
        /// What to put there.
        remedy: &'static str,
    },
    /// A role or a question that appears twice would count twice.
    #[error("{what} {text:?} appears twice; remove one of them")]
    Duplicate {
        /// `role`, `trait` or `question`.
        what: &'static str,
        /// The name or question.
        text: String,
    },
    /// Held-out scores need two halves of the questions.
    #[error(
        "there are too few questions ({found}); give at least 2, because the axis is tested on questions it was not made from"
    )]
    FewQuestions {
        /// Number of questions.
        found: usize,
    },
    /// A file of answers that cannot be read or written.
    #[error("{}{}: {problem}", .path.display(), .line.map_or(String::new(), |line| format!(", line {line}")))]
    RolloutFile {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: Option<usize>,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A prompt and its answer do not fit into what the model was trained on.
    #[error(
        "a prompt of {prompt} tokens and an answer of up to {answer} do not fit into the {trained} tokens that the model was trained on; allow fewer tokens per answer, or shorten the prompts"
    )]
    AnswerTooLong {
        /// Tokens of the longest prompt.
        prompt: usize,
        /// Maximum tokens of an answer.
        answer: usize,
        /// Tokens of context the model was trained on.
        trained: u32,
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
    /// One of the two groups of answers is empty in one half of the questions.
    #[error(
        "no {group} answer with at least one token in the {half} questions; the axis is a difference of two groups, and is tested on the questions it was not made from: use more questions or allow more tokens per answer"
    )]
    EmptyGroup {
        /// `default`, `role`, `positive` or `negative`.
        group: &'static str,
        /// `even-numbered` or `odd-numbered`.
        half: &'static str,
    },
    /// Most roles have too few answers.
    #[error(
        "only {used} of {roles} roles have {min_answers} answers or more; generate more answers per role, keep more of them, or accept fewer per role"
    )]
    FewRoles {
        /// Roles with enough answers.
        used: usize,
        /// All roles.
        roles: usize,
        /// Least answers per role.
        min_answers: usize,
    },
    /// There are no answers for a trait.
    #[error(
        "there are no answers for a trait {name:?}, only for {known:?}; name one of the traits file that the answers were made with"
    )]
    NoTrait {
        /// The trait asked for.
        name: String,
        /// The traits that have answers.
        known: Vec<String>,
    },
    /// Half of the answers of a group, or more, are not what they are taken for.
    #[error(
        "{left_out} of {answers} {group} answers cannot be used ({counts}), and what is left would be chance; {}",
        .worst.remedy()
    )]
    MostAnswersLeftOut {
        /// `default`, `role` or `trait`.
        group: &'static str,
        /// Answers that are left out.
        left_out: usize,
        /// Answers of the group.
        answers: usize,
        /// The faults of the group.
        counts: FaultCounts,
        /// The most frequent one.
        worst: Fault,
    },
    /// The temporary file of mean activations cannot be made, written or read.
    // The message holds the cause, which as a source would be printed twice.
    #[error(
        "the folder {} does not take the mean activations: {error}; make room there, or write to another folder", .folder.display()
    )]
    Scratch {
        /// Where the file is.
        folder: PathBuf,
        /// What failed.
        error: std::io::Error,
    },
    /// The answers and their activations do not belong together.
    #[error("there are activations of {found} answers, but {expected} answers; measure all of them")]
    Count {
        /// Answers with activations.
        found: usize,
        /// Answers.
        expected: usize,
    },
    /// The two groups do not differ at a block, or the activations are not finite.
    // The message holds the cause, which as a source would be printed twice.
    #[error("block {block}: {error}")]
    Axis {
        /// The block.
        block: usize,
        /// Why there is no axis.
        error: axiscap::Error,
    },
    /// A percentile out of range.
    #[error("the percentile {0} is outside 0 to 100; it is counted from the role end, e.g. 75")]
    Percentile(f64),
    /// No answer has a token.
    #[error("there is no answer with at least one token to calibrate on; make the answers longer or more")]
    NoAnswers,
    /// A projection is NaN or infinite.
    #[error(
        "the projections on block {block} are not finite; the model's activations overflow there, so it cannot be capped"
    )]
    NonFinite {
        /// The block.
        block: usize,
    },
    /// A chart that cannot be drawn.
    #[error("the chart cannot be drawn: {0}")]
    Chart(String),
}
