//! Captures while ggml's CUDA backend makes graphs of its own, against a model of when it does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use llama_cpp_sys_2 as sys;

use super::hand_made::{HandMade, Runner, floor, two_blocks};
use super::model::{context, generate, session};
use super::recording::{Op, taken};
use crate::host::{Graph, OwnGraphs, SUCCESS};
use crate::{ComputeError, ComputeHook, GraphCall, RouteChoice};

/// What ggml's CUDA backend does with a graph.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ran {
    /// It launches node by node.
    Directly,
    /// It begins a capture, which aborts the process inside of another one.
    Captured,
    /// It launches its own CUDA graph.
    Replayed,
}

/// The decisions of `ggml_backend_cuda_graph_compute` in ggml 0.26, by the address of a graph's first node.
#[derive(Debug, Default)]
struct Ggml(HashMap<usize, Known>);

#[derive(Debug, Default)]
struct Known {
    uid: u64,
    nodes: Vec<Vec<u8>>,
    warm: bool,
    captured: bool,
}

impl Ggml {
    fn compute(&mut self, graph: &Graph) -> Ran {
        let known = self.0.entry(graph.nodes()[0].raw() as usize).or_default();
        if known.differs(graph) {
            known.warm = false;
            return Ran::Directly;
        }
        let ran = if known.warm && known.captured { Ran::Replayed } else { Ran::Captured };
        (known.warm, known.captured) = (true, true);
        ran
    }
}

impl Known {
    /// `ggml_cuda_graph_update_required`
    fn differs(&mut self, graph: &Graph) -> bool {
        if graph.uid() != 0 && graph.uid() == self.uid {
            assert_eq!(self.nodes.len(), graph.nodes().len(), "ggml aborts");
            return false;
        }
        self.uid = graph.uid();
        let nodes: Vec<_> = graph.nodes().iter().map(|node| bytes(node.raw())).collect();
        let differs = nodes != self.nodes;
        self.nodes = nodes;
        differs
    }
}

/// Returns what ggml compares of a node: all of it, and addresses and shapes of its sources.
fn bytes(node: *const sys::ggml_tensor) -> Vec<u8> {
    // SAFETY: a valid tensor, all of whose bytes ggml initialises, and its sources.
    unsafe {
        let mut bytes = std::slice::from_raw_parts(node.cast::<u8>(), size_of::<sys::ggml_tensor>()).to_vec();
        for source in (*node).src.iter().filter_map(|source| source.as_ref()) {
            bytes.extend((source.data as usize).to_ne_bytes());
            bytes.extend(source.ne.iter().flat_map(|n| n.to_ne_bytes()));
            bytes.extend(source.nb.iter().flat_map(|n| n.to_ne_bytes()));
        }
        bytes
    }
}

/// The same graph again and again, two graphs in turn at the same addresses, and graphs that come back.
#[test]
fn ggml_begins_no_capture_within_one_of_ours() {
    let in_turn = [7, 17].repeat(6);
    for uids in [&[7; 9][..], &in_turn, &[7, 7, 17, 17, 7, 7, 17, 8, 18, 9, 9, 19, 29, 39, 7]] {
        let mut runner = Runner::with_session(two_blocks(floor(1.0)));
        runner.own_graphs = OwnGraphs::NoneOfNewGraphs;
        let made = HandMade::new(1);
        let ggml = RefCell::new(Ggml::default());
        let mut captures = 0;
        for (pass, &uid) in uids.iter().enumerate() {
            made.set_uid(uid);
            let ran = RefCell::new(Vec::new());
            let before: Vec<_> = made.graph.nodes().iter().map(|node| bytes(node.raw())).collect();
            let in_view = |view: &Graph| ran.borrow_mut().push(ggml.borrow_mut().compute(view));
            assert_eq!(runner.compute_while(&made.graph, &made.outputs, in_view), SUCCESS);
            let after: Vec<_> = made.graph.nodes().iter().map(|node| bytes(node.raw())).collect();
            assert_eq!(after, before, "the nodes are restored");
            if taken(&runner.log).contains(&Op::BeginCapture) {
                captures += 1;
                assert_eq!(*ran.borrow(), [Ran::Directly; 3], "pass {pass} of {uids:?}");
            }
        }
        assert!(captures > 0, "{uids:?}");
    }
}

/// Gives ggml the views of llama.cpp's own graphs, with their own uids and as new ones.
#[derive(Debug, Default)]
struct ViewsAsNew(Mutex<(Ggml, Vec<Ran>)>);

impl ComputeHook for ViewsAsNew {
    fn describe(&self) -> &'static str {
        "views of graphs look new"
    }

    fn compute(&self, call: &mut GraphCall<'_>) -> Result<(), ComputeError> {
        let (ggml, known) = &mut *self.0.lock().unwrap();
        let (graph, nodes) = (call.graph, call.graph.nodes().len());
        for view in [0..nodes / 2, nodes / 2..nodes] {
            known.push(graph.with_view(view.clone(), || ggml.compute(graph)));
            // SAFETY: the linked version has padding there.
            let mut new = || unsafe { graph.with_new_view(view.clone(), || ggml.compute(graph)) };
            assert_eq!([new(), new(), new()], [Ran::Directly; 3]);
            for _ in 0..3 {
                known.push(graph.with_view(view.clone(), || ggml.compute(graph)));
            }
        }
        call.compute_graph()
    }

    fn close(&self, _: *mut c_void) {}
}

#[test]
fn graphs_of_a_real_generation_look_new_to_ggml() {
    let session = session(RouteChoice::Views);
    session.update(|settings| (settings.statistics, settings.tracing) = (false, false));
    let hook = Arc::new(ViewsAsNew::default());
    session.set_compute_hook(Some(Arc::clone(&hook) as Arc<dyn ComputeHook>));
    let tokens = generate(&mut context(&session, 256), &session, 6);
    let known = &hook.0.lock().unwrap().1;
    // After new views a known one differs, and is then captured and replayed, as without them.
    let per_view = [Ran::Directly, Ran::Captured, Ran::Replayed];
    assert!(known.chunks(4).all(|view| view[1..] == per_view), "{known:?}");
    assert_eq!(known.len(), tokens.len() * 2 * 4);
}
