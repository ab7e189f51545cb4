//! What capping costs: the same tokens, capped and uncapped, in turn, in one process.
//!
//! The baseline is a context that the hook has never touched. In every round all subjects get new contexts,
//! because two contexts differ by accident, for example in where their buffers lie. Then they decode the same
//! tokens. The prompt is decoded several times, by one subject after the other, in alternating order.
//! Generated tokens are decoded in lock-step, one token by each subject in turn, so the other work of the
//! machine slows all of them alike. With several sequences a step decodes one token of each. They continue
//! from one prompt with different tokens.
//!
//! Several profiles in one batch are compared with the capped context, whose sequences are all under one
//! profile.
//!
//! A round's ratio is the median over its prompts or tokens, which one interruption does not move. The ratio
//! of total times is given beside it.

mod ratio;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use axiscap::CapSet;
use axiscap_llama::{
    ContextOptions, FusedNorms, GraphCounts, MAX_CTX, Model, RouteChoice, RouteUse, Settings, Token,
};

use crate::baselines::{Outcome, Subject, Subjects, Way};
use crate::error::Error;

pub use ratio::{Ratio, median_interval};

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
    /// Sequences decoded at once, 1 or more. This is the number of rows of a decode step.
    pub sequences: u32,
    /// Profiles of a further context, 1 to `sequences`. From 2 on its sequences are measured under so many
    /// profiles in turn, against the capped context ([`BenchReport::profiles`]).
    pub profiles: usize,
    /// How the contexts are made. `ctx` is raised as needed.
    pub context: ContextOptions,
    /// How the capped context computes a graph with its caps.
    pub route: RouteChoice,
    /// Whether what the caps do is counted. Without it [`BenchReport::engagement`] is unknown.
    pub statistics: bool,
    /// Whether caps on a GPU do the RMSNorm that follows their block.
    pub fused_norm: bool,
    /// Whether a hooked context with its caps switched off is measured too.
    pub idle: bool,
    /// Whether the same caps through llama.cpp's `cb_eval` are measured too, with a host synchronisation per
    /// block.
    pub eval_callback: bool,
    /// Whether the same caps through ggml's own operations are measured too, without statistics.
    pub ggml_ops: bool,
}

impl Default for BenchOptions {
    /// Returns 15 rounds of a prompt of 512 tokens, decoded three times, and 64 tokens after it, one
    /// sequence, no comparison but the baseline.
    fn default() -> Self {
        Self {
            pairs: 15,
            prompt_tokens: 512,
            prompts: 3,
            generate_tokens: 64,
            sequences: 1,
            profiles: 1,
            context: ContextOptions::default(),
            route: RouteChoice::Auto,
            statistics: true,
            fused_norm: false,
            idle: false,
            eval_callback: false,
            ggml_ops: false,
        }
    }
}

impl BenchOptions {
    /// Returns how many tokens a context must hold.
    #[must_use]
    pub fn needed_context(&self) -> usize {
        self.prompt_tokens.saturating_add(self.generate_tokens.saturating_mul(self.sequences as usize))
    }

    fn context(&self) -> ContextOptions {
        let needed = u32::try_from(self.needed_context()).unwrap_or(u32::MAX);
        ContextOptions {
            ctx: Some(self.context.ctx.unwrap_or(0).max(needed)),
            sequences: self.sequences,
            ..self.context.clone()
        }
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.route = self.route;
        (settings.statistics, settings.fused_norm) = (self.statistics, self.fused_norm);
        settings
    }

    /// Returns what is measured. The first is the baseline, and [`CAPPED`] the index of the capped context.
    fn ways(&self) -> Vec<Way> {
        let mut ways = vec![Way::Uncapped, Way::Capped];
        if self.profiles > 1 {
            ways.extend([Way::Mixed { profiles: self.profiles }, Way::Indexed]);
        }
        ways.extend(self.idle.then_some(Way::Idle));
        ways.extend(self.eval_callback.then_some(Way::EvalCallback));
        ways.extend(self.ggml_ops.then_some(Way::GgmlOps));
        ways
    }

    fn check(&self) -> Result<(), Error> {
        for (option, value) in [
            ("pairs", self.pairs),
            ("prompt_tokens", self.prompt_tokens),
            ("generate_tokens", self.generate_tokens),
            ("prompts", self.prompts),
            ("sequences", self.sequences as usize),
            ("profiles", self.profiles),
        ] {
            if value == 0 {
                return Err(Error::Option { option, value: value.to_string(), expected: "1 or more".into() });
            }
        }
        if self.profiles > self.sequences as usize {
            return Err(Error::Option {
                option: "profiles",
                value: self.profiles.to_string(),
                expected: format!("at most {}, the number of sequences", self.sequences),
            });
        }
        let needed = self.needed_context();
        if needed > MAX_CTX as usize {
            return Err(Error::Option {
                option: "prompt_tokens + sequences * generate_tokens",
                value: needed.to_string(),
                expected: format!("at most {MAX_CTX}"),
            });
        }
        Ok(())
    }
}

