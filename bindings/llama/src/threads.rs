//! How many threads decoding should use.

use std::collections::BTreeSet;
use std::thread::available_parallelism;

/// Returns the threads for one context: the physical cores this process may use, because two threads on one
/// core slow each other down. Up to four logical processors count as cores, because small machines are mostly
/// virtual and their siblings need not share a core.
#[must_use]
pub fn default_threads() -> usize {
    let logical = available_parallelism().map_or(4, usize::from);
    if logical <= 4 { logical } else { physical_cores().map_or(logical / 2, |cores| cores.min(logical)) }
        .min(MAX_THREADS)
}

/// Maximum threads ggml accepts (`GGML_MAX_N_THREADS`).
pub const MAX_THREADS: usize = 512;

/// Returns the number of distinct cores among the online processors, if the kernel tells.
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
    fn the_default_is_at_least_one_thread_and_at_most_one_per_processor() {
        let threads = super::default_threads();
        let logical = std::thread::available_parallelism().map_or(4, usize::from);
        assert!((1..=logical).contains(&threads), "{threads} of {logical}");
    }
}
