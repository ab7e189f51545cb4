//! Contexts on a real model: each has its own caps, changes take effect, and wrong batches are refused.

mod support;

use std::ops::ControlFlow;
use std::sync::Barrier;

use axiscap::Bound;
use axiscap_llama::{
    BatchRow, Chat, Context, ContextOptions, Error, HookError, Model, Session, Stop, Token, generate,
};
use support::{caps, greedy, long_text, model, options, template};

fn write(context: &mut Context<'_>, text: &str, max_tokens: usize) -> Vec<Token> {
    let prompt = context.model().tokenize(text, true).expect("tokens");
    let generated = generate(context, &prompt, &greedy(max_tokens), |_| ControlFlow::Continue(()));
    generated.expect("it generates").tokens
}

fn enable(context: &mut Context<'_>, on: bool) {
    let switch = |session: &Session| {
        session.update(|settings| settings.enabled = on);
        Ok(())
    };
    context.update(switch).expect("hooked");
}

/// Returns the tokens and the projections of a capped run.
fn capped(model: &Model, seed: u64, together: Option<&Barrier>) -> (Vec<Token>, Vec<u32>) {
    let mut context = Context::new(model, &options()).expect("a context");
    let caps = caps([4, 15, 29], seed, Bound::band(-0.3, 0.3).expect("a band"));
    context.set_caps(Some(&caps)).expect("the caps fit");
    context.set_tracing(true).expect("hooked");
    if let Some(barrier) = together {
        barrier.wait();
    }
    let tokens = write(&mut context, "The keeper of the lighthouse said", 16);
    let rows = context.take_trace().iter().map(|row| row.before.to_bits()).collect();
    (tokens, rows)
}

#[test]
fn two_contexts_at_once_run_each_under_its_own_caps() {
    let model = model();
    let alone = [capped(&model, 1, None), capped(&model, 2, None)];
    assert_ne!(alone[0].1, alone[1].1, "different axes see different projections");
    for _ in 0..3 {
        let barrier = Barrier::new(2);
        let together = std::thread::scope(|scope| {
            let run = |seed| capped(&model, seed, Some(&barrier));
            let first = scope.spawn(move || run(1));
            let second = run(2);
            [first.join().expect("no panic"), second]
        });
        assert_eq!(together, alone);
    }
}

#[test]
fn caps_change_between_decodes_and_disabled_caps_leave_rows_untouched() {
    let model = model();
    let mut context = Context::new(&model, &options()).expect("a context");
    let text = "Dear diary, today I";
    let free = write(&mut context, text, 12);

    let strong = caps(8..22, 7, Bound::band(-0.01, 0.01).expect("a band"));
    context.set_caps(Some(&strong)).expect("the caps fit");
    let held = write(&mut context, text, 12);
    assert_ne!(held, free, "fourteen blocks held at 0 on random axes change the text");
    let stats = context.session().expect("hooked").stats();
    assert!(
        stats.iter().all(|s| s.engaged > 0 && s.min_after >= -0.0101 && s.max_after <= 0.0101),
        "{stats:?}"
    );

    enable(&mut context, false);
    assert_eq!(write(&mut context, text, 12), free);
    enable(&mut context, true);
    assert_eq!(write(&mut context, text, 12), held);
    for cap in 0..strong.caps().len() {
        context.update(|session| session.set_strength(cap, 0.0)).expect("a strength");
    }
    assert_eq!(write(&mut context, text, 12), free);
    context.set_caps(None).expect("hooked");
    assert_eq!(write(&mut context, text, 12), free);
    assert!(context.session().expect("hooked").stats().is_empty());

    let wide = caps([30], 1, Bound::NONE);
    assert!(matches!(context.set_caps(Some(&wide)), Err(Error::Hook(HookError::Caps(_)))));
    let mut bare = Context::uncapped(&model, &options()).expect("a context");
    assert!(matches!(bare.set_caps(Some(&strong)), Err(Error::NotHooked)));
    assert_eq!(write(&mut bare, text, 12), free);
}

