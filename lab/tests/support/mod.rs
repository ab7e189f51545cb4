//! Shared by the tests on a real model.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_lab::rollout::{Group, Rollout};
use axiscap_llama::{Model, ModelOptions, Token};
use axiscap_testing::llama::quick_model;
use axiscap_testing::numbers::Random;

/// Loads the small model. Without it a test fails.
pub(crate) fn model() -> Model {
    Model::load(quick_model(), &ModelOptions::default()).expect("the model loads")
}

/// Returns a cap on each of these blocks, with different axes and one bound.
pub(crate) fn caps(blocks: impl IntoIterator<Item = usize>, seed: u64, bound: Bound) -> CapSet {
    let entries = blocks.into_iter().map(|block| {
        let mut random = Random(seed << 32 | block as u64);
        let direction: Vec<f32> = (0..576).map(|_| random.signed()).collect();
        BlockCap { block, cap: Cap::new(Axis::from_direction(&direction).expect("an axis"), bound) }
    });
    CapSet::new(entries).expect("a set")
}

/// Returns an answer of these tokens.
pub(crate) fn answer(group: Group, prompt: &[Token], response: &[Token]) -> Rollout {
    let ids = |tokens: &[Token]| tokens.iter().map(|token| token.0).collect();
    Rollout {
        group,
        system: None,
        question: 0,
        seed: 0,
        prompt: ids(prompt),
        response: ids(response),
        thoughts: 0,
        text: String::new(),
        log_likelihood: None,
        score: None,
        faults: Vec::new(),
    }
}

/// Returns a text of a few hundred tokens.
pub(crate) fn long_text() -> String {
    let sentence = |i: usize| {
        format!(
            "On day {i} the keeper climbed the {} steps, lit the lamp, and wrote one line. ",
            90 + i * 7 % 60
        )
    };
    (1..=12).map(sentence).collect()
}
