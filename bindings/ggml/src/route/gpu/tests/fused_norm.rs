//! The fused norm over real graphs of a real model, which the CPU backend computes, and over a hand-made graph: only
//! the driver is a stand-in.

use axiscap::cpu::{self, Norm, RowsMut};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet, CapTable};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_sys_2 as sys;

use super::recording::{Log, Op, Recording, use_next};
use super::tests::{
    cap, context, decode, expected, generate, on_device, on_the_cpu, pass_over, prompt, shape, taken, views,
};
use super::{DevicePath, FusedNorms, NormObstacle};
use crate::find::Output;
use crate::graph::Graph;
use crate::layout::{Arena, Layout};
use crate::{Engine, HookError, ModelShape, Session};

fn last() -> usize {
    shape().blocks - 1
}

/// Caps on the first block, two neighbours, the last but one, and the last.
fn blocks() -> [usize; 5] {
    [0, 3, 4, last() - 1, last()]
}

fn caps(bound: Bound) -> CapSet {
    CapSet::new(blocks().map(|block| cap(block, block, bound))).unwrap()
}

fn session(engine: Engine, bound: Bound) -> Session {
    let session = Session::new(shape());
    session.set_caps(Some(&caps(bound))).unwrap();
    session.set_engine(engine);
    session.set_tracing(true);
    session.set_fused_norm(true);
    session
}

fn floor() -> Bound {
    Bound::floor(0.5).unwrap()
}

/// Behind all blocks but the last: there ggml puts the norm where the block output was.
fn all_but_the_last() -> FusedNorms {
    FusedNorms { fused: blocks()[..4].to_vec(), refused: vec![(last(), NormObstacle::Overlap)] }
}

