//! Watches: what the answers of a sequence project while they are generated.

mod support;

use std::ops::ControlFlow;

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_llama::{
    BatchRow, Batcher, BatcherOptions, Chat, Context, ContextOptions, Error, Event, GenerateOptions, Level,
    Model, ProfileId, Reading, Request, Sampling, TemplateOptions, TemplateSource, Thresholds, Token, Watch,
    Watcher, generate, generate_watched,
};
use axiscap_testing::numbers::Random;
use support::{load, options};

const BLOCK: usize = 1;

/// Caps that move every row.
fn caps(model: &Model) -> CapSet {
    let mut random = Random(3);
    let mut cap = |block, bound| {
        let direction: Vec<f32> = (0..model.shape().width).map(|_| random.signed()).collect();
        BlockCap { block, cap: Cap::new(Axis::from_direction(&direction).expect("an axis"), bound) }
    };
    // The lowest capped block is not that of the first cap.
    let floor = Bound::floor(5.0).expect("a floor");
    CapSet::new([cap(BLOCK + 1, floor), cap(BLOCK, floor)]).expect("a set")
}

fn context<'m>(model: &'m Model, caps: &CapSet) -> Context<'m> {
    let options = ContextOptions { sequences: 3, ubatch: 8, ctx: Some(512), ..options() };
    let mut context = Context::new(model, &options).expect("a context");
    context.set_caps(Some(caps)).expect("the caps fit");
    context
}

fn watcher() -> Watcher {
    let thresholds = Thresholds { usual: 0.5, alarm: -0.2, release: 0.1 };
    Watcher::new(&Watch { cap: None, tokens: 3, thresholds: Some(thresholds) }).expect("a watch")
}

fn prompt(salt: i32, length: i32) -> Vec<Token> {
    (0..length).map(|i| Token((i * 7 + salt * 13) % 90 + 3)).collect()
}

/// Drawn, because a greedy text of a random model repeats itself.
fn drawn(max_tokens: usize) -> GenerateOptions {
    let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::GREEDY };
    GenerateOptions { max_tokens, sampling, margins: false, log_probabilities: false }
}

/// The levels that a watch comes to over these projections.
fn levels(watcher: &mut Watcher, readings: &[Reading]) -> Vec<Level> {
    readings.iter().map(|reading| watcher.see(reading.level.projection)).collect()
}

fn found(readings: &[Reading]) -> Vec<Level> {
    readings.iter().map(|reading| reading.level).collect()
}

#[test]
fn every_decoded_token_of_an_answer_is_read_at_the_lowest_capped_block() {
    let model = load("llama");
    let caps = caps(&model);
    let mut context = context(&model, &caps);
    context.set_watch(0, Some(watcher())).expect("a watch");
    context.set_tracing(true).expect("hooked");
    let prompt = prompt(1, 20);
    let (mut steps, mut text) = (Vec::new(), String::new());
    let generated = generate_watched(&mut context, &prompt, &drawn(30), |step| {
        text += step.text;
        steps.extend_from_slice(step.readings);
        ControlFlow::Continue(())
    })
    .expect("a text");
    assert_eq!((text, &steps), (generated.text.clone(), &generated.readings), "all has arrived");
    let trace = context.take_trace();
    let rows = trace.iter().filter(|row| row.cap == 1 && row.position >= 20);
    let traced: Vec<_> = rows.map(|row| (row.position as usize, row.token, row.before)).collect();
    let read: Vec<_> =
        steps.iter().map(|reading| (reading.position, reading.token, reading.level.projection)).collect();
    assert_eq!(read, traced);
    assert_eq!(read.len(), generated.tokens.len() - 1, "all but the last token are decoded");
    assert_eq!(found(&steps), levels(&mut watcher(), &steps));
    assert!(trace.iter().any(|row| row.after != row.before), "the caps act meanwhile");

    // An observer changes nothing.
    context.set_watch(0, None).expect("no watch");
    context.clear();
    let unwatched =
        generate(&mut context, &prompt, &drawn(30), |_| ControlFlow::Continue(())).expect("a text");
    assert_eq!((unwatched.tokens, unwatched.readings), (generated.tokens, Vec::new()));
    assert!(context.watch(0).is_none() && context.take_readings().is_empty());
}

