//! Schedules: when the caps of a sequence act.

mod support;

use std::ops::ControlFlow;

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, Policy};
use axiscap_llama::{
    Alarm, AlarmRule, BatchRow, Chat, Context, ContextOptions, Engagement, Error, GenerateOptions, HookError,
    Model, ProfileId, RAMP_STEPS, Sampling, Schedule, Token, TraceRow, generate,
};
use axiscap_testing::numbers::Random;
use support::{greedy, load, options};

const BLOCK: usize = 1;

fn caps(model: &Model, bound: Bound) -> CapSet {
    let mut random = Random(3);
    let mut cap = |block, bound| {
        let direction: Vec<f32> = (0..model.shape().width).map(|_| random.signed()).collect();
        BlockCap { block, cap: Cap::new(Axis::from_direction(&direction).expect("an axis"), bound) }
    };
    CapSet::new([cap(BLOCK, bound), cap(BLOCK + 1, bound)]).expect("a set")
}

fn floor(lo: f32) -> Bound {
    Bound::floor(lo).expect("a floor")
}

fn context<'m>(model: &'m Model, caps: &CapSet, schedule: Schedule) -> Context<'m> {
    let options = ContextOptions { sequences: 2, ubatch: 8, ctx: Some(256), ..options() };
    let mut context = Context::new(model, &options).expect("a context");
    context.set_caps(Some(caps)).expect("the caps fit");
    context.schedule_profile(0, Some(ProfileId::DEFAULT), schedule).expect("a schedule");
    context.set_tracing(true).expect("hooked");
    context
}

fn prompt(length: i32) -> Vec<Token> {
    (0..length).map(|i| Token((i * 7) % 90 + 3)).collect()
}

/// Tokens of a text, and what was traced meanwhile.
fn write(context: &mut Context<'_>, prompt: &[Token], tokens: usize) -> (Vec<Token>, Vec<TraceRow>) {
    drop(context.take_trace());
    write_with(context, prompt, &greedy(tokens))
}

fn write_with(
    context: &mut Context<'_>,
    prompt: &[Token],
    options: &GenerateOptions,
) -> (Vec<Token>, Vec<TraceRow>) {
    let text = generate(context, prompt, options, |_| ControlFlow::Continue(())).expect("a text");
    (text.tokens, context.take_trace())
}

/// Positions at which the watched cap moved the row, or would have had to.
fn acted(trace: &[TraceRow]) -> Vec<i32> {
    let rows = trace.iter().filter(|row| row.cap == 0 && row.after == 50.0);
    rows.map(|row| row.position).collect()
}

#[test]
fn caps_act_on_generated_rows_alone() {
    let model = load("llama");
    let caps = caps(&model, floor(50.0));
    let mut context = context(&model, &caps, Schedule::Generated);
    let (tokens, trace) = write(&mut context, &prompt(12), 6);
    assert_eq!(acted(&trace), [12, 13, 14, 15, 16], "the last token is not decoded");
    let mut plain = Context::uncapped(&model, &ContextOptions { ubatch: 8, ctx: Some(256), ..options() })
        .expect("a context");
    plain.prefill(&prompt(12), 0, 0).expect("a prompt");
    let logits = plain.logits(11).expect("logits");
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("logits");
    assert_eq!(tokens[0].0 as usize, best, "the prompt is uncapped");
    // The generated rows are part of the next prompt, and stay as they are.
    let longer = [&prompt(12)[..], &tokens[..5], &prompt(3)].concat();
    let text = generate(&mut context, &longer, &greedy(2), |_| ControlFlow::Continue(())).expect("a text");
    assert_eq!(text.timings.reused, 17);
}

#[test]
fn caps_act_on_the_models_own_turns() {
    let model = load("llama");
    let mut context = context(&model, &caps(&model, floor(50.0)), Schedule::AssistantTurns);
    context.begin_text(0, 12, &[2..4, 7..8]);
    context.prefill(&prompt(12), 0, 0).expect("a prompt");
    let row = |position| BatchRow { token: Token(9), position, sequence: 0, logits: true };
    context.decode(&[row(12)]).expect("a row");
    assert_eq!(acted(&context.take_trace()), [2, 3, 7, 12]);
    // A sequence of which nothing was said is capped.
    context.truncate(0, 0).expect("it can be emptied");
    context.prefill(&prompt(3), 0, 0).expect("a prompt");
    assert_eq!(acted(&context.take_trace()), [0, 1, 2]);
}

