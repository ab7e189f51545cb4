//! Doses on a real model.

mod support;

use std::ops::ControlFlow;

use axiscap::{Bound, CapSet};
use axiscap_lab::ComputeOptions;
use axiscap_lab::activations::project;
use axiscap_lab::dose::{Doses, GivenText, Sample, random_caps};
use axiscap_lab::rollout::{Group, Rollout};
use axiscap_llama::{BatchRow, Context, ContextOptions, Model, Token};
use support::{answer, caps, long_text, model};

fn held_out(prompt: &[Token], response: &[Token]) -> Rollout {
    answer(Group::HeldOut, prompt, response)
}

fn doses(model: &Model, sample: &Sample, caps: &CapSet) -> Doses {
    let go_on = |_| ControlFlow::Continue(());
    sample.doses(model, caps, &ComputeOptions::default(), go_on).unwrap().unwrap()
}

/// Returns the natural logarithms of the probabilities of the next token at each position of a text, by definition.
fn distributions(context: &mut Context<'_>, tokens: &[i32]) -> Vec<Vec<f64>> {
    context.clear();
    let row = |(position, &id): (usize, &i32)| BatchRow {
        token: Token(id),
        position: i32::try_from(position).unwrap(),
        sequence: 0,
        logits: true,
    };
    let rows: Vec<_> = tokens.iter().enumerate().map(row).collect();
    context.decode(&rows).unwrap();
    let distribution = |row| {
        let logits: Vec<f64> = context.logits(row).unwrap().iter().map(|&logit| f64::from(logit)).collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        logits.into_iter().map(|logit| logit - sum.ln()).collect()
    };
    (0..rows.len()).map(distribution).collect()
}

/// A floor that these projections are below and above.
fn floor(model: &Model, answers: &[Rollout], set: &CapSet) -> CapSet {
    let axes: Vec<_> = set.caps().iter().map(|entry| (entry.block, entry.cap.axis().clone())).collect();
    let go_on = |_| ControlFlow::Continue(());
    let projections = project(model, answers, &axes, &ComputeOptions::default(), go_on).unwrap().unwrap();
    let floors: Vec<f32> =
        projections.iter().map(|one| one.tokens_of(|_| true).quantiles([60.0]).unwrap()[0] as f32).collect();
    let mut floored = set.clone();
    for (index, &floor) in floors.iter().enumerate() {
        let bound = Bound::floor(floor).unwrap();
        floored = floored.with_changed(index, |cap| Ok(cap.with_bound(bound))).unwrap();
    }
    floored
}