#[test]
fn a_cached_beginning_is_not_decoded_again() {
    let model = model();
    let mut context = Context::new(&model, &options()).expect("a context");
    context.set_caps(Some(&caps([10], 3, Bound::NONE))).expect("the caps fit");
    let prompt = model.tokenize("One, two, three, four, five, six,", true).expect("tokens");
    let first =
        generate(&mut context, &prompt, &greedy(4), |_| ControlFlow::Continue(())).expect("it generates");
    assert_eq!((first.timings.reused, first.timings.prefill_tokens), (0, prompt.len()));
    assert_eq!((first.stop, first.timings.decode_tokens), (Stop::MaxTokens, 3));

    let longer = [&prompt[..], &first.tokens].concat();
    let second =
        generate(&mut context, &longer, &greedy(2), |_| ControlFlow::Continue(())).expect("it generates");
    assert_eq!(second.timings.reused, prompt.len() + 3, "all but the token that was never fed back");
    let rows = context.session().expect("hooked").stats()[0].rows as usize;
    assert_eq!(rows, prompt.len() + 3 + 1 + second.timings.decode_tokens);

    // The same prompt: its last token is decoded again for its logits.
    let third =
        generate(&mut context, &prompt, &greedy(4), |_| ControlFlow::Continue(())).expect("it generates");
    assert_eq!((third.timings.reused, &third.tokens), (prompt.len() - 1, &first.tokens));
    // The caller may stop, and the tokens generated so far stay.
    let fourth =
        generate(&mut context, &prompt, &greedy(9), |_| ControlFlow::Break(())).expect("it generates");
    assert_eq!((fourth.stop, fourth.tokens.len()), (Stop::Caller, 1));
}

