//! Finds the block outputs in a graph.

use llama_cpp_sys_2 as sys;

use crate::architecture::{LATER_CHANGES, block_of};
use crate::by_uid::ByUid;
use crate::error::HookError;
use crate::graph::{Graph, name_of};

/// A block output within a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Output {
    /// Index of its node.
    pub(crate) node: usize,
    /// The block.
    pub(crate) block: usize,
    /// The node: f32, `[width, rows]`.
    pub(crate) tensor: *mut sys::ggml_tensor,
}

impl Output {
    /// Rows of the block output: one per token, in the last block one per token with logits.
    pub(crate) fn rows(&self) -> usize {
        // SAFETY: the tensor belongs to the graph being computed.
        unsafe { (*self.tensor).ne[1] as usize }
    }

    /// Its address, and its buffer's: where it lies in which memory.
    pub(crate) fn place(&self) -> (usize, usize) {
        // SAFETY: as above.
        unsafe { place_of(self.tensor) }
    }

    /// Elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.tensor).nb[1] / size_of::<f32>() }
    }
}

/// The address of a tensor, and its buffer's: where it lies in which memory.
///
/// # Safety
/// The tensor must be valid.
pub(crate) unsafe fn place_of(tensor: *const sys::ggml_tensor) -> (usize, usize) {
    // SAFETY: the caller's promise; a view's source lives as long as the view.
    unsafe {
        let owner = if (*tensor).view_src.is_null() { tensor } else { (*tensor).view_src.cast_const() };
        ((*tensor).data as usize, (*owner).buffer as usize)
    }
}

/// The blocks to look for, and what their outputs are called and look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) prefix: &'static str,
    pub(crate) width: usize,
    /// By block: whether it is capped or tapped.
    pub(crate) blocks: &'a [bool],
}

/// Where the block outputs were in the last graphs. llama.cpp sends the same graphs for token after token; looking at a
/// few dozen names instead of a thousand is what makes an unchanged graph cheap to recognise.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    wanted: Vec<bool>,
    /// By uid: the parts that a model is split into take turns.
    known: ByUid<Known>,
    /// The last one that had block outputs: a graph that was built anew mostly has them at the same places.
    last: Option<Known>,
}

/// A graph that has been looked at.
#[derive(Debug, Clone)]
struct Known {
    nodes: usize,
    /// Addresses of the first node and the last.
    ends: [usize; 2],
    /// Pairs of node and block.
    outputs: Vec<(usize, usize)>,
}

impl Known {
    fn ends(graph: &Graph) -> [usize; 2] {
        let nodes = graph.nodes();
        [nodes.first(), nodes.last()].map(|node| node.map_or(0, |&node| node as usize))
    }

    /// The block outputs, if the graph has them at these places. The names are compared every time.
    fn find(&self, graph: &Graph, wanted: Wanted<'_>) -> Option<Vec<Output>> {
        let nodes = graph.nodes();
        if nodes.len() != self.nodes {
            return None;
        }
        let output = |&(node, block): &(usize, usize)| {
            let tensor = nodes[node];
            // SAFETY: nodes of the graph being computed are valid.
            let name = unsafe { name_of(tensor) };
            (block_of(name, wanted.prefix) == Some(block)).then_some(Output { node, block, tensor })
        };
        self.outputs.iter().map(output).collect()
    }
}

impl Finder {
    /// The wanted block outputs of `graph`, in the order of its nodes.
    ///
    /// # Errors
    /// A block output that is not f32 `[width, rows]`, two of the same block, or a node that changes the residual
    /// stream after it.
    pub(crate) fn find(&mut self, graph: &Graph, wanted: Wanted<'_>) -> Result<Vec<Output>, HookError> {
        if self.wanted != wanted.blocks {
            self.wanted = wanted.blocks.to_vec();
            self.known.clear();
            self.last = None;
        }
        let outputs = match self.recognise(graph, wanted) {
            Some(outputs) => outputs,
            None => self.scan(graph, wanted)?,
        };
        for output in &outputs {
            check_shape(output, wanted.width)?;
        }
        Ok(outputs)
    }

