//! A hand-made graph of two blocks, computed by a GPU route without llama.cpp.

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use llama_cpp_sys_2 as sys;

use super::super::GpuRoute;
use super::recording::{Log, Op, Recording, taken};
use crate::backend::record_outcome;
use crate::graph::find::Output;
use crate::host::{Arena, Graph, OwnGraphs, SUCCESS, Status, Tensor};
use crate::profile::RowProfiles;
use crate::report::GraphCounts;
use crate::route::GraphCall;
use crate::{ModelShape, Session};

/// A session of a model with two blocks of width 4, and one cap on each block.
pub(super) fn two_blocks(bound: Bound) -> Session {
    let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 2, width: 4 });
    let axis = Axis::from_direction(&[1.0, 2.0, 3.0, 4.0]).unwrap();
    let at = |block| BlockCap { block, cap: Cap::new(axis.clone(), bound) };
    session.set_caps(Some(&CapSet::new([at(0), at(1)]).unwrap())).unwrap();
    session
}

pub(super) fn floor(lo: f32) -> Bound {
    Bound::floor(lo).unwrap()
}

/// A GPU route with a recording driver, and the session that its outcomes are recorded in.
pub(super) struct Runner {
    pub(super) route: GpuRoute,
    pub(super) session: Session,
    /// Calls of the driver, and the graphs that ggml was given.
    pub(super) log: Log,
    /// Whether graphs may be captured.
    pub(super) capture: bool,
    /// The profiles of the rows.
    pub(super) profiles: RowProfiles,
    pub(super) own_graphs: OwnGraphs,
}

impl Runner {
    pub(super) fn new(driver: Recording, log: Log, session: Session) -> Self {
        let route = GpuRoute::new("test".into(), Box::new(driver));
        Self {
            route,
            session,
            log,
            capture: true,
            profiles: RowProfiles::First(None),
            own_graphs: OwnGraphs::Off,
        }
    }

    pub(super) fn with_session(session: Session) -> Self {
        let (driver, log) = Recording::new();
        Self::new(driver, log, session)
    }

    /// Computes a graph. `in_view` is called in each view.
    pub(super) fn compute_while(
        &mut self,
        graph: &Graph,
        outputs: &[Output],
        in_view: impl Fn(&Graph),
    ) -> Status {
        let log = Log::clone(&self.log);
        let compute = |view: &Graph| {
            log.lock().unwrap().push(Op::View { nodes: view.nodes().len(), uid: view.uid() });
            in_view(view);
            SUCCESS
        };
        let state = &self.session.0;
        let config = state.config();
        let mut call = GraphCall {
            graph,
            outputs,
            backend: std::ptr::null_mut(),
            device: "test",
            number: state.record.next_graph(),
            width: state.model.width,
            config: &config,
            profiles: &self.profiles,
            staging: &mut Vec::new(),
            compute: &compute,
            own_graphs: self.own_graphs,
            capturing: false,
        };
        let outcome = self.route.compute(&mut call, self.capture);
        record_outcome(&state.record, "test", &call, outcome)
    }

    /// Computes a graph, and returns the log.
    pub(super) fn compute(&mut self, made: &HandMade) -> Vec<Op> {
        assert_eq!(self.compute_while(&made.graph, &made.outputs, |_| {}), SUCCESS);
        taken(&self.log)
    }

    /// Closes the route, and records the last statistics.
    pub(super) fn close(&mut self) {
        self.session.0.record.add_arrived(self.route.close());
    }

    /// Rows of each cap in the statistics.
    pub(super) fn rows_counted(&self) -> Vec<u64> {
        self.session.stats().iter().map(|stats| stats.rows).collect()
    }
}

/// A graph of `l_out-0`, one more node, `l_out-1`, and one more node unless it ends there.
pub(super) struct HandMade {
    pub(super) graph: Graph,
    pub(super) outputs: Vec<Output>,
    _arena: Arena,
    _data: [Vec<f32>; 2],
}

impl HandMade {
    pub(super) fn new(rows: usize) -> Self {
        Self::build(rows, false)
    }