#[test]
fn a_ramp_raises_the_strength_step_by_step() {
    let model = load("llama");
    let caps = caps(&model, floor(50.0)).with_policy(Policy::default().with_skip_positions(1));
    let mut context = context(&model, &caps, Schedule::Ramp { from: 4, to: 20 });
    let (_, trace) = write(&mut context, &prompt(12), 12);
    let mut seen = 0;
    for row in trace.iter().filter(|row| row.cap == 0) {
        let step = ((row.position - 4).max(0) / 2).min(RAMP_STEPS as i32);
        let strength = f64::from(step) / RAMP_STEPS as f64;
        let expected = f64::from(row.before) + strength * (50.0 - f64::from(row.before));
        assert!((f64::from(row.after) - expected).abs() < 1e-3, "{row:?}, expected {expected}");
        assert_eq!(row.skipped, row.position == 0);
        seen += 1;
    }
    assert_eq!(seen, 12 + 11);
    // Rows are computed alike at the same place, so that all of them can be reused.
    let text =
        generate(&mut context, &prompt(12), &greedy(12), |_| ControlFlow::Continue(())).expect("a text");
    assert_eq!(text.timings.reused, 11);
    let stats = context.profile_stats(ProfileId::DEFAULT).expect("hooked").expect("a profile");
    assert_eq!(stats[0].rows, 12 + 11 - 1 + 1 + 11, "those of all steps");
    // Other strengths remake the steps.
    let session = context.session().expect("hooked").clone();
    session.set_strength(0, 0.5).expect("a cap");
    let (_, trace) = write(&mut context, &prompt(12), 12);
    let last = trace.iter().rfind(|row| row.cap == 0).expect("a row");
    let half = f64::midpoint(f64::from(last.before), 50.0);
    assert!(last.position == 22 && (f64::from(last.after) - half).abs() < 1e-3, "{last:?}");
    assert_eq!(session.profiles().len(), 1 + RAMP_STEPS);
    let added = session.add_profile("added", &caps).expect("it fits");
    context.schedule_profile(0, Some(added), Schedule::Ramp { from: 4, to: 20 }).expect("a schedule");
    assert_eq!(session.profiles().len(), 2 + 2 * RAMP_STEPS);
    context.set_profile(0, Some(ProfileId::DEFAULT)).expect("always");
    session.remove_profile(added).expect("it was added");
    context.decode(&[BatchRow { token: Token(3), position: 0, sequence: 1, logits: true }]).expect("a row");
    assert_eq!(session.profiles().len(), 1 + RAMP_STEPS, "the steps go with their profile");
}

/// The projections of an uncapped text decide, and the caps act from the next row on.
#[test]
fn an_alarm_engages_and_lets_go() {
    let model = load("llama");
    // Drawn, because a greedy text of a random model repeats itself.
    let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::GREEDY };
    let drawn = GenerateOptions { max_tokens: 60, sampling, margins: false, log_probabilities: false };
    let mut measuring = context(&model, &caps(&model, Bound::NONE), Schedule::Always);
    let (_, measured) = write_with(&mut measuring, &prompt(12), &drawn);
    let mut projections: Vec<f32> =
        measured.iter().filter(|row| row.cap == 0 && row.position >= 12).map(|row| row.before).collect();
    projections.sort_by(f32::total_cmp);
    // A third of the rows lie below.
    let floor = floor(projections[projections.len() / 3]);
    let rule = AlarmRule::Ewma { weight: 1.0, start: None, engage: 0.0, release: -0.01 };
    let caps = caps(&model, floor);
    let mut context = context(&model, &caps, Schedule::OnAlarm(Alarm { cap: None, rule }));
    let (_, trace) = write_with(&mut context, &prompt(12), &drawn);
    let changes = context.take_engagements();
    assert!(changes.len() >= 2, "{changes:?}");
    let mut engaged = false;
    let mut next = changes.iter();
    for row in trace.iter().filter(|row| row.cap == 0 && row.position >= 12) {
        let change = next.clone().next().filter(|change| change.position == row.position as usize);
        if let Some(change) = change {
            (engaged, next) = (change.engaged, {
                let mut rest = next;
                rest.next();
                rest
            });
            assert_eq!((change.sequence, change.late), (0, 0));
        }
        assert_eq!(row.after != row.before, engaged && row.before < floor.lo(), "{row:?}");
    }
    assert!(next.next().is_none_or(|change| change.position == 12 + 59), "{changes:?}");
    assert!(
        changes
            .iter()
            .zip(changes.iter().skip(1))
            .all(|(a, b)| a.engaged != b.engaged && a.position < b.position)
    );
    assert!(trace.iter().all(|row| row.position >= 12 || row.after == row.before), "the prompt is measured");
    // The text goes on with the state of the alarm, another one begins without.
    let engaged_at_end = changes.last().is_some_and(|change| change.engaged);
    let row = |sequence, position| BatchRow { token: Token(9), position, sequence, logits: true };
    context.decode(&[row(0, context.position(0) as i32), row(1, 0)]).expect("rows");
    let profiles: Vec<_> = context
        .take_trace()
        .iter()
        .filter(|row| row.cap == 0)
        .map(|row| (row.sequence, row.profile))
        .collect();
    assert_eq!(profiles[0].1 == ProfileId::DEFAULT, engaged_at_end);
    assert_eq!(profiles[1], (1, ProfileId::DEFAULT), "the other sequence is always capped");
    context.clear();
    context.begin_text(0, 1, &[]);
    context.decode(&[row(0, 0)]).expect("a row");
    assert!(context.take_trace().iter().all(|row| row.profile != ProfileId::DEFAULT));
    assert!(context.take_engagements().iter().all(|change: &Engagement| change.position == 72));
}