/// One way to decode against its baseline.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Token by token.
    pub decode: Ratio,
    /// The prompt.
    pub prefill: Ratio,
}

/// Several profiles in one batch against one. The baseline is the capped context.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileComparison {
    /// Number of profiles.
    pub count: usize,
    /// Sequences under the profiles in turn. The prompt is one sequence, so one profile.
    pub mixed: Comparison,
    /// As [`BenchReport::engagement`], over all profiles.
    pub mixed_engagement: Option<f64>,
    /// One profile that each row names by an index. What mixed batches lose beyond it is due to the profiles.
    pub indexed: Comparison,
    /// As [`BenchReport::engagement`].
    pub indexed_engagement: Option<f64>,
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
    pub ggml_ops: Option<Comparison>,
    /// Several profiles against the capped context. `None` unless [`BenchOptions::profiles`] asks for it.
    pub profiles: Option<ProfileComparison>,
    /// Share of rows (times caps) on which a cap of the capped context engaged. `None` without statistics.
    pub engagement: Option<f64>,
    /// Where the capped context ran its caps, and how.
    pub routes: Vec<RouteUse>,
    /// How its graphs were run on GPUs under [`RouteChoice::OneGraph`].
    pub graphs: GraphCounts,
    /// Which of the norms that follow its capped blocks ran with the caps.
    pub fused_norms: FusedNorms,
}

/// Times of one subject in one round.
#[derive(Debug, Clone, Default)]
struct Sample {
    prefill: Vec<Duration>,
    /// Per token.
    decode: Vec<Duration>,
}

/// How often caps engaged.
#[derive(Debug, Clone, Copy, Default)]
struct Engaged {
    /// Rows times caps.
    rows: u64,
    engaged: u64,
}

impl Engaged {
    fn add(&mut self, outcome: &Outcome) {
        self.rows += outcome.rows;
        self.engaged += outcome.engaged;
    }

    fn share(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.engaged as f64 / self.rows as f64)
    }
}

