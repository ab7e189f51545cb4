//! The hook on a real model in a real llama.cpp.

mod support;

use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock, Mutex};

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_ggml::{BlockTrace, HookError, ModelShape, RouteChoice, Seen, Session, Tap};
use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

struct Loaded {
    backend: LlamaBackend,
    model: LlamaModel,
}

static LOADED: LazyLock<Loaded> = LazyLock::new(|| {
    let mut backend = LlamaBackend::init().expect("llama.cpp starts");
    backend.void_logs();
    let mut params = LlamaModelParams::default();
    if support::wanted_backend().is_some() {
        // Every block, and the output.
        support::device();
        params = params.with_n_gpu_layers(1000);
    }
    let model =
        LlamaModel::load_from_file(&backend, support::model(), &params).expect("the test model loads");
    Loaded { backend, model }
});

fn shape() -> ModelShape {
    let model = &LOADED.model;
    ModelShape {
        architecture: model.meta_val_str("general.architecture").expect("the model names its architecture"),
        blocks: model.n_layer() as usize,
        width: model.n_embd() as usize,
    }
}

fn params(ubatch: u32, threads: i32) -> LlamaContextParams {
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(512))
        .with_n_batch(512)
        .with_n_ubatch(ubatch)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
}

const PROMPT: &str = "<|im_start|>user\nI feel so alone tonight, and nobody seems to notice. What are you, really?\
    <|im_end|>\n<|im_start|>assistant\n";

fn prompt() -> Vec<LlamaToken> {
    let vocabulary = LOADED.model.vocab();
    match vocabulary.n_tokens() {
        // A random model, which knows no words.
        ..1000 => (0..30).map(|i| LlamaToken::new(7 * i % vocabulary.n_tokens())).collect(),
        _ => vocabulary.tokenize(PROMPT.as_bytes(), false, true),
    }
}

/// A direction that depends only on its seed, spread over all channels.
fn axis(seed: u64) -> Axis {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..shape().width)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Axis::from_direction(&values).unwrap()
}

fn cap(block: usize, seed: u64, bound: Bound) -> BlockCap {
    BlockCap { block, cap: Cap::new(axis(seed), bound) }
}

fn floor(lo: f32) -> Bound {
    Bound::floor(lo).unwrap()
}

/// Watches a decode that llama.cpp itself does not fail.
fn watch(
    session: &Session,
    rows: usize,
    outputs: usize,
    decode: impl FnOnce() -> Result<(), DecodeError>,
) -> Result<(), HookError> {
    session.watch(rows, outputs, || Ok(decode())).map(Result::unwrap)
}

/// Greedy tokens, every decode watched.
fn generate(context: &mut LlamaContext<'_>, session: Option<&Session>, count: usize) -> Vec<LlamaToken> {
    let prompt = prompt();
    let mut batch = LlamaBatch::new(512, 1);
    for (i, &token) in prompt.iter().enumerate() {
        batch.add(token, i as i32, &[0], i + 1 == prompt.len()).unwrap();
    }
    let mut tokens = Vec::new();
    let mut position = prompt.len() as i32;
    while tokens.len() < count {
        let rows = batch.n_tokens() as usize;
        match session {
            Some(session) => watch(session, rows, 1, || context.decode(&mut batch)).unwrap(),
            None => context.decode(&mut batch).unwrap(),
        }
        let logits = context.get_logits_ith(batch.n_tokens() - 1);
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        let token = LlamaToken::new(best as i32);
        tokens.push(token);
        batch.clear();
        batch.add(token, position, &[0], true).unwrap();
        position += 1;
    }
    tokens
}

/// Tokens that a run generates. A software driver takes a second for few.
fn generated() -> usize {
    if support::wanted_backend().is_some() { 8 } else { 16 }
}

struct Run {
    tokens: Vec<LlamaToken>,
    trace: Vec<BlockTrace>,
}

fn capped(caps: &CapSet, route: RouteChoice, ubatch: u32, threads: i32) -> Run {
    let hook = support::install();
    let session = Session::new(shape());
    session.set_caps(Some(caps)).unwrap();
    session.update(|settings| {
        settings.route = route;
        settings.tracing = true;
    });
    let mut context =
        hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(ubatch, threads))).unwrap();
    assert!(session.is_bound());
    let tokens = generate(&mut context, Some(&session), generated());
    support::check_routes(&session, route);
    Run { tokens, trace: session.take_trace() }
}

fn uncapped(threads: i32) -> Vec<LlamaToken> {
    let mut context = LOADED.model.new_context(&LOADED.backend, params(512, threads)).unwrap();
    generate(&mut context, None, generated())
}

