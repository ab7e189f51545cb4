//! Continuous batching of requests with profiles of their own.

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_llama::{
    Alarm, AlarmRule, Batcher, BatcherOptions, Context, ContextOptions, Error, Event, Finished,
    GenerateOptions, HookError, Model, ProfileId, Request, RequestId, Schedule, Stop, Tap, Token, Watch,
    Watcher, generate,
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

/// Texts of all lengths, many of which begin alike, so that rows are taken over, cut and overwritten.
#[test]
fn rows_that_are_taken_over_are_those_that_a_text_has_alone() {
    // Neither routes its rows to experts, which roundings may tip.
    for architecture in ["llama", "gemma3"] {
        let model = load(architecture);
        let mut random = Random(5);
        let (mut many, added) = batcher(&model, 4, 16, 512);
        let (mut alone, _) = batcher(&model, 1, 16, 512);
        let (mut requests, mut heard) = (BTreeMap::new(), Heard::default());
        while requests.len() < 30 {
            let mut tokens = prompt(0, 2 + random.below(110) as i32);
            if random.below(2) == 0 {
                let at = random.below(tokens.len());
                tokens[at] = Token(4);
            }
            let generate =
                GenerateOptions { log_probabilities: true, margins: true, ..greedy(random.below(20)) };
            let profile = [None, Some(added), Some(ProfileId::DEFAULT)][random.below(3)];
            let request = Request::new(tokens, generate).under(profile);
            if let Ok(id) = many.submit(request.clone()) {
                requests.insert(id, request);
            }
            for _ in 0..random.below(8) {
                many.step(|event| heard.hear(event));
            }
        }
        while many.step(|event| heard.hear(event)) {}
        for (id, request) in requests {
            alone.clear();
            let single = alone.submit(request.clone()).expect("room");
            let expected = Heard::run(&mut alone);
            let (found, expected) = (&heard.finished(id).generated, &expected.finished(single).generated);
            // A near tie may be tipped by other roundings.
            let alike = found.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
            let is_tie = |at: usize| found.margins.get(at).is_none_or(|&margin| margin < 0.02);
            assert!(found.tokens == expected.tokens || is_tie(alike), "{architecture} {request:?}");
            let pairs = found.log_probabilities.iter().zip(&expected.log_probabilities).take(alike);
            assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 0.01), "{architecture} {request:?} {pairs:?}");
        }
    }
}

/// A watch that has lost its profile or its cap ends its own request, whatever is started or decoded beside it.
#[test]
fn caps_that_a_watch_cannot_go_on_with_end_its_request_alone() {
    let model = load("llama");
    for of_default in [false, true] {
        let (mut context, added) = context(&model, 3, 16, 256);
        let watcher = Watcher::new(&Watch { cap: None, tokens: 3, thresholds: None }).expect("a watch");
        // One that no request has.
        context.set_watch(2, Some(watcher.clone())).expect("a watch");
        let mut batcher = Batcher::new(context, BatcherOptions::default()).expect("hooked");
        let ids = [ProfileId::DEFAULT, added];
        let [watched, other] = if of_default { ids } else { [added, ProfileId::DEFAULT] };
        let request = |salt, profile| Request::new(prompt(salt, 6), greedy(10)).under(profile);
        let watched = Request { watch: Some(watcher), ..request(0, Some(watched)) };
        let watched = batcher.submit(watched).expect("room");
        let beside = batcher.submit(request(1, Some(other))).expect("room");
        for _ in 0..3 {
            batcher.step(|_| {});
        }
        let session = batcher.context().session().expect("hooked").clone();
        session.remove_profile(ids[usize::from(!of_default)]).expect("it is there");
        let after = batcher.submit(request(2, None)).expect("room");
        let mut done = BTreeMap::new();
        batcher.run(|event| {
            if let Event::Done { request, result } = event {
                done.insert(request, result);
            }
            ControlFlow::Continue(())
        });
        assert!(done[&watched].is_err());
        for id in [beside, after] {
            assert!(done[&id].is_ok(), "{:?}", done[&id]);
        }
    }
}

