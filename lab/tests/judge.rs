//! The built-in judge on a real model.

use std::ops::ControlFlow;

use axiscap_lab::ComputeOptions;
use axiscap_lab::judge::{LEAST_LIKELIHOOD, likelihoods};
use axiscap_lab::rollout::{Group, Plan, PlanSize, Rollout, RolloutOptions, generate_rollouts};
use axiscap_llama::{
    BatchRow, Context, ContextOptions, Model, ModelOptions, TemplateOptions, Token, log_probability,
};
use axiscap_testing::small_model;

/// Returns the log-likelihood of a response after a prompt, one token at a time.
fn alone(context: &mut Context<'_>, prompt: &[i32], response: &[i32]) -> f64 {
    context.clear();
    let mut sum = 0.0;
    for (place, &id) in prompt.iter().chain(response).enumerate() {
        if place >= prompt.len() {
            sum += f64::from(log_probability(context.logits(0).unwrap(), Token(id)));
        }
        let position = i32::try_from(place).unwrap();
        context.decode(&[BatchRow { token: Token(id), position, sequence: 0, logits: true }]).unwrap();
    }
    sum
}

/// Batches round otherwise than single tokens, and llama.cpp rounds activations to 8 bits: so much per token.
const ROUNDING: f64 = 0.05;

#[test]
fn answers_in_character_are_told_from_answers_that_ignore_their_role() {
    let model = Model::load(small_model(), &ModelOptions::default()).unwrap();
    let template = model.chat_template(&TemplateOptions::default()).unwrap();
    let plan = Plan::builtin().limited(Some(1), Some(2));
    let requests = plan.requests(PlanSize { default: Some(1), role: Some(3), held_out: 0 }, 7);
    let options = RolloutOptions { max_tokens: 12, ..RolloutOptions::default() };
    let mut rollouts = generate_rollouts(&template, &requests, &options, |_| {}).unwrap();
    let options = ContextOptions { ctx: Some(512), ..ContextOptions::default() };
    let mut context = Context::uncapped(&model, &options).unwrap();
    for rollout in &rollouts {
        let expected = alone(&mut context, &rollout.prompt, &rollout.response);
        let error = (f64::from(rollout.log_likelihood.unwrap()) - expected).abs();
        assert!(error <= ROUNDING * rollout.response.len() as f64, "{error} of {expected}");
    }
    // Two answers of which it is known what they are, under a system prompt of the role.
    let mut with = |text: &str| {
        let response: Vec<i32> = model.tokenize(text, false).unwrap().iter().map(|token| token.0).collect();
        let log_likelihood = Some(alone(&mut context, &rollouts[1].prompt, &response) as f32);
        Rollout { response, log_likelihood, text: text.into(), ..rollouts[1].clone() }
    };
    let plays = with("I am Scarlet Meg, captain of the Black Heron, and I love gold, rum and open water.");
    let ignores = with("I am an AI assistant, and I am here to help you.");
    rollouts.extend([plays, ignores]);
    // The first two prompts of the role name it differently: the first one says the name.
    assert!(rollouts[1].system.as_ref().unwrap().contains("Scarlet Meg"));
    rollouts.push(Rollout { response: Vec::new(), ..rollouts[1].clone() });
    let go_on = |_| ControlFlow::Continue(());
    let scores = likelihoods(&template, &plan.questions, &rollouts, &ComputeOptions::default(), go_on)
        .unwrap()
        .unwrap();
    assert_eq!((rollouts[0].group.clone(), scores[0]), (Group::Default, None));
    assert_eq!((scores.len(), scores[6]), (rollouts.len(), None), "an answer without tokens");
    assert!(scores[4].unwrap() > LEAST_LIKELIHOOD + 10.0, "{scores:?}");
    assert!(scores[5].unwrap() < LEAST_LIKELIHOOD, "{scores:?}");
    // A generated answer's score is the difference of its two likelihoods.
    let without = template.prompt(&[axiscap_llama::Message::new(
        axiscap_llama::Role::User,
        &plan.questions[rollouts[1].question].text,
    )]);
    let without: Vec<i32> = without.unwrap().iter().map(|token| token.0).collect();
    let expected =
        f64::from(rollouts[1].log_likelihood.unwrap()) - alone(&mut context, &without, &rollouts[1].response);
    let error = (f64::from(scores[1].unwrap()) - expected).abs();
    assert!(error <= ROUNDING * rollouts[1].response.len() as f64, "{error} of {expected}");
    // It can be stopped.
    let stop = |_| ControlFlow::Break(());
    let many: Vec<_> = rollouts.iter().cycle().take(100).cloned().collect();
    assert_eq!(
        likelihoods(&template, &plan.questions, &many, &ComputeOptions::default(), stop).unwrap(),
        None
    );
}
