//! The device path over real graphs of a real model, which the CPU backend computes, and over a hand-made graph:
//! only the driver is a stand-in.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::outer::{Action, Facts, Outer};
use super::recording::{Log, Op, Recording, graphs, note_graphs, use_next};
use super::{DevicePath, GraphCounts, Pass};
use crate::find::Output;
use crate::graph::Graph;
use crate::layout::{Arena, Layout};
use crate::{BlockTrace, Engine, GraphTimeline, Hook, HookError, ModelShape, Session};

#[path = "../../tests/support/model.rs"]
mod model;

pub(crate) static LOADED: LazyLock<(LlamaBackend, LlamaModel)> = LazyLock::new(|| {
    let mut backend = LlamaBackend::init().expect("llama.cpp starts");
    backend.void_logs();
    let model = LlamaModel::load_from_file(
        &backend,
        model::path(),
        &LlamaModelParams::default().with_n_gpu_layers(0),
    )
    .expect("it loads");
    (backend, model)
});

pub(crate) fn shape() -> ModelShape {
    let model = &LOADED.1;
    ModelShape {
        architecture: model.meta_val_str("general.architecture").unwrap(),
        blocks: model.n_layer() as usize,
        width: model.n_embd() as usize,
    }
}

pub(crate) fn cap(block: usize, seed: usize, bound: Bound) -> BlockCap {
    let values: Vec<f32> = (0..shape().width).map(|i| ((i * 31 + seed * 7919) as f32).sin()).collect();
    BlockCap { block, cap: Cap::new(Axis::from_direction(&values).unwrap(), bound) }
}

pub(super) fn caps() -> CapSet {
    let last = shape().blocks - 1;
    let floor = |lo| Bound::floor(lo).unwrap();
    CapSet::new([
        cap(12, 1, floor(2.0)),
        cap(0, 2, floor(0.5)),
        cap(12, 3, floor(-1.0)),
        cap(last, 4, floor(9.0)),
    ])
    .unwrap()
}

pub(crate) fn context(session: &Session, ubatch: u32) -> LlamaContext<'static> {
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(512))
        .with_n_batch(256)
        .with_n_ubatch(ubatch)
        .with_n_threads(2)
        .with_n_threads_batch(2);
    let hook = Hook::install().unwrap();
    hook.bind(session, || LOADED.1.new_context(&LOADED.0, params)).unwrap()
}

pub(super) fn session(engine: Engine) -> Session {
    let session = Session::new(shape());
    session.set_caps(Some(&caps())).unwrap();
    session.set_engine(engine);
    session.set_tracing(true);
    session
}

/// A context whose backend believes that it has a GPU.
pub(super) fn on_device(session: &Session, ubatch: u32) -> (LlamaContext<'static>, Log) {
    let (driver, log) = Recording::new();
    use_next(driver);
    (context(session, ubatch), log)
}

