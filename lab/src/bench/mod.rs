//! What capping costs: the same tokens, capped and uncapped, in turn, in one process.
//!
//! The baseline is a context that the hook has never touched. In every round all subjects get new contexts, so that
//! what two contexts differ in by accident, such as where their buffers lie, is drawn anew, and decode the same tokens.
//! The prompt is decoded several times, by one subject after the other, in alternating order; generated tokens are
//! decoded in lock-step, one token by each subject in turn, so that whatever else the machine does hits all of them
//! alike. With several sequences a step decodes one token of each; they go on from one prompt, with different tokens. A
//! round's ratio is the median over its prompts or tokens, which an interruption does not move; the ratio of total
//! times is given beside it.

mod eval;
mod ratio;
mod timeline;

use std::time::{Duration, Instant};

use axiscap::CapSet;
use axiscap_ggml::{Engine, FusedNorms, GraphCounts, Session};

use crate::Token;
use crate::context::{BatchRow, Context, ContextOptions, MOST_CTX};
use crate::error::Error;
use crate::model::Model;

use eval::{EvalContext, EvalModel};
pub use ratio::Ratio;
pub use timeline::{BlockTimes, GraphTimes, Timeline};

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Rounds.
    pub pairs: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How often a round decodes the prompt. A round's prefill ratio is the median over these.
    pub prompts: usize,
    /// Tokens decoded one by one.
    pub generate_tokens: usize,
    /// Sequences decoded at once, 1 or more: rows of a decode step.
    pub sequences: u32,
    /// The contexts; `ctx` is raised as needed.
    pub context: ContextOptions,
    /// How the capped context runs its caps.
    pub engine: Engine,
    /// Whether what the caps do is counted ([`axiscap_ggml::Session::set_statistics`]); without it
    /// [`BenchReport::engagement`] is not known.
    pub statistics: bool,
    /// Whether its caps do the norm behind their block too, where they run on a GPU.
    pub fused_norm: bool,
    /// Also measure a hooked context with its caps switched off.
    pub idle: bool,
    /// Also measure the same caps through llama.cpp's `cb_eval`, with a host synchronisation per block.
    pub eval_callback: bool,
    /// Also measure the same caps through ggml's own operations ([`Engine::StockChain`]), uncounted.
    pub stock_chain: bool,
    /// Also time a few further decodes of the capped context on its GPU, after everything else.
    pub timeline: bool,
}

impl Default for BenchOptions {
    /// 15 rounds of a prompt of 512 tokens, decoded three times, and 64 tokens after it, one sequence; nothing further.
    fn default() -> Self {
        Self {
            pairs: 15,
            prompt_tokens: 512,
            prompts: 3,
            generate_tokens: 64,
            sequences: 1,
            context: ContextOptions::default(),
            engine: Engine::Auto,
            statistics: true,
            fused_norm: false,
            idle: false,
            eval_callback: false,
            stock_chain: false,
            timeline: false,
        }
    }
}

impl BenchOptions {
    /// Tokens that a context must hold.
    #[must_use]
    pub fn needed_context(&self) -> usize {
        self.measured_tokens().saturating_add(self.timed_tokens())
    }

    fn measured_tokens(&self) -> usize {
        self.prompt_tokens.saturating_add(self.generate_tokens.saturating_mul(self.sequences as usize))
    }

    fn timed_tokens(&self) -> usize {
        if self.timeline { timeline::DECODES.saturating_mul(self.sequences as usize) } else { 0 }
    }

    fn check(&self) -> Result<(), Error> {
        for (option, value) in [
            ("pairs (--pairs)", self.pairs),
            ("prompt_tokens (--prompt-tokens)", self.prompt_tokens),
            ("generate_tokens (--generate-tokens)", self.generate_tokens),
            ("prompts (--prompts)", self.prompts),
            ("sequences (--sequences)", self.sequences as usize),
        ] {
            if value == 0 {
                return Err(Error::Option { option, value: value.to_string(), expected: "1 or more".into() });
            }
        }
        let needed = self.needed_context();
        if needed > MOST_CTX as usize {
            return Err(Error::Option {
                option: "prompt_tokens + sequences * generate_tokens (--prompt-tokens, --sequences, --generate-tokens)",
                value: needed.to_string(),
                expected: format!("at most {MOST_CTX}"),
            });
        }
        Ok(())
    }
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
    /// The context that caps through ggml's own operations against the baseline.
    pub stock_chain: Option<Comparison>,
    /// Share of rows (times caps) on which a cap engaged; `None` where nobody counted.
    pub engagement: Option<f64>,
    /// Where the capped context ran its caps, and how, in the hook's words.
    pub engines: Vec<(String, &'static str)>,
    /// How its graphs were run on GPUs under [`Engine::DeviceGraph`].
    pub graphs: GraphCounts,
    /// What became of the norms behind its capped blocks.
    pub fused_norms: FusedNorms,
    /// Where the time goes on the GPU, if asked for; or why that is not known, e.g. because nothing ran on a GPU.
    pub timeline: Option<Result<Timeline, String>>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Baseline,
    Capped,
    Idle,
    EvalCallback,
    StockChain,
}

/// Something that decodes.
trait Subject {
    fn clear(&mut self);
    /// Decodes tokens from an empty cache, with logits for the last.
    fn prefill(&mut self, tokens: &[Token]) -> Result<(), Error>;
    /// Makes the sequences below `count` copies of sequence 0.
    fn spread(&mut self, count: u32) -> Result<(), Error>;
    /// Decodes one more token of each sequence, with logits.
    fn step(&mut self, tokens: &[Token], position: usize) -> Result<(), Error>;
    /// (rows times caps, those engaged)
    fn engaged(&self) -> (u64, u64) {
        (0, 0)
    }
    fn engines(&self) -> Vec<(String, &'static str)> {
        Vec::new()
    }
    fn graphs(&self) -> GraphCounts {
        GraphCounts::default()
    }
    fn fused_norms(&self) -> FusedNorms {
        FusedNorms::default()
    }
    fn session(&self) -> Option<&Session> {
        None
    }
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

