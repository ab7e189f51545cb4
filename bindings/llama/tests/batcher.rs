//! Continuous batching of requests with profiles of their own.

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_llama::{
    Alarm, AlarmRule, Batcher, BatcherOptions, Context, ContextOptions, Error, Event, Finished,
    GenerateOptions, HookError, Model, ProfileId, Request, RequestId, Schedule, Stop, Tap, Token, generate,
};
use axiscap_testing::numbers::Random;
use support::{ARCHITECTURES, greedy, load, options};

fn caps(model: &Model, seed: u64, value: f32) -> CapSet {
    let mut random = Random(seed);
    let mut cap = |block| {
        let direction: Vec<f32> = (0..model.shape().width).map(|_| random.signed()).collect();
        let bound = Bound::band(value, value).expect("a band");
        BlockCap { block, cap: Cap::new(Axis::from_direction(&direction).expect("an axis"), bound) }
    };
    CapSet::new([cap(0), cap(1)]).expect("a set")
}

fn prompt(salt: i32, length: i32) -> Vec<Token> {
    (0..length).map(|i| Token((i * 7 + salt * 13) % 90 + 3)).collect()
}

/// A context with a default profile and an added one.
fn context(model: &Model, sequences: u32, ubatch: u32, ctx: u32) -> (Context<'_>, ProfileId) {
    let options = ContextOptions { sequences, ubatch, batch: ubatch, ctx: Some(ctx), ..options() };
    let mut context = Context::new(model, &options).expect("a context");
    context.set_caps(Some(&caps(model, 1, 0.5))).expect("the caps fit");
    let session = context.session().expect("hooked");
    let added = session.add_profile("added", &caps(model, 2, -0.25)).expect("the caps fit");
    (context, added)
}

fn batcher(model: &Model, sequences: u32, ubatch: u32, ctx: u32) -> (Batcher<'_>, ProfileId) {
    let (context, added) = context(model, sequences, ubatch, ctx);
    let options = BatcherOptions { queue: 8, reuse: true, statistics: true };
    (Batcher::new(context, options).expect("hooked"), added)
}

#[derive(Debug, Default)]
struct Heard {
    texts: BTreeMap<RequestId, (String, Vec<Token>)>,
    done: Vec<(RequestId, Result<Finished, Arc<Error>>)>,
    engagements: usize,
}

impl Heard {
    fn hear(&mut self, event: Event<'_>) {
        match event {
            Event::Text { request, token, text } => {
                let (heard, tokens) = self.texts.entry(request).or_default();
                heard.push_str(text);
                tokens.extend(token);
            }
            Event::Engagement { .. } => self.engagements += 1,
            Event::Done { request, result } => self.done.push((request, result)),
            other => panic!("{other:?}"),
        }
    }

    fn run(batcher: &mut Batcher<'_>) -> Self {
        let mut heard = Self::default();
        batcher.run(|event| {
            heard.hear(event);
            ControlFlow::Continue(())
        });
        assert_eq!(batcher.load(), (0, 0));
        heard
    }

    fn finished(&self, id: RequestId) -> &Finished {
        let found = self.done.iter().find(|(done, _)| *done == id).expect("it ended");
        found.1.as_ref().expect("a text")
    }
}