#[test]
fn infinite_bounds_change_no_token() {
    let blocks = shape().blocks;
    let set = CapSet::new((0..blocks).map(|b| cap(b, b as u64, Bound::NONE))).unwrap();
    let plain = uncapped(2);
    for route in [RouteChoice::Inserted, RouteChoice::Views] {
        let run = capped(&set, route, 512, 2);
        assert_eq!(run.tokens, plain, "{route:?}");
        assert!(run.trace.iter().flat_map(BlockTrace::stats).all(|s| !s.engaged() && s.before == s.after));
    }
}

#[test]
fn every_route_and_thread_count_caps_the_same_rows_to_the_same_bits() {
    // Block 0, the last block, several caps on one block, and a band.
    let blocks = shape().blocks;
    let (middle, late, last) = (blocks * 2 / 5, blocks * 2 / 3, blocks - 1);
    let set = CapSet::new([
        cap(middle, 1, floor(2.0)),
        cap(0, 2, Bound::ceiling(-0.5).unwrap()),
        cap(middle, 3, Bound::band(-1.0, 1.0).unwrap()),
        cap(last, 4, floor(30.0)),
        cap(late, 5, floor(f32::NEG_INFINITY)),
    ])
    .unwrap();
    let reference = capped(&set, RouteChoice::Inserted, 512, 2);
    assert_ne!(reference.tokens, uncapped(2), "these caps change what the model says");
    for (route, threads) in [
        (RouteChoice::Inserted, 1),
        (RouteChoice::Views, 2),
        (RouteChoice::Auto, 2),
        (RouteChoice::OneGraph, 2),
    ] {
        let run = capped(&set, route, 512, threads);
        assert_eq!(run.tokens, reference.tokens, "{route:?}, {threads} threads");
        assert_eq!(run.trace, reference.trace, "{route:?}, {threads} threads");
    }

    let prompt = prompt().len();
    for t in &reference.trace {
        for row in &t.rows {
            for &(index, stat) in &row.caps {
                let bound = set.caps()[index].cap.bound();
                let clamped = stat.before.max(bound.lo()).min(bound.hi());
                assert_eq!(stat.after, clamped, "cap {index}");
                assert_eq!(stat.engaged(), clamped != stat.before, "cap {index}");
            }
        }
    }
    let rows = |block: usize| {
        reference.trace.iter().filter(|t| t.block == block).map(|t| t.rows.len()).collect::<Vec<_>>()
    };
    assert_eq!(rows(middle)[..2], [prompt, 1]);
    assert_eq!(rows(last)[..2], [1, 1], "the last block computes only rows with logits");
    assert_eq!(rows(middle).len(), generated());
}

#[test]
fn micro_batches_arrive_in_order_and_are_counted() {
    let set = CapSet::new([cap(5, 1, Bound::NONE), cap(shape().blocks - 1, 1, Bound::NONE)]).unwrap();
    let whole = capped(&set, RouteChoice::Auto, 512, 2);
    let parts = capped(&set, RouteChoice::Auto, 8, 2);
    let rows = |run: &Run, block| {
        let passes = run.trace.iter().filter(|t| t.block == block);
        passes.flat_map(|t| t.stats().map(|s| s.before)).collect::<Vec<_>>()
    };
    let (whole_rows, part_rows) = (rows(&whole, 5), rows(&parts, 5));
    assert_eq!(whole_rows.len(), part_rows.len());
    // llama.cpp's own arithmetic depends on the batch; the order of the rows must not.
    let prompt = prompt().len();
    for (i, (a, b)) in whole_rows.iter().zip(&part_rows).take(prompt).enumerate() {
        assert!((a - b).abs() < 0.5, "row {i}: {a} in one pass, {b} in several");
    }
    assert_eq!(rows(&whole, shape().blocks - 1).len(), generated());
}

#[test]
fn a_part_of_a_prompt_without_logits_is_capped_too() {
    let hook = support::install();
    let session = Session::new(shape());
    let last = shape().blocks - 1;
    session.set_caps(Some(&CapSet::new([cap(4, 1, floor(3.0)), cap(last, 1, floor(3.0))]).unwrap())).unwrap();
    for route in [RouteChoice::Inserted, RouteChoice::Views] {
        session.update(|settings| settings.route = route);
        session.reset_stats();
        let mut context =
            hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(8, 2))).unwrap();
        let mut batch = LlamaBatch::new(32, 1);
        for (i, &token) in prompt().iter().take(19).enumerate() {
            batch.add(token, i as i32, &[0], false).unwrap();
        }
        watch(&session, 19, 0, || context.decode(&mut batch)).unwrap();
        let rows: Vec<_> = session.stats().iter().map(|s| s.rows).collect();
        assert_eq!(rows, [19, 0], "{route:?}");
    }
}

