//! Finds what a graph is given for its rows: tokens (`inp_tokens`) or embeddings (`inp_embd`), positions
//! (`inp_pos`), and which rows have outputs (`out_ids`).

use std::ffi::CStr;

use crate::by_uid::ByUid;
use crate::host::{Graph, Tensor, api};

const TOKENS: usize = 0;
const EMBEDDINGS: usize = 1;
const POSITIONS: usize = 2;
const OUTPUT_IDS: usize = 3;
/// llama.cpp's names of the inputs (`llm_graph_context::build_inp_*`).
const NAMES: [&[u8]; 4] = [b"inp_tokens", b"inp_embd", b"inp_pos", b"out_ids"];

/// Finds the inputs of graphs, and remembers their places in the last ones.
#[derive(Debug, Default)]
pub(crate) struct InputFinder {
    known: ByUid<Places>,
    last: Option<Places>,
}

/// Where a graph reads its inputs: by [`NAMES`], a node and which of its sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Places {
    nodes: usize,
    inputs: [Option<(usize, usize)>; NAMES.len()],
    /// Where no input is named `inp_pos`, as before ggml 0.25: a node that rotates rows (ggml's `ROPE`), if all
    /// of them rotate by the same positions.
    rope: Option<usize>,
}

/// The place of the positions among the sources of ggml's `ROPE`.
const ROPE_POSITIONS: usize = 1;

/// The inputs that a graph reads, or their copies in memory of the backend that computes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// One token per row.
    pub(crate) tokens: Option<Tensor>,
    /// One embedding per row, in the place of a token.
    pub(crate) embeddings: Option<Tensor>,
    /// One position per row, repeated by sections where a model has several kinds of positions.
    pub(crate) positions: Option<Tensor>,
    /// The rows with outputs, by index.
    pub(crate) output_ids: Option<Tensor>,
}

impl Inputs {
    /// Returns the number of rows, if an input tells it.
    pub(crate) fn rows(&self) -> Option<usize> {
        let tokens = self.tokens.map(|tokens| tokens.ne()[0]);
        let rows = tokens.or_else(|| self.embeddings.map(|embeddings| embeddings.ne()[1]));
        rows.and_then(|rows| usize::try_from(rows).ok())
    }
}

impl InputFinder {
    /// Returns the inputs of a graph.
    pub(crate) fn find(&mut self, graph: &Graph) -> Inputs {
        let uid = graph.uid();
        let known = self.known.get(uid).copied().filter(|places| places.fit(graph));
        // A rebuilt graph mostly has them at the same places.
        let last = || self.last.filter(|places| places.any() && places.fit(graph));
        let places = known.or_else(last).unwrap_or_else(|| Places::of(graph));
        self.known.insert(uid, places);
        if places.any() {
            self.last = Some(places);
        }
        let input = |index: usize| places.inputs[index].and_then(|place| source(graph, place));
        Inputs {
            tokens: input(TOKENS),
            embeddings: input(EMBEDDINGS),
            positions: input(POSITIONS).or_else(|| source(graph, (places.rope?, ROPE_POSITIONS))),
            output_ids: input(OUTPUT_IDS),
        }
    }
}

impl Places {
    fn of(graph: &Graph) -> Self {
        let mut places = Self { nodes: graph.nodes().len(), ..Self::default() };
        for (node, tensor) in graph.nodes().iter().enumerate() {
            for index in Tensor::source_places() {
                let Some(source) = tensor.source(index) else { continue };
                let name = copied_name(source.name());
                if let Some(input) = NAMES.iter().position(|&input| input == name) {
                    places.inputs[input].get_or_insert((node, index));
                }
            }
            if places.inputs.iter().all(Option::is_some) {
                break;
            }
        }
        match places.inputs[POSITIONS] {
            None => places.rope = only_rope(graph),
            // Where they have a name, the other way must find them as well. Tests of all architectures say so.
            Some(named) => debug_assert!(
                only_rope(graph)
                    .is_none_or(|node| source(graph, (node, ROPE_POSITIONS)) == source(graph, named)),
                "rows rotate by other positions than `inp_pos`"
            ),
        }
        places
    }

    fn any(&self) -> bool {
        self.inputs.iter().any(Option::is_some)
    }

