//! Contexts over every kind of memory that llama.cpp keeps of a text, on random models from files.

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_llama::{
    BatchRow, Context, ContextOptions, Error, HookError, Model, ModelOptions, Tap, Token, TraceRow, generate,
};
use axiscap_testing::llama::{Description, TestModel};
use axiscap_testing::numbers::Random;
use support::{ARCHITECTURES, greedy, load, options};

fn models() -> impl Iterator<Item = Model> {
    ARCHITECTURES.into_iter().map(load)
}

fn caps(model: &Model, bound: Bound) -> CapSet {
    let cap = |block| {
        let mut random = Random(9 + block as u64);
        let direction: Vec<f32> = (0..model.shape().width).map(|_| random.signed()).collect();
        BlockCap { block, cap: Cap::new(Axis::from_direction(&direction).expect("an axis"), bound) }
    };
    CapSet::new((0..model.shape().blocks).map(cap)).expect("a set")
}

fn pinned() -> Bound {
    Bound::band(0.5, 0.5).expect("a band")
}

fn row(sequence: usize, position: usize, logits: bool) -> BatchRow {
    let token = Token(((sequence * 31 + position * 7) % 90) as i32 + 3);
    BatchRow { token, position: position as i32, sequence: sequence as i32, logits }
}

fn traced<'m>(model: &'m Model, sequences: u32, ubatch: u32, bound: Bound) -> Context<'m> {
    let options = ContextOptions { sequences, ubatch, ctx: Some(256), ..options() };
    let mut context = Context::new(model, &options).expect("a context");
    context.set_caps(Some(&caps(model, bound))).expect("the caps fit");
    context.set_tracing(true).expect("hooked");
    context
}

fn key(row: &TraceRow) -> (i32, i32, usize) {
    (row.sequence, row.position, row.block)
}

/// llama.cpp computes the rows of a batch in another order where it keeps states.
#[test]
fn every_row_of_a_mixed_batch_is_traced_as_its_own() {
    for model in models() {
        let name = &model.shape().architecture;
        let mut random = Random(4);
        // Each sequence alone, which no order can mix up.
        let mut alone = Vec::new();
        for sequence in 0..4 {
            let mut context = traced(&model, 4, 8, Bound::NONE);
            for position in 0..24 {
                context.decode(&[row(sequence, position, true)]).expect("a row");
            }
            alone.extend(context.take_trace());
        }
        let expected = |of: &TraceRow| alone.iter().find(|row| key(row) == key(of)).expect("a row").before;
        let scale = alone.iter().map(|row| row.before.abs()).fold(0.0, f32::max);
        for _ in 0..12 {
            let mut context = traced(&model, 4, 8, Bound::NONE);
            let mut next = [0; 4];
            for _ in 0..3 {
                // Runs of rows of random sequences, some of them interrupted by others.
                let mut rows = Vec::new();
                for _ in 0..1 + random.below(6) {
                    let sequence = random.below(4);
                    for _ in 0..1 + random.below(4) {
                        if next[sequence] < 24 {
                            rows.push(row(sequence, next[sequence], random.below(3) == 0));
                            next[sequence] += 1;
                        }
                    }
                }
                context.decode(&rows).unwrap_or_else(|error| panic!("{name}: {error}: {rows:?}"));
                let trace = context.take_trace();
                let blocks = model.shape().blocks;
                for row in &rows {
                    let seen =
                        trace.iter().filter(|t| (t.sequence, t.position) == (row.sequence, row.position));
                    let seen = seen.count();
                    assert!(seen == blocks || (seen + 1 == blocks && !row.logits), "{name}: {seen} {row:?}");
                }
                for row in &trace {
                    let distance = (row.before - expected(row)).abs();
                    assert!(
                        distance < 0.02 * scale,
                        "{name}: {row:?}, alone {}; batch {rows:?}",
                        expected(row)
                    );
                }
            }
        }
    }
}