/// One row a pass, so that neighbours hardly change what a row computes.
#[test]
fn requests_get_the_text_that_each_gets_alone() {
    for architecture in ["llama", "gemma3", "mamba2", "jamba"] {
        let model = load(architecture);
        let alone = |context: &mut Context<'_>, request: &Request| {
            context.set_profile(0, request.profile).expect("a profile");
            let text = generate(context, &request.prompt, &request.options, |_| ControlFlow::Continue(()));
            text.expect("a text")
        };
        let (mut batcher, added) = batcher(&model, 3, 1, 256);
        let (mut single, also_added) = context(&model, 1, 1, 256);
        assert_eq!(added, also_added);
        let requests: Vec<Request> = (0..7)
            .map(|i| {
                let options = GenerateOptions {
                    margins: i % 2 == 0,
                    log_probabilities: i % 3 == 0,
                    ..greedy(4 + i as usize)
                };
                let profile = [Some(ProfileId::DEFAULT), None, Some(added)][i as usize % 3];
                Request::new(prompt(i / 2, 10 + i), options).under(profile)
            })
            .collect();
        let ids: Vec<_> = requests.iter().map(|r| batcher.submit(r.clone()).expect("room")).collect();
        let heard = Heard::run(&mut batcher);
        for (id, request) in ids.iter().zip(&requests) {
            let (finished, expected) = (heard.finished(*id), alone(&mut single, request));
            let generated = &finished.generated;
            assert_eq!(generated.tokens, expected.tokens, "{architecture} {request:?}");
            assert_eq!((&generated.text, generated.stop), (&expected.text, expected.stop));
            // Rows of other sequences in the KV cache move the last bits of the sums over it.
            let pairs = generated.margins.iter().zip(&expected.margins);
            assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 0.01), "{architecture} {pairs:?}");
            assert_eq!(generated.margins.len(), expected.margins.len());
            let pairs = generated.log_probabilities.iter().zip(&expected.log_probabilities);
            assert!(
                pairs.clone().all(|(a, b)| (a - b).abs() < 0.01 && *b <= 0.0),
                "{architecture} {pairs:?}"
            );
            assert_eq!(generated.log_probabilities.len(), expected.log_probabilities.len());
            let is_ended = matches!(generated.stop, axiscap_llama::Stop::End(_));
            let sampled = generated.tokens.len() + usize::from(is_ended);
            let asked = usize::from(request.options.log_probabilities);
            assert_eq!(generated.log_probabilities.len(), asked * sampled);
            let (text, tokens) = heard.texts.get(id).cloned().unwrap_or_default();
            assert_eq!((text, tokens), (generated.text.clone(), generated.tokens.clone()));
            let timings = &generated.timings;
            assert_eq!(timings.reused + timings.prefill_tokens, request.prompt.len());
            // What the caps did to this request's rows, and to no others.
            let rows = (timings.prefill_tokens + timings.decode_tokens) as u64;
            let value = match request.profile {
                None => {
                    assert!(finished.stats.is_empty());
                    continue;
                }
                Some(ProfileId::DEFAULT) => 0.5,
                Some(_) => -0.25,
            };
            for stats in &finished.stats {
                assert_eq!((stats.rows, stats.min_after, stats.max_after), (rows, value, value));
            }
        }
    }
}

/// Batches of many rows, with more requests than sequences.
#[test]
fn every_architecture_serves_mixed_requests() {
    for architecture in ARCHITECTURES {
        let model = load(architecture);
        let (mut batcher, added) = batcher(&model, 3, 16, 256);
        let ids: Vec<_> = (0..8)
            .map(|i| {
                let profile = [None, Some(added), Some(ProfileId::DEFAULT)][i as usize % 3];
                let request = Request::new(prompt(i, 5 + 7 * (i % 3)), greedy(3)).under(profile);
                (batcher.submit(request).expect("room"), profile)
            })
            .collect();
        let heard = Heard::run(&mut batcher);
        for (id, profile) in ids {
            let stats = &heard.finished(id).stats;
            let value = if profile == Some(added) { -0.25 } else { 0.5 };
            assert_eq!(stats.is_empty(), profile.is_none());
            assert!(
                stats.iter().all(|stats| (stats.min_after, stats.max_after) == (value, value)),
                "{architecture}"
            );
        }
    }
}