/// The decode fails for a profile that is removed after it was looked for. A prompt that it held is still a prompt.
#[test]
fn a_text_whose_first_decode_failed_for_another_one_is_capped_as_asked() {
    let model = load("llama");
    let (mut batcher, first) = batcher(&model, 3, 32, 256);
    let session = batcher.context().session().expect("hooked").clone();
    let second = session.add_profile("second", &caps(&model, 3, 0.1)).expect("it fits");
    for profile in [first, second] {
        let request = Request::new(prompt(0, 6), greedy(20)).under(Some(profile));
        batcher.submit(request).expect("room");
    }
    batcher.step(|_| {});
    let request = Request { schedule: Schedule::Generated, ..Request::new(prompt(2, 10), greedy(5)) };
    let kept = batcher.submit(request).expect("room");
    // Sequences are looked at from the first on, and the last one has the request that came first.
    session.remove_profile(first).expect("it was added");
    let (mut heard, mut is_first) = (Heard::default(), true);
    while batcher.step(|event| {
        if matches!(event, Event::Done { .. }) && std::mem::take(&mut is_first) {
            session.remove_profile(second).expect("it was added");
        }
        heard.hear(event);
    }) {}
    assert_eq!(heard.finished(kept).stats[0].rows, 4, "the generated rows that were decoded");
}

/// Before it shares a batch with others, or has waited.
#[test]
fn what_no_caps_or_no_model_allow_is_refused_at_once() {
    let model = load("llama");
    let (mut batcher, added) = batcher(&model, 2, 16, 256);
    let good = batcher.submit(Request::new(prompt(0, 6), greedy(10))).expect("room");
    batcher.step(|_| {});
    for token in [-1, model.vocab_size() as i32, i32::MAX] {
        let wrong = Request::new(vec![Token(3), Token(token)], greedy(4));
        let error = batcher.submit(wrong).unwrap_err();
        assert!(matches!(error, Error::BatchRow { row: 1, what: "token", .. }), "{error}");
    }
    let request = |schedule| Request { schedule, ..Request::new(prompt(0, 6), greedy(4)).under(Some(added)) };
    let rule = AlarmRule::Cusum { slack: 0.0, engage: 1.0, release: 0.0 };
    let watcher = Watcher::new(&Watch { cap: Some(7), tokens: 3, thresholds: None }).expect("a watch");
    for wrong in [
        request(Schedule::Ramp { from: 5, to: 5 }),
        request(Schedule::OnAlarm(Alarm { cap: Some(7), rule })),
        Request { watch: Some(watcher.clone()), ..request(Schedule::Always) },
        Request { watch: Some(watcher), ..request(Schedule::Always) }.under(None),
    ] {
        let error = batcher.submit(wrong).unwrap_err();
        assert!(matches!(error, Error::Option { .. }), "{error}");
    }
    assert_eq!(Heard::run(&mut batcher).finished(good).generated.tokens.len(), 10);
    let plain = Context::uncapped(&model, &options()).expect("a context");
    let mut batcher = Batcher::new(plain, BatcherOptions::default()).expect("no statistics");
    let error = batcher.submit(Request { schedule: Schedule::Generated, ..request(Schedule::Always) });
    assert!(matches!(error, Err(Error::Hook(_) | Error::NotHooked)), "{error:?}");
    batcher.submit(Request::new(prompt(0, 6), greedy(2))).expect("room");
}

#[test]
fn a_caller_that_stops_misses_no_end() {
    let model = load("llama");
    let (mut batcher, _) = batcher(&model, 3, 16, 256);
    let mut ids: Vec<_> =
        (0..3).map(|i| batcher.submit(Request::new(prompt(i, 6), greedy(4))).expect("room")).collect();
    let mut done = Vec::new();
    while batcher.load() != (0, 0) {
        batcher.run(|event| match event {
            Event::Done { request, .. } => {
                done.push(request);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
    }
    done.sort();
    ids.sort();
    assert_eq!(done, ids);
}

/// With more requests than sequences, so that one that stands still would leave others waiting for ever.
#[test]
fn a_caller_that_panics_may_go_on() {
    let model = load("llama");
    let (mut batcher, _) = batcher(&model, 2, 16, 256);
    let ids: Vec<_> =
        (0..5).map(|i| batcher.submit(Request::new(prompt(i, 6), greedy(4))).expect("room")).collect();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        batcher.step(|event| panic!("as the test asked, at {event:?}"));
    }));
    assert!(caught.is_err());
    let mut heard = Heard::default();
    for _ in 0..100 {
        batcher.step(|event| heard.hear(event));
    }
    assert_eq!(batcher.load(), (0, 0));
    assert!(ids.iter().all(|&id| heard.finished(id).generated.tokens.len() == 4));
}
