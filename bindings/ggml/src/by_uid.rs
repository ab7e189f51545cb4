//! A bounded cache of what was found in the last graphs, by their uids. A graph that keeps its uid has not changed.

use std::collections::HashMap;

/// Graphs remembered. With experts in host memory a model has one graph per block and token, with layers on the CPU two.
const MAX_GRAPHS: usize = 256;

/// Values by the uids of graphs. A graph with the uid zero is not remembered, because it may change at any time.
#[derive(Debug)]
pub(crate) struct ByUid<T>(HashMap<u64, T>);

impl<T> Default for ByUid<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> ByUid<T> {
    pub(crate) fn get(&self, uid: u64) -> Option<&T> {
        self.0.get(&uid)
    }

    /// Inserts a value. Rebuilt graphs get new uids, so a full cache is mostly stale. It is cleared and refilled on
    /// demand.
    pub(crate) fn insert(&mut self, uid: u64, value: T) {
        if uid == 0 {
            return;
        }
        if self.0.len() == MAX_GRAPHS && !self.0.contains_key(&uid) {
            self.0.clear();
        }
        self.0.insert(uid, value);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_a_bounded_number_and_nothing_under_zero() {
        let mut found = ByUid::default();
        found.insert(0, 0);
        assert_eq!(found.get(0), None);
        for uid in 1..=1000 {
            found.insert(uid, uid);
            assert_eq!(found.get(uid), Some(&uid));
            assert!(found.0.len() <= MAX_GRAPHS);
        }
        found.insert(1000, 7);
        assert_eq!((found.get(1000), found.get(1)), (Some(&7), None));
    }
}