#[test]
fn the_queue_is_bounded_and_what_cannot_run_is_refused_at_once() {
    let model = load("llama");
    let (mut batcher, added) = batcher(&model, 1, 8, 64);
    for _ in 0..8 {
        batcher.submit(Request::new(prompt(0, 4), greedy(2))).expect("room in the queue");
    }
    let error = batcher.submit(Request::new(prompt(0, 4), greedy(2))).unwrap_err();
    assert!(matches!(error, Error::QueueFull { waiting: 8 }), "{error}");
    assert!(batcher.step(|_| {}));
    assert_eq!(batcher.load(), (1, 7));
    let refuse = |batcher: &mut Batcher<'_>, request: Request| batcher.submit(request).unwrap_err();
    assert!(matches!(refuse(&mut batcher, Request::new(vec![], greedy(2))), Error::EmptyPrompt));
    let long = Request::new(prompt(0, 65), greedy(2));
    assert!(matches!(refuse(&mut batcher, long), Error::PromptTooLong { prompt: 65, context: 64, .. }));
    let mut wrong = Request::new(prompt(0, 4), greedy(2));
    wrong.options.sampling.top_p = 2.0;
    assert!(matches!(refuse(&mut batcher, wrong), Error::Option { option: "top_p", .. }));
    batcher.context().session().expect("hooked").remove_profile(added).expect("it was added");
    let gone = Request::new(prompt(0, 4), greedy(2)).under(Some(added));
    assert!(matches!(refuse(&mut batcher, gone), Error::Hook(HookError::NoProfile { .. })));
    // A text ends where the context does, and one without tokens at once.
    batcher.clear();
    let full = batcher.submit(Request::new(prompt(0, 60), greedy(50))).expect("it fits");
    let none = batcher.submit(Request::new(prompt(0, 4), greedy(0))).expect("it fits");
    let heard = Heard::run(&mut batcher);
    let generated = &heard.finished(full).generated;
    assert_eq!((generated.stop, generated.tokens.len()), (Stop::ContextFull, 5));
    let generated = &heard.finished(none).generated;
    assert_eq!((generated.stop, generated.tokens.len()), (Stop::MaxTokens, 0));
}

#[test]
fn a_request_can_be_cancelled() {
    let model = load("llama");
    let (mut batcher, _) = batcher(&model, 1, 8, 128);
    let [active, waiting] =
        [0, 1].map(|salt| batcher.submit(Request::new(prompt(salt, 4), greedy(40))).expect("room"));
    for _ in 0..3 {
        batcher.step(|_| {});
    }
    let finished = batcher.cancel(active).expect("it was active");
    assert_eq!((finished.generated.stop, finished.generated.tokens.len()), (Stop::Caller, 3));
    assert!(finished.stats[0].rows > 0);
    assert!(batcher.cancel(active).is_none());
    let finished = batcher.cancel(waiting).expect("it waited");
    assert_eq!((finished.generated.stop, finished.generated.tokens.len()), (Stop::Caller, 0));
    assert!(!batcher.step(|event| panic!("{event:?}")));
}

#[test]
fn prompts_that_begin_alike_share_rows_of_their_profile() {
    let model = load("llama");
    let (mut batcher, added) = batcher(&model, 4, 16, 400);
    let mut reused = |request: Request| {
        let id = batcher.submit(request).expect("room");
        Heard::run(&mut batcher).finished(id).generated.timings.reused
    };
    let request = |profile| Request::new(prompt(0, 20), greedy(3)).under(profile);
    assert_eq!(reused(request(Some(added))), 0);
    assert_eq!(reused(request(Some(added))), 19);
    for other in [Some(ProfileId::DEFAULT), None] {
        assert_eq!(reused(request(other)), 0, "nothing of another profile");
        assert_eq!(reused(request(other)), 19);
    }
    assert_eq!(reused(request(Some(added))), 19, "it is still there");
    let session = batcher.context().session().expect("hooked").clone();
    session.change_cap(added, 0, |cap| cap.with_strength(0.5)).expect("a cap");
    let id = batcher.submit(request(Some(added))).expect("room");
    assert_eq!(Heard::run(&mut batcher).finished(id).generated.timings.reused, 0, "other caps");
    // Requests that come together: the second finds the rows of the first, which is in progress.
    batcher.clear();
    let long = |salt: i32| Request::new([prompt(0, 20), prompt(salt, 4)].concat(), greedy(30));
    let first = batcher.submit(long(1)).expect("room");
    for _ in 0..4 {
        batcher.step(|_| {});
    }
    let second = batcher.submit(long(2)).expect("room");
    let heard = Heard::run(&mut batcher);
    assert_eq!(heard.finished(first).generated.timings.reused, 0);
    assert_eq!(heard.finished(second).generated.timings.reused, 20);
}

