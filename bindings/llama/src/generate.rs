//! Text from a context, token by token.

use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use llama_cpp_2::sampling::LlamaSampler;

use crate::Token;
use crate::batch::BatchRow;
use crate::context::Context;
use crate::error::Error;
use crate::model::Model;
use crate::options::MAX_CTX;
use crate::schedule::Standing;
use crate::utf8::Utf8;
use crate::watch::Reading;

/// How the next token is chosen. Temperature 0 is greedy: always the likeliest token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the `k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the likeliest tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this likely, relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive logits of the tokens last seen, and multiplies the others; 1 changes none.
    pub repeat_penalty: f32,
    /// How many of the tokens last seen, the prompt's among them, the penalties are for; 0 is none.
    pub repeat_last_n: u32,
    /// Subtracted from the logits of the tokens last seen; 0 changes none.
    pub presence_penalty: f32,
    /// Subtracted from them once for each time that they were seen; 0 changes none.
    pub frequency_penalty: f32,
    /// Seed of the random numbers. The same seed draws the same tokens.
    pub seed: u32,
}

impl Sampling {
    /// The largest seed. llama.cpp reads the next number (`LLAMA_DEFAULT_SEED`) as a request for a random
    /// seed, so that number is treated as this one.
    pub const MAX_SEED: u32 = u32::MAX - 1;

    /// The likeliest token, always.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
    };

    /// Makes the sampler of `llama-cpp-2` for a model, for callers that run their own batches. It has seen
    /// the tokens of `prompt`, for the penalties.
    ///
    /// # Errors
    /// [`Error::Option`] for numbers out of range.
    pub fn sampler(&self, model: &Model, prompt: &[Token]) -> Result<LlamaSampler, Error> {
        fn check(option: &'static str, value: f32, max: f32) -> Result<(), Error> {
            if (0.0..=max).contains(&value) && value.is_finite() {
                return Ok(());
            }
            let expected = if max.is_finite() { format!("0 to {max}") } else { "0 or more".into() };
            Err(Error::Option { option, value: value.to_string(), expected })
        }
        check("temperature", self.temperature, f32::INFINITY)?;
        check("top_p", self.top_p, 1.0)?;
        check("min_p", self.min_p, 1.0)?;
        let penalties = self.penalties(model)?;
        let mut chain = Vec::from_iter(penalties);
        if self.temperature == 0.0 {
            chain.push(LlamaSampler::greedy());
        } else {
            chain.extend([
                LlamaSampler::top_k(i32::try_from(self.top_k).unwrap_or(i32::MAX)),
                LlamaSampler::top_p(self.top_p, 1),
                LlamaSampler::min_p(self.min_p, 1),
                LlamaSampler::temp(self.temperature),
                LlamaSampler::dist(self.seed.min(Self::MAX_SEED)),
            ]);
        }
        let mut sampler = LlamaSampler::chain_simple(chain);
        let first = prompt.len().saturating_sub(self.repeat_last_n as usize);
        sampler.accept_many(&prompt[first..]);
        Ok(sampler)
    }

    /// Returns the sampler of the penalties, `None` if they change nothing. It comes first, as in llama.cpp.
    fn penalties(&self, model: &Model) -> Result<Option<LlamaSampler>, Error> {
        let refuse = |option, value: f32, expected: &str| {
            Err(Error::Option { option, value: value.to_string(), expected: expected.into() })
        };
        let Self { repeat_penalty: repeat, presence_penalty, frequency_penalty, .. } = *self;
        // llama.cpp multiplies and divides by it.
        if !(repeat.is_finite() && repeat > 0.0 && repeat.recip().is_finite()) {
            return refuse("repeat_penalty", repeat, "more than 0");
        }
        for (option, value) in
            [("presence_penalty", presence_penalty), ("frequency_penalty", frequency_penalty)]
        {
            if !value.is_finite() {
                return refuse(option, value, "a finite number");
            }
        }
        // llama.cpp allocates a ring of this length. No context holds more tokens than that.
        let last = self.repeat_last_n.min(MAX_CTX).cast_signed();
        if last == 0 || (repeat, presence_penalty, frequency_penalty) == (1.0, 0.0, 0.0) {
            return Ok(None);
        }
        let vocabulary = i32::try_from(model.vocab_size()).unwrap_or(i32::MAX);
        Ok(Some(LlamaSampler::penalties(vocabulary, last, repeat, frequency_penalty, presence_penalty)))
    }
}

