//! One request in progress.

use std::time::Duration;

use axiscap::{CapStats, RowStat};
use llama_cpp_2::sampling::LlamaSampler;

use super::{Finished, Request, RequestId, needed};
use crate::Token;
use crate::context::Context;
use crate::generate::{Generated, Stop, Timings, log_probability, margin};
use crate::utf8::Utf8;
use crate::watch::Reading;

/// One request in progress.
pub(super) struct Slot {
    pub(super) id: RequestId,
    pub(super) request: Request,
    sampler: LlamaSampler,
    /// Rows of prompt and answer that are in the KV cache.
    fed: usize,
    /// Rows of the batch that is being decoded.
    feeding: usize,
    tokens: Vec<Token>,
    text: String,
    utf8: Utf8,
    margins: Vec<f32>,
    log_probabilities: Vec<f32>,
    readings: Vec<Reading>,
    timings: Timings,
    waited: Duration,
    stats: Vec<CapStats>,
}

/// What sampling gave.
pub(super) struct Sampled {
    /// The token, if it is one of the text.
    pub(super) token: Option<Token>,
    /// Its text, whole characters.
    pub(super) text: String,
    /// Why the text ended, if it did.
    pub(super) stop: Option<Stop>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("id", &self.id).field("fed", &self.fed).finish_non_exhaustive()
    }
}

impl Slot {
    /// A request of whose prompt `reused` rows are in the KV cache.
    pub(super) fn new(
        id: RequestId,
        request: Request,
        sampler: LlamaSampler,
        reused: usize,
        waited: Duration,
    ) -> Self {
        Self {
            id,
            request,
            sampler,
            fed: reused,
            feeding: 0,
            tokens: Vec::new(),
            text: String::new(),
            utf8: Utf8::default(),
            margins: Vec::new(),
            log_probabilities: Vec::new(),
            readings: Vec::new(),
            timings: Timings { reused, ..Timings::default() },
            waited,
            stats: Vec::new(),
        }
    }

    /// Returns the rows that are reserved for it in a context.
    pub(super) fn reserved(&self, ctx: usize) -> usize {
        needed(&self.request, ctx)
    }

    /// Whether it has begun to answer.
    pub(super) fn is_answering(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Returns how many rows are to be decoded.
    pub(super) fn left(&self) -> usize {
        self.request.prompt.len() + self.tokens.len() - self.fed - self.feeding
    }

    /// Feeds the next row. Returns its token, its position, and whether the next token is sampled from it.
    pub(super) fn feed(&mut self) -> (Token, usize, bool) {
        let position = self.fed + self.feeding;
        self.feeding += 1;
        let prompt = &self.request.prompt;
        let token = prompt.get(position).copied().unwrap_or_else(|| self.tokens[position - prompt.len()]);
        (token, position, self.left() == 0)
    }

    /// Takes back the rows of a batch that failed.
    pub(super) fn unfeed(&mut self) {
        self.feeding = 0;
    }

    /// Notes that the rows were decoded in this time.
    pub(super) fn took(&mut self, time: Duration) {
        if self.feeding == 0 {
            return;
        }
        if self.is_answering() {
            self.timings.decode += time;
            self.timings.decode_tokens += self.feeding;
        } else {
            self.timings.prefill += time;
            self.timings.prefill_tokens += self.feeding;
        }
        self.fed += self.feeding;
        self.feeding = 0;
    }

    /// Samples the next token from a row of the last batch.
    pub(super) fn sample(&mut self, context: &Context<'_>, row: usize) -> Sampled {
        let options = &self.request.options;
        let ended = |stop| Sampled { token: None, text: String::new(), stop: Some(stop) };
        if options.max_tokens == 0 {
            return ended(Stop::MaxTokens);
        }
        let token = self.sampler.sample(context.llama(), i32::try_from(row).unwrap_or(i32::MAX));
        if options.margins {
            self.margins.push(margin(context.logits(row).unwrap_or_default()));
        }
        if options.log_probabilities {
            let logits = context.logits(row).unwrap_or_default();
            self.log_probabilities.push(log_probability(logits, token));
        }
        if context.model().ends_generation(token) {
            return ended(Stop::End(token));
        }
        self.tokens.push(token);
        let text = self.utf8.push(&context.model().piece(token));
        self.text.push_str(&text);
        let stop = if self.tokens.len() >= options.max_tokens {
            Some(Stop::MaxTokens)
        } else if self.fed >= context.ctx() {
            Some(Stop::ContextFull)
        } else {
            None
        };
        Sampled { token: Some(token), text, stop }
    }

    #[cfg(test)]
    pub(super) fn answer_for_test(&mut self, token: Token) {
        self.tokens.push(token);
    }

    /// Takes what its watch read.
    pub(super) fn read(&mut self, reading: Reading) {
        self.readings.push(reading);
    }

    /// Counts what a cap did to a row.
    pub(super) fn count(&mut self, cap: usize, skipped: bool, stat: &RowStat) {
        if self.stats.len() <= cap {
            self.stats.resize(cap + 1, CapStats::default());
        }
        if skipped {
            self.stats[cap].skipped += 1;
        } else {
            self.stats[cap].add(stat);
        }
    }

    /// Ends the request. Returns with what was generated the rest of its text, which no token completed.
    pub(super) fn finish(mut self, stop: Stop) -> (String, Finished) {
        let rest = self.utf8.finish();
        self.text.push_str(&rest);
        let Self { tokens, text, margins, log_probabilities, readings, timings, waited, stats, .. } = self;
        let generated = Generated { text, tokens, margins, log_probabilities, readings, stop, timings };
        (rest, Finished { generated, waited, stats, watch: self.request.watch.map(Box::new) })
    }
}
