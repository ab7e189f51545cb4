//! Finds what a graph is given for its rows: tokens (`inp_tokens`) and positions (`inp_pos`).

use crate::by_uid::ByUid;
use crate::host::{Graph, Tensor, api};

const TOKENS: &[u8] = b"inp_tokens";
const POSITIONS: &[u8] = b"inp_pos";

/// Finds the inputs of graphs, and remembers their places in the last ones.
#[derive(Debug, Default)]
pub(crate) struct InputFinder {
    known: ByUid<Places>,
    last: Option<Places>,
}

/// Where a graph reads its inputs: pairs of a node and one of its sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Places {
    nodes: usize,
    tokens: Option<(usize, usize)>,
    positions: Option<(usize, usize)>,
}

/// The inputs of a graph that the host can read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// One token per row.
    pub(crate) tokens: &'a [i32],
    /// One position per row, repeated by sections where a model has several kinds of positions.
    pub(crate) positions: Option<&'a [i32]>,
}

impl InputFinder {
    /// Returns the inputs of a graph, if it reads tokens that are in host memory.
    pub(crate) fn find<'a>(&mut self, graph: &'a Graph) -> Option<Inputs<'a>> {
        let uid = graph.uid();
        let known = self.known.get(uid).copied().filter(|places| places.fit(graph));
        // A rebuilt graph mostly has them at the same places.
        let last = || self.last.filter(|places| places.tokens.is_some() && places.fit(graph));
        let places = known.or_else(last).unwrap_or_else(|| Places::of(graph));
        self.known.insert(uid, places);
        if places.tokens.is_some() {
            self.last = Some(places);
        }
        let input = |place: Option<(usize, usize)>| place.and_then(|place| source(graph, place));
        let tokens = words_of(input(places.tokens)?)?;
        Some(Inputs { tokens, positions: input(places.positions).and_then(words_of) })
    }
}

impl Places {
    fn of(graph: &Graph) -> Self {
        let mut places = Self { nodes: graph.nodes().len(), ..Self::default() };
        for (node, tensor) in graph.nodes().iter().enumerate() {
            for index in Tensor::source_places() {
                let Some(source) = tensor.source(index) else { continue };
                match source.name() {
                    TOKENS => places.tokens.get_or_insert((node, index)),
                    POSITIONS => places.positions.get_or_insert((node, index)),
                    _ => continue,
                };
            }
            if places.tokens.is_some() && places.positions.is_some() {
                break;
            }
        }
        places
    }

    /// Whether the graph reads its inputs at these places. The names are compared every time.
    fn fit(&self, graph: &Graph) -> bool {
        let reads = |place: Option<(usize, usize)>, name: &[u8]| {
            place.is_none_or(|place| source(graph, place).is_some_and(|source| source.name() == name))
        };
        graph.nodes().len() == self.nodes && reads(self.tokens, TOKENS) && reads(self.positions, POSITIONS)
    }
}

fn source(graph: &Graph, (node, index): (usize, usize)) -> Option<Tensor> {
    graph.nodes().get(node)?.source(index)
}

/// Returns the words of a contiguous row of i32 in host memory.
fn words_of<'a>(tensor: Tensor) -> Option<&'a [i32]> {
    let (ne, nb, data, buffer) = (tensor.ne(), tensor.nb(), tensor.data(), tensor.owning_buffer());
    let plain = tensor.is_i32() && nb[0] == size_of::<i32>() && ne[1..] == [1, 1, 1];
    let count = usize::try_from(ne[0]).ok().filter(|&count| plain && count > 0)?;
    if data == 0 || !data.is_multiple_of(align_of::<i32>()) || buffer.is_null() {
        return None;
    }
    // SAFETY: the buffer of a tensor that is about to be read is alive.
    if !unsafe { (api().ggml_backend_buffer_is_host)(buffer) } {
        return None;
    }
    // SAFETY: an allocated tensor of `count` i32 without holes, in memory of the host. llama.cpp has set its
    // inputs before a graph is computed, and writes them again only before the next one.
    Some(unsafe { std::slice::from_raw_parts(data as *const i32, count) })
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::Arena;

    type Raw = *mut sys::ggml_tensor;

    /// A graph that looks up tokens and turns the result by positions, and its inputs in host memory.
    struct Made {
        graph: Graph,
        inputs: [Raw; 2],
        _arena: Arena,
    }

    fn made(tokens: &mut [i32], positions: &mut [i32], buffer: sys::ggml_backend_buffer_t) -> Made {
        let arena = Arena::new(64).unwrap();
        let c = arena.context();
        // SAFETY: everything lives in the arena, which has room for it.
        unsafe {
            let leaf = |values: &mut [i32], name: &std::ffi::CStr| {
                let leaf = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I32, values.len() as i64);
                sys::ggml_set_name(leaf, name.as_ptr());
                (*leaf).data = values.as_mut_ptr().cast();
                (*leaf).buffer = buffer;
                leaf
            };
            let inputs = [leaf(tokens, c"inp_tokens"), leaf(positions, c"inp_pos")];
            let table = sys::ggml_new_tensor_2d(c, sys::GGML_TYPE_F32, 4, 10);
            let rows = sys::ggml_get_rows(c, table, inputs[0]);
            let rows = sys::ggml_reshape_3d(c, rows, 4, 1, 3);
            let turned = sys::ggml_rope(c, rows, inputs[1], 4, 0);
            let graph = sys::ggml_new_graph_custom(c, 32, false);
            sys::ggml_build_forward_expand(graph, turned);
            Made { graph: Graph::new(graph), inputs, _arena: arena }
        }
    }

    #[test]
    fn inputs_in_host_memory_are_read_from_the_sources_of_nodes() {
        crate::host::use_linked_host().unwrap();
        // SAFETY: a buffer of the CPU, freed at the end.
        let buffer = unsafe { sys::ggml_backend_buft_alloc_buffer(sys::ggml_backend_cpu_buffer_type(), 64) };
        let (mut tokens, mut positions) = ([7, 8, 9], [3, 4, 5]);
        let made = made(&mut tokens, &mut positions, buffer);
        let mut finder = InputFinder::default();
        for uid in [0, 5, 5, 6] {
            // SAFETY: the graph is the test's alone.
            unsafe { made.graph.set_uid(uid) };
            let inputs = finder.find(&made.graph).unwrap();
            assert_eq!((inputs.tokens, inputs.positions), (&[7, 8, 9][..], Some(&[3, 4, 5][..])));
        }
        let first_node = |finder: &mut InputFinder| {
            made.graph.with_view(0..1, || finder.find(&made.graph).map(|found| found.positions.is_some()))
        };
        assert_eq!(first_node(&mut finder), Some(false), "a part without positions");
        let rest = made.graph.with_view(1..3, || finder.find(&made.graph).is_some());
        assert!(!rest, "a part without tokens");
        // SAFETY: tensors of the arena, and the buffer was allocated above.
        unsafe {
            (*made.inputs[1]).buffer = std::ptr::null_mut();
            assert_eq!(finder.find(&made.graph).unwrap().positions, None, "memory that is unknown");
            (*made.inputs[0]).type_ = sys::GGML_TYPE_F32;
            assert!(finder.find(&made.graph).is_none());
            sys::ggml_backend_buffer_free(buffer);
        }
    }
}
