//! Views with launches between them: order, bits, tables, first-use checks, and blocks that the host caps.

use axiscap::{Bound, CapSet};

use super::hand_made::{HandMade, Passes, Runner, eager, floor, in_order, two_blocks, views};
use super::model::{
    Launched, cap, context_on, context_with, decode, expected, expected_first, generate, last_block,
    launches, on_the_cpu, prompt, recorded_context, session, took,
};
use super::recording::{Op, Recording, taken};
use crate::host::{FAILED, SUCCESS};
use crate::{HookError, Route, RouteChoice, RouteUse};

#[test]
fn prefill_and_decode_are_capped_in_stream_order_with_the_bits_of_the_cpu() {
    let (tokens, trace) = on_the_cpu(256, 6);
    let session = session(RouteChoice::Views);
    let (mut context, log) = recorded_context(&session, 256);
    assert_eq!(generate(&mut context, &session, 6), tokens);

    let rows = prompt().len();
    let mut ops = expected_first(&launches(rows));
    for _ in 1..6 {
        ops.extend(expected(&launches(1)));
    }
    assert_eq!(taken(&log), ops);
    assert_eq!(session.routes_used(), [RouteUse { device: "CPU".into(), route: Route::GpuViews }]);

    // Statistics outlive the context.
    drop(context);
    assert_eq!(taken(&log), [Op::Closed]);
    assert_eq!(session.stats().iter().map(|s| s.rows).sum::<u64>(), (3 * rows + 3 * 5 + 6) as u64);
    assert_eq!(session.take_trace(), trace);
}

#[test]
fn micro_batches_and_batches_without_logits() {
    let (tokens, trace) = on_the_cpu(4, 3);
    let session = session(RouteChoice::Views);
    let (mut context, log) = recorded_context(&session, 4);
    assert_eq!(generate(&mut context, &session, 3), tokens);
    assert_eq!(session.take_trace(), trace);
    let of_last = |op: &Op| matches!(op, Op::Launch { block, .. } if *block == last_block());
    assert_eq!(taken(&log).iter().filter(|op| of_last(op)).count(), 3, "only rows with logits");

    context.clear_kv_cache();
    decode(&mut context, &session, &prompt()[..4], 0, false).unwrap();
    assert_eq!(taken(&log), expected(&launches(4)[..2]));
}

#[test]
fn two_contexts_have_separate_streams() {
    let (tokens, _) = on_the_cpu(256, 2);
    let (first, second) = (session(RouteChoice::Views), session(RouteChoice::Views));
    second.set_caps(Some(&CapSet::new([cap(3, 1, Bound::NONE)]).unwrap())).unwrap();
    let (mut a, log_a) = recorded_context(&first, 256);
    let (mut b, log_b) = recorded_context(&second, 256);
    generate(&mut b, &second, 2);
    assert_eq!(generate(&mut a, &first, 2), tokens);
    let launched = |rows| [Launched { block: 3, rows, caps: 1 }];
    let ops = [expected_first(&launched(prompt().len())), expected(&launched(1))].concat();
    assert_eq!(taken(&log_b), ops);
    assert!(taken(&log_a).iter().all(|op| !matches!(op, Op::Upload(3))));
}

#[test]
fn changed_bounds_are_updated_and_changed_caps_are_uploaded_and_checked_again() {
    let session = session(RouteChoice::Views);
    let (mut context, log) = recorded_context(&session, 256);
    let token = prompt()[0];
    decode(&mut context, &session, &[token], 0, true).unwrap();
    taken(&log);

    session.set_bound(2, Bound::floor(50.0).unwrap()).unwrap();
    session.reset_stats();
    decode(&mut context, &session, &[token], 1, true).unwrap();
    let mut ops = vec![Op::Update(12)];
    ops.extend(expected(&launches(1)));
    assert_eq!(taken(&log), ops);
    assert_eq!((session.stats()[2].rows, session.stats()[2].min_after), (1, 50.0));

    session.update(|settings| {
        settings.tracing = false;
        settings.statistics = false;
    });
    decode(&mut context, &session, &[token], 2, true).unwrap();
    let ops = taken(&log);
    let silent = |op: &Op| !matches!(op, Op::Launch { stats: Some(_), .. } | Op::Fetch(_));
    assert!(ops.iter().all(silent), "{ops:?}");
    assert_eq!(session.stats()[2].rows, 1);

    session.update(|settings| settings.statistics = true);
    session.set_caps(Some(&CapSet::new([cap(12, 9, Bound::floor(1.0).unwrap())]).unwrap())).unwrap();
    decode(&mut context, &session, &[token], 3, true).unwrap();
    let ops = taken(&log);
    assert_eq!(ops.iter().filter(|op| matches!(op, Op::Forget(_))).count(), 3);
    assert_eq!(ops[3..], expected_first(&[Launched { block: 12, rows: 1, caps: 1 }]));

    session.update(|settings| settings.enabled = false);
    decode(&mut context, &session, &[token], 4, true).unwrap();
    assert_eq!(taken(&log), []);
}