#[test]
fn statistics_projections_are_those_of_the_rows_that_taps_see() {
    let hook = support::install();
    let session = Session::new(shape());
    let set = CapSet::new([cap(3, 9, floor(1.0))]).unwrap();
    session.set_caps(Some(&set)).unwrap();
    session.update(|settings| settings.tracing = true);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    session
        .set_tap(Some(Tap {
            blocks: vec![3, 4],
            see: Arc::new(move |block, rows| {
                for i in 0..rows.rows() {
                    sink.lock().unwrap().push((block, rows.row(i).to_vec()));
                }
            }),
        }))
        .unwrap();
    let mut context =
        hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(512, 2))).unwrap();
    generate(&mut context, Some(&session), 2);

    let trace = session.take_trace();
    let stats: Vec<_> = trace.iter().flat_map(BlockTrace::stats).collect();
    let seen = seen.lock().unwrap();
    let rows: Vec<_> = seen.iter().filter(|(block, _)| *block == 3).map(|(_, row)| row).collect();
    assert_eq!(rows.len(), stats.len());
    let axis = set.caps()[0].cap.axis();
    for (row, stat) in rows.iter().zip(stats) {
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (projection, norm) = (dot(row, axis.values()), dot(row, row).sqrt());
        assert!((projection - f64::from(stat.before)).abs() <= 1e-6 * norm);
    }
    assert_eq!(seen.iter().filter(|(block, _)| *block == 4).count(), rows.len());
}

#[test]
fn what_changes_between_two_decodes_holds_from_the_next_one_on() {
    let hook = support::install();
    let session = Session::new(shape());
    session.set_caps(Some(&CapSet::new([cap(7, 1, floor(1e4))]).unwrap())).unwrap();
    let mut context =
        hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(512, 2))).unwrap();
    let mut batch = LlamaBatch::new(8, 1);
    let mut position = 0;
    let mut decode = || {
        session.reset_stats();
        batch.clear();
        batch.add(LlamaToken::new(42), position, &[0], true).unwrap();
        position += 1;
        watch(&session, 1, 1, || context.decode(&mut batch)).unwrap();
        session.stats()[0]
    };
    let stats = decode();
    assert_eq!((stats.rows, stats.engaged, stats.min_after), (1, 1, 1e4));
    session.set_strength(0, 0.0).unwrap();
    let stats = decode();
    assert_eq!((stats.rows, stats.engaged), (1, 1));
    assert!(stats.max_after < 1e4, "strength 0 only observes");
    session.set_strength(0, 1.0).unwrap();
    session.set_bound(0, Bound::NONE).unwrap();
    assert_eq!(decode().engaged, 0);
    session.update(|settings| settings.enabled = false);
    assert_eq!(decode().rows, 0);
    session.update(|settings| settings.enabled = true);
    assert_eq!(decode().rows, 1);
    session.set_caps(None).unwrap();
    assert!(session.stats().is_empty());
    assert!(matches!(session.set_strength(0, 1.0), Err(HookError::Caps(_))));
}

#[test]
fn two_contexts_with_different_caps_on_two_threads() {
    let sets = [1, 2].map(|seed| CapSet::new([cap(6, seed, floor(6.0)), cap(10, seed, floor(9.0))]).unwrap());
    let alone: Vec<_> = sets.iter().map(|set| capped(set, RouteChoice::Auto, 512, 1)).collect();
    // Their texts may be the same: that depends on how llama.cpp rounds here.
    assert_ne!(alone[0].trace, alone[1].trace);
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            sets.iter().map(|set| scope.spawn(|| capped(set, RouteChoice::Auto, 512, 1))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.tokens, together.tokens);
        assert_eq!(alone.trace, together.trace);
    }
}

#[test]
fn what_cannot_be_capped_is_refused_before_anything_runs() {
    let session = Session::new(shape());
    let narrow = Cap::new(Axis::from_direction(&[1.0, 2.0]).unwrap(), Bound::NONE);
    let narrow = CapSet::new([BlockCap { block: 0, cap: narrow }]).unwrap();
    let error = session.set_caps(Some(&narrow)).unwrap_err().to_string();
    assert!(error.contains("width 2") && error.contains(&shape().width.to_string()), "{error}");
    let blocks = shape().blocks;
    let absent = CapSet::new([cap(blocks, 1, Bound::NONE)]).unwrap();
    let error = session.set_caps(Some(&absent)).unwrap_err().to_string();
    let (block, of) = (format!("block {blocks}"), format!("{blocks} blocks"));
    assert!(error.contains(&block) && error.contains(&of), "{error}");
    let tap = Tap { blocks: vec![blocks], see: Arc::new(|_, _| {}) };
    assert_eq!(session.set_tap(Some(tap)), Err(HookError::TapBlock { block: blocks, blocks }));

    let bert = Session::new(ModelShape { architecture: "bert".into(), ..shape() });
    let error = bert.set_caps(Some(&CapSet::new([cap(0, 1, Bound::NONE)]).unwrap())).unwrap_err();
    assert!(matches!(error, HookError::Architecture { .. }), "{error}");
}