#[test]
fn schedules_out_of_range_are_refused() {
    let model = load("llama");
    let mut context = context(&model, &caps(&model, Bound::NONE), Schedule::Always);
    let rule = AlarmRule::Ewma { weight: 0.5, start: None, engage: 0.0, release: -1.0 };
    for (schedule, text) in [
        (Schedule::OnAlarm(Alarm { cap: None, rule }), "has a bound"),
        (Schedule::OnAlarm(Alarm { cap: Some(9), rule }), "the watched cap is 9"),
        (Schedule::Ramp { from: 3, to: 3 }, "the end of the ramp is 3"),
    ] {
        let error = context.schedule_profile(0, Some(ProfileId::DEFAULT), schedule).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    context.set_caps(None).expect("no caps");
    let error = context.schedule_profile(0, Some(ProfileId::DEFAULT), Schedule::Generated).unwrap_err();
    assert!(matches!(error, Error::Hook(_)), "{error}");
    context.set_profile(0, Some(ProfileId::DEFAULT)).expect("the default profile may be empty");
}

/// A conversation that is decoded again keeps its alarm, and another text begins without.
#[test]
fn an_alarm_is_that_of_its_conversation() {
    let model = load("llama");
    let rule = AlarmRule::Ewma { weight: 1.0, start: None, engage: 0.0, release: -1e9 };
    let alarm = Schedule::OnAlarm(Alarm { cap: None, rule });
    let mut context = context(&model, &caps(&model, floor(50.0)), alarm);
    let (tokens, trace) = write(&mut context, &prompt(12), 4);
    // The first generated row raises it for good.
    assert_eq!(acted(&trace), [13, 14]);
    let longer = [&prompt(12)[..], &tokens[..3], &prompt(2)].concat();
    let (_, trace) = write(&mut context, &longer, 3);
    assert_eq!(acted(&trace), [15, 16, 17, 18], "the text goes on");
    let session = context.session().expect("hooked").clone();
    context.update(|session| session.set_strength(1, 0.5)).expect("a cap");
    let longer = [&longer[..], &prompt(1)].concat();
    let (_, trace) = write(&mut context, &longer, 4);
    assert_eq!(acted(&trace), [19, 20], "its rows are not known any more, and so neither is the text");
    // Tracing that was switched off elsewhere, and a step that was removed.
    context.clear();
    session.update(|settings| settings.tracing = false);
    let step = session.profiles().last().expect("a step").id;
    session.remove_profile(step).expect("it is there");
    let (_, trace) = write(&mut context, &prompt(12), 4);
    assert_eq!(acted(&trace), [13, 14]);
    let (_, trace) = write(&mut context, &prompt(5), 4);
    assert_eq!(acted(&trace), [6, 7], "another text");
}

/// The whole conversation is decoded again, and none of it escapes the alarm that it raised.
#[test]
fn a_conversation_that_is_decoded_again_keeps_its_alarm() {
    let model = support::model();
    let rule = AlarmRule::Ewma { weight: 1.0, start: None, engage: 0.0, release: -1e9 };
    let alarm = Schedule::OnAlarm(Alarm { cap: None, rule });
    let set = support::caps([3, 4], 7, floor(50.0));
    let mut context = context(&model, &set, alarm);
    let template = support::template(&model);
    let mut chat = Chat::new(&template, None);
    let say = |context: &mut Context<'_>, chat: &mut Chat<'_>, text: &str| {
        drop(context.take_trace());
        let turn = chat.say(context, text, &greedy(4), |_| ControlFlow::Continue(())).expect("a turn");
        (turn.prompt_tokens, acted(&context.take_trace()))
    };
    let (prompt, rows) = say(&mut context, &mut chat, "Hi.");
    let prompt = prompt as i32;
    assert_eq!(rows[0], prompt + 1);
    context.update(|session| session.set_strength(1, 0.5)).expect("a cap");
    let (second, rows) = say(&mut context, &mut chat, "Who are you?");
    assert_eq!(rows[..second], (0..second as i32).collect::<Vec<_>>());
    assert!(chat.undo());
    let (again, rows) = say(&mut context, &mut chat, "Why?");
    assert!(rows.contains(&(again as i32 - 1)), "a turn that was taken back");
    chat.reset();
    let (prompt, rows) = say(&mut context, &mut chat, "Hi.");
    assert_eq!(rows[0], prompt as i32 + 1, "another conversation");
}

/// The steps of a ramp are those of the caps that there are now, also before the next decode makes them.
#[test]
fn rows_of_a_ramp_are_not_reused_under_other_caps() {
    let model = load("llama");
    let ramp = Schedule::Ramp { from: 4, to: 40 };
    let sets = [50.0, -50.0].map(|value| caps(&model, Bound::band(value, value).expect("a band")));
    let write = |context: &mut Context<'_>| {
        let options = GenerateOptions { log_probabilities: true, ..greedy(4) };
        generate(context, &prompt(30), &options, |_| ControlFlow::Continue(())).expect("a text")
    };
    for now in [Some(&sets[1]), None] {
        let mut changed = context(&model, &sets[0], ramp);
        write(&mut changed);
        changed.set_caps(now).expect("the caps fit");
        let text = write(&mut changed);
        // The rows before the first step with a strength are uncapped then and now.
        assert_eq!(text.timings.reused, 9);
        changed.clear();
        let fresh = write(&mut changed);
        let pairs = text.log_probabilities.iter().zip(&fresh.log_probabilities);
        assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-3), "{pairs:?}");
    }
    let mut context = context(&model, &sets[0], ramp);
    context.schedule_profile(1, Some(ProfileId::DEFAULT), ramp).expect("a schedule");
    context.prefill(&prompt(30), 0, 0).expect("a prompt");
    let saved = context.save_sequence(0).expect("it is known");
    context.set_caps(Some(&sets[1])).expect("the caps fit");
    let refused = context.restore_sequence(&saved, 1);
    assert!(matches!(refused, Err(Error::Saved { .. })), "{refused:?}");
}