/// A decode that fails half way leaves neither rows nor traces.
#[test]
fn a_failed_decode_leaves_the_memory_as_it_was() {
    for model in models().chain([support::model()]) {
        let name = &model.shape().architecture;
        let mut context = traced(&model, 2, 8, pinned());
        let first: Vec<_> = (0..8).map(|position| row(0, position, position == 7)).collect();
        context.decode(&first).expect("a batch");
        drop(context.take_trace());

        let passes = Arc::new(AtomicUsize::new(0));
        let see = move |_, _: axiscap_llama::TapRows<'_>| {
            assert_ne!(passes.fetch_add(1, Ordering::Relaxed), 1, "the second pass");
        };
        let session = context.session().expect("hooked").clone();
        session.set_tap(Some(Tap { blocks: vec![1], see: Arc::new(see) })).expect("a tap");
        let rest: Vec<_> = (8..28).map(|position| row(0, position, position == 27)).collect();
        let error = context.decode(&rest).unwrap_err();
        assert!(matches!(error, Error::Hook(_)), "{name}: {error}");
        session.set_tap(None).expect("no tap");
        assert!(context.take_trace().is_empty());
        let stateful = model.llama().is_recurrent() || model.llama().is_hybrid();
        assert_eq!(context.position(0), if stateful { 0 } else { 8 }, "{name}");
        if stateful {
            context.decode(&first).unwrap_or_else(|error| panic!("{name}: {error}"));
            drop(context.take_trace());
        }
        context.decode(&rest).unwrap_or_else(|error| panic!("{name}: {error}"));
        let trace = context.take_trace();
        assert!(trace.iter().all(|row| row.after == 0.5 && row.position >= 8), "{name}");
        let logits = context.logits(19).expect("logits").to_vec();
        let mut fresh = traced(&model, 2, 8, pinned());
        fresh.decode(&first).expect("a batch");
        fresh.decode(&rest).expect("a batch");
        assert!(fresh.logits(19).expect("logits") == logits, "{name}: something is stale");
        // A batch that llama.cpp refuses takes nothing away.
        assert!(context.decode(&[row(0, 3, true)]).is_err(), "{name}");
        assert_eq!(context.position(0), 28, "{name}");
        context.decode(&[row(0, 28, true)]).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Prompts that share a beginning with the history are continued, or decoded again, with the same text.
#[test]
fn generated_text_does_not_depend_on_what_was_generated_before() {
    for model in models() {
        let name = &model.shape().architecture;
        let prompt = |salt: usize| -> Vec<Token> {
            (0..20).map(|i| Token(((if i < 12 { 0 } else { salt } + i * 7) % 90) as i32 + 3)).collect()
        };
        let write = |context: &mut Context<'_>, salt| {
            let text = generate(context, &prompt(salt), &greedy(8), |_| ControlFlow::Continue(()));
            text.unwrap_or_else(|error| panic!("{name}: {error}")).tokens
        };
        // One row a pass, so that reuse does not change how rows are batched.
        let fresh: Vec<_> = (0..3).map(|salt| write(&mut traced(&model, 1, 1, pinned()), salt)).collect();
        let mut context = traced(&model, 1, 1, pinned());
        for salt in [0, 1, 0, 2, 2, 1] {
            assert_eq!(write(&mut context, salt), fresh[salt], "{name}");
            assert!(context.take_trace().iter().all(|row| row.after == 0.5), "{name}");
        }
    }
}

/// llama.cpp knows more tokenizers than its bindings do.
#[test]
fn a_tokenizer_that_the_bindings_do_not_know() {
    let model = load("llama");
    assert_eq!(model.metadata("tokenizer.ggml.model").as_deref(), Some("test"));
    let tokens = model.tokenize("anything", true).expect("tokens");
    assert!(!tokens.is_empty() && tokens.iter().all(|&token| model.has_token(token)));
    assert!(!model.detokenize(&tokens).is_empty());
}