pub(crate) fn decode(
    context: &mut LlamaContext<'_>,
    session: &Session,
    tokens: &[LlamaToken],
    position: usize,
    logits: bool,
) -> Result<Option<LlamaToken>, HookError> {
    let mut batch = LlamaBatch::new(tokens.len(), 1);
    for (i, &token) in tokens.iter().enumerate() {
        batch.add(token, (position + i) as i32, &[0], logits && i + 1 == tokens.len()).unwrap();
    }
    session.watch(tokens.len(), logits.into(), || context.decode(&mut batch))?.unwrap();
    Ok(logits.then(|| {
        let logits = context.get_logits_ith(tokens.len() as i32 - 1);
        LlamaToken::new((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i32)
    }))
}

pub(crate) fn prompt() -> Vec<LlamaToken> {
    LOADED.1.vocab().tokenize(b"I feel so alone tonight. What are you, really?", false, true)
}

pub(crate) fn generate(context: &mut LlamaContext<'_>, session: &Session, count: usize) -> Vec<LlamaToken> {
    let prompt = prompt();
    let mut tokens = vec![decode(context, session, &prompt, 0, true).unwrap().unwrap()];
    while tokens.len() < count {
        let last = tokens[tokens.len() - 1];
        let next = decode(context, session, &[last], prompt.len() + tokens.len() - 1, true).unwrap();
        tokens.push(next.unwrap());
    }
    tokens
}

pub(super) fn on_the_cpu(ubatch: u32, count: usize) -> (Vec<LlamaToken>, Vec<BlockTrace>) {
    let session = session(Engine::Inserted);
    let tokens = generate(&mut context(&session, ubatch), &session, count);
    (tokens, session.take_trace())
}

pub(super) fn taken(log: &Log) -> Vec<Op> {
    std::mem::take(&mut *log.lock().unwrap())
}

/// What a graph has to look like in the log: hops in order around launches, then one fetch.
pub(super) fn expected(launches: &[(usize, usize, usize)], checked: bool) -> Vec<Op> {
    let width = shape().width;
    let mut ops = Vec::new();
    let mut stats = 0;
    if checked {
        ops.extend(launches.iter().map(|&(block, ..)| Op::Upload(block)));
    }
    for (hop, &(block, rows, depth)) in launches.iter().enumerate() {
        ops.extend([Op::RecordOnBackend(hop), Op::WaitOnOurs(hop)]);
        ops.extend(checked.then_some(Op::ReadRows(rows * width)));
        ops.push(Op::Launch { block, rows, stats: Some(stats) });
        ops.extend(checked.then_some(Op::ReadRows(rows * width)));
        ops.extend([Op::RecordOnOurs(hop), Op::WaitOnBackend(hop)]);
        stats += rows * depth;
    }
    ops.push(Op::Fetch(stats));
    ops
}

#[test]
fn prefill_and_decode_are_capped_in_stream_order_with_the_bits_of_the_cpu() {
    let (tokens, trace) = on_the_cpu(256, 6);
    let session = session(Engine::Views);
    let (mut context, log) = on_device(&session, 256);
    assert_eq!(generate(&mut context, &session, 6), tokens);

    let (rows, last) = (prompt().len(), shape().blocks - 1);
    let mut ops = expected(&[(0, rows, 1), (12, rows, 2), (last, 1, 1)], true);
    for _ in 1..6 {
        ops.extend(expected(&[(0, 1, 1), (12, 1, 2), (last, 1, 1)], false));
    }
    assert_eq!(taken(&log), ops);
    assert!(session.engines_used()[0].1.contains("GPU"));

    // Figures outlive the context.
    drop(context);
    assert_eq!(taken(&log), [Op::Closed]);
    assert_eq!(session.stats().iter().map(|s| s.rows).sum::<u64>(), (3 * rows + 3 * 5 + 6) as u64);
    assert_eq!(session.take_trace(), trace);
}

#[test]
fn micro_batches_and_passes_without_logits() {
    let (tokens, trace) = on_the_cpu(4, 3);
    let session = session(Engine::Views);
    let (mut context, log) = on_device(&session, 4);
    assert_eq!(generate(&mut context, &session, 3), tokens);
    assert_eq!(session.take_trace(), trace);
    let last = shape().blocks - 1;
    let of_last = |op: &Op| matches!(op, Op::Launch { block, .. } if *block == last);
    assert_eq!(taken(&log).iter().filter(|op| of_last(op)).count(), 3, "only rows with logits");

    context.clear_kv_cache();
    decode(&mut context, &session, &prompt()[..4], 0, false).unwrap();
    assert_eq!(taken(&log), expected(&[(0, 4, 1), (12, 4, 2)], false));
}

#[test]
fn two_contexts_have_streams_of_their_own() {
    let (tokens, _) = on_the_cpu(256, 2);
    let (first, second) = (session(Engine::Views), session(Engine::Views));
    second.set_caps(Some(&CapSet::new([cap(3, 1, Bound::NONE)]).unwrap())).unwrap();
    let (mut a, log_a) = on_device(&first, 256);
    let (mut b, log_b) = on_device(&second, 256);
    generate(&mut b, &second, 2);
    assert_eq!(generate(&mut a, &first, 2), tokens);
    let rows = prompt().len();
    assert_eq!(taken(&log_b), [expected(&[(3, rows, 1)], true), expected(&[(3, 1, 1)], false)].concat());
    assert!(taken(&log_a).iter().all(|op| !matches!(op, Op::Upload(3))));
}

#[test]
fn changed_bounds_are_updated_and_changed_caps_are_uploaded_and_checked_anew() {
    let session = session(Engine::Views);
    let (mut context, log) = on_device(&session, 256);
    let last = shape().blocks - 1;
    let token = prompt()[0];
    decode(&mut context, &session, &[token], 0, true).unwrap();
    taken(&log);

    session.set_bound(2, Bound::floor(50.0).unwrap()).unwrap();
    session.reset_stats();
    decode(&mut context, &session, &[token], 1, true).unwrap();
    let mut ops = vec![Op::Update(12)];
    ops.extend(expected(&[(0, 1, 1), (12, 1, 2), (last, 1, 1)], false));
    assert_eq!(taken(&log), ops);
    assert_eq!((session.stats()[2].rows, session.stats()[2].min_after), (1, 50.0));

    session.set_tracing(false);
    session.set_statistics(false);
    decode(&mut context, &session, &[token], 2, true).unwrap();
    let ops = taken(&log);
    let silent = |op: &Op| !matches!(op, Op::Launch { stats: Some(_), .. } | Op::Fetch(_));
    assert!(ops.iter().all(silent), "{ops:?}");
    assert_eq!(session.stats()[2].rows, 1);

    session.set_statistics(true);
    session.set_caps(Some(&CapSet::new([cap(12, 9, Bound::floor(1.0).unwrap())]).unwrap())).unwrap();
    decode(&mut context, &session, &[token], 3, true).unwrap();
    let ops = taken(&log);
    assert_eq!(ops.iter().filter(|op| matches!(op, Op::Forget(_))).count(), 3);
    assert_eq!(ops[3..], expected(&[(12, 1, 1)], true));

    session.set_enabled(false);
    decode(&mut context, &session, &[token], 4, true).unwrap();
    assert_eq!(taken(&log), []);
}

#[test]
fn a_gpu_that_differs_in_one_bit_is_refused_by_block_and_row() {
    let session = session(Engine::Views);
    let (mut driver, _) = Recording::new();
    driver.wrong = true;
    use_next(driver);
    let mut context = context(&session, 256);
    for _ in 0..2 {
        match decode(&mut context, &session, &prompt(), 0, true) {
            Err(HookError::DeviceDiffers { block: 0, row: 0, column: 0, .. }) => {}
            other => panic!("{other:?}"),
        }
        context.clear_kv_cache();
    }
}

#[test]
fn blocks_in_other_memory_are_capped_on_the_host() {
    let (tokens, trace) = on_the_cpu(256, 3);
    let session = session(Engine::Views);
    let (mut driver, log) = Recording::new();
    driver.elsewhere = true;
    use_next(driver);
    let mut context = context(&session, 256);
    assert_eq!(generate(&mut context, &session, 3), tokens);
    assert_eq!(session.take_trace(), trace);
    assert_eq!(taken(&log), []);
    assert!(session.engines_used()[0].1.contains("host"));
}

/// What the state machine makes of the graphs that llama.cpp really gives for batches of these sizes: a letter each.
fn steps(batches: &[usize]) -> (String, Vec<u64>) {
    note_graphs();
    let session = session(Engine::Views);
    let (mut context, _log) = on_device(&session, 256);
    let token = prompt()[0];
    let mut position = 0;
    for &tokens in batches {
        decode(&mut context, &session, &vec![token; tokens], position, true).unwrap();
        position += tokens;
    }
    let mut outer = Outer::new();
    let (mut steps, mut uids) = (String::new(), Vec::new());
    for (uid, content) in graphs() {
        assert!(uid != 0 && content.is_some());
        uids.push(uid);
        steps.push(match outer.begin(&Facts { content, launches: 1, obstacle: None }) {
            Action::Eager => 'e',
            Action::Replay(_) => '.',
            Action::BeginCapture => {
                outer.ended(Ok(()));
                assert!(matches!(outer.made(Ok(())), Action::Replay(_)));
                'C'
            }
            other => panic!("{other:?}"),
        });
    }
    (steps, uids)
}

/// A prompt, decoding across the growth of the padded KV cache at 256 tokens, and a second prompt in between.
#[test]
fn the_graphs_of_a_real_generation_are_captured_once_per_kv_size() {
    let batches = [&[248][..], &[1; 16], &[11], &[1; 4]].concat();
    assert_eq!(steps(&batches).0, ["e", "eC......", "eC......", "e", "...."].concat());
}

/// llama.cpp builds a graph anew whenever the batch has another size than the last. It has a new uid then, but is
/// the same graph, at the same addresses.
#[test]
fn batch_sizes_in_turn_are_captured_once_each() {
    let batches = [&[5][..], &[1, 2].repeat(6), &[4, 1, 2, 4, 2, 4, 1]].concat();
    let (steps, mut uids) = steps(&batches);
    assert_eq!(steps, ["e", "eeCC........", "e..C..."].concat());
    uids.dedup();
    assert_eq!(uids.len(), batches.len(), "no graph has the uid of the one before");
}

fn passes(outputs_last: bool, one_graph: bool, fails: Option<Op>, uids: &[u64]) -> Vec<Vec<Op>> {
    passes_of(1, outputs_last, one_graph, fails, uids)
}

fn passes_of(
    rows: usize,
    outputs_last: bool,
    one_graph: bool,
    fails: Option<Op>,
    uids: &[u64],
) -> Vec<Vec<Op>> {
    passes_on(&two_blocks(), rows, outputs_last, one_graph, fails, uids).0
}

/// The same of one row with the graphs' times.
pub(super) fn passes_timed(one_graph: bool, uids: &[u64]) -> (Vec<Vec<Op>>, Vec<GraphTimeline>) {
    let session = two_blocks();
    session.set_timeline(true);
    passes_on(&session, 1, false, one_graph, None, uids)
}

fn two_blocks() -> Session {
    let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 2, width: 4 });
    let axis = Axis::from_direction(&[1.0, 2.0, 3.0, 4.0]).unwrap();
    let at = |block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::floor(1.0).unwrap()) };
    session.set_caps(Some(&CapSet::new([at(0), at(1)]).unwrap())).unwrap();
    session
}