#[test]
fn steps_have_names_beside_those_of_the_caller() {
    let model = load("llama");
    let caps = caps(&model, floor(50.0));
    let mut context = context(&model, &caps, Schedule::Always);
    let session = context.session().expect("hooked").clone();
    session.add_profile("default, step 3 of 8", &caps).expect("it fits");
    for to in [20, 30] {
        let ramp = Schedule::Ramp { from: 4, to };
        context.schedule_profile(0, Some(ProfileId::DEFAULT), ramp).expect("a schedule");
        assert_eq!(session.profiles().len(), 2 + RAMP_STEPS);
    }
}

/// Of an alarm whose cap has no bound any more, every decode says so, and none of another sequence.
#[test]
fn caps_that_an_alarm_cannot_go_on_with_fail_its_sequence_alone() {
    let model = load("llama");
    let rule = AlarmRule::Ewma { weight: 1.0, start: None, engage: 0.0, release: -1.0 };
    let mut context =
        context(&model, &caps(&model, floor(50.0)), Schedule::OnAlarm(Alarm { cap: None, rule }));
    let row = |position, sequence| [BatchRow { token: Token(5), position, sequence, logits: true }];
    context.decode(&row(0, 0)).expect("a row");
    let session = context.session().expect("hooked").clone();
    session.set_bound(0, Bound::NONE).expect("a cap");
    for position in 0..2 {
        let refused = context.decode(&row(1, 0));
        assert!(matches!(refused, Err(Error::Option { option: "the watched cap", .. })), "{refused:?}");
        context.decode(&row(position, 1)).expect("a row of another sequence");
    }
    session.set_bound(0, floor(40.0)).expect("a cap");
    context.decode(&row(1, 0)).expect("a row");
}

#[test]
fn a_decode_that_failed_forgets_no_text() {
    let model = load("llama");
    let mut context = context(&model, &caps(&model, floor(50.0)), Schedule::Generated);
    let session = context.session().expect("hooked").clone();
    let gone = session.add_profile("gone", &caps(&model, floor(1.0))).expect("it fits");
    context.set_profile(1, Some(gone)).expect("it was added");
    session.remove_profile(gone).expect("it was added");
    context.begin_text(0, 6, &[]);
    let row = |position, sequence| BatchRow { token: Token(9), position, sequence, logits: true };
    let mut rows: Vec<_> = (0..7).map(|position| row(position, 0)).collect();
    rows.push(row(0, 1));
    assert!(matches!(context.decode(&rows), Err(Error::Hook(HookError::NoProfile { .. }))));
    rows.pop();
    context.decode(&rows).expect("rows");
    assert_eq!(acted(&context.take_trace()), [6], "the prompt is uncapped");
}
