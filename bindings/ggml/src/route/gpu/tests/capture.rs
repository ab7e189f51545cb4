//! Captured graphs: when they are captured and replayed, and what happens on failures.

use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use super::super::capture::cache::{Action, GraphCache, GraphKey};
use super::super::capture::digest::GraphDigests;
use super::hand_made::{HandMade, Passes, Runner, eager, floor, in_order, two_blocks, views};
use super::model::{LOADED, context, decode, prompt, session};
use super::recording::{Op, taken};
use crate::hook::free_between_captures;
use crate::host::{Graph, SUCCESS};
use crate::{ComputeError, ComputeHook, GraphCall, Hook, RouteChoice, Session};

/// Notes uid and content of each graph that llama.cpp computes.
#[derive(Debug, Default)]
struct NotedGraphs(Mutex<Vec<(u64, Option<u64>)>>);

impl ComputeHook for NotedGraphs {
    fn describe(&self) -> &'static str {
        "graphs are noted"
    }

    fn compute(&self, call: &mut GraphCall<'_>) -> Result<(), ComputeError> {
        let content = GraphDigests::default().of(call.graph);
        self.0.lock().unwrap().push((call.graph.uid(), content));
        call.compute_graph()
    }

    fn close(&self, _: *mut c_void) {}
}

