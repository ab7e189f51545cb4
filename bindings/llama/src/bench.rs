//! What capping costs: the same tokens, capped and uncapped, in turn, in one process.
//!
//! The baseline is a context that the hook has never touched. In every round all subjects decode the same tokens
//! from an empty KV cache. The prompt is decoded by one subject after the other, in alternating order; generated
//! tokens are decoded in lock-step, one token by each subject in turn, so that whatever else the machine does hits
//! all of them alike.

mod eval;
mod ratio;

use std::time::{Duration, Instant};

use axiscap::CapSet;
use axiscap_ggml::{Engine, GraphCounts};

use crate::Token;
use crate::context::{BatchRow, Context, ContextOptions};
use crate::error::Error;
use crate::model::Model;

pub use ratio::Ratio;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Rounds.
    pub pairs: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens decoded one by one.
    pub generate_tokens: usize,
    /// The contexts; `ctx` is raised as needed.
    pub context: ContextOptions,
    /// How the capped context runs its caps.
    pub engine: Engine,
    /// Also measure a hooked context with its caps switched off.
    pub idle: bool,
    /// Also measure the same caps through llama.cpp's `cb_eval`, with a host synchronisation per block.
    pub eval_callback: bool,
}

/// Capped against uncapped.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Token by token.
    pub decode: Ratio,
    /// The prompt.
    pub prefill: Ratio,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchReport {
    /// The capped context against the baseline.
    pub capped: Comparison,
    /// The hooked context with its caps switched off against the baseline.
    pub idle: Option<Comparison>,
    /// The `cb_eval` context against the baseline.
    pub eval_callback: Option<Comparison>,
    /// Share of rows (times caps) on which a cap engaged.
    pub engagement: f64,
    /// Where the capped context ran its caps, and how, in the hook's words.
    pub engines: Vec<(String, &'static str)>,
    /// How its graphs were run on GPUs under [`Engine::DeviceGraph`].
    pub graphs: GraphCounts,
}

/// Something that decodes.
trait Subject {
    fn clear(&mut self);
    /// Decodes tokens from an empty cache, with logits for the last.
    fn prefill(&mut self, tokens: &[Token]) -> Result<(), Error>;
    /// Decodes one more token, with logits.
    fn step(&mut self, token: Token, position: usize) -> Result<(), Error>;
}

impl Subject for Context<'_> {
    fn clear(&mut self) {
        Context::clear(self);
    }

    fn prefill(&mut self, tokens: &[Token]) -> Result<(), Error> {
        Context::prefill(self, tokens, 0, 0)?;
        self.llama().synchronize();
        Ok(())
    }

    fn step(&mut self, token: Token, position: usize) -> Result<(), Error> {
        let position = i32::try_from(position).unwrap_or(i32::MAX);
        self.decode(&[BatchRow { token, position, sequence: 0, logits: true }])?;
        self.llama().synchronize();
        Ok(())
    }
}

/// Time of one subject in one round.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    prefill: Duration,
    decode: Duration,
}