#[test]
fn a_gpu_that_differs_in_one_bit_is_refused_by_block_and_row() {
    let session = session(RouteChoice::Views);
    let (mut driver, _) = Recording::new();
    driver.wrong_rows = true;
    let mut context = context_on(driver, &session, 256);
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
    let session = session(RouteChoice::Views);
    let (mut driver, log) = Recording::new();
    driver.holds_nothing = true;
    let mut context = context_on(driver, &session, 256);
    assert_eq!(generate(&mut context, &session, 3), tokens);
    assert_eq!(session.take_trace(), trace);
    assert_eq!(taken(&log), []);
    assert_eq!(session.routes_used(), [RouteUse { device: "CPU".into(), route: Route::HostViews }]);
}

#[test]
fn a_gpu_that_cannot_be_opened_leaves_the_caps_to_the_host() {
    let (tokens, trace) = on_the_cpu(256, 3);
    let session = session(RouteChoice::Views);
    let mut context = context_with(&session, 256, Recording::failing_factory());
    assert_eq!(generate(&mut context, &session, 3), tokens);
    assert_eq!(session.take_trace(), trace);
    assert_eq!(session.routes_used(), [RouteUse { device: "CPU".into(), route: Route::HostViews }]);
}

#[test]
fn a_graph_whose_block_outputs_have_no_rows_runs_untouched() {
    let caps = CapSet::new([cap(last_block(), 1, Bound::floor(9.0).unwrap())]).unwrap();
    let run = |route| {
        let session = session(route);
        session.set_caps(Some(&caps)).unwrap();
        let (mut context, log) = recorded_context(&session, 4);
        decode(&mut context, &session, &prompt()[..6], 0, false).unwrap();
        (session.take_trace(), session.routes_used(), taken(&log))
    };
    let (trace, routes, ops) = run(RouteChoice::Views);
    assert_eq!((&routes[..], &ops[..]), (&[][..], &[][..]));
    assert_eq!(trace, run(RouteChoice::Inserted).0);
    let rows: Vec<_> = trace.iter().map(|trace| (trace.block, trace.rows.len())).collect();
    assert_eq!(rows, [(last_block(), 0); 2]);
}

#[test]
fn an_error_of_the_last_caps_fails_the_next_decode() {
    let session = session(RouteChoice::Views);
    let (mut driver, _) = Recording::new();
    driver.fails = Some(Op::Closed);
    let mut context = context_on(driver, &session, 256);
    decode(&mut context, &session, &prompt(), 0, true).unwrap();
    drop(context);
    let error = session.watch(1, 1, || Ok::<_, HookError>(()));
    assert!(matches!(error, Err(HookError::Device { .. })), "{error:?}");
}

#[test]
fn every_launch_is_between_its_views() {
    let ops = Passes { uids: &[77, 77], ..Passes::default() }.run();
    let seen = views(&ops[1]);
    assert_eq!(seen.iter().map(|v| v.0).collect::<Vec<_>>(), [1, 2, 1]);
    assert!(seen.iter().all(|v| v.1 != 0 && v.1 != 77));
    assert_eq!(seen, views(&ops[0]), "the same graph, the same uids");
    assert_eq!(ops[1], [in_order(&seen), vec![Op::Fetch(2)]].concat());
    let ops = Passes { ends_with_block: true, uids: &[77], ..Passes::default() }.run();
    assert_eq!(views(&ops[0]).iter().map(|v| v.0).collect::<Vec<_>>(), [1, 2], "no empty view");
}