    /// Whether the graph reads its inputs at these places. The names are compared every time.
    fn fit(&self, graph: &Graph) -> bool {
        let reads = |(place, name): (&Option<(usize, usize)>, &[u8])| {
            place.is_none_or(|place| {
                source(graph, place).is_some_and(|source| copied_name(source.name()) == name)
            })
        };
        graph.nodes().len() == self.nodes
            && self.inputs.iter().zip(NAMES).all(reads)
            && self.rope.is_none_or(|node| graph.nodes().get(node).is_some_and(|&node| is_rope(node)))
    }
}

/// Returns the first node that rotates rows by positions, if all others rotate by the same. Rows have no such
/// position in models that rotate by several.
fn only_rope(graph: &Graph) -> Option<usize> {
    let mut ropes = graph.nodes().iter().enumerate().filter(|&(_, &node)| is_rope(node));
    let (first, node) = ropes.next()?;
    let positions = node.source(ROPE_POSITIONS);
    ropes.all(|(_, other)| other.source(ROPE_POSITIONS) == positions).then_some(first)
}

fn is_rope(node: Tensor) -> bool {
    // SAFETY: the node of a graph, and ggml's name of its operation, NUL-terminated.
    let operation = unsafe { CStr::from_ptr((api().ggml_op_desc)(node.raw())) };
    operation == c"ROPE" && node.source(ROPE_POSITIONS).is_some_and(Tensor::is_i32)
}

fn source(graph: &Graph, (node, index): (usize, usize)) -> Option<Tensor> {
    graph.nodes().get(node)?.source(index)
}

/// Returns the name of the tensor that a tensor is a scheduler's copy of (`CUDA0#inp_pos#0`), or the name
/// itself.
pub(crate) fn copied_name(name: &[u8]) -> &[u8] {
    let copied = || {
        let first = name.iter().position(|&byte| byte == b'#')?;
        let last = name.iter().rposition(|&byte| byte == b'#')?;
        name.get(first + 1..last)
    };
    copied().unwrap_or(name)
}

/// Returns the number of words of a contiguous row of i32 that has memory.
fn word_count(tensor: Tensor) -> Option<usize> {
    let (ne, nb, data) = (tensor.ne(), tensor.nb(), tensor.data());
    let plain = tensor.is_i32() && nb[0] == size_of::<i32>() && ne[1..] == [1, 1, 1];
    let in_memory = data != 0 && !tensor.owning_buffer().is_null();
    usize::try_from(ne[0]).ok().filter(|&count| plain && in_memory && count > 0)
}

fn is_on_host(tensor: Tensor) -> bool {
    // SAFETY: the buffer of a tensor that is about to be read is alive.
    unsafe { (api().ggml_backend_buffer_is_host)(tensor.owning_buffer()) }
}

/// Returns the words of a contiguous row of i32 in host memory.
pub(crate) fn words_of<'a>(tensor: Tensor) -> Option<&'a [i32]> {
    let count = word_count(tensor)?;
    let data = tensor.data();
    if !data.is_multiple_of(align_of::<i32>()) || !is_on_host(tensor) {
        return None;
    }
    // SAFETY: an allocated tensor of `count` i32 without holes, in memory of the host. llama.cpp has set its
    // inputs before a graph is computed, and writes them again only before the next one.
    Some(unsafe { std::slice::from_raw_parts(data as *const i32, count) })
}