/// Returns the steps of the cache for the graphs that llama.cpp computes for batches of these sizes, and
/// their uids.
///
/// One letter per graph: `e` for eager, `C` for captured and then replayed, `.` for replayed.
fn steps(batches: &[usize]) -> (String, Vec<u64>) {
    let session = session(RouteChoice::Views);
    session.update(|settings| (settings.statistics, settings.tracing) = (false, false));
    let noted = Arc::new(NotedGraphs::default());
    session.set_compute_hook(Some(Arc::clone(&noted) as Arc<dyn ComputeHook>));
    let mut context = context(&session, 256);
    let token = prompt()[0];
    let mut position = 0;
    for &tokens in batches {
        decode(&mut context, &session, &vec![token; tokens], position, true).unwrap();
        position += tokens;
    }
    let mut cache = GraphCache::default();
    let (mut steps, mut uids) = (String::new(), Vec::new());
    for &(uid, content) in &*noted.0.lock().unwrap() {
        assert!(uid != 0 && content.is_some());
        uids.push(uid);
        steps.push(match cache.begin(&GraphKey { content, launches: 1, blocker: None }) {
            Action::Eager => 'e',
            Action::Replay(_) => '.',
            Action::BeginCapture => {
                cache.capture_ended(Ok(()));
                assert!(matches!(cache.instantiated(Ok(())), Action::Replay(_)));
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
    let [prompt, until_256, after_256] = ["e", "eC......", "eC......"];
    let [second_prompt, after_it] = ["e", "...."];
    assert_eq!(steps(&batches).0, [prompt, until_256, after_256, second_prompt, after_it].concat());
}

/// llama.cpp rebuilds a graph whenever the batch has another size than the last. The rebuilt graph has a new
/// uid, but the same content at the same addresses.
#[test]
fn batch_sizes_in_turn_are_captured_once_each() {
    let batches = [&[5][..], &[1, 2].repeat(6), &[4, 1, 2, 4, 2, 4, 1]].concat();
    let (steps, mut uids) = steps(&batches);
    let [prompt, of_1_and_2_in_turn, of_4_too] = ["e", "eeCC........", "e..C..."];
    assert_eq!(steps, [prompt, of_1_and_2_in_turn, of_4_too].concat());
    uids.dedup();
    assert_eq!(uids.len(), batches.len(), "each graph has another uid than the one before");
}

#[test]
fn a_graph_is_captured_when_it_comes_again_and_then_replayed() {
    // The first pass compares rows with the CPU's, the second warms up, the third captures.
    let ops = Passes { capture: true, uids: &[7, 7, 7, 7, 8, 19, 19, 19, 8], ..Passes::default() }.run();
    let replay = |slot| [Op::ToCapStream(3), Op::Replay(slot), Op::ToBackend(3), Op::Fetch(2)].to_vec();
    let captured = |ops: &[Op], slot| {
        let begin = [Op::BeginCapture, Op::ToBackend(2)];
        let end = [Op::ToCapStream(2), Op::EndCapture, Op::Instantiate(slot)];
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

/// Nine graphs, one after the other. The last takes the slot of the first, which has become stale.
#[test]
fn a_stale_executable_graph_is_updated_to_a_new_graph() {
    let mut uids = vec![1];
    uids.extend((0..8).flat_map(|graph| [10 * graph + 1; 2]));
    uids.extend([71; 64]);
    let first = uids.len();
    uids.extend([81, 82, 83, 1]);
    for fails in [None, Some(Op::UpdateGraph(0))] {
        let ops = Passes { capture: true, fails: fails.clone(), uids: &uids, ..Passes::default() }.run();
        let is_eager = |ops: &[Op]| !views(ops).is_empty() && !ops.contains(&Op::BeginCapture);
        assert!(ops[first - 64..first].iter().all(|ops| ops.contains(&Op::Replay(7))));
        assert!(is_eager(&ops[first]));
        let is_step =
            |op: &&Op| matches!(op, Op::EndCapture | Op::UpdateGraph(_) | Op::Instantiate(_) | Op::Replay(_));
        let mut expected = vec![Op::EndCapture, Op::UpdateGraph(0)];
        expected.extend(fails.is_some().then_some(Op::Instantiate(0)));
        expected.push(Op::Replay(0));
        assert_eq!(ops[first + 1].iter().filter(is_step).cloned().collect::<Vec<_>>(), expected);
        assert!(ops[first + 2].contains(&Op::Replay(0)));
        assert!(is_eager(&ops[first + 3]), "the first graph was evicted");
    }
}

/// A panic must not leave ggml's stream in a capture, because ggml aborts at its next use.
#[test]
fn a_capture_is_ended_when_something_in_it_panics() {
    let mut runner = Runner::with_session(two_blocks(floor(1.0)));
    let made = HandMade::new(1).with_uid(7);
    (0..2).for_each(|_| drop(runner.compute(&made)));
    let panicking = || runner.compute_while(&made.graph, &made.outputs, |_| panic!("as the test asked"));
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    let ops = taken(&runner.log);
    assert_eq!((&ops[0], ops.last()), (&Op::BeginCapture, Some(&Op::EndCapture)));
    // From then on eager.
    for _ in 0..3 {
        let ops = runner.compute(&made);
        assert_eq!(ops, eager(&ops));
    }
}

/// A backend of the CPU, to be freed by another thread.
struct Other(usize);

impl Other {
    fn new() -> Self {
        // SAFETY: the CPU device makes a backend.
        let backend = unsafe {
            let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
            sys::ggml_backend_dev_init(device, std::ptr::null())
        };
        Self(backend.expose_provenance())
    }

    fn backend(&self) -> sys::ggml_backend_t {
        std::ptr::with_exposed_provenance_mut(self.0)
    }
}

fn is_freed_after_a_capture(other: Other, session: Session) {
    let mut runner = Runner::with_session(session);
    let made = HandMade::new(1).with_uid(7);
    (0..2).for_each(|_| drop(runner.compute(&made)));
    let (starting, starts) = mpsc::channel();
    let freed = Arc::new(AtomicBool::new(false));
    let (freeing, other) = (RefCell::new(None), RefCell::new(Some(other)));
    let in_capture = |_: &Graph| {
        freeing.borrow_mut().get_or_insert_with(|| {
            let (starting, freed) = (starting.clone(), Arc::clone(&freed));
            let other = other.take().unwrap();
            let thread = std::thread::spawn(move || {
                starting.send(()).unwrap();
                // SAFETY: a live backend, freed once.
                unsafe { sys::ggml_backend_free(other.backend()) };
                freed.store(true, Ordering::Release);
            });
            starts.recv().unwrap();
            thread
        });
        // Time enough for a free that does not wait. One that waits makes no difference.
        std::thread::sleep(Duration::from_millis(50));
        assert!(!freed.load(Ordering::Acquire), "freed within the capture");
    };
    assert_eq!(runner.compute_while(&made.graph, &made.outputs, in_capture), SUCCESS);
    assert!(taken(&runner.log).contains(&Op::EndCapture));
    freeing.into_inner().unwrap().join().unwrap();
    assert!(freed.load(Ordering::Acquire));
}

#[test]
fn a_backend_is_not_freed_while_another_captures() {
    let session = two_blocks(floor(1.0));
    let hook = Hook::install().unwrap();
    LazyLock::force(&LOADED);
    let other = hook.bind(&session, Other::new);
    assert!(session.is_bound());
    is_freed_after_a_capture(other, session);
}

/// A context without caps on another thread, e.g. of an embedding model.
#[test]
fn nor_is_one_that_no_session_is_bound_to() {
    LazyLock::force(&LOADED);
    let _hook = Hook::install().unwrap();
    let other = Other::new();
    // SAFETY: the backend was just made, and the hook has measured the layout. On a GPU the hook does this.
    unsafe { free_between_captures(other.backend()) };
    is_freed_after_a_capture(other, two_blocks(floor(1.0)));
}

/// While ggml's own graphs are off, ggml would launch a part without capped blocks node by node.
#[test]
fn a_graph_without_block_outputs_is_captured_too() {
    let mut runner = Runner::with_session(two_blocks(floor(1.0)));
    let mut made = HandMade::new(1).with_uid(7);
    made.outputs.clear();
    assert!(matches!(runner.compute(&made)[..], [Op::View { nodes: 4, .. }]));
    let views = runner.compute(&made);
    assert_eq!(views.iter().filter(|op| matches!(op, Op::View { nodes: 4, .. })).count(), 1);
    assert_eq!(runner.compute(&made), [Op::ToCapStream(1), Op::Replay(0), Op::ToBackend(1)]);
    assert_eq!(runner.rows_counted(), [0, 0]);
}

#[test]
fn graphs_of_many_rows_are_not_captured() {
    for (rows, captured) in [(128, true), (129, false)] {
        let ops = Passes { rows, capture: true, uids: &[7; 4], ..Passes::default() }.run();
        assert_eq!(ops.concat().contains(&Op::BeginCapture), captured, "{rows} rows");
    }
}

#[test]
fn a_graph_that_cannot_be_captured_runs_eagerly_in_the_same_pass() {
    for fails in [Op::BeginCapture, Op::EndCapture, Op::Instantiate(0)] {
        let ops =
            Passes { capture: true, fails: Some(fails.clone()), uids: &[7; 5], ..Passes::default() }.run();
        assert!(ops[2].contains(&fails));
        let eager = eager(&ops[1]);
        assert!(ops[2].ends_with(&eager), "{fails:?}: {:?}", ops[2]);
        assert_eq!((&ops[3], &ops[4]), (&eager, &eager), "{fails:?}");
    }
}
