//! Finds out whether a graph ends in what llama.cpp's caller reads: logits or embeddings.

use crate::by_uid::ByUid;
use crate::host::Graph;
use crate::host::architecture::OF_DRAFTS;

/// The kinds of nodes whose names say something about the end of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The final norm, whose rows are those with outputs.
    Norm,
    Logits,
    /// Embeddings.
    OtherResult,
    /// A node of a next-token block, which drafts.
    Drafts,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Norm, Self::Logits, Self::OtherResult, Self::Drafts];

    /// Returns the kind of a node by its name: llama.cpp's `cb(cur, "result_norm", -1)` and its like in
    /// `src/models/*.cpp`. Views and copies have other names (`result_output (view)`).
    fn of(name: &[u8]) -> Option<Self> {
        if name.starts_with(OF_DRAFTS) {
            return Some(Self::Drafts);
        }
        let result = name.strip_prefix(b"result_")?;
        if !result.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'_') {
            return None;
        }
        Some(match result {
            b"norm" => Self::Norm,
            _ if result.starts_with(b"output") => Self::Logits,
            _ => Self::OtherResult,
        })
    }
}

/// The results that a graph computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// Rows with outputs.
    pub(crate) rows: usize,
    /// Whether logits are computed.
    pub(crate) logits: bool,
    /// Whether the final norm is computed. Where it is not, an earlier graph of the micro-batch has done it.
    pub(crate) normed: bool,
}

/// What the names of a graph's nodes say about its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The results, if the graph computes some.
    pub(crate) end: Option<End>,
    /// Whether the graph is that of a next-token block, which drafts.
    pub(crate) drafts: bool,
}

/// Finds results in graphs, and remembers their places in the last ones.
#[derive(Debug, Default)]
pub(crate) struct EndFinder {
    known: ByUid<Known>,
    last: Option<Known>,
}

/// A graph that has been scanned.
#[derive(Debug, Clone, Copy)]
struct Known {
    nodes: usize,
    /// Addresses of the first node and the last.
    ends: [usize; 2],
    /// By [`Kind`], the first node.
    places: [Option<usize>; Kind::ALL.len()],
}

impl EndFinder {
    /// Returns what a graph ends in.
    pub(crate) fn find(&mut self, graph: &Graph) -> Ending {
        let uid = graph.uid();
        let known = self.known.get(uid).filter(|known| known.ends == addresses(graph));
        let known = known.filter(|known| known.fits(graph)).copied();
        // A rebuilt graph mostly has them at the same places.
        let last = || self.last.filter(|known| known.any() && known.fits(graph));
        let found = known.or_else(last).unwrap_or_else(|| Known::scan(graph));
        let found = Known { ends: addresses(graph), ..found };
        self.known.insert(uid, found);
        if found.any() {
            self.last = Some(found);
        }
        found.ending(graph)
    }
}

fn addresses(graph: &Graph) -> [usize; 2] {
    let nodes = graph.nodes();
    [nodes.first(), nodes.last()].map(|node| node.map_or(0, |node| node.raw() as usize))
}

impl Known {
    fn scan(graph: &Graph) -> Self {
        let nodes = graph.nodes();
        let mut places = [None; Kind::ALL.len()];
        for (node, tensor) in nodes.iter().enumerate() {
            if let Some(kind) = Kind::of(tensor.name()) {
                places[kind as usize].get_or_insert(node);
            }
        }
        Self { nodes: nodes.len(), ends: addresses(graph), places }
    }

    fn place(&self, kind: Kind) -> Option<usize> {
        self.places[kind as usize]
    }

    fn any(&self) -> bool {
        self.places.iter().any(Option::is_some)
    }

    /// Whether a graph has nodes of the same kinds at these places.
    fn fits(&self, graph: &Graph) -> bool {
        let nodes = graph.nodes();
        let same = |kind: &Kind| {
            self.place(*kind).is_none_or(|node| {
                nodes.get(node).is_some_and(|tensor| Kind::of(tensor.name()) == Some(*kind))
            })
        };
        nodes.len() == self.nodes && Kind::ALL.iter().all(same)
    }

    fn ending(&self, graph: &Graph) -> Ending {
        let place = |kind| self.place(kind);
        let first = place(Kind::Norm).or(place(Kind::Logits)).or(place(Kind::OtherResult));
        let end = first.map(|node| End {
            rows: usize::try_from(graph.nodes()[node].ne()[1]).unwrap_or(0),
            logits: place(Kind::Logits).is_some(),
            normed: place(Kind::Norm).is_some(),
        });
        Ending { end, drafts: place(Kind::Drafts).is_some() }
    }
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use std::ffi::CString;

    use llama_cpp_sys_2 as sys;

    use super::*;
    use crate::host::{Arena, chain};

    fn ending(finder: &mut EndFinder, graph: &Graph, names: &[&str]) -> Ending {
        for (node, &name) in graph.nodes().iter().zip(names) {
            let name = CString::new(name).unwrap();
            // SAFETY: a node of the graph.
            unsafe { sys::ggml_set_name(node.raw(), name.as_ptr()) };
        }
        finder.find(graph)
    }

    #[test]
    fn results_are_found_by_their_names() {
        crate::host::use_linked_host().unwrap();
        let arena = Arena::new(64).unwrap();
        // SAFETY: the graph lives in the arena, and its nodes are valid.
        let graph = unsafe { Graph::new(chain(&arena, 4)) };
        let mut finder = EndFinder::default();
        let end = |logits, normed| Some(End { rows: 1, logits, normed });
        for first_uid in [0, 10, 10] {
            for (index, (names, expected, drafts)) in [
                (["l_out-1", "result_norm", "result_output", "x"], end(true, true), false),
                (["result_norm", "a", "result_embd", "result_embd_pooled"], end(false, true), false),
                (["a", "result_output", "b", "c"], end(true, false), false),
                (["a", "result_embd_pooled", "b", "c"], end(false, false), false),
                (["l_out-1", "result_norm (view)", "CPU#result_output#0", "norm"], None, false),
                (["mtp_norm-3", "result_norm", "result_output", "x"], end(true, true), true),
                (["l_out-1", "b", "result_norm", "result_output"], end(true, true), false),
            ]
            .into_iter()
            .enumerate()
            {
                // SAFETY: the graph is the test's alone.
                unsafe { graph.set_uid(if first_uid == 0 { 0 } else { first_uid + index as u64 }) };
                let found = ending(&mut finder, &graph, &names);
                assert_eq!((found.end, found.drafts), (expected, drafts), "{names:?}");
            }
        }
    }
}