#[test]
fn a_caller_may_stop_at_an_alarm() {
    let model = load("llama");
    let mut context = context(&model, &caps(&model));
    context.set_watch(0, Some(watcher())).expect("a watch");
    let whole =
        generate(&mut context, &prompt(1, 9), &drawn(60), |_| ControlFlow::Continue(())).expect("a text");
    let first = whole.readings.iter().position(|reading| reading.level.is_alarm()).expect("an alarm");
    context.clear();
    let stopped = generate_watched(&mut context, &prompt(1, 9), &drawn(60), |step| {
        match step.readings.iter().any(|reading| reading.level.is_alarm()) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
    .expect("a text");
    assert_eq!(stopped.readings.len(), first + 1);
    assert_eq!(stopped.tokens[..], whole.tokens[..first + 2], "the next token was drawn already");
}

#[test]
fn a_watch_goes_on_over_a_conversation_without_what_is_taken_back() {
    let model = load("llama");
    let source = TemplateSource::Named("chatml".into());
    let template =
        model.chat_template(&TemplateOptions { source, ..TemplateOptions::default() }).expect("known");
    let mut context = context(&model, &caps(&model));
    context.set_watch(0, Some(watcher())).expect("a watch");
    let mut chat = Chat::new(&template, None);
    let say = |chat: &mut Chat<'_>, context: &mut Context<'_>, text: &str| {
        let turn = chat.say(context, text, &drawn(12), |_| ControlFlow::Continue(())).expect("an answer");
        assert!(!turn.generated.readings.is_empty());
        turn.generated.readings
    };
    let mut expected = watcher();
    let first = say(&mut chat, &mut context, "ab");
    assert_eq!(found(&first), levels(&mut expected, &first));
    let after_first = expected.clone();
    let second = say(&mut chat, &mut context, "cd");
    assert_eq!(found(&second), levels(&mut expected, &second));
    assert_eq!(context.watch(0), Some(&expected));
    chat.undo();
    let instead = say(&mut chat, &mut context, "ef");
    assert_eq!(found(&instead), levels(&mut after_first.clone(), &instead), "the second answer is forgotten");
    chat.undo();
    chat.undo();
    let begun = say(&mut chat, &mut context, "ab");
    assert_eq!(begun, first);
    // The same text again, by another conversation.
    chat.reset();
    assert_eq!(say(&mut chat, &mut context, "ab"), first);
    let mut other = Chat::new(&template, None);
    assert_eq!(say(&mut other, &mut context, "ab"), first);
    // A turn that fails clears the context. The watch stands as after the last answer.
    let mut stood = context.watch(0).cloned().expect("a watch");
    let long = "long ".repeat(600);
    let failed = other.say(&mut context, &long, &drawn(4), |_| ControlFlow::Continue(()));
    assert!(matches!(failed, Err(Error::PromptTooLong { .. })));
    context.clear();
    let again = say(&mut other, &mut context, "ij");
    assert_eq!(found(&again), levels(&mut stood, &again));
    // Under other caps the conversation is decoded again. Its watch goes on.
    let stood = context.watch(0).cloned().expect("a watch");
    context.update(|session| session.set_strength(0, 0.5)).expect("a strength");
    let more = say(&mut other, &mut context, "gh");
    assert_eq!(found(&more), levels(&mut stood.clone(), &more));
}

#[test]
fn requests_of_a_batcher_have_watches_of_their_own() {
    let model = load("llama");
    let caps = caps(&model);
    let mut alone = context(&model, &caps);
    let mut batcher = Batcher::new(context(&model, &caps), BatcherOptions::default()).expect("a batcher");
    let request = |salt: i32, watch| Request { watch, ..Request::new(prompt(salt, 11), drawn(20)) };
    let mut ids = Vec::new();
    for (salt, watch) in [(1, Some(watcher())), (2, None), (3, Some(watcher())), (4, Some(watcher()))] {
        ids.push(batcher.submit(request(salt, watch)).expect("room"));
    }
    let (mut heard, mut done) = (vec![Vec::new(); 4], vec![None; 4]);
    batcher.run(|event| {
        let place = |id| ids.iter().position(|other| *other == id).expect("one of them");
        match event {
            Event::Reading { request, reading } => {
                assert!(done[place(request)].is_none(), "readings come before the end");
                heard[place(request)].push(reading);
            }
            Event::Done { request, result } => done[place(request)] = Some(result.expect("a text")),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    for (index, (heard, done)) in heard.iter().zip(&done).enumerate() {
        let done = done.as_ref().expect("it ended");
        assert_eq!(heard, &done.generated.readings);
        if index == 1 {
            assert!(heard.is_empty() && done.watch.is_none());
            continue;
        }
        assert_eq!(heard.len(), done.generated.tokens.len() - 1);
        let mut expected = watcher();
        assert_eq!(found(heard), levels(&mut expected, heard));
        assert_eq!(done.watch.as_deref(), Some(&expected));
        // As it is read alone.
        alone.clear();
        alone.set_watch(0, Some(watcher())).expect("a watch");
        let request = request(index as i32 + 1, None);
        let text = generate(&mut alone, &request.prompt, &request.options, |_| ControlFlow::Continue(()));
        assert_eq!(text.expect("a text").tokens, done.generated.tokens);
    }
    // A conversation goes on with the watch as it stood.
    let stood = *done[0].as_ref().and_then(|done| done.watch.clone()).expect("a watch");
    let id = batcher.submit(request(5, Some(stood.clone()))).expect("room");
    batcher.run(|event| {
        if let Event::Done { request, result } = event {
            assert_eq!(request, id);
            let readings = result.expect("a text").generated.readings;
            assert_eq!(found(&readings), levels(&mut stood.clone(), &readings));
        }
        ControlFlow::Continue(())
    });
    assert!(
        (0..3).all(|sequence| batcher.context().watch(sequence).is_none()),
        "idle sequences are not watched"
    );
    // A cancelled request keeps what was read.
    let id = batcher.submit(request(6, Some(watcher()))).expect("room");
    (0..6).for_each(|_| assert!(batcher.step(|_| {}), "it goes on"));
    let cut = batcher.cancel(id).expect("in progress");
    assert!(!cut.generated.readings.is_empty() && cut.watch.is_some());
}

#[test]
fn readings_of_other_sequences_are_left_to_their_callers() {
    let model = load("llama");
    let mut context = context(&model, &caps(&model));
    context.set_watch(1, Some(watcher())).expect("a watch");
    context.begin_text(1, 1, &[]);
    let row = |position| BatchRow { token: Token(9), position, sequence: 1, logits: true };
    context.decode(&[row(0), row(1), row(2)]).expect("rows");
    context.set_watch(0, Some(watcher())).expect("a watch");
    let text =
        generate(&mut context, &prompt(1, 5), &drawn(4), |_| ControlFlow::Continue(())).expect("a text");
    assert_eq!(text.readings.len(), 3);
    let left: Vec<_> =
        context.take_readings().iter().map(|reading| (reading.sequence, reading.position)).collect();
    assert_eq!(left, [(1, 1), (1, 2)], "the prompt's row is not read");
}

#[test]
fn a_watch_that_could_not_see_is_refused() {
    let model = load("llama");
    let caps = caps(&model);
    let refused = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Option { option: "the watched cap", .. }), "{error}");
    };
    let mut context = context(&model, &caps);
    let of = |cap| {
        let watch = *watcher().watch();
        Some(Watcher::new(&Watch { cap, ..watch }).expect("a watch"))
    };
    refused(context.set_watch(0, of(Some(2))));
    assert!(matches!(context.set_watch(9, of(None)), Err(Error::Sequence { .. })));
    context.set_profile(0, None).expect("uncapped");
    refused(context.set_watch(0, of(None)));
    context.set_profile(0, Some(ProfileId::DEFAULT)).expect("capped");
    // Caps may change, as long as the watched one is there.
    context.set_watch(0, of(Some(1))).expect("a watch");
    let write = |context: &mut Context<'_>| {
        generate(context, &prompt(1, 5), &drawn(4), |_| ControlFlow::Continue(()))
            .map(|text| text.readings.len())
    };
    assert_eq!(write(&mut context).expect("a text"), 3);
    context.set_caps(Some(&caps.with_bounds(|_| Bound::NONE))).expect("caps");
    assert_eq!(write(&mut context).expect("a text"), 3);
    let one = CapSet::new(caps.caps()[..1].to_vec()).expect("a set");
    context.set_caps(Some(&one)).expect("caps");
    refused(write(&mut context).map(drop));
    context.set_caps(None).expect("no caps");
    refused(write(&mut context).map(drop));
    context.set_watch(0, None).expect("no watch");
    assert_eq!(write(&mut context).expect("a text"), 0);
    let mut plain = Context::uncapped(&model, &options()).expect("a context");
    assert!(matches!(plain.set_watch(0, of(None)), Err(Error::NotHooked)));
}

#[test]
fn a_request_that_is_cancelled_in_the_queue_keeps_its_watch() {
    let model = load("llama");
    let mut batcher =
        Batcher::new(context(&model, &caps(&model)), BatcherOptions::default()).expect("a batcher");
    let mut stood = watcher();
    stood.see(-3.0);
    let request = Request { watch: Some(stood.clone()), ..Request::new(prompt(1, 9), drawn(8)) };
    let id = batcher.submit(request).expect("room");
    let finished = batcher.cancel(id).expect("it waited");
    assert_eq!(finished.watch.as_deref(), Some(&stood));
}

/// Neither hears of the drift of the other, nor forgets its own.
#[test]
fn conversations_that_take_turns_in_a_context_have_watches_of_their_own() {
    let model = load("llama");
    let source = TemplateSource::Named("chatml".into());
    let template =
        model.chat_template(&TemplateOptions { source, ..TemplateOptions::default() }).expect("known");
    let mut context = context(&model, &caps(&model));
    context.set_watch(0, Some(watcher())).expect("a watch");
    let mut chats = [0, 1].map(|_| (Chat::new(&template, None), watcher()));
    for text in ["ab", "cd", "ef"] {
        for (index, (chat, expected)) in chats.iter_mut().enumerate() {
            let text = format!("{text}{index}");
            let turn = chat.say(&mut context, &text, &drawn(12), |_| ControlFlow::Continue(()));
            let readings = turn.expect("an answer").generated.readings;
            assert_eq!(found(&readings), levels(expected, &readings));
        }
    }
}
