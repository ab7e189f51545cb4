//! The use counts of a graph's tensors, by which ggml decides what it may fuse.
//!
//! ggml counts the uses of every tensor while it builds a graph, in an array beside the graph's hash set. The
//! graphs that a scheduler splits off share both with the whole graph. A count therefore includes readers
//! that another backend computes. ggml has no public getter; the four fields are found by graphs whose counts
//! are known.

use std::ffi::c_void;
use std::ops::Range;

use super::api::api;
use super::arena::{Arena, GRAPH_SIZE, GRAPH_WORDS};
use super::types::{F32, RawGraph};

/// Byte offsets within `ggml_cgraph`: `visited_hash_set.{size, used, keys}` and `use_counts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UseCounts {
    pub(crate) size: usize,
    pub(crate) used: usize,
    pub(crate) keys: usize,
    pub(crate) counts: usize,
}

/// Slots in one word of the set of used ones.
const SLOTS_PER_WORD: usize = u32::BITS as usize;

impl UseCounts {
    /// Measures the fields; `None` unless graphs of two sizes agree on a unique result.
    pub(crate) fn measure() -> Option<Self> {
        let [first, second] = [GRAPH_SIZE, 3 * GRAPH_SIZE].map(|size| Probe::new(size)?.fields());
        first.filter(|_| first == second)
    }

    /// Returns how often nodes of the whole graph name `tensor` as a source; `None` for a tensor that is not
    /// in the graph.
    ///
    /// # Safety
    /// `graph` must be a valid graph of the ggml that was measured.
    pub(crate) unsafe fn of(self, graph: *const RawGraph, tensor: *const c_void) -> Option<i32> {
        // SAFETY: by the caller's contract the fields are there, and the arrays have `size` slots each.
        unsafe {
            let size = graph.byte_add(self.size).cast::<usize>().read();
            let used = graph.byte_add(self.used).cast::<*const u32>().read();
            let keys = graph.byte_add(self.keys).cast::<*const *const c_void>().read();
            let counts = graph.byte_add(self.counts).cast::<*const i32>().read();
            if used.is_null() || keys.is_null() || counts.is_null() {
                return None;
            }
            for slot in slots(tensor, size) {
                if used.add(slot / SLOTS_PER_WORD).read() >> (slot % SLOTS_PER_WORD) & 1 == 0 {
                    return None;
                }
                if keys.add(slot).read() == tensor {
                    return Some(counts.add(slot).read());
                }
            }
            None
        }
    }
}

/// Returns the slots in which ggml looks for a tensor, in order: linear probing, from its address without the
/// 4 bits that are always zero.
fn slots(tensor: *const c_void, size: usize) -> impl Iterator<Item = usize> {
    let start = (tensor as usize >> 4).checked_rem(size).unwrap_or(0);
    (start..size).chain(0..start)
}

/// A graph with known uses, in memory of ours. All of it is initialised, and any word of it may be read.
struct Probe {
    graph: *const RawGraph,
    /// Its tensors, and how often each is used.
    tensors: Vec<(*const c_void, i32)>,
    /// The addresses of the memory.
    within: Range<usize>,
    _arena: Arena,
    _memory: Vec<u128>,
}

impl Probe {
    fn new(size: usize) -> Option<Self> {
        // SAFETY: the two functions only compute sizes.
        let bytes = unsafe {
            16 * (api().ggml_tensor_overhead)() + (api().ggml_graph_overhead_custom)(size, false) + 1024
        };
        let mut memory = vec![0_u128; bytes.div_ceil(size_of::<u128>())];
        let range = memory.as_ptr_range();
        let within = range.start as usize..range.end as usize;
        // SAFETY: the probe keeps the memory for as long as the arena; moving the vector does not move what
        // it holds.
        let arena = unsafe { Arena::within(&mut memory) }.ok()?;
        let api = api();
        // SAFETY: all objects live in the arena, which has room for them.
        let (graph, tensors) = unsafe {
            let c = arena.context();
            let leaf = || (api.ggml_new_tensor_1d)(c, F32, 1);
            let (a, b) = (leaf(), leaf());
            let sum = (api.ggml_add)(c, a, b);
            let square = (api.ggml_mul)(c, sum, sum);
            let third = (api.ggml_add)(c, square, sum);
            let last = (api.ggml_mul)(c, third, a);
            let graph = (api.ggml_new_graph_custom)(c, size, false);
            (api.ggml_build_forward_expand)(graph, last);
            (graph, [(a, 2), (b, 1), (sum, 3), (square, 1), (third, 1), (last, 0)])
        };
        let tensors = tensors.map(|(tensor, uses)| (tensor.cast_const().cast(), uses)).to_vec();
        Some(Self { graph, tensors, within, _arena: arena, _memory: memory })
    }