    /// The block outputs, if the graph has them where this one, or the last one, had them.
    ///
    /// A graph of as many nodes with the same names at the same places is the same graph, or one built by the same
    /// code for another batch; a configured block that is missing is noticed after the decode in any case. So it is
    /// where a graph had no block outputs and is only known by its uid: rows are counted.
    fn recognise(&mut self, graph: &Graph, wanted: Wanted<'_>) -> Option<Vec<Output>> {
        let uid = graph.uid();
        let known = self.known.get(uid).filter(|known| known.ends == Known::ends(graph));
        if let Some(outputs) = known.and_then(|known| known.find(graph, wanted)) {
            return Some(outputs);
        }
        let last = self.last.as_ref()?;
        let outputs = last.find(graph, wanted)?;
        self.known.insert(uid, Known { ends: Known::ends(graph), ..last.clone() });
        Some(outputs)
    }

    fn scan(&mut self, graph: &Graph, wanted: Wanted<'_>) -> Result<Vec<Output>, HookError> {
        let mut found = Vec::<Output>::new();
        let nodes = graph.nodes();
        for (node, &tensor) in nodes.iter().enumerate() {
            // SAFETY: nodes of the graph being computed are valid.
            let name = unsafe { name_of(tensor) };
            let is_wanted = |&block: &usize| wanted.blocks.get(block) == Some(&true);
            for (later, blocks_on) in LATER_CHANGES {
                let block = block_of(name, later).and_then(|block| block.checked_sub(blocks_on));
                if let Some(block) = block.filter(is_wanted) {
                    return Err(HookError::ChangedLater { block, node: lossy(name) });
                }
            }
            let Some(block) = block_of(name, wanted.prefix).filter(is_wanted) else { continue };
            if found.iter().any(|o| o.block == block) {
                return Err(HookError::Ambiguous { block, node: lossy(name) });
            }
            found.push(Output { node, block, tensor });
        }
        let outputs: Vec<_> = found.iter().map(|o| (o.node, o.block)).collect();
        let known = Known { nodes: nodes.len(), ends: Known::ends(graph), outputs };
        if !found.is_empty() {
            self.last = Some(known.clone());
        }
        self.known.insert(graph.uid(), known);
        Ok(found)
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

pub(crate) fn check_shape(output: &Output, width: usize) -> Result<(), HookError> {
    // SAFETY: nodes of the graph being computed are valid.
    let t = unsafe { &*output.tensor };
    let fits = t.type_ == sys::GGML_TYPE_F32
        && t.ne[0] == width as i64
        && t.ne[1] >= 0
        && t.ne[2..] == [1, 1]
        && t.nb[0] == size_of::<f32>()
        && t.nb[1] % size_of::<f32>() == 0
        && t.nb[1] >= width * size_of::<f32>();
    if fits {
        return Ok(());
    }
    Err(HookError::Shape {
        block: output.block,
        // SAFETY: as above.
        node: lossy(unsafe { name_of(t) }),
        found: format!("of type {} with shape {:?} and strides {:?}", t.type_, t.ne, t.nb),
        expected: format!("f32 (type 0) of shape [{width}, tokens]"),
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;
    use crate::layout::{Arena, Layout, chain};

    /// A graph of f32 rows of one value whose nodes have these names.
    fn named(arena: &Arena, names: &[&str]) -> Graph {
        // SAFETY: the graph lives in the arena, and its nodes are valid.
        unsafe {
            let graph = Graph::new(chain(arena, names.len()), Layout::probe().unwrap());
            for (&node, &name) in graph.nodes().iter().zip(names) {
                sys::ggml_set_name(node, CString::new(name).unwrap().as_ptr());
            }
            graph
        }
    }

    fn wanted(blocks: &[bool]) -> Wanted<'_> {
        Wanted { prefix: "l_out", width: 1, blocks }
    }

    fn places(found: &[Output]) -> Vec<(usize, usize)> {
        found.iter().map(|output| (output.node, output.block)).collect()
    }

    /// Under a uid of its own.
    fn set_uid(graph: &Graph, uid: u64) {
        // SAFETY: the uid has its place within the graph, which is the test's alone.
        unsafe { graph.raw().byte_add(Layout::probe().unwrap().graph_uid).cast::<u64>().write(uid) }
    }

    fn rename(graph: &Graph, node: usize, name: &str) {
        // SAFETY: a node of the graph.
        unsafe { sys::ggml_set_name(graph.nodes()[node], CString::new(name).unwrap().as_ptr()) };
    }

    #[test]
    fn names_are_compared_however_well_a_graph_is_known() {
        let arena = Arena::new(64).unwrap();
        let [first, second, none] =
            [["a", "l_out-0", "b", "l_out-1"], ["l_out-2", "c", "d", "e"], ["f", "g", "h", "i"]]
                .map(|names| named(&arena, &names));
        for (uid, graph) in [&first, &second, &none].into_iter().enumerate() {
            set_uid(graph, 7 + uid as u64);
        }
        let mut finder = Finder::default();
        let all = [true; 4];
        for _ in 0..3 {
            assert_eq!(places(&finder.find(&first, wanted(&all)).unwrap()), [(1, 0), (3, 1)]);
            assert_eq!(places(&finder.find(&second, wanted(&all)).unwrap()), [(0, 2)]);
            assert_eq!(places(&finder.find(&none, wanted(&all)).unwrap()), []);
        }
        // The uid stays, the block output does not: it is looked for again, and what is gone is not found.
        rename(&first, 3, "x");
        assert_eq!(places(&finder.find(&first, wanted(&all)).unwrap()), [(1, 0)]);
        rename(&first, 0, "l_out-3");
        rename(&first, 1, "y");
        assert_eq!(places(&finder.find(&first, wanted(&all)).unwrap()), [(0, 3)]);
        // Other nodes under the uid of a graph without block outputs.
        rename(&second, 0, "l_out-1");
        set_uid(&second, 9);
        assert_eq!(places(&finder.find(&second, wanted(&all)).unwrap()), [(0, 1)]);
        // Other blocks are wanted.
        assert_eq!(places(&finder.find(&second, wanted(&[true, false, false, false])).unwrap()), []);
        assert_eq!(places(&finder.find(&second, wanted(&all)).unwrap()), [(0, 1)]);
        // Built anew, without a uid: only names tell.
        for graph in [&first, &second, &none] {
            set_uid(graph, 0);
        }
        for _ in 0..2 {
            assert_eq!(places(&finder.find(&first, wanted(&all)).unwrap()), [(0, 3)]);
            assert_eq!(places(&finder.find(&second, wanted(&all)).unwrap()), [(0, 1)]);
            assert_eq!(places(&finder.find(&none, wanted(&all)).unwrap()), []);
        }
    }

    #[test]
    fn what_still_changes_the_residual_stream_refuses_the_block_before_it() {
        let changed = |names: &[&str]| {
            let arena = Arena::new(64).unwrap();
            Finder::default().find(&named(&arena, names), wanted(&[false, false, false, true, false]))
        };
        assert_eq!(places(&changed(&["l_out-2", "deepstack_in-3", "l_out-3", "l_out-4"]).unwrap()), [(2, 3)]);
        for later in ["deepstack_out-3", "loop_norm-3", "deepstack_in-4"] {
            let refused = changed(&["l_out-2", "l_out-3", later, "l_out-4"]);
            assert_eq!(refused, Err(HookError::ChangedLater { block: 3, node: later.into() }));
        }
        let twice = changed(&["l_out-3", "l_out-3"]);
        assert_eq!(twice, Err(HookError::Ambiguous { block: 3, node: "l_out-3".into() }));
    }
}