/// A prompt runs another kernel than the decodes after it.
#[test]
fn each_kernel_proves_itself_on_its_first_rows() {
    let mut runner = Runner::with_session(two_blocks(floor(1.0)));
    let [prompt, decode] = [512, 1].map(HandMade::new);
    let mut reads =
        |made: &HandMade| runner.compute(made).into_iter().filter(|op| matches!(op, Op::ReadRows(_))).count();
    assert_eq!(reads(&prompt), 4, "before and after, of two blocks");
    assert_eq!(reads(&decode), 4);
    assert_eq!(reads(&prompt) + reads(&decode), 0);
    runner.close();
    assert_eq!(runner.rows_counted(), [2 * 513; 2]);
}

#[test]
fn a_decode_kernel_that_is_wrong_is_found_after_a_prompt() {
    let (mut driver, log) = Recording::new();
    driver.wrong_kernel = Some("direct");
    let mut runner = Runner::new(driver, log, two_blocks(floor(1.0)));
    let [prompt, decode] = [512, 1].map(HandMade::new);
    assert_eq!(runner.compute_while(&prompt.graph, &prompt.outputs, |_| {}), SUCCESS);
    assert_eq!(runner.compute_while(&decode.graph, &decode.outputs, |_| {}), FAILED);
    let error = runner.session.watch(1, 1, || Ok::<_, HookError>(()));
    assert!(matches!(error, Err(HookError::DeviceDiffers { block: 0, .. })), "{error:?}");
}

/// A plan is kept while the graph is the same, which its uid alone does not say.
#[test]
fn rows_that_move_under_a_known_uid_are_capped_where_they_are() {
    for capture in [false, true] {
        let mut runner = Runner::with_session(two_blocks(floor(1.0)));
        runner.capture = capture;
        let made = HandMade::new(1).with_uid(7);
        let ops: Vec<_> = (0..4).flat_map(|_| runner.compute(&made)).collect();
        assert_eq!(ops.contains(&Op::Replay(0)), capture);
        let mut elsewhere = vec![0.0_f32; 4];
        // SAFETY: the tensor of a block output, whose new memory outlives the pass.
        unsafe { (*made.outputs[1].tensor.raw()).data = elsewhere.as_mut_ptr().cast() };
        let ops = runner.compute(&made);
        assert_eq!(ops, eager(&ops), "no replay at the old address");
        assert!(elsewhere.iter().all(|&value| value > 0.0), "{elsewhere:?}");
        runner.close();
        assert_eq!(runner.rows_counted(), [5, 5]);
    }
}

/// After a failed update nothing on the GPU is used any more.
#[test]
fn a_failed_update_discards_tables_and_graphs() {
    let (mut driver, log) = Recording::new();
    driver.fails = Some(Op::Update(1));
    let mut runner = Runner::new(driver, log, two_blocks(floor(1.0)));
    let made = HandMade::new(1).with_uid(7);
    let ops: Vec<_> = (0..3).flat_map(|_| runner.compute(&made)).collect();
    assert!(ops.contains(&Op::Replay(0)));
    for cap in [0, 1] {
        runner.session.set_bound(cap, floor(2.0)).unwrap();
    }
    assert_eq!(runner.compute_while(&made.graph, &made.outputs, |_| {}), FAILED);
    let mut ops = taken(&runner.log);
    ops[3..].sort_by_key(|op| format!("{op:?}"));
    assert_eq!(ops, [Op::Update(0), Op::Update(1), Op::Discard, Op::Forget(0), Op::Forget(1)]);
    assert!(runner.session.watch(1, 1, || Ok::<_, HookError>(())).is_err());

    // New tables, compared with the CPU, and a new capture after the second graph.
    let ops = runner.compute(&made);
    assert_eq!(ops.iter().filter(|op| matches!(op, Op::Upload(_))).count(), 2);
    assert_eq!(ops.iter().filter(|op| matches!(op, Op::ReadRows(_))).count(), 4);
    assert!(!runner.compute(&made).contains(&Op::BeginCapture), "it warms up again");
    assert!(runner.compute(&made).contains(&Op::Instantiate(0)));
}

#[test]
fn a_decode_on_the_cpu_backend_takes_no_gpu_route_by_itself() {
    let session = session(RouteChoice::Auto);
    let (mut context, log) = recorded_context(&session, 256);
    decode(&mut context, &session, &prompt(), 0, true).unwrap();
    assert_eq!(taken(&log), []);
    assert!(took(&session, Route::Inserted));
}