    fn spread(&mut self, count: u32) -> Result<(), Error> {
        (1..count.cast_signed()).try_for_each(|sequence| self.copy_sequence(0, sequence))
    }

    fn step(&mut self, tokens: &[Token], position: usize) -> Result<(), Error> {
        let position = i32::try_from(position).unwrap_or(i32::MAX);
        let row = |(sequence, &token)| BatchRow { token, position, sequence, logits: true };
        self.decode(&(0..).zip(tokens).map(row).collect::<Vec<_>>())?;
        self.llama().synchronize();
        Ok(())
    }

    fn engaged(&self) -> (u64, u64) {
        let stats = self.stats().unwrap_or_default();
        stats.iter().fold((0, 0), |(rows, engaged), s| (rows + s.rows, engaged + s.engaged))
    }

    fn engines(&self) -> Vec<(String, &'static str)> {
        self.engines_used().unwrap_or_default()
    }

    fn graphs(&self) -> GraphCounts {
        Context::session(self).map(Session::graph_counts).unwrap_or_default()
    }

    fn fused_norms(&self) -> FusedNorms {
        Context::fused_norms(self).unwrap_or_default()
    }

    fn session(&self) -> Option<&Session> {
        Context::session(self).ok()
    }
}

/// Times of one subject in one round.
#[derive(Debug, Clone, Default)]
struct Sample {
    prefill: Vec<Duration>,
    /// Per token.
    decode: Vec<Duration>,
}

/// Measures what `caps` cost on `model`. `progress` is called with the rounds done and their number.
///
/// # Errors
/// [`Error::Option`] for zero pairs or tokens and for more than a context can hold, and those of making and decoding contexts.
pub fn bench(
    model: &Model,
    caps: &CapSet,
    options: &BenchOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<BenchReport, Error> {
    options.check()?;
    let sequences = options.sequences as usize;
    let tokens = options.needed_context();
    let text = sample_tokens(model, tokens)?;
    let (text, further) = text.split_at(options.measured_tokens());
    let needed = u32::try_from(tokens).unwrap_or(u32::MAX);
    let context = ContextOptions {
        ctx: Some(options.context.ctx.unwrap_or(0).max(needed)),
        sequences: options.sequences,
        ..options.context.clone()
    };
    let mut kinds = vec![Kind::Baseline, Kind::Capped];
    kinds.extend(options.idle.then_some(Kind::Idle));
    kinds.extend(options.eval_callback.then_some(Kind::EvalCallback));
    kinds.extend(options.stock_chain.then_some(Kind::StockChain));
    let eval_model = if options.eval_callback { Some(EvalModel::load(model)?) } else { None };
    let make = |kind: Kind| -> Result<Box<dyn Subject + '_>, Error> {
        if let (Kind::EvalCallback, Some(copy)) = (kind, &eval_model) {
            return Ok(Box::new(EvalContext::new(model, copy, caps, options.statistics, &context)?));
        }
        if kind == Kind::Baseline {
            return Ok(Box::new(Context::uncapped(model, &context)?));
        }
        let mut capped = Context::new(model, &context)?;
        // The chain has neither figures nor a norm.
        let stock = kind == Kind::StockChain;
        capped.session()?.set_engine(if stock { Engine::StockChain } else { options.engine });
        capped.session()?.set_statistics(options.statistics && !stock);
        capped.set_fused_norm(options.fused_norm && !stock)?;
        capped.set_caps(Some(caps))?;
        capped.set_enabled(kind != Kind::Idle)?;
        Ok(Box::new(capped))
    };

    let mut rounds = Vec::with_capacity(options.pairs);
    let (mut rows, mut engaged, mut engines, mut graphs) = (0, 0, Vec::new(), GraphCounts::default());
    let mut fused_norms = FusedNorms::default();
    let mut timed = None;
    for number in 0..options.pairs {
        let turned = number % 2 == 1;
        let mut subjects: Vec<Option<Box<dyn Subject + '_>>> = kinds.iter().map(|_| None).collect();
        for index in order(kinds.len(), turned) {
            subjects[index] = Some(make(kinds[index])?);
        }
        let mut subjects: Vec<_> = subjects.into_iter().flatten().collect();
        rounds.push(round(&mut subjects, text, options, turned)?);
        let of_round = subjects[1].engaged();
        (rows, engaged) = (rows + of_round.0, engaged + of_round.1);
        engines = subjects[1].engines();
        graphs += subjects[1].graphs();
        fused_norms = subjects[1].fused_norms();
        if options.timeline && number + 1 == options.pairs {
            let position = options.prompt_tokens + options.generate_tokens;
            timed = Some(timeline::take(subjects[1].as_mut(), further, sequences, position)?);
        }
        progress(number + 1, options.pairs);
    }

    let compare = |kind: Kind| {
        let subject = kinds.iter().position(|&k| k == kind)?;
        let pairs = |times: fn(&Sample) -> &[Duration]| -> Vec<(&[Duration], &[Duration])> {
            rounds.iter().map(|round: &Vec<Sample>| (times(&round[0]), times(&round[subject]))).collect()
        };
        Some(Comparison {
            decode: Ratio::of(&pairs(|sample| &sample.decode), sequences),
            prefill: Ratio::of(&pairs(|sample| &sample.prefill), options.prompt_tokens),
        })
    };
    Ok(BenchReport {
        capped: compare(Kind::Capped).ok_or(Error::NotBound)?,
        idle: compare(Kind::Idle),
        eval_callback: compare(Kind::EvalCallback),
        stock_chain: compare(Kind::StockChain),
        engagement: (rows > 0).then(|| engaged as f64 / rows as f64),
        engines,
        graphs,
        fused_norms,
        timeline: timed,
    })
}

/// The indices below `count`, upwards or downwards.
fn order(count: usize, turned: bool) -> Vec<usize> {
    if turned { (0..count).rev().collect() } else { (0..count).collect() }
}

/// One round: every subject decodes `text`, the prompt at once. `turned` turns the order round.
fn round(
    subjects: &mut [Box<dyn Subject + '_>],
    text: &[Token],
    options: &BenchOptions,
    turned: bool,
) -> Result<Vec<Sample>, Error> {
    let (prompt, rest) = text.split_at(options.prompt_tokens);
    let mut samples = vec![Sample::default(); subjects.len()];
    let orders = [order(subjects.len(), false), order(subjects.len(), true)];
    // A new context's first decodes reserve its graphs and touch its memory for the first time.
    for &subject in &orders[usize::from(turned)] {
        subjects[subject].prefill(prompt)?;
        subjects[subject].spread(options.sequences)?;
        subjects[subject].step(&rest[..options.sequences as usize], prompt.len())?;
    }
    for turn in 0..options.prompts {
        for &subject in &orders[(turn + usize::from(turned)) % 2] {
            subjects[subject].clear();
            let started = Instant::now();
            subjects[subject].prefill(prompt)?;
            samples[subject].prefill.push(started.elapsed());
        }
    }
    for subject in &mut *subjects {
        subject.spread(options.sequences)?;
    }
    for (tokens, position) in rest.chunks(options.sequences as usize).zip(prompt.len()..) {
        for &subject in &orders[(position + usize::from(turned)) % 2] {
            let started = Instant::now();
            subjects[subject].step(tokens, position)?;
            samples[subject].decode.push(started.elapsed());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_named() {
        let message = |options: BenchOptions| options.check().unwrap_err().to_string();
        let options = BenchOptions::default();
        assert!(options.check().is_ok());
        assert_eq!((options.needed_context(), options.pairs), (576, 15));
        assert!(message(BenchOptions { pairs: 0, ..options.clone() }).contains("--pairs"));
        let timed = BenchOptions { timeline: true, sequences: 2, ..options.clone() };
        assert_eq!(timed.needed_context(), 512 + 2 * 64 + 2 * timeline::DECODES);
        // Too much altogether is no fault of --pairs, nor of a --ctx that was not given.
        let far = message(BenchOptions { generate_tokens: usize::MAX, sequences: 3, ..options });
        assert!(far.contains("--generate-tokens") && far.contains("at most 16777216"), "{far}");
        assert!(!far.contains("--pairs") && !far.contains("--ctx"), "{far}");
    }
}
