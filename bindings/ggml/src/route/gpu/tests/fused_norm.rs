//! The fused norm over real graphs of a real model and over a hand-made graph.

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Bound, CapSet, Epsilon};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_sys_2 as sys;

use super::hand_made::{Runner, floor as floor_at, two_blocks, views};
use super::model::{
    Launched, cap, caps as caps_of_three_blocks, context, context_on, decode, expected, expected_first,
    generate, last_block, on_the_cpu, prompt, recorded_context, shape, took,
};
use super::recording::{Op, Recording, taken};
use crate::graph::find::Output;
use crate::host::{Arena, Graph, SUCCESS, Tensor};
use crate::report::NotFused;
use crate::{FusedNorms, HookError, NotFusedReason, Route, RouteChoice, Session};

/// The first block, two neighbours, the last but one, and the last.
fn blocks() -> [usize; 5] {
    [0, 3, 4, last_block() - 1, last_block()]
}

fn caps(bound: Bound) -> CapSet {
    CapSet::new(blocks().map(|block| cap(block, block, bound))).unwrap()
}

/// A traced session with the fused norm and caps on [`blocks`].
fn session(route: RouteChoice, bound: Bound) -> Session {
    let session = Session::new(shape());
    session.set_caps(Some(&caps(bound))).unwrap();
    session.update(|settings| {
        settings.route = route;
        settings.tracing = true;
        settings.fused_norm = true;
    });
    session
}

fn floor() -> Bound {
    Bound::floor(0.5).unwrap()
}

fn refused(block: usize, reason: NotFused) -> (usize, NotFusedReason) {
    (block, NotFusedReason(reason))
}

/// After the last block, ggml puts the norm where the block output was.
fn all_but_the_last() -> FusedNorms {
    FusedNorms { fused: blocks()[..4].to_vec(), refused: vec![refused(last_block(), NotFused::Overlap)] }
}

/// Turns the log of plain launches into that of launches with norms, apart from that of the last block.
fn with_norms(plain: Vec<Op>, first: bool) -> Vec<Op> {
    let width = shape().width;
    let mut ops = Vec::new();
    let mut plain = plain.into_iter();
    while let Some(op) = plain.next() {
        match op {
            Op::Launch { block, rows, stats } if block != last_block() => {
                // The weight is read after the rows before the launch, the normed rows after those after it.
                ops.extend(first.then_some(Op::ReadRows(width)));
                ops.push(Op::LaunchWithNorm { block, rows, stats });
                if first {
                    ops.extend(plain.next());
                    ops.push(Op::ReadRows(rows * width));
                }
            }
            other => ops.push(other),
        }
    }
    ops
}

fn logits(context: &LlamaContext<'_>, row: usize) -> Vec<f32> {
    context.get_logits_ith(row as i32).to_vec()
}

/// Maximum distance of logits of the two contexts. Last bits flip roundings to 8 bits. A step of one
/// millionth along one axis at one block moves logits of this small model by more than 1 within a few tokens.
const MAX_DISTANCE: f32 = 3.0;
/// Maximum lead of a logit over another that the other context chooses.
const MAX_LEAD: f32 = 0.5;

