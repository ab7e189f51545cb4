//! Continuous batching: requests with profiles of their own, side by side in one context.
//!
//! A request waits in a bounded queue until a sequence of the context and room in its KV cache are free. Every
//! [`Batcher::step`] decodes one batch: a row of each answer in progress, and equal shares of the prompts.
//! Requests under different profiles share a batch.
//!
//! Rows of a finished request stay in its sequence. A later prompt that begins alike takes them over, as far as
//! each of them was computed as it would be now: a prompt cache per profile.

mod fill;
mod slot;

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axiscap::{CapStats, RowStat};
use axiscap_ggml::{HookError, ProfileId};

use crate::Token;
use crate::context::Context;
use crate::error::Error;
use crate::generate::{GenerateOptions, Generated, Stop};
use crate::schedule::{Engagement, Schedule};
use crate::watch::{Reading, Watcher};
use fill::fill;
use slot::{Sampled, Slot};

/// How requests are batched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatcherOptions {
    /// Maximum requests that wait for a sequence.
    pub queue: usize,
    /// Whether rows of finished requests are kept for prompts that begin alike.
    pub reuse: bool,
    /// Whether what the caps did is counted for each request ([`Finished::stats`]).
    pub statistics: bool,
}

impl Default for BatcherOptions {
    /// Returns a queue of 64, with reuse, without statistics.
    fn default() -> Self {
        Self { queue: 64, reuse: true, statistics: false }
    }
}

/// A text to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt.
    pub prompt: Vec<Token>,
    /// Where earlier answers of the model are in the prompt ([`Schedule::AssistantTurns`]).
    pub answers: Vec<Range<usize>>,
    /// How it is generated.
    pub options: GenerateOptions,
    /// The profile. `None` leaves the text uncapped.
    pub profile: Option<ProfileId>,
    /// When the profile's caps act.
    pub schedule: Schedule,
    /// The watch of the answer. That of a conversation goes on from [`Finished::watch`].
    pub watch: Option<Watcher>,
}

impl Request {
    /// Makes a request under the default profile, whose caps always act.
    #[must_use]
    pub fn new(prompt: Vec<Token>, options: GenerateOptions) -> Self {
        let (profile, schedule) = (Some(ProfileId::DEFAULT), Schedule::Always);
        Self { prompt, answers: Vec::new(), options, profile, schedule, watch: None }
    }

    /// Returns the same request under another profile. `None` leaves the text uncapped.
    #[must_use]
    pub fn under(self, profile: Option<ProfileId>) -> Self {
        Self { profile, ..self }
    }
}

/// Names a request of one batcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// A text that ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// What was generated. Times are those of the request's own rows and of what shared their batches.
    pub generated: Generated,
    /// Time in the queue.
    pub waited: Duration,
    /// What each cap of the profile did, in the order of its set. Empty without
    /// [`BatcherOptions::statistics`] and for an uncapped text.
    pub stats: Vec<CapStats>,
    /// The watch of the request as it stands after the answer.
    pub watch: Option<Box<Watcher>>,
}

/// What happened in a step.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A text goes on.
    Text {
        /// The request.
        request: RequestId,
        /// The token that was generated. `None` for what was left of the last ones when the text ended.
        token: Option<Token>,
        /// Whole characters, possibly none.
        text: &'a str,
    },
    /// The caps of a request began to act, or ceased to.
    Engagement {
        /// The request.
        request: RequestId,
        /// When and why.
        engagement: Engagement,
    },
    /// The watch of a request read a token of its answer, mostly the one before the last: statistics of a GPU may
    /// arrive a few steps later. All have arrived before [`Event::Done`].
    Reading {
        /// The request.
        request: RequestId,
        /// What was read.
        reading: Reading,
    },
    /// A request ended. Several may have failed for one reason.
    Done {
        /// The request.
        request: RequestId,
        /// What was generated, or why not.
        result: Result<Finished, Arc<Error>>,
    },
}

#[derive(Debug)]
struct Queued {
    id: RequestId,
    request: Request,
    since: Instant,
}

