//! How many threads decoding should use.

use std::collections::BTreeSet;
use std::thread::available_parallelism;

/// Threads for one context: the physical cores this process may use, since two threads on one core only get in
/// each other's way. Up to four logical processors count as cores (small machines are mostly virtual, and what
/// they call siblings need not be).
#[must_use]
pub fn default_threads() -> usize {
    let logical = available_parallelism().map_or(4, usize::from);
    if logical <= 4 { logical } else { physical_cores().map_or(logical / 2, |cores| cores.min(logical)) }
        .min(MOST)
}

/// Most threads ggml accepts (GGML_MAX_N_THREADS).
pub const MOST: usize = 512;

/// Distinct cores among the online processors, where the kernel tells.
fn physical_cores() -> Option<usize> {
    let siblings: BTreeSet<String> = std::fs::read_dir("/sys/devices/system/cpu")
        .ok()?
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("topology/thread_siblings_list")).ok())
        .collect();
    (!siblings.is_empty()).then_some(siblings.len())
}

#[cfg(test)]
mod tests {
    #[test]
    fn uses_at_least_one_thread_and_no_more_than_there_are() {
        let threads = super::default_threads();
        let logical = std::thread::available_parallelism().map_or(4, usize::from);
        assert!((1..=logical).contains(&threads), "{threads} of {logical}");
    }
}