/// Feeds both contexts the same tokens, and checks that their choices differ only where two logits are close.
fn nearly_the_same(
    (a, of_a): (&mut LlamaContext<'_>, &Session),
    (b, of_b): (&mut LlamaContext<'_>, &Session),
    count: usize,
) {
    let mut tokens = prompt();
    let mut position = 0;
    for _ in 0..count {
        let chosen = decode(a, of_a, &tokens, position, true).unwrap().unwrap();
        let other = decode(b, of_b, &tokens, position, true).unwrap().unwrap();
        let (one, two) = (logits(a, tokens.len() - 1), logits(b, tokens.len() - 1));
        let lead = one[chosen.0 as usize] - one[other.0 as usize];
        let apart = one.iter().zip(&two).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(apart < MAX_DISTANCE, "logits {apart} apart at {position}");
        assert!(chosen == other || lead < MAX_LEAD, "{chosen:?} leads {other:?} by {lead} at {position}");
        position += tokens.len();
        tokens = vec![chosen];
    }
}

#[test]
fn every_norm_but_the_last_is_fused_in_prefill_and_decode() {
    let session = session(RouteChoice::Views, floor());
    let (mut context, log) = recorded_context(&session, 256);
    generate(&mut context, &session, 4);
    let launches = |rows: usize| {
        blocks().map(|block| Launched { block, rows: if block == last_block() { 1 } else { rows }, caps: 1 })
    };
    let mut ops = with_norms(expected_first(&launches(prompt().len())), true);
    for _ in 1..4 {
        ops.extend(with_norms(expected(&launches(1)), false));
    }
    assert_eq!(taken(&log), ops);
    assert_eq!(session.fused_norms(), all_but_the_last());
    assert!(took(&session, Route::GpuViewsFusedNorm));

    // Up to the first norm the statistics are those of the plain caps, bit for bit.
    let trace = session.take_trace();
    let plain = self::session(RouteChoice::Inserted, floor());
    generate(&mut self::context(&plain, 256), &plain, 1);
    assert_eq!(trace[0], plain.take_trace()[0]);
}

/// On some blocks with caps that act, and on all blocks with caps that never do, against the uncapped model.
#[test]
fn tokens_are_those_of_ggmls_norm_up_to_near_ties() {
    let all = CapSet::new((0..=last_block()).map(|block| cap(block, block, Bound::NONE))).unwrap();
    for (caps, acting, count) in [(caps(floor()), true, 12), (all, false, 48)] {
        let [fused, plain] = [RouteChoice::Views, RouteChoice::Inserted].map(|route| session(route, floor()));
        fused.set_caps(Some(&caps)).unwrap();
        plain.set_caps(Some(&caps)).unwrap();
        plain.update(|settings| settings.enabled = acting);
        let (mut context, _) = recorded_context(&fused, 256);
        let mut other = self::context(&plain, 256);
        nearly_the_same((&mut other, &plain), (&mut context, &fused), count);
        let stats = fused.stats();
        assert_eq!(stats.iter().any(|stats| stats.engaged > 0), acting);
        let rows: u64 = stats.iter().map(|stats| stats.rows).sum();
        let blocks = caps.blocks().len() - 1;
        assert_eq!(rows as usize, blocks * (prompt().len() + count - 1) + count);
        let norms = fused.fused_norms();
        let of_last = refused(last_block(), NotFused::Overlap);
        assert_eq!((norms.fused.len(), norms.refused), (blocks, vec![of_last]));
    }
}

#[test]
fn micro_batches_and_batches_without_logits() {
    let session = session(RouteChoice::Views, floor());
    let (mut context, log) = recorded_context(&session, 4);
    decode(&mut context, &session, &prompt()[..6], 0, false).unwrap();
    let launches = |rows| [0, 3, 4, last_block() - 1].map(|block| Launched { block, rows, caps: 1 });
    let of_4 = with_norms(expected_first(&launches(4)), true);
    let of_2 = with_norms(expected(&launches(2)), false);
    assert_eq!(taken(&log), [of_4, of_2].concat());
    // The last block had no rows.
    assert_eq!(session.fused_norms(), FusedNorms { refused: vec![], ..all_but_the_last() });
    decode(&mut context, &session, &prompt()[6..9], 6, true).unwrap();
    assert_eq!(session.fused_norms(), all_but_the_last());
}

#[test]
fn two_contexts_one_with_the_fused_norm() {
    let (first, second) = (session(RouteChoice::Views, floor()), session(RouteChoice::Views, floor()));
    second.update(|settings| settings.fused_norm = false);
    let (mut a, log_a) = recorded_context(&first, 256);
    let (mut b, log_b) = recorded_context(&second, 256);
    nearly_the_same((&mut b, &second), (&mut a, &first), 3);
    let has_norm = |op: &Op| matches!(op, Op::LaunchWithNorm { .. });
    assert_eq!(taken(&log_a).iter().filter(|op| has_norm(op)).count(), 3 * 4);
    assert!(!taken(&log_b).iter().any(has_norm));
    assert_eq!(second.fused_norms(), FusedNorms::default());
}

#[test]
fn switched_on_and_off_between_decodes_each_kernel_is_checked_once() {
    let session = session(RouteChoice::Views, floor());
    session.set_caps(Some(&CapSet::new([cap(3, 1, floor())]).unwrap())).unwrap();
    let (mut context, log) = recorded_context(&session, 256);
    let width = shape().width;
    let with_norm = Op::LaunchWithNorm { block: 3, rows: 1, stats: Some(0) };
    let plain = Op::Launch { block: 3, rows: 1, stats: Some(0) };
    // A check reads the rows twice, and with the norm also its weight and the normed rows.
    for (position, (fused_norm, reads)) in
        [(true, 4), (false, 2), (true, 0), (false, 0)].into_iter().enumerate()
    {
        session.update(|settings| settings.fused_norm = fused_norm);
        decode(&mut context, &session, &prompt()[..1], position, true).unwrap();
        let ops = taken(&log);
        assert!(ops.contains(if fused_norm { &with_norm } else { &plain }), "{ops:?}");
        assert_eq!(ops.iter().filter(|op| **op == Op::ReadRows(width)).count(), reads);
        let fused = if fused_norm { vec![3] } else { vec![] };
        assert_eq!(session.fused_norms(), FusedNorms { fused, refused: vec![] });
    }
}

#[test]
fn a_gpu_that_norms_wrongly_is_refused_by_block_and_row() {
    let session = session(RouteChoice::Views, floor());
    let (mut driver, _) = Recording::new();
    driver.wrong_norm = true;
    let mut context = context_on(driver, &session, 256);
    match decode(&mut context, &session, &prompt(), 0, true) {
        Err(HookError::DeviceNormDiffers { block: 0, row: 0, column: 0, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_weight_or_result_in_other_memory_leaves_the_norm_to_ggml() {
    for not_held in [2, 3] {
        let session = session(RouteChoice::Views, floor());
        session.set_caps(Some(&caps_of_three_blocks())).unwrap();
        let (mut driver, log) = Recording::new();
        driver.not_held = Some(not_held);
        let mut context = context_on(driver, &session, 256);
        // The first block asks for its rows, its norm's weight, and its normed rows.
        decode(&mut context, &session, &prompt(), 0, true).unwrap();
        assert_eq!(session.fused_norms().refused[0], refused(0, NotFused::OtherMemory), "{not_held}");
        assert!(taken(&log).iter().any(|op| matches!(op, Op::Launch { block: 0, .. })));
    }
}

#[test]
fn without_a_gpu_it_has_no_effect_and_says_so() {
    let (tokens, trace) = on_the_cpu(256, 3);
    // Inserted nodes, views on the host, and views on a GPU that does not hold the rows.
    for (route, gpu) in
        [(RouteChoice::Inserted, false), (RouteChoice::Views, false), (RouteChoice::Views, true)]
    {
        let session = session(route, floor());
        session.set_caps(Some(&caps_of_three_blocks())).unwrap();
        let mut context = if gpu {
            let (mut driver, _) = Recording::new();
            driver.holds_nothing = true;
            context_on(driver, &session, 256)
        } else {
            context(&session, 256)
        };
        assert_eq!(generate(&mut context, &session, 3), tokens, "{route:?}");
        assert_eq!(session.take_trace(), trace);
        let refused = [0, 12, last_block()].map(|block| refused(block, NotFused::NoGpu)).to_vec();
        assert_eq!(session.fused_norms(), FusedNorms { fused: vec![], refused }, "{route:?}");
    }
}

/// Two blocks of a made-up model, each followed by a norm.
struct NormedBlocks {
    graph: Graph,
    outputs: [Output; 2],
    residual: [Box<[f32; 4]>; 2],
    normed: [Box<[f32; 4]>; 2],
    weight: Box<[f32; 4]>,
    _arena: Arena,
}

const EPS: f32 = 1e-5;

impl NormedBlocks {
    /// Nodes: `l_out-0`, RMS_NORM, MUL, ADD, `l_out-1`, RMS_NORM, MUL, ADD.
    fn new() -> Self {
        Self::build(true)
    }

    /// The same without the last node.
    fn ending_with_a_norm() -> Self {
        Self::build(false)
    }

    fn build(one_more_node: bool) -> Self {
        let arena = Arena::new(32).unwrap();
        let mut residual = [[1.0, -2.0, 3.0, 0.5], [0.25, 1.0, -1.0, 4.0]].map(Box::new);
        let mut normed = [[0.0; 4]; 2].map(Box::new);
        let mut weight = Box::new([1.0, 0.5, 2.0, -1.0]);
        // SAFETY: tensors and graph live in the arena. The data outlive them.
        let (graph, outputs) = unsafe {
            let c = arena.context();
            let leaf = || sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, 4, 1);
            let weights = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_F32, 4);
            (*weights).data = weight.as_mut_ptr().cast();
            let mut norm = |output, i: usize| {
                let scaled = sys::ggml_mul(c, sys::ggml_rms_norm(c, output, EPS), weights);
                (*output).data = residual[i].as_mut_ptr().cast();
                (*scaled).data = normed[i].as_mut_ptr().cast();
                scaled
            };
            let first = sys::ggml_add(c, leaf(), leaf());
            let between = norm(first, 0);
            let between = sys::ggml_add(c, between, leaf());
            let second = sys::ggml_add(c, between, first);
            let end = norm(second, 1);
            let end = if one_more_node { sys::ggml_add(c, end, second) } else { end };
            let raw = sys::ggml_new_graph_custom(c, 16, false);
            sys::ggml_build_forward_expand(raw, end);
            let graph = Graph::new(raw);
            graph.set_uid(7);
            let output = |(node, block, raw)| Output { node, block, tensor: Tensor::new(raw).unwrap() };
            (graph, [(0, 0, first), (4, 1, second)].map(output))
        };
        Self { graph, outputs, residual, normed, weight, _arena: arena }
    }

    fn run(&self, runner: &mut Runner) -> Vec<Op> {
        assert_eq!(runner.compute_while(&self.graph, &self.outputs, |_| {}), SUCCESS);
        taken(&runner.log)
    }
}

fn runner() -> Runner {
    let runner = Runner::with_session(two_blocks(floor_at(6.0)));
    runner.session.update(|settings| settings.fused_norm = true);
    runner
}

/// Number of nodes of each view.
fn nodes(ops: &[Op]) -> Vec<usize> {
    views(ops).iter().map(|view| view.0).collect()
}

/// Returns the views of `ops` with launches between them. `launch` makes the launch of a block.
fn in_order(ops: &[Op], launch: impl Fn(usize) -> Op) -> Vec<Op> {
    let seen = views(ops);
    let mut ops = Vec::new();
    for (block, &(nodes, uid)) in seen.iter().enumerate() {
        ops.push(Op::View { nodes, uid });
        if block < 2 {
            ops.extend([Op::ToCapStream(block), launch(block), Op::ToBackend(block)]);
        }
    }
    ops
}

fn launch_with_norm(block: usize) -> Op {
    Op::LaunchWithNorm { block, rows: 1, stats: Some(block) }
}

fn plain_launch(block: usize) -> Op {
    Op::Launch { block, rows: 1, stats: Some(block) }
}

#[test]
fn views_leave_the_norms_out_and_rows_are_capped_and_normed() {
    for (made, fused, plain) in [
        (NormedBlocks::new(), &[1, 2, 1][..], [1, 4, 3]),
        (NormedBlocks::ending_with_a_norm(), &[1, 2], [1, 4, 2]),
    ] {
        let mut runner = runner();
        let before = made.residual.each_ref().map(|row| **row);
        made.run(&mut runner);
        let config = runner.session.0.config();
        let table = &config.caps_of(0).unwrap().table;
        for (i, mut row) in before.into_iter().enumerate() {
            let mut out = [0.0; 4];
            let epsilon = Epsilon::new(EPS).unwrap();
            let rows = RowsMut::from_slice(&mut row, 4).unwrap();
            let to = RowsMut::from_slice(&mut out, 4).unwrap();
            Job::cap(rows).norm(&made.weight[..], epsilon, to).run(table).unwrap();
            assert_eq!((*made.residual[i], *made.normed[i]), (row, out), "block {i}");
            assert_ne!(row, before[i], "the cap acts");
        }
        let ops = made.run(&mut runner);
        assert_eq!(nodes(&ops), fused);
        assert_eq!(ops, [in_order(&ops, launch_with_norm), vec![Op::Fetch(2)]].concat());
        runner.session.update(|settings| settings.fused_norm = false);
        made.run(&mut runner);
        let without = made.run(&mut runner);
        assert_eq!(nodes(&without), plain);
        let seen = views(&ops);
        assert!(views(&without)[1..].iter().all(|view| !seen.contains(view)), "other views, other uids");
    }
}

#[test]
fn fused_launches_are_captured_and_another_choice_is_another_graph() {
    let made = NormedBlocks::new();
    let mut runner = runner();
    let captures = |ops: &[Op]| ops.first() == Some(&Op::BeginCapture);
    let replays = |ops: &[Op]| !captures(ops) && ops.iter().any(|op| matches!(op, Op::Replay(_)));

    // The first pass compares rows with the CPU's, the second warms up, the third captures.
    let [_, eager, third] = [(); 3].map(|()| made.run(&mut runner));
    assert_eq!(eager, [in_order(&eager, launch_with_norm), vec![Op::Fetch(2)]].concat());
    assert!(captures(&third));
    let inside = in_order(&eager, launch_with_norm);
    assert!(third.windows(inside.len()).any(|ops| ops == inside), "{third:?}");
    assert!(replays(&made.run(&mut runner)));

    runner.session.update(|settings| settings.fused_norm = false);
    let plain = [(); 3].map(|()| made.run(&mut runner));
    assert!(!captures(&plain[0]) && !captures(&plain[1]) && captures(&plain[2]));
    let inside = in_order(&plain[1], plain_launch);
    assert!(plain[2].windows(inside.len()).any(|ops| ops == inside), "{:?}", plain[2]);
    assert!(replays(&made.run(&mut runner)));
}

#[test]
fn one_block_fused_and_one_not() {
    let made = NormedBlocks::new();
    // SAFETY: the tensors live as long as the graph. The second norm becomes an output of it.
    unsafe { (*made.graph.nodes()[5].raw()).flags |= sys::GGML_TENSOR_FLAG_OUTPUT as i32 };
    let mut runner = runner();
    made.run(&mut runner);
    let ops = made.run(&mut runner);
    assert_eq!(nodes(&ops), [1, 2, 3]);
    assert!(ops.contains(&launch_with_norm(0)));
    assert!(ops.contains(&plain_launch(1)));
    let refused = vec![refused(1, NotFused::ReadElsewhere)];
    assert_eq!(runner.session.fused_norms(), FusedNorms { fused: vec![0], refused });
}