/// Has the path compute a graph. What ggml is given goes into the log, and something may happen in each view.
pub(super) fn pass_over(
    path: &mut DevicePath,
    (graph, outputs): (&Graph, &[Output]),
    session: &Session,
    one_graph: bool,
    log: &Log,
    happens: impl Fn(),
) -> sys::ggml_status {
    let compute = |view: &Graph| {
        log.lock().unwrap().push(Op::View { nodes: view.nodes().len(), uid: view.uid() });
        happens();
        sys::GGML_STATUS_SUCCESS
    };
    path.compute(Pass {
        graph,
        outputs,
        backend: std::ptr::null_mut(),
        staging: &mut Vec::new(),
        config: &session.0.config(),
        session: &session.0,
        compute: &compute,
        one_graph,
    })
}

/// A graph of `l_out-0`, one node behind it, `l_out-1`, and, unless it ends there, one more.
pub(super) struct HandMade {
    graph: Graph,
    outputs: Vec<Output>,
    /// What ggml is given, it notes.
    log: Log,
    layout: Layout,
    _arena: Arena,
    _data: [Vec<f32>; 2],
}

impl HandMade {
    pub(super) fn new(rows: usize, outputs_last: bool, log: &Log) -> Self {
        let arena = Arena::new(16).unwrap();
        let mut data = [0, 1].map(|_| vec![0.5_f32; 4 * rows]);
        let layout = Layout::probe().unwrap();
        // SAFETY: tensors and graph live in the arena; only the block outputs get data, which lives as long.
        let (graph, outputs) = unsafe {
            let c = arena.context();
            let graph = sys::ggml_new_graph_custom(c, 8, false);
            let leaf = || sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, 4, rows as i64);
            let first = sys::ggml_add(c, leaf(), leaf());
            let between = sys::ggml_add(c, first, leaf());
            let second = sys::ggml_add(c, between, leaf());
            let end = if outputs_last { second } else { sys::ggml_add(c, second, leaf()) };
            sys::ggml_build_forward_expand(graph, end);
            (*first).data = data[0].as_mut_ptr().cast();
            (*second).data = data[1].as_mut_ptr().cast();
            let outputs = [(0, 0, first), (2, 1, second)];
            let outputs = outputs.map(|(node, block, tensor)| Output { node, block, tensor });
            (Graph::new(graph, layout), outputs.to_vec())
        };
        Self { graph, outputs, log: Log::clone(log), layout, _arena: arena, _data: data }
    }

    /// Tens make another graph of it.
    pub(super) fn set_uid(&self, uid: u64) {
        // SAFETY: the uid's place within the graph, and a node of it.
        unsafe {
            self.graph.raw().byte_add(self.layout.graph_uid).cast::<u64>().write(uid);
            (*self.graph.nodes()[1]).op_params[0] = (uid / 10) as i32;
        }
    }

    /// Has the path compute it.
    pub(super) fn pass(&self, path: &mut DevicePath, session: &Session, one_graph: bool) -> sys::ggml_status {
        self.pass_while(path, session, one_graph, || {})
    }

    /// The same, with something happening in each view.
    fn pass_while(
        &self,
        path: &mut DevicePath,
        session: &Session,
        one_graph: bool,
        happens: impl Fn(),
    ) -> sys::ggml_status {
        pass_over(path, (&self.graph, &self.outputs), session, one_graph, &self.log, happens)
    }
}