/// Measures what `caps` cost on `model`. `go_on` is called with the rounds done and their number, before every
/// round and between any two decodes. If it asks to stop, the report is on the rounds that are complete, and
/// `None` without one.
///
/// # Errors
/// [`Error::Option`] for zero pairs or tokens and for more than a context can hold, and those of making and
/// decoding contexts.
pub fn bench(
    model: &Model,
    caps: &CapSet,
    options: &BenchOptions,
    mut go_on: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Option<BenchReport>, Error> {
    options.check()?;
    let text = sample_tokens(model, options.needed_context())?;
    let ways = options.ways();
    let subjects = Subjects::new(model, caps, &ways, options.context(), options.settings())?;

    let mut rounds = Vec::with_capacity(options.pairs);
    let (mut engaged, mut graphs) = (vec![Engaged::default(); ways.len()], GraphCounts::default());
    let mut last = Outcome::default();
    for number in 0..options.pairs {
        if go_on(number, options.pairs).is_break() {
            break;
        }
        let turned = number % 2 == 1;
        let mut made: Vec<Option<Box<dyn Subject + '_>>> = ways.iter().map(|_| None).collect();
        for index in order(ways.len(), turned) {
            made[index] = Some(subjects.make(ways[index])?);
        }
        let mut made: Vec<_> = made.into_iter().flatten().collect();
        let mut goes_on = || go_on(number, options.pairs);
        let Some(samples) = round(&mut made, &text, options, turned, &mut goes_on)? else { break };
        rounds.push(samples);
        last = made[CAPPED].outcome();
        for (engaged, subject) in engaged.iter_mut().zip(&made) {
            engaged.add(&subject.outcome());
        }
        graphs += last.graphs;
    }
    if rounds.is_empty() {
        return Ok(None);
    }

    let compare = |baseline: usize, subject: usize| {
        let pairs = |times: fn(&Sample) -> &[Duration]| -> Vec<(&[Duration], &[Duration])> {
            rounds
                .iter()
                .map(|round: &Vec<Sample>| (times(&round[baseline]), times(&round[subject])))
                .collect()
        };
        Comparison {
            decode: Ratio::of(&pairs(|sample| &sample.decode), options.sequences as usize),
            prefill: Ratio::of(&pairs(|sample| &sample.prefill), options.prompt_tokens),
        }
    };
    let index_of = |way: Way| ways.iter().position(|&measured| measured == way);
    let compare_way = |way: Way| index_of(way).map(|index| compare(UNCAPPED, index));
    let mixed = index_of(Way::Mixed { profiles: options.profiles });
    let profiles = mixed.zip(index_of(Way::Indexed)).map(|(mixed, indexed)| ProfileComparison {
        count: options.profiles,
        mixed: compare(CAPPED, mixed),
        mixed_engagement: engaged[mixed].share(),
        indexed: compare(CAPPED, indexed),
        indexed_engagement: engaged[indexed].share(),
    });
    Ok(Some(BenchReport {
        capped: compare(UNCAPPED, CAPPED),
        idle: compare_way(Way::Idle),
        eval_callback: compare_way(Way::EvalCallback),
        ggml_ops: compare_way(Way::GgmlOps),
        profiles,
        engagement: engaged[CAPPED].share(),
        routes: last.routes,
        graphs,
        fused_norms: last.fused_norms,
    }))
}

/// Index of the untouched context among what is measured.
const UNCAPPED: usize = 0;

/// Index of the capped context among what is measured.
const CAPPED: usize = 1;

/// Returns the indices below `count`, descending if `turned`.
fn order(count: usize, turned: bool) -> Vec<usize> {
    if turned { (0..count).rev().collect() } else { (0..count).collect() }
}

/// Runs one round: every subject decodes `text`, the prompt at once. `turned` reverses their order. Returns
/// `None` if `go_on` asked to stop.
fn round(
    subjects: &mut [Box<dyn Subject + '_>],
    text: &[Token],
    options: &BenchOptions,
    turned: bool,
    go_on: &mut impl FnMut() -> ControlFlow<()>,
) -> Result<Option<Vec<Sample>>, Error> {
    let (prompt, rest) = text.split_at(options.prompt_tokens);
    let mut samples = vec![Sample::default(); subjects.len()];
    let orders = [order(subjects.len(), false), order(subjects.len(), true)];
    // The first decodes of a new context reserve its graphs and touch its memory, so they are not measured.
    for &subject in &orders[usize::from(turned)] {
        let prefilled = prefill(&mut *subjects[subject], prompt, options, go_on)?;
        if prefilled.is_break() {
            return Ok(None);
        }
        subjects[subject].spread(options.sequences)?;
        subjects[subject].step(&rest[..options.sequences as usize], prompt.len())?;
    }
    for turn in 0..options.prompts {
        for &subject in &orders[(turn + usize::from(turned)) % 2] {
            subjects[subject].clear();
            let started = Instant::now();
            let prefilled = prefill(&mut *subjects[subject], prompt, options, go_on)?;
            samples[subject].prefill.push(started.elapsed());
            if prefilled.is_break() {
                return Ok(None);
            }
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
            if go_on().is_break() {
                return Ok(None);
            }
        }
    }
    Ok(Some(samples))
}

/// Decodes the prompt, in batches as long as allowed.
fn prefill(
    subject: &mut (dyn Subject + '_),
    prompt: &[Token],
    options: &BenchOptions,
    go_on: &mut impl FnMut() -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    let batch = options.context.batch.max(options.context.ubatch).max(1) as usize;
    for (part, position) in prompt.chunks(batch).zip((0..).step_by(batch)) {
        subject.prefill(part, position, position + part.len() == prompt.len())?;
        if go_on().is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Returns `count` tokens of plain text.
fn sample_tokens(model: &Model, count: usize) -> Result<Vec<Token>, Error> {
    const TEXT: &str = "I have been thinking about the sea again. When I was small we lived near the harbour, and \
        every evening my father came home smelling of salt and diesel. He did not say much. He would put his \
        hand on my head, and I would know that the day had gone well. Last week I went back for the first time \
        in twenty years. The boats are gone, and the houses have been painted in colours that nobody there would \
        have chosen. I stood on the quay and could not decide whether I was sad. What would you have done? ";
    let first = model.tokenize(TEXT, true)?;
    let more = model.tokenize(TEXT, false)?;
    let tokens: Vec<_> = first.iter().chain(more.iter().cycle()).copied().take(count).collect();
    if tokens.len() == count { Ok(tokens) } else { Err(axiscap_llama::Error::EmptyPrompt.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_out_of_range_is_named() {
        let message = |options: BenchOptions| options.check().unwrap_err().to_string();
        let options = BenchOptions::default();
        assert!(options.check().is_ok());
        assert_eq!((options.needed_context(), options.pairs), (576, 15));
        assert!(message(BenchOptions { pairs: 0, ..options.clone() }).contains("pairs is 0"));
        let two = BenchOptions { sequences: 2, ..options.clone() };
        assert_eq!(two.needed_context(), 512 + 2 * 64);
        // Each profile needs a sequence.
        let profiles = |profiles| BenchOptions { profiles, ..two.clone() };
        assert!(profiles(2).check().is_ok());
        assert!(
            message(profiles(3)).contains("profiles is 3; it must be at most 2, the number of sequences")
        );
        assert!(message(profiles(0)).contains("profiles is 0; it must be 1 or more"));
        assert_eq!(profiles(1).ways(), [Way::Uncapped, Way::Capped]);
        assert_eq!(profiles(2).ways()[2..], [Way::Mixed { profiles: 2 }, Way::Indexed]);
        // Too much in total names the options that add up, and neither the pairs nor a context that was not
        // given.
        let far = message(BenchOptions { generate_tokens: usize::MAX, sequences: 3, ..options });
        assert!(far.contains("generate_tokens") && far.contains("at most 16777216"), "{far}");
        assert!(!far.contains("pairs") && !far.contains("ctx"), "{far}");
    }
}