/// A context and the requests that it serves, one per sequence.
#[derive(Debug)]
pub struct Batcher<'m> {
    context: Context<'m>,
    options: BatcherOptions,
    queue: VecDeque<Queued>,
    /// By sequence.
    slots: Vec<Option<Slot>>,
    /// By sequence, the step in which its last request ended.
    idle_since: Vec<u64>,
    /// Rows of the last batch to sample from, and their sequences, last ones first. A panic of a caller's `on_event`
    /// leaves some, which the next step takes up.
    ends: Vec<(usize, usize)>,
    requests: u64,
    steps: u64,
}

impl<'m> Batcher<'m> {
    /// Takes over a context, with as many requests side by side as it has sequences. What it holds is removed.
    ///
    /// # Errors
    /// [`Error::NotHooked`] for statistics of an uncapped context.
    pub fn new(mut context: Context<'m>, options: BatcherOptions) -> Result<Self, Error> {
        context.clear();
        if options.statistics {
            context.set_tracing(true)?;
        }
        let count = context.options().sequences as usize;
        for sequence in 0..count {
            // Watches are those of requests.
            context.set_watch_of(id_of(sequence), None)?;
        }
        let slots = (0..count).map(|_| None).collect();
        let (idle_since, queue) = (vec![0; count], VecDeque::new());
        Ok(Self { context, options, queue, slots, idle_since, ends: Vec::new(), requests: 0, steps: 0 })
    }