impl Default for Sampling {
    /// Returns llama.cpp's usual chain: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties; and
    /// seed 0.
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Self::GREEDY }
    }
}

/// What to generate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerateOptions {
    /// Maximum tokens to generate.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Whether to record by how much the likeliest token led, for each token ([`Generated::margins`]).
    pub margins: bool,
    /// Whether to record how likely each token was ([`Generated::log_probabilities`]).
    pub log_probabilities: bool,
}

impl Default for GenerateOptions {
    /// Returns 256 tokens, [`Sampling::default`], no margins, no log probabilities.
    fn default() -> Self {
        Self { max_tokens: 256, sampling: Sampling::default(), margins: false, log_probabilities: false }
    }
}

/// Why generation stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model ended its answer with this token, which is not among [`Generated::tokens`].
    End(Token),
    /// [`GenerateOptions::max_tokens`] were generated.
    MaxTokens,
    /// The context has no room for another token.
    ContextFull,
    /// The caller stopped it.
    Caller,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// Its tokens, without the token that ended it.
    pub tokens: Vec<Token>,
    /// The largest logit minus the second largest, for each token and for the one that ended the text. A
    /// small margin marks a near tie, which other roundings may tip. Empty unless
    /// [`GenerateOptions::margins`].
    pub margins: Vec<f32>,
    /// The natural logarithm of the probability of each token, and of the one that ended the text, as the
    /// model gives it: before temperature, penalties and cuts. Empty unless
    /// [`GenerateOptions::log_probabilities`].
    pub log_probabilities: Vec<f32>,
    /// What the watch of the sequence read of the tokens that were decoded: of a text that was cut off, all but the
    /// last. Empty without one ([`Context::set_watch`]).
    pub readings: Vec<Reading>,
    /// Why it ended.
    pub stop: Stop,
    /// How long it took.
    pub timings: Timings,
}

impl Generated {
    /// A text that was ended before its first token.
    pub(crate) fn none() -> Self {
        Self {
            text: String::new(),
            tokens: Vec::new(),
            margins: Vec::new(),
            log_probabilities: Vec::new(),
            readings: Vec::new(),
            stop: Stop::Caller,
            timings: Timings::default(),
        }
    }
}

/// Rows decoded and the time they took, prompt and generation separately. Sampling counts as generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Tokens of the prompt that were already in the KV cache.
    pub reused: usize,
    /// Tokens of the prompt decoded.
    pub prefill_tokens: usize,
    /// Time they took.
    pub prefill: Duration,
    /// Generated tokens decoded: all but the last one.
    pub decode_tokens: usize,
    /// Time they took.
    pub decode: Duration,
}

impl Timings {
    /// Returns tokens of the prompt per second, 0 if none were decoded.
    #[must_use]
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill)
    }

    /// Returns generated tokens per second, 0 if none were decoded.
    #[must_use]
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.decode_tokens, self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / time.as_secs_f64().max(1e-9) }
}

/// Decodes a prompt on sequence 0 and generates from it. `on_text` receives whole characters as they come,
/// and may stop the generation. It is called after every token and, with an empty text, between two passes of
/// the prompt ([`ContextOptions::ubatch`](crate::ContextOptions::ubatch)): a text that is stopped there has
/// no tokens.
///
/// The beginning of the prompt that the KV cache holds of the sequence is reused, as far as each of its rows
/// was computed under the caps that it would be computed under now. After a failure the context is cleared.
///
/// # Errors
/// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::Option`], and those of [`Context::decode`].
pub fn generate(
    context: &mut Context<'_>,
    prompt: &[Token],
    options: &GenerateOptions,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, Error> {
    generate_watched(context, prompt, options, |step| on_text(step.text))
}

/// What one step of a generation brought.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Step<'a> {
    /// Whole characters, possibly none.
    pub text: &'a str,
    /// The token that was generated. `None` between two passes of the prompt, and after the last token.
    pub token: Option<Token>,
    /// What the watch of the sequence has read since the last step ([`Context::set_watch`]): mostly of the token of
    /// that step, which was decoded since. Statistics of a GPU may arrive a few steps later.
    pub readings: &'a [Reading],
}

