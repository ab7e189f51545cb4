//! Graph uids, by which ggml recognises a graph that it has computed before, and the uids of views.
//!
//! ggml's CUDA backend keeps one CUDA graph per first node. If the uid is the last one it saw, and not zero,
//! it takes the graph for the same without a comparison. It aborts the process if the number of nodes
//! differs. A view must therefore never have the uid of its graph or of another view.

use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};

use super::api::{api, mismatch};
use super::arena::{Arena, GRAPH_SIZE, GRAPH_WORDS, chain};
use super::cpu::CpuBackend;
use super::types::{RawGraph, RawScheduler};
use crate::error::HookError;

/// Measures the byte offset of `ggml_cgraph.uid`; `None` in builds that have none.
///
/// A scheduler gives every graph that it splits a new uid. The field is therefore the one word that is zero
/// in a new graph and grows with each split.
pub(super) fn measure_uid() -> Result<Option<usize>, HookError> {
    let arena = Arena::new(32)?;
    let graph = chain(&arena, 5);
    let words = || -> [u64; GRAPH_WORDS] {
        // SAFETY: within the first GRAPH_WORDS words of the graph's allocation; any bits are a valid u64.
        std::array::from_fn(|i| unsafe { graph.cast::<u64>().add(i).read() })
    };
    let scheduler = Scheduler::new()?;
    let new = words();
    let [first, second] = [(); 2].map(|()| {
        scheduler.split(graph);
        words()
    });
    let mut found = (0..GRAPH_WORDS).filter(|&i| new[i] == 0 && first[i] > 0 && second[i] > first[i]);
    match (found.next(), found.next()) {
        (word, None) => Ok(word.map(|word| word * size_of::<u64>())),
        (_, Some(_)) => Err(mismatch("two fields of ggml_cgraph could hold its uid")),
    }
}

/// A scheduler of the CPU backend alone.
struct Scheduler {
    scheduler: RawScheduler,
    _backend: CpuBackend,
}

impl Scheduler {
    fn new() -> Result<Self, HookError> {
        let backend = CpuBackend::new()?;
        let mut raw = backend.raw();
        // SAFETY: one backend, copied by the call; without buffer types the backend's own are used.
        let scheduler =
            unsafe { (api().ggml_backend_sched_new)(&mut raw, null_mut(), 1, GRAPH_SIZE, false, false) };
        Ok(Self { scheduler, _backend: backend })
    }

    fn split(&self, graph: *mut RawGraph) {
        // SAFETY: the graph is small enough for the scheduler, and all its operations run on the CPU backend.
        unsafe {
            (api().ggml_backend_sched_reset)(self.scheduler);
            (api().ggml_backend_sched_split_graph)(self.scheduler, graph);
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once. The backend is a field, and so goes after its scheduler.
        unsafe { (api().ggml_backend_sched_free)(self.scheduler) };
    }
}

/// Returns the uid of the view of these nodes of a graph.
///
/// The same graph and nodes give the same uid. It is never zero and never one that ggml's counter gives out.
/// Views of a graph without a uid have none either, and ggml compares them in full.
pub(crate) fn view_uid(graph: u64, nodes: &Range<usize>) -> u64 {
    if graph == 0 {
        return 0;
    }
    let segment = (nodes.start as u64) << 32 | nodes.end as u64;
    // A counter never reaches the top bit, so the two kinds of uid differ.
    mix(mix(graph) ^ segment) | 1 << 63
}

/// Returns a new uid for a graph that the hook made. Its empty segment tells it from the uids of views.
pub(crate) fn own_uid() -> u64 {
    static MADE: AtomicU64 = AtomicU64::new(0);
    view_uid(u64::MAX - MADE.fetch_add(1, Ordering::Relaxed), &(0..0))
}

/// Mixes the bits of a word: the finaliser of splitmix64, a bijection.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn views_have_stable_and_distinct_uids() {
        let mut seen = HashSet::new();
        for graph in 1..2000_u64 {
            for start in 0..8 {
                for end in start + 1..9 {
                    let uid = view_uid(graph, &(start..end));
                    assert_eq!(uid, view_uid(graph, &(start..end)));
                    assert!(uid >= 1 << 63);
                    assert!(seen.insert(uid), "{graph} {start}..{end}");
                }
            }
        }
        assert_eq!(view_uid(0, &(0..5)), 0);
        assert!((0..2000).all(|_| seen.insert(own_uid())));
    }
}
