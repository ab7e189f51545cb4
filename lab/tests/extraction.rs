//! Answers, activations and projections of a real model.

mod support;

use axiscap::{Bound, CapSet};
use axiscap_lab::ComputeOptions;
use axiscap_lab::activations::{mean_activations, project};
use axiscap_lab::rollout::{Generator, Group, Plan, PlanSize, Rollout, RolloutOptions, generate_rollouts};
use axiscap_llama::{BatchRow, Context, ContextOptions, Sampling, TemplateOptions, Token};
use support::{answer, caps, long_text, model};

#[test]
fn answers_come_in_the_order_of_the_plan_and_are_those_of_a_single_sequence() {
    let model = model();
    let template = model.chat_template(&TemplateOptions::default()).unwrap();
    let plan = Plan::builtin().limited(Some(1), Some(2));
    let requests = plan.requests(PlanSize::default(), 7);
    let generate = |sampling: Sampling| {
        let options = RolloutOptions { max_tokens: 8, slots: 5, sampling, ..RolloutOptions::default() };
        let mut reported = Vec::new();
        let answers = generate_rollouts(&template, &requests, &options, |done| reported.push(done)).unwrap();
        assert_eq!(reported, (1..=requests.len()).collect::<Vec<_>>());
        answers
    };
    let together = generate(Sampling::GREEDY);
    let options = ContextOptions { ctx: Some(512), ..ContextOptions::default() };
    let mut context = Context::uncapped(&model, &options).unwrap();
    for (rollout, request) in together.iter().zip(&requests) {
        assert_eq!((&rollout.group, rollout.question), (&request.group, request.question));
        assert!(rollout.response.len() <= 8);
        assert!(!rollout.text.is_empty() || rollout.response.is_empty());
        let lead = lead_of_other_tokens(&mut context, rollout);
        assert!(lead <= NEAR_TIE, "alone, another token leads by {lead}: {rollout:?}");
    }
    // The same batches with the same seeds draw the same answers.
    let drawn = RolloutOptions::default().sampling;
    assert_eq!(generate(drawn), generate(drawn));
}

#[test]
fn a_group_of_answers_does_not_depend_on_earlier_groups() {
    let model = model();
    let template = model.chat_template(&TemplateOptions::default()).unwrap();
    let requests = Plan::builtin()
        .limited(Some(2), Some(2))
        .requests(PlanSize { held_out: 0, ..PlanSize::default() }, 3);
    let options = RolloutOptions { max_tokens: 6, slots: 2, ..RolloutOptions::default() };
    let whole = generate_rollouts(&template, &requests, &options, |_| {}).unwrap();
    let mut generator = Generator::new(&template, &requests, &options).unwrap();
    assert_eq!((requests.len(), generator.group_size()), (18, 8));
    let go_on = |_| std::ops::ControlFlow::Continue(());
    // In another order, with one group stopped halfway.
    assert_eq!(generator.group(8, go_on).unwrap().unwrap(), whole[8..16]);
    let stop =
        |done| if done > 2 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) };
    assert_eq!(generator.group(0, stop).unwrap(), None);
    assert_eq!(generator.group(16, go_on).unwrap().unwrap(), whole[16..]);
    assert_eq!(generator.group(0, go_on).unwrap().unwrap(), whole[..8]);
}

/// Batched matrix products differ in their last bits from single ones, and llama.cpp rounds activations to 8
/// bits. The likeliest token may therefore change between two that are nearly as likely. Logits of unrelated
/// texts differ by 10 and more.
const NEAR_TIE: f32 = 0.5;

/// Decodes the answer alone. Returns by how much the logit of any other token exceeds that of the token
/// taken.
fn lead_of_other_tokens(context: &mut Context<'_>, rollout: &Rollout) -> f32 {
    context.clear();
    let mut lead = 0f32;
    for (position, id) in rollout.prompt.iter().chain(&rollout.response).enumerate() {
        if position >= rollout.prompt.len() {
            let logits = context.logits(0).unwrap();
            let most = logits.iter().copied().fold(f32::MIN, f32::max);
            lead = lead.max(most - logits[usize::try_from(*id).unwrap()]);
        }
        let position = i32::try_from(position).unwrap();
        context.decode(&[BatchRow { token: Token(*id), position, sequence: 0, logits: true }]).unwrap();
    }
    lead
}