/// As [`generate`]. `on_step` receives with the text what the watch of sequence 0 reads. All that is read has arrived
/// with the last step.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use axiscap::file::CapFile;
/// use axiscap_llama::{Context, ContextOptions, GenerateOptions, Model, ModelOptions, Watch, Watcher};
/// use axiscap_llama::generate_watched;
///
/// let file = CapFile::read("caps.gguf".as_ref())?;
/// let model = Model::load("model.gguf", &ModelOptions::default())?;
/// let mut context = Context::new(&model, &ContextOptions::default())?;
/// context.set_caps(Some(&file.caps))?;
/// context.set_watch(0, Some(Watcher::new(&Watch::calibrated(&file, None)?)?))?;
/// let prompt = model.tokenize("The sea at night", true)?;
/// generate_watched(&mut context, &prompt, &GenerateOptions::default(), |step| {
///     print!("{}", step.text);
///     match step.readings.iter().any(|reading| reading.level.is_alarm()) {
///         true => ControlFlow::Break(()),
///         false => ControlFlow::Continue(()),
///     }
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of [`generate`].
pub fn generate_watched(
    context: &mut Context<'_>,
    prompt: &[Token],
    options: &GenerateOptions,
    on_step: impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Generated, Error> {
    generate_after(context, prompt, &Before::default(), options, on_step)
}

/// What came before a text that is generated.
#[derive(Debug, Default)]
pub(crate) struct Before<'a> {
    /// Where earlier answers are in the prompt.
    pub(crate) answers: &'a [Range<usize>],
    /// How alarm and watch stood before it, where it is not as the context has it.
    pub(crate) standing: Option<&'a Standing>,
}