/// Measures what `caps` cost on `model`. `progress` is called with the rounds done and their number.
///
/// # Errors
/// [`Error::Option`] for zero pairs or tokens, and those of making and decoding contexts.
pub fn bench(
    model: &Model,
    caps: &CapSet,
    options: &BenchOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<BenchReport, Error> {
    let tokens = options.prompt_tokens.saturating_add(options.generate_tokens);
    for (option, value) in [
        ("pairs (--pairs)", options.pairs),
        ("prompt_tokens (--prompt-tokens)", options.prompt_tokens),
        ("generate_tokens (--generate-tokens)", options.generate_tokens),
    ] {
        if value == 0 || tokens > i32::MAX as usize {
            return Err(Error::Option {
                option,
                value: value.to_string(),
                expected: "1 or more, in reason".into(),
            });
        }
    }
    let text = sample_tokens(model, tokens)?;
    let needed = u32::try_from(tokens).unwrap_or(u32::MAX);
    let context =
        ContextOptions { ctx: Some(options.context.ctx.unwrap_or(0).max(needed)), ..options.context.clone() };

    let mut baseline = Context::uncapped(model, &context)?;
    let mut capped = Context::new(model, &context)?;
    capped.session()?.set_engine(options.engine);
    capped.set_caps(Some(caps))?;
    let mut idle = if options.idle {
        let mut idle = Context::new(model, &context)?;
        idle.session()?.set_engine(options.engine);
        idle.set_caps(Some(caps))?;
        idle.set_enabled(false)?;
        Some(idle)
    } else {
        None
    };
    let mut eval =
        if options.eval_callback { Some(eval::EvalContext::new(model, caps, &context)?) } else { None };

    let mut subjects: Vec<&mut dyn Subject> = vec![&mut baseline, &mut capped];
    if let Some(idle) = &mut idle {
        subjects.push(idle);
    }
    if let Some(eval) = &mut eval {
        subjects.push(eval);
    }
    // The first round fills caches and lets llama.cpp reserve its graphs; it is not counted.
    let mut rounds = Vec::with_capacity(options.pairs);
    for number in 0..=options.pairs {
        let samples = round(&mut subjects, &text, options.prompt_tokens, number % 2 == 1)?;
        if number > 0 {
            rounds.push(samples);
        }
        progress(number, options.pairs);
    }

    let compare = |subject: usize| {
        let pairs = |time: fn(&Sample) -> Duration| -> Vec<(Duration, Duration)> {
            rounds.iter().map(|round| (time(&round[0]), time(&round[subject]))).collect()
        };
        Comparison {
            decode: Ratio::of(&pairs(|sample| sample.decode), options.generate_tokens),
            prefill: Ratio::of(&pairs(|sample| sample.prefill), options.prompt_tokens),
        }
    };
    let stats = capped.stats()?;
    let (rows, engaged) =
        stats.iter().fold((0, 0), |(rows, engaged), s| (rows + s.rows, engaged + s.engaged));
    Ok(BenchReport {
        capped: compare(1),
        idle: idle.is_some().then(|| compare(2)),
        eval_callback: eval.is_some().then(|| compare(if idle.is_some() { 3 } else { 2 })),
        engagement: engaged as f64 / rows.max(1) as f64,
        engines: capped.engines_used()?,
        graphs: capped.session()?.graph_counts(),
    })
}

/// One round: every subject decodes `text`, the first `prompt` tokens at once. `turned` turns the order round.
fn round(
    subjects: &mut [&mut dyn Subject],
    text: &[Token],
    prompt: usize,
    turned: bool,
) -> Result<Vec<Sample>, Error> {
    let mut samples = vec![Sample::default(); subjects.len()];
    let order = |turned: bool| -> Vec<usize> {
        let forward = 0..subjects.len();
        if turned { forward.rev().collect() } else { forward.collect() }
    };
    let orders = [order(false), order(true)];
    for &subject in &orders[usize::from(turned)] {
        subjects[subject].clear();
        let started = Instant::now();
        subjects[subject].prefill(&text[..prompt])?;
        samples[subject].prefill = started.elapsed();
    }
    for (position, &token) in text.iter().enumerate().skip(prompt) {
        for &subject in &orders[(position + usize::from(turned)) % 2] {
            let started = Instant::now();
            subjects[subject].step(token, position)?;
            samples[subject].decode += started.elapsed();
        }
    }
    Ok(samples)
}

/// `count` tokens of plain text.
fn sample_tokens(model: &Model, count: usize) -> Result<Vec<Token>, Error> {
    const TEXT: &str = "I have been thinking about the sea again. When I was small we lived near the harbour, and \
        every evening my father came home smelling of salt and diesel. He did not say much. He would put his \
        hand on my head, and I would know that the day had gone well. Last week I went back for the first time \
        in twenty years. The boats are gone, and the houses have been painted in colours that nobody there would \
        have chosen. I stood on the quay and could not decide whether I was sad. What would you have done? ";
    let first = model.tokenize(TEXT, true)?;
    let more = model.tokenize(TEXT, false)?;
    let tokens: Vec<_> = first.iter().chain(more.iter().cycle()).copied().take(count).collect();
    if tokens.len() == count { Ok(tokens) } else { Err(Error::EmptyPrompt) }
}