/// Returns answers of given lengths from a running text. One is longer than a pass.
fn rollouts(text: &[Token]) -> Vec<Rollout> {
    let rollout = |role: Option<&str>, prompt: &[Token], response: &[Token]| {
        answer(role.map_or(Group::Default, |role| Group::Role(role.into())), prompt, response)
    };
    let repeated: Vec<Token> = text.iter().copied().cycle().take(560).collect();
    vec![
        rollout(None, &text[..9], &text[9..14]),
        rollout(Some("a"), &text[20..22], &[]),
        rollout(Some("a"), &repeated[..530], &repeated[530..]),
        rollout(None, &text[..1], &text[30..33]),
    ]
}

/// Returns the same projections from the trace of caps that only observe, one answer per context.
fn traced(context: &mut Context<'_>, set: &CapSet, rollout: &Rollout) -> Vec<Vec<f64>> {
    context.set_caps(Some(set)).unwrap();
    context.clear();
    context.set_tracing(true).unwrap();
    let tokens: Vec<Token> = rollout.prompt.iter().chain(&rollout.response).map(|&id| Token(id)).collect();
    let row = |(position, &token): (usize, &Token)| BatchRow {
        token,
        position: i32::try_from(position).unwrap(),
        sequence: 0,
        logits: true,
    };
    let rows: Vec<_> = tokens.iter().enumerate().map(row).collect();
    context.decode(&rows).unwrap();
    let trace = context.take_trace();
    let of_cap = |cap| {
        let response =
            trace.iter().filter(|row| row.cap == cap && row.position as usize >= rollout.prompt.len());
        response.map(|row| f64::from(row.before)).collect()
    };
    (0..set.caps().len()).map(of_cap).collect()
}

#[test]
fn mean_activations_and_projections_agree_with_the_trace_on_every_kind_of_block() {
    let model = model();
    let blocks = [0, 14, 29];
    let set = caps(blocks, 3, Bound::NONE);
    let axes: Vec<_> = set.caps().iter().map(|entry| (entry.block, entry.cap.axis().clone())).collect();
    let rollouts = rollouts(&model.tokenize(&long_text(), true).unwrap());
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let folder = tempfile::tempdir().unwrap();
    let means = mean_activations(&model, &rollouts, &ComputeOptions::default(), folder.path(), go_on)
        .unwrap()
        .unwrap();
    let projections = project(&model, &rollouts, &axes, &ComputeOptions::default(), go_on).unwrap().unwrap();
    assert_eq!((means.answers(), means.blocks(), means.width()), (4, 30, 576));
    assert!(means.block(14).unwrap().answer(1).iter().all(|&value| value == 0.0), "an answer without tokens");

    let options = ContextOptions { ctx: Some(1024), batch: 1024, ..ContextOptions::default() };
    let mut context = Context::new(&model, &options).unwrap();
    let counted: Vec<usize> = (0..4).filter(|&answer| !rollouts[answer].response.is_empty()).collect();
    for (place, &answer) in counted.iter().enumerate() {
        let traced = traced(&mut context, &set, &rollouts[answer]);
        for (index, (block, axis)) in axes.iter().enumerate() {
            assert_eq!(traced[index].len(), rollouts[answer].response.len());
            let expected = traced[index].iter().sum::<f64>() / traced[index].len() as f64;
            let (prompt, projected) = projections[index].answers[place];
            assert_eq!(projections[index].prompts[prompt].group, rollouts[answer].group);
            let of_block = means.block(*block).unwrap();
            let mean = of_block.answer(answer);
            let norm = mean.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            let dot: f64 = axis.values().iter().zip(mean).map(|(&v, &x)| f64::from(v) * f64::from(x)).sum();
            // Other batches have other last bits, and llama.cpp rounds activations to 8 bits
            // (docs/method.md).
            let tolerance = 5e-3 * norm;
            for found in [projected, dot] {
                assert!(
                    (found - expected).abs() <= tolerance,
                    "answer {answer}, block {block}: {found} against {expected}, norm {norm}"
                );
            }
        }
    }
    // Without the last block no logits are computed. The other blocks see the same rows.
    let some = project(&model, &rollouts, &axes[..2], &ComputeOptions::default(), go_on).unwrap().unwrap();
    assert_eq!(some, projections[..2]);
    let tokens: usize = rollouts.iter().map(|rollout| rollout.response.len()).sum();
    assert!(projections.iter().all(|one| one.tokens_of(|_| true).count() == tokens as u64));
}
