//! Graph uids: how ggml recognises a graph that it has computed before, and which uids the views of a graph get.
//!
//! ggml's CUDA backend keeps one CUDA graph per first node. Where the uid is the one it saw last, and not zero, it
//! takes the graph for the same without looking, and aborts the process if the number of nodes is another. A view
//! must therefore never go by the uid of its graph, nor by that of another view.

use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};

use llama_cpp_sys_2 as sys;

use crate::error::HookError;
use crate::layout::{Arena, GRAPH_SIZE, GRAPH_WORDS, chain, mismatch};

/// Byte offset of `ggml_cgraph.uid`: a scheduler gives every graph that it splits a new one, so it is the one word
/// that is zero in a new graph and grows each time.
pub(crate) fn measure_uid() -> Result<usize, HookError> {
    let arena = Arena::new(32)?;
    let graph = chain(&arena, 5);
    let words = || -> [u64; GRAPH_WORDS] {
        // SAFETY: within the first GRAPH_WORDS words of the graph's allocation; any bits are a valid u64.
        std::array::from_fn(|i| unsafe { graph.cast::<u64>().add(i).read() })
    };
    let scheduler = Scheduler::new()?;
    let snapshots = [
        words(),
        {
            scheduler.split(graph);
            words()
        },
        {
            scheduler.split(graph);
            words()
        },
    ];
    let mut found = (0..GRAPH_WORDS).filter(|&i| {
        let [new, first, second] = snapshots.map(|words| words[i]);
        new == 0 && first > new && second > first
    });
    match (found.next(), found.next()) {
        (Some(word), None) => Ok(word * size_of::<u64>()),
        (None, _) => Err(mismatch("ggml_cgraph has no field that holds its uid")),
        (Some(_), Some(_)) => Err(mismatch("two fields of ggml_cgraph could hold its uid")),
    }
}

/// A scheduler of the CPU backend alone.
struct Scheduler {
    backend: sys::ggml_backend_t,
    scheduler: sys::ggml_backend_sched_t,
}

impl Scheduler {
    fn new() -> Result<Self, HookError> {
        // SAFETY: plain queries of the registry; a device makes a backend, which is freed on drop.
        let mut backend = unsafe {
            let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
            if device.is_null() {
                return Err(HookError::NoDevice);
            }
            sys::ggml_backend_dev_init(device, std::ptr::null())
        };
        if backend.is_null() {
            return Err(mismatch("the CPU device makes no backend"));
        }
        // SAFETY: one backend, copied by the call; without buffer types the backend's own are used.
        let scheduler =
            unsafe { sys::ggml_backend_sched_new(&mut backend, null_mut(), 1, GRAPH_SIZE, false, false) };
        Ok(Self { backend, scheduler })
    }

    fn split(&self, graph: *mut sys::ggml_cgraph) {
        // SAFETY: the graph is small enough for the scheduler, and all its operations run on the CPU backend.
        unsafe {
            sys::ggml_backend_sched_reset(self.scheduler);
            sys::ggml_backend_sched_split_graph(self.scheduler, graph);
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once, the scheduler before its backend.
        unsafe {
            sys::ggml_backend_sched_free(self.scheduler);
            sys::ggml_backend_free(self.backend);
        }
    }
}

/// The uid of the view of these nodes of a graph: the same whenever graph and nodes are, never zero, and never one
/// that ggml's counter gives out. A graph without a uid has views without one, which ggml then compares in full.
pub(crate) fn view_uid(graph: u64, nodes: &Range<usize>) -> u64 {
    if graph == 0 {
        return 0;
    }
    let segment = (nodes.start as u64) << 32 | nodes.end as u64;
    // A counter never reaches the top bit.
    mix(mix(graph) ^ segment) | 1 << 63
}

/// A uid for a graph of our own, never given out before. Graphs without a segment have no views to be mistaken for.
pub(crate) fn own_uid() -> u64 {
    static MADE: AtomicU64 = AtomicU64::new(0);
    view_uid(u64::MAX - MADE.fetch_add(1, Ordering::Relaxed), &(0..0))
}

/// The finaliser of splitmix64, a bijection.
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
