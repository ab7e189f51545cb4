//! A real model, its contexts, and what the log of a decode must be.

use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

use super::super::{CudaDrivers, DriverFactory};
use super::recording::{Log, Op, Recording};
use crate::{BlockTrace, Hook, HookError, ModelShape, Route, RouteChoice, Session};

pub(crate) static LOADED: LazyLock<(LlamaBackend, LlamaModel)> = LazyLock::new(|| {
    let mut backend = LlamaBackend::init().expect("llama.cpp starts");
    backend.void_logs();
    let model = LlamaModel::load_from_file(
        &backend,
        axiscap_testing::small_model(),
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

pub(super) fn last_block() -> usize {
    shape().blocks - 1
}

pub(crate) fn cap(block: usize, seed: usize, bound: Bound) -> BlockCap {
    let values: Vec<f32> = (0..shape().width).map(|i| ((i * 31 + seed * 7919) as f32).sin()).collect();
    BlockCap { block, cap: Cap::new(Axis::from_direction(&values).unwrap(), bound) }
}

/// Caps on the first block, two on block 12, and one on the last block.
pub(super) fn caps() -> CapSet {
    let floor = |lo| Bound::floor(lo).unwrap();
    CapSet::new([
        cap(12, 1, floor(2.0)),
        cap(0, 2, floor(0.5)),
        cap(12, 3, floor(-1.0)),
        cap(last_block(), 4, floor(9.0)),
    ])
    .unwrap()
}

/// A traced session with [`caps`].
pub(super) fn session(route: RouteChoice) -> Session {
    let session = Session::new(shape());
    session.set_caps(Some(&caps())).unwrap();
    session.update(|settings| {
        settings.route = route;
        settings.tracing = true;
    });
    session
}

fn context_with(
    session: &Session,
    micro_batch: u32,
    drivers: Arc<dyn DriverFactory>,
) -> LlamaContext<'static> {
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(512))
        .with_n_batch(256)
        .with_n_ubatch(micro_batch)
        .with_n_threads(2)
        .with_n_threads_batch(2);
    let hook = Hook::install().unwrap();
    hook.bind_with(session, drivers, || LOADED.1.new_context(&LOADED.0, params)).unwrap()
}

pub(crate) fn context(session: &Session, micro_batch: u32) -> LlamaContext<'static> {
    context_with(session, micro_batch, Arc::new(CudaDrivers))
}

/// A context whose backend has this driver for a GPU.
pub(super) fn context_on(driver: Recording, session: &Session, micro_batch: u32) -> LlamaContext<'static> {
    context_with(session, micro_batch, driver.factory())
}

/// A context whose backend has a recording driver, and the driver's log.
pub(super) fn recorded_context(session: &Session, micro_batch: u32) -> (LlamaContext<'static>, Log) {
    let (driver, log) = Recording::new();
    (context_on(driver, session, micro_batch), log)
}

/// Decodes tokens of one sequence. With `logits` it returns the most likely next token.
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
    session.watch(tokens.len(), logits.into(), || Ok::<_, HookError>(context.decode(&mut batch)))?.unwrap();
    Ok(logits.then(|| {
        let logits = context.get_logits_ith(tokens.len() as i32 - 1);
        LlamaToken::new((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i32)
    }))
}

pub(crate) fn prompt() -> Vec<LlamaToken> {
    LOADED.1.vocab().tokenize(b"I feel so alone tonight. What are you, really?", false, true)
}

/// Generates tokens after the prompt.
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

/// Tokens and traces of the same generation with caps on the CPU.
pub(super) fn on_the_cpu(micro_batch: u32, count: usize) -> (Vec<LlamaToken>, Vec<BlockTrace>) {
    let session = session(RouteChoice::Inserted);
    let tokens = generate(&mut context(&session, micro_batch), &session, count);
    (tokens, session.take_trace())
}

pub(super) fn took(session: &Session, route: Route) -> bool {
    session.routes_used().iter().any(|used| used.route == route)
}

/// A launch for one block output in a log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launched {
    pub(super) block: usize,
    pub(super) rows: usize,
    /// Caps of the block.
    pub(super) caps: usize,
}

/// The launches of one graph with [`caps`].
pub(super) fn launches(rows: usize) -> [Launched; 3] {
    [
        Launched { block: 0, rows, caps: 1 },
        Launched { block: 12, rows, caps: 2 },
        Launched { block: last_block(), rows: 1, caps: 1 },
    ]
}

/// Returns the log of a graph: each launch between its two events, then one fetch.
pub(super) fn expected(launches: &[Launched]) -> Vec<Op> {
    log_of(launches, false)
}

/// Returns the log of the first graph with new tables: they are uploaded, and the rows before and after each launch are
/// read to be compared.
pub(super) fn expected_first(launches: &[Launched]) -> Vec<Op> {
    log_of(launches, true)
}

fn log_of(launches: &[Launched], first: bool) -> Vec<Op> {
    let width = shape().width;
    let mut ops = Vec::new();
    let mut stats = 0;
    if first {
        ops.extend(launches.iter().map(|launch| Op::Upload(launch.block)));
    }
    for (pair, &Launched { block, rows, caps }) in launches.iter().enumerate() {
        ops.push(Op::ToCapStream(pair));
        ops.extend(first.then_some(Op::ReadRows(rows * width)));
        ops.push(Op::Launch { block, rows, stats: Some(stats) });
        ops.extend(first.then_some(Op::ReadRows(rows * width)));
        ops.push(Op::ToBackend(pair));
        stats += rows * caps;
    }
    ops.push(Op::Fetch(stats));
    ops
}
