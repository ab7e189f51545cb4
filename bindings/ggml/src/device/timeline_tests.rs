//! Times of graphs with the recording driver, whose stamps take one microsecond and whose launches take ten: a stamp at
//! another place gives another time.

use super::recording::Op;
use super::tests::{decode, expected, on_device, passes_timed, prompt, session, shape, taken};
use crate::{BlockTiming, Engine, GraphTimeline, HookError, Tap};

/// The log of a timed graph: the stamps where the module's picture has them.
fn stamped(ops: Vec<Op>, first: usize) -> Vec<Op> {
    let mut all = vec![Op::StampOnBackend(first)];
    let mut next = first + 1;
    for op in ops {
        let (before, after) = match op {
            Op::RecordOnBackend(_) => (Some(Op::StampOnBackend(next)), None),
            Op::WaitOnOurs(_) => (None, Some(Op::StampOnOurs(next))),
            Op::RecordOnOurs(_) => (Some(Op::StampOnOurs(next)), None),
            Op::WaitOnBackend(_) => (None, Some(Op::StampOnBackend(next))),
            Op::Fetch(_) => (Some(Op::StampOnBackend(next)), None),
            _ => (None, None),
        };
        next += usize::from(before.is_some() || after.is_some());
        all.extend(before.into_iter().chain([op]).chain(after));
    }
    all
}

fn timing(block: usize, rows: usize) -> BlockTiming {
    BlockTiming { block, rows, handover: 1.0, launch: 11.0, handback: 1.0 }
}

#[test]
fn decodes_are_timed_block_by_block_from_when_it_is_asked_for() {
    let session = session(Engine::Views);
    let (mut context, log) = on_device(&session, 256);
    let (prompt, last) = (prompt(), shape().blocks - 1);
    let launches = [(0, 1, 1), (12, 1, 2), (last, 1, 1)];
    let mut position = 0;
    let mut step = |tokens: &[_]| {
        decode(&mut context, &session, tokens, position, true).unwrap();
        position += tokens.len();
        taken(&log)
    };
    // The rows compared on first use have the host wait: not timed.
    session.set_timeline(true);
    step(&prompt);
    assert!(matches!(session.take_timeline(), Err(HookError::NoTimeline)));

    let token = &prompt[..1];
    assert_eq!(step(token), stamped(expected(&launches, false), 0));
    assert_eq!(step(token), stamped(expected(&launches, false), 14));
    let graph = GraphTimeline {
        device: "recording".into(),
        // 13 stamps after the first, three launches.
        micros: 43.0,
        replayed: false,
        blocks: vec![timing(0, 1), timing(12, 1), timing(last, 1)],
    };
    assert_eq!(session.take_timeline().unwrap(), [graph.clone(), graph.clone()]);
    assert_eq!(step(token), stamped(expected(&launches, false), 0), "stamps are used again");
    assert_eq!(session.take_timeline().unwrap(), std::slice::from_ref(&graph));

    // More graphs than are kept are read in between.
    (0..70).for_each(|_| drop(step(token)));
    assert_eq!(session.take_timeline().unwrap(), vec![graph; 70]);

    let see = std::sync::Arc::new(|_, _: crate::TapRows<'_>| {});
    session.set_tap(Some(Tap { blocks: vec![12], see })).unwrap();
    step(token);
    assert!(matches!(session.take_timeline(), Err(HookError::NoTimeline)), "a tap has the host wait");
    session.set_tap(None).unwrap();
    session.set_timeline(false);
    assert_eq!(step(token), expected(&launches, false));
    assert!(matches!(session.take_timeline(), Err(HookError::NoTimeline)));
}

#[test]
fn a_replayed_graph_is_timed_as_a_whole_and_a_capture_not_at_all() {
    let (ops, times) = passes_timed(true, &[7; 4]);
    let stamps =
        |ops: &[Op]| ops.iter().filter(|op| matches!(op, Op::StampOnBackend(_) | Op::StampOnOurs(_))).count();
    assert_eq!(ops.iter().map(|ops| stamps(ops)).collect::<Vec<_>>(), [0, 10, 2, 2]);
    assert_eq!(times.iter().map(|graph| graph.replayed).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(times[0].blocks, [timing(0, 1), timing(1, 1)]);
    assert_eq!(times[2].blocks, []);
    let replay = ops[3].iter().position(|op| matches!(op, Op::Replay(_))).unwrap();
    let at: Vec<_> = ops[3].iter().map(|op| matches!(op, Op::StampOnBackend(_))).collect();
    assert!(at[0] && at[replay + 3], "{:?}", ops[3]);
    // The third pass captures first: its stamps come after that.
    let captured = ops[2].iter().position(|op| matches!(op, Op::Instantiate(_))).unwrap();
    assert_eq!(stamps(&ops[2][..captured]), 0);
}

#[test]
fn the_cpu_has_no_timeline_and_says_so() {
    let session = session(Engine::Auto);
    session.set_timeline(true);
    let mut context = super::tests::context(&session, 256);
    decode(&mut context, &session, &prompt(), 0, true).unwrap();
    let refused = session.take_timeline().unwrap_err();
    assert!(refused.to_string().contains("no GPU timeline"), "{refused}");
}