    fn fields(&self) -> Option<UseCounts> {
        let words = || (0..GRAPH_WORDS).map(|word| word * size_of::<u64>());
        let set = words().flat_map(|size| words().map(move |keys| (size, keys)));
        let (size, keys, places) = only(set.filter_map(|(size, keys)| {
            let places = self.places(self.word(size), self.word(keys))?;
            Some((size, keys, places))
        }))?;
        let slots = self.word(size);
        let used = only(words().filter(|&used| self.marks(self.word(used), slots, &places)))?;
        let counts = only(words().filter(|&counts| self.counts(self.word(counts), slots, &places)))?;
        Some(UseCounts { size, used, keys, counts })
    }

    fn word(&self, offset: usize) -> usize {
        // SAFETY: within the first GRAPH_WORDS words of the graph, all of them initialised.
        unsafe { self.graph.byte_add(offset).cast::<usize>().read() }
    }

    /// Returns the array of `count` numbers at `address`, if all of it lies in our memory.
    fn array<T: Copy>(&self, address: usize, count: usize) -> Option<&[T]> {
        let bytes = count.checked_mul(size_of::<T>())?;
        let inside = address >= self.within.start && address.checked_add(bytes)? <= self.within.end;
        let aligned = address.is_multiple_of(align_of::<T>());
        // SAFETY: inside our memory, which is initialised. Callers ask for integers and addresses, of which
        // any bits are valid. The memory is not written while the probe is read.
        (inside && aligned).then(|| unsafe { std::slice::from_raw_parts(address as *const T, count) })
    }

    /// Returns the slot of each tensor, if this is the size of the hash set and the address of its keys.
    fn places(&self, size: usize, keys: usize) -> Option<Vec<usize>> {
        if size < self.tensors.len() {
            return None;
        }
        let keys = self.array::<usize>(keys, size)?;
        let place = |&(tensor, _): &(*const c_void, i32)| {
            let slot = slots(tensor, size).find(|&slot| keys[slot] == tensor as usize || keys[slot] == 0)?;
            (keys[slot] != 0).then_some(slot)
        };
        let filled = keys.iter().filter(|&&key| key != 0).count();
        self.tensors.iter().map(place).collect::<Option<Vec<_>>>().filter(|_| filled == self.tensors.len())
    }

    /// Tells whether the bits at this address are those of the slots in use.
    fn marks(&self, address: usize, size: usize, places: &[usize]) -> bool {
        let Some(words) = self.array::<u32>(address, size.div_ceil(SLOTS_PER_WORD)) else { return false };
        let is_set = |&slot: &usize| words[slot / SLOTS_PER_WORD] >> (slot % SLOTS_PER_WORD) & 1 == 1;
        let set: u32 = words.iter().map(|word| word.count_ones()).sum();
        places.iter().all(is_set) && set as usize == places.len()
    }

    /// Tells whether the numbers at this address are the uses of the tensors.
    fn counts(&self, address: usize, size: usize, places: &[usize]) -> bool {
        let Some(counts) = self.array::<i32>(address, size) else { return false };
        let mut expected = vec![0; size];
        for (&place, &(_, uses)) in places.iter().zip(&self.tensors) {
            expected[place] = uses;
        }
        counts == expected
    }
}

/// Returns the only item; `None` where there are none or several.
fn only<T>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

#[cfg(all(test, feature = "linked"))]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_whole_graph() {
        let fields = UseCounts::measure().unwrap();
        let probe = Probe::new(GRAPH_SIZE).unwrap();
        for &(tensor, uses) in &probe.tensors {
            // SAFETY: the probe's graph is one of this ggml.
            assert_eq!(unsafe { fields.of(probe.graph, tensor) }, Some(uses));
        }
        // SAFETY: the probe's graph is one of this ggml; the other address is only compared.
        assert_eq!(unsafe { fields.of(probe.graph, (&raw const probe.tensors).cast()) }, None);
    }
}
