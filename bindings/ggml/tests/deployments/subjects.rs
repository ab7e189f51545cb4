//! The models that deployments are tried on: one per kind of memory.

use std::sync::LazyLock;

use axiscap_testing::llama::{Description, TestModel};

use crate::support;

/// A model.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) architecture: &'static str,
    pub(crate) model: TestModel,
    /// Whether the memory can be rolled back to any position.
    pub(crate) rolls_back: bool,
}

impl Subject {
    fn random(name: &'static str, architecture: &'static str, experts: bool, rolls_back: bool) -> Self {
        let model = TestModel::new(&Description::new(architecture, experts)).expect(name);
        Self { name, architecture, model, rolls_back }
    }
}

/// A model with attention alone, one with sliding windows, one with latent attention and experts, recurrent
/// ones, hybrid ones, and the model of the hook's tests.
static SUBJECTS: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    let real = TestModel::load(&support::model(), |_| {}).expect("the tests' model loads");
    vec![
        Subject::random("attention", "llama", false, true),
        Subject::random("sliding window", "gemma3", false, true),
        Subject::random("latent attention", "deepseek2", true, true),
        Subject::random("recurrent (Mamba 2)", "mamba2", false, false),
        Subject::random("recurrent (RWKV 7)", "rwkv7", false, false),
        Subject::random("hybrid (Jamba)", "jamba", false, false),
        Subject::random("hybrid (Qwen3-Next)", "qwen3next", true, false),
        Subject { name: "the tests' model", architecture: "llama", model: real, rolls_back: true },
    ]
});

pub(crate) fn subjects() -> &'static [Subject] {
    &SUBJECTS
}

/// Returns models of which llama.cpp can keep the states of the last tokens (`llm_arch_supports_rs_rollback`).
pub(crate) fn keep_states() -> Vec<Subject> {
    vec![
        Subject::random("hybrid (Qwen3.5)", "qwen35", false, true),
        Subject::random("hybrid (LFM2)", "lfm2", false, true),
        Subject::random("hybrid (Nemotron-H)", "nemotron_h", false, true),
    ]
}

/// Returns the model with attention alone.
pub(crate) fn attention() -> &'static Subject {
    &SUBJECTS[0]
}

/// Returns the model of the hook's tests.
pub(crate) fn real() -> &'static Subject {
    &SUBJECTS[SUBJECTS.len() - 1]
}
