//! Shared by the tests on a real model.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_llama::{
    ChatTemplate, ContextOptions, GenerateOptions, Model, ModelOptions, Sampling, TemplateOptions,
};

use axiscap_testing::llama::{Description, TestModel};
use axiscap_testing::numbers::Random;
pub(crate) use axiscap_testing::small_model as path;

/// Loads the small model. Without it a test fails.
pub(crate) fn model() -> Model {
    Model::load(path(), &ModelOptions::default()).expect("the model loads")
}

/// Returns the model's own chat template.
pub(crate) fn template(model: &Model) -> ChatTemplate<'_> {
    model.chat_template(&TemplateOptions::default()).expect("the model's template")
}

/// Attention, sliding windows, latent attention, recurrent, and hybrid ones.
pub(crate) const ARCHITECTURES: [&str; 8] =
    ["llama", "gemma3", "deepseek2", "mamba2", "rwkv7", "jamba", "qwen3next", "lfm2"];

/// Loads a random model of an architecture, from a file.
pub(crate) fn load(architecture: &str) -> Model {
    let file = tempfile::NamedTempFile::with_suffix(".gguf").expect("a temporary file");
    let experts = !axiscap_testing::llama::has_dense_form(architecture);
    TestModel::write(&Description::new(architecture, experts), file.path()).expect("a model");
    Model::load(file.path(), &ModelOptions::default()).expect("the model loads")
}

/// Returns a small context on one thread, because several would spin against the other work of the machine.
pub(crate) fn options() -> ContextOptions {
    ContextOptions { ctx: Some(512), threads: Some(1), ..ContextOptions::default() }
}

/// Returns greedy sampling of a number of tokens.
pub(crate) fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, sampling: Sampling::GREEDY, margins: false, log_probabilities: false }
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