fn passes_on(
    session: &Session,
    rows: usize,
    outputs_last: bool,
    one_graph: bool,
    fails: Option<Op>,
    uids: &[u64],
) -> (Vec<Vec<Op>>, Vec<GraphTimeline>) {
    let (mut driver, log) = Recording::new();
    driver.fails = fails;
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let made = HandMade::new(rows, outputs_last, &log);
    let pass = |uid: &u64| {
        made.set_uid(*uid);
        assert_eq!(made.pass(&mut path, session, one_graph), sys::GGML_STATUS_SUCCESS);
        assert_eq!((made.graph.uid(), made.graph.nodes().len()), (*uid, if outputs_last { 3 } else { 4 }));
        taken(&log)
    };
    let ops: Vec<_> = uids.iter().map(pass).collect();
    let GraphCounts { replays, eager, .. } = path.counts();
    let runs = if one_graph { uids.len() as u64 } else { 0 };
    assert_eq!(replays + eager, runs);
    let times = path.take_times().unwrap();
    path.close(&session.0);
    let capped = (rows * uids.len()) as u64;
    assert!(session.stats().iter().all(|stats| stats.rows == capped), "{:?}", session.stats());
    (ops, times)
}

pub(super) fn views(ops: &[Op]) -> Vec<(usize, u64)> {
    let view = |op: &Op| match op {
        Op::View { nodes, uid } => Some((*nodes, *uid)),
        _ => None,
    };
    ops.iter().filter_map(view).collect()
}

