//! Transcripts, read by a real model.

mod support;

use std::ops::ControlFlow;

use axiscap::{Bound, CapSet};
use axiscap_lab::ComputeOptions;
use axiscap_lab::transcript::Transcript;
use axiscap_lab::watch::{Answer, Prepared, Reader};
use axiscap_llama::{
    Chat, ChatTemplate, Context, ContextOptions, GenerateOptions, KvType, Message, Role, Sampling,
    TemplateOptions, Watch, Watcher,
};
use support::{caps, model};

/// Number formats in which a row depends little on its neighbours in a batch.
fn exact() -> ComputeOptions {
    let kv_type = KvType::F32;
    ComputeOptions {
        kv_type_k: kv_type,
        kv_type_v: kv_type,
        flash_attention: Some(false),
        ..ComputeOptions::default()
    }
}

fn prepared(template: &ChatTemplate<'_>, messages: &[(Role, &str)]) -> Prepared {
    let messages = messages.iter().map(|&(role, text)| Message::new(role, text)).collect();
    Prepared::new(template, &Transcript { messages }).unwrap()
}

fn read(template: &ChatTemplate<'_>, caps: &CapSet, acts: bool, texts: &[&Prepared]) -> Vec<Vec<Answer>> {
    let compute = exact();
    let watch = Watch { cap: None, tokens: 1, thresholds: None };
    let reader = Reader { template, caps, watched: watch.watched(caps), acts, compute: &compute };
    reader.read(texts, |_| ControlFlow::Continue(())).unwrap().unwrap()
}

/// Projections of this model are up to about 20. Small batches and large ones are computed by other kernels, whose
/// roundings the quantised weights magnify.
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 0.4, "{found} and {expected}");
    }
}

/// What [`Watch`] promises of the lowest capped block: with caps that act on every row, projections there are those of
/// the uncapped model that reads the text.
#[test]
fn a_watch_while_caps_act_reads_what_the_uncapped_model_reads() {
    let model = model();
    let template = model.chat_template(&TemplateOptions::default()).unwrap();
    let caps = caps([24, 12, 18], 3, Bound::band(2.0, 2.0).unwrap());
    let options = ContextOptions { ctx: Some(512), ..exact_context() };
    let mut context = Context::new(&model, &options).unwrap();
    context.set_caps(Some(&caps)).unwrap();
    let watch = Watch { cap: None, tokens: 1, thresholds: None };
    assert_eq!(caps.caps()[watch.watched(&caps)].block, 12);
    context.set_watch(0, Some(Watcher::new(&watch).unwrap())).unwrap();
    let mut chat = Chat::new(&template, Some("You are an oracle."));
    let (max_tokens, sampling) = (24, Sampling::GREEDY);
    let options = GenerateOptions { max_tokens, sampling, margins: false, log_probabilities: false };
    let mut live: Vec<Vec<f32>> = Vec::new();
    for text in ["Who are you?", "What do you see?"] {
        let turn = chat.say(&mut context, text, &options, |_| ControlFlow::Continue(())).unwrap();
        live.push(turn.generated.readings.iter().map(|reading| reading.level.projection).collect());
    }
    let stats = context.session().unwrap().stats();
    assert!(stats.iter().all(|stats| stats.engaged > stats.rows / 2), "the caps act: {stats:?}");
    let transcript = Transcript { messages: chat.messages().to_vec() };
    let prepared = Prepared::new(&template, &transcript).unwrap();
    let uncapped = &read(&template, &caps, false, &[&prepared])[0];
    for (live, answer) in live.iter().zip(uncapped) {
        // The last token of an answer that was cut off is not decoded.
        assert_close(live, &answer.projections[..live.len()]);
    }
    // On higher blocks the caps below move the projections.
    let capped = &read(&template, &caps, true, &[&prepared])[0];
    let means = |answers: &[Answer], cap: usize| answers[0].caps[cap].means().unwrap().0;
    assert!((means(uncapped, 1) - means(capped, 1)).abs() < 0.05, "block 12");
    assert!((means(uncapped, 0) - means(capped, 0)).abs() > 0.2, "block 24");
}

fn exact_context() -> ContextOptions {
    let ComputeOptions { kv_type_k, kv_type_v, flash_attention, .. } = exact();
    ContextOptions { kv_type_k, kv_type_v, flash_attention, ..ContextOptions::default() }
}

#[test]
fn transcripts_read_together_are_those_read_alone() {
    let model = model();
    let template = model.chat_template(&TemplateOptions::default()).unwrap();
    let floor = Bound::floor(3.0).unwrap();
    let caps = caps([20, 29], 7, floor);
    let texts = [
        prepared(&template, &[(Role::User, "Hello."), (Role::Assistant, "Hello! How can I help you?")]),
        prepared(
            &template,
            &[
                (Role::System, "You are kind."),
                (Role::User, "I feel low."),
                (Role::User, "Very low."),
                (Role::Assistant, "I am sorry to hear that. <|im_end|> is not a token here."),
                (Role::User, "Thanks."),
                (Role::Assistant, ""),
                (Role::User, "Are you there?"),
                (Role::Assistant, "Always."),
                (Role::User, "This has no answer."),
            ],
        ),
    ];
    assert_eq!(texts.each_ref().map(Prepared::answers), [1, 3]);
    let together = read(&template, &caps, true, &[&texts[0], &texts[1]]);
    for (text, together) in texts.iter().zip(&together) {
        let alone = &read(&template, &caps, true, &[text])[0];
        for (alone, together) in alone.iter().zip(together) {
            assert_eq!((alone.message, &alone.tokens), (together.message, &together.tokens));
            assert_close(&alone.projections, &together.projections);
        }
    }
    let answers = &together[1];
    assert_eq!(answers.iter().map(|answer| answer.message).collect::<Vec<_>>(), [3, 5, 7]);
    assert_eq!((answers[1].projections.len(), answers[1].caps[0].means()), (0, None));
    for answer in together.iter().flatten() {
        // The last block computes the rows of answers too.
        assert!(answer.caps.iter().all(|sums| sums.tokens == answer.tokens.len()), "{answer:?}");
        assert_eq!(answer.projections.len(), answer.tokens.len());
        for (_, after) in answer.caps.iter().filter_map(axiscap_lab::watch::AnswerSums::means) {
            assert!(after >= 3.0 - 1e-3, "the floor holds: {after}");
        }
    }
    let stopped = Reader { template: &template, caps: &caps, watched: 0, acts: false, compute: &exact() };
    assert!(
        stopped
            .read(&[&texts[0], &texts[1]], |_| ControlFlow::Break(()))
            .unwrap()
            .is_none_or(|all| all.len() == 2)
    );
}

#[test]
fn answers_beyond_the_models_context_are_left_out() {
    let model = model();
    let template = model.chat_template(&TemplateOptions::default()).unwrap();
    let long = support::long_text().repeat(1 + model.trained_context() as usize / 250);
    let messages = [
        (Role::User, "Hello."),
        (Role::Assistant, "Hello!"),
        (Role::User, long.as_str()),
        (Role::Assistant, "I see."),
        (Role::User, "And?"),
        (Role::Assistant, "Nothing."),
    ];
    let text = prepared(&template, &messages);
    assert_eq!((text.answers(), text.beyond), (1, 2));
    let messages = messages[2..].iter().map(|&(role, text)| Message::new(role, text)).collect();
    let error = Prepared::new(&template, &Transcript { messages }).unwrap_err().to_string();
    assert!(error.contains("the model was trained on"), "{error}");
}