#[test]
fn a_decode_that_was_not_capped_is_an_error() {
    let set = CapSet::new([cap(3, 1, Bound::NONE)]).unwrap();
    let mut batch = LlamaBatch::new(8, 1);
    batch.add(LlamaToken::new(42), 0, &[0], true).unwrap();

    // A context that was made without the hook.
    let session = Session::new(shape());
    session.set_caps(Some(&set)).unwrap();
    let mut context = LOADED.model.new_context(&LOADED.backend, params(512, 2)).unwrap();
    let error = watch(&session, 1, 1, || context.decode(&mut batch)).unwrap_err();
    assert_eq!(error, HookError::NotBound);

    // A model that does not have the blocks that its shape claims: block 40 never shows up.
    let hook = support::install();
    let session = Session::new(ModelShape { blocks: 48, ..shape() });
    session.set_caps(Some(&CapSet::new([cap(3, 1, Bound::NONE), cap(40, 1, Bound::NONE)]).unwrap())).unwrap();
    let mut context =
        hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(512, 2))).unwrap();
    let error = watch(&session, 1, 1, || context.decode(&mut batch)).unwrap_err();
    assert_eq!(error, HookError::NotSeen { block: 40, seen: Seen::Never, rows: 1, outputs: 1 });

    // A decode of fewer tokens than the caller says.
    let session = Session::new(shape());
    session.set_caps(Some(&set)).unwrap();
    let mut context =
        hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(512, 2))).unwrap();
    let error = watch(&session, 2, 1, || context.decode(&mut batch)).unwrap_err();
    assert_eq!(error, HookError::NotSeen { block: 3, seen: Seen::Rows(1), rows: 2, outputs: 1 });

    // A residual stream of another width than the caps were checked against.
    let session = Session::new(ModelShape { width: 2, ..shape() });
    let narrow = Cap::new(Axis::from_direction(&[1.0, 2.0]).unwrap(), Bound::NONE);
    session.set_caps(Some(&CapSet::new([BlockCap { block: 0, cap: narrow }]).unwrap())).unwrap();
    let mut context =
        hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(512, 2))).unwrap();
    let error = watch(&session, 1, 1, || context.decode(&mut batch)).unwrap_err();
    assert!(matches!(error, HookError::Shape { block: 0, .. }), "{error}");
}

#[test]
fn a_panicking_tap_fails_the_decode_and_nothing_else() {
    let hook = support::install();
    for route in [RouteChoice::Inserted, RouteChoice::Views] {
        let session = Session::new(shape());
        session.update(|settings| settings.route = route);
        let tap = Tap { blocks: vec![2], see: Arc::new(|_, _| panic!("as the test asked")) };
        session.set_tap(Some(tap)).unwrap();
        let mut context =
            hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(512, 2))).unwrap();
        let mut batch = LlamaBatch::new(8, 1);
        batch.add(LlamaToken::new(42), 0, &[0], true).unwrap();
        let error = watch(&session, 1, 1, || context.decode(&mut batch)).unwrap_err();
        assert_eq!(error, HookError::Panic("as the test asked".into()));
        session.set_tap(None).unwrap();
        context.clear_kv_cache();
        watch(&session, 1, 1, || context.decode(&mut batch)).unwrap();
    }
}

#[test]
fn contexts_outlive_the_handle_and_the_report_names_what_was_found() {
    let hook = support::install();
    let report = hook.report();
    assert!(report.devices.iter().any(|d| d.name == "CPU"), "{report:?}");
    let session = Session::new(shape());
    session.set_caps(Some(&CapSet::new([cap(3, 1, floor(5.0))]).unwrap())).unwrap();
    let mut context =
        hook.bind(&session, || LOADED.model.new_context(&LOADED.backend, params(512, 2))).unwrap();
    drop(hook);
    generate(&mut context, Some(&session), 3);
    assert_eq!(session.stats()[0].rows as usize, prompt().len() + 2);
    support::check_routes(&session, RouteChoice::Auto);
}