/// The views of a pass with the launches between them.
fn in_order(seen: &[(usize, u64)]) -> Vec<Op> {
    let mut ops = Vec::new();
    for (hop, &(nodes, uid)) in seen.iter().enumerate() {
        ops.push(Op::View { nodes, uid });
        if hop < 2 {
            ops.extend([
                Op::RecordOnBackend(hop),
                Op::WaitOnOurs(hop),
                Op::Launch { block: hop, rows: 1, stats: Some(hop) },
                Op::RecordOnOurs(hop),
                Op::WaitOnBackend(hop),
            ]);
        }
    }
    ops
}

#[test]
fn every_launch_is_between_its_views() {
    let ops = passes(false, false, None, &[77, 77]);
    let seen = views(&ops[1]);
    assert_eq!(seen.iter().map(|v| v.0).collect::<Vec<_>>(), [1, 2, 1]);
    assert!(seen.iter().all(|v| v.1 != 0 && v.1 != 77));
    assert_eq!(seen, views(&ops[0]), "the same graph, the same uids");
    assert_eq!(ops[1], [in_order(&seen), vec![Op::Fetch(2)]].concat());
    let nodes: Vec<_> = views(&passes(true, false, None, &[77])[0]).iter().map(|v| v.0).collect();
    assert_eq!(nodes, [1, 2], "no empty view");
}