    /// Returns the context, for example its session to add profiles.
    #[must_use]
    pub fn context(&self) -> &Context<'m> {
        &self.context
    }

    /// Returns how many requests are generated, and how many wait.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.slots.iter().flatten().count(), self.queue.len())
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::BatchRow`] for a token that
    /// the model does not have, [`Error::Option`], [`Error::NotHooked`], and [`HookError::NoProfile`] as
    /// [`Error::Hook`]. Caps that change until the request starts may end it with the same errors.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, Error> {
        if self.queue.len() >= self.options.queue {
            return Err(Error::QueueFull { waiting: self.queue.len() });
        }
        if request.prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let (model, context) = (self.context.model(), self.context.ctx());
        if request.prompt.len() > context {
            let trained = model.trained_context();
            return Err(Error::PromptTooLong { prompt: request.prompt.len(), context, trained });
        }
        // In a batch it would fail the other requests too.
        if let Some(row) = request.prompt.iter().position(|&token| !model.has_token(token)) {
            let (value, expected) =
                (i64::from(request.prompt[row].0), format!("0 to {}", model.vocab_size() - 1));
            return Err(Error::BatchRow { row, what: "token", value, expected });
        }
        drop(request.options.sampling.sampler(model, &request.prompt)?);
        if let Some(id) = request.profile.filter(|&id| !self.has_profile(id)) {
            return Err(HookError::NoProfile { profile: id }.into());
        }
        self.context.check(request.profile, request.schedule, request.watch.as_ref())?;
        let id = RequestId(self.requests);
        self.requests += 1;
        self.queue.push_back(Queued { id, request, since: Instant::now() });
        Ok(id)
    }

    /// Ends a request, and returns what was generated of it so far. `None` if it has ended before.
    pub fn cancel(&mut self, request: RequestId) -> Option<Finished> {
        if let Some(index) = self.queue.iter().position(|queued| queued.id == request) {
            let Queued { request, since, .. } = self.queue.remove(index)?;
            // The watch of a conversation stands as it stood before.
            let (waited, watch) = (since.elapsed(), request.watch.map(Box::new));
            return Some(Finished { generated: Generated::none(), waited, stats: Vec::new(), watch });
        }
        let is_it = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.id == request);
        let sequence = self.slots.iter().position(is_it)?;
        self.show_rows();
        self.context.settle();
        // Those of other requests are for the next step to hand out.
        for reading in self.context.take_of(id_of(sequence)) {
            if let Some(slot) = &mut self.slots[sequence] {
                slot.read(reading);
            }
        }
        Some(self.release(sequence)?.finish(Stop::Caller).1)
    }

    /// Ends all requests, those in the queue too, and removes what the context holds.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.ends.clear();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            *slot = None;
            // An end of a watch is never refused.
            let _ = self.context.set_watch_of(id_of(index), None);
        }
        self.context.clear();
    }

    /// Steps until no request is left. `on_event` may stop it after the step, the rest of whose events it still gets.
    /// That leaves the requests as they are.
    pub fn run(&mut self, mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>) {
        loop {
            let mut flow = ControlFlow::Continue(());
            let left = self.step(|event| {
                // No step shows an event again, so the end of another request would be lost.
                if on_event(event).is_break() {
                    flow = ControlFlow::Break(());
                }
            });
            if !left || flow.is_break() {
                return;
            }
        }
    }

    /// Decodes one batch. Returns whether requests are left.
    pub fn step(&mut self, mut on_event: impl FnMut(Event<'_>)) -> bool {
        if self.ends.is_empty() && !self.decode(&mut on_event) {
            return !self.queue.is_empty();
        }
        while let Some((row, sequence)) = self.ends.pop() {
            self.sample(row, sequence, &mut on_event);
        }
        !self.queue.is_empty() || self.slots.iter().any(Option::is_some)
    }

    /// Decodes one batch. Returns `false` if no request has rows.
    fn decode(&mut self, on_event: &mut impl FnMut(Event<'_>)) -> bool {
        self.steps += 1;
        self.admit(on_event);
        loop {
            self.fail_without_caps(on_event);
            let max = self.context.ubatch().min(self.context.batch());
            let (rows, mut ends) = fill(&mut self.slots, max, self.steps);
            if rows.is_empty() {
                return false;
            }
            let started = Instant::now();
            match self.context.decode(&rows) {
                Ok(()) => {
                    self.context.llama().synchronize();
                    let took = started.elapsed();
                    self.slots.iter_mut().flatten().for_each(|slot| slot.took(took));
                    ends.reverse();
                    self.ends = ends;
                    break;
                }
                Err(error) => {
                    self.slots.iter_mut().flatten().for_each(Slot::unfeed);
                    self.recover(error, on_event);
                }
            }
        }
        self.show_rows();
        self.read(false, on_event);
        true
    }

    /// Samples the next token of a sequence from a row of the last batch.
    fn sample(&mut self, row: usize, sequence: usize, on_event: &mut impl FnMut(Event<'_>)) {
        let Some(slot) = self.slots[sequence].as_mut() else { return };
        let request = slot.id;
        let Sampled { token, mut text, stop } = slot.sample(&self.context, row);
        if stop.is_some() {
            self.read(true, on_event);
        }
        let finished = stop.and_then(|stop| {
            let (rest, finished) = self.release(sequence)?.finish(stop);
            text.push_str(&rest);
            Some(finished)
        });
        if token.is_some() || !text.is_empty() {
            on_event(Event::Text { request, token, text: &text });
        }
        if let Some(finished) = finished {
            on_event(Event::Done { request, result: Ok(finished) });
        }
    }

    /// Hands out what alarms did and watches have read, or, having waited for GPUs, all there is.
    fn read(&mut self, is_all: bool, on_event: &mut impl FnMut(Event<'_>)) {
        if is_all {
            self.context.settle();
        }
        // Before the request ends: the next one of its sequence would be said to have them.
        for engagement in self.context.take_engagements() {
            let slot = usize::try_from(engagement.sequence).ok();
            if let Some(Some(slot)) = slot.and_then(|sequence| self.slots.get(sequence)) {
                on_event(Event::Engagement { request: slot.id, engagement });
            }
        }
        for reading in self.context.take_readings() {
            let slot = usize::try_from(reading.sequence).ok();
            let Some(Some(slot)) = slot.and_then(|sequence| self.slots.get_mut(sequence)) else { continue };
            slot.read(reading);
            on_event(Event::Reading { request: slot.id, reading });
        }
    }

    /// Moves requests from the queue to free sequences, as far as there is room, in the order in which they
    /// came.
    fn admit(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        while let Some(queued) = self.queue.front() {
            let reserved: usize =
                self.slots.iter().flatten().map(|slot| slot.reserved(self.context.ctx())).sum();
            let needed = needed(&queued.request, self.context.ctx());
            if reserved + needed > self.context.ctx() || !self.slots.iter().any(Option::is_none) {
                return;
            }
            let Some(queued) = self.queue.pop_front() else { return };
            let id = queued.id;
            if let Err(error) = self.start(queued, reserved + needed) {
                on_event(Event::Done { request: id, result: Err(Arc::new(error)) });
            }
        }
    }

    /// Starts a request on the free sequence that holds most of its prompt. `reserved` rows of the context are
    /// for the requests in progress, this one included.
    fn start(&mut self, queued: Queued, reserved: usize) -> Result<(), Error> {
        let Queued { id, request, since } = queued;
        let free: Vec<usize> = (0..self.slots.len()).filter(|&index| self.slots[index].is_none()).collect();
        let reusable = |batcher: &Self, from: usize, to: usize| {
            let shared = batcher.context.shared_of(id_of(from), id_of(to), &request.prompt, false);
            shared.min(request.prompt.len() - 1)
        };
        // What a sequence shares depends on its profile, so all free ones are put under that of the request.
        for &sequence in &free {
            self.context.put(id_of(sequence), request.profile, request.schedule)?;
            self.context.begin_text(id_of(sequence), request.prompt.len(), &request.answers);
        }
        let best = free.iter().copied().max_by_key(|&sequence| {
            (reusable(self, sequence, sequence), std::cmp::Reverse(self.idle_since[sequence]))
        });
        let Some(sequence) = best else { return Ok(()) };
        let mut shared = reusable(self, sequence, sequence);
        // Another sequence may hold more of it, also one that is in use.
        let other = (0..self.slots.len()).map(|from| (reusable(self, from, sequence), from)).max();
        let keeps_rows = !self.context.model().keeps_state();
        if let Some((more, from)) =
            other.filter(|&(more, from)| keeps_rows && from != sequence && more > shared)
        {
            self.context.copy_sequence(id_of(from), id_of(sequence))?;
            shared = more;
        }
        if self.context.truncate(id_of(sequence), shared).is_err() {
            shared = 0;
            self.context.truncate(id_of(sequence), 0)?;
        }
        self.context.begin_text(id_of(sequence), request.prompt.len(), &request.answers);
        self.make_room(reserved, sequence)?;
        self.context.set_watch_of(id_of(sequence), request.watch.clone())?;
        let sampler = request.options.sampling.sampler(self.context.model(), &request.prompt)?;
        self.slots[sequence] = Some(Slot::new(id, request, sampler, shared, since.elapsed()));
        Ok(())
    }

    /// Removes rows of idle sequences until `reserved` rows have room, those that ended first before others.
    fn make_room(&mut self, reserved: usize, but: usize) -> Result<(), Error> {
        loop {
            let idle = (0..self.slots.len()).filter(|&index| index != but && self.slots[index].is_none());
            let idle: Vec<_> = idle.filter(|&index| self.context.position(id_of(index)) > 0).collect();
            let kept: usize = idle.iter().map(|&index| self.context.position(id_of(index))).sum();
            if reserved + kept <= self.context.ctx() {
                return Ok(());
            }
            let Some(&oldest) = idle.iter().min_by_key(|&&index| self.idle_since[index]) else {
                return Ok(());
            };
            self.context.truncate(id_of(oldest), 0)?;
        }
    }

    /// Ends requests whose profile was removed, or has caps now that their alarm or watch cannot go on with. Returns
    /// whether there were any.
    fn fail_without_caps(&mut self, on_event: &mut impl FnMut(Event<'_>)) -> bool {
        let mut is_any = false;
        for sequence in 0..self.slots.len() {
            let Some(slot) = &self.slots[sequence] else { continue };
            let gone = slot.request.profile.filter(|&profile| !self.has_profile(profile));
            let follows = match gone {
                Some(profile) => Err(HookError::NoProfile { profile }.into()),
                None => self.context.follow(id_of(sequence)),
            };
            if let Err(error) = follows {
                self.fail(sequence, &Arc::new(error), on_event);
                is_any = true;
            }
        }
        is_any
    }

    /// Whether requests can be under a profile. The default one may have no caps.
    fn has_profile(&self, id: ProfileId) -> bool {
        let known = || Some(self.context.session().ok()?.profiles().iter().any(|profile| profile.id == id));
        id == ProfileId::DEFAULT || known().unwrap_or(false)
    }

    /// After a decode that failed, ends requests until the rest may go on.
    fn recover(&mut self, error: Error, on_event: &mut impl FnMut(Event<'_>)) {
        let active: Vec<usize> = (0..self.slots.len()).filter(|&index| self.slots[index].is_some()).collect();
        match error {
            // Removed after it was looked for. The next turn ends its requests.
            Error::Hook(HookError::NoProfile { profile }) if !self.has_profile(profile) => {}
            Error::ContextFull { .. } => {
                let idle: Vec<_> = (0..self.slots.len()).filter(|index| !active.contains(index)).collect();
                let kept = idle.into_iter().filter(|&index| self.context.position(id_of(index)) > 0);
                let kept: Vec<_> = kept.collect();
                if kept.is_empty() {
                    let youngest =
                        active.iter().copied().max_by_key(|&index| self.slots[index].as_ref().map(|s| s.id));
                    if let Some(youngest) = youngest {
                        self.fail(youngest, &Arc::new(error), on_event);
                    }
                }
                for sequence in kept {
                    // Removing a whole sequence always works.
                    let _ = self.context.truncate(id_of(sequence), 0);
                }
            }
            // Caps that changed after they were looked at are the fault of their requests alone.
            _ if self.fail_without_caps(on_event) => {}
            error => {
                let error = Arc::new(error);
                active.into_iter().for_each(|sequence| self.fail(sequence, &error, on_event));
            }
        }
    }

    fn fail(&mut self, sequence: usize, error: &Arc<Error>, on_event: &mut impl FnMut(Event<'_>)) {
        let Some(slot) = self.slots[sequence].take() else { return };
        let _ = self.context.set_watch_of(id_of(sequence), None);
        let _ = self.context.truncate(id_of(sequence), 0);
        on_event(Event::Done { request: slot.id, result: Err(Arc::clone(error)) });
    }

    /// Frees a sequence, and leaves with its request the watch as it stands.
    fn release(&mut self, sequence: usize) -> Option<Slot> {
        self.idle_since[sequence] = self.steps;
        self.ends.retain(|&(_, end)| end != sequence);
        let watch = self.context.watch(id_of(sequence)).cloned();
        // An end of a watch is never refused.
        let _ = self.context.set_watch_of(id_of(sequence), None);
        if let Some(slot) = &mut self.slots[sequence] {
            slot.request.watch = watch;
        }
        if !self.options.reuse {
            // Removing a whole sequence always works.
            let _ = self.context.truncate(id_of(sequence), 0);
        }
        self.slots[sequence].take()
    }

    /// Counts what the caps did to the rows of requests.
    fn show_rows(&mut self) {
        if !self.options.statistics {
            return;
        }
        for line in self.context.take_trace() {
            let slot = usize::try_from(line.sequence).ok().and_then(|sequence| self.slots.get_mut(sequence));
            let Some(Some(slot)) = slot else { continue };
            let flags = (u32::from(line.engaged) * RowStat::ENGAGED)
                | (u32::from(line.non_finite) * RowStat::NON_FINITE);
            slot.count(line.cap, line.skipped, &RowStat { before: line.before, after: line.after, flags });
        }
    }
}

/// Returns the rows that a request may need.
fn needed(request: &Request, ctx: usize) -> usize {
    request.prompt.len().saturating_add(request.options.max_tokens).min(ctx)
}

/// Converts the index of a sequence, of which there are few.
fn id_of(sequence: usize) -> i32 {
    i32::try_from(sequence).unwrap_or(i32::MAX)
}
