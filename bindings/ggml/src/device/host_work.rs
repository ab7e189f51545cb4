//! How long the hook keeps the host per token, apart from ggml and the driver. Nothing is asserted:
//!
//! ```text
//! cargo test -p axiscap-ggml --release --lib host_work -- --ignored --nocapture
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use llama_cpp_sys_2 as sys;

use super::recording::Recording;
use super::{DevicePath, Pass};
use crate::find::Finder;
use crate::graph::Graph;
use crate::layout::{Arena, Layout};
use crate::{ModelShape, Session};

const WIDTH: usize = 4;
const BLOCKS: usize = 8;
const TOKENS: usize = 20_000;

/// A graph of this many additions, each of the last result and one and the same leaf, with these block outputs at equal
/// distances.
fn graph(arena: &Arena, nodes: usize, blocks: std::ops::Range<usize>, uid: u64, data: &mut [f32]) -> Graph {
    // SAFETY: everything lives in the arena; the nodes' memory outlives the test's passes, which compute nothing.
    unsafe {
        let c = arena.context();
        let raw = sys::ggml_new_graph_custom(c, nodes + 8, false);
        let leaf = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, WIDTH as i64, 1);
        let mut sum = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, WIDTH as i64, 1);
        for _ in 0..nodes {
            sum = sys::ggml_add(c, sum, leaf);
            (*sum).data = data.as_mut_ptr().cast();
        }
        sys::ggml_build_forward_expand(raw, sum);
        let layout = Layout::probe().unwrap();
        let graph = Graph::new(raw, layout);
        for (i, &node) in graph.nodes().iter().enumerate() {
            let name = format!("attn_norm-{i}\0");
            sys::ggml_set_name(node, name.as_ptr().cast());
        }
        let count = blocks.len();
        for (i, block) in blocks.enumerate() {
            let name = format!("l_out-{block}\0");
            sys::ggml_set_name(graph.nodes()[(i + 1) * nodes / count - 1], name.as_ptr().cast());
        }
        raw.byte_add(layout.graph_uid).cast::<u64>().write(uid);
        graph
    }
}

/// Microseconds per token of these graphs.
fn micros(parts: usize, nodes: usize, one_graph: bool) -> f64 {
    let mut data = vec![0.5; WIDTH];
    let graphs: Vec<_> = (0..parts)
        .map(|part| {
            let arena = Arena::with_graph(nodes + 8, nodes + 8).unwrap();
            let blocks = if parts == 1 { 0..BLOCKS } else { part.min(BLOCKS)..(part + 1).min(BLOCKS) };
            let graph = graph(&arena, nodes, blocks, 100 + part as u64, &mut data);
            (arena, graph)
        })
        .collect();
    let shape = ModelShape { architecture: "llama".into(), blocks: BLOCKS, width: WIDTH };
    let session = Session::new(shape);
    let axis = Axis::from_direction(&[1.0, 2.0, 3.0, 4.0]).unwrap();
    let at = |block| BlockCap { block, cap: Cap::new(axis.clone(), Bound::NONE) };
    session.set_caps(Some(&CapSet::new((0..BLOCKS).map(at)).unwrap())).unwrap();
    let (driver, _log) = Recording::new();
    let quiet = Arc::clone(&driver.quiet);
    let mut path = DevicePath::new("test".into(), Box::new(driver));
    let mut finder = Finder::default();
    let mut token = || {
        for (_, graph) in &graphs {
            let config = session.0.config();
            let outputs = finder.find(graph, config.wanted(WIDTH).unwrap()).unwrap();
            if outputs.is_empty() && !one_graph {
                continue;
            }
            let status = path.compute(Pass {
                graph,
                outputs: &outputs,
                backend: std::ptr::null_mut(),
                staging: &mut Vec::new(),
                config: &config,
                session: &session.0,
                compute: &|_| sys::GGML_STATUS_SUCCESS,
                one_graph,
            });
            assert_eq!(status, sys::GGML_STATUS_SUCCESS);
        }
    };
    (0..10).for_each(|_| token());
    quiet.store(true, Ordering::Relaxed);
    let begin = Instant::now();
    (0..TOKENS).for_each(|_| token());
    begin.elapsed().as_secs_f64() * 1e6 / TOKENS as f64
}

#[test]
#[ignore = "prints times, checks nothing"]
fn host_work_per_token() {
    for (parts, nodes) in [(1, 1000), (8, 125), (40, 25)] {
        for one_graph in [false, true] {
            let best = (0..5).map(|_| micros(parts, nodes, one_graph)).fold(f64::INFINITY, f64::min);
            println!(
                "{parts} graphs of {nodes} nodes, {BLOCKS} blocks, one graph {one_graph}: {best:.2} us per token"
            );
        }
    }
}
