//! Finds the block outputs in a graph.

use crate::by_uid::ByUid;
use crate::error::HookError;
use crate::host::architecture::{BlockNames, LATER_CHANGES, OF_DRAFTS, numbered};
use crate::host::{Graph, Tensor};

/// A block output within a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Output {
    /// Index of its node.
    pub(crate) node: usize,
    /// The block.
    pub(crate) block: usize,
    /// The node: f32, `[width, rows]`.
    pub(crate) tensor: Tensor,
}

impl Output {
    /// Returns the rows of the block output: one per token, in the last block one per token with logits.
    pub(crate) fn rows(&self) -> usize {
        self.tensor.ne()[1] as usize
    }

    /// Returns the number of elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.tensor.nb()[1] / size_of::<f32>()
    }
}

/// The blocks to look for, and what their outputs are called and look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) names: BlockNames,
    pub(crate) width: usize,
    /// By block: whether it is capped or tapped.
    pub(crate) blocks: &'a [bool],
}

/// Finds block outputs, and remembers their places in the last graphs.
///
/// llama.cpp sends the same graphs for token after token. To recognise an unchanged graph, a few dozen names
/// are compared instead of a thousand.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    wanted: Vec<bool>,
    /// By uid: the parts that a model is split into take turns.
    known: ByUid<Known>,
    /// The last graph with block outputs. A rebuilt graph mostly has them at the same places.
    last: Option<Known>,
}

/// A graph that has been scanned.
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
        [nodes.first(), nodes.last()].map(|node| node.map_or(0, |node| node.raw() as usize))
    }

    /// Returns the block outputs if the graph has them at these places. The names are compared every time.
    fn find(&self, graph: &Graph, wanted: Wanted<'_>) -> Option<Vec<Output>> {
        let nodes = graph.nodes();
        if nodes.len() != self.nodes {
            return None;
        }
        let output = |&(node, block): &(usize, usize)| {
            let tensor = nodes[node];
            (wanted.names.block_of(tensor.name()) == Some(block)).then_some(Output { node, block, tensor })
        };
        self.outputs.iter().map(output).collect()
    }
}

impl Finder {
    /// Returns the wanted block outputs of `graph`, in the order of its nodes.
    ///
    /// The graph of a next-token block has none: it may give its own output a name of the model's last block.
    ///
    /// # Errors
    /// A block output that is not f32 `[width, rows]`, two of the same block, or a node that changes the
    /// residual stream after it.
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

    /// Returns the block outputs if the graph has them at the places of this graph, or of the last one.
    ///
    /// A graph of as many nodes with the same names at the same places is the same graph, or one built by the
    /// same code for another batch. A configured block that is missing is noticed after the decode in any
    /// case, since rows are counted. The same holds where a graph had no block outputs and is known by its
    /// uid alone.
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
        let mut drafts = false;
        for (node, &tensor) in nodes.iter().enumerate() {
            let name = tensor.name();
            let is_wanted = |&block: &usize| wanted.blocks.get(block) == Some(&true);
            for (later, blocks_on) in LATER_CHANGES {
                let block = numbered(name, later).and_then(|block| block.checked_sub(blocks_on));
                if let Some(block) = block.filter(is_wanted) {
                    return Err(HookError::ChangedLater { block, node: lossy(name) });
                }
            }
            drafts |= name.starts_with(OF_DRAFTS);
            let Some(block) = wanted.names.block_of(name).filter(is_wanted) else { continue };
            if found.iter().any(|o| o.block == block) {
                return Err(HookError::Ambiguous { block, node: lossy(name) });
            }
            found.push(Output { node, block, tensor });
        }
        if drafts {
            found.clear();
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

/// Checks that a block output is f32 `[width, rows]`, its rows without holes.
pub(crate) fn check_shape(output: &Output, width: usize) -> Result<(), HookError> {
    let t = output.tensor;
    let (ne, nb) = (t.ne(), t.nb());
    let fits = t.is_f32()
        && ne[0] == width as i64
        && ne[1] >= 0
        && ne[2..] == [1, 1]
        && nb[0] == size_of::<f32>()
        && nb[1] % size_of::<f32>() == 0
        && nb[1] >= width * size_of::<f32>();
    if fits {
        return Ok(());
    }
    Err(HookError::Shape {
        block: output.block,
        node: lossy(t.name()),
        found: format!("of type {} with shape {ne:?} and strides {nb:?}", t.dtype()),
        expected: format!("f32 (type 0) of shape [{width}, tokens]"),
    })
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use std::ffi::CString;

    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::architecture::{ModelShape, block_names};
    use crate::host::{Arena, chain};

    /// Returns a graph of f32 rows of one value whose nodes have these names.
    fn named(arena: &Arena, names: &[&str]) -> Graph {
        // SAFETY: the graph lives in the arena, and its nodes are valid.
        unsafe {
            let graph = Graph::new(chain(arena, names.len()));
            for (node, &name) in graph.nodes().iter().zip(names) {
                sys::ggml_set_name(node.raw(), CString::new(name).unwrap().as_ptr());
            }
            graph
        }
    }

    fn wanted(blocks: &[bool]) -> Wanted<'_> {
        wanted_of("llama", blocks)
    }

    fn wanted_of<'a>(architecture: &str, blocks: &'a [bool]) -> Wanted<'a> {
        let model = ModelShape { architecture: architecture.into(), blocks: blocks.len(), width: 1 };
        Wanted { names: block_names(&model).unwrap(), width: 1, blocks }
    }

    fn places(found: &[Output]) -> Vec<(usize, usize)> {
        found.iter().map(|output| (output.node, output.block)).collect()
    }

    fn set_uid(graph: &Graph, uid: u64) {
        // SAFETY: the graph is the test's alone.
        unsafe { graph.set_uid(uid) }
    }

    fn rename(graph: &Graph, node: usize, name: &str) {
        // SAFETY: a node of the graph.
        unsafe { sys::ggml_set_name(graph.nodes()[node].raw(), CString::new(name).unwrap().as_ptr()) };
    }

    #[test]
    fn names_are_compared_in_known_graphs_too() {
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
        // The uid stays and the block output moves: the graph is scanned again.
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
        // Rebuilt, without a uid: only names tell.
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
    fn the_graph_of_a_next_token_block_has_no_block_outputs() {
        let arena = Arena::new(64).unwrap();
        let find = |names: &[&str]| {
            let found = Finder::default().find(&named(&arena, names), wanted_of("step35", &[true; 3]));
            places(&found.unwrap())
        };
        assert_eq!(find(&["attn_norm_in-1", "attn_norm_in-2", "h_nextn"]), [(0, 0), (1, 1), (2, 2)]);
        assert_eq!(find(&["mtp_ffn_out-3", "mtp_post_ffn-3", "h_nextn"]), []);
    }

    #[test]
    fn a_later_change_of_the_residual_stream_refuses_the_block_before_it() {
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