#[test]
fn a_graph_is_captured_when_it_comes_again_and_then_replayed() {
    // The first pass compares rows with the CPU's, the second warms up, the third captures.
    let ops = passes(false, true, None, &[7, 7, 7, 7, 8, 19, 19, 19, 8]);
    let eager = |ops: &[Op]| [in_order(&views(ops)), vec![Op::Fetch(2)]].concat();
    let replay = |slot| {
        let [first, second] =
            [[Op::RecordOnBackend(3), Op::WaitOnOurs(3)], [Op::RecordOnOurs(3), Op::WaitOnBackend(3)]];
        [&first[..], &[Op::Replay(slot)], &second, &[Op::Fetch(2)]].concat()
    };
    let captured = |ops: &[Op], slot| {
        let begin = [Op::BeginCapture, Op::RecordOnOurs(2), Op::WaitOnBackend(2)];
        let end = [Op::RecordOnBackend(2), Op::WaitOnOurs(2), Op::EndCapture, Op::Instantiate(slot)];
        [&begin[..], &in_order(&views(ops)), &end, &replay(slot)].concat()
    };
    assert_eq!(ops[1], eager(&ops[1]));
    assert_eq!(ops[2], captured(&ops[2], 0));
    assert_eq!(views(&ops[2]), views(&ops[1]));
    assert_eq!(ops[3], replay(0));
    assert_eq!(ops[4], replay(0), "the same content under another uid");
    assert_eq!(ops[5], eager(&ops[5]));
    assert_eq!(ops[6], captured(&ops[6], 1));
    assert_eq!(ops[7], replay(1));
    assert_eq!(ops[8], replay(0));
}

/// Nine graphs, one after the other: the last takes the place of the first, which has not come for a while.
#[test]
fn a_graph_without_a_place_of_its_own_is_fitted_into_an_old_one() {
    let mut uids = vec![1];
    uids.extend((0..8).flat_map(|graph| [10 * graph + 1; 2]));
    uids.extend([71; 64]);
    let first = uids.len();
    uids.extend([81, 82, 83, 1]);
    for fails in [None, Some(Op::Refit(0))] {
        let ops = passes(false, true, fails.clone(), &uids);
        let eager = |ops: &[Op]| !views(ops).is_empty() && !ops.contains(&Op::BeginCapture);
        assert!(ops[first - 64..first].iter().all(|ops| ops.contains(&Op::Replay(7))));
        assert!(eager(&ops[first]));
        let mut steps = ops[first + 1]
            .iter()
            .filter(|op| matches!(op, Op::EndCapture | Op::Refit(_) | Op::Instantiate(_) | Op::Replay(_)));
        assert_eq!(steps.next(), Some(&Op::EndCapture));
        assert_eq!(steps.next(), Some(&Op::Refit(0)));
        if fails.is_some() {
            assert_eq!(steps.next(), Some(&Op::Instantiate(0)));
        }
        assert_eq!(steps.next(), Some(&Op::Replay(0)));
        assert!(ops[first + 2].contains(&Op::Replay(0)));
        assert!(eager(&ops[first + 3]), "the first is gone");
    }
}

/// A prompt runs another kernel than the decodes behind it.
#[test]
fn each_kernel_proves_itself_on_its_first_rows() {
    let session = two_blocks();
    let (driver, log) = Recording::new();
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let [prompt, decode] = [512, 1].map(|rows| HandMade::new(rows, false, &log));
    let mut compared = |made: &HandMade| {
        assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
        taken(&log).into_iter().filter(|op| matches!(op, Op::ReadRows(_))).count()
    };
    assert_eq!(compared(&prompt), 4, "before and after, of two blocks");
    assert_eq!(compared(&decode), 4);
    assert_eq!(compared(&prompt) + compared(&decode), 0);
    path.close(&session.0);
    assert!(session.stats().iter().all(|stats| stats.rows == 2 * 513));
}

/// So a decode kernel that is wrong is found, however right the prompt was.
#[test]
fn a_decode_kernel_that_is_wrong_is_found_behind_a_prompt() {
    let session = two_blocks();
    let (mut driver, log) = Recording::new();
    driver.wrong_kernel = Some("direct");
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let [prompt, decode] = [512, 1].map(|rows| HandMade::new(rows, false, &log));
    assert_eq!(prompt.pass(&mut path, &session, false), sys::GGML_STATUS_SUCCESS);
    assert_eq!(decode.pass(&mut path, &session, false), sys::GGML_STATUS_FAILED);
    let error = session.watch(1, 1, || Ok::<_, ()>(()));
    assert!(matches!(error, Err(HookError::DeviceDiffers { block: 0, .. })), "{error:?}");
}