/// llama.cpp aborts the process on some uses of these models.
#[test]
fn models_on_which_llama_cpp_aborts() {
    let model = load("plm");
    let mut context = traced(&model, 1, 8, pinned());
    assert_eq!(context.ubatch(), 1);
    let rows: Vec<_> = (0..12).map(|position| row(0, position, position == 11)).collect();
    context.decode(&rows).expect("one row at a time");
    assert!(context.take_trace().iter().all(|row| row.after == 0.5));
    let several = ContextOptions { sequences: 2, ..options() };
    let error = Context::new(&model, &several).unwrap_err();
    assert!(matches!(error, Error::Option { option: "sequences", .. }), "{error}");

    let file = tempfile::NamedTempFile::with_suffix(".gguf").expect("a temporary file");
    TestModel::write(&Description::new("chameleon", false), file.path()).expect("a model");
    let error = Model::load(file.path(), &ModelOptions::default()).unwrap_err();
    assert!(matches!(error, Error::NotGenerative { .. }), "{error}");
}

/// A model that loads predicts the next token from what the caps act on, or takes no caps.
#[test]
fn every_architecture_that_loads_predicts_tokens() {
    let (mut capped, mut refused) = (0, Vec::new());
    for name in axiscap_testing::llama::ARCHITECTURES {
        let file = tempfile::NamedTempFile::with_suffix(".gguf").expect("a temporary file");
        let experts = !axiscap_testing::llama::has_dense_form(name);
        if TestModel::write(&Description::new(name, experts), file.path()).is_err() {
            continue;
        }
        let model = match Model::load(file.path(), &ModelOptions::default()) {
            Ok(model) => model,
            Err(error) => {
                assert!(matches!(error, Error::NotGenerative { .. }), "{name}: {error}");
                continue;
            }
        };
        let mut context = Context::new(&model, &options()).expect(name);
        let batch: Vec<_> = (0..6).map(|position| row(0, position, position == 5)).collect();
        context.decode(&batch).expect(name);
        let plain = context.logits(5).expect("logits").to_vec();
        assert!(plain.iter().any(|&logit| logit != plain[0]), "{name}: the logits are all equal");
        match context.set_caps(Some(&caps(&model, pinned()))) {
            Ok(()) => capped += 1,
            Err(Error::Hook(HookError::Architecture { .. })) => {
                refused.push(name);
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        }
        context.clear();
        context.decode(&batch).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(context.logits(5).expect("logits") != plain, "{name}: caps leave the logits as they are");
    }
    assert_eq!(refused, ["deepseek4", "gemma3n", "glm5-next", "hrm_text", "hy_v4", "kimi-k3", "qwen4exp"]);
    assert!(capped >= 115, "{capped}");
}

/// llama.cpp gives the cells of rows that have left their window to other sequences.
#[test]
fn a_sequence_with_windows_is_cut_only_where_it_has_the_rows_of_the_window() {
    let model = load("gemma3");
    let options = ContextOptions { sequences: 2, ubatch: 16, batch: 16, ..options() };
    let mut context = Context::new(&model, &options).expect("a context");
    let tokens: Vec<Token> = (0..100).map(|i| Token(i * 7 % 90 + 3)).collect();
    let last_logits = |context: &mut Context<'_>, from: usize, to: usize| {
        context.prefill(&tokens[from..to], from, 0).expect("rows");
        context.logits((to - from - 1) % 16).expect("logits").to_vec()
    };
    context.prefill(&tokens[..20], 0, 1).expect("rows");
    context.prefill(&tokens, 0, 0).expect("rows");
    context.truncate(1, 0).expect("it can be emptied");
    // Beyond the cells that are free now are those of the first rows of sequence 0.
    context.prefill(&tokens[..40], 0, 1).expect("rows");
    assert!(matches!(context.truncate(0, 16), Err(Error::CannotTruncate { position: 16, .. })));
    assert_eq!(context.position(0), 100, "it is as it was");
    context.truncate(0, 60).expect("the last rows are there");
    let cut = last_logits(&mut context, 60, 70);
    context.clear();
    let whole = last_logits(&mut context, 0, 70);
    let most = cut.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most < 0.02, "rows of the other sequence move the last bits alone: {most}");
}
