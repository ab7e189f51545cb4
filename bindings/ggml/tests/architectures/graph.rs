//! The graph of a decode, as llama.cpp's evaluation callback shows it.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, c_void};

use llama_cpp_sys_2 as sys;

/// A node of a graph.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) address: usize,
    pub(crate) name: String,
    pub(crate) op: String,
    pub(crate) shape: [i64; 4],
    /// Nodes and leaves that it reads.
    reads: Vec<usize>,
}

/// The nodes of one decode, in the order of computation.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) nodes: Vec<Node>,
}

impl Recorded {
    /// Has a context record the graphs that it computes.
    pub(crate) fn listen(&mut self, params: &mut sys::llama_context_params) {
        params.cb_eval = Some(record);
        params.cb_eval_user_data = std::ptr::from_mut(self).cast();
    }

    /// Returns the names of nodes by which the last node depends on node `from` and not on node `cut`, if there
    /// is such a path.
    ///
    /// Reads from a cache do not count as dependence: the graph has no edge from what was written to what is
    /// read later.
    pub(crate) fn path_around(&self, cut: usize, from: usize) -> Option<Vec<&str>> {
        // By node, the node before it on a path. The first has none.
        let mut before = HashMap::from([(self.nodes[from].address, None)]);
        for (index, node) in self.nodes.iter().enumerate().skip(from + 1) {
            let read = node.reads.iter().find(|read| before.contains_key(*read)).copied();
            if read.is_some() && index != cut {
                before.insert(node.address, read);
            }
        }
        let mut at = self.nodes.last()?.address;
        let mut path = Vec::new();
        loop {
            let previous = *before.get(&at)?;
            path.push(self.nodes.iter().find(|node| node.address == at)?.name.as_str());
            let Some(previous) = previous else { break };
            at = previous;
        }
        path.reverse();
        Some(path)
    }

    /// Returns the nodes that change the block output before a block reads it: those that read node `output`
    /// and nothing else that depends on it, but for norms, projections and views.
    pub(crate) fn changes(&self, output: usize) -> Vec<&Node> {
        let mut reached = HashSet::from([self.nodes[output].address]);
        // The block output under other names.
        let mut same = reached.clone();
        let mut changes = Vec::new();
        for node in &self.nodes[output + 1..] {
            let depending: HashSet<_> = node.reads.iter().filter(|read| reached.contains(*read)).collect();
            if depending.is_empty() {
                continue;
            }
            reached.insert(node.address);
            if !depending.iter().all(|read| same.contains(*read)) {
                continue;
            }
            match node.op.as_str() {
                "VIEW" | "RESHAPE" | "PERMUTE" | "TRANSPOSE" | "CONT" | "GET_ROWS" => {
                    same.insert(node.address);
                }
                // Blocks that norm what they compute read their input as it is.
                "RMS_NORM" | "NORM" | "MUL_MAT" => {}
                _ => changes.push(node),
            }
        }
        changes
    }
}

unsafe extern "C" fn record(tensor: *mut sys::ggml_tensor, ask: bool, recorded: *mut c_void) -> bool {
    if ask {
        // SAFETY: llama.cpp passes a node, and the record given with this callback, which outlives the context.
        unsafe {
            let node = &*tensor;
            let reads = node.src.iter().chain([&node.view_src]).filter(|read| !read.is_null());
            (*recorded.cast::<Recorded>()).nodes.push(Node {
                address: tensor as usize,
                name: text(sys::ggml_get_name(tensor)),
                shape: node.ne,
                op: text(sys::ggml_op_name(node.op)),
                reads: reads.map(|&read| read as usize).collect(),
            });
        }
    }
    false
}

/// # Safety
/// A C string.
unsafe fn text(text: *const std::ffi::c_char) -> String {
    // SAFETY: a C string, by contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