/// A plan is kept while the graph is the same: not by its uid alone.
#[test]
fn rows_that_move_under_a_known_uid_are_capped_where_they_are() {
    for one_graph in [false, true] {
        let session = two_blocks();
        let (driver, log) = Recording::new();
        let mut path = DevicePath::new("test".into(), Box::new(driver));
        let mut made = HandMade::new(1, false, &log);
        made.set_uid(7);
        for _ in 0..4 {
            assert_eq!(made.pass(&mut path, &session, one_graph), sys::GGML_STATUS_SUCCESS);
        }
        assert_eq!(taken(&log).contains(&Op::Replay(0)), one_graph);
        let mut elsewhere = vec![0.0_f32; 4];
        // SAFETY: the tensor of a block output; what it points to outlives the pass.
        unsafe { (*made.outputs[1].tensor).data = elsewhere.as_mut_ptr().cast() };
        assert_eq!(made.pass(&mut path, &session, one_graph), sys::GGML_STATUS_SUCCESS);
        let ops = taken(&log);
        assert_eq!(ops, [in_order(&views(&ops)), vec![Op::Fetch(2)]].concat(), "no replay of the old place");
        assert!(elsewhere.iter().all(|&value| value > 0.0), "{elsewhere:?}");
        path.close(&session.0);
        assert!(session.stats().iter().all(|stats| stats.rows == 5));
    }
}

/// A panic in a capture would leave ggml's stream in it, and ggml aborts at the next use.
#[test]
fn a_capture_is_ended_when_something_in_it_panics() {
    let session = two_blocks();
    let (driver, log) = Recording::new();
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let made = HandMade::new(1, false, &log);
    made.set_uid(7);
    for _ in 0..2 {
        assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
    }
    taken(&log);
    let panicking = || made.pass_while(&mut path, &session, true, || panic!("as the test asked"));
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    let ops = taken(&log);
    assert_eq!((&ops[0], ops.last()), (&Op::BeginCapture, Some(&Op::EndCapture)));
    // From then on eager.
    for _ in 0..3 {
        assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
        let ops = taken(&log);
        assert_eq!(ops, [in_order(&views(&ops)), vec![Op::Fetch(2)]].concat());
    }
}

/// A table that could not be updated: nothing that is on the GPU is used any more.
#[test]
fn a_failed_update_throws_tables_and_graphs_away() {
    let session = two_blocks();
    let (mut driver, log) = Recording::new();
    driver.fails = Some(Op::Update(1));
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let made = HandMade::new(1, false, &log);
    made.set_uid(7);
    for _ in 0..3 {
        assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
    }
    assert!(taken(&log).contains(&Op::Replay(0)));
    for cap in [0, 1] {
        session.set_bound(cap, Bound::floor(2.0).unwrap()).unwrap();
    }
    assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_FAILED);
    let mut ops = taken(&log);
    ops[3..].sort_by_key(|op| format!("{op:?}"));
    assert_eq!(ops, [Op::Update(0), Op::Update(1), Op::Discard, Op::Forget(0), Op::Forget(1)]);
    assert!(session.watch(1, 1, || Ok::<_, ()>(())).is_err());

    // From the start again: new tables, compared with the CPU.
    assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
    let ops = taken(&log);
    assert_eq!(ops.iter().filter(|op| matches!(op, Op::Upload(_))).count(), 2);
    assert_eq!(ops.iter().filter(|op| matches!(op, Op::ReadRows(_))).count(), 4);
    assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
    assert!(!taken(&log).contains(&Op::BeginCapture), "it warms up again");
    assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
    assert!(taken(&log).contains(&Op::Instantiate(0)));
}