/// As [`generate_watched`], after what came before.
pub(crate) fn generate_after(
    context: &mut Context<'_>,
    prompt: &[Token],
    before: &Before<'_>,
    options: &GenerateOptions,
    on_step: impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Generated, Error> {
    let mut sampler = options.sampling.sampler(context.model(), prompt)?;
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if prompt.len() > context.ctx() {
        return Err(Error::PromptTooLong {
            prompt: prompt.len(),
            context: context.ctx(),
            trained: context.model().trained_context(),
        });
    }
    let result = run(context, prompt, before, options, &mut sampler, on_step);
    if result.is_err() {
        context.clear();
    }
    result
}

fn run(
    context: &mut Context<'_>,
    prompt: &[Token],
    before: &Before<'_>,
    options: &GenerateOptions,
    sampler: &mut LlamaSampler,
    mut on_step: impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Generated, Error> {
    let (model, max_tokens) = (context.model(), options.max_tokens);
    let mut timings = Timings { reused: reuse(context, prompt, before)?, ..Timings::default() };
    let started = Instant::now();
    // Those of a text that was not generated here are not the caller's.
    drop(context.schedules.take_readings_of(0));
    let prefilled = prefill(context, prompt, &mut on_step)?;
    context.llama().synchronize();
    timings.prefill = started.elapsed();
    timings.prefill_tokens = context.position(0) - timings.reused;
    if prefilled.is_break() {
        return Ok(Generated { timings, ..Generated::none() });
    }

    let mut utf8 = Utf8::default();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let (mut margins, mut log_probabilities) = (Vec::new(), Vec::new());
    let (mut readings, mut shown) = (Vec::new(), 0);
    let started = Instant::now();
    let stop = loop {
        if tokens.len() == max_tokens {
            break Stop::MaxTokens;
        }
        debug_assert!(context.has_last_logits(), "sampling without logits would abort in llama.cpp");
        let token = sampler.sample(context.llama(), -1);
        if options.margins {
            margins.push(margin(context.last_logits()));
        }
        if options.log_probabilities {
            log_probabilities.push(log_probability(context.last_logits(), token));
        }
        if model.ends_generation(token) {
            break Stop::End(token);
        }
        tokens.push(token);
        let piece = utf8.push(&model.piece(token));
        text.push_str(&piece);
        let step = Step { text: &piece, token: Some(token), readings: &readings[shown..] };
        shown = readings.len();
        if on_step(step).is_break() {
            break Stop::Caller;
        }
        if tokens.len() == max_tokens {
            break Stop::MaxTokens;
        }
        let position = context.position(0);
        if position == context.ctx() {
            break Stop::ContextFull;
        }
        let position = i32::try_from(position).unwrap_or(i32::MAX);
        context.decode(&[BatchRow { token, position, sequence: 0, logits: true }])?;
        timings.decode_tokens += 1;
        readings.append(&mut context.schedules.take_readings_of(0));
    };
    context.llama().synchronize();
    timings.decode = started.elapsed();
    context.settle();
    readings.append(&mut context.schedules.take_readings_of(0));
    let rest = utf8.finish();
    text.push_str(&rest);
    let step = Step { text: &rest, token: None, readings: &readings[shown..] };
    if !(step.text.is_empty() && step.readings.is_empty()) {
        // Generation has ended, so the answer does not matter.
        let _ = on_step(step);
    }
    Ok(Generated { text, tokens, margins, log_probabilities, readings, stop, timings })
}

/// Decodes what the context does not hold of the prompt yet, pass by pass. `on_step` may stop it between two
/// passes: a batch of several would have to be computed to its end.
fn prefill(
    context: &mut Context<'_>,
    prompt: &[Token],
    on_step: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    while context.position(0) < prompt.len() {
        let start = context.position(0);
        let end = prompt.len().min(start + context.ubatch().max(1));
        context.prefill_part(&prompt[start..end], start, 0, end == prompt.len())?;
        let step = Step { text: "", token: None, readings: &[] };
        if end < prompt.len() && on_step(step).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Returns the largest value minus the second largest.
pub(crate) fn margin(logits: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &logit in logits {
        second = second.max(logit.min(first));
        first = first.max(logit);
    }
    first - second
}

/// Returns the natural logarithm of the probability that logits, `[vocabulary]`, give a token. NaN for a token
/// outside the vocabulary.
#[must_use]
pub fn log_probability(logits: &[f32], token: Token) -> f32 {
    let own = usize::try_from(token.0).ok().and_then(|index| logits.get(index));
    let Some(&own) = own else { return f32::NAN };
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Lanes of f32, which the compiler can vectorise. Terms far below the largest add up to less than an f32
    // resolves in any order.
    let sum: f64 =
        logits.chunks(1024).map(|part| f64::from(part.iter().map(|&l| (l - most).exp()).sum::<f32>())).sum();
    (f64::from(own) - f64::from(most) - sum.ln()) as f32
}

/// Truncates sequence 0 to the longest beginning that it shares with the prompt, computed as it would be now,
/// and returns its length. The prompt's last token is always decoded, because its logits are needed.
fn reuse(context: &mut Context<'_>, prompt: &[Token], before: &Before<'_>) -> Result<usize, Error> {
    // Caps may have changed since the last decode, and with them what the rows of a schedule would be now.
    context.follow(0)?;
    // A conversation goes on also where its last turn was taken back, or where it is decoded again.
    let answers = before.answers;
    let same_text = !answers.is_empty() || context.goes_on(0, prompt);
    let standing = match before.standing {
        Some(standing) => standing.clone(),
        None if same_text => context.schedules.standing(0),
        None => Standing::default(),
    };
    context.begin_text(0, prompt.len(), answers);
    let mut shared = context.shared_of(0, 0, prompt, same_text).min(prompt.len() - 1);
    if context.truncate(0, shared).is_err() {
        // A state cannot be cut.
        shared = 0;
        context.truncate(0, 0)?;
    }
    // A sequence that was emptied has forgotten its text, and how its alarm and its watch stood.
    context.begin_text(0, prompt.len(), answers);
    context.schedules.stand_as(0, &standing);
    Ok(shared)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_margin_is_the_distance_of_the_two_largest_values() {
        assert_eq!(super::margin(&[-3.0, 2.0, 0.5, -7.0]), 1.5);
        assert_eq!(super::margin(&[4.0, 1.0, 4.0]), 0.0);
    }

    #[test]
    fn log_probabilities_are_of_one_distribution() {
        use super::{Token, log_probability};

        let logits: Vec<f32> = (0..3000).map(|i| (i as f32 * 0.37).sin() * 9.0 + 500.0).collect();
        let sum: f64 = (0..3000).map(|i| f64::from(log_probability(&logits, Token(i))).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert_eq!(log_probability(&[0.0, 0.0], Token(1)), -std::f32::consts::LN_2);
        assert_eq!(log_probability(&[f32::NEG_INFINITY, 0.0], Token(0)), f32::NEG_INFINITY);
        assert!(log_probability(&[0.0], Token(1)).is_nan() && log_probability(&[0.0], Token(-1)).is_nan());
    }
}