/// The log of a graph with these launches, all but that of the last block with the norm.
fn with_norms(launches: &[(usize, usize, usize)], checked: bool) -> Vec<Op> {
    let width = shape().width;
    let mut ops = Vec::new();
    let mut plain = expected(launches, checked).into_iter();
    while let Some(op) = plain.next() {
        match op {
            Op::Launch { block, rows, stats } if block != last() => {
                // The weight is read with the rows before the launch, the normed rows with those behind it.
                ops.extend(checked.then_some(Op::ReadRows(width)));
                ops.push(Op::LaunchNormed { block, rows, stats });
                if checked {
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

/// How far logits may be apart, and how close two of them have to be for another choice. Last bits flip roundings to 8
/// bits: a step of one millionth along one axis at one block moves logits of this small model by more than 1 within
/// a few tokens.
const FAR: f32 = 3.0;
const CLOSE: f32 = 0.5;

/// Feeds both contexts the same tokens, and makes sure that their choices differ only where two logits are close.
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
        let gap = one[chosen.0 as usize] - one[other.0 as usize];
        let apart = one.iter().zip(&two).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(apart < FAR, "logits {apart} apart at {position}");
        assert!(chosen == other || gap < CLOSE, "{chosen:?} leads {other:?} by {gap} at {position}");
        position += tokens.len();
        tokens = vec![chosen];
    }
}

#[test]
fn every_norm_but_the_last_is_fused_in_prefill_and_decode() {
    let session = session(Engine::Views, floor());
    let (mut context, log) = on_device(&session, 256);
    generate(&mut context, &session, 4);
    let rows = prompt().len();
    let launches = |rows: usize| blocks().map(|block| (block, if block == last() { 1 } else { rows }, 1));
    let mut ops = with_norms(&launches(rows), true);
    for _ in 1..4 {
        ops.extend(with_norms(&launches(1), false));
    }
    assert_eq!(taken(&log), ops);
    assert_eq!(session.fused_norms(), all_but_the_last());
    let engines = session.engines_used();
    assert!(engines.iter().any(|(_, how)| how.contains("norm")), "{engines:?}");

    // Up to the first norm, nothing differs from the plain caps: the same figures, bit for bit.
    let trace = session.take_trace();
    let plain = self::session(Engine::Inserted, floor());
    generate(&mut self::context(&plain, 256), &plain, 1);
    assert_eq!(trace[0], plain.take_trace()[0]);
}

/// On some blocks with caps that act, and on all blocks with caps that never do, against the uncapped model.
#[test]
fn tokens_are_those_of_ggmls_norm_up_to_near_ties() {
    let all = CapSet::new((0..=last()).map(|block| cap(block, block, Bound::NONE))).unwrap();
    for (caps, acting, count) in [(caps(floor()), true, 12), (all, false, 48)] {
        let [fused, plain] = [Engine::Views, Engine::Inserted].map(|engine| session(engine, floor()));
        fused.set_caps(Some(&caps)).unwrap();
        plain.set_caps(Some(&caps)).unwrap();
        plain.set_enabled(acting);
        let (mut context, _) = on_device(&fused, 256);
        let mut other = self::context(&plain, 256);
        nearly_the_same((&mut other, &plain), (&mut context, &fused), count);
        let stats = fused.stats();
        assert_eq!(stats.iter().any(|stats| stats.engaged > 0), acting);
        let rows: u64 = stats.iter().map(|stats| stats.rows).sum();
        let blocks = caps.blocks().len() - 1;
        assert_eq!(rows as usize, blocks * (prompt().len() + count - 1) + count);
        let norms = fused.fused_norms();
        assert_eq!((norms.fused.len(), norms.refused), (blocks, vec![(last(), NormObstacle::Overlap)]));
    }
}

#[test]
fn micro_batches_and_passes_without_logits() {
    let session = session(Engine::Views, floor());
    let (mut context, log) = on_device(&session, 4);
    decode(&mut context, &session, &prompt()[..6], 0, false).unwrap();
    let launches = |rows| [0, 3, 4, last() - 1].map(|block| (block, rows, 1));
    assert_eq!(taken(&log), [with_norms(&launches(4), true), with_norms(&launches(2), false)].concat());
    // The last block had no rows.
    assert_eq!(session.fused_norms(), FusedNorms { refused: vec![], ..all_but_the_last() });
    decode(&mut context, &session, &prompt()[6..9], 6, true).unwrap();
    assert_eq!(session.fused_norms(), all_but_the_last());
}

#[test]
fn two_contexts_one_with_the_fused_norm() {
    let (first, second) = (session(Engine::Views, floor()), session(Engine::Views, floor()));
    second.set_fused_norm(false);
    let (mut a, log_a) = on_device(&first, 256);
    let (mut b, log_b) = on_device(&second, 256);
    nearly_the_same((&mut b, &second), (&mut a, &first), 3);
    let is_normed = |op: &Op| matches!(op, Op::LaunchNormed { .. });
    assert_eq!(taken(&log_a).iter().filter(|op| is_normed(op)).count(), 3 * 4);
    assert!(!taken(&log_b).iter().any(is_normed));
    assert_eq!(second.fused_norms(), FusedNorms::default());
}

#[test]
fn switched_on_and_off_between_decodes_each_kernel_is_checked_once() {
    let session = session(Engine::Views, floor());
    session.set_caps(Some(&CapSet::new([cap(3, 1, floor())]).unwrap())).unwrap();
    let (mut context, log) = on_device(&session, 256);
    let width = shape().width;
    let normed = Op::LaunchNormed { block: 3, rows: 1, stats: Some(0) };
    let plain = Op::Launch { block: 3, rows: 1, stats: Some(0) };
    for (position, (on, first)) in
        [(true, true), (false, true), (true, false), (false, false)].into_iter().enumerate()
    {
        session.set_fused_norm(on);
        decode(&mut context, &session, &prompt()[..1], position, true).unwrap();
        let ops = taken(&log);
        assert!(ops.contains(if on { &normed } else { &plain }), "{ops:?}");
        let reads = ops.iter().filter(|op| **op == Op::ReadRows(width)).count();
        assert_eq!(
            reads,
            if !first {
                0
            } else if on {
                4
            } else {
                2
            }
        );
        let expected = if on { vec![3] } else { vec![] };
        assert_eq!(session.fused_norms(), FusedNorms { fused: expected, refused: vec![] });
    }
}

#[test]
fn a_gpu_that_norms_wrongly_is_refused_by_block_and_row() {
    let session = session(Engine::Views, floor());
    let (mut driver, _) = Recording::new();
    driver.wrong_norm = true;
    use_next(driver);
    let mut context = context(&session, 256);
    match decode(&mut context, &session, &prompt(), 0, true) {
        Err(HookError::DeviceNormDiffers { block: 0, row: 0, column: 0, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_weight_or_result_in_other_memory_leaves_the_norm_to_ggml() {
    for not_held in [2, 3] {
        let session = session(Engine::Views, floor());
        session.set_caps(Some(&super::tests::caps())).unwrap();
        let (mut driver, log) = Recording::new();
        driver.not_held = Some(not_held);
        use_next(driver);
        let mut context = context(&session, 256);
        // The first block asks for its rows, its norm's weight, and its normed rows.
        decode(&mut context, &session, &prompt(), 0, true).unwrap();
        assert_eq!(session.fused_norms().refused[0], (0, NormObstacle::OtherMemory), "{not_held}");
        assert!(taken(&log).iter().any(|op| matches!(op, Op::Launch { block: 0, .. })));
    }
}

#[test]
fn without_a_gpu_it_has_no_effect_and_says_so() {
    let refused = |blocks: &[usize]| blocks.iter().map(|&block| (block, NormObstacle::NoGpu)).collect();
    let (tokens, trace) = on_the_cpu(256, 3);
    // Inserted nodes, views on the host, and views on a GPU that does not hold the rows.
    for (engine, gpu) in [(Engine::Inserted, false), (Engine::Views, false), (Engine::Views, true)] {
        let session = Session::new(shape());
        session.set_caps(Some(&super::tests::caps())).unwrap();
        session.set_engine(engine);
        session.set_tracing(true);
        session.set_fused_norm(true);
        if gpu {
            let (mut driver, _) = Recording::new();
            driver.elsewhere = true;
            use_next(driver);
        }
        let mut context = context(&session, 256);
        assert_eq!(generate(&mut context, &session, 3), tokens, "{engine:?}");
        assert_eq!(session.take_trace(), trace);
        let expected = FusedNorms { fused: vec![], refused: refused(&[0, 12, last()]) };
        assert_eq!(session.fused_norms(), expected, "{engine:?}");
    }
}

/// Two blocks of a made-up model, each followed by a norm.
struct HandMade {
    _arena: Arena,
    raw: *mut sys::ggml_cgraph,
    outputs: [Output; 2],
    residual: [Box<[f32; 4]>; 2],
    normed: [Box<[f32; 4]>; 2],
    weight: Box<[f32; 4]>,
}

const EPS: f32 = 1e-5;

impl HandMade {
    /// Nodes: `l_out-0`, RMS_NORM, MUL, ADD, `l_out-1`, RMS_NORM, MUL and, unless the graph ends there, one more.
    fn new(more: bool) -> Self {
        let arena = Arena::new(32).unwrap();
        let mut residual = [[1.0, -2.0, 3.0, 0.5], [0.25, 1.0, -1.0, 4.0]].map(Box::new);
        let mut normed = [[0.0; 4]; 2].map(Box::new);
        let mut weight = Box::new([1.0, 0.5, 2.0, -1.0]);
        // SAFETY: tensors and graph live in the arena; the data outlive them.
        let (raw, outputs) = unsafe {
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
            let end = if more { sys::ggml_add(c, end, second) } else { end };
            let raw = sys::ggml_new_graph_custom(c, 16, false);
            sys::ggml_build_forward_expand(raw, end);
            let output = |node, block, tensor| Output { node, block, tensor };
            (raw, [output(0, 0, first), output(4, 1, second)])
        };
        Self { _arena: arena, raw, outputs, residual, normed, weight }
    }

    fn session(caps: &[BlockCap]) -> Session {
        let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 2, width: 4 });
        session.set_caps(Some(&CapSet::new(caps.to_vec()).unwrap())).unwrap();
        session.set_fused_norm(true);
        session
    }

    fn run(&self, path: &mut DevicePath, log: &Log, session: &Session, uid: u64) -> Vec<Op> {
        let layout = Layout::probe().unwrap();
        // SAFETY: the graph is this test's alone; the uid has its place within it.
        let graph = unsafe {
            self.raw.byte_add(layout.graph_uid).cast::<u64>().write(uid);
            Graph::new(self.raw, layout)
        };
        let status = pass_over(path, (&graph, &self.outputs), session, true, log, || {});
        assert_eq!(status, sys::GGML_STATUS_SUCCESS);
        taken(log)
    }
}

fn two_caps() -> [BlockCap; 2] {
    let axis = Axis::from_direction(&[1.0, 2.0, 3.0, 4.0]).unwrap();
    [0, 1].map(|block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::floor(6.0).unwrap()) })
}

/// The views of a pass with the launches between them; the tail has none of its own where the graph ends.
fn in_order(seen: &[(usize, u64)], normed: bool) -> Vec<Op> {
    let mut ops = Vec::new();
    for (block, &(nodes, uid)) in seen.iter().take(2).enumerate() {
        let (rows, stats) = (1, Some(block));
        let launch =
            if normed { Op::LaunchNormed { block, rows, stats } } else { Op::Launch { block, rows, stats } };
        ops.push(Op::View { nodes, uid });
        ops.extend([Op::RecordOnBackend(block), Op::WaitOnOurs(block), launch]);
        ops.extend([Op::RecordOnOurs(block), Op::WaitOnBackend(block)]);
    }
    ops.extend(seen[2..].iter().map(|&(nodes, uid)| Op::View { nodes, uid }));
    ops
}

#[test]
fn views_leave_the_norms_out_and_rows_are_capped_and_normed() {
    for more in [true, false] {
        let made = HandMade::new(more);
        let (driver, log) = Recording::new();
        let mut path = DevicePath::new("test".into(), Box::new(driver));
        let session = HandMade::session(&two_caps());
        let before = made.residual.each_ref().map(|row| **row);
        made.run(&mut path, &log, &session, 7);
        let table = CapTable::new(&[two_caps()[0].cap.clone()]).unwrap();
        for (i, mut row) in before.into_iter().enumerate() {
            let mut out = [0.0; 4];
            let norm = Norm::new(&made.weight[..], EPS).unwrap();
            let rows = RowsMut::from_slice(&mut row, 4).unwrap();
            let to = RowsMut::from_slice(&mut out, 4).unwrap();
            cpu::cap_norm_rows(&table, rows, norm, to, cpu::Options::new()).unwrap();
            assert_eq!((*made.residual[i], *made.normed[i]), (row, out), "block {i}");
            assert_ne!(row, before[i], "the cap acts");
        }
        let ops = made.run(&mut path, &log, &session, 7);
        let seen = views(&ops);
        assert_eq!(
            seen.iter().map(|v| v.0).collect::<Vec<_>>(),
            if more { vec![1, 2, 1] } else { vec![1, 2] }
        );
        assert_eq!(ops, [in_order(&seen, true), vec![Op::Fetch(2)]].concat());
        session.set_fused_norm(false);
        made.run(&mut path, &log, &session, 7);
        let plain = views(&made.run(&mut path, &log, &session, 7));
        assert_eq!(plain.iter().map(|v| v.0).collect::<Vec<_>>(), [1, 4, if more { 3 } else { 2 }]);
        assert!(plain[1..].iter().all(|v| !seen.contains(v)), "other views, other uids");
    }
}

#[test]
fn fused_launches_are_captured_and_another_choice_is_another_graph() {
    let made = HandMade::new(true);
    let (driver, log) = Recording::new();
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let session = HandMade::session(&two_caps());
    let mut pass = |session: &Session| made.run(&mut path, &log, session, 7);
    let captures = |ops: &[Op]| ops.first() == Some(&Op::BeginCapture);
    let replays = |ops: &[Op]| !captures(ops) && ops.iter().any(|op| matches!(op, Op::Replay(_)));

    // The first pass compares rows with the CPU's, the second warms up, the third captures.
    let (_, eager, third) = (pass(&session), pass(&session), pass(&session));
    assert_eq!(eager, [in_order(&views(&eager), true), vec![Op::Fetch(2)]].concat());
    assert!(captures(&third));
    let inside = in_order(&views(&eager), true);
    assert!(third.windows(inside.len()).any(|ops| ops == inside), "{third:?}");
    assert!(replays(&pass(&session)));

    session.set_fused_norm(false);
    let plain = [pass(&session), pass(&session), pass(&session)];
    assert!(!captures(&plain[0]) && !captures(&plain[1]) && captures(&plain[2]));
    let inside = in_order(&views(&plain[1]), false);
    assert!(plain[2].windows(inside.len()).any(|ops| ops == inside), "{:?}", plain[2]);
    assert!(replays(&pass(&session)));
}

#[test]
fn one_block_fused_and_one_not() {
    let made = HandMade::new(true);
    // SAFETY: the tensors live as long as the graph: the second norm becomes an output of it.
    unsafe {
        let node = sys::ggml_graph_node(made.raw, 5);
        (*node).flags |= sys::GGML_TENSOR_FLAG_OUTPUT as i32;
    }
    let (driver, log) = Recording::new();
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let session = HandMade::session(&two_caps());
    made.run(&mut path, &log, &session, 7);
    let ops = made.run(&mut path, &log, &session, 7);
    assert_eq!(views(&ops).iter().map(|v| v.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(ops.contains(&Op::LaunchNormed { block: 0, rows: 1, stats: Some(0) }));
    assert!(ops.contains(&Op::Launch { block: 1, rows: 1, stats: Some(1) }));
    let expected = FusedNorms { fused: vec![0], refused: vec![(1, NormObstacle::ReadElsewhere)] };
    assert_eq!(session.fused_norms(), expected);
}