#[test]
fn a_backend_is_not_freed_while_another_captures() {
    let session = two_blocks();
    let hook = Hook::install().unwrap();
    LazyLock::force(&LOADED);
    // SAFETY: the CPU device makes a backend, which is freed below.
    let other = hook.bind(&session, || unsafe {
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        sys::ggml_backend_dev_init(device, std::ptr::null()).expose_provenance()
    });
    assert!(session.is_bound());
    let (driver, log) = Recording::new();
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let made = HandMade::new(1, false, &log);
    made.set_uid(7);
    for _ in 0..2 {
        assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
    }
    let (starting, starts) = mpsc::channel();
    let freed = Arc::new(AtomicBool::new(false));
    let freeing = RefCell::new(None);
    let in_capture = || {
        freeing.borrow_mut().get_or_insert_with(|| {
            let (starting, freed) = (starting.clone(), Arc::clone(&freed));
            let thread = std::thread::spawn(move || {
                starting.send(()).unwrap();
                // SAFETY: the backend from above, freed once.
                unsafe { sys::ggml_backend_free(std::ptr::with_exposed_provenance_mut(other)) };
                freed.store(true, Ordering::Release);
            });
            starts.recv().unwrap();
            thread
        });
        // Time for a free that does not wait; one that waits makes no difference.
        std::thread::sleep(Duration::from_millis(50));
        assert!(!freed.load(Ordering::Acquire), "freed within the capture");
    };
    assert_eq!(made.pass_while(&mut path, &session, true, in_capture), sys::GGML_STATUS_SUCCESS);
    assert!(taken(&log).contains(&Op::EndCapture));
    freeing.into_inner().unwrap().join().unwrap();
    assert!(freed.load(Ordering::Acquire));
}

/// Where ggml's own graphs are off, a part without capped blocks would be launched node by node.
#[test]
fn a_graph_without_block_outputs_is_captured_too() {
    let session = two_blocks();
    let (driver, log) = Recording::new();
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let mut made = HandMade::new(1, false, &log);
    made.outputs.clear();
    made.set_uid(7);
    let mut pass = || {
        assert_eq!(made.pass(&mut path, &session, true), sys::GGML_STATUS_SUCCESS);
        taken(&log)
    };
    assert!(matches!(pass()[..], [Op::View { nodes: 4, .. }]));
    assert_eq!(pass().iter().filter(|op| matches!(op, Op::View { nodes: 4, .. })).count(), 1);
    let replay =
        [Op::RecordOnBackend(1), Op::WaitOnOurs(1), Op::Replay(0), Op::RecordOnOurs(1), Op::WaitOnBackend(1)];
    assert_eq!(pass(), replay);
    assert!(session.stats().iter().all(|stats| stats.rows == 0));
}

/// A pass without logits has no rows in the last block: nothing to cap, and no reason to speak of the host.
#[test]
fn a_graph_whose_block_outputs_have_no_rows_runs_as_it_is() {
    let last = shape().blocks - 1;
    let caps = CapSet::new([cap(last, 1, Bound::floor(9.0).unwrap())]).unwrap();
    let run = |engine| {
        let session = session(engine);
        session.set_caps(Some(&caps)).unwrap();
        let (mut context, log) = on_device(&session, 4);
        decode(&mut context, &session, &prompt()[..6], 0, false).unwrap();
        (session.take_trace(), session.engines_used(), taken(&log))
    };
    let (trace, engines, ops) = run(Engine::Views);
    assert_eq!((&engines[..], &ops[..]), (&[][..], &[][..]));
    assert_eq!(trace, run(Engine::Inserted).0);
    assert_eq!(trace.iter().map(|trace| (trace.block, trace.rows)).collect::<Vec<_>>(), [(last, 0); 2]);
}

#[test]
fn graphs_of_many_rows_are_not_captured() {
    for (rows, captured) in [(128, true), (129, false)] {
        let ops = passes_of(rows, false, true, None, &[7; 4]);
        assert_eq!(ops.concat().contains(&Op::BeginCapture), captured, "{rows} rows");
    }
}

#[test]
fn a_graph_that_cannot_be_captured_runs_eagerly_in_the_same_pass() {
    for fails in [Op::BeginCapture, Op::EndCapture, Op::Instantiate(0)] {
        let ops = passes(false, true, Some(fails.clone()), &[7; 5]);
        assert!(ops[2].contains(&fails));
        let eager = [in_order(&views(&ops[1])), vec![Op::Fetch(2)]].concat();
        assert!(ops[2].ends_with(&eager), "{fails:?}: {:?}", ops[2]);
        assert_eq!((&ops[3], &ops[4]), (&eager, &eager), "{fails:?}");
    }
}