#[test]
fn a_prompt_is_stopped_between_two_passes_and_continued() {
    let model = model();
    let mut context = Context::new(&model, &ContextOptions { ubatch: 8, ..options() }).expect("a context");
    context.set_caps(Some(&caps([10, 29], 3, Bound::NONE))).expect("the caps fit");
    let prompt = &model.tokenize(&long_text(), true).expect("tokens")[..50];
    let whole = generate(&mut context, prompt, &greedy(4), |_| ControlFlow::Continue(())).expect("tokens");
    context.clear();

    let mut stop_after = |count: usize| {
        let mut passes = 0;
        generate(&mut context, prompt, &greedy(4), |_| {
            passes += 1;
            if passes == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("no failure")
    };
    let cut = stop_after(2);
    assert_eq!((cut.stop, cut.text.as_str(), cut.tokens.len()), (Stop::Caller, "", 0));
    assert_eq!((cut.timings.reused, cut.timings.prefill_tokens), (0, 16));
    // What was decoded is reused, and the text is the same.
    let rest = stop_after(usize::MAX);
    assert_eq!((rest.timings.reused, rest.timings.prefill_tokens), (16, 34));
    assert_eq!((rest.tokens, rest.stop), (whole.tokens, whole.stop));
}

#[test]
fn a_turn_that_is_stopped_before_its_answer_leaves_the_conversation_as_it_was() {
    let model = model();
    let mut context = Context::new(&model, &ContextOptions { ubatch: 8, ..options() }).expect("a context");
    let template = template(&model);
    let mut chat = Chat::new(&template, Some("Be brief."));
    let go_on = |_: &str| ControlFlow::Continue(());
    chat.say(&mut context, "Hello.", &greedy(4), go_on).expect("an answer");
    let (messages, tokens) = (chat.messages().to_vec(), chat.tokens().to_vec());
    let long = "One two three four five six seven eight nine ten.";
    let stopped = chat.say(&mut context, long, &greedy(4), |_| ControlFlow::Break(())).expect("a turn");
    assert!(stopped.is_unanswered());
    assert_eq!((chat.messages(), chat.tokens()), (&messages[..], &tokens[..]));
    let next = chat.say(&mut context, long, &greedy(4), go_on).expect("an answer");
    assert!(!next.is_unanswered() && next.generated.timings.reused > tokens.len(), "{next:?}");
    assert_eq!(chat.messages().len(), 5);
}

#[test]
fn a_failed_turn_leaves_the_conversation_as_it_was() {
    let model = model();
    let mut context =
        Context::new(&model, &ContextOptions { ctx: Some(128), ..options() }).expect("a context");
    let template = template(&model);
    let mut chat = Chat::new(&template, Some("Be brief."));
    let hello =
        chat.say(&mut context, "Hello.", &greedy(8), |_| ControlFlow::Continue(())).expect("an answer");
    let error = chat.say(&mut context, &long_text(), &greedy(8), |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { context: 128, .. }), "{error}");
    assert_eq!(chat.messages().len(), 3);
    assert!(chat.undo() && !chat.undo());
    assert_eq!(chat.messages().len(), 1);
    let again =
        chat.say(&mut context, "Hello.", &greedy(8), |_| ControlFlow::Continue(())).expect("an answer");
    assert_eq!(again.generated.tokens, hello.generated.tokens);
}

#[test]
fn wrong_batches_are_refused_before_llama_cpp_sees_them() {
    let model = model();
    let mut context =
        Context::new(&model, &ContextOptions { batch: 8, ubatch: 4, ..options() }).expect("a context");
    let row = |position| BatchRow { token: Token(1), position, sequence: 0, logits: false };
    let rows = |n: i32| (0..n).map(row).collect::<Vec<_>>();
    assert!(matches!(context.decode(&rows(9)), Err(Error::BatchTooLong { rows: 9, batch: 8 })));
    for (bad, what) in [
        (BatchRow { token: Token(49152), ..row(0) }, "token"),
        (BatchRow { token: Token(-1), ..row(0) }, "token"),
        (BatchRow { sequence: 1, ..row(0) }, "sequence"),
        (BatchRow { position: -1, ..row(0) }, "position"),
        (BatchRow { position: 512, ..row(0) }, "position"),
    ] {
        let error = context.decode(&[row(0), bad]).unwrap_err();
        assert!(matches!(error, Error::BatchRow { row: 1, what: w, .. } if w == what), "{error}");
    }
    assert_eq!(context.position(0), 0, "nothing was decoded");
    context.decode(&rows(8)).expect("a full batch");
    assert_eq!(context.position(0), 8);
    // llama.cpp finds a gap in the positions. Its words are in the error.
    let error = context.decode(&[row(20)]).unwrap_err().to_string();
    assert!(error.contains("position 20") && error.contains("sequence"), "{error}");
    context.truncate(0, 3).expect("a KV cache can be cut");
    assert_eq!(context.position(0), 3);
    assert!(context.logits(0).is_none());
    context.decode(&[row(3), BatchRow { logits: true, ..row(4) }]).expect("a batch");
    assert!(context.logits(0).is_none() && context.logits(2).is_none());
    assert_eq!(context.logits(1).map(<[f32]>::len), Some(model.vocab_size()));
    context.decode(&[]).expect("nothing to do");
}

#[test]
fn unknown_sequences_are_refused_before_llama_cpp_sees_them() {
    let model = model();
    let mut context = Context::new(&model, &ContextOptions { sequences: 3, ..options() }).expect("a context");
    let prompt = model.tokenize("One, two, three,", true).expect("tokens");
    context.prefill(&prompt, 0, 1).expect("a prompt");
    for sequence in [-1, 3, 300, i32::MAX, i32::MIN] {
        let refused = |result: Result<(), Error>| {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Sequence { sequence: s, last: 2 } if s == sequence), "{error}");
        };
        assert_eq!(context.position(sequence), 0);
        refused(context.truncate(sequence, 0));
        refused(context.copy_sequence(0, sequence));
        refused(context.copy_sequence(sequence, 0));
    }
    context.truncate(1, usize::MAX).expect("nothing to forget");
    assert_eq!(context.position(1), prompt.len());

    // A copy replaces the rows of its target, and generate() does not reuse it.
    let first = write(&mut context, "Dear diary, today I", 6);
    context.truncate(1, 0).expect("a KV cache can be cut");
    context.prefill(&prompt, 0, 1).expect("a prompt");
    context.copy_sequence(1, 0).expect("both are there");
    assert_eq!(context.position(0), prompt.len());
    context.copy_sequence(1, 1).expect("nothing to do");
    assert_eq!(context.position(1), prompt.len());
    assert_eq!(write(&mut context, "Dear diary, today I", 6), first);
}

