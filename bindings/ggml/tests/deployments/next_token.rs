//! A model that drafts with its own next-token block.

use axiscap_testing::llama::{ContextSettings, Description, Row, TestContext, TestModel, has_dense_form};
use llama_cpp_sys_2 as sys;

use crate::capped::{Capped, PINNED, bands, rows};
use crate::script::run_reading;
use crate::subjects::Subject;
use crate::support;

/// The architectures that can be capped, and whose next-token block llama.cpp makes and computes. MiMo 2's needs
/// weights that llama.cpp takes only from a file.
const ARCHITECTURES: [&str; 12] = [
    "bailingmoe3",
    "cohere2moe",
    "deepseek2",
    "deepseek32",
    "glm-dsa",
    "glm4moe",
    "hy_v3",
    "nemotron_h_moe",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "step35",
];

fn subjects() -> impl Iterator<Item = Subject> {
    ARCHITECTURES.into_iter().map(|architecture| {
        let mut description = Description::new(architecture, !has_dense_form(architecture));
        description.add_next_token_blocks(1);
        if architecture == "glm4moe" {
            // llama.cpp aborts in this block where positions have several dimensions (GLM-4.5V).
            description.remove(".rope.dimension_sections");
        }
        let model = TestModel::new(&description).unwrap_or_else(|error| panic!("{architecture}: {error}"));
        Subject { name: architecture, architecture, model, rolls_back: false }
    })
}

/// Returns a context that drafts with the model's next-token block.
fn drafting(params: &mut ContextSettings) {
    params.ctx_type = sys::LLAMA_CONTEXT_TYPE_MTP;
}

fn logits_and_states(context: &TestContext<'_>, rows: &[Row]) -> Vec<Vec<f32>> {
    let logits = (0..rows.len()).filter(|&row| rows[row].logits).map(|row| context.logits(row));
    logits.chain((0..rows.len()).map(|row| context.hidden_state(row))).collect()
}

/// The draft reads hidden states of capped rows, and is itself left as it is.
#[test]
fn a_next_token_block_drafts_from_capped_rows() {
    for subject in subjects() {
        // Hidden states of all rows, or only of those with logits.
        for masked in [false, true] {
            let settings = |params: &mut ContextSettings| params.n_ubatch = 4;
            run_reading(&subject, settings, logits_and_states, |run| {
                let mut draft = subject.model.context(drafting).unwrap();
                run.context().keep_hidden_states(masked);
                let prompt = rows(0, 0, 6, |row| masked || row == 5);
                run.decode(&prompt);
                let states: Vec<_> = (0..6).map(|row| run.context().hidden_state(row)).collect();
                let status = draft.draft(&rows(0, 1, 6, |row| row == 5), &states);
                assert_eq!(status, 0, "{}: the draft", subject.name);
                run.compare(draft.logits(5));
                run.decode(&rows(0, 6, 2, |_| true));
            });
        }
    }
}

/// Caps are those of the model's own blocks: they are not set for its draft, and not lost there without a word.
#[test]
fn a_hooked_draft_is_refused() {
    let hook = support::install();
    for subject in subjects() {
        let Subject { model, architecture, .. } = &subject;
        for blocks in [0..model.blocks(), model.blocks() - 1..model.blocks()] {
            let mut capped = Capped::new(&hook, model, architecture, drafting).unwrap();
            capped.set(&bands(blocks, model.width(), PINNED, PINNED)).unwrap();
            let batch = rows(0, 1, 2, |_| true);
            let states = vec![vec![0.5; model.width()]; 2];
            let decoded = capped.decode_with(&batch, |context| context.draft(&batch, &states));
            let error = decoded.expect_err(architecture);
            assert!(error.contains("was not computed"), "{architecture}: {error}");
        }
    }
}