/// Returns a copy of the words of a contiguous row of i32, wherever they are. Waits for the backend that
/// copies them to its memory.
pub(crate) fn read_words(tensor: Tensor) -> Option<Vec<i32>> {
    if let Some(words) = words_of(tensor) {
        return Some(words.to_vec());
    }
    let mut words = vec![0_i32; word_count(tensor)?];
    // SAFETY: an allocated tensor of as many i32 without holes. Its graph is about to be computed, so that
    // its inputs are set.
    unsafe {
        let bytes = size_of_val(&words[..]);
        (api().ggml_backend_tensor_get)(tensor.raw(), words.as_mut_ptr().cast(), 0, bytes);
    }
    Some(words)
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::Arena;

    type Raw = *mut sys::ggml_tensor;

    /// A graph that looks up tokens and twice turns the result by positions, and its inputs in host memory.
    struct Made {
        graph: Graph,
        inputs: [Raw; 2],
        /// The nodes that turn.
        ropes: [Raw; 2],
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
            let again = sys::ggml_rope(c, turned, inputs[1], 4, 0);
            let graph = sys::ggml_new_graph_custom(c, 32, false);
            sys::ggml_build_forward_expand(graph, again);
            Made { graph: Graph::new(graph), inputs, ropes: [turned, again], _arena: arena }
        }
    }

    /// Before ggml 0.25 the positions had no name of llama.cpp's.
    #[test]
    fn positions_without_a_name_are_what_all_rotations_read() {
        crate::host::use_linked_host().unwrap();
        // SAFETY: a buffer of the CPU, freed at the end.
        let buffer = unsafe { sys::ggml_backend_buft_alloc_buffer(sys::ggml_backend_cpu_buffer_type(), 64) };
        let (mut tokens, mut positions) = ([7, 8, 9], [3, 4, 5]);
        let made = made(&mut tokens, &mut positions, buffer);
        let mut finder = InputFinder::default();
        let mut find = |uid| {
            // SAFETY: the graph is the test's alone.
            unsafe { made.graph.set_uid(uid) };
            finder.find(&made.graph).positions
        };
        for name in [c"leaf_2", c"CUDA0#leaf_2#0"] {
            // SAFETY: a tensor of the arena.
            unsafe { sys::ggml_set_name(made.inputs[1], name.as_ptr()) };
            for uid in [0, 5, 5] {
                assert_eq!(find(uid).and_then(words_of), Some(&[3, 4, 5][..]));
            }
        }
        // SAFETY: tensors of the arena, whose sources are of the types that ggml has there.
        unsafe { (*made.ropes[1]).src[1] = made.inputs[0] };
        assert_eq!(InputFinder::default().find(&made.graph).positions, None, "rotations by two positions");
        // SAFETY: as above, and the buffer was allocated above.
        unsafe {
            sys::ggml_set_name(made.inputs[1], c"inp_pos".as_ptr());
            let named = InputFinder::default().find(&made.graph).positions;
            assert_eq!(named.and_then(words_of), Some(&[3, 4, 5][..]), "a name is believed");
            sys::ggml_backend_buffer_free(buffer);
        }
    }

    #[test]
    fn copies_have_the_name_of_what_they_copy() {
        for (name, copied) in [
            ("inp_pos", "inp_pos"),
            ("CUDA0#inp_pos#0", "inp_pos"),
            ("RPC0[127.0.0.1:50052]#blk.3.attn_norm.weight#1", "blk.3.attn_norm.weight"),
            ("a#b", "a#b"),
            ("##", ""),
            ("", ""),
        ] {
            assert_eq!(copied_name(name.as_bytes()), copied.as_bytes(), "{name}");
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
            let inputs = finder.find(&made.graph);
            let words = |input: Option<Tensor>| input.and_then(words_of);
            assert_eq!(words(inputs.tokens), Some(&[7, 8, 9][..]));
            assert_eq!(words(inputs.positions), Some(&[3, 4, 5][..]));
            assert_eq!((inputs.embeddings, inputs.output_ids, inputs.rows()), (None, None, Some(3)));
        }
        let first_node = |finder: &mut InputFinder| made.graph.with_view(0..1, || finder.find(&made.graph));
        let first = first_node(&mut finder);
        assert!(first.tokens.is_some() && first.positions.is_none(), "a part without positions");
        let rest = made.graph.with_view(1..4, || finder.find(&made.graph));
        assert!(rest.tokens.is_none() && rest.positions.is_some(), "a part without tokens");
        // SAFETY: a tensor of the arena.
        unsafe { sys::ggml_set_name(made.inputs[1], c"CUDA0#inp_pos#0".as_ptr()) };
        assert!(finder.find(&made.graph).positions.is_some(), "a copy for another backend");
        // SAFETY: tensors of the arena, and the buffer was allocated above.
        unsafe {
            (*made.inputs[1]).buffer = std::ptr::null_mut();
            let inputs = finder.find(&made.graph);
            assert_eq!(inputs.positions.and_then(words_of), None, "memory that is unknown");
            assert_eq!(inputs.positions.and_then(read_words), None);
            assert_eq!(inputs.tokens.and_then(read_words).as_deref(), Some(&[7, 8, 9][..]));
            (*made.inputs[0]).type_ = sys::GGML_TYPE_F32;
            assert_eq!(inputs.tokens.and_then(words_of), None);
            sys::ggml_backend_buffer_free(buffer);
        }
    }
}