#[test]
fn a_dose_is_the_divergence_of_the_next_tokens_distributions() {
    let model = model();
    let text = model.tokenize(&long_text(), true).unwrap();
    let answers = [
        held_out(&text[..30], &text[30..90]),
        held_out(&text[100..103], &[]),
        held_out(&text[1..2], &text[2..40]),
    ];
    let set = floor(&model, &answers, &caps([10, 20], 5, Bound::NONE));
    let sample = Sample { answers: answers.to_vec(), texts: Vec::new() };

    let watched = doses(&model, &sample, &set.with_strength(0.0).unwrap()).answers.unwrap();
    assert_eq!(watched.tokens, 98);
    assert!(watched.kl.max < 1e-6 && watched.other_choice == 0.0, "{watched:?}");
    assert!(watched.perplexity_rise().abs() < 1e-6, "{watched:?}");

    let found = doses(&model, &sample, &set).answers.unwrap();
    let options = ContextOptions { ctx: Some(256), batch: 256, ubatch: 256, ..ContextOptions::default() };
    let mut plain = Context::uncapped(&model, &options).unwrap();
    let mut capped = Context::new(&model, &options).unwrap();
    capped.set_caps(Some(&set)).unwrap();
    let (mut divergences, mut likelihoods) = (Vec::new(), (0.0, 0.0));
    for answer in answers.iter().filter(|answer| !answer.response.is_empty()) {
        let tokens = [&answer.prompt[..], &answer.response].concat();
        let (before, after) = (distributions(&mut plain, &tokens), distributions(&mut capped, &tokens));
        for position in answer.prompt.len()..tokens.len() {
            let (q, p) = (&before[position - 1], &after[position - 1]);
            divergences.push(p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            let token = usize::try_from(tokens[position]).unwrap();
            likelihoods.0 += q[token];
            likelihoods.1 += p[token];
        }
    }
    let expected = divergences.iter().sum::<f64>() / 98.0;
    // Other batches have other last bits, and llama.cpp rounds activations to 8 bits (docs/method.md).
    assert!(expected > 1e-3 && (found.kl.mean / expected - 1.0).abs() < 0.2, "{found:?} against {expected}");
    assert!(found.kl.median <= found.kl.p95 && found.kl.p95 <= found.kl.max);
    let rise = ((likelihoods.0 - likelihoods.1) / 98.0_f64).exp() - 1.0;
    assert!((found.perplexity_rise() - rise).abs() < 0.02, "{found:?} against {rise}");
    assert!(found.engaged.iter().all(|&engaged| engaged > 0.2 && engaged < 0.95), "{found:?}");

    let stop = |_| ControlFlow::Break(());
    assert_eq!(sample.doses(&model, &set, &ComputeOptions::default(), stop).unwrap().map(|_| ()), Some(()));
    let many = Sample { answers: vec![answers[0].clone(); 80], texts: Vec::new() };
    assert_eq!(many.doses(&model, &set, &ComputeOptions::default(), stop).unwrap(), None);
}

#[test]
fn random_directions_push_as_much() {
    let model = model();
    let text = model.tokenize(&long_text(), true).unwrap();
    let answers = [held_out(&text[..30], &text[30..200])];
    let set = floor(&model, &answers, &caps([10, 20], 5, Bound::NONE)).with_strength(0.5).unwrap();
    let go_on = |_| ControlFlow::Continue(());
    let compute = ComputeOptions::default();
    let random = |seeds: &[u64]| {
        random_caps(&model, &answers, &set, seeds.iter().copied(), &compute, go_on).unwrap().unwrap()
    };
    let [one, other] = &random(&[1, 2])[..] else { panic!("two controls") };
    assert_eq!(random(&[1])[0], *one);
    assert_ne!(one.caps()[0].cap.axis(), other.caps()[0].cap.axis());
    let pushes = |set: &CapSet| -> Vec<f64> {
        let axes: Vec<_> = set.caps().iter().map(|entry| (entry.block, entry.cap.axis().clone())).collect();
        let found = project(&model, &answers, &axes, &compute, go_on).unwrap().unwrap();
        let push = |(index, found): (usize, &axiscap_lab::activations::Projections)| {
            let floor = f64::from(set.caps()[index].cap.bound().lo());
            // 170 values, which a distribution keeps exactly: their quantiles are the values.
            let tokens = found.tokens_of(|_| true);
            let percentiles: [f64; 170] = std::array::from_fn(|i| 100.0 * i as f64 / 169.0);
            let values = tokens.quantiles(percentiles).unwrap();
            (values.iter().map(|p| (floor - p).max(0.0).powi(2)).sum::<f64>() / 170.0).sqrt()
        };
        found.iter().enumerate().map(push).collect()
    };
    for ((own, random), entry) in pushes(&set).into_iter().zip(pushes(one)).zip(one.caps()) {
        assert!(own > 0.0 && (random / own - 1.0).abs() < 1e-3, "{own} against {random}");
        assert_eq!((entry.cap.strength(), entry.cap.name()), (0.5, Some("random")));
        let cosine: f32 = entry
            .cap
            .axis()
            .values()
            .iter()
            .zip(set.caps().iter().find(|own| own.block == entry.block).unwrap().cap.axis().values())
            .map(|(a, b)| a * b)
            .sum();
        assert!(cosine.abs() < 0.2, "{cosine}");
    }
}

#[test]
fn texts_are_cut_into_pieces_that_are_predicted_whole() {
    let model = model();
    let text = long_text().repeat(4);
    let tokens = model.tokenize_text(&text).unwrap().len();
    let whole = GivenText::cut(&model, "log", &text, usize::MAX).unwrap();
    assert_eq!(whole.pieces.len(), tokens.div_ceil(512));
    assert_eq!(GivenText::cut(&model, "log", &text, 1).unwrap().pieces, whole.pieces[..1]);
    let error = GivenText::cut(&model, "empty.txt", "", 4).unwrap_err().to_string();
    assert!(error.contains("empty.txt") && error.contains("longer text"), "{error}");

    let sample = Sample { answers: Vec::new(), texts: vec![whole] };
    let found = doses(&model, &sample, &caps([3], 1, Bound::floor(-1e9).unwrap()));
    let [(name, dose)] = &found.texts[..] else { panic!("{found:?}") };
    // This model has no BOS before a text: the first token of each piece is given.
    let begin = model.tokenize("", true).unwrap().len();
    let given = if begin == 0 { tokens.div_ceil(512) } else { 0 };
    assert_eq!((name.as_str(), dose.tokens, found.answers.is_none()), ("log", tokens - given, true));
    assert_eq!(dose.engaged, [0.0]);
    assert!(dose.kl.max < 1e-6 && dose.perplexity_capped > 1.0, "{dose:?}");

    let builtin = GivenText::builtin(&model, 1).unwrap();
    assert_eq!(
        builtin.iter().map(|text| text.name.as_str()).collect::<Vec<_>>(),
        ["prose", "science", "code"]
    );
    assert!(builtin.iter().all(|text| text.pieces.len() == 1));
}