#[test]
fn every_seed_draws_the_same_tokens_each_time() {
    let model = model();
    let mut context = Context::uncapped(&model, &options()).expect("a context");
    let prompt = model.tokenize("My favourite animal is", true).expect("tokens");
    let mut draw = |seed| {
        let sampling =
            axiscap_llama::Sampling { temperature: 1.5, seed, ..axiscap_llama::Sampling::default() };
        let options = axiscap_llama::GenerateOptions { sampling, ..greedy(8) };
        generate(&mut context, &prompt, &options, |_| ControlFlow::Continue(())).expect("it generates").tokens
    };
    let first = draw(u32::MAX);
    for _ in 0..3 {
        assert_eq!(draw(u32::MAX), first);
    }
    assert_ne!(draw(1), first);
}

#[test]
fn messages_too_long_for_a_template_are_refused() {
    let model = model();
    let bytes = i32::MAX as usize / 4 + 1;
    let message = axiscap_llama::Message::new(axiscap_llama::Role::User, "a".repeat(bytes));
    let error = template(&model).render(&[message], true).unwrap_err();
    assert!(matches!(error, Error::TextTooLong { bytes: b, .. } if b == bytes), "{error}");
}

#[test]
fn several_sequences_are_traced_by_their_rows() {
    let model = model();
    let options = ContextOptions { sequences: 3, ubatch: 4, ..options() };
    let mut context = Context::new(&model, &options).expect("a context");
    context.set_caps(Some(&caps([0, 29], 5, Bound::NONE))).expect("the caps fit");
    context.set_tracing(true).expect("hooked");
    let texts = ["The sea", "A long way from home", "Who are you?"];
    let mut rows = Vec::new();
    for (sequence, text) in texts.iter().enumerate() {
        let tokens = model.tokenize(text, true).expect("tokens");
        let last = tokens.len() - 1;
        rows.extend(tokens.iter().enumerate().map(|(position, &token)| BatchRow {
            token,
            position: position as i32,
            sequence: sequence as i32,
            logits: position == last,
        }));
    }
    context.decode(&rows).expect("a batch of three sequences");
    let mut expected = Vec::new();
    for row in &rows {
        expected.push((row.sequence, row.position, row.token, 0));
        if row.logits {
            expected.push((row.sequence, row.position, row.token, 29));
        }
    }
    let traced = context.take_trace();
    let found: Vec<_> = traced.iter().map(|t| (t.sequence, t.position, t.token, t.block)).collect();
    assert_eq!(found, expected);
    // Each sequence alone gives the same projections, so rows and sequences match.
    for (sequence, text) in texts.iter().enumerate() {
        context.clear();
        let tokens = model.tokenize(text, true).expect("tokens");
        context.prefill(&tokens, 0, 0).expect("a prompt");
        let alone = context.take_trace();
        let there = traced.iter().filter(|t| t.sequence == sequence as i32);
        for (alone, there) in alone.iter().zip(there) {
            assert!((alone.before - there.before).abs() < 0.05, "{alone:?} {there:?}");
        }
    }
}