/// Requests wait for room, and rows that are kept for reuse give way.
#[test]
fn the_context_is_shared_without_running_full() {
    let model = load("llama");
    let (mut batcher, _) = batcher(&model, 4, 16, 96);
    let mut ids = Vec::new();
    for round in 0..3 {
        for salt in 0..6 {
            ids.push(batcher.submit(Request::new(prompt(salt + round * 6, 20), greedy(20))).expect("room"));
        }
        let mut most = 0;
        let mut heard = Heard::default();
        while batcher.step(|event| heard.hear(event)) {
            most = most.max(batcher.load().0);
        }
        assert_eq!(most, 2, "two requests of 40 rows");
        assert!(ids.drain(..).all(|id| heard.finished(id).generated.tokens.len() == 20));
    }
}

#[test]
fn a_profile_that_is_removed_ends_its_requests_alone() {
    let model = load("llama");
    let (mut batcher, added) = batcher(&model, 3, 16, 256);
    let mut submit =
        |profile| batcher.submit(Request::new(prompt(0, 6), greedy(10)).under(profile)).expect("room");
    let [kept, gone] = [Some(ProfileId::DEFAULT), Some(added)].map(&mut submit);
    let mut heard = Heard::default();
    for _ in 0..4 {
        batcher.step(|event| heard.hear(event));
    }
    batcher.context().session().expect("hooked").remove_profile(added).expect("it was added");
    batcher.run(|event| {
        heard.hear(event);
        ControlFlow::Continue(())
    });
    assert_eq!(heard.finished(kept).generated.tokens.len(), 10);
    let (_, result) = heard.done.iter().find(|(id, _)| *id == gone).expect("it ended");
    let error = result.as_ref().unwrap_err();
    assert!(matches!(**error, Error::Hook(HookError::NoProfile { .. })), "{error}");
}

#[test]
fn a_failed_decode_ends_its_requests_and_others_go_on() {
    let model = load("jamba");
    let (mut batcher, _) = batcher(&model, 2, 16, 256);
    let passes = Arc::new(AtomicUsize::new(0));
    let see = {
        let passes = Arc::clone(&passes);
        move |_, _: axiscap_llama::TapRows<'_>| {
            assert_ne!(passes.fetch_add(1, Ordering::Relaxed), 3, "as the test asked");
        }
    };
    let session = batcher.context().session().expect("hooked").clone();
    session.set_tap(Some(Tap { blocks: vec![1], see: Arc::new(see) })).expect("a tap");
    let ids: Vec<_> =
        (0..3).map(|salt| batcher.submit(Request::new(prompt(salt, 5), greedy(6))).expect("room")).collect();
    let heard = Heard::run(&mut batcher);
    for id in &ids[..2] {
        let (_, result) = heard.done.iter().find(|(done, _)| done == id).expect("it ended");
        assert!(matches!(**result.as_ref().unwrap_err(), Error::Hook(HookError::Panic(_))), "{result:?}");
    }
    assert_eq!(heard.finished(ids[2]).generated.tokens.len(), 6);
    let again = batcher.submit(Request::new(prompt(0, 5), greedy(6))).expect("room");
    assert_eq!(Heard::run(&mut batcher).finished(again).generated.tokens.len(), 6);
}

#[test]
fn alarms_and_steps_of_requests_are_their_own() {
    let model = load("llama");
    let (mut batcher, added) = batcher(&model, 3, 16, 256);
    let rule = AlarmRule::Ewma { weight: 1.0, start: None, engage: 0.0, release: -1.0 };
    let on_alarm = Schedule::OnAlarm(Alarm { cap: None, rule });
    let mut submit = |schedule| {
        let request = Request::new(prompt(0, 6), greedy(8)).under(Some(added));
        batcher.submit(Request { schedule, ..request }).expect("room")
    };
    // No projection is on the band before it is capped, so the first generated row raises the alarm.
    let [alarm, generated, always] = [on_alarm, Schedule::Generated, Schedule::Always].map(&mut submit);
    let heard = Heard::run(&mut batcher);
    assert_eq!(heard.engagements, 1);
    let engaged = |id| heard.finished(id).stats[0].engaged;
    assert_eq!((engaged(alarm), engaged(generated), engaged(always)), (6, 7, 6 + 7));
    // A new text under an alarm takes over no rows that were capped.
    let again = batcher
        .submit(Request { schedule: on_alarm, ..Request::new(prompt(0, 6), greedy(8)).under(Some(added)) })
        .expect("room");
    assert_eq!(Heard::run(&mut batcher).finished(again).generated.timings.reused, 5);
}