    fn build(rows: usize, ends_with_block: bool) -> Self {
        let arena = Arena::new(16).unwrap();
        let mut data = [0, 1].map(|_| vec![0.5_f32; 4 * rows]);
        // SAFETY: tensors and graph live in the arena. Only the block outputs get data, which lives as long.
        let (graph, outputs) = unsafe {
            let c = arena.context();
            let graph = sys::ggml_new_graph_custom(c, 8, false);
            let leaf = || sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, 4, rows as i64);
            let first = sys::ggml_add(c, leaf(), leaf());
            let between = sys::ggml_add(c, first, leaf());
            let second = sys::ggml_add(c, between, leaf());
            let end = if ends_with_block { second } else { sys::ggml_add(c, second, leaf()) };
            sys::ggml_build_forward_expand(graph, end);
            (*first).data = data[0].as_mut_ptr().cast();
            (*second).data = data[1].as_mut_ptr().cast();
            let output = |(node, block, raw)| Output { node, block, tensor: Tensor::new(raw).unwrap() };
            (Graph::new(graph), [(0, 0, first), (2, 1, second)].map(output).to_vec())
        };
        Self { graph, outputs, _arena: arena, _data: data }
    }

    /// Sets the uid. Another number of tens makes it another graph by its content.
    pub(super) fn set_uid(&self, uid: u64) {
        // SAFETY: the graph and its node are the test's alone.
        unsafe {
            self.graph.set_uid(uid);
            (*self.graph.nodes()[1].raw()).op_params[0] = (uid / 10) as i32;
        }
    }

    pub(super) fn with_uid(self, uid: u64) -> Self {
        self.set_uid(uid);
        self
    }
}

/// A hand-made graph that is computed once per uid.
pub(super) struct Passes<'a> {
    pub(super) rows: usize,
    pub(super) ends_with_block: bool,
    pub(super) capture: bool,
    /// The driver's call that fails.
    pub(super) fails: Option<Op>,
    pub(super) uids: &'a [u64],
}

impl Default for Passes<'_> {
    fn default() -> Self {
        Self { rows: 1, ends_with_block: false, capture: false, fails: None, uids: &[] }
    }
}

impl Passes<'_> {
    /// Computes the passes, and returns the log of each.
    pub(super) fn run(self) -> Vec<Vec<Op>> {
        let (mut driver, log) = Recording::new();
        driver.fails = self.fails;
        let mut runner = Runner::new(driver, log, two_blocks(floor(1.0)));
        runner.capture = self.capture;
        let made = HandMade::build(self.rows, self.ends_with_block);
        let pass = |&uid: &u64| {
            made.set_uid(uid);
            let ops = runner.compute(&made);
            let nodes = if self.ends_with_block { 3 } else { 4 };
            assert_eq!((made.graph.uid(), made.graph.nodes().len()), (uid, nodes), "the graph is restored");
            ops
        };
        let ops: Vec<_> = self.uids.iter().map(pass).collect();
        let GraphCounts { replays, eager, .. } = runner.route.capturer.counts();
        assert_eq!(replays + eager, if self.capture { self.uids.len() as u64 } else { 0 });
        runner.close();
        assert_eq!(runner.rows_counted(), [(self.rows * self.uids.len()) as u64; 2]);
        ops
    }
}

/// Returns nodes and uid of each view in a log.
pub(super) fn views(ops: &[Op]) -> Vec<(usize, u64)> {
    let view = |op: &Op| match op {
        Op::View { nodes, uid } => Some((*nodes, *uid)),
        _ => None,
    };
    ops.iter().filter_map(view).collect()
}

/// Returns the views of a log with the launches of two blocks of one row between them.
pub(super) fn in_order(views: &[(usize, u64)]) -> Vec<Op> {
    let mut ops = Vec::new();
    for (pair, &(nodes, uid)) in views.iter().enumerate() {
        ops.push(Op::View { nodes, uid });
        if pair < 2 {
            ops.push(Op::ToCapStream(pair));
            ops.push(Op::Launch { block: pair, rows: 1, stats: Some(pair) });
            ops.push(Op::ToBackend(pair));
        }
    }
    ops
}

/// Returns the log of an eager graph with the views of `ops`.
pub(super) fn eager(ops: &[Op]) -> Vec<Op> {
    [in_order(&views(ops)), vec![Op::Fetch(2)]].concat()
}
